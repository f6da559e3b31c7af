"""What a run leaves behind: summary, tables per class and window, rows per request and per decision."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from selfserve.protocol import Admit, Then
from selfserve.simulator import state as s
from selfserve.simulator.decisions import given

if TYPE_CHECKING:
    from selfserve.protocol import Decision, Observation
    from selfserve.scenario import Scenario
    from selfserve.simulator.run import Simulator
    from selfserve.simulator.world import Combo, World


@dataclass
class Result:
    """Everything a run is asked for. Counts and dollars cover the scored window ``[warmup, end)``."""

    policy: str
    trace: str
    scenario: str
    seed: int
    summary: dict[str, Any]
    """The keys of ``simulate --json``, without the oracle's."""
    classes: pd.DataFrame
    """One row a class: name, requests, slo_violation_pct, mean_accuracy_pct, p50_s, p99_s."""
    class_totals: pd.DataFrame
    """One row a class: requests, answered, rejected, late, below_floor, late_or_below (answers)."""
    windows: pd.DataFrame
    """One row per class with a mean target and accuracy window: start_s, end_s, answers, accuracy_sum, below_floor."""
    vm_billed_ns: np.ndarray
    """[P] billed machine time (function pools: provisioned containers), nanoseconds."""
    function_ms: np.ndarray
    """[P, M] billed execution on demand, milliseconds."""
    provisioned_ms: np.ndarray
    """[P, M] billed execution on provisioned containers, milliseconds."""
    invocations: np.ndarray
    """[P, M] invocations."""
    answered: np.ndarray
    """[P, M, K] answers."""
    cost_usd: np.ndarray
    """[P] dollars."""
    combos: tuple[Combo, ...] = ()
    """The cascades and ensembles that the policy used, in order of first use."""
    mixed: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[K] scored answers in time whose stages were of more than one combination, as the decision changed."""
    requests: pd.DataFrame | None = None
    decisions: pd.DataFrame | None = None


@dataclass
class DecisionLog:
    """One row an interval: what was decided and what was then observed."""

    scenario: Scenario
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, decision: Decision, seen: Observation) -> None:
        """Append a decision and the observation of the interval that it governed."""
        pools = [p.name for p in self.scenario.pools]
        classes = [c.name for c in self.scenario.classes]
        models = [m.name for m in self.scenario.models]
        row: dict[str, Any] = {"time_s": round(seen.time_s - seen.interval_s, 9), "interval_s": seen.interval_s}
        row["reason"] = decision.reason
        for i, p in enumerate(pools):
            row[f"machines.{p}"] = int(decision.machines[i])
            row[f"batch_max.{p}"] = int(given(decision.batch_max, 1, len(pools))[i])
            row[f"batch_wait_s.{p}"] = float(given(decision.batch_wait_s, 0.0, len(pools))[i])
        for k, c in enumerate(classes):
            row[f"routes.{c}"] = json.dumps([_route_words(r, pools, models) for r in decision.routes[k]])
        for i, p in enumerate(pools):
            for name in ("ready", "busy_slot_s", "cold_starts", "lost", "refused", "batch_mean", "spend_usd"):
                row[f"{name}.{p}"] = getattr(seen, name)[i].item()
            row[f"booting.{p}"] = int(seen.booting[i].sum())
            for k, c in enumerate(classes):
                for name in ("queued", "queued_request_s", "head_age_s"):
                    row[f"{name}.{p}.{c}"] = getattr(seen, name)[i, k].item()
                for m in self.scenario.pools[i].models:
                    row[f"served.{p}.{models[m]}.{c}"] = int(seen.served[i, m, k])
        for k, c in enumerate(classes):
            row[f"arrivals.{c}"] = int(seen.arrivals[:, k].sum())
            row[f"late.{c}"] = int(seen.late[k])
            row[f"accuracy_sum.{c}"] = float(seen.accuracy_sum[k])
        self.rows.append(row)

    def frame(self) -> pd.DataFrame:
        """Return the log as a table."""
        return pd.DataFrame(self.rows)


def _route_words(route: Any, pools: list[str], models: list[str]) -> dict[str, Any]:
    """Return a route in names, for the log; only what differs from the defaults."""
    steps = []
    for x in route.steps:
        step: dict[str, Any] = {"pool": pools[x.pool], "model": models[x.model], "admit": Admit(x.admit).name}
        if x.leave_slack_s != -np.inf:
            step["leave_slack_s"] = float(x.leave_slack_s)
        if x.then:
            step |= {"then": Then(x.then).name, "unsure_share": float(x.unsure_share)}
        if x.late_model is not None:
            step |= {"late_model": models[x.late_model], "late_slack_s": float(x.late_slack_s)}
        steps.append(step)
    return {"weight": float(route.weight), "steps": steps}


def quantile_s(histogram: np.ndarray, q: float) -> float | None:
    """Return a latency quantile in seconds from log-spaced bins, within 0.1% (None if nothing was answered).

    Args:
        histogram: int64 [HISTOGRAM_BINS] counts, bins as in ``books.histogram_bin``.
        q: between 0 and 1.
    """
    total = int(histogram.sum())
    if not total:
        return None
    i = int(np.searchsorted(np.cumsum(histogram), max(1, np.ceil(q * total))))
    octave, part = divmod(i, 1 << s.PER_OCTAVE_BITS)
    return float(((1 << s.PER_OCTAVE_BITS) + part + 0.5) * 2.0**octave / 1e9)


def _share(part: float, whole: float) -> float:
    return 100.0 * float(part) / float(whole) if whole else 0.0


def _by_grade(w: World) -> np.ndarray:
    """Return the scored answers by class and grade: model, or combination of several."""
    found = w.scored_regraded.copy()
    found[:, : w.shape[1]] += w.answered.sum(0).T
    return found


def _class_tables(w: World, scenario: Scenario) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (classes, class_totals)."""
    accuracy, by_grade = w.accuracies_pct(), _by_grade(w)
    classes, totals = [], []
    for k, c in enumerate(scenario.classes):
        by_model, late = by_grade[k], w.scored_late[k]
        below = accuracy < c.min_accuracy_pct
        answered, requests = int(by_model.sum()), int(w.classes["scored"][k])
        rejected = requests - answered
        either = int(np.where(below, by_model, late).sum())
        counts = [requests, answered, rejected, int(late.sum()), int(by_model[below].sum()), either]
        totals.append([c.name, *counts])
        mean = float(by_model @ accuracy / answered) if answered else None
        violated = _share(late.sum() + rejected, requests)
        quantiles = [quantile_s(w.histogram[k], q) for q in (0.5, 0.99)]
        classes.append([c.name, requests, violated, mean, *quantiles])
    columns = ["name", "requests", "slo_violation_pct", "mean_accuracy_pct", "p50_s", "p99_s"]
    total_columns = ["name", "requests", "answered", "rejected", "late", "below_floor", "late_or_below"]
    return pd.DataFrame(classes, columns=columns), pd.DataFrame(totals, columns=total_columns)


