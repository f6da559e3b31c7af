"""Queues whose answer is known: the simulated mean wait, and the share blocked, beside queueing theory.

Each case runs once, with the seed given by its place in the list; batch means after the warm-up give its interval. A
perfect simulator misses one of so many 99% intervals once in four tries, so two things are asked: every value of theory
lies inside intervals that hold all of them together with 99% confidence, and no more of them lie outside their own 99%
interval than chance explains. ``python tests/test_queueing.py`` prints all as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from unittest import mock

import numpy as np
import pytest
from cases import pool_of, scenario_of, to, workload_of
from scipy import stats

from selfserve.protocol import Admit, Decision
from selfserve.scenario import FunctionPhysics
from selfserve.simulator import Simulator
from selfserve.simulator.draws import lognormal_table

RATE = 1000
"""Arrivals a second: the load is set by the service time, load x servers / RATE."""
WARMUP_S = 100
"""60 relaxation times of M/M/1 at load 0.95, each service / (1 - sqrt(load))^2 (Cohen, The Single Server Queue)."""
SECONDS = {0.5: 3000, 0.8: 4500, 0.95: 12000}
"""Scored seconds at each load; a queue remembers longer the higher it is."""
BATCHES = 30


def exponential_service() -> np.ndarray:
    """Return 4,096 equally likely service times that stand for an exponential one: means of its quantile bins.

    Int64, in units of 1/65536 of the mean as in physics rule 2.3. Integrating -ln(1 - u) over a bin of u.
    """
    tail = 1 - np.arange(4097) / 4096
    area = np.zeros(4097)  # of -ln(v) from 0 to v
    area[:-1] = tail[:-1] - tail[:-1] * np.log(tail[:-1])
    return np.round(-np.diff(area) * 4096 * 65536).astype(np.int64)


def squared_variation(table: np.ndarray) -> float:
    """Return the squared coefficient of variation of service times, as drawn."""
    return float(table.var() / table.mean() ** 2)


def erlang_b(servers: int, offered: float) -> float:
    """Return the share blocked in M/G/c/c (Erlang 1917; insensitive to the service distribution), by recursion."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """Return the share that waits in M/M/c (Erlang 1917)."""
    blocked = erlang_b(servers, load * servers)
    return blocked / (1 - load * (1 - blocked))


def wait_mmc(servers: int, load: float) -> float:
    """Return the mean wait in M/M/c, seconds.

    The stand-in above is 0.02% short in squared variation, so the wait is some 0.01% short (Lee and Longton 1959: it
    goes nearly as (1 + squared variation) / 2), a hundredth of the narrowest interval.
    """
    return erlang_c(servers, load) / (1 - load) / RATE * load


def wait_mg1(table: np.ndarray, load: float) -> float:
    """Return the mean wait in M/G/1, seconds (Pollaczek-Khinchine), with the service times' own second moment."""
    return load * load * (1 + squared_variation(table)) / (2 * (1 - load)) / RATE


@dataclass(frozen=True)
class Queue:
    """One kind of queue: servers, service times, mean wait (or share blocked) as a function of load."""

    name: str
    servers: int
    table: np.ndarray
    theory: Callable[[float], float]
    exact_times: bool = False
    slots: int = 1
    blocks: bool = False


EXPONENTIAL, CONSTANT = exponential_service(), lognormal_table(0.0)
NARROW, WIDE = lognormal_table(0.5), lognormal_table(2.0)
QUEUES = (
    Queue("M/M/1", 1, EXPONENTIAL, lambda load: wait_mg1(EXPONENTIAL, load)),
    Queue("M/M/1, exact times", 1, EXPONENTIAL, lambda load: wait_mg1(EXPONENTIAL, load), exact_times=True),
    Queue("M/M/4", 4, EXPONENTIAL, lambda load: wait_mmc(4, load)),
    Queue("M/M/20", 20, EXPONENTIAL, lambda load: wait_mmc(20, load), slots=2),
    Queue("M/D/1", 1, CONSTANT, lambda load: wait_mg1(CONSTANT, load)),
    Queue("M/G/1, variation 0.5", 1, NARROW, lambda load: wait_mg1(NARROW, load)),
    Queue("M/G/1, variation 2", 1, WIDE, lambda load: wait_mg1(WIDE, load)),
    Queue("M/M/4/4", 4, EXPONENTIAL, lambda load: erlang_b(4, 4 * load), blocks=True),
    Queue("M/M/20/20", 20, EXPONENTIAL, lambda load: erlang_b(20, 20 * load), blocks=True),
)
CASES = [(queue, load) for queue in QUEUES for load in SECONDS]
OWN, ALL = (stats.t.ppf((1 + c) / 2, BATCHES - 1) for c in (0.99, 0.99 ** (1 / len(CASES))))
SIMULTANEOUS = ALL / OWN
"""How much wider than its own 99% interval a case's is for all to hold together with 99% confidence (Šidák 1967)."""


