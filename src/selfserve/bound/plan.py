"""A perfect forecast turned into something that can be done: whole machines, full batches, routes, a little reserve.

The relaxation is solved once more with what a run can really do (``executable``): one batch size a pool and the time to
leave a queue taken off each SLO. Its mean machines are rounded, ordered ahead of the boot, and its split of each class
over pools and models becomes route weights. The reserve over the plan is chosen by trying a few in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from selfserve.bound.counting import SlotCounts, coarsen, count_slots
from selfserve.bound.options import Option, class_options, largest_batch, machine_kinds
from selfserve.bound.relaxation import Relaxation, relax
from selfserve.bound.solver import Solution, solve
from selfserve.errors import InputError
from selfserve.protocol import Policy, Step
from selfserve.scenario import RequestClass, Scenario
from selfserve.simulator import simulate
from selfserve.workload import Workload

SLOT_S = 10.0  #: length of a slot of the weights and of a decision interval
BATCHES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)  #: batch sizes that are tried for a pool
ROUND_UP_FROM = 0.1  #: fraction of a machine from which one more is taken
RESERVES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Machines over the plan that are tried, as a share of it, from the least on."""
MARGINS = (0.02, 0.05, 0.1, 0.2)
"""Points over a mean accuracy that are aimed at; the next is tried when a window misses its mean."""
TOLERATED_PCT = 0.1  #: violations that a plan may have
TAIL = 3.5  #: standard deviations of a service time that are allowed for
BOOT_TAIL = 1.5  #: standard deviations of a boot time by which machines are ordered early
FILL_SHARE = 0.4  #: longest wait of a batch that is not full, as a share of the shortest SLO
LATEST_SHARE = 0.85  #: share of its SLO that a request's fill wait and service may take together
WARMUP_FLEET = 1.5  #: machines in the unscored warm-up over those at its end, so that no work is left from it


@dataclass(frozen=True)
class Lane:
    """One way to serve a class."""

    steps: tuple[Step, ...]
    accuracy: float


@dataclass(frozen=True)
class Plan:
    """What the clairvoyant policy executes."""

    start_s: float  #: start of the first slot of the weights, seconds from the window's start
    slot_s: float  #: length of a slot and of a decision interval
    machines: np.ndarray  #: int [n, P] targets of consecutive intervals from time 0
    lanes: tuple[tuple[Lane, ...], ...]  #: of each class
    weights: tuple[np.ndarray, ...]  #: of each class, [T, lanes] share of its arrivals
    arrivals: np.ndarray  #: [T, K] known arrivals
    batch_max: tuple[int, ...]  #: [P]
    batch_wait_s: tuple[float, ...]  #: [P]
    margin: float  #: points of accuracy by which classes aim over their mean


