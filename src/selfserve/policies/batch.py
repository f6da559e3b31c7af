"""BATCH (SC'20): functions only, with memory, batch size and timeout from an analytic model of the arrivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar

import numpy as np
from scipy.stats import norm, poisson

from selfserve.errors import require
from selfserve.planner import LoadMonitor
from selfserve.policies.base import Choice, Limited, Range
from selfserve.protocol import Decision, Observation, Route, Step
from selfserve.scenario import Scenario
from selfserve.selector import Mix, ModelChoice, ModelSelector


@dataclass(kw_only=True, eq=False)
class Batch(Limited):
    """The memory, batch size and timeout of least cost whose latency percentile meets the SLO, for the load of late.

    SC'20 sections IV and V: requests wait in a buffer until it holds a batch or the first has waited for the timeout;
    arrivals are fitted by a Markovian process (MMPP of two states for bursts), from which follow the distributions of
    batch size and latency and so the expected cost; an exhaustive search takes the cheapest setting whose latency
    percentile (the 95th) is within the SLO, again whenever arrivals have changed. Interpreted: states last longer than
    a timeout, so that inside a state arrivals are Poisson; its two rates are the means of the seconds above and below
    the mean of the last ``window_s``; service times are lognormal about the profile; settings are found anew every
    ``interval_s`` (the paper does not say how often); the buffer is a function pool's, so all classes in a pool share
    its size and timeout, though a batch holds one model. Cold starts are left out, as in the paper. If nothing meets
    the SLO, every request goes alone, to the most memory.

    Args:
        percentile: of the latency that must meet the SLO, 0 to 1.
        window_s: seconds of arrivals that the process is fitted to.
        headroom: share of the SLO that may be used.
        models: how the models of a class are chosen.
    """

    name: ClassVar[str] = "batch"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        "percentile": Range(0.5, 0.999),
        "window_s": Range(30, 3600, log=True, integer=True),
        "headroom": Range(0.2, 1.2),
        "interval_s": Range(10.0, 600.0, log=True),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (1.2, 1.1, 1.0, 0.85, 0.7, 0.5, 0.3))
    limits: ClassVar = {
        "between 0 and 1": "percentile",
        "1 or more": "interval_s",
        "2 or more": "window_s",
        "0 or more": "headroom",
    }
    interval_s: float = 60.0
    percentile: float = 0.95
    window_s: int = 600
    headroom: float = 1.0
    models: ModelChoice = "single"
    monitor: LoadMonitor = field(init=False, repr=False)

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Start a run; raises :class:`InputError` if the scenario has no function pool."""
        self.scenario = scenario
        self.pools = sorted((p for p, x in enumerate(scenario.pools) if x.is_function), key=self._memory)
        names = ", ".join(p.name for p in scenario.pools)
        require(bool(self.pools), f"policy needs one: scenario {scenario.name} has no function pool (pools: {names})")
        self.monitor = LoadMonitor(scenario, history, self.interval_s)
        self.selector = ModelSelector(scenario, self.models)
        able = [[p for p in self.pools if self.selector.serves(k, p)] for k in range(len(scenario.classes))]
        self._able = [pools or [self.pools[-1]] for pools in able]
        """Pools that may serve each class: those of enough memory to be in time."""

    def _memory(self, pool: int) -> float:
        return self.scenario.pools[pool].memory_mb

    def decide(self, observation: Observation) -> Decision:
        """Fit the arrivals of late and take the cheapest setting that meets every class's percentile."""
        self.monitor.observe(observation)
        states = self.fit()
        choice, settings, cost = min(self._settings(states), key=lambda option: option[2])
        batch, wait = [1] * len(self.scenario.pools), [0.0] * len(self.scenario.pools)
        for p, (b, timeout_s) in settings.items():
            batch[p], wait[p] = b, timeout_s
        routes = tuple(
            tuple(Route((Step(p, m),), share) for m, share in self.selector.mix(k, p)) for k, p in enumerate(choice)
        )
        text = "; ".join(f"{self.scenario.pools[p].name}: {b} in {t:.3f} s" for p, (b, t) in settings.items())
        return Decision((0,) * len(batch), routes, tuple(batch), tuple(wait), f"{text}, ${cost * 3600:.2f} an hour")

    def fit(self) -> list[tuple[float, np.ndarray]]:
        """Return the states of the arrivals: the share of time spent in each and its requests/s per class, [K]."""
        rows = self.monitor.recent(self.window_s)
        total = rows.sum(axis=1)
        busy = total > total.mean() if len(rows) else np.zeros(0, dtype=bool)
        parts = [rows[busy], rows[~busy]] if busy.any() and not busy.all() else [rows]
        return [(len(part) / len(rows), part.mean(axis=0)) for part in parts if len(part)]

    def _settings(
        self, states: Sequence[tuple[float, np.ndarray]]
    ) -> list[tuple[tuple[int, ...], dict[int, tuple[int, float]], float]]:
        """Return, for every assignment of classes to pools, the best batch and timeout of each pool and the $/s."""
        tables = {(k, p): self.table(k, p, states) for k, pools in enumerate(self._able) for p in pools}
        found = []
        for choice in product(*self._able):
            settings, total = {}, 0.0
            for p in sorted(set(choice)):
                mine = [tables[k, p] for k, chosen in enumerate(choice) if chosen == p]
                cost = sum(c for c, _ in mine)
                meets = np.all([ok for _, ok in mine], axis=0)
                cost = np.where(meets, cost, np.inf)
                same = cost <= cost.min() * (1 + 1e-6)  # of what costs the same, the shortest wait
                best = np.unravel_index(int(same.T.argmax()), same.T.shape)[::-1]
                timeouts = self.timeouts()
                if not meets.any():  # alone and at once is the nearest to in time
                    total += 1e6 - self._memory(p)
                    settings[p] = (1, 0.0)
                    continue
                settings[p] = (int(best[0]) + 1, float(timeouts[best[1]]) if best[0] else 0.0)
                total += float(cost[best])
            found.append((choice, settings, total))
        return found

    def timeouts(self) -> np.ndarray:
        """Return the timeouts tried, seconds: an even grid up to the largest SLO, finer where it is small."""
        return np.concatenate(([0.0], np.geomspace(0.005, max(c.slo_s for c in self.scenario.classes), 24)))

    def table(self, k: int, pool: int, states: Sequence[tuple[float, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Return what class ``k`` costs on ``pool`` and whether its percentile is met, for batches x timeouts.

        Returns:
            $/s and bool, each of shape [batches, timeouts].
        """
        spec, timeouts = self.scenario.pools[pool], self.timeouts()
        cost = np.zeros((spec.max_batch, len(timeouts)))
        met, requests = np.zeros_like(cost), 0.0
        mix: Mix = self.selector.mix(k, pool)
        for model, share in mix:
            service_s = np.array([spec.service_s(model, b) for b in range(1, spec.max_batch + 1)])
            usd = service_s / 3600 * spec.usd_per_busy_hour + spec.usd_per_request
            for time_share, rates in states:
                rate = float(rates[k]) * share
                for b in range(1, spec.max_batch + 1):
                    sizes = batch_sizes(rate, b, timeouts)
                    mean = sizes @ np.arange(1, b + 1)
                    cost[b - 1] += time_share * rate * (sizes @ usd[:b]) / mean
                    met[b - 1] += time_share * rate * self._in_time(k, rate, sizes, service_s[:b], timeouts) / mean
                requests += time_share * rate
        return cost, met >= self.percentile * requests - 1e-12

    def _in_time(
        self, k: int, rate: float, sizes: np.ndarray, service_s: np.ndarray, timeouts: np.ndarray
    ) -> np.ndarray:
        """Return the expected number of requests of a batch answered within the SLO, by timeout."""
        slo_s, b, spread = self.headroom * self.scenario.classes[k].slo_s, len(service_s), self.scenario.service.spread
        slack = slo_s - service_s * np.exp(norm.ppf(self.percentile) * spread)
        good = np.zeros(len(timeouts))
        for j in range(1, b + 1):
            left = slack[j - 1]
            if left < 0:
                continue
            if j < b:  # timed out: the first waited for all of it, the others came at any time since
                some = np.where(timeouts > 0, np.minimum(1.0, left / np.maximum(timeouts, 1e-12)), 1.0)
                good += sizes[:, j - 1] * np.where(timeouts <= left, j, (j - 1) * some)
            else:  # full: the i-th waited for b - i arrivals, if these came before the timeout
                waits = np.arange(b)
                soon = poisson.sf(waits - 1, rate * left).sum()
                good += sizes[:, j - 1] * np.where(timeouts <= left, b, soon)
        return good


def batch_sizes(rate: float, batch: int, timeouts: np.ndarray) -> np.ndarray:
    """Return the distribution of batch sizes 1..``batch`` for Poisson arrivals, shape [timeouts, batch].

    The first request opens a batch; it goes with those that arrive within the timeout, or as soon as it is full.
    """
    more = np.arange(batch)
    sizes = poisson.pmf(more, rate * timeouts[:, None])
    sizes[:, -1] = poisson.sf(batch - 2, rate * timeouts) if batch > 1 else 1.0
    return sizes
