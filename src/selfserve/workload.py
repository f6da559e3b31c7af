"""A workload: a window of a trace, scaled to a scenario, with the shares of its request classes over time.

Whatever is random here is keyed by (seed, absolute block of the trace), so that overlapping windows agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np

from selfserve import traces
from selfserve.errors import InputError
from selfserve.scenario import NS, Pool, RequestClass, Scenario
from selfserve.traces import SOURCES, Trace, describe, fetch, split_ranges
from selfserve.twins import load_twin, twin_names

__all__ = ["Trace", "Workload", "describe", "fetch", "load_trace", "make_workload", "mean_work", "split_ranges"]

BLOCK_S = 3600  #: seconds of a trace that share one random stream
_THIN, _PLACE, _DRIFT = 1, 2, 3


@dataclass(frozen=True)
class Workload:
    """A window of a scaled trace."""

    trace: str
    start_s: int  #: where the window starts in the trace
    seconds: int
    counts: np.ndarray  #: int64 [seconds], scaled requests of each second
    times_ns: np.ndarray | None  #: int64 [n] sorted exact times from the window's start, nanoseconds, or None
    thresholds: np.ndarray  #: int64 [minutes, K] cumulative class shares in 1/65536; the last row goes on (rule 3.3)
    history: np.ndarray  #: int64 [start_s], scaled requests of each second before the window
    rate_scale: float  #: the factor applied to the trace
    digest: str  #: SHA-256 of all of this


def trace_names() -> list[str]:
    """Return every trace that loads by name: the published ones, then the twins."""
    return [*SOURCES, *twin_names()]


def load_trace(name_or_path: str) -> Trace:
    """Load a trace by name (:func:`trace_names`) or from a CSV file (:func:`selfserve.traces.load_csv`).

    Raises:
        InputError: no such trace or file, or a file that cannot be used (line, column and value, and what is right).
    """
    if name_or_path in SOURCES:
        return traces.load_published(name_or_path)
    if name_or_path in twin_names():
        return load_twin(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"trace {name_or_path!r}: neither a file nor a known trace; right is a CSV file or one of "
            f"{', '.join(trace_names())}"
        )
    return traces.load_csv(path)


def cheapest_option(scenario: Scenario, wanted: RequestClass) -> tuple[Pool, int]:
    """Return the VM pool and model (index) that answer a class at the least dollars on a busy machine.

    An option fits if the model meets the class's floor and its batch-1 service time is below the SLO. Pools on demand
    count, or spot pools where a scenario has no other VMs.

    Raises:
        InputError: no VM option fits.
    """
    market = "on_demand" if any(p.market == "on_demand" for p in scenario.pools) else "spot"
    options = [
        (pool.usd_per_hour / pool.slots * int(pool.service_ns[m, 1]), p, m)
        for p, pool in enumerate(scenario.pools) if pool.market == market for m in pool.models
        if scenario.models[m].accuracy_pct >= wanted.min_accuracy_pct and 0 < pool.service_ns[m, 1] < wanted.slo_s * NS
    ]  # fmt: skip
    if not options:
        raise InputError(
            f"scenario {scenario.name}: class {wanted.name!r} (slo_s {wanted.slo_s:g}, min_accuracy_pct "
            f"{wanted.min_accuracy_pct:g}) fits no model of a VM pool, so load_machines cannot scale the trace; "
            "add a model that fits, or give rate_scale instead"
        )
    _, p, m = min(options)
    return scenario.pools[p], m


def mean_work(scenario: Scenario) -> float:
    """Return the machine-seconds of a mean request: each class, by its share, on its cheapest fitting VM option."""
    works = []
    for wanted in scenario.classes:
        pool, model = cheapest_option(scenario, wanted)
        works.append(wanted.share * int(pool.service_ns[model, 1]) / NS / pool.slots)
    return sum(works)


def _rng(seed: int, kind: int, block: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, (kind << 48) + block], np.uint64)))


def _scale_counts(counts: np.ndarray, factor: float, seed: int) -> np.ndarray:
    """Return whole copies of each count plus a binomial part of it."""
    copies, part = divmod(factor, 1.0)
    scaled = counts * int(copies)
    if part:
        for block, a in enumerate(range(0, len(counts), BLOCK_S)):
            # numpy draws element by element, so a block cut short by the window's end still agrees with the whole one
            scaled[a : a + BLOCK_S] += _rng(seed, _THIN, block).binomial(counts[a : a + BLOCK_S], part)
    return scaled


def _scale_times(times_ns: np.ndarray, factor: float, seed: int, seconds: int) -> np.ndarray:
    """Return arrivals kept by chance below 1; above, replicas at uniform times inside the original's second."""
    copies, part = divmod(factor, 1.0)
    blocks = []
    for block, a in enumerate(range(0, seconds, BLOCK_S)):
        first, last = np.searchsorted(times_ns, [a * NS, (a + BLOCK_S) * NS])
        times = times_ns[first:last]
        extra = _rng(seed, _THIN, block).random(len(times)) < part
        if copies < 1:
            blocks.append(times[extra])
            continue
        origin = np.repeat(times // NS * NS, int(copies) - 1 + extra)
        replicas = origin + _rng(seed, _PLACE, block).integers(0, NS, len(origin))
        blocks.append(np.sort(np.concatenate([times, replicas])))
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int64)


