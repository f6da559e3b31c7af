"""Notebook 05: every system under the same rules - what it can decide, what it costs, which conclusions survive.

``folder`` keeps finished runs (:class:`selfserve.evaluation.run.Runs`), so that a second start computes nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pandas as pd

from selfserve.evaluation import run, summary
from selfserve.policies import policy_names
from selfserve.scenario import load_scenario
from selfserve.situations import distribution, limits
from selfserve.studies.claims import judge
from selfserve.studies.prior import price_ratio

DIMENSIONS = ("model", "machine_type", "spot", "function", "batch", "deferral")
PARTS: Mapping[str, Mapping[str, object]] = {
    "all parts": {},
    "no smoothing": {"weight": 1.0, "fast": 0.1},
    "no safety": {"safety": 0.0},
    "no hold": {"hold": 0.0},
    "no deferral": {"early": True},
    "no batches": {"own_share": 0.0, "batch_share": 0.0},
    "no spot": {"spot_share": 0.0},
    "best models": {"models": "most_accurate"},
}
"""``tuned`` with one part left out at a time."""
SCENARIOS = ("standard", "spot", "gpu", "wide")
RATIOS, SIZES = (2, 4, 8), (1, 5, 100, 1000)
"""Function over machine price, and mean loads in machines, at which the systems are ranked."""
TRAINED = ("mark", "forecast_milp")
"""Systems that train a network on the history before a window; the quick pass leaves them out."""


def capabilities() -> pd.DataFrame:
    """Return what each system that is built in can decide, by its paper: one row a system, True or False."""
    table = pd.read_csv(Path(__file__).with_name("systems.csv"), keep_default_na=False)
    table[list(DIMENSIONS)] = table[list(DIMENSIONS)] == "yes"
    return table[table["system"].isin(policy_names())].reset_index(drop=True)


def uncovered(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs of dimensions that no published system decides together."""
    published = table[table["published"] != ""]
    return [(a, b) for a, b in combinations(DIMENSIONS, 2) if not (published[a] & published[b]).any()]


def windows(quick: bool) -> list[run.Window]:
    """Return one evaluation window a trace: an hour behind the warm-up, half an hour of a twin in the quick pass."""
    length, traces = (2400, ("WITS-twin",)) if quick else (4200, ("WITS", "berkeley", "twitter"))
    return [w for trace in traces for w in run.spread_windows(trace, "evaluate", 1, length)]


def _run(cases: Sequence[run.Case], labels: Sequence[dict[str, object]], text: str, folder: Path) -> pd.DataFrame:
    rows = run.Runs(folder, progress=True)(cases, text)
    return run.table(cases, labels, rows)


