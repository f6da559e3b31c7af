"""Reads a scenario file: checks every key, applies overrides and resolves names against catalogue and profile."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfserve import catalog
from selfserve.catalog.carry import carry_profile, runtime_mb, weights_mb
from selfserve.errors import InputError
from selfserve.scenario import (
    CorrectnessPhysics,
    FunctionPhysics,
    Model,
    Pool,
    RequestClass,
    Scenario,
    ServicePhysics,
    SpotPhysics,
    Storm,
    VmPhysics,
)

FOLDER = Path(__file__).parent / "scenarios"
SHARE_TOLERANCE = 1e-6

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Class(_Section):
    name: Name
    share: Positive
    slo_s: Positive
    min_accuracy_pct: Percent = 0.0
    mean_accuracy_pct: Percent | None = None
    accuracy_window_s: Positive = 3600.0


class _Pool(_Section):
    name: Name
    resource: str
    market: Literal["on_demand", "spot"] = "on_demand"
    models: Annotated[list[str], Field(min_length=1)]
    threads: Count = 1
    memory_mb: Positive | None = None
    max_machines: Count = 2000


class _Vm(_Section):
    pending_s: NotNegative = 17.0
    boot_s: NotNegative = 83.0
    boot_spread: NotNegative = 0.15
    minimum_bill_s: NotNegative = 60.0


class _Function(_Section):
    init_s: NotNegative = 2.5
    keep_alive_s: NotNegative = 600.0
    concurrency: Count = 1000
    burst_per_10s: Count = 1000
    price_factor: Positive = 1.0


class _Spot(_Section):
    interruptions_per_hour: NotNegative = 0.02
    notice_s: NotNegative = 120.0
    storms: list[Annotated[list[NotNegative], Field(min_length=4, max_length=4)]] = []


class _Service(_Section):
    spread: NotNegative = 0.1
    believed_factor: Positive = 1.0


class _Correctness(_Section):
    error_correlation: Annotated[float, Field(ge=0, lt=1)] = 0.8
    confidence_auroc: Annotated[float, Field(gt=0.5, lt=1)] = 0.85


class _Workload(_Section):
    share_drift: NotNegative = 0.0


class _File(_Section):
    name: str
    classes: Annotated[list[_Class], Field(min_length=1)]
    pools: Annotated[list[_Pool], Field(min_length=1)]
    interval_s: Positive = 10.0
    warmup_s: NotNegative = 600.0
    load_machines: Positive | None = None
    rate_scale: Positive | None = None
    prices: str = "aws_us_east_1"
    profile: str = "cpu"
    vm: _Vm = _Vm()
    function: _Function = _Function()
    spot: _Spot = _Spot()
    service: _Service = _Service()
    correctness: _Correctness = _Correctness()
    workload: _Workload = _Workload()


_SECTIONS: dict[str, type[BaseModel]] = {
    "classes": _Class,
    "pools": _Pool,
    "vm": _Vm,
    "function": _Function,
    "spot": _Spot,
    "service": _Service,
    "correctness": _Correctness,
    "workload": _Workload,
}


def load(name_or_path: str, overrides: Mapping[str, object] | None = None) -> Scenario:
    """Return a scenario; see :func:`selfserve.scenario.load_scenario`."""
    raw, where = _read(name_or_path)
    for key, value in (overrides or {}).items():
        _override(raw, key, value, where)
    parsed = _validate(raw, where)
    _check_together(parsed, where)
    return _resolve(parsed, where)


def names() -> list[str]:
    """Return the scenarios that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def _read(name_or_path: str) -> tuple[dict[str, Any], str]:
    path = FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(f"scenario {name_or_path!r}: no such file; scenarios by name: {', '.join(names())}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path.name if path.parent == FOLDER else str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not TOML: {' '.join(str(error).split())}") from error


