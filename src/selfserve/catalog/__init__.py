"""What can be bought and what can be served: facts in CSV files with source and date, read anew at every call.

========================  ==========================================================================================
``prices/*.csv``          machines and functions of a provider and region, US dollars
``models.csv``            torchvision's models, frozen from its weight metadata by :mod:`selfserve.catalog.vision`
``published_models.csv``  the models of the founding paper with their published latency
``profiles/*.csv``        measured service times, memory and load times (:mod:`selfserve.profiling`)
``gpu_batches.csv``       published latency by batch size of resnet50 on cloud GPUs
``accelerators.csv``      which of these curves stands for an accelerator, and how much faster it is
``families.csv``          speed of a vCPU of each machine family
``reference_latency.csv`` published measurements that carried profiles are checked against
``startup_times.csv``     boot, cold start, keep-alive, interruption: measurements found
``spot_history.csv``      spot prices by zone and savings by month, as found
``scaling_defaults.csv``  defaults of the clouds' autoscalers
========================  ==========================================================================================
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfserve.errors import InputError

ROOT = Path(__file__).parent

_PRICE_NUMBERS = (
    "vcpu", "memory_gib", "accelerator_count", "gpu_memory_gib", "usd_per_hour", "spot_usd_per_hour",
    "spot_min_usd_per_hour", "spot_max_usd_per_hour", "usd_per_gb_s", "usd_per_request", "provisioned_usd_per_gb_s",
    "provisioned_duration_usd_per_gb_s", "memory_min_mb", "memory_max_mb", "mb_per_vcpu",
)  # fmt: skip
_PRICE_NEEDS = {
    "vm": ("vcpu", "memory_gib", "usd_per_hour"),
    "function": ("usd_per_gb_s", "usd_per_request", "memory_min_mb", "memory_max_mb", "mb_per_vcpu"),
}
_PRICE_SIZES = ("vcpu", "memory_gib", "memory_min_mb", "memory_max_mb", "mb_per_vcpu")
_PROFILE_COLUMNS = ("model", "device", "threads", "batch", "p50_ms", "tag")
_PROFILE_NUMBERS = (
    "threads", "slots", "batch", "p50_ms", "p99_ms", "mean_ms", "runs", "worst_over_best_block", "cpu_share", "load_ms",
    "runtime_mb", "memory_mb", "cores", "load_1m", "accuracy_pct",
)  # fmt: skip
TAGS = ("measured", "published", "scaled")


def catalogued(folder: str) -> list[str]:
    """Return the names of the lists in ``prices`` or ``profiles``."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.csv"))


def load_prices(name: str) -> pd.DataFrame:
    """Return a price list, indexed by resource; ``kind`` is ``vm`` or ``function``.

    Args:
        name: a list of the catalogue such as ``aws_us_east_1``, or the path of a CSV file with the same columns.

    Raises:
        InputError: if there is no such list, or a cell is missing, not a number or negative.
    """
    path = _find(name, "prices", "price list")
    table = read_table(path, ("resource", "kind", "usd_per_hour"), _PRICE_NUMBERS)
    _require(path, table["kind"].isin(list(_PRICE_NEEDS)), table, "kind", "{!r} is not vm or function")
    for i, row in enumerate(table.to_dict("records")):
        for column in _PRICE_NEEDS[row["kind"]]:
            if not np.isfinite(value := row.get(column, np.nan)) or (value == 0 and column in _PRICE_SIZES):
                raise _wrong(path, i, column, f"{row['resource']} needs a number{' above 0' * (value == 0)} here")
    _unique(table, ["resource"], path)
    for column in ("accelerator", "interruption_band", "source", "as_of", *_PRICE_NUMBERS):
        if column not in table:  # a list of one's own has what its rows need
            table[column] = np.nan if column in _PRICE_NUMBERS else ""
    return table.set_index("resource")


def load_models() -> pd.DataFrame:
    """Return torchvision's models by name; columns of :func:`selfserve.catalog.vision.read_models`."""
    numbers = ("accuracy_pct", "top5_pct", "parameters", "gmacs", "file_mb", "input_px")
    return read_table(ROOT / "models.csv", ("model", *numbers), numbers).set_index("model")


def load_facts(name: str) -> pd.DataFrame:
    """Return another table of the catalogue as it is, for instance ``published_models`` or ``startup_times``."""
    return _read_csv(_find(name, ".", "table"))