def simulate_queue(queue: Queue, load: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (waited request-seconds or blocked requests, arrivals) of each interval after the warm-up."""
    service_s, seconds = load * queue.servers / RATE, SECONDS[load] + WARMUP_S
    scenario = scenario_of(
        pool_of("servers", [service_s], slots=queue.slots),
        pool_of("overflow", [service_s], "function"),
        function=FunctionPhysics(concurrency=10 * RATE, burst_per_10s=10 * RATE),
    )
    rng = np.random.default_rng(seed)
    if queue.exact_times:
        times_s = rng.exponential(1 / RATE, round(1.02 * RATE * seconds)).cumsum()
        workload = workload_of(times_s=times_s[times_s < seconds])
    else:
        workload = workload_of(rng.poisson(RATE, seconds))
    route = to((0, 0, Admit.IF_IDLE), (1, 0)) if queue.blocks else to((0, 0))
    decision = Decision((queue.servers // queue.slots, 0), ((route,),))
    simulator = Simulator(scenario, workload, 10.0)
    # A scenario's spread makes lognormal services only: the table of quantiles is put in their place.
    with mock.patch("selfserve.simulator.world.lognormal_table", lambda spread: queue.table):
        simulator.reset(seed)
    seen = []
    while not simulator.done:
        seen.append(simulator.advance(decision))
    scored = [o for o in seen if o.time_s > WARMUP_S]
    what = [o.served[1].sum() if queue.blocks else o.queued_request_s.sum() for o in scored]
    return np.array(what), np.array([o.arrivals.sum() for o in scored])


def interval(what: np.ndarray, arrivals: np.ndarray) -> tuple[float, float]:
    """Return (mean, half width of its 99% interval) of a quantity per arrival, by the method of batch means."""
    batches = [part.sum(axis=1) for part in np.array_split(np.stack([what, arrivals]), BATCHES, axis=1)]
    means = [total / count for total, count in batches]
    half = OWN * np.std(means, ddof=1) / math.sqrt(BATCHES)
    return float(np.mean(means)), float(half)


@cache
def measured(case: int) -> tuple[float, float]:
    """Return (mean, half width of its own 99% interval) of a case."""
    return interval(*simulate_queue(*CASES[case], seed=case))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{queue.name} at {load}" for queue, load in CASES])
def test_simulated_queue_agrees_with_theory(case: int) -> None:
    queue, load = CASES[case]
    mean, half = measured(case)
    assert abs(mean - queue.theory(load)) <= half * SIMULTANEOUS
    assert half < 0.2 * mean, "the interval is too wide to tell a right queue from a wrong one"


def test_no_more_queues_miss_their_interval_than_chance_explains() -> None:
    outside = [
        f"{queue.name} at {load}"
        for case, (queue, load) in enumerate(CASES)
        if abs(measured(case)[0] - queue.theory(load)) > measured(case)[1]
    ]
    assert len(outside) <= stats.binom.ppf(0.99, len(CASES), 0.01)


def test_stand_in_for_exponential_service() -> None:
    assert EXPONENTIAL.mean() / 65536 == pytest.approx(1, abs=1e-6)
    assert squared_variation(EXPONENTIAL) == pytest.approx(1, abs=3e-4)


def test_formulas_where_a_closed_form_is_known() -> None:
    assert erlang_c(1, 0.8) == pytest.approx(0.8)
    assert wait_mmc(1, 0.8) == pytest.approx(0.8 / (1 - 0.8) * 0.8 / RATE)
    assert erlang_b(2, 1.0) == pytest.approx(0.2)
    assert erlang_c(2, 0.5) == pytest.approx(1 / 3)


def main() -> None:
    """Print all cases as a table: mean waits in ms, shares blocked; differences in half widths of the interval."""
    print(f"theory lies inside all intervals together with 99% confidence if |off by| < {SIMULTANEOUS:.2f}")
    print(f"{'queue':22s} {'load':>5s} {'theory':>10s} {'simulated':>10s} {'99% +-':>10s} {'off by':>7s}")
    for case, (queue, load) in enumerate(CASES):
        unit = 1 if queue.blocks else 1e3
        theory, mean, half = queue.theory(load) * unit, measured(case)[0] * unit, measured(case)[1] * unit
        print(f"{queue.name:22s} {load:5.2f} {theory:10.5f} {mean:10.5f} {half:10.5f} {(mean - theory) / half:+7.2f}")


if __name__ == "__main__":
    main()
