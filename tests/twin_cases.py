"""Random small cases on which the simulator and its twin must agree, and the comparison itself.

``python tests/twin_cases.py 1000`` compares on the first thousand cases and says what they covered;
``python tests/twin_cases.py 17 18`` shows cases 17 up to 18. Every third case (numbers 2, 5, 8, ..) has cascades and
ensembles.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, fields, replace

import numpy as np
from cases import make_pool, make_workload
from twin import run_twin
from twin_books import TwinResult

from selfserve.protocol import Admit, Decision, Observation, Route, Step, Then
from selfserve.scenario import (
    NS,
    CorrectnessPhysics,
    FunctionPhysics,
    Model,
    Pool,
    RequestClass,
    Scenario,
    ServicePhysics,
    SpotPhysics,
    Storm,
    VmPhysics,
    to_ns,
)
from selfserve.simulator import Result, Simulator
from selfserve.workload import Workload


@dataclass(frozen=True)
class Case:
    """One run: what both sides are given."""

    number: int
    scenario: Scenario
    workload: Workload
    decisions: list[Decision]
    interval_s: float
    seed: int


class Maker:
    """Draws one case; in half of them all times are multiples of a quarter second, so that events collide."""

    def __init__(self, number: int):
        self.number, self.rng, self.staged = number, random.Random(number), number % 3 == 2
        self.grid = self.rng.random() < 0.5
        self.models = self.rng.randint(1, 3) + self.staged
        self.classes = self.rng.randint(1, 3)
        self.seconds = self.rng.randint(20, 200)
        self.requests = round(math.exp(self.rng.uniform(math.log(20), math.log(400))))
        # A mean service time at which a handful of slots have enough to do.
        self.service_s = max(0.05, self.rng.uniform(0.3, 2.0) * 3 * self.seconds / self.requests)
        self.interval_s = self.pick(5.0, 10.0, 20.0, 2.5) if self.grid else self.pick(4.0, 10.0, 7.5, 13.3)

    def pick(self, *options):
        return self.rng.choice(options)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def time(self, low: float, high: float) -> float:
        """Seconds, at least ``low`` but on the grid if this case has one."""
        value = self.rng.uniform(low, high)
        return max(0.25, round(value * 4) / 4) if self.grid else value

    def span(self, low: float, high: float) -> float:
        """As ``time``, often 0."""
        return 0.0 if self.chance(0.3) else self.time(low, high)

    def case(self) -> Case:
        storms = self.storms()
        spread = 0.0 if self.grid and self.chance(0.8) else self.pick(0.0, 0.1, 0.5)
        usual = max(self.service_s, 0.25)
        scenario = Scenario(
            name=f"case {self.number}",
            classes=tuple(
                RequestClass(f"class{k}", 1 / self.classes, self.time(0.3 * usual, 8 * usual))
                for k in range(self.classes)
            ),
            pools=tuple(self.pool(p) for p in range(self.rng.randint(1, 3))),
            models=tuple(Model(f"model{m}", 70.0 + m) for m in range(self.models)),
            interval_s=self.interval_s,
            warmup_s=self.span(1, self.seconds / 2),
            rate_scale=1.0,
            vm=VmPhysics(self.span(0.5, 8), self.span(0.5, 20), spread, self.pick(0.0, 5.0, 60.0, self.time(1, 60))),
            function=FunctionPhysics(
                self.span(0.25, 3), self.keep_alive(), self.pick(1, 2, 4, 1000), self.pick(1, 2, 3, 7, 20, 1000)
            ),
            spot=SpotPhysics(
                self.pick(0.0, 30.0, 200.0, 1000.0), self.pick(0.0, self.time(0.5, 8), 30.0, 120.0), storms
            ),
            service=ServicePhysics(spread, 1.0),
        )
        workload = self.workload()
        if self.staged:
            physics = CorrectnessPhysics(self.pick(0.8, 0.0, 0.5, 0.7), self.pick(0.85, 0.5, 0.7, 0.99))
            demands = [replace(c, min_accuracy_pct=self.rng.uniform(65, 80)) for c in scenario.classes]
            scenario = replace(scenario, correctness=physics, classes=tuple(demands))
        return Case(
            self.number, scenario, workload, self.decisions(scenario), self.interval_s, self.rng.randrange(2**31)
        )

    def keep_alive(self) -> float:
        return self.pick(0.0, self.time(0.25, 3), self.time(2, 20), 600.0)

    def storms(self) -> tuple[Storm, ...]:
        storms, start = [], 0.0
        for _ in range(self.rng.randint(0, 2)):
            start += self.time(1, self.seconds / 3)
            length = self.time(1, self.seconds / 3)
            # The last rate brings every notice in the first nanosecond of the storm.
            rate = self.pick(0.0, 300.0, 2000.0, 1e18)
            storms.append(Storm(start, length, rate, self.pick(0.0, 0.3, 0.6, 1.0)))
            start += length
        return tuple(storms)

    def pool(self, p: int) -> Pool:
        market = self.pick("on_demand", "on_demand", "spot", "function", "function")
        count = 1 if market == "function" and self.chance(0.5) else self.rng.randint(1, self.models)
        largest, resident = self.rng.randint(1, 6), self.rng.sample(range(self.models), count)
        service = np.zeros((self.models, largest + 1), np.int64)
        slots = self.rng.randint(1, 3) if market != "function" else 1
        for m in resident:
            one, fixed = self.time(0.4, 1.6) * self.service_s, self.rng.random()
            if self.grid:
                one, fixed = max(0.25, round(one * 4) / 4), self.pick(0.0, 0.5, 1.0)
            profiled = largest if self.chance(0.7) else self.rng.randint(1, largest)
            for b in range(1, profiled + 1):
                service[m, b] = to_ns(one * (fixed + (1 - fixed) * b))
        return make_pool(
            f"pool{p}", market, service, self.pick(1.0, 1.0, 0.5, 1.5), slots=slots, max_machines=self.pick(2, 5, 50)
        )

    def workload(self) -> Workload:
        rows = [
            sorted(self.rng.randint(0, 65536) for _ in range(self.classes - 1)) for _ in range(self.rng.randint(1, 4))
        ]
        thresholds = np.array([[*row, 65536] for row in rows])
        if self.grid or self.chance(0.3):
            step = self.pick(250_000_000, 500_000_000, 1_000_000_000) if self.grid else 1
            cells = self.seconds * NS // step
            times = [self.rng.randrange(cells) * step for _ in range(self.requests)]
            return make_workload(self.seconds, times_ns=np.array(times), thresholds=thresholds)
        weights = np.array([self.rng.random() ** 3 for _ in range(self.seconds)])
        counts = np.random.default_rng(self.number).multinomial(self.requests, weights / weights.sum())
        return make_workload(self.seconds, counts, thresholds=thresholds)

    def decisions(self, scenario: Scenario) -> list[Decision]:
        """A first decision, then changes of it."""
        decisions = [
            Decision(
                tuple(self.target(pool) for pool in scenario.pools),
                tuple(self.routes(scenario, k) for k in range(self.classes)),
                tuple(self.rng.randint(1, 6) for _ in scenario.pools) if self.chance(0.7) else (),
                tuple(self.span(0.1, 2) * self.service_s for _ in scenario.pools) if self.chance(0.7) else (),
            )
        ]
        if self.grid:
            decisions[0] = self.on_grid(decisions[0])
        restless = self.rng.random()
        while len(decisions) * to_ns(self.interval_s) < self.seconds * NS:
            decisions.append(self.changed(decisions[-1], scenario, restless))
        return decisions

    def on_grid(self, decision: Decision) -> Decision:
        return replace(decision, batch_wait_s=tuple(round(w * 4) / 4 for w in decision.batch_wait_s))

    def changed(self, decision: Decision, scenario: Scenario, restless: float) -> Decision:
        if self.chance(restless):
            machines = [
                self.target(p) if self.chance(0.5) else n
                for p, n in zip(scenario.pools, decision.machines, strict=True)
            ]
            decision = replace(decision, machines=tuple(machines))
        if self.chance(restless / 2):
            routes = [self.routes(scenario, k) if self.chance(0.5) else r for k, r in enumerate(decision.routes)]
            decision = replace(decision, routes=tuple(routes))
        if self.staged and self.chance(restless / 2):
            retold = [tuple(map(self.retouched, routes)) for routes in decision.routes]
            decision = replace(decision, routes=tuple(retold))
        if self.chance(restless / 2) and decision.batch_max:
            decision = replace(decision, batch_max=tuple(self.rng.randint(1, 6) for _ in scenario.pools))
        if self.chance(restless / 3) and decision.batch_wait_s:
            waits = tuple(self.span(0.1, 2) * self.service_s for _ in scenario.pools)
            decision = replace(decision, batch_wait_s=waits)
            decision = self.on_grid(decision) if self.grid else decision
        return decision

    def target(self, pool: Pool) -> int:
        if pool.is_function:
            return self.pick(0, 0, 1, 2) if len(pool.models) == 1 else 0
        return self.rng.randint(0, 6)

    def routes(self, scenario: Scenario, klass: int) -> tuple[Route, ...]:
        slo = scenario.classes[klass].slo_s
        count = self.pick(1, 1, 2, 3)
        weights = [self.pick(1.0, 0.5, self.rng.random(), 0.0) for _ in range(count)]
        weights[self.rng.randrange(count)] = 1.0
        return tuple(Route(self.steps(scenario, slo), w) for w in weights)

    def steps(self, scenario: Scenario, slo: float) -> tuple[Step, ...]:
        """A plain route or, in a case with stages, more often a cascade or an ensemble."""
        count = self.pick(1, 2, 2, 3)
        then = self.pick(Then.IF_UNSURE, Then.IF_UNSURE, Then.ALSO, Then.DONE) if self.staged else Then.DONE
        if then == Then.DONE:
            return tuple(self.step(scenario, slo) for _ in range(count))
        steps: list[Step] = []
        for stage in range(stages := self.pick(2, 3)):
            model = self.rng.choice([m for pool in scenario.pools for m in pool.models])
            pools = [p for p, pool in enumerate(scenario.pools) if model in pool.models]
            for _ in range(self.pick(1, 1, 2, 3)):
                step = replace(self.step(scenario, slo), late_model=None, late_slack_s=0.0)
                steps.append(replace(step, pool=self.rng.choice(pools), model=model))
            if stage < stages - 1:
                steps[-1] = replace(steps[-1], then=then, unsure_share=self.share() if then == Then.IF_UNSURE else 0.0)
        return tuple(steps)

    def share(self) -> float:
        return self.pick(0.0, 1.0, *(self.rng.random() for _ in range(4)))

    def retouched(self, route: Route) -> Route:
        """A route whose cascade passes on other shares."""
        steps = [replace(s, unsure_share=self.share()) if s.then == Then.IF_UNSURE else s for s in route.steps]
        return replace(route, steps=tuple(steps))

    def step(self, scenario: Scenario, slo: float) -> Step:
        p = self.rng.randrange(len(scenario.pools))
        models = scenario.pools[p].models
        leave = self.pick(
            -math.inf, -math.inf, self.time(0.01, slo), self.time(0.5, 1.3 * slo), -self.time(0.1, slo), 0.0
        )
        late = self.pick(None, self.rng.choice(models))
        return Step(
            p,
            self.rng.choice(models),
            self.pick(Admit.ALWAYS, Admit.IF_IDLE, Admit.IF_FITS, Admit.IF_FITS),
            leave,
            late,
            self.time(0.1, 1.2 * slo) if late is not None else 0.0,
        )


def make_case(number: int) -> Case:
    """Case ``number``, always the same."""
    return Maker(number).case()


def run_simulator(case: Case) -> tuple[Result, list[Observation]]:
    """Drive the simulator by the case's decisions."""
    simulator = Simulator(case.scenario, case.workload, case.interval_s, requests=True)
    simulator.reset(case.seed)
    observations = []
    for decision in case.decisions:
        observations.append(simulator.advance(decision))
    assert simulator.done
    return simulator.finish(), observations


