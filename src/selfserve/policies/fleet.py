"""What autoscalers that know only metrics share: a target per VM pool, kept by their own rule, and VMs alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, inf
from typing import ClassVar

import numpy as np

from selfserve.planner import Planner
from selfserve.policies.base import Limited
from selfserve.protocol import Decision, Observation, Route
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice


@dataclass(kw_only=True, eq=False)
class FleetPolicy(Limited):
    """An autoscaler of the clouds: it sees a metric of each pool, never the work that a request takes.

    Which pool and which models serve a class is not theirs to decide: both are the planner's cheapest that meet the
    class's demands, unless set. Requests wait in the pool's queue until a slot is free.

    Args:
        models: how the models of a class are chosen.
        pool: VM pool to use (default: the cheapest that serves the classes).
        ceiling: most machines, over those that the busiest minute so far kept busy (what an operator sets as maximum).
        minimum: least of what the system counts (machines, pods, replicas) in each such pool, before the ceiling.
    """

    name: ClassVar[str]
    limits: ClassVar = {"above 0": "interval_s", "1 or more, or inf": "ceiling", "0 or more": "minimum"}
    interval_s: float = 60.0
    ceiling: float = inf
    minimum: int = 1
    models: ModelChoice = "cheapest"
    pool: str | None = None
    planner: Planner = field(init=False, repr=False)
    routes: tuple[tuple[Route, ...], ...] = field(init=False, repr=False)

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Start a run."""
        self.planner = Planner(scenario, history, self.interval_s, models=self.models, pool=self.pool)
        self.routes = self.planner.routes(["never"] * len(scenario.classes))
        self.homes = sorted(set(self.planner.resources.pool_of))
        """Pools that serve a class."""
        self.targets = {p: 0 for p in self.homes}
        """Machines asked for last."""
        self._busiest = np.zeros(len(scenario.pools))
        for p in self.homes:
            self.start(p)

    def decide(self, observation: Observation) -> Decision:
        """Ask for the machines that the rule wants in each pool that serves a class."""
        self.planner.monitor.observe(observation)
        resources, spec = self.planner.resources, self.planner.scenario.pools
        self._busiest = np.maximum(self._busiest, resources.load(self.planner.monitor.rate(60)))
        for p in self.homes:
            most = spec[p].max_machines
            if self.ceiling < inf:
                most = min(most, max(1, self.least(p), ceil(self.ceiling * self._busiest[p] - 1e-6)))
            self.targets[p] = min(self.machines(p, observation), most)
        machines = tuple(self.targets.get(p, 0) for p in range(len(self.planner.scenario.pools)))
        return Decision(machines, self.routes, reason=f"{sum(machines)} machines by its own metric")

    def least(self, pool: int) -> int:
        """Return the machines of ``minimum`` pods or replicas, of which a slot holds one."""
        return ceil(self.minimum / self.slots(pool))

    def start(self, pool: int) -> None:
        """Forget what was seen of ``pool``."""

    def machines(self, pool: int, observation: Observation) -> int:
        """Return the machines wanted in ``pool``."""
        raise AssertionError(f"{type(self).__name__} has no rule")

    def slots(self, pool: int) -> int:
        """Return the slots of a machine of ``pool``."""
        return self.planner.scenario.pools[pool].slots

    def expected(self, pool: int) -> float:
        """Return the machines that the load of the last interval keeps busy: where a person would start the fleet."""
        return float(self.planner.resources.load(self.planner.monitor.last)[pool])
