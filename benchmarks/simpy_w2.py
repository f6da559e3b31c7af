"""W2 as a SimPy user would write it: the yardstick of the simulator's speed on the ``standard`` scenario.

One process brings the arrivals, each batch in service is a process, and each class that may be deferred has one that
sends on what has waited to the last moment. The queues are written for speed (lists with a head, cumulative work found
by bisection, a stack of warm containers), because a slow yardstick proves nothing. Arrivals, service factors and boots
come ready-made, so that SimPy pays for no random numbers. Left out of the full physics: bills, token buckets of
function bursts, scaling after the first decision, spot machines.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Sequence
from math import inf
from typing import Any

import simpy

from selfserve.protocol import Admit, Decision, Step
from selfserve.scenario import Pool, Scenario

Process = Generator[simpy.Event, Any, None]


class Request:
    """A request and where on its route it is."""

    __slots__ = ("arrival", "deadline", "factor", "klass", "step", "steps")

    def __init__(self, arrival: float, klass: int, slo: float, steps: tuple[Step, ...], factor: float):
        self.arrival, self.klass, self.steps, self.factor = arrival, klass, steps, factor
        self.deadline = arrival + slo
        self.step = 0


class ClassQueue:
    """The waiting requests of one class, first come first served, with the sums of work that a prediction needs."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.deadlines: list[float] = []
        self.work: list[float] = [0.0]
        self.head = 0

    def __len__(self) -> int:
        return len(self.requests) - self.head

    def push(self, request: Request, work: float) -> None:
        self.requests.append(request)
        self.deadlines.append(request.deadline)
        self.work.append(self.work[-1] + work)

    def pop(self) -> Request:
        request = self.requests[self.head]
        self.head += 1
        if self.head == 4096:
            del self.requests[: self.head], self.deadlines[: self.head], self.work[: self.head]
            self.head = 0
        return request

    def first(self) -> Request:
        return self.requests[self.head]

    def work_before(self, deadline: float) -> float:
        """Return the work of the requests that are due before a deadline."""
        return self.work[bisect_left(self.deadlines, deadline, self.head)] - self.work[self.head]


class System:
    """The serving system: a machine pool and a function pool, each with a queue, under one constant decision.

    Args:
        scenario: classes, pools (machines first, functions second) and physics.
        decision: routes, batches and machines, in force from time 0.
        times_s: arrival times, seconds.
        classes: class of each arrival.
        factors: service factor of each arrival (lognormal, mean 1).
        route_bits: 0..4095 for each arrival, which picks one of its class's routes.
        ready_s: when each machine is ready, seconds.
        warmup_s: arrivals before this are not counted.
    """

    def __init__(
        self,
        scenario: Scenario,
        decision: Decision,
        times_s: Sequence[float],
        classes: Sequence[int],
        factors: Sequence[float],
        route_bits: Sequence[int],
        ready_s: Sequence[float],
        warmup_s: float,
    ) -> None:
        self.env = simpy.Environment()
        self.warmup_s = warmup_s
        self.slo = [c.slo_s for c in scenario.classes]
        self.answers = [0] * len(self.slo)
        self.latency = [0.0] * len(self.slo)
        self.late = [0] * len(self.slo)
        self.on_functions = 0
        vm, fn = scenario.pools
        self.machines = Machines(self, scenario, vm, decision, ready_s)
        self.functions = Functions(self, scenario, fn)
        self.pools = (self.machines, self.functions)
        self.routes = []
        for routes in decision.routes:
            total, running, table = sum(r.weight for r in routes), 0.0, []
            for route in routes:
                running += route.weight
                table.append((round(running / total * 4096), route.steps))
            self.routes.append(table)
        self.env.process(self.arrive(times_s, classes, factors, route_bits))

    def arrive(
        self, times_s: Sequence[float], classes: Sequence[int], factors: Sequence[float], route_bits: Sequence[int]
    ) -> Process:
        """Bring the requests, one timeout each."""
        env = self.env
        for at, k, factor, bits in zip(times_s, classes, factors, route_bits, strict=True):
            yield env.timeout(max(0.0, at - env.now))
            steps = next(steps for bound, steps in self.routes[k] if bits < bound)
            self.admit(Request(env.now, k, self.slo[k], steps, factor))

    def admit(self, request: Request) -> None:
        """Offer a request to the steps of its route from the present one on; the last takes it."""
        steps = request.steps
        last = len(steps) - 1
        while request.step < last:
            step = steps[request.step]
            if step.admit == Admit.ALWAYS or self.pools[step.pool].fits(request, step.model):
                break
            request.step += 1
        self.pools[steps[request.step].pool].take(request)

    def answered(self, batch: list[Request], function: bool) -> None:
        """Count the answers of a batch that finishes now."""
        now = self.env.now
        for request in batch:
            if request.arrival >= self.warmup_s:
                k = request.klass
                self.answers[k] += 1
                self.latency[k] += now - request.arrival
                self.late[k] += now > request.deadline
                self.on_functions += function