def _thresholds(scenario: Scenario, start_s: int, seconds: int, seed: int) -> np.ndarray:
    """Return cumulative class shares in 1/65536, int64 [minutes, K].

    Under ``share_drift`` the window starts at the stated shares; from minute to minute the log weight of each class
    takes a Gaussian step, such that the log odds of any two classes wander by ``share_drift`` per square root of an
    hour. The steps belong to the trace's minutes, whatever the window.
    """
    shares, per_block = np.array([c.share for c in scenario.classes]), BLOCK_S // 60
    weights = np.tile(shares, (1 if scenario.share_drift == 0 else ceil(seconds / 60), 1))
    if scenario.share_drift:
        first = start_s // 60
        blocks = range(first // per_block, (first + len(weights) - 1) // per_block + 1)
        steps = [_rng(seed, _DRIFT, block).standard_normal((per_block, len(shares))) for block in blocks]
        walk = np.concatenate(steps)[first % per_block :][: len(weights)]
        walk *= scenario.share_drift / sqrt(2 * per_block)
        walk[0] = 0.0
        weights *= np.exp(np.cumsum(walk, axis=0))
    cumulative = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
    table = np.rint(cumulative * 65536).astype(np.int64)
    table[:, -1] = 65536
    return table


def check_scored(trace: str, start_s: int, length_s: int, scenario: Scenario) -> None:
    """Raise an InputError unless something of a window is left to score behind the scenario's warm-up."""
    if length_s <= scenario.warmup_s:
        raise InputError(
            f"window {start_s} to {start_s + length_s} s of {trace}: {length_s} s leave nothing after the warm-up of "
            f"{scenario.warmup_s:g} s (scenario {scenario.name}); right is a larger --length-s, fewer windows of this "
            "trace, or --scenario-set warmup_s=0"
        )


def make_workload(
    trace: Trace, scenario: Scenario, start_s: int = 0, length_s: int | None = None, seed: int = 0
) -> Workload:
    """Scale a trace to a scenario and cut a window from it.

    ``load_machines`` rescales the whole trace until its mean offered work (:func:`mean_work`) keeps that many machines
    busy; ``rate_scale`` is applied as given. Scaling down thins at random, scaling up replicates. A window longer than
    the rest of the trace goes on without requests.

    Args:
        trace: what to scale.
        scenario: gives the scale, the classes and their drift.
        start_s: the window's first second.
        length_s: its length in seconds; the rest of the trace if None.
        seed: of scaling and drift; the same seed and second give the same count whatever the window.

    Raises:
        InputError: the window lies outside the trace, or the trace cannot be scaled so.
    """
    if not 0 <= start_s < trace.seconds:
        raise InputError(f"start_s {start_s}: trace {trace.name} has the seconds 0 to {trace.seconds - 1}")
    seconds = trace.seconds - start_s if length_s is None else length_s
    if not 1 <= seconds <= traces.MAX_SECONDS:
        raise InputError(f"length_s {seconds}: right is a whole number of seconds from 1 to {traces.MAX_SECONDS}")
    factor, mean = float(scenario.rate_scale or 0.0), float(trace.counts.mean())
    if scenario.load_machines is not None:
        if mean == 0.0:
            raise InputError(
                f"trace {trace.name}: no request, so load_machines cannot scale it; give rate_scale instead"
            )
        factor = scenario.load_machines / (mean * mean_work(scenario))
    end = min(start_s + seconds, trace.seconds)
    if factor * float(trace.counts[:end].max(initial=0)) > traces.MAX_REQUESTS_PER_SECOND:
        raise InputError(
            f"trace {trace.name} scaled by {factor:g} has over {traces.MAX_REQUESTS_PER_SECOND} requests in a second, "
            "the limit; lower load_machines or rate_scale"
        )
    if factor * float(trace.counts[start_s:end].sum()) >= 0.9 * 2**31:
        raise InputError(
            f"trace {trace.name} scaled by {factor:g} has 2^31 requests or more in {seconds} s, the limit; take a "
            "shorter window, or lower load_machines or rate_scale"
        )
    times = None
    if trace.times_ns is None:
        scaled = _scale_counts(trace.counts[:end], factor, seed)
    else:
        all_times = _scale_times(trace.times_ns, factor, seed, end)
        scaled = traces.counts_of_times(all_times, end)
        times = all_times[slice(*np.searchsorted(all_times, [start_s * NS, end * NS]))] - start_s * NS
    counts, history = np.zeros(seconds, dtype=np.int64), scaled[:start_s]
    counts[: end - start_s] = scaled[start_s:]
    thresholds = _thresholds(scenario, start_s, seconds, seed)
    digest = traces.content_digest(counts, times, thresholds, history)
    return Workload(trace.name, start_s, seconds, counts, times, thresholds, history, factor, digest)