def _override(raw: dict[str, Any], key: str, value: object, where: str) -> None:
    """Set a dotted key; entries of a list are addressed by name; None removes the key."""
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            found = [entry for entry in node if isinstance(entry, dict) and entry.get("name") == part]
            if not found:
                known = ", ".join(str(entry.get("name")) for entry in node)
                raise InputError(f"{where}: override {key}: there is no {part!r}, only {known}")
            node = found[0]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise InputError(f"{where}: override {key}: {part!r} has no keys below it")
    if isinstance(node, list):
        raise InputError(f"{where}: override {key}: name a key of the entry, such as {key}.name")
    if value is None:
        node.pop(last, None)
        return
    node[last] = copy.deepcopy(value)
    if not parents and last in ("load_machines", "rate_scale"):  # they exclude each other: the override decides
        node.pop({"load_machines": "rate_scale", "rate_scale": "load_machines"}[last], None)


def _validate(raw: dict[str, Any], where: str) -> _File:
    """Check types, limits and names of keys; an unknown key is reported before, a missing one after all else."""
    try:
        return _File.model_validate(raw)
    except ValidationError as error:
        order = {"extra_forbidden": 0, "missing": 2}
        first = min(error.errors(include_url=False), key=lambda e: order.get(e["type"], 1))
        raise InputError(f"{where}: {_explain(first, raw)}") from None


def _explain(error: Any, raw: dict[str, Any]) -> str:
    node: Any = raw
    parts: list[str] = []
    for step in error["loc"]:
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            node = None
        named = isinstance(step, int) and isinstance(node, dict) and isinstance(node.get("name"), str)
        parts.append(node["name"] if named else str(step))
    key = ".".join(parts)
    if error["type"] == "extra_forbidden":
        section = _section(error["loc"][:-1])
        return f"unknown key {key}; known here: {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"key {key} is missing"
    return f"{key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _section(steps: Iterable[Any]) -> type[BaseModel]:
    """Return the schema of the section at this place of the file."""
    name = next((step for step in steps if isinstance(step, str)), "")
    return _SECTIONS.get(name, _File)


def _check_together(parsed: _File, where: str) -> None:
    """Check what one key alone cannot tell."""
    if (parsed.load_machines is None) == (parsed.rate_scale is None):
        state = "neither is" if parsed.load_machines is None else "both are"
        raise InputError(f"{where}: load_machines, rate_scale: {state} set; set one of them")
    for what, entries in (("classes", parsed.classes), ("pools", parsed.pools)):
        seen = [entry.name for entry in entries]
        twice = sorted({name for name in seen if seen.count(name) > 1})
        if twice:
            raise InputError(f"{where}: {what}.name = {twice[0]!r} appears twice; names must differ")
    total = sum(entry.share for entry in parsed.classes)
    if abs(total - 1) > SHARE_TOLERANCE:
        raise InputError(f"{where}: classes.share: the shares sum to {total:.9g}, not to 1")
    for entry in parsed.classes:
        if entry.mean_accuracy_pct is not None and entry.mean_accuracy_pct < entry.min_accuracy_pct:
            raise InputError(
                f"{where}: classes.{entry.name}.mean_accuracy_pct = {entry.mean_accuracy_pct:g} is below "
                f"min_accuracy_pct = {entry.min_accuracy_pct:g}"
            )
    _check_storms(parsed.spot.storms, where)


def _check_storms(storms: list[list[float]], where: str) -> None:
    for i, (_, length, _, refused) in enumerate(storms):
        if length <= 0 or refused > 1:
            raise InputError(
                f"{where}: spot.storms.{i} = {storms[i]}: wants [start_s, length_s > 0, interruptions_per_hour, "
                "refused_share between 0 and 1]"
            )
    for before, after in pairwise(sorted(storms)):
        if after[0] < before[0] + before[1]:
            raise InputError(f"{where}: spot.storms: {before} and {after} overlap; a storm must end before the next")


@dataclass(frozen=True)
class _Lists:
    """The catalogue as this scenario sees it."""

    prices: pd.DataFrame
    profile: pd.DataFrame
    price_factor: float
    believed_factor: float


