"""Arrivals per slot and class, and how many of them may still be unfinished when a slot ends, from exact times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfserve.scenario import NS, Scenario, to_ns
from selfserve.simulator.arrivals import stream
from selfserve.simulator.jit import kernel
from selfserve.workload import Workload


@dataclass(frozen=True)
class SlotCounts:
    """Counts of the scored window ``[warmup, end)`` in slots from the warm-up's end (the last may be shorter)."""

    edges_ns: np.ndarray  #: int64 [T + 1] from the window's start; an arrival at a border belongs to the later slot
    arrivals: np.ndarray  #: int64 [T, K]
    unfinished: np.ndarray  #: int64 [T, K] requests that arrived before the slot's end and are due after it


@kernel
def _add(times, classes, slo, begin, span, slot, arrivals, steps):
    """Count arrivals; ``steps`` [T + 1, K] gets the changes of the unfinished count from slot to slot."""
    slots = arrivals.shape[0]
    for i in range(times.shape[0]):
        a = times[i] - begin
        if 0 <= a < span:
            k = classes[i]
            t = a // slot
            arrivals[t, k] += 1
            # An answer at the deadline is in time: unfinished at the ends of slots t .. stop - 1, which lie before it.
            stop = slots if a + slo[k] > span else (a + slo[k] - 1) // slot
            steps[t, k] += 1
            steps[stop, k] -= 1


def count_slots(workload: Workload, scenario: Scenario, seed: int, slot_s: float) -> SlotCounts:
    """Count the arrivals of a run with this workload and seed in one pass, in memory for a few minutes of them."""
    begin, slot = to_ns(scenario.warmup_s), to_ns(slot_s)
    span = max(0, workload.seconds * NS - begin)
    slots, slo = -(-span // slot), np.array([to_ns(c.slo_s) for c in scenario.classes])
    arrivals, steps = np.zeros((slots, len(slo)), np.int64), np.zeros((slots + 1, len(slo)), np.int64)
    for part in stream(workload, seed):
        _add(part.times_ns, part.class_ids, slo, begin, span, slot, arrivals, steps)
    edges = np.minimum(begin + slot * np.arange(slots + 1), begin + span)
    return SlotCounts(edges, arrivals, np.cumsum(steps, axis=0)[:-1])


def coarsen(counts: SlotCounts, n: int) -> SlotCounts:
    """Merge every n slots."""
    starts = np.arange(0, len(counts.arrivals), n)
    ends = np.append(starts[1:], len(counts.arrivals))
    edges = counts.edges_ns[np.append(starts, ends[-1:])]
    return SlotCounts(edges, np.add.reduceat(counts.arrivals, starts, axis=0), counts.unfinished[ends - 1])
