"""The model selector: which models answer a class on a pool, one each or a cheap one before a better one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import combinations, permutations
from math import inf
from typing import Literal, NamedTuple

from selfserve.correctness import least_unsure
from selfserve.scenario import RequestClass, Scenario

ModelChoice = Literal["cheapest", "single", "naive", "most_accurate"]
Mix = tuple[tuple[int, float], ...]
"""Models that answer a class, each with its share of the class's requests (shares sum to 1)."""


class Cascade(NamedTuple):
    """A way to answer: a cheap model first, and a better one what that is unsure of."""

    cheap: int
    better: int
    unsure_share: float


Way = int | Cascade
Ways = tuple[tuple[Way, float], ...]
"""As :data:`Mix`, cascades included."""


def stages_of(way: Way) -> tuple[tuple[int, float], ...]:
    """Return a way's models, each with the share of the way's requests that it is asked."""
    return ((way.cheap, 1.0), (way.better, way.unsure_share)) if isinstance(way, Cascade) else ((way, 1.0),)


def a_request(ways: Ways, takes: Callable[[int], float]) -> float:
    """Return what a request of ``ways`` takes on average, given what it ``takes`` on a model."""
    return sum(share * asked * takes(m) for way, share in ways for m, asked in stages_of(way))


P99 = 2.33
"""Standard deviations from the mean to the 99th percentile: a latency is met if the profile's p99 meets it."""
MEAN_MARGIN_PCT = 0.1
"""Points by which a mix of models aims above a mean-accuracy target. Routes are drawn per request, so the mean of n
answers from two models d points apart has a standard error of at most d / (2 sqrt(n)): 0.1 points are three of them
at 10 points and 23,000 answers a window, a few requests a second over an hour."""


def wanted_pct(c: RequestClass) -> float:
    """Return the accuracy to ask of every answer where no accuracy window is looked at: the mean if there is one."""
    return max(c.min_accuracy_pct, c.mean_accuracy_pct or 0.0)


