"""``notebooks`` regenerates figures and tables; ``bench`` measures the engine's speed."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import Any

from selfserve.cli.common import JSON, add_command, option, pairs, print_json, repeated
from selfserve.errors import InputError
from selfserve.runner import NotebookError, project_root, publish_reference, run_notebooks

FAILURES = (NotebookError, OSError)  #: what ends a command with exit code 1 and one line


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``notebooks`` and ``bench``."""
    add_command(
        commands, "notebooks", notebooks, "run the numbered notebooks whose inputs have changed",
        "notebooks --quick --only 01,03",
        option("--quick", None, "on small synthetic traces, to see that everything works"),
        option("--force", None, "run all, changed or not"),
        option("--only", "01,02", "numbers or names, default all", ""),
        repeated("--set", "a parameter of every notebook run"),
        option("--reference", None, "run nothing; copy the tables and PNG figures of a full run to results/reference"),
    )  # fmt: skip
    quick = option("--quick", None, "small sizes, to see that it works; too small to trust")
    text = "measure the engine against a bare C loop and SimPy"
    add_command(commands, "bench", bench, text, "bench --json", quick, JSON)


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
        print_json(found)
