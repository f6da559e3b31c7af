"""How fast the engine is: against a bare loop in C (W1), against SimPy (W2), and through the whole policy loop.

``python -m selfserve bench --json`` runs all of it; ``python benchmarks/bench.py --only w1`` a part. Both sides of a
ratio serve the same arrivals with the same service times, take turns in one process (A B A B ..) on one core, and are
timed in CPU seconds of that process; a ratio is the median over the turns. Compilation is not timed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
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
from selfserve.simulator import Simulator, Worlds, simulate
from selfserve.simulator.arrivals import generate
from selfserve.simulator.draws import BOOT, GAP, REQUEST, bases, draw, exponential_table, lognormal_table
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


class Speed(NamedTuple):
    """The simulator's requests per CPU second, the other side's (if there is one) and their ratio; medians of turns."""

    ours: float
    theirs: float | None
    ratio: float | None
    detail: str


Turn = Callable[[int], Cost]
"""Does the work of turn 0, 1, .. and returns what it took."""


def take_turns(turns: int, ours: Turn, theirs: Turn | None) -> Speed:
    """Let two sides take turns (A B A B ..), so that a busy machine slows both; the ratio is that of CPU time."""
    pairs = [(ours(i), theirs(i) if theirs else None) for i in range(turns)]
    ours_rate = statistics.median(a.requests / a.cpu_s for a, _ in pairs)
    both = [(a, b) for a, b in pairs if b is not None]
    if not both:
        return Speed(ours_rate, None, None, f"{ours_rate / 1e6:.3g} M requests/s")
    theirs_rate = statistics.median(b.requests / b.cpu_s for _, b in both)
    ratios = [a.requests / a.cpu_s * b.cpu_s / b.requests for a, b in both]
    wall = statistics.median(a.requests / a.wall_s * b.wall_s / b.requests for a, b in both)
    ratio = statistics.median(ratios)
    detail = (
        f"{ours_rate / 1e6:.3g} M requests/s against {theirs_rate / 1e6:.3g} M, ratio {ratio:.3g} "
        f"({min(ratios):.3g} to {max(ratios):.3g} over {turns} turns; {wall:.3g} by the clock on the wall)"
    )
    return Speed(ours_rate, theirs_rate, ratio, detail)


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


def compiled_heap(folder: str) -> BareHeap | None:
    """Return the yardstick, or None where it does not compile (with a line on stderr that says why)."""
    try:
        return BareHeap(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"bench: no C yardstick: {error}", file=sys.stderr)
        return None


def w1_against_c(seconds: int, turns: int) -> Speed:
    """Time simulator and C on W1; the timed part is the window, without building and reading out the simulator."""
    case = w1(seconds)
    requests = int(case.workload.counts.sum())
    w1(1).simulator().advance(case.decision)  # compiles

    def ours(turn: int) -> Cost:
        simulator = case.simulator()
        return timed(requests, lambda: simulator.advance(case.decision))

    with tempfile.TemporaryDirectory() as folder:
        heap = compiled_heap(folder)
        return take_turns(turns, ours, heap and (lambda turn: timed(requests, lambda: heap(case.workload))))


def w1_latencies(seconds: int) -> tuple[int, int | None]:
    """Return the sum of all latencies in ns by simulator and by C where nothing overflows: they must be equal."""
    case = w1(seconds, slo_s=1000.0)
    simulator = case.simulator(requests=True)
    simulator.advance(case.decision)
    rows = simulator.finish().requests
    assert rows is not None  # it was asked for
    with tempfile.TemporaryDirectory() as folder:
        heap = compiled_heap(folder)
        return int((rows["finish_ns"] - rows["arrival_ns"]).sum()), heap and heap(case.workload)


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
        Route((Step(vm, tiny, fits, leave_slack_s=0.6), Step(fn, tiny)), 0.9),
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


def simpy_system(case: Case) -> Any:
    """Return W2's SimPy model at time 0 with all arrivals at hand, or None where SimPy is not installed."""
    if importlib.util.find_spec("simpy") is None:
        return None
    if str(HERE) not in sys.path:
        sys.path.append(str(HERE))
    from simpy_w2 import System

    found = generate(case.workload, SEED)
    factors = lognormal_table(case.scenario.service.spread)[found.quantile] / 65536
    vm = case.scenario.vm
    boots = np.array([int(draw(bases(SEED)[BOOT], n)) & 4095 for n in range(case.decision.machines[0])])
    ready_s = vm.pending_s + vm.boot_s * lognormal_table(vm.boot_spread)[boots] / 65536
    given = (found.times_ns / 1e9, found.class_ids, factors, found.route_bits, ready_s)
    return System(case.scenario, case.decision, *(a.tolist() for a in given), float(W2_WARMUP_S))


