"""Notebook 05: every system under the same rules - what it can decide, what it costs, which conclusions survive.

``folder`` keeps finished runs (:class:`selfserve.evaluation.run.Runs`), so that a second start computes nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed

from selfserve.evaluation import run, summary, tuning
from selfserve.policies import policy_names
from selfserve.scenario import Scenario, load_scenario
from selfserve.selector import P99
from selfserve.simulator import simulate
from selfserve.situations import distribution, limits
from selfserve.steering import Steering
from selfserve.studies.claims import judge
from selfserve.studies.prior import over_time, price_ratio
from selfserve.workload import Workload, make_workload

DIMENSIONS = ("model", "machine_type", "spot", "function", "batch", "deferral")
PARTS: Mapping[str, Mapping[str, object]] = {
    "smoothing": {"weight": 1.0, "fast": 0.1},
    "safety": {},  # by scenario: see parts
    "hold": {"hold": 0.0},
    "deferral": {"early": True},
    "overflow": {},  # no functions in the scenario
    "batches": {"own_share": 0.0, "batch_share": 0.0},
    "mixes of models": {"models": "single"},
    "cascades": {"cascades": False},
    "spot": {"spot_share": 0.0},
}
"""Parameters of ``tuned`` without one of its parts."""
WHOLE, NONE, DEAREST = "all parts", "none of these", "most accurate models"
SCENARIOS = ("standard", "spot", "gpu", "wide")
RATIOS, SIZES = (2, 4, 8), (1, 5, 100, 1000)
"""Function over machine price, and mean loads in machines, at which the systems are ranked."""
TRAINED = ("mark", "forecast_milp")
"""Systems that train a network on the history before a window; the quick pass leaves them out."""
FEW = ("static", "reactive", "mixed", "batch", "infaas", "tolerance_tiers", "tuned", "controller")
"""One system of each kind, for what the quick pass plays many times."""


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
    now, length = price_ratio(load_scenario("standard")), 900 if quick else 1800
    places = providers() | {f"functions x{r}": {"function.price_factor": r / now} for r in RATIOS}
    places |= {f"{n:,} machine{'s' * (n > 1)}": {"load_machines": float(n), **limits(n, "vm")} for n in SIZES}
    if quick:
        places = {name: places[name] for name in ("aws", "functions x8", "1 machine")}
    window = run.spread_windows("WITS-twin" if quick else "WITS", "evaluate", 1, length)
    names = {run.as_json(overrides): name for name, overrides in places.items()}
    policies = [p for p in policy_names() if p in FEW or not quick]
    cases, labels = run.grid(policies, window, [("standard", o) for o in names], (seed,))
    found = _run([replace(c, oracle=False) for c in cases], labels, "systems x markets", folder)
    order = list(places)
    return found.assign(market=found["overrides"].map(names)).sort_values(
        "market", key=lambda column: column.map(order.index), kind="stable", ignore_index=True
    )


def tuned(folder: Path, records: Path, quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return rows of every system in ``standard`` with what the equal search found on training windows beside them.

    The search is that of ``evaluate``: 40 sets of parameters a system, on a window of each trace's training part; the
    quick pass tries six of two systems.

    Args:
        folder: keeps finished runs.
        records: keeps what the searches found.
        quick: the short pass.
        seed: of runs and searches.
    """
    names = ["reactive", "paragon"] if quick else policy_names()
    shown, standard = windows(quick), [("standard", "{}")]
    training = tuning.training_windows([trace for trace, *_ in shown])
    found = tuning.tune(names, standard, training, run.Runs(folder, progress=True), records, 6 if quick else 40, seed)
    return _run(*run.grid(names, shown, standard, (seed,), found), "authors' and tuned", folder)


