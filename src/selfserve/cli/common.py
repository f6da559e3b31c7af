"""What several commands share: window arguments, KEY=VALUE pairs, checked output files, JSON."""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfserve.errors import InputError

if TYPE_CHECKING:
    from selfserve.scenario import Scenario
    from selfserve.workload import Workload


def add_command(
    commands: argparse._SubParsersAction[Any], name: str, run: Callable[[argparse.Namespace], None], text: str,
    example: str, *arguments: tuple[str, dict[str, Any]],
) -> argparse.ArgumentParser:  # fmt: skip
    """Add a command with its one-line description, an example for its help, and arguments (see :func:`option`)."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: python -m selfserve {example}"
    )
    parser.set_defaults(run=run)
    for flag, settings in arguments:
        parser.add_argument(flag, **settings)
    return parser


def option(flag: str, metavar: str | None, text: str | None, default: Any = None, **more: Any) -> tuple[str, Any]:
    """Return an argument for :func:`add_command`; one without a metavar is a switch, unless it has ``choices``."""
    if metavar is None and not more:
        return flag, {"action": "store_true", "help": text}
    return flag, {"metavar": metavar, "help": text, "default": default} | more


def repeated(flag: str, text: str) -> tuple[str, Any]:
    """Return an argument KEY=VALUE that may be given many times."""
    return flag, {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": text}


def seed(text: str) -> int:
    """Return a seed."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {2**63 - 1}")
    return value


JSON = option("--json", None, "print one line of JSON last")
WINDOW = (
    option("--trace", "NAME|FILE.csv", "a trace's name (traces list) or a CSV file", required=True),
    option("--scenario", "NAME|FILE.toml", "default: %(default)s", "standard"),
    repeated("--scenario-set", "override a key of the scenario, for instance vm.boot_s=200 (repeatable)"),
    option("--start-s", "A", "first second of the window, default 0", 0, type=int),
    option("--length-s", "B", "length of the window, default the rest of the trace", type=int),
    option("--seed", "N", "default 0", 0, type=seed),
    JSON,
)
"""What is served: scenario, trace, window, seed."""


def load_window(args: argparse.Namespace) -> tuple[Scenario, Workload]:
    """Load the scenario and the window of the trace that the arguments name."""
    from selfserve.scenario import load_scenario
    from selfserve.workload import load_trace, make_workload

    scenario = load_scenario(args.scenario, scenario_overrides(args))
    return scenario, make_workload(load_trace(args.trace), scenario, args.start_s, args.length_s, args.seed)


def scenario_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ``--scenario-set`` overrides, values as in a scenario file; what is not TOML is a string."""
    values: dict[str, Any] = {}
    for key, text in pairs(args.scenario_set, "--scenario-set").items():
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Split ``KEY=VALUE`` texts.

    Raises:
        InputError: on a text without key or equals sign, or a key given twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InputError(f"{option} {text!r} is not of the form KEY=VALUE")
        if key in values:
            raise InputError(f"{option} {key} is given twice, as {values[key]!r} and {value!r}")
        values[key] = value
    return values


def output_file(path: str | None, option: str, *suffixes: str) -> Path | None:
    """Return where to write, seen to be writable before any work is done.

    Raises:
        InputError: if the file's ending is not one of ``suffixes``, or it cannot be written there.
    """
    if path is None:
        return None
    target = Path(path)
    if target.suffix not in suffixes:
        raise InputError(f"{option} {path}: the name must end in {' or '.join(suffixes)}")
    if target.is_dir():
        raise InputError(f"{option} {path}: is a folder")
    _try_to_write(target.parent, f"{option} {path}")
    return target


def output_folder(path: str, option: str) -> Path:
    """Return a folder to write in, made if there is none and seen to be writable before any work is done.

    Raises:
        InputError: if it is no folder, or nothing can be written there.
    """
    if Path(path).exists() and not Path(path).is_dir():
        raise InputError(f"{option} {path}: is not a folder")
    _try_to_write(Path(path), f"{option} {path}", make=True)
    return Path(path)


def _try_to_write(folder: Path, what: str, make: bool = False) -> None:
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{what}: cannot be written there: {error.strerror}") from None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a path beside ``target`` to write to, renamed to it only if all went well."""
    part = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def print_json(record: Mapping[str, Any]) -> None:
    """Print one line of strict JSON, the last one: numpy scalars as numbers, what is not finite as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    ctypes.CDLL(None).fflush(None)  # what HiGHS printed past Python's streams comes before
    print(json.dumps(plain(record), allow_nan=False))