def load_profile(name: str = "cpu") -> pd.DataFrame:
    """Return profile rows, one a model, device, number of threads and batch size.

    The columns are those of :func:`selfserve.profiling.profile`. ``cpu`` combines what is known of CPUs: ``measured``
    rows, ``published`` rows of models that were not measured, and ``scaled`` rows for the rest of the catalogue
    (:func:`selfserve.catalog.carry.scale_by_gmacs`).

    Args:
        name: ``cpu``, a file of ``profiles`` or the path of a CSV file written by ``selfserve profile``.

    Raises:
        InputError: if there is no such profile or a cell is missing or not a positive number.
    """
    if name != "cpu":
        return _read_profile(_find(name, "profiles", "profile"))
    return _cpu_profile(ROOT, *(path.stat().st_mtime_ns for path in sorted(ROOT.rglob("*.csv")))).copy()


@lru_cache(maxsize=4)  # every scenario takes it
def _cpu_profile(root: Path, *changed_ns: int) -> pd.DataFrame:
    from selfserve.catalog import carry  # it reads this module's tables

    measured = _read_profile(ROOT / "profiles" / "cpu_measured.csv")
    rows = [measured, carry.published_rows(), carry.scale_by_gmacs(measured, load_models())]
    return pd.concat(rows, ignore_index=True)


def accuracy_of(model: str) -> float | None:
    """Return a model's ImageNet-1K top-1 accuracy in percent: torchvision's, else the published one, else None."""
    for known in (load_models(), load_facts("published_models").set_index("model")):
        if model in known.index:
            return float(known.at[model, "accuracy_pct"])
    return None


def read_table(path: Path, required: tuple[str, ...], numbers: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV file, convert the number columns (an empty cell is NaN) and check that none is negative.

    Raises:
        InputError: naming file, line, column and value.
    """
    changed_ns = path.stat().st_mtime_ns if path.is_file() else 0
    return _read_table(path, changed_ns, required, numbers).copy()


@lru_cache(maxsize=64)  # one scenario asks for the models twenty times; a file that has changed is read anew
def _read_table(path: Path, changed_ns: int, required: tuple[str, ...], numbers: tuple[str, ...]) -> pd.DataFrame:
    table = _read_csv(path, dtype=str, keep_default_na=False)
    for column in required:
        if column not in table:
            raise InputError(f"{path}: column {column} is missing; the columns must include {', '.join(required)}")
    for column in (c for c in numbers if c in table):
        table[column] = [_number(path, i, column, text) for i, text in enumerate(table[column])]
    return table


def _read_csv(path: Path, **options: Any) -> pd.DataFrame:
    try:
        return pd.read_csv(path, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error


def _number(path: Path, i: int, column: str, text: str) -> float:
    try:
        value = float(text) if text.strip() else np.nan
    except ValueError:
        raise _wrong(path, i, column, f"{text!r} is not a number") from None
    if value < 0 or np.isinf(value):
        raise _wrong(path, i, column, f"{text} must be finite and not negative")
    return value


def _read_profile(path: Path) -> pd.DataFrame:
    table = read_table(path, _PROFILE_COLUMNS, _PROFILE_NUMBERS)
    for column in ("threads", "batch", "p50_ms"):
        _require(path, table[column] > 0, table, column, "a positive number is needed")
    _require(path, table["tag"].isin(TAGS), table, "tag", f"{{!r}} is not {', '.join(TAGS)}")
    _unique(table, ["model", "device", "threads", "batch"], path)
    return table.astype({"threads": int, "batch": int})


def _wrong(path: Path, i: int, column: str, message: str) -> InputError:
    return InputError(f"{path}: line {i + 2}, column {column}: {message}")


def _require(path: Path, good: pd.Series, table: pd.DataFrame, column: str, message: str) -> None:
    """Raise InputError for the first row that is not good; the message may show its cell."""
    for i in table.index[~good][:1]:
        raise _wrong(path, i, column, message.format(table.at[i, column]))


def _unique(table: pd.DataFrame, columns: list[str], path: Path) -> None:
    for i in table.index[table.duplicated(columns)][:1]:
        raise InputError(f"{path}: line {i + 2}: a second row for {tuple(table.loc[i, columns])}")


def _find(name: str, folder: str, what: str) -> Path:
    """Return the path of a catalogued table, or of the user's file."""
    for path in (ROOT / folder / f"{name}.csv", Path(name)):
        if path.is_file():
            return path
    raise InputError(f"{what} {name!r}: no such file; the catalogue has {', '.join(catalogued(folder))}")
