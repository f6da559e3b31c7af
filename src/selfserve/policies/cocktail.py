"""Cocktail (NSDI'22): ensembles of models on spot machines, as few members as the accuracy needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from selfserve.correctness import combined
from selfserve.forecast import make_forecaster
from selfserve.planner import Planner
from selfserve.policies.base import Choice, PlannerPolicy, Range
from selfserve.policies.variants import Variant, fleet, variants, vm_pools
from selfserve.protocol import Decision, Observation, Route, Step, Then
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice, wanted_pct


@dataclass(kw_only=True, eq=False)
class Cocktail(PlannerPolicy):
    """All models in time answer together at first; members go while the accuracy stays, machines follow a forecast.

    NSDI'22: the objective is first accuracy over latency, then, once the demand is met, least cost over packing factor;
    the margin is 0.2 points. A member goes if accuracy is above the demand, and one comes back if it is below (as in
    the artifact, ``CYAN/naiveSchedule.py``, down to one model). Machines are spot where there are any, for the load
    forecast over ten minutes, anew every minute, weighted by what each model serves; every 10 s a reactive correction
    adds what the last interval needed; a machine goes after ten idle minutes. Interpreted: members change with each
    forecast; what goes is the dearest one without which physics rule 10.6 still promises the demand, and below the
    demand the change is made that raises accuracy most, which may also be to drop a weak member; members vote without
    the paper's weights by class of image, which that rule does not have; the forecast is an LSTM's mean (in the paper
    DeepAR's, a little better than its LSTM); machines of one pool hold all models, so the weighting by model is the sum
    of its members' work; the purchase is the cheapest spot pool.

    Args:
        margin_pct: points by which accuracy must differ from the demand for a change.
        predict_s: seconds between forecasts.
        horizon_s: seconds that are forecast.
        forecaster: lstm, or another of :data:`selfserve.forecast.FORECASTERS`.
        seed: of the network.
    """

    name: ClassVar[str] = "cocktail"
    tunable: ClassVar = {
        "headroom": Range(0.7, 2.0),
        "keep_s": Range(0.0, 900.0),
        "margin_pct": Range(0.0, 2.0),
        "horizon_s": Range(60.0, 900.0),
        "forecaster": Choice(("lstm", "moving_average", "linear_trend", "holt")),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.6, 0.8, 1.0, 1.2, 1.5, 2.0))
    limits: ClassVar = {"0 or more, or inf": "margin_pct", "above 0, or inf": "predict_s", "above 0": "horizon_s"}
    models: ClassVar[ModelChoice] = "cheapest"  # type: ignore[misc]
    keep_s: float = 600.0
    interval_s: float | None = 10.0
    margin_pct: float = 0.2
    predict_s: float = 60.0
    horizon_s: float = 600.0
    forecaster: Literal["lstm", "last_value", "moving_average", "linear_trend", "holt"] = "lstm"
    seed: int = 0

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Train the forecaster and start every class with all models in time."""
        super().reset(scenario, history)
        spot = vm_pools(self.planner, None, "spot")
        if spot and self.pool is None:
            cost = {
                p: sum(variants(self.planner, k, [p], 0.0)[0].usd * c.share for k, c in enumerate(scenario.classes))
                for p in spot
            }
            name = scenario.pools[min(spot, key=lambda p: cost[p])].name
            own_s = float(self.interval_s or 0.0)
            self.planner = Planner(scenario, history, own_s, pool=name, keep_s=self.keep_s, drain_s=self.drain_s)
        self._forecaster = make_forecaster(self.forecaster, self.horizon_s, self.seed)
        self._forecaster.fit(history)
        self._forecast, self._next_s = 0.0, 0.0
        pools = self.planner.resources.pool_of
        self._all = [variants(self.planner, k, [p], 0.0) for k, p in enumerate(pools)]
        self._members = [list(vs) for vs in self._all]

    def decide(self, observation: Observation) -> Decision:
        """Change the ensembles by a member, and keep machines for the forecast or for what came last."""
        planner, monitor, reason = self.planner, self.planner.monitor, ""
        monitor.observe(observation)
        if observation.time_s >= self._next_s:
            window = monitor.recent(3600).sum(axis=1)
            self._forecast = self._forecaster.predict(window, self.horizon_s)
            self._next_s = observation.time_s + self.predict_s
            for k in range(len(self._members)):
                reason += self._select(k, observation)
        share = monitor.rate(600) / max(float(monitor.rate(600).sum()), 1e-9)
        rates = self.headroom * np.maximum(self._forecast * share, monitor.last)
        work_s = np.array([sum(v.work_s for v in members) for members in self._members])
        machines = fleet(planner, observation, rates, planner.resources.pool_of, work_s, self.drain_s)
        routes = tuple((self._route(members),) for members in self._members)
        return Decision(machines, routes, reason=f"{self._forecast:.1f} requests/s foreseen{reason}")

    def _route(self, members: list[Variant]) -> Route:
        steps = [Step(v.pool, v.model, then=Then.ALSO) for v in members[:-1]]
        return Route((*steps, Step(members[-1].pool, members[-1].model)))

    def _select(self, k: int, seen: Observation) -> str:
        """Drop the dearest member that class ``k``'s demand can do without, or change what raises it most."""
        members, asked = self._members[k], wanted_pct(self.planner.scenario.classes[k])
        answers = float(seen.served[:, :, k].sum())
        found = float(seen.accuracy_sum[k]) / answers if answers else self._accuracy(members)
        if found >= asked + self.margin_pct:
            for v in sorted(members, key=lambda v: -v.usd) if len(members) > 1 else []:
                rest = [other for other in members if other is not v]
                if self._accuracy(rest) >= asked + self.margin_pct:
                    self._members[k] = rest
                    return f"; class {k} {len(rest)} models"
        if found < asked - self.margin_pct:
            changes = [[v for v in self._all[k] if (v in members) != (v is one)] for one in self._all[k]]
            best = max((c for c in changes if c), key=self._accuracy, default=members)
            if self._accuracy(best) > self._accuracy(members):
                self._members[k] = best
                return f"; class {k} {len(best)} models"
        return ""

    def _accuracy(self, members: list[Variant]) -> float:
        return combined(self.planner.scenario, self._route(members))
