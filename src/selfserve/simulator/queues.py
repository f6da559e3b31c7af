"""The queue of a pool (physics rule 5): rings in id order, earliest deadline first across classes.

Each class has two rings: its own, at whose tail requests arrive, and one of those older than that tail, which came back
or moved here from another queue. Both sources bring theirs in id order, or nearly so, so that none has to be inserted
far from a tail, however long the queue.
"""

from __future__ import annotations

from selfserve.simulator.jit import ints, kernel
from selfserve.simulator.state import (
    NEVER,
    cascade_of,
    class_of,
    combo_of,
    model_of,
    queue_of,
    route_of,
    step_of,
    waiter_of,
)


@kernel
def enqueue(w, now, pool, k, arrived, meta, ticket):
    """Put a request into a pool's queue, by id inside its class (one that comes back is older than others).

    Where ids tie, bits 14 and up of the meta have step and quantile in the order of rule 10.3.
    """
    q, work = queue_of(pool, k), ints(pool.work_at)[model_of(meta)]
    ring = q
    if q.head < q.tail and waiter_of(q, q.tail - 1).meta >> 14 > meta >> 14:
        ring = queue_of(pool, w.n_classes + k)
        q.moved += 1
    i = ring.tail
    ring.tail += 1
    q.area -= now
    while i > ring.head and waiter_of(ring, i - 1).meta >> 14 > meta >> 14:
        before, here = waiter_of(ring, i - 1), waiter_of(ring, i)
        here.arrived, here.meta, here.work, here.ticket = before.arrived, before.meta, before.work + work, before.ticket
        i -= 1
    here = waiter_of(ring, i)
    here.arrived, here.meta, here.ticket = arrived, meta, ticket
    here.work = work + (waiter_of(ring, i - 1).work if i > ring.head else ring.work_gone)
    if i == ring.head:
        note_head(w, pool, k)
    ints(pool.held_at)[model_of(meta)] += 1
    pool.waiting += 1


@kernel
def front(w, pool, k):
    """Return the ring that the head of a class, which has one, is in."""
    q = queue_of(pool, k)
    if q.moved > 0:
        moved = queue_of(pool, w.n_classes + k)
        if q.head == q.tail or waiter_of(moved, moved.head).meta >> 14 < waiter_of(q, q.head).meta >> 14:
            return moved
    return q


@kernel
def head_of(w, pool, k):
    """Return the request at the head of a class, which has one."""
    ring = front(w, pool, k)
    return waiter_of(ring, ring.head)


@kernel
def dequeue(w, now, pool, k):
    """Take the head of a class out of a pool's queue; an empty ring begins anew, so that its memory stays near."""
    q, ring = queue_of(pool, k), front(w, pool, k)
    ring.work_gone = waiter_of(ring, ring.head).work
    q.area += now
    if ring.ring_at != q.ring_at:
        q.moved -= 1
    ints(pool.held_at)[q.model] -= 1
    pool.waiting -= 1
    ring.head += 1
    if ring.head == ring.tail:
        ring.head = ring.tail = 0
    note_head(w, pool, k)


@kernel
def note_head(w, pool, k):
    """Note what a class's head may do: its place in queue order, when it leaves or binds late, its combination."""
    q = queue_of(pool, k)
    q.first = q.order = q.leave_at = q.late_after = NEVER
    q.combo, q.unsure = -1, 0
    if q.head == q.tail and q.moved == 0:
        return
    head = head_of(w, pool, k)
    q.first, q.order, q.model = head.arrived + q.slo, head.meta >> 14, model_of(head.meta)
    r, s = head.meta & 63, (head.meta >> 26) & 63
    if r >= class_of(w, k).n_routes:
        return
    if s >= route_of(w, k, r).n_steps:
        return
    step = step_of(w, k, r, s)
    if step.pool != pool.index:
        return  # the decision in force has another step there (rule 5.2)
    q.combo = cascade_of(w, k, r)
    if q.combo >= 0:
        q.unsure = combo_of(w, q.combo).unsure[step.stage]
    if s + 1 < step.end and step.slack != -NEVER:
        q.leave_at = q.first - step.slack
    if step.late_model >= 0 and not pool.is_function:
        q.late_after, q.late_model = q.first - step.late_slack, step.late_model


@kernel
def answering_model(q, now):
    """Return the model that answers the head if it is dispatched now (rule 5.3)."""
    return q.late_model if now > q.late_after else q.model


@kernel
def work_before(q, deadline, order):
    """Return the believed work that waits in a ring before (deadline, id), nanoseconds; O(log of its length)."""
    low, high = q.head, q.tail
    if low == high:
        return 0
    last = waiter_of(q, high - 1)
    if last.arrived + q.slo < deadline:
        low = high  # the usual case: all of them are before it
    while low < high:
        middle = (low + high) >> 1
        at = waiter_of(q, middle)
        if at.arrived + q.slo < deadline or (at.arrived + q.slo == deadline and at.meta >> 14 < order):
            low = middle + 1
        else:
            high = middle
    return waiter_of(q, low - 1).work - q.work_gone if low > q.head else 0


@kernel
def work_ahead(w, pool, deadline, order):
    """Return the believed work waiting before (deadline, id), nanoseconds; O(classes x log of the queue)."""
    total = 0
    for k in range(w.n_classes):
        q = queue_of(pool, k)
        if q.first <= deadline:
            total += work_before(q, deadline, order)
            if q.moved > 0:
                total += work_before(queue_of(pool, w.n_classes + k), deadline, order)
    return total


@kernel
def next_to_leave(w, pool):
    """Return the class whose head leaves first (rule 5.6)."""
    best = 0
    for k in range(w.n_classes):
        if queue_of(pool, k).leave_at < queue_of(pool, best).leave_at:
            best = k
    return best
