"""The planner: the four parts that the founding paper asks of a self-managed serving system (WoSC'20, section 3).

* :class:`LoadMonitor` (3.2.2) watches arrivals per class: rate, burstiness, forecast.
* :class:`ModelSelector` (3.1) picks the models that answer a class, from accuracy and profiled latency.
* :class:`ResourceSelector` (3.2.1) says which VM pool serves a class and how many machines a load needs.
* :class:`FunctionConfigurator` (3.2.4) says where a class overflows: the least memory that meets its latency.

:class:`Planner` wires them together for one run. Policies speak only to it and to the protocol; what they believe of
service times comes from :meth:`Pool.service_s <selfserve.scenario.Pool.service_s>`, never from the simulator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import ceil, inf
from typing import Literal

import numpy as np

from selfserve.errors import require
from selfserve.protocol import Admit, Decision, Observation, Route, Step, Then
from selfserve.scenario import Scenario
from selfserve.selector import Cascade, Mix, ModelChoice, ModelSelector, Way, Ways, a_request, stages_of

Overflow = Literal["never", "idle", "fits", "last_moment"]


def peak_minute_rate(counts: np.ndarray) -> float:
    """Return the mean requests/s of the busiest 60 consecutive seconds of ``counts`` [seconds] (0 if empty)."""
    if len(counts) == 0:
        return 0.0
    width = min(60, len(counts))
    sums = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    return float((sums[width:] - sums[:-width]).max() / width)


class LoadMonitor:
    """Arrivals per class and second: what was seen last, over a window, how bursty it is and where it goes.

    Args:
        scenario: gives the classes and their shares, by which the history is split.
        history: requests per second before the run, shape [seconds].
        interval_s: length of the last interval before the run, seconds.
        window_s: seconds remembered.
    """

    def __init__(self, scenario: Scenario, history: np.ndarray, interval_s: float, window_s: int = 3600) -> None:
        shares = np.array([c.share for c in scenario.classes])
        self._window = window_s
        self._rows = np.zeros((2 * window_s, len(shares)))
        past = np.asarray(history, dtype=float)[-window_s:]
        self._end = len(past)
        self._rows[: self._end] = past[:, None] * (shares / shares.sum())
        self._second = 0
        self._weights: dict[tuple[int, float], np.ndarray] = {}
        self.last: np.ndarray = self.rate(max(1, ceil(interval_s)))
        """[K] requests/s over the last interval (at time 0: of the history, zeros without one)."""

    def observe(self, observation: Observation) -> None:
        """Take in an interval (the empty observation at time 0 says nothing about load and is skipped)."""
        if observation.time_s <= 0:
            return
        start_s = observation.time_s - observation.interval_s
        for offset, counts in enumerate(observation.arrivals):
            second = int(start_s + offset + 1e-6)
            while self._second <= second:
                self._append()
            self._rows[self._end - (self._second - second)] += counts
        self.last = observation.arrivals.sum(axis=0) / observation.interval_s

    def _append(self) -> None:
        if self._end == len(self._rows):
            self._rows[: self._window] = self._rows[self._window :]
            self._end = self._window
        self._rows[self._end] = 0
        self._end += 1
        self._second += 1

    def recent(self, window_s: int) -> np.ndarray:
        """Return requests per second and class of the last ``window_s`` seconds, shape [<= window_s, K]."""
        return self._rows[max(0, self._end - min(window_s, self._window)) : self._end]

    def rate(self, window_s: int) -> np.ndarray:
        """Return the mean requests/s per class over the last ``window_s`` seconds, shape [K]."""
        rows = self.recent(window_s)
        return rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])

    def trend(self, window_s: int, horizon_s: float) -> np.ndarray:
        """Return the requests/s per class ``horizon_s`` ahead on a least-squares line over ``window_s``, shape [K]."""
        rows = self.recent(window_s)
        n = len(rows)
        if n < 2:
            return self.last
        weights = self._weights.get((n, horizon_s))
        if weights is None:
            centred = np.arange(n) + 0.5 - n / 2
            weights = 1 / n + (n / 2 + horizon_s) * centred / (centred @ centred)
            self._weights = {(n, horizon_s): weights}
        return np.maximum(weights @ rows, 0.0)

    def peak_to_median(self, window_s: int = 3600) -> float:
        """Return the busiest second over the median second of the window (``inf`` where the median is 0)."""
        total = self.recent(window_s).sum(axis=1)
        median = float(np.median(total)) if len(total) else 0.0
        return float(total.max()) / median if median else inf

    def burstiness(self, window_s: int = 3600) -> float:
        """Return (peak - mean) / peak over the window's seconds: what the founding paper's figure 6 compares."""
        total = self.recent(window_s).sum(axis=1)
        peak = float(total.max()) if len(total) else 0.0
        return 1 - float(total.mean()) / peak if peak else 0.0


class FunctionConfigurator:
    """Where a class overflows: the function pool of least memory, and so of least price, that meets the latency."""

    def __init__(self, scenario: Scenario, selector: ModelSelector) -> None:
        self.scenario = scenario
        self.selector = selector
        pools = scenario.pools
        self.pools = sorted((p for p, pool in enumerate(pools) if pool.is_function), key=lambda p: pools[p].memory_mb)

    def choose(self, k: int, model: int) -> tuple[int, int] | None:
        """Return (pool, model) for class ``k``, which ``model`` answers on VMs; ``None`` if no function is in time.

        The same model is kept where some memory runs it in time; else the cheapest that is at least as accurate, so
        that a mean-accuracy target survives overflow; else the most accurate that fits.
        """
        accuracy = self.scenario.accuracy_pct
        fitting = [(p, m) for p in self.pools for m in self.selector.feasible(k, p)]
        same = [(p, m) for p, m in fitting if m == model]
        if same:
            return same[0]
        better = [(p, m) for p, m in fitting if accuracy[m] >= accuracy[model]]
        if better:
            return min(better, key=lambda option: self.cost_usd(*option))
        return max(fitting, key=lambda option: (accuracy[option[1]], -self.cost_usd(*option))) if fitting else None

    def same(self, k: int, model: int) -> tuple[int, int] | None:
        """Return (pool, model) of least price that runs ``model`` within the SLO of class ``k``, for a cascade's stage.

        What a stage alone has of accuracy does not count. None if no function is in time.
        """
        slo_s, specs = self.scenario.classes[k].slo_s, self.scenario.pools
        fit = (p for p in self.pools if model in specs[p].models and self.selector.latency_s(p, model) <= slo_s)
        return next(((p, model) for p in fit), None)

    def cost_usd(self, pool: int, model: int, batch: int = 1) -> float:
        """Return what one warm invocation is believed to cost, dollars."""
        spec = self.scenario.pools[pool]
        return spec.usd_per_busy_hour * spec.service_s(model, batch) / 3600 + spec.usd_per_request


def functions_alone(
    scenario: Scenario, models: ModelChoice = "cheapest", cascades: bool = True, pool: str | None = None
) -> Decision | None:
    """Return the one decision that there is where all pools are functions: the cheapest way of each class, warm.

    None where there are machines, and so something to plan. A class that none serves has the quickest.

    Raises:
        InputError: a VM ``pool`` is asked for where there is none.
    """
    if not all(spec.is_function for spec in scenario.pools):
        return None
    require(pool is None, f"policy: pool={pool}: scenario {scenario.name} has functions alone")
    selector, routes = ModelSelector(scenario, models), []
    functions = FunctionConfigurator(scenario, selector)
    for k in range(len(scenario.classes)):
        able = [p for p in functions.pools if selector.serves(k, p)]
        options: list[tuple[int, Ways]] = [(p, selector.mix(k, p)) for p in able or functions.pools]
        for p in able if cascades else ():
            if found := selector.cascade(k, p, 1, 1.0, scenario.pools[p].models):
                options.append((p, ((found, 1.0),)))
        least = functions.cost_usd if able else selector.latency_s
        place, ways = min(options, key=lambda option: a_request(option[1], partial(least, option[0])))
        asked = [(way, [(place, m) for m, _ in stages_of(way)], share) for way, share in ways]
        routes.append(tuple(Route(straight(way, targets), share) for way, targets, share in asked))
    return Decision((0,) * len(scenario.pools), tuple(routes), reason="functions alone")


def straight(way: Way, targets: Sequence[tuple[int, int]]) -> tuple[Step, ...]:
    """Return the steps of a request that goes straight to functions: a (pool, model) for each model of its way."""
    steps = [Step(*target) for target in targets]
    if isinstance(way, Cascade):
        steps[0] = replace(steps[0], then=Then.IF_UNSURE, unsure_share=way.unsure_share)
    return tuple(steps)


class ResourceSelector:
    """Which VM pool serves each class, and how many machines a load needs there.

    All classes share one pool where some pool serves them all (the one of least price per request, ties to the
    smaller machine, so that machines stay busy); otherwise each class has the cheapest pool that serves it.

    Args:
        scenario: the pools.
        selector: the models per class and pool.
        market: market of the pools to choose from (default: on_demand, or spot where there are no others).
        pool: name of the one pool to use instead.
        batch_share: share of the SLOs that batches may use up (of :meth:`ModelSelector.batch`); 0: no batches. Only
            pools where a full batch at least halves the work of a request (GPUs) have any.
        own_share: the other pools batch what waits anyway, of :meth:`ModelSelector.own_batch`; 0: they do not.

    Raises:
        InputError: there is no such pool.
    """

    def __init__(
        self,
        scenario: Scenario,
        selector: ModelSelector,
        market: str | None = None,
        pool: str | None = None,
        batch_share: float = 0.0,
        own_share: float = 0.0,
    ) -> None:
        self.scenario = scenario
        self.selector = selector
        batches = [self._batch(p, batch_share, own_share) for p in range(len(scenario.pools))]
        self.batches = tuple(batch for batch, _ in batches)
        """[P] batches that the pools' machines are believed to be filled with."""
        self.batch_wait_s = tuple(wait_s for _, wait_s in batches)
        """[P] seconds that these may wait to fill."""
        names, markets = [p.name for p in scenario.pools], {p.market for p in scenario.pools}
        self.market = market or ("spot" if "spot" in markets and "on_demand" not in markets else "on_demand")
        if pool is not None:
            known = [p.name for p in scenario.pools if not p.is_function]
            require(pool in known, f"policy: pool={pool}: scenario {scenario.name} has the VM pools {', '.join(known)}")
            candidates = [names.index(pool)]
        else:
            candidates = [i for i, p in enumerate(scenario.pools) if p.market == self.market]
            what = f"scenario {scenario.name} has no {self.market} VM pool (pools: {', '.join(names)})"
            require(bool(candidates), f"policy needs one: {what}")
        self.pool_of = self._assign(candidates)
        self.mixes: tuple[Mix, ...] = tuple(selector.mix(k, p) for k, p in enumerate(self.pool_of))
        self.work_s = np.array([self._work_s(k, p) for k, p in enumerate(self.pool_of)])
        """[K] slot-seconds that a request of a class is believed to take."""
        self._machines_per_rate = np.zeros((len(names), len(self.pool_of)))
        for k, p in enumerate(self.pool_of):
            self._machines_per_rate[p, k] = self.work_s[k] / scenario.pools[p].slots

    def _batch(self, pool: int, slo_share: float, own_share: float) -> tuple[int, float]:
        spec = self.scenario.pools[pool]
        if spec.is_function:
            return 1, 0.0
        batch, wait_s = self.selector.batch(pool, slo_share)
        if all(spec.service_s(m, batch) <= batch / 2 * spec.service_s(m) for m in spec.models):
            return batch, wait_s
        return self.selector.own_batch(pool, own_share) if own_share > 0 else 1, 0.0

    def _work_s(self, k: int, pool: int) -> float:
        batch, service_s = self.batches[pool], self.scenario.pools[pool].service_s
        return a_request(self.selector.mix(k, pool), partial(service_s, batch=batch)) / batch

    def cost_usd(self, k: int, pool: int) -> float:
        """Return what a request of class ``k`` is believed to cost on busy machines of a pool, dollars."""
        spec = self.scenario.pools[pool]
        return self._work_s(k, pool) * spec.usd_per_hour / spec.slots / 3600

    def _assign(self, candidates: Sequence[int]) -> tuple[int, ...]:
        classes = range(len(self.scenario.classes))
        share = [c.share for c in self.scenario.classes]
        everything = [p for p in candidates if all(self.selector.serves(k, p) for k in classes)]
        if everything:
            mean = [sum(share[k] * self.cost_usd(k, p) for k in classes) for p in everything]
            return (self._cheapest(everything, mean),) * len(share)
        able = [[p for p in candidates if self.selector.serves(k, p)] or list(candidates) for k in classes]
        return tuple(self._cheapest(able[k], [self.cost_usd(k, p) for p in able[k]]) for k in classes)

    def _cheapest(self, pools: Sequence[int], costs: Sequence[float]) -> int:
        least = min(costs)
        ties = [p for p, cost in zip(pools, costs, strict=True) if cost <= least * (1 + 1e-9)]
        return min(ties, key=lambda p: self.scenario.pools[p].usd_per_hour)

    def load(self, rate: np.ndarray) -> np.ndarray:
        """Return the machines that ``rate`` [K] (requests/s) keeps busy in each pool, shape [P], fractional."""
        return self._machines_per_rate @ rate

    def backlog(self, queued: np.ndarray) -> np.ndarray:
        """Return the machine-seconds that waiting requests [P, K] will take in their VM pools, shape [P]."""
        return (self._machines_per_rate * queued).sum(axis=1)

    def spread(self, machines: int) -> list[int]:
        """Return so many machines in all, spread over the pools in use as the classes' stated shares load them.

        Each has one at least, where there are as many.
        """
        load = self.load(np.array([c.share for c in self.scenario.classes]))
        each = (load > 0) * int(machines >= np.count_nonzero(load))
        ends = np.rint((machines - each.sum()) * np.cumsum(load) / load.sum()).astype(int)
        return [int(n) for n in each + np.diff(ends, prepend=0)]

    def machines(self, load: np.ndarray) -> list[int]:
        """Return the least whole machines per pool that carry a load (of :meth:`load`, shape [P]), length P."""
        # The small allowance keeps a load of exactly n machines at n in floating point.
        return [
            min(ceil(x - 1e-9), pool.max_machines) for x, pool in zip(load.tolist(), self.scenario.pools, strict=True)
        ]


