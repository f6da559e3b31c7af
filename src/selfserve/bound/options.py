"""What may serve a class, at the least work or dollars that the physics allow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from selfserve.scenario import NS, Pool, RequestClass, Scenario, to_ns
from selfserve.simulator.draws import lognormal_table

UNIT = 65536
"""Quantile tables are in units of 1/65536 (physics rule 2.3)."""


@dataclass(frozen=True)
class Kind:
    """Machines of one VM pool, on demand or spot."""

    pool: int
    usd_per_s: float
    slots: int
    boot_s: float
    """Mean seconds from running to ready, all of them billed."""
    first_ready_s: float
    """No machine is ready before this time, seconds from the window's start."""
    most_ready: float
    """Most machines that can serve at once."""


@dataclass(frozen=True)
class Option:
    """A model on a pool as a class may use it, a batch shared evenly by its requests."""

    pool: int
    model: int
    kind: int
    """Index of the machine kind, -1 for functions."""
    work_s: float
    """Least slot-seconds a request (functions: 0)."""
    usd: float
    """Least dollars a request (machines: 0)."""
    accuracy: float
    largest: int
    """Largest batch that can be in time."""
    batch_usd: float
    """Dollars of execution of the dearest such batch (machines: 0)."""


def machine_kinds(scenario: Scenario, allowed: Collection[int]) -> list[Kind]:
    """Return the VM pools among the ``allowed`` pool indices."""
    boot = to_ns(scenario.vm.boot_s)
    least_boot = boot * int(lognormal_table(scenario.vm.boot_spread)[0]) // UNIT
    first = (to_ns(scenario.vm.pending_s) + least_boot) / NS
    slowest = int(lognormal_table(scenario.service.spread)[-1])
    kinds = []
    for p in sorted(allowed):
        pool = scenario.pools[p]
        if pool.is_function:
            continue
        # A released machine works on for one service at most. While no new machine can become ready in that time, all
        # that serve were once counted together, so that the pool's limit holds for them too.
        longest = int(pool.service_ns.max()) * slowest // UNIT / NS
        limit = float(pool.max_machines) if longest <= first else np.inf
        kinds.append(Kind(p, pool.usd_per_hour / 3600, pool.slots, boot / NS, first, limit))
    return kinds


def _batches_in_time(scenario: Scenario, pool: Pool, model: int, slo_ns: int) -> list[int]:
    """Return the batch sizes whose luckiest service is within the SLO."""
    luckiest = int(lognormal_table(scenario.service.spread)[0])
    largest = min(int(np.flatnonzero(pool.service_ns[m])[-1]) for m in pool.models)  # physics rule 5.7
    sizes = range(1, largest + 1)
    return [
        b
        for b in sizes
        if pool.service_ns[model, b] and max(1, int(pool.service_ns[model, b]) * luckiest >> 16) <= slo_ns
    ]


def _function_price(pool: Pool) -> float:
    """Return the least dollars per second of execution; a pool of one model may be provisioned and never idle."""
    on_demand = pool.usd_per_busy_hour
    provisioned = pool.usd_per_hour + pool.usd_per_busy_hour_provisioned
    return (min(on_demand, provisioned) if len(pool.models) == 1 else on_demand) / 3600


def class_options(
    scenario: Scenario, wanted: RequestClass, kinds: list[Kind], allowed: Collection[int]
) -> list[Option]:
    """Return the options of a class that meet its floor and can be in time, dominated ones included.

    Service times are rounded down to nanoseconds after the draw is applied (rule 2.3): a factor x on a mean S gives
    more than x S - 1 >= x (S - 1/least x), hence the small ``cut``.
    """
    luckiest = int(lognormal_table(scenario.service.spread)[0])
    cut = UNIT / luckiest
    options = []
    for p in sorted(allowed):
        pool = scenario.pools[p]
        for m in pool.models:
            accuracy = scenario.models[m].accuracy_pct
            sizes = _batches_in_time(scenario, pool, m, to_ns(wanted.slo_s))
            if accuracy < wanted.min_accuracy_pct or not sizes:
                continue
            seconds = {b: max(0.0, int(pool.service_ns[m, b]) - cut) / NS for b in sizes}
            if pool.is_function:
                price = _function_price(pool)
                usd = min((s * price + pool.usd_per_request) / b for b, s in seconds.items())
                dearest = max(seconds.values()) * price
                options.append(Option(p, m, -1, 0.0, usd, accuracy, max(sizes), dearest))
            else:
                kind = next(i for i, x in enumerate(kinds) if x.pool == p)
                work = min(s / b for b, s in seconds.items())
                options.append(Option(p, m, kind, work, 0.0, accuracy, max(sizes), 0.0))
    return options


def prune(options: list[Option], needs_mean: bool) -> list[Option]:
    """Drop options that others replace at no more work or dollars, in the relaxation exactly.

    Within a machine kind (and among functions) an option goes if another has no more cost and, where the class has a
    mean target, no less accuracy; or if a mix of two others does, since a mix of options is one too.
    """
    kept: list[Option] = []
    for kind in sorted({o.kind for o in options}):
        mine = sorted(
            (o for o in options if o.kind == kind), key=lambda o: (o.work_s + o.usd, -o.accuracy, o.pool, o.model)
        )
        if not needs_mean:
            kept.append(mine[0])
            continue
        hull: list[Option] = []
        for o in mine:  # upper left hull of (cost, accuracy), by rising cost
            if hull and o.accuracy <= hull[-1].accuracy:
                continue
            while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], o):
                hull.pop()
            hull.append(o)
        kept += hull
    return kept


def _gain(a: Option, b: Option) -> float:
    cost = (b.work_s + b.usd) - (a.work_s + a.usd)
    return (b.accuracy - a.accuracy) / cost if cost > 0 else np.inf


def without_dominated_kinds(options: list[list[Option]], kinds: list[Kind]) -> tuple[list[list[Option]], list[Kind]]:
    """Drop kinds that another kind replaces in every use at no more dollars (holds without integers).

    Boots last equally long in all kinds, so dollars per request decide: kind a goes if some unlimited kind b offers,
    for each option of a, one of the same class with no less accuracy at no more dollars of ready time.
    """

    def usd(o: Option) -> float:
        return o.work_s * kinds[o.kind].usd_per_s / kinds[o.kind].slots

    left = list(range(len(kinds)))
    for a in range(len(kinds)):
        for b in left:
            if a == b or kinds[b].most_ready != np.inf:
                continue
            pairs = [(o, [x for x in mine if x.kind == b]) for mine in options for o in mine if o.kind == a]
            if all(any(x.accuracy >= o.accuracy and usd(x) <= usd(o) for x in theirs) for o, theirs in pairs):
                left.remove(a)
                break
    place = {-1: -1} | {old: new for new, old in enumerate(left)}
    kept = [[replace(o, kind=place[o.kind]) for o in mine if o.kind in place] for mine in options]
    return kept, [kinds[v] for v in left]
