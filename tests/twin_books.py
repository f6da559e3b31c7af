"""What the twin holds and writes down: machines and services, observations of its intervals, rows and bills."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from twin_draws import Request

from selfserve.protocol import BOOT_AGE_BINS, Observation
from selfserve.scenario import NS, Scenario, to_ns

NEVER = -(10**30)


@dataclass(eq=False)
class Visit:
    """A request in one of its stages (rule 10; a plain route has one), where it waits or is served."""

    request: Request
    stage: int
    step: int = -1
    pool: int = -1
    held: int = -1
    work: int = 0
    since: int = 0
    """When it entered its present queue."""
    model: int = -1
    start: int = -1
    finish: int = -1
    cold: bool = False
    done: bool = False
    unsure: bool = False
    accuracy: float = 0.0
    """Of an answer by its present service, percent."""

    id = property(lambda self: self.request.id)
    arrival = property(lambda self: self.request.arrival)
    klass = property(lambda self: self.request.klass)
    deadline = property(lambda self: self.request.deadline)

    @property
    def quantile(self) -> int:
        """Rule 10.3."""
        return self.request.quantile + 1365 * self.stage & 4095

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Rule 5.1, where ids tie 10.3: its place in the order of a queue."""
        return self.deadline, self.id, self.step, self.quantile


@dataclass
class Service:
    """A batch in service."""

    pool: int
    model: int
    batch: list[Visit]
    start: int
    finish: int
    believed: int
    machine: Machine | None = None
    """None: a function container on demand."""
    cancelled: bool = False


@dataclass
class Machine:
    """A VM, or a provisioned container (7.6)."""

    pool: int
    ordinal: int
    decided: int
    running: int
    believed_ready: int
    slots: list[Service | None]
    ready: bool = False
    draining: bool = False
    gone: int | None = None

    @property
    def counts(self) -> bool:
        """Rule 4.1: pending, booting and ready ones count."""
        return self.gone is None and not self.draining

    @property
    def busy(self) -> bool:
        return any(slot is not None for slot in self.slots)


@dataclass
class Function:
    """The function of one model: when its warm containers finished, how many execute, its tokens (7.1 to 7.3)."""

    warm: list[int] = field(default_factory=list)
    executing: int = 0
    tat: int = NEVER


@dataclass
class TwinResult:
    """What the twin found; arrays over the scored requests are in order of their ids; -1: never answered."""

    id: np.ndarray
    arrival_ns: np.ndarray
    klass: np.ndarray
    pool: np.ndarray
    model: np.ndarray
    start_ns: np.ndarray
    finish_ns: np.ndarray
    cold: np.ndarray
    rejected: np.ndarray
    vm_billed_ns: np.ndarray
    function_ms: np.ndarray
    provisioned_ms: np.ndarray
    invocations: np.ndarray
    cost_usd: np.ndarray
    below_floor: np.ndarray
    """[K] answers of scored requests that are less accurate than their class demands."""
    mean_accuracy_pct: np.ndarray
    """[K] over the answers of scored requests; nan where there are none."""
    observations: list[Observation]
    seen: Counter[str]
    """How often each feature of the physics was at work."""


