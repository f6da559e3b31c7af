"""Reactive VMs, and functions while more of them boot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfserve.planner import Overflow
from selfserve.policies.base import Choice, PlannerPolicy, Range
from selfserve.scenario import Scenario


@dataclass(kw_only=True, eq=False)
class Mixed(PlannerPolicy):
    """VMs scale as in the reactive baseline; a request that would miss its SLO there goes to a function.

    WoSC'20 section 2.4 (figure 5), where functions bridge the start-up of VMs, modelled on Spock and MArk. Interpreted:
    Spock sends a request to a function when no slot is free; here, by default, when the queue would make it late
    (``fits``), which is kinder to the system: it uses what slack there is. ``idle`` is Spock's rule; ``last_moment``
    lets every request wait as long as a function can still answer it in time. A scenario without functions is
    refused, since there this would be the reactive baseline under another name.

    Args:
        overflow: when a request leaves for a function: never, idle, fits or last_moment.
    """

    name: ClassVar[str] = "mixed"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        **PlannerPolicy.tunable,
        "overflow": Choice(("fits", "idle", "last_moment")),
    }
    overflow: Overflow = "fits"

    def overflow_rules(self, scenario: Scenario) -> Sequence[Overflow]:
        """Return the same rule for every class."""
        return [self.overflow] * len(scenario.classes)
