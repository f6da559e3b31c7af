"""A perfect forecast turned into something that can be done: whole machines, full batches, routes, some reserve.

The relaxation is solved once more with what a run can really do (``executable``): one batch size a pool and the time to
leave a queue taken off each SLO. Its mean machines are rounded, ordered ahead of the boot, and its split of each class
over pools and models becomes route weights. The reserve, more machines or fewer, is chosen by trying some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
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
from selfserve.selector import Cascade, ModelSelector, a_request, wanted_pct
from selfserve.simulator import simulate
from selfserve.workload import Workload

SLOT_S = 10.0  #: length of a slot of the weights and of a decision interval
BATCHES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)  #: batch sizes that are tried for a pool
ROUND_UP_FROM = 0.1  #: fraction of a machine from which one more is taken
RESERVES = (-0.3, -0.2, -0.1, -0.05, 0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Machines over the plan (or under it) that are tried, as a share of it, from the least on."""
TOO_DEAR = 1.25
"""Ratio to the least cost so far from which no more is tried; a little more may be dearer where much more pays."""
MARGINS = (0.02, 0.1)
"""Points over a mean accuracy that are aimed at; the next is tried when a window misses its mean."""
CASCADE_MARGINS = (0.03, 0.3)
"""Points over the accuracy asked that cascades have: three standard errors of what a fifth of unsure answers adds in
100,000 at 7 points between the models; and of the one that makes up for answers of less than a mean (one model would,
too, but with much more work)."""
TOLERATED_PCT = 0.1  #: violations that a plan may have
TAIL = 3.5  #: standard deviations of a service time that are allowed for
BOOT_TAIL = 1.5  #: standard deviations of a boot time by which machines are ordered early
LATEST_SHARE = 0.85  #: share of its SLO that a request's fill wait and service may take together
LEAVES_S = 0.005  #: from the end of a wait to a start on a function
WARMUP_FLEET = 1.5  #: machines in the unscored warm-up over those at its end, so that no work is left from it


class Functions(Enum):
    """Which functions a plan counts on; what leaves a queue may use all of them."""

    ALL = "all"
    ONE_MODEL = "no cascades"
    COLD = "in time from a new container"


@dataclass(frozen=True)
class How:
    """How a plan may serve."""

    fill_share: float = 0.4
    """Longest wait of a batch that is not full, as a share of the shortest SLO: long waits fill batches, without
    one batches are of what waits anyway, and a second stage has time."""
    cascades: bool = True
    functions: Functions = Functions.ALL


HOWS = (How(), How(0.0), How(0.0, functions=Functions.ONE_MODEL), How(0.0, functions=Functions.COLD))
"""With cascades; all are tried."""


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

    def same(self, other: Plan) -> bool:
        """Return whether both serve alike, whatever their margins."""
        mine, its = ((p.lanes, p.batch_max, p.batch_wait_s) for p in (self, other))
        arrays = zip((self.machines, *self.weights), (other.machines, *other.weights), strict=True)
        return mine == its and all(np.array_equal(a, b) for a, b in arrays)


