"""Statistical twins of the published traces: a fitted recipe and a seed, small enough to ship, without the data.

The count of second t is ``unit * round(rate(t) * burst(t) / unit)``:

- **rate profile** ``rate(t)``: linear between mean rates of consecutive ``knot_s`` seconds;
- **burst process** ``burst(t)``: a Gaussian process ``z(t)``, a sum of first-order autoregressions of several time
  constants, mapped through the quantiles that count / rate had at that level of the rate (a Gaussian copula, as in
  Cario and Nelson, "Autoregressive to anything", Operations Research Letters 19, 1996);
- **noise**: the part of ``z`` without memory.

Exact times, where the original has them, are uniform inside their second. The recipe keeps the original's statistics as
``targets``, so that closeness can be shown where the original is not at hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import factorial, inf, isfinite, log, sqrt
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from scipy.signal import lfilter
from scipy.special import ndtr

from selfserve.errors import InputError
from selfserve.traces import NS, SOURCES, Trace, autocorrelation, describe, load_published, make_trace

TARGETS = ("mean", "median", "peak", "peak_to_median", "burstiness", "dispersion_1s", "dispersion_60s")
"""Statistics of :func:`selfserve.traces.describe` that a recipe records."""
KNOT_S = 300  #: seconds of a trace that one knot of the rate profile averages
TIME_CONSTANTS_S = (1.0, 3.0, 10.0, 30.0, 100.0)
LEVELS = 8  #: levels of the rate with burst quantiles of their own
Z_GRID = np.linspace(-4.5, 4.5, 37)  #: where, in standard deviations of ``z``, the burst quantiles are tabulated
CANDIDATE_SEEDS = 64  #: seeds among which a fit picks the closest
WIKI = {"mean": 498.0, "peak": 778.0}
"""Requests/s of the Wikipedia trace in the founding paper's figure 6 (WoSC'20, read off the figure)."""


@dataclass(frozen=True)
class Recipe:
    """What a twin is generated from."""

    seconds: int
    unit: int  #: every count is a multiple of it (requests)
    exact_times: bool  #: whether arrivals get exact times
    seed: int  #: of the committed twin
    knot_s: int  #: seconds between knots
    knots: tuple[float, ...]  #: mean requests/s of each ``knot_s`` seconds
    level_edges: tuple[float, ...]  #: requests/s that separate the levels, one fewer than ``burst_quantiles``
    burst_quantiles: tuple[tuple[float, ...], ...]  #: for each level the burst factor at each of ``Z_GRID``
    burst_memory: tuple[tuple[float, float], ...]  #: time constants (s) and shares of the variance of ``z``
    targets: Mapping[str, float]  #: the original's statistics, see ``TARGETS``


def recipe_folder() -> Path:
    """Return the project's folder of recipes, ``traces/``."""
    return Path(__file__).resolve().parents[2] / "traces"


def twin_names() -> list[str]:
    """Return the twins that load by name."""
    return [*(f"{name}-twin" for name in SOURCES), "wiki_like"]


@cache
def load_recipe(name: str) -> Recipe:
    """Return the committed recipe of a twin.

    Raises:
        InputError: the project's ``traces/`` folder does not hold it.
    """
    path = recipe_folder() / f"{name}.json"
    try:
        return Recipe(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"twin {name}: its recipe {path} is not there; install the project in place "
            "(`pip install -e .`), so that its traces/ folder is found"
        ) from error


def load_twin(name: str) -> Trace:
    """Generate a twin from its committed recipe and the seed in it."""
    return generate(name, load_recipe(name))


def _rate(knots: tuple[float, ...] | np.ndarray, knot_s: int, seconds: int) -> np.ndarray:
    """Return requests/s of each second, float64 [seconds]: linear between the middles of the knots."""
    return np.interp(np.arange(seconds) + 0.5, (np.arange(len(knots)) + 0.5) * knot_s, knots)


