"""Carries measured service times to resources of a cloud. Every assumption about hardware is in this file.

:func:`carry_profile` is the one way from a profile to a resource; notebook 01 shows how far off it is where published
measurements exist.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from selfserve.catalog import ROOT, load_facts, load_models, read_table
from selfserve.errors import InputError

GPU_BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes offered on a GPU whose latency comes from published curves."""
WEIGHT_BYTES = 4
"""Bytes of a parameter: single precision."""


def carry_profile(
    profile: pd.DataFrame, model: str, resource: pd.Series, threads: int = 1, memory_mb: float | None = None
) -> pd.DataFrame:
    """Return a model's service times on a resource: ``batch, service_ms, activation_mb, tag``, ascending by batch.

    A **VM** runs ``vcpu / threads`` workers at once, which is how the profile was measured (all slots busy): its time
    is the profile's, over the speed of the family's vCPU (``families.csv``; burstable machines get the share they may
    use for ever). Numbers of threads that were not measured follow Amdahl's law through one and two threads.

    A **function** of ``m`` MB has ``v = m / mb_per_vcpu`` vCPUs (AWS Lambda Developer Guide: CPU is proportional to
    memory, one vCPU at 1,769 MB). Below one vCPU it gets that share of a core's time: ``t(1 thread) / v``. Above, the
    model's own parallel share p (Amdahl, from its rows with one and two threads) limits the gain:
    ``t(1 thread) ((1 - p) + p / v)``. Both over the function's vCPU speed.

    A **GPU** takes measured rows of its own (``device`` cuda, ``machine`` naming the accelerator) where the profile has
    them; else the published latency of resnet50 by batch size (``gpu_batches.csv``, NVIDIA DeepLearningExamples, mixed
    precision), read at the equivalent number of resnet50 images: ``t(b) = curve(b w / s)`` with w the model's work in
    resnet50 images (:func:`gpu_work`) and s the accelerator's speed over that of the curve (MLPerf offline throughput,
    ``accelerators.csv``). Below one image the curve is flat, because small kernels wait for their launch.

    Args:
        profile: rows of :func:`selfserve.catalog.load_profile`.
        model: a model of the profile.
        resource: a row of :func:`selfserve.catalog.load_prices`.
        threads: threads of a worker (VMs only).
        memory_mb: memory of a function, MB.

    Raises:
        InputError: for a model that the profile lacks, threads that a VM has not, or a memory that the function cannot
            have.
    """
    rows = profile[profile["model"] == model]
    if rows.empty:
        raise InputError(f"model {model!r} is not in the profile, which has {', '.join(sorted(set(profile['model'])))}")
    if resource["kind"] != "function" and resource["accelerator"]:
        return _carry_gpu(rows, model, str(resource["accelerator"]))
    if _cpu_rows(rows, 1).empty:
        raise InputError(f"model {model!r}: the profile has no rows of it for one thread of a CPU")
    if resource["kind"] == "function":
        return _carry_function(rows, model, resource, memory_mb)
    vcpu = int(resource["vcpu"])
    if not 1 <= threads <= vcpu:
        raise InputError(f"threads {threads}: {resource.name} has {vcpu} vCPUs")
    family, exact = _family(str(resource.name)), _cpu_rows(rows, threads)
    ms = _cpu_rows(rows, 1)["p50_ms"] * _amdahl(rows, threads) if exact.empty else exact["p50_ms"]
    return _table(rows, model, ms / (family["vcpu_speed"] * family["sustained_share"]))


def single_ms(
    profile: pd.DataFrame, model: str, resource: pd.Series, threads: int = 1, memory_mb: float | None = None
) -> float:
    """Return the time of a lone request (the first row of :func:`carry_profile`, whose arguments it takes), ms."""
    return float(carry_profile(profile, model, resource, threads, memory_mb)["service_ms"].iloc[0])


def weights_mb(model: str) -> float:
    """Return the size of a model's weights in memory, MB of 2^20 bytes (NaN if its parameters are not known)."""
    models = load_models()
    return float(models.at[model, "parameters"]) * WEIGHT_BYTES / 2**20 if model in models.index else float("nan")


