"""The simulator against its independent twin: every start, finish and bill of random small cases, exactly."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from twin_books import TwinResult
from twin_cases import Case, first_difference, make_case, simulated, twin_of

CASES, CHUNK = 1000, 50


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_simulator_agrees_with_its_twin(first: int) -> None:
    for number in range(first, first + CHUNK):
        case = make_case(number)
        difference = first_difference(twin_of(case), simulated(case))
        assert difference is None, f"case {number}: {difference}"


FEATURES = (
    "leave", "leave at once", "late bind", "step gone", "step moved", "batch", "batch on function",
    "cold start", "warm", "provisioned", "no token", "concurrency limit",
    "cancelled boot", "release", "drain", "lost", "notice while booting", "return", "refused", "rejected",
    "IF_IDLE machines True", "IF_IDLE machines False", "IF_IDLE function True", "IF_IDLE function False",
    "IF_FITS machines True", "IF_FITS machines False", "IF_FITS function True", "IF_FITS function False",
    "fits by booting",
    "unsure True", "unsure False", "cascade answered", "ensemble answered", "two stages in one queue",
    "batch of several stages", "leave in a later stage", "overflow in a later stage", "return in a later stage",
)  # fmt: skip


def test_cases_exercise_every_feature() -> None:
    seen: Counter[str] = Counter()
    for number in range(150):
        seen += twin_of(make_case(number)).seen
    assert [feature for feature in FEATURES if seen[feature] < 15] == []


def test_another_seed_is_noticed() -> None:
    case = known_case(0)
    other = Case(case.number, case.scenario, case.workload, case.decisions, case.interval_s, case.seed + 1)
    assert first_difference(twin_of(other), known_result(0)) is not None


# Each mutant is the twin with one rule of the page broken; some of the cases must tell it from the simulator.
MUTANTS = {
    "1.2 finish after arrival": ("FINISH, READY, LOSS, DECISION, LEAVE, TIMEOUT, ARRIVAL = range(7)",
                                 "FINISH, READY, LOSS, DECISION, LEAVE, TIMEOUT, ARRIVAL = 6, 1, 2, 3, 4, 5, 0"),
    "1.2 loss before finish": ("= range(7)", "= 2, 1, 0, 3, 4, 5, 6"),
    "1.2 decision before ready": ("= range(7)", "= 0, 3, 2, 1, 4, 5, 6"),
    "1.2 time-out before leave": ("= range(7)", "= 0, 1, 2, 3, 5, 4, 6"),
    "1.3 the past before its rank": ("(0, pool, sub) if (time, rank) < self.key",
                                     "(0, pool, sub) if rank == LEAVE and sub[0] < self.now"),
    "2.3 no lognormal": ("mean_ns * lognormal_table(variation)[quantile] >> 16", "mean_ns"),
    "4.1 draining machines count": ("return self.gone is None and not self.draining", "return self.gone is None"),
    "4.3 oldest first": ("in counted[::-1][:surplus]", "in counted[:surplus]"),
    "4.4 no minimum": ("minimum = 0 if pool.is_function else", "minimum = 0 if True else"),
    "4.4 free at running": ("elif machine.gone < machine.running", "elif machine.gone <= machine.running"),
    "4.5 youngest first": ("for machine in self.machines[p]:\n            if machine.ready",
                           "for machine in self.machines[p][::-1]:\n            if machine.ready"),
    "5.1 overtaking": ("visit if visit.place < head.place", "visit if visit.place > head.place"),
    "5.2 steps of the old pool go on": ("if routes[number].steps[visit.step].pool != visit.pool:", "if False:"),
    "5.3 late on functions": ("if self.scenario.pools[visit.pool].is_function:", "if False:"),
    "5.3 late at equality": ("visit.deadline - self.now < to_ns", "visit.deadline - self.now <= to_ns"),
    "5.4 first come first served": ("return sorted(heads, key=lambda v: v.place)",
                                    "return sorted(heads, key=lambda v: v.id)"),
    "5.4 full batches wait": ("self.holding(p, v.held) >= full or", "full == 1 or"),
    "5.4 mates by held model": ("if self.model_at_dispatch(v) == model]", "if v.held == model]"),
    "6.2 displaces": ("answer and len(self.queues[step.pool]) < self.batch_max(step.pool)", "answer"),
    "6.3 nothing ahead": ("(ahead + remaining) // slots", "remaining // slots"),
    "6.3 nothing remains": ("(ahead + remaining) // slots", "ahead // slots"),
    "6.3 no batch wait": ("wait = 0 if size == most else", "wait = 0 if True else"),
    "6.3 booting never fits": ("if not booting:", "if True:"),
    "6.3 strict": ("predicted <= visit.deadline", "predicted < visit.deadline"),
    "6.4 always warm": ("init = 0 if ready else", "init = 0 if True else"),
    "7.2 closed": ("if f <= self.now < f +", "if f <= self.now <= f +"),
    "7.2 oldest container": ("function.warm.remove(max(warm))", "function.warm.remove(min(warm))"),
    "7.3 one more token": ("(self.scenario.function.burst_per_10s - 1) *", "self.scenario.function.burst_per_10s *"),
    "7.3 no concurrency limit": ("if function.executing >= self.scenario.function.concurrency:", "if False:"),
    "7.5 any model": ("able and self.holding(step.pool, step.model) <", "able and len(self.queues[step.pool]) <"),
    "7.7 whole milliseconds": ("ms = -(-length // 1_000_000)", "ms = length // 1_000_000"),
    "7.7 by start": ("if any(self.warmup <= visit.arrival", "if any(self.warmup <= self.now"),
    "7.7 by the first": ("< self.end for visit in batch)", "< self.end for visit in batch[:1])"),
    "8.1 no storms": ("for storm in sorted(scenario.spot.storms", "for storm in sorted(()"),
    "8.2 no return": ("                    self.enqueue(visit)\n        return", "        return"),
    "8.3 ordinals are given back": ('self.note("refused", p)', 'self.ordinals[p] -= 1'),
    "10.1 next stage is a next step": ("return steps[visit.step - first :]", "return route.steps[visit.step :]"),
    "10.3 one quantile": ("self.request.quantile + 1365 * self.stage", "self.request.quantile + 0 * self.stage"),
    "10.3 later stage first": ("self.deadline, self.id, self.step,", "self.deadline, self.id, -self.step,"),
    "10.4 one draw": ("visit.id * 64 + visit.stage", "visit.id * 64"),
    "10.4 own dispatch first": ("self.dispatch(self.admit(later, first))",
                                "self.dispatch(p), self.dispatch(self.admit(later, first))"),
    "10.4 the last moves on first": ("key=lambda v: (v.id, v.step, v.q", "key=lambda v: (-v.id, v.step, v.q"),
    "10.6 share of all": ("round(65536 * float(WEIGHTS @ passed / before))", "round(65536 * share)"),
    "10.6 no even split": ("(np.sign(2 * sum(answers) - len(answers)) + 1) / 2", "2 * sum(answers) > len(answers)"),
    "10.7 ties to the earlier": ("(part.finish, part.step,", "(part.finish, -part.step,"),
    "10.7 start of the last": ("= min(part.start for part in parts), accuracy", "= last.start, accuracy"),
    "10.7 own accuracy": ("self.accuracies.append((last.klass, accuracy))",
                          "self.accuracies.append((last.klass, self.scenario.models[last.model].accuracy_pct))"),
}  # fmt: skip


TELLING = (223, 226, 67, 92, 57, 29, 31, *range(200))
"""Cases that mutants are tried on; the first ones are rich in coincidences."""
STAGED = range(2, 200, 3)
"""Cases with cascades and ensembles."""


@cache
def known_case(number: int) -> Case:
    return make_case(number)


@cache
def known_result(number: int) -> TwinResult:
    return simulated(known_case(number))


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = MUTANTS[rule]
    broken = 0
    for name in ("twin_draws", "twin_stages", "twin_books", "twin"):
        source = (Path(__file__).parent / f"{name}.py").read_text()
        broken += source.count(right)
        mutant = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, mutant)
        exec(compile(source.replace(right, wrong), name, "exec"), mutant.__dict__)
    assert broken == 1
    for number in STAGED if rule.startswith("10") else TELLING:
        case = known_case(number)
        found = mutant.run_twin(case.scenario, case.workload, case.decisions, case.interval_s, case.seed)
        if first_difference(found, known_result(number)) is not None:
            return
    pytest.fail("no case tells it from the right rule")
