"""Runs of policies over windows, each kept in a file of its own, so that a second start computes nothing twice.

A :class:`Case` is one run. Its file is named by a hash of everything that goes in: the sources, the content of trace
and scenario, window, policy, parameters, seed. Tables are put together from these files in the order of the cases:
they have the same bytes whatever was computed when, where and in how many attempts.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from tqdm.auto import tqdm

from selfserve.bound import bound, oracle_for
from selfserve.errors import InputError
from selfserve.policies import make_policy, policy_names, with_hindsight
from selfserve.protocol import Decision, Observation, Policy
from selfserve.scenario import Scenario, load_scenario
from selfserve.simulator import Result, simulate
from selfserve.traces import Trace, split_ranges
from selfserve.workload import Workload, check_scored, load_trace, make_workload

Window = tuple[str, int, int]
"""Trace, first second and length in seconds."""
Row = dict[str, Any]

_NOT_COMPUTED_WITH = set("cli figures studies live runner.py profiling.py advice.py ppo.py gradient.py".split())
_LIBRARIES = ("numpy", "scipy", "highspy", "numba", "torch", "statsmodels", "cmaes")
_RAY_CHUNK = 4
"""Runs per processor that a Ray cluster is given before their results are written down."""
_RAY_TRIES = 3

WHO = ("policy", "kind", "parameters", "knob", "trace", "start_s", "length_s", "scenario", "overrides", "seed")
"""What a row of the table is about; the table is sorted by it."""
COUNTS = ("scored_s", "requests", "rejected", "cold_starts", "launches")
NUMBERS = (
    "cost_usd", "vm_cost_usd", "spot_cost_usd", "function_cost_usd", "slo_violation_pct", "accuracy_violation_pct",
    "mean_accuracy_pct", "p50_s", "p99_s", "function_share_pct", "vm_utilisation_pct",
    "bound_usd", "oracle_cost_usd", "cost_to_oracle", "error_correlation", "confidence_auroc",
)  # fmt: skip
"""Columns of a run. ``bound_usd`` allows no violation, ``oracle_cost_usd`` the run's own; the last two are what answers
of cascades and ensembles are drawn from (physics rule 10.6)."""
DIGESTS = ("decisions", "reason", "code_version", "scenario_digest", "trace_digest")
"""``decisions`` is a hash of the decision log; ``reason`` says why a policy cannot run in a scenario."""


@dataclass(frozen=True)
class Case:
    """One run: a policy with parameters on a window of a trace, in a scenario with overrides (both as JSON)."""

    policy: str
    trace: str
    start_s: int
    length_s: int
    scenario: str = "standard"
    parameters: str = "{}"
    overrides: str = "{}"
    seed: int = 0
    oracle: bool = True
    """Whether to compute the bounds that the run is measured against."""


def as_json(values: Mapping[str, object]) -> str:
    """Return a mapping as one line of JSON in a fixed order."""
    return json.dumps(dict(values), sort_keys=True)


# --- windows


@lru_cache(maxsize=16)
def trace_of(name: str) -> Trace:
    """Return a trace, kept in memory."""
    return load_trace(name)


@lru_cache(maxsize=64)
def scenario_of(name: str, overrides: str = "{}") -> Scenario:
    """Return a scenario with overrides (a JSON object of dotted keys), kept in memory."""
    return load_scenario(name, json.loads(overrides))


@lru_cache(maxsize=2)
def _workload(trace: str, start_s: int, length_s: int, scenario: str, overrides: str, seed: int) -> Workload:
    return make_workload(trace_of(trace), scenario_of(scenario, overrides), start_s, length_s, seed)


def spread_windows(trace: str, part: str, number: int, length_s: int) -> list[Window]:
    """Return ``number`` windows in the middles of equal pieces of a part of a trace (``train``, ``evaluate``, ..).

    A piece shorter than ``length_s`` is a window as a whole.
    """
    first, last = split_ranges(trace_of(trace))[part]
    piece = (last - first) // number
    length = min(length_s, piece)
    return [(trace, first + i * piece + (piece - length) // 2, length) for i in range(number)]


def refuse_overlap(ranges: Mapping[str, Sequence[tuple[int, int]]], windows: Iterable[Window]) -> None:
    """Refuse windows in which something was trained.

    Args:
        ranges: trace to ranges [from, to) in seconds, as a controller's card has them.
        windows: what is to be evaluated. ``twitter_hour`` counts as the hour of ``twitter`` that it is.

    Raises:
        InputError: naming the first window and range that share a second.
    """
    for trace, start, length in windows:
        name, shift = ("twitter", 7 * 3600) if trace == "twitter_hour" else (trace, 0)
        for other, mine in ranges.items():
            known, moved = ("twitter", 7 * 3600) if other == "twitter_hour" else (other, 0)
            for a, b in mine:
                if known == name and a + moved < start + shift + length and start + shift < b + moved:
                    raise InputError(
                        f"window {start} to {start + length} s of {trace} overlaps the training range {a} to {b} s of "
                        f"{other}; right is a window of the evaluation part (traces describe {trace})"
                    )


def training_ranges(policy: str) -> dict[str, list[tuple[int, int]]]:
    """Return what a policy's ``card`` names as ``training_ranges``, as a controller's does; nothing for all others."""
    card = {} if policy == "clairvoyant" else getattr(make_policy(policy), "card", {})
    return {trace: [(int(a), int(b)) for a, b in found] for trace, found in card.get("training_ranges", {}).items()}


# --- one run


class _Recorded:
    """A policy whose decisions are hashed: each change of what holds, with its time."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.interval_s, self.hash = policy, policy.interval_s, hashlib.sha256()
        self._routes: object = None
        self._last = self._words = ""

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        self.policy.reset(scenario, history)

    def decide(self, observation: Observation) -> Decision:
        decision = self.policy.decide(observation)
        if decision.routes is not self._routes:
            self._routes, self._words = decision.routes, json.dumps(_plain(decision.routes))
        pools = len(decision.machines)
        batches = decision.batch_max or (1,) * pools, decision.batch_wait_s or (0.0,) * pools
        words = json.dumps(_plain((decision.machines, *batches))) + self._words
        if words != self._last:
            self.hash.update(f"{round(observation.time_s * 1e9)} {words}\n".encode())
            self._last = words
        return decision


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return [_plain(getattr(value, name)) for name in value.__dataclass_fields__]
    return value if value is None else float(value)


