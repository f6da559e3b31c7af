"""Many worlds stepped in one call are the same runs as one by one, also where their arrays must grow."""

from dataclasses import replace

import numpy as np
from cases import Scripted, pool_of, scenario_of, to, workload_of

from selfserve.protocol import Admit, Decision, Step, Then
from selfserve.simulator import Simulator, Worlds, simulate
from selfserve.simulator.world import ROOM

WORLDS, STEPS, INTERVAL_S = 3, 12, 10.0


def test_worlds_equal_single_runs() -> None:
    scenario = scenario_of(
        pool_of("vm", [0.2]), pool_of("fn", [0.25], "function"), slos_s=(0.5, 5.0), warmup_s=20.0, spread=0.2
    )
    routes = ((to((0, 0, Admit.IF_FITS), (1, 0)),), (to((0, 0)),))
    rates = (5, 40, 300)  # the last outgrows its queues
    loads = [workload_of(np.random.default_rng(e).poisson(rate, STEPS * 10), classes=2) for e, rate in enumerate(rates)]
    targets = np.random.default_rng(9).integers(0, 12, (STEPS, WORLDS))

    many = Worlds([scenario] * WORLDS, loads, INTERVAL_S)
    many.reset([7, 8, 9])
    for world in many.worlds:
        world.write_routes(routes)
    ones, zeros = np.ones((WORLDS, 2), np.int64), np.zeros((WORLDS, 2), np.int64)
    for step in range(STEPS):
        many.advance(np.stack([targets[step], np.zeros(WORLDS, np.int64)], axis=1), ones, zeros)

    for e in range(WORLDS):
        alone = Simulator(scenario, loads[e], INTERVAL_S)
        alone.reset(7 + e)
        for step in range(STEPS):
            alone.advance(Decision((int(targets[step, e]), 0), routes))
        world = many.worlds[e]
        for name in ("answered", "scored_late", "served"):
            single = getattr(alone.world, name)
            np.testing.assert_array_equal(getattr(world, name), single, err_msg=f"world {e}: {name}")
        np.testing.assert_array_equal(world.classes["scored"], alone.world.classes["scored"])
        for column in ("waiting", "n_ready", "closed", "billed", "launches"):
            np.testing.assert_array_equal(world.pools[column], alone.world.pools[column])
    assert many.worlds[2]["room"] > ROOM == many.worlds[0]["room"]  # the queues of the third world grew


def test_an_ensemble_that_begins_within_a_second_has_room_for_what_is_under_way() -> None:
    """Each of a second's arrivals waits in one queue until the decision within it has them wait in three."""
    scenario = scenario_of(pool_of("vm", [0.2, 0.3, 0.4]), slos_s=(500.0,))
    workload = workload_of([ROOM - 6, 0, 0, 0])
    alone = Decision((0,), ((to((0, 0)),),))
    all_three = Decision((20,), ((to(*(Step(0, m, then=Then.ALSO) for m in (0, 1)), Step(0, 2)),),))
    result = simulate(scenario, workload, Scripted(alone, all_three, interval_s=0.5), 1)
    assert result.summary["requests"] == ROOM - 6 == result.summary["answered"]


def test_arrivals_are_seen_in_their_second_whatever_the_interval() -> None:
    counts = np.random.default_rng(0).poisson(50, 30)
    simulator = Simulator(scenario_of(pool_of("vm", [0.01])), workload_of(counts), 1.5)
    seen, rows = simulator.reset(1), []
    while not simulator.done:
        seen = simulator.advance(Decision((2,), ((to((0, 0)),),)))
        rows.append(seen.arrivals[:, 0].copy())
    assert sum(int(r.sum()) for r in rows) == counts.sum()
    for i, row in enumerate(rows):  # an interval begins in a second or halfway through it
        first = int(1.5 * i)
        assert row[i % 2] == counts[first + i % 2]
        assert row[i % 2] == counts[first + i % 2]


def test_a_boot_that_never_ends_is_none() -> None:
    slow = replace(scenario_of(pool_of("vm", [0.1])).vm, boot_s=1e6, boot_spread=0.3)
    scenario = scenario_of(pool_of("vm", [0.1]), vm=slow)
    simulator = Simulator(scenario, workload_of([1] * 60), 10.0)
    simulator.reset(1)
    while not simulator.done:
        assert simulator.advance(Decision((50,), ((to((0, 0)),),))).ready[0] == 0


def test_every_latency_has_its_bin() -> None:
    from selfserve.simulator import state
    from selfserve.simulator.books import histogram_bin

    bins = [int(histogram_bin(np.int64(ns))) for ns in (512, 10**9, 1 << 47, state.NEVER)]
    assert bins == sorted(bins) and bins[-1] < state.HISTOGRAM_BINS
