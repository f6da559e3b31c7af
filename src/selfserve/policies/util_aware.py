"""Keep utilisation under a threshold, VMs only: what cloud autoscalers do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfserve.policies.base import PlannerPolicy
from selfserve.protocol import Decision, Observation


@dataclass(kw_only=True, eq=False)
class UtilAware(PlannerPolicy):
    """Adds machines when the fleet's utilisation passes 80% (WoSC'20 section 2.3, after model-less serving, HotOS'19).

    Interpreted, since the paper gives the threshold only: utilisation is the work offered in the last interval over
    the capacity of the fleet, machines under way included (a measured utilisation saturates under overload and would
    add too few). Past the threshold, the fleet becomes the least that is back under it. Release is that of the
    baseline, after three idle minutes, so that the threshold alone makes the difference to it.

    Args:
        threshold: utilisation that must not be passed, in (0, 1].
    """

    name: ClassVar[str] = "util_aware"
    limits: ClassVar = {"in (0, 1]": "threshold"}
    threshold: float = 0.8

    def decide(self, observation: Observation) -> Decision:
        """Ask for the least fleet whose utilisation by the last interval's work is not above the threshold."""
        self.planner.monitor.observe(observation)
        return self.planner.decide(observation, self.rate(), self.routes, self.headroom / self.threshold)
