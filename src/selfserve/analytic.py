"""Settings of the planner by formulas from prices, boot times and what is measured: the policy ``analytic``.

:class:`Pilot` steers a :class:`selfserve.features.Flock` of any size, so that training, replay and a single run share
the formulas. Their few multipliers (:data:`MULTIPLIERS`) are tuned once over training situations.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from selfserve.features import AT, STATICS, Case, Flock, Orders, Seen
from selfserve.scenario import Scenario
from selfserve.selector import Cascade
from selfserve.steering import LONGEST_HOLD, WINDOWS, way_of

FOLDER = Path(__file__).parent / "controllers"
"""Tuned constants and trained controllers."""

MULTIPLIERS: dict[str, tuple[float, float, float]] = {
    "headroom": (1.02, 0.7, 1.3),  # machines over the load, what rounding up adds included
    "quantile": (1.0, 0.0, 2.5),  # times the newsvendor's quantile of the function over machine price
    "safety": (-0.5, -1.0, 1.5),  # standard deviations on top
    "fast": (0.4, 0.1, 1.5),  # quick average's time constant at a boot of 100 s, boot times
    "fast_by_boot": (-0.2, -1.0, 1.0),  # its exponent of the boot time
    "trust": (0.3, 0.0, 1.0),  # how far the time constant follows the average that erred least of late
    "slow": (3.3, 0.5, 12.0),
    "weight": (0.8, 0.0, 1.6),
    "rounding": (1.0, 0.0, 1.5),  # how far prices decide when a part of a machine is a whole one; 0: at a half
    "spread": (0.7, 0.0, 2.0),  # of the load around what is expected, over its changes in a boot time
    "capacity": (0.8, 0.0, 1.5),  # how far measured strain counts
    "hold": (3.0, 0.05, 6.0),  # boot times, at functions three times as dear as machines
    "hold_by_price": (0.5, -1.0, 2.0),  # its exponent of the price ratio
    "hold_by_spot": (0.0, 0.0, 2.0),  # how far the price ratio counts the price of spot machines
    "hold_by_boot": (0.0, -1.0, 1.0),
    "drain": (0.9, 0.1, 8.0),
    "leave": (1.15, 0.8, 2.0),  # p99 service times before the deadline
    "leave_by_spread": (0.8, -0.5, 3.0),  # and per unit of service spread
    "cold": (0.3, 0.0, 1.5),
    "spot_share": (0.95, 0.3, 1.0),
    "spot_headroom": (1.02, 0.8, 1.8),
    "spot_caution": (0.6, 0.0, 6.0),
    "late_binding": (0.7, 0.0, 2.0),
}
"""Start, least and most of each multiplier of the formulas."""
NAMES = tuple(MULTIPLIERS)
MEASURED = (0.6, 1.6)
"""What a measured service time may be of the believed one; beyond it the measurement is not believed."""
LEAST_MARGIN, WAITS = 1.2, 0.85
"""A margin is not lowered below this, p99 service times; elsewhere it leaves a request this share of its SLO."""
FULL, STRAIN_KEPT, MOST_STRAIN = (0.5, 1.3), 3.0, 1.5
"""Strain is measured where the load is within these parts of the machines ready; over these boot times; its most.
On validation situations 1.5 to 6 boot times, and a least below 1, were all within 0.2% of cost."""
ERRORS_KEPT = 20.0
"""Boot times over which the errors of the averages are remembered."""
_HOME_STATICS = {name: STATICS.index(name) for name in ("function_price", "service_spread", "spot_price")}


@cache
def constants(section: str) -> Mapping[str, float]:
    """Return a section of ``controllers/constants.toml``: constants that were tuned over training situations."""
    found = tomllib.loads((FOLDER / "constants.toml").read_text(encoding="utf-8"))[section]
    return {name: value for name, value in found.items() if isinstance(value, float | int)}


def multipliers(values: Mapping[str, float] | None = None) -> np.ndarray:
    """Return multipliers [C] in the order of :data:`NAMES`: the tuned ones, with ``values`` in their place."""
    own = {**constants("analytic"), **(values or {})}
    return np.array([own.get(name, MULTIPLIERS[name][0]) for name in NAMES])


class Pilot:
    """Formulas at the helm of a flock.

    Args:
        flock: the worlds' planners.
        values: multipliers [C], or [E, C] one set a world (default: the tuned ones).
    """

    def __init__(self, flock: Flock, values: np.ndarray | None = None) -> None:
        self.flock = flock
        self.values = np.broadcast_to(multipliers() if values is None else values, (flock.shape[0], len(NAMES)))
        most = max(p.max_batch for c in flock.cases for p in c.scenario.pools)
        self._believed = np.stack([_believed(c.scenario, flock.pools, most) for c in flock.cases])
        self._before = np.stack([_before(c, self._believed.shape[-1]) for c in flock.cases])
        weight = flock.of_role / np.maximum(1, flock.of_role.sum(axis=2, keepdims=True))
        self.pays, on_spot = (weight * flock.pays[:, None]).sum(axis=2).T  # at home; see ``Steering.pays``
        # of a machine where the load is served, over that of its work on functions
        self._price = ndtr(-np.where(flock.has_spot > 0, on_spot, self.pays))
        used = flock.share[:, :, 0] > 0
        room = WAITS * flock.slo_s[:, :, None] / np.maximum(flock.target_s, 1e-9)
        self._room = np.where(used & np.isfinite(flock.target_s), room, np.inf).min(axis=(1, 2))
        self.start()

    def start(self) -> None:
        """Forget what was measured."""
        n = len(self.values)
        self._busy, self._expected = np.zeros(n), np.zeros(n)
        self.strain = np.ones(n)
        """[E] what the machines are believed to carry, over the load that they are full at; more where batches stay
        small or bursts within seconds leave for functions while machines idle a moment later."""
        self.errors = np.ones((n, len(WINDOWS)))
        """[E, J] mean absolute error of each average of the load as a forecast at the boot horizon, relative."""
        self._set()

    def observe(self, seen: Seen) -> None:
        """Take in the interval that just ended."""
        flock = self.flock
        flock.observe(seen)
        if seen.time_s > 0:
            machines = ~flock.function
            keep = np.exp(-seen.interval_s / (10 * flock.boot_s))
            asked = seen.served
            if self._before.any():  # what the second stage answered the first was asked before
                asked = asked + np.einsum("epbk,ekab->epak", asked, self._before)
            expected = np.einsum("epmk,epm->ep", asked, self._in_batches(seen.batch_mean))
            self._busy = keep * self._busy + (seen.busy_slot_s * machines).sum(axis=1)
            self._expected = keep * self._expected + (expected * machines).sum(axis=1)
            self._judge(seen)
            self._measure_strain(seen)
        self._set()

    def _set(self) -> None:
        self.flock.factor, self.flock.base = self.measured(), self.settings()

    def _judge(self, seen: Seen) -> None:
        """Compare what each average of a boot time ago said with the load now."""
        flock, e = self.flock, np.arange(len(self.values))
        unit = flock.unit
        before = flock.past[e, flock._at + flock._room - flock._lag]
        said = (before * unit[:, None]).sum(axis=2)
        now = (seen.arrivals / seen.interval_s * unit).sum(axis=1)
        known = (flock._n_past > flock._lag) & said.any(axis=1)
        part = known * np.minimum(1.0, seen.interval_s / (ERRORS_KEPT * flock.boot_s))
        self.errors += part[:, None] * (np.abs(said - now[:, None]) / flock.slow()[:, None] - self.errors)

    def _measure_strain(self, seen: Seen) -> None:
        """Compare what functions answered with what the machines had no room for, by the load as it came."""
        flock, factor = self.flock, self.measured()
        answered = (seen.served.sum(axis=2) * flock.function[:, :, None]).sum(axis=1)
        load, over = (factor * (x * flock.unit).sum(axis=1) / seen.interval_s for x in (seen.arrivals, answered))
        ready = (seen.ready * ~flock.function).sum(axis=1)
        full = (ready > 0) & (load > FULL[0] * ready) & (load < FULL[1] * ready)
        part = full * np.minimum(1.0, seen.interval_s / (STRAIN_KEPT * flock.boot_s))
        error = over - np.maximum(0.0, self.strain * load - ready)
        self.strain = np.clip(self.strain + part * error / np.maximum(load, 1e-9), 1.0, MOST_STRAIN)

    def measured(self) -> np.ndarray:
        """Return mean service times over the believed ones, [E]; 1 until a minute of work was seen."""
        known = self._expected > 60
        return np.where(known, np.clip(self._busy / np.maximum(self._expected, 1e-9), *MEASURED), 1.0)

    def _in_batches(self, mean: np.ndarray) -> np.ndarray:
        """Return believed seconds of a request [E, P, M] in batches of these mean sizes [E, P]."""
        e, p = np.ogrid[: mean.shape[0], : mean.shape[1]]
        size = np.clip(mean, 1, self._believed.shape[2])
        low = np.floor(size).astype(int)
        below, above = self._believed[e, p, low - 1], self._believed[e, p, np.ceil(size).astype(int) - 1]
        return below + (size - low)[..., None] * (above - below)

    def settings(self) -> np.ndarray:
        """Return the planner's numbers [E, N]."""
        flock, c = self.flock, dict(zip(NAMES, self.values.T, strict=True))
        boot, statics, factor = flock.boot_s / 100, flock.statics, self.measured()
        # the machine that a function replaces is a spot machine where spot machines carry the load
        cheap = flock.has_spot * c["spot_share"] * statics[:, _HOME_STATICS["spot_price"]]
        price = np.exp(statics[:, _HOME_STATICS["function_price"]] - c["hold_by_spot"] * cheap) / 3
        spread = statics[:, _HOME_STATICS["service_spread"]] / 2
        quick = np.exp(-4 * self.errors / self.errors.min(axis=1, keepdims=True))
        follow = (quick * np.log(WINDOWS)).sum(axis=1) / quick.sum(axis=1)
        fast = (1 - c["trust"]) * (np.log(c["fast"]) + c["fast_by_boot"] * np.log(boot)) + c["trust"] * follow
        part = 0.5 + c["rounding"] * (rounding(self._price, c["spread"] * flock.change()) - 0.5)
        strain = 1 + c["capacity"] * (self.strain - 1)
        hold = c["hold"] * price ** c["hold_by_price"] * boot ** c["hold_by_boot"]
        found = {
            "headroom": factor * strain * np.maximum(0.7, c["headroom"] - part / np.maximum(1.0, flock.slow())),
            "safety": factor * (c["quantile"] * self.pays + c["safety"]) - self.pays,
            "fast": np.clip(np.exp(fast), WINDOWS[0], WINDOWS[-1]), "slow": c["slow"], "weight": c["weight"],
            "hold": np.clip(hold, 0.0, LONGEST_HOLD), "drain": c["drain"] / factor,
            "leave_margin": self._leave(factor * (c["leave"] + c["leave_by_spread"] * spread)),
            "cold_margin": c["cold"],
            "spot_share": self._spot_share(c["spot_share"]),
            "spot_headroom": c["spot_headroom"], "spot_caution": c["spot_caution"],
            "late_binding": factor * c["late_binding"],
        }  # fmt: skip
        return np.stack([found[name] for name in AT], axis=1)

    def _leave(self, margin: np.ndarray) -> np.ndarray:
        """Return the margin, [E], lowered where it would make requests leave as soon as they come.

        A margin as long as the tightest SLO buys no punctuality: it turns every wait into a call of a function.
        """
        return np.minimum(margin, np.maximum(LEAST_MARGIN, self._room))

    def _spot_share(self, share: np.ndarray) -> np.ndarray:
        """Return the share for spot machines that leaves whole machines at home, [E].

        Machines are rounded up: of five, a twentieth at home would be a whole one, at the price of three on the spot
        market. A quarter of a machine less than whole keeps it whole when the load rises a little.
        """
        load = np.maximum(self.flock.slow(), 1e-9)
        home = np.rint((1 - share) * load)
        return np.where(home > 0, 1 - np.minimum(1.0, np.maximum(home - 0.25, 0.0) / load), 1.0)

    def orders(self) -> Orders:
        """Return what the formulas decide."""
        return self.flock.decide(self.flock.base, self.flock.base_level)


