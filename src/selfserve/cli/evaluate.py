"""``evaluate`` runs policies over windows into one table; ``advise`` says what to run for a trace and an SLO."""

from __future__ import annotations

import argparse
import sys
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfserve.cli import common
from selfserve.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from selfserve.evaluation.run import Runs, Window


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``evaluate`` and ``advise``."""
    option = common.option
    common.add_command(
        commands, "evaluate", evaluate, "run policies over traces and scenarios, as published and tuned",
        "evaluate --policies all --traces WITS-twin --scenarios standard,spot --windows 2 --out results/evaluation",
        option("--policies", "A,B|all", "names, controller files, FILE.py:Class", required=True),
        option("--traces", "X,Y", "names (traces list) or CSV files", required=True),
        option("--scenarios", "A,B", "names or TOML files, default standard", "standard"),
        common.repeated("--scenario-set", "override a key of every scenario (repeatable)"),
        option("--windows", "N", "windows of each trace's evaluation part, default 1 (intervals need more)", 1,
               type=int),
        option("--length-s", "N", "length of a window, default 7200", 7200, type=int),
        option("--seeds", "N", "seeds 0 to N - 1, default 1", 1, type=int),
        option("--jobs", "N", "processes, default one a core", 0, type=int),
        option("--tune", "N", "evaluations that each system is tuned with on training windows, default 40; 0: none", 40,
               type=int),
        option("--frontier", None, "also sweep each system's main knob"),
        option("--ray", "ADDRESS", "run on a Ray cluster (auto, or HOST:PORT)"),
        option("--out", "DIR", "tables and runs; a second start goes on there", required=True),
    )  # fmt: skip
    common.add_command(
        commands, "advise", advise, "say what to run for a trace, an SLO and an accuracy, and what a month of it costs",
        "advise --trace WITS-twin --slo-s 0.5 --accuracy-pct 75 --figure advice.png",
        option("--trace", "NAME|FILE.csv", "second,requests or arrival_s; unscaled", required=True),
        option("--slo-s", "S", "latency that every request should keep", type=float, required=True),
        option("--accuracy-pct", "X", "least top-1 accuracy of an answer", type=float, required=True),
        option("--scenario", "NAME|FILE.toml", "pools and prices, default spot", "spot"),
        option("--seed", "N", "default 0", 0, type=common.seed),
        common.JSON,
        option("--figure", "OUT.png", "draw it (.png, .pdf or .svg)"),
    )  # fmt: skip


def evaluate(args: argparse.Namespace) -> None:
    """Run ``evaluate``."""
    for name, least in (("windows", 1), ("seeds", 1), ("length_s", 1), ("jobs", 0), ("tune", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be {least} or more")
    from selfserve.evaluation import run, summary

    policies = run.policies_in(_names(args.policies, "--policies"))
    overrides = run.as_json(common.scenario_overrides(args))
    scenarios = [(name, overrides) for name in _names(args.scenarios, "--scenarios")]
    traces = _names(args.traces, "--traces")
    windows = [w for t in traces for w in run.spread_windows(t, "evaluate", args.windows, args.length_s)]
    run.check_windows(windows, scenarios)
    for policy in policies:
        run.refuse_overlap(run.training_ranges(policy), windows)
    out = common.output_folder(args.out, "--out")
    runs = run.Runs(out, args.jobs, args.ray, progress=sys.stderr.isatty())
    tuned = _tuned(args.tune, policies, scenarios, traces, windows, runs)
    for frontier in (True, False) if args.frontier else (False,):
        cases, labels = run.grid(policies, windows, scenarios, range(args.seeds), tuned, frontier)
        rows = runs(cases, "frontiers" if frontier else "runs")
        found, name = run.table(cases, labels, rows), "frontier" if frontier else "runs"
        run.write_parquet(found, out / f"{name}.parquet")
        if not frontier:
            run.write_parquet(run.class_table(cases, labels, rows), out / "classes.parquet")
    _print(summary.systems(found), _against(found, out))
    print(f"{runs.computed:,} runs computed; {len(found):,} rows in {out / 'runs.parquet'}", file=sys.stderr)


def _tuned(
    budget: int,
    policies: list[str],
    scenarios: list[tuple[str, str]],
    traces: list[str],
    windows: list[Window],
    runs: Runs,
) -> list[dict[str, Any]]:
    """Return what the search found on training windows, which no evaluated window may overlap."""
    from selfserve.evaluation import run, tuning
    from selfserve.figures.style import results_dir

    scored_from_s = ceil(max(run.scenario_of(*scenario).warmup_s for scenario in scenarios))
    length_s = max(tuning.LENGTH_S, scored_from_s + tuning.LEAST_SCORED_S)
    training = tuning.training_windows(traces, length_s) if budget else []
    if budget and not training:
        print("none of the traces has a training part: authors' parameters only", file=sys.stderr)
    if not training:
        return []
    run.check_windows(training, scenarios)
    run.refuse_overlap({name: [(a, a + n)] for name, a, n in training}, windows)
    return tuning.tune(policies, scenarios, training, runs, results_dir() / "tuning", budget)


def _against(found: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Write each system's cost over that of ``tuned``, paired by window, with 95% intervals, where there are pairs."""
    from selfserve.evaluation import run, summary

    kind = "tuned" if ((found["policy"] == "tuned") & (found["kind"] == "tuned")).any() else "authors"
    pairs = summary.intervals(found, "tuned", kind)
    if len(pairs):
        run.write_parquet(pairs, out / "intervals.parquet")
    return pairs


