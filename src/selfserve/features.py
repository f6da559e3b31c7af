"""The steered planner for many worlds at once: what it has seen, what a controller observes, what it may change.

:class:`Flock` keeps for E worlds what :class:`selfserve.steering.Steering` keeps for one, as arrays whose first axis is
the world, and decides as :func:`selfserve.steering.steer` does, by measured times if there are any. Observations are
scale-free: loads and machines are ratios to a slow average of the load, times are in units of the boot time, prices and
service times are ratios, so that one controller serves 10 or 10,000 requests a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from selfserve import steering
from selfserve.correctness import stages
from selfserve.protocol import Decision, Observation, Route
from selfserve.scenario import Scenario
from selfserve.selector import Cascade, stages_of
from selfserve.steering import LONGEST_HOLD, OWN_SHARE, WINDOWS, PlannerSettings, Steering
from selfserve.warming import called, warm_until

GROUPS = 3
"""Request classes are seen in three groups by SLO, the tightest first, whatever their number."""
FILTER = 0.2
"""Part of the way that the action in force moves to a new one at each step: noise on settings would thrash machines."""
LEVELS = 21
"""Accuracy levels are multiples of 0.05, whose mixes are tabulated."""
FARTHEST = 10.0
"""Observations are cut off here; in training situations all but a few lie far within."""
SEEN = 30
"""Intervals of load that observations look back on."""
NUMBERS = tuple(f.name for f in fields(PlannerSettings) if isinstance(f.default, float))
"""The settings that are numbers, in the order of columns."""
AT = {name: i for i, name in enumerate(NUMBERS)}

CORRECTIONS: tuple[tuple[str, str, float, float, float], ...] = (
    ("headroom", "times", 1.3, 0.5, 3.0),
    ("safety", "plus", 1.0, -3.0, 3.0),
    ("fast", "times", 3.0, 0.1, 12.8),
    ("slow", "times", 3.0, 0.1, 12.8),
    ("weight", "plus", 0.5, 0.0, 2.0),
    ("hold", "times", 3.0, 0.05, LONGEST_HOLD),
    ("drain", "times", 3.0, 0.05, 16.0),
    ("leave_margin", "times", 1.3, 0.7, 5.0),
    ("cold_margin", "plus", 1.0, 0.0, 2.0),
    ("spot_share", "plus", 0.5, 0.0, 1.0),
    ("spot_headroom", "times", 1.3, 0.5, 3.0),
    ("late_binding", "plus", 4.0, 0.0, 8.0),
)
"""What an action in [-1, 1] does to a setting: times ``by ** action`` or plus ``by * action``, then kept in bounds."""
LEVEL_BY = 0.5
"""An action on a group's accuracy level adds up to this; below the planner's own level it is 0."""
ACTIONS = tuple(name for name, *_ in CORRECTIONS) + tuple(f"level_{g}" for g in range(GROUPS))


@dataclass(slots=True)
class Seen:
    """An :class:`~selfserve.protocol.Observation` of E worlds: what is used of it, with the world as first axis."""

    time_s: float
    interval_s: float
    arrivals: np.ndarray
    """[E, K] summed over the interval."""
    ready: np.ndarray
    booting: np.ndarray
    """[E, P] of any age."""
    busy_slot_s: np.ndarray
    queued: np.ndarray
    head_age_s: np.ndarray
    served: np.ndarray
    late: np.ndarray
    accuracy_sum: np.ndarray
    lost: np.ndarray
    refused: np.ndarray
    spend_usd: np.ndarray
    batch_mean: np.ndarray

    @classmethod
    def one(cls, seen: Observation) -> Seen:
        """Return an observation as that of one world."""
        sums = {"arrivals": seen.arrivals.sum(axis=0), "booting": seen.booting.sum(axis=1)}
        rest = {f.name: getattr(seen, f.name) for f in fields(cls)[2:] if f.name not in sums}
        return cls(seen.time_s, seen.interval_s, **{name: values[None] for name, values in (sums | rest).items()})


@dataclass(slots=True)
class Orders:
    """Decisions of E worlds: machines, and what changes in their routes, which keep their places."""

    machines: np.ndarray
    """int64 [E, P]"""
    weight: np.ndarray
    """[E, K, R] of each route (0 beyond a class's own)."""
    leave_slack_s: np.ndarray
    """[E, K, R] of the step that waits (-inf: it stays)."""
    late_slack_s: np.ndarray
    """[E, K, R] of the step that waits (0: no late binding)."""


class Case:
    """A scenario with its history, prepared: the constants and the initial state of one world of a flock.

    Args:
        scenario: what is served on what.
        history: requests per second before the run, shape [seconds].
        interval_s: seconds between decisions.
        settings: what the planner does without corrections.
        cascades, own_share: see :class:`~selfserve.steering.Steering`.
    """

    def __init__(
        self, scenario: Scenario, history: np.ndarray, interval_s: float, settings: PlannerSettings | None = None,
        *, cascades: bool = True, own_share: float = OWN_SHARE,
    ) -> None:  # fmt: skip
        self.scenario, self.history, self.interval_s = scenario, history, interval_s
        self.settings = settings or PlannerSettings()
        self.state = state = Steering(scenario, history, interval_s, cascades=cascades, own_share=own_share)
        pools, n, grid = scenario.pools, len(scenario.classes), np.arange(LEVELS) / (LEVELS - 1)
        self.homes, self.has_spot = np.array(state.homes.pool_of), float(state.spots is not None)
        self.spots = np.array((state.spots or state.homes).pool_of)
        idle = np.zeros(len(pools))
        self.routes = tuple(steering.routes_of(state, self.settings, k, 0.0, idle, 0.0) for k in range(n))
        self.work = np.array([
            [[state.mix(k, p, level)[1] / pools[p].slots for level in grid] for k, p in enumerate(where)]
            for where in (self.homes, self.spots)
        ])  # fmt: skip
        """[2, K, LEVELS] machine-seconds of a request at home and on spot machines."""
        self._tabulate(grid)
        self._compare()

    def _tabulate(self, grid: np.ndarray) -> None:
        """Tabulate the routes, so that what moves with the settings is arithmetic on arrays."""
        state, pools = self.state, self.scenario.pools
        shape = len(self.routes), max(map(len, self.routes))
        self.step, self.second, self.late_model = np.zeros(shape, np.int64), *np.full((2, *shape), -1)
        self.target_s, (self.late_s, self.batch_s, self.rest_s) = np.full(shape, np.inf), np.zeros((3, *shape))
        self.side = np.zeros((*shape, 2))
        """[K, R, 2]: a route's weight is its model's share times ``side`` . (1, spot's part of the ready slots)."""
        self.share = np.zeros((len(self.routes), LEVELS, shape[1]))
        self.direct = np.zeros(shape)  # 1 where a route goes straight to a function, so that it is warm
        for k, every in enumerate(self.routes):
            routes = every[:-1] if state.calls.steps[k] else every
            self.direct[k, len(routes) : len(every)] = 1
            shares = [dict(state.mix(k, self.homes[k], level)[0]) for level in grid]
            pairs, spot = [(steering.way_of(route), route) for route in routes], self.spots[k] != self.homes[k]
            split = {way for way, r in pairs if len(r.steps) > 1 and spot and r.steps[0].pool == self.spots[k]}
            for i, (way, route) in enumerate(pairs):
                first = stages(route)[0]
                at = max(j for j, step in enumerate(first) if not pools[step.pool].is_function)
                step, after = first[at], first[at + 1 :]
                self.step[k, i] = at
                if after:
                    self.target_s[k, i] = state.selector.latency_s(after[0].pool, after[0].model)
                self.batch_s[k, i] = state.batch_s(step.pool, step.model)
                if isinstance(way, Cascade):  # both stages wait in the same place
                    self.second[k, i], self.rest_s[k, i] = len(first) + at, state.stage_s(k, step.pool, way.better)
                else:
                    self.late_s[k, i] = state.selector.latency_s(step.pool, step.model)
                    self.late_model[k, i] = (state.selector.feasible(k, step.pool) or (step.model,))[0]
                waits_on_spot = spot and step.pool == self.spots[k]
                self.side[k, i] = (0, 1) if waits_on_spot else (1, -1) if way in split else (1, 0)
                self.share[k, :, i] = [share.get(way, 0.0) for share in shares]
            # with many models only those of the planner's own mix have routes, and the level stays where it is
            unserved = (self.share[k] * (self.side[k, :, 0] > 0)).sum(axis=1) < 1 - 1e-9
            self.share[k, unserved], self.work[:, k, unserved] = self.share[k, 0], self.work[:, k, :1]

    def _compare(self) -> None:
        """Compare classes, prices and times: the constants that observations show."""
        scenario, state, pools = self.scenario, self.state, self.scenario.pools
        classes, n = scenario.classes, len(scenario.classes)
        slo = np.array([c.slo_s for c in classes])
        rank = np.argsort(np.argsort(slo, kind="stable"), kind="stable")
        self.group = (np.arange(GROUPS)[:, None] == rank * GROUPS // n).astype(float)
        self.price = np.array([pools[p].usd_per_hour / 3600 for p in self.homes])
        self.target_pct = np.array([c.mean_accuracy_pct or 0.0 for c in classes])
        self.window_s = np.array([c.accuracy_window_s for c in classes])
        load = np.array([c.share for c in classes]) * self.work[0, :, 0]
        self.stated = load / load.sum()
        dollars, init, boot = 20 * self.work[0, :, 0] * self.price, scenario.function.init_s, state.boot_s
        room, service = np.zeros((2, n))
        for k, p in enumerate(self.homes):
            way = max(state.mix(k, p, 0.0)[0], key=lambda part: part[1])[0]
            service[k] = sum(asked * pools[p].service_s(m) for m, asked in stages_of(way))
            known = [(t, asked) for m, asked in stages_of(way) if (t := state.function_of(k, way, m))]
            if len(known) == len(stages_of(way)):
                dollars[k] = sum(asked * state.functions.cost_usd(*t) for t, asked in known)
                room[k] = slo[k] > init + sum(state.selector.latency_s(*t) for t, _ in known)
        ratio = float(np.dot([c.share for c in classes], dollars) / (load @ self.price))
        best = np.array([max(scenario.models[m].accuracy_pct for m in pools[p].models) for p in self.homes])
        spare = np.where(self.target_pct > 0, best - self.target_pct, 0.0) / 5
        spot = [pools[s].usd_per_hour / pools[h].usd_per_hour for s, h in zip(self.spots, self.homes, strict=True)]
        self.statics = np.array([
            np.log(boot / 100), np.log(boot / self.interval_s) / 3, scenario.vm.boot_spread * 2, np.log(ratio),
            self.has_spot, float(np.log(np.mean(spot))), np.log(max(init, 0.01)), float(self.stated @ room),
            scenario.service.spread * 2, *(self.group @ (np.log(slo / service) * self._per_group())),
            *(self.group @ self.stated), *(self.group @ spare),
        ])  # fmt: skip

    def _per_group(self) -> np.ndarray:
        """Return [K] one over the number of classes in a class's group."""
        return (self.group / np.maximum(1.0, self.group.sum(axis=1, keepdims=True))).sum(axis=0)


STATICS = (
    "boot", "boot_intervals", "boot_spread", "function_price", "has_spot", "spot_price", "cold_start",
    "share_with_room_for_a_cold_start", "service_spread", *(f"slo_{g}" for g in range(GROUPS)),
    *(f"stated_{g}" for g in range(GROUPS)), *(f"accuracy_room_{g}" for g in range(GROUPS)),
)  # fmt: skip
ROLES = ("home", "spot")
OBSERVED = (
    "load", "load_before", "mean_3", "mean_6", "mean_12", "mean_30", "highest", "deviation",
    *(f"average_{j}" for j in range(0, len(WINDOWS) - 1, 2)), "forecast_bias", "forecast_error", "change",
    *(f"{what}_{role}" for role in ROLES for what in ("ready", "booting", "planned", "busy", "queue")),
    "head_age", "function_share", "function_spend", "late_lately", "late_so_far",
    *(f"{what}_{g}" for what in ("share", "debt", "elapsed") for g in range(GROUPS)),
    "spot_trouble", "fleet", "machine",
)  # fmt: skip
OBSERVATIONS = (*OBSERVED, *(f"action_{name}" for name in ACTIONS), *STATICS)
"""Names of what is observed, in order; the page of the environment explains them."""


class Flock:
    """E steered planners.

    Args:
        cases: one a world, with the same numbers of classes and the same interval; pools may be padded.
        pools: number of pools of the worlds (default: the most of any case).
    """

    def __init__(self, cases: Sequence[Case], pools: int | None = None) -> None:
        self.cases = cases
        self.pools = pools or max(len(c.scenario.pools) for c in cases)
        n, k, r = len(cases), len(cases[0].homes), max(c.step.shape[1] for c in cases)
        self.shape = n, k, r
        self.interval_s = cases[0].interval_s
        wide = lambda name, fill=0.0: np.stack([  # noqa: E731
            np.pad(a := getattr(c, name), [(0, 0), (0, r - a.shape[1]), *[(0, 0)] * (a.ndim - 2)], constant_values=fill)
            for c in cases
        ])  # fmt: skip
        self.step, self.second, self.late_model = (wide(x, -1).astype(int) for x in ("step", "second", "late_model"))
        self.target_s, self.side = wide("target_s", np.inf), wide("side")
        self.late_s, self.batch_s, self.rest_s = wide("late_s"), wide("batch_s"), wide("rest_s")
        self.direct, calls = wide("direct"), [c.state.calls for c in cases]
        *self._call, self.call_s = (np.stack([getattr(c, of) for c in calls]) for of in ("pool", "model", "service_s"))
        self.share = np.stack([np.pad(c.share, [(0, 0), (0, 0), (0, r - c.share.shape[2])]) for c in cases])
        self.work = np.stack([c.work for c in cases])
        self.unit = self.work[:, 0, :, 0]
        """[E, K] machine-seconds of a request at home."""
        self.group, self.statics = np.stack([c.group for c in cases]), np.stack([c.statics for c in cases])
        self.stated, self.target_pct = np.stack([c.stated for c in cases]), np.stack([c.target_pct for c in cases])
        self.window_s = np.stack([c.window_s for c in cases])
        self.boot_s, self.has_spot = np.array([[c.state.boot_s, c.has_spot] for c in cases]).T
        functions = [c.scenario.function for c in cases]
        self.init_s, self._keep_alive_s = np.array([[f.init_s, f.keep_alive_s] for f in functions]).T
        self.warmup_s = np.array([c.scenario.warmup_s for c in cases])
        self.factor = np.ones(n)
        """[E] service times over the believed ones, as far as they were measured; whoever measures them sets it."""
        self.slo_s = np.array([[x.slo_s for x in c.scenario.classes] for c in cases])
        self.base = np.array([[getattr(c.settings, name) for name in NUMBERS] for c in cases])
        self.base_level = np.array([c.settings.levels or (0.0,) * k for c in cases])

        def pool(what: str) -> np.ndarray:
            rows = [[int(getattr(p, what)) for p in c.scenario.pools] for c in cases]
            return np.array([[*row, *[0] * (self.pools - len(row))] for row in rows])

        self.slots, self.limit = pool("slots"), pool("max_machines")
        self.function = pool("is_function").astype(bool)
        self.pays = np.stack([np.pad(c.state.pays, (0, self.pools - len(c.state.pays))) for c in cases])
        p = np.arange(self.pools)[None, :, None]
        self.at_home = (np.stack([c.homes for c in cases])[:, None] == p).astype(float)
        self.on_spot = (np.stack([c.spots for c in cases])[:, None] == p) * self.has_spot[:, None, None]
        self.of_role = np.stack([self.at_home.any(axis=2), self.on_spot.any(axis=2)], axis=1).astype(float)
        self._worlds, self._classes = np.arange(n)[:, None], np.arange(k)
        self.start()

    def start(self) -> None:
        """Go back to where the histories end."""
        n, k, _ = self.shape
        self._lag = np.maximum(1, np.ceil(self.boot_s / self.interval_s - 1e-12).astype(int))
        self._room = max(
            int(LONGEST_HOLD * self.boot_s.max() / self.interval_s) + 2, SEEN + 1, int(self._lag.max()) + 1
        )
        self.past, self.rates = np.zeros((n, 2 * self._room, len(WINDOWS), k)), np.zeros((n, 2 * self._room, k))
        self._n_past, self._n_rates = np.ones(n, int), np.zeros(n, int)
        states = [c.state for c in self.cases]
        for e, state in enumerate(states):
            averages = [a for _, a in state.past] or [state.averages]
            self._fill(self.past[e], averages)
            self._n_past[e] = len(averages)
            blocks = [state.monitor.rate(int((i + 1) * self.interval_s)) for i in range(SEEN)]
            means = np.array(blocks) * np.arange(1, SEEN + 1)[:, None]
            self._fill(self.rates[e], np.maximum(0.0, np.diff(means, axis=0, prepend=0.0))[::-1])
            recent = [rate for _, rate in state.seen]
            self._fill(self.rates[e], recent)
            self._n_rates[e] = len(recent)
        self._at = self._room - 1
        self.averages, self.changes = (
            np.stack(x) for x in zip(*[(s.averages, s.changes) for s in states], strict=True)
        )
        self.trouble, self.warm_until_s = np.zeros((n, self.pools)), np.zeros((n, k))
        self.seen: Seen | None = None
        self.targets = np.zeros((n, self.pools), np.int64)
        self.bias, self.error, self.late_lately, self.late_total, self.total = np.zeros((5, n))
        self.function_share, self.function_spend = np.zeros((2, n))
        self.answers, self.accuracy, self.elapsed = np.zeros((n, k)), np.zeros((n, k)), np.zeros((n, k))
        self._keep = np.exp(-self.interval_s / (WINDOWS * self.boot_s[:, None]))[:, :, None]

    def _fill(self, ring: np.ndarray, newest_last: Sequence[np.ndarray] | np.ndarray) -> None:
        """Write the newest entries of a ring whose newest place is the last of each half."""
        if len(newest_last):
            rows = np.asarray(newest_last)[-self._room :]
            ring[self._room - len(rows) : self._room] = rows
            ring[2 * self._room - len(rows) :] = rows

    def observe(self, seen: Seen) -> None:
        """Take in the interval that just ended (an observation at time 0 says nothing about load)."""
        self.seen = seen
        if seen.time_s <= 0:
            return
        rate = seen.arrivals / seen.interval_s
        if seen.time_s <= seen.interval_s * 1.5:
            fresh = ~self.averages.any(axis=(1, 2))
            self.averages[fresh] = rate[fresh, None]
        before = self._before(self._lag)
        self.averages = self._keep * self.averages + (1 - self._keep) * rate[:, None]
        self._at = (self._at + 1) % self._room
        for at in (self._at, self._at + self._room):
            self.past[:, at], self.rates[:, at] = self.averages, rate
        self._n_past, self._n_rates = self._n_past + 1, self._n_rates + 1
        change = rate - self.rates[self._worlds[:, 0], self._at + self._room - self._lag]
        part = ((self._n_rates > self._lag) * np.minimum(1.0, self.interval_s / (20 * self.boot_s)))[:, None, None]
        self.changes += part * (change[:, :, None] * change[:, None, :] - self.changes)
        self.trouble *= np.exp(-seen.interval_s / self.boot_s)[:, None]
        self.trouble += seen.lost + seen.refused
        used = seen.served.sum(axis=3)[self._worlds, *self._call] > 0
        self.warm_until_s = warm_until(self.warm_until_s, used, seen, self.init_s, self._keep_alive_s)
        self._judge(seen, rate, before)

    def _before(self, lag: np.ndarray) -> np.ndarray:
        """Return the load in machines [E] that the uncorrected planner expected ``lag`` [E] intervals ago for now."""
        averages = self.past[self._worlds[:, 0], self._at + self._room + 1 - lag]
        return (smoothed(averages[:, None], self.base)[:, 0] * self.unit).sum(axis=1)

    def _judge(self, seen: Seen, rate: np.ndarray, expected: np.ndarray) -> None:
        """Keep the averages of forecast errors, violations, function use and accuracy that observations show."""
        load = (rate * self.unit).sum(axis=1)
        error, slow, part = load - expected, self.slow(), np.minimum(1.0, self.interval_s / (5 * self.boot_s))
        self.bias += part * (error / slow - self.bias)
        self.error += part * (np.abs(error) / slow - self.error)
        arrived, late = seen.arrivals.sum(axis=1), seen.late.sum(axis=1)
        self.late_lately += 0.1 * (late / np.maximum(1, arrived) - self.late_lately)
        self.late_total, self.total = self.late_total + late, self.total + arrived
        answered = seen.served.sum(axis=2)
        on_functions = (answered.sum(axis=2) * self.function).sum(axis=1)
        self.function_share += 0.2 * (on_functions / np.maximum(1, answered.sum(axis=(1, 2))) - self.function_share)
        spent = (seen.spend_usd * self.function).sum(axis=1) / np.maximum(1e-12, seen.spend_usd.sum(axis=1))
        self.function_spend += 0.2 * (spent - self.function_spend)
        since = np.maximum(0.0, seen.time_s - self.warmup_s)[:, None] / self.window_s
        anew = (np.floor(since - 1e-9) > np.floor(since - seen.interval_s / self.window_s - 1e-9)) | (since <= 0)
        self.answers = np.where(anew, 0, self.answers) + answered.sum(axis=1)
        self.accuracy = np.where(anew, 0, self.accuracy) + seen.accuracy_sum
        self.elapsed = np.where(since > 0, since - np.ceil(since - 1e-9) + 1, 0.0)

    def slow(self) -> np.ndarray:
        """Return the slow average of the load that all else is relative to, machines [E]."""
        return np.maximum((self.averages[:, -1] * self.unit).sum(axis=1), 1e-3)

    def change(self) -> np.ndarray:
        """Return the standard deviation of what the load did over past boot times, machines [E]."""
        return np.sqrt(np.maximum(0.0, np.einsum("ek,ekl,el->e", self.unit, self.changes, self.unit)))

    def debt(self) -> np.ndarray:
        """Return accuracy points [E, K] by which the present window misses its mean target (negative: to spare)."""
        mean = np.divide(self.accuracy, self.answers, out=self.target_pct.copy(), where=self.answers > 0)
        return np.where(self.target_pct > 0, self.target_pct - mean, 0.0)

    def observations(self, action: np.ndarray) -> np.ndarray:
        """Return what a controller sees, float32 [E, len(OBSERVATIONS)]; ``action`` is the filtered one in force."""
        seen, unit, slow, n = self.seen, self.unit, self.slow()[:, None], len(action)
        assert seen is not None  # an observation comes first
        top = self._at + self._room + 1
        loads = (self.rates[:, top - SEEN : top] @ unit[:, :, None])[:, :, 0] / slow
        sums = np.cumsum(loads[:, ::-1], axis=1)
        averages = (self.averages[:, :-1:2] @ unit[:, :, None])[:, :, 0] / slow
        machines = np.stack(
            [seen.ready, seen.booting, self.targets, seen.busy_slot_s / np.maximum(1, self.slots)], axis=2
        )
        ready, booting, planned, busy = np.moveaxis(self.of_role @ machines, 2, 0)
        work = (self.at_home * self.work[:, 0, None, :, 0] + self.on_spot * self.work[:, 1, None, :, 0]) * seen.queued
        queue = (self.of_role @ work.sum(axis=2)[:, :, None])[:, :, 0] / np.maximum(1.0, ready)
        busy = busy / (np.maximum(ready, 1e-9) * max(seen.interval_s, 1e-9)) * (ready > 0)
        age = (seen.head_age_s / self.slo_s[:, None]).max(axis=(1, 2))
        now = self.rates[:, top - 1] * unit
        share = now / np.maximum(1e-12, now.sum(axis=1, keepdims=True)) - self.stated
        per_class = np.stack(
            [share * (now.any(axis=1))[:, None], self.debt(), self.elapsed * (self.target_pct > 0)], axis=2
        )
        late = [np.log10(x + 1e-5) / 5 + 1 for x in (self.late_lately, self.late_total / np.maximum(1, self.total))]
        found = [
            loads[:, -1:] - 1, loads[:, -2:-1] - 1, sums[:, [2, 5, 11, 29]] / (3, 6, 12, 30) - 1,
            loads.max(axis=1, keepdims=True) - 1, loads.std(axis=1, keepdims=True), averages - 1,
            np.stack([self.bias, self.error, self.change() / slow[:, 0]], axis=1),
            np.stack([*(x / slow for x in (ready, booting, planned)), busy, np.log1p(queue)], axis=2).reshape(n, -1),
            np.stack([age, self.function_share, self.function_spend, *late], axis=1),
            np.swapaxes(self.group @ per_class, 1, 2).reshape(n, -1),
            (self.trouble * self.of_role[:, 1]).sum(axis=1, keepdims=True) / slow,
            np.log(slow) / 3, np.minimum(1.0, 1 / slow), action, self.statics,
        ]  # fmt: skip
        return np.clip(np.concatenate(found, axis=1), -FARTHEST, FARTHEST).astype(np.float32)

    def corrected(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the settings that an action [E, len(ACTIONS)] in [-1, 1] makes: numbers [E, N] and levels [E, K]."""
        numbers, a = self.base.copy(), action[:, : len(CORRECTIONS)]
        numbers[:, _COLUMN] = np.clip(
            np.where(_TIMES, self.base[:, _COLUMN] * np.exp(a * _LOG_BY), self.base[:, _COLUMN] + a * _BY), _LOW, _HIGH
        )
        up = LEVEL_BY * np.maximum(0.0, action[:, len(CORRECTIONS) :])
        levels = self.base_level + np.einsum("eg,egk->ek", up, self.group)
        return numbers, np.clip(levels, 0.0, 1.0)

    def decide(self, numbers: np.ndarray, levels: np.ndarray) -> Orders:
        """Return what :func:`selfserve.steering.steer` would decide in each world."""
        seen, get = self.seen, lambda name: numbers[:, AT[name]]
        assert seen is not None  # a decision follows an observation
        level = np.rint(levels * (LEVELS - 1)).astype(int)
        work = self.work[self._worlds, :, self._classes, level]  # [E, K, 2]
        spot = self._spot(get("spot_share"), get("spot_caution"))
        per_rate = self.at_home * (1 - spot)[:, None, None] * work[:, None, :, 0]
        per_rate += self.on_spot * (spot * get("spot_headroom"))[:, None, None] * work[:, None, :, 1]
        held = np.minimum(get("hold"), LONGEST_HOLD) * self.boot_s + 1e-9
        n = np.minimum(np.maximum(1, (held / self.interval_s).astype(int) + 1), self._n_past)
        most, top = int(n.max()), self._at + self._room + 1
        loads = smoothed(self.past[:, top - most : top], numbers)
        loads *= (np.arange(most - 1, -1, -1) < n[:, None])[:, :, None]
        needed = get("headroom")[:, None] * (loads @ per_rate.swapaxes(1, 2)).max(axis=1)
        variance = (per_rate @ self.changes * per_rate).sum(axis=2)
        needed += (self.pays + get("safety")[:, None]) * np.sqrt(np.maximum(0.0, variance))
        needed, drain = np.maximum(needed, 0.0), get("drain")
        waiting = (self.at_home * work[:, None, :, 0] + self.on_spot * work[:, None, :, 1]) * seen.queued
        within = np.maximum(drain * self.boot_s, max(seen.interval_s, 1e-9))
        needed += np.where(drain[:, None] > 0, waiting.sum(axis=2) / within[:, None], 0.0)
        machines = np.minimum(np.ceil(needed - 1e-9).astype(np.int64), self.limit)
        machines = np.where((machines == 0) & ~self.function & seen.queued.any(axis=2), 1, machines)
        self.targets = np.where(self.function, 0, machines)
        return self._orders(numbers, level, spot)

    def _spot(self, share: np.ndarray, caution: np.ndarray) -> np.ndarray:
        assert self.seen is not None  # checked by the caller
        known = (self.trouble, self.seen.ready + self.seen.booting)
        trouble, alive = ((x * self.of_role[:, 1]).sum(axis=1) for x in known)
        part = np.divide(trouble, trouble + alive, out=np.zeros(len(share)), where=trouble > 0.05)
        return self.has_spot * share * (1 - part) ** caution

    def _orders(self, numbers: np.ndarray, level: np.ndarray, spot: np.ndarray) -> Orders:
        """Return routes' weights and slacks with the machines just decided."""
        assert self.seen is not None  # checked by the caller
        get = lambda name: numbers[:, AT[name], None, None]  # noqa: E731
        slots = self.seen.ready * self.slots
        home, second = ((slots[:, :, None] * side).sum(axis=1) for side in (self.at_home, self.on_spot))
        part = np.divide(second, home + second, out=np.tile(spot[:, None], (1, self.shape[1])), where=home + second > 0)
        calls = called(self.rates[:, self._at], self.call_s, self.init_s, self.seen, self.warm_until_s)[..., None]
        weight = self.share[self._worlds, self._classes, level]
        weight = weight * (self.side[..., 0] + self.side[..., 1] * part[:, :, None])
        weight = weight * (1 - calls) + calls * self.direct
        factor = self.factor[:, None, None]
        slack = np.maximum(get("leave_margin") * self.target_s, factor * self.batch_s) + factor * self.rest_s
        cold = get("cold_margin") * self.init_s[:, None, None]
        slack = slack + np.where(slack + cold < self.slo_s[:, :, None], cold, 0.0)
        slack = np.where(np.isfinite(self.target_s), slack, -np.inf)
        return Orders(self.targets, weight, slack, get("late_binding") * self.late_s)

    def decision(self, orders: Orders, e: int = 0) -> Decision:
        """Return the orders of one world as a decision."""
        case, routes = self.cases[e], []
        for k, own in enumerate(case.routes):
            mine = []
            for i, route in enumerate(own):
                steps, at = list(route.steps), int(self.step[e, k, i])
                late_s, slack = float(orders.late_slack_s[e, k, i]), float(orders.leave_slack_s[e, k, i])
                late = int(self.late_model[e, k, i]) if late_s > 0 else None
                steps[at] = replace(steps[at], leave_slack_s=slack, late_model=late, late_slack_s=late_s)
                if (second := int(self.second[e, k, i])) >= 0:
                    steps[second] = replace(steps[second], leave_slack_s=slack)
                mine.append(Route(tuple(steps), float(orders.weight[e, k, i])))
            routes.append(tuple(mine))
        machines = tuple(orders.machines[e, : len(case.scenario.pools)].tolist())
        return Decision(machines, tuple(routes), case.state.batches, case.state.homes.batch_wait_s)


def smoothed(averages: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the load that settings [E, N] make of averages [E, H, J, K], shape [E, H, K]."""
    return steering.smoothed_each(averages, *(numbers[:, AT[name]] for name in ("fast", "slow", "weight")))


_COLUMN = np.array([AT[name] for name, *_ in CORRECTIONS])
_TIMES = np.array([kind == "times" for _, kind, *_ in CORRECTIONS])
_BY, _LOW, _HIGH = (np.array([row[i] for row in CORRECTIONS]) for i in (2, 3, 4))
_LOG_BY = np.log(_BY)