def _resolve(parsed: _File, where: str) -> Scenario:
    try:
        prices, profile = catalog.load_prices(parsed.prices), catalog.load_profile(parsed.profile)
    except InputError as error:
        raise InputError(f"{where}: prices, profile: {error}") from None
    lists = _Lists(prices, profile, parsed.function.price_factor, parsed.service.believed_factor)
    names = list(dict.fromkeys(name for pool in parsed.pools for name in pool.models))
    models = tuple(_model(name, profile, parsed, where) for name in names)
    pools = tuple(_pool(pool, names, lists, f"{where}: pools.{pool.name}") for pool in parsed.pools)
    _check_accuracy(parsed.classes, models, where)
    storms = tuple(Storm(*storm) for storm in sorted(parsed.spot.storms))
    scenario = Scenario(
        name=parsed.name,
        classes=tuple(RequestClass(**entry.model_dump()) for entry in parsed.classes),
        pools=pools,
        models=models,
        interval_s=parsed.interval_s,
        warmup_s=parsed.warmup_s,
        load_machines=parsed.load_machines,
        rate_scale=parsed.rate_scale,
        prices=parsed.prices,
        profile=parsed.profile,
        vm=VmPhysics(**parsed.vm.model_dump()),
        function=FunctionPhysics(**parsed.function.model_dump()),
        spot=SpotPhysics(parsed.spot.interruptions_per_hour, parsed.spot.notice_s, storms),
        service=ServicePhysics(**parsed.service.model_dump()),
        correctness=CorrectnessPhysics(**parsed.correctness.model_dump()),
        share_drift=parsed.workload.share_drift,
    )
    return replace(scenario, digest=_digest(scenario))


def _model(name: str, profile: pd.DataFrame, parsed: _File, where: str) -> Model:
    pool = next(pool.name for pool in parsed.pools if name in pool.models)
    accuracy = catalog.accuracy_of(name)
    if accuracy is None or name not in set(profile["model"]):
        known = [m for m in dict.fromkeys(profile["model"]) if catalog.accuracy_of(m) is not None]
        raise InputError(
            f"{where}: pools.{pool}.models: unknown model {name!r}; catalogue and profile {parsed.profile} have "
            f"{', '.join(known)}"
        )
    return Model(name, accuracy)


def _check_accuracy(classes: list[_Class], models: tuple[Model, ...], where: str) -> None:
    best = max(models, key=lambda model: model.accuracy_pct)
    for entry in classes:
        for key, floor in (("min", entry.min_accuracy_pct), ("mean", entry.mean_accuracy_pct or 0.0)):
            if floor > best.accuracy_pct:
                raise InputError(
                    f"{where}: classes.{entry.name}.{key}_accuracy_pct = {floor:g}: no model of the pools reaches it; "
                    f"the best is {best.name} with {best.accuracy_pct:g}"
                )


def _pool(pool: _Pool, names: list[str], lists: _Lists, where: str) -> Pool:
    """Resolve a pool: price, slots, service table and memory."""
    if len(set(pool.models)) < len(pool.models):
        raise InputError(f"{where}.models: a model is named twice")
    if pool.resource not in lists.prices.index:
        known = ", ".join(lists.prices.index)
        raise InputError(f"{where}.resource = {pool.resource!r}: not in the price list, which has {known}")
    resource = lists.prices.loc[pool.resource]
    function = resource["kind"] == "function"
    wrong = {"market", "threads"} & pool.model_fields_set if function else {"memory_mb"} & pool.model_fields_set
    if wrong:
        kind = "a function" if function else "a machine"
        raise InputError(f"{where}.{min(wrong)}: {pool.resource} is {kind}, which takes no such key")
    if function and pool.memory_mb is None:
        raise InputError(f"{where}.memory_mb: missing; a function needs its memory, in MB")
    try:
        carried = [carry_profile(lists.profile, m, resource, pool.threads, pool.memory_mb) for m in pool.models]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    slots = _slots(resource, pool.threads)
    memory = float(pool.memory_mb) if pool.memory_mb is not None else float(resource["memory_gib"]) * 1024
    most = _largest_batch(pool, carried, slots, _memory_limit(resource, memory), lists.profile, where)
    service = np.zeros((len(names), most + 1), dtype=np.int64)
    for name, rows in zip(pool.models, carried, strict=True):
        service[names.index(name), 1:] = service_table(rows, most)
    believed = np.where(service > 0, np.maximum(np.rint(service * lists.believed_factor), 1), 0).astype(np.int64)
    return Pool(
        name=pool.name,
        resource=pool.resource,
        market="function" if function else pool.market,
        models=tuple(names.index(name) for name in pool.models),
        slots=slots,
        threads=pool.threads,
        memory_mb=memory,
        max_machines=pool.max_machines,
        **_money(pool, resource, memory, lists.price_factor, where),
        service_ns=service,
        believed_ns=believed,
        sources=tuple(str(rows["tag"].iloc[0]) for rows in carried),
    )