class _Way:
    """How a plan serves, before machines are counted: batch sizes, waits and where a class goes at the last moment."""

    def __init__(self, scenario: Scenario, batch: dict[int, int]) -> None:
        self.scenario = scenario
        self.batch = tuple(min(batch.get(p, 1), largest_batch(x)) for p, x in enumerate(scenario.pools))
        wait = FILL_SHARE * min(c.slo_s for c in scenario.classes)
        self.wait_s = tuple(wait if b > 1 else 0.0 for b in self.batch)
        self.options = [self._executable(c) for c in scenario.classes]

    def service_s(self, o: Option) -> float:
        """Return the longest time from dispatch to answer that is allowed for."""
        mean = self.scenario.pools[o.pool].service_s(o.model, self.batch[o.pool])
        return mean * (1 + TAIL * self.scenario.service.spread)

    def _executable(self, wanted: RequestClass) -> list[Option]:
        """Return the options of a class that can be used, with the work or dollars that they then take."""
        pools, found = self.scenario.pools, []
        everything = range(len(pools))
        for o in class_options(self.scenario, wanted, machine_kinds(self.scenario, everything), everything):
            pool, b = pools[o.pool], self.batch[o.pool]
            if self.service_s(o) + self.wait_s[o.pool] > LATEST_SHARE * wanted.slo_s:
                continue
            seconds = pool.service_s(o.model, b)
            usd = (seconds * pool.usd_per_busy_hour / 3600 + pool.usd_per_request) / b if pool.is_function else 0.0
            found.append(replace(o, usd=usd, work_s=0.0 if pool.is_function else seconds / b))
        return sorted(found, key=lambda o: o.kind < 0)  # machines first

    def fallback(self, k: int) -> Option | None:
        """Return the cheapest function that meets the class's accuracy, or else its most accurate one."""
        functions, c = [o for o in self.options[k] if o.kind < 0], self.scenario.classes[k]
        enough = [o for o in functions if o.accuracy >= max(c.min_accuracy_pct, c.mean_accuracy_pct or 0.0)]
        if enough:
            return min(enough, key=lambda o: (o.usd, o.pool, o.model))
        return max(functions, key=lambda o: (o.accuracy, -o.usd), default=None)

    def leave_slack_s(self, k: int, mine: Option) -> float:
        """Return how long before its deadline a request that would run ``mine`` gives up its queue.

        In time for the function that takes it then, for a new container of it where the SLO leaves room, and not later
        than a start on ``mine`` could still be in time.
        """
        function, slo_s = self.fallback(k), self.scenario.classes[k].slo_s
        if function is None:
            return -np.inf
        needed = self.service_s(function) + self.wait_s[function.pool] + 0.005
        if needed + self.scenario.function.init_s < 0.6 * slo_s:
            needed += self.scenario.function.init_s
        return min(max(needed, self.service_s(mine)), 0.8 * slo_s)

    def rescue(self, k: int, mine: Option) -> Option:
        """Return the quickest option of the same pool: it answers where ``mine`` would be too late."""
        return min((o for o in self.options[k] if o.pool == mine.pool), key=lambda o: (o.work_s, o.model))

    def lane(self, k: int, mine: Option) -> Lane:
        """Return a lane: queue at machines, answer by a quicker model if late, leave at the last moment."""
        function, quick = self.fallback(k), self.rescue(k, mine)
        if mine.kind < 0:
            return Lane((Step(mine.pool, mine.model),), mine.accuracy)
        if self.scenario.classes[k].mean_accuracy_pct is not None and quick.model != mine.model:
            slack, late_slack = self.leave_slack_s(k, quick), self.service_s(mine)
            first = Step(mine.pool, mine.model, leave_slack_s=slack, late_model=quick.model, late_slack_s=late_slack)
        else:
            first = Step(mine.pool, mine.model, leave_slack_s=self.leave_slack_s(k, mine))
        return Lane((first,) if function is None else (first, Step(function.pool, function.model)), mine.accuracy)

    def planning_scenario(self) -> Scenario:
        """Return the scenario with each SLO cut to the longest wait before a request leaves its queue."""
        classes = []
        for k, c in enumerate(self.scenario.classes):
            slacks = [self.leave_slack_s(k, self.rescue(k, o)) for o in self.options[k] if o.kind >= 0]
            slack = max([x for x in slacks if x > 0], default=0.0)
            classes.append(replace(c, slo_s=max(c.slo_s - slack, 0.05 * c.slo_s)))
        return replace(self.scenario, classes=tuple(classes))

    def solve(self, counts: SlotCounts) -> tuple[Relaxation, Solution]:
        """Solve the relaxation on what this way can use."""
        everything, nothing = range(len(self.scenario.pools)), np.zeros(len(self.options))
        r = relax(self.scenario, counts, everything, nothing, [None] * len(nothing), options=self.options)
        return r, solve(r)


def _best_way(scenario: Scenario, workload: Workload, seed: int, slot_s: float) -> _Way:
    """Choose the batch size of each pool, one pool after the other, by the plan's dollars on long slots."""
    counts = coarsen(count_slots(workload, scenario, seed, slot_s), max(1, round(120 / slot_s)))
    batch: dict[int, int] = {}
    for p, pool in enumerate(scenario.pools):
        costs = {}
        for b in [b for b in BATCHES if b <= largest_batch(pool)]:
            try:
                costs[b] = _Way(scenario, batch | {p: b}).solve(counts)[1].usd
            except InputError:  # a class is left without an option, or without enough machines
                continue
        if costs:
            batch[p] = min(costs, key=lambda b: (costs[b], b))
    return _Way(scenario, batch)


