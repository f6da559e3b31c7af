"""The simulator as a backend: reset, advance decision by decision, finish; and ``simulate`` for a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from selfserve.correctness import stages
from selfserve.errors import InputError
from selfserve.protocol import Decision, Observation, Policy, Route
from selfserve.scenario import Scenario, to_ns
from selfserve.simulator import state as s
from selfserve.simulator.many import Worlds
from selfserve.simulator.result import DecisionLog, Result, collect

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
        self._worlds = Worlds([scenario], [workload], self.interval_s, requests=requests, histogram=histogram)
        self._batch_limit = [self._largest_batch(p) for p in range(len(scenario.pools))]
        self.seed = 0
        self._routes: object = None

    def _largest_batch(self, p: int) -> int:
        """Return the largest batch that every model of a pool was profiled at (rule 5.7)."""
        pool = self.scenario.pools[p]
        return min(int(np.flatnonzero(pool.service_ns[m])[-1]) for m in pool.models)

    def reset(self, seed: int = 0) -> Observation:
        """Start anew with an empty fleet and return the observation at time 0 (all zeros)."""
        self.seed = seed
        self._worlds.reset([seed])
        self.world, self._routes = self._worlds.worlds[0], None
        return self._observe()

    @property
    def now_ns(self) -> int:
        """Simulated time, nanoseconds."""
        return self._worlds.now_ns

    @property
    def done(self) -> bool:
        """Whether the window has ended."""
        return self.now_ns >= self._worlds.end_ns

    def advance(self, decision: Decision) -> Observation:
        """Put a decision in force, run one interval and return what happened in it.

        Raises:
            InputError: the decision does not fit the scenario.
        """
        self._worlds.advance(*self._orders(decision))
        return self._observe()

    def _orders(self, decision: Decision) -> tuple[np.ndarray, ...]:
        """Check a decision and write its routes; return targets, largest batches and waits (ns), each [1, P]."""
        pools = len(self.scenario.pools)
        if decision.routes is not self._routes:
            check_routes(decision, self.scenario)
            self.world.write_routes(decision)
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
        return target[None], batch_max[None], batch_wait[None]

    def finish(self, policy: str = "", decisions: DecisionLog | None = None) -> Result:
        """Run to the last answer and return the result."""
        self._worlds.finish()
        return collect(self, policy, decisions)

    def _observe(self) -> Observation:
        """Read the interval that just ended out of the world."""
        seen = {name: a[0] for name, a in self._worlds.observe().items()}
        return Observation(time_s=self.now_ns / 1e9, interval_s=self._worlds.span_ns / 1e9, **seen)


def check_routes(decision: Decision, scenario: Scenario) -> None:
    """Raise an InputError that names what is wrong with a decision's routes."""
    if len(decision.routes) != len(scenario.classes):
        raise InputError(
            f"Decision.routes has {len(decision.routes)} entries: one for each of {len(scenario.classes)} classes"
        )
    for k, routes in enumerate(decision.routes):
        name = scenario.classes[k].name
        if not 1 <= len(routes) <= s.ROUTES or any(not 1 <= len(r.steps) <= s.STEPS for r in routes):
            raise InputError(f"class {name!r}: 1 to {s.ROUTES} routes of 1 to {s.STEPS} steps each are possible")
        if any(not r.weight >= 0 for r in routes) or not sum(r.weight for r in routes) > 0:
            raise InputError(f"class {name!r}: route weights must be at least 0 and not all 0")
        for route in routes:
            check_stages(route, name)
        for step in (x for r in routes for x in r.steps):
            pool = scenario.pools[step.pool]
            for m in (step.model, step.late_model):
                if m is not None and m not in pool.models:
                    raise InputError(f"class {name!r}: model {m} is not resident in pool {pool.name!r}")


def check_stages(route: Route, name: str) -> None:
    """Raise an InputError that names what is wrong with a route's stages (rule 10.2)."""
    parts = stages(route)
    kinds = {step.then for step in route.steps[:-1] if step.then}
    if route.steps[-1].then:
        raise InputError(f"class {name!r}: the last step of a route cannot say then={route.steps[-1].then.name}")
    if len(kinds) > 1:
        raise InputError(f"class {name!r}: a route's stages are all IF_UNSURE or all ALSO, not both")
    if any(not 0 <= step.unsure_share <= 1 for step in route.steps):
        raise InputError(f"class {name!r}: unsure_share must lie between 0 and 1")
    if len(parts) > 1 and any(len({step.model for step in part}) > 1 for part in parts):
        raise InputError(f"class {name!r}: all steps of a stage must name one model")
    if len(parts) > 1 and any(step.late_model is not None for step in route.steps):
        raise InputError(f"class {name!r}: a route of several stages cannot have a late model")


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