def policy_for(
    spec: str, parameters: Mapping[str, object], workload: Workload, scenario: Scenario, seed: int
) -> Policy:
    """Return a fresh policy; those that may know the future (clairvoyant, a static fleet) are told the window."""
    if spec == "clairvoyant":
        from selfserve.policies.clairvoyant import make_clairvoyant

        if parameters:
            raise InputError(f"policy clairvoyant has no parameters, {min(parameters)} was given")
        check_scored(workload.trace, workload.start_s, workload.seconds, scenario)  # before hours are planned
        return make_clairvoyant(workload, scenario, seed)
    return make_policy(spec, **with_hindsight(spec, workload.counts, parameters))


def measure(case: Case) -> Row:
    """Run one case; a policy that the scenario does not fit gives a row with nothing but the reason."""
    scenario = scenario_of(case.scenario, case.overrides)
    workload = _workload(case.trace, case.start_s, case.length_s, case.scenario, case.overrides, case.seed)
    physics = scenario.correctness
    row: Row = {"error_correlation": physics.error_correlation, "confidence_auroc": physics.confidence_auroc}
    row |= {"scenario_digest": scenario.digest, "trace_digest": trace_of(case.trace).digest}
    row |= {"reason": "", "classes": []}
    row["scored_s"] = max(0, round(case.length_s - scenario.warmup_s))
    try:
        policy = _Recorded(policy_for(case.policy, json.loads(case.parameters), workload, scenario, case.seed))
        if "torch" in sys.modules:  # sums over threads differ in the last digit
            sys.modules["torch"].set_num_threads(1)
        result = simulate(scenario, workload, policy, case.seed, name=case.policy)
    except InputError as error:
        return row | {"reason": str(error)}
    row |= {key: result.summary.get(key) for key in (*COUNTS, *NUMBERS) if key in result.summary}
    markets = [p.market for p in scenario.pools]
    for name, market in (("vm", "on_demand"), ("spot", "spot"), ("function", "function")):
        row[f"{name}_cost_usd"] = float(sum(x for x, m in zip(result.cost_usd, markets, strict=True) if m == market))
    row |= {"decisions": policy.hash.hexdigest()[:16], "classes": result.summary["classes"]}
    return row | (_oracle(result, workload, scenario) if case.oracle else {})


def _oracle(result: Result, workload: Workload, scenario: Scenario) -> Row:
    """Return the bounds of a run (none where the run may leave all undone, or no plan keeps every SLO)."""
    own = oracle_for(result, workload, scenario).certificate_usd
    ratio = result.summary["cost_usd"] / own if own > 0 else None
    try:
        strict: float | None = bound(workload, scenario, result.seed).certificate_usd
    except InputError:
        strict = None
    return {"oracle_cost_usd": own, "cost_to_oracle": ratio, "bound_usd": strict}


