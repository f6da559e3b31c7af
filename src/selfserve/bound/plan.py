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
from selfserve.bound.options import Option, class_options, machine_kinds
from selfserve.bound.relaxation import Relaxation, relax
from selfserve.bound.solver import Solution, solve
from selfserve.errors import InputError
from selfserve.protocol import Policy, Step
from selfserve.scenario import Pool, RequestClass, Scenario
from selfserve.simulator import simulate
from selfserve.workload import Workload

BATCHES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)
"""Batch sizes that are tried for a pool."""
ROUND_UP_FROM = 0.1
"""Fraction of a machine from which one more is taken."""
RESERVES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Machines over the plan that are tried, as a share of it, from the least on."""
MARGINS = (0.02, 0.05, 0.1, 0.2)
"""Points over a mean accuracy that are aimed at; the next is tried when a window misses its mean."""
TOLERATED_PCT = 0.1
"""Violations that a plan may have."""
TAIL = 3.5
"""Standard deviations of a service time that are allowed for."""
BOOT_TAIL = 1.5
"""Standard deviations of a boot time by which machines are ordered early."""
FILL_SHARE = 0.4
"""Longest wait of a batch that is not full, as a share of the shortest SLO."""
LATEST_SHARE = 0.85
"""Share of its SLO that a request's fill wait and service may take together."""
WARMUP_FLEET = 1.5
"""Machines in the unscored warm-up over those at its end, so that no work is left from it."""


@dataclass(frozen=True)
class Lane:
    """One way to serve a class."""

    steps: tuple[Step, ...]
    accuracy: float


@dataclass(frozen=True)
class Plan:
    """What the clairvoyant policy executes.

    Attributes:
        start_s: start of the first slot of the weights, seconds from the window's start.
        slot_s: length of a slot and of a decision interval.
        machines: int [n, P] targets of consecutive intervals from time 0.
        lanes: of each class.
        weights: of each class, [T, lanes] share of its arrivals.
        arrivals: [T, K] known arrivals.
        batch_max: [P].
        batch_wait_s: [P].
        margin: points of accuracy by which classes aim over their mean.
    """

    start_s: float
    slot_s: float
    machines: np.ndarray
    lanes: tuple[tuple[Lane, ...], ...]
    weights: tuple[np.ndarray, ...]
    arrivals: np.ndarray
    batch_max: tuple[int, ...]
    batch_wait_s: tuple[float, ...]
    margin: float


@dataclass(frozen=True)
class _Way:
    """How a plan serves, before machines are counted: batch sizes, waits and where a class goes at the last moment."""

    batch: tuple[int, ...]
    wait_s: tuple[float, ...]

    def service_s(self, scenario: Scenario, o: Option) -> float:
        """Return the longest time from dispatch to answer that is allowed for."""
        pool = scenario.pools[o.pool]
        return pool.service_s(o.model, self.batch[o.pool]) * (1 + TAIL * scenario.service.spread)


def _largest_batch(pool: Pool) -> int:
    return min(int(np.flatnonzero(pool.service_ns[m])[-1]) for m in pool.models)


def _way(scenario: Scenario, batch: dict[int, int]) -> _Way:
    """Return a way with the given batch sizes, which may wait for a share of the shortest SLO to fill."""
    wait = FILL_SHARE * min(c.slo_s for c in scenario.classes)
    sizes = tuple(min(batch.get(p, 1), _largest_batch(x)) for p, x in enumerate(scenario.pools))
    return _Way(sizes, tuple(wait if b > 1 else 0.0 for b in sizes))


def _executable(scenario: Scenario, way: _Way, wanted: RequestClass) -> list[Option]:
    """Return the options of a class that the way can use, with the work or dollars that they then take."""
    everything = range(len(scenario.pools))
    options = []
    for o in class_options(scenario, wanted, machine_kinds(scenario, everything), everything):
        pool, b = scenario.pools[o.pool], way.batch[o.pool]
        if way.service_s(scenario, o) + way.wait_s[o.pool] > LATEST_SHARE * wanted.slo_s:
            continue
        seconds = pool.service_s(o.model, b)
        usd = (seconds * pool.usd_per_busy_hour / 3600 + pool.usd_per_request) / b if pool.is_function else 0.0
        options.append(replace(o, usd=usd, work_s=0.0 if pool.is_function else seconds / b))
    return sorted(options, key=lambda o: o.kind < 0)  # machines first