def compare(folder: Path, quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return one row a run of every system (authors' parameters); bounds in ``standard`` and ``spot`` alone."""
    policies = [p for p in run.policies_in(["all"]) if not (quick and p in TRAINED)]
    scenarios = SCENARIOS[:2] if quick else SCENARIOS
    cases, labels = run.grid(policies, windows(quick), [(s, "{}") for s in scenarios], (seed,))
    cases = [c if c.scenario in ("standard", "spot") else replace(c, oracle=False) for c in cases]
    return _run(cases, labels, "systems x scenarios x traces", folder)


def providers() -> dict[str, dict[str, object]]:
    """Return overrides of ``standard`` by provider, as situations draw them; AWS is as it stands."""
    found = {}
    for one in distribution()["provider"]["options"]:
        found[one["prices"].split("_")[0]] = {
            "prices": one["prices"], "pools.vm.resource": one["vm"], "pools.fn.resource": one["function"],
            "pools.fn.memory_mb": one["memory_mb"],
        }  # fmt: skip
    return {"aws": {}} | {name: overrides for name, overrides in found.items() if name != "aws"}


def markets(folder: Path, quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return one row a run of every system over price lists, function prices and sizes of the load, no bounds.

    ``standard`` on twenty scored minutes of one trace each; ``market`` names the situation.
    """
    now, length = price_ratio(load_scenario("standard")), 1200 if quick else 1800
    places = providers() | {f"functions x{r}": {"function.price_factor": r / now} for r in RATIOS}
    places |= {f"load {n:,}": {"load_machines": float(n), **limits(n, "vm")} for n in SIZES}
    if quick:
        places = {name: places[name] for name in ("aws", "functions x8", "load 1", "load 5")}
    window = run.spread_windows("WITS-twin" if quick else "WITS", "evaluate", 1, length)
    names = {run.as_json(overrides): name for name, overrides in places.items()}
    policies = [p for p in run.policies_in(["all"]) if p != "clairvoyant" and not (quick and p in TRAINED)]
    cases, labels = run.grid(policies, window, [("standard", o) for o in names], (seed,))
    found = _run([replace(c, oracle=False) for c in cases], labels, "systems x markets", folder)
    return found.assign(market=found["overrides"].map(names))


def frontiers(folder: Path, quick: bool, systems: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Return one row per system and value of its main knob, on the first window in ``standard``."""
    cases, labels = run.grid(list(systems), windows(quick)[:1], [("standard", "{}")], (seed,), frontier=True)
    return summary.systems(_run([replace(c, oracle=False) for c in cases], labels, "knobs", folder))


def decomposition(folder: Path, quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return what leaving out one part of ``tuned`` costs: ``part, scenario, trace, cost_ratio, slo_violation_pct``."""
    cases = [
        run.Case("tuned", *window, scenario, run.as_json(parameters), seed=seed, oracle=False)
        for scenario in ("standard", "spot") for window in windows(quick) for parameters in PARTS.values()
    ]  # fmt: skip
    names = [*PARTS] * (len(cases) // len(PARTS))
    rows = run.Runs(folder, progress=True)(cases, "parts left out")
    keys = ("cost_usd", "slo_violation_pct")
    found = pd.DataFrame([
        {"part": name, "scenario": c.scenario, "trace": c.trace} | {key: row[key] for key in keys}
        for name, c, row in zip(names, cases, rows, strict=True)
    ])  # fmt: skip
    whole = found[found["part"] == "all parts"].set_index(["scenario", "trace"])["cost_usd"]
    return found.assign(
        cost_ratio=found["cost_usd"] / found.join(whole.rename("whole"), on=["scenario", "trace"])["whole"]
    )


def model_choice(folder: Path, quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return ``paragon`` with the cheapest models that meet the demands over a choice that knows none (claim C15)."""
    mixes = {"strict": (8, 1, 1), "even": (4, 3, 3), "accurate": (1, 8, 1), "relaxed": (1, 1, 8)}
    names, rows = ("strict", "accurate", "relaxed"), []
    for mix, shares in mixes.items():
        overrides = run.as_json({f"classes.{n}.share": s / 10 for n, s in zip(names, shares, strict=True)})
        cases = [
            run.Case("paragon", *w, "standard", run.as_json({"models": m}), overrides, seed, oracle=False)
            for w in windows(quick) for m in ("cheapest", "naive")
        ]  # fmt: skip
        got = run.Runs(folder, progress=True)(cases, f"models, {mix} mix")
        for ours, naive, case in zip(got[::2], got[1::2], cases[::2], strict=True):
            rows.append({"mix": mix, "trace": case.trace, "cost_ratio": ours["cost_usd"] / naive["cost_usd"]}
                        | {f"{key}_{who}": row[key] for who, row in (("selected", ours), ("naive", naive))
                           for key in ("slo_violation_pct", "accuracy_violation_pct")})  # fmt: skip
    return pd.DataFrame(rows)


def judge_model_choice(table: pd.DataFrame) -> dict[str, str]:
    """Return the verdict on claim C15."""
    best, median = float(table["cost_ratio"].min()), float(table["cost_ratio"].median())
    broken = ("slo_violation_pct", "accuracy_violation_pct")
    kept = all((table[f"{key}_selected"] <= table[f"{key}_naive"] + 1e-9).all() for key in broken)
    measured = f"selected over naive: best {best:.2f}, median {median:.2f}, over {len(table)} mixes and traces"
    bands = {"best 0.75 to 0.85": 0.75 <= best <= 0.85, "median 0.80 to 0.97": 0.8 <= median <= 0.97}
    return judge("C15", measured, bands | {"demands met at least as often": kept})
