"""What holds in every run, on random small scenarios (hypothesis; the same ones every time)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from cases import NO_HURRY_S, Scripted, pool_of, scenario_of, steady, to, workload_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from selfserve.protocol import Admit, Decision, Observation, Route, Step
from selfserve.scenario import NS, FunctionPhysics, Scenario, SpotPhysics, Storm, VmPhysics
from selfserve.simulator import Result, Simulator, simulate
from selfserve.simulator.arrivals import generate
from selfserve.simulator.draws import lognormal_table
from selfserve.workload import Workload

INTERVAL_S = 10.0


def examples(n: int) -> settings:
    """Return settings for n examples that are the same in every run; shrinking would outlast the tests' time limit."""
    slow, phases = [HealthCheck.too_slow, HealthCheck.data_too_large], [Phase.generate]
    return settings(
        max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=slow, phases=phases
    )


@dataclass(frozen=True)
class Run:
    """What a simulation is given."""

    scenario: Scenario
    workload: Workload
    policy: Scripted
    seed: int

    def simulate(self) -> Result:
        return simulate(self.scenario, self.workload, self.policy, self.seed, requests=True, decisions=True)


def seconds_of(low: float, high: float) -> st.SearchStrategy[float]:
    """Return a strategy for times in milliseconds steps, so that events sometimes fall together."""
    return st.integers(round(low * 1000), round(high * 1000)).map(lambda ms: ms / 1000)