def twin_of(case: Case) -> TwinResult:
    """Run the twin on a case."""
    return run_twin(case.scenario, case.workload, case.decisions, case.interval_s, case.seed)


def simulated(case: Case) -> TwinResult:
    """Run the simulator on a case and lay its result out as the twin's."""
    result, observations = run_simulator(case)
    rows, scenario = result.requests, case.scenario
    assert rows is not None
    rejected = rows["finish_ns"].to_numpy() < 0
    codes = {
        name: rows[name].map({item.name: i for i, item in enumerate(items)}).to_numpy(float)
        for name, items in (("class", scenario.classes), ("pool", scenario.pools), ("model", scenario.models))
    }
    return TwinResult(
        id=rows["id"].to_numpy(),
        arrival_ns=rows["arrival_ns"].to_numpy(),
        klass=codes["class"].astype(int),
        pool=np.nan_to_num(codes["pool"], nan=-1).astype(int),
        model=np.nan_to_num(codes["model"], nan=-1).astype(int),
        start_ns=rows["start_ns"].to_numpy(),
        finish_ns=rows["finish_ns"].to_numpy(),
        cold=rows["cold"].to_numpy(),
        rejected=rejected,
        vm_billed_ns=result.vm_billed_ns,
        function_ms=result.function_ms,
        provisioned_ms=result.provisioned_ms,
        invocations=result.invocations,
        cost_usd=np.asarray(result.cost_usd),
        below_floor=result.class_totals["below_floor"].to_numpy(),
        mean_accuracy_pct=result.classes["mean_accuracy_pct"].to_numpy(float),
        observations=observations,
        seen=Counter(),
    )


