"""A scenario: what is served, on what, at which prices and under which physics; read from TOML, frozen.

The README describes the file. :func:`load_scenario` checks every key (the limits stand at the fields below), applies
overrides and resolves names against catalogue and profile.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from selfserve import catalog
from selfserve.catalog.carry import carry_profile, runtime_mb, weights_mb
from selfserve.errors import InputError

NS = 1_000_000_000
FOLDER = Path(__file__).parent / "scenarios"
SHARE_TOLERANCE = 1e-6

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
LONGEST_S = 1e8
"""Three years: no time may be longer, so that sums stay far below what nanoseconds in 64 bits hold."""
SHORTEST_INTERVAL_S = 1e-3
"""Least time between two decisions."""
Seconds = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False, strict=True)]
SomeSeconds = Annotated[float, Field(gt=0, le=LONGEST_S, allow_inf_nan=False, strict=True)]
Spread = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False, strict=True)]
"""A coefficient of variation."""
Factor = Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False, strict=True)]
Percent = Annotated[float, Field(ge=0, le=100, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, le=2**31, strict=True)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")]


def to_ns(seconds: float) -> int:
    """Return whole nanoseconds, rounded half to even (physics rule 1.1)."""
    return round(seconds * NS)


@dataclass(frozen=True)
class RequestClass:
    """A class of requests: latency SLO, accuracy demand, share of the arrivals."""

    name: Name
    share: Positive
    slo_s: SomeSeconds
    min_accuracy_pct: Percent = 0.0
    mean_accuracy_pct: Percent | None = None
    accuracy_window_s: Annotated[SomeSeconds, Field(ge=1)] = 3600.0


@dataclass(frozen=True)
class Model:
    """A model: name and ImageNet-1K top-1 accuracy in percent."""

    name: str
    accuracy_pct: float


@dataclass(frozen=True)
class Pool:
    """Identical machines of one resource with a set of resident models, resolved against catalogue and profile.

    Prices of function pools include price_factor; those for busy hours and requests are 0 for machines.
    """

    name: str
    resource: str
    market: str  #: ``on_demand``, ``spot`` or ``function``
    models: tuple[int, ...]  #: indices into ``Scenario.models``
    slots: int  #: batches that one machine serves at a time (1 for functions and GPUs)
    threads: int
    memory_mb: float
    max_machines: int
    usd_per_hour: float  #: of a running machine (function pools: of one provisioned container)
    usd_per_busy_hour: float  #: of an hour of execution on demand
    usd_per_busy_hour_provisioned: float  #: of an hour of execution on a provisioned container
    usd_per_request: float  #: of an invocation
    service_ns: np.ndarray  #: int64 [M, B + 1] mean time of a batch of 1..B, machine fully busy; 0: model not resident
    believed_ns: np.ndarray  #: int64 [M, B + 1] what policies and IF_FITS believe of it (``believed_factor`` times)
    sources: tuple[str, ...]  #: tag of each model's row in ``models`` order: measured, published or scaled

    @property
    def is_function(self) -> bool:
        """Whether the pool's containers appear on demand."""
        return self.market == "function"

    @property
    def max_batch(self) -> int:
        """Largest profiled batch B."""
        return self.service_ns.shape[1] - 1

    def service_s(self, model: int, batch: int = 1) -> float:
        """Return the believed mean service time in seconds (``inf`` where the model is not resident)."""
        ns = int(self.believed_ns[model, batch])
        return ns / NS if ns else float("inf")


@dataclass(frozen=True)
class VmPhysics:
    """Life of a VM: seconds from decision to running, from running to ready, and the least bill."""

    pending_s: Seconds = 17.0
    boot_s: Seconds = 83.0
    boot_spread: Spread = 0.15
    minimum_bill_s: Seconds = 60.0


@dataclass(frozen=True)
class FunctionPhysics:
    """Cold start, keep-alive and concurrency of functions; ``price_factor`` multiplies their prices."""

    init_s: Seconds = 2.5
    keep_alive_s: Seconds = 600.0
    concurrency: Count = 1000
    burst_per_10s: Count = 1000
    price_factor: Factor = 1.0