def workloads(classes: int) -> st.SearchStrategy[Workload]:
    """Return a strategy for half a minute or two of counts, or of exact times."""
    counts = st.lists(st.integers(0, 12), min_size=20, max_size=80).map(lambda c: workload_of(c, classes=classes))
    times = st.lists(seconds_of(0, 50), min_size=1, max_size=200)
    exact = times.map(lambda t: workload_of(times_s=np.array(t), classes=classes))
    return st.one_of(counts, exact)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Draw a run that has everything: machines, spot machines, functions, classes, batches, changing fleets."""
    storms = st.builds(Storm, seconds_of(5, 30), seconds_of(1, 20), st.just(2000.0), st.sampled_from([0.0, 0.5, 1.0]))
    spot = SpotPhysics(
        draw(st.sampled_from([0.0, 60.0, 600.0])), draw(seconds_of(0, 5)), tuple(draw(st.lists(storms, max_size=1)))
    )
    two = draw(st.booleans())  # models in the function pool; with one it may have provisioned containers
    slos = draw(st.lists(seconds_of(0.1, 10), min_size=1, max_size=3))
    scenario = scenario_of(
        pool_of("vm", [draw(seconds_of(0.02, 1)), draw(seconds_of(0.02, 2))], slots=draw(st.integers(1, 3))),
        pool_of("spot", [draw(seconds_of(0.02, 1)), 0.0], "spot"),
        pool_of("fn", [draw(seconds_of(0.02, 1)), draw(seconds_of(0.02, 2)) if two else 0.0], "function"),
        slos_s=slos,
        warmup_s=draw(st.sampled_from([0.0, 7.5, 20.0])),
        spread=draw(st.sampled_from([0.0, 0.1, 1.0])),
        vm=VmPhysics(draw(seconds_of(0, 3)), draw(seconds_of(0, 8)), draw(st.sampled_from([0.0, 0.3])), 5.0),
        function=FunctionPhysics(
            draw(seconds_of(0, 3)), draw(seconds_of(0, 20)), draw(st.integers(1, 8)), draw(st.integers(1, 30))
        ),
        spot=spot,
    )
    admits = st.sampled_from(Admit)
    slack = st.one_of(st.just(-np.inf), seconds_of(0.05, 5))
    machine_steps = st.builds(Step, st.just(0), st.integers(0, 1), admits, slack, st.integers(0, 1), seconds_of(0, 5))
    spot_steps = st.builds(Step, st.just(1), st.just(0), admits, slack)
    function_steps = st.builds(Step, st.just(2), st.integers(0, int(two)), admits, slack)
    steps = st.lists(st.one_of(machine_steps, spot_steps, function_steps), min_size=1, max_size=3).map(tuple)
    routes = st.lists(st.builds(Route, steps, st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=2).map(tuple)
    decisions = st.builds(
        Decision,
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 0 if two else 2)),
        st.tuples(*[routes] * len(slos)),
        st.tuples(*[st.integers(1, 4)] * 3),
        st.tuples(*[seconds_of(0, 1)] * 3),
    )
    script = draw(st.lists(decisions, min_size=1, max_size=5))
    return Run(scenario, draw(workloads(len(slos))), Scripted(*script), draw(st.integers(0, 2**31)))


@st.composite
def queues(draw: st.DrawFn, batch_max: int = 1, classes: int = 1) -> Run:
    """Draw a run of one pool of machines with a constant fleet, where nothing is hurried or moved."""
    scenario = scenario_of(
        pool_of("vm", [draw(seconds_of(0.02, 1.5))], slots=draw(st.integers(1, 3))),
        slos_s=[NO_HURRY_S] * classes if draw(st.booleans()) else [draw(seconds_of(0.1, 9)) for _ in range(classes)],
        spread=draw(st.sampled_from([0.0, 0.3, 2.0])),
        vm=VmPhysics(draw(seconds_of(0, 2)), draw(seconds_of(0, 5)), 0.0),
    )
    policy = steady([draw(st.integers(1, 5))], *[to((0, 0))] * classes, batch_max=(batch_max,))
    return Run(scenario, draw(workloads(classes)), policy, draw(st.integers(0, 2**31)))


def rows_of(result: Result) -> pd.DataFrame:
    assert result.requests is not None
    return result.requests


def most_at_once(starts: np.ndarray, finishes: np.ndarray) -> int:
    """Return the largest number of intervals [start, finish) that share an instant."""
    at = np.concatenate([finishes, starts])
    change = np.concatenate([-np.ones(len(finishes), int), np.ones(len(starts), int)])
    order = np.lexsort((change, at))  # whoever finishes at an instant makes room for who starts at it
    return int(change[order].cumsum().max(initial=0))


@given(runs())
@examples(70)
def test_no_request_is_lost(run: Run) -> None:
    result, arrivals = run.simulate(), generate(run.workload, run.seed)
    rows, summary = rows_of(result), result.summary
    scored = np.flatnonzero(arrivals.times_ns >= run.scenario.warmup_s * NS)

    assert rows["id"].tolist() == scored.tolist()
    assert rows["arrival_ns"].tolist() == arrivals.times_ns[scored].tolist()
    assert rows["class"].cat.codes.tolist() == arrivals.class_ids[scored].tolist()

    answered = rows["finish_ns"] >= 0
    assert summary["requests"] == len(rows) == summary["answered"] + summary["rejected"]
    assert summary["answered"] == answered.sum() == result.answered.sum()
    assert result.class_totals["requests"].sum() == len(rows)
    assert result.class_totals["late"].sum() + summary["rejected"] == rows["violated"].sum()
    late = rows["finish_ns"] - rows["arrival_ns"] > (rows["slo_s"] * NS).round()
    assert (rows["violated"] == late | ~answered).all()


@given(runs())
@examples(50)
def test_at_any_time_arrivals_are_answered_or_in_the_system(run: Run) -> None:
    run = replace(run, scenario=replace(run.scenario, warmup_s=0.0))
    simulator = Simulator(run.scenario, run.workload, INTERVAL_S, requests=True)
    observation = simulator.reset(run.seed)
    run.policy.reset(run.scenario, run.workload.history)
    seen: list[Observation] = []
    while not simulator.done:
        observation = simulator.advance(run.policy.decide(observation))
        seen.append(observation)
    rows = rows_of(simulator.finish())
    arrived = answered = 0
    for o in seen:
        arrived, answered = arrived + o.arrivals.sum(), answered + o.served.sum()
        now = round(o.time_s * NS)
        assert arrived == (rows["arrival_ns"] < now).sum()
        assert answered == ((rows["finish_ns"] >= 0) & (rows["finish_ns"] <= now)).sum()
        in_service = ((rows["start_ns"] >= 0) & (rows["start_ns"] < now) & (rows["finish_ns"] > now)).sum()
        # The start of a request that a spot machine lost is overwritten by its next one.
        assert answered + o.queued.sum() + in_service <= arrived
        if not run.scenario.spot.interruptions_per_hour and not run.scenario.spot.storms:
            assert answered + o.queued.sum() + in_service == arrived


@given(st.integers(1, 4), st.integers(1, 3), seconds_of(0, 4), seconds_of(0.1, 3), st.integers(0, 99))
@examples(40)
def test_what_a_lost_machine_held_is_answered_by_another(
    machines: int, batch: int, notice_s: float, service_s: float, seed: int
) -> None:
    """A storm takes machines away that serve batches; once it is over every request has its one answer."""
    scenario = scenario_of(
        pool_of("spot", [service_s], "spot", slots=2),
        spot=SpotPhysics(0.0, notice_s, (Storm(5.0, 25.0, 2000.0),)),
        spread=0.3,
    )
    policy = steady([machines], to((0, 0)), batch_max=(batch,))
    result = simulate(scenario, workload_of([2] * 60), policy, seed, requests=True, decisions=True)
    assert result.decisions is not None
    assert result.decisions["lost.spot"].sum() >= machines
    assert result.summary["answered"] == result.summary["requests"] == 120
    assert (rows_of(result)["finish_ns"] > rows_of(result)["start_ns"]).all()


@given(queues(classes=2))
@examples(40)
def test_observed_queues_sum_to_the_waits(run: Run) -> None:
    """The integral of the queue over time is the sum of the waits (Little's law over a whole run)."""
    counts = np.append(run.workload.counts, np.zeros(2000, np.int64))
    workload = replace(run.workload, counts=counts, seconds=len(counts))
    run = replace(run, workload=workload, policy=Scripted(*run.policy.decisions, interval_s=100.0))
    result = run.simulate()
    rows, log = rows_of(result), result.decisions
    assert log is not None
    assert (rows["finish_ns"] >= 0).all()
    assert (rows["start_ns"] < run.workload.seconds * NS).all(), "the queue runs empty inside the window"
    waits = log.filter(like="queued_request_s").to_numpy().sum()
    busy = log.filter(like="busy_slot_s").to_numpy().sum()
    assert waits == pytest.approx((rows["start_s"] - rows["arrival_s"]).sum(), abs=1e-6)
    in_window = rows["finish_ns"].clip(upper=run.workload.seconds * NS) - rows["start_ns"]
    assert busy == pytest.approx(in_window.sum() / NS, abs=1e-6)


@given(runs(), st.integers(0, 2), st.integers(1, 4))
@examples(50)
def test_no_overtaking_inside_a_class_in_a_pool(run: Run, pool: int, batch: int) -> None:
    """Requests that enter a pool at arrival start there in order of arrival, in batches too; no machine is lost."""
    split = (to((pool, 0), weight=0.5), to(Step(0, 1, late_model=0, late_slack_s=0.5), weight=0.5))
    decision = Decision(
        (1, 2, 0), (split,) * len(run.scenario.classes), (batch,) * 3, run.policy.decisions[0].batch_wait_s
    )
    scenario = replace(run.scenario, spot=SpotPhysics(0.0))
    rows = rows_of(Run(scenario, run.workload, Scripted(decision), run.seed).simulate())
    for _, mine in rows.groupby(["class", "pool"], observed=True):
        assert mine["start_ns"].is_monotonic_increasing


@given(queues())
@examples(50)
def test_first_come_first_served_by_the_first_free_slot(run: Run) -> None:
    """Starts obey the recursion of Kiefer and Wolfowitz (1955): no slot serves two, and none idles while one waits."""
    rows = rows_of(run.simulate())
    vm, pool = run.scenario.vm, run.scenario.pools[0]
    ready = round(vm.pending_s * NS) + max(1, round(vm.boot_s * NS))  # a boot takes a nanosecond at least
    free = [ready] * (pool.slots * run.policy.decisions[0].machines[0])
    service = rows["finish_ns"] - rows["start_ns"]
    for arrived, serves, started in zip(rows["arrival_ns"], service, rows["start_ns"], strict=True):
        assert started == max(arrived, free[0])
        heapq.heapreplace(free, started + serves)


@given(runs())
@examples(70)
def test_no_slot_serves_two(run: Run) -> None:
    """Whoever starts between two decisions starts on one of the machines that the first asked for (batches of one)."""
    script = [replace(d, batch_max=(1,) * 3, machines=(*d.machines[:2], 0)) for d in run.policy.decisions]
    scenario = replace(run.scenario, warmup_s=0.0)
    result = Run(scenario, run.workload, Scripted(*script), run.seed).simulate()
    rows, log = rows_of(result), result.decisions
    assert log is not None
    rows = rows[rows["finish_ns"] >= 0]
    interval_ns = round(INTERVAL_S * NS)
    inside = rows[rows["start_ns"] % interval_ns > 0]  # at the instant of a decision either target may hold
    decided = np.minimum(inside["start_ns"] // interval_ns, len(log) - 1)
    for (name, i), mine in inside.groupby(["pool", decided], observed=True):
        if name != "fn":
            slots = log[f"machines.{name}"][i] * scenario.pools[name == "spot"].slots
            assert most_at_once(mine["start_ns"].to_numpy(), mine["finish_ns"].to_numpy()) <= slots
    for _, mine in rows[rows["pool"] == "fn"].groupby("model", observed=True):
        check_containers(mine.sort_values("start_ns"), scenario.function)


def check_containers(rows: pd.DataFrame, physics: FunctionPhysics) -> None:
    """Check one function: concurrency, one request a container, keep-alive, and the pace of new containers."""
    start, finish, cold = (rows[c].to_numpy() for c in ("start_ns", "finish_ns", "cold"))
    assert most_at_once(start, finish) <= physics.concurrency
    for s in start[~cold]:
        warm = (finish <= s) & (s < finish + physics.keep_alive_s * NS)
        assert warm.any(), "a warm start needs a container that finished within the keep-alive time"
    for s in np.unique(start):
        created = cold[start <= s].sum()
        assert (start <= s).sum() - (finish <= s).sum() <= created, "each container serves one request at a time"
    created_at, spacing = np.sort(start[cold]), 10 * NS // physics.burst_per_10s
    for i in range(len(created_at)):
        later = np.arange(len(created_at) - i)
        assert (created_at[i:] - created_at[i] >= (later - (physics.burst_per_10s - 1)) * spacing).all()


@given(st.integers(1, 20), st.lists(st.integers(0, 12), min_size=10, max_size=40), st.integers(0, 99))
@examples(30)
def test_new_containers_come_at_the_pace_of_their_tokens(burst: int, counts: list[int], seed: int) -> None:
    """Containers that nobody keeps are all new: ``burst`` at once, then one every 10 s / burst, in order of arrival."""
    function = FunctionPhysics(init_s=0.5, keep_alive_s=0.0, burst_per_10s=burst)
    scenario = scenario_of(pool_of("fn", [0.3], "function"), function=function)
    rows = rows_of(simulate(scenario, workload_of(counts), steady((0,), to((0, 0))), seed, requests=True))
    assert rows["cold"].all()
    spacing = 10 * NS // burst
    full = -(10**18)  # when the tokens would be back to ``burst``
    for arrived, started in zip(rows["arrival_ns"], rows["start_ns"], strict=True):
        assert started == max(arrived, full - (burst - 1) * spacing)
        full = max(full, started) + spacing


def test_an_idle_machine_goes_before_a_busy_one() -> None:
    """Released at 10 s: the older machine, idle since 7 s, not the newer one, for which the third request waits."""
    scenario = scenario_of(pool_of("vm", [2.0, 20.0]), vm=VmPhysics(0.0, 1.0, 0.0, 0.0))
    short, long = ((to((0, 0)),),), ((to((0, 1)),),)
    script = [Decision((2,), short)] * 3 + [Decision((2,), long)] * 2 + [Decision((1,), long)]
    workload = workload_of(times_s=np.array([5.0, 6.5, 11.0]))
    result = simulate(scenario, workload, Scripted(*script, interval_s=2.0), requests=True)
    assert rows_of(result)["start_s"].tolist() == [5.0, 6.5, 26.5]
    assert result.vm_billed_ns[0] == (10 + 12) * NS


@given(runs())
@examples(50)
def test_no_answer_before_arrival_and_service(run: Run) -> None:
    """One by one, a service is the model's mean times the request's quantile, known at arrival, plus any init."""
    script = [replace(d, batch_max=(1,) * 3) for d in run.policy.decisions]
    rows = rows_of(Run(run.scenario, run.workload, Scripted(*script), run.seed).simulate())
    rows = rows[rows["finish_ns"] >= 0]
    quantile = generate(run.workload, run.seed).quantile[rows["id"]]
    means = np.stack([p.service_ns[:, 1] for p in run.scenario.pools])
    factor = lognormal_table(run.scenario.service.spread)[quantile]
    service = means[rows["pool"].cat.codes, rows["model"].cat.codes] * factor >> 16
    init = rows["cold"] * round(run.scenario.function.init_s * NS)
    assert (rows["start_ns"] >= rows["arrival_ns"]).all()
    assert (rows["finish_ns"] == rows["start_ns"] + init + service).all()
    assert not (rows["cold"] & (rows["pool"] != "fn")).any()


def replayed_bill(targets: list[int], scenario: Scenario, seconds: int) -> int:
    """Return billed nanoseconds of a pool of idle machines: a replay of its targets, boots without spread."""
    vm, end, warmup = scenario.vm, seconds * NS, round(scenario.warmup_s * NS)
    pending, minimum = round(vm.pending_s * NS), round(vm.minimum_bill_s * NS)
    alive: list[int] = []  # times of launch, oldest first; with equal boots the newest are the least ready
    billed = 0
    for i, target in enumerate(targets):
        now = round(i * INTERVAL_S * NS)
        alive += [now] * max(0, target - len(alive))
        for launched in alive[target:]:
            running = launched + pending
            if now >= running:
                paid = max(minimum, -(-(now - running) // NS) * NS)
                billed += max(0, min(running + paid, end) - max(running, warmup))
        alive = alive[:target]
    return billed + sum(max(0, end - max(launched + pending, warmup)) for launched in alive)


@st.composite
def fleets(draw: st.DrawFn, grows: bool = False) -> Run:
    """Draw a run over a changing fleet of machines, beside functions; ``grows``: no machine is ever released."""
    scenario = scenario_of(
        pool_of("vm", [0.4], slots=2, usd_per_hour=draw(st.sampled_from([0.085, 1.7]))),
        pool_of("fn", [0.4], "function"),
        warmup_s=draw(st.sampled_from([0.0, 15.0, 42.0])),
        spread=0.5,
        vm=VmPhysics(draw(seconds_of(0, 25)), draw(seconds_of(0, 40)), 0.0, draw(st.sampled_from([0.0, 60.0, 12.5]))),
        function=FunctionPhysics(0.7, 5.0),
    )
    targets = draw(st.lists(st.integers(0, 6), min_size=2, max_size=12))
    targets = sorted(targets) if grows else targets
    route = to((0, 0, Admit.IF_IDLE), (1, 0)) if grows else to((1, 0))
    script = [Decision((n, 0), ((route,),)) for n in targets]
    counts = draw(st.lists(st.integers(0, 5), min_size=10, max_size=130))
    return Run(scenario, workload_of(counts), Scripted(*script), draw(st.integers(0, 99)))


@given(st.one_of(fleets(), fleets(grows=True)))
@examples(70)
def test_bill_is_a_replay_of_the_decision_log(run: Run) -> None:
    """Exact to the nanosecond where no busy machine is released; functions are billed from the request table."""
    result = run.simulate()
    log, rows = result.decisions, rows_of(result)
    assert log is not None
    billed_ns = replayed_bill(log["machines.vm"].tolist(), run.scenario, run.workload.seconds)
    assert result.vm_billed_ns[0] == billed_ns
    vm, fn = run.scenario.pools
    assert result.summary["vm_cost_usd"] == pytest.approx(billed_ns / 3600e9 * vm.usd_per_hour, rel=1e-12, abs=0)

    mine = rows[rows["pool"] == "fn"]
    ms = -((mine["start_ns"] - mine["finish_ns"]) // 1_000_000).sum()
    assert result.function_ms.sum() == ms
    assert result.invocations.sum() == len(mine)
    cost = ms / 3600e3 * fn.usd_per_busy_hour + len(mine) * fn.usd_per_request
    assert result.summary["function_cost_usd"] == pytest.approx(cost, rel=1e-12, abs=0)
    assert result.summary["cold_starts"] == mine["cold"].sum()
    assert result.summary["cost_usd"] == pytest.approx(result.cost_usd.sum(), rel=1e-12)


@given(fleets())
@examples(40)
def test_draining_adds_no_more_to_the_bill_than_the_last_service(run: Run) -> None:
    """Released while busy, a machine is paid until its last answer: bounds from the log, whichever machine drains."""
    script = [replace(d, routes=((to((0, 0, Admit.IF_IDLE), (1, 0)),),)) for d in run.policy.decisions]
    scenario = replace(run.scenario, warmup_s=0.0, vm=replace(run.scenario.vm, minimum_bill_s=0.0))
    run = replace(run, scenario=scenario, policy=Scripted(*script))
    result = run.simulate()
    log, rows = result.decisions, rows_of(result)
    assert log is not None
    targets = log["machines.vm"].tolist()
    released = sum(max(0, a - b) for a, b in pairwise(targets))
    longest = (rows["finish_ns"] - rows["start_ns"]).max() if len(rows) else 0
    least = replayed_bill(targets, scenario, run.workload.seconds) - released * NS
    assert least <= result.vm_billed_ns[0] <= least + released * (2 * NS + longest)


@given(queues())
@examples(40)
def test_one_more_machine_never_raises_a_wait(run: Run) -> None:
    (decision,) = run.policy.decisions
    more = Scripted(replace(decision, machines=(decision.machines[0] + 1,)))
    before, after = rows_of(run.simulate()), rows_of(replace(run, policy=more).simulate())
    assert (after["id"] == before["id"]).all()
    assert (after["start_ns"] <= before["start_ns"]).all()


@given(runs())
@examples(25)
def test_same_seed_twice_gives_the_same_tables(run: Run) -> None:
    one, two = run.simulate(), run.simulate()
    pd.testing.assert_frame_equal(rows_of(one), rows_of(two), check_exact=True)
    pd.testing.assert_frame_equal(one.decisions, two.decisions, check_exact=True)
    assert one.summary == two.summary


@given(runs())
@examples(30)
def test_policies_meet_the_same_requests(run: Run) -> None:
    """Common random numbers: another policy changes neither arrivals and classes nor how long a request is served."""
    script = [replace(d, batch_max=(1,) * 3) for d in run.policy.decisions]
    plain = Decision((9, 0, 0), ((to((0, 0)),),) * len(run.scenario.classes))
    mine, theirs = (rows_of(replace(run, policy=Scripted(*s)).simulate()) for s in (script, [plain]))
    met = ["id", "arrival_ns", "class", "slo_s"]
    pd.testing.assert_frame_equal(mine[met], theirs[met], check_exact=True)
    same = (mine["pool"] == "vm") & (mine["model"] == "model0") & (mine["finish_ns"] >= 0)
    for rows in (mine, theirs):
        rows["service_ns"] = rows["finish_ns"] - rows["start_ns"]
    assert (mine["service_ns"] == theirs["service_ns"])[same].all()


@given(runs())
@examples(25)
def test_twice_the_prices_cost_twice_as_much(run: Run) -> None:
    prices = ("usd_per_hour", "usd_per_busy_hour", "usd_per_busy_hour_provisioned", "usd_per_request")
    pools = tuple(replace(p, **{name: 2 * getattr(p, name) for name in prices}) for p in run.scenario.pools)
    one, two = run.simulate(), replace(run, scenario=replace(run.scenario, pools=pools)).simulate()
    assert two.cost_usd.tolist() == (2 * one.cost_usd).tolist()
    for name in ("cost_usd", "vm_cost_usd", "function_cost_usd"):
        assert two.summary[name] == 2 * one.summary[name]
    pd.testing.assert_frame_equal(rows_of(one), rows_of(two), check_exact=True)


@given(runs())
@examples(50)
def test_percentiles_are_within_a_thousandth_of_exact(run: Run) -> None:
    result = run.simulate()
    rows = rows_of(result)
    rows = rows[rows["finish_ns"] >= 0]
    groups = [(result.summary, rows)]
    groups += [(c, rows[rows["class"] == c["name"]]) for c in result.summary["classes"]]
    for said, mine in groups:
        latencies = np.sort((mine["finish_ns"] - mine["arrival_ns"]).to_numpy()) / 1e9
        for name, q in (("p50_s", 50), ("p99_s", 99)):
            if len(latencies) == 0:
                assert said[name] is None
            else:
                exact = latencies[-(-q * len(latencies) // 100) - 1]
                assert said[name] == pytest.approx(exact, rel=1e-3)


def test_requests_are_drawn_as_the_workload_says() -> None:
    """Classes in their shares; service quantiles and route bits uniform and independent: within 5 standard errors."""
    n = 300_000
    workload = replace(workload_of(np.full(300, n // 300)), thresholds=np.array([[13107, 45875, 65536]]))
    arrivals = generate(workload, 7)
    share = np.bincount(arrivals.class_ids) / n
    assert share == pytest.approx([0.2, 0.5, 0.3], abs=5 * 0.5 / np.sqrt(n))
    for bits in (arrivals.quantile, arrivals.route_bits):
        counts = np.bincount(bits, minlength=4096)
        chi_square = ((counts - n / 4096) ** 2 / (n / 4096)).sum()
        assert abs(chi_square - 4095) < 5 * np.sqrt(2 * 4095)
        for other in (arrivals.class_ids, np.diff(arrivals.times_ns, prepend=0), np.roll(bits, 1)):
            assert abs(np.corrcoef(bits, other)[0, 1]) < 5 / np.sqrt(n)


def test_arrivals_are_spread_evenly_over_their_second() -> None:
    """Given their number the arrivals of a second are uniform in it (Kolmogorov-Smirnov), and stay in it."""
    arrivals = generate(workload_of(np.full(2000, 50)), 3)
    second, inside = np.divmod(arrivals.times_ns, NS)
    assert (second == np.repeat(np.arange(2000), 50)).all()
    assert (np.diff(arrivals.times_ns) >= 0).all()
    even = (np.arange(len(inside)) + 0.5) / len(inside)
    assert np.abs(np.sort(inside) / NS - even).max() < 1.95 / np.sqrt(len(inside))


@pytest.mark.parametrize("variation", [0.05, 0.1, 0.5, 1.0])
def test_service_times_have_the_stated_spread(variation: float) -> None:
    table = lognormal_table(variation)
    assert table.mean() == pytest.approx(65536, rel=1e-5)
    assert table.std() / table.mean() == pytest.approx(variation, rel=0.02)
    assert (np.diff(table) >= 0).all()


@pytest.mark.parametrize("weights", [(1.0, 3.0), (0.2, 0.3, 0.5)])
def test_traffic_is_split_by_the_weights_of_its_routes(weights: tuple[float, ...]) -> None:
    pools = [pool_of(f"pool{i}", [0.001], slots=4) for i in range(len(weights))]
    routes = tuple(to((i, 0), weight=w) for i, w in enumerate(weights))
    decision = Decision((9,) * len(weights), (routes,))
    result = simulate(scenario_of(*pools), workload_of(np.full(50, 1000)), Scripted(decision))
    share = result.answered.sum((1, 2)) / result.answered.sum()
    assert share == pytest.approx(np.array(weights) / sum(weights), abs=5 * 0.5 / np.sqrt(50_000))
