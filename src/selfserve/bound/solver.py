"""The relaxation as a sparse programme for HiGHS."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import highspy
import numpy as np
from scipy.sparse import csr_matrix, hstack

from selfserve.bound.certificate import Prices
from selfserve.bound.relaxation import Relaxation
from selfserve.errors import InputError
from selfserve.quiet import unheard


@dataclass(frozen=True)
class Solution:
    """An optimum: dollars, the plan behind it and the prices that prove it."""

    usd: float
    ready: np.ndarray  #: [T, V]
    launch: np.ndarray  #: [T, V]
    serve: tuple[np.ndarray, ...]  #: of each class, then of each later stage, [T, options] requests
    wait: np.ndarray  #: [T, K]
    prices: Prices
    links: np.ndarray  #: prices of the rows that link slots: accuracy windows (per point), later stages, budgets


@dataclass(frozen=True)
class Border:
    """Prices at the ends of a piece of a longer programme, for what it takes over and hands on; [V] and [K]."""

    launch_in: np.ndarray  #: per machine taken over
    flow_in: np.ndarray  #: earned per waiting request taken over
    waiting_in: np.ndarray  #: most waiting requests to take over
    launch_out: np.ndarray  #: earned per machine handed on
    flow_out: np.ndarray  #: per waiting request handed on


class _Programme:
    """Matrix, costs and limits, scaled so that their numbers are near 1.

    Columns of a slot, in this order: ready, launch, serve, later, wait, drop (of the classes that may); rows: capacity,
    launch, flow; rows that link slots come last.
    """

    def __init__(self, r: Relaxation) -> None:
        self.r, self.kinds, self.classes = r, len(r.kinds), len(r.options)
        self.serves, self.drops = [len(mine) for mine in r.options], np.flatnonzero(r.allowed > 0).tolist()
        self.serve = self.flow = 2 * self.kinds
        self.serves += [len(x.options) for x in r.later]
        self.later = self.serve + sum(self.serves[: self.classes])
        self.wait = self.serve + sum(self.serves)
        self.drop = self.wait + self.classes
        self.columns, self.rows = self.drop + len(self.drops), self.flow + self.classes
        rents = [k.usd_per_s for k in r.kinds] or [max(o.usd for mine in r.options for o in mine)]
        self.usd = min(rents) * float(r.lengths[0]) or 1.0
        self.requests = max(1.0, float(r.arrivals.sum()) / max(1, r.slots) / 20)
        self.entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.low: np.ndarray = np.zeros((r.slots, self.rows))
        self.high: np.ndarray = np.full((r.slots, self.rows), np.inf)
        self._fill_slots()
        extra = np.array(self._fill_links())
        row, column, values = (np.concatenate(x) for x in zip(*self.entries, strict=True))
        shape = (r.slots * self.rows + len(extra), r.slots * self.columns)
        self.matrix = csr_matrix((values, (row, column)), shape=shape)
        self.low, self.high = np.append(self.low, extra), np.append(self.high, np.full_like(extra, np.inf))
        self._fill_columns()

    def _add(self, row: int, column: int, values: np.ndarray | float, back: int = 0) -> None:
        """Put ``values`` into a row of each slot and a column of the slot ``back`` slots earlier."""
        t = np.arange(back, self.r.slots)
        filled = np.broadcast_to(np.asarray(values, dtype=float), self.r.slots)[back:]
        self.entries.append((t * self.rows + row, (t - back) * self.columns + column, filled))

    def _fill_slots(self) -> None:
        r = self.r
        for v, kind in enumerate(r.kinds):
            self._add(v, v, float(kind.slots))
            self._add(self.kinds + v, self.kinds + v, 1.0)
            self._add(self.kinds + v, v, np.where(np.arange(r.slots) == 0, 0.0, -1.0))  # the first slot has no launches
            self._add(self.kinds + v, v, 1.0, back=1)
        column = self.serve
        for k, mine in enumerate(r.options):
            row = self.flow + k
            for o in mine:
                if o.kind >= 0:
                    self._add(o.kind, column, -o.work_s * self.requests / r.lengths)
                self._add(row, column, 1.0)
                column += 1
            self._add(row, self.wait + k, 1.0)
            self._add(row, self.wait + k, -1.0, back=1)
            self.low[:, row] = self.high[:, row] = r.arrivals[:, k] / self.requests
        for i, o in enumerate(o for x in r.later for o in x.options):
            if o.kind >= 0:
                self._add(o.kind, self.later + i, -o.work_s * self.requests / r.lengths)
        for i, k in enumerate(self.drops):
            self._add(self.flow + k, self.drop + i, 1.0)

    def _fill_links(self) -> list[float]:
        """Add accuracy windows, later stages and budgets, a row each; return the lower limits of these rows."""
        r, limits = self.r, [-w.loose / self.requests for w in self.r.windows]

        def link(row: int, slots: np.ndarray, column: int, value: float) -> None:
            at = np.full(len(slots), r.slots * self.rows + row)
            self.entries.append((at, slots * self.columns + column, np.full(len(slots), value)))

        for row, w in enumerate(r.windows):
            first = self.serve + sum(self.serves[: w.cls])
            for i, o in enumerate(r.options[w.cls]):
                link(row, np.arange(w.first, w.stop), first + i, o.accuracy - w.target)
            if w.cls in self.drops:
                reach = np.arange(w.reach.start, w.reach.stop)
                link(row, reach, self.drop + self.drops.index(w.cls), w.credit)
        always, column = np.arange(r.slots), self.later
        for x in r.later:
            first = self.serve + sum(self.serves[: x.cls])
            for i, o in enumerate(r.options[x.cls]):
                if o.combo == x.combo:
                    link(len(limits), always, first + i, -x.share)
            for _ in x.options:
                link(len(limits), always, column, 1.0)
                column += 1
            limits.append(-x.loose / self.requests)
        for i, k in enumerate(self.drops):
            link(len(limits), always, self.drop + i, -1.0)
            limits.append(-r.allowed[k] / self.requests)
        return limits

    def _fill_columns(self) -> None:
        r = self.r
        cost, most = np.zeros((r.slots, self.columns)), np.full((r.slots, self.columns), np.inf)
        for v, kind in enumerate(r.kinds):
            cost[:, v] = kind.usd_per_s * r.lengths / self.usd
        cost[:, self.kinds : self.serve] = r.boot_usd / self.usd
        most[:, : self.kinds] = r.most_ready
        every = [*r.options, *(x.options for x in r.later)]
        cost[:, self.serve : self.wait] = [o.usd * self.requests / self.usd for mine in every for o in mine]
        most[:, self.wait : self.drop] = r.unfinished / self.requests
        most[:, self.drop :] = r.arrivals[:, self.drops] / self.requests
        self.cost, self.most = cost.ravel(), most.ravel()

    def price_links(self, links: np.ndarray) -> float:
        """Replace the rows that link slots by their prices (Lagrangian relaxation); return the constant."""
        rows, scaled = self.r.slots * self.rows, links * self.requests / self.usd
        constant = float(self.low[rows:] @ scaled)
        self.cost = self.cost - self.matrix[rows:].T @ scaled
        self.matrix, self.low, self.high = self.matrix[:rows], self.low[:rows], self.high[:rows]
        return constant

    def open(self, border: Border) -> None:
        """Make it a piece: machines taken over are launches into its first slot, K more columns waiting requests."""
        of_class, of_kind = np.arange(self.classes), np.arange(self.kinds)
        shape = self.matrix.shape
        taken = csr_matrix((-np.ones(self.classes), (self.flow + of_class, of_class)), (shape[0], self.classes))
        entered = csr_matrix((-np.ones(self.kinds), (self.kinds + of_kind, of_kind)), shape)
        cost = self.cost.reshape(-1, self.columns).copy()
        cost[0, self.kinds : self.serve] = border.launch_in / self.usd
        cost[-1, : self.kinds] -= border.launch_out / self.usd
        cost[-1, self.wait : self.drop] += border.flow_out * self.requests / self.usd
        self.matrix = csr_matrix(hstack([self.matrix + entered, taken]))
        self.cost = np.append(cost.ravel(), -border.flow_in * self.requests / self.usd)
        self.most = np.append(self.most, border.waiting_in / self.requests)

    def optimum(self) -> highspy.Highs:
        """Return HiGHS after its run."""
        model = highspy.HighsLp()
        model.num_row_, model.num_col_ = self.matrix.shape
        model.col_cost_, model.col_lower_, model.col_upper_ = self.cost, np.zeros(len(self.cost)), self.most
        model.row_lower_, model.row_upper_ = self.low.ravel(), self.high.ravel()
        matrix = model.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.start_, matrix.index_, matrix.value_ = self.matrix.indptr, self.matrix.indices, self.matrix.data
        _greet()
        highs = highspy.Highs()
        highs.setOptionValue("output_flag", False)
        highs.setOptionValue("threads", 1)
        highs.setOptionValue("solver", "simplex")  # interior points took up to ten times as long on days of many pools
        highs.passModel(model)
        highs.run()
        return highs


@cache
def _greet() -> None:
    """Let HiGHS print, unseen, the banner that its first instance in a process cannot be kept from printing."""
    with unheard():
        highspy.Highs()


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
    at = _Programme(r)
    usd, requests, rows = at.usd, at.requests, r.slots * at.rows
    constant = 0.0 if links is None else at.price_links(links)
    if border is not None:
        at.open(border)
    highs = at.optimum()
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        status = highs.modelStatusToString(highs.getModelStatus())
        raise InputError(
            f"bound: no plan answers every request in time on these pools ({status}); allow violations or more pools"
        )
    x = np.array(highs.getSolution().col_value)[: r.slots * at.columns].reshape(r.slots, at.columns)
    dual = np.array(highs.getSolution().row_dual)
    slots = dual[:rows].reshape(r.slots, at.rows)
    links = dual[rows:] * usd / requests if links is None else links
    prices = Prices(
        capacity=slots[:, : at.kinds] * usd / r.lengths[:, None],
        launch=slots[:, at.kinds : at.flow] * usd,
        flow=slots[:, at.flow :] * usd / requests,
        mean=links[: len(r.windows)],
        later=links[len(r.windows) :][: len(r.later)],
    )
    serve = tuple(x[:, a:b] * requests for a, b in pairwise(np.cumsum([at.serve, *at.serves])))
    total = (highs.getInfo().objective_function_value + constant) * usd
    ready, launch, wait = x[:, : at.kinds], x[:, at.kinds : at.serve], x[:, at.wait : at.drop] * requests
    return Solution(total, ready, launch, serve, wait, prices, links)