# --- many runs


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return a hash of all sources that a run is computed from and of the versions of the libraries below them."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        place = path.relative_to(root)
        if place.parts[0] not in _NOT_COMPUTED_WITH:
            digest.update(f"{place.as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(json.dumps([version(name) for name in _LIBRARIES]).encode())
    return digest.hexdigest()[:16]


def policy_digest(spec: str) -> str:
    """Return what a policy is beyond its name: the content of its file, where it is one's own or a controller."""
    path = Path(spec.rpartition(":")[0] if ".py:" in spec else spec)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def digest_of(*parts: object) -> str:
    """Return a hash of plain values and of the sources."""
    return hashlib.sha256(json.dumps([code_version(), *parts], sort_keys=True).encode()).hexdigest()


def _key(case: Case) -> str:
    content = trace_of(case.trace).digest, scenario_of(case.scenario, case.overrides).digest
    return digest_of(content, asdict(case), policy_digest(case.policy))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content))
    part.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file; None where there is none that can be read."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):  # not there, or not written by us
        return None


class Runs:
    """Runs cases over local processes or a Ray cluster and keeps each finished run in ``folder/runs``.

    Args:
        folder: where runs are kept.
        jobs: processes on this machine (0: one a core).
        ray: address of a Ray cluster to run on instead; every node needs the package and the trace files.
        progress: show a bar on stderr.
    """

    def __init__(self, folder: Path, jobs: int = 0, ray: str | None = None, progress: bool = False) -> None:
        self.folder, self.jobs, self.ray, self.progress = folder / "runs", jobs or cpu_count(), ray, progress
        self.computed = 0
        """Runs that were not there already."""
        if ray is not None:
            _join_cluster(ray)

    def __call__(self, cases: Sequence[Case], text: str = "runs") -> list[Row]:
        """Return the rows of cases, in their order, running those that no file is kept of."""
        keys = {case: _key(case) for case in dict.fromkeys(cases)}
        places = {case: self.folder / key[:2] / f"{key}.json" for case, key in keys.items()}
        rows = {case: row for case, path in places.items() if (row := read_json(path)) is not None}
        todo = [case for case in places if case not in rows]
        with tqdm(total=len(places), initial=len(rows), desc=text, unit="run", disable=not self.progress) as bar:
            for case, row in self._compute(todo):
                row["code_version"] = code_version()
                write_json(places[case], row)
                rows[case] = row
                self.computed += 1
                bar.update()
        return [rows[case] for case in cases]

    def _compute(self, todo: Sequence[Case]) -> Iterator[tuple[Case, Row]]:
        if self.ray is not None:
            yield from _on_ray(todo)
        elif self.jobs == 1 or len(todo) < 2:
            yield from map(_pair, todo)
        else:
            pool = Parallel(self.jobs, return_as="generator_unordered", batch_size=1, initializer=_warm_up)
            yield from pool(delayed(_pair)(case) for case in todo)


def _warm_up() -> None:
    """Load what a process keeps: one that grows by 300 MB after its first run is ended by joblib, its networks lost."""
    import torch  # noqa: F401


def _pair(case: Case) -> tuple[Case, Row]:
    return case, measure(case)


def _join_cluster(address: str) -> None:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise InputError("--ray needs Ray, which is an extra: pip install -r requirements-live.txt") from None
    register_ray()
    if not ray.is_initialized():
        passed = {k: v for k, v in os.environ.items() if k.startswith("SELFSERVE_")}
        try:
            host, _, port = address.rpartition(":")
            if host and port.isdigit():  # where nothing answers Ray would try for minutes
                socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=5).close()
            ray.init(address, runtime_env={"env_vars": passed}, log_to_driver=False, logging_level=40)
        except (OSError, ValueError) as error:
            raise InputError(f"--ray {address}: no Ray cluster there: {str(error).splitlines()[0]}") from None


def _on_ray(todo: Sequence[Case]) -> Iterator[tuple[Case, Row]]:
    """Run cases by joblib's Ray backend, a chunk at a time; what a lost node was doing is done again elsewhere."""
    import ray
    from joblib import parallel_config

    options = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "SPREAD"}
    tries, done = 0, 0
    while done < len(todo):
        workers = int(ray.cluster_resources().get("CPU", 1))
        chunk = todo[done : done + _RAY_CHUNK * workers]
        try:
            with parallel_config("ray", n_jobs=min(workers, len(chunk)), ray_remote_args=options):
                rows = Parallel(batch_size=1)(delayed(_pair)(case) for case in chunk)
        except ray.exceptions.RayError:
            tries += 1
            if tries == _RAY_TRIES:
                raise
            continue
        yield from rows
        tries, done = 0, done + len(chunk)


