"""Bursts inside a slot: the relaxation on slots as short as the SLOs, solved piece by piece.

Requests that cannot wait must be served as they arrive, and no fleet follows a burst of a second. Ten-second slots
hide that; slots of about the shortest SLO show it, as cuts for the loss of each slot would, and any partition is
valid. A day has too many of them for one programme. Pieces are solved on their own with the prices of machines and
waiting requests at their borders taken from the programme on long slots (Lagrangian relaxation); the prices that the
pieces return are put together and proven as a whole by ``certificate``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from selfserve.bound.certificate import Prices
from selfserve.bound.relaxation import Relaxation
from selfserve.bound.solver import Border, solve
from selfserve.scenario import Scenario

LENGTHS_S = (5.0, 2.0, 1.0, 0.5)  #: slot lengths; the last that is at least the shortest SLO is used
MOST = 50_000  #: slots of a window; longer windows use longer ones
PIECE = 1800  #: slots of a piece: the simplex method takes a second or two for it


def short_slot_s(scenario: Scenario, seconds: float) -> float:
    """Return the slot length for a window of so many scored seconds."""
    shortest = min(c.slo_s for c in scenario.classes)
    return min((s for s in LENGTHS_S if s >= shortest and seconds / s <= MOST), default=LENGTHS_S[0])


def _piece(r: Relaxation, first: int, stop: int) -> Relaxation:
    """Return the slots ``first .. stop - 1`` alone; windows keep their places, cut to these slots."""

    def cut(i: int) -> int:
        return min(max(i, first), stop) - first

    windows = tuple(
        replace(w, first=cut(w.first), stop=cut(w.stop), reach=slice(cut(w.reach.start), cut(w.reach.stop)))
        for w in r.windows
    )
    arrays = ("lengths", "arrivals", "unfinished", "boot_usd", "most_ready")
    return replace(r, windows=windows, **{name: getattr(r, name)[first:stop] for name in arrays})


def piecewise_prices(r: Relaxation, links: np.ndarray, long: Relaxation, prices: Prices) -> Prices:
    """Return prices for the relaxation on short slots.

    Args:
        r: the relaxation on short slots.
        links: prices of its rows that link slots.
        long: the relaxation on long slots, each of them some short ones.
        prices: repaired ones of that.
    """
    ends = np.cumsum(r.lengths)
    begins = np.searchsorted(ends, np.cumsum(long.lengths) - long.lengths + 1e-6)  # first short slot of each long one
    place = {kind.pool: v for v, kind in enumerate(long.kinds)}
    launch = np.zeros((long.slots, len(r.kinds)))
    for v, kind in enumerate(r.kinds):
        if kind.pool in place:
            launch[:, v] = prices.launch[:, place[kind.pool]]
    nothing = np.zeros(r.arrivals.shape[1])
    # pieces begin where long slots do: the prices at a border are those of that slot
    at = np.unique(np.searchsorted(begins, np.arange(0, r.slots, PIECE), "right") - 1)
    found = []
    for i, t in enumerate(at):
        first, last = int(begins[t]), i + 1 == len(at)
        border = Border(
            launch_in=launch[t],
            flow_in=prices.flow[t] if first else nothing,
            waiting_in=r.unfinished[first - 1] if first else nothing,
            launch_out=np.zeros(len(r.kinds)) if last else launch[at[i + 1]],
            flow_out=nothing if last else prices.flow[at[i + 1]],
        )
        found.append(solve(_piece(r, first, r.slots if last else int(begins[at[i + 1]])), links, border).prices)
    joined = {name: np.vstack([getattr(p, name) for p in found]) for name in ("capacity", "launch", "flow")}
    n = len(r.windows)
    return Prices(**joined, mean=links[:n], later=links[n : n + len(r.later)])
