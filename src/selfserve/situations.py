"""Situations: scenario and load together, sampled by seed from ``scenarios/distribution.toml``.

Training, validation and evaluation never meet: their seeds are disjoint, their windows come from the trace's own part
of the split (:func:`selfserve.traces.split_ranges`), and the families ``mmpp`` and ``azure_code`` are only evaluated.
"""

from __future__ import annotations

import json
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.signal import lfilter

from selfserve.errors import InputError
from selfserve.scenario import NS, Scenario, load_scenario
from selfserve.traces import SOURCES, Trace, make_trace, split_ranges, trace_file
from selfserve.workload import Workload, load_trace, make_workload

Split = Literal["train", "validate", "evaluate"]
P99 = 2.33
MEAN_RATE = 200.0
"""Requests/s of a generated load before a scenario scales it: large enough that thinning leaves it Poisson."""


@cache
def distribution() -> dict[str, Any]:
    """Return the committed ranges."""
    path = Path(__file__).parent / "scenarios" / "distribution.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Situation:
    """One scenario with the load it meets.

    Attributes:
        split: train, validate or evaluate.
        index: position in the split; with the split it says everything.
        seed: of all that is random here.
        base: the scenario file that ``overrides`` change: ``load_scenario(base, overrides)`` gives ``scenario``.
        overrides: dotted keys.
        scenario: the resolved scenario.
        family: ``WITS``, ``berkeley``, ``twitter``, ``azure_code``, ``flash_crowd``, ``smooth`` or ``mmpp``.
        source: the trace's name, ``-twin`` included where the real one is not there, or the family of a generated one.
        tags: for tables: market (on-demand, spot), boot, price, size, storms, belief, seen (whether trained on).
    """

    split: Split
    index: int
    seed: int
    base: str
    overrides: Mapping[str, object]
    scenario: Scenario
    family: str
    source: str
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        """Return the name that tables show, such as ``evaluate-12``."""
        return f"{self.split}-{self.index}"

    @property
    def windows(self) -> int:
        """Return how many windows the situation has."""
        return int(distribution()["window"]["windows"])

    def trace(self) -> Trace:
        """Return the whole trace, unscaled."""
        return _loaded(self.source) if self.family in SOURCES else _generated(self.family, self.seed)

    def window(self, i: int = 0) -> tuple[int, int]:
        """Return start and length of window i, seconds: one in each quarter of what the split owns.

        A short trace gets windows of half its part, which then overlap.

        Raises:
            InputError: there is no such window.
        """
        if not 0 <= i < self.windows:
            raise InputError(f"situation {self.name}: window {i}: right is 0 to {self.windows - 1}")
        trace, wanted = self.trace(), int(distribution()["window"]["length_s"])
        generated = (trace.seconds - self.windows * wanted, trace.seconds)
        a, b = split_ranges(trace)[self.split] if self.family in SOURCES else generated
        length = min(wanted, (b - a) // 2)
        apart = (b - a) / self.windows
        if apart < length:
            return a + int(i * (b - a - length) / (self.windows - 1)), length
        return a + int(i * apart + _rng(self.seed, f"window{i}").random() * (apart - length)), length

    def workload(self, i: int = 0) -> Workload:
        """Return window i with the history before it."""
        start, length = self.window(i)
        return make_workload(self.trace(), self.scenario, start, length, self.seed)


def sample(
    split: Split, index: int, *, machines: float | None = None, at_most: float = inf, twins: bool = False
) -> Situation:
    """Return situation ``index`` of a split.

    Args:
        split: train, validate or evaluate.
        index: from 0; families take turns, and every third situation has spot machines.
        machines: size of the fleet instead of the sampled one (the scaling figure).
        at_most: larger fleets are thinned to this size.
        twins: use the twins even where the real traces are at hand.

    Raises:
        InputError: no such split, or an index outside 0 to 999,999.
    """
    everything = distribution()
    if split not in everything["splits"]:
        raise InputError(f"split {split!r}: right is {', '.join(everything['splits'])}")
    if not 0 <= index < 1_000_000:
        raise InputError(f"situation {index} of {split}: right is 0 to 999999")
    own = everything["splits"][split]
    seed, family = own["first_seed"] + index, own["families"][index % len(own["families"])]
    spot = index % everything["market"]["spot_every"] == everything["market"]["spot_every"] - 1
    base = "spot" if spot else "standard"
    overrides = _overrides(seed, base, min(at_most, machines or _draw(seed, "machines", own["machines"])))
    overrides["name"] = f"{split}-{index}"
    scenario = load_scenario(base, overrides)
    twin = family in SOURCES and (twins or not trace_file(family).is_file())
    source = f"{family}-twin" if twin else family
    tags = _tags(scenario, overrides, spot, family in everything["splits"]["train"]["families"])
    return Situation(split, index, seed, base, overrides, scenario, family, source, tags)


def _rng(seed: int, key: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(key.encode())]))


