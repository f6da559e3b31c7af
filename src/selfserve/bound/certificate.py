"""A lower bound from any prices: what the solver returns is repaired and valued, so that its tolerances cannot hurt.

With prices ``capacity`` (per slot-second), ``launch``, ``flow`` (per request) and ``mean`` for the rows of
``relaxation``, and the best one for its budgets, weak duality gives for every feasible point

  cost >= sum flow arrivals - sum mean loose - sum budget allowed + sum over variables of min(d lower, d upper),

d being a variable's cost less its rows at these prices. Variables without an upper limit need d >= 0: prices are
lowered until that holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfserve.bound.options import Option
from selfserve.bound.relaxation import Relaxation

SAFETY = 1e-9
"""Share of the summed magnitudes taken off for rounding: float64 sums of a million terms stay far below."""


@dataclass(frozen=True)
class Prices:
    """Dual prices in dollars; any values give a valid bound."""

    capacity: np.ndarray
    """[T, V] per slot-second."""
    launch: np.ndarray
    """[T, V] per launch; the first slot has no such row."""
    flow: np.ndarray
    """[T, K] per request."""
    mean: np.ndarray
    """[windows] per accuracy point."""


def _mean_price(r: Relaxation, mean: np.ndarray, inside: bool) -> np.ndarray:
    """Return what a point of accuracy over the target earns in each slot, [T, K] (``inside`` whole windows only)."""
    price = np.zeros(r.arrivals.shape)
    for w, value in zip(r.windows, mean, strict=True):
        price[slice(w.first, w.stop) if inside else w.reach, w.cls] += value * (1.0 if inside else w.credit)
    return price


def _targets(r: Relaxation) -> np.ndarray:
    target = np.zeros(r.arrivals.shape)
    for w in r.windows:
        target[w.first : w.stop, w.cls] = w.target
    return target


def repair(r: Relaxation, prices: Prices) -> Prices:
    """Return prices lowered until every variable without an upper limit has a reduced cost of 0 or more."""
    launch = np.clip(prices.launch, 0.0, r.boot_usd)
    mean = np.maximum(prices.mean, 0.0)
    usd = np.array([k.usd_per_s for k in r.kinds])
    slots = np.array([k.slots for k in r.kinds], dtype=float)
    rent = usd * r.lengths[:, None]
    capacity = np.maximum(prices.capacity, 0.0)
    if len(r.kinds):
        launch[0] = 0.0
        free = np.isinf(r.most_ready)
        for t in range(1, r.slots):  # ready: rent + launch[t-1] - launch[t] >= 0 at no capacity price
            launch[t] = np.where(free[t - 1], np.minimum(launch[t], rent[t - 1] + launch[t - 1]), launch[t])
        room = (rent + launch - np.vstack([launch[1:], np.zeros((1, len(usd)))])) / (slots * r.lengths[:, None])
        capacity = np.where(free, np.minimum(capacity, room), capacity)  # a limit pays for d < 0
    flow = prices.flow.copy()
    per_point, target = _mean_price(r, mean, True), _targets(r)
    for k, mine in enumerate(r.options):
        for o in mine:
            cost = o.usd if o.kind < 0 else o.work_s * capacity[:, o.kind]
            np.minimum(flow[:, k], cost - per_point[:, k] * (o.accuracy - target[:, k]), out=flow[:, k])
        if not mine:
            flow[:, k] = np.minimum(flow[:, k], 0.0)  # nothing serves the class: its requests are dropped
    return Prices(capacity, launch, flow, mean)


def _budget(values: np.ndarray, arrivals: np.ndarray, allowed: float) -> float:
    """Return the best price of a dropped request: the least value among the dearest ``allowed`` requests."""
    if allowed <= 0:
        return float(max(values.max(initial=0.0), 0.0))
    order = np.argsort(-values, kind="stable")
    i = int(np.searchsorted(np.cumsum(arrivals[order]), allowed))
    return float(max(values[order[i]], 0.0)) if i < len(order) else 0.0


def value(r: Relaxation, prices: Prices, service_credit: float = 1.0) -> float:
    """Return the dollars that no run can undercut, given repaired prices.

    Args:
        r: the relaxation.
        prices: repaired ones.
        service_credit: scales what requests are worth (see ``luck``); the limits of machines are not scaled.
    """
    flow, mean = prices.flow, prices.mean
    after = np.vstack([flow[1:], np.zeros((1, flow.shape[1]))]) if r.slots else flow
    terms = [flow * r.arrivals, np.minimum(0.0, after - flow) * r.unfinished]
    terms.append(-mean * np.array([w.loose for w in r.windows]))
    dropping = flow + _mean_price(r, mean, False)
    for k, allowed in enumerate(r.allowed):
        if allowed > 0:
            worth = dropping[:, k]
            budget = _budget(worth, r.arrivals[:, k], float(allowed))
            terms += [np.minimum(0.0, budget - worth) * r.arrivals[:, k], np.array([-budget * allowed])]
    total = sum(float(x.sum()) for x in terms) * service_credit
    size = sum(float(np.abs(x).sum()) for x in terms)
    if len(r.kinds):
        launch = prices.launch
        later = np.vstack([launch[1:], np.zeros((1, launch.shape[1]))])
        usd = np.array([k.usd_per_s for k in r.kinds])
        slots = np.array([k.slots for k in r.kinds], dtype=float)
        d = (usd - slots * prices.capacity) * r.lengths[:, None] + launch - later
        limit = np.where(np.isinf(r.most_ready), 0.0, r.most_ready)
        limited = np.minimum(0.0, d) * limit
        total += float(limited.sum())
        size += float(np.abs(limited).sum())
    return total - SAFETY * size


def dearest_batch(r: Relaxation, prices: Prices, all_options: tuple[tuple[Option, ...], ...]) -> float:
    """Return the most dollars that one draw of a service time decides over, for repaired prices (``luck``)."""
    per_point, target = _mean_price(r, prices.mean, True), _targets(r)
    most = 0.0
    for k, mine in enumerate(all_options):
        for o in mine:
            worth = prices.flow[:, k] + per_point[:, k] * (o.accuracy - target[:, k])
            most = max(most, o.batch_usd, o.largest * float(worth.max(initial=0.0)))
    return most
