"""A perfect forecast, executed: what no forecast can be expected to beat."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np

from selfserve.bound.plan import Plan, best_plan
from selfserve.protocol import Decision, Observation, Route
from selfserve.scenario import Scenario
from selfserve.workload import Workload

PARTS = 64  #: route weights are rounded to this many parts


def with_mean(weights: np.ndarray, accuracy: np.ndarray, wanted: float) -> np.ndarray:
    """Return weights whose mean accuracy is as near to ``wanted`` as can be, moved no further than needed.

    To raise the mean, the least accurate level hands its share to the next better one, and so on; to lower it, the most
    accurate to the next worse. Lanes of one level keep their proportions (its first lane takes all where it had none).

    Args:
        weights: [lanes], summing to 1.
        accuracy: [lanes].
        wanted: mean accuracy.
    """
    levels, level = np.unique(accuracy, return_inverse=True)
    before = np.bincount(level, weights, len(levels))
    share, missing = before.copy(), wanted - float(before @ levels)
    order = np.arange(len(levels)) if missing > 0 else np.arange(len(levels))[::-1]
    missing = abs(missing)
    for i, j in pairwise(order):
        step = abs(levels[j] - levels[i])
        moved = min(share[i], missing / step)
        share[i], share[j], missing = share[i] - moved, share[j] + moved, missing - moved * step
    first = np.zeros(len(weights))
    first[np.unique(level, return_index=True)[1]] = 1.0
    within = np.where(before[level] > 0, weights / np.where(before > 0, before, 1.0)[level], first)
    return np.asarray(within * share[level])


class Clairvoyant:
    """Executes a plan made with the window's arrivals known (``selfserve.bound.plan``).

    Machines and routes follow the plan. Only where late answers came from quicker models than planned does it look at
    what happened: it then asks for more accurate ones, so that each accuracy window still reaches its mean.
    """

    name: ClassVar[str] = "clairvoyant"

    def __init__(self, plan: Plan) -> None:
        self.plan, self.interval_s = plan, plan.slot_s

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Start a run."""
        self._classes = scenario.classes
        self._answered = np.zeros((len(scenario.classes), 2))  # answers and their accuracy sum, of the window so far
        self._bias = np.zeros(len(scenario.classes))  # accuracy of answers less that of the lanes asked for
        self._asked = np.zeros(len(scenario.classes))
        self._routes: dict[tuple[tuple[int, ...], ...], tuple[tuple[Route, ...], ...]] = {}

    def decide(self, observation: Observation) -> Decision:
        """Return the plan's decision for the interval that begins now."""
        plan = self.plan
        now = int(observation.time_s / plan.slot_s + 1e-9)
        slot = int((observation.time_s - plan.start_s) / plan.slot_s + 1e-9)
        slot = min(max(slot, 0), len(plan.arrivals) - 1)
        chosen: list[tuple[int, ...]] = []
        for k, c in enumerate(self._classes):
            weights = plan.weights[k][slot]
            if c.mean_accuracy_pct is not None:
                weights = self._corrected(observation, k, slot, weights)
            chosen.append(tuple(np.rint(weights * PARTS).astype(int).tolist()))
        if (parts := tuple(chosen)) not in self._routes:  # the same objects for the same weights
            self._routes[parts] = tuple(
                tuple(Route(lane.steps, float(n)) for lane, n in zip(lanes, mine, strict=True) if n)
                for lanes, mine in zip(plan.lanes, parts, strict=True)
            )
        machines = plan.machines[min(now, len(plan.machines) - 1)]
        return Decision(tuple(machines.tolist()), self._routes[parts], plan.batch_max, plan.batch_wait_s, "plan")

    def _corrected(self, seen: Observation, k: int, slot: int, weights: np.ndarray) -> np.ndarray:
        """Return weights that let the accuracy window still reach its mean."""
        plan, c = self.plan, self._classes[k]
        accuracy = np.array([lane.accuracy for lane in plan.lanes[k]])
        since = seen.time_s - plan.start_s
        answers = float(seen.served[:, :, k].sum())
        if answers:
            off = float(seen.accuracy_sum[k]) / answers - self._asked[k] if self._asked[k] else 0.0
            self._bias[k] += 0.1 * (off - self._bias[k])
        if since < 1e-6 or since % c.accuracy_window_s < 1e-6:
            self._answered[k] = 0.0
        else:
            self._answered[k] += answers, seen.accuracy_sum[k]
        length = max(1, round(c.accuracy_window_s / plan.slot_s))
        first = slot // length * length
        rest = plan.arrivals[slot : first + length, k]
        planned = plan.weights[k][slot : first + length] @ accuracy
        left, total = float(rest.sum()), float(plan.arrivals[first : first + length, k].sum())
        wanted = (c.mean_accuracy_pct or 0.0) + plan.margin
        missing = wanted * (self._answered[k, 0] + left) - self._answered[k, 1] - float(rest @ planned)
        aim = float(weights @ accuracy) + missing / max(left, 0.02 * total, 1.0) - min(0.0, self._bias[k])
        weights = with_mean(weights, accuracy, aim)
        self._asked[k] = float(weights @ accuracy)
        return weights


def make_clairvoyant(workload: Workload, scenario: Scenario, seed: int = 0, *, cascades: bool = True) -> Clairvoyant:
    """Return the clairvoyant policy of a window: its plan with the best of a few reserves, with ``cascades`` or not.

    Raises:
        InputError: a class that nothing can serve in time.
    """
    return Clairvoyant(best_plan(workload, scenario, seed, Clairvoyant, cascades))
