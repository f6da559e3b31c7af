"""Tolerance Tiers (ISPASS'19): a cheap model answers first, and a better one what it is unsure of."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np

from selfserve.correctness import least_unsure
from selfserve.policies.base import PlannerPolicy, Range
from selfserve.policies.variants import Variant, fleet, variants
from selfserve.protocol import Decision, Observation, Route, Step, Then
from selfserve.scenario import Scenario
from selfserve.selector import ModelChoice, wanted_pct


@dataclass(kw_only=True, eq=False)
class ToleranceTiers(PlannerPolicy):
    """A class is a tier: of all single models and cascades of two, the least work that guarantees its accuracy in time.

    "One Size Does Not Fit All" (Halpern et al.): a tier states accuracy and latency, and a routing rule found
    beforehand from profiles serves it by one version of the model or by two, the accurate one only where the confidence
    of the cheap one's answer lies under a threshold. Interpreted: the threshold is chosen by the share of requests that
    it passes on, the least that meets the demand by physics rule 10.6 (in the paper from a labelled sample); a
    guarantee is a margin above the demand; both versions at p99 one after the other must meet the SLO; a mean that a
    class asks for is the tier's accuracy. The paper's running both at once and dropping one answer is left out, since
    nothing here stops a request in service. It says nothing of scaling: machines are those of the reactive baseline.

    Args:
        margin_pct: points of accuracy that a tier guarantees above the demand.
    """

    name: ClassVar[str] = "tolerance_tiers"
    tunable: ClassVar = {"headroom": Range(0.7, 2.0), "keep_s": Range(0.0, 900.0), "margin_pct": Range(0.0, 2.0)}
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.6, 0.8, 1.0, 1.2, 1.5, 2.0))
    limits: ClassVar = {"0 or more, or inf": "margin_pct"}
    models: ClassVar[ModelChoice] = "cheapest"  # type: ignore[misc]
    margin_pct: float = 0.1

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Find each tier's rule."""
        super().reset(scenario, history)
        tiers = [self._tier(k) for k in range(len(scenario.classes))]
        self.routes = tuple((Route(steps),) for steps, _ in tiers)
        self._work_s = np.array([work_s for _, work_s in tiers])

    def decide(self, observation: Observation) -> Decision:
        """Keep machines for the load of the last interval, second stages included, and for what waits."""
        self.planner.monitor.observe(observation)
        rates, pools = self.headroom * self.rate(), self.planner.resources.pool_of
        machines = fleet(self.planner, observation, rates, pools, self._work_s, self.drain_s)
        return Decision(machines, self.routes, reason=f"{float(rates.sum()):.1f} requests/s")

    def _tier(self, k: int) -> tuple[tuple[Step, ...], float]:
        """Return the steps of class ``k`` and the slot-seconds that its requests take."""
        c, pool = self.planner.scenario.classes[k], self.planner.resources.pool_of[k]
        asked = wanted_pct(c) + self.margin_pct
        every = variants(self.planner, k, [pool], 0.0)
        alone = [v for v in every if v.accuracy_pct >= min(asked, max(v.accuracy_pct for v in every))]
        options: list[tuple[tuple[Step, ...], float]] = [((Step(pool, v.model),), v.work_s) for v in alone]
        for cheap in every:
            for better in every:
                if better.work_s > cheap.work_s and cheap.latency_s + better.latency_s <= c.slo_s:
                    options += self._cascade(cheap, better, asked)
        return min(options, key=lambda option: option[1])

    def _cascade(self, cheap: Variant, better: Variant, asked: float) -> list[tuple[tuple[Step, ...], float]]:
        """Return the cascade that passes on the least that reaches ``asked``; nothing if none does."""
        share = least_unsure(cheap.accuracy_pct, better.accuracy_pct, asked, self.planner.scenario.correctness)
        if not 0 < share < inf:  # by the cheap model alone, or never
            return []
        first = Step(cheap.pool, cheap.model, then=Then.IF_UNSURE, unsure_share=share)
        return [((first, Step(better.pool, better.model)), cheap.work_s + share * better.work_s)]
