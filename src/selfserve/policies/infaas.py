"""INFaaS (ATC'21): variants are replicated, upgraded or downgraded by what the fleet then costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np

from selfserve.policies.base import PlannerPolicy, Range
from selfserve.policies.variants import Variant, batching_pays, variants, vm_pools
from selfserve.protocol import Admit, Decision, Observation, Route, Step
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice, wanted_pct


@dataclass(kw_only=True, eq=False)
class INFaaS(PlannerPolicy):
    """A request goes to the cheapest running variant that meets its demands; the autoscaler keeps 5% of the rate free.

    The paper's model autoscaler with the constants of its artifact (``worker/autoscaler.cc``): when a variant's load
    passes 95% of its replicas' rate it compares the cost of more replicas with that of another variant and upgrades if
    replication costs over 1.5 times as much; a replica goes when the others could carry the load in 10 readings in a
    row (20 on GPUs), and a variant is downgraded when a smaller one has become cheaper; CPUs serve single requests,
    GPUs batches. Readings come every 2 s (its VM daemon's). Interpreted: the paper's integer program over running
    variants is a choice among the moves of one class or of all to one pool, by the price of the machines that the load
    then needs; a replica is a machine, since every machine holds all models; a class's mean accuracy is asked of every
    answer, since INFaaS has no accuracy windows. It knows no functions and no spot machines.

    Args:
        slack: share of the fleet's rate that is kept free.
        upgrade_ratio: how many times the upgrade's cost replication must cost.
        low_cpu: low readings in a row until a CPU machine goes.
        low_gpu: the same for an accelerator.
    """

    name: ClassVar[str] = "infaas"
    tunable: ClassVar = {
        "slack": Range(0.0, 0.5),
        "upgrade_ratio": Range(1.0, 3.0),
        "low_cpu": Range(1, 120, log=True, integer=True),
        "low_gpu": Range(1, 240, log=True, integer=True),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("slack", (0.0, 0.05, 0.1, 0.2, 0.35, 0.5))
    limits: ClassVar = {"from 0 to below 1": "slack", "1 or more, or inf": "upgrade_ratio low_cpu low_gpu"}
    headroom: ClassVar[float] = 1.0  # type: ignore[misc]
    keep_s: ClassVar[float] = 0.0  # type: ignore[misc]
    drain_s: ClassVar[float] = inf  # type: ignore[misc]
    models: ClassVar[ModelChoice] = "cheapest"  # type: ignore[misc]
    interval_s: float | None = 2.0
    slack: float = 0.05
    upgrade_ratio: float = 1.5
    low_cpu: int = 10
    low_gpu: int = 20

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """List each class's variants and start every class on its smallest machine."""
        super().reset(scenario, history)
        pools = vm_pools(self.planner, self.pool)
        self._delay = {p: self.low_gpu if batching_pays(self.planner, p) else self.low_cpu for p in pools}
        full = {p: self.planner.models.batch(p)[0] if batching_pays(self.planner, p) else 1 for p in pools}
        self._batches = tuple(full.get(p, 1) for p in range(len(scenario.pools)))
        ask = [wanted_pct(c) for c in scenario.classes]
        self._variants = [variants(self.planner, k, pools, pct, batches=full) for k, pct in enumerate(ask)]
        self._price = np.array([spec.usd_per_hour for spec in scenario.pools])
        self._home = [min(vs, key=lambda v: (self._price[v.pool], v.usd)) for vs in self._variants]
        self._running = np.zeros(len(scenario.pools), dtype=np.int64)
        self._low = np.zeros(len(scenario.pools), dtype=np.int64)

    def decide(self, observation: Observation) -> Decision:
        """Replicate or upgrade where the load needs more than runs; count low readings where it needs less."""
        self.planner.monitor.observe(observation)
        rates, reason = self.planner.monitor.last, "as before"
        needed = self._needed(self._home, rates)
        if (needed > self._running).any():
            best = self._best(rates)
            if self._cost(self._home, rates) > self.upgrade_ratio * self._cost(best, rates):
                self._home, reason = best, "upgraded"
            else:
                reason = "replicated"
            self._running = np.maximum(self._running, self._needed(self._home, rates))
        load = self._load(self._home, rates)
        self._low = np.where((self._running > 0) & (load <= self._running - 1), self._low + 1, 0)
        for p, delay in self._delay.items():
            if self._low[p] >= delay:
                self._low[p] = 0
                best = self._best(rates)
                if self._cost(best, rates) < self._cost(self._home, rates):
                    self._home, reason = best, "downgraded"
                    self._running = np.maximum(self._running, self._needed(best, rates))
                else:
                    self._running[p] -= 1
        pools = self.planner.scenario.pools
        waits = observation.queued.sum(axis=1) > 0
        fleet = tuple(
            min(max(int(n), int(w and not s.is_function)), s.max_machines)
            for n, w, s in zip(self._running, waits, pools, strict=True)
        )
        return Decision(fleet, self._as_routes(fleet), self._batches, reason=reason)

    def _load(self, home: Sequence[Variant], rates: np.ndarray) -> np.ndarray:
        """Return the machines that the load keeps busy in each pool, shape [P]."""
        load = np.zeros(len(self._price))
        for v, rate in zip(home, rates, strict=True):
            load[v.pool] += rate * v.machines
        return load

    def _needed(self, home: Sequence[Variant], rates: np.ndarray) -> np.ndarray:
        return np.ceil(self._load(home, rates) / (1 - self.slack) - 1e-9).astype(np.int64)

    def _cost(self, home: Sequence[Variant], rates: np.ndarray) -> float:
        return float(self._needed(home, rates) @ self._price)

    def _best(self, rates: np.ndarray) -> list[Variant]:
        """Return the cheapest fleet that moving one class, or all to one pool, leads to."""
        moves = [[*self._home[:k], v, *self._home[k + 1 :]] for k, vs in enumerate(self._variants) for v in vs]
        for p in self._delay:
            there = [next((v for v in vs if v.pool == p), None) for vs in self._variants]
            moves.append([v or old for v, old in zip(there, self._home, strict=True)])
        return min(moves, key=lambda home: self._cost(home, rates))

    def _as_routes(self, fleet: Sequence[int]) -> tuple[tuple[Route, ...], ...]:
        """Return, for each class, its home, then its other running variants, cheapest first, while they are in time."""
        routes = []
        for home, vs in zip(self._home, self._variants, strict=True):
            cheapest = {v.pool: v for v in reversed(vs) if fleet[v.pool] > 0 and v.pool != home.pool}
            order = [home, *sorted(cheapest.values(), key=lambda v: v.usd)]
            steps = [Step(v.pool, v.model, Admit.IF_FITS) for v in order[:-1]]
            routes.append((Route((*steps, Step(order[-1].pool, order[-1].model))),))
        return tuple(routes)