def first_difference(mine: TwinResult, theirs: TwinResult) -> str | None:
    """Return what differs first between the twin's result and the simulator's, or None."""
    if len(mine.id) != len(theirs.id):
        return f"{len(mine.id)} requests in the twin, {len(theirs.id)} in the simulator"
    names = ("id", "arrival_ns", "klass", "rejected", "pool", "model", "start_ns", "finish_ns", "cold")
    rows = {int(i) for name in names for i in np.flatnonzero(getattr(mine, name) != getattr(theirs, name))}
    if rows:
        # Of the requests that differ, the one that started first on either side is nearest to the cause.
        starts = {i: [t for t in (mine.start_ns[i], theirs.start_ns[i]) if t >= 0] for i in rows}
        index = min(starts, key=lambda i: min(starts[i], default=math.inf))
        return f"request {mine.id[index]}: twin {row(mine, index)}, simulator {row(theirs, index)}"
    for name in ("vm_billed_ns", "function_ms", "provisioned_ms", "invocations"):
        if (getattr(mine, name) != getattr(theirs, name)).any():
            return f"{name}: twin {getattr(mine, name).tolist()}, simulator {getattr(theirs, name).tolist()}"
    if np.abs(mine.cost_usd - theirs.cost_usd).max() > 1e-9:
        return f"cost_usd: twin {mine.cost_usd.tolist()}, simulator {theirs.cost_usd.tolist()}"
    if (mine.below_floor != theirs.below_floor).any():
        return f"below_floor: twin {mine.below_floor.tolist()}, simulator {theirs.below_floor.tolist()}"
    means = mine.mean_accuracy_pct, theirs.mean_accuracy_pct
    if not np.allclose(*means, rtol=1e-9, equal_nan=True):
        return f"mean_accuracy_pct: twin {means[0].tolist()}, simulator {means[1].tolist()}"
    if len(mine.observations) != len(theirs.observations):
        return f"{len(mine.observations)} observations in the twin, {len(theirs.observations)} in the simulator"
    for i, (a, b) in enumerate(zip(mine.observations, theirs.observations, strict=True)):
        for name in OBSERVED:
            x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
            if name == "arrivals" and to_ns(a.interval_s) % NS:
                x, y = x.sum(axis=0), y.sum(axis=0)  # where whole seconds begin is not defined then
            if x.shape != y.shape or not np.allclose(x, y, rtol=1e-9, atol=1e-9):
                return f"observation {i} ({a.time_s} s), {name}: twin {x.tolist()}, simulator {y.tolist()}"
    return None


