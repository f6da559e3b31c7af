"""The bound itself: count, relax, solve, certify; and the bound that a finished run is measured against."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from selfserve.bound.certificate import Prices, dearest_batch, repair, value
from selfserve.bound.counting import SlotCounts, coarsen, count_slots
from selfserve.bound.luck import best_theta, credit, margin
from selfserve.bound.options import Option, class_options, machine_kinds
from selfserve.bound.relaxation import Relaxation, relax
from selfserve.bound.short_slots import piecewise_prices, short_slot_s
from selfserve.bound.solver import Solution, solve
from selfserve.errors import InputError
from selfserve.scenario import Scenario
from selfserve.simulator.draws import lognormal_table
from selfserve.workload import Workload

if TYPE_CHECKING:
    from selfserve.simulator import Result

COARSE = 6
"""Slots merged for a first look at a window."""
FEW_SLOTS = 1000
"""Up to here rows that link all slots are kept in the programme."""
MOST_SLOTS = 10_000
"""Longer windows get longer slots, so that a bound takes a minute at most."""
CLOSE = 0.99
"""A run's bound is solved anew if the prices without violations prove less than this share of the strict bound."""
_KEPT = 8
_solved: OrderedDict[str, _Solved] = OrderedDict()


@dataclass(frozen=True)
class Bound:
    """A lower bound on the dollars of every run of a window.

    Attributes:
        total_usd: optimum of the relaxation.
        certificate_usd: what is proven, luck of the draws included: no run is cheaper (see ``luck``).
        method: how the certificate was found.
        seconds: time taken.
        split: dollars of the optimum by pool name.
        violations: per class, the share of requests that may be late, below the floor or unanswered.
        slot_s: length of a slot.
        relaxation: the programme.
        solution: its optimum.
        names: pool, model and class names.
    """

    total_usd: float
    certificate_usd: float
    method: str
    seconds: float
    split: dict[str, float]
    violations: tuple[float, ...]
    slot_s: float
    start_s: float
    relaxation: Relaxation | None
    solution: Solution | None
    names: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

    @property
    def plan(self) -> pd.DataFrame:
        """The optimum as a tidy table: ``start_s, quantity, pool, model, class, value``, a row per slot and thing.

        Quantities: ``ready`` (mean machines), ``launches`` (machines), ``served`` (requests) and ``backlog`` (requests
        that wait at the slot's end). Times are seconds from the window's start; names that do not apply are empty.
        """
        columns = ["start_s", "quantity", "pool", "model", "class", "value"]
        r, x = self.relaxation, self.solution
        if r is None or x is None:
            return pd.DataFrame(columns=columns)
        pools, models, classes = self.names
        starts = self.start_s + np.cumsum(r.lengths) - r.lengths
        parts = []
        for v, kind in enumerate(r.kinds):
            parts += [
                ("ready", pools[kind.pool], "", "", x.ready[:, v]),
                ("launches", pools[kind.pool], "", "", x.launch[:, v]),
            ]
        for k, mine in enumerate(r.options):
            parts += [
                ("served", pools[o.pool], models[o.model], classes[k], x.serve[k][:, i]) for i, o in enumerate(mine)
            ]
            parts.append(("backlog", "", "", classes[k], x.wait[:, k]))
        return pd.concat(
            [pd.DataFrame(dict(zip(columns, (starts, *part), strict=True))) for part in parts], ignore_index=True
        )


@dataclass(frozen=True)
class _Solved:
    """A solved relaxation with what re-using its prices for other allowances takes."""

    scenario: Scenario
    counts: SlotCounts
    pools: tuple[int, ...]
    violations: np.ndarray
    reached: Sequence[np.ndarray | None]
    theta: float
    relaxation: Relaxation
    solution: Solution
    certificate: float

    def under(self, violations: np.ndarray, reached: Sequence[np.ndarray | None]) -> float:
        """Return what these prices prove for other allowances."""
        r = _relax(self.scenario, self.counts, self.pools, violations, reached, self.theta)
        return _certify(self.scenario, self.pools, r, self.solution.prices, self.theta)


