"""A perfect forecast turned into something that can be done: whole machines, full batches, routes, a little reserve.

The relaxation is solved once more with what a run can really do (``executable``): one batch size a pool and the time to
leave a queue taken off each SLO. Its mean machines are rounded, ordered ahead of the boot, and its split of each class
over pools and models becomes route weights. The reserve over the plan is chosen by trying a few in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import numpy as np

from selfserve.bound.counting import SlotCounts, coarsen, count_slots
from selfserve.bound.options import Option, class_options, largest_batch, machine_kinds
from selfserve.bound.relaxation import Relaxation, relax
from selfserve.bound.solver import Solution, solve
from selfserve.errors import InputError
from selfserve.planner import FunctionConfigurator
from selfserve.protocol import Policy, Step, Then
from selfserve.scenario import Scenario
from selfserve.selector import Cascade, ModelSelector, Way, stages_of, wanted_pct
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
FILL_SHARES = (0.4, 0.1)
"""Longest waits of a batch that is not full that are tried, as a share of the shortest SLO: long waits fill batches,
short ones leave time for a second stage."""
LATEST_SHARE = 0.85  #: share of its SLO that a request's fill wait and service may take together
LEAVES_S = 0.005  #: from the end of a wait to a start on a function
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

    def __init__(self, scenario: Scenario, batch: dict[int, int], fill_share: float, cascades: bool) -> None:
        self.scenario = scenario
        self.batch = tuple(min(batch.get(p, 1), largest_batch(x)) for p, x in enumerate(scenario.pools))
        wait = fill_share * min(c.slo_s for c in scenario.classes)
        self.wait_s = tuple(wait if b > 1 else 0.0 for b in self.batch)
        self.cascades: list[Cascade] = []
        """Options count them on from the last of the models."""
        self.functions = FunctionConfigurator(scenario, ModelSelector(scenario))
        self.options = [self._executable(k, cascades) for k in range(len(scenario.classes))]

    def cascade_of(self, o: Option) -> Cascade | None:
        """Return the cascade of an option; nothing where one model answers."""
        n = len(self.scenario.models)
        return self.cascades[o.model - n] if o.model >= n else None

    def service_s(self, o: Option) -> float:
        """Return the longest time from dispatch to answer that is allowed for."""
        return self._answer_s(o.pool, self.cascade_of(o) or o.model)

    def _answer_s(self, pool: int, way: Way) -> float:
        models = [m for m, _ in stages_of(way)]
        mean = sum(self.scenario.pools[pool].service_s(m, self.batch[pool]) for m in models)
        return mean * (1 + TAIL * self.scenario.service.spread) + (len(models) - 1) * self.wait_s[pool]

    def _executable(self, k: int, cascades: bool) -> list[Option]:
        """Return the options of a class that can be used, with the work or dollars that they then take."""
        pools, wanted, found = self.scenario.pools, self.scenario.classes[k], []
        everything = range(len(pools))
        kinds = machine_kinds(self.scenario, everything)
        for o in class_options(self.scenario, wanted, kinds, everything):
            pool, b = pools[o.pool], self.batch[o.pool]
            if self.service_s(o) + self.wait_s[o.pool] > LATEST_SHARE * wanted.slo_s:
                continue
            seconds = pool.service_s(o.model, b)
            usd = (seconds * pool.usd_per_busy_hour / 3600 + pool.usd_per_request) / b if pool.is_function else 0.0
            found.append(replace(o, usd=usd, work_s=0.0 if pool.is_function else seconds / b))
        if cascades:
            found += filter(None, (self._cascade(k, kind.pool, v) for v, kind in enumerate(kinds)))
        return sorted(found, key=lambda o: o.kind < 0)  # machines first

    def _cascade(self, k: int, p: int, kind: int) -> Option | None:
        """Return the cascade of least work on a pool that is in time; both models have functions if there are any."""
        wanted, functions = self.scenario.classes[k], self.functions
        models = [m for m in self.scenario.pools[p].models if not functions.pools or functions.same(k, m)]
        for seconds, way in functions.selector.cascades(k, p, self.batch[p], models):
            if self._answer_s(p, way) + self.wait_s[p] <= LATEST_SHARE * wanted.slo_s:
                self.cascades.append(way)
                at, b = len(self.scenario.models) + len(self.cascades) - 1, self.batch[p]
                return Option(p, at, kind, seconds / b, 0.0, wanted_pct(wanted), b, 0.0)
        return None

    def fallback(self, k: int) -> Option | None:
        """Return the cheapest function that meets the class's accuracy, or else its most accurate one."""
        functions, c = [o for o in self.options[k] if o.kind < 0], self.scenario.classes[k]
        enough = [o for o in functions if o.accuracy >= wanted_pct(c)]
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
        needed = self.service_s(function) + self.wait_s[function.pool] + LEAVES_S
        if cascade := self.cascade_of(mine):  # both stages leave for their own functions
            needed = sum(self._answer_s(*self._function(k, m)) + LEAVES_S for m in cascade[:2])
        if needed + self.scenario.function.init_s < 0.6 * slo_s:
            needed += self.scenario.function.init_s
        return min(max(needed, self.service_s(mine)), 0.8 * slo_s)

    def rescue(self, k: int, mine: Option) -> Option:
        """Return the quickest model of the same pool: it answers where ``mine`` would be too late."""
        n = len(self.scenario.models)
        alone = [o for o in self.options[k] if o.pool == mine.pool and o.model < n and mine.model < n]
        return min(alone, key=lambda o: (o.work_s, o.model), default=mine)

    def _function(self, k: int, model: int) -> tuple[int, int]:
        found = self.functions.same(k, model)
        assert found is not None  # cascades are of models that have one
        return found

    def _in_stages(self, k: int, mine: Option, cascade: Cascade, slack_s: float) -> tuple[Step, ...]:
        """Return the steps of a cascade: each stage queues at machines and leaves for its function in time."""
        first, second = Step(mine.pool, cascade.cheap, leave_slack_s=slack_s), Step(mine.pool, cascade.better)
        unsure = partial(replace, then=Then.IF_UNSURE, unsure_share=cascade.unsure_share)
        if slack_s == -np.inf:
            return unsure(first), second
        quick, slow = (self._function(k, m) for m in cascade[:2])
        rest_s = max(self._answer_s(mine.pool, cascade.better), self._answer_s(*slow) + LEAVES_S)
        return first, unsure(Step(*quick)), replace(second, leave_slack_s=rest_s), Step(*slow)

    def lane(self, k: int, mine: Option) -> Lane:
        """Return a lane: queue at machines, answer by a quicker model if late, leave at the last moment."""
        function, quick = self.fallback(k), self.rescue(k, mine)
        if mine.kind < 0:
            return Lane((Step(mine.pool, mine.model),), mine.accuracy)
        if cascade := self.cascade_of(mine):
            return Lane(self._in_stages(k, mine, cascade, self.leave_slack_s(k, mine)), mine.accuracy)
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


