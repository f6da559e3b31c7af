"""Request traces: the published ones by name, a user's own CSV, what describes them and how they are split in time.

A trace is a count of requests for each second, from second 0, and for some the exact arrival times. The published
files are never part of the project: :func:`fetch` downloads them by URL and SHA-256, or the folder named by
``SELFSERVE_TRACES`` holds them. ``traces/README.md`` gives origin, licence and what each loader does to the file.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pooch

from selfserve.errors import InputError

NS = 1_000_000_000
MAX_REQUESTS_PER_SECOND = 2_000_000  #: largest count of one second, in a trace file and after scaling
MAX_SECONDS = 10_000_000  #: longest trace, about 116 days
FOLDER_VARIABLE = "SELFSERVE_TRACES"


@dataclass(frozen=True)
class Trace:
    """Requests over time."""

    name: str
    seconds: int
    counts: np.ndarray  #: int64 [seconds], requests in each second, always present
    times_ns: np.ndarray | None  #: int64 [n], sorted exact times in nanoseconds from the trace's start, where known
    digest: str  #: SHA-256 of the content (counts and times), hexadecimal


Reader = Callable[[bytes], tuple[np.ndarray, np.ndarray | None]]
"""Turns a file's content into counts per second and, if known, exact times."""


@dataclass(frozen=True)
class Source:
    """A published trace file: where it is, its SHA-256, how it is read, and the splits it serves in."""

    url: str
    sha256: str
    read: Reader
    use: str  #: ``split`` (50% train, 10% validate, 40% evaluate by time), ``train`` or ``evaluate`` (the whole of it)

    @property
    def file(self) -> str:
        """Name of the file in the download folder."""
        return self.url.rpartition("/")[2]


def content_digest(*arrays: np.ndarray | None) -> str:
    """Return the SHA-256 of int64 arrays in order, None apart from an empty one."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"none" if array is None else np.ascontiguousarray(array, dtype="<i8").tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def make_trace(name: str, counts: np.ndarray, times_ns: np.ndarray | None = None) -> Trace:
    """Return a trace of int64 ``counts`` per second and, where known, exact sorted ``times_ns``."""
    counts = np.ascontiguousarray(counts, dtype=np.int64)
    return Trace(name, len(counts), counts, times_ns, content_digest(counts, times_ns))


def counts_of_times(times_ns: np.ndarray, seconds: int) -> np.ndarray:
    """Return the histogram of sorted arrival times per second, int64 [seconds]."""
    return np.diff(np.searchsorted(times_ns, np.arange(seconds + 1, dtype=np.int64) * NS)).astype(np.int64)


def _numbered_seconds(data: bytes) -> tuple[np.ndarray, None]:
    """Read ``second,_,_,requests`` numbered from 1; a second that is missing had no request."""
    table = pd.read_csv(io.BytesIO(data), header=None).to_numpy()
    return np.bincount(table[:, 0] - 1, weights=table[:, 3]).astype(np.int64), None


def _consecutive_rows(data: bytes) -> tuple[np.ndarray, None]:
    """Read ``second,_,_,requests`` where each row is the next second.

    The file joins 23 hours, and the first second of an hour repeats the number of the last one before it: 22 numbers
    come twice, each with the count of a full second. So rows count, not numbers.
    """
    return pd.read_csv(io.BytesIO(data), header=None)[3].to_numpy(dtype=np.int64), None


def _floats(data: bytes, header: int | None) -> np.ndarray:
    return pd.read_csv(io.BytesIO(data), header=header).to_numpy(dtype=float)


def _exact(times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    times_ns = np.rint(times_s * NS).astype(np.int64)
    return counts_of_times(times_ns, int(times_ns[-1] // NS) + 1), times_ns


def _gaps(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read inter-arrival times in seconds, one a line; the first is the first request's own time."""
    return _exact(np.cumsum(_floats(data, header=None)[:, 0]))


