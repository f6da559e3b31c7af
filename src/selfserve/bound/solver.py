"""The relaxation as a sparse programme for HiGHS."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import highspy
import numpy as np
from scipy.sparse import csr_matrix, hstack

from selfserve.bound.certificate import Prices
from selfserve.bound.relaxation import Relaxation
from selfserve.errors import InputError


@dataclass(frozen=True)
class Solution:
    """An optimum: dollars, the plan behind it and the prices that prove it."""

    usd: float
    ready: np.ndarray
    """[T, V]."""
    launch: np.ndarray
    """[T, V]."""
    serve: tuple[np.ndarray, ...]
    """Of each class, [T, options] requests."""
    wait: np.ndarray
    """[T, K]."""
    prices: Prices
    links: np.ndarray
    """Prices of the rows that link slots: accuracy windows (per point), then budgets (per request)."""


@dataclass(frozen=True)
class Border:
    """Prices at the ends of a piece of a longer programme, for what it takes over and hands on; [V] and [K]."""

    launch_in: np.ndarray
    """Per machine taken over."""
    flow_in: np.ndarray
    """Earned per waiting request taken over."""
    waiting_in: np.ndarray
    """Most waiting requests to take over."""
    launch_out: np.ndarray
    """Earned per machine handed on."""
    flow_out: np.ndarray
    """Per waiting request handed on."""


@dataclass(frozen=True)
class _Layout:
    """Columns and rows of a slot, in this order: ready, launch, serve, wait, drop; capacity, launch, flow."""

    kinds: int
    serves: tuple[int, ...]
    drops: tuple[int, ...]
    """Classes that may drop."""

    @property
    def serve(self) -> int:
        return 2 * self.kinds

    @property
    def wait(self) -> int:
        return self.serve + sum(self.serves)

    @property
    def drop(self) -> int:
        return self.wait + len(self.serves)

    @property
    def columns(self) -> int:
        return self.drop + len(self.drops)

    @property
    def flow(self) -> int:
        return 2 * self.kinds

    @property
    def rows(self) -> int:
        return self.flow + len(self.serves)


class _Entries:
    """Non-zeros of the matrix, collected by slot."""

    def __init__(self, slots: int, layout: _Layout) -> None:
        self.t, self.layout = np.arange(slots), layout
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, row: int, column: int, values: np.ndarray | float, back: int = 0) -> None:
        """Put ``values`` into a row of each slot and a column of the slot ``back`` slots earlier."""
        t = self.t[back:]
        filled = np.broadcast_to(np.asarray(values, dtype=float), self.t.shape)[back:]
        self.parts.append((t * self.layout.rows + row, (t - back) * self.layout.columns + column, filled))

    def link(self, row: int, slots: np.ndarray, column: int, value: float) -> None:
        """Put a value into a row of its own and a column of the given slots."""
        self.parts.append((np.full(len(slots), row), slots * self.layout.columns + column, np.full(len(slots), value)))

    def matrix(self, rows: int) -> csr_matrix:
        """Return all as a matrix."""
        row, column, values = (np.concatenate(x) for x in zip(*self.parts, strict=True))
        return csr_matrix((values, (row, column)), shape=(rows, len(self.t) * self.layout.columns))


def _scales(r: Relaxation) -> tuple[float, float]:
    """Return units of dollars and requests that keep the programme's numbers near 1."""
    rents = [k.usd_per_s for k in r.kinds] or [max(o.usd for mine in r.options for o in mine)]
    requests = max(1.0, float(r.arrivals.sum()) / max(1, r.slots) / 20)
    return min(rents) * float(r.lengths[0]) or 1.0, requests