def rounding(price: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return the part of a machine above which a whole one is taken, of the machines at the newsvendor's quantile.

    With n machines one more takes E[min(max(load - n, 0), 1)] of their work from functions. It pays where that is more
    than its price over that of a machine's work on functions. A load that is sure needs it above that part, then, and
    one that spreads over many machines above a half; between them this is a fit, within 0.03 of normal loads.

    Args:
        price: of a machine over that of its work on functions, 0.03 to 0.6.
        spread: standard deviation of the load, machines.
    """
    return 0.5 + (price - 0.5) / (1 + 5 * spread)


def _before(case: Case, models: int) -> np.ndarray:
    """Return [K, M, M] 1 where a class's cascade asks the first model before the second."""
    found = np.zeros((len(case.routes), models, models))
    for k, routes in enumerate(case.routes):
        for way in (w for w in map(way_of, routes) if isinstance(w, Cascade)):
            found[k, way.cheap, way.better] = 1
    return found


def _believed(scenario: Scenario, pools: int, most: int) -> np.ndarray:
    """Return believed seconds of a request [pools, batch size - 1, M], 0 where a model is not resident."""
    found = np.zeros((pools, most, len(scenario.models)))
    for p, pool in enumerate(scenario.pools):
        for b in range(1, most + 1):
            size = min(b, pool.max_batch)
            found[p, b - 1, list(pool.models)] = [pool.service_s(m, size) / size for m in pool.models]
    return found