def _gaussian(memory: tuple[tuple[float, float], ...], seconds: int, rng: np.random.Generator) -> np.ndarray:
    """Return a stationary Gaussian process of variance 1, float64 [seconds]: autoregressions plus white noise."""
    z = rng.standard_normal(seconds) * sqrt(max(0.0, 1.0 - sum(variance for _, variance in memory)))
    for time_constant, variance in memory:
        phi = float(np.exp(-1.0 / time_constant))
        start = rng.standard_normal() * phi
        noise = rng.standard_normal(seconds) * sqrt(1.0 - phi * phi)
        z += sqrt(variance) * lfilter([1.0], [1.0, -phi], noise, zi=[start])[0]
    return z


def generate(name: str, recipe: Recipe, seed: int | None = None) -> Trace:
    """Generate a trace from a recipe; ``seed`` replaces the recipe's own."""
    rng = np.random.Generator(np.random.Philox(recipe.seed if seed is None else seed))
    rate = _rate(recipe.knots, recipe.knot_s, recipe.seconds)
    z = _gaussian(recipe.burst_memory, recipe.seconds, rng)
    level = np.searchsorted(recipe.level_edges, rate)
    burst = np.empty(recipe.seconds)
    for i, quantiles in enumerate(recipe.burst_quantiles):
        burst[level == i] = np.interp(z[level == i], Z_GRID, quantiles)
    counts = (np.rint(rate * burst / recipe.unit) * recipe.unit).astype(np.int64)
    if not recipe.exact_times:
        return make_trace(name, counts)
    times = np.repeat(np.arange(recipe.seconds) * NS, counts) + rng.integers(0, NS, int(counts.sum()))
    return make_trace(name, counts, np.sort(times))


def statistics(trace: Trace) -> dict[str, float]:
    """Return the ``TARGETS`` of a trace; one that is undefined (a ratio to a median of zero) is left out."""
    described = describe(trace)
    values = {key: float(described[key]) for key in TARGETS}  # type: ignore[arg-type]
    return {key: value for key, value in values.items() if isfinite(value)}


def closeness(trace: Trace, targets: Mapping[str, float]) -> dict[str, float]:
    """Return each statistic of a trace over its target; a target of zero is left out."""
    own = statistics(trace)
    return {key: own.get(key, inf) / target for key, target in targets.items() if target}


def _distance(trace: Trace, targets: Mapping[str, float]) -> float:
    """Return the largest |log ratio| over all targets."""
    return max(abs(log(ratio)) if ratio > 0 else inf for ratio in closeness(trace, targets).values())


def _latent_correlation(quantiles: np.ndarray, observed: np.ndarray, terms: int = 24) -> np.ndarray:
    """Return the correlation of ``z`` that shows as ``observed`` after the map ``np.interp(z, Z_GRID, quantiles)``.

    With the map's Hermite coefficients c_k, a correlation rho shows as sum c_k^2 rho^k / sum c_k^2, k from 1.
    """
    z = np.linspace(-6, 6, 4801)
    mapped = np.exp(-z * z / 2) * np.interp(z, Z_GRID, quantiles)
    orders = np.arange(1, terms)
    coefficients = np.polynomial.hermite_e.hermevander(z, terms - 1)[:, 1:].T @ mapped
    power = coefficients**2 / np.array([float(factorial(k)) for k in orders])
    latent = np.linspace(0, 1, 201)
    return np.interp(observed, (latent[:, None] ** orders) @ power / power.sum(), latent)