def _arrived_at(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the first column, ``arrived_at``, exact times in seconds."""
    return _exact(_floats(data, header=0)[:, 0])


_INFERALL = "https://raw.githubusercontent.com/veerkumar/InferAll/5e3287b92cfa1efdbec44067b2bb73c410ef7eeb/traces"
_VIDUR = "https://raw.githubusercontent.com/microsoft/vidur/7d47513363ec447a741ac5e47241580b47724fbf/data"
SOURCES = {
    "WITS": Source(
        f"{_INFERALL}/WITS.csv",
        "509a39c6a93a0588e48d2dd01e62de284fe1bc8c4847744e4add38af103270eb", _numbered_seconds, "split"),
    "berkeley": Source(
        f"{_INFERALL}/berkeley.csv",
        "79d73e2e4f9152391cf1913625f8811104cc25fc0c556b7e2baf2fa2a9922dba", _numbered_seconds, "split"),
    "twitter": Source(
        f"{_INFERALL}/BATCH_tweet_workload.csv",
        "4278a3383b77831d5d12e35aa1b4446c25edb704b63b9dba3bb5880a5b313448", _consecutive_rows, "split"),
    "twitter_hour": Source(
        f"{_INFERALL}/TW_may25_1hr_traces/TW_may25_7-8",
        "1e05ae3870fd75e5a2e2ebc4d179ea7cdf83bad0261c2ffac22ea4e3357b40e8", _gaps, "train"),
    "azure_code": Source(
        f"{_VIDUR}/processed_traces/splitwise_code.csv",
        "f266b907d109d471c61283ab69771c17ad79a18b33ff6e96aa546346f52767a6", _arrived_at, "evaluate"),
}  # fmt: skip
"""The published traces by name (facts in ``traces/README.md``)."""


def _store() -> pooch.Pooch:
    """Return the download folder: ``SELFSERVE_TRACES`` if set, else the user's cache."""
    return pooch.create(
        path=os.environ.get(FOLDER_VARIABLE) or pooch.os_cache("selfserve"),
        base_url="",
        registry={s.file: f"sha256:{s.sha256}" for s in SOURCES.values()},
        urls={s.file: s.url for s in SOURCES.values()},
    )


def trace_file(name: str) -> Path:
    """Return where the published file of trace ``name`` is or would be."""
    return Path(_store().path) / SOURCES[name].file


def fetch(progress: bool = False) -> dict[str, Path]:
    """Download every published trace that is not there yet, verify all checksums, return the files by name.

    Files go to the folder named by ``SELFSERVE_TRACES``, else to the user's cache folder. A file that is there with the
    right checksum is kept, without any network.

    Raises:
        InputError: a file could not be downloaded or its checksum is wrong.
    """
    store, found = _store(), {}
    for name, source in SOURCES.items():
        try:
            found[name] = Path(store.fetch(source.file, progressbar=progress))
        except (OSError, ValueError) as error:  # requests' exceptions are OSErrors; a wrong checksum is a ValueError
            reason = str(error).splitlines()[0]
            raise InputError(
                f"trace {name}: cannot get {source.url} ({type(error).__name__}: {reason}); check the network, "
                f"or set {FOLDER_VARIABLE} to a folder that holds {source.file}"
            ) from error
    return found


def load_published(name: str) -> Trace:
    """Read a published trace from where :func:`fetch` puts it, checksum verified.

    Raises:
        InputError: the file is not there (with both remedies) or is not the published one.
    """
    path, source = trace_file(name), SOURCES[name]
    if not path.is_file():
        raise InputError(
            f"trace {name}: {path} is not there; run `python -m selfserve traces fetch` to download it, or set "
            f"{FOLDER_VARIABLE} to the folder that holds {source.file} (or use its twin, {name}-twin)"
        )
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != source.sha256:
        raise InputError(
            f"trace {name}: {path} has SHA-256 {digest[:12]}.. but the published file has {source.sha256[:12]}..; "
            "delete it and run `python -m selfserve traces fetch`"
        )
    return make_trace(name, *source.read(data))


def load_csv(path: Path) -> Trace:
    """Read a user's CSV: header ``second,requests`` (a count per second) or ``arrival_s`` (exact times).

    Times count in seconds from 0, where the trace starts. Seconds must increase; one that is missing had no request.
    Exact times must not decrease. A published file is recognised by its checksum whatever it is called.

    Raises:
        InputError: anything else, naming file, line, column and value and what would be right.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); right is a trace name or a CSV file") from error
    for name, source in SOURCES.items():
        if len(data) > 1000 and hashlib.sha256(data).hexdigest() == source.sha256:
            return make_trace(name, *source.read(data))
    try:
        text = data.decode("utf-8-sig").rstrip()
    except UnicodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{path}: not a text file; right is a CSV with header `second,requests` or `arrival_s`")
    header, _, body = text.partition("\n")
    columns = [c.strip() for c in header.split(",")]
    if columns not in (["second", "requests"], ["arrival_s"]):
        raise InputError(
            f"{path}, line 1: header {header.strip()[:60]!r}; right is `second,requests` (a count per second) or "
            "`arrival_s` (exact times in seconds)"
        )
    if not body.strip():
        raise InputError(f"{path}: empty trace, no row after the header; at least one row is needed")
    values = _numbers(path, columns, body)
    check, most = partial(_check, path, columns), MAX_REQUESTS_PER_SECOND
    if columns == ["arrival_s"]:
        times = values[:, 0]
        right = f"a time from the trace's start, at least 0 and below {MAX_SECONDS} seconds"
        check(0, times, (times < 0) | (times >= MAX_SECONDS), right)
        check(0, times, np.diff(times, prepend=0.0) < 0, "times that do not decrease; sort the file")
        counts, times_ns = _exact(times)
        check(0, times, counts[times_ns // NS] > most, f"at most {most} arrivals in one second")
        return make_trace(path.stem, counts, times_ns)
    seconds, requests = values.T
    right = f"a whole number from 0 to {MAX_SECONDS - 1}, counted from the trace's start"
    check(0, seconds, (seconds < 0) | (seconds >= MAX_SECONDS) | (seconds % 1 != 0), right)
    right = "seconds that increase; sort the file and join repeated seconds"
    check(0, seconds, np.diff(seconds, prepend=-1.0) <= 0, right)
    right = f"a whole number of requests from 0 to {most} (the limit of one second)"
    check(1, requests, (requests < 0) | (requests > most) | (requests % 1 != 0), right)
    counts = np.zeros(int(seconds[-1]) + 1, dtype=np.int64)
    counts[seconds.astype(np.int64)] = requests.astype(np.int64)
    return make_trace(path.stem, counts)


def _numbers(path: Path, columns: list[str], body: str) -> np.ndarray:
    """Return the finite numbers of a CSV's rows, float64 [rows, columns]; the first data row is line 2."""
    try:
        table = pd.read_csv(
            io.StringIO(body), header=None, dtype=np.float64, skip_blank_lines=False, quoting=3, keep_default_na=False
        ).to_numpy()
        if table.shape[1] == len(columns) and np.isfinite(table).all():
            return table
    except ValueError:
        pass  # the search below finds the offending place
    for number, line in enumerate(body.split("\n"), start=2):
        cells = line.split(",")
        if len(cells) != len(columns):
            raise InputError(
                f"{path}, line {number}: {len(cells)} values in {line.strip()[:60]!r}; right is {','.join(columns)}"
            )
        for column, cell in zip(columns, cells, strict=True):
            if not _finite(cell):
                what = f"{cell.strip()[:40]!r} is not a finite number" if cell.strip() else "the value is missing"
                raise InputError(f"{path}, line {number}, column {column}: {what}; right is a number such as 12")
    raise InputError(f"{path}: not a CSV of numbers; right is {','.join(columns)} on each line")


def _finite(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _check(path: Path, columns: list[str], column: int, values: np.ndarray, bad: np.ndarray, right: str) -> None:
    """Raise for the first value that ``bad`` marks."""
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{path}, line {row + 2}, column {columns[column]}: {values[row]:.12g}; right is {right}")


def split_ranges(trace: Trace) -> dict[str, tuple[int, int]]:
    """Return the seconds ``[a, b)`` of ``train`` (the first 50%), ``validate`` (10%) and ``evaluate`` (the last 40%).

    ``twitter_hour`` is an hour of ``twitter``'s training half and so wholly for training; ``azure_code`` is never
    trained on and so wholly for evaluation; their twins alike.
    """
    source = SOURCES.get(trace.name.removesuffix("-twin"))
    use, n = source.use if source else "split", trace.seconds
    a, b = {"split": (n // 2, n * 6 // 10), "train": (n, n), "evaluate": (0, 0)}[use]
    return {"train": (0, a), "validate": (a, b), "evaluate": (b, n)}


def burstiness(counts: np.ndarray) -> float:
    """Return (peak - mean) / peak of counts per second, in [0, 1); 0 for no request at all."""
    peak = float(counts.max(initial=0))
    return (peak - float(counts.mean())) / peak if peak else 0.0


def dispersion(counts: np.ndarray, width_s: int = 1) -> float:
    """Return variance over mean of the requests in windows of ``width_s`` seconds (1 for Poisson; NaN if none)."""
    windows = counts[: len(counts) // width_s * width_s].reshape(-1, width_s).sum(axis=1)
    return float(windows.var() / windows.mean()) if len(windows) and windows.any() else math.nan


def autocorrelation(counts: np.ndarray, lag_s: int) -> float:
    """Return the correlation of the counts with themselves ``lag_s`` seconds later (NaN if constant or too short)."""
    if len(counts) <= lag_s + 1 or not np.ptp(counts):
        return math.nan
    centred = counts - counts.mean()
    return float(centred[:-lag_s] @ centred[lag_s:] / (centred @ centred))


def day_shape(counts: np.ndarray) -> np.ndarray:
    """Return mean requests/s of each hour of the day counted from the start, float64 [24], NaN if never reached."""
    hour = np.arange(len(counts)) // 3600 % 24
    seconds = np.bincount(hour, minlength=24)
    total = np.bincount(hour, weights=counts, minlength=24)
    return np.divide(total, seconds, out=np.full(24, math.nan), where=seconds > 0)


def describe(trace: Trace) -> dict[str, object]:
    """Return a trace's statistics: rates in requests/s, lags in seconds, ``day_shape`` as 24 hourly means.

    What is undefined (a ratio to a median of zero, an hour never reached) is NaN.
    """
    counts = trace.counts
    mean, median, peak = float(counts.mean()), float(np.median(counts)), int(counts.max(initial=0))
    return {
        "name": trace.name, "seconds": trace.seconds, "requests": int(counts.sum()),
        "exact_times": trace.times_ns is not None, "mean": mean, "median": median, "peak": peak,
        "peak_to_median": peak / median if median else math.nan, "burstiness": burstiness(counts),
        "dispersion_1s": dispersion(counts), "dispersion_60s": dispersion(counts, 60),
        "autocorrelation": {lag: autocorrelation(counts, lag) for lag in (1, 10, 60, 600, 3600)},
        "day_shape": day_shape(counts).tolist(),
    }  # fmt: skip