def _best_way(
    scenario: Scenario, workload: Workload, seed: int, slot_s: float, fill_share: float, cascades: bool
) -> _Way:
    """Choose the batch size of each pool, one pool after the other, by the plan's dollars on long slots."""
    counts = coarsen(count_slots(workload, scenario, seed, slot_s), max(1, round(120 / slot_s)))
    batch: dict[int, int] = {}
    for p, pool in enumerate(scenario.pools):
        costs = {}
        for b in [b for b in BATCHES if b <= largest_batch(pool)]:
            try:
                costs[b] = _Way(scenario, batch | {p: b}, fill_share, cascades).solve(counts)[1].usd
            except InputError:  # a class is left without an option, or without enough machines
                continue
        if costs:
            batch[p] = min(costs, key=lambda b: (costs[b], b))
    return _Way(scenario, batch, fill_share, cascades)


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


def make_plans(
    workload: Workload,
    scenario: Scenario,
    seed: int,
    slot_s: float,
    fill_share: float = FILL_SHARES[0],
    cascades: bool = True,
) -> Callable[[float, float], Plan]:
    """Return the plan of a window as a function of reserve (share of machines over it) and accuracy margin."""
    way = _best_way(scenario, workload, seed, slot_s, fill_share, cascades)
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


def best_plan(
    workload: Workload, scenario: Scenario, seed: int, execute: Callable[[Plan], Policy], cascades: bool = True
) -> Plan:
    """Return the cheapest plan with few violations among a few waits and reserves, each simulated on this very window.

    ``execute`` makes a policy of a plan, which may use ``cascades``.

    Raises:
        InputError: a class that nothing can serve in time.
    """
    hows = [(FILL_SHARES[0], False), *((share, True) for share in FILL_SHARES if cascades)]
    plans = [make_plans(workload, scenario, seed, SLOT_S, *how) for how in hows]
    found = [_best_reserve(plan, workload, scenario, seed, execute) for plan in plans]
    return min(found, key=lambda one: one[:2])[2]


def _best_reserve(
    plan: Callable[[float, float], Plan], workload: Workload, scenario: Scenario, seed: int,
    execute: Callable[[Plan], Policy],
) -> tuple[bool, float, Plan]:  # fmt: skip
    """Return the best of the plans with some reserve: whether it violates too much, by how much or at what cost."""
    margins, best = list(MARGINS), None
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
    return best
