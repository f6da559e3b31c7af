# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""What the simulated world consists of: structs of int64 fields, made in Python (``world.py``), used by the kernels.

Times are nanoseconds; an event's key is ``time << 3 | rank`` (physics rule 1.2). Fields named ``*_at`` in WORLD and
POOL are addresses of arrays.
"""

from __future__ import annotations

from selfserve.simulator.jit import item, kernel, record

NEVER = 1 << 59
NEVER_KEY = NEVER << 3
SECOND_NS = 1_000_000_000
FINISH, READY, LOSS, DECISION, LEAVE, DUE, ARRIVAL = range(7)
"""Ranks of events at the same instant."""

OCTAVES, PER_OCTAVE_BITS = 51, 9
HISTOGRAM_BINS = OCTAVES << PER_OCTAVE_BITS
"""Latency histogram: 512 bins an octave from 512 ns on, so that a bin's middle is within 0.1% of its members.
Queues drain after the window, however long that takes: the octaves go beyond ``NEVER``."""

# One a world: constants; clock and arrivals; books.
WORLD = record(
    """
    n_pools n_models n_classes n_combos n_grades n_minutes n_storms most_stages room containers
    pools_at classes_at routes_at steps_at combos_at storms_at counts_at times_at thresholds_at
    warmup end interval init keep_alive concurrency token_ns burst notice seconds exact service_at boot_at
    key next_event next_id second cursor buffered shares_at draws_at arrivals_at batch_at
    from_ns until bucket n_buckets n_seconds_seen
    served_at late_at busy_at served_now late_now busy_now seen_at seen_now answered_at scored_late_at rows_at
    tickets_at tickets free_ticket regraded_at scored_regraded_at
    """,
    keys=("u8", 7), hazard="f8",
)  # fmt: skip

# One a pool: constants; fleet; queues; what the interval and the run saw.
POOL = record(
    """
    index first_cell is_function is_spot slots pending boot min_bill own_boot_spread max_machines
    width service_at believed_at work_at
    tree_at leaves end_of_at machines_at machines n_ready n_booting next_ready next_loss ordinal sum_end sum_running
    next queues_at waiting held_at functions_at doomed_at doomed return_at onward_at onward lag batch_max batch_wait
    closed billed busy launches cold lost refused batches batched
    """
)  # fmt: skip

# A machine, oldest first; ``alive`` is 0 for rows to be compacted away.
MACHINE = record("alive running_at ready_at believed_at notice_at gone_at is_ready decided_at")

# The queue of a class in a pool: a ring of requests, how many are in the ring of those that moved here (the same
# struct, after those of all classes), and what the first of both may do (NEVER without one).
QUEUE = record(
    "head tail mask ring_at work_gone moved area slo first order model leave_at late_after late_model combo unsure"
)
WAITER = record("arrived meta work ticket")
"""A request that waits; meta: id << 32 | step << 26 | quantile << 14 | model << 6 | route; work: cumulative."""
MEMBER = record("arrived meta k ticket combo unsure")
"""A request of the batch that starts."""
PASSING = record("at arrived meta k ticket")
"""A request that leaves service at ``at`` without an answer: lost with its spot machine, or unsure."""

# The function of a model in a pool: heap of finish times in flight, stack of warm containers.
FUNCTION = record(
    "in_flight warm tat ms ms_provisioned invocations colds ms_all ms_provisioned_all invocations_all flight_at warm_at"
)

ROUTES, STEPS = 10, 12
"""Routes a class and steps a route that a world can hold."""

CLASS = record("slo n_routes scored histogram_at windows_at window_ns window_from window mixed")
"""``mixed``: scored answers in time whose stages were of more than one combination."""
ROUTE = record("threshold n_steps combo")
"""``combo``: how the stages of the route combine, -1 for a plain route."""
STEP = record("pool model admit slack late_model late_slack stage end")
"""``stage``: number of its stage; ``end``: first step after it."""
COMBO = record("also stages grade", unsure=("i8", STEPS), models=("i8", STEPS), ended=("i8", STEPS))
"""A cascade or ensemble (rule 10): how it scores, and in units of 1/65536 how often each of its stages is unsure.

``models``: :func:`mark_of` the models up to each stage, summed; ``ended``: scored answers in time after each stage.
"""
TICKET = record("also stage left start finish pool model step cold grade models next")
"""What is known of a request that several stages serve; ``next``: of a free one, to the next but for 1 (new: 0)."""
NO_SLACK = -NEVER

# One a scored request, if asked for.
ROW = record("arrived start finish", k="i2", pool="i2", model="i2", cold="i2")


@kernel
def pool_of(w, p):
    """Return a pool."""
    return item(w.pools_at, p, POOL)


@kernel
def class_of(w, k):
    """Return a class."""
    return item(w.classes_at, k, CLASS)


@kernel
def queue_of(pool, k):
    """Return the queue of a class in a pool."""
    return item(pool.queues_at, k, QUEUE)


@kernel
def waiter_of(q, i):
    """Return entry i of a queue, counted since it was last empty."""
    return item(q.ring_at, i & q.mask, WAITER)


@kernel
def function_of(pool, m):
    """Return the function of a model in a pool."""
    return item(pool.functions_at, m, FUNCTION)


@kernel
def machine_of(pool, i):
    """Return machine i of a pool, by age."""
    return item(pool.machines_at, i, MACHINE)


@kernel
def route_of(w, k, r):
    """Return a route of a class in the decision in force."""
    return item(w.routes_at, k * ROUTES + r, ROUTE)


@kernel
def step_of(w, k, r, s):
    """Return a step of a route in the decision in force."""
    return item(w.steps_at, (k * ROUTES + r) * STEPS + s, STEP)


@kernel
def combo_of(w, i):
    """Return how the stages of a route combine."""
    return item(w.combos_at, i, COMBO)


@kernel
def cascade_of(w, k, r):
    """Return the combination of a route that is a cascade in the decision in force, -1 where it is none."""
    combo = route_of(w, k, r).combo
    return combo if combo >= 0 and combo_of(w, combo).also == 0 else -1


@kernel
def mark_of(m):
    """Return a number of which sums over different sets of models differ: 33^m modulo 2^64."""
    mark = 1
    for _ in range(m):
        mark *= 33
    return mark


@kernel
def model_of(meta):
    """Return the model a waiting request holds."""
    return (meta >> 6) & 255


@kernel
def quantile_of(meta):
    """Return a request's service quantile."""
    return (meta >> 14) & 4095
