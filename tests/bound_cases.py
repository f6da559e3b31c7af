"""Exact optimum of tiny serving problems in continuous time, by trying everything: the bound must never exceed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from selfserve.scenario import NS, Pool, Scenario


@dataclass(frozen=True)
class Request:
    """A scored request of a tiny problem, seconds."""

    arrival: float
    due: float
    cls: int


def splits(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Yield every way to split items into unordered blocks."""
    if not items:
        yield []
        return
    head, rest = items[0], items[1:]
    for size in range(len(rest) + 1):
        for others in combinations(rest, size):
            left = tuple(i for i in rest if i not in others)
            for more in splits(left):
                yield [(head, *others), *more]


def orders(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Yield every way to split items into a sequence of batches."""
    if not items:
        yield []
        return
    for size in range(1, len(items) + 1):
        for first in combinations(items, size):
            for rest in orders(tuple(i for i in items if i not in first)):
                yield [first, *rest]


class Exact:
    """The optimum over all ways to put requests into batches, and batches onto functions and lives of machines.

    Machines have one slot. A life is a machine from its boot to its end; it costs its time inside the scored window,
    without the minimum bill. Requests may also be answered after the end, where machines cost nothing.
    """

    def __init__(self, scenario: Scenario, requests: Sequence[Request], end: float) -> None:
        self.scenario, self.requests, self.end = scenario, requests, end

    def service(self, pool: Pool, model: int, batch: tuple[int, ...]) -> float | None:
        """Return the service time of a batch, None if it is too large or below a floor."""
        classes, accuracy = self.scenario.classes, self.scenario.models[model].accuracy_pct
        if model not in pool.models or len(batch) > pool.max_batch:
            return None
        if any(accuracy < classes[self.requests[i].cls].min_accuracy_pct for i in batch):
            return None
        return int(pool.service_ns[model, len(batch)]) / NS

    def points(self, batch: tuple[int, ...], model: int) -> float:
        """Return accuracy over the targets, summed over the batch."""
        total = 0.0
        for i in batch:
            target = self.scenario.classes[self.requests[i].cls].mean_accuracy_pct
            total += 0.0 if target is None else self.scenario.models[model].accuracy_pct - target
        return total

    def life(self, pool: Pool, sequence: list[tuple[int, ...]], models: tuple[int, ...]) -> float | None:
        """Return the least dollars of a machine that serves these batches in this order, None if it cannot."""
        vm, begin = self.scenario.vm, self.scenario.warmup_s
        services = [self.service(pool, m, b) for b, m in zip(sequence, models, strict=True)]
        if any(s is None for s in services):
            return None
        taken = [s for s in services if s is not None]
        release = [max(self.requests[i].arrival for i in b) for b in sequence]
        due = [min(self.requests[i].due for i in b) for b in sequence]
        clock, finish = vm.pending_s + vm.boot_s, []
        for r, s, d in zip(release, taken, due, strict=True):
            clock = max(clock, r) + s
            if clock > d + 1e-12:
                return None
            finish.append(clock)

        def dollars(last: float) -> float:
            """Return the bill if the last batch ends by ``last`` and all start as late as they can."""
            start = last
            for s, d in zip(reversed(taken), reversed(due), strict=True):
                start = min(start, d) - s
            stop = min(last, due[-1])
            lived = max(0.0, min(stop, self.end) - max(start - vm.boot_s, begin))
            return lived * pool.usd_per_hour / 3600

        return min(dollars(finish[-1]), dollars(due[-1]))

    def offers(self, block: tuple[int, ...]) -> list[tuple[float, float]]:
        """Return (dollars, accuracy points) of every way to serve a block on one machine or as one function batch."""
        found = []
        models = range(len(self.scenario.models))
        for pool in self.scenario.pools:
            if pool.is_function:
                start = max(self.requests[i].arrival for i in block)
                due = min(self.requests[i].due for i in block)
                for m in models:
                    s = self.service(pool, m, block)
                    if s is not None and start + s <= due + 1e-12:
                        usd = s * pool.usd_per_busy_hour / 3600 + pool.usd_per_request
                        found.append((usd, self.points(block, m)))
                continue
            for sequence in orders(block):
                for chosen in product(models, repeat=len(sequence)):
                    usd = self.life(pool, sequence, chosen)
                    if usd is not None:
                        points = sum(self.points(b, m) for b, m in zip(sequence, chosen, strict=True))
                        found.append((usd, points))
        best: list[tuple[float, float]] = []
        for usd, points in sorted(found, key=lambda x: (x[0], -x[1])):
            if not best or points > best[-1][1] + 1e-12:
                best.append((usd, points))
        return best

    def optimum(self, drops: Sequence[int]) -> float:
        """Return the least dollars if so many requests of each class may go unanswered (``inf``: impossible)."""
        everyone = tuple(range(len(self.requests)))
        cache: dict[tuple[int, ...], list[tuple[float, float]]] = {}
        best = float("inf")
        for size in range(sum(drops) + 1):
            for gone in combinations(everyone, size):
                if any(sum(self.requests[i].cls == k for i in gone) > n for k, n in enumerate(drops)):
                    continue
                for blocks in splits(tuple(i for i in everyone if i not in gone)):
                    for block in blocks:
                        if block not in cache:
                            cache[block] = self.offers(block)
                    for choice in product(*(cache[block] for block in blocks)):
                        if sum(points for _, points in choice) >= -1e-12:
                            best = min(best, sum(usd for usd, _ in choice))
        return best