def row(result: TwinResult, index: int) -> str:
    """One request of a result, for messages."""
    names = ("arrival_ns", "klass", "pool", "model", "start_ns", "finish_ns", "cold", "rejected")
    return ", ".join(f"{name} {getattr(result, name)[index]}" for name in names)


OBSERVED = (
    "time_s", "interval_s", "arrivals", "ready", "booting", "busy_slot_s", "queued", "queued_request_s", "head_age_s",
    "served", "late", "accuracy_sum", "cold_starts", "lost", "refused", "batch_mean",
)  # fmt: skip
"""Fields of an observation that are compared: all but ``spend_usd``, which the page does not define."""


def show(case: Case) -> str:
    """Everything about a case, one fact a line."""
    lines = [f"case {case.number}, seed {case.seed}, interval {case.interval_s} s, {case.workload.seconds} s"]
    lines += [f"{f.name}: {getattr(case.scenario, f.name)}" for f in fields(Scenario)]
    lines += [f"thresholds: {case.workload.thresholds.tolist()}"]
    lines += [f"decision {i}: {decision}" for i, decision in enumerate(case.decisions)]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Compare cases [first, last); with both given, show them too."""
    first, last = (int(arguments[0]), int(arguments[1])) if len(arguments) > 1 else (0, int(arguments[0]))
    seen: Counter[str] = Counter()
    requests = failures = 0
    for number in range(first, last):
        case = make_case(number)
        if len(arguments) > 1:
            print(show(case))
        mine = twin_of(case)
        difference = first_difference(mine, simulated(case))
        seen += mine.seen
        requests += len(mine.id)
        if difference is not None:
            failures += 1
            print(f"case {number}: {difference}")
    for feature, count in sorted(seen.items()):
        print(f"{count:9,} {feature}")
    print(f"{last - first} cases, {requests:,} requests, {failures} cases differ")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
