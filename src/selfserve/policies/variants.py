"""What the systems that choose models themselves share: a class's variants, with their rate, latency and price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfserve.planner import Planner
from selfserve.protocol import Observation


@dataclass(frozen=True, slots=True)
class Variant:
    """A model on a pool in batches of one size.

    Attributes:
        latency_s: p99 service time of a full batch.
        work_s: slot-seconds that a request takes in a full batch.
        machines: machines that one request/s keeps busy.
        usd: dollars a request on a machine that is always busy, or on a warm function.
    """

    pool: int
    model: int
    batch: int
    accuracy_pct: float
    latency_s: float
    work_s: float
    machines: float
    usd: float


def vm_pools(planner: Planner, pool: str | None, market: str | None = None) -> list[int]:
    """Return the VM pools of a market (default: the planner's), or the named one, which the planner has accepted."""
    specs, market = list(enumerate(planner.scenario.pools)), market or planner.resources.market
    return [p for p, spec in specs if (spec.market == market if pool is None else spec.name == pool)]


def batching_pays(planner: Planner, pool: int) -> bool:
    """Return whether full batches at least halve the work of a request, which tells accelerators from CPUs."""
    spec = planner.scenario.pools[pool]
    return any(2 * spec.service_s(m, spec.max_batch) <= spec.max_batch * spec.service_s(m) for m in spec.models)


def variant(planner: Planner, pool: int, model: int, batch: int = 1) -> Variant:
    """Return one variant."""
    spec = planner.scenario.pools[pool]
    ratio = spec.service_s(model, batch) / spec.service_s(model)
    work_s = spec.service_s(model, batch) / batch
    usd = (
        planner.functions.cost_usd(pool, model) if spec.is_function else work_s * spec.usd_per_hour / spec.slots / 3600
    )
    latency_s = planner.models.latency_s(pool, model) * ratio
    accuracy = float(planner.scenario.accuracy_pct[model])
    return Variant(pool, model, batch, accuracy, latency_s, work_s, work_s / spec.slots, usd)


def variants(
    planner: Planner,
    k: int,
    pools: Iterable[int],
    floor_pct: float,
    slo_share: float = 1.0,
    batches: Mapping[int, int] | None = None,
) -> list[Variant]:
    """Return the variants of at least ``floor_pct`` that answer class ``k`` within a share of its SLO.

    Cheapest first. ``batches`` are those of the pools (default 1). Where nothing fits, the fastest accurate enough,
    else the most accurate; empty only without pools.
    """
    specs, slo_s = planner.scenario.pools, slo_share * planner.scenario.classes[k].slo_s
    found = [variant(planner, p, m, (batches or {}).get(p, 1)) for p in pools for m in specs[p].models]
    above = [v for v in found if v.accuracy_pct >= floor_pct]
    fit = [v for v in above if v.latency_s <= slo_s]
    if not fit and found:
        fit = [min(above, key=lambda v: v.latency_s) if above else max(found, key=lambda v: v.accuracy_pct)]
    return sorted(fit, key=lambda v: (v.usd, -v.accuracy_pct))


def waiting(planner: Planner, seen: Observation, work_s: np.ndarray) -> np.ndarray:
    """Return the machine-seconds [P] that what waits for VMs will take, ``work_s`` [K] slot-seconds a request."""
    pools = enumerate(planner.scenario.pools)
    return np.array([0.0 if spec.is_function else seen.queued[p] @ work_s / spec.slots for p, spec in pools])


def fleet(
    planner: Planner,
    seen: Observation,
    rates: np.ndarray,
    pools: Sequence[int],
    work_s: np.ndarray,
    drain_s: float | None,
) -> tuple[int, ...]:
    """Return the machines [P] for ``rates`` [K] and what waits, where class k takes ``work_s[k]`` on ``pools[k]``."""
    load = np.zeros(len(planner.scenario.pools))
    np.add.at(load, list(pools), rates * work_s / [planner.scenario.pools[p].slots for p in pools])
    drain_s = planner.boot_horizon_s if drain_s is None else drain_s
    load += waiting(planner, seen, work_s) / max(drain_s, seen.interval_s)
    return planner.keep(seen, planner.resources.machines(load))
