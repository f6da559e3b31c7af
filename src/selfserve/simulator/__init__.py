"""The physics, compiled: request by request, in integer nanoseconds; it knows nothing of policies.

``PHYSICS.md`` beside this file is the specification; ``engine.py`` reads as its list of events.
"""

from selfserve.simulator.many import Worlds
from selfserve.simulator.result import DecisionLog, Result
from selfserve.simulator.run import Simulator, simulate

__all__ = ["DecisionLog", "Result", "Simulator", "Worlds", "simulate"]