def _windows(w: World, scenario: Scenario) -> pd.DataFrame:
    """Return the accuracy windows of the classes that have a mean target (rule 10 of the design's physics)."""
    rows, accuracy = [], w.accuracies_pct()
    warmup, end = w["warmup"] / 1e9, w["end"] / 1e9
    for k, c in enumerate(scenario.classes):
        if not w.classes["window_ns"][k]:
            continue
        below = accuracy < c.min_accuracy_pct
        for i, counts in enumerate(w.windows[k]):
            start = warmup + i * c.accuracy_window_s
            if start < end:
                stop = min(start + c.accuracy_window_s, end)
                answers, total = int(counts.sum()), float(counts @ accuracy)
                rows.append([c.name, i, start, stop, answers, total, int(counts[below].sum())])
    columns = ["class", "window", "start_s", "end_s", "answers", "accuracy_sum", "below_floor"]
    return pd.DataFrame(rows, columns=columns)


def _accuracy_violations(totals: pd.DataFrame, windows: pd.DataFrame, scenario: Scenario) -> int:
    """Return the answers below their floor or in a window of their class that misses its mean."""
    count = 0
    for c, below in zip(scenario.classes, totals["below_floor"], strict=True):
        mine = windows[windows["class"] == c.name]
        if c.mean_accuracy_pct is None:
            count += int(below)
            continue
        missed = mine["accuracy_sum"] < (c.mean_accuracy_pct - 1e-9) * mine["answers"]
        count += int(np.where(missed, mine["answers"], mine["below_floor"]).sum())
    return count


