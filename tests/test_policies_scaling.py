"""The scaling, batching and steering policies do what their papers, code and manuals say: one test a rule."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from planner_cases import MODELS, RELAXED, STRICT, machines_over_time, make_pool, make_scenario, observe

from selfserve.analytic import constants
from selfserve.correctness import combined, stages
from selfserve.errors import InputError
from selfserve.policies import make_policy, parameter_names
from selfserve.policies.base import Choice, Range
from selfserve.policies.batch import batch_sizes
from selfserve.protocol import Admit
from selfserve.scenario import load_scenario, to_ns
from selfserve.simulator import simulate
from selfserve.situations import sample
from selfserve.steering import PlannerSettings, Steering, steer
from selfserve.workload import load_trace, make_workload

ONE = dataclasses.replace(STRICT, share=1.0)
ONE_CLASS = make_scenario(classes=[ONE])  # a machine carries 40 requests/s in two slots
NONE = np.zeros(0)
NAMES = ("mark", "batch", "clipper", "target_tracking", "knative", "ray_serve", "tuned")


def batching(name, market="on_demand", fixed=0.04, each=0.01, batches=16, **kw):
    """Return a pool on which a batch of b takes ``fixed + b * each`` seconds with any model."""
    pool = make_pool(name, market, **kw)
    table = np.zeros((len(MODELS), batches + 1), dtype=np.int64)
    table[:, 1:] = [to_ns(fixed + b * each) for b in range(1, batches + 1)]
    return dataclasses.replace(pool, service_ns=table, believed_ns=table)


def started(name, scenario=ONE_CLASS, history=NONE, **parameters):
    policy = make_policy(name, **parameters)
    policy.reset(scenario, np.asarray(history, dtype=float))
    return policy


def fleet(policy, scenario, readings, **fixed):
    """Return the machines of pool 0 after readings of the policy's interval: keywords of ``observe``."""
    policy.decide(observe(scenario, 0.0, policy.interval_s))
    step = policy.interval_s
    seen = [observe(scenario, i * step, step, **(fixed | r)) for i, r in enumerate(readings, start=1)]
    return [policy.decide(o).machines[0] for o in seen]


def busy(slots, interval_s):
    return {"busy": [slots * interval_s, 0.0]}


# --- target tracking


def test_target_tracking_scales_out_after_three_readings_in_proportion():
    policy = started("target_tracking", history=[60.0] * 60)  # 1.5 machines busy: 3 at 50%
    over = {"ready": [3, 0], **busy(6, 60), "arrivals": 120.0}
    assert fleet(policy, ONE_CLASS, [over, over, over]) == [3, 3, 6]
    policy = started("target_tracking", history=[60.0] * 60)
    under = {"ready": [3, 0], **busy(3, 60)}
    assert fleet(policy, ONE_CLASS, [over, over, under, over, over, over]) == [3] * 5 + [6]


def test_target_tracking_does_not_count_machines_that_warm_up():
    policy = started("target_tracking", history=[60.0] * 60)
    over = {"ready": [3, 0], **busy(6, 60)}
    assert fleet(policy, ONE_CLASS, [over] * 6) == [3, 3, 6, 6, 6, 6]


def test_target_tracking_scales_in_after_fifteen_readings_and_not_while_machines_boot():
    low = {"ready": [10, 0], **busy(4, 60)}
    policy = started("target_tracking", history=[200.0] * 60)
    assert fleet(policy, ONE_CLASS, [low] * 15) == [10] * 14 + [4]
    nearly = {"ready": [10, 0], **busy(9.5, 60)}  # below the target, but not by a tenth
    assert fleet(started("target_tracking", history=[200.0] * 60), ONE_CLASS, [nearly] * 20) == [10] * 20
    policy = started("target_tracking", history=[200.0] * 60)
    fleet(policy, ONE_CLASS, [low] * 14)
    seen = observe(ONE_CLASS, 900.0, 60.0, **low)
    seen.booting[0, 1] = 1
    assert policy.decide(seen).machines[0] == 10


def test_target_tracking_starts_where_its_owner_would_set_it():
    policy = started("target_tracking")
    assert fleet(policy, ONE_CLASS, [{"arrivals": 200.0}, {"arrivals": 400.0}]) == [10, 10]


# --- Knative


def concurrency(n, ready, **kw):
    return {"busy": [2.0 * n, 0.0], "ready": [ready, 0], "arrivals": 400.0, **kw}


def test_knative_divides_the_stable_concurrency_by_its_target():
    policy = started("knative", history=[400.0] * 60)
    assert fleet(policy, ONE_CLASS, [concurrency(14, 10)] * 40)[-1] == 10  # 14 / 0.7 = 20 pods of two a machine
    assert fleet(started("knative", history=[400.0] * 60), ONE_CLASS, [concurrency(14.1, 10)] * 40)[-1] == 11


