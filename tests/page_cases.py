"""Cases of a few requests on a few machines that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from cases import make_pool, make_workload, scenario_of
from twin_books import TwinResult
from twin_cases import Case

from selfserve.protocol import Decision, Route, Step
from selfserve.scenario import NS, Pool, SpotPhysics, VmPhysics, to_ns

Side = Callable[[Case], TwinResult]


def times(*seconds: float) -> np.ndarray:
    return np.array([to_ns(s) for s in seconds])


def vm(service_s: float | list[float] = 1.0, market: str = "on_demand", **others: object) -> Pool:
    """One model; service times of batches 1, 2, .. in seconds."""
    row = [service_s] if isinstance(service_s, float) else service_s
    return make_pool("vm", market, np.array([[0, *(to_ns(s) for s in row)]]), **others)  # type: ignore[arg-type]


def fn(service_s: float = 0.3, **others: object) -> Pool:
    return make_pool("fn", "function", np.array([[0, to_ns(service_s)]]), **others)  # type: ignore[arg-type]


def to(*steps: Step) -> tuple[tuple[Route, ...], ...]:
    """One class, one route."""
    return ((Route(steps),),)


def case(
    pools: list[Pool],
    arrivals: np.ndarray,
    decisions: list[Decision],
    slos_s: tuple[float, ...] = (1000.0,),
    interval_s: float = 10.0,
    seconds: int = 120,
    thresholds: list[list[int]] | None = None,
    **others: object,
) -> Case:
    """No warm-up, no spread, machines ready one second after the decision unless said otherwise."""
    settings: dict[str, object] = {
        "interval_s": interval_s,
        "vm": VmPhysics(0.0, 1.0, 0.0, 0.0),
        "spot": SpotPhysics(0.0),
    }
    scenario = replace(scenario_of(*pools, slos_s=slos_s), **(settings | others))  # type: ignore[arg-type]
    workload = make_workload(seconds, times_ns=arrivals, thresholds=np.array(thresholds or [[65536]]))
    count = -(-seconds * NS // to_ns(interval_s))
    decisions = decisions + [decisions[-1]] * (count - len(decisions))
    return Case(0, scenario, workload, decisions, interval_s, seed=0)
