"""Small scenarios, workloads and policies for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfserve.protocol import Admit, Decision, Observation, Route, Step
from selfserve.scenario import (
    NS,
    FunctionPhysics,
    Model,
    Pool,
    RequestClass,
    Scenario,
    ServicePhysics,
    SpotPhysics,
    VmPhysics,
    to_ns,
)
from selfserve.workload import Workload

NO_HURRY_S = 1e6
"""An SLO that no request misses: the order of the queue is then the order of arrival."""


def make_pool(name: str, market: str, service_ns: np.ndarray, believed_factor: float = 1.0, **others: object) -> Pool:
    """A pool with the models that ``service_ns`` [M, B + 1] has times for."""
    function = market == "function"
    service_ns = np.asarray(service_ns, np.int64)
    models = tuple(int(m) for m in np.flatnonzero(service_ns[:, 1]))
    settings: dict[str, object] = {
        "resource": "lambda" if function else "c6i.large",
        "slots": 1,
        "threads": 1,
        "memory_mb": 1769.0,
        "max_machines": 10_000,
        "usd_per_hour": 0.015 if function else 0.085,
        "usd_per_busy_hour": 0.105 if function else 0.0,
        "usd_per_busy_hour_provisioned": 0.061 if function else 0.0,
        "usd_per_request": 2e-7 if function else 0.0,
    }
    return Pool(
        name=name,
        market=market,
        models=models,
        service_ns=service_ns,
        believed_ns=np.round(service_ns * believed_factor).astype(np.int64),
        sources=("measured",) * len(models),
        **(settings | others),  # type: ignore[arg-type]
    )


def pool_of(name: str, service_s: Sequence[float], market: str = "on_demand", **others: object) -> Pool:
    """Return a pool where model m serves one request in ``service_s[m]`` seconds, a batch of b in (1 + b) / 2 of that.

    A model with service time 0 is not resident.
    """
    service = np.array([[0, *(to_ns(one * (1 + b) / 2) for b in range(1, 5))] for one in service_s], np.int64)
    return make_pool(name, market, service, **others)  # type: ignore[arg-type]


def scenario_of(
    *pools: Pool,
    slos_s: Sequence[float] = (NO_HURRY_S,),
    warmup_s: float = 0.0,
    spread: float = 0.0,
    vm: VmPhysics = VmPhysics(pending_s=0.0, boot_s=1.0, boot_spread=0.0),  # noqa: B008
    function: FunctionPhysics = FunctionPhysics(),  # noqa: B008
    spot: SpotPhysics = SpotPhysics(),  # noqa: B008
) -> Scenario:
    """Return a scenario with a class for each SLO, equal shares, and decisions every 10 s."""
    return Scenario(
        name="case",
        classes=tuple(RequestClass(f"class{k}", 1 / len(slos_s), slo) for k, slo in enumerate(slos_s)),
        pools=pools,
        models=tuple(Model(f"model{m}", 70.0 + m) for m in range(len(pools[0].service_ns))),
        interval_s=10.0,
        warmup_s=warmup_s,
        rate_scale=1.0,
        vm=vm,
        function=function,
        spot=spot,
        service=ServicePhysics(spread),
    )


def make_workload(
    seconds: int,
    counts: Sequence[int] | np.ndarray | None = None,
    times_ns: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
) -> Workload:
    """A window that starts where its trace starts, with one class unless thresholds say more."""
    if times_ns is not None:
        times_ns = np.sort(np.asarray(times_ns, np.int64))
        counts = np.bincount(times_ns // NS, minlength=seconds)
    assert counts is not None
    thresholds = np.array([[65536]]) if thresholds is None else thresholds
    history = np.zeros(0, np.int64)
    return Workload(
        "case", 0, seconds, np.asarray(counts, np.int64), times_ns, thresholds.astype(np.int64), history, 1.0, ""
    )


def workload_of(
    counts: Sequence[int] | np.ndarray | None = None, times_s: np.ndarray | None = None, classes: int = 1
) -> Workload:
    """Return a window of so many requests each second, or of exact times; classes have equal shares."""
    times_ns = None if times_s is None else np.round(np.asarray(times_s) * NS).astype(np.int64)
    shares = np.round(np.arange(1, classes + 1) * 65536 / classes).astype(np.int64)[np.newaxis]
    seconds = len(counts) if times_ns is None else int(times_ns.max() // NS) + 1  # type: ignore[arg-type]
    return make_workload(seconds, counts, times_ns, shares)


def to(*steps: Step | tuple[int, int] | tuple[int, int, Admit], weight: float = 1.0) -> Route:
    """Return a route of steps, each a ``Step`` or ``(pool, model)`` or ``(pool, model, admit)``."""
    return Route(tuple(s if isinstance(s, Step) else Step(*s) for s in steps), weight)


class Scripted:
    """A policy that plays decisions one after the other and then keeps to the last."""

    def __init__(self, *decisions: Decision, interval_s: float = 10.0):
        self.decisions, self.interval_s = decisions, interval_s

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        self.played = 0

    def decide(self, observation: Observation) -> Decision:
        self.played += 1
        return self.decisions[min(self.played, len(self.decisions)) - 1]


def steady(machines: Sequence[int], *routes: Route, interval_s: float = 10.0, **others: object) -> Scripted:
    """Return a policy that keeps a fleet, with one route for each class."""
    decision = Decision(tuple(machines), tuple((r,) for r in routes), **others)  # type: ignore[arg-type]
    return Scripted(decision, interval_s=interval_s)