def test_knative_panics_at_twice_its_ready_pods_and_not_before():
    calm = [concurrency(7, 5)] * 30  # 10 pods wanted, 10 ready
    for spike, machines in ((13.3, 6), (13.9, 10)):  # 19 and 20 pods by the panic window, 11 by the stable one
        policy = started("knative", history=[400.0] * 60)
        assert fleet(policy, ONE_CLASS, [*calm, *[concurrency(spike, 5)] * 3])[-1] == machines


def test_knative_grows_by_its_rate_over_ready_pods_at_most():
    for rate, machines in ((1000.0, 20), (1.5, 8)):  # 40 pods wanted, 10 ready
        policy = started("knative", history=[400.0] * 60, up_rate=rate)
        assert fleet(policy, ONE_CLASS, [concurrency(28, 5)] * 3)[-1] == machines


def test_knative_does_not_shrink_while_panicking():
    policy = started("knative", history=[400.0] * 60)
    spike = [concurrency(7, 5)] * 30 + [concurrency(28, 5)] * 3  # the third still asks for twice the pods ready
    after = [concurrency(1, 20)] * 40
    machines = fleet(policy, ONE_CLASS, [*spike, *after])
    high = max(machines)
    assert high == 20
    assert machines[33 : 33 + 30] == [high] * 30  # a stable window after the last such reading
    assert machines[-1] == 10  # then no faster than half of the pods ready a tick


def test_knative_does_not_shrink_by_more_than_half_at_once():
    policy = started("knative", history=[400.0] * 60)
    assert fleet(policy, ONE_CLASS, [concurrency(0.7, 10)] * 40)[-1] == 5
    assert fleet(started("knative", history=[400.0] * 60, down_rate=4), ONE_CLASS, [concurrency(0.7, 10)] * 40)[-1] == 3


def test_knative_keeps_the_last_pod_for_its_grace_period():
    quiet = [{"ready": [1, 0]}] * 17
    assert fleet(started("knative", minimum=0), ONE_CLASS, [concurrency(0.5, 1), *quiet])[-15:] == [1] * 15
    gone = [concurrency(0.5, 1), *[{"ready": [0, 0]}] * 17]
    after = fleet(started("knative", minimum=0, window_s=2), ONE_CLASS, gone)
    assert after[:15] == [1] * 15 and after[-1] == 0
    assert fleet(started("knative"), ONE_CLASS, [{"ready": [0, 0]}] * 40)[-1] == 1


def test_knative_counts_what_waits_up_to_the_size_of_its_cluster():
    policy = started("knative", history=[400.0] * 60)
    seen = observe(ONE_CLASS, 2.0, 2.0, arrivals=400.0, ready=[10, 0], busy=[40.0, 0.0])
    seen.queued_request_s[0, 0] = 2 * 8.0
    assert policy.decide(seen).machines[0] == 20  # 28 in flight over 0.7
    seen.time_s, seen.queued_request_s[0, 0] = 4.0, 1e6
    assert policy.decide(seen).machines[0] == 25  # 2.5 times the ten machines that the load keeps busy


# --- Ray Serve


def test_ray_serve_wants_two_ongoing_requests_a_replica_after_thirty_seconds():
    policy = started("ray_serve", history=[400.0] * 60)  # 10 machines, 20 replicas
    over = {"busy": [480.0, 0.0], "ready": [10, 0], "arrivals": 400.0}
    assert fleet(policy, ONE_CLASS, [over] * 4) == [10, 10, 10, 12]  # 48 in flight: 24 replicas, on the fourth reading


def test_ray_serve_begins_its_delay_again_when_readings_disagree():
    over, even = ({"busy": [x, 0.0], "ready": [10, 0], "arrivals": 400.0} for x in (480.0, 400.0))
    policy = started("ray_serve", history=[400.0] * 60, look_back_s=10)
    assert fleet(policy, ONE_CLASS, [over] * 3 + [even] + [over] * 3) == [10] * 7
    assert fleet(started("ray_serve", history=[400.0] * 60, up_delay_s=0), ONE_CLASS, [over]) == [12]


def test_ray_serve_shrinks_after_ten_minutes_of_agreement():
    policy = started("ray_serve", history=[400.0] * 60)
    low = {"busy": [100.0, 0.0], "ready": [10, 0], "arrivals": 400.0}
    machines = fleet(policy, ONE_CLASS, [low] * 61)
    assert machines[:60] == [10] * 60 and machines[60] == 3  # 5 replicas


def test_ray_serve_takes_its_factor_of_each_step():
    over = {"busy": [80.0, 0.0], "ready": [2, 0]}  # eight ongoing on four replicas, where two a replica are meant
    under = {"busy": [40.0, 0.0], "ready": [4, 0]}  # four on eight, which want two
    for factor, grown, shrunk in ((1.0, 4, 1), (0.5, 3, 3)):
        policy = started("ray_serve", history=[80.0] * 60, up_factor=factor, ongoing=1.0)
        assert fleet(policy, ONE_CLASS, [over] * 8)[-1] == grown
        policy = started("ray_serve", history=[160.0] * 60, down_factor=factor)
        assert fleet(policy, ONE_CLASS, [under] * 70)[-1] == shrunk