def _spread_factors(scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """Return the equally likely factors of service and boot times."""
    return lognormal_table(scenario.service.spread) / 65536, lognormal_table(scenario.vm.boot_spread) / 65536


def _relax(
    scenario: Scenario,
    counts: SlotCounts,
    pools: Sequence[int],
    violations: np.ndarray,
    reached: Sequence[np.ndarray | None],
    theta: float,
) -> Relaxation:
    boot = _spread_factors(scenario)[1]
    dearest = max((k.usd_per_s * k.boot_s for k in machine_kinds(scenario, pools)), default=0.0)
    boot_credit = credit(boot, theta * dearest)
    return relax(scenario, counts, pools, violations=violations, reached=reached, boot_credit=boot_credit)


def _every_option(scenario: Scenario, pools: Sequence[int]) -> tuple[tuple[Option, ...], ...]:
    kinds = machine_kinds(scenario, pools)
    return tuple(tuple(class_options(scenario, c, kinds, pools)) for c in scenario.classes)


def _certify(scenario: Scenario, pools: Sequence[int], r: Relaxation, prices: Prices, theta: float) -> float:
    """Return what prices prove, never below 0."""
    fixed = repair(r, prices)
    if theta == 0.0:
        return max(0.0, value(r, fixed))
    stake = theta * dearest_batch(r, fixed, _every_option(scenario, pools))
    return max(0.0, value(r, fixed, credit(_spread_factors(scenario)[0], stake)) - margin(theta))


def _theta(scenario: Scenario, pools: Sequence[int], r: Relaxation, x: Solution) -> float:
    """Choose the theta of ``luck`` from a coarse look at the window (0 if no time is random)."""
    service, boot = _spread_factors(scenario)
    if service[0] == service[-1] and boot[0] == boot[-1]:
        return 0.0
    batch = dearest_batch(r, repair(r, x.prices), _every_option(scenario, pools))
    launch = max((k.usd_per_s * k.boot_s for k in r.kinds), default=0.0)
    return best_theta(x.usd, batch, service, launch, float(x.launch.sum()), boot)


def _links(coarse: Relaxation, x: Solution, fine: Relaxation) -> np.ndarray:
    """Return prices from long slots for the rows of short ones that link many slots."""
    known = {(w.cls, w.index): price for w, price in zip(coarse.windows, x.links, strict=False)}
    mean = [known.get((w.cls, w.index), 0.0) for w in fine.windows]
    return np.append(mean, x.links[len(coarse.windows) :])


def _short_slots(
    scenario: Scenario, workload: Workload, seed: int, pools: tuple[int, ...], slot_s: float, case: _Solved
) -> float:
    """Return what short slots prove, for the allowances of a case solved on longer ones."""
    parts = max(1, round(slot_s / short_slot_s(scenario, workload.seconds - scenario.warmup_s)))
    counts = count_slots(workload, scenario, seed, slot_s / parts)
    r = _relax(scenario, counts, pools, case.violations, case.reached, case.theta)
    long, x = case.relaxation, case.solution
    prices = piecewise_prices(r, _links(long, x, r), long, repair(long, x.prices))
    return _certify(scenario, pools, r, prices, case.theta)


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(pickle.dumps(parts)).hexdigest()


def _solve(
    scenario: Scenario,
    workload: Workload,
    seed: int,
    pools: tuple[int, ...],
    slot_s: float,
    violations: np.ndarray,
    reached: Sequence[np.ndarray | None],
) -> _Solved:
    """Solve a case, or find it among the last ones."""
    key = _fingerprint(
        scenario,
        workload.counts,
        workload.times_ns,
        workload.thresholds,
        seed,
        pools,
        slot_s,
        violations,
        list(reached),
    )
    if key in _solved:
        _solved.move_to_end(key)
        return _solved[key]
    counts = count_slots(workload, scenario, seed, slot_s)
    first = relax(scenario, coarsen(counts, COARSE), pools, violations=violations, reached=reached)
    look = solve(first)
    theta = _theta(scenario, pools, first, look)
    r = _relax(scenario, counts, pools, violations, reached, theta)
    # where requests may be dropped, rows that link all slots make the simplex method crawl
    priced = bool(r.allowed.any()) and r.slots > FEW_SLOTS
    solution = solve(r, _links(first, look, r) if priced else None)
    certificate = _certify(scenario, pools, r, solution.prices, theta)
    _solved[key] = _Solved(scenario, counts, pools, violations, reached, theta, r, solution, certificate)
    while len(_solved) > _KEPT:
        _solved.popitem(last=False)
    return _solved[key]


def _slot_length(workload: Workload, scenario: Scenario, slot_s: float) -> float:
    """Lengthen slots by whole factors until a window has few enough."""
    slots = max(0.0, workload.seconds - scenario.warmup_s) / slot_s
    return slot_s * max(1, int(np.ceil(slots / MOST_SLOTS)))


def _pools(scenario: Scenario, resources: Sequence[str] | None) -> tuple[int, ...]:
    names = [p.name for p in scenario.pools]
    if resources is None:
        return tuple(range(len(names)))
    for name in resources:
        if name not in names:
            raise InputError(
                f"resources: pool {name!r} is not in scenario {scenario.name} (its pools: {', '.join(names)})"
            )
    return tuple(i for i, name in enumerate(names) if name in resources)


def _shares(scenario: Scenario, violations: float | Sequence[float] | None) -> np.ndarray:
    shares = np.broadcast_to(
        np.asarray(0.0 if violations is None else violations, dtype=float), (len(scenario.classes),)
    )
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InputError(f"violations: {violations}: right is a share from 0 to 1, or one for each class")
    return shares.copy()


def _split(r: Relaxation, x: Solution, pools: Sequence[str]) -> dict[str, float]:
    usd = dict.fromkeys(pools, 0.0)
    for v, kind in enumerate(r.kinds):
        rent = float((x.ready[:, v] * r.lengths).sum()) * kind.usd_per_s
        usd[pools[kind.pool]] += rent + float((x.launch[:, v] * r.boot_usd[:, v]).sum())
    for mine, served in zip(r.options, x.serve, strict=True):
        for i, o in enumerate(mine):
            usd[pools[o.pool]] += o.usd * float(served[:, i].sum())
    return usd


def bound(
    workload: Workload,
    scenario: Scenario,
    seed: int = 0,
    *,
    resources: Sequence[str] | None = None,
    violations: float | Sequence[float] | None = None,
    accuracy: Mapping[int, np.ndarray] | None = None,
    effort: Literal["lp", "cuts"] = "lp",
    slot_s: float = 10.0,
) -> Bound:
    """Bound from below what any policy can pay for a window.

    Args:
        workload: the window's arrivals.
        scenario: prices and physics.
        seed: of the arrivals.
        resources: names of the pools that may be used (default: all).
        violations: share of requests that may be late, below their floor or unanswered, one number or one a class.
        accuracy: class index to the mean accuracy reached in each of its windows; a window then need not reach more.
        effort: ``lp`` solves the relaxation; ``cuts`` also looks at bursts inside its slots (``short_slots``).
        slot_s: length of a slot, seconds; multiplied where the window would have over ``MOST_SLOTS``.

    Raises:
        InputError: an unknown pool, a share outside 0 to 1, or no plan that serves every request in time.
    """
    started = time.perf_counter()
    pools, shares = _pools(scenario, resources), _shares(scenario, violations)
    reached = [None if accuracy is None else accuracy.get(k) for k in range(len(scenario.classes))]
    slot = _slot_length(workload, scenario, slot_s)
    names = (
        tuple(p.name for p in scenario.pools),
        tuple(m.name for m in scenario.models),
        tuple(c.name for c in scenario.classes),
    )
    shared = (tuple(shares.tolist()), slot, scenario.warmup_s)
    if workload.counts[int(scenario.warmup_s) :].sum() == 0:
        zero = dict.fromkeys(names[0], 0.0)
        return Bound(0.0, 0.0, effort, time.perf_counter() - started, zero, *shared, None, None, names)
    case = _solve(scenario, workload, seed, pools, slot, shares, reached)
    r, x, certificate = case.relaxation, case.solution, case.certificate
    if effort == "cuts":
        certificate = max(certificate, _short_slots(scenario, workload, seed, pools, slot, case))
    total = max(x.usd, certificate)
    seconds = time.perf_counter() - started
    return Bound(total, certificate, effort, seconds, _split(r, x, names[0]), *shared, r, x, names)


def oracle_for(result: Result, workload: Workload, scenario: Scenario) -> Bound:
    """Bound what a run had to pay at least, given its own violations and the accuracy that it reached, on all pools.

    ``cost_to_oracle`` is the run's cost over this ``certificate_usd``, hence at least 1. The prices of the bound
    without violations prove a bound with them too, and all runs of a window share that; where they prove too little,
    the bound is solved for this run.
    """
    totals = result.class_totals
    given_up = (totals["late_or_below"] + totals["rejected"]).to_numpy(dtype=float)
    shares = given_up / np.maximum(1.0, totals["requests"].to_numpy(dtype=float))
    accuracy: dict[int, np.ndarray] = {}
    for k, c in enumerate(scenario.classes):
        mine = result.windows[result.windows["class"] == c.name].sort_values("start_s")
        if c.mean_accuracy_pct is not None:
            accuracy[k] = (mine["accuracy_sum"] / mine["answers"].clip(lower=1)).to_numpy(dtype=float)
    try:
        strict = bound(workload, scenario, result.seed)
    except InputError:  # impossible without violations: solve for those of this run
        return bound(workload, scenario, result.seed, violations=shares.tolist(), accuracy=accuracy)
    if strict.relaxation is None:
        return strict
    reached = [accuracy.get(k) for k in range(len(scenario.classes))]
    pools = _pools(scenario, None)
    case = _solve(scenario, workload, result.seed, pools, strict.slot_s, np.zeros(len(shares)), [None] * len(shares))
    proven = case.under(shares, reached)
    if proven >= CLOSE * strict.certificate_usd:
        return replace(strict, certificate_usd=proven, method="prices", violations=tuple(shares.tolist()))
    own = bound(workload, scenario, result.seed, violations=shares.tolist(), accuracy=accuracy)
    return replace(own, certificate_usd=max(own.certificate_usd, proven))