def w2_against_simpy(
    seconds: int, intervals: int, turns: int, load_machines: float | None = None
) -> tuple[Speed, dict[str, tuple[float, float]]]:
    """Time simulator and SimPy on W2, without the warm-up (boots, first cold starts); return what they agree on too.

    Args:
        seconds: what SimPy simulates in a turn; each turn goes on where the one before ended.
        intervals: intervals of ``W2_WARMUP_S`` that the simulator does in a turn (``seconds`` would be over too soon).
        turns: how many turns.
        load_machines: as in :func:`w2`.
    """
    case = w2(W2_WARMUP_S * (1 + intervals * turns), load_machines)
    short = w2(W2_WARMUP_S + seconds * turns, load_machines)
    simulator, system = case.simulator(W2_WARMUP_S), simpy_system(short)
    simulator.advance(case.decision)

    def ours(turn: int) -> Cost:
        first, last = (W2_WARMUP_S * (1 + intervals * i) for i in (turn, turn + 1))
        requests = int(case.workload.counts[first:last].sum())
        return timed(requests, lambda: [simulator.advance(case.decision) for _ in range(intervals)])

    def theirs(turn: int) -> Cost:
        first, last = (W2_WARMUP_S + seconds * i for i in (turn, turn + 1))
        return timed(int(short.workload.counts[first:last].sum()), lambda: system.env.run(until=last))

    if system is None:
        return take_turns(turns, ours, None), {}
    system.env.run(until=W2_WARMUP_S)
    speed = take_turns(turns, ours, theirs)
    system.env.run()
    return speed, agreement(short, system)


def agreement(case: Case, system: Any) -> dict[str, tuple[float, float]]:
    """Return what simulator and a finished SimPy model found of the same requests: pairs, in that order."""
    ours = simulate(case.scenario, case.workload, Constant(case.decision, 10.0), SEED, requests=True)
    rows = ours.requests
    assert rows is not None  # it was asked for
    latency = rows["finish_s"] - rows["arrival_s"]
    found = {"function share, %": (ours.summary["function_share_pct"], 100 * system.on_functions / sum(system.answers))}
    for k, c in enumerate(case.scenario.classes):
        mine = float(latency[rows["class"] == c.name].mean())
        found[f"mean latency of {c.name}, s"] = (mine, system.latency[k] / system.answers[k])
    return found


def simulate_against_w2(seconds: int, turns: int, load_machines: float | None = None) -> Speed:
    """Time the whole of ``simulate`` (policy asked every 10 s, set-up and result included) against the bare window."""
    case = w2(seconds, load_machines)
    requests = int(case.workload.counts.sum())
    policy = Constant(case.decision, case.scenario.interval_s)

    def whole(turn: int) -> Cost:
        return timed(requests, lambda: simulate(case.scenario, case.workload, policy, SEED))

    def window(turn: int) -> Cost:
        simulator = case.simulator()
        return timed(requests, lambda: simulator.advance(case.decision))

    return take_turns(turns, whole, window)


# ------------------------------------------------------------------------------------------------------- front door
KEYS = (
    "w1_requests_per_s", "w1_ratio_to_c", "w2_requests_per_s", "w2_ratio_to_simpy", "simulate_requests_per_s",
    "simulate_ratio_to_w2", "env_steps_per_s", "env_requests_per_s", "env_ratio_to_simulator", "ppo_steps_per_s",
    "decision_p99_ms", "load_s",
)  # fmt: skip
"""What :func:`run` reports; None without a compiler."""


def run_w1(quick: bool, say: Callable[[str], None]) -> dict[str, float | None]:
    """Measure W1 and compare its results with C's."""
    speed = w1_against_c(*((20, 3) if quick else (600, 11)))
    say(f"W1, simulator and C: {speed.detail}")
    ours, theirs = w1_latencies(5 if quick else 60)
    if theirs is not None:
        say(f"W1, sum of all latencies where nothing overflows: {ours} ns, and {theirs} ns in C")
    return {"w1_requests_per_s": speed.ours, "w1_ratio_to_c": speed.ratio}


def run_w2(quick: bool, say: Callable[[str], None]) -> dict[str, float | None]:
    """Measure W2 and compare its results with SimPy's."""
    speed, agreed = w2_against_simpy(20, 1, 3, 5.0) if quick else w2_against_simpy(100, 10, 7)
    say(f"W2, simulator and SimPy: {speed.detail}")
    for what, (ours, theirs) in agreed.items():
        say(f"W2, {what}: {ours:.4g}, and {theirs:.4g} in SimPy ({100 * (theirs / ours - 1) if ours else 0:+.2f}%)")
    return {"w2_requests_per_s": speed.ours, "w2_ratio_to_simpy": speed.ratio}


def run_simulate(quick: bool, say: Callable[[str], None]) -> dict[str, float | None]:
    """Measure the whole of ``simulate`` on W2."""
    speed = simulate_against_w2(300, 3, 5.0) if quick else simulate_against_w2(3600, 7)
    say(f"W2 through the policy loop, and bare: {speed.detail}")
    return {"simulate_requests_per_s": speed.ours, "simulate_ratio_to_w2": speed.ratio}