def _print(systems: pd.DataFrame, pairs: pd.DataFrame) -> None:
    """Print a block a situation: a line a system with cost, violations, ratios to the bounds and log hash.

    Where there are several windows the cost over that of ``tuned``, paired by window, stands beside its 95% interval.
    """
    names = {"usd_per_hour": "$/h", "slo_violation_pct": "SLO %", "accuracy_violation_pct": "accuracy %",
             "to_bound": "/ bound", "cost_to_oracle": "/ own bound", "decisions": "decisions"}  # fmt: skip
    for (trace, scenario), mine in systems.groupby(["trace", "scenario"], sort=True):
        able, unable = mine[mine["runs"] > 0], mine[mine["runs"] == 0]
        print(f"\n{trace}, scenario {scenario}: {able['runs'].max():.0f} runs a system")
        shown = able.sort_values("usd_per_hour")[["policy", "kind", *names]].rename(columns=names)
        here = pairs[(pairs["trace"] == trace) & (pairs["scenario"] == scenario)]
        if here["windows"].gt(1).any():
            words = [f"{r.cost_ratio:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in here.itertuples()]
            shown = shown.merge(here[["policy", "kind"]].assign(**{"/ tuned [95%]": words}), how="left")
        print(shown.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
        for _, row in unable.iterrows():
            print(f"  {row['policy']} ({row['kind']}) cannot run: {row['reason']}")


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"{option} {text!r} is not a list such as a,b")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{option} {text!r} names {twice[0]} twice")
    return names


def advise(args: argparse.Namespace) -> None:
    """Run ``advise``."""
    figure = common.output_file(args.figure, "--figure", ".png", ".pdf", ".svg")
    from selfserve.advice import advise as ask

    found = ask(args.trace, args.slo_s, args.accuracy_pct, args.scenario, args.seed)
    r, default = found.record, found.record["default"]
    models = ", ".join(f"{name} {share:.1f} %" for name, share in r["models_pct"].items())
    places = ", ".join(f"{p['resource']} {p['market']} {p['answers_pct']:.1f} %" for p in r["resources"])
    most = max((hour["most"] for hour in r["machines_by_hour"]), default=0)
    print(f"For {r['trace']} ({r['hours']:.1f} h, {r['requests']:,} requests) within {args.slo_s:g} s at "
          f"{args.accuracy_pct:g} % or more, run {r['policy']}")  # fmt: skip
    print(f"  models         {models}\n  resources      {places}")
    print(f"  machines       {r['machines_mean']:.1f} on average, {most:.0f} at most")
    ratio = r["cost_to_bound"]
    print(f"  cost a month   ${r['month_usd']:,.0f}, {r['slo_violation_pct']:.3f} % late"
          + (f"; {ratio:.2f} times what no policy can beat" if ratio else ""))  # fmt: skip
    print(f"  the default    ${default['month_usd']:,.0f} with {default['policy']}, the cloud's default autoscaler, "
          f"{default['slo_violation_pct']:.3f} % late")  # fmt: skip
    print(f"  the bound      ${r['bound_month_usd']:,.0f} with every request in time")
    print("  by hour        " + ", ".join(f"{h['hour']:.0f}: {h['mean']:.0f}" for h in r["machines_by_hour"]))
    for sentence in r["assumptions"]:
        print(f"  {sentence}")
    if figure is not None:
        from selfserve.figures.advice import advice
        from selfserve.figures.style import use_style

        use_style()
        drawn = advice(found.over_time, found.costs, r["policy"])
        with common.replacing(figure) as part:
            drawn.savefig(part, dpi=200)
    if args.json:
        common.print_json(r)
