"""Function containers (physics rule 7): in flight, warm, cold, tokens, bills."""

from __future__ import annotations

from selfserve.simulator.jit import ints, kernel
from selfserve.simulator.slots import free
from selfserve.simulator.state import DUE, function_of


@kernel
def settle(w, now, lag, f):
    """Move containers that have finished from the heap of those in flight to the stack of warm ones."""
    heap, warm = ints(f.flight_at), ints(f.warm_at)
    while f.in_flight > 0 and heap[0] + lag <= now:
        warm[f.warm] = heap[0]
        f.warm += 1
        f.in_flight -= 1
        n = f.in_flight
        last = heap[n]
        i = 0
        while 2 * i + 1 < n:
            c = 2 * i + 1
            if c + 1 < n and heap[c + 1] < heap[c]:
                c += 1
            if heap[c] >= last:
                break
            heap[i] = heap[c]
            i = c
        heap[i] = last
    if f.warm > 0 and warm[f.warm - 1] + w.keep_alive <= now:
        f.warm = 0  # the most recently used one has expired, hence all have


@kernel
def token_key(w, f):
    """Return the key from which a new container may be created."""
    return (f.tat - (w.burst - 1) * w.token_ns) << 3 | DUE


@kernel
def can_start(w, key, pool, m):
    """Return whether a function can take a batch now: provisioned slot free, warm container, or a new one allowed."""
    now = key >> 3
    if free(pool, now):
        return True
    f = function_of(pool, m)
    settle(w, now, pool.lag, f)
    return f.in_flight < w.concurrency and (f.warm > 0 or token_key(w, f) <= key)


@kernel
def run_container(w, now, pool, m, service, latest):
    """Serve on a warm or a new container; return (finish, cold). The caller has checked ``can_start``."""
    f = function_of(pool, m)
    cold = 0
    if f.warm > 0:
        f.warm -= 1
    else:
        cold = 1
        f.tat = max(f.tat, now) + w.token_ns
        service += w.init
        pool.cold += 1
        if latest >= w.warmup:
            f.colds += 1
    finish = now + service
    heap, i = ints(f.flight_at), f.in_flight
    f.in_flight += 1
    while i > 0 and heap[(i - 1) >> 1] > finish:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = finish
    ms = (service + 999_999) // 1_000_000
    f.ms_all += ms
    f.invocations_all += 1
    if latest >= w.warmup:
        f.ms += ms
        f.invocations += 1
    return finish, cold


@kernel
def bill_provisioned(w, pool, m, service, latest):
    """Bill an invocation that ran on a provisioned container."""
    f = function_of(pool, m)
    ms = (service + 999_999) // 1_000_000
    f.ms_provisioned_all += ms
    f.invocations_all += 1
    if latest >= w.warmup:
        f.ms_provisioned += ms
        f.invocations += 1
