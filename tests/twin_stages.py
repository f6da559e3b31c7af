"""Rule 10 of the physics page: the stages of a route, what a cascade passes on and how often its answers are right."""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from selfserve.protocol import Route, Step, Then
from selfserve.scenario import Scenario

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
WEIGHTS = WEIGHTS / math.sqrt(2 * math.pi)


def stages_of(route: Route) -> list[tuple[int, tuple[Step, ...]]]:
    """Rule 10.1: the stages, each with the number of its first step."""
    stages, first = [], 0
    for number, step in enumerate(route.steps):
        if step.then != Then.DONE or number == len(route.steps) - 1:
            stages.append((first, route.steps[first : number + 1]))
            first = number + 1
    return stages


def stage_at(route: Route, step: int) -> int:
    """The stage that a step belongs to."""
    return max(i for i, (first, _) in enumerate(stages_of(route)) if first <= step)


def is_all(route: Route, then: Then) -> bool:
    """Whether the route has several stages, one after the other by ``then`` (10.2)."""
    return len(stages_of(route)) > 1 and all(steps[-1].then == then for _, steps in stages_of(route)[:-1])


# --------------------------------------------------------------------------------------------- 10.6 correctness
@cache
def threshold(accuracy: float, share: float, gap: float) -> float:
    """The confidence under which ``share`` of all requests lie."""
    if share <= 0 or share >= 1:
        return math.copysign(math.inf, share - 0.5)

    def excess(t: float) -> float:
        return accuracy * norm.cdf(t - gap) + (1 - accuracy) * norm.cdf(t) - share

    return float(brentq(excess, -50.0, 50.0 + gap, xtol=1e-15, rtol=1e-15))


def right(accuracy: float, correlation: float) -> np.ndarray:
    """R_m at the nodes: the probability of a right answer, given the difficulty z."""
    return norm.cdf((norm.ppf(accuracy) - math.sqrt(correlation) * NODES) / math.sqrt(1 - correlation))


@cache
def cascade(
    accuracies: tuple[float, ...], shares: tuple[float, ...], correlation: float, quality: float
) -> tuple[tuple[int, ...], float]:
    """U_g of all stages but the last, in units of 1/65536, and the share of right answers.

    One share for each stage but the last; accuracies are shares of 1.
    """
    gap = math.sqrt(2) * float(norm.ppf(quality))
    reach, found, limits = np.ones_like(NODES), 0.0, []
    for accuracy, share in zip(accuracies, shares, strict=False):
        r, t = right(accuracy, correlation), threshold(accuracy, share, gap)
        passed = reach * (r * norm.cdf(t - gap) + (1 - r) * norm.cdf(t))
        found += WEIGHTS @ (reach * r * norm.sf(t - gap))
        before = WEIGHTS @ reach
        # Reading: where nothing is passed on, nothing is unsure after it.
        limits.append(round(65536 * float(WEIGHTS @ passed / before)) if before > 0 else 0)
        reach = passed
    return tuple(limits), float(found + WEIGHTS @ (reach * right(accuracies[-1], correlation)))


@cache
def ensemble(accuracies: tuple[float, ...], correlation: float) -> float:
    """The probability that more than half are right; half of them count one half."""
    rights, found = [right(accuracy, correlation) for accuracy in accuracies], np.zeros_like(NODES)
    for answers in product((True, False), repeat=len(rights)):
        value = (np.sign(2 * sum(answers) - len(answers)) + 1) / 2
        chance = np.ones_like(NODES)
        for r, answer in zip(rights, answers, strict=True):
            chance = chance * (r if answer else 1 - r)
        found += value * chance
    return float(WEIGHTS @ found)


def of_route(scenario: Scenario, route: Route) -> tuple[tuple[int, ...], float]:
    """U_g and the combined accuracy in percent of a cascade or an ensemble."""
    physics, stages = scenario.correctness, [steps for _, steps in stages_of(route)]
    accuracies = tuple(scenario.models[steps[0].model].accuracy_pct / 100 for steps in stages)
    if is_all(route, Then.ALSO):
        return (), 100 * ensemble(accuracies, physics.error_correlation)
    shares = tuple(steps[-1].unsure_share for steps in stages[:-1])
    limits, share = cascade(accuracies, shares, physics.error_correlation, physics.confidence_auroc)
    return limits, 100 * share
