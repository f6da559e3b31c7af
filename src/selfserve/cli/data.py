"""``profile``, ``catalog`` and ``traces``: what the study's inputs are and where they come from."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Any

from selfserve.cli.common import JSON, add_command, option, output_file, print_json, replacing
from selfserve.errors import InputError


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``profile``, ``catalog`` and ``traces``."""
    add_command(
        commands, "profile", profile, "measure models on this machine, every slot of it busy",
        "profile --models resnet18,resnet50 --threads 1 --batches 1,4 --out profile.csv",
        option("--models", "A,B", "torchvision models, default those of the shipped profile", type=_words),
        option("--device", None, "default cpu", "cpu", choices=["cpu", "cuda"]),
        option("--threads", "N", "threads a worker (1,2 for both), default 1", [1], type=_whole),
        option("--batches", "1,2,4", "default 1,2,4,8,16", [1, 2, 4, 8, 16], type=_whole),
        option("--out", "FILE.csv", "where the rows go", required=True),
    )  # fmt: skip
    add_command(
        commands, "catalog", catalog, "show a table of the catalogue, or ask AWS for today's prices",
        "catalog show models",
        option("action", None, None, choices=["show", "refresh"]),
        option("table", None, "prices (default), profile, models, startup_times, ..", "prices", nargs="?"),
        option("--name", "NAME|FILE.csv", "which price list or profile, default the standard one"),
        option("--region", "REGION", "for refresh, default %(default)s", "us-east-1"),
        option("--out", "FILE.csv", "for refresh, a new file; default aws_REGION_DATE.csv here"),
    )  # fmt: skip
    add_command(
        commands, "traces", traces, "list request traces, describe one, or fetch the published ones",
        "traces describe WITS-twin",
        option("action", None, None, choices=["list", "describe", "fetch"]),
        option("trace", "NAME|FILE.csv", "for describe", nargs="?"),
        JSON,
    )  # fmt: skip


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as a,b")
    return words


def _whole(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,2,4") from None


def profile(args: argparse.Namespace) -> None:
    """Run ``profile``."""
    target = output_file(args.out, "--out", ".csv")
    assert target is not None  # --out is required
    from selfserve import profiling  # brings torch

    models = args.models or profiling.PROFILED
    rows = profiling.profile(models, args.device, args.threads, args.batches, progress=sys.stderr.isatty())
    with replacing(target) as part:
        rows.to_csv(part, index=False)
    print(f"{len(rows)} rows in {target}")


def catalog(args: argparse.Namespace) -> None:
    """Run ``catalog show`` or ``catalog refresh``."""
    from selfserve.catalog import load_facts, load_prices, load_profile

    if args.action == "refresh":
        return refresh(args)
    if args.table == "prices":
        frame = load_prices(args.name or "aws_us_east_1").reset_index()
    else:
        frame = load_profile(args.name or "cpu") if args.table == "profile" else load_facts(args.table)
    print(frame.to_string(index=False, na_rep="-"))


def refresh(args: argparse.Namespace) -> None:
    """Run ``catalog refresh``."""
    from selfserve.catalog import refresh as live  # brings boto3

    name = f"aws_{args.region.replace('-', '_')}_{datetime.now(UTC).date()}.csv"
    target = output_file(args.out or name, "--out", ".csv")
    assert target is not None  # it has a default
    if target.exists():
        raise InputError(f"--out {target}: is there already, and a refresh replaces no file: name another")
    table = live.refresh(args.region)
    with replacing(target) as part:
        table.to_csv(part, index=False)
    print(f'{len(table)} rows in {target}; a scenario takes them by prices = "{target}"')


def traces(args: argparse.Namespace) -> None:
    """Run ``traces list``, ``describe`` or ``fetch``."""
    from selfserve.traces import SOURCES, trace_file
    from selfserve.workload import describe, fetch, load_trace, trace_names

    if (args.action == "describe") != (args.trace is not None):
        raise InputError(
            "traces describe takes one trace, list and fetch none; for instance: traces describe WITS-twin"
        )
    facts: dict[str, Any] = {"traces": trace_names()}
    if args.action == "describe":
        rows = facts = describe(load_trace(args.trace))
    elif args.action == "fetch":
        rows = dict(fetch(progress=sys.stderr.isatty()))
    else:
        rows = dict.fromkeys(facts["traces"], "comes with the project")
        for name in SOURCES:
            path = trace_file(name)
            rows[name] = path if path.is_file() else "not here; traces fetch downloads it"
    for key, value in rows.items():
        print(f"  {key:<18} {_short(value)}")
    if args.json:
        print_json(facts)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_short(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
