"""The planner with all its constants in one place, so that a person, a formula or a learned controller may set them.

:class:`Steering` keeps what one run has seen; :func:`steer` is a pure function from that and
:class:`PlannerSettings` to a decision. Settings have no scale: times are in units of the time that a machine takes to
come up, machines in units of the load, so that one set serves 1 or 1,000 machines and any trace. ``tuned`` holds them
constant, ``analytic`` computes them, the controller changes them at every decision.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from statistics import NormalDist
from typing import Any

import numpy as np

from selfserve.correctness import stages
from selfserve.planner import FunctionConfigurator, LoadMonitor, ResourceSelector, straight
from selfserve.protocol import Admit, Decision, Observation, Route, Step, Then
from selfserve.scenario import Scenario
from selfserve.selector import P99, Cascade, ModelChoice, ModelSelector, Way, Ways, a_request, stages_of
from selfserve.warming import WARMED_FROM_S, Calls, called, warm_until

WINDOWS = 0.1 * 2.0 ** np.arange(8)
"""Time constants of the exponential averages kept of the load, in units of the boot time."""
LONGEST_HOLD = 16.0
"""Longest ``hold``, in units of the boot time."""
OWN_SHARE = 0.6
"""Largest share of the SLO that a batch of waiting requests may take, at p99. On 45 on-demand validation situations
``analytic`` costs 11.1% (2.5) more with 0.3, 4.5% (1.9) with 0.45, 1.3% (0.8) with 0.75, 3.6% (1.6) with 0.9."""
FUNCTION_BATCH = 4
"""Most requests of an invocation, as far as that is in time. They only meet where no further container may start: then
fewer containers serve more. Set by hand: 1, 2, 4 and 16 differ by at most 0.3% of cost, on nine validation windows."""


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """What may be steered.

    Attributes:
        headroom: machines over those that the smoothed load keeps busy.
        safety: machines on top, in standard deviations of what the load did over past boot times; counted from where
            the marginal machine just pays against functions (:attr:`Steering.pays`).
        fast: time constant of the quick average of the load, boot times.
        slow: time constant of the slow one, boot times.
        weight: of the quick average against the slow one (above 1: the load is believed to go on as it went).
        hold: how long a machine stays after it was last needed, boot times.
        drain: time in which machines should work off what waits, boot times (0: waiting requests call for none).
        leave_margin: a request leaves for a function this many p99 service times before its deadline.
        cold_margin: and this many cold starts before that, where its SLO leaves room for one.
        early: leave on arrival where a late answer is predicted, instead of at the last moment.
        spot_share: share of the load meant for spot machines, where there are any.
        spot_headroom: spot machines over those that their share keeps busy.
        spot_caution: how quickly that share falls with the losses and refusals of late (1: half of the machines lost
            within a boot time halve it).
        levels: per class, from 0 (cheapest models that meet its demands) to 1 (most accurate); empty: all 0.
        late_binding: the quickest model that is accurate enough answers, if at dispatch less than this many p99 service
            times of the planned model are left (0: never).
    """

    headroom: float = 1.0
    safety: float = 0.0
    fast: float = 0.2
    slow: float = 2.0
    weight: float = 0.7
    hold: float = 1.0
    drain: float = 1.0
    leave_margin: float = 1.0
    cold_margin: float = 1.0
    early: bool = False
    spot_share: float = 0.8
    spot_headroom: float = 1.0
    spot_caution: float = 2.0
    levels: tuple[float, ...] = ()
    late_binding: float = 0.0


class Steering:
    """What a run has seen and where its classes may go: the state that :func:`steer` reads.

    Args:
        scenario: what is served on what.
        history: requests per second before the run, shape [seconds].
        interval_s: seconds between decisions.
        models: how the model selector chooses at level 0.
        pool: the VM pool to use (default: the cheapest on-demand one that serves the classes, batches counted; a
            spot one where there are no others).
        batch_share: share of the SLOs that filling batches may use up (0: none fills).
        own_share: share of the SLOs that a batch of what waits anyway may take.
        cascades: a class may be answered by two models one after the other, where that is less work.

    Raises:
        InputError: the scenario has no VM pool.
    """

    def __init__(
        self,
        scenario: Scenario,
        history: np.ndarray,
        interval_s: float,
        *,
        models: ModelChoice = "cheapest",
        pool: str | None = None,
        batch_share: float = 0.0,
        own_share: float = OWN_SHARE,
        cascades: bool = True,
    ) -> None:
        self.scenario = scenario
        self.cascades, self.own_share = cascades, own_share
        # both stages take what a batch may, so that the batches that were chosen for single models stay
        self._cascade_share = (own_share or 1.0) if cascades else 0.0
        self.boot_s = max(1.0, scenario.vm.pending_s + scenario.vm.boot_s)  # a load has no change within nothing
        self.monitor = LoadMonitor(scenario, history, interval_s)
        self.selector = ModelSelector(scenario, models)
        self.functions = FunctionConfigurator(scenario, self.selector)
        select = partial(ResourceSelector, scenario, self.selector, batch_share=batch_share, own_share=own_share)
        markets = {p.market for p in scenario.pools}
        self.homes = select(pool=pool)
        for spots in (select("spot"), None) if {"spot", "on_demand"} <= markets else (None,):
            self.spots, self.batches = spots, self.homes.batches
            self._mixes: dict[tuple[int, int, float], tuple[Ways, float]] = {}
            if cascades and own_share > 0:
                self.batches = tuple(self._batch(p) for p in range(len(scenario.pools)))
            if spots is None or self._alike(spots.pool_of):
                break
        self.pays = np.array([self._pays(p) for p in range(len(scenario.pools))])
        """[P] standard deviations over the expected load at which a further machine saves what it costs: the
        newsvendor's critical ratio 1 - price of the work on the machine / on a function, as a normal quantile (2.33
        where no function can take over)."""
        self.observation: Observation | None = None
        met = {p: self._met(p) for p in self.functions.pools}
        self.batches = tuple(met.get(p, batch) for p, batch in enumerate(self.batches))
        self._start(interval_s)

    def _alike(self, spots: tuple[int, ...]) -> bool:
        """Return whether spot machines have every model that is asked at home: else what is meant for them waits."""
        pairs = enumerate(zip(self.homes.pool_of, spots, strict=True))
        ways = ((way, spot) for k, (home, spot) in pairs for way, _ in self.mix(k, home, 0.0)[0])
        return all(m in self.scenario.pools[spot].models for way, spot in ways for m, _ in stages_of(way))

    def batch_s(self, pool: int, model: int) -> float:
        """Return seconds of a full batch at p99 where what waits is batched, else 0: who starts later may be late."""
        batch = 1 if self.homes.batch_wait_s[pool] > 0 else self.batches[pool]
        return self.selector.latency_s(pool, model, batch) if batch > 1 else 0.0

    def _batch(self, pool: int) -> int:
        """Return the batch with which the classes' ways are the least work, as far as they are in time.

        One chosen before the ways may be too long for a cascade, or short for a single model that none asks.
        """
        spec, single = self.scenario.pools[pool], self.homes.batches[pool]
        served = [k for k in range(len(self.scenario.classes)) if pool in self._pools_of(k)]
        if spec.is_function or self.homes.batch_wait_s[pool] > 0 or not served:
            return single

        def work_s(batch: int) -> float:
            total = 0.0
            for k in served:
                found, mix = self._cascade(k, pool, batch), self.selector.mix(k, pool)
                room_s = self._cascade_share * self.scenario.classes[k].slo_s
                if not found and batch > 1 and any(self.selector.latency_s(pool, m, batch) > room_s for m, _ in mix):
                    return inf
                work = a_request(((found, 1.0),) if found else mix, partial(spec.service_s, batch=batch))
                total += self.scenario.classes[k].share * work / batch
            return total

        return min(range(1, spec.max_batch + 1), key=lambda batch: (work_s(batch), batch))

    def _met(self, pool: int) -> int:
        """Return the largest batch of a function pool, up to ``FUNCTION_BATCH``, that is in time for all who use it."""
        uses = [
            (c.slo_s, target[1])
            for k, c in enumerate(self.scenario.classes) for way, _ in self.mix(k, self.homes.pool_of[k], 0.0)[0]
            for m, _ in stages_of(way) if (target := self.function_of(k, way, m)) and target[0] == pool
        ]  # fmt: skip
        sizes = range(1, min(FUNCTION_BATCH, self.scenario.pools[pool].max_batch) + 1)
        in_time = [b for b in sizes if all(self.selector.latency_s(pool, m, b) <= slo_s for slo_s, m in uses)]
        return max(in_time, default=1)

    def _pools_of(self, k: int) -> set[int]:
        return {self.homes.pool_of[k], *([] if self.spots is None else [self.spots.pool_of[k]])}

    def _cascade(self, k: int, pool: int, batch: int) -> Cascade | None:
        """Return a cascade whose stages can both leave for a function, if there are any, and run on spot machines."""
        pools = {pool, *self._pools_of(k)}
        models = set.intersection(*(set(self.scenario.pools[p].models) for p in pools))
        if self.functions.pools:
            models = {m for m in models if self.functions.same(k, m)}
        found = self.selector.cascade(k, pool, batch, self._cascade_share, sorted(models))
        targets = [self.functions.same(k, m) for m, _ in stages_of(found)] if found else []
        in_time = sum(self.selector.latency_s(*t) for t in targets if t) <= self.scenario.classes[k].slo_s
        return found if in_time else None

    def function_of(self, k: int, way: Way, model: int) -> tuple[int, int] | None:
        """Return (pool, model) of the function that takes over from ``model`` in a way of class ``k``."""
        return self.functions.same(k, model) if isinstance(way, Cascade) else self.functions.choose(k, model)

    def _call(self, k: int) -> tuple[Step, ...]:
        """Return the steps of a request of class ``k`` that goes straight to a function; none where none should."""
        way = max(self.mix(k, self.homes.pool_of[k], 0.0)[0], key=lambda part: part[1])[0]
        models = stages_of(way)
        targets = [target for model, _ in models if (target := self.function_of(k, way, model)) is not None]
        if self.scenario.function.init_s < WARMED_FROM_S or len(targets) < len(models):
            return ()
        return straight(way, targets)

    def stage_s(self, k: int, pool: int, model: int) -> float:
        """Return p99 seconds of a cascade's second stage: a function's, or a full batch's where that is more."""
        target = self.functions.same(k, model)
        return max(self.selector.latency_s(*target or (pool, model)), self.batch_s(pool, model))

    def _pays(self, pool: int) -> float:
        spec, machine, function = self.scenario.pools[pool], 0.0, 0.0
        for k, c in enumerate(self.scenario.classes):
            for m, share in self.selector.mix(k, pool) if self.selector.serves(k, pool) else ():
                target = self.functions.choose(k, m)
                if target is not None:
                    busy_h = spec.service_s(m, self.batches[pool]) / self.batches[pool] / 3600
                    machine += c.share * share * spec.usd_per_hour / spec.slots * busy_h
                    function += c.share * share * self.functions.cost_usd(*target)
        return NormalDist().inv_cdf(min(max(1 - machine / function, 0.01), 0.99)) if function > 0 else P99

    def _start(self, interval_s: float) -> None:
        """Bring the averages to where the history leaves them."""
        past = self.monitor.recent(int(LONGEST_HOLD * self.boot_s))
        steps = max(1, round(interval_s))
        rates = [rows.mean(axis=0) for rows in (past[i : i + steps] for i in range(0, len(past), steps))]
        self.averages = np.tile(rates[0] if rates else self.monitor.last, (len(WINDOWS), 1))
        """[J, K] exponential averages of the load, requests/s, by :data:`WINDOWS`."""
        self.past: deque[tuple[float, np.ndarray]] = deque()
        """Time and averages of the decisions within the longest hold."""
        self.changes = np.zeros((self.averages.shape[1],) * 2)
        """[K, K] mean product of the classes' changes of load over a boot time, (requests/s)^2."""
        self.calls = Calls.of(self.scenario, [self._call(k) for k in range(len(self.scenario.classes))])
        self.warm_until_s = np.zeros(len(self.calls.steps))
        """[K] when the function that a class leaves for has no warm container any more, if nobody calls it."""
        self.trouble = np.zeros(len(self.scenario.pools))
        """[P] machines lost or refused within the last boot time (exponential average)."""
        self.seen: deque[tuple[float, np.ndarray]] = deque()
        for i, rate in enumerate(rates):
            self._learn((i + 1 - len(rates)) * interval_s, interval_s, rate)

    def _learn(self, time_s: float, interval_s: float, rate: np.ndarray) -> None:
        keep = np.exp(-interval_s / (WINDOWS * self.boot_s))[:, None]
        self.averages = keep * self.averages + (1 - keep) * rate
        self.past.append((time_s, self.averages))
        while self.past[0][0] < time_s - LONGEST_HOLD * self.boot_s:
            self.past.popleft()
        self.seen.append((time_s, rate))
        while self.seen[0][0] <= time_s - self.boot_s:
            change = rate - self.seen.popleft()[1]
            self.changes += (np.outer(change, change) - self.changes) * min(1.0, interval_s / (20 * self.boot_s))

    def observe(self, observation: Observation) -> None:
        """Take in the interval that just ended."""
        self.monitor.observe(observation)
        self.observation = observation
        if observation.time_s > 0:
            if observation.time_s <= observation.interval_s * 1.5 and not self.averages.any():
                self.averages = np.tile(self.monitor.last, (len(WINDOWS), 1))  # the first load ever seen
            self._learn(observation.time_s, observation.interval_s, self.monitor.last)
            keep = np.exp(-observation.interval_s / self.boot_s)
            self.trouble = keep * self.trouble + observation.lost + observation.refused
            used = observation.served.sum(axis=2)[self.calls.pool, self.calls.model] > 0
            times = self.scenario.function.init_s, self.scenario.function.keep_alive_s
            self.warm_until_s = warm_until(self.warm_until_s, used, observation, *times)

    def mix(self, k: int, pool: int, level: float) -> tuple[Ways, float]:
        """Return what answers class ``k`` on ``pool`` at an accuracy level, and slot-seconds a request.

        Where batches wait to fill one model answers, as accurate as the mix: requests of a class keep their order, so
        that two models in turn would break up every batch.
        """
        key = (k, pool, round(level, 3))
        if key not in self._mixes:
            alone = self.selector.raised(k, pool, key[2])
            batch, service_s = self.batches[pool], self.scenario.pools[pool].service_s
            accuracy, fit = self.scenario.accuracy_pct, self.selector.feasible(k, pool)
            mix: Ways = alone
            if self.homes.batch_wait_s[pool] > 0:
                wanted = sum(share * accuracy[m] for m, share in alone) - 1e-9
                enough = [m for m in fit if accuracy[m] >= wanted] or [alone[-1][0]]
                mix = ((min(enough, key=lambda m: service_s(m, batch)), 1.0),)
            elif self._cascade_share > 0 and (found := self._cascade(k, pool, batch)):
                best = max(fit, key=lambda m: accuracy[m], default=found.better)
                mix = ((found, 1 - key[2]), (best, key[2])) if key[2] > 0 else ((found, 1.0),)
            self._mixes[key] = mix, a_request(mix, partial(service_s, batch=batch)) / batch
        return self._mixes[key]


