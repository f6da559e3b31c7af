"""How fast the engine is: against a bare loop in C (W1), against SimPy (W2), and through the whole policy loop.

``python -m selfserve bench --json`` runs all of it; ``python benchmarks/bench.py --only w1`` a part. Both sides of a
ratio serve the same arrivals with the same service times, take turns in one process (A B A B ..) on one core, and are
timed in CPU seconds of that process; a ratio is the median over the turns. Compilation is not timed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfserve.protocol import Admit, Decision, Observation, Route, Step
from selfserve.scenario import (
    FunctionPhysics,
    Model,
    Pool,
    RequestClass,
    Scenario,
    ServicePhysics,
    VmPhysics,
    load_scenario,
)
from selfserve.simulator import Result, Simulator, simulate
from selfserve.simulator.arrivals import generate
from selfserve.simulator.draws import GAP, REQUEST, bases, exponential_table, lognormal_table
from selfserve.workload import Trace, Workload, make_workload, mean_work

HERE = Path(__file__).resolve().parent
SEED = 0


class Constant:
    """A policy that always decides the same."""

    def __init__(self, decision: Decision, interval_s: float):
        self.decision, self.interval_s = decision, interval_s

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Start a run: there is nothing to prepare."""

    def decide(self, observation: Observation) -> Decision:
        """Return the decision, whatever was observed."""
        return self.decision


class Case(NamedTuple):
    """What is served, how much of it, and the constant decision under which it is served."""

    scenario: Scenario
    workload: Workload
    decision: Decision

    def simulator(self, interval_s: float | None = None, *, requests: bool = False) -> Simulator:
        """Return a simulator at time 0, by default with one interval as long as the window."""
        simulator = Simulator(self.scenario, self.workload, interval_s or self.workload.seconds, requests=requests)
        simulator.reset(SEED)
        return simulator


class Cost(NamedTuple):
    """What one turn of one side took."""

    requests: int
    cpu_s: float
    wall_s: float


def timed(requests: int, work: Callable[[], object]) -> Cost:
    """Return what a piece of work over so many requests took."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(requests, time.process_time() - cpu, time.perf_counter() - wall)


class Comparison(NamedTuple):
    """Two sides that took turns: requests per CPU second of each, and their ratio A / B."""

    a: float
    b: float
    ratio: float
    lowest: float
    highest: float
    wall_ratio: float

    @classmethod
    def of(cls, turns: list[tuple[Cost, Cost]]) -> Comparison:
        """Take the medians over the turns."""
        rate = [[c.requests / c.cpu_s for c in pair] for pair in turns]
        wall = [a.requests / a.wall_s / (b.requests / b.wall_s) for a, b in turns]
        ratios = [a / b for a, b in rate]
        a, b = (statistics.median(side) for side in zip(*rate, strict=True))
        return cls(a, b, statistics.median(ratios), min(ratios), max(ratios), statistics.median(wall))

    def say(self, a: str, b: str) -> str:
        """Return a line for people."""
        return (
            f"{a} {self.a / 1e6:.3g} M requests/s, {b} {self.b / 1e6:.3g} M; ratio {self.ratio:.3g} "
            f"({self.lowest:.3g} to {self.highest:.3g} over the turns; by wall clock {self.wall_ratio:.3g})"
        )


def poisson_trace(rate: float, seconds: int) -> Trace:
    """Return Poisson counts of a constant rate."""
    return Trace("poisson", seconds, np.random.default_rng(SEED).poisson(rate, seconds).astype(np.int64), None, "")


# ---------------------------------------------------------------------------------------------------- W1 against C
W1_SLOTS, W1_LOAD, W1_MEAN_S, W1_SPREAD = 400, 0.9, 0.1, 0.5


def w1(seconds: int, slo_s: float = 0.105) -> Case:
    """One pool of 400 slots at load 0.9; what would miss its SLO there goes to a function.

    Args:
        seconds: length of the window.
        slo_s: the default lets a request wait for a twentieth of its mean service, so that some overflow does happen.
    """
    service = np.array([[0, round(W1_MEAN_S * 1e9)]], np.int64)

    def pool(name: str, market: str, slots: int, machines: int, usd_per_hour: float, usd_per_busy_hour: float) -> Pool:
        return Pool(
            name, name, market, (0,), slots, 1, 1769.0, machines, usd_per_hour, usd_per_busy_hour, 0.0, 0.0,
            service, service, ("published",),
        )  # fmt: skip

    scenario = Scenario(
        name="w1",
        classes=(RequestClass("all", 1.0, slo_s),),
        pools=(pool("vm", "on_demand", 2, W1_SLOTS // 2, 0.085, 0.0), pool("fn", "function", 1, 0, 0.0, 0.1)),
        models=(Model("model", 75.0),),
        warmup_s=0.0,
        rate_scale=1.0,
        vm=VmPhysics(pending_s=0.0, boot_s=0.0),
        function=FunctionPhysics(),
        service=ServicePhysics(spread=W1_SPREAD),
    )
    workload = make_workload(poisson_trace(W1_SLOTS * W1_LOAD / W1_MEAN_S, seconds), scenario)
    route = Route((Step(0, 0, Admit.IF_FITS), Step(1, 0)))
    return Case(scenario, workload, Decision((W1_SLOTS // 2, 0), ((route,),)))


class BareHeap:
    """``heap.c``, compiled on the spot (``cc -O2``; on the machines we tried, -O3 -march=native is slower)."""

    def __init__(self, folder: str) -> None:
        library = Path(folder) / "heap.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(HERE / "heap.c")], check=True)
        self._serve = ctypes.CDLL(str(library)).serve
        self._serve.restype = ctypes.c_int64
        self._base = bases(SEED)[[REQUEST, GAP]]
        self._tables = exponential_table(), lognormal_table(W1_SPREAD)

    def __call__(self, workload: Workload) -> int:
        """Serve a workload; return the sum of its latencies in nanoseconds."""
        counts = workload.counts
        heap, at = np.zeros(W1_SLOTS, np.int64), np.zeros(int(counts.max()), np.int64)
        draws = np.zeros(len(at), np.uint64)
        pointer, size = (lambda a: ctypes.c_void_p(a.ctypes.data)), ctypes.c_int64
        return self._serve(
            pointer(counts), size(len(counts)), pointer(self._base), *map(pointer, self._tables),
            size(round(W1_MEAN_S * 1e9)), pointer(heap), size(W1_SLOTS), pointer(at), pointer(draws),
        )  # fmt: skip


def w1_against_c(seconds: int, turns: int) -> tuple[Comparison, Result]:
    """Time the simulator and C on W1 in turns; return the comparison and the simulator's last result.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    case = w1(seconds)
    requests = int(case.workload.counts.sum())
    with tempfile.TemporaryDirectory() as folder:
        heap = BareHeap(folder)
        w1(1).simulator().advance(case.decision)  # compiles
        pairs = []
        for _ in range(turns):
            ours = case.simulator()
            a = timed(requests, lambda: ours.advance(case.decision))  # noqa: B023 (called at once)
            pairs.append((a, timed(requests, lambda: heap(case.workload))))
    return Comparison.of(pairs), ours.finish()


