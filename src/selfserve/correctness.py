"""Which answers of cascades and ensembles are right (physics rule 10.6): accuracy, and how often a stage is unsure.

A request has a difficulty z; a model is right or wrong on it independently of the others given z (a one-factor Gaussian
copula, as for correlated defaults: Vasicek 1987). Its confidence is binormal (Hanley 1988), so that the AUROC of
confidence as a detector of right answers fixes how far the two normals lie apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from selfserve.protocol import Then

if TYPE_CHECKING:
    from selfserve.protocol import Route, Step
    from selfserve.scenario import CorrectnessPhysics, Scenario

UNIT = 65536
"""Units of the probability that a stage is unsure."""
_nodes, _weights = np.polynomial.hermite_e.hermegauss(64)
_weights /= _weights.sum()


@dataclass(frozen=True)
class Combination:
    """What a route of several stages amounts to."""

    accuracy_pct: float
    pass_on: tuple[float, ...]
    """Probability that a stage passes on a request that all stages before it passed on (an ensemble: zeros)."""

    @property
    def unsure(self) -> list[int]:
        """Return ``pass_on`` in units of 1/65536, the U_g of rule 10.4."""
        return [round(UNIT * p) for p in self.pass_on]


def stages(route: Route) -> list[tuple[Step, ...]]:
    """Return the stages of a route: each ends with a step whose ``then`` is not DONE, or with the last (rule 10.1)."""
    ends = [i + 1 for i, step in enumerate(route.steps[:-1]) if step.then] + [len(route.steps)]
    return [route.steps[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def combined(scenario: Scenario, route: Route) -> float:
    """Return the accuracy of a route in percent: its model's, or that of its stages together."""
    return combination(scenario, route).accuracy_pct


def combination(scenario: Scenario, route: Route) -> Combination:
    """Return accuracy and chances of a route under a scenario's models and correctness physics."""
    lasts = [stage[-1] for stage in stages(route)]
    accuracies = tuple(scenario.models[step.model].accuracy_pct for step in lasts)
    if len(lasts) == 1:
        return Combination(accuracies[0], (0.0,))
    shares = tuple(step.unsure_share for step in lasts)
    physics = scenario.correctness
    then = lasts[0].then
    return combine(accuracies, shares, then, physics.error_correlation, physics.confidence_auroc)


@lru_cache(maxsize=4096)
def combine(
    accuracies_pct: tuple[float, ...], unsure_shares: tuple[float, ...], then: Then, correlation: float, auroc: float
) -> Combination:
    """Return accuracy and chances of several models in a row.

    Args:
        accuracies_pct: of the stages' models, each alone, percent.
        unsure_shares: share of all requests that each stage would pass on (the last one's is not read).
        then: IF_UNSURE or ALSO.
        correlation: tetrachoric correlation of two models' errors, 0 <= c < 1.
        auroc: area under the ROC curve of confidence as a detector of right answers.
    """
    accuracy = np.array(accuracies_pct)[:, None] / 100
    right = ndtr((ndtri(accuracy) - np.sqrt(correlation) * _nodes) / np.sqrt(1 - correlation))  # [stages, nodes]
    if then == Then.ALSO:
        votes = np.eye(1, len(right) + 1).T * np.ones_like(_nodes)  # [number right, nodes]
        for r in right:
            votes[1:] = votes[1:] * (1 - r) + votes[:-1] * r
            votes[0] *= 1 - r
        twice = 2 * np.arange(len(votes))
        wins = (twice > len(right)) + 0.5 * (twice == len(right))
        return Combination(100 * float(wins @ votes @ _weights), (0.0,) * len(right))
    passed, share_right, pass_on = np.ones_like(_nodes), 0.0, []
    apart = np.sqrt(2) * ndtri(auroc)
    for i, (a, r) in enumerate(zip(accuracy[:, 0], right, strict=True)):
        last = i == len(right) - 1
        limit = -np.inf if last else _threshold(a, apart, unsure_shares[i])
        share_right += float(passed * r * (1 - ndtr(limit - apart)) @ _weights)
        unsure = r * ndtr(limit - apart) + (1 - r) * ndtr(limit)
        before, passed = float(passed @ _weights), passed * unsure
        pass_on.append(float(passed @ _weights) / before if before else 0.0)
    return Combination(100 * share_right, tuple(pass_on))


@lru_cache(maxsize=4096)
def least_unsure(cheap_pct: float, better_pct: float, asked_pct: float, physics: CorrectnessPhysics) -> float:
    """Return the least share of requests that a model must pass on to a better one for both to reach ``asked_pct``.

    0 where the first reaches it alone, ``inf`` where both together do not. The accuracy need not rise steadily with the
    share: it is looked at on a grid of 1/64, then found between two points.
    """
    models, how = (cheap_pct, better_pct), (Then.IF_UNSURE, physics.error_correlation, physics.confidence_auroc)

    def excess(share: float) -> float:
        return combine(models, (share, 0.0), *how).accuracy_pct - asked_pct

    grid = np.linspace(0.0, 1.0, 65).tolist()
    reached = next((i for i, share in enumerate(grid) if excess(share) >= 0), None)
    if not reached:
        return np.inf if reached is None else 0.0
    return min(1.0, float(brentq(excess, grid[reached - 1], grid[reached], xtol=1e-6)) + 1e-6)


def _threshold(accuracy: float, apart: float, share: float) -> float:
    """Return the confidence under which so large a share of a model's answers lies."""
    if not 0 < share < 1:
        return np.inf if share >= 1 else -np.inf
    below = lambda t: accuracy * ndtr(t - apart) + (1 - accuracy) * ndtr(t) - share  # noqa: E731
    return brentq(below, ndtri(share) - 1e-9, ndtri(share) + apart + 1e-9, xtol=1e-13)
