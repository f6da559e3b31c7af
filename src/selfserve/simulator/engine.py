"""The physics of PHYSICS.md as a list of events: arrival, start, finish, leave, time-out, function start.

Lazy: everything about a request is booked when it starts, so a finish needs no event. A pool's slots are the leaves of
a winner tree keyed by the time each is busy until; it answers "is a slot free?" at its root and "which is the oldest
free one?" by one walk down. Only what is rare (a queue that moves, a machine that becomes ready or is lost, a request
that leaves, a batch that is due) is an event, and each pool keeps the key of its next one.
"""

from __future__ import annotations

import numpy as np

from selfserve.simulator import state as s
from selfserve.simulator.arrivals import QUANTILE_SHIFT, ROUTE_BITS, drawn_class, spread_second
from selfserve.simulator.books import book_answer, book_busy
from selfserve.simulator.draws import draw
from selfserve.simulator.fleet import first_believed_ready, machine_ready, notices, set_target
from selfserve.simulator.functions import bill_provisioned, can_start, run_container, token_key
from selfserve.simulator.jit import ints, item, kernel, naturals, routine, shorts
from selfserve.simulator.queues import answering_model, dequeue, enqueue, head_of, next_to_leave, note_head, work_ahead
from selfserve.simulator.slots import free, occupy, oldest_free, root
from selfserve.simulator.stages import close_ticket, copy, join, next_stage, pop_onward, serve_stage, ticket_of
from selfserve.simulator.state import NEVER, SECOND_NS, class_of, combo_of, function_of, pool_of, queue_of, route_of


