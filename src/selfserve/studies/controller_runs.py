"""Single runs for notebook 08: the controller beside other systems and the bound, and over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from scipy.stats import bootstrap
from tqdm.auto import tqdm

from selfserve.analytic import Pilot
from selfserve.bound import bound
from selfserve.bound.offline import combos_of
from selfserve.errors import InputError
from selfserve.evaluation.run import policy_for
from selfserve.features import AT, Case, Flock, Seen
from selfserve.policies import policy_names
from selfserve.scenario import Scenario, Storm, load_scenario
from selfserve.simulator import Simulator, simulate
from selfserve.situations import sample
from selfserve.studies.claims import judge
from selfserve.studies.controller import tags_of
from selfserve.studies.prior import over_time
from selfserve.traces import make_trace, split_ranges
from selfserve.workload import Workload, load_trace, make_workload

YARDSTICKS = ("bound", "clairvoyant", "controller", "analytic", "tuned", "tuned_fixed")
GAP = ("tuned", "controller", "clairvoyant")
"""Whose single runs say how much of what foresight would gain the controller gains."""
PARTS = 3
"""Windows of each trace's evaluation part that ``standard`` is served in."""
LATE_PCT = 0.1
"""A prior system with more late requests than this, or than the controller where it has more, is no match for it."""


def systems() -> list[str]:
    """Return the published systems: every policy but the yardsticks and the static fleet."""
    return [name for name in policy_names() if name not in (*YARDSTICKS, "static")]


def _single(policy: str, scenario: Scenario, workload: Workload, seed: int, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"place": name, "policy": policy, "cost_usd": np.nan, "reason": "", "bound_usd": np.nan}
    try:
        if policy == "bound":
            least = bound(workload, scenario, seed).certificate_usd
            return row | {"cost_usd": least, "violation_pct": 0.0, "bound_usd": least}
        run = simulate(scenario, workload, policy_for(policy, {}, workload, scenario, seed), seed)
    except InputError as error:
        return row | {"reason": str(error)}
    s = run.summary
    late, missed = s["slo_violation_pct"], s["accuracy_violation_pct"]
    row |= {"cost_usd": s["cost_usd"], "violation_pct": late, "missed_pct": missed}
    try:  # without a late request, also where the run has many: it is what all are held against
        return row | {"bound_usd": bound(workload, scenario, seed, combos=combos_of(run)).certificate_usd}
    except InputError:
        return row


def _in_situation(policy: str, index: int, machines: float, twins: bool) -> dict[str, Any]:
    one = sample("evaluate", index, at_most=machines, twins=twins)
    return _single(policy, one.scenario, one.workload(0), index, one.name) | {"market": one.tags["market"]}


