"""Clipper (NSDI'17): batches as large as the latency objective allows, found by trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from selfserve.errors import require
from selfserve.planner import Planner, peak_minute_rate
from selfserve.policies.base import Choice, Limited, Range
from selfserve.protocol import Decision, Observation
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice


@dataclass(kw_only=True, eq=False)
class Clipper(Limited):
    """One model a class on a given fleet; batches grow by one and back off by a tenth when answers come too late.

    NSDI'17 section 4.3.1: the largest batch of a model container is raised by a fixed amount until the latency passes
    the objective, and then cut by 10%, far less than TCP does, since the best size hardly moves; 4.3.2: under light
    load a batch may wait a little to fill (2 ms in its figure 5). Clipper serves and does not scale: the fleet is
    given, here as for ``static`` (the busiest minute, in full batches where these at least halve the work), or by
    reaction to the last ten seconds, as Cocktail's authors had to add a scaler for their comparison. Interpreted: the
    fixed amount (one; the paper does not say), once a second; an objective is passed if more than ``miss_share`` of a
    pool's answers in that second are late, queueing included, unless more requests wait than one round of batches takes
    away: then the fleet is short, which smaller batches would make worse, and the size goes on growing. A pool, not a
    container, has a batch size, since that is what can be set.

    Args:
        increase: added to the largest batch after a second in time.
        back_off: share that is cut after a miss.
        miss_share: share of late answers that is a miss.
        wait_s: longest wait of a batch that is not full, seconds.
        scaling: where machines come from: static or reactive.
        headroom: machines over what the load needs.
        machines: size of the static fleet, overriding the rule.
        peak_rate: requests/s over the busiest minute of the trace to be served (hindsight, as for ``static``).
        models: how the models of a class are chosen.
        pool: VM pool to use (default: the cheapest that serves the classes).
    """

    name: ClassVar[str] = "clipper"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        "increase": Range(0.2, 8.0, log=True),
        "back_off": Range(0.02, 0.6, log=True),
        "miss_share": Range(0.0, 0.1),
        "wait_s": Range(0.0, 0.1),
        "headroom": Range(0.4, 1.6),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.4))
    limits: ClassVar = {
        "above 0": "interval_s",
        "0 or more": "increase wait_s headroom machines peak_rate",
        "from 0 to 1": "back_off miss_share",
    }
    interval_s: float = 1.0
    increase: float = 1.0
    back_off: float = 0.1
    miss_share: float = 0.01
    wait_s: float = 0.002
    scaling: Literal["static", "reactive"] = "static"
    headroom: float = 1.0
    machines: int | None = None
    peak_rate: float | None = None
    models: ModelChoice = "single"
    pool: str | None = None

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Choose the static fleet, and start every pool at batches of one."""
        planner = Planner(
            scenario, history, self.interval_s, models=self.models, pool=self.pool, keep_s=180.0, batch_share=1.0
        )
        self.planner, pool_of = planner, planner.resources.pool_of
        routes = planner.routes(["never"] * len(scenario.classes))
        peak = peak_minute_rate(history) if self.peak_rate is None else self.peak_rate
        shares = np.array([c.share for c in scenario.classes])
        fleet = planner.resources.machines(planner.resources.load(self.headroom * peak * shares / shares.sum()))
        if self.machines is not None:
            fleet = planner.resources.spread(self.machines)
        elif self.scaling == "static":
            wanted = "give machines=N, peak_rate=REQUESTS_PER_S or scaling=reactive"
            known = self.peak_rate is not None or len(history) > 0
            require(known, f"policy clipper: no history before the window to size the fleet from: {wanted}")
        waits = tuple(0.0 if pool.is_function else self.wait_s for pool in scenario.pools)
        self._decision = Decision(tuple(fleet), routes, (1,) * len(fleet), waits)
        self._size = {p: 1.0 for p in sorted(set(pool_of))}

    def decide(self, observation: Observation) -> Decision:
        """Move each pool's largest batch by what the last second showed."""
        self.planner.monitor.observe(observation)
        for p, size in self._size.items():
            self._size[p] = self._moved(p, size, observation)
        batches = tuple(int(self._size.get(p, 1)) for p in range(len(self._decision.machines)))
        fleet = self._decision.machines
        if self.scaling == "reactive" and self.machines is None:
            rate = self.planner.monitor.rate(10)
            fleet = self.planner.decide(observation, rate, self._decision.routes, self.headroom).machines
        return replace(self._decision, machines=fleet, batch_max=batches, reason=f"batches {batches}")

    def _moved(self, pool: int, size: float, observation: Observation) -> float:
        classes = [k for k, p in enumerate(self.planner.resources.pool_of) if p == pool]
        answers = float(observation.served[pool][:, classes].sum())
        spec = self.planner.scenario.pools[pool]
        if answers and float(observation.late[classes].sum()) > self.miss_share * answers:
            round_of_batches = int(size) * spec.slots * int(observation.ready[pool])
            if int(observation.queued[pool].sum()) <= round_of_batches:
                return max(1.0, size * (1 - self.back_off))
        return min(size + self.increase, float(spec.max_batch)) if answers else size