class _Way:
    """How a plan serves, before machines are counted: batch sizes, waits and where a class goes at the last moment."""

    def __init__(self, scenario: Scenario, batch: dict[int, int], how: How) -> None:
        self.scenario, self.how = scenario, how
        self.batch = tuple(min(batch.get(p, 1), largest_batch(x)) for p, x in enumerate(scenario.pools))
        wait = how.fill_share * min(c.slo_s for c in scenario.classes)
        self.wait_s = tuple(wait if b > 1 else 0.0 for b in self.batch)
        self.cascades: list[tuple[Cascade, tuple[int, int]]] = []
        """With the pools of both stages; options count them on from the last of the models."""
        self.functions = FunctionConfigurator(scenario, ModelSelector(scenario))
        self.options = [self._executable(k) for k in range(len(scenario.classes))]

    def cascade_of(self, o: Option) -> Cascade | None:
        """Return the cascade of an option; nothing where one model answers."""
        n = len(self.scenario.models)
        return self.cascades[o.model - n][0] if o.model >= n else None

    def places(self, o: Option) -> list[tuple[int, int]]:
        """Return pool and model of each stage."""
        n = len(self.scenario.models)
        if o.model < n:
            return [(o.pool, o.model)]
        way, pools = self.cascades[o.model - n]
        return list(zip(pools, way[:2], strict=True))

    def service_s(self, places: Sequence[tuple[int, int]]) -> float:
        """Return the longest time that is allowed for from the first dispatch to the answer."""
        mean = sum(self.scenario.pools[p].service_s(m, self.batch[p]) for p, m in places)
        return mean * (1 + TAIL * self.scenario.service.spread) + sum(self.wait_s[p] for p, _ in places[1:])

    def answer_s(self, places: Sequence[tuple[int, int]]) -> float:
        """Return the same from the arrival at an idle pool, where the batch may wait to fill."""
        return self.wait_s[places[0][0]] + self.service_s(places)

    def _executable(self, k: int) -> list[Option]:
        """Return the options of a class that can be used, with the work or dollars that they then take."""
        pools, wanted, found = self.scenario.pools, self.scenario.classes[k], []
        everything = range(len(pools))
        kinds = machine_kinds(self.scenario, everything)
        for o in class_options(self.scenario, wanted, kinds, everything):
            if self._late(k, [(o.pool, o.model)]):
                continue
            pool, b = pools[o.pool], self.batch[o.pool]
            usd, work_s = (
                (self._usd(o.pool, o.model), 0.0) if pool.is_function else (0.0, pool.service_s(o.model, b) / b)
            )
            found.append(replace(o, usd=usd, work_s=work_s))
        if self.how.cascades:
            ways = [self._cascade(k, kind.pool, v, CASCADE_MARGINS[0]) for v, kind in enumerate(kinds)]
            found += filter(None, [*ways, self._function_cascade(k, CASCADE_MARGINS[0])])
        return sorted(found, key=lambda o: o.kind < 0)  # machines first

    def _late(self, k: int, places: Sequence[tuple[int, int]]) -> bool:
        return self.answer_s(places) > LATEST_SHARE * self.scenario.classes[k].slo_s

    def _usd(self, pool: int, model: int) -> float:
        """Return dollars a request of full batches on functions."""
        return self.functions.cost_usd(pool, model, self.batch[pool]) / self.batch[pool]

    def _cascade(self, k: int, p: int, kind: int, margin: float) -> Option | None:
        """Return the cascade of least work on a pool that is in time; both models have functions if there are any."""
        functions = self.functions
        models = [m for m in self.scenario.pools[p].models if not functions.pools or functions.same(k, m)]
        for seconds, way in functions.selector.cascades(k, p, self.batch[p], models, margin):
            left = [self._function(k, m) for m in way[:2]] if functions.pools else []
            if not self._late(k, [(p, m) for m in way[:2]]) and not (left and self._late(k, left)):
                return replace(self._staged(k, way, (p, p), kind, margin), work_s=seconds / self.batch[p])
        return None

    def _function_cascade(self, k: int, margin: float) -> Option | None:
        """Return the cascade of functions of least dollars that is in time."""
        functions, models = self.functions, range(len(self.scenario.models))
        place = {m: at[0] for m in models if (at := functions.same(k, m))}
        ways = {
            way for p in functions.pools for _, way in functions.selector.cascades(
                k, p, 1, [m for m in self.scenario.pools[p].models if m in place], margin)
        }  # fmt: skip
        found = [(a_request(((way, 1.0),), lambda m: self._usd(place[m], m)), way) for way in ways]
        for usd, way in sorted(found):
            if not self._late(k, [(place[m], m) for m in way[:2]]):
                return replace(self._staged(k, way, (place[way.cheap], place[way.better]), -1, margin), usd=usd)
        return None

    def _staged(self, k: int, way: Cascade, pools: tuple[int, int], kind: int, margin: float) -> Option:
        self.cascades.append((way, pools))
        at = len(self.scenario.models) + len(self.cascades) - 1
        accuracy = wanted_pct(self.scenario.classes[k]) + margin
        return Option(pools[0], at, kind, 0.0, 0.0, accuracy, self.batch[pools[0]], 0.0)

    def spare(self, k: int, most: Option) -> Option | None:
        """Return what class ``k`` is to be asked of if its answers so far were below the mean; None without a mean.

        A cascade, or else a model, of somewhat more than the mean, where ``most`` of the class is served: elsewhere
        there may be no machines. It is no part of the plan.
        """
        mean, found = self.scenario.classes[k].mean_accuracy_pct, None
        if mean is None:
            return None
        if self.how.cascades:
            margin, on_machines = CASCADE_MARGINS[1], most.kind >= 0
            found = self._cascade(k, most.pool, most.kind, margin) if on_machines else self._function_cascade(k, margin)
        above = [o for o in self.options[k] if o.pool == most.pool and o.accuracy > mean + MARGINS[-1]]
        return found or min(above, key=lambda o: o.accuracy, default=None)

    def fallback(self, k: int) -> Option | None:
        """Return the cheapest function that meets the class's accuracy, or else its most accurate one."""
        n, c = len(self.scenario.models), self.scenario.classes[k]
        functions = [o for o in self.options[k] if o.kind < 0 and o.model < n]
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
        needed = self.answer_s(self.places(function)) + LEAVES_S
        if cascade := self.cascade_of(mine):  # both stages leave for their own functions
            needed = self.answer_s([self._function(k, m) for m in cascade[:2]]) + 2 * LEAVES_S
        if needed + self.scenario.function.init_s < 0.6 * slo_s:
            needed += self.scenario.function.init_s
        return min(max(needed, self.service_s(self.places(mine))), 0.8 * slo_s)

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
        if mine.kind < 0:
            (p, m), slow = self.places(mine)
            return unsure(Step(p, m)), Step(*slow)
        if slack_s == -np.inf:
            return unsure(first), second
        quick, slow = (self._function(k, m) for m in cascade[:2])
        # one slack for both: what leaves a queue does so from a class's head (physics rule 5.1)
        return first, unsure(Step(*quick)), replace(second, leave_slack_s=slack_s), Step(*slow)

    def lane(self, k: int, mine: Option) -> Lane:
        """Return a lane: queue at machines, answer by a quicker model if late, leave at the last moment."""
        function, quick = self.fallback(k), self.rescue(k, mine)
        if cascade := self.cascade_of(mine):
            return Lane(self._in_stages(k, mine, cascade, self.leave_slack_s(k, mine)), mine.accuracy)
        if mine.kind < 0:
            return Lane((Step(mine.pool, mine.model),), mine.accuracy)
        if self.scenario.classes[k].mean_accuracy_pct is not None and quick.model != mine.model:
            slack, late_slack = self.leave_slack_s(k, quick), self.service_s(self.places(mine))
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
        """Solve the relaxation on what this way counts on."""
        everything, nothing = range(len(self.scenario.pools)), np.zeros(len(self.options))
        planned = [[o for o in mine if self._counted_on(k, o)] or mine for k, mine in enumerate(self.options)]
        r = relax(self.scenario, counts, everything, nothing, [None] * len(nothing), options=planned)
        return r, solve(r)

    def _counted_on(self, k: int, o: Option) -> bool:
        places = self.places(o)
        if o.kind >= 0 or self.how.functions is Functions.ALL:
            return True
        cold_s = self.answer_s(places) + len(places) * self.scenario.function.init_s
        return (
            len(places) == 1 if self.how.functions is Functions.ONE_MODEL else cold_s <= self.scenario.classes[k].slo_s
        )