def run_env(quick: bool, say: Callable[[str], None]) -> dict[str, float | None]:
    """Measure 64 worlds stepped in one call at 200 requests a step, against one long run of the same load."""
    worlds, steps, interval_s = (4, 20, 10.0) if quick else (64, 150, 10.0)
    rate = 200 / interval_s
    plain = load_scenario("standard")
    case = w2(10, rate * mean_work(plain))
    scenario, seconds = case.scenario, int((steps + 40) * interval_s)
    target = np.array(case.decision.machines, np.int64)

    def load(length: int, mean: float, seed: int) -> Workload:
        counts = np.random.default_rng(seed).poisson(mean, length).astype(np.int64)
        return replace(case.workload, seconds=length, counts=counts, times_ns=None)

    many = Worlds([scenario] * worlds, [load(seconds, rate, e) for e in range(worlds)], interval_s)
    many.reset(range(worlds))
    for world in many.worlds:
        world.write_routes(case.decision.routes)
    tile = [np.tile(np.array(row, np.int64), (worlds, 1)) for row in (target, case.decision.batch_max)]
    wait = np.tile(np.array([round(x * 1e9) for x in case.decision.batch_wait_s], np.int64), (worlds, 1))
    for _ in range(30):  # boots and cold starts
        many.advance(*tile, wait)
    begun = time.process_time()
    for _ in range(steps):
        many.advance(*tile, wait)
    step_s = (time.process_time() - begun) / steps / worlds
    alone = Simulator(scenario, load(seconds, rate, 0), interval_s, histogram=False)
    alone.reset(0)
    alone.advance(case.decision)
    begun = time.process_time()
    while not alone.done:
        alone.advance(case.decision)
    alone_s = (time.process_time() - begun) / (seconds / interval_s - 1)
    say(f"{worlds} worlds at 200 requests a step: {1 / step_s:,.0f} steps/s, {alone_s / step_s:.1f} x one run's")
    return {
        "env_steps_per_s": 1 / step_s,
        "env_requests_per_s": 200 / step_s,
        "env_ratio_to_simulator": alone_s / step_s,
    }


def run_controller(quick: bool, say: Callable[[str], None]) -> dict[str, float | None]:
    """Measure decisions per second of training by PPO, learning included, and how long the controller takes.

    Its window is long enough for a search in the background, which a live run does not wait for.
    """
    from selfserve.controller import load
    from selfserve.policies import make_policy
    from selfserve.ppo import train_ppo
    from selfserve.studies.controller import nets

    stamps: list[tuple[float, float]] = []
    train_ppo(
        4096 if quick else 4 * 2048,
        SEED,
        60,
        progress=lambda row: stamps.append((row["decisions"], time.perf_counter())),
    )
    steps_per_s = (stamps[-1][0] - stamps[0][0]) / (stamps[-1][1] - stamps[0][1])
    policy, scenario, took = make_policy("controller", waits=False), load_scenario("standard"), []
    workload = w2(600, 5.0).workload if quick else w2(5400).workload
    begun = time.perf_counter()
    load(next(iter(nets().values())))
    load_s = time.perf_counter() - begun

    class Timed:
        interval_s = scenario.interval_s

        def reset(self, scenario: Scenario, history: np.ndarray) -> None:
            policy.reset(scenario, history)

        def decide(self, observation: Observation) -> Decision:
            begun = time.perf_counter()
            decision = policy.decide(observation)
            took.append(1000 * (time.perf_counter() - begun))
            return decision

    simulate(scenario, workload, Timed(), SEED)
    p99 = float(np.quantile(took, 0.99))
    say(
        f"PPO: {steps_per_s:,.0f} decisions/s; controller: {p99:.2f} ms a decision at p99,"
        f" {np.median(took):.2f} at p50, a net loads in {load_s:.3f} s"
    )
    return {"ppo_steps_per_s": steps_per_s, "decision_p99_ms": p99, "load_s": load_s}


PARTS = {"env": run_env, "w1": run_w1, "w2": run_w2, "simulate": run_simulate, "controller": run_controller}


def run(quick: bool = False, progress: bool = True, only: str | None = None) -> dict[str, float | None]:
    """Measure everything, or one part.

    Args:
        quick: sizes that show that everything works; too small to trust the speeds.
        progress: print a line on stderr for each result.
        only: a key of ``PARTS``.

    Returns:
        ``KEYS`` with requests per CPU second of one core, and ratios.
    """
    say: Callable[[str], None] = (
        (lambda line: print(line, file=sys.stderr, flush=True)) if progress else lambda line: None
    )
    found: dict[str, float | None] = dict.fromkeys(KEYS)
    for name, part in PARTS.items():
        if only in (None, name):
            found |= part(quick, say)
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    args = parser.parse_args()
    print(json.dumps(run(args.quick, only=args.only)))


if __name__ == "__main__":
    main()