class Planner:
    """The four parts wired together for one run.

    Args:
        scenario: what is served on what.
        history: requests per second before the run, shape [seconds].
        interval_s: the policy's interval.
        models: how the model selector chooses.
        pool: name of the VM pool to use (default: the cheapest that serves the classes).
        keep_s: seconds that a machine stays after the load last needed it. A busy machine is never given up.
        drain_s: seconds in which machines are to work off what waits now, on top of the load (default: the time that a
            new machine takes to come up; ``inf``: waiting requests launch nothing).
        batch_share: share of the SLOs that batches may use up (see :class:`ResourceSelector`).

    Raises:
        InputError: the scenario has no pool of the kind asked for.
    """

    def __init__(
        self,
        scenario: Scenario,
        history: np.ndarray,
        interval_s: float,
        *,
        models: ModelChoice = "cheapest",
        pool: str | None = None,
        keep_s: float = 0.0,
        drain_s: float | None = None,
        batch_share: float = 0.0,
    ) -> None:
        self.scenario = scenario
        self.monitor = LoadMonitor(scenario, history, interval_s)
        self.models = ModelSelector(scenario, models)
        self.resources = ResourceSelector(scenario, self.models, pool=pool, batch_share=batch_share)
        self.functions = FunctionConfigurator(scenario, self.models)
        self.boot_horizon_s = scenario.vm.pending_s + scenario.vm.boot_s
        """Believed seconds from deciding on a machine to its first answer."""
        self._keep_s = keep_s
        self._drain_s = self.boot_horizon_s if drain_s is None else drain_s
        self._needed: list[deque[tuple[float, int]]] = [deque() for _ in scenario.pools]

    def routes(self, overflow: Sequence[Overflow]) -> tuple[tuple[Route, ...], ...]:
        """Return the routes of every class: its models on its VM pool, then a function as ``overflow`` [K] says.

        ``never``: VMs only. ``idle``: unless a slot is free. ``fits``: if it is predicted to miss its deadline on a VM,
        on arrival or, overtaken by more urgent requests, at the last moment. ``last_moment``: only then. The last
        moment is when the function's p99 still meets the deadline. A class that no function answers in time stays.

        Raises:
            InputError: overflow is asked for and the scenario has no function pool.
        """
        if any(rule != "never" for rule in overflow):
            names = ", ".join(p.name for p in self.scenario.pools)
            what = f"scenario {self.scenario.name} has no function pool to overflow to (pools: {names})"
            require(bool(self.functions.pools), f"policy needs one: {what}")
        return tuple(
            tuple(Route(self._steps(k, model, rule), share) for model, share in self.resources.mixes[k] if share > 0)
            for k, rule in enumerate(overflow)
        )

    def _steps(self, k: int, model: int, rule: Overflow) -> tuple[Step, ...]:
        pool = self.resources.pool_of[k]
        target = None if rule == "never" else self.functions.choose(k, model)
        if target is None:
            return (Step(pool, model),)
        admit = {"idle": Admit.IF_IDLE, "fits": Admit.IF_FITS}.get(rule, Admit.ALWAYS)
        return (Step(pool, model, admit, self.models.latency_s(*target)), Step(*target))

    def keep(self, observation: Observation, needed: Sequence[int]) -> tuple[int, ...]:
        """Return machine targets: what is needed now, or was within ``keep_s``; busy machines count as needed.

        While anything waits in a pool one machine stays, so that no load is too thin to be answered.
        """
        targets = []
        for p, pool in enumerate(self.scenario.pools):
            now = needed[p]
            if not pool.is_function:
                if observation.interval_s > 0:
                    busy = ceil(float(observation.busy_slot_s[p]) / (observation.interval_s * pool.slots) - 1e-6)
                    now = max(now, min(busy, int(observation.ready[p])))
                if now == 0 and observation.queued[p].any():
                    now = 1
            window = self._needed[p]
            while window and window[-1][1] <= now:
                window.pop()
            window.append((observation.time_s, now))
            while window[0][0] < observation.time_s - self._keep_s:
                window.popleft()
            targets.append(window[0][1])
        return tuple(targets)

    def decide(
        self, observation: Observation, rate: np.ndarray, routes: tuple[tuple[Route, ...], ...], headroom: float = 1.0
    ) -> Decision:
        """Return the decision that keeps machines for ``headroom`` times ``rate`` [K] and for what waits."""
        load = self.resources.load(rate) * headroom
        if self._drain_s < inf and observation.queued.any():
            load = load + self.resources.backlog(observation.queued) / max(self._drain_s, observation.interval_s)
        needed = self.resources.machines(load)
        targets = self.keep(observation, needed)
        reason = f"{float(rate.sum()):.1f} requests/s need {sum(needed)} machines, {sum(targets)} kept"
        return Decision(targets, routes, reason=reason)
