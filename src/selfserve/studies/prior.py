"""The tables of notebook 04: the prior systems on the resource side, run under the same rules.

A :class:`Case` is one run; :func:`run` takes any number of them over the local cores and returns one row a case. Every
other function chooses cases and arranges their rows. ``traces`` maps a trace to its window, see :func:`shown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from math import inf
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from tqdm.auto import tqdm

from selfserve.bound import bound, oracle_for
from selfserve.evaluation.run import as_json, policy_for, scenario_of, trace_of
from selfserve.planner import FunctionConfigurator, ResourceSelector, peak_minute_rate
from selfserve.scenario import Scenario
from selfserve.selector import ModelSelector
from selfserve.simulator import Result, simulate
from selfserve.traces import burstiness, split_ranges
from selfserve.workload import Workload, make_workload

Window = tuple[int, int]
"""First second and length of a window, seconds."""
Windows = Mapping[str, Window]
Scheme = tuple[str, Mapping[str, object]]

SCHEMES: dict[str, Scheme] = {
    "clairvoyant": ("clairvoyant", {}),  # executes the bound's plan
    "static": ("static", {}),
    "reactive": ("reactive", {}),
    "util_aware": ("util_aware", {}),
    "exascale": ("exascale", {}),
    "mixed": ("mixed", {}),
    "spock": ("spock", {}),
    "paragon": ("paragon", {}),
    "mixed, free slot": ("mixed", {"overflow": "idle"}),  # as the authors' simulator: a function unless a slot is free
    "paragon, free slot": ("paragon", {"overflow": "idle"}),
    "reactive, no hold": ("reactive", {"keep_s": 0.0}),  # machines go as soon as the load falls
    "mixed, no hold": ("mixed", {"keep_s": 0.0}),
    "functions only": ("mixed", {"headroom": 0.0, "keep_s": 0.0}),
}
"""Schemes by the name that tables show: policy and the parameters that differ from its defaults."""
COMPARED = tuple(name for name in SCHEMES if name != "functions only")
PAPER = ("reactive", "util_aware", "exascale", "mixed")
"""The schemes of figures 4 and 5 of WoSC'20, which are normalised to the first."""
_SPOCK: dict[str, dict[str, object]] = {"autoscale": {"overflow": "never"}, "spock": {}}
_SPOCK["X-autoscale"] = {"overflow": "never", "headroom": 1.5}
SPOCK: dict[str, Scheme] = {
    f"{name}, {policy}": ("spock", {"policy": policy, **_SPOCK[name]})
    for policy in ("reactive", "predictive")
    for name in ("autoscale", "X-autoscale", "spock")
}
"""The schemes of figure 8 of Spock (CLOUD'19), all at its own interval of a second."""
PUBLISHED = ("WITS", "berkeley", "twitter", "azure_code", "wiki_like")
QUICK = ("WITS-twin", "wiki_like")
LONGEST_H = 6
"""Hours of a trace's evaluation part that the comparison covers."""
QUICK_H = 0.35
PENDING_S = 17.0
"""Seconds from a decision to a running, billed VM; a swept start-up is this much plus the boot."""


@dataclass(frozen=True)
class Case:
    """One run: a scheme on a window of a trace in the standard scenario with overrides (dotted keys)."""

    trace: str
    window: Window
    scheme: str
    seed: int = 0
    plan: Scheme | None = None
    """Policy and parameters; by default what ``SCHEMES`` or ``SPOCK`` says of the scheme."""
    scenario: Mapping[str, object] = field(default_factory=dict)
    oracle: bool = False
    """Whether to compute the bound that the run is measured against."""
    labels: Mapping[str, object] = field(default_factory=dict)
    """Columns to put beside the result."""

    def situation(self) -> tuple[Scenario, Workload]:
        """Return scenario and workload."""
        overrides = as_json(self.scenario)
        return standard(overrides), _workload(self.trace, self.window, overrides, self.seed)