# --- Clipper

CPU = make_scenario(pools=[batching("vm"), make_pool("fn", "function")], classes=[ONE])


def clip(policy, seconds, late=0, queued=0):
    """Return the largest batch of pool 0 after each second of 100 answers."""
    sizes = []
    for _ in range(seconds):
        seen = observe(CPU, 1.0, 1.0, 100.0, ready=[4, 0], queued=[[queued], [0]])
        seen.served[0, 1, 0], seen.late[0] = 100, late
        sizes.append(policy.decide(seen).batch_max[0])
    return sizes


def test_clipper_grows_by_one_up_to_what_is_profiled():
    policy = started("clipper", CPU, peak_rate=100.0)
    assert clip(policy, 18) == [*range(2, 17), 16, 16, 16]


def test_clipper_backs_off_by_a_tenth_on_a_miss():
    policy = started("clipper", CPU, peak_rate=100.0)
    assert clip(policy, 9)[-1] == 10
    assert clip(policy, 2, late=5) == [9, 8]
    assert clip(policy, 1) == [9]
    assert clip(policy, 1, late=1) == [10]  # one in a hundred is no miss yet
    assert clip(policy, 60, late=100)[-1] == 1


def test_clipper_blames_the_fleet_not_the_batch_when_more_waits_than_a_round_takes():
    policy = started("clipper", CPU, peak_rate=100.0)
    assert clip(policy, 9)[-1] == 10  # four machines of two slots: a round takes 80
    assert clip(policy, 1, late=100, queued=81) == [11]
    assert clip(policy, 1, late=100, queued=80) == [9]


def test_clipper_waits_a_little_for_a_batch_and_does_not_scale():
    policy = started("clipper", CPU, peak_rate=100.0)
    assert policy.decide(observe(CPU, 0.0)).batch_wait_s == (0.002, 0.0)
    assert len(set(machines_over_time(policy, CPU, [0, 10, 5000]))) == 1
    assert len(set(machines_over_time(make_policy("clipper", scaling="reactive"), CPU, [0, 10, 5000]))) > 2


# --- MArk


def mark(scenario=ONE_CLASS, history=(), **parameters):
    return started("mark", scenario, history, **({"predictor": "last_value", "batch_share": 0} | parameters))


def test_clipper_has_a_fleet_for_the_busiest_minute_in_full_batches_where_these_pay():
    history = np.r_[np.full(500, 40.0), np.full(60, 400.0), np.full(500, 40.0)]
    assert started("clipper", history=history).decide(observe(ONE_CLASS, 0.0)).machines[0] == 10  # one by one
    pays = make_scenario(classes=[ONE], pools=[batching("vm")])  # 16 in 0.2 s, where one takes 0.05 s
    assert started("clipper", pays, history).decide(observe(pays, 0.0)).machines[0] == 3
    assert (
        started("clipper", history=history, scaling="reactive", peak_rate=4.0)
        .decide(observe(ONE_CLASS, 10.0, 1.0, 80.0))
        .machines[0]
        < 10
    )


@pytest.mark.parametrize(("name", "machines"), [("knative", 4), ("ray_serve", 4), ("target_tracking", 8)])
def test_a_stated_minimum_is_kept_whatever_the_ceiling(name, machines):
    """Eight of what the system counts: two pods or replicas fit on a machine."""
    policy = make_policy(name, minimum=8, ceiling=1.0)
    assert machines_over_time(policy, ONE_CLASS, [10.0] * 20, policy.interval_s)[-1] == machines


def test_functions_alone_are_the_quickest_where_none_is_in_time():
    slow = make_pool("slow", "function", services=(None, None, 0.9, None), usd=0.1)
    quick = make_pool("quick", "function", services=(None, None, 0.6, None), usd=0.9)
    scenario = make_scenario((slow, quick), [ONE, dataclasses.replace(RELAXED, share=1.0)])
    strict, relaxed = started("tuned", scenario, np.zeros(0)).decide(observe(scenario, 0.0)).routes
    assert (strict[0].steps[0].pool, relaxed[0].steps[0].pool) == (1, 0), "dollars count among those in time"
    with pytest.raises(InputError, match="pool=slow: scenario test has functions alone"):
        started("tuned", scenario, np.zeros(0), pool="slow")


def test_mark_rents_spot_machines_only_where_it_is_told_to():
    pools = [make_pool("vm"), make_pool("spot", "spot", usd=0.03), make_pool("fn", "function", usd=0.4)]
    scenario = make_scenario(pools=pools, classes=[ONE])
    fleets = [
        started("mark", scenario, np.full(600, 200.0), predictor="last_value", spot=spot)
        .decide(observe(scenario, 0.0, 60.0))
        .machines
        for spot in (False, True)
    ]
    assert fleets[0][0] > 0 == fleets[0][1] and fleets[1][0] == 0 < fleets[1][1]


