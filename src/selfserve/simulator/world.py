"""Making, growing and deciding for a world of arrays (``state.py``) from the project's own objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from selfserve.scenario import Scenario, to_ns
from selfserve.simulator import state as s
from selfserve.simulator.draws import bases, exponential_table, lognormal_table
from selfserve.simulator.fleet import compact

if TYPE_CHECKING:
    from selfserve.protocol import Decision
    from selfserve.workload import Workload

ROUTES, STEPS = 8, 6
"""Routes a class and steps a route that a world can hold."""


def power_of_two(n: int) -> int:
    """Return the least power of two that is at least n."""
    return 1 << max(0, int(n - 1).bit_length())


def make_world(
    scenario: Scenario,
    workload: Workload,
    interval_s: float,
    seed: int,
    *,
    rows: bool,
    histogram: bool,
    peak: int | None = None,
) -> s.World:
    """Return a world at time 0 with an empty fleet.

    Args:
        scenario: prices are not needed here, physics and service times are.
        workload: arrivals of the window.
        interval_s: decision interval, seconds.
        seed: seed of every draw.
        rows: keep one row a request.
        histogram: keep a latency histogram a class.
        peak: most requests in a second to make room for (default: the workload's own).
    """
    peak = int(workload.counts.max(initial=0)) if peak is None else peak
    constants = _constants(scenario, workload, interval_s, seed, rows=rows, histogram=histogram)
    par, service = constants["par"], constants["service"]
    slowest = int(service.max()) * 4 + par[s.P_INIT]
    buckets = 2 + min(256, int(slowest // par[s.P_INTERVAL]))  # decision intervals ahead into which finishes are booked
    books = _books(scenario, constants, max(1, int(np.ceil(interval_s))), buckets)
    n_rows = int(workload.counts.sum()) if rows else 1
    w = s.World(**constants, **_state(scenario, peak, service.shape[2]), **books, **_rows(n_rows))
    _fill_pools(w, scenario)
    return w


def _constants(
    scenario: Scenario, workload: Workload, interval_s: float, seed: int, *, rows: bool, histogram: bool
) -> dict[str, np.ndarray]:
    """Return what does not change in a run."""
    pools, models = len(scenario.pools), len(scenario.models)
    end = workload.seconds * 1_000_000_000
    burst = scenario.function.burst_per_10s
    par = np.zeros(16, np.int64)
    par[: s.P_EXACT + 1] = (
        min(to_ns(scenario.warmup_s), end),
        end,
        to_ns(interval_s),
        to_ns(scenario.function.init_s),
        to_ns(scenario.function.keep_alive_s),
        scenario.function.concurrency,
        10**10 // burst,
        burst,
        to_ns(scenario.spot.notice_s),
        rows,
        histogram,
        workload.seconds,
        workload.times_ns is not None,
    )
    widest = max(p.service_ns.shape[1] for p in scenario.pools)
    service = np.zeros((pools, models, widest), np.int64)
    believed = np.zeros_like(service)
    for i, p in enumerate(scenario.pools):
        service[i, :, : p.service_ns.shape[1]] = p.service_ns
        believed[i, :, : p.service_ns.shape[1]] = p.believed_ns
    storms = []
    for x in sorted(scenario.spot.storms, key=lambda x: x.start_s):
        begin = to_ns(x.start_s)
        refused = round(x.refused_share * 65536)
        storms.append((begin, begin + to_ns(x.length_s), x.interruptions_per_hour, refused))
    windows = [to_ns(c.accuracy_window_s) if c.mean_accuracy_pct else 0 for c in scenario.classes]
    return {
        "par": par,
        "base": bases(seed),
        "service": service,
        "believed": believed,
        "slo": np.array([to_ns(c.slo_s) for c in scenario.classes], np.int64),
        "quantile": lognormal_table(scenario.service.spread),
        "boot": lognormal_table(scenario.vm.boot_spread),
        "exponential": exponential_table(),
        "thresholds": np.ascontiguousarray(workload.thresholds, np.int64),
        "counts": np.ascontiguousarray(workload.counts, np.int64),
        "times": np.zeros(1, np.int64) if workload.times_ns is None else np.ascontiguousarray(workload.times_ns),
        "storm": np.array(storms, np.float64).reshape(-1, 4),
        "hazard": np.array([scenario.spot.interruptions_per_hour], np.float64),
        "window_ns": np.array(windows, np.int64),
    }


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


def _state(scenario: Scenario, peak: int, widest: int) -> dict[str, np.ndarray]:
    """Return an empty system: decision, clock, fleet, queues, containers, with room for ``peak`` arrivals a second."""
    pools, models, classes = len(scenario.pools), len(scenario.models), len(scenario.classes)
    room = power_of_two(max(1024, 2 * peak + 2))
    leaves = max(power_of_two(4 * p.slots) for p in scenario.pools)
    any_function = any(p.is_function for p in scenario.pools)
    containers = min(room, power_of_two(scenario.function.concurrency)) if any_function else 1
    return {
        "routes": _zeros(classes),
        "route_cum": _zeros(classes, ROUTES),
        "n_steps": _zeros(classes, ROUTES),
        "step": _zeros(classes, ROUTES, STEPS, 6),
        "clock": _zeros(16),
        "pool": _zeros(pools, s.POOL_COLUMNS),
        "tree": np.full((pools, 2 * leaves), s.NEVER, np.int64),
        "end_of": _zeros(pools, leaves),
        "machine": _zeros(pools, leaves, s.MACHINE_COLUMNS),
        "queue": _zeros(pools, classes, 6),
        "ring": _zeros(pools, classes, room, 3),
        "held": _zeros(pools, 256),
        "function": _zeros(pools, models, s.FUNCTION_COLUMNS),
        "flight": _zeros(pools, models, containers),
        "warm": _zeros(pools, models, containers),
        "doomed": _zeros(pools, room, 4),
        "arrive_at": _zeros(peak + 1),
        "arrive_draw": np.zeros(peak + 1, np.uint64),
        "batch": _zeros(widest, 3),
    }


def _books(
    scenario: Scenario, constants: dict[str, np.ndarray], seconds_seen: int, buckets: int
) -> dict[str, np.ndarray]:
    """Return the empty books of the interval and of the scored window."""
    pools, models, classes = len(scenario.pools), len(scenario.models), len(scenario.classes)
    par = constants["par"]
    scored_ns = par[s.P_END] - par[s.P_WARMUP]
    windows = max([1, *(1 + scored_ns // w for w in constants["window_ns"] if w)])
    return {
        "arrivals": _zeros(seconds_seen, classes),
        "served": _zeros(buckets, pools, models, classes),
        "late": _zeros(buckets, classes),
        "busy": _zeros(buckets, pools),
        "answered": _zeros(pools, models, classes),
        "scored_late": _zeros(models, classes),
        "scored": _zeros(classes),
        "histogram": _zeros(classes, s.HISTOGRAM_BINS if par[s.P_HISTOGRAM] else 1),
        "windows": _zeros(classes, int(windows), models),
    }


def _rows(n: int) -> dict[str, np.ndarray]:
    """Return n empty rows of requests."""
    return {
        "row_class": np.zeros(n, np.int16),
        "row_pool": np.full(n, -1, np.int16),
        "row_model": np.full(n, -1, np.int16),
        "row_start": np.full(n, -1, np.int64),
        "row_finish": np.full(n, -1, np.int64),
        "row_cold": np.zeros(n, np.int8),
        "row_arrived": _zeros(n),
    }


def _fill_pools(w: s.World, scenario: Scenario) -> None:
    """Write every pool's constants and empty state."""
    w.clock[s.NEXT_ALL] = s.NEVER_KEY
    w.queue[:, :, s.FIRST] = s.NEVER
    w.function[:, :, s.TAT] = -(1 << 58)
    for i, p in enumerate(scenario.pools):
        row = w.pool[i]
        row[s.NEXT] = s.NEVER_KEY
        row[s.IS_FUNCTION] = p.is_function
        row[s.IS_SPOT] = p.market == "spot"
        row[s.SLOTS] = p.slots
        row[s.LEAVES] = power_of_two(4 * p.slots)
        row[[s.NEXT_READY, s.NEXT_LOSS, s.RETURN_AT]] = s.NEVER
        row[s.BATCH_MAX] = 1
        row[s.MAX_MACHINES] = p.max_machines
        if p.is_function:
            row[s.BOOT_MEAN] = to_ns(scenario.function.init_s)
        else:
            row[s.PENDING] = to_ns(scenario.vm.pending_s)
            row[s.BOOT_MEAN] = to_ns(scenario.vm.boot_s)
            row[s.MIN_BILL] = to_ns(scenario.vm.minimum_bill_s)
            row[s.OWN_BOOT_SPREAD] = 1


def grow(w: s.World) -> s.World:
    """Return the world with twice the room in its queues and container heaps; queued requests keep their place."""
    old = w.ring.shape[2]
    ring = np.zeros((*w.ring.shape[:2], 2 * old, 3), np.int64)
    for p, k in np.ndindex(*w.ring.shape[:2]):
        waiting = np.arange(w.queue[p, k, s.HEAD], w.queue[p, k, s.TAIL])
        ring[p, k, waiting & (2 * old - 1)] = w.ring[p, k, waiting & (old - 1)]
    double = lambda a, axis: np.concatenate([a, np.zeros_like(a)], axis=axis)  # noqa: E731
    most = max(w.flight.shape[2], min(2 * w.flight.shape[2], power_of_two(int(w.par[s.P_CONCURRENCY]))))
    wider = most > w.flight.shape[2]
    return w._replace(
        ring=ring,
        doomed=double(w.doomed, 1),
        flight=double(w.flight, 2) if wider else w.flight,
        warm=double(w.warm, 2) if wider else w.warm,
    )


def make_room_for_machines(w: s.World, target: np.ndarray) -> s.World:
    """Return the world with trees that hold every target and an eighth more, so that gaps are closed seldom."""
    for p in range(len(target)):
        slots, old = int(w.pool[p, s.SLOTS]), int(w.pool[p, s.LEAVES])
        machines = min(int(target[p]), int(w.pool[p, s.MAX_MACHINES]))
        wanted = power_of_two((machines + machines // 8 + 4) * slots)
        if wanted <= old:
            continue
        if 2 * wanted > w.tree.shape[1]:
            more = 2 * wanted - w.tree.shape[1]
            w = w._replace(
                tree=np.pad(w.tree, ((0, 0), (0, more)), constant_values=s.NEVER),
                end_of=np.pad(w.end_of, ((0, 0), (0, wanted - w.end_of.shape[1]))),
                machine=np.pad(w.machine, ((0, 0), (0, wanted - w.machine.shape[1]), (0, 0))),
            )
        w.pool[p, s.LEAVES] = wanted
        compact(w, p, old)
    return w


def write_routes(w: s.World, decision: Decision) -> None:
    """Write a decision's routes (rules 3.5 and 6.1)."""
    for k, routes in enumerate(decision.routes):
        w.routes[k] = len(routes)
        total, running = sum(r.weight for r in routes), 0.0
        for r, route in enumerate(routes):
            running += route.weight
            w.route_cum[k, r] = round(running / total * 4096)
            w.n_steps[k, r] = len(route.steps)
            for i, step in enumerate(route.steps):
                late = -1 if step.late_model is None else step.late_model
                slack = s.NO_SLACK if step.leave_slack_s == -np.inf else to_ns(min(step.leave_slack_s, 1e8))
                w.step[k, r, i] = (step.pool, step.model, step.admit, slack, late, to_ns(step.late_slack_s))