standard = partial(scenario_of, "standard")
"""Returns the standard scenario with overrides (a JSON object of dotted keys)."""


@lru_cache(maxsize=2)
def _workload(trace: str, window: Window, scenario: str, seed: int) -> Workload:
    return make_workload(trace_of(trace), standard(scenario), *window, seed)


def shown(quick: bool = False) -> dict[str, Window]:
    """Return the traces of the comparison, each with the window that it covers.

    That is the trace's evaluation part, which nothing is ever trained on, up to ``LONGEST_H`` hours from its middle
    (the evaluation parts are a night and a day long). Quick: ``QUICK_H`` hours of a twin and of ``wiki_like``.
    """
    evaluation = {name: split_ranges(trace_of(name))["evaluate"] for name in (QUICK if quick else PUBLISHED)}
    return {name: middle((a, b - a), QUICK_H if quick else LONGEST_H) for name, (a, b) in evaluation.items()}


def middle(window: Window, hours: float) -> Window:
    """Return the middle ``hours`` of a window, or all of it if it is shorter."""
    start, seconds = window
    length = min(seconds, round(hours * 3600))
    return start + (seconds - length) // 2, length


def play(this: Case, decisions: bool = False) -> Result:
    """Run one case (a static fleet is told the window's peak minute, see its docstring)."""
    scenario, workload = this.situation()
    name, parameters = this.plan or (SCHEMES | SPOCK)[this.scheme]
    policy = policy_for(name, parameters, workload, scenario, this.seed)
    return simulate(scenario, workload, policy, this.seed, decisions=decisions, name=name)


_SUMMARY = (
    "requests", "rejected", "cost_usd", "vm_cost_usd", "function_cost_usd", "slo_violation_pct",
    "accuracy_violation_pct", "function_share_pct", "cold_starts", "launches", "vm_utilisation_pct",
)  # fmt: skip


def measure(this: Case) -> dict[str, Any]:
    """Run one case and return its row: dollars, violations, time-average machines, where requests went."""
    result, (scenario, workload) = play(this), this.situation()
    row: dict[str, Any] = {"trace": this.trace, "start_s": this.window[0], "scheme": this.scheme, "seed": this.seed}
    row |= {key: result.summary[key] for key in _SUMMARY}
    row["machines"] = float(result.vm_billed_ns.sum()) / 1e9 / (this.window[1] - scenario.warmup_s)
    scored = workload.counts[round(scenario.warmup_s) :]
    row["burstiness_pct"] = 100 * burstiness(scored)
    row["mean_to_peak"] = float(scored.mean() / max(1.0, peak_minute_rate(scored)))
    answered, on_functions = result.answered.sum(axis=1), [pool.is_function for pool in scenario.pools]
    for k, wanted in enumerate(scenario.classes):
        row[f"violation_pct.{wanted.name}"] = float(result.classes["slo_violation_pct"].iloc[k])
        row[f"functions.{wanted.name}"] = int(answered[on_functions, k].sum())
        row[f"answered.{wanted.name}"] = int(answered[:, k].sum())
    if this.oracle:
        own = oracle_for(result, workload, scenario).certificate_usd
        row["cost_to_oracle"] = row["cost_usd"] / own if own > 0 else np.nan  # 0: the run may leave all undone
        row["bound_usd"] = bound(workload, scenario, this.seed).certificate_usd
        row["unbatched_usd"] = bound(workload, unbatched(scenario), this.seed).certificate_usd
    return {**row, **this.labels}


def unbatched(scenario: Scenario) -> Scenario:
    """Return the scenario for those that serve requests one by one, as every scheme here does."""
    pools = tuple(replace(p, service_ns=p.service_ns[:, :2], believed_ns=p.believed_ns[:, :2]) for p in scenario.pools)
    return replace(scenario, pools=pools)