class Books:
    """The state of a run and its books; the twin adds what happens."""

    def __init__(self, scenario: Scenario, requests: list[Request], interval: int, end: int):
        pools, models = len(scenario.pools), len(scenario.models)
        self.scenario, self.requests, self.interval = scenario, requests, interval
        self.warmup, self.end = to_ns(scenario.warmup_s), end
        self.queues: list[list[Visit]] = [[] for _ in range(pools)]
        self.machines: list[list[Machine]] = [[] for _ in range(pools)]
        self.functions = [[Function() for _ in range(models)] for _ in range(pools)]
        self.function_ms = np.zeros((pools, models), np.int64)
        self.provisioned_ms = np.zeros((pools, models), np.int64)
        self.invocations = np.zeros((pools, models), np.int64)
        self.observations: list[Observation] = []
        self.log: list[tuple[str, int, int, int]] = []
        """What happened since the last observation: (what, pool, model, class or size of the batch)."""
        self.waits: list[tuple[int, int, int, int]] = []
        """Waits that ended: pool, class, from, to."""
        self.accuracies: list[tuple[int, float]] = []
        """Answers since the last observation: class, accuracy in percent."""
        self.services: list[Service] = []
        self.seen: Counter[str] = Counter()

    def heads(self, p: int) -> list[Visit]:
        """Rule 5.1: the lowest id of each class, and so its earliest deadline; of one id the earlier stage (10.3)."""
        heads: dict[int, Visit] = {}
        for visit in self.queues[p]:
            head = heads.get(visit.klass, visit)
            heads[visit.klass] = visit if visit.place < head.place else head
        return [heads[k] for k in sorted(heads)]

    def holding(self, p: int, model: int) -> int:
        return sum(visit.held == model for visit in self.queues[p])

    def billed(self, machine: Machine) -> int:
        """Rule 4.4."""
        pool = self.scenario.pools[machine.pool]
        minimum = 0 if pool.is_function else to_ns(self.scenario.vm.minimum_bill_s)
        if machine.gone is None:
            stop = self.end
        elif machine.gone < machine.running:
            return 0
        else:
            stop = machine.running + max(minimum, -((machine.running - machine.gone) // NS) * NS)
        return max(0, min(stop, self.end) - max(machine.running, self.warmup))

    def free_slot(self, p: int) -> tuple[Machine, int] | None:
        """Rule 4.5: the first one, by ordinal and slot number."""
        for machine in self.machines[p]:
            if machine.ready and machine.counts and None in machine.slots:
                return machine, machine.slots.index(None)
        return None

    def token_gap(self) -> int:
        return 10**10 // self.scenario.function.burst_per_10s

    def token_time(self, p: int, function: Function) -> int:
        """Rule 7.3: from when, at rank 5, a token is at hand."""
        return function.tat - (self.scenario.function.burst_per_10s - 1) * self.token_gap()

    def note(self, what: str, pool: int, model: int = 0, number: int = 0) -> None:
        self.seen[what] += 1
        self.log.append((what, pool, model, number))

    def observe(self, now: int) -> None:
        """Close the interval that ends at ``now``."""
        scenario, pools, begin = self.scenario, range(len(self.queues)), len(self.observations) * self.interval
        classes, count = len(scenario.classes), Counter(self.log)
        arrived = np.zeros((math.ceil(self.interval / NS), classes), np.int64)
        for r in self.requests:
            if begin <= r.arrival < now:
                arrived[(r.arrival - begin) // NS, r.klass] += 1
        booting = np.zeros((len(pools), BOOT_AGE_BINS), np.int64)
        for machine in (m for row in self.machines for m in row if m.counts and not m.ready):
            booting[machine.pool, min((now - machine.decided) // (10 * NS), BOOT_AGE_BINS - 1)] += 1
        models = range(len(scenario.models))
        served = np.array([[[count["served", p, m, k] for k in range(classes)] for m in models] for p in pools])
        late = [sum(count["late", p, m, k] for p in pools for m in models) for k in range(classes)]
        queued, age = np.zeros((len(pools), classes), np.int64), np.zeros((len(pools), classes))
        queued_s, busy = np.zeros((len(pools), classes)), np.zeros(len(pools))
        for r in (r for queue in self.queues for r in queue):
            queued[r.pool, r.klass] += 1
            age[r.pool, r.klass] = max(age[r.pool, r.klass], (now - r.arrival) / NS)
        present = [(r.pool, r.klass, r.since, now) for queue in self.queues for r in queue]
        for p, k, enter, leave in self.waits + present:
            queued_s[p, k] += max(0, min(leave, now) - max(enter, begin)) / NS
        for s in self.services:
            busy[s.pool] += max(0, min(s.finish, now) - max(s.start, begin)) / NS
        sizes = [[size for what, q, _, size in self.log if (what, q) == ("batch", p)] for p in pools]
        observation = Observation(
            time_s=now / NS,
            interval_s=(now - begin) / NS,
            arrivals=arrived,
            ready=np.array([sum(m.ready and m.counts for m in row) for row in self.machines]),
            booting=booting,
            busy_slot_s=busy,
            queued=queued,
            queued_request_s=queued_s,
            head_age_s=age,
            served=served,
            late=np.array(late),
            accuracy_sum=np.array([sum(a for c, a in self.accuracies if c == k) for k in range(classes)]),
            cold_starts=np.array([count["cold start", p, 0, 0] for p in pools]),
            lost=np.array([count["lost", p, 0, 0] for p in pools]),
            refused=np.array([count["refused", p, 0, 0] for p in pools]),
            batch_mean=np.array([sum(row) / max(1, len(row)) for row in sizes]),
            spend_usd=np.zeros(len(pools)),
        )
        self.observations.append(observation)
        self.log.clear()
        self.accuracies.clear()

    def result(self, vm_billed_ns: np.ndarray) -> TwinResult:
        cost = [
            vm_billed_ns[p] / 3.6e12 * pool.usd_per_hour
            + self.function_ms[p].sum() / 3.6e6 * pool.usd_per_busy_hour
            + self.provisioned_ms[p].sum() / 3.6e6 * pool.usd_per_busy_hour_provisioned
            + self.invocations[p].sum() * pool.usd_per_request
            for p, pool in enumerate(self.scenario.pools)
        ]

        scored = [request for request in self.requests if request.arrival >= self.warmup]  # 9.1

        below, means = [], []
        for k, demand in enumerate(self.scenario.classes):
            answers = [r.accuracy for r in scored if r.klass == k and not r.rejected]
            below.append(sum(accuracy < demand.min_accuracy_pct for accuracy in answers))
            means.append(sum(answers) / len(answers) if answers else math.nan)

        def column(name: str) -> np.ndarray:
            return np.array([getattr(request, name) for request in scored])

        return TwinResult(
            id=column("id"),
            arrival_ns=column("arrival"),
            klass=column("klass"),
            pool=column("pool"),
            model=column("model"),
            start_ns=column("start"),
            finish_ns=column("finish"),
            cold=column("cold"),
            rejected=column("rejected"),
            vm_billed_ns=vm_billed_ns,
            function_ms=self.function_ms,
            provisioned_ms=self.provisioned_ms,
            invocations=self.invocations,
            cost_usd=np.array(cost),
            below_floor=np.array(below),
            mean_accuracy_pct=np.array(means),
            observations=self.observations,
            seen=self.seen,
        )
