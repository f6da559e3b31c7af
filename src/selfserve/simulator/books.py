"""What is written down of a request: busy time, answers, latencies. Everything is booked when service starts."""

from __future__ import annotations

import numpy as np
from numba.cpython.unsafe.numbers import leading_zeros

from selfserve.simulator.jit import kernel
from selfserve.simulator.state import (
    BATCHED,
    BATCHES,
    BUCKET,
    BUCKET_START,
    BUSY,
    COLD,
    LOST,
    P_END,
    P_HISTOGRAM,
    P_INTERVAL,
    P_ROWS,
    P_WARMUP,
    PER_OCTAVE_BITS,
    REFUSED,
)


@kernel
def book_busy(w, p, start, finish):
    """Book a slot's work into the decision intervals that it spans and into the scored window."""
    interval, bucket, last = w.par[P_INTERVAL], w.clock[BUCKET], w.served.shape[0] - 1
    a = start - w.clock[BUCKET_START]
    b = min(finish, w.par[P_END]) - w.clock[BUCKET_START]
    if b <= interval:
        w.busy[bucket, p] += max(0, b - a)
    else:
        i = a // interval
        while i < last and (i + 1) * interval < b:
            w.busy[(bucket + i) % (last + 1), p] += (i + 1) * interval - a
            i += 1
            a = i * interval
        w.busy[(bucket + min(i, last)) % (last + 1), p] += b - a
    low = max(start, w.par[P_WARMUP])
    high = min(finish, w.par[P_END])
    if high > low:
        w.pool[p, BUSY] += high - low


@kernel
def book_answer(w, p, m, k, arrived, meta, start, finish, cold):
    """Book an answer: into the interval of its finish, the score if it arrived after the warm-up, and its row."""
    b = finish - w.clock[BUCKET_START]
    bucket = w.clock[BUCKET]
    if b > w.par[P_INTERVAL]:
        buckets = w.served.shape[0]
        bucket = (bucket + min((b - 1) // w.par[P_INTERVAL], buckets - 1)) % buckets
    latency = finish - arrived
    late = latency > w.slo[k]
    if finish <= w.par[P_END]:
        w.served[bucket, p, m, k] += 1
        if late:
            w.late[bucket, k] += 1
    if arrived >= w.par[P_WARMUP]:
        w.answered[p, m, k] += 1
        if late:
            w.scored_late[m, k] += 1
        if w.par[P_HISTOGRAM]:
            w.histogram[k, histogram_bin(latency)] += 1
        if w.window_ns[k]:
            w.windows[k, (arrived - w.par[P_WARMUP]) // w.window_ns[k], m] += 1
    if w.par[P_ROWS]:
        i = meta >> 32
        w.row_pool[i] = p
        w.row_model[i] = m
        w.row_start[i] = start
        w.row_finish[i] = finish
        w.row_cold[i] = cold


@kernel
def histogram_bin(latency):
    """Return the bin of a latency in nanoseconds: its octave and the 9 bits after its leading one."""
    octave = 54 - np.int64(leading_zeros(latency | 512))
    return (octave << PER_OCTAVE_BITS) | ((latency >> octave) & ((1 << PER_OCTAVE_BITS) - 1))


@kernel
def begin_interval(w, now):
    """Open the books of a new decision interval: the bucket of the last one becomes the furthest ahead."""
    if now > w.clock[BUCKET_START]:
        done = w.clock[BUCKET]
        w.served[done] = 0
        w.late[done] = 0
        w.busy[done] = 0
        w.clock[BUCKET] = (done + 1) % w.served.shape[0]
    w.arrivals[:] = 0
    w.pool[:, COLD] = 0
    w.pool[:, LOST] = 0
    w.pool[:, REFUSED] = 0
    w.pool[:, BATCHES] = 0
    w.pool[:, BATCHED] = 0
    w.clock[BUCKET_START] = now
