"""Many worlds in one compiled call: the road of single runs (one world) and of vector environments alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from selfserve.protocol import BOOT_AGE_BINS
from selfserve.scenario import Scenario, to_ns
from selfserve.simulator.books import begin_interval
from selfserve.simulator.engine import advance, decide
from selfserve.simulator.fleet import close_bills, take_stock
from selfserve.simulator.jit import item, kernel
from selfserve.simulator.state import NEVER, WORLD, pool_of
from selfserve.simulator.world import Stack, World, addresses

if TYPE_CHECKING:
    from selfserve.workload import Workload


@kernel
def _next_tight(heads, first, target):
    """Return the first world from ``first`` on whose slot trees may not hold the machines it is to have, or -1."""
    for e in range(first, target.shape[0]):
        w = item(heads, e, WORLD)
        for p in range(w.n_pools):
            pool = pool_of(w, p)
            if (min(target[e, p], pool.max_machines) * 9 // 8 + 4) * pool.slots > pool.leaves:
                return e
    return -1


@kernel
def _decide(heads, now, target, batch_max, batch_wait):
    for e in range(target.shape[0]):
        w = item(heads, e, WORLD)
        begin_interval(w, now)
        decide(w, now, target[e], batch_max[e], batch_wait[e])


@kernel
def _advance(heads, first, worlds, stop):
    """Run worlds ``first`` .. ``worlds - 1`` until ``stop``; return the one whose arrays must grow first, or -1."""
    for e in range(first, worlds):
        if not advance(item(heads, e, WORLD), stop):
            return e
    return -1


@kernel
def _take_stock(heads, now, booting, running):
    for e in range(running.shape[0]):
        take_stock(item(heads, e, WORLD), now, booting[e], running[e])


@kernel
def _close(heads, worlds):
    for e in range(worlds):
        close_bills(item(heads, e, WORLD))


class Worlds:
    """E runs stepped together; its arrays are those of :class:`selfserve.simulator.world.Stack`.

    Args:
        scenarios: one a world; same numbers of pools, models and classes.
        workloads: one a world; same length.
        interval_s: decision interval, seconds.
        requests: keep one row a request (memory then grows with the window).
        histogram: keep latency histograms (percentiles).
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        workloads: Sequence[Workload],
        interval_s: float,
        *,
        requests: bool = False,
        histogram: bool = False,
    ) -> None:
        self.scenarios, self.workloads, self.interval_s = scenarios, workloads, interval_s
        self.interval_ns, self.end_ns = to_ns(interval_s), to_ns(workloads[0].seconds)
        self._rows, self._histogram = requests, histogram
        each = lambda name, per: np.array([[getattr(p, name) / per for p in x.pools] for x in scenarios])  # noqa: E731
        self._machine_price, self._request_price = each("usd_per_hour", 3600e9), each("usd_per_request", 1.0)
        self._busy_price = each("usd_per_busy_hour", 3600e3)
        self._provisioned_price = each("usd_per_busy_hour_provisioned", 3600e3)
        self._accuracy = np.array([x.accuracy_pct for x in scenarios])

    def reset(self, seeds: Sequence[int]) -> None:
        """Start all worlds anew, one seed a world, with empty fleets and no routes (``World.write_routes``)."""
        self.stack, self.now_ns, self.span_ns = Stack(self.scenarios, self.interval_s), 0, 0
        given = zip(self.scenarios, self.workloads, seeds, strict=True)
        keep = self._rows, self._histogram
        self.worlds = [World(self.stack, e, *args, *keep) for e, args in enumerate(given)]
        self._at = addresses(self.stack.heads)
        self._area = np.zeros((*self.stack.pools.shape, self.stack.shape[2]), np.int64)
        self._spent = np.zeros(self.stack.pools.shape)

    def advance(self, target: np.ndarray, batch_max: np.ndarray, batch_wait_ns: np.ndarray) -> None:
        """Put targets and batches (int64 [E, P]) in force and run one interval in every world."""
        e = -1
        while (e := _next_tight(self._at, e + 1, target)) >= 0:
            self.worlds[e].make_room_for_machines(target[e])
        _decide(self._at, self.now_ns, target, batch_max, batch_wait_ns)
        stop = min(self.now_ns + self.interval_ns, self.end_ns)
        self._run_to(stop)
        self.span_ns, self.now_ns = stop - self.now_ns, stop

    def finish(self) -> None:
        """Run to the last answer and bill the machines still alive to the end of the window."""
        self._run_to(NEVER - 1)
        _close(self._at, len(self.worlds))

    def _run_to(self, stop: int) -> None:
        e = 0
        while (e := _advance(self._at, e, len(self.worlds), stop)) >= 0:
            self.worlds[e].grow()

    def observe(self) -> dict[str, np.ndarray]:
        """Return the fields of an ``Observation`` of the interval that just ended, all but its times, shape [E, ..]."""
        w, now = self.stack, self.now_ns
        pools, queues, functions = w.pools, w.queues[:, :, : w.shape[2]], w.functions
        bucket = w.heads["bucket"][0]
        queued = queues["tail"] - queues["head"] + queues["moved"]
        area = queues["area"] + queued * now
        booting, spent = np.zeros((*pools.shape, BOOT_AGE_BINS), np.int64), np.zeros(pools.shape)
        _take_stock(self._at, now, booting, spent)
        spent *= self._machine_price
        spent += functions["ms_all"].sum(2) * self._busy_price
        spent += functions["ms_provisioned_all"].sum(2) * self._provisioned_price
        spent += functions["invocations_all"].sum(2) * self._request_price
        served = w.served[:, bucket].copy()
        seen = {
            "arrivals": w.seen.copy(),
            "booting": booting,
            "busy_slot_s": w.busy[:, bucket] / 1e9,
            "queued": queued,
            "queued_request_s": (area - self._area) / 1e9,
            "head_age_s": np.where(queued > 0, now + queues["slo"] - queues["first"], 0) / 1e9,
            "served": served,
            "late": w.late[:, bucket].copy(),
            "accuracy_sum": np.einsum("epmk,em->ek", served, self._accuracy) + self._regraded(bucket),
            "batch_mean": pools["batched"] / np.maximum(1, pools["batches"]),
            "spend_usd": spent - self._spent,
        }
        for name, field in {"ready": "n_ready", "cold_starts": "cold", "lost": "lost", "refused": "refused"}.items():
            seen[name] = pools[field].copy()
        self._area, self._spent = area, spent
        return seen

    def _regraded(self, bucket: int) -> np.ndarray | float:
        """Return what the answers of several stages add to the sum of their last models' accuracies, percent [E, K]."""
        if not self.stack.heads["n_combos"].any():
            return 0.0  # the usual case, in a hot path
        worlds = [w.regraded[bucket] @ w.accuracies_pct() if w.combos else 0.0 for w in self.worlds]
        return np.array([np.broadcast_to(x, self.stack.shape[2:]) for x in worlds])
