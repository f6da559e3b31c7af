"""What to run for one's own trace, SLO and accuracy, what it costs a month, and how far that is from the bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from selfserve.bound import bound
from selfserve.errors import InputError
from selfserve.evaluation.run import policy_for
from selfserve.policies import policy_names
from selfserve.scenario import Scenario, load_scenario
from selfserve.simulator import Result, simulate
from selfserve.workload import Workload, check_scored, load_trace, make_workload

CANDIDATES = ("tuned", "paragon", "mixed", "spock", "proteus")
"""Policies that are tried: those that decide quickly, one a family."""
ONE_MODEL = {"tuned": {"cascades": False}}
"""One model an answer: what a cascade saves hangs on how well a model knows its errors, which nobody measured here."""
DEFAULTS = ("target_tracking", "util_aware")
"""The cloud's default autoscaler; the second where the first is not in the registry."""
TARGET_PCT = 0.1
"""Violations that are accepted, percent of the requests."""
MONTH_H = 730.0
LEAST_S = 1200
"""Shortest trace that says anything, seconds: the first ``warmup_s`` of it are not scored."""
TRIED, MEASURED = (5e6, 6 * 3600), (40e6, 36 * 3600)
"""Most requests and seconds that a candidate is tried on, and that the best of them and the default are measured on."""
SLOTS = 2000
"""Slots of the bound at most; longer ones loosen it by under a percent (60 s: 0.8%)."""


@dataclass(frozen=True)
class Advice:
    """The answer.

    Attributes:
        record: what ``advise --json`` prints.
        over_time: of the advised policy, a row per interval: ``hour``, ``load`` (requests/s), machines by pool, and
            ``function_pct`` (share of the answers that functions gave).
        costs: dollars a month, a row per ``what`` (the policy, the default, the bound): ``vm``, ``spot``, ``function``.
    """

    record: dict[str, Any]
    over_time: pd.DataFrame
    costs: pd.DataFrame


def advise(trace: str, slo_s: float, accuracy_pct: float, scenario: str = "spot", seed: int = 0) -> Advice:
    """Choose a policy by simulation: the cheapest candidate that misses at most ``TARGET_PCT`` of the SLOs.

    Args:
        trace: a name or a CSV file, served as it is (unscaled).
        slo_s: latency SLO of every request.
        accuracy_pct: least accuracy of every answer.
        scenario: pools, prices and physics; its classes and scale are replaced.
        seed: of everything random.

    Raises:
        InputError: an SLO or accuracy that is none, a trace that is too short, demands that nothing meets.
    """
    if not 0 < slo_s < np.inf:
        raise InputError(f"--slo-s {slo_s:g}: must be above 0")
    if not 0 <= accuracy_pct <= 100:
        raise InputError(f"--accuracy-pct {accuracy_pct:g}: must be from 0 to 100")
    loaded = load_trace(trace)
    if loaded.seconds < LEAST_S:
        raise InputError(
            f"trace {trace}: {loaded.seconds} s long; right is {LEAST_S} s or more, better a day or a week"
        )
    wanted = {"name": "all", "share": 1.0, "slo_s": slo_s, "min_accuracy_pct": accuracy_pct}
    served = load_scenario(scenario, {"classes": [wanted], "rate_scale": 1.0})
    whole = make_workload(loaded, served, seed=seed)
    window = _middle(whole, MEASURED)
    workload = make_workload(loaded, served, *window, seed)
    short = make_workload(loaded, served, *_middle(whole, TRIED), seed)
    for one in (workload, short):
        check_scored(trace, one.start_s, one.seconds, served)
        if not one.counts[round(served.warmup_s) :].any():
            raise InputError(
                f"trace {trace}: no request in {one.seconds} s in its middle; right is a trace that is busy"
            )
    least = _bound(workload, served, seed)  # also says if nothing meets the demands
    tried = {name: _run(name, short, served, seed) for name in CANDIDATES if name in policy_names()}
    best = min(tried, key=lambda name: _merit(tried[name]))
    default = next(name for name in DEFAULTS if name in policy_names())
    results = {name: _run(name, workload, served, seed, name == best) for name in dict.fromkeys((best, default))}
    own = _bound(workload, served, seed, results[best].summary["slo_violation_pct"] / 100)
    scale = _month(workload, whole, served)
    record = {"trace": trace, "hours": whole.seconds / 3600, "requests": int(whole.counts.sum()), "slo_s": slo_s,
              "accuracy_pct": accuracy_pct, "scenario": scenario, "policy": best}  # fmt: skip
    record |= _what_serves(results[best], served)
    record |= {"month_usd": _usd(results[best], scale), **_missed(results[best])}
    record["default"] = {"policy": default, "month_usd": _usd(results[default], scale), **_missed(results[default])}
    record |= {
        "bound_month_usd": least * scale,
        "cost_to_bound": results[best].summary["cost_usd"] / own if own else None,
    }
    over_time = _over_time(results[best], served, workload.start_s)
    scored = over_time[over_time["hour"] >= (workload.start_s + served.warmup_s) / 3600]
    ready = scored[[p.name for p in served.pools if not p.is_function]].sum(axis=1)
    record["machines_by_hour"] = _by_hour(scored, ready)
    mean = record["machines_mean"] = float(ready.mean())
    part = _month(short, whole, served)
    record["tried"] = {name: {"month_usd": _usd(r, part), **_missed(r)} for name, r in tried.items()}
    record["assumptions"] = _assumptions(whole, workload, short, served, mean)
    costs = {best: results[best], default: results[default]}
    rows = [{"what": name, **_split(r, served, scale)} for name, r in costs.items()]
    rows.append({"what": "bound", "bound": least * scale})
    return Advice(record, over_time, pd.DataFrame(rows))


