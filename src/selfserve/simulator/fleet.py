"""The life of machines (physics rules 4 and 8): launch, ready, release, drain, notice, bill."""

from __future__ import annotations

import numpy as np

from selfserve.simulator.draws import U, draw, exponential
from selfserve.simulator.jit import floats, ints, kernel, routine, shorts
from selfserve.simulator.slots import busy_until, clear_from, occupy
from selfserve.simulator.state import NEVER, SECOND_NS, machine_of, pool_of


@routine
def set_target(w, now, pool, target):
    """Launch or release machines so that pending, booting and ready ones make up the target (rule 4.1)."""
    missing = min(target, pool.max_machines) - pool.n_ready - pool.n_booting
    for _ in range(missing):
        launch(w, now, pool)
    if missing < 0:
        release_newest(w, now, pool, -missing)


@routine
def launch(w, now, pool):
    """Launch one machine; a spot launch may be refused (rules 4.2, 8.1, 8.3)."""
    ident = (pool.index << 32) + pool.ordinal
    pool.ordinal += 1
    if pool.is_spot and refused(w, now, ident):
        pool.refused += 1
        return
    if (pool.machines + 1) * pool.slots > pool.leaves:
        compact(pool, pool.leaves)
    m = machine_of(pool, pool.machines)
    pool.machines += 1
    pool.n_booting += 1
    boot = pool.boot
    if pool.own_boot_spread:
        factor = np.int64(shorts(w.boot_at)[draw(w.keys[3], ident) & U(4095)])
        # in two parts: the product of a long boot and its factor is beyond 64 bits
        boot = max(1, min(NEVER >> 1, (boot >> 16) * factor + (((boot & 65535) * factor) >> 16)))
    m.alive, m.is_ready, m.decided_at = 1, 0, now
    m.running_at = now + pool.pending
    m.ready_at = m.running_at + boot
    m.believed_at = m.running_at + pool.boot
    m.notice_at = notice_time(w, m.running_at, draw(w.keys[4], ident)) if pool.is_spot else NEVER
    m.gone_at = min(NEVER, m.notice_at + w.notice)
    pool.next_ready = min(pool.next_ready, m.ready_at)
    pool.next_loss = min(pool.next_loss, m.notice_at)
    if w.warmup <= now < w.end:
        pool.launches += 1


@kernel
def refused(w, now, ident):
    """Return whether a storm refuses this launch."""
    storms = floats(w.storms_at)
    for i in range(0, 4 * w.n_storms, 4):
        if storms[i] <= now < storms[i + 1]:
            return (draw(w.keys[5], ident) & U(0xFFFF)) < U(storms[i + 3])
    return False


@kernel
def notice_time(w, running, h):
    """Return when the hazard integrated from ``running`` reaches the machine's exponential draw (rule 8.1)."""
    left = exponential(h) / 16777216.0 * 3600e9
    a, rate = float(running), w.hazard
    storms = floats(w.storms_at)
    for i in range(0, 4 * w.n_storms, 4):
        start, end, storm_rate = storms[i], storms[i + 1], storms[i + 2]
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


@routine
def machine_ready(now, pool):
    """Let the oldest machine whose boot ends now take work."""
    i = 0
    while not (machine_of(pool, i).alive and not machine_of(pool, i).is_ready and machine_of(pool, i).ready_at <= now):
        i += 1
    machine_of(pool, i).is_ready = 1
    pool.n_booting -= 1
    pool.n_ready += 1
    pool.sum_running += machine_of(pool, i).running_at
    for slot in range(i * pool.slots, (i + 1) * pool.slots):
        occupy(pool, slot, now)
        ints(pool.end_of_at)[slot] = now
        pool.sum_end += now
    next_ready(pool)


@kernel
def next_ready(pool):
    """Note when the next booting machine is ready; booting ones are among the newest."""
    pool.next_ready = NEVER
    seen, i = 0, pool.machines - 1
    while seen < pool.n_booting:
        m = machine_of(pool, i)
        if m.alive and not m.is_ready:
            seen += 1
            pool.next_ready = min(pool.next_ready, m.ready_at)
        i -= 1


@kernel
def is_idle(now, pool, i):
    """Return whether no slot of a machine serves."""
    for slot in range(i * pool.slots, (i + 1) * pool.slots):
        if busy_until(pool, slot) > now:
            return False
    return True


