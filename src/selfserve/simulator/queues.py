"""The queue of a pool (physics rule 5): one ring per class in id order, earliest deadline first across classes."""

from __future__ import annotations

from selfserve.simulator.jit import kernel
from selfserve.simulator.state import (
    AREA,
    ARRIVED,
    HEAD,
    IS_FUNCTION,
    LATE_MODEL,
    LATE_SLACK,
    META,
    TAIL,
    TO_POOL,
    WAITING,
    WORK,
    WORK_GONE,
    WORK_IN,
)


@kernel
def enqueue(w, now, p, k, arrived, meta, work):
    """Put a request into a pool's queue, in id order inside its class (one that comes back is older than others)."""
    q = w.queue[p, k]
    ring = w.ring[p, k]
    mask = ring.shape[0] - 1
    i = q[TAIL]
    q[TAIL] += 1
    q[WORK_IN] += work
    while i > q[HEAD] and ring[(i - 1) & mask, META] >> 32 > meta >> 32:
        ring[i & mask, ARRIVED] = ring[(i - 1) & mask, ARRIVED]
        ring[i & mask, META] = ring[(i - 1) & mask, META]
        ring[i & mask, WORK] = ring[(i - 1) & mask, WORK] + work
        i -= 1
    ring[i & mask, ARRIVED] = arrived
    ring[i & mask, META] = meta
    before = ring[(i - 1) & mask, WORK] if i > q[HEAD] else q[WORK_GONE]
    ring[i & mask, WORK] = before + work
    q[AREA] -= now
    w.held[p, (meta >> 12) & 255] += 1
    w.pool[p, WAITING] += 1


@kernel
def dequeue(w, now, p, k):
    """Take the head of a class out of a pool's queue."""
    q = w.queue[p, k]
    i = q[HEAD] & (w.ring.shape[2] - 1)
    q[WORK_GONE] = w.ring[p, k, i, WORK]
    q[HEAD] += 1
    q[AREA] += now
    w.held[p, (w.ring[p, k, i, META] >> 12) & 255] -= 1
    w.pool[p, WAITING] -= 1


@kernel
def work_ahead(w, p, deadline, ident):
    """Return the believed work waiting before (deadline, id), nanoseconds; O(classes x log of the queue)."""
    mask = w.ring.shape[2] - 1
    total = 0
    for k in range(w.slo.shape[0]):
        low, high = w.queue[p, k, HEAD], w.queue[p, k, TAIL]
        while low < high:
            middle = (low + high) >> 1
            d = w.ring[p, k, middle & mask, ARRIVED] + w.slo[k]
            if d < deadline or (d == deadline and w.ring[p, k, middle & mask, META] >> 32 < ident):
                low = middle + 1
            else:
                high = middle
        if low > w.queue[p, k, HEAD]:
            total += w.ring[p, k, (low - 1) & mask, WORK] - w.queue[p, k, WORK_GONE]
    return total


@kernel
def current_step(w, p, k, meta):
    """Return the place (route, step) in the decision in force of a waiting request, or (-1, -1) (rule 5.2)."""
    r = (meta >> 6) & 63
    s = meta & 63
    if r < w.routes[k] and s < w.n_steps[k, r] and w.step[k, r, s, TO_POOL] == p:
        return r, s
    return -1, -1


@kernel
def model_at_dispatch(w, now, p, k, arrived, meta):
    """Return the model that answers: the late model if too little time is left (rule 5.3; machines only)."""
    if not w.pool[p, IS_FUNCTION]:
        r, s = current_step(w, p, k, meta)
        if r >= 0 and w.step[k, r, s, LATE_MODEL] >= 0 and arrived + w.slo[k] - now < w.step[k, r, s, LATE_SLACK]:
            return w.step[k, r, s, LATE_MODEL]
    return (meta >> 12) & 255
