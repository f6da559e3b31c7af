"""Cascades and ensembles in the simulator: who answers when, how it scores, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from cases import Scripted, pool_of, scenario_of, steady, workload_of
from scipy.stats import norm

from selfserve.bound import bound, oracle_for
from selfserve.correctness import combine, combined
from selfserve.errors import InputError
from selfserve.protocol import Decision, Route, Step, Then
from selfserve.scenario import CorrectnessPhysics, SpotPhysics, Storm
from selfserve.simulator import Result, simulate


def unsure(share: float, *places: tuple[int, int]) -> Route:
    """Return a cascade whose stages would each pass on a share of all requests."""
    steps = [Step(*place, then=Then.IF_UNSURE, unsure_share=share) for place in places[:-1]]
    return Route((*steps, Step(*places[-1])))


def also(*places: tuple[int, int]) -> Route:
    """Return an ensemble."""
    return Route((*(Step(*place, then=Then.ALSO) for place in places[:-1]), Step(*places[-1])))


def rows(result: Result) -> list[tuple[str, str, float, float]]:
    """Return (pool, model, start, finish) of each request, seconds."""
    assert result.requests is not None
    columns = ["pool", "model", "start_s", "finish_s"]
    return [tuple(row) for row in result.requests[columns].itertuples(index=False)]


def test_cascade_of_two_on_one_machine() -> None:
    """The one slot goes on with the older request, whose deadline is earlier, before it begins with the younger one."""
    scenario = scenario_of(pool_of("vm", [1.0, 2.0]))
    workload = workload_of(times_s=np.array([5.0, 5.5]))
    result = simulate(scenario, workload, steady((1,), unsure(1.0, (0, 0), (0, 1))), requests=True)
    assert rows(result) == [("vm", "model1", 5.0, 8.0), ("vm", "model1", 8.0, 11.0)]
    assert result.summary["mean_accuracy_pct"] == pytest.approx(71.0, abs=1e-9)
    assert result.answered.sum() == 2


def test_ensemble_over_machine_and_function() -> None:
    """The function is cold and answers last: 5 + 2.5 + 1.5 s; the machine started first."""
    scenario = scenario_of(pool_of("vm", [1.0, 0.0]), pool_of("fn", [0.0, 1.5], "function"))
    policy = steady((1, 0), also((0, 0), (1, 1)))
    result = simulate(scenario, workload_of(times_s=np.array([5.0])), policy, requests=True)
    assert rows(result) == [("fn", "model1", 5.0, 9.0)]
    assert result.requests is not None and result.requests["cold"].tolist() == [True]
    assert result.summary["mean_accuracy_pct"] == pytest.approx(70.5, abs=1e-9)  # a tie counts one half
    assert result.invocations.sum() == 1 and result.function_ms.sum() == 4000
    (combo,) = result.combos
    assert (combo.cls, combo.stages, combo.then) == (0, (((0, 0),), ((1, 1),)), Then.ALSO)


def test_every_request_is_answered_once_or_rejected_also_where_machines_are_lost() -> None:
    storm = SpotPhysics(interruptions_per_hour=0.0, notice_s=0.3, storms=(Storm(10.0, 60.0, 400.0),))
    pools = pool_of("spot", [0.4, 0.3, 0.5], "spot", slots=2), pool_of("vm", [0.5, 0.4, 0.3])
    scenario = scenario_of(*pools, slos_s=(2.0, 9.0), spread=0.5, spot=storm)
    routes = ((unsure(0.5, (0, 0), (1, 1), (0, 2)),), (also((0, 0), (1, 1), (0, 1)),))
    policy = Scripted(Decision((6, 8), routes, (2, 4), (0.1, 0.0)))
    lost = []

    class Watched(Scripted):
        def decide(self, seen):
            lost.append(seen.lost.sum())
            return super().decide(seen)

    watched = Watched(*policy.decisions)
    result = simulate(scenario, workload_of([6] * 80, classes=2), watched, 3, requests=True)
    requests = result.requests
    assert requests is not None and sum(lost) > 5
    assert len(requests) == result.summary["requests"] == 480
    answered = requests["finish_ns"] > 0
    assert answered.sum() == result.answered.sum() == result.summary["answered"]
    assert (requests["start_ns"] >= requests["arrival_ns"])[answered].all()
    assert (requests["finish_ns"] > requests["start_ns"])[answered].all()


def test_as_many_are_unsure_as_asked_for() -> None:
    scenario = replace(scenario_of(pool_of("vm", [0.01, 0.01])), correctness=CorrectnessPhysics(0.8, 0.9))
    result = simulate(scenario, workload_of([500] * 40), steady((40,), unsure(0.3, (0, 0), (0, 1))))
    share = result.answered[0, 1, 0] / result.answered.sum()
    assert share == pytest.approx(0.3, abs=3 * np.sqrt(0.21 / 20_000))
    assert result.summary["mean_accuracy_pct"] == pytest.approx(result.combos[0].accuracy_pct)
    assert 70.0 < result.combos[0].accuracy_pct
    assert result.summary["mean_accuracy_pct"] == combined(scenario, unsure(0.3, (0, 0), (0, 1)))


@pytest.mark.parametrize("then", [Then.IF_UNSURE, Then.ALSO])
def test_accuracy_agrees_with_drawn_answers(then: Then) -> None:
    accuracies, shares, correlation, auroc, n = (65.0, 75.0, 85.0), (0.6, 0.3, 0.0), 0.5, 0.8, 400_000
    rng = np.random.default_rng(1)
    a = np.array(accuracies)[:, None] / 100
    errors = np.sqrt(correlation) * rng.normal(size=n) + np.sqrt(1 - correlation) * rng.normal(size=(3, n))
    right = errors < norm.ppf(a)
    confidence = rng.normal(size=(3, n)) + np.sqrt(2) * norm.ppf(auroc) * right
    if then == Then.ALSO:
        drawn = (right.sum(0) > 1.5).mean()
    else:
        goes_on = [c < np.quantile(c, share) for c, share in zip(confidence, shares, strict=True)]
        drawn = np.where(goes_on[0], np.where(goes_on[1], right[2], right[1]), right[0]).mean()
    found = combine(accuracies, shares, then, correlation, auroc)
    assert found.accuracy_pct / 100 == pytest.approx(drawn, abs=4 * 0.5 / np.sqrt(n))
    if then == Then.IF_UNSURE:
        assert found.pass_on[1] == pytest.approx(goes_on[1][goes_on[0]].mean(), abs=4 * 0.5 / np.sqrt(0.6 * n))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step(0, 0), Step(0, 1, then=Then.ALSO)], "the last step of a route cannot say then=ALSO"),
        ([Step(0, 0, then=Then.ALSO), Step(0, 1, then=Then.IF_UNSURE), Step(0, 2)], "all IF_UNSURE or all ALSO"),
        ([Step(0, 0), Step(0, 1, then=Then.ALSO), Step(0, 2)], "all steps of a stage must name one model"),
        ([Step(0, 0, then=Then.ALSO), Step(0, 1, late_model=2)], "cannot have a late model"),
        (
            [Step(0, 0, then=Then.IF_UNSURE, unsure_share=1.5), Step(0, 1)],
            "unsure_share is 1.5: right is between 0 and 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(steps: Sequence[Step], message: str) -> None:
    scenario = scenario_of(pool_of("vm", [1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match=message):
        simulate(scenario, workload_of([1]), steady((1,), Route(tuple(steps))))


def test_the_bound_may_use_what_a_run_used_and_no_more() -> None:
    """A cascade that reaches a floor that no model reaches never costs less than its own bound."""
    pool = pool_of("vm", [0.05, 0.5, 1.0])
    scenario = replace(scenario_of(pool, slos_s=(20.0,)), correctness=CorrectnessPhysics(0.2, 0.95))
    route = unsure(0.3, (0, 0), (0, 2))
    wanted = replace(scenario.classes[0], min_accuracy_pct=combined(scenario, route) - 0.01)
    scenario = replace(scenario, classes=(wanted,))
    workload = workload_of([20] * 600)
    result = simulate(scenario, workload, steady((8,), route))
    assert result.summary["slo_violation_pct"] == 0.0
    (combo,) = result.combos
    assert sum(combo.ended) == result.summary["answered"] and result.mixed.sum() == 0
    assert combo.ended[1] / sum(combo.ended) == pytest.approx(0.3, abs=0.02)
    own = oracle_for(result, workload, scenario).certificate_usd
    assert 0.4 * result.summary["cost_usd"] < own <= result.summary["cost_usd"]
    with pytest.raises(InputError, match="reaches min_accuracy_pct"):  # no single model is as good
        bound(workload, scenario)


def test_answers_between_two_combinations_are_counted_apart() -> None:
    """Where every decision has other models, answers that began under one and ended under another are in none."""
    scenario = scenario_of(pool_of("vm", [0.5, 0.5, 0.5, 0.5]), slos_s=(50.0,))
    changing = [Decision((9,), ((unsure(1.0, (0, i), (0, i + 1)),),)) for i in (0, 1, 2)] * 20
    result = simulate(scenario, workload_of([5] * 40), Scripted(*changing))
    counted = sum(sum(c.ended) for c in result.combos)
    assert result.mixed.sum() > 0 and counted > 0
    assert counted + result.mixed.sum() == result.summary["answered"]
