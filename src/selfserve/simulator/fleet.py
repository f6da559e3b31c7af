"""The life of machines (physics rules 4 and 8): launch, ready, release, drain, notice, bill."""

from __future__ import annotations

from selfserve.simulator.draws import U, draw, exponential
from selfserve.simulator.jit import kernel
from selfserve.simulator.slots import busy_until, clear_from, occupy, rebuild
from selfserve.simulator.state import (
    ALIVE,
    BELIEVED_AT,
    BILLED,
    BOOT_MEAN,
    CLOSED,
    DECIDED_AT,
    GONE_AT,
    IS_READY,
    IS_SPOT,
    LAUNCHES,
    LEAVES,
    LOST,
    MACHINE_COLUMNS,
    MACHINES,
    MAX_MACHINES,
    MIN_BILL,
    N_BOOTING,
    N_READY,
    NEVER,
    NEXT_LOSS,
    NEXT_READY,
    NOTICE_AT,
    ORDINAL,
    OWN_BOOT_SPREAD,
    P_END,
    P_NOTICE,
    P_WARMUP,
    PENDING,
    READY_AT,
    REFUSED,
    RUNNING_AT,
    SLOTS,
    SUM_END,
    SUM_RUNNING,
)

SECOND_NS = 1_000_000_000


@kernel
def set_target(w, now, p, target):
    """Launch or release machines so that pending, booting and ready ones make up the target (rule 4.1)."""
    missing = min(target, w.pool[p, MAX_MACHINES]) - w.pool[p, N_READY] - w.pool[p, N_BOOTING]
    for _ in range(missing):
        launch(w, now, p)
    if missing < 0:
        release_newest(w, now, p, -missing)


@kernel
def launch(w, now, p):
    """Launch one machine; a spot launch may be refused (rules 4.2, 8.1, 8.3)."""
    pool = w.pool[p]
    ident = (p << 32) + pool[ORDINAL]
    pool[ORDINAL] += 1
    if pool[IS_SPOT] and refused(w, now, ident):
        pool[REFUSED] += 1
        return
    if (pool[MACHINES] + 1) * pool[SLOTS] > pool[LEAVES]:
        compact(w, p, pool[LEAVES])
    i = pool[MACHINES]
    pool[MACHINES] += 1
    pool[N_BOOTING] += 1
    boot = pool[BOOT_MEAN]
    if pool[OWN_BOOT_SPREAD]:
        boot = max(1, (boot * w.boot[draw(w.base[3], ident) & U(4095)]) >> 16)
    m = w.machine[p, i]
    m[ALIVE], m[IS_READY], m[DECIDED_AT] = 1, 0, now
    m[RUNNING_AT] = now + pool[PENDING]
    m[READY_AT] = m[RUNNING_AT] + boot
    m[BELIEVED_AT] = m[RUNNING_AT] + pool[BOOT_MEAN]
    m[NOTICE_AT] = notice_time(w, m[RUNNING_AT], draw(w.base[4], ident)) if pool[IS_SPOT] else NEVER
    m[GONE_AT] = min(NEVER, m[NOTICE_AT] + w.par[P_NOTICE])
    pool[NEXT_READY] = min(pool[NEXT_READY], m[READY_AT])
    pool[NEXT_LOSS] = min(pool[NEXT_LOSS], m[NOTICE_AT])
    if w.par[P_WARMUP] <= now < w.par[P_END]:
        pool[LAUNCHES] += 1


@kernel
def refused(w, now, ident):
    """Return whether a storm refuses this launch."""
    for i in range(w.storm.shape[0]):
        if w.storm[i, 0] <= now < w.storm[i, 1]:
            return (draw(w.base[5], ident) & U(0xFFFF)) < U(w.storm[i, 3])
    return False


@kernel
def notice_time(w, running, h):
    """Return when the hazard integrated from ``running`` reaches the machine's exponential draw (rule 8.1)."""
    left = exponential(w.exponential, h) / 16777216.0 * 3600e9
    a, rate = float(running), w.hazard[0]
    for i in range(w.storm.shape[0]):
        start, end, storm_rate = w.storm[i, 0], w.storm[i, 1], w.storm[i, 2]
        if end <= a:
            continue
        if start > a:
            if rate > 0 and left <= (start - a) * rate:
                return min(NEVER, int(a + left / rate))
            left -= (start - a) * rate
            a = start
        if storm_rate > 0 and left <= (end - a) * storm_rate:
            return min(NEVER, int(a + left / storm_rate))
        left -= (end - a) * storm_rate
        a = end
    if rate > 0 and left / rate < NEVER:
        return min(NEVER, int(a + left / rate))
    return NEVER


@kernel
def machine_ready(w, now, p):
    """Let the oldest machine whose boot ends now take work."""
    pool = w.pool[p]
    i = 0
    while not (w.machine[p, i, ALIVE] and not w.machine[p, i, IS_READY] and w.machine[p, i, READY_AT] <= now):
        i += 1
    w.machine[p, i, IS_READY] = 1
    pool[N_BOOTING] -= 1
    pool[N_READY] += 1
    pool[SUM_RUNNING] += w.machine[p, i, RUNNING_AT]
    for slot in range(i * pool[SLOTS], (i + 1) * pool[SLOTS]):
        occupy(w, p, slot, now)
        w.end_of[p, slot] = now
        pool[SUM_END] += now
    next_ready(w, p)