# --- grids and tables

Labels = dict[str, Any]
"""What a case is shown as: its ``kind`` (authors or tuned) and, on a frontier, the value of its ``knob``."""


def policies_in(names: Sequence[str]) -> list[str]:
    """Return policies by name, ``all`` standing for every built-in one and the clairvoyant.

    Raises:
        InputError: a policy that is not there, or one named twice.
    """
    every = [*dict.fromkeys([*policy_names(), "clairvoyant"])]
    found = [one for name in names for one in (every if name == "all" else [name])]
    for name in found:
        if found.count(name) > 1:
            raise InputError(f"policy {name} is named twice")
        if name != "clairvoyant":
            make_policy(name)
    return found


def check_windows(windows: Iterable[Window], scenarios: Iterable[tuple[str, str]]) -> None:
    """Raise an InputError unless every window is longer than every scenario's warm-up."""
    for trace, start, length in windows:
        for name in scenarios:
            check_scored(trace, start, length, scenario_of(*name))


def grid(
    policies: Sequence[str],
    windows: Sequence[Window],
    scenarios: Sequence[tuple[str, str]],
    seeds: Sequence[int] = (0,),
    tuned: Sequence[Mapping[str, Any]] = (),
    frontier: bool = False,
) -> tuple[list[Case], list[Labels]]:
    """Return the cases of a table, those of one window together, which share its bound.

    Args:
        policies: see :func:`policies_in`.
        windows: see :func:`spread_windows`.
        scenarios: names, each with overrides as JSON.
        seeds: of workload and run.
        tuned: records of :func:`selfserve.evaluation.tuning.tune`; their parameters make rows of their own.
        frontier: sweep each policy's ``knob`` (those without one are left out).
    """
    best = {(r["policy"], r["scenario"], r["overrides"]): r["parameters"] for r in tuned}
    knobs = {name: getattr(type(make_policy(name)), "knob", None) for name in policies if name != "clairvoyant"}
    cases, labels = [], []
    for (trace, start, length), (name, overrides), seed in product(windows, scenarios, seeds):
        for policy in policies:
            kinds: dict[str, Any] = {"authors": {}, "tuned": best.get((policy, name, overrides))}
            knob, values = (knobs.get(policy) or (None, ())) if frontier else (None, (None,))
            for (kind, parameters), value in product(kinds.items(), values):
                if parameters is not None:
                    own = as_json(parameters | ({knob: value} if knob else {}))
                    cases.append(Case(policy, trace, start, length, name, own, overrides, seed))
                    labels.append({"kind": kind, "knob": value})
    return cases, labels


def table(cases: Sequence[Case], labels: Sequence[Labels], rows: Sequence[Row]) -> pd.DataFrame:
    """Return one row a run, sorted by ``WHO``: who ran on what, :data:`COUNTS`, :data:`NUMBERS`, :data:`DIGESTS`."""
    records = [asdict(c) | x | r for c, x, r in zip(cases, labels, rows, strict=True)]
    frame = pd.DataFrame({key: [r.get(key) for r in records] for key in (*WHO, *COUNTS, *NUMBERS, *DIGESTS)})
    frame = frame.astype(dict.fromkeys(("start_s", "length_s", "seed"), "int64") | dict.fromkeys(COUNTS, "Int64"))
    frame = frame.astype(dict.fromkeys(("knob", *NUMBERS), "float64"))
    return frame.sort_values(list(WHO), kind="stable", ignore_index=True)


def class_table(cases: Sequence[Case], labels: Sequence[Labels], rows: Sequence[Row]) -> pd.DataFrame:
    """Return one row per run and request class: requests, violations, accuracy, latency."""
    records = [
        {key: (asdict(c) | x).get(key) for key in WHO} | {"class": one["name"]} | one
        for c, x, r in zip(cases, labels, rows, strict=True)
        for one in r["classes"]
    ]
    columns = ["requests", "slo_violation_pct", "mean_accuracy_pct", "p50_s", "p99_s"]
    frame = pd.DataFrame(records, columns=[*WHO, "class", *columns])
    frame = frame.astype(dict.fromkeys(("knob", *columns), "float64"))
    return frame.sort_values([*WHO, "class"], kind="stable", ignore_index=True)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a table whole or not at all; the same table gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    frame.to_parquet(part, index=False)
    part.replace(path)
