"""Spock (CLOUD'19): functions hide the start-up of VMs, which are scaled by prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import numpy as np

from selfserve.planner import Overflow
from selfserve.policies.base import Choice, PlannerPolicy, Range
from selfserve.scenario import Scenario


@dataclass(kw_only=True, eq=False)
class Spock(PlannerPolicy):
    """VMs for the predicted load; a query that finds no free slot runs on a function at once.

    CLOUD'19 section V: load is watched every second; the predictive policy fits a line to the last 500 s and reads it
    off when a machine asked for now is up, the reactive one takes the last second; waiting queries launch nothing;
    slots fill the fullest VM first, so that idle ones can go after three minutes. Interpreted: the oldest VM with a
    free slot is filled first, which leaves the youngest idle in the same way; functions stay warm by the provider's
    keep-alive instead of a call every 20 minutes. Its VM-only comparison "autoscale" is ``overflow=never``, X-autoscale
    ``headroom=1.5``.

    Args:
        policy: how VMs are scaled: predictive or reactive.
        overflow: when a query leaves for a function: never, idle (the paper's rule), fits or last_moment.
        window_s: seconds that the line is fitted to.
    """

    name: ClassVar[str] = "spock"
    limits: ClassVar = {"from 2 to 3600": "window_s"}
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        **PlannerPolicy.tunable,
        "window_s": Range(60, 1800, log=True, integer=True),
        "policy": Choice(("predictive", "reactive")),
        "overflow": Choice(("idle", "fits", "last_moment")),
    }
    policy: Literal["predictive", "reactive"] = "predictive"
    overflow: Overflow = "idle"
    window_s: int = 500
    drain_s: float | None = inf
    interval_s: float | None = 1.0

    def rate(self) -> np.ndarray:
        """Return the predicted load at the boot horizon, or that of the last interval."""
        if self.policy == "reactive":
            return self.planner.monitor.last
        return self.planner.monitor.trend(self.window_s, self.planner.boot_horizon_s)

    def overflow_rules(self, scenario: Scenario) -> Sequence[Overflow]:
        """Return the same rule for every class."""
        return [self.overflow] * len(scenario.classes)
