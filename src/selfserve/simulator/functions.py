"""Function containers (physics rule 7): in flight, warm, cold, tokens, bills."""

from __future__ import annotations

from selfserve.simulator.books import book_busy
from selfserve.simulator.jit import kernel
from selfserve.simulator.slots import root
from selfserve.simulator.state import (
    COLD,
    COLDS,
    DUE,
    IN_FLIGHT,
    INVOCATIONS,
    INVOCATIONS_ALL,
    MS,
    MS_ALL,
    MS_PROVISIONED,
    MS_PROVISIONED_ALL,
    P_BURST,
    P_CONCURRENCY,
    P_INIT,
    P_KEEP_ALIVE,
    P_TOKEN_NS,
    P_WARMUP,
    TAT,
    WARM,
)


@kernel
def settle(w, now, p, m):
    """Move containers that have finished from the heap of those in flight to the stack of warm ones."""
    heap, f = w.flight[p, m], w.function[p, m]
    while f[IN_FLIGHT] > 0 and heap[0] <= now:
        w.warm[p, m, f[WARM]] = heap[0]
        f[WARM] += 1
        f[IN_FLIGHT] -= 1
        n = f[IN_FLIGHT]
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
    if f[WARM] > 0 and w.warm[p, m, f[WARM] - 1] + w.par[P_KEEP_ALIVE] <= now:
        f[WARM] = 0  # the most recently used one has expired, hence all have


@kernel
def token_key(w, p, m):
    """Return the key from which a new container may be created."""
    at = w.function[p, m, TAT] - (w.par[P_BURST] - 1) * w.par[P_TOKEN_NS]
    return at << 3 | DUE


@kernel
def can_start(w, key, p, m):
    """Return whether a function can take a batch now: provisioned slot free, warm container, or a new one allowed."""
    now = key >> 3
    if root(w, p) <= now:
        return True
    settle(w, now, p, m)
    f = w.function[p, m]
    return f[IN_FLIGHT] < w.par[P_CONCURRENCY] and (f[WARM] > 0 or token_key(w, p, m) <= key)


@kernel
def run_container(w, now, p, m, service, latest):
    """Serve on a warm or a new container; return (finish, cold). The caller has checked ``can_start``."""
    f = w.function[p, m]
    cold = 0
    if f[WARM] > 0:
        f[WARM] -= 1
    else:
        cold = 1
        f[TAT] = max(f[TAT], now) + w.par[P_TOKEN_NS]
        service += w.par[P_INIT]
        w.pool[p, COLD] += 1
        if latest >= w.par[P_WARMUP]:
            f[COLDS] += 1
    finish = now + service
    heap = w.flight[p, m]
    i = f[IN_FLIGHT]
    f[IN_FLIGHT] += 1
    while i > 0 and heap[(i - 1) >> 1] > finish:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = finish
    ms = (service + 999_999) // 1_000_000
    f[MS_ALL] += ms
    f[INVOCATIONS_ALL] += 1
    if latest >= w.par[P_WARMUP]:
        f[MS] += ms
        f[INVOCATIONS] += 1
    book_busy(w, p, now, finish)
    return finish, cold


@kernel
def bill_provisioned(w, p, m, service, latest):
    """Bill an invocation that ran on a provisioned container."""
    f = w.function[p, m]
    ms = (service + 999_999) // 1_000_000
    f[MS_PROVISIONED_ALL] += ms
    f[INVOCATIONS_ALL] += 1
    if latest >= w.par[P_WARMUP]:
        f[MS_PROVISIONED] += ms
        f[INVOCATIONS] += 1