def w1_latencies(seconds: int) -> tuple[int, int]:
    """Return the sum of all latencies in ns by simulator and by C where nothing overflows: they must be equal."""
    case = w1(seconds, slo_s=1000.0)
    simulator = case.simulator(requests=True)
    simulator.advance(case.decision)
    rows = simulator.finish().requests
    assert rows is not None  # it was asked for
    with tempfile.TemporaryDirectory() as folder:
        return int((rows["finish_ns"] - rows["arrival_ns"]).sum()), BareHeap(folder)(case.workload)


# ------------------------------------------------------------------------------------------------- W2 against SimPy
W2_WARMUP_S, W2_BATCH = 150, 4


def least_work_s(pool: Pool, step: Step) -> float:
    """Return the slot-seconds of a request at the batch size that needs the fewest."""
    return min(pool.service_s(step.model, b) / b for b in range(1, W2_BATCH + 1))


def w2(seconds: int, load_machines: float | None = None) -> Case:
    """``standard`` at a constant Poisson rate under a constant decision: every mechanism at work at once.

    Strict requests use machines if they fit there, else a function; accurate ones likewise, split over two models,
    of which the larger steps back if it had to wait; relaxed ones wait, and leave for a function at the last moment.
    Batches of up to 4. The fleet carries a little less than the offered work, so that it is never idle.

    Args:
        seconds: length of the window, warm-up included.
        load_machines: as in the scenario file (its value by default).
    """
    plain = load_scenario("standard", {"load_machines": load_machines} if load_machines else None)
    assert plain.load_machines is not None  # standard states it
    rate = plain.load_machines / mean_work(plain)
    scenario = load_scenario("standard", {"rate_scale": 1.0, "warmup_s": float(W2_WARMUP_S)})
    workload = make_workload(poisson_trace(rate, seconds), scenario)
    vm, fn = 0, 1
    small, resnet, tiny, base = range(len(scenario.models))
    fits = Admit.IF_FITS
    strict = (Route((Step(vm, small, fits), Step(fn, small))),)
    accurate = (
        Route((Step(vm, tiny, fits, leave_slack_s=0.2), Step(fn, tiny)), 0.9),
        Route((Step(vm, base, fits, leave_slack_s=0.6, late_model=tiny, late_slack_s=1.97), Step(fn, base)), 0.1),
    )
    relaxed = (Route((Step(vm, resnet, leave_slack_s=3.0), Step(fn, resnet))),)
    routes = (strict, accurate, relaxed)
    work = sum(
        wanted.share * route.weight / sum(r.weight for r in choices) * least_work_s(scenario.pools[vm], route.steps[0])
        for wanted, choices in zip(scenario.classes, routes, strict=True)
        for route in choices
    )
    machines = max(1, int(0.9 * rate * work / scenario.pools[vm].slots))
    return Case(scenario, workload, Decision((machines, 0), routes, batch_max=(W2_BATCH, 1), batch_wait_s=(0.02, 0.0)))


