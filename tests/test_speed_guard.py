"""What keeps the simulator fast, checked by counting and looking, not by a clock.

``NUMBA_DISABLE_JIT=1 python tests/test_speed_guard.py MACHINES LOAD FLOW`` prints how many steps the interpreter takes
for a request.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import NO_HURRY_S, pool_of, scenario_of, steady, to, workload_of
from numba import njit
from numba.core.registry import CPUDispatcher

import selfserve.simulator
from selfserve.protocol import Admit, Decision, Step
from selfserve.scenario import FunctionPhysics
from selfserve.simulator import Simulator, simulate
from selfserve.simulator.engine import advance

SMALL, LARGE = 50, 800
MEMORY_OF_THE_WINDOW = {"counts_at", "thresholds_at", "windows"}
"""Arrays of a world that hold one entry a second, a minute or an accuracy window."""


FLOWS = {
    "fits": (1, (to((0, 0, Admit.IF_FITS), (1, 0)),)),
    "leaves": (0, (to(Step(0, 0, leave_slack_s=NO_HURRY_S - 5), (1, 0)), to((1, 0)))),
}
"""Share of the machines and routes: to functions what does not fit; half to each, all on to functions after 5 s."""


def steps_for_a_request(machines: int, load: float, flow: str) -> float:
    """Return interpreter steps for a request in a busy pool; kernels must not be compiled (NUMBA_DISABLE_JIT)."""
    rate, seconds = machines // 10, 10
    pools = pool_of("vm", [10 * load]), pool_of("fn", [10 * load], "function")
    workload = workload_of([0] * seconds + [rate] * 3 * seconds)
    scenario = scenario_of(*pools, spread=0.3, function=FunctionPhysics(concurrency=machines // 4))
    simulator = Simulator(scenario, workload, seconds, histogram=False)
    simulator.reset(0)
    share, routes = FLOWS[flow]
    decision = Decision((share * machines, 0), (routes,))
    for _ in range(2):  # the machines boot, and fill
        simulator.advance(decision)
    steps = 0

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal steps
        steps += 1
        return trace

    for _ in range(2):
        sys.settrace(trace)
        simulator.advance(decision)
        sys.settrace(None)
    return steps / (2 * rate * seconds)


def counted(machines: int, load: float, flow: str) -> float:
    """Return ``steps_for_a_request`` of an interpreter that compiles nothing."""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(machines), str(load), flow]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


@pytest.mark.parametrize(("load", "flow"), [(0.9, "fits"), (1.5, "fits"), (1.5, "leaves")])
def test_work_for_a_request_grows_at_most_with_the_logarithm_of_the_fleet(load: float, flow: str) -> None:
    small, large = counted(SMALL, load, flow), counted(LARGE, load, flow)
    assert small > 50, "the kernels were not interpreted"
    assert large - small < 20 * math.log2(LARGE / SMALL)


def references_counted(function: CPUDispatcher) -> bool:
    """Return whether the compiled code of a function that was called counts references to arrays."""
    name = f"{Path(function.py_func.__code__.co_filename).stem}.{function.py_func.__qualname__}"
    (folder, compiled) = Path(function.stats.cache_path), f"{name}-{function.py_func.__code__.co_firstlineno}.*.nbc"
    code = b"".join(path.read_bytes() for path in folder.glob(compiled))
    assert function.py_func.__name__.encode() in code
    return b"NRT_incref" in code or b"NRT_decref" in code


@njit(cache=True)
def counts_references(rows, i):
    row, other = rows[i], rows[i + 1]
    if row[0] > other[0]:
        row = other
    return row[1]


def test_kernels_count_no_references() -> None:
    """Reference counting in ``advance`` would cost up to 200 ns a request, and nothing else would show it."""
    counts_references(np.ones((3, 3)), 0)
    simulate(scenario_of(pool_of("vm", [0.1])), workload_of([5] * 20), steady((1,), to((0, 0))))
    assert references_counted(counts_references), "this test can see reference counting"
    assert not references_counted(advance)


def test_every_kernel_of_the_simulator_is_compiled_without_reference_counting() -> None:
    names = [module.name for module in pkgutil.iter_modules(selfserve.simulator.__path__)]
    modules = [importlib.import_module(f"selfserve.simulator.{name}") for name in names]
    kernels = {k.py_func.__name__: k for m in modules for k in vars(m).values() if isinstance(k, CPUDispatcher)}
    assert "advance" in kernels
    assert [name for name, k in kernels.items() if k.targetoptions.get("_nrt") is not False] == []


def test_memory_does_not_grow_with_the_length_of_the_window() -> None:
    def bytes_of(hours: int) -> dict[str, int]:
        counts = np.tile(np.arange(20), 180 * hours)
        scenario = scenario_of(pool_of("vm", [0.1]), pool_of("fn", [0.1], "function"), slos_s=(0.5, 5.0), spread=0.3)
        route = to((0, 0, Admit.IF_FITS), (1, 0))
        simulator = Simulator(scenario, workload_of(counts, classes=2), 10.0)
        simulator.reset(0)
        while not simulator.done:
            simulator.advance(Decision((1, 0), ((route,), (route,))))
        assert simulator.finish().summary["requests"] == counts.sum()
        arrays = simulator.world.arrays()
        assert arrays.keys() > MEMORY_OF_THE_WINDOW
        return {name: a.nbytes for name, a in arrays.items() if name not in MEMORY_OF_THE_WINDOW}

    assert bytes_of(24) == bytes_of(1)


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)  # 64-bit arithmetic wraps around, on purpose
    print(json.dumps(steps_for_a_request(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])))
