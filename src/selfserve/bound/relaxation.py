"""The linear relaxation: what every run of a window satisfies, as arrays.

Slots t of length L_t, machine kinds v, classes k, options o. Variables, all >= 0: ``ready[t, v]`` mean machines ready
or draining, ``launch[t, v]``, ``serve[t, o]`` requests' worth of service, ``wait[t, k]`` requests' worth not yet
served at the slot's end, ``drop[t, k]`` requests given up (arrived in the slot). Minimise

  sum usd_v L_t ready + sum boot_usd[t, v] launch + sum usd_o serve        subject to
  (capacity)  sum of work_o serve <= slots_v L_t ready
  (launch)    launch[t] >= ready[t] - ready[t-1]
  (flow)      wait[t] = wait[t-1] + arrivals[t] - serve - drop
  (due)       wait[t] <= unfinished[t]
  (mean)      sum (accuracy_o - target) serve + credit drop >= -loose
  (stages)    sum later_j >= share_j sum of serve with combination j - loose_j
  (budget)    sum of drop <= allowed

Why every run satisfies them, its requests split over slots by the share of their service that falls there:
(capacity) busy slots are slots of ready machines; a request in a batch of b takes S(b)/b of one, at least the least
over b. The same holds for the dollars of a function's batch: it is billed in full if any of its requests is scored
(physics rule 7.7), and no more than b are.
(launch) summed over slots, the rises of one machine's share of a slot are at most 1: a machine that becomes ready at
r in slot t is charged the part f of the slot after r at slot t's price and at most 1 - f at slot t + 1's.
``boot_usd`` is a concave function of the slot's start (``boot_seconds``), and f start[t] + (1 - f) start[t+1] = r:
the charge is at most the price at r, what a boot that ends at r was billed since the window's start. Before the
window the fleet is free: no launch row for the first slot.
(flow) each request is served once or dropped, not before it arrives; what waits at the window's start is not scored.
(due) what is due by the slot's end has been served in full by then. What is due after the window may be answered
there for nothing.
(mean) an accuracy window reaches its mean. ``loose`` covers answers that cross its borders; a dropped request may
have been answered late by the best model.
(stages) of the requests that a run answered in time by a combination of models, it sent a known share to each later
stage, some time in the window, but for those that were unfinished at its end. ``serve`` is their first stage then.
Left out, each of which makes the bound smaller only: cold starts, concurrency limits, interruptions and refusals,
minimum bills, rounding up of bills, batches that wait to fill, whole machines, and the moment of arrival inside a
slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfserve.bound import options as ways
from selfserve.bound.counting import SlotCounts
from selfserve.bound.options import Combo, Kind, Option
from selfserve.errors import InputError
from selfserve.scenario import NS, RequestClass, Scenario, to_ns
from selfserve.simulator.draws import lognormal_table


@dataclass(frozen=True)
class MeanWindow:
    """One accuracy window of one class."""

    cls: int
    index: int  #: its place among the windows of its class
    first: int
    stop: int  #: slots ``first .. stop - 1`` lie inside it
    reach: slice  #: slots that overlap it
    target: float
    credit: float  #: what a dropped request may add: the best model's accuracy less the target
    loose: float  #: accuracy points that answers across its borders can hide


@dataclass(frozen=True)
class Later:
    """A later stage of a combination."""

    cls: int
    combo: int
    options: tuple[Option, ...]
    share: float  #: of the combination's requests
    loose: float  #: requests that may enter it after the window


@dataclass(frozen=True)
class Relaxation:
    """The data of the linear programme; dollars, seconds and requests."""

    lengths: np.ndarray  #: [T] seconds
    arrivals: np.ndarray  #: [T, K]
    unfinished: np.ndarray  #: [T, K]
    kinds: tuple[Kind, ...]
    boot_usd: np.ndarray  #: [T, V]; 0 in the first slot
    most_ready: np.ndarray  #: [T, V]
    options: tuple[tuple[Option, ...], ...]  #: of each class
    windows: tuple[MeanWindow, ...]
    allowed: np.ndarray  #: [K] requests that may be dropped
    later: tuple[Later, ...] = ()

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.lengths)


def _kinds_without_idle_limits(
    kinds: list[Kind], options: Sequence[Sequence[Option]], counts: SlotCounts
) -> list[Kind]:
    """Lift limits that no plan needs to reach: a fleet clipped to what the fullest slot can use costs no more."""
    most = counts.arrivals + np.vstack([np.zeros_like(counts.unfinished[:1]), counts.unfinished[:-1]])
    lengths = np.diff(counts.edges_ns)[:, None] / NS
    lifted = []
    for v, kind in enumerate(kinds):
        work = np.array([max((o.work_s for o in mine if o.kind == v), default=0.0) for mine in options])
        needed = float(((most * work).sum(1, keepdims=True) / lengths).max(initial=0.0)) / kind.slots
        lifted.append(replace(kind, most_ready=np.inf) if kind.most_ready >= needed else kind)
    return lifted


def boot_seconds(scenario: Scenario, kind: Kind, edges_s: np.ndarray, boot_credit: float) -> np.ndarray:
    """Return the billed boot seconds that a rise in each slot has cost at least, shape [T].

    A machine ready at r was running from at the latest ``r - least boot``. Where r is past the window's start by the
    longest boot, its whole boot was billed: in the mean the boot time, less luck (``boot_credit``, see ``luck``).
    Before, only what lies inside the window counts, and only the least boot is sure. (Between the last such slot and
    the first of the others, a boot begun before the window was billed r - start, which is above the straight line.)
    """
    factors = lognormal_table(scenario.vm.boot_spread) / ways.UNIT
    ready = edges_s[:-1] - edges_s[0]
    certain = np.minimum(kind.boot_s * factors[0], ready)
    seconds = np.where(ready >= kind.boot_s * factors[-1], kind.boot_s * boot_credit, certain)
    seconds[0] = 0.0
    return np.asarray(seconds)


def _mean_windows(
    k: int, wanted: RequestClass, counts: SlotCounts, accuracies: list[float], best: float, reached: np.ndarray | None
) -> list[MeanWindow]:
    """Return the accuracy windows of a class (they tumble by arrival from the warm-up's end, the last one partial)."""
    edges, length, windows = counts.edges_ns, to_ns(wanted.accuracy_window_s), []
    for i, start in enumerate(range(int(edges[0]), int(edges[-1]), length)):
        end, target = min(start + length, int(edges[-1])), wanted.mean_accuracy_pct or 0.0
        if reached is not None:
            target = min(target, float(reached[i]))
        first, stop = int(np.searchsorted(edges, start)), int(np.searchsorted(edges, end, "right")) - 1
        reach = slice(int(np.searchsorted(edges, start, "right")) - 1, int(np.searchsorted(edges, end)))
        if stop <= first:
            continue  # too short for a whole slot
        # Served in these slots but arrived before the window: still unfinished when they begin.
        came_in = int(counts.unfinished[first - 1, k]) if first else 0
        # Arrived in the window but served elsewhere: in a slot cut by a border, or unfinished when these slots end.
        cut = int(counts.arrivals[reach.start : first, k].sum() + counts.arrivals[stop : reach.stop, k].sum())
        went_out = int(counts.unfinished[stop - 1, k]) + cut
        loose = came_in * max(0.0, target - min(accuracies)) + went_out * max(0.0, max(accuracies) - target)
        windows.append(MeanWindow(k, i, first, stop, reach, target, max(0.0, best - target), loose))
    return windows


def relax(
    scenario: Scenario,
    counts: SlotCounts,
    pools: Sequence[int],
    violations: np.ndarray,
    reached: Sequence[np.ndarray | None],
    boot_credit: float = 1.0,
    pruned: bool = True,
    options: Sequence[Sequence[Option]] | None = None,
    combos: Sequence[Combo] = (),
) -> Relaxation:
    """Set up the relaxation.

    Args:
        scenario: prices, service times, classes.
        counts: of the window.
        pools: indices of the pools that may be used.
        violations: [K] share of each class that may be dropped.
        reached: per class, the mean accuracy that each accuracy window must reach at most (None: the target).
        boot_credit: credit per mean boot (see ``luck``; one for all pools, so that dominance holds).
        pruned: drop dominated options.
        options: of each class, instead of all that the physics allow.
        combos: cascades and ensembles that may be used too.

    Raises:
        InputError: a class that no option can serve in time, and that may not be dropped as a whole.
    """
    kinds = ways.machine_kinds(scenario, pools)
    kept = [list(mine) for mine in options or (ways.class_options(scenario, c, kinds, pools) for c in scenario.classes)]
    plain = [len(mine) for mine in kept]
    later = []
    for i, combo in enumerate(combos):
        stages, k = ways.stage_options(scenario, combo, kinds, pools), combo.cls
        if combo.accuracy >= scenario.classes[k].min_accuracy_pct:
            kept[k] += [replace(o, accuracy=combo.accuracy, combo=i) for o in stages[0]]
        late = float(counts.unfinished[-1, k])
        later += [Later(k, i, tuple(o), share, late) for o, share in zip(stages[1:], combo.visits[1:], strict=True)]
    totals = counts.arrivals.sum(0)
    for c, mine, share, total in zip(scenario.classes, kept, violations, totals, strict=True):
        if not mine and share < 1 and total:
            raise InputError(
                f"class {c.name}: no model of pools {[scenario.pools[p].name for p in pools]} reaches min_accuracy_pct "
                f"{c.min_accuracy_pct:g} within slo_s {c.slo_s:g}; allow its violations or more pools"
            )
    kinds = _kinds_without_idle_limits(kinds, kept, counts)
    best = max(*(m.accuracy_pct for m in scenario.models), *(c.accuracy for c in combos), 0.0)
    windows = [
        w for k, c in enumerate(scenario.classes) if c.mean_accuracy_pct is not None and kept[k]
        for w in _mean_windows(k, c, counts, [o.accuracy for o in kept[k]], best, reached[k])
    ]  # fmt: skip
    if pruned:
        kept = [
            ways.prune(mine[:n], c.mean_accuracy_pct is not None) + mine[n:]
            for mine, n, c in zip(kept, plain, scenario.classes, strict=True)
        ]
        every, kinds = ways.without_dominated_kinds(kept + [list(x.options) for x in later], kinds)
        kept, rest = every[: len(kept)], every[len(kept) :]
        later = [replace(x, options=tuple(mine)) for x, mine in zip(later, rest, strict=True)]
    edges_s = counts.edges_ns / NS
    boot = [boot_seconds(scenario, x, edges_s, boot_credit) * x.usd_per_s for x in kinds]
    most = [np.where(edges_s[1:] <= x.first_ready_s, 0.0, x.most_ready) for x in kinds]
    shape = (len(kinds), len(counts.arrivals))
    return Relaxation(
        np.diff(edges_s), counts.arrivals.astype(float), counts.unfinished.astype(float), tuple(kinds),
        np.reshape(boot, shape).T, np.reshape(most, shape).T, tuple(map(tuple, kept)), tuple(windows),
        np.floor(violations * totals + 1e-6), tuple(later),
    )  # fmt: skip
