"""The memory of simulated worlds (``state.py``): made, grown and decided for from the project's own objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from selfserve.correctness import combination, stages
from selfserve.protocol import SHARES, Then
from selfserve.scenario import LONGEST_S, Scenario, to_ns
from selfserve.simulator import state as s
from selfserve.simulator.draws import bases, lognormal_table
from selfserve.simulator.fleet import compact
from selfserve.simulator.jit import item, kernel

if TYPE_CHECKING:
    from selfserve.protocol import Route
    from selfserve.workload import Workload

ROOM = 256
"""Requests in the system that a new world has room for; it grows as needed."""


def addresses(array: np.ndarray, axes: int = 0) -> Any:
    """Return where the parts of an array lie that an index into its first axes would give, shape of these axes."""
    found = array.__array_interface__["data"][0]
    for n, stride in zip(array.shape[:axes], array.strides[:axes], strict=True):
        found = np.asarray(found)[..., None] + np.arange(n) * stride
    return found


def power_of(base: int, n: int) -> int:
    """Return the least power of a base that is at least n."""
    power = 1
    while power < n:
        power *= base
    return power


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


@lru_cache(maxsize=64)
def _shared(table: bytes) -> np.ndarray:
    """Return a table of factors, the same array for all worlds with the same factors, so that they share the cache."""
    return np.frombuffer(table, np.int64).astype(np.int32)  # half as much cache as 64 bits


class Stack:
    """What all of E worlds have alike, with the axes [E] worlds, [P] pools, [M] models and [K] classes; all empty.

    Args:
        scenarios: one a world; same numbers of pools, models and classes.
        interval_s: decision interval, seconds.
    """

    def __init__(self, scenarios: Sequence[Scenario], interval_s: float) -> None:
        e, one = len(scenarios), scenarios[0]
        p, m, k = self.shape = len(one.pools), len(one.models), len(one.classes)
        slowest = max(4 * int(p.service_ns.max()) + to_ns(x.function.init_s) for x in scenarios for p in x.pools)
        buckets = 2 + min(256, slowest // to_ns(interval_s))  # intervals ahead into which finishes are booked
        self.heads = np.zeros(e, s.WORLD)
        self.pools, self.queues = np.zeros((e, p), s.POOL), np.zeros((e, p, 2 * k), s.QUEUE)
        self.functions, self.classes = np.zeros((e, p, m), s.FUNCTION), np.zeros((e, k), s.CLASS)
        self.routes, self.steps = np.zeros((e, k, s.ROUTES), s.ROUTE), np.zeros((e, k, s.ROUTES, s.STEPS), s.STEP)
        self.served, self.late, self.busy = _zeros(e, buckets, p, m, k), _zeros(e, buckets, k), _zeros(e, buckets, p)
        self.seen = _zeros(e, max(1, int(np.ceil(interval_s))), k)
        self.answered, self.held, self.work = _zeros(e, p, m, k), _zeros(e, p, 256), _zeros(e, p, m)
        h = self.heads
        h["n_pools"], h["n_models"], h["n_classes"] = self.shape
        h["interval"], h["n_buckets"], h["n_seconds_seen"] = to_ns(interval_s), buckets, self.seen.shape[1]
        for name in "pools classes routes steps served late busy seen answered".split():
            h[f"{name}_at"] = addresses(getattr(self, name), 1)
        for name in ("queues", "functions", "held", "work"):
            self.pools[f"{name}_at"] = addresses(getattr(self, name), 2)

    def row(self, e: int) -> dict[str, np.ndarray]:
        """Return the arrays of one world, by name: views."""
        return {name: a[e] for name, a in vars(self).items() if name not in ("shape", "heads")}


class World:
    """One simulated system at time 0, with an empty fleet: a row of a stack, and the arrays that it alone has.

    Args:
        stack: where the row is, still all zeros.
        e: index of the row.
        scenario: prices are not needed here, physics and service times are.
        workload: arrivals of the window.
        seed: seed of every draw.
        rows: keep one row a request.
        histogram: keep a latency histogram a class.
    """

    pools: np.ndarray
    queues: np.ndarray
    functions: np.ndarray
    classes: np.ndarray
    routes: np.ndarray
    steps: np.ndarray
    answered: np.ndarray
    windows: np.ndarray
    scored_late: np.ndarray
    regraded: np.ndarray
    scored_regraded: np.ndarray
    _rings: list[list[np.ndarray]]
    _doomed: np.ndarray
    _onward: np.ndarray
    _tickets: np.ndarray
    _flights: np.ndarray
    _warm: np.ndarray

    def __init__(
        self, stack: Stack, e: int, scenario: Scenario, workload: Workload, seed: int, rows: bool, histogram: bool
    ) -> None:
        self.head, self.shape = stack.heads[e : e + 1], stack.shape
        vars(self).update(stack.row(e))
        self._scenario, self._kept = scenario, dict[str, np.ndarray]()
        self.combos: list[Combo] = []
        self._constants(scenario, workload, seed)
        self._books(int(workload.counts.sum()) if rows else None, histogram)
        self._pools(scenario)
        self._make_room(ROOM)

    def __getitem__(self, field: str) -> int:
        """Return a field of the world's own record."""
        return self.head[field][0]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all memory of this world, by name."""
        fleets = {f"fleet {i} {j}": a for i, fleet in enumerate(self._fleets) for j, a in enumerate(fleet)}
        return self._kept | fleets | {name: a for name, a in vars(self).items() if isinstance(a, np.ndarray)}

    def _point(self, field: str, array: np.ndarray) -> None:
        """Let a field of the record point to an array, and keep the array alive."""
        self._kept[field], self.head[field] = array, addresses(array)

    def _constants(self, scenario: Scenario, workload: Workload, seed: int) -> None:
        """Write what does not change in a run."""
        end, burst = workload.seconds * s.SECOND_NS, scenario.function.burst_per_10s
        h = self.head
        h["warmup"], h["end"], h["seconds"] = min(to_ns(scenario.warmup_s), end), end, workload.seconds
        h["init"], h["keep_alive"] = to_ns(scenario.function.init_s), to_ns(scenario.function.keep_alive_s)
        h["concurrency"], h["token_ns"], h["burst"] = scenario.function.concurrency, 10**10 // burst, burst
        h["notice"], h["hazard"] = to_ns(scenario.spot.notice_s), scenario.spot.interruptions_per_hour
        h["keys"], h["next_event"] = bases(seed), s.NEVER_KEY
        self._point("service_at", _shared(lognormal_table(scenario.service.spread).tobytes()))
        self._point("boot_at", _shared(lognormal_table(scenario.vm.boot_spread).tobytes()))
        self._point("counts_at", np.ascontiguousarray(workload.counts, np.int64))
        self._point("thresholds_at", np.ascontiguousarray(workload.thresholds, np.int64))
        h["n_minutes"], h["exact"] = len(workload.thresholds), workload.times_ns is not None
        if workload.times_ns is not None:
            self._point("times_at", np.ascontiguousarray(workload.times_ns, np.int64))
        storms = [
            (to_ns(x.start_s), to_ns(x.start_s) + to_ns(x.length_s), x.interruptions_per_hour,
             round(x.refused_share * 65536))
            for x in sorted(scenario.spot.storms, key=lambda x: x.start_s)
        ]  # fmt: skip
        self._point("storms_at", np.array(storms, np.float64).reshape(-1, 4))
        h["n_storms"] = len(storms)
        peak = int(workload.counts.max(initial=0))
        self._point("arrivals_at", _zeros(peak))
        self._point("draws_at", np.zeros(peak, np.uint64))
        self._point("batch_at", np.zeros(max(p.service_ns.shape[1] for p in scenario.pools), s.MEMBER))
        self.classes["slo"] = [to_ns(c.slo_s) for c in scenario.classes]
        self.classes["window_ns"] = [to_ns(c.accuracy_window_s) if c.mean_accuracy_pct else 0 for c in scenario.classes]

    def _books(self, rows: int | None, histogram: bool) -> None:
        """Make the empty books of the scored window."""
        _, models, classes = self.shape
        self.head["most_stages"] = 1
        self.histogram = _zeros(classes, s.HISTOGRAM_BINS if histogram else 0)
        if histogram:
            self.classes["histogram_at"] = addresses(self.histogram, 1)
        self._make_grades(models)
        self.rows = None if rows is None else np.full(rows, -1, s.ROW)
        if self.rows is not None:
            self._point("rows_at", self.rows)

    def _make_grades(self, n: int) -> None:
        """Make room for n grades in the books that score accuracy: the models and, after them, combinations."""
        classes, span = self.shape[2], int(self["end"] - self["warmup"])
        windows = max(1 + span // w if w else 1 for w in self.classes["window_ns"].tolist())
        shapes = {"windows": (classes, windows), "scored_late": (classes,), "scored_regraded": (classes,)}
        for name, shape in (shapes | {"regraded": (int(self["n_buckets"]), classes)}).items():
            new, old = _zeros(*shape, n), getattr(self, name, None)
            if old is not None:
                new[..., : old.shape[-1]] = old
            setattr(self, name, new)
        self.classes["windows_at"], self.head["n_grades"] = addresses(self.windows, 1), n
        for name in ("scored_late", "scored_regraded", "regraded"):
            self.head[f"{name}_at"] = addresses(getattr(self, name))

    def accuracies_pct(self) -> np.ndarray:
        """Return the accuracy of each grade, percent; grades not in use have 0."""
        found = np.zeros(int(self["n_grades"]))
        found[: self.shape[1]] = self._scenario.accuracy_pct
        found[self.shape[1] : self.shape[1] + len(self.combos)] = [c.accuracy_pct for c in self.combos]
        return found

    def _pools(self, scenario: Scenario) -> None:
        """Write the pools' constants and their empty state."""
        p, function = self.pools, np.array([x.is_function for x in scenario.pools])
        p["index"], p["is_function"] = range(len(p)), function
        p["first_cell"] = p["index"] * self.shape[1] * self.shape[2]
        p["is_spot"] = [x.market == "spot" for x in scenario.pools]
        p["slots"] = [x.slots for x in scenario.pools]
        p["max_machines"] = [x.max_machines for x in scenario.pools]
        p["width"] = [x.service_ns.shape[1] for x in scenario.pools]
        p["boot"] = np.where(function, to_ns(scenario.function.init_s), to_ns(scenario.vm.boot_s))
        p["pending"] = np.where(function, 0, to_ns(scenario.vm.pending_s))
        p["min_bill"] = np.where(function, 0, to_ns(scenario.vm.minimum_bill_s))
        p["own_boot_spread"], p["next"], p["batch_max"] = ~function, s.NEVER_KEY, 1
        p["next_ready"] = p["next_loss"] = p["return_at"] = s.NEVER
        tables = [a for x in scenario.pools for a in (x.service_ns, x.believed_ns)]
        self._tables = [np.ascontiguousarray(a, np.int64) for a in tables]
        p["service_at"], p["believed_at"] = np.reshape([addresses(a) for a in self._tables], (-1, 2)).T
        q, self.functions["tat"] = self.queues, -(1 << 58)
        q["slo"] = np.tile(self.classes["slo"], 2)
        q["first"] = q["order"] = q["leave_at"] = q["late_after"] = s.NEVER
        self._fleets: list[tuple[np.ndarray, ...]] = [()] * len(p)
        for i in range(len(p)):
            self._make_fleet(int(i), power_of(4, 4 * int(p["slots"][i])))

    def _make_fleet(self, i: int, leaves: int) -> None:
        """Give a pool a slot tree of so many leaves, with the machines that it has."""
        pool, old = self.pools[i : i + 1], self._fleets[i]
        new = np.full(2 * leaves, s.NEVER), _zeros(leaves), np.zeros(leaves // int(pool["slots"][0]) + 1, s.MACHINE)
        for a, b in zip(old, new, strict=False):
            b[: len(a)] = a
        self._fleets[i], before = new, int(pool["leaves"][0])
        pool["tree_at"], pool["end_of_at"], pool["machines_at"] = (addresses(a) for a in new)
        pool["leaves"] = leaves
        if old:
            _compact(addresses(self.head), i, before)

    def make_room_for_machines(self, target: np.ndarray) -> None:
        """Let slot trees hold every target [P] and an eighth more, so that gaps are closed seldom."""
        wanted = np.minimum(target, self.pools["max_machines"])
        wanted = (wanted + wanted // 8 + 4) * self.pools["slots"]
        for i in np.flatnonzero(wanted > self.pools["leaves"]):
            self._make_fleet(int(i), power_of(4, int(wanted[i])))

    def _make_room(self, n: int) -> None:
        """Make room for n requests in every queue and, up to the limit of concurrency, in every function.

        Zeros that nothing is written to take no memory, so only what is in use is copied.
        """
        pools, models, classes = self.shape
        q, f, p, old = self.queues, self.functions, self.pools, int(self["room"])
        rings = [[np.zeros(n, s.WAITER) for _ in range(2 * classes)] for _ in range(pools)]
        doomed, onward = np.zeros((pools, n), s.PASSING), np.zeros((pools, n + 2), s.PASSING)
        functions = p["is_function"].any()
        containers = min(n, power_of(2, int(self["concurrency"]))) if functions else 0
        flights, warm = _zeros(pools, models, containers), _zeros(pools, models, containers)
        if old:
            for i, k in np.ndindex(pools, 2 * classes):
                waiting = np.arange(int(q["head"][i, k]), int(q["tail"][i, k]))
                rings[i][k][waiting & (n - 1)] = self._rings[i][k][waiting & (old - 1)]
            for new, before, used in ((doomed, self._doomed, p["doomed"]), (onward, self._onward, p["onward"])):
                for i in range(pools):
                    new[i, : used[i]] = before[i, : used[i]]
            held = self._flights.shape[2]
            flights[..., :held], warm[..., :held] = self._flights, self._warm
        tickets = np.zeros(n, s.TICKET)
        if self.combos:
            tickets[:old] = self._tickets
        self._rings, self._doomed, self._onward, self._tickets = rings, doomed, onward, tickets
        self._flights, self._warm = flights, warm
        q["ring_at"], q["mask"] = [[addresses(ring) for ring in row] for row in rings], n - 1
        p["doomed_at"], p["onward_at"] = addresses(doomed, 1), addresses(onward, 1)
        f["flight_at"], f["warm_at"] = addresses(flights, 2), addresses(warm, 2)
        self.head["tickets_at"], self.head["room"] = addresses(tickets), n
        self.head["containers"] = containers if functions else s.NEVER

    def grow(self) -> None:
        """Make room for twice as many requests, and for the next second's."""
        counts = self._kept["counts_at"]
        second = counts[min(int(self["second"]), len(counts) - 1)]
        self._make_room(power_of(2, 2 * max(int(self["room"]), int(second))))

    def write_routes(self, every: Sequence[Sequence[Route]]) -> None:
        """Write a decision's routes, one sequence a class (rules 3.5, 6.1 and 10.1)."""
        self.classes["n_routes"] = [len(routes) for routes in every]
        for k, routes in enumerate(every):
            total, running = sum(r.weight for r in routes), 0.0
            for r, route in enumerate(routes):
                running += route.weight
                parts = stages(route)
                combo = self._combo(k, route) if len(parts) > 1 else -1
                self.routes[k, r] = (round(running / total * SHARES), len(route.steps), combo)
                lengths = [len(part) for part in parts]
                ends, numbers = np.repeat(np.cumsum(lengths), lengths), np.repeat(np.arange(len(parts)), lengths)
                for i, step in enumerate(route.steps):
                    late = -1 if step.late_model is None else step.late_model
                    slack = s.NO_SLACK if step.leave_slack_s == -np.inf else to_ns(min(step.leave_slack_s, LONGEST_S))
                    row = step.pool, step.model, step.admit, slack, late, to_ns(step.late_slack_s), numbers[i], ends[i]
                    self.steps[k, r, i] = row

    def combo_rows(self) -> np.ndarray:
        """Return what is counted of each of ``combos``."""
        return self._kept.get("combos_at", np.zeros(0, s.COMBO))

    def _combo(self, k: int, route: Route) -> int:
        """Return the number of a way of several stages for class k; a new one is a grade more in the books."""
        found, parts = combination(self._scenario, route), stages(route)
        places = tuple(tuple((x.pool, x.model) for x in part) for part in parts)
        combo = Combo(k, places, parts[0][-1].then, found.pass_on, found.accuracy_pct)
        if combo in self.combos:
            return self.combos.index(combo)
        n, models = len(self.combos), self.shape[1]
        self.combos.append(combo)
        if models + n >= self["n_grades"]:
            self._make_grades(models + max(8, 2 * n))
        table = np.zeros(n + 1, s.COMBO)
        if n:
            table[:n] = self._kept["combos_at"]
        also = combo.then == Then.ALSO
        unsure = np.pad(found.unsure, (0, s.STEPS - len(parts)))
        powers = np.array([pow(33, int(part[0].model), 2**64) for part in parts], dtype=np.uint64)
        marks = np.cumsum(powers, dtype=np.uint64).view(np.int64)
        table[n] = (also, len(parts), models + n, unsure, np.pad(marks, (0, s.STEPS - len(parts))), 0)
        self._point("combos_at", table)
        self.head["n_combos"], self.head["most_stages"] = n + 1, max(self["most_stages"], len(parts) if also else 1)
        return n


@dataclass(frozen=True)
class Combo:
    """A cascade or ensemble that a run used."""

    cls: int
    """Index of the class of requests."""
    stages: tuple[tuple[tuple[int, int], ...], ...]
    """(pool, model) of each step of each stage."""
    then: Then
    pass_on: tuple[float, ...]
    """Probability that a stage passes on what all before it passed on (an ensemble: zeros)."""
    accuracy_pct: float
    ended: tuple[int, ...] = ()
    """Scored answers in time that it gave after each stage (an ensemble: all under the first)."""


@kernel
def _compact(head: int, p: int, before: int) -> None:
    compact(s.pool_of(item(head, 0, s.WORLD), p), before)
