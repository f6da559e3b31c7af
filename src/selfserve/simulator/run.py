"""The simulator as a backend: reset, advance decision by decision, finish; and ``simulate`` for a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from selfserve.errors import InputError
from selfserve.protocol import BOOT_AGE_BINS, Decision, Observation, Policy
from selfserve.scenario import Scenario, to_ns
from selfserve.simulator import state as s
from selfserve.simulator.fleet import running_ns
from selfserve.simulator.many import close_all, decide_all, pile, run_to, worlds_in
from selfserve.simulator.result import DecisionLog, Result, collect
from selfserve.simulator.world import ROUTES, STEPS, make_room_for_machines, make_world, write_routes

if TYPE_CHECKING:
    from selfserve.workload import Workload


class Simulator:
    """The compiled physics behind the ``Backend`` protocol.

    Args:
        scenario: what serves, at which prices, under which physics.
        workload: the arrivals of one window.
        interval_s: decision interval in seconds (the policy's own).
        requests: keep one row a request (memory then grows with the window).
        histogram: keep latency histograms (percentiles); the environment switches them off.
    """

    def __init__(
        self,
        scenario: Scenario,
        workload: Workload,
        interval_s: float | None = None,
        *,
        requests: bool = False,
        histogram: bool = True,
    ) -> None:
        self.scenario = scenario
        self.workload = workload
        self.interval_s = scenario.interval_s if interval_s is None else interval_s
        if not self.interval_s > 0:
            raise InputError(f"interval_s = {self.interval_s}: the decision interval must be positive")
        self._rows, self._histogram = requests, histogram
        self._price_ns = np.array([p.usd_per_hour / 3600e9 for p in scenario.pools])
        self._busy_price = np.array([p.usd_per_busy_hour / 3600e3 for p in scenario.pools])
        self._provisioned_price = np.array([p.usd_per_busy_hour_provisioned / 3600e3 for p in scenario.pools])
        self._request_price = np.array([p.usd_per_request for p in scenario.pools])
        self._batch_limit = [self._largest_batch(p) for p in range(len(scenario.pools))]
        self.seed = 0

    def _largest_batch(self, p: int) -> int:
        """Return the largest batch that every model of a pool was profiled at (rule 5.7)."""
        pool = self.scenario.pools[p]
        return min(int(np.flatnonzero(pool.service_ns[m])[-1]) for m in pool.models)

    def reset(self, seed: int = 0) -> Observation:
        """Start anew with an empty fleet and return the observation at time 0 (all zeros)."""
        self.seed = seed
        world = make_world(
            self.scenario, self.workload, self.interval_s, seed, rows=self._rows, histogram=self._histogram
        )
        self._hold(pile([world]))
        self.now_ns = 0
        self._routes: object = None
        self._area = np.zeros(self.world.queue.shape[:2], np.int64)
        self._spent = np.zeros(len(self.scenario.pools))
        return self._observe(0)

    def _hold(self, stack: s.World) -> None:
        """Keep a stack of one world, and that world."""
        if getattr(self, "stack", None) is not stack:
            self.stack, self.world = stack, worlds_in(stack)[0]

    @property
    def done(self) -> bool:
        """Whether the window has ended."""
        return self.now_ns >= self.world.par[s.P_END]

    def advance(self, decision: Decision) -> Observation:
        """Put a decision in force, run one interval and return what happened in it.

        Raises:
            InputError: the decision does not fit the scenario.
        """
        self._decide(decision)
        stop = min(self.now_ns + to_ns(self.interval_s), int(self.world.par[s.P_END]))
        self._hold(run_to(self.stack, stop))
        started, self.now_ns = self.now_ns, stop
        return self._observe(stop - started)

    def _decide(self, decision: Decision) -> None:
        """Check a decision, write it into the world and let what it starts start."""
        pools = len(self.scenario.pools)
        if decision.routes is not self._routes:
            check_routes(decision, self.scenario)
            write_routes(self.world, decision)
            self._routes = decision.routes
        if len(decision.machines) != pools:
            raise InputError(f"Decision.machines has {len(decision.machines)} entries: one for each of {pools} pools")
        target = np.array(decision.machines, np.int64)
        if target.min() < 0:
            raise InputError(f"Decision.machines = {decision.machines}: no target may be negative")
        for p, pool in enumerate(self.scenario.pools):
            if pool.is_function and target[p] and len(pool.models) != 1:
                raise InputError(f"pool {pool.name!r}: provisioned containers need a function pool with one model")
        sizes = decision.batch_max or (1,) * pools
        waits = decision.batch_wait_s or (0.0,) * pools
        batch_max = np.array([max(1, min(b, m)) for b, m in zip(sizes, self._batch_limit, strict=True)], np.int64)
        batch_wait = np.array([to_ns(x) for x in waits], np.int64)
        roomy = make_room_for_machines(self.world, target)
        if roomy is not self.world:
            self._hold(pile([roomy]))
        decide_all(self.stack, self.now_ns, target[None], batch_max[None], batch_wait[None])

    def finish(self, policy: str = "", decisions: DecisionLog | None = None) -> Result:
        """Run to the last answer and return the result."""
        self._hold(run_to(self.stack, s.NEVER - 1))
        close_all(self.stack)
        return collect(self, policy, decisions)

    def _spend(self) -> np.ndarray:
        """Return dollars spent so far per pool, warm-up included, shape [P]."""
        w, n = self.world, len(self.scenario.pools)
        machine = np.array([running_ns(w, p, self.now_ns) for p in range(n)]) * self._price_ns
        f = w.function
        busy = f[:, :, s.MS_ALL].sum(1) * self._busy_price
        busy = busy + f[:, :, s.MS_PROVISIONED_ALL].sum(1) * self._provisioned_price
        return machine + busy + f[:, :, s.INVOCATIONS_ALL].sum(1) * self._request_price

    def _observe(self, span_ns: int) -> Observation:
        """Read the interval that just ended out of the world."""
        w, now = self.world, self.now_ns
        queue, pool = w.queue, w.pool
        queued = queue[:, :, s.TAIL] - queue[:, :, s.HEAD]
        area = queue[:, :, s.AREA] + queued * now
        mask = w.ring.shape[2] - 1
        p, k = np.indices(queued.shape)
        oldest = w.ring[p, k, queue[:, :, s.HEAD] & mask, s.ARRIVED]
        spent = self._spend()
        bucket = w.clock[s.BUCKET]
        served = w.served[bucket].copy()
        seen = Observation(
            time_s=now / 1e9,
            interval_s=span_ns / 1e9,
            arrivals=w.arrivals.copy(),
            ready=pool[:, s.N_READY].copy(),
            booting=self._booting(),
            busy_slot_s=w.busy[bucket] / 1e9,
            queued=queued,
            queued_request_s=(area - self._area) / 1e9,
            head_age_s=np.where(queued > 0, now - oldest, 0) / 1e9,
            served=served,
            late=w.late[bucket].copy(),
            accuracy_sum=np.einsum("pmk,m->k", served, self.scenario.accuracy_pct),
            cold_starts=pool[:, s.COLD].copy(),
            lost=pool[:, s.LOST].copy(),
            refused=pool[:, s.REFUSED].copy(),
            batch_mean=pool[:, s.BATCHED] / np.maximum(1, pool[:, s.BATCHES]),
            spend_usd=spent - self._spent,
        )
        self._area, self._spent = area, spent
        return seen

    def _booting(self) -> np.ndarray:
        """Return machines not yet ready by age, shape [P, BOOT_AGE_BINS]."""
        w = self.world
        booting = np.zeros((len(self.scenario.pools), BOOT_AGE_BINS), np.int64)
        for p in np.flatnonzero(w.pool[:, s.N_BOOTING]):
            rows = w.machine[p, : w.pool[p, s.MACHINES]]
            young = rows[(rows[:, s.ALIVE] == 1) & (rows[:, s.IS_READY] == 0), s.DECIDED_AT]
            ages = np.minimum((self.now_ns - young) // 10_000_000_000, BOOT_AGE_BINS - 1)
            np.add.at(booting[p], ages, 1)
        return booting


def check_routes(decision: Decision, scenario: Scenario) -> None:
    """Raise an InputError that names what is wrong with a decision's routes."""
    if len(decision.routes) != len(scenario.classes):
        raise InputError(
            f"Decision.routes has {len(decision.routes)} entries: one for each of {len(scenario.classes)} classes"
        )
    for k, routes in enumerate(decision.routes):
        name = scenario.classes[k].name
        if not 1 <= len(routes) <= ROUTES or any(not 1 <= len(r.steps) <= STEPS for r in routes):
            raise InputError(f"class {name!r}: 1 to {ROUTES} routes of 1 to {STEPS} steps each are possible")
        if any(not r.weight >= 0 for r in routes) or not sum(r.weight for r in routes) > 0:
            raise InputError(f"class {name!r}: route weights must be at least 0 and not all 0")
        for step in (x for r in routes for x in r.steps):
            pool = scenario.pools[step.pool]
            for m in (step.model, step.late_model):
                if m is not None and m not in pool.models:
                    raise InputError(f"class {name!r}: model {m} is not resident in pool {pool.name!r}")


def simulate(
    scenario: Scenario,
    workload: Workload,
    policy: Policy,
    seed: int = 0,
    *,
    requests: bool = False,
    decisions: bool = False,
    progress: bool = False,
    name: str | None = None,
) -> Result:
    """Run a policy over a window and return its result.

    Args:
        scenario: what serves, at which prices, under which physics.
        workload: the arrivals of the window.
        policy: asked every ``policy.interval_s`` seconds, first at time 0.
        seed: seed of arrivals, services, boots and losses; policies meet the same ones.
        requests: keep one row a request in ``Result.requests``.
        decisions: keep decisions and observations in ``Result.decisions``.
        progress: show a progress bar of simulated time on stderr.
        name: the policy's name in the result.
    """
    simulator = Simulator(scenario, workload, policy.interval_s, requests=requests)
    observation = simulator.reset(seed)
    policy.reset(scenario, workload.history)
    log = DecisionLog(scenario) if decisions else None
    bar = tqdm(total=workload.seconds, unit="s", disable=not progress, desc=name or type(policy).__name__)
    while not simulator.done:
        decision = policy.decide(observation)
        observation = simulator.advance(decision)
        if log is not None:
            log.add(decision, observation)
        bar.update(round(observation.interval_s))
    bar.close()
    return simulator.finish(name or type(policy).__name__.lower(), log)
