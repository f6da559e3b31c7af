"""What may serve a class, at the least work or dollars that the physics allow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from selfserve.scenario import NS, Pool, RequestClass, Scenario, to_ns
from selfserve.simulator.draws import lognormal_table

UNIT = 65536  #: quantile tables are in units of 1/65536 (physics rule 2.3)


@dataclass(frozen=True)
class Kind:
    """Machines of one VM pool, on demand or spot."""

    pool: int
    usd_per_s: float
    slots: int
    boot_s: float  #: mean seconds from running to ready, all of them billed
    first_ready_s: float  #: no machine is ready before this time, seconds from the window's start
    most_ready: float  #: most machines that can serve at once


@dataclass(frozen=True)
class Option:
    """A model on a pool as a class may use it, a batch shared evenly by its requests."""

    pool: int
    model: int
    kind: int  #: index of the machine kind, -1 for functions
    work_s: float  #: least slot-seconds a request (functions: 0)
    usd: float  #: least dollars a request (machines: 0)
    accuracy: float
    largest: int  #: largest batch that can be in time
    batch_usd: float  #: dollars of execution of the dearest such batch (machines: 0)
    combo: int = -1  #: first stage of this combination


@dataclass(frozen=True)
class Combo:
    """A cascade or ensemble as the in-time answers of a run used it (physics rule 10)."""

    cls: int
    models: tuple[int, ...]  #: of its stages
    visits: tuple[float, ...]  #: share of its answers that entered each stage; the first is 1
    accuracy: float  #: combined, percent


def largest_batch(pool: Pool) -> int:
    """Return the largest batch that all models of a pool were profiled with (physics rule 5.7)."""
    return min(int(np.flatnonzero(pool.service_ns[m])[-1]) for m in pool.models)


def machine_kinds(scenario: Scenario, allowed: Collection[int]) -> list[Kind]:
    """Return the VM pools among the ``allowed`` pool indices."""
    boot = to_ns(scenario.vm.boot_s)
    least_boot = boot * int(lognormal_table(scenario.vm.boot_spread)[0]) // UNIT
    first = (to_ns(scenario.vm.pending_s) + least_boot) / NS
    slowest = int(lognormal_table(scenario.service.spread)[-1])
    kinds = []
    for p in sorted(allowed):
        pool = scenario.pools[p]
        if not pool.is_function:
            # A released machine works on for one service at most. While no new machine can become ready in that time,
            # all that serve were once counted together, so that the pool's limit holds for them too.
            longest = int(pool.service_ns.max()) * slowest // UNIT / NS
            limit = float(pool.max_machines) if longest <= first else np.inf
            kinds.append(Kind(p, pool.usd_per_hour / 3600, pool.slots, boot / NS, first, limit))
    return kinds


def class_options(
    scenario: Scenario, wanted: RequestClass, kinds: list[Kind], allowed: Collection[int]
) -> list[Option]:
    """Return the options of a class that meet its floor and can be in time, dominated ones included.

    A batch is in time if its luckiest service is. Service times are rounded down to nanoseconds after the draw is
    applied (rule 2.3): a factor x on a mean S gives more than x S - 1 >= x (S - 1/least x), hence the small cut.
    A function pool of one model may be provisioned and never idle: its price is the lower of the two.
    """
    luckiest = int(lognormal_table(scenario.service.spread)[0])
    options = []
    for p in sorted(allowed):
        pool = scenario.pools[p]
        provisioned = pool.usd_per_hour + pool.usd_per_busy_hour_provisioned if len(pool.models) == 1 else np.inf
        price = min(pool.usd_per_busy_hour, provisioned) / 3600
        for m in pool.models:
            mean = {b: int(pool.service_ns[m, b]) for b in range(1, largest_batch(pool) + 1)}
            sizes = [b for b, ns in mean.items() if ns and max(1, ns * luckiest >> 16) <= to_ns(wanted.slo_s)]
            accuracy = scenario.models[m].accuracy_pct
            if accuracy < wanted.min_accuracy_pct or not sizes:
                continue
            seconds = {b: max(0.0, mean[b] - UNIT / luckiest) / NS for b in sizes}
            if pool.is_function:
                usd = min((s * price + pool.usd_per_request) / b for b, s in seconds.items())
                dearest = max(seconds.values()) * price
                options.append(Option(p, m, -1, 0.0, usd, accuracy, max(sizes), dearest))
            else:
                kind = next(i for i, x in enumerate(kinds) if x.pool == p)
                work = min(s / b for b, s in seconds.items())
                options.append(Option(p, m, kind, work, 0.0, accuracy, max(sizes), 0.0))
    return options


def stage_options(scenario: Scenario, combo: Combo, kinds: list[Kind], allowed: Collection[int]) -> list[list[Option]]:
    """Return the options of each stage of a combination; the class's floor holds for the whole of it.

    The draw of a first stage gives those of the later ones away (physics rule 10.3), so a policy might choose by them:
    later stages count with the luckiest draw instead of with the mean and its luck (``luck``).
    """
    wanted = replace(scenario.classes[combo.cls], min_accuracy_pct=0.0)
    every = class_options(scenario, wanted, kinds, allowed)
    sure = int(lognormal_table(scenario.service.spread)[0]) / UNIT
    stages = [[o for o in every if o.model == model] for model in combo.models]
    return stages[:1] + [[replace(o, work_s=o.work_s * sure, usd=o.usd * sure) for o in mine] for mine in stages[1:]]


def prune(options: list[Option], needs_mean: bool) -> list[Option]:
    """Drop options that others replace at no more work or dollars, in the relaxation exactly.

    Within a machine kind (and among functions) an option goes if another has no more cost and, where the class has a
    mean target, no less accuracy; or if a mix of two others does, since a mix of options is one too.
    """
    kept: list[Option] = []
    for kind in sorted({o.kind for o in options}):
        mine = [o for o in options if o.kind == kind]
        mine.sort(key=lambda o: (o.work_s + o.usd, -o.accuracy, o.pool, o.model))
        hull = mine[:1]
        for o in mine[1:] if needs_mean else ():  # upper left hull of (cost, accuracy), by rising cost
            if o.accuracy > hull[-1].accuracy:
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
    for each option of a, one of the same class with no less accuracy at no more dollars of ready time (and, if it is
    the first stage of a combination, one that needs no other later stages).
    """

    def usd(o: Option) -> float:
        return o.work_s * kinds[o.kind].usd_per_s / kinds[o.kind].slots

    left = list(range(len(kinds)))
    for a in range(len(kinds)):
        for b in left:
            if a == b or kinds[b].most_ready != np.inf:
                continue
            pairs = [
                (o, [x for x in mine if x.kind == b and x.combo in (-1, o.combo)])
                for mine in options for o in mine if o.kind == a
            ]  # fmt: skip
            if all(any(x.accuracy >= o.accuracy and usd(x) <= usd(o) for x in theirs) for o, theirs in pairs):
                left.remove(a)
                break
    place = {-1: -1} | {old: new for new, old in enumerate(left)}
    kept = [[replace(o, kind=place[o.kind]) for o in mine if o.kind in place] for mine in options]
    return kept, [kinds[v] for v in left]
