"""``notebooks`` regenerates figures and tables; ``bench`` measures the engine's speed."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import Any

from selfserve.cli.common import add_command, json_line, pairs
from selfserve.errors import InputError
from selfserve.runner import NotebookError, project_root, publish_reference, run_notebooks

FAILURES = (NotebookError, OSError)
"""What ends a command with exit code 1 and one line."""


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``notebooks`` and ``bench``."""
    parser = add_command(
        commands, "notebooks", notebooks, "run the numbered notebooks whose inputs have changed",
        "notebooks --quick --only 01,03",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="on small synthetic traces, to see that everything works")
    parser.add_argument("--force", action="store_true", help="run all, changed or not")
    parser.add_argument("--only", default="", metavar="01,02", help="numbers or names, default all")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of every notebook run"
    )
    text = "run nothing; copy the tables and PNG figures of a full run to results/reference"
    parser.add_argument("--reference", action="store_true", help=text)

    parser = add_command(commands, "bench", bench, "measure the engine against a bare C loop and SimPy", "bench --json")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; too small to trust")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")


def notebooks(args: argparse.Namespace) -> None:
    """Run ``notebooks``."""
    if args.reference:
        print(f"{publish_reference()} files in results/reference")
        return
    only = [word.strip() for word in args.only.split(",") if word.strip()]
    report = run_notebooks(quick=args.quick, force=args.force, only=only, parameters=pairs(args.set, "--set"))
    place = os.path.relpath(os.environ["SELFSERVE_RESULTS"])
    print(
        f"{len(report.ran)} notebooks run, {len(report.skipped)} unchanged; see {place}/figures, tables and notebooks"
    )


def bench(args: argparse.Namespace) -> None:
    """Run ``bench``: the project's ``benchmarks/bench.py``."""
    path = project_root() / "benchmarks" / "bench.py"
    if not path.is_file():
        raise InputError(f"bench: {path} is not there; run this inside a checkout of the project")
    spec = importlib.util.spec_from_file_location("selfserve_bench", path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.run(quick=args.quick)
    for key, value in found.items():
        print(f"  {key:<24} {'-' if value is None else format(value, ',.4g')}")
    if args.json:
        print(json_line(found))