class Machines:
    """VMs that boot once and serve batches, earliest deadline first; deferred requests leave for the next step."""

    def __init__(
        self, system: System, scenario: Scenario, pool: Pool, decision: Decision, ready_s: Sequence[float]
    ) -> None:
        self.system, self.env = system, system.env
        self.means = (pool.service_ns / 1e9).tolist()
        self.believed = (pool.believed_ns / 1e9).tolist()
        self.batch_max, self.batch_wait = decision.batch_max[0], decision.batch_wait_s[0]
        self.queues = [ClassQueue() for _ in scenario.classes]
        self.waiting = 0
        self.held = [0] * len(scenario.models)  # waiting requests by model
        self.slots_of_one, self.slots, self.free = pool.slots, 0, 0
        self.believed_end = 0.0  # sum over busy slots of when each is believed to end what it serves
        self.believed_ready = scenario.vm.pending_s + scenario.vm.boot_s
        for at in ready_s:
            self.env.process(self.boot(at))
        self.timer_at = inf
        self.came: dict[int, simpy.Event] = {}  # what the senders of classes that may leave wait for
        for k, routes in enumerate(decision.routes):
            if any(step.leave_slack_s > -inf for route in routes for step in route.steps):
                self.came[k] = self.env.event()
                self.env.process(self.send_on(k))

    def boot(self, at: float) -> Process:
        """Add the slots of a machine when it is ready."""
        yield self.env.timeout(at)
        self.slots += self.slots_of_one
        self.free += self.slots_of_one
        self.dispatch()

    def fits(self, request: Request, model: int) -> bool:
        """Return whether the predicted finish is within the deadline."""
        now, slots, base, delay = self.env.now, self.slots, self.env.now, 0.0
        if not self.free:
            remaining = 0.0
            if slots:
                remaining = max(0.0, self.believed_end - slots * now)
            else:
                slots, base = self.slots_of_one, max(now, self.believed_ready)
            ahead = sum(queue.work_before(request.deadline) for queue in self.queues)
            delay = (ahead + remaining) / slots
        size = min(self.batch_max, self.held[model] + 1)
        wait = 0.0 if size == self.batch_max else self.batch_wait
        return base + max(delay, wait) + self.believed[model][size] <= request.deadline

    def take(self, request: Request) -> None:
        """Queue a request and start what can start."""
        model, k = request.steps[request.step].model, request.klass
        self.queues[k].push(request, self.believed[model][self.batch_max] / self.batch_max)
        self.waiting += 1
        self.held[model] += 1
        if k in self.came and not self.came[k].triggered:
            self.came[k].succeed()
        if self.free:
            self.dispatch()

    def remove(self, k: int) -> Request:
        """Take the head of a class out of the queue."""
        request = self.queues[k].pop()
        self.waiting -= 1
        self.held[request.steps[request.step].model] -= 1
        return request

    def model_now(self, request: Request) -> int:
        """Return the model that would answer if the request were dispatched now (late binding)."""
        step = request.steps[request.step]
        if step.late_model is not None and request.deadline - self.env.now < step.late_slack_s:
            return step.late_model
        return step.model

    def dispatch(self) -> None:
        """Start batches while a slot is free and the head of some class is due."""
        now = self.env.now
        while self.free and self.waiting:
            first, soonest = None, inf
            for queue in self.queues:
                if len(queue):
                    head = queue.first()
                    due = head.arrival + self.batch_wait
                    if self.held[head.steps[head.step].model] < self.batch_max and due > now:
                        soonest = min(soonest, due)
                    elif first is None or head.deadline < first.deadline:
                        first = head
            if first is None:
                if soonest < self.timer_at:
                    self.timer_at = soonest
                    self.env.process(self.time_out(soonest))
                return
            model, batch = self.model_now(first), [self.remove(first.klass)]
            while len(batch) < self.batch_max:
                heads = [q.first() for q in self.queues if len(q) and self.model_now(q.first()) == model]
                if not heads:
                    break
                batch.append(self.remove(min(heads, key=lambda r: r.deadline).klass))
            self.free -= 1
            self.env.process(self.serve(batch, model))

    def time_out(self, at: float) -> Process:
        """Wake the dispatcher when a batch has waited long enough."""
        yield self.env.timeout(at - self.env.now)
        if self.timer_at == at:
            self.timer_at = inf
        self.dispatch()

    def serve(self, batch: list[Request], model: int) -> Process:
        """Hold a slot for one batch."""
        size = len(batch)
        believed_end = self.env.now + self.believed[model][size]
        self.believed_end += believed_end
        yield self.env.timeout(self.means[model][size] * batch[0].factor)
        self.system.answered(batch, False)
        self.believed_end -= believed_end
        self.free += 1
        self.dispatch()

    def send_on(self, k: int) -> Process:
        """Send heads of a class that have waited to the last moment on to the next step of their route."""
        queue = self.queues[k]
        while True:
            while len(queue):
                head = queue.first()
                left = head.deadline - head.steps[head.step].leave_slack_s - self.env.now
                if left > 0:
                    yield self.env.timeout(left)
                    continue
                self.remove(k)
                head.step += 1
                self.system.admit(head)
            self.came[k] = self.env.event()
            yield self.came[k]


