"""What the table of runs says: rows per system, paired differences with intervals, rankings, frontiers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, kendalltau

from selfserve.evaluation.tuning import PENALTY, TARGET_PCT

SYSTEM = ["policy", "kind"]
SITUATION = ["trace", "scenario", "overrides"]
_WINDOW = [*SITUATION, "start_s", "length_s", "seed"]


def _able(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["reason"] == ""]


def systems(table: pd.DataFrame, by: Sequence[str] = ("trace", "scenario", "overrides")) -> pd.DataFrame:
    """Return a row per situation and system (and knob, on a frontier), over its windows and seeds.

    Columns: ``runs``, ``usd_per_hour`` (of scored time), ``slo_violation_pct`` and
    ``accuracy_violation_pct`` (of all requests), ``to_bound`` and ``cost_to_oracle`` (sum of costs over sum of bounds,
    without violations and with the runs' own), ``least_to_oracle``, ``decisions`` (hash of the logs), ``reason``.
    """
    rows = []
    shares = ("slo_violation_pct", "accuracy_violation_pct")
    known = ("usd_per_hour", *shares, "to_bound", "cost_to_oracle", "least_to_oracle", "decisions")
    for place, mine in table.groupby([*by, *SYSTEM, "knob"], sort=False, dropna=False):
        ran, row = _able(mine), dict(zip([*by, *SYSTEM, "knob"], place, strict=True))
        row |= {"runs": len(ran), "reason": "" if len(ran) else mine["reason"].iloc[0]} | dict.fromkeys(known, np.nan)
        if len(ran):
            cost, requests = ran["cost_usd"], ran["requests"].astype(float)
            row["usd_per_hour"] = cost.sum() / float(ran["scored_s"].sum()) * 3600
            for key in shares:
                row[key] = float((ran[key] * requests).sum() / max(1.0, requests.sum()))
            for key, bound in (("to_bound", "bound_usd"), ("cost_to_oracle", "oracle_cost_usd")):
                row[key] = cost.sum() / ran[bound].sum() if ran[bound].gt(0).all() else np.nan
            row["least_to_oracle"] = ran["cost_to_oracle"].min()
            row["decisions"] = hashlib.sha256("".join(ran["decisions"]).encode()).hexdigest()[:12]
        rows.append(row)
    return pd.DataFrame(rows)


def score(table: pd.DataFrame) -> pd.Series:
    """Return what the tuner minimises, a value a run: log cost plus the penalty for violations over the target."""
    violated = table["slo_violation_pct"] + table["accuracy_violation_pct"]
    return np.log(table["cost_usd"].clip(lower=1e-6)) + PENALTY * (violated - TARGET_PCT).clip(lower=0.0)


def paired(table: pd.DataFrame, policy: str, kind: str = "authors") -> pd.DataFrame:
    """Return each run beside the run of one system on the same window and seed.

    Adds ``cost_ratio`` (over that system's cost), ``violation_difference`` (percentage points) and
    ``score_difference``; runs that have no partner are left out.
    """
    able = _able(table).assign(score=lambda t: score(t))
    base = able[(able["policy"] == policy) & (able["kind"] == kind)].set_index(_WINDOW)
    base = base[["cost_usd", "slo_violation_pct", "score"]]
    joined = able.join(base, on=_WINDOW, suffixes=("", "_base"), how="inner")
    return joined.assign(
        cost_ratio=joined["cost_usd"] / joined["cost_usd_base"].where(joined["cost_usd_base"] > 0),
        violation_difference=joined["slo_violation_pct"] - joined["slo_violation_pct_base"],
        score_difference=joined["score"] - joined["score_base"],
    )


def gained(table: pd.DataFrame) -> pd.DataFrame:
    """Return what tuning changed, a row a policy that has both rows, means over situations, windows and seeds.

    Columns: ``cost_ratio`` (tuned over authors', geometric mean), ``late_authors_pct``, ``late_tuned_pct`` and ``gain``
    (the authors' :func:`score` less the tuned one's; 0.01 is one percent of the cost).
    """
    able = _able(table).assign(score=lambda t: score(t), log=lambda t: np.log(t["cost_usd"]))
    mean = able.groupby(["policy", "kind"], sort=False)[["score", "log", "slo_violation_pct"]].mean().unstack("kind")
    late = mean["slo_violation_pct"]
    found = {"cost_ratio": np.exp(mean["log"]["tuned"] - mean["log"]["authors"]), "late_authors_pct": late["authors"],
             "late_tuned_pct": late["tuned"], "gain": mean["score"]["authors"] - mean["score"]["tuned"]}  # fmt: skip
    return pd.DataFrame(found).dropna()


def interval(values: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return a percentile bootstrap interval of the mean of independent values; NaN for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    found = bootstrap((values,), np.mean, confidence_level=level, n_resamples=2000, method="percentile", rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def intervals(table: pd.DataFrame, policy: str, kind: str = "authors") -> pd.DataFrame:
    """Return, per situation and system, the mean ratio of its cost to one system's, with 95% intervals over windows.

    The mean is geometric; the seeds of a window are averaged first, since they share its load. Traces stand apart:
    three of them are no sample of anything. Columns: ``windows, cost_ratio, low, high``, and the same of the
    violations, ``violation_difference, violation_low, violation_high`` (percentage points).
    """
    pairs = paired(table, policy, kind).assign(log_ratio=lambda t: np.log(t["cost_ratio"]))
    rows = []
    for place, mine in pairs.groupby([*SITUATION, *SYSTEM], sort=False):
        windows = mine.groupby(["start_s", "length_s"])[["log_ratio", "violation_difference"]].mean()
        ratio, violated = windows["log_ratio"].to_numpy(), windows["violation_difference"].to_numpy()
        low, high = np.exp(interval(ratio))
        less, more = interval(violated)
        values = len(windows), float(np.exp(ratio.mean())), low, high, float(violated.mean()), less, more
        rows.append((*place, *values))
    names = ["windows", "cost_ratio", "low", "high", "violation_difference", "violation_low", "violation_high"]
    return pd.DataFrame(rows, columns=[*SITUATION, *SYSTEM, *names])


def ranks(table: pd.DataFrame, by: Sequence[str] = ("scenario", "overrides", "trace")) -> pd.DataFrame:
    """Return the rank of each system (rows) in each situation (columns) by mean :func:`score`, 1 the best.

    Systems that cannot run in one of the situations are left out of all.
    """
    able = _able(table).assign(score=lambda t: score(t))
    wide = able.pivot_table("score", SYSTEM, list(by), aggfunc="mean", sort=False)
    shown = able[list(by)].drop_duplicates()  # pandas has an order of its own
    wide = wide[list(shown.itertuples(index=False, name=None)) if len(by) > 1 else shown[by[0]]]
    return wide.dropna().rank(method="min").astype(int)


def halves(tables: Sequence[pd.DataFrame]) -> tuple[list[str], list[str]]:
    """Return the policies whose ranks (of :func:`ranks`) are in the upper half everywhere, and those in the lower."""
    kept = []
    for upper in (True, False):
        found = [t.index.get_level_values("policy")[((t <= len(t) / 2) == upper).all(axis=1)] for t in tables]
        kept.append(sorted(set.intersection(*map(set, found))))
    return kept[0], kept[1]


def stability(ranking: pd.DataFrame) -> pd.DataFrame:
    """Return how alike the rankings of situations are: Kendall's tau of each with each (columns of :func:`ranks`)."""
    columns = list(ranking.columns)
    tau = [[kendalltau(ranking[a], ranking[b]).statistic if a != b else 1.0 for b in columns] for a in columns]
    return pd.DataFrame(tau, index=ranking.columns, columns=ranking.columns)


# --- frontiers


def curve(frontier: pd.DataFrame, cost: str = "usd_per_hour", violations: str = "slo_violation_pct") -> np.ndarray:
    """Return the frontier of one system: points (violations, cost) that no other of its points beats, [n, 2].

    Args:
        frontier: rows of :func:`systems` of one system in one situation, one a knob value.
        cost: column of the cost.
        violations: column of the violations.
    """
    points = frontier[[violations, cost]].dropna().sort_values([violations, cost], kind="stable").to_numpy(float)
    best = np.minimum.accumulate(points[:, 1]) if len(points) else np.zeros(0)
    return points[np.concatenate(([True], best[1:] < best[:-1]))] if len(points) else points


def cost_at(curve: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """Return the least cost of a curve at no more than the given violations (``inf`` where it has no such point)."""
    place = np.searchsorted(curve[:, 0], violations, side="right")
    return np.concatenate(([np.inf], curve[:, 1]))[place]


def beaten(curve: np.ndarray, by: np.ndarray) -> bool:
    """Return whether a system's whole curve is above another's: no point of it is as cheap."""
    return len(curve) > 0 and bool((cost_at(by, curve[:, 0]) < curve[:, 1]).all())


def beaten_table(frontier: pd.DataFrame, by: Sequence[str] = ("trace", "scenario", "overrides")) -> pd.DataFrame:
    """Return who beats whom over the whole curve: rows per situation and pair, with ``beaten`` and ``by``.

    Args:
        frontier: rows of :func:`systems` with ``knob``.
        by: columns of a situation.
    """
    rows = []
    for place, mine in frontier.groupby(list(by), sort=False):
        curves = {" ".join(who): curve(points) for who, points in mine.groupby(SYSTEM, sort=False)}
        rows += [
            (*place, one, other)
            for one, mine_curve in curves.items()
            for other, theirs in curves.items()
            if one != other and beaten(mine_curve, theirs)
        ]
    return pd.DataFrame(rows, columns=[*by, "beaten", "by"])
