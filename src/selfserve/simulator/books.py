"""What is written down of a request: busy time, answers, latencies. Everything is booked when service starts."""

from __future__ import annotations

import numpy as np
from numba.cpython.unsafe.numbers import leading_zeros

from selfserve.simulator.jit import ints, kernel, routine
from selfserve.simulator.state import PER_OCTAVE_BITS, ROW, SECOND_NS, class_of, item, pool_of


@kernel
def book_busy(w, pool, start, finish):
    """Book a slot's work into the decision intervals that it spans and into the scored window."""
    end = min(finish, w.end)
    if end <= w.until:
        ints(w.busy_now)[pool.index] += max(0, end - start)
    else:
        book_busy_ahead(w, pool, start, end)
    pool.busy += max(0, end - max(start, w.warmup))


@routine
def book_busy_ahead(w, pool, start, end):
    """Book work that goes on after the present interval."""
    a, b, last = start - w.from_ns, end - w.from_ns, w.n_buckets - 1
    busy, i = ints(w.busy_at), a // w.interval
    while i < last and (i + 1) * w.interval < b:
        busy[(w.bucket + i) % (last + 1) * w.n_pools + pool.index] += (i + 1) * w.interval - a
        i += 1
        a = i * w.interval
    busy[(w.bucket + min(i, last)) % (last + 1) * w.n_pools + pool.index] += b - a


@kernel
def bucket_of(w, finish):
    """Return the place in the books of the interval in which a later finish lies."""
    ahead = min((finish - w.from_ns - 1) // w.interval, w.n_buckets - 1)
    return (w.bucket + ahead) % w.n_buckets


@kernel
def book_answer(w, pool, m, k, arrived, ident, start, finish, cold, grade):
    """Book an answer: into the interval of its finish, the score if it arrived after the warm-up, and its row.

    ``grade``: the model whose accuracy scores, or after all models the combination of several.
    """
    c = class_of(w, k)
    latency = finish - arrived
    late = np.int64(latency > c.slo)
    cell = pool.first_cell + m * w.n_classes + k
    if finish <= w.until:
        ints(w.served_now)[cell] += 1
        ints(w.late_now)[k] += late
    elif finish <= w.end:
        bucket = bucket_of(w, finish)
        ints(w.served_at)[bucket * w.n_pools * w.n_models * w.n_classes + cell] += 1
        ints(w.late_at)[bucket * w.n_classes + k] += late
    if arrived >= w.warmup:
        ints(w.answered_at)[cell] += 1
        ints(w.scored_late_at)[k * w.n_grades + grade] += late
        if c.histogram_at:
            ints(c.histogram_at)[histogram_bin(latency)] += 1
        if c.window_ns:
            if arrived < c.window_from or arrived >= c.window_from + c.window_ns:
                c.window = (arrived - w.warmup) // c.window_ns
                c.window_from = w.warmup + c.window * c.window_ns
            ints(c.windows_at)[c.window * w.n_grades + grade] += 1
    if w.rows_at:
        row = item(w.rows_at, ident, ROW)
        row.pool, row.model, row.start, row.finish, row.cold = pool.index, m, start, finish, cold


@routine
def regrade(w, m, k, arrived, finish, grade):
    """Score an answer booked under model m by another grade: one less of that model, one more of this grade."""
    if finish <= w.end:
        bucket = w.bucket if finish <= w.until else bucket_of(w, finish)
        row = ints(w.regraded_at + 8 * (bucket * w.n_classes + k) * w.n_grades)
        row[m] -= 1
        row[grade] += 1
    if arrived >= w.warmup:
        row = ints(w.scored_regraded_at + 8 * k * w.n_grades)
        row[m] -= 1
        row[grade] += 1


@kernel
def histogram_bin(latency):
    """Return the bin of a latency in nanoseconds: its octave and the 9 bits after its leading one."""
    octave = 54 - np.int64(leading_zeros(latency | 512))
    return (octave << PER_OCTAVE_BITS) | ((latency >> octave) & ((1 << PER_OCTAVE_BITS) - 1))


@routine
def begin_interval(w, now):
    """Open the books of a new decision interval: the bucket of the last one becomes the furthest ahead."""
    cells = w.n_pools * w.n_models * w.n_classes
    if now > w.from_ns:
        clear(w.served_now, cells)
        clear(w.late_now, w.n_classes)
        clear(w.busy_now, w.n_pools)
        if w.n_combos:
            clear(w.regraded_at + 8 * w.bucket * w.n_classes * w.n_grades, w.n_classes * w.n_grades)
        w.bucket = (w.bucket + 1) % w.n_buckets
    w.served_now = w.served_at + 8 * w.bucket * cells
    w.late_now = w.late_at + 8 * w.bucket * w.n_classes
    w.busy_now = w.busy_at + 8 * w.bucket * w.n_pools
    clear(w.seen_at, w.n_seconds_seen * w.n_classes)
    for p in range(w.n_pools):
        pool = pool_of(w, p)
        pool.cold = pool.lost = pool.refused = pool.batches = pool.batched = 0
    w.from_ns, w.until = now, min(now + w.interval, w.end)
    if w.second > 0:  # arrivals of a second that began before the decision
        begun = max(0, w.second - 1 - now // SECOND_NS)
        w.seen_now = w.seen_at + 8 * w.n_classes * min(begun, w.n_seconds_seen - 1)


@kernel
def clear(address, n):
    """Set n integers to 0."""
    for i in range(n):
        ints(address)[i] = 0
