"""Calls of functions that have gone cold, before they are needed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfserve import steering
from selfserve.policies.analytic import Analytic
from selfserve.protocol import Admit
from selfserve.scenario import load_scenario
from selfserve.simulator.run import simulate
from selfserve.traces import make_trace
from selfserve.warming import LEAST_CONTAINERS, MOST_CALLS, WARMED_FROM_S, called, warm_until
from selfserve.workload import make_workload, mean_work


class Interval:
    """When an interval ended, and how long it was."""

    def __init__(self, time_s: float, interval_s: float = 10.0) -> None:
        self.time_s, self.interval_s = time_s, interval_s


@given(st.floats(0.1, 1e4), st.floats(0.001, 2.0), st.floats(WARMED_FROM_S, 20.0))
def test_calls_start_as_many_containers_as_the_load_would_keep_busy(rate, service_s, init_s):
    part = called(np.array([rate]), np.array([service_s]), init_s, Interval(100.0), np.array([100.0]))[0]
    started = part * rate * min(init_s, 10.0)
    assert 0 < part <= MOST_CALLS
    if 1 / 4096 < part < MOST_CALLS:
        assert started == pytest.approx(max(LEAST_CONTAINERS, rate * service_s))


@pytest.mark.parametrize(
    ("rate", "service_s", "time_s", "until"),
    [(0.0, 0.1, 100.0, 0.0), (5.0, 0.0, 100.0, 0.0), (5.0, 0.1, 100.0, 101.0), (5.0, 0.1, 0.0, 0.0)],
    ids=["no load", "no function", "warm", "nothing seen"],
)
def test_nothing_calls_a_function_that(rate, service_s, time_s, until):
    part = called(np.array([rate]), np.array([service_s]), 5.0, Interval(time_s), np.array([until]))
    assert part == [0.0]


def test_a_function_is_warm_from_its_last_answer_and_while_called_containers_come_up():
    before, used = np.array([700.0, 95.0, 90.0]), np.array([True, False, False])
    after = warm_until(before, used, Interval(100.0), 5.0, 600.0)
    assert after.tolist() == [700.0, 95.0, 105.0], "the last one was cold at 90 s, so that it was called"


def waves(machines: float = 6.0):
    """Return a scenario with cold starts of 8 s, and a load that rises by half for a minute every 20 minutes."""
    scenario = load_scenario("standard", {"function.init_s": 8.0, "load_machines": machines})
    scenario = replace(scenario, load_machines=None, rate_scale=1.0)
    level = np.full(7200, machines / mean_work(scenario))
    level[np.arange(7200) % 1200 < 60] *= 1.5
    trace = make_trace("waves", np.random.default_rng(0).poisson(level))
    return scenario, make_workload(trace, scenario, 1800, 4800)


def test_warm_containers_spare_cold_starts(monkeypatch):
    scenario, workload = waves()
    warmed = simulate(scenario, workload, Analytic())
    monkeypatch.setattr(steering, "WARMED_FROM_S", np.inf)
    alone = simulate(scenario, workload, Analytic())
    a, b = warmed.summary, alone.summary
    assert a["cold_starts"] < b["cold_starts"] and a["cost_usd"] < b["cost_usd"]
    assert a["slo_violation_pct"] <= b["slo_violation_pct"]
    assert a["accuracy_violation_pct"] == b["accuracy_violation_pct"] == 0


def test_only_long_cold_starts_are_called_for():
    for init_s, wanted in ((WARMED_FROM_S, True), (WARMED_FROM_S - 0.1, False)):
        scenario = load_scenario("standard", {"function.init_s": init_s})
        state = steering.Steering(scenario, np.full(1200, 100.0), 10.0)
        for k, steps in enumerate(state.calls.steps):
            assert bool(steps) == wanted
            assert all(scenario.pools[x.pool].is_function and x.admit == Admit.ALWAYS for x in steps)
            assert (state.calls.service_s[k] > 0) == wanted
