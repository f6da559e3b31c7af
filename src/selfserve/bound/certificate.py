"""A lower bound from any prices: what the solver returns is repaired and valued, so that its tolerances cannot hurt.

With prices ``capacity`` (per slot-second), ``launch``, ``flow`` (per request), ``mean`` and ``later`` for the rows of
``relaxation``, and the best one for its budgets, weak duality gives for every feasible point

  cost >= sum flow arrivals - sum (mean, later) loose - sum budget allowed + sum over variables of min(d low, d high),

d being a variable's cost less its rows at these prices. Variables without an upper limit need d >= 0: prices are
lowered until that holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfserve.bound.options import Option
from selfserve.bound.relaxation import Relaxation

SAFETY = 1e-9  #: share of the summed magnitudes taken off for rounding: float64 sums of a million terms stay far below


@dataclass(frozen=True)
class Prices:
    """Dual prices in dollars; any values give a valid bound."""

    capacity: np.ndarray  #: [T, V] per slot-second
    launch: np.ndarray  #: [T, V] per launch; the first slot has no such row
    flow: np.ndarray  #: [T, K] per request
    mean: np.ndarray  #: [windows] per accuracy point
    later: np.ndarray  #: [later stages] per request


def _inside(r: Relaxation, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what a point of accuracy over the target earns in each slot, and the target, each [T, K]."""
    price, target = np.zeros(r.arrivals.shape), np.zeros(r.arrivals.shape)
    for w, usd in zip(r.windows, mean, strict=True):
        price[w.first : w.stop, w.cls] += usd
        target[w.first : w.stop, w.cls] = w.target
    return price, target


def _machines(r: Relaxation) -> tuple[np.ndarray, np.ndarray]:
    return np.array([k.usd_per_s for k in r.kinds]), np.array([k.slots for k in r.kinds], dtype=float)


def _next(values: np.ndarray) -> np.ndarray:
    """Return the values of the slots after, 0 after the last."""
    return np.vstack([values[1:], np.zeros((1, values.shape[1]))])


def repair(r: Relaxation, prices: Prices) -> Prices:
    """Return prices lowered until every variable without an upper limit has a reduced cost of 0 or more."""
    launch = np.clip(prices.launch, 0.0, r.boot_usd)
    launch[0] = 0.0
    mean = np.maximum(prices.mean, 0.0)
    usd, slots = _machines(r)
    rent, free = usd * r.lengths[:, None], np.isinf(r.most_ready)
    for t in range(1, r.slots):  # ready: rent + launch[t-1] - launch[t] >= 0 at no capacity price
        launch[t] = np.where(free[t - 1], np.minimum(launch[t], rent[t - 1] + launch[t - 1]), launch[t])
    capacity, room = np.maximum(prices.capacity, 0.0), (rent + launch - _next(launch)) / (slots * r.lengths[:, None])
    capacity = np.where(free, np.minimum(capacity, room), capacity)  # a limit pays for d < 0
    flow = prices.flow.copy()
    per_point, target = _inside(r, mean)
    later, after = np.maximum(prices.later, 0.0), np.zeros(1 + max((x.combo for x in r.later), default=0))
    for j, x in enumerate(r.later):
        costs = [o.usd if o.kind < 0 else float((o.work_s * capacity[:, o.kind]).min()) for o in x.options]
        later[j] = min([later[j], *costs])
        after[x.combo] += x.share * later[j]
    for k, mine in enumerate(r.options):
        for o in mine:
            cost = o.usd if o.kind < 0 else o.work_s * capacity[:, o.kind]
            cost = cost if o.combo < 0 else cost + after[o.combo]
            np.minimum(flow[:, k], cost - per_point[:, k] * (o.accuracy - target[:, k]), out=flow[:, k])
        if not mine:
            flow[:, k] = np.minimum(flow[:, k], 0.0)  # nothing serves the class: its requests are dropped
    return Prices(capacity, launch, flow, mean, later)


def _budget(values: np.ndarray, arrivals: np.ndarray, allowed: float) -> float:
    """Return the best price of a dropped request: the least value among the dearest ``allowed`` requests."""
    order = np.argsort(-values, kind="stable")
    i = int(np.searchsorted(np.cumsum(arrivals[order]), allowed))
    return float(max(values[order[i]], 0.0)) if i < len(order) else 0.0


def value(r: Relaxation, prices: Prices, service_credit: float = 1.0) -> float:
    """Return the dollars that no run can undercut, given repaired prices.

    ``service_credit`` scales what requests are worth (see ``luck``); the limits of machines are not scaled.
    """
    flow, mean, launch = prices.flow, prices.mean, prices.launch
    terms = [flow * r.arrivals, np.minimum(0.0, _next(flow) - flow) * r.unfinished]
    terms.append(-mean * np.array([w.loose for w in r.windows]))
    terms.append(-prices.later * np.array([x.loose for x in r.later]))
    late = np.zeros(flow.shape)  # what a dropped request may add to its window
    for w, usd in zip(r.windows, mean, strict=True):
        late[w.reach, w.cls] += usd * w.credit
    for k in np.flatnonzero(r.allowed > 0):
        worth = flow[:, k] + late[:, k]
        budget = _budget(worth, r.arrivals[:, k], float(r.allowed[k]))
        terms += [np.minimum(0.0, budget - worth) * r.arrivals[:, k], np.array([-budget * r.allowed[k]])]
    usd_per_s, slots = _machines(r)
    d = (usd_per_s - slots * prices.capacity) * r.lengths[:, None] + launch - _next(launch)
    limited = np.minimum(0.0, d) * np.where(np.isinf(r.most_ready), 0.0, r.most_ready)
    size = sum(float(np.abs(x).sum()) for x in [*terms, limited])
    return sum(float(x.sum()) for x in terms) * service_credit + float(limited.sum()) - SAFETY * size


def dearest_batch(r: Relaxation, prices: Prices, all_options: Sequence[Sequence[Option]]) -> float:
    """Return the most dollars that one draw of a service time decides over, for repaired prices (``luck``)."""
    per_point, target = _inside(r, prices.mean)
    most = 0.0
    for k, mine in enumerate(all_options):
        for o in mine:
            worth = prices.flow[:, k] + per_point[:, k] * (o.accuracy - target[:, k])
            most = max(most, o.batch_usd, o.largest * float(worth.max(initial=0.0)))
    sizes = [max((o.largest for o in x.options), default=0) for x in r.later]
    return max([most, *(prices.later * sizes)])