def run(cases: Iterable[Case], text: str, jobs: int = 0) -> pd.DataFrame:
    """Run cases over ``jobs`` processes (0: one a core) and return their rows in the order of the cases."""
    todo = list(cases)
    workers = min(jobs or cpu_count(), len(todo))
    rows = Parallel(n_jobs=workers, return_as="generator")(delayed(measure)(this) for this in todo)
    return pd.DataFrame(list(tqdm(rows, total=len(todo), desc=text, unit="run", mininterval=2)))


# --- the comparison


def comparison(traces: Windows, seed: int = 0, jobs: int = 0) -> pd.DataFrame:
    """Return every scheme on every trace, with the bound that each run is measured against."""
    cases = [Case(name, window, scheme, seed, oracle=True) for name, window in traces.items() for scheme in COMPARED]
    return normalised(run(cases, "schemes x traces", jobs))


def normalised(table: pd.DataFrame, to: str = "reactive", by: Sequence[str] = ("trace",)) -> pd.DataFrame:
    """Return the table with cost, machines and violations beside those of the scheme ``to``.

    Adds ``cost_ratio``, ``machines_ratio`` and ``violation_ratio`` (missing where ``to`` violates nothing).
    """
    columns = {"cost_usd": "cost_ratio", "machines": "machines_ratio", "slo_violation_pct": "violation_ratio"}
    base = table[table["scheme"] == to].set_index(list(by))[list(columns)].add_suffix("_base")
    joined = table.join(base, on=list(by))
    ratios = {new: joined[old] / joined[f"{old}_base"].where(joined[f"{old}_base"] > 0) for old, new in columns.items()}
    return table.assign(**ratios)