# ------------------------------------------------------------------------------------------------------------- starts
@kernel
def serve(w, now, pool, m, b, quantile, latest):
    """Start a batch of b on a free slot or container; return (finish, cold, lost). Rules 5.5, 7.4 and 8.2.

    ``latest``: arrival time of the youngest request in it, which decides whether a bill counts (rule 7.7).
    """
    cell = m * pool.width + b
    service = max(1, (ints(pool.service_at)[cell] * shorts(w.service_at)[quantile]) >> 16)
    pool.batches += 1
    pool.batched += b
    slot = oldest_free(pool, now - pool.lag)
    if slot < 0:
        finish, cold = run_container(w, now, pool, m, service, latest)
        book_busy(w, pool, now, finish)
        return finish, cold, False
    if pool.is_function:
        bill_provisioned(w, pool, m, service, latest)
    finish, lost = now + service, False
    if pool.is_spot:
        gone = s.machine_of(pool, slot // pool.slots).gone_at
        if finish > gone:
            finish, lost = gone, True
    occupy(pool, slot, NEVER if lost else finish)  # a slot that dies serving is never free again
    believed_end = now + ints(pool.believed_at)[cell]
    pool.sum_end += believed_end - ints(pool.end_of_at)[slot]
    ints(pool.end_of_at)[slot] = believed_end
    book_busy(w, pool, now, finish)
    return finish, 0, lost


@kernel
def note_start(w, now, pool, m, k, arrived, meta, ticket, combo, unsure, finish, cold, lost):
    """Book what is known of a request now that it starts: its answer, that it will go on, or that it will be lost."""
    if lost:  # it returns to the queue when its machine is gone
        d = item(pool.doomed_at, pool.doomed, s.PASSING)
        d.at, d.arrived, d.meta, d.k, d.ticket = finish, arrived, meta, k, ticket
        pool.doomed += 1
        pool.return_at = min(pool.return_at, finish)
    elif ticket >= 0 or combo >= 0:
        serve_stage(w, pool, m, k, arrived, meta, ticket, combo, unsure, now, finish, cold)
    else:
        book_answer(w, pool, m, k, arrived, meta >> 32, now, finish, cold, m)


@kernel
def start_batch(w, key, pool, k):
    """Start a batch led by the head of class k (rule 5.4)."""
    now = key >> 3
    q = queue_of(pool, k)
    m, quantile = answering_model(q, now), s.quantile_of(head_of(w, pool, k).meta)
    b, latest = 0, 0
    while k >= 0:
        q = queue_of(pool, k)
        head, one = head_of(w, pool, k), item(w.batch_at, b, s.MEMBER)
        one.arrived, one.meta, one.k, one.ticket = head.arrived, head.meta, k, head.ticket
        one.combo, one.unsure = q.combo, q.unsure
        latest = max(latest, head.arrived)
        b += 1
        dequeue(w, now, pool, k)
        k = -1
        if b < pool.batch_max and pool.waiting > 0:
            k = earliest_with(w, now, pool, m)
    finish, cold, lost = serve(w, now, pool, m, b, quantile, latest)
    for i in range(b):
        one = item(w.batch_at, i, s.MEMBER)
        note_start(w, now, pool, m, one.k, one.arrived, one.meta, one.ticket, one.combo, one.unsure, finish, cold, lost)


# ----------------------------------------------------------------------------------------------------------- dispatch
@kernel
def earliest_due(w, key, pool):
    """Return the class of the first head, in queue order, that is due and can start, or -1 (rules 5.4 and 7.4)."""
    best, first, order = -1, NEVER, NEVER
    for k in range(w.n_classes):
        q = queue_of(pool, k)
        if q.first > first or (q.first == first and q.order >= order):
            continue
        if ints(pool.held_at)[q.model] < pool.batch_max and (q.first - q.slo + pool.batch_wait) << 3 | s.DUE > key:
            continue
        if pool.is_function and not can_start(w, key, pool, q.model):
            continue
        best, first, order = k, q.first, q.order
    return best


@kernel
def earliest_with(w, now, pool, m):
    """Return the class of the first head, in queue order, that model m would answer now, or -1."""
    best, first, order = -1, NEVER, NEVER
    for k in range(w.n_classes):
        q = queue_of(pool, k)
        if (q.first < first or (q.first == first and q.order < order)) and answering_model(q, now) == m:
            best, first, order = k, q.first, q.order
    return best


@kernel
def dispatch(w, key, pool):
    """Start whatever of a pool can start at this key, then note when its next event comes."""
    while pool.waiting > 0 and (pool.is_function or free(pool, key >> 3)):
        k = earliest_due(w, key, pool)
        if k < 0:
            break
        start_batch(w, key, pool, k)
    plan_next(w, key, pool)


@kernel
def plan_next(w, key, pool):
    """Note the key of a pool's next event."""
    now = key >> 3
    at = min(pool.next_ready << 3 | s.READY, min(pool.next_loss, pool.return_at) << 3 | s.LOSS)
    if pool.onward > 0:
        at = min(at, item(pool.onward_at, 0, s.PASSING).at << 3 | s.FINISH)
    if pool.waiting > 0:
        any_free = free(pool, now)
        if not any_free:
            at = min(at, root(pool) << 3 | s.FINISH)
        for k in range(w.n_classes):
            q = queue_of(pool, k)
            if q.first == NEVER:
                continue
            at = min(at, max(now, q.leave_at) << 3 | s.LEAVE)
            if any_free or (pool.is_function and can_start(w, key, pool, q.model)):
                at = min(at, (q.first - q.slo + pool.batch_wait) << 3 | s.DUE)
            elif pool.is_function:
                f = function_of(pool, q.model)
                if f.in_flight > 0:
                    at = min(at, ints(f.flight_at)[0] << 3 | s.FINISH)
                if f.in_flight < w.concurrency:
                    at = min(at, token_key(w, f))
    note_next(w, pool, at)


@kernel
def plan_entry(w, key, pool, k, meta):
    """Note what one more waiting request brings forward while all slots are busy: first finish, own leave."""
    q = queue_of(pool, k)
    at = min(pool.next, root(pool) << 3 | s.FINISH)
    if q.order == meta >> 14:
        if q.tail - q.head + q.moved > 1:
            plan_next(w, key, pool)  # it came in front of an older plan's head
            return
        at = min(at, max(key >> 3, q.leave_at) << 3 | s.LEAVE)
    note_next(w, pool, at)


@kernel
def note_next(w, pool, at):
    """Set the key of a pool's next event and with it that of all pools."""
    pool.next = at
    for p in range(w.n_pools):
        at = min(at, pool_of(w, p).next)
    w.next_event = at


# ---------------------------------------------------------------------------------------------------------- admission
@kernel
def fits(w, key, pool, k, m, arrived, meta):
    """Return whether the predicted finish is within the deadline, from believed means only (rules 6.3, 6.4)."""
    now, believed = key >> 3, ints(pool.believed_at)
    deadline = arrived + class_of(w, k).slo
    any_free = free(pool, now)
    if pool.is_function:
        if not can_start(w, key, pool, m):
            return False
        warm = any_free or function_of(pool, m).warm > 0
        return now + (0 if warm else w.init) + believed[m * pool.width + 1] <= deadline
    b = min(pool.batch_max, ints(pool.held_at)[m] + 1)
    wait, slack = 0 if b == pool.batch_max else pool.batch_wait, deadline - now - believed[m * pool.width + b]
    if not any_free:
        slots, remaining = pool.n_ready * pool.slots, 0
        if slots == 0:
            if pool.n_booting == 0:
                return False
            slots = pool.slots
            slack -= max(0, first_believed_ready(pool) - now)
        else:
            remaining = max(0, pool.sum_end - slots * now)
        if slack < 0:
            return False
        work = work_ahead(w, pool, deadline, meta >> 14) + remaining
        if slack < 1 << 40:  # as below, without a division
            return wait <= slack and work < (slack + 1) * slots
        return max(wait, work // slots) <= slack
    return wait <= slack


@kernel
def accepts(w, key, k, step, arrived, meta):
    """Return whether a step takes a request now (rule 6)."""
    pool, m = pool_of(w, step.pool), step.model
    if step.admit == 0:
        return True
    if step.admit == 2:
        return fits(w, key, pool, k, m, arrived, meta)
    if pool.is_function:
        return ints(pool.held_at)[m] < pool.batch_max and can_start(w, key, pool, m)
    return free(pool, key >> 3) and pool.waiting < pool.batch_max


@kernel
def admit(w, key, k, r, i, arrived, ident, ticket, combo):
    """Offer a request to the steps of its stage from step i on; the last one always accepts.

    ``combo``: of the route, where it is a cascade now; a constant -1 makes the compiled code one of plain routes.
    """
    now = key >> 3
    step = s.step_of(w, k, r, i)
    while i + 1 < step.end and not accepts(w, key, k, step, arrived, ident | i << 26):
        i += 1
        step = s.step_of(w, k, r, i)
    pool, m = pool_of(w, step.pool), step.model
    meta = ident | i << 26 | m << 6 | r
    any_free = free(pool, now)
    if pool.batch_max == 1 and pool.waiting == 0 and (any_free or (pool.is_function and can_start(w, key, pool, m))):
        if step.late_model >= 0 and not pool.is_function and arrived + class_of(w, k).slo - now < step.late_slack:
            m = step.late_model
        finish, cold, lost = serve(w, now, pool, m, 1, s.quantile_of(meta), arrived)
        unsure = combo_of(w, combo).unsure[step.stage] if combo >= 0 else 0
        note_start(w, now, pool, m, k, arrived, meta, ticket, combo, unsure, finish, cold, lost)
        if pool.is_spot:
            plan_next(w, key, pool)
        return
    enqueue(w, now, pool, k, arrived, meta, ticket)
    if any_free or pool.is_function:
        dispatch(w, key, pool)
    else:
        plan_entry(w, key, pool, k, meta)


# ------------------------------------------------------------------------------------------------------------- events
@routine
def returns(w, now, pool):
    """Put requests whose spot machine is gone now back into the queue, with their old arrival time (rule 8.2)."""
    kept, again = 0, NEVER
    for i in range(pool.doomed):
        d = item(pool.doomed_at, i, s.PASSING)
        if d.at <= now:
            enqueue(w, now, pool, d.k, d.arrived, d.meta, d.ticket)
        else:
            again = min(again, d.at)
            copy(item(pool.doomed_at, kept, s.PASSING), d)
            kept += 1
    pool.doomed = kept
    pool.return_at = again


@routine
def decide(w, now, target, batch_max, batch_wait):
    """Put a decision in force: targets and batches of all pools; each dispatches when the clock goes on (rank 3)."""
    w.next_event = now << 3 | s.DECISION
    for p in range(w.n_pools):
        pool = pool_of(w, p)
        set_target(w, now, pool, target[p])
        pool.batch_max, pool.batch_wait = batch_max[p], batch_wait[p]
        pool.next = now << 3 | s.DECISION
        for m in range(w.n_models):
            ints(pool.work_at)[m] = ints(pool.believed_at)[m * pool.width + batch_max[p]] // batch_max[p]
        for k in range(w.n_classes):
            note_head(w, pool, k)


@kernel
def has_room(w, n):
    """Return whether every queue and container heap can take n arrivals beside all that is in the system."""
    waiting, flying = n * w.most_stages, 0
    for p in range(w.n_pools):
        pool = pool_of(w, p)
        waiting += pool.waiting + pool.doomed + pool.onward
        if pool.is_function:
            for m in range(w.n_models):
                flying = max(flying, function_of(pool, m).in_flight)
    return waiting < w.room and (flying + waiting <= w.containers or w.containers >= w.concurrency)


@routine
def refill(w, stop):
    """Generate the next second's arrivals once those of the last are through; False if arrays must grow first."""
    second = w.second
    if w.cursor < w.buffered:  # a decision within a second may have brought ensembles, which wait in several queues
        return has_room(w, w.buffered - w.cursor)
    if second >= w.seconds or second * SECOND_NS >= stop:
        return True
    n, first = ints(w.counts_at)[second], w.next_id
    if not has_room(w, n):
        return False
    at, draws = ints(w.arrivals_at), naturals(w.draws_at)
    if w.exact:
        for i in range(n):
            at[i] = ints(w.times_at)[first + i]
            draws[i] = draw(w.keys[1], first + i)
    else:
        spread_second(first, n, second, w.keys, at, draws)
    w.shares_at = w.thresholds_at + 8 * w.n_classes * min(second // 60, w.n_minutes - 1)
    w.seen_now = w.seen_at + 8 * w.n_classes * min(second - w.from_ns // SECOND_NS, w.n_seconds_seen - 1)
    w.buffered, w.cursor, w.second = n, 0, second + 1
    return True


@routine
def admit_to_stage(w, key, k, r, i, arrived, ident, ticket):
    """Offer a request to the steps of its stage from step i on, whatever its route."""
    admit(w, key, k, r, i, arrived, ident, ticket, s.cascade_of(w, k, r))


@routine
def arrive_in_stages(w, key, k, r, at, meta):
    """Offer a request to the first stage of a cascade, or to all stages of an ensemble (rule 10.5)."""
    combo = combo_of(w, route_of(w, k, r).combo)
    ticket = join(w, route_of(w, k, r).combo) if combo.also else -1
    i = 0
    for _ in range(combo.stages if combo.also else 1):
        admit_to_stage(w, key, k, r, i, at, meta, ticket)
        i, meta = s.step_of(w, k, r, i).end, next_stage(meta)


@kernel
def arrive(w, at, h):
    """Let the next request arrive: draw its class and route, count it, offer it to the route's steps."""
    ident = w.next_id
    w.next_id += 1
    k = drawn_class(ints(w.shares_at), w.n_classes, h)
    c = class_of(w, k)
    bits, r = np.int64(h & ROUTE_BITS), 0
    while r < c.n_routes - 1 and bits >= route_of(w, k, r).threshold:  # rule 3.5
        r += 1
    ints(w.seen_now)[k] += 1
    if at >= w.warmup:
        c.scored += 1
    if w.rows_at:
        row = item(w.rows_at, ident, s.ROW)
        row.k, row.arrived = k, at
    w.key = at << 3 | s.ARRIVAL
    meta = ident << 32 | np.int64((h >> QUANTILE_SHIFT) & ROUTE_BITS) << 14
    if route_of(w, k, r).combo < 0:
        admit(w, w.key, k, r, 0, at, meta, -1, -1)
    else:
        arrive_in_stages(w, w.key, k, r, at, meta)


@routine
def move_on(w, key, pool):
    """Offer the requests that this pool has finished now, and is unsure of, to their next stages (rule 10.4)."""
    for p in range(pool.index + 1, w.n_pools):
        pool_of(w, p).lag = 1  # their finishes of this instant come later
    while pool.onward > 0 and item(pool.onward_at, 0, s.PASSING).at <= key >> 3:
        x = pop_onward(pool)
        k, r, i, meta, arrived, ticket = x.k, x.meta & 63, (x.meta >> 26) & 63, x.meta, x.arrived, x.ticket
        n_steps = route_of(w, k, r).n_steps if r < class_of(w, k).n_routes and s.cascade_of(w, k, r) >= 0 else 0
        if i < n_steps and s.step_of(w, k, r, i).pool == pool.index and s.step_of(w, k, r, i).end < n_steps:
            ticket_of(w, ticket).stage += 1
            admit_to_stage(w, key, k, r, s.step_of(w, k, r, i).end, arrived, next_stage(meta), ticket)
        else:
            close_ticket(w, ticket, k, arrived, meta)  # the decision in force has no further stage
    for p in range(pool.index + 1, w.n_pools):
        pool_of(w, p).lag = 0


@routine
def happen(w):
    """Let the next event other than an arrival happen."""
    p = 0
    while pool_of(w, p).next != w.next_event:
        p += 1
    pool, rank = pool_of(w, p), w.next_event & 7
    key = w.key = max(w.key, w.next_event)  # a key in the past happens at once (rule 1.3)
    now = key >> 3
    if rank == s.FINISH:
        if pool.onward > 0:
            move_on(w, key, pool)
    elif rank == s.READY:
        machine_ready(now, pool)
    elif rank == s.LOSS:
        notices(w, now, pool)
        returns(w, now, pool)
    elif rank == s.LEAVE:
        k = next_to_leave(w, pool)
        head = head_of(w, pool, k)
        arrived, meta, ticket = head.arrived, head.meta, head.ticket
        dequeue(w, now, pool, k)
        ident = meta & ~((63 << 26) | (1 << 14) - 1)
        admit_to_stage(w, key, k, meta & 63, ((meta >> 26) & 63) + 1, arrived, ident, ticket)
    dispatch(w, key, pool)


@routine
def advance(w, stop):
    """Let happen, in order, all that is due before a decision at ``stop`` (ns); False if arrays must grow first."""
    while refill(w, stop):
        more = w.second < w.seconds and w.second * SECOND_NS < stop
        end_of_second = w.second * SECOND_NS - 1 if more else NEVER  # what comes later waits for the next arrivals
        arrivals, draws = ints(w.arrivals_at), naturals(w.draws_at)
        i, n = w.cursor, w.buffered
        while True:
            at = arrivals[i] if i < n else end_of_second
            if w.next_event < min(at << 3 | s.ARRIVAL, stop << 3 | s.DECISION):
                happen(w)
            elif i < n and at < stop:
                i += 1
                arrive(w, at, draws[i - 1])
            else:
                break
        w.cursor = i
        if i < n or not more:
            return True
    return False
