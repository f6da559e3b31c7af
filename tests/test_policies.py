"""The resource-side policies do what their papers say, and the registry refuses what it cannot build."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from planner_cases import RELAXED, STRICT, machines_over_time, make_pool, make_scenario, observe

from selfserve.errors import InputError
from selfserve.evaluation import run
from selfserve.forecast import Lstm
from selfserve.policies import make_policy, parameter_names, policy_names, with_hindsight
from selfserve.protocol import Admit, Policy
from selfserve.scenario import load_scenario
from selfserve.simulator import simulate
from selfserve.workload import load_trace, make_workload

ONE_CLASS = make_scenario(classes=[dataclasses.replace(STRICT, share=1.0)])  # a machine carries 40 requests/s


def told(name, peak_rate):
    """Return what a policy must be told of the load to come, and that it may end with no machine."""
    return {k: v for k, v in {"peak_rate": peak_rate, "minimum": 0}.items() if k in parameter_names(name)}


def routes_of(name, scenario, **parameters):
    policy = make_policy(name, **parameters)
    policy.reset(scenario, np.zeros(0))
    return policy.decide(observe(scenario, 0.0)).routes


def steps_of(name, scenario, **parameters):
    """Return, for each class, the steps of its first route."""
    return [routes[0].steps for routes in routes_of(name, scenario, **parameters)]


# --- the systems


def test_reactive_follows_the_last_interval_up_at_once():
    loads = [0, 100, 400, 400]
    assert machines_over_time(make_policy("reactive"), ONE_CLASS, loads) == [0, 0, 3, 10, 10]


def test_reactive_gives_idle_machines_back_after_three_minutes():
    fleet = machines_over_time(make_policy("reactive"), ONE_CLASS, [400] + [40] * 200)
    assert fleet[1:182] == [10] * 181 and fleet[182] == 1
    assert machines_over_time(make_policy("reactive", keep_s=0), ONE_CLASS, [400, 40]) == [0, 10, 1]


@pytest.mark.parametrize("name", policy_names())
def test_every_system_runs_on_spot_machines_where_there_are_no_others(name):
    scenario = load_scenario("spot", {"load_machines": 3.0})
    scenario = dataclasses.replace(scenario, pools=tuple(p for p in scenario.pools if p.market != "on_demand"))
    workload = make_workload(load_trace("WITS-twin"), scenario, 20_000, 900, 0)
    policy = make_policy(name, **told(name, 1.2 * float(workload.counts.mean())))
    found = simulate(scenario, workload, policy, 0)
    assert found.summary["requests"] == found.summary["answered"] + found.summary["rejected"] > 0
    assert name == "batch" or found.summary["vm_cost_usd"] > 0


def test_a_given_fleet_is_spread_over_the_pools_that_serve():
    """The strict class has a pool of its own here: all machines in the other one would leave it unserved."""
    strict = make_pool("strict", services=(0.02, 0.05, None, None))
    relaxed = make_pool("relaxed", services=(None, None, 0.6, None))
    scenario = make_scenario((strict, relaxed, make_pool("fn", "function")), (STRICT, RELAXED))
    for name in ("static", "clipper", "proteus"):
        for machines, fleet in ((10, (2, 8, 0)), (2, (1, 1, 0)), (1, (0, 1, 0)), (0, (0, 0, 0))):
            policy = make_policy(name, machines=machines, **told(name, 1.0))
            policy.reset(scenario, np.zeros(0))
            # 0.5 requests of 0.05 s beside 0.2 of 0.6 s
            assert policy.decide(observe(scenario, 0.0)).machines == fleet, name


def test_waiting_requests_are_demand_but_not_to_spock():
    for name, machines in (("reactive", 12), ("mixed", 12), ("spock", 10)):
        policy = make_policy(name, **({"policy": "reactive"} if name == "spock" else {}))
        policy.reset(ONE_CLASS, np.zeros(0))
        assert policy.decide(observe(ONE_CLASS, 1.0, 1.0, 400.0, queued=[[8000], [0]])).machines[0] == machines


def test_reactive_starts_from_its_history():
    history = [10.0] * 50 + [80.0] * 10
    assert machines_over_time(make_policy("reactive"), ONE_CLASS, [], history=history)[0] == 2


def test_policies_decide_at_the_scenarios_interval_unless_they_have_their_own():
    policy = make_policy("mixed")
    for interval_s in (10.0, 4.0):
        policy.reset(dataclasses.replace(ONE_CLASS, interval_s=interval_s, pools=make_scenario().pools), np.zeros(0))
        assert policy.interval_s == interval_s
    assert make_policy("spock").interval_s == 1.0
    assert make_policy("reactive", interval_s="2").interval_s == 2.0


def test_vm_policies_never_use_functions():
    for name in ("static", "reactive", "util_aware", "exascale"):
        extra = {"machines": 3} if name == "static" else {}
        for steps in steps_of(name, make_scenario(), **extra):
            assert [s.pool for s in steps] == [0]


def test_util_aware_keeps_utilisation_under_its_threshold():
    for load in np.linspace(1, 1000, 40):
        policy = make_policy("util_aware", keep_s=0)
        machines = machines_over_time(policy, ONE_CLASS, [load])[1]
        assert load / (40 * machines) <= 0.8 + 1e-9
        assert machines == 1 or load / (40 * (machines - 1)) > 0.8
    assert machines_over_time(make_policy("util_aware", threshold=0.5), ONE_CLASS, [400])[1] == 20


def test_util_aware_releases_as_reactive_does_and_counts_what_is_under_way():
    fleet = machines_over_time(make_policy("util_aware"), ONE_CLASS, [320] + [32] * 200)
    assert fleet[1] == 10 and fleet[180] == 10 and fleet[-1] == 1, "three idle minutes"
    assert machines_over_time(make_policy("util_aware"), ONE_CLASS, [320] * 5)[1:] == [10] * 5, "no second order"


def test_exascale_over_provisions_for_where_the_line_leads():
    ramp = list(np.arange(1, 501) * 0.8)  # after 500 s at 400 requests/s, in 100 s at 480
    fleet = machines_over_time(make_policy("exascale", headroom=1.5), ONE_CLASS, ramp)
    assert fleet[-1] == 19  # 480 / 40 * 1.5 = 18.0 and half a second's growth
    assert machines_over_time(make_policy("exascale", headroom=1.0), ONE_CLASS, [400] * 60)[-1] == 10
    steep = list(np.maximum(400 - np.arange(500) * 4.0, 0))
    assert machines_over_time(make_policy("exascale", keep_s=0), ONE_CLASS, steep)[-1] == 0


def test_exascale_looks_as_far_ahead_as_a_boot_takes():
    ramp = list(np.arange(1, 501) * 0.8)
    slow = dataclasses.replace(ONE_CLASS, vm=dataclasses.replace(ONE_CLASS.vm, boot_s=283.0))
    near, far = (machines_over_time(make_policy("exascale"), s, ramp)[-1] for s in (ONE_CLASS, slow))
    assert far - near == pytest.approx(200 * 0.8 / 40 * 1.5, abs=1)


def test_mixed_sends_what_would_be_late_to_a_function():
    for vm, function in steps_of("mixed", make_scenario()):
        assert vm.admit == Admit.IF_FITS and (vm.pool, function.pool) == (0, 1) and function.model == vm.model
    assert machines_over_time(make_policy("mixed"), ONE_CLASS, [0, 100, 400]) == [0, 0, 3, 10]


@pytest.mark.parametrize("name", ["mixed", "spock", "paragon"])
def test_hybrids_refuse_a_scenario_without_functions(name):
    with pytest.raises(InputError, match="no function pool"):
        make_policy(name).reset(make_scenario(pools=[make_pool("vm")]), np.zeros(0))


def test_paragon_lets_strict_classes_overflow_only():
    strict, accurate, relaxed = steps_of("paragon", make_scenario())
    assert len(strict) == len(accurate) == 2 and len(relaxed) == 1
    assert [len(s) for s in steps_of("paragon", make_scenario(), strict_slo_s=1.0)] == [2, 1, 1]
    vm, function = steps_of("paragon", make_scenario(), relaxed="last_moment")[2]
    assert vm.admit == Admit.ALWAYS and 0 < vm.leave_slack_s < 1 and function.pool == 1


def test_paragon_picks_the_least_cost_model_and_naive_any():
    scenario = make_scenario(classes=[STRICT, RELAXED])
    assert [s[0].model for s in steps_of("paragon", scenario)] == [1, 2]
    assert [len(r) for r in routes_of("paragon", scenario, models="naive")] == [4, 4]


def test_spock_runs_a_query_on_a_function_when_no_slot_is_free():
    for vm, function in steps_of("spock", make_scenario()):
        assert vm.admit == Admit.IF_IDLE and function.pool == 1


def test_spock_predicts_by_a_line_over_500_s_or_reacts():
    spike = [40.0] * 499 + [400.0]
    assert machines_over_time(make_policy("spock", policy="reactive"), ONE_CLASS, spike)[-1] == 10
    assert machines_over_time(make_policy("spock"), ONE_CLASS, spike)[-1] == 2
    ramp = list(np.arange(1, 501) * 0.8)
    assert machines_over_time(make_policy("spock"), ONE_CLASS, ramp)[-1] == 13  # where the load will be: 480 requests/s


def test_static_carries_the_peak_minute_it_is_told_or_has_seen():
    assert machines_over_time(make_policy("static", peak_rate=400.0), ONE_CLASS, [0, 900]) == [10] * 3
    history = np.r_[np.full(500, 40.0), np.full(60, 200.0), np.full(500, 40.0)]
    assert machines_over_time(make_policy("static"), ONE_CLASS, [0], history=history) == [5, 5]
    assert machines_over_time(make_policy("static", machines=7), ONE_CLASS, [0]) == [7, 7]
    with pytest.raises(InputError, match="static: no history"):
        make_policy("static").reset(ONE_CLASS, np.zeros(0))


def test_static_has_its_headroom_over_the_peak_and_never_moves():
    assert machines_over_time(make_policy("static", peak_rate=400.0, headroom=0.5), ONE_CLASS, [0, 900]) == [5] * 3
    loads = [0.0, 900.0, 5.0, 400.0] * 50
    assert set(machines_over_time(make_policy("static", peak_rate=400.0), ONE_CLASS, loads)) == {10}


def test_spock_gives_idle_machines_back_after_three_minutes():
    fleet = machines_over_time(make_policy("spock", policy="reactive"), ONE_CLASS, [400.0] * 60 + [40.0] * 200)
    assert fleet[60 + 175] == 10 and fleet[60 + 185] == 1


@pytest.mark.parametrize("name", policy_names())
def test_any_scenario_and_no_load(name):
    gpu = make_pool("gpu", services=(0.002, 0.004, 0.01, 0.02), slots=1, usd=0.5)
    wide = [make_pool("spot", "spot"), make_pool("a"), gpu, make_pool("fn", "function"), make_pool("fn2", "function")]
    for scenario in (make_scenario(), make_scenario(pools=wide), make_scenario(pools=wide[::-1], classes=[RELAXED])):
        policy = make_policy(name, **told(name, 0.0))
        assert isinstance(policy, Policy)
        policy.reset(scenario, np.zeros(0))
        for time_s in (0.0, policy.interval_s, 2 * policy.interval_s):
            decision = policy.decide(observe(scenario, time_s, policy.interval_s))
            assert decision.machines == (0,) * len(scenario.pools)
            assert len(decision.routes) == len(scenario.classes) and all(decision.routes)


@pytest.mark.parametrize("name", policy_names())
def test_reset_forgets_the_run_before(name):
    parameters = told(name, 100.0)
    loads = list(np.random.default_rng(0).poisson(200, 50))
    policy = make_policy(name, **parameters)
    first = machines_over_time(policy, ONE_CLASS, loads)
    assert machines_over_time(policy, ONE_CLASS, loads) == first


def test_no_two_policies_decide_alike_on_a_trace(monkeypatch):
    monkeypatch.setitem(Lstm.__init__.__kwdefaults__, "updates", 50)
    window, logs = run.spread_windows("WITS-twin", "evaluate", 1, 1200)[0], {}
    for name in policy_names():
        if name != "controller":  # it is "analytic" until it adopts a correction: tests/test_controller.py
            logs[name] = run.measure(run.Case(name, *window, oracle=False))["decisions"]
    assert len(set(logs.values())) == len(logs)


# --- the registry


def test_parameters_are_read_from_text_by_their_type():
    policy = make_policy("spock", policy="reactive", window_s="60", keep_s="30", pool="vm", headroom=2)
    assert (policy.policy, policy.window_s, policy.keep_s, policy.pool) == ("reactive", 60, 30.0, "vm")
    assert policy.headroom == 2.0 and isinstance(policy.headroom, float)
    assert make_policy("static", machines="none", peak_rate="3").machines is None
    assert make_policy("static", machines="3").machines == 3
    assert make_policy("static", machines=np.int64(3)).machines == 3


def test_what_an_offline_choice_knows_is_offered_only_where_it_is_taken():
    counts = np.full(120, 5)
    assert with_hindsight("static", counts, {}) == {"peak_rate": 5.0}
    assert with_hindsight("static", counts, {"peak_rate": "9"}) == {"peak_rate": "9"}
    assert with_hindsight("mixed", counts, {"keep_s": 1}) == {"keep_s": 1}
    assert "keep_s" in parameter_names("paragon") and "planner" not in parameter_names("paragon")


@pytest.mark.parametrize(
    ("spec", "parameters", "message"),
    [
        ("reactve", {}, "policy reactve: unknown .known: static, reactive"),
        ("mixed", {"keep": 3}, "unknown parameter keep .known: headroom, keep_s"),
        ("mixed", {"keep_s": "soon"}, "keep_s=soon: must be a number"),
        ("mixed", {"keep_s": -1}, "keep_s=-1.0: must be 0 or more"),
        ("mixed", {"keep_s": "nan"}, "keep_s=nan: must be 0 or more"),
        ("mixed", {"overflow": "always"}, "must be one of never, idle, fits, last_moment"),
        ("mixed", {"drain_s": 0}, "drain_s=0.0: must be above 0"),
        ("mixed", {"interval_s": 0}, "interval_s=0.0: must be above 0"),
        ("static", {"interval_s": -1}, "interval_s=-1.0: must be above 0"),
        ("static", {"machines": 1.5}, "machines=1.5: must be a whole number or none"),
        ("static", {"machines": float("inf")}, "must be a whole number"),
        ("static", {"machines": True}, "must be a whole number"),
        ("static", {"machines": -1}, "machines=-1: must be 0 or more"),
        ("util_aware", {"threshold": 0}, "threshold=0.0: must be in"),
        ("exascale", {"window_s": 1}, "window_s=1: must be from 2"),
        ("reactive", {"pool": 3}, "pool=3: must be text or none"),
    ],
)
def test_bad_names_and_parameters_end_in_one_line(spec, parameters, message):
    with pytest.raises(InputError, match=message) as error:
        make_policy(spec, **parameters)
    assert "\n" not in str(error.value)


OWN = """
from __future__ import annotations
from selfserve.policies.mixed import Mixed

