"""The controller: quick, careful, repeatable; its files; its replay; the formulas and the tuned constants."""

import itertools
import time
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from selfserve import controller
from selfserve.analytic import NAMES, Pilot, multipliers, rounding
from selfserve.errors import InputError
from selfserve.features import ACTIONS, NUMBERS, OBSERVATIONS, Case, Flock, Seen
from selfserve.policies import make_policy
from selfserve.protocol import Policy
from selfserve.scenario import load_scenario
from selfserve.simulator import Simulator, simulate
from selfserve.situations import sample
from selfserve.steering import OWN_SHARE
from selfserve.traces import make_trace
from selfserve.training import Constants, past_episode, replay, rollout
from selfserve.training import episodes as training_episodes
from selfserve.workload import load_trace, make_workload


def small(index: int = 3, seconds: int = 900):
    one = sample("train", index, machines=5, twins=True)
    whole = one.workload(0)
    return one.scenario, replace(whole, seconds=seconds, counts=whole.counts[:seconds])


def random_net(seed: int = 0):
    rng = np.random.default_rng(seed)
    sizes = (len(OBSERVATIONS), 8, len(ACTIONS))
    return [(rng.normal(0, 0.1, (b, a)).astype(np.float32), np.zeros(b, np.float32))
            for a, b in itertools.pairwise(sizes)]  # fmt: skip


def test_a_file_keeps_net_and_card(tmp_path):
    path, layers = tmp_path / "mine.safetensors", random_net()
    controller.save(path, layers, {"seed": 7, "training_ranges": {"WITS": [[0, 10]]}})
    again, card = controller.load(path)
    assert card["seed"] == 7
    seen = np.random.default_rng(1).normal(size=(3, len(OBSERVATIONS))).astype(np.float32)
    np.testing.assert_array_equal(controller.forward(layers, seen), controller.forward(again, seen))
    assert isinstance(make_policy(str(path)), Policy)


def test_a_file_that_is_no_controller_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "wrong.safetensors"
    path.write_text("nonsense")
    with pytest.raises(InputError, match="no controller file"):
        make_policy(str(path))
    controller.save(path, [(np.zeros((2, 3), np.float32), np.zeros(2, np.float32))], {})
    with pytest.raises(InputError, match="has 3 observations and 2 actions"):
        controller.load(path)
    swapped = {"observations": [*OBSERVATIONS[::-1]], "actions": [*ACTIONS]}
    monkeypatch.setattr(controller, "LAYOUT", swapped)
    controller.save(path, random_net(), {})
    monkeypatch.undo()
    with pytest.raises(InputError, match="trained on other observations"):
        controller.load(path)


def decided(policy):
    """Return the machines that a policy decides on in a small run, and the median of its decisions' seconds."""
    scenario, workload = small()
    simulator, times, machines = Simulator(scenario, workload, 10.0, histogram=False), [], []
    seen = simulator.reset(0)
    policy.reset(scenario, workload.history)
    while not simulator.done:
        begun = time.thread_time()
        decision = policy.decide(seen)
        times.append(time.thread_time() - begun)
        machines.append(decision.machines)
        seen = simulator.advance(decision)
    return machines, float(np.median(times))


def test_decides_in_little_time_and_repeats(tmp_path):
    path = tmp_path / "net.safetensors"
    controller.save(path, random_net(), {})
    runs = [decided(make_policy("controller", file=str(path), self_tuning=False)) for _ in range(2)]
    assert runs[0][0] == runs[1][0] and len(set(runs[0][0])) > 1
    planner = decided(make_policy("tuned"))[1]  # side by side, since machines differ: half a millisecond on a quiet one
    assert min(seconds for _, seconds in runs) < 3 * planner, "formulas and a net cost about another planner"


