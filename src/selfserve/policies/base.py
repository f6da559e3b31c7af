"""What the policies over the planner share: their common parameters and the run of one decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, log
from typing import Any, ClassVar

import numpy as np

from selfserve.errors import require
from selfserve.planner import Overflow, Planner
from selfserve.protocol import Decision, Observation, Route
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice


@dataclass(frozen=True)
class Range:
    """Where a tuner may look for a number: from ``low`` to ``high``, evenly or in its logarithm."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def at(self, place: Any) -> Any:
        """Return the values at places from 0 to 1."""
        return self.low * (self.high / self.low) ** place if self.log else self.low + place * (self.high - self.low)

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1; what is outside lies at the end."""
        x = min(max(float(value), self.low), self.high)
        return log(x / self.low) / log(self.high / self.low) if self.log else (x - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Choice:
    """The values that a tuner may choose from."""

    values: tuple[object, ...]


LIMITS: Mapping[str, Callable[[float], bool]] = {
    "0 or more": lambda x: 0 <= x < inf,
    "0 or more, or inf": lambda x: x >= 0,
    "above 0": lambda x: 0 < x < inf,
    "above 0, or inf": lambda x: x > 0,
    "1 or more": lambda x: 1 <= x < inf,
    "1 or more, or inf": lambda x: x >= 1,
    "above 1": lambda x: 1 < x < inf,
    "2 or more": lambda x: 2 <= x < inf,
    "from 2 to 3600": lambda x: 2 <= x <= 3600,
    "from 0 to 1": lambda x: 0 <= x <= 1,
    "from 0 to below 1": lambda x: 0 <= x < 1,
    "in (0, 1]": lambda x: 0 < x <= 1,
    "between 0 and 1": lambda x: 0 < x < 1,
}
"""What a parameter must be, in the words of the message, and whether a number is."""


class Limited:
    """A policy whose parameters are checked as it is made."""

    name: ClassVar[str]
    limits: ClassVar[Mapping[str, str]] = {}
    """Names of parameters by what they must be (a key of :data:`LIMITS`), beside those of the classes above."""
    interval_s: Any

    def __post_init__(self) -> None:
        """Raise :class:`InputError` that names policy and parameter if one is out of its limits; None is in."""
        self._own_interval_s = self.interval_s
        for wanted, names in (item for cls in type(self).__mro__ for item in vars(cls).get("limits", {}).items()):
            for n in names.split():
                value = getattr(self, n)
                fine = value is None or LIMITS[wanted](value)
                require(fine, f"policy {self.name}: {n}={value}: must be {wanted}")


@dataclass(kw_only=True, eq=False)
class PlannerPolicy(Limited):
    """A policy that says which load to be ready for and who may overflow; the planner does the rest.

    The founding paper (WoSC'20) states no constants for the systems it compares. Here a machine is given back after
    three idle minutes, as in its authors' earlier Spock (CLOUD'19, section V), and decisions come at the scenario's
    interval. Spock's own interval of a second would, with that hold, keep machines for the busiest single second of the
    last three minutes: twice the mean load on real traces (notebook 04 shows both).

    Args:
        headroom: machines over what the load needs.
        keep_s: seconds that an idle machine is kept (0: given back as soon as the load falls).
        drain_s: seconds in which to work off what waits (default: the time that a new machine takes to come up, so that
            waiting requests count as demand; ``inf``: they launch nothing).
        models: how the model of a class is chosen: cheapest that meets its demands, most_accurate, or naive.
        pool: VM pool to use (default: the cheapest that serves the classes).
        interval_s: seconds between decisions (default: the scenario's).
    """

    name: ClassVar[str]
    tunable: ClassVar[Mapping[str, Range | Choice]] = {"headroom": Range(0.7, 2.0), "keep_s": Range(0.0, 1800.0)}
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.8, 0.9, 1.0, 1.2, 1.5, 2.0))
    limits: ClassVar[Mapping[str, str]] = {
        "0 or more": "headroom",
        "0 or more, or inf": "keep_s",
        "above 0": "interval_s",
        "above 0, or inf": "drain_s",
    }
    headroom: float = 1.0
    keep_s: float = 180.0
    drain_s: float | None = None
    models: ModelChoice = "cheapest"
    pool: str | None = None
    interval_s: float | None = None
    planner: Planner = field(init=False, repr=False)
    routes: tuple[tuple[Route, ...], ...] = field(init=False, repr=False)

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Start a run; raises :class:`InputError` if the scenario lacks a pool that the policy needs."""
        interval_s = self.interval_s = self._own_interval_s or scenario.interval_s
        self.planner = Planner(
            scenario, history, interval_s, models=self.models, pool=self.pool, keep_s=self.keep_s, drain_s=self.drain_s
        )
        self.routes = self.planner.routes(self.overflow_rules(scenario))

    def decide(self, observation: Observation) -> Decision:
        """Take in the last interval and ask for the machines that :meth:`rate` needs."""
        self.planner.monitor.observe(observation)
        return self.planner.decide(observation, self.rate(), self.routes, self.headroom)

    def rate(self) -> np.ndarray:
        """Return the load to be ready for, requests/s per class, shape [K]: here that of the last interval."""
        return self.planner.monitor.last

    def overflow_rules(self, scenario: Scenario) -> Sequence[Overflow]:
        """Return when each class leaves for a function, length K: here never (VMs only)."""
        return ["never"] * len(scenario.classes)