class Own:
    interval_s = 5.0
    def __init__(self, machines: int = 2, careful: bool = False):
        self.machines, self.careful = machines, careful
    def reset(self, scenario, history): ...
    def decide(self, observation): ...

class Mine(Mixed):
    name = "mine"

class Needy(Own):
    def __init__(self, budget: float): ...

class NoPolicy: ...
number = 3
"""


def test_a_policy_of_the_users_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    policy = make_policy(f"{file}:Own", machines="4", careful="true")
    assert (policy.machines, policy.careful, policy.interval_s) == (4, True, 5.0)
    assert make_policy(f"{file}:Mine", keep_s="7").keep_s == 7.0
    assert parameter_names(f"{file}:Own") == ["machines", "careful"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "Own", "there is no file"),
        (OWN, "Other", "has no class Other"),
        (OWN, "number", "has no class number"),
        (OWN, "NoPolicy", "NoPolicy is no policy: a policy has interval_s"),
        (OWN, "Needy", "parameter budget has no default"),
        ("class Own(:\n", "Own", "line 1: invalid syntax"),
        ("import surely_not_there", "Own", "ModuleNotFoundError"),
    ],
)
def test_a_users_file_that_cannot_be_used(tmp_path, content, name, message):
    file = tmp_path / "own.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        make_policy(f"{file}:{name}")
    assert "\n" not in str(error.value)


def test_machines_batch_what_waits_anyway_and_nobody_is_late_for_it():
    scenario = load_scenario("standard", {"load_machines": 6.0})
    workload = make_workload(load_trace("WITS-twin"), scenario, 20_000, 2400, 0)
    alone, together = (
        simulate(scenario, workload, make_policy("tuned", own_share=share), 0, decisions=True) for share in (0.0, 0.6)
    )
    assert together.summary["cost_usd"] < 0.97 * alone.summary["cost_usd"]
    assert together.summary["slo_violation_pct"] < 0.1
    sizes = [run.decisions["batch_mean.vm"].max() for run in (alone, together)]
    assert sizes[0] == 1 and sizes[1] > 1.5
