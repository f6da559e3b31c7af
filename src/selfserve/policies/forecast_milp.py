"""An integer program on a forecast (IPA, JSys'24; SageServe, 2025): the strongest recipe that was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from selfserve.forecast import Of, make_forecaster
from selfserve.planner import Overflow
from selfserve.policies.base import Choice, PlannerPolicy, Range
from selfserve.policies.variants import Variant, batching_pays, variants, vm_pools, waiting
from selfserve.protocol import Admit, Decision, Observation, Route, Step
from selfserve.quiet import unheard
from selfserve.scenario import Scenario
from selfserve.selector import MEAN_MARGIN_PCT, ModelChoice

BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""The batch sizes that IPA profiles and chooses from."""


@dataclass(kw_only=True, eq=False)
class ForecastMilp(PlannerPolicy):
    """Every interval an integer program chooses variants, replicas and batches for the load that a network forecasts.

    IPA (its artifact, ``optimizer/``): maximise alpha times accuracy less beta times cost less delta times batch, such
    that a variant's batch latency and the time its batch takes to fill meet the SLO and replicas carry the load; an
    LSTM forecasts the highest load until the next change can take effect, times a margin. SageServe adds what keeps
    such a plan honest: between plans it reacts to what waits. Weights are those of the artifact's video pipeline
    (``data/configs/final/video-1.yaml``): alpha 2, beta 1, with cost in cores and accuracy from 0 for the least to 1
    for the most accurate variant of a class; delta only breaks ties. Interpreted: a core costs what it does on the
    cheapest pool; accuracy demands are constraints here; the margin is none, since a maximum is forecast; what a new
    machine costs while it boots counts, load is shared among machines that are up (where these cannot take a class the
    plan stands), and only an accelerator's batch waits to fill (a free CPU takes what is there); a class may be split
    among variants on CPUs (as in InfAdapter, EuroMLSys'23), which a mean accuracy needs, but has one on an accelerator
    (requests of a class do not overtake each other, so that a mix would break its batches up); a replica is a machine,
    since every machine holds all models, so a pool has one batch size and its replicas serve all classes. Neither paper
    has functions: ``overflow`` adds Mixed's rule, which makes this the strongest comparison.

    Args:
        headroom: one plus IPA's margin on the forecast.
        forecaster: lstm (the papers'), or another of :data:`selfserve.forecast.FORECASTERS`.
        of: what is forecast over the time that a machine takes to come up: max (IPA's), mean or last.
        alpha: worth of accuracy: cores that the step from a class's least to its most accurate variant may cost.
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
        "alpha": Range(0.0, 20.0),
        "overflow": Choice(("fits", "last_moment", "never")),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("headroom", (0.6, 0.75, 0.9, 1.0, 1.15, 1.35, 1.6))
    limits: ClassVar = {"0 or more": "alpha", "in (0, 1]": "slo_share", "1 or more": "largest_batch"}
    models: ClassVar[ModelChoice] = "cheapest"  # type: ignore[misc]
    keep_s: float = 60.0
    forecaster: Literal["lstm", "last_value", "moving_average", "linear_trend", "holt"] = "lstm"
    of: Of = "max"
    alpha: float = 2.0
    slo_share: float = 0.5
    largest_batch: int = 64
    overflow: Overflow = "never"
    seed: int = 0

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
        self._several = len(pools) > 1
        self._arrays()

    def decide(self, observation: Observation) -> Decision:
        """Forecast, plan the machines, share the load among those that are up, and react to what waits."""
        planner, monitor = self.planner, self.planner.monitor
        monitor.observe(observation)
        recent = monitor.rate(600) if observation.time_s > 0 else monitor.last
        horizon_s = planner.boot_horizon_s + observation.interval_s
        load = self.headroom * self._forecaster.predict(monitor.recent(3600).sum(axis=1), horizon_s, self.of)
        rates = load * recent / max(float(recent.sum()), 1e-9)
        alive = observation.ready + observation.booting.sum(axis=1)
        plan = self._solve(rates, alive, self._most)
        assert plan is not None  # machines may be missing at a price, so that some plan exists
        shares, batches = plan
        machines = self._load(rates) @ shares
        if self._several and observation.ready[self._pool_of].any():
            now = self._solve(monitor.last, observation.ready, observation.ready)
            shares, batches = now if now is not None else (shares, batches)
        drain_s = planner.boot_horizon_s if self.drain_s is None else self.drain_s
        behind = waiting(planner, observation, self._class @ (shares * self._work_s))
        needed = planner.resources.machines(machines + behind / max(drain_s, observation.interval_s))
        note = f"; {self._forecaster.note}" if self._forecaster.note else ""
        reason = f"{load:.1f} requests/s foreseen need {sum(needed)} machines{note}"
        fleet = planner.keep(observation, needed)
        return Decision(fleet, self._as_routes(shares), tuple(batches.tolist()), self._waits(shares), reason)

    def _arrays(self) -> None:
        """Lay out what does not change: options [n] by class, by pool and by batch size in use."""
        scenario, found = self.planner.scenario, [v for _, v in self._options]
        sizes = sorted({(v.pool, v.batch) for v in found})
        self._k_of, self._pool_of = np.array([k for k, _ in self._options]), np.array([v.pool for v in found])
        self._batch, self._latency_s = np.array([v.batch for v in found]), np.array([v.latency_s for v in found])
        self._work_s, self._machines = np.array([v.work_s for v in found]), np.array([v.machines for v in found])
        self._usd, self._accuracy = np.array([v.usd for v in found]), np.array([v.accuracy_pct for v in found])
        cores = [spec.usd_per_hour / (spec.slots * spec.threads) for spec in scenario.pools if not spec.is_function]
        low, high = (
            np.array([of(self._accuracy[self._k_of == k]) for k in range(len(scenario.classes))])
            for of in (np.min, np.max)
        )
        part = (self._accuracy - low[self._k_of]) / np.maximum(high - low, 1e-9)[self._k_of]
        self._worth_usd_s = self.alpha * min(cores) / 3600 * part
        self._class = np.equal.outer(np.arange(len(scenario.classes)), self._k_of).astype(float)
        self._pool = np.equal.outer(np.arange(len(scenario.pools)), self._pool_of).astype(float)
        self._size = np.array([[float((v.pool, v.batch) == s) for v in found] for s in sizes])
        self._size_pool = np.array([[float(p == s[0]) for s in sizes] for p in range(len(scenario.pools))])
        self._pays = [not s.is_function and batching_pays(self.planner, p) for p, s in enumerate(scenario.pools)]
        self._most = np.array([spec.max_machines for spec in scenario.pools])
        self._slo_s = self.slo_share * np.array([c.slo_s for c in scenario.classes])
        wanted = [(c.mean_accuracy_pct or -MEAN_MARGIN_PCT) + MEAN_MARGIN_PCT for c in scenario.classes]
        self._mean = np.minimum(wanted, high)

    def _load(self, rates: np.ndarray) -> np.ndarray:
        """Return the machines [P, options] that all of a class's requests keep busy as an option."""
        return self._pool * (rates[self._k_of] * self._machines)

    def _solve(self, rates: np.ndarray, alive: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return shares [options] and batches [P] for ``rates`` [K], with ``alive`` of at most ``most`` machines [P].

        None where some class has no variant in the pools that have machines.

        Variables: shares; per pool the machines, those missing and those to be launched, whose boot is paid for in the
        time planned for; and each batch size in use.
        """
        n, pools, sizes, kinds = len(self._options), len(most), len(self._size), len(rates)
        specs, vm = self.planner.scenario.pools, self.planner.scenario.vm
        usd_s, of_rate = np.array([spec.usd_per_hour / 3600 for spec in specs]), rates[self._k_of]
        # Of equal fleets the least busy one, and of these the one with the smallest batches.
        share_usd = of_rate * 1e-6 * self._usd - self._worth_usd_s + 1e-12 * self._batch
        boot = vm.boot_s / max(self.planner.boot_horizon_s, 1.0)
        cost = np.r_[share_usd, usd_s, 1e3 * usd_s, boot * usd_s, np.zeros(sizes)]
        eye, none, off = np.eye(pools), np.zeros((pools, pools)), np.zeros((kinds, 3 * pools + sizes))
        rows = np.block(
            [
                [self._class, off],
                [self._class * self._accuracy, off],
                [self._load(rates), -eye, -eye, none, np.zeros((pools, sizes))],
                [np.zeros((pools, n)), eye, none, -eye, np.zeros((pools, sizes))],
                [np.zeros((pools, n + 3 * pools)), self._size_pool],
                [self._size, np.zeros((sizes, 3 * pools)), -kinds * np.eye(sizes)],
            ]
        )
        low = np.r_[np.ones(kinds), self._mean, np.full(len(rows) - 2 * kinds, -np.inf)]
        high = np.r_[np.ones(kinds), np.full(kinds, np.inf), np.zeros(pools), alive, np.ones(pools), np.zeros(sizes)]
        in_time = (self._batch - 1) / np.maximum(of_rate, 1e-9) + self._latency_s <= self._slo_s[self._k_of]
        able = ((self._batch == 1) | in_time) & (most[self._pool_of] > 0)
        upper = np.r_[able, most, np.full(2 * pools, np.inf), np.ones(sizes)]
        whole = np.r_[np.array(self._pays)[self._pool_of], np.ones(pools), np.zeros(2 * pools), np.ones(sizes)]
        with unheard():
            x = milp(cost, integrality=whole, bounds=Bounds(0, upper), constraints=LinearConstraint(rows, low, high)).x
        if x is None:
            return None
        shares = np.where(x[:n] > 1e-4, x[:n], 0.0)
        batches = np.ones(pools, dtype=np.int64)
        np.maximum.at(batches, self._pool_of[shares > 0], self._batch[shares > 0])
        return shares, batches

    def _waits(self, shares: np.ndarray) -> tuple[float, ...]:
        """Return how long an accelerator's batch waits to fill: what its share of the SLO leaves, seconds [P]."""
        spare = np.where(shares > 0, self._slo_s[self._k_of] - self._latency_s, np.inf)
        least = [spare[self._pool_of == p].min(initial=np.inf) if pays else 0.0 for p, pays in enumerate(self._pays)]
        return tuple(float(max(s, 0.0)) if s < np.inf else 0.0 for s in least)

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
