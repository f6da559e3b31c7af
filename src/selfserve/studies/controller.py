"""The tables of notebook 08: what the controller is worth in situations never seen.

Methods of the planner's family are played side by side in the vector form (:func:`selfserve.training.rollout`); single
runs of other systems are in :mod:`selfserve.studies.controller_runs`. All methods meet the same requests, boots and
losses in a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from scipy.stats import trim_mean
from tqdm.auto import tqdm

from selfserve import training
from selfserve.analytic import FOLDER, NAMES, Pilot, constants, multipliers
from selfserve.controller import Corrected, SelfTuned, in_own_batches, load
from selfserve.environment import RAW_SIZES
from selfserve.features import AT, Flock, Orders
from selfserve.situations import Split, sample
from selfserve.training import Helm

FIRST = 24
"""Evaluation situations below this were looked at while the controller was built."""
ONE_MODEL = "no cascades"
"""The ablation whose planners have one model an answer: unlike the others it needs episodes of its own."""
TOGETHER = 13
"""Windows that are played side by side."""


class _MostAccurate(Pilot):
    """Formulas that answer every class with the most accurate models."""

    def orders(self) -> Orders:
        """Return what the formulas decide."""
        return self.flock.decide(self.flock.base, np.ones_like(self.flock.base_level))


class _Believing(Pilot):
    """Formulas that take service times as they are told."""

    def measured(self) -> np.ndarray:
        """Return 1."""
        return np.ones(len(self.values))


class _AtHome(Pilot):
    """Formulas that leave spot machines alone."""

    def __init__(self, flock: Flock) -> None:
        flock.has_spot = np.zeros_like(flock.has_spot)
        super().__init__(flock)


class _Hasty(Pilot):
    """Formulas by which nobody waits where a function could answer."""

    def _leave(self, margin: np.ndarray) -> np.ndarray:
        return np.full_like(margin, 1e4)


class _Uncalled(Pilot):
    """Formulas that call no function before it is needed."""

    def __init__(self, flock: Flock) -> None:
        super().__init__(flock)
        flock.call_s = np.zeros_like(flock.call_s)


def _constants(section: str, shift: float = 0.0) -> Callable[[Flock], Helm]:
    def make(flock: Flock) -> Helm:
        numbers = flock.base.copy()
        for name, value in constants(section).items():
            numbers[:, AT[name]] = value
        numbers[:, AT["headroom"]] += shift
        return training.Constants(flock, numbers)

    return make


def _expert(flock: Flock) -> Helm:
    """Return constants that were searched anew for each world on its own history, from those of ``tuned``."""
    numbers = flock.base.copy()
    for i, case in enumerate(flock.cases):
        for name, value in training.tuned_on_past(case).items():
            numbers[i, AT[name]] = value
    return training.Constants(flock, numbers)


def _pilot(shift: float = 0.0, **changed: float) -> Callable[[Flock], Helm]:
    return lambda flock: Pilot(flock, _shifted(shift, changed))


def _tuning(shift: float) -> Callable[[Flock], Helm]:
    return lambda flock: SelfTuned(flock, training.replay, values=_shifted(shift, {}))


def _shifted(shift: float, changed: Mapping[str, float]) -> np.ndarray:
    values = multipliers(changed)
    values[NAMES.index("headroom")] += shift
    return values


def nets() -> dict[str, str]:
    """Return the shipped nets: name to file."""
    return {path.stem: str(path) for path in sorted(FOLDER.glob("*.safetensors"))}


COUNTING = "machines by "
"""Before the file of a net that sets machines itself."""
SHIFTED = " headroom "
"""Between a method and the change of its headroom: ``tuned headroom +0.05``."""


CLASSES = tuple(f"late_pct, {which} SLO" for which in ("tightest", "middle", "loosest"))
"""Columns of late requests by class. Classes share machines, so that they have no cost of their own."""
REPLAYING = ("controller", "expert")
"""Who replays the hours before a window, and so has batches of his own."""


def helm(method: str) -> Callable[[Flock], Helm]:
    """Return what makes a method's helm: constants, formulas, controller, ablation, a shipped net's name or a file."""
    method, _, by = method.partition(SHIFTED)
    shift = float(by or 0)
    known: dict[str, Callable[[Flock], Helm]] = {
        "tuned": _constants("tuned", shift), "tuned_fixed": _constants("tuned_fixed", shift), "expert": _expert,
        "analytic": _pilot(shift), "controller": _tuning(shift), "believed service times": _Believing,
        "most accurate models": _MostAccurate, "no late binding": _pilot(late_binding=0.0),
        "no spot": _AtHome, "no deferral": _Hasty, "no calls before": _Uncalled,
        ONE_MODEL: _pilot(),
    }  # fmt: skip
    if method in known:
        return known[method]
    if method.startswith(COUNTING):
        raw, _ = load(method.removeprefix(COUNTING), RAW_SIZES)
        return lambda flock: training.Counting(flock, raw)
    layers, card = load(nets().get(method, method))
    return lambda flock: Corrected(flock, layers, every=card.get("every", 1))


def _rows(
    split: Split, method: str, indices: Sequence[int], window: int, machines: float | None, exact: bool, twins: bool
) -> pd.DataFrame:
    """Play one window of some situations under a method; windows of unlike length one after the other."""
    played = training.episodes(split, indices, None, machines, window, exact, twins, method != ONE_MODEL)
    parts = []
    if method.partition(SHIFTED)[0] in REPLAYING:
        played = [replace(e, case=in_own_batches(e.case, training.replay)[0]) for e in played]
    for seconds in sorted({e.workload.seconds for e in played}):
        at = [j for j, e in enumerate(played) if e.workload.seconds == seconds]
        got = training.rollout([played[j] for j in at], helm(method))
        parts.append(pd.DataFrame({
            "situation": [indices[j] for j in at], "window": window, "method": method, "cost": got.cost,
            "violation_pct": got.violation_pct, "missed_pct": got.missed_pct,
            **dict(zip(CLASSES, got.class_late_pct.T, strict=True)),
        }))  # fmt: skip
    return pd.concat(parts)


def rollouts(
    methods: Sequence[str], situations: Sequence[int], windows: Sequence[int], split: Split = "evaluate",
    machines: float | None = None, exact: bool = False, twins: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Return one row a situation, window and method: cost over its work, violations in percent, tags.

    Args:
        methods: names of :func:`helm`.
        situations: indices of the split.
        windows: numbers of their windows.
        split: train, validate or evaluate.
        machines: larger situations are thinned to this size (default: as sampled).
        exact: all situations get that size.
        twins: use the twins of the real traces.
    """
    chunks = [list(situations[i : i + TOGETHER]) for i in range(0, len(situations), TOGETHER)]
    tasks = [delayed(_rows)(split, m, c, w, machines, exact, twins) for w in windows for c in chunks for m in methods]
    played = Parallel(n_jobs=cpu_count(), return_as="generator_unordered")(tasks)
    frames = list(tqdm(played, total=len(tasks), desc="windows", unit="batch"))
    table = pd.concat(frames).sort_values(["situation", "window", "method"], ignore_index=True)
    tags = pd.DataFrame({i: tags_of(split, i) for i in situations}).T.rename_axis("situation").reset_index()
    return table.merge(tags, on="situation")