def _fill(r: Relaxation, at: _Layout, requests: float) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Return matrix, lower and upper row limits (scaled); rows that link slots come last."""
    entries = _Entries(r.slots, at)
    low, high = np.zeros((r.slots, at.rows)), np.full((r.slots, at.rows), np.inf)
    for v, kind in enumerate(r.kinds):
        entries.add(v, v, float(kind.slots))
        entries.add(at.kinds + v, at.kinds + v, 1.0)
        entries.add(at.kinds + v, v, np.where(entries.t == 0, 0.0, -1.0))  # no launches into the first slot
        entries.add(at.kinds + v, v, 1.0, back=1)
    column = at.serve
    for k, mine in enumerate(r.options):
        for o in mine:
            if o.kind >= 0:
                entries.add(o.kind, column, -o.work_s * requests / r.lengths)
            entries.add(at.flow + k, column, 1.0)
            column += 1
        entries.add(at.flow + k, at.wait + k, 1.0)
        entries.add(at.flow + k, at.wait + k, -1.0, back=1)
        low[:, at.flow + k] = high[:, at.flow + k] = r.arrivals[:, k] / requests
    for i, k in enumerate(at.drops):
        entries.add(at.flow + k, at.drop + i, 1.0)
    rows = r.slots * at.rows
    extra: list[float] = []
    for w in r.windows:
        column = at.serve + sum(at.serves[: w.cls])
        for i, o in enumerate(r.options[w.cls]):
            entries.link(rows + len(extra), np.arange(w.first, w.stop), column + i, o.accuracy - w.target)
        if w.cls in at.drops:
            slots = np.arange(w.reach.start, w.reach.stop)
            entries.link(rows + len(extra), slots, at.drop + at.drops.index(w.cls), w.credit)
        extra.append(-w.loose / requests)
    for i, k in enumerate(at.drops):
        entries.link(rows + len(extra), entries.t, at.drop + i, -1.0)
        extra.append(-r.allowed[k] / requests)
    matrix = entries.matrix(rows + len(extra))
    return matrix, np.append(low, extra), np.append(high, np.full(len(extra), np.inf))


def _columns(r: Relaxation, at: _Layout, usd: float, requests: float) -> tuple[np.ndarray, np.ndarray]:
    """Return scaled costs and upper limits, each [T * columns]."""
    cost, most = np.zeros((r.slots, at.columns)), np.full((r.slots, at.columns), np.inf)
    for v, kind in enumerate(r.kinds):
        cost[:, v] = kind.usd_per_s * r.lengths / usd
        cost[:, at.kinds + v] = r.boot_usd[:, v] / usd
        most[:, v] = r.most_ready[:, v]
    for i, o in enumerate(o for mine in r.options for o in mine):
        cost[:, at.serve + i] = o.usd * requests / usd
    most[:, at.wait : at.drop] = r.unfinished / requests
    for i, k in enumerate(at.drops):
        most[:, at.drop + i] = r.arrivals[:, k] / requests
    return cost.ravel(), most.ravel()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what C code prints from standard output, which belongs to the program's own answer."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@cache
def _greet() -> None:
    """Let HiGHS print the banner that its first instance in a process cannot be kept from printing."""
    with _silence():
        highspy.Highs()


def _with_border(
    matrix: csr_matrix, cost: np.ndarray, most: np.ndarray, at: _Layout, border: Border, usd: float, requests: float
) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Return the programme of a piece.

    Machines taken over are launches into its first slot; K more columns take over waiting requests.
    """
    rows, classes = matrix.shape[0], len(at.serves)
    cost = cost.reshape(-1, at.columns).copy()
    of_class, of_kind = np.arange(classes), np.arange(at.kinds)
    taken = csr_matrix((-np.ones(classes), (at.flow + of_class, of_class)), shape=(rows, classes))
    entered = csr_matrix((-np.ones(at.kinds), (at.kinds + of_kind, of_kind)), shape=matrix.shape)
    cost[0, at.kinds : at.serve] = border.launch_in / usd
    cost[-1, : at.kinds] -= border.launch_out / usd
    cost[-1, at.wait : at.drop] += border.flow_out * requests / usd
    return (
        csr_matrix(hstack([matrix + entered, taken])),
        np.append(cost.ravel(), -border.flow_in * requests / usd),
        np.append(most, border.waiting_in / requests),
    )


def _optimum(
    cost: np.ndarray, most: np.ndarray, matrix: csr_matrix, low: np.ndarray, high: np.ndarray
) -> highspy.Highs:
    programme = highspy.HighsLp()
    programme.num_row_, programme.num_col_ = matrix.shape
    programme.col_cost_, programme.col_lower_, programme.col_upper_ = cost, np.zeros(len(cost)), most
    programme.row_lower_, programme.row_upper_ = low, high
    programme.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    programme.a_matrix_.start_ = matrix.indptr
    programme.a_matrix_.index_ = matrix.indices
    programme.a_matrix_.value_ = matrix.data
    _greet()
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("solver", "simplex")  # interior points took up to ten times as long on days with many pools
    highs.passModel(programme)
    highs.run()
    return highs


def solve(r: Relaxation, links: np.ndarray | None = None, border: Border | None = None) -> Solution:
    """Solve the relaxation.

    Args:
        r: the relaxation.
        links: prices to put on the rows that link slots instead of keeping them, which is faster and still a bound
            (Lagrangian relaxation); ``Solution.links`` of a similar one. Then ``usd`` is the optimum at these prices.

        border: prices at the ends of a piece; without them nothing precedes or follows.

    Raises:
        InputError: no plan serves every request in time on these pools.
    """
    drops = tuple(k for k, allowed in enumerate(r.allowed) if allowed > 0)
    at = _Layout(len(r.kinds), tuple(len(mine) for mine in r.options), drops)
    usd, requests = _scales(r)
    matrix, low, high = _fill(r, at, requests)
    cost, most = _columns(r, at, usd, requests)
    rows, constant = r.slots * at.rows, 0.0
    if links is not None:
        scaled = links * requests / usd
        cost, constant = cost - matrix[rows:].T @ scaled, float(low[rows:] @ scaled)
        matrix, low, high = matrix[:rows], low[:rows], high[:rows]
    if border is not None:
        matrix, cost, most = _with_border(matrix, cost, most, at, border, usd, requests)
    highs = _optimum(cost, most, matrix, low, high)
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        status = highs.modelStatusToString(highs.getModelStatus())
        raise InputError(
            f"bound: no plan answers every request in time on these pools ({status}); allow violations or more pools"
        )
    x = np.array(highs.getSolution().col_value)[: r.slots * at.columns].reshape(r.slots, at.columns)
    dual = np.array(highs.getSolution().row_dual)
    slots = dual[:rows].reshape(r.slots, at.rows)
    if links is None:
        links = dual[rows:] * usd / requests
    prices = Prices(
        capacity=slots[:, : at.kinds] * usd / r.lengths[:, None],
        launch=slots[:, at.kinds : at.flow] * usd,
        flow=slots[:, at.flow :] * usd / requests,
        mean=links[: len(r.windows)],
    )
    ends = np.cumsum([at.serve, *at.serves])
    return Solution(
        usd=(highs.getInfo().objective_function_value + constant) * usd,
        ready=x[:, : at.kinds],
        launch=x[:, at.kinds : at.serve],
        serve=tuple(x[:, a:b] * requests for a, b in pairwise(ends)),
        wait=x[:, at.wait : at.drop] * requests,
        prices=prices,
        links=links,
    )