def test_what_cannot_be_true_scales_nothing_down():
    scenario, workload = small()
    policy, simulator = make_policy("analytic"), Simulator(scenario, workload, 10.0, histogram=False)
    policy.reset(scenario, workload.history)
    seen = simulator.reset(0)
    for _ in range(5):
        before = policy.decide(seen)
        seen = simulator.advance(before)
    nan = np.full_like(seen.spend_usd, np.nan)
    for wrong, why in (
        ({"spend_usd": nan}, "spend_usd is not finite"), ({"batch_mean": nan}, "batch_mean is not finite"),
        ({"interval_s": np.nan}, "interval_s is not finite"), ({"interval_s": 0.0}, "interval_s is 0"),
        ({"ready": seen.ready - 1e6}, "ready is below 0"),
    ):  # fmt: skip
        doubt = policy.decide(replace(seen, **wrong))
        assert doubt.machines == before.machines and doubt.routes == before.routes
        assert why in doubt.reason and "nothing scaled down" in doubt.reason


def test_self_tuning_accepts_only_what_the_replay_finds_better():
    scenario, workload = small()
    asked, loads = [], []

    def found(gain):
        def replay(scenario, load, tried, layers, shares):
            if set(shares) == {OWN_SHARE, *controller.SHARES}:
                return np.zeros(len(tried))
            assert set(shares) == {OWN_SHARE}
            asked.append(tried)
            loads.append(load)
            if len(tried) == 2:
                return np.array([0.0, -gain])
            return np.where(np.arange(len(tried)) < len(tried) - controller.RECOMBINED, 1.0, 0.0)

        return replay

    history = np.arange(4000.0)
    for gain, changed in ((controller.MARGIN / 2, False), (2 * controller.MARGIN, True)):
        policy = controller.Controller()
        policy.replay = found(gain)
        policy.reset(scenario, history)
        np.testing.assert_array_equal(asked[-1][0], multipliers())
        np.testing.assert_allclose(asked[-1][1], asked[-2][-controller.RECOMBINED :].mean(axis=0))
        np.testing.assert_array_equal(
            np.concatenate(loads[-2:]), history
        )  # found on the older half, judged on the newer
        np.testing.assert_array_equal(policy.pilot.values[0], asked[-1][1] if changed else multipliers())
        reason = policy.decide(Simulator(scenario, workload, 10.0).reset(0)).reason
        assert ("; retuned" if changed else "kept") in reason


@pytest.mark.parametrize("seconds", [controller.LEAST_S - 1, 4000])
@pytest.mark.parametrize("gain", [controller.MARGIN / 2, 2 * controller.MARGIN])
def test_batches_are_retuned_on_a_past_that_is_long_enough_and_replays_have_them_from_then_on(gain, seconds):
    scenario, workload = small()
    asked = []

    def replay(known, load, tried, layers, shares):
        assert {p.service_ns.tobytes() for p in known.pools} == {p.believed_ns.tobytes() for p in scenario.pools}
        asked.append(set(shares))
        return np.array([0.0 if share != 0.75 else -gain for share in shares])

    policy = controller.Controller()
    policy.replay = replay
    policy.reset(scenario, np.full(seconds, 50.0))
    changed = gain > controller.MARGIN and seconds >= controller.LEAST_S
    chosen = 0.75 if changed else OWN_SHARE
    assert policy.pilot.flock.cases[0].state.own_share == chosen
    assert asked[1:] == ([{chosen}] * 2 if asked else [])
    reason = policy.decide(Simulator(scenario, workload, 10.0).reset(0)).reason
    assert ("batches retuned" in reason) == changed