@kernel
def next_ready(w, p):
    """Note when the next booting machine is ready; booting ones are among the newest."""
    pool = w.pool[p]
    pool[NEXT_READY] = NEVER
    seen, i = 0, pool[MACHINES] - 1
    while seen < pool[N_BOOTING]:
        if w.machine[p, i, ALIVE] and not w.machine[p, i, IS_READY]:
            seen += 1
            pool[NEXT_READY] = min(pool[NEXT_READY], w.machine[p, i, READY_AT])
        i -= 1


@kernel
def is_idle(w, now, p, i):
    """Return whether no slot of a machine serves."""
    for slot in range(i * w.pool[p, SLOTS], (i + 1) * w.pool[p, SLOTS]):
        if busy_until(w, p, slot) > now:
            return False
    return True


@kernel
def release_newest(w, now, p, n):
    """Release n machines: not yet ready ones, then idle ones, then busy ones, newest first (rule 4.3)."""
    for kind in range(3):
        i = w.pool[p, MACHINES] - 1
        while n > 0 and i >= 0:
            if w.machine[p, i, ALIVE]:
                ready = w.machine[p, i, IS_READY]
                if kind == 2 or (kind == 0 and not ready) or (kind == 1 and ready and is_idle(w, now, p, i)):
                    release(w, now, p, i)
                    n -= 1
            i -= 1
            if kind == 0 and w.pool[p, N_BOOTING] == 0:
                break


@kernel
def release(w, now, p, i):
    """Take a machine out of service; its bill runs until its last slot finishes (rules 4.3, 4.4)."""
    pool, m = w.pool[p], w.machine[p, i]
    gone = now
    m[ALIVE] = 0
    if m[IS_READY]:
        pool[N_READY] -= 1
        pool[SUM_RUNNING] -= m[RUNNING_AT]
        for slot in range(i * pool[SLOTS], (i + 1) * pool[SLOTS]):
            gone = max(gone, busy_until(w, p, slot))
            pool[SUM_END] -= w.end_of[p, slot]
            occupy(w, p, slot, NEVER)
        gone = min(gone, m[GONE_AT])
    else:
        pool[N_BOOTING] -= 1
        next_ready(w, p)
    if gone >= m[RUNNING_AT]:
        life = (gone - m[RUNNING_AT] + SECOND_NS - 1) // SECOND_NS * SECOND_NS
        bill(w, p, m[RUNNING_AT], max(life, pool[MIN_BILL]))
    if pool[IS_SPOT]:
        next_loss(w, p)


@kernel
def bill(w, p, running, paid):
    """Add a machine's bill: whole for the running total, clipped to the scored window for the score."""
    w.pool[p, CLOSED] += paid
    w.pool[p, BILLED] += max(0, min(running + paid, w.par[P_END]) - max(running, w.par[P_WARMUP]))


@kernel
def next_loss(w, p):
    """Note when the next interruption notice comes."""
    w.pool[p, NEXT_LOSS] = NEVER
    for i in range(w.pool[p, MACHINES]):
        if w.machine[p, i, ALIVE]:
            w.pool[p, NEXT_LOSS] = min(w.pool[p, NEXT_LOSS], w.machine[p, i, NOTICE_AT])


@kernel
def notices(w, now, p):
    """Release the machines whose notice has come, oldest first (rule 8.2)."""
    if w.pool[p, NEXT_LOSS] <= now:
        for i in range(w.pool[p, MACHINES]):
            if w.machine[p, i, ALIVE] and w.machine[p, i, NOTICE_AT] <= now:
                w.pool[p, LOST] += 1
                release(w, now, p, i)


@kernel
def close_bills(w):
    """Bill the machines still alive to the end of the window."""
    for p in range(w.pool.shape[0]):
        for i in range(w.pool[p, MACHINES]):
            if w.machine[p, i, ALIVE]:
                running = w.machine[p, i, RUNNING_AT]
                w.pool[p, BILLED] += max(0, w.par[P_END] - max(running, w.par[P_WARMUP]))


@kernel
def running_ns(w, p, now):
    """Return the machine time that has run (and been paid) up to now, unclipped; O(booting machines)."""
    pool = w.pool[p]
    total = pool[CLOSED] + pool[N_READY] * now - pool[SUM_RUNNING]
    seen, i = 0, pool[MACHINES] - 1
    while seen < pool[N_BOOTING]:
        if w.machine[p, i, ALIVE] and not w.machine[p, i, IS_READY]:
            seen += 1
            total += max(0, now - w.machine[p, i, RUNNING_AT])
        i -= 1
    return total


@kernel
def compact(w, p, old_leaves):
    """Close the gaps that gone machines left, keeping the order of age; also after the tree has grown."""
    pool = w.pool[p]
    slots, kept = pool[SLOTS], 0
    for i in range(pool[MACHINES]):
        if not w.machine[p, i, ALIVE]:
            continue
        for c in range(MACHINE_COLUMNS):
            w.machine[p, kept, c] = w.machine[p, i, c]
        for s in range(slots):
            w.tree[p, pool[LEAVES] + kept * slots + s] = w.tree[p, old_leaves + i * slots + s]
            w.end_of[p, kept * slots + s] = w.end_of[p, i * slots + s]
        kept += 1
    pool[MACHINES] = kept
    clear_from(w, p, kept * slots)
    rebuild(w, p)
