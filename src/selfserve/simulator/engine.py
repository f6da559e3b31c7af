"""The physics of PHYSICS.md as a list of events: arrival, start, finish, leave, time-out, function start.

Lazy: everything about a request is booked when it starts, so a finish needs no event. A pool's slots are the leaves of
a winner tree keyed by the time each is busy until; it answers "is a slot free?" at its root and "which is the oldest
free one?" by one walk down. Only what is rare (a queue that moves, a machine that becomes ready or is lost, a request
that leaves, a batch that is due) is an event, and each pool keeps the key of its next one.
"""

from __future__ import annotations

import numpy as np

from selfserve.simulator.arrivals import QUANTILE_SHIFT, ROUTE_BITS, class_of, spread_second
from selfserve.simulator.books import book_answer, book_busy
from selfserve.simulator.draws import draw
from selfserve.simulator.fleet import machine_ready, notices, set_target
from selfserve.simulator.functions import bill_provisioned, can_start, run_container, token_key
from selfserve.simulator.jit import U32, kernel
from selfserve.simulator.queues import dequeue, enqueue, head_of, leave_time, model_at_dispatch, model_of, work_ahead
from selfserve.simulator.slots import occupy, oldest_free, root
from selfserve.simulator.state import (
    ADMIT,
    ALIVE,
    ARRIVAL,
    ARRIVED,
    BATCH_MAX,
    BATCH_WAIT,
    BATCHED,
    BATCHES,
    BELIEVED_AT,
    BUCKET_START,
    BUFFERED,
    CURSOR,
    D_ARRIVED,
    D_CLASS,
    D_GONE,
    D_META,
    DECISION,
    DOOMED,
    DUE,
    FINISH,
    FIRST,
    GONE_AT,
    HEAD,
    IN_FLIGHT,
    IS_FUNCTION,
    IS_READY,
    IS_SPOT,
    KEY,
    LATE_MODEL,
    LATE_SLACK,
    LEAVE,
    LOSS,
    MACHINES,
    META,
    N_BOOTING,
    N_READY,
    NEVER,
    NEXT,
    NEXT_ALL,
    NEXT_ID,
    NEXT_LOSS,
    NEXT_READY,
    OF_CLASS,
    P_CONCURRENCY,
    P_EXACT,
    P_INIT,
    P_ROWS,
    P_SECONDS,
    P_WARMUP,
    READY,
    RETURN_AT,
    SECOND,
    SLOTS,
    SUM_END,
    TAIL,
    TO_MODEL,
    TO_POOL,
    WAITING,
    WARM,
)

SECOND_NS = 1_000_000_000


@kernel
def earliest_head(w, key, p, only_due, model):
    """Return the class whose head is first in queue order, or -1.

    ``only_due``: among heads that are due (and, for functions, can start); else among those with this ``model``.
    """
    best, best_deadline, best_id = -1, NEVER, NEVER
    mask = w.ring.shape[2] - 1
    for j in range(w.slo.shape[0]):
        k = U32(j)
        deadline = w.queue[p, k, FIRST]
        if deadline > best_deadline or deadline == NEVER:
            continue
        i = U32(w.queue[p, k, HEAD] & mask)
        arrived, meta = w.ring[p, k, i, ARRIVED], w.ring[p, k, i, META]
        if deadline == best_deadline and meta >> 32 > best_id:
            continue
        if only_due:
            held = model_of(meta)
            if w.held[p, held] < w.pool[p, BATCH_MAX] and ((arrived + w.pool[p, BATCH_WAIT]) << 3 | DUE) > key:
                continue
            if w.pool[p, IS_FUNCTION] and not can_start(w, key, p, held):
                continue
        elif model_at_dispatch(w, key >> 3, p, k, arrived, meta) != model:
            continue
        best, best_deadline, best_id = j, deadline, meta >> 32
    return best