def timeline(trace: str, window: Window, schemes: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Return load and capacity over time, rows of :func:`over_time` with the scheme."""
    parts = []
    for scheme in schemes:
        log = play(Case(trace, window, scheme, seed), decisions=True).decisions
        assert log is not None
        parts.append(over_time(log, standard()).assign(scheme=scheme))
    return pd.concat(parts, ignore_index=True)


def over_time(log: pd.DataFrame, scenario: Scenario) -> pd.DataFrame:
    """Return load and capacity of one decision log, a row per 10 s.

    Columns: ``minute``, ``load`` (machines that the arrivals would keep busy with one model an answer; containers where
    there are only functions), ``ready`` and ``busy`` (machines), ``function_pct`` (share of the answers that functions
    gave), ``waiting`` (requests).
    """
    alone = "function" if all(pool.is_function for pool in scenario.pools) else None
    resources = ResourceSelector(scenario, ModelSelector(scenario), alone)
    slots = {pool.name: pool.slots for pool in scenario.pools if not pool.is_function}
    arrivals = log[[f"arrivals.{c.name}" for c in scenario.classes]].to_numpy() / log[["interval_s"]].to_numpy()
    rows = pd.DataFrame({"minute": (log["time_s"] // 10) / 6})
    rows["load"] = resources.load(arrivals.T).sum(axis=0)
    rows["ready"] = log[[f"ready.{name}" for name in slots]].sum(axis=1)
    rows["busy"] = sum(log[f"busy_slot_s.{name}"] / log["interval_s"] / n for name, n in slots.items())
    rows["waiting"] = log.filter(regex=r"^queued\.").sum(axis=1)
    on_machines = log.filter(regex=rf"^served\.({'|'.join(slots)})\.").sum(axis=1)
    rows["on_functions"] = log.filter(regex=r"^served\.").sum(axis=1) - on_machines
    means = rows.assign(on_machines=on_machines).groupby("minute", as_index=False).mean()
    answers = means["on_functions"] + means["on_machines"]
    return means.assign(function_pct=100 * means["on_functions"] / answers.where(answers > 0))


# --- what the papers leave open


READINGS: dict[str, dict[str, object]] = {
    "as here": {},
    "no hold": {"keep_s": 0.0},
    "queue ignored": {"drain_s": inf},
    "no hold, queue ignored": {"keep_s": 0.0, "drain_s": inf},
    "every second": {"interval_s": 1.0},
    "every second, no hold": {"interval_s": 1.0, "keep_s": 0.0},
    "every second, queue ignored": {"interval_s": 1.0, "drain_s": inf},  # Spock's
}
"""Ways to read "scales on observed demand": the interval, the hold of idle machines, whether waiting requests count."""


def readings(traces: Windows, seed: int = 0, jobs: int = 0) -> pd.DataFrame:
    """Return reactive and mixed under each reading of what "reactive" leaves open."""
    cases = [
        Case(name, window, policy, seed, plan=(policy, parameters), labels={"reading": reading})
        for (name, window), (reading, parameters) in product(traces.items(), READINGS.items())
        for policy in ("reactive", "mixed")
    ]
    return run(cases, "readings of reactive", jobs)


def boot_sweep(traces: Windows, start_up_s: Sequence[float], seed: int = 0, jobs: int = 0) -> pd.DataFrame:
    """Return the paper's schemes for each time from a decision to a ready VM."""
    cases = [
        Case(name, window, scheme, seed, scenario={"vm.boot_s": start - PENDING_S}, labels={"start_up_s": start})
        for (name, window), start, scheme in product(traces.items(), start_up_s, (*PAPER, "mixed, free slot"))
    ]
    return normalised(run(cases, "start-up of VMs", jobs), by=("trace", "start_up_s"))


def workload_1(strict_share: float) -> dict[str, object]:
    """Return overrides for the paper's Workload-1: strict and relaxed queries that differ in their SLO alone.

    Both ask for 79% accuracy, so the same model answers them; the SLOs are the standard scenario's 0.5 and 20 s.
    """
    wanted = [("strict", strict_share, 0.5), ("relaxed", 1 - strict_share, 20.0)]
    classes = [{"name": n, "share": s, "slo_s": t, "min_accuracy_pct": 79.0} for n, s, t in wanted if s > 0]
    return {"classes": classes}


def strict_sweep(traces: Windows, strict_shares: Sequence[float], seeds: Sequence[int], jobs: int = 0) -> pd.DataFrame:
    """Return reactive, mixed and paragon on Workload-1 for each share of strict queries and each seed."""
    schemes = ("reactive", "mixed", "paragon", "mixed, free slot", "paragon, free slot")
    cases = [
        Case(name, window, scheme, seed, scenario=workload_1(share), labels={"strict_share": share})
        for (name, window), share, seed, scheme in product(traces.items(), strict_shares, seeds, schemes)
    ]
    return run(cases, "share of strict queries", jobs)


def price_ratio(scenario: Scenario) -> float:
    """Return what the scenario's work costs on warm functions over what it costs on fully busy VMs."""
    models = ModelSelector(scenario)
    resources, functions = ResourceSelector(scenario, models), FunctionConfigurator(scenario, models)
    on_vms = on_functions = 0.0
    for k, wanted in enumerate(scenario.classes):
        pool = scenario.pools[resources.pool_of[k]]
        on_vms += wanted.share * float(resources.work_s[k]) * pool.usd_per_hour / pool.slots / 3600
        for model, share in resources.mixes[k]:
            place = functions.choose(k, model)
            assert place is not None, f"no function answers class {wanted.name} in time"
            on_functions += wanted.share * share * functions.cost_usd(*place)
    return on_functions / on_vms


def price_sweep(table: pd.DataFrame, ratios: Sequence[float] = (2, 3, 4, 6, 8)) -> pd.DataFrame:
    """Return the comparison's rows at other function prices: no policy here looks at prices, so only bills change."""
    now = price_ratio(standard())
    bills = {ratio: table["vm_cost_usd"] + table["function_cost_usd"] * ratio / now for ratio in ratios}
    parts = [table.assign(price_ratio=ratio, cost_usd=usd) for ratio, usd in bills.items()]
    return normalised(pd.concat(parts, ignore_index=True), by=("trace", "price_ratio"))


def start_up_map(
    traces: Windows, start_up_s: Sequence[float], cold_s: Sequence[float], seed: int = 0, jobs: int = 0
) -> pd.DataFrame:
    """Return schemes for each start-up of VMs and of functions (VM-only ones run once for all of the latter).

    Paragon is left out: in the standard scenario it differs from mixed by less than the schemes do from each other.
    """
    hybrids = ("mixed", "spock")
    cases = [
        Case(name, window, scheme, seed, scenario={"vm.boot_s": start - PENDING_S, "function.init_s": cold},
             labels={"start_up_s": start, "cold_s": cold})
        for (name, window), start, scheme in product(traces.items(), start_up_s, (*PAPER, "spock"))
        for cold in (cold_s if scheme in hybrids else cold_s[:1])
    ]  # fmt: skip
    table = run(cases, "start-up of VMs x functions", jobs)
    vm_only = table[~table["scheme"].isin(hybrids)]
    return pd.concat([table, *(vm_only.assign(cold_s=cold) for cold in cold_s[1:])], ignore_index=True)


def best_scheme(table: pd.DataFrame, limit_pct: float = 1.0) -> pd.DataFrame:
    """Return, per trace and start-up pair, the cheapest scheme with at most ``limit_pct`` violations and the runner-up.

    ``margin_pct`` is how much dearer the runner-up is.
    """
    rows = []
    for (trace, start, cold), group in table.groupby(["trace", "start_up_s", "cold_s"], sort=False):
        fit = group[group["slo_violation_pct"] <= limit_pct].sort_values("cost_usd", kind="stable")
        names, costs = list(fit["scheme"]), list(fit["cost_usd"])
        margin = 100 * (costs[1] / costs[0] - 1) if len(fit) > 1 else np.nan
        rows.append((trace, start, cold, *(names + ["none"] * 2)[:2], margin, ", ".join(names)))
    columns = ["trace", "start_up_s", "cold_s", "best", "second", "margin_pct", "order"]
    return pd.DataFrame(rows, columns=columns)


# --- many hours, and Spock


def hours(quick: bool = False, seed: int = 0, jobs: int = 0) -> pd.DataFrame:
    """Return schemes on every whole hour of every trace's evaluation part, and on that part as a whole.

    Column ``whole`` tells the two apart. Quick: two windows of ``QUICK_H`` hours each of a twin and ``wiki_like``.
    """
    cases, length = [], round(3600 * (QUICK_H if quick else 1))
    for name in QUICK if quick else PUBLISHED:
        start, end = split_ranges(trace_of(name))["evaluate"]
        windows = [(first, length) for first in range(start, end - length + 1, length)]
        for window in windows[:2] if quick else windows:
            for scheme in ("static", "reactive", "exascale", "mixed", "mixed, free slot", "functions only"):
                cases.append(Case(name, window, scheme, seed, labels={"whole": False}))
        if not quick:
            for scheme in ("static", "reactive", "functions only"):
                cases.append(Case(name, (start, end - start), scheme, seed, labels={"whole": True}))
    return normalised(run(cases, "hours", jobs), by=("trace", "start_s", "whole"))


def spock_comparison(traces: Windows, seed: int = 0, jobs: int = 0) -> pd.DataFrame:
    """Return Spock's figure 8: autoscale, X-autoscale and spock under both policies, functions only, and an ideal VM.

    One class with Spock's SLO of 1 s; the ideal VM starts at once (its figure 10d) and never needs a function.
    """
    one = {"classes": [{"name": "query", "share": 1.0, "slo_s": 1.0, "min_accuracy_pct": 79.0}]}
    at_once = one | {"vm.boot_s": 0.0, "vm.pending_s": 0.0}
    cases = []
    for name, window in traces.items():
        cases += [Case(name, window, scheme, seed, scenario=one) for scheme in (*SPOCK, "functions only")]
        for policy in ("reactive", "predictive"):
            plan = SPOCK[f"autoscale, {policy}"]
            cases.append(Case(name, window, f"ideal, {policy}", seed, plan=plan, scenario=at_once))
    return normalised(run(cases, "Spock", jobs), to="functions only")