def _window(trace: str, length_s: int, part: int, scenario: Scenario) -> Workload:
    whole = load_trace(trace)
    a, b = split_ranges(whole)["evaluate"]
    return make_workload(whole, scenario, a + (b - a - length_s) * part // (PARTS - 1), length_s, part)


def _in_standard(policy: str, trace: str, length_s: int, part: int) -> dict[str, Any]:
    scenario = load_scenario("standard")
    workload = _window(trace, length_s, part, scenario)
    return _single(policy, scenario, workload, part, f"{trace} {part}") | {"market": "standard"}


def others(
    policies: Sequence[str],
    situations: Sequence[int],
    traces: Sequence[str],
    length_s: int,
    machines: float = 30.0,
    twins: bool = False,
) -> pd.DataFrame:
    """Return single runs of systems, clairvoyant and bound: in situations (window 0) and in scenario ``standard``.

    Args:
        policies: names, ``clairvoyant`` and ``bound`` among them.
        situations: evaluation situations.
        traces: of the runs in ``standard``, three windows of each trace's evaluation part.
        length_s: of those windows.
        machines: larger situations are thinned to this size.
        twins: use the twins of the real traces.
    """
    tasks = [delayed(_in_situation)(p, i, machines, twins) for i in situations for p in policies]
    tasks += [delayed(_in_standard)(p, t, length_s, part) for t in traces for part in range(PARTS) for p in policies]
    played = Parallel(n_jobs=cpu_count(), return_as="generator")(tasks)
    table = pd.DataFrame(list(tqdm(played, total=len(tasks), desc="runs", unit="run")))
    # one measure for all: the least of the bounds without late requests, each with the cascades of a run that has any
    return table.assign(to_bound=table["cost_usd"] / table.groupby("place")["bound_usd"].transform("min"))


def standing(table: pd.DataFrame) -> pd.DataFrame:
    """Return, per market and policy, mean log cost to the bound (as a ratio), late requests, and how often it ran."""
    able = table[table["cost_usd"].notna()].assign(log=lambda t: np.log(t["to_bound"]))
    found = able.groupby(["market", "policy"], sort=False).agg(
        runs=("log", "size"), to_bound=("log", lambda x: float(np.exp(x.mean()))),
        violation_pct=("violation_pct", "mean"), missed_pct=("missed_pct", "mean"),
    )  # fmt: skip
    places = table.groupby("market")["place"].nunique()
    return found.reset_index().assign(places=lambda t: t["market"].map(places))


def single_goals(table: pd.DataFrame) -> pd.DataFrame:
    """Return what was asked of single runs, what they reached (with its interval), and a verdict."""
    wide = table.pivot(index="place", columns="policy", values="cost_usd")
    late = table.pivot(index="place", columns="policy", values="violation_pct")
    market = table.groupby("place")["market"].first()
    standard = wide[market == "standard"]
    rows = []

    def note(figure: str, asked: float, aim: float, reached: bool, found: float, *within: float) -> None:
        low, high = within or (np.nan, np.nan)
        rows.append({"figure": figure, "asked": asked, "aim": aim, "found": found, "low": low, "high": high,
                     "verdict": "reached" if reached else "not reached"})  # fmt: skip

    *gap, places = gap_closed(table)
    note(f"share of the gap from tuned to clairvoyant closed, {places:.0f} on-demand situations, %", 25, 50,
         gap[0] >= 25, *gap)  # fmt: skip
    against = _change(standard["controller"], standard["mixed"])
    note("cost against mixed in standard, %", -28, -35, against <= -28, against)
    prior = [p for p in standard if p not in YARDSTICKS]
    allowed = np.maximum(LATE_PCT, late["controller"])
    able = standard[prior].where(late.loc[standard.index, prior].le(allowed[standard.index], axis=0))
    cheapest = _change(standard["controller"], able.min(axis=1))
    note(f"cost against the cheapest prior system at most {LATE_PCT}% late, or no later than it, in standard, %", -8,
         -12, cheapest <= -8, cheapest)  # fmt: skip
    mine = table[(table["market"] == "standard") & (table["policy"] == "controller")]
    ratio = float(np.exp(np.log(mine["to_bound"]).mean()))
    note("cost over the bound in standard", 1.11, 1.09, ratio <= 1.11, ratio)
    return pd.DataFrame(rows)


def gap_closed(table: pd.DataFrame) -> tuple[float, float, float, int]:
    """Return the percentage of the gap from ``tuned`` to ``clairvoyant`` that the controller closes on-demand.

    It is a ratio of sums over situations of log costs saved, with its 95% interval by bootstrap over situations, whose
    number comes last.
    """
    on_demand = table[table["market"] == "on-demand"]
    cost = np.log(on_demand.pivot(index="place", columns="policy", values="cost_usd").reindex(columns=GAP).dropna())
    saved = [(cost["tuned"] - cost[p]).to_numpy() for p in GAP[1:]]
    share = lambda a, b, axis=-1: 100 * a.sum(axis=axis) / b.sum(axis=axis)  # noqa: E731
    if len(cost) < 2:
        return share(*saved) if len(cost) else np.nan, np.nan, np.nan, len(cost)
    rng = np.random.default_rng(0)
    within = bootstrap(saved, share, paired=True, n_resamples=2000, method="percentile", rng=rng).confidence_interval
    return share(*saved), within.low, within.high, len(cost)


def in_situations(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs in situations with the columns of ``controller.rollouts``."""
    own = table[table["market"] != "standard"].drop(columns="market").rename(columns={"policy": "method"})
    own = own.assign(situation=own["place"].str.rpartition("-")[2].astype(int), window=0, cost=own["cost_usd"])
    tags = pd.DataFrame({i: tags_of("evaluate", i) for i in own["situation"].unique()}).T.rename_axis("situation")
    return own.dropna(subset="cost").merge(tags.reset_index(), on="situation")


def judge_self_managed(table: pd.DataFrame) -> dict[str, str]:
    """Return the verdict on claim C16: cost and violations beside paragon, the bound and the integer program."""
    standard = table[table["market"] == "standard"].assign(trace=lambda t: t["place"].str.split().str[0])
    means = standard.groupby(["trace", "policy"])[["cost_usd", "violation_pct", "to_bound"]].mean()
    own, paragon = means.xs("controller", level="policy"), means.xs("paragon", level="policy")
    cheaper, as_good = own["cost_usd"] <= paragon["cost_usd"], own["violation_pct"] <= paragon["violation_pct"]
    both, enough = int((cheaper & as_good).sum()), 0.75 * len(own)
    ratio = _change(own["cost_usd"], paragon["cost_usd"])
    measured = f"{ratio:+.1f}% against paragon's cost, {own['violation_pct'].mean():.3f}% late against "
    measured += f"{paragon['violation_pct'].mean():.3f}%; {own['to_bound'].mean():.2f} times the bound"
    if "forecast_milp" in means.index.get_level_values("policy"):
        milp = means.xs("forecast_milp", level="policy")["cost_usd"]
        measured += f", {_change(own['cost_usd'], milp):+.1f}% against the integer program's cost"
    bands = {"no dearer than paragon on three of four traces, or as large a share": cheaper.sum() >= enough,
             "and no later there": both >= enough}  # fmt: skip
    why = "the controller is formulas that retune themselves; nets cost more on validation, on average"
    return judge("C16", measured, bands, why)


def _change(own: pd.Series, other: pd.Series) -> float:
    return float(100 * np.expm1(np.log(own / other).mean()))


def reaction(what: str, policies: Sequence[str], minutes: int = 60, machines: float = 20.0) -> pd.DataFrame:
    """Return load and capacity over time: rows of :func:`selfserve.studies.prior.over_time`, with scheme and what.

    Args:
        what: ``step`` (load doubles), ``burst`` (three times the load for five minutes) or ``storm`` (spot machines are
            lost and refused for a quarter of an hour), half an hour into the window; or a trace's name.
        policies: names, ``clairvoyant`` among them.
        minutes: length of the window.
        machines: that the mean load keeps busy.
    """
    scenario = load_scenario("spot" if what == "storm" else "standard", {"load_machines": machines})
    if what in ("step", "burst", "storm"):
        scenario, workload = _staged(what, scenario, minutes)
    else:
        workload = _window(what, 60 * minutes, 1, scenario)
    parts = []
    for policy in policies:
        own = policy_for(policy, {}, workload, scenario, 0)
        log = simulate(scenario, workload, own, 0, decisions=True).decisions
        assert log is not None  # asked for
        parts.append(over_time(log, scenario).assign(scheme=policy, what=what))
    return pd.concat(parts, ignore_index=True)


def reasons(policy: str, trace: str, minutes: int, machines: float) -> pd.DataFrame:
    """Return time and reason of a run's decisions in ``standard``."""
    scenario = load_scenario("standard", {"load_machines": machines})
    workload = _window(trace, 60 * minutes, 1, scenario)
    log = simulate(scenario, workload, policy_for(policy, {}, workload, scenario, 0), 0, decisions=True).decisions
    assert log is not None  # asked for
    return log[["time_s", "reason"]]


def _staged(what: str, scenario: Scenario, minutes: int) -> tuple[Scenario, Workload]:
    start, at = 4200, 30 * 60
    rate = np.full(start + 60 * minutes, 100.0)
    if what == "step":
        rate[start + at :] *= 2
    if what == "burst":
        rate[start + at : start + at + 300] *= 3
    if what == "storm":
        scenario = replace(scenario, spot=replace(scenario.spot, storms=(Storm(float(at), 900.0, 6.0, 0.9),)))
    counts = np.random.default_rng(0).poisson(rate)
    return scenario, make_workload(make_trace(what, counts), scenario, start, 60 * minutes, 0)


SWEPT = {"function price, x": ("function.price_factor", (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)),
         "boot, s": ("vm.boot_s", (20.0, 50.0, 83.0, 150.0, 300.0))}  # fmt: skip
SHOWN = ("headroom", "safety", "fast", "hold", "leave_margin", "drain")


def settings_map() -> pd.DataFrame:
    """Return what the formulas set over function price and boot time, at 1,000 requests/s in ``standard``."""
    load, rows = np.random.default_rng(0).poisson(1000.0, 4200).astype(float), []
    for what, (key, values) in SWEPT.items():
        for value in values:
            case = Case(load_scenario("standard", {key: value}), load, 10.0)
            settings = Pilot(Flock([case])).settings()[0]
            rows += [{"swept": what, "value": value, "setting": s, "set_to": settings[AT[s]]} for s in SHOWN]
    return pd.DataFrame(rows)


def sensitivity(minutes: int = 60, machines: float = 20.0, by: float = 1.25) -> pd.DataFrame:
    """Return what each observation moves: percent by which the formulas' mean decision and settings change.

    A run of ``analytic`` through a storm of spot losses is recorded; its observations are shown to it once more with
    one of them larger all along. Rows: observations; columns: machines ``at home`` and ``on spot``, slack (the least
    seconds before the deadline at which a request leaves for a function), settings.

    Args:
        minutes: length of the run.
        machines: that the mean load keeps busy.
        by: factor of the observation.
    """
    scenario, workload = _staged("storm", load_scenario("spot", {"load_machines": machines}), minutes)
    simulator = Simulator(scenario, workload, scenario.interval_s)

    def ready() -> Any:
        policy = policy_for("analytic", {}, workload, scenario, 0)
        policy.reset(scenario, workload.history)
        return policy

    policy, recorded = ready(), [simulator.reset(0)]
    while not simulator.done:
        recorded.append(simulator.advance(policy.decide(recorded[-1])))

    def means(changed: str | None) -> pd.Series:
        own, rows = ready(), []
        for seen in recorded[:-1]:
            decision = own.decide(replace(seen, **{changed: by * getattr(seen, changed)}) if changed else seen)
            slacks = [s.leave_slack_s for routes in decision.routes for r in routes for s in r.steps]
            named = dict(zip(("at home", "on spot"), decision.machines, strict=False))
            settings = {name: own.pilot.flock.base[0, AT[name]] for name in (*SHOWN, "spot_share")}
            rows.append(named | {"slack": min(x for x in slacks if np.isfinite(x))} | settings)
        return pd.DataFrame(rows).mean()

    plain = means(None)
    return pd.DataFrame({f.name: 100 * (means(f.name) / plain - 1) for f in fields(Seen)[2:]}).T  # all but the time