def frontiers(folder: Path, quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return one row per trace, system and value of its main knob, in ``standard``; every system that has a knob."""
    names = ["reactive", "paragon", "tuned"] if quick else policy_names()
    cases, labels = run.grid(names, windows(quick)[:2], [("standard", "{}")], (seed,), frontier=True)
    return summary.systems(_run([replace(c, oracle=False) for c in cases], labels, "knobs", folder))


def spending(quick: bool, systems: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Return what systems pay for over the first window in ``standard``, a row a scored minute.

    Columns: ``system, minute``; dollars per hour ``busy`` (machines at work), ``idle`` (machines that boot, wait or
    drain), ``functions`` and ``load`` (what the arrivals would cost on machines that are always busy, one by one).
    """
    (trace, start, length), scenario = windows(quick)[0], load_scenario("standard")
    workload = make_workload(run.trace_of(trace), scenario, start, length, seed)
    played = Parallel(cpu_count())(delayed(_spending)(s, workload, scenario, seed) for s in systems)
    return pd.concat(
        [one.assign(system=system) for system, one in zip(systems, played, strict=True)], ignore_index=True
    )


def _spending(system: str, workload: Workload, scenario: Scenario, seed: int) -> pd.DataFrame:
    policy = run.policy_for(system, {}, workload, scenario, seed)
    log = simulate(scenario, workload, policy, seed, decisions=True).decisions
    assert log is not None  # asked for
    machines = [p for p in scenario.pools if not p.is_function]
    spent = {kind: sum(log[f"spend_usd.{p.name}"] for p in pools) for kind, pools in
             (("machines", machines), ("functions", [p for p in scenario.pools if p.is_function]))}  # fmt: skip
    spent["busy"] = sum(log[f"busy_slot_s.{p.name}"] / p.slots * p.usd_per_hour / 3600 for p in machines)
    rows = pd.DataFrame(spent).assign(minute=log["time_s"] // 60, seconds=log["interval_s"])
    sums = rows.groupby("minute").sum()
    rates = sums.div(sums.pop("seconds") / 3600, axis=0)
    rates["idle"] = (rates.pop("machines") - rates["busy"]).clip(lower=0)
    load = over_time(log, scenario).set_index("minute")["load"] * machines[0].usd_per_hour
    rates["load"] = load.groupby(load.index // 1).mean()
    return rates[rates.index >= scenario.warmup_s / 60].reset_index()


def parts(scenario: str) -> dict[str, tuple[Mapping[str, object], Mapping[str, object]]]:
    """Return what leaves out one part of ``tuned`` at a time, and all together: parameters, overrides of a scenario.

    Without safety the fleet is that of the expected load: the constant counts from where a machine just pays, which
    without functions is :data:`~selfserve.selector.P99`. Without overflow the scenario has no functions.
    ``most accurate models`` is a choice that looks at no cost.
    """
    resolved = load_scenario(scenario)
    pays = Steering(resolved, np.ones(60), resolved.interval_s).pays[0]
    none = {f"pools.{p.name}": None for p in resolved.pools if p.is_function}
    found: dict[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
        name: (parameters, {}) for name, parameters in PARTS.items() if name != "spot" or scenario == "spot"
    }
    found |= {"safety": ({"safety": -float(pays)}, {}), "overflow": ({}, none)}
    together = {k: v for parameters, _ in found.values() for k, v in parameters.items()} | {"safety": -P99}
    return {WHOLE: ({}, {}), **found, NONE: (together, none), DEAREST: ({"models": "most_accurate"}, {})}


def decomposition(folder: Path, quick: bool, seed: int = 0) -> pd.DataFrame:
    """Return what leaving out one part of ``tuned`` costs: ``part, scenario, trace, cost_ratio, slo_violation_pct``."""
    left_out = [(s, *window, name, *how) for s in SCENARIOS[:2] for window in windows(quick)
                for name, how in parts(s).items()]  # fmt: skip
    cases = [run.Case("tuned", trace, start, length, s, run.as_json(own), run.as_json(overrides), seed, oracle=False)
             for s, trace, start, length, _, own, overrides in left_out]  # fmt: skip
    rows = run.Runs(folder, progress=True)(cases, "parts left out")
    keys = ("cost_usd", "slo_violation_pct")
    found = pd.DataFrame([
        {"part": name, "scenario": s, "trace": trace} | {key: row[key] for key in keys}
        for (s, trace, _, _, name, *_), row in zip(left_out, rows, strict=True)
    ])  # fmt: skip
    whole = found[found["part"] == WHOLE].set_index(["scenario", "trace"])["cost_usd"]
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
