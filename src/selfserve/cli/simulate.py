"""``simulate`` runs one policy over one window; ``bound`` says what no policy can beat there."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from selfserve.cli import common
from selfserve.cli.common import option
from selfserve.errors import InputError

if TYPE_CHECKING:
    from selfserve.protocol import Policy
    from selfserve.scenario import Scenario
    from selfserve.workload import Workload


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``simulate`` and ``bound``."""
    common.add_command(
        commands, "simulate", simulate, "run a policy over a trace and print cost, violations, latency and accuracy",
        "simulate --policy static --set machines=4 --trace WITS-twin --length-s 7200 --json",
        option("--policy", "NAME|FILE.py:Class", "a policy's name or a class in a file", required=True),
        common.repeated("--set", "set a policy parameter (repeatable)"),
        *common.WINDOW,
        option("--requests", "OUT.parquet", "write one row a scored request"),
        option("--decisions", "OUT.parquet", "write one row a decision, with what was observed"),
        option("--figure", "OUT.png", "draw load against capacity over time (.png, .pdf or .svg)"),
        option("--no-bound", None, "do not compute the offline bound (oracle keys are null)"),
    )  # fmt: skip
    common.add_command(
        commands, "bound", bound, "compute a lower bound on the cost of any policy over a trace",
        "bound --trace WITS-twin --length-s 7200 --violation-pct 1",
        *common.WINDOW,
        option("--effort", None, "cuts are tighter and slower, default lp", "lp", choices=["lp", "cuts"]),
        option("--violation-pct", "X", "share of each class that may be violated", 0.0, type=float),
        option("--resources", "A,B", "pools that may be used, default all"),
    )  # fmt: skip


def simulate(args: argparse.Namespace) -> None:
    """Run ``simulate``."""
    from selfserve.simulator import simulate as run
    from selfserve.workload import check_scored

    requests = common.output_file(args.requests, "--requests", ".parquet")
    decisions = common.output_file(args.decisions, "--decisions", ".parquet")
    figure = common.output_file(args.figure, "--figure", ".png", ".pdf", ".svg")
    if requests is not None and requests == decisions:
        raise InputError(f"--requests and --decisions {requests}: two tables need two files")
    scenario, workload = common.load_window(args)
    policy = _policy(args, scenario, workload)
    check_scored(workload.trace, workload.start_s, workload.seconds, scenario)
    start = time.perf_counter()
    result = run(
        scenario, workload, policy, args.seed, requests=requests is not None, decisions=bool(decisions or figure),
        progress=sys.stderr.isatty(), name=args.policy,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    speed = f"{workload.counts.sum() / seconds:,.0f} requests/s in {seconds:.1f} s, compilation included"
    print(speed, file=sys.stderr)
    summary = dict(result.summary) | {"oracle_cost_usd": None, "cost_to_oracle": None}
    if not args.no_bound:
        from selfserve.bound import oracle_for

        oracle = oracle_for(result, workload, scenario).certificate_usd
        summary |= {"oracle_cost_usd": oracle, "cost_to_oracle": summary["cost_usd"] / oracle if oracle > 0 else None}
    for target, frame in ((requests, result.requests), (decisions, result.decisions)):
        if target is not None and frame is not None:
            with common.replacing(target) as part:
                frame.to_parquet(part, index=False)
    if figure is not None and result.decisions is not None:
        from selfserve.figures.prior import load_and_capacity
        from selfserve.figures.style import use_style
        from selfserve.studies.prior import over_time

        use_style()
        drawn = load_and_capacity(over_time(result.decisions, scenario).assign(scheme=args.policy))
        drawn.set_figheight(3.2)
        with common.replacing(figure) as part:
            drawn.savefig(part, dpi=200)
    _print_summary(summary, workload.seconds - scenario.warmup_s)
    if args.json:
        common.print_json(summary)


def _policy(args: argparse.Namespace, scenario: Scenario, workload: Workload) -> Policy:
    """Return the policy that the arguments name; offline ones are told the window."""
    from selfserve.evaluation.run import policy_for

    return policy_for(args.policy, common.pairs(args.set, "--set"), workload, scenario, args.seed)


def _print_summary(s: dict[str, Any], seconds: float) -> None:
    """Print a run's summary for a person."""
    import pandas as pd

    def number(key: str, pattern: str = "{:.2f}") -> str:
        return "-" if s[key] is None else pattern.format(s[key])

    scored = f"{s['requests']:,} requests scored in {seconds:,g} s, {s['rejected']:,} rejected"
    print(f"{s['policy']} on {s['trace']}, scenario {s['scenario']}, seed {s['seed']}: {scored}")
    usd = f"${s['cost_usd']:.4f} (VMs ${s['vm_cost_usd']:.4f}, functions ${s['function_cost_usd']:.4f})"
    rows = {
        "cost": f"{usd}, ${number('cost_per_million_usd')} a million answers",
        "offline bound": f"${number('oracle_cost_usd', '{:.4f}')}, cost / bound {number('cost_to_oracle', '{:.3f}')}",
        "violations": f"{s['slo_violation_pct']:.3f} % of SLOs, {s['accuracy_violation_pct']:.3f} % of accuracies",
        "latency": f"p50 {number('p50_s', '{:.3f}')} s, p99 {number('p99_s', '{:.3f}')} s",
        "accuracy": f"{number('mean_accuracy_pct')} % on average",
        "functions": f"{s['function_share_pct']:.2f} % of the answers, {s['cold_starts']:,} cold starts",
        "VMs": f"{s['launches']:,} launches, {s['vm_utilisation_pct']:.1f} % utilised",
    }
    for name, text in rows.items():
        print(f"  {name:<14} {text}")
    print(pd.DataFrame(s["classes"]).to_string(index=False, float_format="{:.3f}".format, na_rep="-"))


def bound(args: argparse.Namespace) -> None:
    """Run ``bound``."""
    from selfserve.bound import bound as compute
    from selfserve.workload import check_scored

    if not 0.0 <= args.violation_pct <= 100.0:
        raise InputError(f"--violation-pct {args.violation_pct:g} is not between 0 and 100")
    scenario, workload = common.load_window(args)
    resources = None if args.resources is None else args.resources.split(",")
    pools = [pool.name for pool in scenario.pools]
    if resources is not None and sorted(set(resources) & set(pools)) != sorted(resources):
        raise InputError(f"--resources {args.resources}: right are some of {', '.join(pools)}, each once")
    check_scored(workload.trace, workload.start_s, workload.seconds, scenario)
    shares = args.violation_pct / 100.0
    found = compute(workload, scenario, args.seed, resources=resources, violations=shares, effort=args.effort)
    print(f"{found.method} in {found.seconds:.1f} s", file=sys.stderr)
    how = f"with up to {args.violation_pct:g} % of each class violated" if shares else "in time and accuracy"
    what = f"No policy of single models serves {workload.trace} under {scenario.name} {how}"
    print(f"{what} for less than ${found.certificate_usd:.4f}")
    if args.json:
        record = {
            "trace": workload.trace, "scenario": scenario.name, "seed": args.seed,
            "resources": resources or pools, "violation_pct": args.violation_pct,
            "method": found.method, "oracle_cost_usd": found.certificate_usd, "relaxation_usd": found.total_usd,
            "relaxation_split_usd": found.split,
        }  # fmt: skip
        common.print_json(record)
