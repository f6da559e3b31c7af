"""The founding paper's own system: who may overflow depends on the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from selfserve.planner import Overflow
from selfserve.policies.base import Choice, PlannerPolicy, Range
from selfserve.scenario import Scenario


@dataclass(kw_only=True, eq=False)
class Paragon(PlannerPolicy):
    """Only strict queries may go to a function; each query gets the cheapest model that meets its demands.

    WoSC'20 sections 3 and 4 (figure 8): (a) a strict-latency query goes to a function only if the VMs cannot take it,
    a relaxed one never does; (b) the model is the least-cost one that satisfies the query's accuracy and latency, from
    the profile. VMs scale as in the reactive baseline. Interpreted: the paper gives no numbers for strict and relaxed;
    a class is strict if its SLO is below ``strict_slo_s``. ``models=naive`` is the constraint-unaware choice that the
    paper compares (b) with.

    Args:
        strict_slo_s: classes with an SLO below this are strict, seconds.
        overflow: when a strict query leaves for a function: never, idle, fits or last_moment.
        relaxed: the same for relaxed queries; with last_moment they spend their slack first and overflow after all.
    """

    name: ClassVar[str] = "paragon"
    limits: ClassVar = {"0 or more, or inf": "strict_slo_s"}
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        **PlannerPolicy.tunable,
        "strict_slo_s": Range(0.1, 60.0, log=True),
        "overflow": Choice(("fits", "idle", "last_moment")),
        "relaxed": Choice(("never", "last_moment")),
    }
    strict_slo_s: float = 10.0
    overflow: Overflow = "fits"
    relaxed: Literal["never", "last_moment"] = "never"

    def overflow_rules(self, scenario: Scenario) -> Sequence[Overflow]:
        """Return each class's rule, by its SLO."""
        return [self.overflow if c.slo_s < self.strict_slo_s else self.relaxed for c in scenario.classes]
