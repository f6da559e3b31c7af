"""The tables of notebook 03: what the traces look like, how close their twins come, what scaling and drift do.

Every function returns a tidy table; ``traces`` is what :func:`shown` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from selfserve.scenario import load_scenario
from selfserve.traces import SOURCES, Trace, autocorrelation, burstiness, describe, dispersion, split_ranges
from selfserve.twins import closeness, generate, load_recipe, statistics
from selfserve.workload import load_trace, make_workload

TWINS = tuple(f"{name}-twin" for name in SOURCES)
PAPER_BURSTINESS_PCT = {"wiki_like": 36.0, "berkeley": 63.0, "twitter": 73.0, "WITS": 77.0}
"""(peak - mean) / peak from the bars of figure 6 of WoSC'20, percent; WITS is clipped there, so at least that (C09)."""
THRESHOLD_PCT = 50.0
"""Above it the paper expects mixing VMs and functions to pay (WoSC'20, section 2.4)."""
LAGS_S = (1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 450, 600, 900, 1800, 3600)


def shown(quick: bool = False, extra: str = "") -> dict[str, Trace]:
    """Return the traces by name: the published ones (quick: their twins instead), ``wiki_like``, and a CSV if named.

    Raises:
        InputError: a published trace is not at hand and ``quick`` is off, or the CSV cannot be used.
    """
    names = [*(TWINS if quick else SOURCES), "wiki_like", *([extra] if extra else [])]
    return {trace.name: trace for trace in map(load_trace, names)}


