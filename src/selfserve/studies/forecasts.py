"""Claim C24: how well learned predictors foresee a load, and what that is worth to the systems that use one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from selfserve.evaluation import run
from selfserve.forecast import FORECASTERS, error_table
from selfserve.studies.claims import judge
from selfserve.studies.headlines import LATE_PCT
from selfserve.traces import split_ranges

BURSTY = ("WITS", "berkeley")
"""Traces on which the claim's band is judged (notebook 03: dispersion)."""
AHEAD_S = 7200
"""Seconds of a trace's evaluation part on which forecasts are judged."""
USERS = {"mark": "predictor", "forecast_milp": "forecaster", "cocktail": "forecaster"}
"""Systems that follow a forecast, and the parameter that names it."""


def errors(quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return every forecaster's error a boot time ahead: fitted on a trace's training part, judged on two hours."""
    loads = {}
    for name in ("WITS-twin",) if quick else ("WITS", "berkeley", "twitter"):
        trace = run.trace_of(name)
        ranges = split_ranges(trace)
        (a, b), (c, d) = ranges["train"], ranges["evaluate"]
        before, after = trace.counts[a:b], trace.counts[c : min(d, c + AHEAD_S)]
        loads[name] = (before[-3600:], after[:1800]) if quick else (before, after)
    return error_table(loads, points=200 if quick else 2000, seed=seed)


def effect(folder: Path, quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return what each forecaster costs the :data:`USERS`, over what the linear trend costs them."""
    names, length = (("WITS-twin",), 1200) if quick else (("WITS", "berkeley", "twitter"), 4200)
    windows = [w for name in names for w in run.spread_windows(name, "evaluate", 1, length)]
    systems = tuple(USERS)[: 1 if quick else None]
    cases = [run.Case(policy, *w, "standard", run.as_json({USERS[policy]: f}), "{}", seed, oracle=False)
             for policy in systems for w in windows for f in FORECASTERS]  # fmt: skip
    got = run.Runs(folder, progress=True)(cases, "systems x forecasters")
    table = pd.DataFrame([
        {"policy": c.policy, "trace": c.trace, "forecaster": f, "cost_usd": r["cost_usd"],
         "slo_violation_pct": r["slo_violation_pct"]}
        for c, f, r in zip(cases, list(FORECASTERS) * (len(cases) // len(FORECASTERS)), got, strict=True)
    ])  # fmt: skip
    line = table[table["forecaster"] == "linear_trend"].set_index(["policy", "trace"])["cost_usd"]
    return table.assign(cost_ratio=table["cost_usd"] / table.join(line.rename("line"), on=["policy", "trace"])["line"])


def judge_forecasts(error: pd.DataFrame, cost: pd.DataFrame) -> dict[str, str]:
    """Return the verdict on claim C24."""
    lstm = error[error["forecaster"] == "lstm"].set_index("trace")["relative"]
    best = error.loc[error.groupby("trace")["rmse"].idxmin()].set_index("trace")["forecaster"]
    bursty = [name for name in lstm.index if name.removesuffix("-twin") in BURSTY]
    wide = cost.pivot(index=["policy", "trace"], columns="forecaster")
    fair = wide["slo_violation_pct"][["lstm", "linear_trend"]].max(axis=1) <= LATE_PCT
    change = (wide["cost_ratio"]["lstm"][fair] - 1).abs().max()
    measured = "; ".join(f"{t}: LSTM {lstm[t]:.2f} of the linear trend's error, least {best[t]}" for t in lstm.index)
    measured += (
        f"; where at most {LATE_PCT:g}% are late with both ({fair.sum()} of {len(fair)} runs) cost changes by up"
    )
    measured += f" to {100 * change:.1f}%"
    bands = {"LSTM at most 0.7 of the linear trend on bursty traces": (lstm[bursty] <= 0.7).all(),
             "cost effect at most 10%": change <= 0.1}  # fmt: skip
    return judge("C24", measured, bands)
