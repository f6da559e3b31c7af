# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Cascades and ensembles (physics rule 10): requests that several stages serve."""

from __future__ import annotations

from selfserve.simulator.books import book_answer, regrade
from selfserve.simulator.draws import U, draw
from selfserve.simulator.jit import item, kernel, routine
from selfserve.simulator.state import FINISH, NEVER, PASSING, TICKET, class_of, combo_of, mark_of, pool_of

QUANTILE_STEP = 1365
"""From one stage's service quantile to the next one's (rule 10.3)."""


@kernel
def ticket_of(w, i):
    """Return a ticket."""
    return item(w.tickets_at, i, TICKET)


@routine
def open_ticket(w, start):
    """Return the number of a new ticket, of a cascade whose first service starts at ``start``."""
    number = w.free_ticket
    t = ticket_of(w, number)
    w.free_ticket = number + 1 + t.next
    w.tickets += 1
    t.also, t.stage, t.start, t.finish, t.models = 0, 0, start, -1, 0
    return number


@kernel
def join(w, combo):
    """Return the number of a new ticket of an ensemble, which keeps how it scores from its arrival on (rule 10.5)."""
    number = open_ticket(w, NEVER)
    t = ticket_of(w, number)
    t.also, t.left, t.grade = 1, combo_of(w, combo).stages, combo_of(w, combo).grade
    return number


@kernel
def next_stage(meta):
    """Return the meta of a request in the stage after this one, without step and model."""
    quantile = ((meta >> 14) + QUANTILE_STEP) & 4095
    return meta >> 32 << 32 | quantile << 14


@kernel
def count_way(w, t, k):
    """Count which stages an answer took, for the bound: those of its combination, or of several."""
    combo = combo_of(w, max(0, t.grade - w.n_models))
    last = combo.stages - 1 if t.also else t.stage
    if t.grade >= w.n_models and last < combo.stages and t.models == combo.models[last]:
        combo.ended[t.stage] += 1
    else:
        class_of(w, k).mixed += 1


@routine
def close_ticket(w, number, k, arrived, meta):
    """Book the answer of a request of several stages (rule 10.7)."""
    t = ticket_of(w, number)
    book_answer(w, pool_of(w, t.pool), t.model, k, arrived, meta >> 32, t.start, t.finish, t.cold, t.grade)
    if t.grade != t.model:
        regrade(w, t.model, k, arrived, t.finish, t.grade)
    if arrived >= w.warmup and t.finish - arrived <= class_of(w, k).slo:
        count_way(w, t, k)
    t.next, w.free_ticket = w.free_ticket - number - 1, number
    w.tickets -= 1


@routine
def serve_stage(w, pool, m, k, arrived, meta, ticket, combo, unsure, start, finish, cold):
    """Note that a stage has started: the answer, if it was the last, or that the request will go on to the next.

    ``combo``, ``unsure``: of the request's route and stage in the decision in force.
    """
    number = open_ticket(w, start) if ticket < 0 else ticket
    t, step = ticket_of(w, number), meta >> 14  # with the quantile behind it, as in rule 10.3
    t.start, t.models = min(t.start, start), t.models + mark_of(m)
    if finish > t.finish or (finish == t.finish and step > t.step):
        t.finish, t.pool, t.model, t.step, t.cold = finish, pool.index, m, step, cold
    if t.also:
        t.left -= 1
        if t.left == 0:
            close_ticket(w, number, k, arrived, meta)
        return
    t.grade = combo_of(w, combo).grade if combo >= 0 else m
    if (draw(w.keys[6], (meta >> 32) * 64 + t.stage) & U(0xFFFF)) < U(unsure):
        push_onward(w, pool, finish, arrived, meta, k, number)
    else:
        close_ticket(w, number, k, arrived, meta)


@kernel
def before(a, b):
    """Return whether one passing request goes on before another: earlier, or at the same time with the lower id."""
    return a.at < b.at or (a.at == b.at and a.meta < b.meta)


@kernel
def copy(to, a):
    """Copy a passing request."""
    to.at, to.arrived, to.meta, to.k, to.ticket = a.at, a.arrived, a.meta, a.k, a.ticket


@kernel
def push_onward(w, pool, at, arrived, meta, k, number):
    """Let a request go on to its next stage at ``at``: onto the pool's heap, whose least key is an event."""
    i = pool.onward
    new = item(pool.onward_at, i + 1, PASSING)  # the first free place
    new.at, new.arrived, new.meta, new.k, new.ticket = at, arrived, meta, k, number
    pool.onward += 1
    while i > 0 and before(new, item(pool.onward_at, (i - 1) >> 1, PASSING)):
        copy(item(pool.onward_at, i, PASSING), item(pool.onward_at, (i - 1) >> 1, PASSING))
        i = (i - 1) >> 1
    copy(item(pool.onward_at, i, PASSING), new)
    pool.next = min(pool.next, at << 3 | FINISH)
    w.next_event = min(w.next_event, pool.next)


@kernel
def pop_onward(pool):
    """Take the first request off a pool's heap: into the first free place, which is returned."""
    n = pool.onward = pool.onward - 1
    first, last = item(pool.onward_at, n + 1, PASSING), item(pool.onward_at, n, PASSING)
    copy(first, item(pool.onward_at, 0, PASSING))
    i = 0
    while 2 * i + 1 < n:
        c = 2 * i + 1
        if c + 1 < n and before(item(pool.onward_at, c + 1, PASSING), item(pool.onward_at, c, PASSING)):
            c += 1
        if not before(item(pool.onward_at, c, PASSING), last):
            break
        copy(item(pool.onward_at, i, PASSING), item(pool.onward_at, c, PASSING))
        i = c
    copy(item(pool.onward_at, i, PASSING), last)
    return first