class W2Found(NamedTuple):
    """Speed of both sides on W2, and (simulator, SimPy) pairs of what both found."""

    speed: Comparison
    agreement: dict[str, tuple[float, float]]


def simpy_system(case: Case) -> Any:
    """Return W2's SimPy model at time 0, with all arrivals at hand."""
    sys.path.append(str(HERE))
    from simpy_w2 import System

    found = generate(case.workload, SEED)
    factors = lognormal_table(case.scenario.service.spread)[found.quantile] / 65536
    given = (found.times_ns / 1e9, found.class_ids, factors, found.route_bits)
    return System(case.scenario, case.decision, *(a.tolist() for a in given), float(W2_WARMUP_S))


def w2_against_simpy(seconds: int, intervals: int, turns: int, load_machines: float | None = None) -> W2Found:
    """Time the simulator and SimPy on W2 in turns; warm-up (boots, first cold starts) is untimed on both sides.

    Args:
        seconds: what SimPy simulates in a turn; each turn goes on where the one before ended.
        intervals: intervals of ``W2_WARMUP_S`` that the simulator does in a turn (``seconds`` would be over too soon).
        turns: how many turns.
        load_machines: size of the scenario, its own by default.
    """
    case = w2(W2_WARMUP_S * (1 + intervals * turns), load_machines)
    short = w2(W2_WARMUP_S + seconds * turns, load_machines)
    arrived, theirs_arrived = case.workload.counts.cumsum(), short.workload.counts.cumsum()
    ours, theirs = case.simulator(W2_WARMUP_S), simpy_system(short)
    ours.advance(case.decision)
    theirs.env.run(until=W2_WARMUP_S)
    pairs = []
    for turn in range(turns):
        first, last = (W2_WARMUP_S * (1 + intervals * i) for i in (turn, turn + 1))
        a = timed(
            int(arrived[last - 1] - arrived[first - 1]),
            lambda: [ours.advance(case.decision) for _ in range(intervals)],
        )
        first, last = (W2_WARMUP_S + seconds * i for i in (turn, turn + 1))
        b = timed(int(theirs_arrived[last - 1] - theirs_arrived[first - 1]), lambda: theirs.env.run(until=last))  # noqa: B023
        pairs.append((a, b))
    theirs.env.run()
    return W2Found(Comparison.of(pairs), agreement(short, theirs))


def agreement(case: Case, theirs: Any) -> dict[str, tuple[float, float]]:
    """Return what the simulator and a finished SimPy model found of the same requests, in that order."""
    ours = simulate(case.scenario, case.workload, Constant(case.decision, 10.0), SEED, requests=True)
    rows = ours.requests
    assert rows is not None  # it was asked for
    latency = rows["finish_s"] - rows["arrival_s"]
    answers = sum(theirs.answers)
    found = {"function share %": (ours.summary["function_share_pct"], 100 * theirs.on_functions / answers)}
    for k, c in enumerate(case.scenario.classes):
        mine = latency[rows["class"] == c.name]
        found[f"{c.name} mean latency s"] = (float(mine.mean()), theirs.latency[k] / theirs.answers[k])
        late = float((mine > c.slo_s).mean())
        found[f"{c.name} late %"] = (100 * late, 100 * theirs.late[k] / theirs.answers[k])
    return found


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--only")
    a = p.parse_args()
    if a.only in (None, "w1"):
        c, r = w1_against_c(600, 7)
        print(c.say("simulator", "C"), r.summary["function_share_pct"])
        print(w1_latencies(20))
    if a.only in (None, "w2"):
        f = w2_against_simpy(100, 10, 5)
        print(f.speed.say("simulator", "SimPy"))
        print(f.agreement)


if __name__ == "__main__":
    main()
