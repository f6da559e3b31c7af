"""InferAll (Kumar, Pennsylvania State University, 2021): the most accurate model that is still in time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import numpy as np

from selfserve.planner import ResourceSelector
from selfserve.policies.base import PlannerPolicy, Range
from selfserve.policies.variants import variants
from selfserve.protocol import Admit, Decision, Observation, Route, Step
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice

OWN_SHARE = 0.5
"""Share of the SLO that a CPU's batch of waiting requests may take."""


@dataclass(kw_only=True, eq=False)
class InferAll(PlannerPolicy):
    """Each request gets the most accurate model whose latency fits what is left of its SLO, on the cheapest size.

    After the author's simulator (``main_service_simulator.py``, ``periodic_events.py``), the thesis itself was not
    found: of the configurations in time it takes the most accurate model, for it the VM size and the batch that cost
    least a request (the largest in time), and where no VM is in time a function of the memory that costs least; VMs
    follow a line through 500 s read off at the start-up delay, times a burst threshold, and go after 180 idle seconds.
    Interpreted: the accuracy that a class asks for is the floor of the ladder; a busier fleet descends it rung by rung,
    since a slower model no longer fits; what a queue has delayed until its model no longer fits is answered by the
    fastest one; the threshold is 1, no value of its author's was found. Without functions it is the author's VM-only
    mode.

    Args:
        headroom: the burst threshold, machines over what the predicted load needs.
        window_s: seconds that the line is fitted to.
    """

    name: ClassVar[str] = "inferall"
    tunable: ClassVar = {"headroom": Range(0.7, 2.0), "window_s": Range(60, 1800, log=True, integer=True)}
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.6, 0.8, 1.0, 1.2, 1.5, 2.0))
    limits: ClassVar = {"from 2 to 3600": "window_s"}
    models: ClassVar[ModelChoice] = "most_accurate"  # type: ignore[misc]
    window_s: int = 500

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Find each class's ladder of models."""
        super().reset(scenario, history)
        self.planner.resources = ResourceSelector(
            scenario, self.planner.models, pool=self.pool, batch_share=1.0, own_share=OWN_SHARE
        )
        self.routes = tuple((Route(self._ladder(k)),) for k in range(len(scenario.classes)))

    def rate(self) -> np.ndarray:
        """Return the load predicted for the time when a machine asked for now is up."""
        return self.planner.monitor.trend(self.window_s, self.planner.boot_horizon_s)

    def decide(self, observation: Observation) -> Decision:
        """Scale for the most accurate models; batches as large as the SLOs allow."""
        decision = super().decide(observation)
        resources = self.planner.resources
        return Decision(
            decision.machines, decision.routes, resources.batches, resources.batch_wait_s, reason=decision.reason
        )

    def _ladder(self, k: int) -> tuple[Step, ...]:
        """Return a step for each model in time on class ``k``'s VMs, most accurate first, then the function."""
        planner, floor_pct = self.planner, self.planner.scenario.classes[k].min_accuracy_pct
        pool = planner.resources.pool_of[k]
        rungs = variants(planner, k, [pool], floor_pct, batches={pool: planner.resources.batches[pool]})
        ladder = sorted(rungs, key=lambda v: -v.accuracy_pct)
        fastest = min(rungs, key=lambda v: v.latency_s)
        function = max(
            variants(planner, k, planner.functions.pools, floor_pct),
            key=lambda v: (v.accuracy_pct, -v.usd),
            default=None,
        )
        leave_s = function.latency_s if function else -inf
        steps = [
            Step(v.pool, v.model, Admit.IF_FITS, leave_s)
            if v is fastest
            else Step(v.pool, v.model, Admit.IF_FITS, leave_s, fastest.model, v.latency_s)
            for v in ladder
        ]
        return (
            (*steps, Step(function.pool, function.model))
            if function
            else (*steps[:-1], replace(steps[-1], admit=Admit.ALWAYS))
        )