def statistics_table(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return one row a trace: length, rates (requests/s), burstiness, dispersion and autocorrelation."""
    rows = []
    for trace in traces.values():
        facts: dict[str, Any] = describe(trace)
        row = {"trace": facts["name"], "hours": trace.seconds / 3600} | facts
        rows.append(row | {f"autocorrelation_{lag}s": facts["autocorrelation"][lag] for lag in (1, 60, 3600)})
    return pd.DataFrame(rows).drop(columns=["name", "seconds", "autocorrelation", "day_shape", "exact_times"])


def shapes(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return requests/s over time: mean, lowest and highest second of each minute."""
    parts = []
    for name, trace in traces.items():
        seconds = trace.counts[: trace.seconds // 60 * 60].reshape(-1, 60)
        hour = np.arange(len(seconds)) * 60 / 3600
        columns = {"mean": seconds.mean(axis=1), "low": seconds.min(axis=1), "high": seconds.max(axis=1)}
        parts.append(pd.DataFrame({"trace": name, "hour": hour, **columns}))
    return pd.concat(parts, ignore_index=True)


def splits(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return what part of each trace serves for training, validation and evaluation, in hours."""
    rows = [
        (name, split, a / 3600, b / 3600)
        for name, trace in traces.items()
        for split, (a, b) in split_ranges(trace).items()
    ]
    return pd.DataFrame(rows, columns=["trace", "split", "start_h", "end_h"])


def day_shapes(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return hourly means over the trace's mean, by hour since its start, for traces of at least 12 hours."""
    rows = []
    for name, trace in traces.items():
        hours = trace.counts[: trace.seconds // 3600 * 3600].reshape(-1, 3600).mean(axis=1)
        if len(hours) >= 12:
            rows += [(name, hour, rate, rate / trace.counts.mean()) for hour, rate in enumerate(hours)]
    return pd.DataFrame(rows, columns=["trace", "hour", "mean", "relative"])


def hourly_burstiness(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return burstiness (percent) and dispersion of each whole hour, or of a shorter trace as a whole."""
    rows = []
    for name, trace in traces.items():
        width = min(3600, trace.seconds)
        for hour, counts in enumerate(trace.counts[: trace.seconds // width * width].reshape(-1, width)):
            if counts.any():
                rows.append((name, hour, 100 * burstiness(counts), dispersion(counts), dispersion(counts, 60)))
    return pd.DataFrame(rows, columns=["trace", "hour", "burstiness_pct", "dispersion_1s", "dispersion_60s"])


def burstiness_claim(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return (peak - mean) / peak of each trace beside the paper's, and whether both lie on one side of 50%."""
    rows = []
    for name, trace in traces.items():
        paper = PAPER_BURSTINESS_PCT.get(name.removesuffix("-twin"), np.nan)
        measured = 100 * burstiness(trace.counts)
        hours = hourly_burstiness({name: trace})["burstiness_pct"]
        above = measured > THRESHOLD_PCT
        same_side = None if np.isnan(paper) else (paper > THRESHOLD_PCT) == above
        rows.append((name, paper, measured, above, same_side, 100 * float((hours > THRESHOLD_PCT).mean())))
    columns = ["trace", "paper_pct", "measured_pct", "above_threshold", "same_side", "hours_above_pct"]
    return pd.DataFrame(rows, columns=columns)


def twin_closeness(traces: Mapping[str, Trace], other_seeds: int) -> pd.DataFrame:
    """Return each statistic of each twin over its original, and the same for seeds that the fit did not pick.

    The originals' statistics come from ``traces`` where it has them, else from the recipes (``source``).
    """
    rows = []
    for name in TWINS:
        original, recipe = traces.get(name.removesuffix("-twin")), load_recipe(name)
        targets = recipe.targets if original is None else statistics(original)
        twin = load_trace(name)
        ratios, own = closeness(twin, targets), statistics(twin)
        others = pd.DataFrame([closeness(generate(name, recipe, 1000 + s), targets) for s in range(other_seeds)])
        base, source = name.removesuffix("-twin"), "recipe" if original is None else "trace"
        rows += [
            (base, key, targets[key], own[key], ratio, others[key].mean(), others[key].std(), source)
            for key, ratio in ratios.items()
        ]
    columns = ["trace", "statistic", "original", "twin", "ratio", "other_seeds_mean", "other_seeds_sd", "source"]
    return pd.DataFrame(rows, columns=columns)


def _sides(traces: Mapping[str, Trace]) -> list[tuple[str, str, Trace]]:
    """Return (trace, ``original`` or ``twin``, its trace) for every twin and every original at hand."""
    originals = [(name, "original", traces[name]) for name in SOURCES if name in traces]
    return originals + [(name.removesuffix("-twin"), "twin", load_trace(name)) for name in TWINS]


def twin_excerpts(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return the requests of every second in a trace's busiest ten minutes, original and twin."""
    parts = []
    for name, side, trace in _sides(traces):
        recipe = load_recipe(f"{name}-twin")
        start = min(int(np.argmax(recipe.knots)) * recipe.knot_s, trace.seconds - 600)
        piece = {"second": np.arange(600), "requests": trace.counts[start : start + 600]}
        parts.append(pd.DataFrame({"trace": name, "side": side, "start_s": start, **piece}))
    return pd.concat(parts, ignore_index=True)


def twin_autocorrelation(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return the autocorrelation of counts per second at each lag up to a quarter of the trace, original and twin."""
    rows = [
        (name, side, lag, autocorrelation(trace.counts, lag))
        for name, side, trace in _sides(traces)
        for lag in LAGS_S
        if lag <= trace.seconds / 4
    ]
    return pd.DataFrame(rows, columns=["trace", "side", "lag_s", "autocorrelation"])


def scaling(traces: Mapping[str, Trace], seed: int) -> pd.DataFrame:
    """Return factor, rate and relative spread of each trace scaled to the standard scenario on 5 and on 20 machines."""
    rows = []
    for (name, trace), machines in product(traces.items(), (5, 20)):
        workload = make_workload(trace, load_scenario("standard", {"load_machines": machines}), seed=seed)
        before, after = trace.counts, workload.counts
        spread = before.std() / before.mean(), after.std() / after.mean(), 100 * burstiness(after)
        rows.append((name, machines, workload.rate_scale, after.mean(), after.max(), after.sum(), *spread))
    columns = ["trace", "load_machines", "rate_scale", "mean", "peak", "requests", "cv_before", "cv_after"]
    return pd.DataFrame(rows, columns=[*columns, "burstiness_pct"])


def class_drift(
    drifts: Sequence[float] = (0.0, 0.5, 1.0), hours: int = 6, seeds: Sequence[int] = (0, 1)
) -> pd.DataFrame:
    """Return the class shares of the standard scenario minute by minute for several drifts and seeds."""
    trace, parts = load_trace("wiki_like"), []
    for drift, seed in product(drifts, seeds):
        scenario = load_scenario("standard", {"workload.share_drift": drift})
        table = make_workload(trace, scenario, 0, hours * 3600, seed).thresholds
        table = np.vstack([table, np.repeat(table[-1:], hours * 60 - len(table), axis=0)])  # the last row goes on
        wide = pd.DataFrame(np.diff(table, axis=1, prepend=0) / 65536, columns=[c.name for c in scenario.classes])
        long = wide.assign(hour=np.arange(len(wide)) / 60).melt("hour", var_name="class", value_name="share")
        parts.append(long.assign(drift=drift, seed=seed))
    return pd.concat(parts, ignore_index=True)