def tags_of(split: Split, index: int) -> dict[str, str]:
    """Return what kind of situation this is: family, market, boot, price, size, storms, belief, seen."""
    one = sample(split, index)
    return {"family": one.family, **one.tags}


def gains(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """Return the rows with ``gain``: log of a method's cost over that of ``base`` in the same window, where it ran."""
    key = ["situation", "window"]
    reference = table[table["method"] == base].set_index(key)["cost"]
    return table.join(np.log(reference).rename("_base"), on=key).assign(
        gain=lambda t: np.log(t["cost"]) - t["_base"]
    ).drop(columns="_base").dropna(subset="gain")  # fmt: skip


def interval(own: pd.DataFrame, column: str = "gain", seed: int = 0, times: int = 2000) -> tuple[float, float, float]:
    """Return mean and 95% interval: a bootstrap over situations, and over the windows inside each."""
    groups = [g.to_numpy() for _, g in own.groupby("situation")[column]]
    if len(groups) < 2:
        return float(own[column].mean()), float("nan"), float("nan")
    rng, length = np.random.default_rng(seed), np.array([len(g) for g in groups])
    values = np.array([np.pad(g, (0, length.max() - len(g))) for g in groups])
    drawn = rng.integers(len(groups), size=(times, len(groups)))[..., None]
    window = (rng.random((times, len(groups), length.max())) * length[drawn]).astype(int)
    low, high = np.quantile(values[drawn, window].mean(axis=(1, 2)), (0.025, 0.975))
    return float(np.mean([g.mean() for g in groups])), float(low), float(high)


KINDS = ("market", "seen", "family", "boot", "price", "size", "storms", "belief")


def by_kind(table: pd.DataFrame, base: str, kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """Return, per method and kind of situation, percent of cost against ``base`` with interval, and violations."""
    able, rows = gains(table, base), []
    for kind, value, mine in [("all", "all", able), *((k, v, g) for k in kinds for v, g in able.groupby(k))]:
        for method, own in mine.groupby("method", sort=False):
            mean, low, high = (100 * np.expm1(x) for x in interval(own))
            rows.append({
                "kind": kind, "value": value, "method": method, "situations": own["situation"].nunique(),
                "change_pct": mean, "low_pct": low, "high_pct": high,
                "iqm_pct": 100 * np.expm1(trim_mean(own["gain"], 0.25)),
                "violation_pct": own["violation_pct"].mean(), "missed_pct": own["missed_pct"].mean(),
            })  # fmt: skip
    return pd.DataFrame(rows)


def profile(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return a performance profile: the share of windows whose cost is within a ratio of the cheapest method's."""
    wide = table[table["method"].isin(methods)].pivot_table("cost", ["situation", "window"], "method")
    ratio, grid = wide.div(wide.min(axis=1), axis=0), np.linspace(1, 1.6, 121)
    return pd.concat(
        [pd.DataFrame({"method": m, "ratio": grid, "share": [(ratio[m] <= x).mean() for x in grid]}) for m in methods],
        ignore_index=True,
    )


GOALS = (
    ("cost against tuned, on-demand", "tuned", "market", "on-demand", -3.0, -5.0),
    ("cost against tuned, spot", "tuned", "market", "spot", -6.0, -15.0),
    ("cost against tuned, families never trained on", "tuned", "seen", "never trained on", -8.0, -20.0),
    ("cost against tuned_fixed, on-demand", "tuned_fixed", "market", "on-demand", -7.0, -10.0),
    ("cost against tuned_fixed, spot", "tuned_fixed", "market", "spot", -20.0, -35.0),
    ("cost against the expert who retunes each situation", "expert", "all", "all", 0.5, -2.0),
    ("cost against analytic", "analytic", "all", "all", -1.0, -3.0),
)
"""Figure, method compared with, kind, its value, percent asked for at least, percent aimed at."""


def goals(table: pd.DataFrame) -> pd.DataFrame:
    """Return what was asked of the controller, what it reached with its interval, and a verdict."""
    rows = []
    for text, base, kind, value, least, aim in GOALS:
        if base not in set(table["method"]):
            continue
        found = by_kind(table, base, [k for k in (kind,) if k != "all"])
        own = found[(found["method"] == "controller") & (found["kind"] == kind) & (found["value"] == value)]
        if not len(own):
            continue
        got = own.iloc[0]
        verdict = "reached" if got["change_pct"] <= least else "not reached"
        if verdict == "reached" and got["high_pct"] > least:
            verdict = "reached in the mean"
        rows.append({"figure": text, "asked_pct": least, "aim_pct": aim, "found_pct": got["change_pct"],
                     "low_pct": got["low_pct"], "high_pct": got["high_pct"], "verdict": verdict})  # fmt: skip
    own = table[table["method"] == "controller"]
    for text, column, least, aim in (
        ("SLO violations, %", "violation_pct", 0.05, 0.02), ("mean accuracy missed, points", "missed_pct", 0.0, 0.0)
    ):  # fmt: skip
        mean, low, high = interval(own, column)
        verdict = "not reached" if mean > least else "reached in the mean" if high > least else "reached"
        rows.append({"figure": text, "asked_pct": least, "aim_pct": aim, "found_pct": mean, "low_pct": low,
                     "high_pct": high, "verdict": verdict})  # fmt: skip
    return pd.DataFrame(rows)


def by_class(table: pd.DataFrame) -> pd.DataFrame:
    """Return late requests in percent, per method and class, with their interval."""
    methods = table.groupby("method", sort=False)
    rows = [(method, c.partition(", ")[2], *interval(own, c)) for method, own in methods for c in CLASSES]
    return pd.DataFrame(rows, columns=["method", "class", "late_pct", "low", "high"])


SHIFTS = (-0.1, -0.05, 0.0, 0.05, 0.1)


def frontier(methods: Sequence[str], situations: Sequence[int], machines: float, twins: bool) -> pd.DataFrame:
    """Return cost (geometric mean over the work's price) and late requests: rows method, shift of headroom, market."""
    names = {f"{m}{SHIFTED}{by:+g}": (m, by) for m in methods for by in SHIFTS}
    table = rollouts(list(names), situations, [0], "evaluate", machines, twins=twins)
    table[["method", "shift"]] = [names[m] for m in table["method"]]
    means = table.assign(cost=np.log(table["cost"])).groupby(["market", "method", "shift"], as_index=False)[
        ["cost", "violation_pct"]
    ].mean()  # fmt: skip
    return means.assign(cost=np.exp(means["cost"]))


def scaling(methods: Sequence[str], sizes: Sequence[float], situations: Sequence[int], twins: bool) -> pd.DataFrame:
    """Return gains against ``tuned`` in window 0 of some situations at every size (machines kept busy)."""
    parts = [
        gains(rollouts(methods, situations, [0], "evaluate", size, True, twins), "tuned").assign(machines=size)
        for size in sizes
    ]
    return pd.concat(parts, ignore_index=True)


def where_it_pays(table: pd.DataFrame, steps: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Return a map: kind of situation (rows) x what is added (columns), percent of cost it changes.

    Args:
        table: of :func:`rollouts`.
        steps: what is added -> (method with it, method without it).
    """
    columns = {}
    for text, (with_it, without) in steps.items():
        found = by_kind(table, without)
        own = found[found["method"] == with_it].set_index(["kind", "value"])
        columns[text] = own["change_pct"]
    return pd.DataFrame(columns)
