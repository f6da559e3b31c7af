"""The tables of notebooks 07 and 08: how controllers are trained, and what they are worth in situations never seen.

Methods of the planner's family are played side by side in the vector form (:func:`selfserve.training.rollout`); other
systems, the clairvoyant plan and the bound are single runs over fewer windows. All of a window meet the same requests,
boots and losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from scipy.stats import trim_mean
from tqdm.auto import tqdm

from selfserve import training
from selfserve.analytic import FOLDER, NAMES, Pilot, constants, multipliers
from selfserve.bound import bound
from selfserve.controller import Corrected, SelfTuned, load
from selfserve.errors import InputError
from selfserve.evaluation.run import policy_for
from selfserve.features import AT, Flock
from selfserve.policies import make_policy
from selfserve.scenario import Scenario, Storm, load_scenario
from selfserve.simulator import simulate
from selfserve.situations import Split, sample
from selfserve.traces import make_trace, split_ranges
from selfserve.training import Helm
from selfserve.workload import Workload, load_trace, make_workload

FIRST = 24
"""Evaluation situations below this were looked at while the controller was built."""
TOGETHER = 13
"""Windows that are played side by side."""


class _Believing(Pilot):
    """Formulas that take service times as they are told."""

    def measured(self) -> np.ndarray:
        """Return 1."""
        return np.ones(len(self.values))


def _constants(section: str) -> Callable[[Flock], Helm]:
    def make(flock: Flock) -> Helm:
        numbers = flock.base.copy()
        for name, value in constants(section).items():
            numbers[:, AT[name]] = value
        return training.Constants(flock, numbers)

    return make


def _pilot(**changed: float) -> Callable[[Flock], Helm]:
    return lambda flock: Pilot(flock, multipliers(changed))


def nets() -> dict[str, str]:
    """Return the shipped nets: name to file."""
    return {path.stem: str(path) for path in sorted(FOLDER.glob("*.safetensors"))}


def helm(method: str) -> Callable[[Flock], Helm]:
    """Return what makes a method's helm: constants, formulas, the controller, an ablation or a shipped net's name."""
    known: dict[str, Callable[[Flock], Helm]] = {
        "tuned": _constants("tuned"), "tuned_fixed": _constants("tuned_fixed"), "analytic": Pilot,
        "controller": lambda flock: SelfTuned(flock, training.replay), "believed service times": _Believing,
        "no late binding": _pilot(late_binding=0.0), "no spot": _pilot(spot_share=0.0),
        "no deferral": _pilot(leave=1e3),
    }  # fmt: skip
    if method in known:
        return known[method]
    name, _, tuning = method.partition(" and ")
    layers, _ = load(nets()[name])
    return (lambda f: SelfTuned(f, training.replay, layers)) if tuning else (lambda f: Corrected(f, layers))


def _rows(split: Split, method: str, indices: Sequence[int], window: int, machines: float | None) -> pd.DataFrame:
    """Play one window of some situations under a method; windows of unlike length one after the other."""
    played = training.episodes(split, indices, None, machines, window)
    parts = []
    for seconds in sorted({e.workload.seconds for e in played}):
        at = [j for j, e in enumerate(played) if e.workload.seconds == seconds]
        got = training.rollout([played[j] for j in at], helm(method))
        parts.append(pd.DataFrame({
            "situation": [indices[j] for j in at], "window": window, "method": method, "cost": got.cost,
            "violation_pct": got.violation_pct, "missed_pct": got.missed_pct,
        }))  # fmt: skip
    return pd.concat(parts)


def rollouts(
    methods: Sequence[str], situations: Sequence[int], windows: Sequence[int], split: Split = "evaluate",
    machines: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one row a situation, window and method: cost over its work, violations in percent, tags.

    Args:
        methods: names of :func:`helm`.
        situations: indices of the split.
        windows: numbers of their windows.
        split: train, validate or evaluate.
        machines: situations are thinned to this size (default: as sampled).
    """
    chunks = [list(situations[i : i + TOGETHER]) for i in range(0, len(situations), TOGETHER)]
    tasks = [delayed(_rows)(split, m, c, w, machines) for w in windows for c in chunks for m in methods]
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
    """Return the rows with ``gain``: log of a method's cost over that of ``base`` in the same window."""
    key = ["situation", "window"]
    reference = table[table["method"] == base].set_index(key)["cost"]
    return table.join(np.log(reference).rename("_base"), on=key).assign(
        gain=lambda t: np.log(t["cost"]) - t["_base"]
    ).drop(columns="_base")  # fmt: skip