def runtime_mb(profile: pd.DataFrame) -> float:
    """Return what a worker process holds before its models, MB: the most that the profile saw."""
    seen = profile.loc[profile["device"] == "cpu", "runtime_mb"] if "runtime_mb" in profile else pd.Series(dtype=float)
    return float(seen.max()) if seen.notna().any() else 0.0


def scale_by_gmacs(measured: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Return ``scaled`` rows for the catalogued models that were not measured: median time per GMAC times GMACs.

    The median is over the measured models, for each number of threads and batch; memory scales the same way.
    """
    known = measured[(measured["device"] == "cpu") & measured["model"].isin(models.index)].copy()
    gmacs = models["gmacs"].reindex(known["model"]).to_numpy()
    weights = models["parameters"].reindex(known["model"]).to_numpy() * WEIGHT_BYTES / 2**20
    known["ms_per_gmac"] = known["p50_ms"] / gmacs
    known["mb_per_gmac"] = (known["memory_mb"] - known["runtime_mb"] - weights) / gmacs
    typical = known.groupby(["threads", "batch"], as_index=False)[["ms_per_gmac", "mb_per_gmac", "runtime_mb"]].median()
    rows = []
    for model in models.index.difference(measured["model"], sort=False):
        size = models.loc[model]
        row = typical[["threads", "batch"]].assign(model=model, device="cpu", tag="scaled")
        row = row.assign(p50_ms=typical["ms_per_gmac"] * size["gmacs"], runtime_mb=typical["runtime_mb"])
        held_mb = typical["runtime_mb"] + size["parameters"] * WEIGHT_BYTES / 2**20
        rows.append(row.assign(memory_mb=held_mb + typical["mb_per_gmac"] * size["gmacs"]))
    return pd.concat(rows, ignore_index=True) if rows else measured.iloc[:0]


def published_rows() -> pd.DataFrame:
    """Return ``published`` rows, batch 1, for the published models that torchvision lacks.

    Cocktail (NSDI 2022, Table 1) states the latency on c5.xlarge (4 vCPUs) and how many inferences of a model it holds
    at once; one inference therefore takes ``4 latency / concurrent`` vCPU-milliseconds of the busy machine.
    """
    table = load_facts("published_models")
    table = table[table["torchvision"].isna() & table["concurrent"].notna()].reset_index(drop=True)
    work_ms = 4 * table["latency_ms"] / table["concurrent"]
    return table[["model"]].assign(device="cpu", threads=1, batch=1, p50_ms=work_ms, tag="published")


def _family(resource: str) -> pd.Series:
    """Return speed and sustained share of the family whose prefix is the longest that fits; 1 and 1 for a stranger."""
    table = read_table(ROOT / "families.csv", ("prefix",), ("vcpu_speed", "sustained_share")).set_index("prefix")
    fits = [prefix for prefix in table.index if resource.startswith(prefix)]
    return table.loc[max(fits, key=len)] if fits else pd.Series({"vcpu_speed": 1.0, "sustained_share": 1.0})


def _cpu_rows(rows: pd.DataFrame, threads: int) -> pd.DataFrame:
    return rows[(rows["device"] == "cpu") & (rows["threads"] == threads)].set_index("batch").sort_index()


def _amdahl(rows: pd.DataFrame, vcpu: float) -> pd.Series:
    """Return time with ``vcpu`` processors over time with one, by batch (Amdahl's law, p from one and two threads)."""
    one, two = _cpu_rows(rows, 1)["p50_ms"], _cpu_rows(rows, 2)["p50_ms"]
    parallel = (2 * (1 - two / one)).reindex(one.index).clip(0, 1).fillna(0.0)  # none is claimed without a measurement
    return (1 - parallel) + parallel / vcpu


def _carry_function(rows: pd.DataFrame, model: str, resource: pd.Series, memory_mb: float | None) -> pd.DataFrame:
    low, high = resource["memory_min_mb"], resource["memory_max_mb"]
    if memory_mb is None or not low <= memory_mb <= high:
        raise InputError(f"memory_mb {memory_mb}: {resource.name} takes {low:g} to {high:g} MB")
    vcpu = memory_mb / resource["mb_per_vcpu"]
    factor = _amdahl(rows, vcpu) if vcpu > 1 else 1 / vcpu
    speed = _family(str(resource.name))["vcpu_speed"]
    return _table(rows, model, _cpu_rows(rows, 1)["p50_ms"] * factor / speed)


def _carry_gpu(rows: pd.DataFrame, model: str, accelerator: str) -> pd.DataFrame:
    machine = rows["machine"].astype(str) if "machine" in rows else pd.Series("", index=rows.index)
    own = rows[(rows["device"] == "cuda") & (rows["threads"] == 1) & (machine.map(_accelerator_of) == accelerator)]
    if len(own):
        return _table(rows, model, own.set_index("batch")["p50_ms"].sort_index())
    published = accelerator in set(load_facts("gpu_batches")["accelerator"]) and model == "resnet50"
    ms = pd.Series(gpu_curve(accelerator, GPU_BATCHES, gpu_work(model)), index=GPU_BATCHES)
    return _table(rows, model, ms, "published" if published else "scaled")


def _accelerator_of(machine: str) -> str:
    """Return the accelerator of :file:`accelerators.csv` that a device's name means, by whole words: L4 is no L40S."""
    words = set(re.split(r"[^A-Za-z0-9]+", machine))
    known = [name for name in load_facts("accelerators")["accelerator"] if set(name.split("-")) <= words]
    return max(known, key=len, default="")


def gpu_curve(accelerator: str, batches: Sequence[int], work: float) -> np.ndarray:
    """Return the latency in ms of whole batches of a model whose image costs ``work`` images of resnet50.

    Raises:
        InputError: for an accelerator that no published curve stands for.
    """
    known = load_facts("accelerators").set_index("accelerator")
    if accelerator not in known.index:
        names = ", ".join(known.index)
        raise InputError(f"accelerator {accelerator!r}: no published latency by batch; known are {names}")
    stands_for = known.at[accelerator, "curve"]
    rate = known["offline_int8_per_s"] / known["device_count"]
    speed = 1.0 if np.isnan(rate[accelerator]) else rate[accelerator] / rate[stands_for]
    curves = load_facts("gpu_batches")
    curve = curves[curves["accelerator"] == stands_for].sort_values("batch")
    points, ms = curve["batch"].to_numpy(), np.maximum.accumulate(curve["mean_ms"].to_numpy())
    images = np.array(batches) * work / speed
    return np.where(images > points[-1], ms[-1] * images / points[-1], np.interp(images, points, ms))


def gpu_work(model: str, by: str = "published") -> float:
    """Return a model's work on a GPU in images of resnet50.

    With ``by="published"`` it is the ratio of the times of an image in large batches published for one other GPU
    (PyTorch Image Models, RTX 3090; ``reference_latency.csv``) where the model is listed there, in proportion to the
    pixels if the image size differs; otherwise, and with ``by="gmacs"``, the ratio of GMACs.

    Raises:
        InputError: if the catalogue knows neither.
    """
    table, models = load_facts("reference_latency"), load_models()
    known = table[table["kind"] == "gpu_ratio"].set_index("model")
    if by == "published" and model in known.index:
        pixels = (models["input_px"].reindex(known.index) / known["image_px"]) ** 2
        image_ms = known["latency_ms"] / known["batch"] * pixels
        return float(image_ms[model] / image_ms["resnet50"])
    if model not in models.index:
        raise InputError(f"model {model!r}: its GMACs are not known, so that it cannot be carried to a GPU")
    return float(models.at[model, "gmacs"] / models.at["resnet50", "gmacs"])


def _table(rows: pd.DataFrame, model: str, ms: pd.Series, tag: str | None = None) -> pd.DataFrame:
    """Assemble the answer; beyond the largest measured batch, intermediate results grow linearly with the batch."""
    one = _cpu_rows(rows, 1)
    if {"memory_mb", "runtime_mb"} <= set(one) and one["memory_mb"].notna().any():
        above = (one["memory_mb"] - one["runtime_mb"] - weights_mb(model)).clip(lower=0)
        activation = np.interp(ms.index, above.index, above)
        activation = np.where(ms.index > above.index[-1], above.iloc[-1] * ms.index / above.index[-1], activation)
    else:
        activation = np.full(len(ms), np.nan)
    columns = {"batch": ms.index, "service_ms": ms.to_numpy(), "activation_mb": activation}
    return pd.DataFrame(columns).assign(tag=tag or rows["tag"].iloc[0])