@routine
def release_newest(w, now, pool, n):
    """Release n machines: not yet ready ones, then idle ones, then busy ones, newest first (rule 4.3)."""
    for kind in range(3):
        i = pool.machines - 1
        while n > 0 and i >= 0:
            if machine_of(pool, i).alive:
                ready = machine_of(pool, i).is_ready
                if kind == 2 or (kind == 0 and not ready) or (kind == 1 and ready and is_idle(now, pool, i)):
                    release(w, now, pool, i)
                    n -= 1
            i -= 1
            if kind == 0 and pool.n_booting == 0:
                break


@routine
def release(w, now, pool, i):
    """Take a machine out of service; its bill runs until its last slot finishes (rules 4.3, 4.4)."""
    m, gone = machine_of(pool, i), now
    m.alive = 0
    if m.is_ready:
        pool.n_ready -= 1
        pool.sum_running -= m.running_at
        for slot in range(i * pool.slots, (i + 1) * pool.slots):
            gone = max(gone, busy_until(pool, slot))
            pool.sum_end -= ints(pool.end_of_at)[slot]
            occupy(pool, slot, NEVER)
        gone = min(gone, m.gone_at)
    else:
        pool.n_booting -= 1
        next_ready(pool)
    if gone >= m.running_at:
        life = (gone - m.running_at + SECOND_NS - 1) // SECOND_NS * SECOND_NS
        paid = max(life, pool.min_bill)
        pool.closed += paid
        pool.billed += max(0, min(m.running_at + paid, w.end) - max(m.running_at, w.warmup))
    if pool.is_spot:
        next_loss(pool)


@kernel
def next_loss(pool):
    """Note when the next interruption notice comes."""
    pool.next_loss = NEVER
    for i in range(pool.machines):
        if machine_of(pool, i).alive:
            pool.next_loss = min(pool.next_loss, machine_of(pool, i).notice_at)


@routine
def notices(w, now, pool):
    """Release the machines whose notice has come, oldest first (rule 8.2)."""
    if pool.next_loss <= now:
        for i in range(pool.machines):
            if machine_of(pool, i).alive and machine_of(pool, i).notice_at <= now:
                pool.lost += 1
                release(w, now, pool, i)


@routine
def first_believed_ready(pool):
    """Return the earliest believed ready time of the booting machines."""
    for i in range(pool.machines):
        if machine_of(pool, i).alive and not machine_of(pool, i).is_ready:
            return machine_of(pool, i).believed_at
    return NEVER


@kernel
def close_bills(w):
    """Bill the machines still alive to the end of the window."""
    for p in range(w.n_pools):
        pool = pool_of(w, p)
        for i in range(pool.machines):
            if machine_of(pool, i).alive:
                pool.billed += max(0, w.end - max(machine_of(pool, i).running_at, w.warmup))


@kernel
def take_stock(w, now, booting, running):
    """Add machines not yet ready, by age [P, bins of 10 s], and set the machine time paid so far, unclipped [P]."""
    for p in range(w.n_pools):
        pool = pool_of(w, p)
        running[p] = pool.closed + pool.n_ready * now - pool.sum_running
        seen, i = 0, pool.machines - 1
        while seen < pool.n_booting:
            m = machine_of(pool, i)
            if m.alive and not m.is_ready:
                seen += 1
                booting[p, min((now - m.decided_at) // (10 * SECOND_NS), booting.shape[1] - 1)] += 1
                running[p] += max(0, now - m.running_at)
            i -= 1


@routine
def compact(pool, old_leaves):
    """Close the gaps that gone machines left, keeping the order of age; also after the tree has grown."""
    slots, kept = pool.slots, 0
    tree, end_of = ints(pool.tree_at), ints(pool.end_of_at)
    for i in range(pool.machines):
        if not machine_of(pool, i).alive:
            continue
        a, b = machine_of(pool, kept), machine_of(pool, i)
        a.alive, a.is_ready, a.decided_at, a.running_at = 1, b.is_ready, b.decided_at, b.running_at
        a.ready_at, a.believed_at, a.notice_at, a.gone_at = b.ready_at, b.believed_at, b.notice_at, b.gone_at
        for s in range(slots):
            tree[pool.leaves + kept * slots + s] = tree[old_leaves + i * slots + s]
            end_of[kept * slots + s] = end_of[i * slots + s]
        kept += 1
    pool.machines = kept
    clear_from(pool, kept * slots)
