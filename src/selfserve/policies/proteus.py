"""Proteus (ASPLOS'24): a fleet that does not grow meets overload by answering less accurately."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np
from scipy.optimize import linprog

from selfserve.planner import ResourceSelector, peak_minute_rate
from selfserve.policies.base import PlannerPolicy, Range
from selfserve.policies.variants import Variant, batching_pays, variant, variants, vm_pools, waiting
from selfserve.protocol import Decision, Observation, Route, Step
from selfserve.quiet import unheard
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice

OVERLOAD_COST = 1e4
"""Points of accuracy per request that cannot be carried: throughput comes before accuracy."""
SHORTFALL_COST = 10.0
"""Points per point and request below what a class asks for: the classes' demands come before accuracy beyond them."""


@dataclass(kw_only=True, eq=False)
class Proteus(PlannerPolicy):
    """Every interval a program splits each class's traffic so that accuracy is greatest and all load is carried.

    As in the artifact (``algorithms/ilp.py``): demand is a weighted moving average; effective accuracy is the mean over
    requests of the accuracy of what answers them; an accelerator runs the largest batch in time; throughput is first,
    accuracy is lowered only as far as it must be. Hardware is fixed: by default the least fleet that carries the
    busiest minute (of the history, or of the trace if ``peak_rate`` is told, and of what has been seen) on the cheapest
    variants that meet the demands. Interpreted: every machine holds all models, so placing variants on devices costs
    nothing and shares are not whole, but on accelerators a class has one variant (requests of a class do not overtake
    each other, so that a mix of models would break its batches up); half of an SLO is left for waiting behind others;
    of the rest an accelerator's batch takes half to fill and half to run, a CPU takes single requests; the average's
    weight and the interval (here the scenario's) were not read; an answer below its class's floor counts nothing, and a
    mean that a class asks for comes before accuracy beyond it.

    Args:
        machines: size of the fleet, overriding the rule.
        peak_rate: requests/s over the busiest minute of the trace to be served.
        load_limit: share of the fleet's capacity that the program may plan to use.
        smoothing: weight of the newest reading in the demand.
    """

    name: ClassVar[str] = "proteus"
    tunable: ClassVar = {"headroom": Range(0.6, 2.5), "load_limit": Range(0.6, 1.0), "smoothing": Range(0.1, 1.0)}
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.6, 0.8, 1.0, 1.3, 1.7, 2.2))
    limits: ClassVar = {"0 or more": "machines peak_rate", "in (0, 1]": "load_limit smoothing"}
    models: ClassVar[ModelChoice] = "cheapest"  # type: ignore[misc]
    keep_s: ClassVar[float] = 0.0  # type: ignore[misc]
    drain_s: ClassVar[float] = inf  # type: ignore[misc]
    machines: int | None = None
    peak_rate: float | None = None
    load_limit: float = 0.9
    smoothing: float = 0.5

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """List each class's variants and size the fleet."""
        super().reset(scenario, history)
        planner = self.planner
        full_batches = ResourceSelector(scenario, planner.models, pool=self.pool, batch_share=0.5)
        if all(batching_pays(planner, p) for p in full_batches.pool_of):
            planner.resources = full_batches
        self._home = sorted(set(planner.resources.pool_of))
        quarter_s = 0.25 * min(c.slo_s for c in scenario.classes)
        pays = [batching_pays(planner, p) and not spec.is_function for p, spec in enumerate(scenario.pools)]
        self._batches = tuple(self._batch(p, quarter_s) if pays[p] else 1 for p in range(len(pays)))
        self._waits = tuple(quarter_s if pay else 0.0 for pay in pays)
        full = dict(enumerate(self._batches))
        pools = vm_pools(planner, self.pool) if self.pool else self._home
        self._variants = [variants(planner, k, pools, 0.0, 0.5, full) for k in range(len(scenario.classes))]
        self._peak = max(self.peak_rate or 0.0, 0.0 if self.peak_rate else peak_minute_rate(history))
        self._demand = planner.monitor.last
        self._shares = np.array([c.share for c in scenario.classes]) / sum(c.share for c in scenario.classes)

    def decide(self, observation: Observation) -> Decision:
        """Plan anew for the demand on the machines that there are."""
        planner, monitor = self.planner, self.planner.monitor
        monitor.observe(observation)
        self._demand = (1 - self.smoothing) * self._demand + self.smoothing * monitor.last
        if self.peak_rate is None and observation.time_s >= 60:
            self._peak = max(self._peak, float(monitor.rate(60).sum()))
        fleet = planner.resources.machines(planner.resources.load(self.headroom * self._peak * self._shares))
        if self.machines is not None:
            fleet = planner.resources.spread(self.machines)
        ready = np.where(observation.ready > 0, np.minimum(observation.ready, fleet), fleet)
        shares, accuracy = self._plan(self._demand, ready * self.load_limit - self._behind(observation))
        routes = tuple(
            tuple(Route((Step(v.pool, v.model),), float(w)) for v, w in zip(vs, ws, strict=True) if w > 1e-4)
            for vs, ws in zip(self._variants, shares, strict=True)
        )
        fleet = [
            max(n, int(not planner.scenario.pools[p].is_function and observation.queued[p].any()))
            for p, n in enumerate(fleet)
        ]
        return Decision(tuple(fleet), routes, self._batches, self._waits, f"effective accuracy {accuracy:.2f}%")

    def _batch(self, pool: int, limit_s: float) -> int:
        """Return the largest batch that no model of an accelerator takes longer than ``limit_s`` for."""
        spec = self.planner.scenario.pools[pool]
        slowest = [
            max(variant(self.planner, pool, m, b).latency_s for m in spec.models) for b in range(1, spec.max_batch + 1)
        ]
        return max(1, sum(latency_s <= limit_s for latency_s in slowest))

    def _behind(self, seen: Observation) -> np.ndarray:
        """Return the machines [P] that work off within the interval what waits."""
        work_s = np.array([min(v.work_s for v in vs) for vs in self._variants])
        return waiting(self.planner, seen, work_s) / float(self.interval_s or 1.0)

    def _plan(self, rates: np.ndarray, machines: np.ndarray) -> tuple[list[np.ndarray], float]:
        """Return shares of each class's variants of greatest effective accuracy on ``machines`` [P], and that accuracy.

        Shares are variables, and so are the machines missing per pool and the points missing per class, both dear.
        """
        classes, k_of = self.planner.scenario.classes, [k for k, vs in enumerate(self._variants) for _ in vs]
        flat: list[Variant] = [v for vs in self._variants for v in vs]
        n, pools, total = len(flat), len(machines), max(float(rates.sum()), 1e-9)
        part = rates / total
        worth = np.array(
            [v.accuracy_pct * (v.accuracy_pct >= classes[k].min_accuracy_pct) for v, k in zip(flat, k_of, strict=True)]
        )
        of_class = np.equal.outer(np.arange(len(classes)), k_of).astype(float)
        load = np.zeros((pools, n))
        load[[v.pool for v in flat], np.arange(n)] = [v.machines * rates[k] for v, k in zip(flat, k_of, strict=True)]
        per_machine = OVERLOAD_COST / max(float(machines.max(initial=0.0)), 1.0)
        cost = np.r_[-worth * part[k_of] - 1e-6 * worth, np.full(pools, per_machine), SHORTFALL_COST * part]
        limits = np.block(
            [
                [load, -np.eye(pools), np.zeros((pools, len(classes)))],
                [-of_class * worth, np.zeros((len(classes), pools)), -np.eye(len(classes))],
            ]
        )
        asked = np.array([-(c.mean_accuracy_pct or 0.0) for c in classes])
        whole = np.hstack([of_class, np.zeros((len(classes), pools + len(classes)))])
        one = np.r_[[float(self._waits[v.pool] > 0) for v in flat], np.zeros(pools + len(classes))]
        right, ones = np.r_[np.maximum(machines, 0.0), asked], np.ones(len(classes))
        with unheard():
            solved = linprog(cost, limits, right, whole, ones, method="highs", integrality=one)
        x = np.maximum(solved.x[:n], 0.0)
        return np.split(x, np.cumsum([len(vs) for vs in self._variants])[:-1]), float((worth * part[k_of]) @ x)