class Functions:
    """One function a model: warm containers are used first, else a cold start, up to the concurrency."""

    def __init__(self, system: System, scenario: Scenario, pool: Pool) -> None:
        self.system, self.env, self.physics = system, system.env, scenario.function
        self.means = (pool.service_ns[:, 1] / 1e9).tolist()
        self.believed = (pool.believed_ns[:, 1] / 1e9).tolist()
        models = range(len(scenario.models))
        self.warm: list[deque[float]] = [deque() for _ in models]  # finish times, most recent on the right
        self.running = [0 for _ in models]
        self.queues: list[deque[Request]] = [deque() for _ in models]

    def is_warm(self, model: int) -> bool:
        """Return whether a warm container waits; forget those kept beyond the keep-alive."""
        warm = self.warm[model]
        while warm and warm[0] + self.physics.keep_alive_s <= self.env.now:
            warm.popleft()
        return bool(warm)

    def fits(self, request: Request, model: int) -> bool:
        """Return whether the predicted finish is within the deadline."""
        init = 0.0 if self.is_warm(model) else self.physics.init_s
        return self.env.now + init + self.believed[model] <= request.deadline

    def take(self, request: Request) -> None:
        """Start a request in a container, or queue it at the limit."""
        model = request.steps[request.step].model
        if self.running[model] >= self.physics.concurrency:
            self.queues[model].append(request)
            return
        self.running[model] += 1
        init = self.physics.init_s
        if self.is_warm(model):
            self.warm[model].pop()
            init = 0.0
        self.env.process(self.serve(request, model, init + self.means[model] * request.factor))

    def serve(self, request: Request, model: int, duration: float) -> Process:
        """Run one request in a container, then let one that waits have its place."""
        yield self.env.timeout(duration)
        self.system.answered([request], True)
        self.running[model] -= 1
        self.warm[model].append(self.env.now)
        if self.queues[model]:
            self.take(self.queues[model].popleft())
