"""The command line: ``python -m selfserve COMMAND``.

Each command is a pair of functions, one that declares its arguments and one that runs it; heavy imports happen in the
latter, so that ``--help`` is instant. Wrong input ends with one line on stderr and exit code 2, a failed notebook or a
file that cannot be written with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from selfserve import __version__
from selfserve.cli import data, evaluate, simulate, train, work
from selfserve.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes no abbreviated options."""

    def __init__(self, **options: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where help is, and exit with code 2."""
        self.exit(2, f"selfserve: {' '.join(message.split())} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    """Return the parser with all commands."""
    parser = Parser(
        prog="python -m selfserve",
        description="A self-managed serving system for machine-learned models in a public cloud.",
        epilog="example: python -m selfserve simulate --policy mixed --trace WITS-twin --length-s 7200",
    )
    parser.add_argument("--version", action="version", version=f"selfserve {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (simulate, evaluate, train, data, work):
        module.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (``sys.argv`` by default) and return its exit code."""
    args = make_parser().parse_args(arguments)
    try:
        args.run(args)
        sys.stdout.flush()
    except InputError as error:
        print(f"selfserve: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("selfserve: interrupted", file=sys.stderr)
        return 130
    except work.FAILURES as error:
        print(f"selfserve: {error}", file=sys.stderr)
        return 1
    return 0
