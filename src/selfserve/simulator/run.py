"""The simulator as a backend: reset, advance decision by decision, finish; and ``simulate`` for a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from selfserve.errors import InputError
from selfserve.protocol import Decision, Observation, Policy
from selfserve.scenario import LONGEST_S, SHORTEST_INTERVAL_S, Scenario
from selfserve.simulator.decisions import check_orders, check_routes
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
        least = SHORTEST_INTERVAL_S
        if not isinstance(self.interval_s, int | float) or not least <= self.interval_s <= LONGEST_S:
            raise InputError(f"interval_s = {self.interval_s!r}: right is a number of seconds from {least:g}")
        self._worlds = Worlds([scenario], [workload], self.interval_s, requests=requests, histogram=histogram)
        self._batch_limit = [self._largest_batch(p) for p in range(len(scenario.pools))]
        self.seed = 0
        self._routes: object = object()

    def _largest_batch(self, p: int) -> int:
        """Return the largest batch that every model of a pool was profiled at (rule 5.7)."""
        pool = self.scenario.pools[p]
        return min(int(np.flatnonzero(pool.service_ns[m])[-1]) for m in pool.models)

    def reset(self, seed: int = 0) -> Observation:
        """Start anew with an empty fleet and return the observation at time 0 (all zeros)."""
        self.seed = seed
        self._worlds.reset([seed])
        self.world, self._routes = self._worlds.worlds[0], object()
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
        orders = check_orders(decision, self.scenario, self._batch_limit)
        if decision.routes is not self._routes:
            routes = check_routes(decision.routes, self.scenario)
            if routes != self._routes:
                self.world.write_routes(routes)
            self._routes = routes
        return tuple(a[None] for a in orders)

    def finish(self, policy: str = "", decisions: DecisionLog | None = None) -> Result:
        """Run to the last answer and return the result."""
        self._worlds.finish()
        return collect(self, policy, decisions)

    def _observe(self) -> Observation:
        """Read the interval that just ended out of the world."""
        seen = {name: a[0] for name, a in self._worlds.observe().items()}
        return Observation(time_s=self.now_ns / 1e9, interval_s=self._worlds.span_ns / 1e9, **seen)


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
    policy.reset(scenario, workload.history)  # which may set its interval
    simulator = Simulator(scenario, workload, policy.interval_s, requests=requests)
    observation = simulator.reset(seed)
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