def test_mark_does_not_scale_down_before_six_plans_agree():
    loads = [400] * 3 + [40] * 7
    machines = machines_over_time(mark(), ONE_CLASS, loads, 60.0)
    assert machines[3] == 12  # 400 * 1.2 / 40
    assert machines[4:9] == [12] * 5 and machines[9] == 2
    assert machines_over_time(mark(plans=1), ONE_CLASS, loads, 60.0)[4] == 2


def test_mark_scales_up_at_once_and_by_a_fifth_more_than_predicted():
    assert machines_over_time(mark(), ONE_CLASS, [40, 400], 60.0)[1:] == [2, 12]
    assert machines_over_time(mark(headroom=1.0), ONE_CLASS, [40, 400], 60.0)[1:] == [1, 10]


def test_mark_plans_for_the_peak_of_a_minute():
    policy = mark()
    seen = observe(ONE_CLASS, 60.0, 60.0, 100.0)
    seen.arrivals[20:25] = 400.0
    assert policy.decide(seen).machines[0] == 12
    calm = mark(window_s=60)
    assert calm.decide(seen).machines[0] == 4  # 125 requests/s


def test_mark_prepares_for_what_it_predicts():
    ramp = np.arange(600) * 0.5
    ahead = mark(history=ramp, predictor="linear_trend").decide(observe(ONE_CLASS, 0.0, 60.0)).machines[0]
    behind = mark(history=ramp).decide(observe(ONE_CLASS, 0.0, 60.0)).machines[0]
    assert ahead - behind == pytest.approx(360 * 0.5 * 1.2 / 40, abs=2)  # the busiest of six minutes


def test_mark_chooses_the_type_of_least_cost_per_request():
    big = make_pool("big", slots=8, usd=0.36)  # 160 requests/s: cheaper a request than 40 for 0.1, if it is filled
    scenario = make_scenario(pools=[make_pool("vm"), big, make_pool("fn", "function")], classes=[ONE])
    policy = mark(scenario, headroom=1.0)
    capacity = {p: policy.capacity(p, [0], np.ones(1)) for p in (0, 1)}
    assert capacity == pytest.approx({0: 40.0, 1: 160.0})
    assert policy.plan([320.0] * 6, capacity) == {0: 0, 1: 2}
    assert policy.plan([200.0] * 6, capacity) == {0: 1, 1: 1}  # the rest fills no big one
    assert policy.plan([0.0] * 6, capacity) == {0: 0, 1: 0}


def test_mark_prefers_machines_that_are_there():
    rival = make_pool("rival", usd=0.09)
    scenario = make_scenario(pools=[make_pool("vm"), rival, make_pool("fn", "function")], classes=[ONE])
    policy = mark(scenario)
    capacity = {0: 40.0, 1: 40.0}
    assert policy.plan([80.0] * 6, capacity) == {0: 0, 1: 2}
    policy._current = [1, 0, 0]
    assert policy.plan([80.0] * 6, capacity) == {0: 1, 1: 1}  # a launch costs 180 s more


def test_mark_balances_by_capacity_and_leaves_the_rest_to_functions():
    scenario = make_scenario(pools=[make_pool("vm"), make_pool("big", slots=4, usd=0.2), make_pool("fn", "function")])
    decision = mark(scenario).decide(observe(scenario, 60.0, 60.0, 100.0, ready=[3, 2, 0]))
    for routes in decision.routes:
        assert [r.steps[0].pool for r in routes] == [0, 1]
        assert routes[1].weight / routes[0].weight == pytest.approx(8 / 6)
        assert all(r.steps[0].admit == Admit.IF_FITS and r.steps[1].pool == 2 for r in routes)


def test_mark_batches_as_far_as_the_latency_bound_allows():
    scenario = make_scenario(pools=[batching("gpu", slots=1), make_pool("fn", "function")], classes=[ONE], spread=0.0)
    decision = mark(scenario, batch_share=1.0).decide(observe(scenario, 0.0, 60.0))
    assert decision.batch_max[0] == 16  # one of 0.2 s may be under way: 0.4 s of 0.5
    assert decision.batch_wait_s[0] == pytest.approx(0.1)
    assert mark(scenario, batch_share=0.5).decide(observe(scenario, 0.0, 60.0)).batch_max[0] == 8


# --- BATCH

FUNCTIONS = [
    batching("small", "function", fixed=0.08, each=0.02, usd=0.1, memory_mb=1024.0),
    batching("large", "function", fixed=0.04, each=0.01, usd=0.25, memory_mb=2048.0),
]


