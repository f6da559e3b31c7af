"""Tolerance Tiers and Cocktail do what their papers say: a test for each rule, which fails without it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from planner_cases import RELAXED, STRICT, make_pool, make_scenario, observe

from selfserve.correctness import combined
from selfserve.errors import InputError
from selfserve.policies import cocktail, make_policy, tolerance_tiers
from selfserve.protocol import Route, Then

SPECS = {"tolerance_tiers": f"{tolerance_tiers.__file__}:ToleranceTiers", "cocktail": f"{cocktail.__file__}:Cocktail"}
ONE_CLASS = make_scenario(classes=[dataclasses.replace(STRICT, share=1.0)])


def started(name, scenario, **parameters):
    policy = make_policy(SPECS[name], **parameters)
    policy.reset(scenario, np.zeros(0))
    return policy


def after(policy, scenario, loads):
    """Return the decision after ``loads`` (requests/s, a second each)."""
    policy.decide(observe(scenario, 0.0))
    for i, load in enumerate(loads, start=1):
        decision = policy.decide(observe(scenario, float(i), 1.0, load))
    return decision


# --- Tolerance Tiers


def tier(**changes):
    scenario = make_scenario(classes=[dataclasses.replace(RELAXED, **({"share": 1.0} | changes))])
    return scenario, started("tolerance_tiers", scenario)


def test_a_tier_asks_the_cheap_model_first_and_a_better_one_where_it_is_unsure():
    scenario, policy = tier()
    first, second = policy.routes[0][0].steps
    assert first.then == Then.IF_UNSURE and second.then == Then.DONE
    assert scenario.accuracy_pct[first.model] < 81.0 < scenario.accuracy_pct[second.model]
    assert 0 < first.unsure_share < 1


def test_a_tier_passes_on_no_more_than_its_accuracy_needs():
    scenario, policy = tier()
    first, second = policy.routes[0][0].steps
    assert 81.1 <= combined(scenario, policy.routes[0][0]) < 81.11  # a tenth of a point is guaranteed above the demand
    less = dataclasses.replace(first, unsure_share=0.95 * first.unsure_share)
    assert combined(scenario, Route((less, second))) < 81.1


def test_a_tier_that_one_model_serves_with_less_work_is_no_cascade():
    assert [s.model for s in tier(min_accuracy_pct=69.0)[1].routes[0][0].steps] == [0]
    poor = make_scenario(classes=[dataclasses.replace(RELAXED, share=1.0)])
    poor = dataclasses.replace(poor, correctness=dataclasses.replace(poor.correctness, confidence_auroc=0.501))
    assert [s.model for s in started("tolerance_tiers", poor).routes[0][0].steps] == [2]


def test_both_models_of_a_tier_fit_its_latency():
    assert len(tier(min_accuracy_pct=84.5)[1].routes[0][0].steps) == 2
    last = tier(min_accuracy_pct=84.5, slo_s=0.5)[1].routes[0][0].steps[-1]
    assert last.model == 3 and len(tier(min_accuracy_pct=84.5, slo_s=0.5)[1].routes[0][0].steps) == 1


def test_a_tier_has_machines_for_what_it_passes_on():
    scenario, policy = tier()
    first, second = policy.routes[0][0].steps
    work_s = (0.02, 0.05, 0.2, 0.4)
    load = 100.0 * (work_s[first.model] + first.unsure_share * work_s[second.model]) / 2
    assert after(policy, scenario, [100.0]).machines[0] == int(np.ceil(load))


# --- Cocktail

SPOT = make_scenario(
    classes=[dataclasses.replace(RELAXED, share=1.0)], pools=[make_pool("vm"), make_pool("cheap", "spot", usd=0.03)]
)


def mixer(scenario=SPOT, **parameters):
    return started("cocktail", scenario, **({"forecaster": "last_value"} | parameters))


def models(decision):
    return [s.model for s in decision.routes[0][0].steps]


def answered(scenario, time_s, accuracy_pct, load=100.0):
    seen = observe(scenario, time_s, 10.0, load)
    seen.served[1, 2, 0], seen.accuracy_sum[0] = 100, 100 * accuracy_pct
    return seen


def test_cocktail_starts_with_every_model_in_time():
    assert [v.model for v in mixer()._members[0]] == [0, 1, 2, 3]
    brief = dataclasses.replace(SPOT, classes=(dataclasses.replace(RELAXED, share=1.0, slo_s=0.3),))
    steps = mixer(brief)._route(mixer(brief)._members[0]).steps
    assert [s.model for s in steps] == [0, 1, 2] and [s.then for s in steps] == [Then.ALSO, Then.ALSO, Then.DONE]


def test_cocktail_drops_a_member_at_a_time_while_the_accuracy_is_above_the_demand():
    easy = dataclasses.replace(SPOT, classes=(dataclasses.replace(RELAXED, share=1.0, min_accuracy_pct=77.0),))
    policy, sizes = mixer(easy), []
    for minute in range(6):
        found = policy._accuracy(policy._members[0])
        sizes.append(len(models(policy.decide(answered(easy, 60.0 * minute, found)))))
    assert sizes[0] >= 3 and all(0 <= a - b <= 1 for a, b in pairwise(sizes)) and sizes[-1] < 3
    assert policy._accuracy(policy._members[0]) >= 77.2
    every = [[v for i, v in enumerate(policy._members[0]) if i != drop] for drop in range(sizes[-1])]
    assert all(not rest or policy._accuracy(rest) < 77.2 for rest in every)


def test_of_the_members_that_cocktail_can_do_without_the_dearest_goes():
    easy = dataclasses.replace(SPOT, classes=(dataclasses.replace(RELAXED, share=1.0, min_accuracy_pct=71.0),))
    policy = mixer(easy)
    before = policy._members[0]
    after = models(policy.decide(answered(easy, 0.0, policy._accuracy(before))))
    assert {v.model for v in before} - set(after) == {max(before, key=lambda v: v.usd).model}


def test_cocktail_brings_the_most_accurate_model_back_where_the_answers_are_worse_than_asked():
    policy = mixer()
    policy._members[0] = [v for v in policy._all[0] if v.model in (0, 1)]
    assert models(policy.decide(answered(SPOT, 0.0, 80.9))) == [0, 1]  # within the margin of 0.2 points
    assert models(policy.decide(answered(SPOT, 60.0, 80.7))) == [0, 1, 3]
    assert models(policy.decide(answered(SPOT, 70.0, 80.7))) == [0, 1, 3]  # a change a minute


def test_cocktail_drops_a_weak_member_that_outvotes_the_others():
    policy = mixer()
    found = policy._accuracy(policy._members[0])
    assert found < 80.8  # all four together are below the demand of 81
    assert len(models(policy.decide(answered(SPOT, 0.0, found)))) == 3
    assert policy._accuracy(policy._members[0]) > found


def test_cocktail_buys_spot_machines_where_there_are_any():
    decision = mixer().decide(answered(SPOT, 0.0, 81.1))
    assert {s.pool for s in decision.routes[0][0].steps} == {1}
    assert {s.pool for s in after(mixer(ONE_CLASS), ONE_CLASS, [10.0]).routes[0][0].steps} == {0}
    assert {s.pool for s in mixer(pool="vm").decide(answered(SPOT, 0.0, 81.1)).routes[0][0].steps} == {0}


def test_cocktail_forecasts_every_minute_and_corrects_every_interval():
    policy = mixer(keep_s=0)
    policy._members[0] = [v for v in policy._all[0] if v.model == 2]  # 0.2 s of two slots: 10 requests/s a machine
    loads = [100.0, 50.0, 50.0, 50.0, 200.0, 50.0, 50.0]
    fleet = [policy.decide(answered(SPOT, 10.0 * (i + 1), 81.1, load)).machines[1] for i, load in enumerate(loads)]
    assert fleet == [10, 10, 10, 10, 20, 10, 5]  # a forecast holds a minute; what comes over it is served at once


def test_cocktail_counts_every_member_and_keeps_idle_machines_ten_minutes():
    policy = mixer()
    fleet = [policy.decide(answered(SPOT, 10.0 * i, 81.1, 100.0 if i == 1 else 0.0)).machines[1] for i in range(80)]
    assert fleet[1] == int(np.ceil(100 * 0.67 / 2)) == fleet[61]
    assert fleet[70] == 0


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("tolerance_tiers", {"margin_pct": -1}, "margin_pct=-1.0: must be 0 or more"),
        ("cocktail", {"horizon_s": 0}, "horizon_s=0.0: must be above 0"),
        ("cocktail", {"forecaster": "arima"}, "must be one of lstm, last_value"),
    ],
)
def test_bad_parameters_end_in_one_line(name, parameters, message):
    with pytest.raises(InputError, match=message):
        make_policy(SPECS[name], **parameters)