@dataclass(frozen=True)
class Storm:
    """A time of high spot interruption, seconds from the window's start."""

    start_s: Seconds
    length_s: SomeSeconds
    interruptions_per_hour: NotNegative
    refused_share: Share = 0.0


def _storm(row: object) -> object:
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError("wants [start_s, length_s, interruptions_per_hour, refused_share]")
    return dict(zip(Storm.__annotations__, row, strict=True))


def _apart(storms: tuple[Storm, ...]) -> tuple[Storm, ...]:
    ordered = tuple(sorted(storms, key=lambda s: (s.start_s, s.length_s)))
    for a, b in pairwise(ordered):
        if b.start_s < a.start_s + a.length_s:
            raise ValueError(f"those from {a.start_s:g} s and {b.start_s:g} s overlap; one must end before the next")
    return ordered


@dataclass(frozen=True)
class SpotPhysics:
    """Interruptions of spot machines; storms do not overlap."""

    interruptions_per_hour: NotNegative = 0.02
    notice_s: Seconds = 120.0
    storms: Annotated[tuple[Annotated[Storm, BeforeValidator(_storm)], ...], AfterValidator(_apart)] = ()


@dataclass(frozen=True)
class ServicePhysics:
    """Spread of service times (coefficient of variation) and what policies believe of their mean."""

    spread: Spread = 0.1
    believed_factor: Factor = 1.0


@dataclass(frozen=True)
class CorrectnessPhysics:
    """Which answers of cascades and ensembles are right (physics rule 10.6); both are swept, no one figure is given.

    ``error_correlation`` is the tetrachoric correlation of two models' errors (0: independent). ImageNet models agree
    well beyond what their accuracies explain: Mania et al., NeurIPS 2019; least if trained differently: Gontijo-Lopes
    et al., ICLR 2022. ``confidence_auroc`` is the area under the ROC curve of a model's confidence as a detector of its
    own errors, such as the maximum softmax probability: Hendrycks and Gimpel, ICLR 2017 (0.5: no better than chance).
    """

    error_correlation: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.8
    confidence_auroc: Annotated[float, Field(gt=0.5, lt=1, strict=True)] = 0.85


@dataclass(frozen=True)
class Scenario:
    """Everything a run needs but the trace, the policy and the seed.

    ``models`` are those of all pools in order of first mention; exactly one of ``load_machines`` and ``rate_scale`` is
    set; ``digest`` is the SHA-256 of the resolved content: file, prices and profile rows used.
    """

    name: str
    classes: tuple[RequestClass, ...]
    pools: tuple[Pool, ...]
    models: tuple[Model, ...]
    interval_s: float = 10.0
    warmup_s: float = 600.0
    load_machines: float | None = None
    rate_scale: float | None = None
    prices: str = "aws_us_east_1"
    profile: str = "cpu"
    vm: VmPhysics = VmPhysics()
    function: FunctionPhysics = FunctionPhysics()
    spot: SpotPhysics = SpotPhysics()
    service: ServicePhysics = ServicePhysics()
    correctness: CorrectnessPhysics = CorrectnessPhysics()
    share_drift: float = 0.0
    digest: str = ""

    @property
    def accuracy_pct(self) -> np.ndarray:
        """Return the models' accuracies, shape [M], percent."""
        return np.array([m.accuracy_pct for m in self.models])


@dataclass(frozen=True)
class _Workload:
    share_drift: Spread = 0.0