def _fit_memory(ratio: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Return time constants (s) and variances of ``z`` that give count / rate its autocorrelation up to 3 minutes."""
    lags = np.arange(1, 181)
    observed = np.array([autocorrelation(ratio, int(lag)) for lag in lags])
    wanted = _latent_correlation(np.quantile(ratio, ndtr(Z_GRID)), observed)
    variances, _ = nnls(np.exp(-lags[:, None] / np.array(TIME_CONSTANTS_S)), wanted)
    variances /= max(1.0, variances.sum())
    return tuple((t, round(float(v), 4)) for t, v in zip(TIME_CONSTANTS_S, variances, strict=True) if v > 1e-3)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values)


def fit_twin(trace: Trace) -> Recipe:
    """Fit a recipe to a trace of at least ten minutes: rate profile, burst quantiles by level, burst memory, seed.

    Burst quantiles and memory leave out seconds whose rate is below 5% of the mean (outages). The seed is the one of
    ``CANDIDATE_SEEDS`` whose trace comes closest to the original in the worst of ``TARGETS``.

    Raises:
        InputError: the trace is shorter than ten minutes or has no request.
    """
    counts, mean = trace.counts, float(trace.counts.mean())
    if trace.seconds < 2 * KNOT_S or mean == 0.0:
        raise InputError(
            f"trace {trace.name}: {trace.seconds} s with {counts.sum()} requests cannot be fitted; right is "
            f"a trace of at least {2 * KNOT_S} s with requests"
        )
    blocks = trace.seconds // KNOT_S
    knots = np.maximum(counts[: blocks * KNOT_S].reshape(blocks, KNOT_S).mean(axis=1), mean * 1e-3)
    rate = _rate(knots, KNOT_S, trace.seconds)
    edges = np.quantile(rate, np.arange(1, LEVELS) / LEVELS)
    level, alive, ratio = np.searchsorted(edges, rate), rate > 0.05 * mean, counts / rate
    levels = [ratio[alive & (level == i)] for i in range(LEVELS)]
    fitted = Recipe(
        trace.seconds, int(np.gcd.reduce(counts)), trace.times_ns is not None, 0, KNOT_S, _rounded(knots),
        _rounded(edges), tuple(_rounded(np.quantile(part if len(part) else ratio, ndtr(Z_GRID))) for part in levels),
        _fit_memory(ratio[alive]), {key: float(f"{value:.9g}") for key, value in statistics(trace).items()},
    )  # fmt: skip
    seeds = range(CANDIDATE_SEEDS)
    return replace(fitted, seed=min(seeds, key=lambda s: _distance(generate(trace.name, fitted, s), fitted.targets)))


def wiki_recipe() -> Recipe:
    """Return the recipe of ``wiki_like``: a smooth day with the founding paper's mean and peak.

    Only mean and peak are known. The day's shape (a fundamental and a second harmonic) and a noise a little above
    Poisson's, with a memory of half a minute, are choices; the amplitude is the one whose generated peak is right.
    """
    hours = (np.arange(48) + 0.5) / 2
    shape = np.sin(2 * np.pi * (hours - 9) / 24) + 0.3 * np.sin(4 * np.pi * (hours - 6) / 24)
    recipe = Recipe(86400, 1, False, 0, 1800, (), (), (_rounded(1 + 0.05 * Z_GRID),), ((30.0, 0.1),), WIKI)
    low, high = 0.0, 0.7
    for _ in range(20):
        amplitude = (low + high) / 2
        recipe = replace(recipe, knots=_rounded(WIKI["mean"] * (1 + amplitude * shape)))
        low, high = (amplitude, high) if generate("", recipe).counts.max() < WIKI["peak"] else (low, amplitude)
    return recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as JSON, one line a field."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(recipe).items())
    part = path.with_suffix(".part")
    part.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    part.replace(path)


def refit(folder: Path | None = None) -> None:
    """Fit every published trace anew and write all recipes to ``folder`` (the project's own if None).

    ``python -c "from selfserve.twins import refit; refit()"`` makes the committed files.
    """
    for name in SOURCES:
        write_recipe(fit_twin(load_published(name)), (folder or recipe_folder()) / f"{name}-twin.json")
    write_recipe(wiki_recipe(), (folder or recipe_folder()) / "wiki_like.json")