def _slots(resource: pd.Series, threads: int) -> int:
    """Return how many batches a machine serves at a time: one a function or GPU, else vCPUs over threads."""
    if resource["kind"] == "function":
        return 1
    return int(resource["accelerator_count"]) if resource["accelerator"] else int(resource["vcpu"]) // threads


def _money(pool: _Pool, resource: pd.Series, memory_mb: float, factor: float, where: str) -> dict[str, float]:
    """Return the pool's four prices in US dollars (a GB of a function is 1,024 MB)."""
    if resource["kind"] == "function":
        gb_hours = memory_mb / 1024 * 3600 * factor
        return {
            "usd_per_hour": gb_hours * float(resource["provisioned_usd_per_gb_s"]),
            "usd_per_busy_hour": gb_hours * float(resource["usd_per_gb_s"]),
            "usd_per_busy_hour_provisioned": gb_hours * float(resource["provisioned_duration_usd_per_gb_s"]),
            "usd_per_request": float(resource["usd_per_request"]) * factor,
        }
    price = float(resource["spot_usd_per_hour" if pool.market == "spot" else "usd_per_hour"])
    if np.isnan(price):
        raise InputError(f"{where}.market = 'spot': the price list has no spot price of {pool.resource}")
    return {"usd_per_hour": price} | dict.fromkeys(
        ("usd_per_busy_hour", "usd_per_busy_hour_provisioned", "usd_per_request"), 0.0
    )


def _memory_limit(resource: pd.Series, memory_mb: float) -> float:
    """Return the memory that models compete for, MB: the GPU's where there is one and its size is known."""
    gpu_gib = float(resource["gpu_memory_gib"]) if resource["accelerator"] else float("nan")
    return memory_mb if np.isnan(gpu_gib) else gpu_gib * 1024 * float(resource["accelerator_count"])


def _largest_batch(
    pool: _Pool, carried: list[pd.DataFrame], slots: int, limit_mb: float, profile: pd.DataFrame, where: str
) -> int:
    """Return the largest batch that every resident model was profiled with and that fits the memory.

    Each of the machine's workers holds the runtime, its own copy of every resident model and the intermediate results
    of one batch. A function holds one model. What is not known (published models) counts as nothing.
    """
    weights = np.nan_to_num([weights_mb(name) for name in pool.models])
    resident = np.max(weights) if pool.memory_mb is not None else np.sum(weights)
    batches = [b for b in carried[0]["batch"] if all(b in set(rows["batch"]) for rows in carried)]
    if not batches:
        raise InputError(f"{where}.models: no batch size was profiled for all of them")
    need = [
        slots * (runtime_mb(profile) + resident + max(_activation_mb(rows, b) for rows in carried)) for b in batches
    ]
    fitting = [b for b, mb in zip(batches, need, strict=True) if mb <= limit_mb]
    if not fitting:
        raise InputError(
            f"{where}.models: {slots} worker(s) with {', '.join(pool.models)} need {need[0]:,.0f} MB, {pool.resource} "
            f"has {limit_mb:,.0f} MB; take fewer models, more threads or more memory"
        )
    return int(max(fitting))


def _activation_mb(rows: pd.DataFrame, batch: int) -> float:
    return float(np.nan_to_num(rows.loc[rows["batch"] == batch, "activation_mb"].iloc[0]))


def service_table(rows: pd.DataFrame, most: int) -> np.ndarray:
    """Return service times of batches 1..most, int64 nanoseconds: linear between profiled batches, never decreasing."""
    ns = np.interp(np.arange(1, most + 1), rows["batch"], rows["service_ms"].to_numpy() * 1e6)
    return np.maximum.accumulate(np.maximum(np.rint(ns).astype(np.int64), 1))


def _digest(scenario: Scenario) -> str:
    def plain(value: object) -> object:
        return value.tolist() if isinstance(value, np.ndarray) else str(value)

    content = json.dumps(asdict(scenario), sort_keys=True, default=plain)
    return hashlib.sha256(content.encode()).hexdigest()
