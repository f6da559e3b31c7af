"""The model-side policies do what their papers say: one small situation for each rule, which fails without it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from planner_cases import MEAN, RELAXED, STRICT, machines_over_time, make_pool, make_scenario, observe

from selfserve.errors import InputError
from selfserve.policies import make_policy
from selfserve.protocol import Admit
from selfserve.scenario import to_ns

ALONE = dataclasses.replace(STRICT, share=1.0)
ONE_CLASS = make_scenario(classes=[ALONE])  # the cheapest model above its floor: 40 requests/s a machine
VM_ONLY = make_scenario(classes=[ALONE], pools=[make_pool("vm")])


def accelerator(name="gpu", usd=0.5):
    """A pool that serves two requests in the time of one: 500 requests/s of the middle model."""
    times = np.zeros((4, 3), dtype=np.int64)
    times[:, 1:] = np.array([[to_ns(s)] * 2 for s in (0.002, 0.004, 0.01, 0.02)])
    return dataclasses.replace(make_pool(name, slots=1, usd=usd), service_ns=times, believed_ns=times)


WITH_GPU = make_scenario(classes=[ALONE], pools=[make_pool("vm"), accelerator()])


def started(name, scenario, history=(), **parameters):
    policy = make_policy(name, **parameters)
    policy.reset(scenario, np.asarray(history, dtype=float))
    return policy


def after(policy, scenario, loads, **seen):
    """Return the decision after ``loads`` (requests/s, a second each)."""
    policy.decide(observe(scenario, 0.0))
    for i, load in enumerate(loads, start=1):
        decision = policy.decide(observe(scenario, float(i), 1.0, load, **seen))
    return decision


# --- InferAll


def test_inferall_tries_the_most_accurate_model_first_and_a_function_last():
    strict, _, relaxed = (routes[0].steps for routes in started("inferall", make_scenario()).routes)
    assert [(s.pool, s.model, s.admit) for s in strict] == [
        (0, 3, Admit.IF_FITS),
        (0, 2, Admit.IF_FITS),
        (0, 1, Admit.IF_FITS),
        (1, 3, Admit.ALWAYS),
    ]
    assert [s.model for s in relaxed] == [3, 2, 3]  # nothing below the floor


def test_inferall_leaves_out_what_does_not_fit_the_slo():
    fast = dataclasses.replace(ALONE, slo_s=0.3)
    steps = started("inferall", make_scenario(classes=[fast])).routes[0][0].steps
    assert [s.model for s in steps] == [2, 1, 2]


def test_inferall_answers_with_the_fastest_model_what_has_waited_too_long_for_its_own():
    first, _, last, _ = started("inferall", ONE_CLASS).routes[0][0].steps
    assert (first.late_model, first.late_slack_s) == (1, pytest.approx(0.4 * 1.233))
    assert last.late_model is None


def test_inferall_takes_the_cheapest_size_and_memory():
    slow = (0.04, 0.1, 0.3, None)
    cheap = make_pool("small", "function", services=slow, usd=0.05, memory_mb=1024.0)
    pools = [make_pool("dear", usd=0.2), make_pool("vm"), make_pool("fn", "function", usd=0.2), cheap]
    steps = started("inferall", make_scenario(classes=[ALONE], pools=pools)).routes[0][0].steps
    assert {s.pool for s in steps[:-1]} == {1} and (steps[-1].pool, steps[-1].model) == (2, 3)
    brief = dataclasses.replace(ALONE, slo_s=0.45)
    steps = started("inferall", make_scenario(classes=[brief], pools=pools)).routes[0][0].steps
    assert (steps[-1].pool, steps[-1].model) == (3, 2)  # of the same model the memory that costs least


def test_inferall_sizes_the_fleet_for_the_most_accurate_model_where_the_line_leads():
    ramp = list(np.arange(1, 501) * 0.08)  # after 500 s at 40 requests/s, in 100 s at 48; 5 requests/s a machine
    assert machines_over_time(make_policy("inferall"), ONE_CLASS, ramp)[-1] == 10
    assert machines_over_time(make_policy("inferall", headroom=2), ONE_CLASS, ramp)[-1] == 20


def test_inferall_takes_the_largest_batch_in_time_and_lets_an_accelerators_fill():
    policy = started("inferall", WITH_GPU, pool="gpu")
    decision = after(policy, WITH_GPU, [100.0] * 10)
    assert decision.batch_max[1] == 2 and decision.batch_wait_s[1] > 0.2
    relaxed = make_scenario(classes=[dataclasses.replace(RELAXED, share=1.0)])
    decision = after(started("inferall", relaxed), relaxed, [100.0] * 10)
    assert decision.batch_max == (2, 1) and decision.batch_wait_s == (0.0, 0.0), "a free CPU takes what is there"
    assert after(started("inferall", ONE_CLASS), ONE_CLASS, [100.0] * 10).batch_max[0] == 1, "0.72 s of half a second"


def test_inferall_without_functions_stays_on_its_machines():
    steps = started("inferall", VM_ONLY).routes[0][0].steps
    assert [s.admit for s in steps] == [Admit.IF_FITS, Admit.IF_FITS, Admit.ALWAYS]


# --- INFaaS


def test_infaas_keeps_five_percent_of_the_rate_free():
    assert machines_over_time(make_policy("infaas"), VM_ONLY, [37.9]) == [0, 1]
    assert machines_over_time(make_policy("infaas"), VM_ONLY, [38.1]) == [0, 2]
    assert machines_over_time(make_policy("infaas", slack=0), VM_ONLY, [38.1]) == [0, 1]


def test_infaas_lets_a_machine_go_after_ten_low_readings_in_a_row():
    fleet = machines_over_time(make_policy("infaas"), VM_ONLY, [370] + [100] * 30)
    assert fleet[1:] == [10] * 10 + [9] * 10 + [8] * 10 + [7]
    broken = machines_over_time(make_policy("infaas"), VM_ONLY, [370] + ([100] * 9 + [365]) * 5)
    assert set(broken[1:]) == {10}


def test_infaas_reads_every_two_seconds_whatever_the_scenario_says():
    policy = started("infaas", ONE_CLASS)
    assert policy.interval_s == 2.0 != ONE_CLASS.interval_s


def test_infaas_upgrades_when_a_bigger_variant_is_cheaper_than_replicas():
    policy = started("infaas", WITH_GPU)
    few = after(policy, WITH_GPU, [100.0])
    assert few.machines == (3, 0) and few.reason == "replicated"
    many = policy.decide(observe(WITH_GPU, 2.0, 1.0, 800.0))
    assert many.machines == (3, 2) and many.reason == "upgraded"  # $1.0 an hour, not the $2.2 of 22 machines
    assert many.batch_max == (1, 2)


def test_infaas_replicates_unless_that_costs_half_as_much_again():
    assert after(started("infaas", WITH_GPU), WITH_GPU, [250.0]).machines == (7, 0)  # $0.7 against $0.5
    assert after(started("infaas", WITH_GPU, upgrade_ratio=1.0), WITH_GPU, [250.0]).machines == (0, 1)


def test_infaas_downgrades_after_twenty_low_readings():
    loads = [800.0] + [30.0] * 19
    policy = started("infaas", WITH_GPU)
    assert after(policy, WITH_GPU, loads).machines == (0, 2)
    decision = policy.decide(observe(WITH_GPU, 21.0, 1.0, 30.0))
    assert decision.reason == "downgraded" and decision.machines == (1, 2)
    assert [s.pool for s in decision.routes[0][0].steps] == [0, 1]


def test_infaas_sends_a_request_to_the_other_running_variant_while_the_new_one_boots():
    policy = started("infaas", WITH_GPU)
    steps = after(policy, WITH_GPU, [100.0, 800.0]).routes[0][0].steps
    assert [(s.pool, s.admit) for s in steps] == [(1, Admit.IF_FITS), (0, Admit.ALWAYS)]


def test_infaas_asks_a_mean_accuracy_of_every_answer():
    policy = started("infaas", make_scenario(classes=[dataclasses.replace(MEAN, share=1.0)]))
    assert [s.model for s in after(policy, policy.planner.scenario, [10.0]).routes[0][0].steps] == [2]


def test_infaas_keeps_a_machine_for_what_waits():
    policy = started("infaas", VM_ONLY)
    assert policy.decide(observe(VM_ONLY, 0.0, queued=[[3]])).machines == (1,)


# --- Proteus


def accuracy(decision, scenario=ONE_CLASS, k=0):
    routes = decision.routes[k]
    weight = sum(r.weight for r in routes)
    return sum(r.weight * scenario.accuracy_pct[r.steps[0].model] for r in routes) / weight


@pytest.mark.parametrize("load", [10.0, 80.0, 200.0, 360.0, 2000.0])
def test_proteus_lowers_accuracy_only_under_overload(load):
    """Ten machines: 20 slots at 90% carry 90 requests/s of the large model, 360 of the middle one, none of the huge."""
    decision = after(started("proteus", ONE_CLASS, machines=10, smoothing=1), ONE_CLASS, [load])
    assert decision.machines[0] == 10
    large = np.clip((18 / load - 0.05) / 0.15, 0, 1)  # the rest by the middle model
    if load <= 360:
        assert accuracy(decision) == pytest.approx(76 + 6 * large, abs=0.01)
    else:
        assert accuracy(decision) == 70.0  # throughput comes first, even below the floor


def test_proteus_plans_on_the_machines_that_are_ready():
    policy = started("proteus", ONE_CLASS, machines=10, smoothing=1)
    few, all_of_them = (policy.decide(observe(ONE_CLASS, t, 1.0, 90.0, ready=[n, 0])) for t, n in ((1.0, 3), (2.0, 10)))
    assert few.machines == all_of_them.machines and accuracy(few) < 78 < 82 == accuracy(all_of_them)


def test_proteus_has_half_of_the_slo_left_for_waiting():
    relaxed = dataclasses.replace(ALONE, slo_s=1.0)
    decision = after(started("proteus", make_scenario(classes=[relaxed]), machines=10), ONE_CLASS, [1.0])
    assert accuracy(decision) == 85.0  # 0.4 s at p99 fit in half a second, but not in a quarter
    assert accuracy(after(started("proteus", ONE_CLASS, machines=10), ONE_CLASS, [1.0])) == 82.0


def test_proteus_keeps_demands_before_accuracy_beyond_them():
    scenario = make_scenario()
    for load in (30.0, 60.0, 90.0, 110.0):
        decision = after(started("proteus", scenario, machines=8, smoothing=1), scenario, [load])
        models = {scenario.accuracy_pct[r.steps[0].model] for r in decision.routes[2]}
        assert min(models) >= 81.0 and accuracy(decision, scenario, 1) >= 80.0 - 1e-6
    assert accuracy(decision, scenario, 0) < 77.0


def test_proteus_batches_on_accelerators_and_gives_a_class_one_variant_there():
    scenario = make_scenario(classes=[ALONE], pools=[make_pool("vm", usd=9.0), accelerator()])
    for load in (100.0, 300.0, 600.0):
        decision = after(started("proteus", scenario, peak_rate=800.0, smoothing=1), scenario, [load])
        assert decision.machines == (0, 2) and len(decision.routes[0]) == 1
        assert decision.batch_max == (1, 2) and decision.batch_wait_s == (0.0, 0.125)


def test_proteus_does_not_grow_with_its_load():
    loads = list(np.r_[np.full(40, 100.0), np.full(15, 300.0)])
    assert set(machines_over_time(make_policy("proteus", peak_rate=200.0), ONE_CLASS, loads)) == {5}
    assert machines_over_time(make_policy("proteus"), ONE_CLASS, [0.0], history=[80.0] * 60 + [10.0] * 60) == [2, 2]


def test_proteus_without_history_holds_the_busiest_minute_that_it_has_seen():
    fleet = machines_over_time(make_policy("proteus"), ONE_CLASS, [120.0] * 70 + [40.0] * 200)
    assert fleet[59] == 0 and set(fleet[61:]) == {3}


def test_proteus_averages_its_demand():
    spike = [50.0] * 30 + [350.0]
    calm, quick = (started("proteus", ONE_CLASS, machines=10, smoothing=s) for s in (0.1, 1.0))
    assert accuracy(after(calm, ONE_CLASS, spike)) == 82.0 > accuracy(after(quick, ONE_CLASS, spike))


# --- the integer program on a forecast


def milp(scenario=ONE_CLASS, **parameters):
    plain = {"forecaster": "last_value", "keep_s": 0, "headroom": 1, "alpha": 0}
    return started("forecast_milp", scenario, **(plain | parameters))


def test_the_program_takes_the_cheapest_variants_that_meet_the_demands():
    scenario = make_scenario()
    decision = after(milp(scenario, largest_batch=1, slo_share=1.0), scenario, [100.0] * 60)
    models = [{r.steps[0].model: r.weight for r in routes} for routes in decision.routes]
    assert set(models[0]) == {1} and set(models[2]) == {2}
    assert sum(w * scenario.accuracy_pct[m] for m, w in models[1].items()) == pytest.approx(80.1)
    # 50 requests/s of 0.05 s, 30 of a mix that costs 0.1525 s, 20 of 0.2 s on two slots a machine
    work = 50 * 0.05 + 30 * (0.05 + 0.15 * (80.1 - 76) / 6) + 20 * 0.2
    assert decision.machines[0] == int(np.ceil(work / 2))


def test_the_program_batches_only_where_the_load_fills_a_batch_in_time():
    many, few = (after(milp(), ONE_CLASS, [load] * 60) for load in (200.0, 2.0))
    assert many.batch_max[0] == 2 and many.machines[0] == 5  # 200 requests/s of 0.045 s on two slots: 4.5
    assert few.batch_max[0] == 1  # a second request comes after half a second
    assert after(milp(slo_share=0.2), ONE_CLASS, [200.0] * 60).batch_max[0] == 1  # 0.09 s at p99 are over 0.1 s


def test_the_program_chooses_whole_machines_between_pools():
    assert after(milp(WITH_GPU, largest_batch=2), WITH_GPU, [100.0] * 60).machines == (3, 0)
    assert after(milp(WITH_GPU, largest_batch=2), WITH_GPU, [400.0] * 60).machines == (0, 1)
    assert after(milp(WITH_GPU, pool="vm", largest_batch=1), WITH_GPU, [400.0] * 60).machines == (10, 0)


def test_the_program_waits_to_fill_batches_on_accelerators_only():
    decision = after(milp(WITH_GPU), WITH_GPU, [400.0] * 60)
    assert decision.batch_max == (1, 2)
    assert decision.batch_wait_s == (0.0, pytest.approx(0.25 - 0.004 * 1.233))  # of half the SLO what the batch leaves
    assert after(milp(), ONE_CLASS, [200.0] * 60).batch_wait_s == (0.0, 0.0)


def test_the_program_splits_a_class_on_cpus_but_not_on_an_accelerator():
    mean = [dataclasses.replace(MEAN, share=1.0)]
    on_cpus, on_gpus = (make_scenario(classes=mean, pools=[pool]) for pool in (make_pool("vm"), accelerator()))
    assert len(after(milp(on_cpus), on_cpus, [100.0] * 60).routes[0]) == 2
    assert [r.steps[0].model for r in after(milp(on_gpus), on_gpus, [100.0] * 60).routes[0]] == [2]


def test_the_program_shares_the_load_among_machines_that_are_up():
    policy, now = milp(WITH_GPU), observe(WITH_GPU, 61.0, 1.0, 400.0, ready=[4, 0])
    after(policy, WITH_GPU, [400.0] * 60)
    decision = policy.decide(now)
    assert decision.machines[1] == 1 and {r.steps[0].pool for r in decision.routes[0]} == {0}


def test_the_program_counts_what_a_new_machine_costs_while_it_boots():
    booted, none = observe(WITH_GPU, 61.0, 1.0, 230.0, ready=[6, 0]), observe(WITH_GPU, 61.0, 1.0, 230.0)
    machines = []
    for seen in (booted, none):  # six machines at $0.1 or one at $0.5: a switch is not worth its boot
        policy = milp(WITH_GPU)
        after(policy, WITH_GPU, [230.0] * 60)
        machines.append(policy.decide(seen).machines)
    assert machines == [(6, 0), (0, 1)]


def test_the_program_plans_for_the_load_that_is_forecast():
    ramp, now = np.arange(1, 601), observe(ONE_CLASS, 0.0)  # at 600 requests/s, in 55 s at 655, in 105 s at 705

    def machines(**parameters):
        return (
            started("forecast_milp", ONE_CLASS, ramp, forecaster="linear_trend", **parameters).decide(now).machines[0]
        )

    assert [machines(headroom=1.0, of=of) for of in ("mean", "max")] == [15, 16]  # 44.4 requests/s a machine
    assert machines(headroom=1.5, of="max") == 24


def test_the_network_is_trained_on_the_history_and_a_line_replaces_it_without(monkeypatch):
    from selfserve import forecast

    monkeypatch.setattr(forecast.Lstm, "least_s", 3600)
    steady = np.random.default_rng(0).poisson(200, 12_000)
    policy = make_policy("forecast_milp", headroom=1)
    policy.reset(ONE_CLASS, np.zeros(0))
    assert "linear trend" in policy.decide(observe(ONE_CLASS, 0.0)).reason
    monkeypatch.setattr(
        forecast.Lstm.__init__, "__kwdefaults__", {"window_s": 300, "hidden": 4, "updates": 300, "seed": 0}
    )
    policy.reset(ONE_CLASS, steady)
    decision = policy.decide(observe(ONE_CLASS, 0.0))
    assert "linear trend" not in decision.reason and decision.machines[0] in (4, 5, 6)


def test_alpha_buys_accuracy_beyond_the_demand():
    assert {r.steps[0].model for r in after(milp(), ONE_CLASS, [100.0] * 60).routes[0]} == {1}
    some = {r.steps[0].model: r.weight for r in after(milp(alpha=2.0), ONE_CLASS, [100.0] * 60).routes[0]}
    assert set(some) == {1, 2} and some[2] < 0.1, "only what the third machine has left over"
    assert {r.steps[0].model for r in after(milp(alpha=60.0), ONE_CLASS, [100.0] * 60).routes[0]} == {2}


def test_a_class_whose_machines_are_all_still_to_come_keeps_its_plan():
    able, unable = make_pool("vm"), dataclasses.replace(make_pool("small", usd=0.01), models=(0,))
    easy = dataclasses.replace(STRICT, name="easy", share=0.5, min_accuracy_pct=60.0)
    scenario = make_scenario(classes=[dataclasses.replace(STRICT, share=0.5), easy], pools=[able, unable])
    policy = milp(scenario)
    after(policy, scenario, [100.0] * 60)
    decision = policy.decide(observe(scenario, 61.0, 1.0, 100.0, ready=[0, 2]))
    assert {r.steps[0].pool for r in decision.routes[0]} == {0} and decision.machines[0] > 0


def test_the_program_reacts_to_what_waits_and_stays_within_bounds():
    waits = after(milp(), ONE_CLASS, [200.0] * 60, queued=[[4000], [0]]).machines[0]
    assert waits == 5 + 1  # 4000 requests of 0.0225 machine-seconds in 100 s, beside 4.5 machines
    bounded = make_scenario(
        classes=[ALONE], pools=[make_pool("vm", max_machines=3), make_pool("fn", "function", usd=0.2)]
    )
    decision = after(milp(bounded), bounded, [1000.0] * 60)
    assert decision.machines == (3, 0) and decision.routes[0]


def test_functions_take_over_only_where_that_is_asked_for():
    for rule, admit in (("fits", Admit.IF_FITS), ("idle", Admit.IF_IDLE), ("last_moment", Admit.ALWAYS)):
        vm, function = after(milp(overflow=rule), ONE_CLASS, [100.0]).routes[0][0].steps
        assert vm.admit == admit and function.pool == 1
    assert len(after(milp(), ONE_CLASS, [100.0]).routes[0][0].steps) == 1, "the paper has no functions"
    relaxed = make_scenario(classes=[dataclasses.replace(RELAXED, share=1.0)])
    vm, _ = after(milp(relaxed, overflow="fits"), relaxed, [10.0]).routes[0][0].steps
    assert vm.leave_slack_s > 2.5  # in time for a cold start


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("infaas", {"slack": 1}, "slack=1.0: must be from 0 to below 1"),
        ("infaas", {"upgrade_ratio": 0.5}, "upgrade_ratio=0.5: must be 1 or more"),
        ("infaas", {"low_cpu": 0}, "low_cpu=0: must be 1 or more"),
        ("inferall", {"window_s": 1}, "window_s=1: must be from 2"),
        ("proteus", {"machines": -1}, "machines=-1: must be 0 or more"),
        ("proteus", {"load_limit": 0}, "load_limit=0.0: must be in"),
        ("forecast_milp", {"alpha": -1}, "alpha=-1.0: must be 0 or more"),
        ("forecast_milp", {"forecaster": "arima"}, "must be one of lstm, last_value"),
    ],
)
def test_bad_parameters_end_in_one_line(name, parameters, message):
    with pytest.raises(InputError, match=message):
        make_policy(name, **parameters)
