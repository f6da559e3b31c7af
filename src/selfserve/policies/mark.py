"""MArk (ATC'19): predicted load, the cheapest mix of machine types for it, batches, and functions for the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from selfserve.forecast import Forecaster, make_forecaster
from selfserve.planner import Planner
from selfserve.policies.base import Choice, Limited, Range
from selfserve.protocol import Admit, Decision, Observation, Route, Step
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice


@dataclass(kw_only=True, eq=False)
class Mark(Limited):
    """Plans machines every minute by greedy choice of the type of least cost per request.

    ATC'19 section 4 and the artifact (``modules/scheduler.py``, ``proactive_controller2.py``, ``load_predictor.py``):
    an LSTM predicts how the last minute's peak (5 s windows) changes over the next minutes; times 1.2; while the
    busiest of the next six is not covered,
    one more machine is planned, of the type that answers the load left over at least cost for as long as it lasts; a
    machine not yet there costs 180 s more. What is planned is launched at once; a machine goes when six plans in
    a row do without it. Requests are balanced by capacity; a batch and its waiting time are as large as the latency
    bound allows; what would be late runs on a function. Interpreted: the artifact's scheduler repeats the highest load
    so far instead of its LSTM's forecast, the paper's text is followed here; the LSTM is this project's own
    (:mod:`selfserve.forecast`), trained on the history, a linear trend without one; batches by
    :meth:`ModelSelector.batch <selfserve.selector.ModelSelector.batch>`, on VMs as on GPUs; capacity is at the mix
    of classes last seen.

    Args:
        predictor: lstm (the paper's), moving_average, linear_trend, holt or last_value.
        headroom: machines over the predicted load.
        plans: plans that must agree before a machine goes, and minutes that a plan looks ahead.
        overhead_s: what a launch is taken to cost, seconds of the machine's price.
        window_s: the peak of a minute is over windows of this length.
        batch_share: share of the SLOs that batches may use up (0: no batches).
        spot: whether spot pools count as types (the artifact's INS_SOURCE).
        models: how the models of a class are chosen.
        pool: the one VM pool to use (default: all that serve the classes).
    """

    name: ClassVar[str] = "mark"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        "predictor": Choice(("lstm", "moving_average", "linear_trend", "holt")),
        "headroom": Range(0.6, 2.0),
        "plans": Range(1, 15, integer=True),
        "overhead_s": Range(0.0, 600.0),
        "window_s": Range(1, 60, log=True, integer=True),
        "batch_share": Range(0.0, 1.0),
        "spot": Choice((False, True)),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.6, 0.75, 0.9, 1.05, 1.2, 1.4, 1.7))
    limits: ClassVar = {"0 or more": "headroom overhead_s batch_share", "1 or more": "interval_s plans window_s"}
    interval_s: float = 60.0
    predictor: Literal["lstm", "moving_average", "linear_trend", "holt", "last_value"] = "lstm"
    headroom: float = 1.2
    plans: int = 6
    overhead_s: float = 180.0
    window_s: int = 5
    batch_share: float = 1.0
    spot: bool = False
    models: ModelChoice = "single"
    pool: str | None = None
    planner: Planner = field(init=False, repr=False)
    forecaster: Forecaster = field(init=False, repr=False)

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Profile each machine type and train the predictor on the history."""
        self.scenario = scenario
        self.planner = Planner(scenario, history, self.interval_s, models=self.models, pool=self.pool)
        markets = {self.planner.resources.market, *(("spot",) if self.spot else ())}
        pools = [p for p, x in enumerate(scenario.pools) if x.market in markets and self.pool in (None, x.name)]
        selector, homes = self.planner.models, self.planner.resources.pool_of
        self._types: dict[tuple[int, ...], list[int]] = {}
        for k in range(len(scenario.classes)):
            able = tuple(p for p in pools if selector.serves(k, p)) or (homes[k],)
            self._types.setdefault(able, []).append(k)
        batches = [selector.batch(p, self.batch_share) if p in pools else (1, 0.0) for p in range(len(scenario.pools))]
        self.batches, self.waits = (tuple(column) for column in zip(*batches, strict=True))
        self._current = [0] * len(scenario.pools)
        self._plans: deque[list[int]] = deque(maxlen=self.plans)
        self.forecaster = make_forecaster(self.predictor, self.plans * self.interval_s)
        self.forecaster.fit(history)

    def decide(self, observation: Observation) -> Decision:
        """Plan the next minutes, launch what is missing, let go what the last plans did without."""
        monitor = self.planner.monitor
        monitor.observe(observation)
        demand = self.forecast()
        plan = [0] * len(self._current)
        for pools, classes in self._types.items():
            rate = monitor.last[classes]
            share = float(rate.sum()) / max(float(monitor.last.sum()), 1e-9)
            capacity = {p: self.capacity(p, classes, rate) for p in pools}
            for p, n in self.plan([d * share for d in demand], capacity).items():
                plan[p] += n
        self._plans.append(plan)
        self._current = [max(column) for column in zip(*self._plans, strict=True)]
        reason = f"{max(demand):.1f} requests/s predicted need {sum(plan)} machines, {sum(self._current)} kept"
        return Decision(tuple(self._current), self._routes(observation), self.batches, self.waits, reason)

    def forecast(self) -> list[float]:
        """Return the peak load to be ready for in each of the next minutes, requests/s, headroom included."""
        recent = self.planner.monitor.recent(3600).sum(axis=1)
        last = recent[-int(self.interval_s) :]
        if not last.any():
            return [0.0] * self.plans
        width = min(self.window_s, len(last))
        peak = float(np.convolve(last, np.ones(width) / width, "valid").max())
        now, *then = (self.forecaster.predict(recent, j * self.interval_s, "last") for j in range(self.plans + 1))
        return [self.headroom * max(0.0, peak + ahead - now) for ahead in then]

    def capacity(self, pool: int, classes: Sequence[int], rate: np.ndarray) -> float:
        """Return the requests/s that a machine of ``pool`` answers in full batches, at the classes' mix in ``rate``."""
        spec, batch = self.scenario.pools[pool], self.batches[pool]
        work = [sum(s * spec.service_s(m, batch) / batch for m, s in self.planner.models.mix(k, pool)) for k in classes]
        return spec.slots / float(np.average(work, weights=rate if rate.any() else None))

    def plan(self, demand: Sequence[float], capacity: Mapping[int, float]) -> dict[int, int]:
        """Return machines of each type that cover ``demand`` (requests/s, a minute each), by greedy choice."""
        chosen = dict.fromkeys(capacity, 0)
        left = np.array(demand)
        while left.max() > 1e-9:
            start = int(left.argmax())
            open_s = left[start:]
            lasts = open_s[: int(np.argmax(open_s < 0)) or len(open_s)]
            costs = {}
            for p, most in capacity.items():
                spec = self.scenario.pools[p]
                seconds = len(lasts) * self.interval_s + (self.overhead_s if chosen[p] >= self._current[p] else 0.0)
                if chosen[p] < spec.max_machines:
                    costs[p] = spec.usd_per_hour * seconds / float(np.minimum(lasts, most).sum())
            if not costs:
                break
            best = min(costs, key=costs.__getitem__)
            chosen[best] += 1
            left = left - capacity[best]
        return chosen

    def _routes(self, observation: Observation) -> tuple[tuple[Route, ...], ...]:
        """Return each class's pools in proportion to their capacity ready; a function takes what would be late."""
        routes: list[tuple[Route, ...]] = [()] * len(self.scenario.classes)
        for pools, classes in self._types.items():
            for k in classes:
                ready = [int(observation.ready[p]) * self.capacity(p, [k], np.ones(1)) for p in pools]
                weights = ready if any(ready) else [float(self._current[p]) for p in pools]
                weights = weights if any(weights) else [1.0] * len(pools)
                routes[k] = tuple(
                    Route(self._steps(k, p, m), share * weight)
                    for p, weight in zip(pools, weights, strict=True)
                    for m, share in self.planner.models.mix(k, p)
                )
        return tuple(routes)

    def _steps(self, k: int, pool: int, model: int) -> tuple[Step, ...]:
        target = self.planner.functions.choose(k, model)
        if target is None:
            return (Step(pool, model),)
        return (Step(pool, model, Admit.IF_FITS, self.planner.models.latency_s(*target)), Step(*target))