class ModelSelector:
    """Which models answer a class on a pool.

    ``cheapest``: the least work that meets the class's floor and latency; if the class also asks for a mean accuracy,
    the cheapest static split between two models that bracket it (one alone where that is cheaper). ``single``: the same
    without splits. ``most_accurate``: the best model that meets the latency. ``naive``: constraint-unaware, every
    resident model takes an equal share, as in the founding paper's characterisation where each request gets a random
    model (section 2.3).
    """

    def __init__(self, scenario: Scenario, choice: ModelChoice = "cheapest") -> None:
        self.scenario = scenario
        self.choice = choice
        self._accuracy = scenario.accuracy_pct
        self._tail = 1 + P99 * scenario.service.spread

    def latency_s(self, pool: int, model: int, batch: int = 1) -> float:
        """Return the believed p99 service time of a batch, seconds (``inf`` where the model is not resident)."""
        return self.scenario.pools[pool].service_s(model, batch) * self._tail

    def feasible(self, k: int, pool: int) -> tuple[int, ...]:
        """Return the pool's models that meet class ``k``'s accuracy floor and, at p99, its SLO; cheapest first."""
        wanted = self.scenario.classes[k]
        fit = [
            m
            for m in self.scenario.pools[pool].models
            if self._accuracy[m] >= wanted.min_accuracy_pct and self.latency_s(pool, m) <= wanted.slo_s
        ]
        return tuple(sorted(fit, key=lambda m: (self.scenario.pools[pool].service_s(m), -self._accuracy[m])))

    def serves(self, k: int, pool: int) -> bool:
        """Return whether the pool can meet every demand of class ``k``."""
        mean = self.scenario.classes[k].mean_accuracy_pct
        fit = self.feasible(k, pool)
        return bool(fit) and (mean is None or max(self._accuracy[m] for m in fit) >= mean)

    def mix(self, k: int, pool: int) -> Mix:
        """Return the models that answer class ``k`` on ``pool`` and their shares.

        Where nothing meets both demands accuracy goes first: the fastest model above the floor, else the most accurate.
        """
        models = self.scenario.pools[pool].models
        if self.choice == "naive":
            return tuple((m, 1 / len(models)) for m in models)
        fit = self.feasible(k, pool) or self._best_effort(k, pool)
        best = max(fit, key=lambda m: self._accuracy[m])
        mean = self.scenario.classes[k].mean_accuracy_pct
        if self.choice == "most_accurate":
            return ((best, 1.0),)
        if mean is None:
            return ((fit[0], 1.0),)
        if self.choice == "single":
            return ((next((m for m in fit if self._accuracy[m] >= mean), best), 1.0),)
        return self._cheapest_mix(fit, pool, min(mean + MEAN_MARGIN_PCT, float(self._accuracy[best])))

    def raised(self, k: int, pool: int, level: float) -> Mix:
        """Return :meth:`mix` with its accuracy raised by ``level`` (0 to 1) of the way to the most accurate model."""
        mix = self.mix(k, pool)
        now = sum(share * float(self._accuracy[m]) for m, share in mix)
        fit = self.feasible(k, pool)
        best = max((float(self._accuracy[m]) for m in fit), default=now)
        return self._cheapest_mix(fit, pool, min(now + level * (best - now), best)) if level > 0 and best > now else mix

    def cascade(self, k: int, pool: int, batch: int, slo_share: float, models: Collection[int]) -> Cascade | None:
        """Return the cascade of ``models`` that meets the demands of class ``k`` with the least work, if less than one.

        Both stages, in full batches at p99, take at most ``slo_share`` of the SLO. Whichever stage answers, accuracy is
        that of the cascade (rule 10.6), so that a mean is met by each answer. A choice that is not after the least work
        has none.
        """
        if self.choice not in ("cheapest", "single"):
            return None
        room_s, spec = slo_share * self.scenario.classes[k].slo_s, self.scenario.pools[pool]
        alone = a_request(self.mix(k, pool), partial(spec.service_s, batch=batch))
        for work_s, way in self.cascades(k, pool, batch, models):
            if sum(self.latency_s(pool, m, batch) for m, _ in stages_of(way)) <= room_s:
                return way if work_s < alone else None
        return None

    def cascades(
        self, k: int, pool: int, batch: int, models: Collection[int], margin: float = 0.0
    ) -> list[tuple[float, Cascade]]:
        """Return the cascades ``margin`` points over what class ``k`` asks, least seconds of full batches first."""
        c, spec, accuracy = self.scenario.classes[k], self.scenario.pools[pool], self._accuracy.tolist()
        wanted = wanted_pct(c) + margin
        ways = [Cascade(a, b, least_unsure(accuracy[a], accuracy[b], wanted, self.scenario.correctness))
                for a, b in permutations(models, 2)]  # fmt: skip
        takes = partial(spec.service_s, batch=batch)
        return sorted((a_request(((way, 1.0),), takes), way) for way in ways if 0 < way.unsure_share < 1)

    def batch(self, pool: int, slo_share: float = 1.0) -> tuple[int, float]:
        """Return the largest batch that makes nobody late on ``pool``, and the seconds that it may wait to fill.

        It is the largest profiled batch with which each class that the pool serves is in time (within ``slo_share`` of
        its SLO) although a batch of the slowest model in use was begun just before; times at p99. (1, 0.0) if none is.
        """
        spec = self.scenario.pools[pool]
        served = [k for k in range(len(self.scenario.classes)) if self.serves(k, pool)]
        uses = {k: [m for m, share in self.mix(k, pool) if share > 0] for k in served}
        for batch in range(spec.max_batch, 0, -1):
            own = {k: self._tail * max(spec.service_s(m, batch) for m in uses[k]) for k in served}
            ahead = max(own.values(), default=inf)
            spare = [slo_share * self.scenario.classes[k].slo_s - ahead - own[k] for k in served]
            if min(spare, default=-1.0) >= 0:
                return batch, min(spare)
        return 1, 0.0

    def own_batch(self, pool: int, slo_share: float) -> int:
        """Return the largest batch that is answered within ``slo_share`` of the SLO of each class; times at p99.

        Where many workers share a queue one is free soon, whatever the others hold: only the own batch takes time.
        """
        spec = self.scenario.pools[pool]
        served = [k for k in range(len(self.scenario.classes)) if self.serves(k, pool)]
        uses = [(k, m) for k in served for m, share in self.mix(k, pool) if share > 0]
        for batch in range(spec.max_batch, 1, -1):
            own = [self._tail * spec.service_s(m, batch) / self.scenario.classes[k].slo_s for k, m in uses]
            if max(own, default=inf) <= slo_share:
                return batch
        return 1

    def _best_effort(self, k: int, pool: int) -> tuple[int, ...]:
        models = self.scenario.pools[pool].models
        above = [m for m in models if self._accuracy[m] >= self.scenario.classes[k].min_accuracy_pct]
        if above:
            return (min(above, key=lambda m: self.latency_s(pool, m)),)
        return (max(models, key=lambda m: self._accuracy[m]),)

    def _cheapest_mix(self, fit: Sequence[int], pool: int, target_pct: float) -> Mix:
        """Return the split of least work with mean accuracy ``target_pct``: two models at most (a linear program)."""
        accuracy, service = self._accuracy, self.scenario.pools[pool].service_s
        options: list[Mix] = [((m, 1.0),) for m in fit if accuracy[m] >= target_pct]
        for a, b in combinations(sorted(fit, key=lambda m: accuracy[m]), 2):
            if accuracy[a] < target_pct < accuracy[b]:
                share = float((target_pct - accuracy[a]) / (accuracy[b] - accuracy[a]))
                options.append(((a, 1 - share), (b, share)))
        return min(options, key=lambda mix: sum(share * service(m) for m, share in mix))