def batch_on(slo_s, rate, **parameters):
    scenario = make_scenario(pools=FUNCTIONS, classes=[dataclasses.replace(ONE, slo_s=slo_s)])
    policy = started("batch", scenario, np.full(600, float(rate)), **parameters)
    decision = policy.decide(observe(scenario, 0.0, 60.0))
    pool = decision.routes[0][0].steps[0].pool
    return pool, decision.batch_max[pool], decision.batch_wait_s[pool]


def latencies(rate, batch, timeout_s, service_s, spread, seed=0):
    """Return latency and batch size of 20,000 Poisson requests, one after the other."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, 20_000))
    out, sizes, i = [], [], 0
    while i < len(times):
        j = min(i + batch, int(np.searchsorted(times, times[i] + timeout_s, "right")))
        start = times[j - 1] if j - i == batch else times[i] + timeout_s
        took = service_s[j - i - 1] * rng.lognormal(-0.5 * spread**2, spread)
        out.extend(start + took - times[i:j])
        sizes.append(j - i)
        i = j
    return np.array(out), np.array(sizes)


@pytest.mark.parametrize(("slo_s", "rate"), [(0.5, 20.0), (0.5, 200.0), (1.5, 8.0), (0.3, 50.0)])
def test_batch_meets_its_percentile_and_a_longer_timeout_would_not_pay(slo_s, rate):
    pool, batch, timeout_s = batch_on(slo_s, rate)
    service_s = [FUNCTIONS[pool].service_s(1, b) for b in range(1, 17)]
    took, _ = latencies(rate, batch, timeout_s, service_s, 0.1)
    assert np.quantile(took, 0.95) <= slo_s * 1.01
    assert batch > 1


def test_batch_meets_the_percentile_of_every_class_on_a_function():
    classes = [dataclasses.replace(ONE, share=0.5), dataclasses.replace(ONE, name="slow", share=0.5, slo_s=5.0)]
    waits = {}
    for name, some in (("both", classes), ("strict", classes[:1]), ("slow", classes[1:])):
        scenario = make_scenario(pools=FUNCTIONS[1:], classes=some)
        waits[name] = (
            started("batch", scenario, np.full(600, 20.0)).decide(observe(scenario, 0.0, 60.0)).batch_wait_s[0]
        )
    assert waits["both"] < 0.5 < waits["slow"] and waits["both"] == pytest.approx(waits["strict"], rel=0.5)


def test_batch_takes_the_function_of_most_memory_where_none_is_in_time():
    hopeless = make_scenario(pools=FUNCTIONS[::-1], classes=[dataclasses.replace(ONE, slo_s=0.01)])
    decision = started("batch", hopeless, np.full(600, 20.0)).decide(observe(hopeless, 0.0, 60.0))
    assert decision.routes[0][0].steps[0].pool == 0, "the large one"
    assert (decision.batch_max[0], decision.batch_wait_s[0]) == (1, 0.0), "alone and at once"


def test_batch_timeout_respects_the_percentile_asked_for():
    often, hardly = (batch_on(0.5, 20.0, percentile=p) for p in (0.5, 0.999))
    assert often[2] > hardly[2]
    assert hardly[2] + FUNCTIONS[hardly[0]].service_s(1, 2) < 0.5


def test_batch_sizes_follow_poisson_arrivals_and_the_buffers_rule():
    _, sizes = latencies(20.0, 8, 0.2, [0.01] * 8, 0.1)
    seen = np.bincount(sizes, minlength=9)[1:] / len(sizes)
    np.testing.assert_allclose(batch_sizes(20.0, 8, np.array([0.2]))[0], seen, atol=0.02)
    np.testing.assert_allclose(batch_sizes(20.0, 8, np.array([0.0, 0.3, 9.0])).sum(axis=1), 1)


def test_batch_waits_less_under_more_load_and_takes_less_memory_where_there_is_slack():
    assert batch_on(0.5, 200.0)[2] < batch_on(0.5, 5.0)[2]  # it is full sooner
    assert batch_on(0.5, 5.0)[1] > batch_on(0.15, 5.0)[1]
    assert batch_on(0.13, 50.0)[0] == 1  # 0.1 s on the small one, 0.12 at p95: only alone, and dearer
    assert batch_on(5.0, 50.0)[0] == 0


def test_batch_sees_bursts_that_a_mean_hides():
    scenario = make_scenario(pools=FUNCTIONS, classes=[ONE])
    bursts = np.tile(np.r_[np.full(50, 2.0), np.full(10, 110.0)], 10)
    states = started("batch", scenario, bursts).fit()
    assert [(round(share, 3), float(rate[0])) for share, rate in states] == [(0.167, 110.0), (0.833, 2.0)]
    assert len(started("batch", scenario, np.full(600, 20.0)).fit()) == 1


def test_batch_uses_functions_alone_and_follows_the_load():
    scenario = make_scenario(pools=[make_pool("vm"), *FUNCTIONS], classes=[ONE])
    policy = started("batch", scenario, np.full(600, 2.0), window_s=60)
    quiet = policy.decide(observe(scenario, 0.0, 60.0))
    loud = policy.decide(observe(scenario, 60.0, 60.0, 500.0))
    assert quiet.machines == loud.machines == (0, 0, 0)
    assert all(r.steps[0].pool > 0 and len(r.steps) == 1 for r in (*quiet.routes[0], *loud.routes[0]))
    assert max(loud.batch_wait_s) < max(quiet.batch_wait_s)


# --- steering and tuned


def steering(scenario=ONE_CLASS, history=(200.0,) * 2000, **options):
    state = Steering(scenario, np.asarray(history), 10.0, **{"cascades": False, **options})
    state.observe(observe(scenario, 0.0, 10.0))
    return state


@pytest.mark.parametrize(("index", "larger"), [(12, False), (6, False), (10, True)])
def test_a_batch_is_chosen_with_the_cascades_that_then_are_in_time(index, larger, monkeypatch):
    one = sample("validate", index, machines=5, twins=True)
    workload = one.workload(0)

    def cost():
        policy = make_policy("tuned")
        usd = simulate(one.scenario, workload, policy, index).summary["cost_usd"]
        home = policy.state.homes.pool_of[0]
        return usd, policy.state.batches[home], policy.state.homes.batches[home]

    usd, batch, of_single_models = cost()
    assert (batch > of_single_models) == larger
    assert batch != of_single_models
    monkeypatch.setattr(Steering, "_batch", lambda state, pool: state.homes.batches[pool])
    before, *_ = cost()
    assert usd < 0.97 * before


def test_functions_take_together_what_is_in_time_for_all_who_use_them():
    hasty = dataclasses.replace(STRICT, name="hasty", slo_s=0.1)  # 62 ms at p99, two of them 111 ms
    for classes, batch in (((STRICT,), 2), ((hasty,), 1), ((STRICT, hasty), 1)):
        scenario = make_scenario(classes=classes)
        assert steering(scenario).batches[1] == steering(scenario, cascades=True).batches[1] == batch


def run(state, scenario, loads, settings=None, **fixed):
    """Return the decisions while ``loads`` arrive, ten seconds each."""
    out = []
    for i, load in enumerate(loads, start=1):
        state.observe(observe(scenario, i * 10.0, 10.0, load, **fixed))
        out.append(steer(state, settings or PlannerSettings()))
    return out


def test_steering_changes_nothing_and_repeats_itself():
    state = steering()
    run(state, ONE_CLASS, [200.0, 300.0, 250.0])
    before = copy.deepcopy((state.averages, state.changes, state.trouble, list(state.past)))
    first = steer(state, PlannerSettings(headroom=1.3, levels=(0.5,)))
    other = steer(state, PlannerSettings(headroom=0.8))
    assert steer(state, PlannerSettings(headroom=1.3, levels=(0.5,))) == first != other
    after = (state.averages, state.changes, state.trouble, list(state.past))
    np.testing.assert_equal(after, before)


def test_headroom_is_machines_over_the_load():
    for headroom, machines in ((0.6, 3), (1.0, 5), (1.5, 8)):
        assert steer(steering(own_share=0.0), PlannerSettings(headroom=headroom)).machines[0] == machines


def test_hold_is_in_boot_times():
    for boot_s in (83.0, 183.0):  # 100 and 200 s with what comes before
        scenario = make_scenario(classes=[ONE], boot_s=boot_s)
        state = steering(scenario)
        quick = PlannerSettings(fast=0.1, slow=0.1, weight=1.0, safety=-state.pays[0], hold=3.0)
        fleet = [d.machines[0] for d in run(state, scenario, [20.0] * 100, quick)]
        long = round(3 * (boot_s + 17) / 10)
        assert fleet[:long] == [5] * long and fleet[long + 10 :] == [1] * (90 - long)
        at_once = run(steering(scenario), scenario, [20.0] * 20, dataclasses.replace(quick, hold=0.0))
        assert at_once[-1].machines[0] == 1


def test_safety_counts_from_where_a_machine_just_pays():
    dear = make_scenario(pools=[make_pool("vm"), make_pool("fn", "function", usd=2.0)], classes=[ONE])
    none = make_scenario(pools=[make_pool("vm")], classes=[ONE])
    cheap, costly, alone = (steering(s).pays[0] for s in (ONE_CLASS, dear, none))
    assert cheap < costly < alone == pytest.approx(2.33)
    history = np.tile(np.repeat([100.0, 300.0], 200), 5)
    fleets = [steer(steering(s, history), PlannerSettings()).machines[0] for s in (ONE_CLASS, dear)]
    assert fleets[0] < fleets[1]


def test_waiting_requests_are_worked_off_within_the_drain_time():
    for drain, machines in ((0.0, 5), (1.0, 7), (0.5, 9)):
        state = steering()
        state.observe(observe(ONE_CLASS, 10.0, 10.0, 200.0, queued=[[8000], [0]]))
        assert steer(state, PlannerSettings(drain=drain)).machines[0] == machines  # 200 machine-seconds in 100 s


def test_requests_leave_at_the_last_moment_with_room_for_a_cold_start_where_there_is_any():
    scenario = make_scenario(classes=[STRICT, RELAXED])
    strict, relaxed = (r[0].steps for r in steer(steering(scenario), PlannerSettings(leave_margin=2.0)).routes)
    wait, function = next(s for s in strict if s.pool == 0), strict[-1]
    assert wait.admit == Admit.ALWAYS and function.pool == 1
    state = steering(scenario)
    assert wait.leave_slack_s == pytest.approx(2 * state.selector.latency_s(1, wait.model))
    assert relaxed[0].leave_slack_s == pytest.approx(2 * state.selector.latency_s(1, relaxed[0].model) + 2.5)
    early = steer(steering(scenario), PlannerSettings(early=True)).routes
    assert early[0][0].steps[0].admit == Admit.IF_FITS


def test_levels_raise_accuracy_and_machines():
    accuracies, fleets = [], []
    for level in (0.0, 0.5, 1.0):
        decision = steer(steering(), PlannerSettings(levels=(level,)))
        weights = [(r.weight, MODELS[r.steps[0].model].accuracy_pct) for r in decision.routes[0]]
        accuracies.append(sum(w * a for w, a in weights) / sum(w for w, _ in weights))
        fleets.append(decision.machines[0])
    assert accuracies == pytest.approx([76.0, 80.5, 85.0])
    assert fleets[0] < fleets[1] < fleets[2]


def test_a_cascade_answers_where_it_is_less_work_and_leaves_time_for_its_second_stage():
    tight = dataclasses.replace(RELAXED, slo_s=0.4)  # no room for two models
    scenario = make_scenario(
        classes=[dataclasses.replace(RELAXED, share=0.5), dataclasses.replace(tight, name="tight")]
    )
    state, alone = steering(scenario, cascades=True), steering(scenario)
    relaxed, strict = steer(state, PlannerSettings(late_binding=2.0)).routes
    cascade = max(relaxed, key=lambda route: route.weight)
    first, second = (stage[0] for stage in stages(cascade))
    assert combined(scenario, cascade) >= RELAXED.min_accuracy_pct > scenario.accuracy_pct[first.model]
    assert state.mix(0, 0, 0.0)[1] < alone.mix(0, 0, 0.0)[1] and state.mix(1, 0, 0.0) == alone.mix(1, 0, 0.0)
    assert all(len(stages(route)) == 1 for route in strict)
    both = [state.selector.latency_s(1, stage.model) for stage in (first, second)]
    assert first.leave_slack_s >= sum(both), "there is time for both stages on functions"
    assert second.leave_slack_s == first.leave_slack_s, "who waits for the second stage blocks nobody"
    assert first.late_model is None and any(route.steps[0].late_model is not None for route in strict)
    assert steer(state, PlannerSettings()).machines[0] < steer(alone, PlannerSettings()).machines[0]


@pytest.mark.parametrize(
    "overrides",
    [
        {"pools.fn.models": ["convnext_tiny", "convnext_base"]},  # no function for what would answer first
        {"pools.fn.models": ["mobilenet_v3_large"]},
        {"correctness.error_correlation": 0.99, "classes.strict.min_accuracy_pct": 76.0},
    ],
)
def test_no_cascade_where_a_stage_could_not_leave_in_time(overrides):
    scenario = load_scenario("standard", {"load_machines": 3, **overrides})
    workload = make_workload(load_trace("WITS-twin"), scenario, 3600, 1200, 0)
    late = [
        simulate(scenario, workload, make_policy("tuned", cascades=cascades)).summary["slo_violation_pct"]
        for cascades in (False, True)
    ]
    assert late[1] <= late[0] + 0.05


@pytest.mark.parametrize("cascades", [False, True])
def test_a_class_that_nothing_fits_is_answered_as_well_as_can_be(cascades):
    scenario = make_scenario(classes=[dataclasses.replace(RELAXED, share=1.0, slo_s=0.01)])
    routes = steer(steering(scenario, cascades=cascades), PlannerSettings(late_binding=1.0)).routes[0]
    assert {step.model for route in routes for step in route.steps} == {2}, "the fastest above the floor"


def test_cascades_are_for_models_that_spot_machines_have_too():
    pools = [
        make_pool("vm"),
        make_pool("spot", "spot", usd=0.04, services=(None, 0.05, 0.2, None)),
        make_pool("fn", "function"),
    ]
    scenario = make_scenario(pools=pools, classes=[dataclasses.replace(RELAXED, share=1.0)])
    routes = steer(steering(scenario, cascades=True), PlannerSettings()).routes[0]
    asked = {step.model for route in routes for step in route.steps if len(stages(route)) > 1}
    assert asked <= {1, 2}


def test_a_choice_of_models_that_is_not_after_the_least_work_has_no_cascades():
    scenario = make_scenario(classes=[dataclasses.replace(RELAXED, share=1.0)])
    for models, some in (("cheapest", True), ("most_accurate", False), ("naive", False)):
        routes = steer(steering(scenario, cascades=True, models=models), PlannerSettings()).routes[0]
        assert any(len(stages(route)) > 1 for route in routes) == some


def test_cascades_keep_accuracy_and_slo_in_a_run():
    scenario, trace = load_scenario("standard", {"load_machines": 5}), load_trace("WITS-twin")
    workload = make_workload(trace, scenario, 3600, 1500, 0)
    costs = []
    for cascades in (False, True):
        found = simulate(scenario, workload, make_policy("tuned", cascades=cascades)).summary
        assert found["accuracy_violation_pct"] == 0 and found["slo_violation_pct"] < 0.3
        costs.append(found["cost_usd"])
    assert costs[1] < costs[0]


POOLS = [make_pool("vm"), make_pool("spot", "spot", usd=0.04), make_pool("fn", "function")]
SPOT = make_scenario(pools=POOLS, classes=[ONE])


def test_spot_machines_carry_their_share_until_they_are_lost():
    calm = PlannerSettings(spot_share=0.6, safety=-9.0)
    quiet = run(steering(SPOT, [400.0] * 2000), SPOT, [400.0] * 5, calm, ready=[4, 6, 0])[-1]
    assert quiet.machines[:2] == (4, 6)
    state = steering(SPOT, [400.0] * 2000)
    seen = observe(SPOT, 10.0, 10.0, 400.0, ready=[4, 3, 0])
    seen.lost[1] = 3
    state.observe(seen)
    storm = steer(state, calm)
    assert storm.machines[0] > 4 and storm.machines[1] < 6  # the rest moves to machines that stay
    careless = steer(state, dataclasses.replace(calm, spot_caution=0.0))
    assert careless.machines[:2] == (4, 6)
    assert run(state, SPOT, [400.0] * 60, calm, ready=[4, 6, 0])[-1].machines[:2] == (4, 6)


def test_requests_take_a_free_slot_anywhere_before_they_wait_where_more_slots_are():
    decision = run(steering(SPOT, [400.0] * 2000), SPOT, [400.0], ready=[2, 6, 0])[-1]
    for route in decision.routes[0]:
        first, second, wait, function = route.steps
        assert {first.pool, second.pool} == {0, 1} and first.admit == second.admit == Admit.IF_IDLE
        assert wait.pool in (0, 1) and function.pool == 2
    at = {p: sum(r.weight for r in decision.routes[0] if r.steps[2].pool == p) for p in (0, 1)}
    assert at[1] / at[0] == pytest.approx(3)


def test_batches_hold_one_model_a_class():
    gpu = batching("gpu", slots=1, usd=0.3)
    mean = dataclasses.replace(ONE, mean_accuracy_pct=79.0)
    scenario = make_scenario(pools=[gpu, make_pool("fn", "function")], classes=[mean])
    split, whole = (steer(steering(scenario, batch_share=b, own_share=0.0), PlannerSettings()) for b in (0.0, 1.0))
    assert (split.batch_max[0], whole.batch_max[0]) == (1, 16)
    assert len([r for r in whole.routes[0] if r.weight > 0]) == 1
    assert whole.machines[0] < split.machines[0]


def test_tuned_is_the_planner_at_constant_settings():
    policy = started("tuned", make_scenario(), np.full(1000, 200.0), headroom=1.4, level=0.5)
    seen = observe(make_scenario(), 0.0, 10.0)
    decision = policy.decide(seen)
    state = Steering(make_scenario(), np.full(1000, 200.0), 10.0, batch_share=1.0)
    state.observe(seen)
    own = {**constants("tuned"), "headroom": 1.4}
    assert decision == steer(state, PlannerSettings(levels=(0.5,) * 3, **own))


# --- what a tuner needs


@pytest.mark.parametrize("name", NAMES)
def test_every_constant_that_a_tuner_may_set_is_a_parameter_with_a_default_in_range(name):
    cls = type(make_policy(name))
    assert 1 <= len(cls.tunable) <= 12
    for key, where in cls.tunable.items():
        default = getattr(make_policy(name), key)
        assert key in parameter_names(name)
        assert where.low <= default <= where.high if isinstance(where, Range) else default in where.values
        for value in (where.low, where.high) if isinstance(where, Range) else where.values:
            make_policy(name, **{key: int(value) if isinstance(where, Range) and where.integer else value})
        assert isinstance(where, Range | Choice)
    knob, values = cls.knob
    assert 5 <= len(values) <= 7 and knob in parameter_names(name)
    for value in values:
        make_policy(name, **{knob: value})