def _fallback(wanted: RequestClass, options: list[Option]) -> Option | None:
    """Return the cheapest function that meets the class's accuracy, or else its most accurate one."""
    functions = [o for o in options if o.kind < 0]
    demand = max(wanted.min_accuracy_pct, wanted.mean_accuracy_pct or 0.0)
    enough = [o for o in functions if o.accuracy >= demand]
    if enough:
        return min(enough, key=lambda o: (o.usd, o.pool, o.model))
    return max(functions, key=lambda o: (o.accuracy, -o.usd), default=None)


def _leave_slack_s(scenario: Scenario, way: _Way, wanted: RequestClass, options: list[Option], mine: Option) -> float:
    """Return how long before its deadline a request that would run ``mine`` gives up its queue.

    In time for the function that takes it then, for a new container of it where the SLO leaves room, and not later than
    a start on ``mine`` could still be in time.
    """
    function = _fallback(wanted, options)
    if function is None:
        return -np.inf
    needed = way.service_s(scenario, function) + way.wait_s[function.pool] + 0.005
    if needed + scenario.function.init_s < 0.6 * wanted.slo_s:
        needed += scenario.function.init_s
    return min(max(needed, way.service_s(scenario, mine)), 0.8 * wanted.slo_s)


def _rescue(options: list[Option], mine: Option) -> Option:
    """Return the quickest option of the same pool: it answers where ``mine`` would be too late."""
    return min((o for o in options if o.pool == mine.pool), key=lambda o: (o.work_s, o.model))


def _steps(
    scenario: Scenario, way: _Way, wanted: RequestClass, options: list[Option], mine: Option
) -> tuple[Step, ...]:
    """Return the steps of a lane: queue at machines, answer by a quicker model if late, leave at the last moment."""
    function = _fallback(wanted, options)
    if mine.kind < 0:
        return (Step(mine.pool, mine.model),)
    quick = _rescue(options, mine)
    late: dict[str, object] = {}
    if wanted.mean_accuracy_pct is not None and quick.model != mine.model:
        late = {"late_model": quick.model, "late_slack_s": way.service_s(scenario, mine)}
    slack = _leave_slack_s(scenario, way, wanted, options, quick if late else mine)
    first = Step(mine.pool, mine.model, leave_slack_s=slack, **late)  # type: ignore[arg-type]
    return (first,) if function is None else (first, Step(function.pool, function.model))


def _planning_scenario(scenario: Scenario, way: _Way, options: list[list[Option]]) -> Scenario:
    """Return the scenario with each SLO cut to the longest wait before a request leaves its queue."""
    classes = []
    for c, mine in zip(scenario.classes, options, strict=True):
        slacks = [_leave_slack_s(scenario, way, c, mine, _rescue(mine, o)) for o in mine if o.kind >= 0]
        slack = max([x for x in slacks if x > 0], default=0.0)
        classes.append(replace(c, slo_s=max(c.slo_s - slack, 0.05 * c.slo_s)))
    return replace(scenario, classes=tuple(classes))


def _solve(scenario: Scenario, counts: SlotCounts, options: list[list[Option]]) -> tuple[Relaxation, Solution]:
    everything = range(len(scenario.pools))
    nothing = np.zeros(len(scenario.classes))
    r = relax(scenario, counts, everything, violations=nothing, reached=[None] * len(nothing), options=options)
    return r, solve(r)


def _best_way(scenario: Scenario, workload: Workload, seed: int, slot_s: float) -> _Way:
    """Choose the batch size of each pool, one pool after the other, by the plan's dollars on long slots."""
    counts = coarsen(count_slots(workload, scenario, seed, slot_s), max(1, round(120 / slot_s)))
    batch: dict[int, int] = {}
    for p, pool in enumerate(scenario.pools):
        costs = {}
        for b in [b for b in BATCHES if b <= _largest_batch(pool)]:
            way = _way(scenario, batch | {p: b})
            try:
                costs[b] = _solve(scenario, counts, [_executable(scenario, way, c) for c in scenario.classes])[1].usd
            except InputError:  # a class is left without an option, or without enough machines
                continue
        if costs:
            batch[p] = min(costs, key=lambda b: (costs[b], b))
    return _way(scenario, batch)