def _middle(whole: Workload, most: tuple[float, int]) -> tuple[int, int]:
    """Return start and length of the longest window around the trace's middle with so many requests and seconds."""
    length = max(LEAST_S, int(whole.seconds * min(1.0, most[0] / max(1, int(whole.counts.sum())))))
    length = min(length, most[1], whole.seconds)
    return (whole.seconds - length) // 2, length


def _bound(workload: Workload, scenario: Scenario, seed: int, violations: float = 0.0) -> float:
    slot_s = 10.0 * max(1, round(workload.seconds / 10 / SLOTS))
    return bound(workload, scenario, seed, violations=violations, slot_s=slot_s).certificate_usd


def _run(name: str, workload: Workload, scenario: Scenario, seed: int, log: bool = False) -> Result:
    policy = policy_for(name, ONE_MODEL.get(name, {}), workload, scenario, seed)
    return simulate(scenario, workload, policy, seed, decisions=log, name=name)


def _merit(result: Result) -> tuple[float, float]:
    """Return violations over the target first, dollars second."""
    violated = result.summary["slo_violation_pct"] + result.summary["accuracy_violation_pct"]
    return max(TARGET_PCT, violated), result.summary["cost_usd"]


def _month(workload: Workload, whole: Workload, scenario: Scenario) -> float:
    """Return dollars a month over dollars of a window: by its scored hours, and by how busy it is beside the trace."""
    scored = workload.counts[round(scenario.warmup_s) :]
    busy = float(scored.mean()) / max(1e-9, float(whole.counts.mean()))
    return MONTH_H * 3600 / len(scored) / max(1e-9, busy)


def _usd(result: Result, scale: float) -> float:
    return float(result.summary["cost_usd"]) * scale


def _missed(result: Result) -> dict[str, float]:
    return {key: result.summary[key] for key in ("slo_violation_pct", "accuracy_violation_pct")}


def _split(result: Result, scenario: Scenario, scale: float) -> dict[str, float]:
    kinds = {"on_demand": "vm", "spot": "spot", "function": "function"}
    usd = dict.fromkeys(kinds.values(), 0.0)
    for pool, cost in zip(scenario.pools, result.cost_usd.tolist(), strict=True):
        usd[kinds[pool.market]] += cost * scale
    return usd


def _what_serves(result: Result, scenario: Scenario) -> dict[str, Any]:
    """Return which models answer, and on what, as shares of the answers in percent."""
    shares = 100 * result.answered.sum(2) / max(1, int(result.answered.sum()))
    models = {m.name: float(x) for m, x in zip(scenario.models, shares.sum(0), strict=True) if x > 0}
    pools = [
        {"pool": p.name, "resource": p.resource, "market": p.market, "answers_pct": float(x)}
        for p, x in zip(scenario.pools, shares.sum(1), strict=True)
        if x > 0
    ]
    return {"models_pct": models, "resources": pools}


def _over_time(result: Result, scenario: Scenario, start_s: int) -> pd.DataFrame:
    log = result.decisions
    assert log is not None  # asked for
    machines = [p.name for p in scenario.pools if not p.is_function]
    functions = [p.name for p in scenario.pools if p.is_function]
    answers = {p.name: log.filter(like=f"served.{p.name}.").sum(axis=1) for p in scenario.pools}
    total = sum(answers.values())
    frame = pd.DataFrame({"hour": (start_s + log["time_s"]) / 3600, "load": log["arrivals.all"] / log["interval_s"]})
    frame = frame.assign(**{name: log[f"ready.{name}"] for name in machines})
    by_functions = sum((answers[name] for name in functions), start=0 * log["time_s"])
    return frame.assign(function_pct=100 * by_functions / total.where(total > 0))


def _by_hour(scored: pd.DataFrame, ready: pd.Series) -> list[dict[str, float]]:
    """Return mean requests/s and mean and most machines of each hour of the trace."""
    hour = scored["hour"].astype(int)
    found = pd.DataFrame({
        "requests_per_s": scored["load"].groupby(hour).mean(),
        "mean": ready.groupby(hour).mean(), "most": ready.groupby(hour).max(),
    })  # fmt: skip
    return [{"hour": float(hour), **row} for hour, row in found.to_dict("index").items()]


def _assumptions(
    whole: Workload, workload: Workload, short: Workload, scenario: Scenario, machines: float
) -> list[str]:
    """Return, in sentences, what the monthly figures rest on."""
    hours = whole.seconds / 3600
    said = [f"A month is {MONTH_H:.0f} h like the {hours:.1f} h of this trace, in proportion to its mean load."]
    if hours < 24:
        said.append("The trace is shorter than a day: what the rest of a day is like is not in the month.")
    elif hours < 168:
        said.append("The trace is shorter than a week: no weekend is in the month.")
    for part, what in ((workload, "Costs are measured on"), (short, "Candidates are compared on")):
        if part.seconds < whole.seconds:
            said.append(f"{what} {part.seconds / 3600:.1f} h from its middle, not on all of it.")
    if machines < 10:
        said.append("The bound rents fractions of machines: with as few as here, that alone opens a gap to it.")
    said.append(
        f"The first {scenario.warmup_s:.0f} s are not counted. The policy is chosen on the load it is measured on."
    )
    said.append(
        f"Prices {scenario.prices}, profile {scenario.profile}; published defaults, nothing tuned to this trace."
    )
    return said