def _costs(w: World, scenario: Scenario) -> np.ndarray:
    """Return dollars per pool of the scored window, shape [P]."""
    f = {name: w.functions[name].sum(1) for name in ("ms", "ms_provisioned", "invocations")}
    costs = []
    for i, p in enumerate(scenario.pools):
        machine = int(w.pools["billed"][i]) / 3600e9 * p.usd_per_hour
        busy = int(f["ms"][i]) / 3600e3 * p.usd_per_busy_hour
        provisioned = int(f["ms_provisioned"][i]) / 3600e3 * p.usd_per_busy_hour_provisioned
        costs.append(machine + busy + provisioned + int(f["invocations"][i]) * p.usd_per_request)
    return np.array(costs)


def _requests(w: World, scenario: Scenario) -> pd.DataFrame:
    """Return one row per scored request."""
    assert w.rows is not None  # asked for
    scored = w.rows[: w["next_id"]]["arrived"] >= w["warmup"]
    rows = w.rows[: w["next_id"]][scored]
    arrived, start, finish, k = rows["arrived"], rows["start"], rows["finish"], rows["k"]
    slo = w.classes["slo"][k]
    seconds = lambda a: np.where(a < 0, np.nan, a / 1e9)  # noqa: E731
    names = lambda of, i: pd.Categorical.from_codes(i, [x.name for x in of])  # noqa: E731
    return pd.DataFrame(
        {
            "id": np.flatnonzero(scored),
            "arrival_s": arrived / 1e9,
            "class": names(scenario.classes, k),
            "pool": names(scenario.pools, rows["pool"]),
            "model": names(scenario.models, rows["model"]),
            "start_s": seconds(start),
            "finish_s": seconds(finish),
            "cold": rows["cold"] > 0,
            "slo_s": slo / 1e9,
            "violated": (finish < 0) | (finish - arrived > slo),
            "arrival_ns": arrived,
            "start_ns": start,
            "finish_ns": finish,
        }
    )


def collect(simulator: Simulator, policy: str, log: DecisionLog | None) -> Result:
    """Read a finished run out of its world."""
    w, scenario, workload = simulator.world, simulator.scenario, simulator.workload
    classes, totals = _class_tables(w, scenario)
    windows = _windows(w, scenario)
    cost = _costs(w, scenario)
    is_function = np.array([p.is_function for p in scenario.pools])
    requests, answered = int(totals["requests"].sum()), int(totals["answered"].sum())
    by_grade = _by_grade(w).sum(0)
    machine_slots = sum(int(w.pools["billed"][i]) * p.slots for i, p in enumerate(scenario.pools) if not p.is_function)
    everyone = w.histogram.sum(0)
    total = float(cost.sum())
    summary = {
        "policy": policy,
        "trace": workload.trace,
        "scenario": scenario.name,
        "seed": simulator.seed,
        "requests": requests,
        "answered": answered,
        "rejected": requests - answered,
        "cost_usd": total,
        "vm_cost_usd": float(cost[~is_function].sum()),
        "function_cost_usd": float(cost[is_function].sum()),
        "cost_per_million_usd": total / answered * 1e6 if answered else None,
        "slo_violation_pct": _share(totals["late"].sum() + requests - answered, requests),
        "accuracy_violation_pct": _share(_accuracy_violations(totals, windows, scenario), answered),
        "mean_accuracy_pct": float(by_grade @ w.accuracies_pct() / answered) if answered else None,
        "p50_s": quantile_s(everyone, 0.5),
        "p99_s": quantile_s(everyone, 0.99),
        "function_share_pct": _share(w.answered[is_function].sum(), answered),
        "cold_starts": int(w.functions["colds"].sum()),
        "launches": int(w.pools["launches"][~is_function].sum()),
        "vm_utilisation_pct": _share(w.pools["busy"][~is_function].sum(), machine_slots),
        "classes": classes.astype(object).where(classes.notna(), None).to_dict("records"),
    }
    return Result(
        policy=policy,
        trace=workload.trace,
        scenario=scenario.name,
        seed=simulator.seed,
        summary=summary,
        classes=classes,
        class_totals=totals,
        windows=windows,
        vm_billed_ns=w.pools["billed"].copy(),
        function_ms=w.functions["ms"].copy(),
        provisioned_ms=w.functions["ms_provisioned"].copy(),
        invocations=w.functions["invocations"].copy(),
        answered=w.answered.copy(),
        cost_usd=cost,
        combos=tuple(
            replace(c, ended=tuple(row["ended"][: len(c.stages)].tolist()))
            for c, row in zip(w.combos, w.combo_rows(), strict=True)
        ),
        mixed=w.classes["mixed"].copy(),
        requests=None if w.rows is None else _requests(w, scenario),
        decisions=None if log is None else log.frame(),
    )