def _draw(seed: int, key: str, wanted: Mapping[str, Any]) -> Any:
    """Return one draw from a range or a choice of ``distribution.toml``, to four significant digits."""
    rng = _rng(seed, key)
    if "choose" in wanted:
        return wanted["choose"][int(rng.integers(len(wanted["choose"])))]
    low, high = wanted["low"], wanted["high"]
    value = low * (high / low) ** rng.random() if wanted.get("log") else low + (high - low) * rng.random()
    return float(f"{value:.4g}")


def _overrides(seed: int, base: str, machines: float) -> dict[str, object]:
    """Return the dotted keys of a situation."""
    given = distribution()
    draw = {key: _draw(seed, key, wanted) for key, wanted in given["physics"].items()}
    provider = given["provider"]["options"][int(_rng(seed, "provider").integers(len(given["provider"]["options"])))]
    models = given["models"]["options"][int(_rng(seed, "models").integers(len(given["models"]["options"])))]
    pending = 17.0
    overrides: dict[str, object] = {
        "prices": provider["prices"],
        "load_machines": float(machines),
        "vm.pending_s": pending,
        "vm.boot_s": draw["ready_s"] - pending,
        "vm.boot_spread": draw["boot_spread"],
        "function.init_s": draw["init_s"],
        "service.spread": draw["service_spread"],
        "service.believed_factor": draw["believed_factor"],
        "workload.share_drift": draw["share_drift"],
        "pools.fn.resource": provider["function"],
        "pools.fn.memory_mb": provider["memory_mb"],
        "pools.fn.models": models,
    }
    pools = ("vm", "spot")[: 1 + (base == "spot")]
    for pool in pools:
        overrides |= {f"pools.{pool}.resource": provider["vm"], f"pools.{pool}.models": models}
    overrides |= limits(machines, *pools)
    if base == "spot":
        overrides |= _spot(seed, provider["notice_s"])
    resources = {k: v for k, v in overrides.items() if k == "prices" or k.startswith("pools.")}
    template = _template(base, json.dumps({k: v for k, v in resources.items() if not k.endswith("max_machines")}))
    overrides["function.price_factor"] = draw["function_price"] / price_ratio(template)
    return overrides | _classes(seed, template, draw["service_spread"])


def limits(machines: float, *pools: str) -> dict[str, object]:
    """Return the cloud's limits for a fleet of this size: soft ones, which large users have raised."""
    most = max(1000, int(10 * machines))
    own = {f"pools.{pool}.max_machines": max(2000, int(20 * machines)) for pool in pools}
    return {"function.concurrency": most, "function.burst_per_10s": most, **own}


def price_ratio(scenario: Scenario) -> float:
    """Return what a busy function costs over a busy machine slot for the second model's work."""
    vm, fn = scenario.pools[0], scenario.pools[-1]
    machine = vm.usd_per_hour / vm.slots * float(vm.service_ns[1, 1])
    return fn.usd_per_busy_hour * float(fn.service_ns[1, 1]) / machine


def _spot(seed: int, notice_s: float) -> dict[str, object]:
    given, length = distribution()["spot"], distribution()["window"]["length_s"]
    storms, count = [], _draw(seed, "storms", given["storms"])
    for i in range(count):
        keys = ("length_s", "interruptions_per_hour", "refused_share")
        lasts, rate, refused = (_draw(seed, f"storm{i}_{key}", given[f"storm_{key}"]) for key in keys)
        begin = 600.0 + (length - 600.0) / count * (i + _rng(seed, f"storm{i}").random())
        storms.append([round(begin, 1), lasts, rate, refused])
    for storm, after in pairwise(storms):
        storm[1] = min(storm[1], after[0] - storm[0])
    rate = _draw(seed, "interruptions_per_hour", given["interruptions_per_hour"])
    return {"spot.interruptions_per_hour": rate, "spot.notice_s": notice_s, "spot.storms": storms}