@kernel
def serve(w, now, p, m, b, quantile, latest):
    """Start a batch of b on a free slot or container; return (finish, cold, lost). Rules 5.5, 7.4 and 8.2.

    ``latest``: arrival time of the youngest request in it, which decides whether a bill counts (rule 7.7).
    """
    service = max(1, (w.service[p, m, b] * w.quantile[U32(quantile)]) >> 16)
    w.pool[p, BATCHES] += 1
    w.pool[p, BATCHED] += b
    leaf = oldest_free(w, p, now)
    slot = U32(leaf)
    if leaf < 0:
        finish, cold = run_container(w, now, p, m, service, latest)
        return finish, cold, False
    if w.pool[p, IS_FUNCTION]:
        bill_provisioned(w, p, m, service, latest)
    finish = now + service
    lost = False
    if w.pool[p, IS_SPOT]:
        gone = w.machine[p, U32(leaf // w.pool[p, SLOTS]), GONE_AT]
        if finish > gone:
            finish, lost = gone, True
    occupy(w, p, slot, NEVER if lost else finish)  # a slot that dies serving is never free again
    believed_end = now + w.believed[p, m, U32(b)]
    w.pool[p, SUM_END] += believed_end - w.end_of[p, slot]
    w.end_of[p, slot] = believed_end
    book_busy(w, p, now, finish)
    return finish, 0, lost


@kernel
def doom(w, p, k, arrived, meta, gone):
    """Remember a request that its spot machine will not live to answer; it returns to the queue at ``gone``."""
    d = w.doomed[p, w.pool[p, DOOMED]]
    d[D_GONE], d[D_ARRIVED], d[D_META], d[D_CLASS] = gone, arrived, meta, k
    w.pool[p, DOOMED] += 1
    w.pool[p, RETURN_AT] = min(w.pool[p, RETURN_AT], gone)


@kernel
def start_one(w, now, p, k, m, arrived, meta):
    """Serve one request that need not queue."""
    finish, cold, lost = serve(w, now, p, m, U32(1), (meta >> 20) & 4095, arrived)
    if lost:
        doom(w, p, k, arrived, meta, finish)
    else:
        book_answer(w, p, m, k, arrived, meta, now, finish, cold)


@kernel
def start_batch(w, key, p, k):
    """Start a batch led by the head of class k (rule 5.4)."""
    now = key >> 3
    arrived, meta = head_of(w, p, k)
    m = model_at_dispatch(w, now, p, k, arrived, meta)
    b, head, latest = 0, np.int64(k), arrived
    while head >= 0:
        k = U32(head)
        w.batch[U32(b), ARRIVED], w.batch[U32(b), META] = head_of(w, p, k)
        latest = max(latest, w.batch[U32(b), ARRIVED])
        w.batch[U32(b), OF_CLASS] = head
        b += 1
        dequeue(w, now, p, k)
        head = -1
        if b < w.pool[p, BATCH_MAX] and w.pool[p, WAITING] > 0:
            head = earliest_head(w, key, p, False, m)
    finish, cold, lost = serve(w, now, p, m, U32(b), (meta >> 20) & 4095, latest)
    for j in range(b):
        i = U32(j)
        k = U32(w.batch[i, OF_CLASS])
        if lost:
            doom(w, p, k, w.batch[i, ARRIVED], w.batch[i, META], finish)
        else:
            book_answer(w, p, m, k, w.batch[i, ARRIVED], w.batch[i, META], now, finish, cold)


@kernel
def dispatch(w, key, p):
    """Start whatever of a pool can start at this key, then note when its next event comes."""
    while w.pool[p, WAITING] > 0 and (w.pool[p, IS_FUNCTION] or root(w, p) <= key >> 3):
        k = earliest_head(w, key, p, True, U32(0))
        if k < 0:
            break
        start_batch(w, key, p, U32(k))
    plan_next(w, key, p)


@kernel
def plan_next(w, key, p):
    """Note the key of a pool's next event."""
    pool = w.pool[p]
    at = min(pool[NEXT_READY] << 3 | READY, min(pool[NEXT_LOSS], pool[RETURN_AT]) << 3 | LOSS)
    if pool[WAITING] > 0:
        free = root(w, p) <= key >> 3
        if not free:
            at = min(at, root(w, p) << 3 | FINISH)
        for j in range(w.slo.shape[0]):
            k = U32(j)
            if w.queue[p, k, FIRST] == NEVER:
                continue
            arrived, meta = head_of(w, p, k)
            at = min(at, max(key >> 3, leave_time(w, p, k, arrived, meta)) << 3 | LEAVE)
            m = model_of(meta)
            if free or (pool[IS_FUNCTION] and can_start(w, key, p, m)):
                at = min(at, (arrived + pool[BATCH_WAIT]) << 3 | DUE)
            elif pool[IS_FUNCTION]:
                if w.function[p, m, IN_FLIGHT] > 0:
                    at = min(at, w.flight[p, m, 0] << 3 | FINISH)
                if w.function[p, m, IN_FLIGHT] < w.par[P_CONCURRENCY]:
                    at = min(at, token_key(w, p, m))
    note_next(w, p, at)


@kernel
def plan_entry(w, key, p, k, arrived, meta):
    """Note what one more waiting request brings forward while all slots are busy: first finish, own leave."""
    meta_first = head_of(w, p, k)[1]
    if meta_first == meta and w.queue[p, k, TAIL] - w.queue[p, k, HEAD] > 1:
        plan_next(w, key, p)  # it came in front of an older plan's head
        return
    at = min(w.pool[p, NEXT], root(w, p) << 3 | FINISH)
    if meta_first == meta:
        at = min(at, max(key >> 3, leave_time(w, p, k, arrived, meta)) << 3 | LEAVE)
    note_next(w, p, at)


@kernel
def note_next(w, p, at):
    """Set the key of a pool's next event and with it that of all pools."""
    w.pool[p, NEXT] = at
    for other in range(w.pool.shape[0]):
        at = min(at, w.pool[U32(other), NEXT])
    w.clock[NEXT_ALL] = at


@kernel
def fits(w, key, p, k, m, arrived, meta):
    """Return whether the predicted finish is within the deadline, from believed means only (rules 6.3, 6.4)."""
    pool, now = w.pool[p], key >> 3
    deadline = arrived + w.slo[k]
    if pool[IS_FUNCTION]:
        if not can_start(w, key, p, m):
            return False
        warm = root(w, p) <= now or w.function[p, m, WARM] > 0
        return now + (0 if warm else w.par[P_INIT]) + w.believed[p, m, 1] <= deadline
    slots, base, remaining, delay = pool[N_READY] * pool[SLOTS], now, 0, 0
    if root(w, p) > now:
        if slots == 0:
            if pool[N_BOOTING] == 0:
                return False
            slots = pool[SLOTS]
            base = max(now, first_believed_ready(w, p))
        else:
            remaining = max(0, pool[SUM_END] - slots * now)
        delay = (work_ahead(w, p, deadline, meta >> 32) + remaining) // slots
    b = min(pool[BATCH_MAX], w.held[p, m] + 1)
    wait = 0 if b == pool[BATCH_MAX] else pool[BATCH_WAIT]
    return base + max(delay, wait) + w.believed[p, m, U32(b)] <= deadline


@kernel
def first_believed_ready(w, p):
    """Return the earliest believed ready time of the booting machines."""
    for i in range(w.pool[p, MACHINES]):
        if w.machine[p, i, ALIVE] and not w.machine[p, i, IS_READY]:
            return w.machine[p, i, BELIEVED_AT]
    return NEVER


@kernel
def accepts(w, key, p, k, m, admit, arrived, meta):
    """Return whether a step takes a request now (rule 6)."""
    if admit == 0:
        return True
    if admit == 2:
        return fits(w, key, p, k, m, arrived, meta)
    if w.pool[p, IS_FUNCTION]:
        return w.held[p, m] < w.pool[p, BATCH_MAX] and can_start(w, key, p, m)
    return root(w, p) <= key >> 3 and w.pool[p, WAITING] < w.pool[p, BATCH_MAX]


@kernel
def admit(w, key, k, r, s, arrived, ident):
    """Offer a request to the steps of its route from step s on; the last one always accepts."""
    now = key >> 3
    last = w.n_steps[k, r] - 1
    while s < last:
        step = w.step[k, r, s]
        if accepts(w, key, U32(step[TO_POOL]), k, U32(step[TO_MODEL]), step[ADMIT], arrived, ident):
            break
        s += 1
    step = w.step[k, r, s]
    p, m = U32(step[TO_POOL]), U32(step[TO_MODEL])
    meta = ident | np.int64(m) << 12 | r << 6 | s
    pool = w.pool[p]
    b, free = pool[BATCH_MAX], root(w, p) <= now
    if b == 1 and pool[WAITING] == 0 and (free or (pool[IS_FUNCTION] and can_start(w, key, p, m))):
        if step[LATE_MODEL] >= 0 and not pool[IS_FUNCTION] and arrived + w.slo[k] - now < step[LATE_SLACK]:
            m = U32(step[LATE_MODEL])
        start_one(w, now, p, k, m, arrived, meta)
        if pool[IS_SPOT]:
            plan_next(w, key, p)
        return
    enqueue(w, now, p, k, arrived, meta, w.believed[p, m, U32(b)] // b)
    if free or pool[IS_FUNCTION]:
        dispatch(w, key, p)
    else:
        plan_entry(w, key, p, k, arrived, meta)


@kernel
def next_to_leave(w, p):
    """Return the class whose head leaves first (rule 5.6)."""
    mask = w.ring.shape[2] - 1
    best, best_at = 0, NEVER
    for j in range(w.slo.shape[0]):
        k = U32(j)
        i = w.queue[p, k, HEAD]
        if i < w.queue[p, k, TAIL]:
            at = leave_time(w, p, k, w.ring[p, k, U32(i & mask), ARRIVED], w.ring[p, k, U32(i & mask), META])
            if at < best_at:
                best, best_at = j, at
    return U32(best)


@kernel
def returns(w, now, p):
    """Put requests whose spot machine is gone now back into the queue, with their old arrival time (rule 8.2)."""
    kept, again = 0, NEVER
    for i in range(w.pool[p, DOOMED]):
        d = w.doomed[p, i]
        if d[D_GONE] <= now:
            m, b = model_of(d[D_META]), w.pool[p, BATCH_MAX]
            enqueue(w, now, p, U32(d[D_CLASS]), d[D_ARRIVED], d[D_META], w.believed[p, m, U32(b)] // b)
        else:
            again = min(again, d[D_GONE])
            for c in range(4):
                w.doomed[p, kept, c] = d[c]
            kept += 1
    w.pool[p, DOOMED] = kept
    w.pool[p, RETURN_AT] = again


@kernel
def generate_second(w, s):
    """Fill the buffer with the arrivals of second s; return how many."""
    first, n = w.clock[NEXT_ID], w.counts[s]
    if w.par[P_EXACT]:
        for i in range(n):
            w.arrive_at[i] = w.times[first + i]
            w.arrive_draw[i] = draw(w.base[1], first + i)
    else:
        spread_second(first, n, s, w.base, w.exponential, w.arrive_at, w.arrive_draw)
    return n


@kernel
def route_of(w, k, h):
    """Return the route that a request draws (rule 3.5)."""
    bits, r = np.int64(h & ROUTE_BITS), 0
    while r < w.routes[k] - 1 and bits >= w.route_cum[k, r]:
        r += 1
    return r


@kernel
def note_arrival(w, s, at, ident, k):
    """Count an arrival: for the observation, the score and its row."""
    second = min(s - w.clock[BUCKET_START] // SECOND_NS, w.arrivals.shape[0] - 1)
    w.arrivals[second, k] += 1
    if at >= w.par[P_WARMUP]:
        w.scored[k] += 1
    if w.par[P_ROWS]:
        w.row_class[ident] = k
        w.row_arrived[ident] = at


@kernel
def has_room(w, n):
    """Return whether every queue and container heap can take n arrivals beside all that is in the system."""
    waiting = n
    for p in range(w.pool.shape[0]):
        waiting += w.pool[p, WAITING] + w.pool[p, DOOMED]
    if waiting >= w.ring.shape[2] or waiting >= w.doomed.shape[1]:
        return False
    for p in range(w.pool.shape[0]):
        for m in range(w.function.shape[1]):
            if w.pool[p, IS_FUNCTION] and w.function[p, m, IN_FLIGHT] + waiting > w.flight.shape[2]:
                if w.flight.shape[2] < w.par[P_CONCURRENCY]:
                    return False
    return True


@kernel
def decide(w, now, target, batch_max, batch_wait):
    """Put a decision in force: targets and batches of all pools; each dispatches when the clock goes on (rank 3)."""
    w.clock[NEXT_ALL] = now << 3 | DECISION
    for p in range(w.pool.shape[0]):
        set_target(w, now, p, target[p])
        w.pool[p, BATCH_MAX] = batch_max[p]
        w.pool[p, BATCH_WAIT] = batch_wait[p]
        w.pool[p, NEXT] = now << 3 | DECISION


@kernel
def refill(w, stop):
    """Generate the next second's arrivals once those of the last are through; False if arrays must grow first."""
    s = w.clock[SECOND]
    if w.clock[CURSOR] < w.clock[BUFFERED] or s >= w.par[P_SECONDS] or s * SECOND_NS >= stop:
        return True
    if not has_room(w, w.counts[s]):
        return False
    w.clock[BUFFERED] = generate_second(w, s)
    w.clock[CURSOR] = 0
    w.clock[SECOND] = s + 1
    return True


@kernel
def advance(w, stop):
    """Let happen, in order, all that is due before a decision at ``stop`` (ns); False if arrays must grow first."""
    while refill(w, stop):
        s = w.clock[SECOND] - 1
        more = w.clock[SECOND] < w.par[P_SECONDS] and w.clock[SECOND] * SECOND_NS < stop
        while True:
            i = w.clock[CURSOR]
            at = NEVER
            if i < w.clock[BUFFERED]:
                at = w.arrive_at[U32(i)]
            elif more:
                at = w.clock[SECOND] * SECOND_NS - 1  # what comes later waits for that second's arrivals
            limit = min(at << 3 | ARRIVAL, stop << 3 | DECISION)
            p, k, r, step, arrived, ident = -1, U32(0), 0, -1, at, 0
            if w.clock[NEXT_ALL] < limit:
                p = 0
                while w.pool[p, NEXT] != w.clock[NEXT_ALL]:
                    p += 1
                rank = w.clock[NEXT_ALL] & 7
                key = max(w.clock[KEY], w.clock[NEXT_ALL])  # a key in the past happens at once (rule 1.3)
                if rank == READY:
                    machine_ready(w, key >> 3, p)
                elif rank == LOSS:
                    notices(w, key >> 3, p)
                    returns(w, key >> 3, U32(p))
                elif rank == LEAVE:
                    k = next_to_leave(w, U32(p))
                    arrived, meta = head_of(w, U32(p), k)
                    r, step, ident = (meta >> 6) & 63, (meta & 63) + 1, meta & ~0xFFFFF
                    dequeue(w, key >> 3, U32(p), k)
            elif i < w.clock[BUFFERED] and at < stop:
                h = w.arrive_draw[U32(i)]
                k = U32(class_of(w.thresholds, s, h))
                key, r, step, ident = at << 3 | ARRIVAL, route_of(w, k, h), 0, w.clock[NEXT_ID]
                note_arrival(w, s, at, ident, k)
                ident = ident << 32 | np.int64((h >> QUANTILE_SHIFT) & ROUTE_BITS) << 20
                w.clock[NEXT_ID] += 1
                w.clock[CURSOR] = i + 1
            else:
                break
            w.clock[KEY] = key
            if step >= 0:
                admit(w, key, k, r, step, arrived, ident)
            if p >= 0:
                dispatch(w, key, U32(p))
        if i < w.clock[BUFFERED] or not more:
            return True
    return False