def _best_way(scenario: Scenario, workload: Workload, seed: int, slot_s: float, how: How) -> _Way:
    """Choose the batch size of each pool, one pool after the other, by the plan's dollars on long slots."""
    counts = coarsen(count_slots(workload, scenario, seed, slot_s), max(1, round(120 / slot_s)))
    batch: dict[int, int] = {}
    for p, pool in enumerate(scenario.pools):
        costs = {}
        for b in [b for b in BATCHES if b <= largest_batch(pool)]:
            try:
                costs[b] = _Way(scenario, batch | {p: b}, how).solve(counts)[1].usd
            except InputError:  # a class is left without an option, or without enough machines
                continue
        if costs:
            batch[p] = min(costs, key=lambda b: (costs[b], b))
    return _Way(scenario, batch, how)


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
    workload: Workload, scenario: Scenario, seed: int, slot_s: float, how: How = HOWS[0]
) -> Callable[[float, float], Plan]:
    """Return the plan of a window as a function of reserve (share of machines over it) and accuracy margin."""
    way = _best_way(scenario, workload, seed, slot_s, how)
    r, x = way.solve(count_slots(workload, way.planning_scenario(), seed, slot_s))
    lanes, weights = [], []
    for k, mine in enumerate(way.options):
        share = _weights(r, x, k, mine)
        used = [i for i in range(len(mine)) if share[:, i].any()]
        own, spare = [mine[i] for i in used], way.spare(k, mine[int(share.sum(axis=0).argmax())])
        lanes.append(tuple(way.lane(k, o) for o in [*own, *([] if spare is None or spare in own else [spare])]))
        weights.append(np.pad(share[:, used], ((0, 0), (0, len(lanes[k]) - len(own)))))

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
    found: list[tuple[bool, float, Plan]] = []
    tried: list[Plan] = []
    for how in (*(HOWS if cascades else ()), How(cascades=False)):
        if not how.cascades and not all(bad for bad, *_ in found):
            break  # one model an answer is dearer, but may be in time where no cascade is
        plan = make_plans(workload, scenario, seed, SLOT_S, how)
        first = plan(0.0, MARGINS[0])
        if not any(first.same(other) for other in tried):
            found.append(_best_reserve(plan, workload, scenario, seed, execute))
        tried.append(first)
    return min(found, key=lambda one: one[:2])[2]


def _best_reserve(
    plan: Callable[[float, float], Plan], workload: Workload, scenario: Scenario, seed: int,
    execute: Callable[[Plan], Policy],
) -> tuple[bool, float, Plan]:  # fmt: skip
    """Return the best of the plans with some reserve: whether it violates too much, by how much or at what cost."""
    best: tuple[bool, float, Plan] | None = None
    mine: Plan | None = None
    for reserve in RESERVES:
        before, mine = mine, plan(reserve, MARGINS[0])
        if before is not None and mine.same(before):
            continue  # whole machines: the same fleet
        for margin in MARGINS:
            aimed = replace(mine, margin=margin)
            seen = simulate(scenario, workload, execute(aimed), seed).summary
            missed = seen["accuracy_violation_pct"]
            if missed <= TOLERATED_PCT:
                break
        violated = max(seen["slo_violation_pct"], missed)
        bad = violated > TOLERATED_PCT
        found = (bad, violated if bad else seen["cost_usd"], aimed)
        if best is None or found[:2] < best[:2]:
            best = found
        elif not best[0] and seen["cost_usd"] > TOO_DEAR * best[1]:
            break
    assert best is not None
    return best