class _Pool(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Name
    resource: str
    market: Literal["on_demand", "spot"] = "on_demand"
    models: Annotated[list[str], Field(min_length=1)]
    threads: Count = 1
    memory_mb: Positive | None = None
    max_machines: Count = 2000


class _File(BaseModel):
    """A scenario file: the keys of a :class:`Scenario` before its pools are resolved."""

    model_config = ConfigDict(extra="forbid")
    name: str
    classes: Annotated[tuple[RequestClass, ...], Field(min_length=1)]
    pools: Annotated[tuple[_Pool, ...], Field(min_length=1)]
    interval_s: Annotated[SomeSeconds, Field(ge=SHORTEST_INTERVAL_S)] = 10.0
    warmup_s: Seconds = 600.0
    load_machines: Positive | None = None
    rate_scale: Positive | None = None
    prices: str = "aws_us_east_1"
    profile: str = "cpu"
    vm: VmPhysics = VmPhysics()
    function: FunctionPhysics = FunctionPhysics()
    spot: SpotPhysics = SpotPhysics()
    service: ServicePhysics = ServicePhysics()
    correctness: CorrectnessPhysics = CorrectnessPhysics()
    workload: _Workload = _Workload()


def load_scenario(name_or_path: str, overrides: Mapping[str, object] | None = None) -> Scenario:
    """Read a scenario and resolve it against catalogue and profile.

    Args:
        name_or_path: a name of :func:`scenario_names` or the path of a TOML file.
        overrides: dotted keys as in the file, list entries by name (``"vm.boot_s": 200.0``,
            ``"classes.strict.slo_s": 1.0``, ``"load_machines": 50``); None removes a key or an entry of a list
            (``"pools.fn": None``); ``load_machines`` and ``rate_scale`` displace each other.

    Raises:
        InputError: naming file and key, with what would be right.
    """
    path = FOLDER / f"{name_or_path}.toml"
    if not path.is_file() and not (path := Path(name_or_path)).is_file():
        raise InputError(f"scenario {name_or_path!r}: no such file; scenarios by name: {', '.join(scenario_names())}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not TOML: {' '.join(str(error).split())}") from error
    try:
        for key, value in (overrides or {}).items():
            _override(raw, key, value)
        return _resolve(_parse(raw))
    except InputError as error:
        raise InputError(f"{path.name if path.parent == FOLDER else path}: {error}") from None


def scenario_names() -> list[str]:
    """Return the scenarios that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != "distribution")  # of ``situations``


def _override(raw: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            node = node[_named(node, part, key)]
        else:
            node = node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise InputError(f"override {key}: {part!r} has no keys below it")
    if isinstance(node, list):
        if value is not None:
            raise InputError(f"override {key}: name a key of the entry, such as {key}.name")
        del node[_named(node, last, key)]
        return
    if value is None:
        node.pop(last, None)
        return
    node[last] = copy.deepcopy(value)
    if not parents and last in ("load_machines", "rate_scale"):  # they exclude each other: the override decides
        node.pop({"load_machines": "rate_scale", "rate_scale": "load_machines"}[last], None)


def _named(entries: list[Any], name: str, key: str) -> int:
    """Return where in a list an override's entry stands."""
    names = [str(entry.get("name")) if isinstance(entry, dict) else "" for entry in entries]
    if name not in names:
        raise InputError(f"override {key}: there is no {name!r}, only {', '.join(names)}")
    return names.index(name)


def _parse(raw: dict[str, Any]) -> _File:
    """Check each key, then the keys together; an unknown key is reported before, a missing one after all else."""
    try:
        parsed = _File.model_validate(raw)
    except ValidationError as error:
        order = {"extra_forbidden": 0, "unexpected_keyword_argument": 0, "missing": 2}
        raise InputError(_explain(min(error.errors(), key=lambda e: order.get(e["type"], 1)), raw)) from None
    if (parsed.load_machines is None) == (parsed.rate_scale is None):
        state = "neither is" if parsed.load_machines is None else "both are"
        raise InputError(f"load_machines, rate_scale: {state} set; set one of them")
    for what, entries in (("classes", parsed.classes), ("pools", parsed.pools)):
        seen = [entry.name for entry in entries]
        if twice := sorted(name for name in seen if seen.count(name) > 1):
            raise InputError(f"{what}.name = {twice[0]!r} appears twice; names must differ")
    if abs((total := sum(c.share for c in parsed.classes)) - 1) > SHARE_TOLERANCE:
        raise InputError(f"classes.share: the shares sum to {total:.9g}, not to 1")
    for c in parsed.classes:
        mean, least = c.mean_accuracy_pct, c.min_accuracy_pct
        if mean is not None and mean < least:
            raise InputError(f"classes.{c.name}.mean_accuracy_pct = {mean:g} is below min_accuracy_pct = {least:g}")
    return parsed


def _explain(error: Any, raw: dict[str, Any]) -> str:
    """Return a line for pydantic's error: the key, entries of lists by name, and what would be right."""
    parts = [str(step) for step in error["loc"]]
    if parts[0] in ("classes", "pools") and len(parts) > 1:
        entry = raw[parts[0]][error["loc"][1]]
        parts[1] = str(entry.get("name", parts[1])) if isinstance(entry, dict) else parts[1]
    key = ".".join(parts)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section: Any = _File
        if len(parts) > 1:
            section = _File.model_fields[parts[0]].annotation
            section = (get_args(section) or (section,))[0]
        return f"unknown key {key}; known here: {', '.join(k for k in section.__annotations__ if k != 'model_config')}"
    if error["type"] == "missing":
        return f"key {key} is missing"
    text = error["msg"].removeprefix("Value error, ").replace("tuple", "list")
    return f"{key} = {error['input']!r}: {text[0].lower()}{text[1:]}"


def _resolve(parsed: _File) -> Scenario:
    try:
        prices, profile = catalog.load_prices(parsed.prices), catalog.load_profile(parsed.profile)
    except InputError as error:
        raise InputError(f"prices, profile: {error}") from None
    names = list(dict.fromkeys(name for pool in parsed.pools for name in pool.models))
    models = tuple(_model(name, profile, parsed) for name in names)
    pools = tuple(_pool(pool, names, prices, profile, parsed) for pool in parsed.pools)
    best = max(models, key=lambda model: model.accuracy_pct)
    for c in parsed.classes:
        for key, floor in (("min", c.min_accuracy_pct), ("mean", c.mean_accuracy_pct or 0.0)):
            if floor > best.accuracy_pct:
                raise InputError(
                    f"classes.{c.name}.{key}_accuracy_pct = {floor:g}: no model of the pools reaches it; "
                    f"the best is {best.name} with {best.accuracy_pct:g}"
                )
    fields = dict(parsed) | {"pools": pools, "models": models, "share_drift": parsed.workload.share_drift}
    scenario = Scenario(**{key: value for key, value in fields.items() if key != "workload"})
    plain = json.dumps(asdict(scenario), sort_keys=True, default=lambda x: x.tolist())
    return replace(scenario, digest=hashlib.sha256(plain.encode()).hexdigest())


def _model(name: str, profile: pd.DataFrame, parsed: _File) -> Model:
    accuracy = catalog.accuracy_of(name)
    if accuracy is None and "accuracy_pct" in profile:  # a model of one's own
        stated = profile.loc[profile["model"] == name, "accuracy_pct"].dropna()
        accuracy = float(stated.iloc[0]) if len(stated) else None
    if accuracy is None or name not in set(profile["model"]):
        pool = next(pool.name for pool in parsed.pools if name in pool.models)
        known = ", ".join(m for m in dict.fromkeys(profile["model"]) if catalog.accuracy_of(m) is not None)
        at = f"pools.{pool}.models"
        right = f"catalogue and profile {parsed.profile} have {known}; one of your own needs accuracy_pct in its rows"
        raise InputError(f"{at}: unknown model {name!r}; {right}")
    return Model(name, accuracy)


def _pool(pool: _Pool, names: list[str], prices: pd.DataFrame, profile: pd.DataFrame, parsed: _File) -> Pool:
    """Resolve a pool: price, slots, service table and memory."""
    at = f"pools.{pool.name}"
    if len(set(pool.models)) < len(pool.models):
        raise InputError(f"{at}.models: a model is named twice")
    if pool.resource not in prices.index:
        known = ", ".join(prices.index)
        raise InputError(f"{at}.resource = {pool.resource!r}: not in the price list, which has {known}")
    resource = prices.loc[pool.resource]
    function = resource["kind"] == "function"
    if wrong := {"market", "threads"} & pool.model_fields_set if function else {"memory_mb"} & pool.model_fields_set:
        kind = "a function" if function else "a machine"
        raise InputError(f"{at}.{min(wrong)}: {pool.resource} is {kind}, which takes no such key")
    if function and pool.memory_mb is None:
        raise InputError(f"{at}.memory_mb: missing; a function needs its memory, in MB")
    try:
        carried = [carry_profile(profile, m, resource, pool.threads, pool.memory_mb) for m in pool.models]
    except InputError as error:
        raise InputError(f"{at}: {error}") from None
    # a function and each accelerator of a machine serve one batch at a time
    gpus = max(1, int(np.nan_to_num(resource["accelerator_count"]))) if resource["accelerator"] else 0
    slots = 1 if function else gpus or int(resource["vcpu"]) // pool.threads
    memory = float(resource["memory_gib"]) * 1024 if pool.memory_mb is None else pool.memory_mb
    gpu_mb = float(resource["gpu_memory_gib"]) * 1024 * gpus if gpus else float("nan")
    most = _largest_batch(pool, carried, slots, memory if np.isnan(gpu_mb) else gpu_mb, profile)
    service = np.zeros((len(names), most + 1), dtype=np.int64)
    for name, rows in zip(pool.models, carried, strict=True):
        service[names.index(name), 1:] = service_table(rows, most)
    believed = np.where(service > 0, np.maximum(np.rint(service * parsed.service.believed_factor), 1), 0)
    return Pool(
        pool.name, pool.resource, "function" if function else pool.market, tuple(map(names.index, pool.models)),
        slots, pool.threads, memory, pool.max_machines, *_prices(pool, resource, memory, parsed.function.price_factor),
        service, believed.astype(np.int64), tuple(str(rows["tag"].iloc[0]) for rows in carried),
    )  # fmt: skip


def _prices(pool: _Pool, resource: pd.Series, memory_mb: float, factor: float) -> tuple[float, float, float, float]:
    """Return the pool's four prices in US dollars, in the order of its fields (a GB of a function is 1,024 MB)."""
    if resource["kind"] == "function":
        gb_hours, keys = memory_mb / 1024 * 3600 * factor, ("provisioned_", "", "provisioned_duration_")
        kept, busy, busy_kept = (gb_hours * float(resource[f"{key}usd_per_gb_s"]) for key in keys)
        if np.isnan(kept + busy_kept):  # not in the list: one kept ready costs as one that is always busy
            kept, busy_kept = busy, 0.0
        return kept, busy, busy_kept, float(resource["usd_per_request"]) * factor
    price = float(resource["spot_usd_per_hour" if pool.market == "spot" else "usd_per_hour"])
    if np.isnan(price):
        raise InputError(f"pools.{pool.name}.market = 'spot': the price list has no spot price of {pool.resource}")
    return price, 0.0, 0.0, 0.0


def _largest_batch(pool: _Pool, carried: list[pd.DataFrame], slots: int, limit_mb: float, profile: pd.DataFrame) -> int:
    """Return the largest batch that every resident model was profiled with and that fits the memory.

    Each of the machine's workers holds the runtime, its own copy of every resident model and the intermediate results
    of one batch. A function holds one model. What is not known (published models) counts as nothing.
    """
    weights = np.nan_to_num([weights_mb(name) for name in pool.models])
    resident = runtime_mb(profile) + (np.max(weights) if pool.memory_mb is not None else np.sum(weights))
    tables = [rows.set_index("batch")["activation_mb"].fillna(0.0) for rows in carried]
    need = {
        int(b): slots * (resident + max(float(mb[b]) for mb in tables))
        for b in tables[0].index if all(b in mb.index for mb in tables)
    }  # fmt: skip
    if not need:
        raise InputError(f"pools.{pool.name}.models: no batch size was profiled for all of them")
    fitting = [b for b, mb in need.items() if mb <= limit_mb]
    if not fitting:
        raise InputError(
            f"pools.{pool.name}.models: {slots} worker(s) with {', '.join(pool.models)} need "
            f"{next(iter(need.values())):,.0f} MB, {pool.resource} has {limit_mb:,.0f} MB; take fewer models, more "
            "threads or more memory"
        )
    return max(fitting)


def service_table(rows: pd.DataFrame, most: int) -> np.ndarray:
    """Return service times of batches 1..most, int64 nanoseconds: linear between profiled batches, never decreasing."""
    ns = np.interp(np.arange(1, most + 1), rows["batch"], rows["service_ms"].to_numpy() * 1e6)
    return np.maximum.accumulate(np.maximum(np.rint(ns).astype(np.int64), 1))
