"""A constant fleet: what is rented before autoscaling is considered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from selfserve.errors import require
from selfserve.planner import Planner, peak_minute_rate
from selfserve.policies.base import Choice, Limited, Range
from selfserve.protocol import Decision, Observation
from selfserve.scenario import Scenario


@dataclass(kw_only=True, eq=False)
class Static(Limited):
    """A constant fleet of VMs, by default the least that carries the peak minute (static load, WoSC'20 section 3.2.1).

    The default uses hindsight: whoever knows the trace passes its busiest minute as ``peak_rate``, an offline choice
    that no running system could make, which flatters the policy. Without it the busiest minute of the history counts.

    Args:
        headroom: machines over what the peak minute needs.
        machines: size of the fleet, overriding the rule.
        peak_rate: requests/s over the busiest minute of the trace to be served.
        pool: VM pool to use (default: the cheapest that serves the classes).
        interval_s: seconds between (equal) decisions (default: the scenario's).
    """

    name: ClassVar[str] = "static"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {"headroom": Range(0.4, 1.6)}
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.4, 0.5, 0.6, 0.8, 1.0, 1.3))
    limits: ClassVar = {"0 or more": "headroom machines peak_rate", "above 0": "interval_s"}
    headroom: float = 1.0
    machines: int | None = None
    peak_rate: float | None = None
    pool: str | None = None
    interval_s: float | None = None

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Choose the fleet once for the whole run."""
        interval_s = self.interval_s = self._own_interval_s or scenario.interval_s
        planner = Planner(scenario, history, interval_s, pool=self.pool)
        if self.machines is not None:
            fleet = planner.resources.spread(self.machines)
        else:
            wanted = "give machines=N or peak_rate=REQUESTS_PER_S"
            known = self.peak_rate is not None or len(history) > 0
            require(known, f"policy static: no history before the window to size the fleet from: {wanted}")
            peak = peak_minute_rate(history) if self.peak_rate is None else self.peak_rate
            shares = np.array([c.share for c in scenario.classes])
            fleet = planner.resources.machines(planner.resources.load(self.headroom * peak * shares / shares.sum()))
        routes = planner.routes(["never"] * len(scenario.classes))
        self._decision = Decision(tuple(fleet), routes, reason=f"constant fleet of {sum(fleet)} machines")

    def decide(self, observation: Observation) -> Decision:
        """Return the same decision every time."""
        return self._decision
