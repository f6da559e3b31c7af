"""``profile``, ``catalog`` and ``traces``: what the study's inputs are and where they come from."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from selfserve.cli.common import add_command, json_line, output_file, replacing
from selfserve.errors import InputError


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``profile``, ``catalog`` and ``traces``."""
    parser = add_command(
        commands, "profile", profile, "measure models on this machine, every slot of it busy",
        "profile --models resnet18,resnet50 --threads 1 --batches 1,4 --out profile.csv",
    )  # fmt: skip
    parser.add_argument(
        "--models", type=_words, metavar="A,B", help="torchvision models, default those of the shipped profile"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu")
    parser.add_argument(
        "--threads", type=_whole, default=[1], metavar="N", help="threads a worker (1,2 for both), default 1"
    )
    parser.add_argument("--batches", type=_whole, default=[1, 2, 4, 8, 16], metavar="1,2,4", help="default 1,2,4,8,16")
    parser.add_argument("--out", required=True, metavar="FILE.csv", help="where the rows go")

    parser = add_command(commands, "catalog", catalog, "show a table of the catalogue", "catalog show models")
    parser.add_argument("action", choices=["show"])
    parser.add_argument(
        "table", nargs="?", default="prices", help="prices (default), profile, models, startup_times, .."
    )
    parser.add_argument("--name", metavar="NAME|FILE.csv", help="which price list or profile, default the standard one")

    parser = add_command(
        commands,
        "traces",
        traces,
        "list request traces, describe one, or fetch the published ones",
        "traces describe WITS-twin",
    )
    parser.add_argument("action", choices=["list", "describe", "fetch"])
    parser.add_argument("trace", nargs="?", metavar="NAME|FILE.csv", help="for describe")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")


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
    """Run ``catalog show``."""
    from selfserve.catalog import load_facts, load_prices, load_profile

    if args.table == "prices":
        frame = load_prices(args.name or "aws_us_east_1").reset_index()
    elif args.table == "profile":
        frame = load_profile(args.name or "cpu")
    else:
        frame = load_facts(args.table)
    print(frame.to_string(index=False, na_rep="-"))


def traces(args: argparse.Namespace) -> None:
    """Run ``traces list``, ``describe`` or ``fetch``."""
    from selfserve.traces import SOURCES, trace_file
    from selfserve.workload import describe, fetch, load_trace, trace_names

    if (args.action == "describe") != (args.trace is not None):
        raise InputError(
            "traces describe takes one trace, list and fetch none; for instance: traces describe WITS-twin"
        )
    if args.action == "describe":
        facts = describe(load_trace(args.trace))
        for key, value in facts.items():
            print(f"  {key:<18} {_short(value)}")
        if args.json:
            print(json_line(facts))
    elif args.action == "fetch":
        for name, path in fetch(progress=sys.stderr.isatty()).items():
            print(f"  {name:<18} {path}")
    else:
        for name in trace_names():
            published = trace_file(name) if name in SOURCES else None
            if published is None:
                where = "comes with the project"
            else:
                where = str(published) if published.is_file() else "not here; traces fetch downloads it"
            print(f"  {name:<18} {where}")
        if args.json:
            print(json_line({"traces": trace_names()}))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_short(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
