"""The queue of a pool (physics rule 5): one ring per class in id order, earliest deadline first across classes."""

from __future__ import annotations

from selfserve.simulator.jit import U32, kernel
from selfserve.simulator.state import (
    AREA,
    ARRIVED,
    FIRST,
    HEAD,
    IS_FUNCTION,
    LATE_MODEL,
    LATE_SLACK,
    META,
    NEVER,
    NO_SLACK,
    SLACK,
    TAIL,
    TO_POOL,
    WAITING,
    WORK,
    WORK_GONE,
    WORK_IN,
)


@kernel
def model_of(meta):
    """Return the model a waiting request holds; meta: id << 32 | quantile << 20 | model << 12 | route << 6 | step."""
    return U32((meta >> 12) & 255)


@kernel
def enqueue(w, now, p, k, arrived, meta, work):
    """Put a request into a pool's queue, in id order inside its class (one that comes back is older than others)."""
    q = w.queue[p, k]
    ring = w.ring[p, k]
    mask = ring.shape[0] - 1
    i = q[TAIL]
    q[TAIL] += 1
    q[WORK_IN] += work
    while i > q[HEAD] and ring[U32((i - 1) & mask), META] >> 32 > meta >> 32:
        ring[U32(i & mask), ARRIVED] = ring[U32((i - 1) & mask), ARRIVED]
        ring[U32(i & mask), META] = ring[U32((i - 1) & mask), META]
        ring[U32(i & mask), WORK] = ring[U32((i - 1) & mask), WORK] + work
        i -= 1
    ring[U32(i & mask), ARRIVED] = arrived
    ring[U32(i & mask), META] = meta
    before = ring[U32((i - 1) & mask), WORK] if i > q[HEAD] else q[WORK_GONE]
    ring[U32(i & mask), WORK] = before + work
    if i == q[HEAD]:
        q[FIRST] = arrived + w.slo[k]
    q[AREA] -= now
    w.held[p, model_of(meta)] += 1
    w.pool[p, WAITING] += 1


@kernel
def dequeue(w, now, p, k):
    """Take the head of a class out of a pool's queue."""
    q = w.queue[p, k]
    i = U32(q[HEAD] & (w.ring.shape[2] - 1))
    q[WORK_GONE] = w.ring[p, k, i, WORK]
    q[HEAD] += 1
    q[AREA] += now
    w.held[p, model_of(w.ring[p, k, i, META])] -= 1
    w.pool[p, WAITING] -= 1
    q[FIRST] = NEVER
    if q[HEAD] < q[TAIL]:
        q[FIRST] = w.ring[p, k, U32(q[HEAD] & (w.ring.shape[2] - 1)), ARRIVED] + w.slo[k]


@kernel
def work_ahead(w, p, deadline, ident):
    """Return the believed work waiting before (deadline, id), nanoseconds; O(classes x log of the queue)."""
    mask = w.ring.shape[2] - 1
    total = 0
    for j in range(w.slo.shape[0]):
        k = U32(j)
        low, high = w.queue[p, k, HEAD], w.queue[p, k, TAIL]
        while low < high:
            middle = (low + high) >> 1
            d = w.ring[p, k, U32(middle & mask), ARRIVED] + w.slo[k]
            if d < deadline or (d == deadline and w.ring[p, k, U32(middle & mask), META] >> 32 < ident):
                low = middle + 1
            else:
                high = middle
        if low > w.queue[p, k, HEAD]:
            total += w.ring[p, k, U32((low - 1) & mask), WORK] - w.queue[p, k, WORK_GONE]
    return total


@kernel
def current_step(w, p, k, meta):
    """Return a waiting request's (route, step) in the decision in force, and whether it exists (rule 5.2)."""
    r, s = (meta >> 6) & 63, meta & 63
    if r < w.routes[k] and s < w.n_steps[k, r] and w.step[k, r, s, TO_POOL] == p:
        return U32(r), U32(s), True
    return U32(0), U32(0), False


@kernel
def model_at_dispatch(w, now, p, k, arrived, meta):
    """Return the model that answers: the late model if too little time is left (rule 5.3; machines only)."""
    if not w.pool[p, IS_FUNCTION]:
        r, s, exists = current_step(w, p, k, meta)
        if exists and w.step[k, r, s, LATE_MODEL] >= 0 and arrived + w.slo[k] - now < w.step[k, r, s, LATE_SLACK]:
            return U32(w.step[k, r, s, LATE_MODEL])
    return model_of(meta)


@kernel
def leave_time(w, p, k, arrived, meta):
    """Return when a waiting request moves on to the next step of its route, or NEVER (rule 5.6)."""
    r, s, exists = current_step(w, p, k, meta)
    if exists and s + 1 < w.n_steps[k, r] and w.step[k, r, s, SLACK] != NO_SLACK:
        return arrived + w.slo[k] - w.step[k, r, s, SLACK]
    return NEVER


@kernel
def head_of(w, p, k):
    """Return (arrival time, meta) of the head of a class."""
    i = U32(w.queue[p, k, HEAD] & (w.ring.shape[2] - 1))
    return w.ring[p, k, i, ARRIVED], w.ring[p, k, i, META]
