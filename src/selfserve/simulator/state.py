"""Where the simulated world is kept: flat integer arrays, named here, made and grown in Python, used by the kernels.

``World`` holds no objects, so that many worlds can be stepped in one compiled call. Times are nanoseconds; an event's
key is ``time << 3 | rank`` (physics rule 1.2).
"""

from __future__ import annotations

from collections import namedtuple

NEVER = 1 << 59
NEVER_KEY = NEVER << 3
FINISH, READY, LOSS, DECISION, LEAVE, DUE, ARRIVAL = range(7)
"""Ranks of events at the same instant."""

# columns of World.pool: one row a pool
(
    NEXT, WAITING, IS_FUNCTION, SLOTS, LEAVES, TREE, MACHINES, N_READY, N_BOOTING, NEXT_READY, NEXT_LOSS, ORDINAL,
    SUM_END, SUM_RUNNING, CLOSED, BILLED, BUSY, LAUNCHES, BATCH_MAX, BATCH_WAIT, PENDING, BOOT_MEAN, MIN_BILL, IS_SPOT,
    MAX_MACHINES, DOOMED, COLD, LOST, REFUSED, BATCHES, BATCHED, RETURN_AT, PAID_BEFORE, OWN_BOOT_SPREAD,
) = range(34)  # fmt: skip
POOL_COLUMNS = 34

# columns of World.machine: one row a machine, oldest first; ALIVE is 0 for rows to be compacted away
ALIVE, RUNNING_AT, READY_AT, BELIEVED_AT, NOTICE_AT, GONE_AT, IS_READY, DECIDED_AT = range(8)
MACHINE_COLUMNS = 8

# columns of World.queue [P, K] and of World.ring [P, K, room]
HEAD, TAIL, WORK_GONE, WORK_IN, AREA, FIRST = range(6)  # FIRST: deadline of the head, NEVER without one
ARRIVED, META, WORK = range(3)
OF_CLASS = 2  # third column of World.batch

# columns of World.doomed [P, room]: requests that a spot machine will lose
D_GONE, D_ARRIVED, D_META, D_CLASS = range(4)

# columns of World.function [P, M]
IN_FLIGHT, WARM, TAT, MS, MS_PROVISIONED, INVOCATIONS, COLDS, INVOCATIONS_ALL, MS_ALL, MS_PROVISIONED_ALL = range(10)
FUNCTION_COLUMNS = 10

# columns of World.step [K, R, S]
TO_POOL, TO_MODEL, ADMIT, SLACK, LATE_MODEL, LATE_SLACK = range(6)
NO_SLACK = -(1 << 58)

# World.clock
KEY, NEXT_ID, SECOND, CURSOR, BUFFERED, BUCKET_START, NEXT_ALL, BUCKET = range(8)

# World.par
(
    P_WARMUP, P_END, P_INTERVAL, P_INIT, P_KEEP_ALIVE, P_CONCURRENCY, P_TOKEN_NS, P_BURST, P_NOTICE, P_ROWS,
    P_HISTOGRAM, P_SECONDS, P_EXACT,
) = range(13)  # fmt: skip

OCTAVES, PER_OCTAVE_BITS = 38, 9
HISTOGRAM_BINS = OCTAVES << PER_OCTAVE_BITS
"""Latency histogram: 512 bins an octave from 512 ns on, so that a bin's middle is within 0.1% of its members."""

World = namedtuple(
    "World",
    # constants: scalars, hash bases, service times, beliefs, SLOs, quantile tables, class shares, trace, spot storms
    "par base service believed slo quantile boot exponential thresholds counts times storm hazard window_ns "
    # decision: route thresholds, number of steps, steps
    "routes route_cum n_steps step "
    # state: clock, pools, slot trees, believed ends, machines, queues, waiting per model, functions, doomed, arrivals
    "clock pool tree end_of machine queue ring held function flight warm doomed arrive_at arrive_draw batch "
    # books: of the interval, of the scored window, rows
    "arrivals served late busy answered scored_late scored histogram windows "
    "row_class row_pool row_model row_start row_finish row_cold row_arrived",
)
