"""The planner with hand-set constants: what a good engineer runs, and the yardstick of the learned controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from math import inf
from typing import ClassVar

import numpy as np

from selfserve.analytic import constants
from selfserve.errors import require
from selfserve.planner import functions_alone
from selfserve.policies.base import Choice, Range
from selfserve.protocol import Decision, Observation
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice
from selfserve.steering import LONGEST_HOLD, OWN_SHARE, WINDOWS, PlannerSettings, Steering, steer

_TUNED = constants("tuned")


@dataclass(kw_only=True, eq=False)
class Tuned:
    """One set of constants for all situations, chosen once (no paper; the parts are those of WoSC'20 section 3).

    Machines follow a load smoothed over two windows, with headroom and a hold; relaxed classes wait out their slack on
    VMs and leave for a function at the last moment, which a few of them call beforehand where a cold start takes long
    (:mod:`selfserve.warming`); spot machines, where there are any, carry a share that shrinks with losses and refusals.
    The defaults were tuned once over the training situations (``controllers/constants.toml``);
    the search that all systems get sets ``tunable`` anew. The parameters that are not listed here are fields of
    :class:`~selfserve.steering.PlannerSettings` and explained there.

    Args:
        level: accuracy level of every class.
        batch_share: share of the SLOs that filling batches may use up, on pools where that pays (GPUs; 0: none).
        own_share: share of the SLOs that a batch of what waits anyway may take, on the others (0: none).
        cascades: two models may answer a class one after the other, where that is less work (of no use with batches
            that wait to fill).
        models: how the models of a class are chosen at level 0.
        pool: on-demand VM pool to use (default: the cheapest that serves the classes).
        interval_s: seconds between decisions (default: the scenario's).
    """

    name: ClassVar[str] = "tuned"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        "headroom": Range(0.7, 1.5),
        "safety": Range(-1.0, 2.0),
        "fast": Range(0.1, 2.0, log=True),
        "slow": Range(0.5, 12.0, log=True),
        "weight": Range(0.0, 1.5),
        "hold": Range(0.0, 6.0),
        "drain": Range(0.2, 10.0, log=True),
        "leave_margin": Range(0.8, 2.0),
        "cold_margin": Range(0.0, 1.5),
        "spot_share": Range(0.0, 1.0),
        "spot_caution": Range(0.0, 6.0),
        "batch_share": Range(0.0, 1.0),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.7, 0.85, 1.0, 1.15, 1.3, 1.6, 2.0))
    headroom: float = _TUNED["headroom"]
    safety: float = _TUNED["safety"]
    fast: float = _TUNED["fast"]
    slow: float = _TUNED["slow"]
    weight: float = _TUNED["weight"]
    hold: float = _TUNED["hold"]
    drain: float = _TUNED["drain"]
    leave_margin: float = _TUNED["leave_margin"]
    cold_margin: float = _TUNED["cold_margin"]
    early: bool = False
    spot_share: float = _TUNED["spot_share"]
    spot_headroom: float = _TUNED["spot_headroom"]
    spot_caution: float = _TUNED["spot_caution"]
    late_binding: float = _TUNED["late_binding"]
    level: float = 0.0
    batch_share: float = 1.0
    own_share: float = OWN_SHARE
    cascades: bool = True
    models: ModelChoice = "cheapest"
    pool: str | None = None
    interval_s: float | None = None
    state: Steering = field(init=False, repr=False)
    settings: PlannerSettings = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the parameters."""
        window, share = (float(WINDOWS[0]), float(WINDOWS[-1])), (0, 1)
        limits = {"fast": window, "slow": window, "hold": (0, LONGEST_HOLD), "spot_share": share, "level": share}
        limits["own_share"] = share
        for n in (*self.tunable, "spot_headroom", "late_binding", "level", "own_share"):
            value = getattr(self, n)
            least, most = limits.get(n, (-9 if n == "safety" else 0, inf))
            wanted = f"from {least:g} to {most:g}" if most < inf else f"{least:g} or more"
            require(least <= value <= most and value < inf, f"policy {self.name}: {n}={value}: must be {wanted}")
        own = self._own_interval_s = self.interval_s
        require(own is None or 0 < own < inf, f"policy {self.name}: interval_s={own}: must be above 0")

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Start a run."""
        self.interval_s = self._own_interval_s or scenario.interval_s
        self._only = functions_alone(scenario, self.models, self.cascades, self.pool)
        if self._only:
            return
        self.state = Steering(
            scenario, history, self.interval_s, models=self.models, pool=self.pool, batch_share=self.batch_share,
            own_share=self.own_share, cascades=self.cascades,
        )  # fmt: skip
        own = {n: getattr(self, n) for n in PlannerSettings.__dataclass_fields__ if n != "levels"}
        self.settings = PlannerSettings(levels=(self.level,) * len(scenario.classes), **own)

    def decide(self, observation: Observation) -> Decision:
        """Take in the last interval and steer by the constants."""
        if self._only:
            return self._only
        self.state.observe(observation)
        return steer(self.state, self.settings)


TunedFixed = make_dataclass(
    "TunedFixed",
    [(n, float, field(default=value)) for n, value in constants("tuned_fixed").items()],
    bases=(Tuned,),
    namespace={"__doc__": "The same with constants tuned for ``standard`` alone: what becomes of them elsewhere.",
               "name": "tuned_fixed"},
    kw_only=True,
    eq=False,
)  # fmt: skip