def test_formulas_measure_service_times():
    scenario, workload = small()
    wrong = replace(scenario, pools=tuple(replace(p, believed_ns=p.service_ns * 5 // 4) for p in scenario.pools))
    simulator = Simulator(wrong, workload, 10.0, histogram=False)
    pilot, seen = Pilot(Flock([Case(wrong, workload.history, 10.0)])), simulator.reset(0)
    while not simulator.done:
        pilot.observe(Seen.one(seen))
        seen = simulator.advance(pilot.flock.decision(pilot.orders()))
    assert pilot.measured()[0] == pytest.approx(0.8, abs=0.01)
    assert multipliers({"headroom": 1.3})[NAMES.index("headroom")] == 1.3


def test_requests_leave_in_time_where_services_take_longer_than_believed():
    """A load that outgrows the machines: who starts on one at the last moment has to end in time, too."""
    scenario = sample("validate", 43, machines=5, twins=True).scenario
    assert scenario.service.believed_factor == 0.8
    counts = np.repeat([100, 1000], [1500, 300])
    workload = make_workload(make_trace("step", counts), scenario, 0, len(counts))
    measuring, believing = (simulate(scenario, workload, make_policy(p), 0).summary for p in ("analytic", "tuned"))
    assert measuring["slo_violation_pct"] < 0.25 * believing["slo_violation_pct"]
    assert measuring["cost_usd"] < 1.1 * believing["cost_usd"]


def test_replays_know_service_times_as_far_as_they_were_measured():
    """They begin with the believed ones; an hour later the measured ones are in them, and the true ones never."""
    scenario, _ = small()
    wrong = replace(scenario, pools=tuple(replace(p, believed_ns=p.service_ns * 5 // 4) for p in scenario.pools))
    whole = sample("train", 3, machines=5, twins=True).workload(0)
    replayed = []

    def replay(known, load, tried, layers, shares):
        replayed.append(known.pools[0].service_ns)
        return np.zeros(len(tried))

    policy = controller.Controller()
    policy.replay = replay
    simulate(wrong, replace(whole, seconds=4200, counts=whole.counts[:4200]), policy, 0)
    true, believed = (x.astype(float) for x in (wrong.pools[0].service_ns, wrong.pools[0].believed_ns))
    np.testing.assert_array_equal(replayed[0], believed)
    np.testing.assert_allclose(replayed[-1], true, rtol=0.02)
    assert not np.array_equal(replayed[-1], true)


@pytest.mark.parametrize("price", [0.05, 0.2, 0.35, 0.55])
@pytest.mark.parametrize("spread", [0.01, 0.1, 0.4, 3.0])
def test_a_part_of_a_machine_is_a_whole_one_where_that_pays(price, spread):
    """Against the normal load's own: the machines at which one more saves just what it costs."""

    def saved(n):  # of a standard load's work, what the machine after n takes
        over = [spread * (norm.pdf(x / spread) - x / spread * norm.sf(x / spread)) for x in (n, n + 1)]
        return over[0] - over[1] - price

    exact = norm.isf(price) * spread - brentq(saved, -10 * spread - 2, 10 * spread + 2)
    assert rounding(np.array(price), np.array(spread)) == pytest.approx(exact, abs=0.03)


def test_formulas_measure_what_machines_carry():
    scenario, workload = small()
    pilot = Pilot(Flock([Case(scenario, workload.history, 10.0)]))
    flock, headroom = pilot.flock, []

    def see(load, ready, on_functions):
        seen, unit = controller.nothing_seen(flock), flock.unit[0, 0]
        seen.time_s, seen.interval_s = 10.0 * (len(headroom) + 1), 10.0
        seen.arrivals[0, 0], seen.ready[0, flock.at_home[0, :, 0] > 0] = load * 10 / unit, ready
        seen.served[0, flock.function[0], 0, 0] = on_functions * 10 / unit
        pilot.observe(seen)
        headroom.append(pilot.settings()[0, NUMBERS.index("headroom")])

    for _ in range(400):
        see(20.0, 20, 2.0)  # a tenth leaves, though the machines should just do
    assert pilot.strain[0] == pytest.approx(1.1, abs=0.01)
    for _ in range(100):
        see(20.0, 23, 0.0)  # that nothing leaves where they should do anyway says nothing
    assert pilot.strain[0] == pytest.approx(1.1, abs=0.01)
    for _ in range(400):
        see(20.0, 20, 0.0)
    assert pilot.strain[0] == pytest.approx(1.0, abs=0.01)
    assert headroom[-1] < headroom[399] == pytest.approx(headroom[499], rel=0.01)


def test_a_rollout_is_the_simulators_run():
    played = training_episodes("train", [0], 900, 5.0)
    numbers = np.array([getattr(make_policy("tuned"), n) for n in NUMBERS])
    got = rollout(played, lambda flock: Constants(flock, numbers))
    alone = simulate(played[0].scenario, played[0].workload, make_policy("tuned", batch_share=0.0), played[0].seed)
    assert got.violation_pct[0] == pytest.approx(alone.summary["slo_violation_pct"], abs=0.3)
    assert 0.5 < got.cost[0] < 5


@pytest.mark.parametrize("net", [False, True])
def test_what_self_tuning_finds_holds_from_a_fixed_time_on(net):
    """A search begins on the hour and holds five minutes later, however long it takes; a run repeats."""
    scenario, _ = small()
    whole = sample("train", 3, machines=5, twins=True).workload(0)
    workload = replace(whole, seconds=4200, counts=whole.counts[:4200])

    def replay(scenario, load, tried, layers, shares):
        return np.where(np.arange(len(tried)) > 0, -0.5, 0.0)

    changes = []
    for _ in range(2):
        policy, simulator, values = controller.Controller(), Simulator(scenario, workload, 10.0), []
        policy.replay, policy.layers = replay, random_net() if net else ()
        seen = simulator.reset(0)
        policy.reset(scenario, workload.history)
        while not simulator.done:
            decision = policy.decide(seen)
            values.append((seen.time_s, *policy.pilot.values[0]))
            assert policy.pilot.action.any() == net, "a net acts from the first decision on"
            if seen.time_s > 0 and "retuned" in decision.reason:
                changes.append(seen.time_s)
            seen = simulator.advance(decision)
    assert changes == [controller.EVERY_S + controller.ADOPT_S] * 2


def test_a_net_keeps_still_where_an_observation_is_out_of_range():
    scenario, workload = small()
    flock = Flock([Case(scenario, workload.history, 10.0)])
    pilot = controller.Corrected(
        flock, [(np.ones((len(ACTIONS), len(OBSERVATIONS)), np.float32), np.ones(15, np.float32))]
    )
    first = Seen.one(Simulator(scenario, workload, 10.0).reset(0))
    pilot.observe(first)
    pilot.orders()
    assert (pilot.action != 0).any() and pilot.notes == [""]
    pilot.observe(replace(first, time_s=10.0, interval_s=10.0, arrivals=first.arrivals + 1e9))
    before = np.abs(pilot.action).sum()
    flock.targets = np.full_like(flock.targets, 1000)
    orders = pilot.orders()
    assert (orders.machines >= 1000).all() and (flock.targets == orders.machines).all(), "nothing is scaled down"
    assert controller.OUT_OF_RANGE in pilot.notes[0]
    assert np.abs(pilot.action).sum() < before


def test_a_replay_that_fails_is_a_reason_and_no_end_of_the_service():
    scenario, workload = small()

    def replay(*_):
        raise RuntimeError("no memory")

    policy = controller.Controller()
    policy.replay = replay
    policy.reset(scenario, np.full(4000, 50.0))
    np.testing.assert_array_equal(policy.pilot.values[0], multipliers())
    decision = policy.decide(Simulator(scenario, workload, 10.0).reset(0))
    assert decision.reason.count("a replay failed: RuntimeError: no memory") == 2  # of batches and of constants


def test_a_live_run_does_not_wait_for_a_search():
    scenario, workload = small()
    held = Event()

    def replay(known, load, tried, layers, shares):
        held.wait(60)
        return np.arange(len(tried), dtype=float) * -1.0

    pilot = controller.SelfTuned(Flock([Case(scenario, np.zeros(0), 10.0)]), replay, waits=False)
    seen = Seen.one(Simulator(scenario, workload, 10.0).reset(0))
    try:
        for time_s in np.arange(0.0, controller.EVERY_S + 2 * controller.ADOPT_S, 10.0):
            pilot.observe(replace(seen, time_s=float(time_s), interval_s=10.0, arrivals=seen.arrivals + 500))
        np.testing.assert_array_equal(pilot.values[0], multipliers())
    finally:
        held.set()
    pilot._search.result()
    pilot.observe(replace(seen, time_s=float(time_s + 10), interval_s=10.0))
    assert (pilot.values[0] != multipliers()).any() and "retuned" in pilot.notes[0]


def test_a_net_that_decides_more_seldom_does_so_after_the_warm_up():
    scenario, workload = small(seconds=900)
    scenario = replace(scenario, warmup_s=100.0)
    pilot = controller.Corrected(Flock([Case(scenario, workload.history, 10.0)]), random_net(), every=3)
    simulator, actions = Simulator(scenario, workload, 10.0), []
    seen = simulator.reset(0)
    for _ in range(20):
        pilot.observe(Seen.one(seen))
        decision = pilot.flock.decision(pilot.orders())
        actions.append(pilot.action.copy())
        seen = simulator.advance(decision)
    changed = [i for i in range(1, 20) if (actions[i] != actions[i - 1]).any()]
    assert changed == [10, 13, 16, 19] and not actions[9].any()


@pytest.mark.parametrize("interval_s", [0.5, 1.4, 10.0])
def test_the_past_keeps_its_length_whatever_the_interval(interval_s):
    scenario, workload = small()
    flock = Flock([Case(scenario, workload.history, interval_s)])
    pilot = controller.SelfTuned(flock, lambda *of: np.zeros(len(of[2])))
    before, first = np.concatenate(pilot._past[0]), Seen.one(Simulator(scenario, workload, interval_s).reset(0))
    for i in range(1, 71):  # nothing comes in every other interval
        arrivals = np.full(first.arrivals.shape, (i % 2) * 2 * interval_s / first.arrivals.shape[1] * 40)
        pilot.observe(replace(first, time_s=i * interval_s, interval_s=interval_s, arrivals=arrivals))
    past = np.concatenate(pilot._past[0])[len(before) :]
    assert len(past) == round(70 * interval_s)
    assert past.sum() == pytest.approx(70 * interval_s * 40)
    assert past.max() <= 80 * max(1.0, interval_s) + 1e-9


def test_a_replay_of_a_thin_load_has_its_requests():
    scenario, _ = small()
    load = np.full(3000, 0.3)
    assert past_episode(scenario, load).workload.counts.sum() == pytest.approx(0.3 * 2250, abs=1)


def test_a_replay_is_scored_although_the_warm_up_is_long():
    scenario, workload = small()
    load = np.full(2400, workload.history[-2400:].mean())
    found = replay(replace(scenario, warmup_s=3600.0), load, multipliers()[None], (), [OWN_SHARE])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["tuned", "analytic"])
def test_machines_that_are_there_at_once_are_no_trouble(name):
    scenario, workload = small()
    quick = replace(scenario, vm=replace(scenario.vm, pending_s=0.0, boot_s=0.0),
                    function=replace(scenario.function, init_s=0.0))  # fmt: skip
    run = simulate(quick, workload, make_policy(name), 0)
    assert run.summary["slo_violation_pct"] < 5
    statics = Case(quick, workload.history, 10.0).statics
    assert (np.abs(statics) < controller.FARTHEST).all(), "a net may decide there"


def test_spot_machines_serve_alone_or_not_at_all():
    """Where there are no others they are home; where they lack a model that is asked nothing is planned for them."""
    scenario = load_scenario("spot", {"load_machines": 4.0})
    workload = make_workload(load_trace("WITS-twin"), scenario, 20_000, 1200, 0)
    only = replace(scenario, pools=tuple(p for p in scenario.pools if p.market != "on_demand"))
    less = replace(scenario, pools=tuple(
        replace(p, models=p.models[:1]) if p.market == "spot" else p for p in scenario.pools
    ))  # fmt: skip
    for served, market in ((only, "spot"), (less, "on_demand")):
        run = simulate(served, workload, make_policy("controller"), 0, decisions=True)
        ready = {p.market: run.decisions[f"ready.{p.name}"].max() for p in served.pools if not p.is_function}
        assert ready.pop(market) > 0 and not any(ready.values())
        assert not run.decisions["reason"].str.contains("failed").any()
        assert run.summary["slo_violation_pct"] < 0.5 and run.summary["accuracy_violation_pct"] == 0


@pytest.mark.parametrize("name", ["controller", "tuned"])
def test_functions_alone_answer_each_class_the_cheapest_way(name):
    """Where there are no machines there is nothing to plan: what is left is which models, and no run ends."""
    scenario = load_scenario("standard", {"rate_scale": 0.2})
    scenario = replace(scenario, pools=tuple(p for p in scenario.pools if p.is_function))
    workload = make_workload(load_trace("WITS-twin"), scenario, 20_000, 1200, 0)
    run = simulate(scenario, workload, make_policy(name), 0).summary
    single = simulate(scenario, workload, make_policy(name, cascades=False), 0).summary
    for found in (run, single):
        assert found["vm_cost_usd"] == 0 and found["accuracy_violation_pct"] == 0 and found["slo_violation_pct"] < 0.5
    assert run["cost_usd"] < 0.9 * single["cost_usd"], "two models in turn are less work"
