"""The bound itself: count, relax, solve, certify; and the bound that a finished run is measured against."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from selfserve.bound import luck
from selfserve.bound.certificate import Prices, dearest_batch, repair, value
from selfserve.bound.counting import SlotCounts, coarsen, count_slots
from selfserve.bound.options import Combo, class_options, machine_kinds
from selfserve.bound.relaxation import Relaxation, relax
from selfserve.bound.short_slots import piecewise_prices, short_slot_s
from selfserve.bound.solver import Solution, solve
from selfserve.errors import InputError
from selfserve.protocol import Then
from selfserve.scenario import Scenario
from selfserve.simulator.draws import lognormal_table
from selfserve.workload import Workload

if TYPE_CHECKING:
    from selfserve.simulator import Result

COARSE = 6  #: slots merged for a first look at a window
FEW_SLOTS = 1000  #: up to here rows that link all slots are kept in the programme
MOST_SLOTS = 10_000  #: longer windows get longer slots, so that a bound takes a minute at most
CLOSE = 0.99
"""A run's bound is solved anew if the prices without violations prove less than this share of the strict bound."""
_KEPT = 8


@dataclass(frozen=True)
class Bound:
    """A lower bound on the dollars of every run of a window."""

    total_usd: float  #: optimum of the relaxation
    certificate_usd: float  #: what is proven, luck of the draws included: no run is cheaper (see ``luck``)
    method: str  #: how the certificate was found
    seconds: float  #: time taken
    split: dict[str, float]  #: dollars of the optimum by pool name
    violations: tuple[float, ...]  #: per class, the share of requests that may be late, below the floor or unanswered
    relaxation: Relaxation | None  #: the programme (None where nothing arrives)
    solution: Solution | None  #: its optimum
    scenario: Scenario

    @property
    def plan(self) -> pd.DataFrame:
        """The optimum as a tidy table: ``start_s, quantity, pool, model, class, value``, a row per slot and thing.

        Quantities: ``ready`` (mean machines), ``launches`` (machines), ``served`` (requests) and ``backlog`` (requests
        that wait at the slot's end). Times are seconds from the window's start; names that do not apply are empty.
        """
        columns = ["start_s", "quantity", "pool", "model", "class", "value"]
        r, x, s = self.relaxation, self.solution, self.scenario
        if r is None or x is None:
            return pd.DataFrame(columns=columns)
        parts: list[tuple[str, str, str, str, np.ndarray]] = []
        for v, kind in enumerate(r.kinds):
            name = s.pools[kind.pool].name
            parts += [("ready", name, "", "", x.ready[:, v]), ("launches", name, "", "", x.launch[:, v])]
        for k, (c, mine) in enumerate(zip(s.classes, r.options, strict=True)):
            for i, o in enumerate(mine):
                parts.append(("served", s.pools[o.pool].name, s.models[o.model].name, c.name, x.serve[k][:, i]))
            parts.append(("backlog", "", "", c.name, x.wait[:, k]))
        starts = s.warmup_s + np.cumsum(r.lengths) - r.lengths
        frames = [pd.DataFrame(dict(zip(columns, (starts, *part), strict=True))) for part in parts]
        return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class _Case:
    """A question: what serves which requests, and how much of each class may be given up."""

    workload: Workload
    scenario: Scenario
    seed: int
    pools: tuple[int, ...]
    slot_s: float
    violations: tuple[float, ...]
    reached: tuple[np.ndarray | None, ...]
    combos: tuple[Combo, ...] = ()

    def relax(self, counts: SlotCounts, theta: float | None) -> Relaxation:
        """Set up the relaxation, its boots at what luck leaves of them (None: in the mean)."""
        s, shares = self.scenario, np.array(self.violations)
        dearest = max((k.usd_per_s * k.boot_s for k in machine_kinds(s, self.pools)), default=0.0)
        left = 1.0 if theta is None else luck.credit(_factors(s.vm.boot_spread), theta * dearest)
        return relax(s, counts, self.pools, shares, self.reached, left, combos=self.combos)

    def dearest_batch(self, r: Relaxation, fixed: Prices) -> float:
        kinds = machine_kinds(self.scenario, self.pools)
        every = [class_options(self.scenario, c, kinds, self.pools) for c in self.scenario.classes]
        combined = [[o for o in mine if o.combo >= 0] for mine in r.options]
        return dearest_batch(r, fixed, [a + b for a, b in zip(every, combined, strict=True)])

    def certify(self, r: Relaxation, prices: Prices, theta: float) -> float:
        """Return what prices prove, never below 0."""
        fixed = repair(r, prices)
        if theta == 0.0:
            return max(0.0, value(r, fixed))
        left = luck.credit(_factors(self.scenario.service.spread), theta * self.dearest_batch(r, fixed))
        return max(0.0, value(r, fixed, left) - luck.margin(theta))

    def theta(self, r: Relaxation, x: Solution) -> float:
        """Choose the theta of ``luck`` from a coarse look at the window (0 if no time is random)."""
        service, boot = _factors(self.scenario.service.spread), _factors(self.scenario.vm.boot_spread)
        if service[0] == service[-1] and boot[0] == boot[-1]:
            return 0.0
        launch = max((k.usd_per_s * k.boot_s for k in r.kinds), default=0.0)
        batch = self.dearest_batch(r, repair(r, x.prices))
        return luck.best_theta(x.usd, batch, service, launch, float(x.launch.sum()), boot)