def _classes(seed: int, template: Scenario, spread: float) -> dict[str, object]:
    """Return shares, SLOs and accuracy demands; an SLO is at least what a function's p99 needs for the models asked."""
    given = distribution()["classes"]
    names, accuracy, fn = [c.name for c in template.classes], template.accuracy_pct, template.pools[-1]
    least = given["least_share"]
    weights = _rng(seed, "shares").dirichlet(np.full(len(names), 1.5))
    shares = [round(float(least + (1 - least * len(names)) * w), 4) for w in weights]
    shares[-1] = round(1 - sum(shares[:-1]), 4)
    overrides: dict[str, object] = {}
    for name, share in zip(names, shares, strict=True):
        own = given[name]
        floor = top = _draw(seed, f"{name}_floor", own["floor"])
        floor_pct = float(np.floor(accuracy[floor] * 10) / 10)
        mean_pct = None
        if "mean" in own:
            top = len(accuracy) - 1
            up = _draw(seed, f"{name}_mean", own["mean"])
            mean_pct = round(float(accuracy[floor] + up * (accuracy[top] - accuracy[floor])), 1)
        needs_s = 1.5 * (1 + P99 * spread) * float(fn.service_ns[top, 1]) / NS
        overrides |= {
            f"classes.{name}.share": share,
            f"classes.{name}.slo_s": max(_draw(seed, f"{name}_slo_s", own["slo_s"]), float(f"{needs_s:.4g}")),
            f"classes.{name}.min_accuracy_pct": floor_pct,
            f"classes.{name}.mean_accuracy_pct": mean_pct,
        }
    return overrides


@cache
def _template(base: str, resources: str) -> Scenario:
    """Return a scenario with these resources and models (dotted keys as JSON): few combinations, kept."""
    return load_scenario(base, json.loads(resources))


def _tags(scenario: Scenario, overrides: Mapping[str, Any], spot: bool, seen: bool) -> dict[str, str]:
    ready, machines = scenario.vm.pending_s + scenario.vm.boot_s, overrides["load_machines"]
    ratio = price_ratio(scenario)
    return {
        "market": "spot" if spot else "on-demand",
        "boot": "under 100 s" if ready < 100 else "100 s or more",
        "price": "functions under 3 x" if ratio < 3 else "functions 3 x or more",
        "size": "under 20" if machines < 20 else "20 to 60" if machines < 60 else "60 or more",
        "storms": "storms" if scenario.spot.storms else "calm",
        "belief": "right" if scenario.service.believed_factor == 1 else "20% wrong",
        "seen": "trained on" if seen else "never trained on",
    }


@cache
def _loaded(name: str) -> Trace:
    """Return a trace by its counts: scaled up hundredfold, exact times would say no more and cost seconds."""
    return make_trace(name, load_trace(name).counts)


@cache
def _generated(family: str, seed: int) -> Trace:
    """Return a generated load: ``history_s`` seconds and the windows after it."""
    shape, given = distribution()["window"], distribution()[family]
    seconds = shape["history_s"] + shape["windows"] * shape["length_s"]
    own = {key: _draw(seed, f"{family}_{key}", wanted) for key, wanted in given.items()}
    rng = _rng(seed, family)
    rate = {"flash_crowd": _flash_crowd, "smooth": _smooth, "mmpp": _mmpp}[family](seconds, own, rng)
    return make_trace(family, rng.poisson(rate * (MEAN_RATE / rate.mean())))


def _smooth(seconds: int, own: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Return a day's wave with noise that remembers a minute, requests/s relative to a mean of about 1."""
    wave = 1 + own["amplitude"] * np.sin(2 * np.pi * (np.arange(seconds) / 86400 + rng.random()))
    phi = np.exp(-1 / 60)
    noise = lfilter([np.sqrt(1 - phi * phi)], [1, -phi], rng.standard_normal(seconds))
    return wave * np.maximum(0.1, 1 + own["noise"] * noise)


def _flash_crowd(seconds: int, own: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Return a smooth load with crowds: each rises in a straight line and then decays exponentially."""
    rate, t = _smooth(seconds, own, rng), np.arange(seconds)
    begin = -own["decay_s"]
    while (begin := begin + rng.exponential(own["gap_s"])) < seconds:
        since = t - begin
        crowd = np.where(
            since < own["rise_s"], since / own["rise_s"], np.exp(-(since - own["rise_s"]) / own["decay_s"])
        )
        rate = rate + own["height"] * rng.uniform(0.5, 1.5) * np.where(since < 0, 0, crowd)
    return rate


def _mmpp(seconds: int, own: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Return a rate that is ``height`` while on and 1 while off, for exponential times."""
    n = 2 + int(4 * seconds / (own["on_s"] + own["off_s"]))
    stays = np.ravel([rng.exponential(own["on_s"], n), rng.exponential(own["off_s"], n)], order="F")
    on = np.searchsorted(np.cumsum(stays), np.arange(seconds), side="right") % 2 == 0
    return np.where(on, own["height"], 1.0)