def _targets(
    scenario: Scenario, r: Relaxation, x: Solution, start_s: float, slot_s: float, reserve: float
) -> np.ndarray:
    """Return machine targets of consecutive intervals from time 0, int [n, P].

    A machine asked for now is ready a lead later: the target is the most that the plan needs from now to then.
    """
    slots, before = r.slots, ceil(start_s / slot_s)
    lead = scenario.vm.pending_s + scenario.vm.boot_s * (1 + BOOT_TAIL * scenario.vm.boot_spread)
    ahead = ceil(lead / slot_s)
    need = np.zeros((slots, len(scenario.pools)), dtype=np.int64)
    for v, kind in enumerate(r.kinds):
        # rounding at a fixed fraction keeps the plan's launches: each machine's share is one layer of it
        need[:, kind.pool] = np.floor(x.ready[:, v] * (1 + reserve) + 1 - ROUND_UP_FROM)
    targets = np.zeros((before + slots, need.shape[1]), dtype=np.int64)
    for i in range(before + slots):
        now = i - before
        targets[i] = need[max(0, now) : max(1, now + ahead + 1)].max(axis=0)
        if now < 0:
            targets[i] = np.ceil(targets[i] * WARMUP_FLEET)
    return targets


def _weights(r: Relaxation, x: Solution, k: int, options: list[Option]) -> np.ndarray:
    """Return the share of each option in the arrivals of each slot, [T, options].

    Functions that take less than half of a class in a slot get none of it: what machines cannot do in time leaves their
    queues at the last moment, which needs fewer functions than a forecast for each request would.
    """
    served = np.zeros((r.slots, len(options)))
    for i, o in enumerate(r.options[k]):
        served[:, next(j for j, y in enumerate(options) if (y.pool, y.model) == (o.pool, o.model))] = x.serve[k][:, i]
    function = np.array([o.kind < 0 for o in options])
    some = served[:, ~function].sum(1) >= 0.5 * served.sum(1)
    served[np.ix_(some, function)] = 0.0
    total = served.sum(1, keepdims=True)
    mean = served.sum(0) if total.sum() else np.ones(len(options))
    return np.where(total > 0, served / np.maximum(total, 1e-12), mean / mean.sum())


def make_plans(workload: Workload, scenario: Scenario, seed: int, slot_s: float) -> Callable[[float, float], Plan]:
    """Return the plan of a window as a function of reserve (share of machines over it) and accuracy margin."""
    way = _best_way(scenario, workload, seed, slot_s)
    options = [_executable(scenario, way, c) for c in scenario.classes]
    planning = _planning_scenario(scenario, way, options)
    r, x = _solve(scenario, count_slots(workload, planning, seed, slot_s), options)
    lanes, weights = [], []
    for k, (c, mine) in enumerate(zip(scenario.classes, options, strict=True)):
        share = _weights(r, x, k, mine)
        used = np.flatnonzero(share.any(axis=0))
        lanes.append(tuple(Lane(_steps(scenario, way, c, mine, mine[i]), mine[i].accuracy) for i in used))
        weights.append(share[:, used])

    def plan(reserve: float, margin: float) -> Plan:
        machines = _targets(scenario, r, x, scenario.warmup_s, slot_s, reserve)
        return Plan(
            scenario.warmup_s, slot_s, machines, tuple(lanes), tuple(weights), r.arrivals, way.batch, way.wait_s, margin
        )

    return plan


def best_plan(
    workload: Workload, scenario: Scenario, seed: int, execute: Callable[[Plan], Policy], slot_s: float = 10.0
) -> Plan:
    """Return the cheapest plan with few violations among a few reserves, each simulated on this very window.

    Args:
        workload: the window, known in advance.
        scenario: what serves it.
        seed: of its arrivals.
        execute: makes a policy of a plan.
        slot_s: length of a slot and of a decision interval, seconds.

    Raises:
        InputError: a class that nothing can serve in time.
    """
    plan = make_plans(workload, scenario, seed, slot_s)
    margins = list(MARGINS)
    best: tuple[bool, float, Plan] | None = None
    for reserve in RESERVES:
        if best is not None and np.array_equal(plan(reserve, margins[0]).machines, best[2].machines):
            continue  # whole machines: the same fleet
        seen = simulate(scenario, workload, execute(plan(reserve, margins[0])), seed).summary
        while seen["accuracy_violation_pct"] > TOLERATED_PCT and len(margins) > 1:
            del margins[0]
            seen = simulate(scenario, workload, execute(plan(reserve, margins[0])), seed).summary
        violated = max(seen["slo_violation_pct"], seen["accuracy_violation_pct"])
        bad = violated > TOLERATED_PCT
        mine = (bad, violated if bad else seen["cost_usd"], plan(reserve, margins[0]))
        if best is None or mine[:2] < best[:2]:
            best = mine
        elif not best[0]:
            break  # more reserve costs more
    assert best is not None
    return best[2]