def _factors(spread: float) -> np.ndarray:
    return lognormal_table(spread) / 65536


@dataclass(frozen=True)
class _Solved:
    """An answer, with what it takes to use its prices for other cases of the window."""

    counts: SlotCounts
    theta: float
    relaxation: Relaxation
    solution: Solution
    certificate: float


_solved: dict[str, _Solved] = {}


def _solve(case: _Case) -> _Solved:
    """Solve a case, or find it among the last ones."""
    key = hashlib.sha256(pickle.dumps(case)).hexdigest()
    found = _solved.pop(key, None) or _solve_anew(case)
    _solved[key] = found
    while len(_solved) > _KEPT:
        del _solved[next(iter(_solved))]
    return found


def _solve_anew(case: _Case) -> _Solved:
    counts = count_slots(case.workload, case.scenario, case.seed, case.slot_s)
    first = case.relax(coarsen(counts, COARSE), None)
    look = solve(first)
    theta = case.theta(first, look)
    r = case.relax(counts, theta)
    # where requests may be dropped, rows that link all slots make the simplex method crawl
    priced = bool(r.allowed.any()) and r.slots > FEW_SLOTS
    solution = solve(r, _links(first, look, r) if priced else None)
    return _Solved(counts, theta, r, solution, case.certify(r, solution.prices, theta))


def _links(coarse: Relaxation, x: Solution, fine: Relaxation) -> np.ndarray:
    """Return prices from long slots for the rows of short ones that link many slots."""
    known = {(w.cls, w.index): price for w, price in zip(coarse.windows, x.links, strict=False)}
    mean = [known.get((w.cls, w.index), 0.0) for w in fine.windows]
    return np.append(mean, x.links[len(coarse.windows) :])


def _short_slots(case: _Case, found: _Solved) -> float:
    """Return what short slots prove for a case solved on longer ones."""
    parts = max(1, round(case.slot_s / short_slot_s(case.scenario, case.workload.seconds - case.scenario.warmup_s)))
    counts = count_slots(case.workload, case.scenario, case.seed, case.slot_s / parts)
    r, long, x = case.relax(counts, found.theta), found.relaxation, found.solution
    return case.certify(r, piecewise_prices(r, _links(long, x, r), long, repair(long, x.prices)), found.theta)


def _case(
    workload: Workload, scenario: Scenario, seed: int, resources: Sequence[str] | None, violations: object,
    accuracy: Mapping[int, np.ndarray], slot_s: float, combos: Sequence[Combo] = (),
) -> _Case:  # fmt: skip
    names = [p.name for p in scenario.pools]
    for name in resources or ():
        if name not in names:
            raise InputError(
                f"resources: pool {name!r} is not in scenario {scenario.name} (its pools: {', '.join(names)})"
            )
    pools = tuple(i for i, name in enumerate(names) if resources is None or name in resources)
    shares = np.broadcast_to(np.asarray(0.0 if violations is None else violations, dtype=float), len(scenario.classes))
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InputError(f"violations: {violations}: right is a share from 0 to 1, or one for each class")
    slots = max(0.0, workload.seconds - scenario.warmup_s) / slot_s
    slot_s *= max(1, int(np.ceil(slots / MOST_SLOTS)))
    reached = tuple(accuracy.get(k) for k in range(len(scenario.classes)))
    return _Case(workload, scenario, seed, pools, slot_s, tuple(shares.tolist()), reached, tuple(combos))


