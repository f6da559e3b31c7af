"""An independent twin of the simulator: the physics page as plain SimPy, one event after the other.

Written from ``PHYSICS.md`` alone, clear and slow; numbers in comments are the rules of that page. Where the page leaves
something open, the twin's reading is marked with ``Reading:``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import simpy
from twin_books import Books, Function, Machine, Service, TwinResult, Visit
from twin_draws import BOOT, REFUSAL, UNSURE, Request, arrivals, bits, draw, notice_time, route_of, spread, storm_at
from twin_stages import is_all, of_route, stage_at, stages_of

from selfserve.protocol import Admit, Decision, Route, Step, Then
from selfserve.scenario import NS, Scenario, to_ns
from selfserve.workload import Workload

FINISH, READY, LOSS, DECISION, LEAVE, TIMEOUT, ARRIVAL = range(7)  # 1.2


class Twin(Books):
    """One run."""

    def __init__(self, scenario: Scenario, workload: Workload, decisions: list[Decision], interval_s: float, seed: int):
        super().__init__(scenario, arrivals(scenario, workload, seed), to_ns(interval_s), int(workload.seconds) * NS)
        self.decisions, self.decision, self.seed = decisions, decisions[0], seed
        self.env = simpy.Environment()
        self.key = (0, FINISH)
        self.ordinals = [0] * len(scenario.pools)
        self.armed: set[tuple[int, ...]] = set()
        self.finishing: dict[tuple[int, int], list[Service]] = {}
        self.parts: dict[int, list[Visit]] = {}
        """Of requests in a cascade: the stages they have passed."""
        self.members: dict[int, tuple[list[Visit], float]] = {}
        """Of requests to an ensemble: their stages, the accuracy of all together."""

    # -------------------------------------------------------------------------------------------- 1 time and order
    @property
    def now(self) -> int:
        return int(self.env.now)

    def at(self, time: int, rank: int, pool: int, sub: tuple[int, ...], action: Callable[[], Iterable[int]]) -> None:
        """Let an event of a pool happen at key (time, rank); ``action`` returns the pools it was an event of.

        Ties of (key, pool) go by ``sub``. A time in the past means now, a rank that has passed at once (1.3).
        """
        time = max(time, self.now)
        event = simpy.Event(self.env)
        event._ok, event._value = True, None
        assert event.callbacks is not None
        event.callbacks.append(lambda _: self.happen((time, rank), action))
        priority = (0, pool, sub) if (time, rank) < self.key else (1, rank, pool, sub)
        self.env.schedule(event, priority, time - self.now)  # type: ignore[arg-type]

    def happen(self, key: tuple[int, int], action: Callable[[], Iterable[int]]) -> None:
        """One event, then the dispatch of its pools (1.4), then look what may come next."""
        self.key = max(self.key, key)
        for pool in action():
            self.dispatch(pool)
        self.arm()

    def arm(self) -> None:
        """Set an alarm for every head that may leave or time out and for every function's next token."""
        for p in range(len(self.queues)):
            for head in self.heads(p):
                leave = self.leave_time(head)
                if leave is not None:
                    self.alarm(leave, LEAVE, p, head.klass, head.place)
                timeout = head.arrival + self.batch_wait(p)
                if (timeout, TIMEOUT) > self.key:
                    self.alarm(timeout, TIMEOUT, p, head.klass, head.place)
            for m, function in enumerate(self.functions[p]):
                if (self.token_time(p, function), TIMEOUT) > self.key:
                    self.alarm(self.token_time(p, function), TIMEOUT, p, m, ())

    def alarm(self, time: int, rank: int, pool: int, index: int, ident: tuple[int, ...]) -> None:
        name = (time, rank, pool, index, ident)
        if name in self.armed:
            return
        self.armed.add(name)

        def action() -> Iterable[int]:
            self.armed.discard(name)
            if not ident:
                return [pool] if self.token_time(pool, self.functions[pool][index]) == time else []
            head = next((r for r in self.heads(pool) if r.place == ident), None)
            if head is None:
                return []
            if rank == LEAVE:
                return self.leave(head) if self.leave_time(head) == time else []
            return [pool] if head.arrival + self.batch_wait(pool) == time else []

        if rank == LEAVE:  # an overdue one leaves at rank 4 of the present instant (1.3)
            self.at(max(time, self.now), rank, pool, (time, index, *ident), action)
        else:
            self.at(time, rank, pool, (time, index, *ident), action)  # 5.6: the earliest first, ties by class

    # ----------------------------------------------------------------------------------------------- the run (9.1)
    def run(self) -> TwinResult:
        starts = range(0, self.end, self.interval)
        for i, time in enumerate(starts):
            self.at(time, DECISION, -1, (), lambda i=i: self.decide(i))  # type: ignore[misc]
        self.at(self.end, DECISION, -1, (), self.close)
        for request in self.requests:
            self.at(request.arrival, ARRIVAL, -1, (request.id,), lambda r=request: self.arrive(r))  # type: ignore[misc]
        self.env.run()
        for request in {visit.id: visit.request for queue in self.queues for visit in queue}.values():
            request.rejected = True
            self.seen["rejected"] += 1
        billed = [sum(self.billed(machine) for machine in row) for row in self.machines]
        return self.result(np.array(billed, np.int64))

    def close(self) -> Iterable[int]:
        self.observe(self.now)
        return []

    def decide(self, i: int) -> Iterable[int]:
        if i:
            self.observe(self.now)
        self.decision = self.decisions[min(i, len(self.decisions) - 1)]
        for p, target in enumerate(self.decision.machines):
            self.scale(p, target)
        return range(len(self.queues))

    def arrive(self, request: Request) -> Iterable[int]:
        request.route = route_of(self.decision, request)
        route = self.decision.routes[request.klass][request.route]
        if not is_all(route, Then.ALSO):
            return [self.admit(Visit(request, 0), 0)]
        visits = [Visit(request, stage) for stage in range(len(stages_of(route)))]  # 10.5
        self.members[request.id] = visits, of_route(self.scenario, route)[1]
        for visit, (first, _) in zip(visits, stages_of(route), strict=True):
            self.dispatch(self.admit(visit, first))
        waiting = Counter(visit.pool for visit in visits if visit.start < 0)
        self.seen["two stages in one queue"] += max(waiting.values(), default=0) > 1
        return []

    # -------------------------------------------------------------------------------------------------- 4 machines
    def scale(self, p: int, target: int) -> None:
        """Rules 4.1 to 4.3 and 8.3."""
        pool = self.scenario.pools[p]
        target = max(0, min(target, pool.max_machines))
        counted = [machine for machine in self.machines[p] if machine.counts]
        for _ in range(target - len(counted)):
            self.launch(p)
        surplus = max(0, len(counted) - target)
        # Not yet ready, then idle, then busy; newest first.
        counted.sort(key=lambda machine: (not machine.ready, machine.ready and not machine.busy, machine.ordinal))
        for machine in counted[::-1][:surplus]:
            self.seen["drain" if machine.busy else "release" if machine.ready else "cancelled boot"] += 1
            self.release(machine)

    def launch(self, p: int) -> None:
        scenario, pool, ordinal, now = self.scenario, self.scenario.pools[p], self.ordinals[p], self.now
        self.ordinals[p] += 1
        ident = (p << 32) + ordinal  # 4.1
        if pool.market == "spot":  # 8.3
            storm = storm_at(scenario, now)
            if storm and bits(draw(self.seed, REFUSAL, ident), 15, 0) < round(storm.refused_share * 65536):
                self.note("refused", p)
                return
        if pool.is_function:  # 7.6
            pending, believed = 0, to_ns(scenario.function.init_s)
            boot = believed
        else:  # 4.2
            pending, believed = to_ns(scenario.vm.pending_s), to_ns(scenario.vm.boot_s)
            boot = spread(believed, scenario.vm.boot_spread, bits(draw(self.seed, BOOT, ident), 11, 0))
        running = now + pending
        slots: list[Service | None] = [None] * (1 if pool.is_function else pool.slots)
        machine = Machine(p, ordinal, now, running, running + believed, slots)
        self.machines[p].append(machine)
        self.at(running + boot, READY, p, (ordinal,), lambda: self.make_ready(machine))
        notice = notice_time(scenario, self.seed, running, ident) if pool.market == "spot" else None
        if notice is not None:
            self.at(notice, LOSS, p, (0, ordinal), lambda: self.notice(machine))

    def make_ready(self, machine: Machine) -> Iterable[int]:
        if machine.gone is not None:
            return []
        machine.ready = True
        return [machine.pool]

    def release(self, machine: Machine) -> None:
        """Rule 4.3: a busy one drains, any other is gone at once."""
        if machine.busy:
            machine.draining = True
        else:
            machine.gone = self.now

    # ---------------------------------------------------------------------------------------------------- 5 queues
    def batch_max(self, p: int) -> int:
        """Rule 5.7."""
        pool = self.scenario.pools[p]
        largest = min(max(b for b in range(1, pool.max_batch + 1) if pool.service_ns[m, b]) for m in pool.models)
        return min(self.decision.batch_max[p] if self.decision.batch_max else 1, largest)

    def batch_wait(self, p: int) -> int:
        return to_ns(self.decision.batch_wait_s[p]) if self.decision.batch_wait_s else 0

    def route(self, visit: Visit) -> Route | None:
        """The route of a request in the decision in force; None if its place is not there any more (5.2)."""
        routes = self.decision.routes[visit.klass]
        number = visit.request.route
        if number >= len(routes) or visit.step >= len(routes[number].steps):
            self.seen["step gone"] += 1
            return None
        if routes[number].steps[visit.step].pool != visit.pool:
            self.seen["step moved"] += 1
            return None
        return routes[number]

    def next_steps(self, visit: Visit) -> tuple[Step, ...]:
        """The present step and those after it in its stage (10.1) by the decision in force; none if it is not there."""
        route = self.route(visit)
        if route is None:
            return ()
        first, steps = stages_of(route)[stage_at(route, visit.step)]
        return steps[visit.step - first :]

    def leave_time(self, visit: Visit) -> int | None:
        """Rule 5.6."""
        steps = self.next_steps(visit)
        if len(steps) < 2 or steps[0].leave_slack_s == -math.inf:
            return None
        return visit.deadline - to_ns(steps[0].leave_slack_s)

    def model_at_dispatch(self, visit: Visit) -> int:
        """Rule 5.3."""
        if self.scenario.pools[visit.pool].is_function:
            return visit.held
        steps = self.next_steps(visit)
        if steps and steps[0].late_model is not None:
            if visit.deadline - self.now < to_ns(steps[0].late_slack_s):
                return steps[0].late_model
        return visit.held

    def due(self, p: int) -> list[Visit]:
        """Rule 5.4: the due heads, earliest in queue order first."""
        full, wait = self.batch_max(p), self.batch_wait(p)
        heads = [v for v in self.heads(p) if self.holding(p, v.held) >= full or (v.arrival + wait, TIMEOUT) <= self.key]
        return sorted(heads, key=lambda v: v.place)

    def enqueue(self, visit: Visit) -> None:
        visit.since = self.now
        most = self.batch_max(visit.pool)
        visit.work = int(self.scenario.pools[visit.pool].believed_ns[visit.held, most]) // most  # 6.3
        self.queues[visit.pool].append(visit)

    def dequeue(self, visit: Visit) -> None:
        self.waits.append((visit.pool, visit.klass, visit.since, self.now))
        self.queues[visit.pool].remove(visit)

    def leave(self, visit: Visit) -> Iterable[int]:
        """Rule 5.6. Reading: one event, of the pool it leaves and of the pool it enters."""
        left = visit.pool
        self.seen["leave" if self.leave_time(visit) == self.now else "leave at once"] += 1
        self.seen["leave in a later stage"] += visit.stage > 0
        self.dequeue(visit)
        entered = self.admit(visit, visit.step + 1)
        return [entered] if entered == left else [entered, left]

    def dispatch(self, p: int) -> None:
        """Rule 5.4, and 7.4 for functions."""
        function = self.scenario.pools[p].is_function
        while True:
            if not function and self.free_slot(p) is None:
                return
            able = [v for v in self.due(p) if not function or self.can_start(p, self.model_at_dispatch(v))]
            if not able:
                return
            head = able[0]
            model = self.model_at_dispatch(head)
            batch = [head]
            self.dequeue(head)
            while len(batch) < self.batch_max(p):
                mates = [v for v in self.heads(p) if self.model_at_dispatch(v) == model]
                if not mates:
                    break
                batch.append(min(mates, key=lambda v: v.place))
                self.dequeue(batch[-1])
            self.begin(p, model, batch)

    def begin(self, p: int, model: int, batch: list[Visit]) -> None:
        """Rules 5.5 and 7.4: put a batch on the first free slot, or on a container."""
        pool, physics = self.scenario.pools[p], self.scenario.function
        mean = int(pool.service_ns[model, len(batch)])
        length = spread(mean, self.scenario.service.spread, batch[0].quantile)
        place, cold = self.free_slot(p), False
        if place is None:
            function = self.functions[p][model]
            warm = self.warm(function)
            if warm:
                function.warm.remove(max(warm))  # 7.2: the most recently finished
            else:
                cold, length = True, length + to_ns(physics.init_s)
                function.tat = max(function.tat, self.now) + self.token_gap()
            function.executing += 1
        service = Service(p, model, batch, self.now, self.now + length, int(pool.believed_ns[model, len(batch)]))
        self.services.append(service)
        self.log.append(("batch", p, model, len(batch)))
        if cold:
            self.note("cold start", p)
        if len(batch) > 1:
            self.seen["batch on function" if pool.is_function else "batch"] += 1
        self.seen["batch of several stages"] += len({visit.stage for visit in batch}) > 1
        for visit in batch:
            self.seen["late bind"] += visit.held != model
            visit.model, visit.start, visit.finish, visit.cold = model, service.start, service.finish, cold
            visit.unsure, visit.accuracy = self.judged(visit)
        if pool.is_function:  # 7.7
            ms = -(-length // 1_000_000)
            if any(self.warmup <= visit.arrival < self.end for visit in batch):
                (self.function_ms if place is None else self.provisioned_ms)[p, model] += ms
                self.invocations[p, model] += 1
            self.seen["provisioned" if place else "cold" if cold else "warm"] += 1
        if place:
            service.machine = place[0]
            place[0].slots[place[1]] = service
        due = (p, service.finish)
        if due not in self.finishing:
            self.at(service.finish, FINISH, p, (), lambda: self.finish(p))
        self.finishing.setdefault(due, []).append(service)

    def finish(self, p: int) -> Iterable[int]:
        """Rule 4.5. Reading: all finishes of a pool at one instant are one event, so that one dispatch follows them."""
        services = [service for service in self.finishing.pop((p, self.now)) if not service.cancelled]
        for service in services:
            machine = service.machine
            if machine is None:
                self.functions[p][service.model].executing -= 1
                self.functions[p][service.model].warm.append(self.now)
            else:
                machine.slots[machine.slots.index(service)] = None
                if machine.draining and not machine.busy:
                    machine.gone = self.now
        # 10.4: the moves on in order of ids, each with its dispatch; the pool's own dispatch comes last.
        visits = (v for service in services for v in service.batch)
        for visit in sorted(visits, key=lambda v: (v.id, v.step, v.quantile)):
            visit.done = True
            first = self.moves_on(visit)
            if first is None:
                self.answer(visit)
            else:
                later = Visit(visit.request, visit.stage + 1)
                self.parts.setdefault(visit.id, []).append(visit)
                self.dispatch(self.admit(later, first))
        return [p] if services else []

    # ---------------------------------------------------------------------------------------------------- 10 stages
    def moves_on(self, visit: Visit) -> int | None:
        """Rule 10.4: the first step of the next stage if the request is unsure and there is one now, None if not."""
        route = self.route(visit) if visit.unsure else None
        if route is None or not is_all(route, Then.IF_UNSURE):
            return None
        stages, here = stages_of(route), stage_at(route, visit.step)
        return stages[here + 1][0] if here < len(stages) - 1 else None

    def judged(self, visit: Visit) -> tuple[bool, float]:
        """Rules 10.4 and 10.7, by the decision in force as a service starts: unsure, and the accuracy of its answer."""
        route = None if visit.id in self.members else self.route(visit)
        if route is None or not is_all(route, Then.IF_UNSURE):
            return False, self.scenario.models[visit.model].accuracy_pct
        limits, accuracy = of_route(self.scenario, route)
        here, number = stage_at(route, visit.step), bits(draw(self.seed, UNSURE, visit.id * 64 + visit.stage), 15, 0)
        unsure = here < len(limits) and number < limits[here]
        self.seen[f"unsure {unsure}"] += here < len(limits)
        return unsure, accuracy

    def answer(self, visit: Visit) -> None:
        """Rules 9.2, 10.5 and 10.7: the answer of a request, if none of its stages is still out."""
        request, parts = visit.request, [*self.parts.pop(visit.id, []), visit]
        if visit.id in self.members:
            parts, accuracy = self.members[visit.id]
            if not all(part.done for part in parts):
                return
            self.seen["ensemble answered"] += 1
        else:
            accuracy = visit.accuracy
            self.seen["cascade answered"] += accuracy != self.scenario.models[visit.model].accuracy_pct
        last = max(parts, key=lambda part: (part.finish, part.step, part.quantile))
        request.pool, request.model, request.finish, request.cold = last.pool, last.model, last.finish, last.cold
        request.start, request.accuracy = min(part.start for part in parts), accuracy
        self.note("served", last.pool, last.model, last.klass)
        self.accuracies.append((last.klass, accuracy))
        if self.now > request.deadline:  # 9.2
            self.note("late", last.pool, last.model, last.klass)

    # ------------------------------------------------------------------------------------------------- 6 admission
    def admit(self, visit: Visit, first: int) -> int:
        """Rule 6.1: try the steps of the stage from ``first``; return the pool whose queue it enters."""
        route = self.decision.routes[visit.klass][visit.request.route]
        begin, steps = stages_of(route)[stage_at(route, first)]
        for number, step in enumerate(steps, begin):
            last = number == begin + len(steps) - 1
            visit.step = number
            if number >= first and (last or step.admit == Admit.ALWAYS or self.accepts(step, visit)):
                break
        self.seen["overflow in a later stage"] += visit.stage > 0 and number > first
        visit.pool, visit.held = step.pool, step.model
        self.enqueue(visit)
        return visit.pool

    def accepts(self, step: Step, visit: Visit) -> bool:
        function = self.scenario.pools[step.pool].is_function
        if step.admit == Admit.IF_IDLE:
            if function:  # 7.5
                able = self.can_start(step.pool, step.model)
                answer = able and self.holding(step.pool, step.model) < self.batch_max(step.pool)
            else:  # 6.2
                answer = self.free_slot(step.pool) is not None
                answer = answer and len(self.queues[step.pool]) < self.batch_max(step.pool)
        else:
            predicted = self.predict_function(step) if function else self.predict_machines(step, visit)
            answer = predicted is not None and predicted <= visit.deadline
        self.seen[f"{step.admit.name} {'function' if function else 'machines'} {answer}"] += 1
        return answer

    def predict_machines(self, step: Step, visit: Visit) -> int | None:
        """Rule 6.3."""
        p, now = step.pool, self.now
        pool, most, queue = self.scenario.pools[p], self.batch_max(p), self.queues[p]
        ready = [machine for machine in self.machines[p] if machine.ready and machine.counts]
        slots, base, remaining, free = len(ready) * pool.slots, now, 0, self.free_slot(p) is not None
        if not ready:
            booting = [machine for machine in self.machines[p] if machine.counts]
            if not booting:
                return None
            base, slots = max(now, min(machine.believed_ready for machine in booting)), pool.slots
            self.seen["fits by booting"] += 1
        elif not free:
            left = sum(s.start + s.believed for machine in ready for s in machine.slots if s is not None)
            remaining = max(0, left - slots * now)
        ahead = sum(other.work for other in queue if other.place < visit.place)
        delay = 0 if free else (ahead + remaining) // slots
        size = min(most, self.holding(p, step.model) + 1)
        wait = 0 if size == most else self.batch_wait(p)
        return base + max(delay, wait) + int(pool.believed_ns[step.model, size])

    def predict_function(self, step: Step) -> int | None:
        """Rule 6.4."""
        if not self.can_start(step.pool, step.model):
            return None
        ready = self.free_slot(step.pool) is not None or self.warm(self.functions[step.pool][step.model])
        init = 0 if ready else to_ns(self.scenario.function.init_s)
        return self.now + init + int(self.scenario.pools[step.pool].believed_ns[step.model, 1])

    # ------------------------------------------------------------------------------------------------- 7 functions
    def warm(self, function: Function) -> list[int]:
        """Rule 7.2."""
        return [f for f in function.warm if f <= self.now < f + to_ns(self.scenario.function.keep_alive_s)]

    def can_start(self, p: int, model: int) -> bool:
        """Rule 7.3. Reading: work on provisioned containers does not count towards the concurrency."""
        function = self.functions[p][model]
        if self.free_slot(p) is not None:
            return True
        if function.executing >= self.scenario.function.concurrency:
            self.seen["concurrency limit"] += 1
            return False
        if self.warm(function) or (self.token_time(p, function), TIMEOUT) <= self.key:
            return True
        self.seen["no token"] += 1
        return False

    # ------------------------------------------------------------------------------------------------------ 8 spot
    def notice(self, machine: Machine) -> Iterable[int]:
        """Rule 8.2."""
        if machine.gone is not None:
            return []
        self.seen["notice while draining"] += machine.draining
        self.seen["notice while booting"] += not machine.ready
        if not machine.draining:
            self.note("lost", machine.pool)
            self.release(machine)
        gone_at = self.now + to_ns(self.scenario.spot.notice_s)
        self.at(gone_at, LOSS, machine.pool, (1, machine.ordinal), lambda: self.take_away(machine))
        return [machine.pool]

    def take_away(self, machine: Machine) -> Iterable[int]:
        if machine.gone is not None:
            return []
        machine.gone = self.now
        for service in machine.slots:
            if service is not None:
                service.cancelled, service.finish = True, self.now
                for visit in service.batch:
                    self.seen["return in a later stage" if visit.stage else "return"] += 1
                    visit.model = visit.start = visit.finish = -1
                    self.enqueue(visit)
        return [machine.pool]


def run_twin(
    scenario: Scenario, workload: Workload, decisions: list[Decision], interval_s: float, seed: int
) -> TwinResult:
    """Run the twin: decision i holds from i intervals on, the last one to the end."""
    return Twin(scenario, workload, decisions, interval_s, seed).run()