def mixing(fast: Any, slow: Any, weight: Any) -> np.ndarray:
    """Return the part that settings, numbers or [E], give each average of :data:`WINDOWS`, [J] or [E, J].

    Time constants between two windows are interpolated in their logarithm.
    """
    places = np.arange(len(WINDOWS))
    at = np.interp(np.log([fast, slow]), np.log(WINDOWS), places)[..., None]
    near_fast, near_slow = np.maximum(0.0, 1 - np.abs(at - places))
    return np.asarray(near_slow + np.asarray(weight)[..., None] * (near_fast - near_slow))


def smoothed(averages: np.ndarray, settings: PlannerSettings) -> np.ndarray:
    """Return the load that settings make of averages [.., J, K], requests/s, shape [.., K]."""
    return np.maximum(mixing(settings.fast, settings.slow, settings.weight) @ averages, 0.0)


def smoothed_each(averages: np.ndarray, fast: np.ndarray, slow: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the same for E worlds with settings of their own, [E], and H times: [E, H, J, K] to [E, H, K]."""
    factor = mixing(fast, slow, weight)
    n, h, j, k = averages.shape
    if h == 1:
        return np.maximum((factor[:, None, :, None] * averages).sum(axis=2), 0.0)
    mixed = factor[:, :, None, None] * np.eye(k)  # as a matrix product, which is compiled
    return np.maximum(averages.reshape(n, h, j * k) @ mixed.reshape(n, j * k, k), 0.0)


def steer(state: Steering, settings: PlannerSettings) -> Decision:
    """Return the decision that ``settings`` make of what ``state`` has seen; changes neither."""
    scenario, seen = state.scenario, state.observation
    assert seen is not None  # a decision follows an observation
    n = len(scenario.classes)
    levels = settings.levels or (0.0,) * n
    spot = 0.0 if state.spots is None else _spot_share(state, settings)
    homes, spots = state.homes.pool_of, state.homes.pool_of if state.spots is None else state.spots.pool_of
    per_rate = np.zeros((len(scenario.pools), n))
    for k in range(n):
        for p, share in ((homes[k], 1 - spot), (spots[k], spot * settings.spot_headroom)):
            per_rate[p, k] += share * state.mix(k, p, levels[k])[1] / scenario.pools[p].slots
    since = seen.time_s - min(settings.hold, LONGEST_HOLD) * state.boot_s
    held = np.array([a for t, a in state.past if t >= since - 1e-9] or [state.averages])
    needed = settings.headroom * (smoothed(held, settings) @ per_rate.T).max(axis=0)
    spread = np.sqrt(np.einsum("pk,kl,pl->p", per_rate, state.changes, per_rate))
    needed = np.maximum(needed + (state.pays + settings.safety) * spread, 0.0)
    if settings.drain > 0 and seen.queued.any():
        drain_s = max(settings.drain * state.boot_s, seen.interval_s)
        for k in range(n):
            for p in {homes[k], spots[k]}:
                work_s = state.mix(k, p, levels[k])[1] / scenario.pools[p].slots
                needed[p] += work_s * float(seen.queued[p, k]) / drain_s
    machines = state.homes.machines(needed)
    for p, pool in enumerate(scenario.pools):
        if machines[p] == 0 and not pool.is_function and seen.queued[p].any():
            machines[p] = 1
    ready = seen.ready * np.array([p.slots for p in scenario.pools])
    calls = called(state.monitor.last, state.calls.service_s, scenario.function.init_s, seen, state.warm_until_s)
    routes = tuple(routes_of(state, settings, k, levels[k], ready, spot, calls[k]) for k in range(n))
    reason = f"smoothed {float(smoothed(state.averages, settings).sum()):.1f} requests/s, {sum(machines)} machines"
    return Decision(tuple(machines), routes, state.batches, state.homes.batch_wait_s, reason)


def _spot_share(state: Steering, settings: PlannerSettings) -> float:
    """Return the share of the load that spot machines get: less, the more of them were lost or refused of late."""
    seen = state.observation
    assert seen is not None and state.spots is not None
    pools = sorted(set(state.spots.pool_of))
    trouble = float(state.trouble[pools].sum())
    alive = float(seen.ready[pools].sum() + seen.booting[pools].sum())
    part = trouble / (trouble + alive) if trouble > 0.05 else 0.0  # less is long past
    return settings.spot_share * (1 - part) ** settings.spot_caution


def routes_of(
    state: Steering, settings: PlannerSettings, k: int, level: float, ready: np.ndarray, spot: float, calls: float = 0.0
) -> tuple[Route, ...]:
    """Return the routes of class ``k``: for each model, a free spot slot, else a free one at home, else waiting.

    A part of it, ``calls``, goes straight to a function.

    Where it waits is drawn in proportion to the slots ready. A class keeps the same routes all along (some of weight
    0), since a waiting request is led by its route's number.
    """
    home = state.homes.pool_of[k]
    routes = []
    second = None if state.spots is None else state.spots.pool_of[k]
    for way, share in _all_ways(state, k, home, level):
        models = {m for m, _ in stages_of(way)}
        if second is None or not models <= set(state.scenario.pools[second].models):
            routes.append(Route(_steps(state, settings, k, way, (home,)), share * (1 - calls)))
            continue
        total = float(ready[home] + ready[second])
        part = float(ready[second]) / total if total > 0 else spot
        for pools, weight in (((home, second), 1 - part), ((second, home), part)):
            routes.append(Route(_steps(state, settings, k, way, pools), share * weight * (1 - calls)))
    steps = state.calls.steps[k]
    return (*routes, *((Route(steps, calls),) if steps else ()))


def _all_ways(state: Steering, k: int, pool: int, level: float) -> list[tuple[Way, float]]:
    shares, fit = dict(state.mix(k, pool, level)[0]), state.selector.feasible(k, pool)
    known = {*shares, *fit} if len({*shares, *fit}) <= 4 else {*shares}
    if cascades := [way for way, _ in state.mix(k, pool, 0.0)[0] if isinstance(way, Cascade)]:
        known = {*cascades, *(way for way, _ in state.mix(k, pool, 1.0)[0])}  # what any level mixes
    return [(way, shares.get(way, 0.0)) for way in sorted(known, key=lambda way: (isinstance(way, Cascade), way))]


def way_of(route: Route) -> Way:
    """Return the model, or the two of a cascade, that a route of :func:`routes_of` asks."""
    models = [(part[-1].model, part[-1].unsure_share) for part in stages(route)]
    return models[0][0] if len(models) == 1 else Cascade(models[0][0], models[1][0], models[0][1])


def _steps(state: Steering, settings: PlannerSettings, k: int, way: Way, pools: tuple[int, ...]) -> tuple[Step, ...]:
    """Return a free slot in any of ``pools``, else waiting in the first, else a function; of a cascade twice."""
    slo_s, latency_s = state.scenario.classes[k].slo_s, state.selector.latency_s
    late, late_s, rest_s, model = None, 0.0, 0.0, stages_of(way)[0][0]
    target = state.function_of(k, way, model)
    if isinstance(way, Cascade):
        rest_s = state.stage_s(k, pools[0], way.better)
    elif settings.late_binding > 0:
        late = (state.selector.feasible(k, pools[0]) or (model,))[0]
        late_s = settings.late_binding * latency_s(pools[0], model)
    slack_s = -inf
    if target is not None:
        slack_s = max(settings.leave_margin * latency_s(*target), state.batch_s(pools[0], model)) + rest_s
        cold_s = settings.cold_margin * state.scenario.function.init_s
        slack_s += cold_s if slack_s + cold_s < slo_s else 0.0
    admit = Admit.IF_FITS if settings.early and target is not None else Admit.ALWAYS
    first = _stage(pools, Step(pools[0], model, admit, slack_s, late, late_s), target)
    if not isinstance(way, Cascade):
        return first
    first = (*first[:-1], replace(first[-1], then=Then.IF_UNSURE, unsure_share=way.unsure_share))
    # who waits for the second stage is at the head of the queue: were he to leave later than the others, all of them
    # would pile up behind him, and find far too few warm containers at once
    target = state.functions.same(k, way.better)
    return first + _stage(pools, Step(pools[0], way.better, leave_slack_s=slack_s), target)


def _stage(pools: tuple[int, ...], waits: Step, target: tuple[int, int] | None) -> tuple[Step, ...]:
    idle = tuple(Step(p, waits.model, Admit.IF_IDLE) for p in pools[::-1]) if len(pools) > 1 else ()
    return (*idle, waits, *((Step(*target),) if target else ()))
