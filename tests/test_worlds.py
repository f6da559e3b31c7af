"""Many worlds stepped in one call are the same runs as one by one, also where their arrays must grow."""

import numpy as np
from cases import pool_of, scenario_of, to, workload_of

from selfserve.protocol import Admit, Decision
from selfserve.simulator import Simulator, Worlds
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