def interval(own: pd.DataFrame, column: str = "gain", seed: int = 0, times: int = 2000) -> tuple[float, float, float]:
    """Return mean and 95% interval: a bootstrap over situations, and over the windows inside each."""
    groups = [g.to_numpy() for _, g in own.groupby("situation")[column]]
    if len(groups) < 2:
        return float(own[column].mean()), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [
        np.mean([np.mean(rng.choice(groups[i], len(groups[i]))) for i in rng.integers(len(groups), size=len(groups))])
        for _ in range(times)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
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


# --- single runs


def _single(policy: str, scenario: Scenario, workload: Workload, seed: int, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"place": name, "policy": policy}
    try:
        if policy == "bound":
            return row | {"cost_usd": bound(workload, scenario, seed).certificate_usd, "violation_pct": 0.0}
        run = simulate(scenario, workload, policy_for(policy, {}, workload, scenario, seed), seed)
    except InputError as error:
        return row | {"reason": str(error)}
    s = run.summary
    return row | {
        "cost_usd": s["cost_usd"], "violation_pct": s["slo_violation_pct"], "missed_pct": s["accuracy_violation_pct"],
    }  # fmt: skip


def _in_situation(policy: str, index: int, machines: float) -> dict[str, Any]:
    one = sample(
        "evaluate", index, machines=min(machines, sample("evaluate", index).scenario.load_machines or machines)
    )
    return _single(policy, one.scenario, one.workload(0), index, one.name) | {"market": one.tags["market"]}


def _in_standard(policy: str, trace: str, length_s: int, part: int) -> dict[str, Any]:
    scenario, whole = load_scenario("standard"), load_trace(trace)
    a, b = split_ranges(whole)["evaluate"]
    workload = make_workload(whole, scenario, a + (b - a - length_s) * part // 2, length_s, part)
    return _single(policy, scenario, workload, part, f"{trace} {part}") | {"market": "standard"}


def others(
    policies: Sequence[str], situations: Sequence[int], traces: Sequence[str], length_s: int, machines: float = 30.0
) -> pd.DataFrame:
    """Return single runs of systems, clairvoyant and bound: in situations (window 0) and in scenario ``standard``.

    Args:
        policies: names, ``clairvoyant`` and ``bound`` among them.
        situations: evaluation situations.
        traces: of the runs in ``standard``, three windows of each trace's evaluation part.
        length_s: of those windows.
        machines: larger situations are thinned to this size.
    """
    tasks = [delayed(_in_situation)(p, i, machines) for i in situations for p in policies]
    tasks += [delayed(_in_standard)(p, t, length_s, part) for t in traces for part in range(3) for p in policies]
    played = Parallel(n_jobs=cpu_count(), return_as="generator")(tasks)
    table = pd.DataFrame(list(tqdm(played, total=len(tasks), desc="runs", unit="run")))
    base = table[table["policy"] == "bound"].set_index("place")["cost_usd"]
    return table.assign(to_bound=table["cost_usd"] / table["place"].map(base))


def reaction(what: str, policies: Sequence[str], minutes: int = 60) -> pd.DataFrame:
    """Return machines and load over time after a step, a burst or a storm: one row an interval and policy."""
    rate = np.full(60 * (minutes + 70), 100.0)
    at = 60 * 100
    if what == "step":
        rate[at:] *= 2
    if what == "burst":
        rate[at : at + 300] *= 3
    counts = np.random.default_rng(0).poisson(rate)
    scenario = load_scenario("spot" if what == "storm" else "standard", {"load_machines": 20.0})
    if what == "storm":
        scenario = replace(scenario, spot=replace(scenario.spot, storms=(Storm(at - 4200.0, 900.0, 6.0, 0.9),)))
    workload, parts = make_workload(make_trace(what, counts), scenario, 4200, 60 * minutes, 0), []
    for policy in policies:
        log = simulate(scenario, workload, make_policy(policy), 0, decisions=True).decisions
        assert log is not None  # asked for
        parts.append(log.assign(policy=policy, minute=log["time_s"] / 60, what=what))
    return pd.concat(parts, ignore_index=True)


GOALS = (
    ("cost against tuned, on-demand", "tuned", "market", "on-demand", -3.0, -5.0),
    ("cost against tuned, spot", "tuned", "market", "spot", -6.0, -15.0),
    ("cost against tuned, families never trained on", "tuned", "seen", "never trained on", -8.0, -20.0),
    ("cost against tuned_fixed, on-demand", "tuned_fixed", "market", "on-demand", -7.0, -10.0),
    ("cost against tuned_fixed, spot", "tuned_fixed", "market", "spot", -20.0, -35.0),
    ("cost against analytic", "analytic", "all", "all", -1.0, -3.0),
)
"""Figure, method compared with, kind, its value, percent asked for at least, percent aimed at."""


def goals(table: pd.DataFrame) -> pd.DataFrame:
    """Return what was asked of the controller, what it reached with its interval, and a verdict."""
    rows = []
    for text, base, kind, value, least, aim in GOALS:
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
    late = table[table["method"] == "controller"].assign(gain=lambda t: t["violation_pct"])
    mean, low, high = interval(late)
    rows.append({"figure": "SLO violations, %", "asked_pct": 0.05, "aim_pct": 0.02, "found_pct": mean, "low_pct": low,
                 "high_pct": high, "verdict": "reached" if mean <= 0.05 else "not reached"})  # fmt: skip
    return pd.DataFrame(rows)


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


# --- training


def learning_curves(generations: int, seeds: Sequence[int], situations: int) -> pd.DataFrame:
    """Train nets anew, briefly, and return the mean objective of each generation: seed, generation, objective."""
    rows: list[dict[str, float]] = []

    def note(seed: int, generation: int, value: float, mean: np.ndarray) -> None:
        rows.append({"seed": seed, "generation": generation, "objective": value})

    for seed in seeds:
        training.train(generations, seed, situations, partial(note, seed))
    return pd.DataFrame(rows)


def cards() -> pd.DataFrame:
    """Return what the shipped nets' cards say, a row each."""
    wanted = ("method", "seed", "generations", "decisions", "train_s", "data", "limits")
    found = [{"net": name} | {k: load(file)[1].get(k) for k in wanted} for name, file in nets().items()]
    return pd.DataFrame(found, columns=["net", *wanted])


def constants_table() -> pd.DataFrame:
    """Return the formulas' multipliers: start, bounds, tuned value."""
    from selfserve.analytic import MULTIPLIERS

    tuned = multipliers()
    return pd.DataFrame([(n, *MULTIPLIERS[n], tuned[i]) for i, n in enumerate(NAMES)],
                        columns=["multiplier", "start", "least", "most", "tuned"])  # fmt: skip
