"""Arrivals on their own (physics rule 3): the same times and classes that a run with this workload and seed meets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfserve.simulator.draws import U, bases, draw, exponential
from selfserve.simulator.jit import kernel
from selfserve.simulator.state import SECOND_NS

if TYPE_CHECKING:
    from selfserve.workload import Workload

ROUTE_BITS, QUANTILE_SHIFT, CLASS_SHIFT = U(0xFFF), U(12), U(24)


@dataclass(frozen=True)
class Arrivals:
    """Requests in order of arrival: time, class, service quantile (0..4095) and route bits (0..4095)."""

    times_ns: np.ndarray
    class_ids: np.ndarray
    quantile: np.ndarray
    route_bits: np.ndarray


@kernel
def spread_second(first, n, s, base, at, draws):
    """Spread n arrivals over second s by exponential spacings (rule 3.2); fills ``at`` and ``draws``."""
    total = 0
    for i in range(n):
        h = draw(base[1], first + i)
        draws[i] = h
        total += exponential(h)
        at[i] = total
    total += exponential(draw(base[2], s))
    for i in range(n):
        at[i] = s * SECOND_NS + min(np.int64(at[i] / total * 1e9), SECOND_NS - 1)


@kernel
def drawn_class(thresholds, classes, h):
    """Return the class of a request from its draw and the shares of its minute (rule 3.3)."""
    bits = np.int64((h >> CLASS_SHIFT) & U(0xFFFF))
    k = 0
    while k < classes - 1 and bits >= thresholds[k]:
        k += 1
    return k


@kernel
def _fill(first_second, counts, first_id, base, thresholds, exact, at, draws, classes):
    """Fill arrivals of consecutive seconds; ``at`` holds the exact times already if ``exact``."""
    done = 0
    for j in range(counts.shape[0]):
        s, n = first_second + j, counts[j]
        if exact:
            for i in range(done, done + n):
                draws[i] = draw(base[1], first_id + i)
        else:
            spread_second(first_id + done, n, s, base, at[done : done + n], draws[done : done + n])
        shares = thresholds[min(s // 60, thresholds.shape[0] - 1)]
        for i in range(done, done + n):
            classes[i] = drawn_class(shares, shares.shape[0], draws[i])
        done += n


def stream(workload: Workload, seed: int, chunk_s: int = 600) -> Iterator[Arrivals]:
    """Yield the arrivals of a window in chunks of whole seconds, so that memory does not grow with its length."""
    base = bases(seed)
    thresholds = np.ascontiguousarray(workload.thresholds, np.int64)
    first_id, exact = 0, workload.times_ns
    for start in range(0, workload.seconds, chunk_s):
        counts = np.ascontiguousarray(workload.counts[start : start + chunk_s], np.int64)
        n = int(counts.sum())
        at = np.empty(n, np.int64) if exact is None else np.array(exact[first_id : first_id + n], np.int64)
        draws, classes = np.empty(n, np.uint64), np.empty(n, np.int16)
        _fill(start, counts, first_id, base, thresholds, exact is not None, at, draws, classes)
        quantile = ((draws >> QUANTILE_SHIFT) & ROUTE_BITS).astype(np.int16)
        yield Arrivals(at, classes, quantile, (draws & ROUTE_BITS).astype(np.int16))
        first_id += n


def generate(workload: Workload, seed: int) -> Arrivals:
    """Return all arrivals of a window at once (memory grows with the window; see :func:`stream`)."""
    parts = list(stream(workload, seed, max(1, workload.seconds)))
    return parts[0] if parts else Arrivals(*(np.zeros(0, t) for t in (np.int64, np.int16, np.int16, np.int16)))