def _split(r: Relaxation, x: Solution, pools: Sequence[str]) -> dict[str, float]:
    usd = dict.fromkeys(pools, 0.0)
    for v, kind in enumerate(r.kinds):
        rent = float((x.ready[:, v] * r.lengths).sum()) * kind.usd_per_s
        usd[pools[kind.pool]] += rent + float((x.launch[:, v] * r.boot_usd[:, v]).sum())
    for mine, served in zip([*r.options, *(s.options for s in r.later)], x.serve, strict=True):
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
    combos: Sequence[Combo] = (),
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
        combos: cascades and ensembles that a policy may use; without them it must answer with one model each.

    Raises:
        InputError: an unknown pool, a share outside 0 to 1, or no plan that serves every request in time.
    """
    started = time.perf_counter()
    case = _case(workload, scenario, seed, resources, violations, accuracy or {}, slot_s, combos)
    names = [p.name for p in scenario.pools]
    if workload.counts[int(scenario.warmup_s) :].sum() == 0:
        nothing = dict.fromkeys(names, 0.0)
        return Bound(0.0, 0.0, effort, time.perf_counter() - started, nothing, case.violations, None, None, scenario)
    found = _solve(case)
    r, x, certificate = found.relaxation, found.solution, found.certificate
    if effort == "cuts":
        certificate = max(certificate, _short_slots(case, found))
    seconds, split = time.perf_counter() - started, _split(r, x, names)
    return Bound(max(x.usd, certificate), certificate, effort, seconds, split, case.violations, r, x, scenario)


def combos_of(result: Result) -> list[Combo]:
    """Return the combinations that answered in time in a run, each with the stages its answers took.

    Answers whose stages were of more than one combination are in none of them (``Result.mixed``).
    """
    found = []
    for c in result.combos:
        total = sum(c.ended)
        entered = np.cumsum(np.array(c.ended)[::-1])[::-1] / max(1, total)
        visits = np.ones(len(c.stages)) if c.then == Then.ALSO else entered
        if total:
            models = tuple(places[0][1] for places in c.stages)
            found.append(Combo(c.cls, models, tuple(visits.tolist()), c.accuracy_pct))
    return found


def oracle_for(result: Result, workload: Workload, scenario: Scenario) -> Bound:
    """Bound what a run had to pay at least, given its own violations and the accuracy that it reached, on all pools.

    ``cost_to_oracle`` is the run's cost over this ``certificate_usd``, hence at least 1. The prices of the bound
    without violations prove a bound with them too, and all runs of a window share that; where they prove too little,
    or where the run used cascades or ensembles, which the bound then may use too, the bound is solved for this run.
    """
    totals = result.class_totals
    given_up = (totals["late_or_below"] + totals["rejected"]).to_numpy(dtype=float)
    combos = combos_of(result)
    if result.mixed.size:
        given_up = given_up + result.mixed
    shares = (given_up / np.maximum(1.0, totals["requests"].to_numpy(dtype=float))).tolist()
    accuracy: dict[int, np.ndarray] = {}
    for k, c in enumerate(scenario.classes):
        mine = result.windows[result.windows["class"] == c.name].sort_values("start_s")
        if c.mean_accuracy_pct is not None:
            accuracy[k] = (mine["accuracy_sum"] / mine["answers"].clip(lower=1)).to_numpy(dtype=float)
    if combos:
        return bound(workload, scenario, result.seed, violations=shares, accuracy=accuracy, combos=combos)
    proven = 0.0
    try:
        strict = bound(workload, scenario, result.seed)
        if strict.relaxation is None:
            return strict
        found = _solve(_case(workload, scenario, result.seed, None, None, {}, 10.0))
        case = _case(workload, scenario, result.seed, None, shares, accuracy, 10.0)
        proven = case.certify(case.relax(found.counts, found.theta), found.solution.prices, found.theta)
        if proven >= CLOSE * strict.certificate_usd:
            return replace(strict, certificate_usd=proven, method="prices", violations=case.violations)
    except InputError:
        pass  # impossible without violations: solve for those of this run
    own = bound(workload, scenario, result.seed, violations=shares, accuracy=accuracy)
    return replace(own, certificate_usd=max(own.certificate_usd, proven))
