"""Many worlds in one compiled call: the road of single runs (one world) and of vector environments alike.

A stack is a ``World`` whose arrays have one more axis in front: the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from selfserve.scenario import Scenario, to_ns
from selfserve.simulator.books import begin_interval
from selfserve.simulator.engine import advance, decide
from selfserve.simulator.fleet import close_bills
from selfserve.simulator.jit import kernel
from selfserve.simulator.state import NEVER, World
from selfserve.simulator.world import grow, make_room_for_machines, make_world, write_routes

if TYPE_CHECKING:
    from selfserve.protocol import Decision
    from selfserve.workload import Workload


@kernel
def world_of(w, e):
    """Return world e of a stack, without a copy."""
    return World(
        w.par[e],
        w.base[e],
        w.service[e],
        w.believed[e],
        w.slo[e],
        w.quantile[e],
        w.boot[e],
        w.exponential[e],
        w.thresholds[e],
        w.counts[e],
        w.times[e],
        w.storm[e],
        w.hazard[e],
        w.window_ns[e],
        w.routes[e],
        w.route_cum[e],
        w.n_steps[e],
        w.step[e],
        w.clock[e],
        w.pool[e],
        w.tree[e],
        w.end_of[e],
        w.machine[e],
        w.queue[e],
        w.ring[e],
        w.held[e],
        w.function[e],
        w.flight[e],
        w.warm[e],
        w.doomed[e],
        w.arrive_at[e],
        w.arrive_draw[e],
        w.batch[e],
        w.arrivals[e],
        w.served[e],
        w.late[e],
        w.busy[e],
        w.answered[e],
        w.scored_late[e],
        w.scored[e],
        w.histogram[e],
        w.windows[e],
        w.row_class[e],
        w.row_pool[e],
        w.row_model[e],
        w.row_start[e],
        w.row_finish[e],
        w.row_cold[e],
        w.row_arrived[e],
    )


@kernel
def decide_all(stack, now, target, batch_max, batch_wait):
    """Open the next interval at ``now`` (ns) and put a decision in force in every world; arrays [E, P]."""
    for e in range(stack.par.shape[0]):
        w = world_of(stack, e)
        begin_interval(w, now)
        decide(w, now, target[e], batch_max[e], batch_wait[e])


@kernel
def advance_all(stack, stop):
    """Run every world until ``stop`` (ns); return whether arrays must grow before one of them can go on."""
    for e in range(stack.par.shape[0]):
        if not advance(world_of(stack, e), stop):
            return False
    return True


@kernel
def close_all(stack):
    """Bill the machines still alive to the end of the window in every world."""
    for e in range(stack.par.shape[0]):
        close_bills(world_of(stack, e))


def pile(worlds: Sequence[World]) -> World:
    """Return a stack of worlds of one scenario shape (a view if there is one world); shorter arrays are padded."""
    if len(worlds) == 1:
        return World(*(a[None] for a in worlds[0]))
    return World(*(_pile_field(name, [getattr(w, name) for w in worlds]) for name in World._fields))


def _pile_field(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Return arrays of unequal length stacked: class shares go on with their last row, all else ends in zeros."""
    shape = np.max([a.shape for a in arrays], axis=0)
    pad = [[(0, int(n - m)) for n, m in zip(shape, a.shape, strict=True)] for a in arrays]
    if name == "tree":
        return np.stack([np.pad(a, p, constant_values=NEVER) for a, p in zip(arrays, pad, strict=True)])
    mode = "edge" if name == "thresholds" else "constant"
    return np.stack([np.pad(a, p, mode=mode) for a, p in zip(arrays, pad, strict=True)])  # type: ignore[call-overload]


def worlds_in(stack: World) -> list[World]:
    """Return the worlds of a stack as views."""
    return [World(*(a[e] for a in stack)) for e in range(stack.par.shape[0])]


def run_to(stack: World, stop: int) -> World:
    """Run all worlds until ``stop`` (ns), growing arrays as needed; return the stack (a new one if it grew)."""
    while not advance_all(stack, stop):
        stack = pile([grow(w) for w in worlds_in(stack)])
    return stack


class Worlds:
    """Many runs stepped together: what a vector environment and the benchmark drive.

    Args:
        scenarios: one a world; same numbers of pools, models and classes.
        workloads: one a world; same length.
        interval_s: decision interval, seconds.
    """

    def __init__(self, scenarios: Sequence[Scenario], workloads: Sequence[Workload], interval_s: float) -> None:
        self.scenarios, self.workloads, self.interval_ns = scenarios, workloads, to_ns(interval_s)
        self.interval_s = interval_s

    def reset(self, seeds: Sequence[int], routes: Decision, most_machines: int) -> None:
        """Start all worlds anew.

        Args:
            seeds: one a world.
            routes: the decision whose routes all worlds follow.
            most_machines: largest target that will be asked of any pool.
        """
        peak = max(int(w.counts.max(initial=0)) for w in self.workloads)
        worlds = []
        for scenario, workload, seed in zip(self.scenarios, self.workloads, seeds, strict=True):
            w = make_world(scenario, workload, self.interval_s, seed, rows=False, histogram=False, peak=peak)
            w = make_room_for_machines(w, np.full(len(scenario.pools), most_machines))
            write_routes(w, routes)
            worlds.append(w)
        self.stack, self.now_ns = pile(worlds), 0

    def advance(self, target: np.ndarray, batch_max: np.ndarray, batch_wait_ns: np.ndarray) -> None:
        """Put targets and batches (int64 [E, P]) in force and run one interval in every world."""
        decide_all(self.stack, self.now_ns, target, batch_max, batch_wait_ns)
        self.now_ns += self.interval_ns
        self.stack = run_to(self.stack, self.now_ns)
