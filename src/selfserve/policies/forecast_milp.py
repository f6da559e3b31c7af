"""An integer program on a forecast (IPA, JSys'24; SageServe, 2025): the strongest recipe that was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from selfserve.forecast import Of, make_forecaster
from selfserve.planner import MEAN_MARGIN_PCT, ModelChoice, Overflow
from selfserve.policies.base import Choice, PlannerPolicy, Range
from selfserve.policies.variants import Variant, variants, vm_pools, waiting
from selfserve.protocol import Admit, Decision, Observation, Route, Step
from selfserve.scenario import Scenario

BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""The batch sizes that IPA profiles and chooses from."""


@dataclass(kw_only=True, eq=False)
class ForecastMilp(PlannerPolicy):
    """Every interval an integer program chooses variants, replicas and batches for the load that a network forecasts.

    IPA (its artifact, ``optimizer/``): maximise alpha times accuracy less beta times cost less delta times batch, such
    that a variant's batch latency and the time its batch takes to fill meet the SLO and replicas carry the load; an
    LSTM forecasts the highest load until the next change can take effect, times a margin. SageServe adds what keeps
    such a plan honest: between plans it reacts to what waits. Interpreted: beta is 1 and cost in dollars; alpha is in
    dollars per million answers and point above what the class asks for, 0 by default, since the demands are constraints
    here; delta only breaks ties; the margin was not read; a class may be split among variants (as in InfAdapter,
    EuroMLSys'23), which a mean accuracy needs; a replica is a machine, since every machine holds all models, so a pool
    has one batch size and its replicas serve all classes. Neither paper has functions. By default this one overflows as
    Mixed does where there are any, to be the strongest comparison; ``overflow=never`` is the published recipe.

    Args:
        headroom: one plus IPA's margin on the forecast.
        forecaster: lstm (the papers'), or another of :data:`selfserve.forecast.FORECASTERS`.
        of: what is forecast over the time that a machine takes to come up: max (IPA's), mean or last.
        alpha: worth of accuracy above the demand, dollars per million answers and point.
        slo_share: share of the SLO that filling and serving a batch may take.
        largest_batch: largest batch that the program may choose.
        overflow: when a request leaves for a function: never, idle, fits or last_moment.
        seed: of the network.
    """

    name: ClassVar[str] = "forecast_milp"
    tunable: ClassVar = {
        "headroom": Range(0.7, 1.6),
        "keep_s": Range(0.0, 600.0),
        "forecaster": Choice(("lstm", "moving_average", "linear_trend", "holt")),
        "of": Choice(("max", "mean", "last")),
        "slo_share": Range(0.2, 1.0),
        "overflow": Choice(("fits", "last_moment", "never")),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.6, 0.75, 0.9, 1.0, 1.15, 1.35, 1.6))
    models: ClassVar[ModelChoice] = "cheapest"  # type: ignore[misc]
    headroom: float = 1.3
    keep_s: float = 60.0
    forecaster: Literal["lstm", "last_value", "moving_average", "linear_trend", "holt"] = "lstm"
    of: Of = "max"
    alpha: float = 0.0
    slo_share: float = 0.5
    largest_batch: int = 64
    overflow: Overflow = "fits"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        self.check(self.alpha >= 0, "alpha", "0 or more")
        self.check(0 < self.slo_share <= 1, "slo_share", "in (0, 1]")
        self.check(self.largest_batch >= 1, "largest_batch", "1 or more")

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Train the network on the history and list the variants."""
        super().reset(scenario, history)
        planner = self.planner
        self._forecaster = make_forecaster(
            self.forecaster, planner.boot_horizon_s + float(self.interval_s or 0), self.seed
        )
        self._forecaster.fit(history)
        self._rule: Overflow = self.overflow if planner.functions.pools else "never"
        pools = vm_pools(planner, self.pool)
        self._options: list[tuple[int, Variant]] = []
        sizes = [b for b in BATCHES if b <= self.largest_batch]
        for k, c in enumerate(scenario.classes):
            for b in sizes:
                fit = [p for p in pools if b <= scenario.pools[p].max_batch]
                found = variants(planner, k, fit, c.min_accuracy_pct, self.slo_share, dict.fromkeys(fit, b))
                self._options += [(k, v) for v in found if b == 1 or v.latency_s <= self.slo_share * c.slo_s]
        self._solved: dict[tuple[float, ...], tuple[np.ndarray, ...]] = {}

    def decide(self, observation: Observation) -> Decision:
        """Forecast, plan, and react to what waits."""
        planner, monitor = self.planner, self.planner.monitor
        monitor.observe(observation)
        window = monitor.recent(3600)
        recent = monitor.rate(600) if observation.time_s > 0 else monitor.last
        horizon_s = planner.boot_horizon_s + observation.interval_s
        load = self.headroom * self._forecaster.predict(window.sum(axis=1), horizon_s, self.of)
        rates = load * recent / max(float(recent.sum()), 1e-9)
        shares, machines, batches = self._plan(rates)
        work_s = np.zeros(len(rates))
        for (k, v), share in zip(self._options, shares, strict=True):
            work_s[k] += share * v.work_s
        behind = waiting(planner, observation, work_s) / max(self._drain(), observation.interval_s)
        needed = planner.resources.machines(machines + behind)
        fleet = planner.keep(observation, needed)
        waits = [self._forecaster.note] if self._forecaster.note else []
        reason = "; ".join([f"{load:.1f} requests/s foreseen need {sum(needed)} machines", *waits])
        return Decision(fleet, self._as_routes(shares), tuple(batches.tolist()), reason=reason)

    def _drain(self) -> float:
        return self.planner.boot_horizon_s if self.drain_s is None else self.drain_s

    def _plan(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return shares [options], machines [P] and batches [P]; solved anew where the rates differ."""
        key = tuple(np.round(rates, 3).tolist())
        if key not in self._solved:
            self._solved = {key: self._solve(rates)}
        shares, machines, batches = self._solved[key]
        return shares, machines, batches

    def _solve(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Variables: a share per option, then machines per pool, machines missing per pool, each batch size in use."""
        classes, specs = self.planner.scenario.classes, self.planner.scenario.pools
        options, n_pools = self._options, len(specs)
        sizes = sorted({(v.pool, v.batch) for _, v in options})
        n, total = len(options), len(options) + 2 * n_pools + len(sizes)
        k_of, pool_of = np.array([k for k, _ in options]), np.array([v.pool for _, v in options])
        size_of = np.array([sizes.index((v.pool, v.batch)) for _, v in options])
        accuracy = np.array([v.accuracy_pct for _, v in options])
        batch = np.array([v.batch for _, v in options])
        usd_s = np.array([spec.usd_per_hour / 3600 for spec in specs])
        cost = np.r_[
            -1e-6 * self.alpha * rates[k_of] * accuracy + 1e-12 * batch, usd_s, 1e3 * usd_s, np.zeros(len(sizes))
        ]
        cost[:n] += 1e-6 * rates[k_of] * [v.usd for _, v in options]  # of equal fleets the least busy one

        rows = np.zeros((2 * len(classes) + 2 * n_pools + n, total))
        low, high = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
        for k, c in enumerate(classes):
            mine = np.flatnonzero(k_of == k)
            rows[k, mine] = low[k] = high[k] = 1.0
            rows[len(classes) + k, mine] = accuracy[mine]
            low[len(classes) + k] = min((c.mean_accuracy_pct or 0.0) + MEAN_MARGIN_PCT, accuracy[mine].max())
        at = 2 * len(classes)
        for p in range(n_pools):
            mine = np.flatnonzero(pool_of == p)
            rows[at + p, mine] = rates[k_of[mine]] * [options[o][1].machines for o in mine]
            rows[at + p, [n + p, n + n_pools + p]], high[at + p] = -1.0, 0.0
            rows[at + n_pools + p, [n + 2 * n_pools + i for i, s in enumerate(sizes) if s[0] == p]] = 1.0
            high[at + n_pools + p] = 1.0
        at += 2 * n_pools
        rows[at + np.arange(n), np.arange(n)], rows[at + np.arange(n), n + 2 * n_pools + size_of], high[at:] = (
            1.0,
            -1.0,
            0.0,
        )

        slo_s = self.slo_share * np.array([c.slo_s for c in classes])
        fill_s = (batch - 1) / np.maximum(rates[k_of], 1e-9) + [v.latency_s for _, v in options]
        upper = np.r_[
            (batch == 1) | (fill_s <= slo_s[k_of]),
            [s.max_machines for s in specs],
            np.full(n_pools, np.inf),
            np.ones(len(sizes)),
        ]
        whole = np.r_[np.zeros(n), np.ones(n_pools), np.zeros(n_pools), np.ones(len(sizes))]
        x = milp(cost, integrality=whole, bounds=Bounds(0, upper), constraints=LinearConstraint(rows, low, high)).x
        shares = np.where(x[:n] > 1e-4, x[:n], 0.0)
        machines = np.bincount(pool_of, shares * rates[k_of] * [v.machines for _, v in options], n_pools)
        batches = np.ones(n_pools, dtype=np.int64)
        np.maximum.at(batches, pool_of[shares > 0], batch[shares > 0])
        return shares, machines, batches

    def _as_routes(self, shares: np.ndarray) -> tuple[tuple[Route, ...], ...]:
        """Return each class's variants by their shares, a function after each where the rule says so."""
        routes: list[list[Route]] = [[] for _ in self.planner.scenario.classes]
        admit = {"idle": Admit.IF_IDLE, "fits": Admit.IF_FITS}.get(self._rule, Admit.ALWAYS)
        for (k, v), share in zip(self._options, shares.tolist(), strict=True):
            if share > 0:
                target = None if self._rule == "never" else self.planner.functions.choose(k, v.model)
                steps: Sequence[Step] = (Step(v.pool, v.model),)
                if target:
                    steps = (Step(v.pool, v.model, admit, self._leave_s(k, *target)), Step(*target))
                routes[k].append(Route(tuple(steps), share))
        return tuple(map(tuple, routes))

    def _leave_s(self, k: int, pool: int, model: int) -> float:
        """Return the slack at which a request leaves: in time for a cold start if the SLO has room for one."""
        warm_s, init_s = self.planner.models.latency_s(pool, model), self.planner.scenario.function.init_s
        return warm_s + init_s if 2 * (warm_s + init_s) <= self.planner.scenario.classes[k].slo_s else warm_s