def _targets(scenario: Scenario, r: Relaxation, x: Solution, slot_s: float, reserve: float) -> np.ndarray:
    """Return machine targets of consecutive intervals from time 0, int [n, P].

    A machine asked for now is ready a lead later: the target is the most that the plan needs from now to then.
    """
    before = ceil(scenario.warmup_s / slot_s)
    lead = scenario.vm.pending_s + scenario.vm.boot_s * (1 + BOOT_TAIL * scenario.vm.boot_spread)
    ahead = ceil(lead / slot_s)
    need = np.zeros((r.slots, len(scenario.pools)), dtype=np.int64)
    for v, kind in enumerate(r.kinds):
        # rounding at a fixed fraction keeps the plan's launches: each machine's share is one layer of it
        need[:, kind.pool] = np.floor(x.ready[:, v] * (1 + reserve) + 1 - ROUND_UP_FROM)
    ready = [need[max(0, now) : max(1, now + ahead + 1)].max(axis=0) for now in range(-before, r.slots)]
    targets = np.array(ready, dtype=np.int64).reshape(len(ready), need.shape[1])
    targets[:before] = np.ceil(targets[:before] * WARMUP_FLEET)
    return targets


def _weights(r: Relaxation, x: Solution, k: int, options: list[Option]) -> np.ndarray:
    """Return the share of each option in the arrivals of each slot, [T, options].

    Functions that take less than half of a class in a slot get none of it: what machines cannot do in time leaves their
    queues at the last moment, which needs fewer functions than a forecast for each request would.
    """
    served, place = np.zeros((r.slots, len(options))), {(o.pool, o.model): j for j, o in enumerate(options)}
    for i, o in enumerate(r.options[k]):
        served[:, place[o.pool, o.model]] = x.serve[k][:, i]
    function = np.array([o.kind < 0 for o in options])
    some = served[:, ~function].sum(1) >= 0.5 * served.sum(1)
    served[np.ix_(some, function)] = 0.0
    total = served.sum(1, keepdims=True)
    mean = served.sum(0) if total.sum() else np.ones(len(options))
    return np.where(total > 0, served / np.maximum(total, 1e-12), mean / mean.sum())


def make_plans(workload: Workload, scenario: Scenario, seed: int, slot_s: float) -> Callable[[float, float], Plan]:
    """Return the plan of a window as a function of reserve (share of machines over it) and accuracy margin."""
    way = _best_way(scenario, workload, seed, slot_s)
    r, x = way.solve(count_slots(workload, way.planning_scenario(), seed, slot_s))
    lanes, weights = [], []
    for k, mine in enumerate(way.options):
        share = _weights(r, x, k, mine)
        used = np.flatnonzero(share.any(axis=0))
        lanes.append(tuple(way.lane(k, mine[i]) for i in used))
        weights.append(share[:, used])

    def plan(reserve: float, margin: float) -> Plan:
        return Plan(
            scenario.warmup_s, slot_s, _targets(scenario, r, x, slot_s, reserve), tuple(lanes), tuple(weights),
            r.arrivals, way.batch, way.wait_s, margin,
        )  # fmt: skip

    return plan


def best_plan(workload: Workload, scenario: Scenario, seed: int, execute: Callable[[Plan], Policy]) -> Plan:
    """Return the cheapest plan with few violations among a few reserves, each simulated on this very window.

    ``execute`` makes a policy of a plan.

    Raises:
        InputError: a class that nothing can serve in time.
    """
    plan, margins = make_plans(workload, scenario, seed, SLOT_S), list(MARGINS)
    best: tuple[bool, float, Plan] | None = None
    for reserve in RESERVES:
        if best is not None and np.array_equal(plan(reserve, margins[0]).machines, best[2].machines):
            continue  # whole machines: the same fleet
        while True:
            mine = plan(reserve, margins[0])
            seen = simulate(scenario, workload, execute(mine), seed).summary
            if seen["accuracy_violation_pct"] <= TOLERATED_PCT or len(margins) == 1:
                break
            del margins[0]
        violated = max(seen["slo_violation_pct"], seen["accuracy_violation_pct"])
        bad = violated > TOLERATED_PCT
        found = (bad, violated if bad else seen["cost_usd"], mine)
        if best is None or found[:2] < best[:2]:
            best = found
        elif not best[0]:
            break  # more reserve costs more
    assert best is not None
    return best[2]
