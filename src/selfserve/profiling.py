"""Measures models on this machine: real forward passes with every slot of the machine busy.

A machine of C cores has ``C // threads`` slots, each a process of its own with ``torch.set_num_threads(threads)``; all
run the same model and batch at the same time, because that is how a serving machine is used and because shared caches,
memory bandwidth and clock make a lone worker look faster than it will be. Weights are random: they cost what trained
ones cost (values too small for the normal range are flushed to zero, since only random weights produce them).
"""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from selfserve.catalog.vision import build, import_torchvision
from selfserve.errors import InputError

PROFILED = (
    "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v3_small", "mobilenet_v2", "mobilenet_v3_large",
    "efficientnet_b0", "regnet_y_800mf", "resnet18", "resnet50", "resnext50_32x4d", "inception_v3", "densenet121",
    "densenet201", "convnext_tiny", "swin_t", "vgg16", "convnext_base",
)  # fmt: skip
"""The models of the committed profile."""
QUIET = 0.95
"""CPU share above which a cell counts as measured on a quiet machine."""
_DIGITS = {"p50_ms": 4, "p99_ms": 4, "mean_ms": 4, "worst_over_best_block": 3, "cpu_share": 3, "load_ms": 1,
           "runtime_mb": 1, "memory_mb": 1, "load_1m": 2}  # fmt: skip
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""glibc returns large buffers to the kernel after each pass and pays page faults for them in the next; a serving
process keeps them (PyTorch's tuning guide: use an allocator that does)."""


@dataclass(frozen=True)
class _Job:
    """What one worker process measures."""

    model: str
    file: str
    input_px: int
    device: str
    threads: int
    batches: tuple[int, ...]
    rounds: int
    block_s: float
    least_runs: int


def profile(
    models: Sequence[str] = PROFILED, device: str = "cpu", threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1, 2, 4, 8, 16), *, rounds: int = 2, block_s: float = 0.5, least_runs: int = 2,
    attempts: int = 3, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Return one row for each model, number of threads and batch size.

    Each cell is measured in ``rounds`` blocks spread over time, each at least ``block_s`` seconds and ``least_runs``
    runs long; the row holds the block with the least median, so that another program's burst on a shared machine does
    not enter. Times are whole-batch latencies in milliseconds over all slots; ``cpu_share`` is the CPU time that the
    workers got over the time they wanted, and a cell where it is below ``QUIET`` (the machine was shared) is measured
    again, up to ``attempts`` times. ``memory_mb`` is a worker's resident peak (CPU) or the allocator's peak (CUDA),
    ``runtime_mb`` what it held before the model came.

    Raises:
        InputError: for an unknown model, device or batch, or threads that the machine has not.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _check(models, device, threads, batches, cores)
    rows: list[dict[str, Any]] = []
    bar = tqdm([(m, t) for m in models for t in threads], desc="profile", disable=not progress, mininterval=1)
    with tempfile.TemporaryDirectory() as folder:
        for model, thread in bar:
            bar.set_postfix_str(f"{model}, {thread} thread(s)")
            slots = 1 if device == "cuda" else max(1, cores // thread)
            weights = import_torchvision().models.get_model_weights(model).DEFAULT
            pixels = int(weights.transforms.keywords["crop_size"])  # the side of the image they were made for
            job = _Job(model, _save_model(model, Path(folder)), pixels, device, thread, tuple(sorted(set(batches))),
                       rounds, block_s, least_runs)  # fmt: skip
            about = _machine(device) | {"cores": cores, "load_1m": os.getloadavg()[0]}
            rows += [row | about for row in _measure_again(job, slots, attempts)]
    return pd.DataFrame(rows).round(_DIGITS)


def _measure_again(job: _Job, slots: int, attempts: int) -> list[dict[str, Any]]:
    """Measure the job's batches, those disturbed by other programs again; keep each batch's quietest attempt."""
    best: dict[int, dict[str, Any]] = {}
    for _ in range(attempts):
        noisy = tuple(b for b in job.batches if b not in best or best[b]["cpu_share"] < QUIET)
        if not noisy or (best and job.device == "cuda"):  # a GPU's driver process waits: its share says nothing
            break
        for batch, blocks in _run_slots(replace(job, batches=noisy), slots).items():
            row = _row(job, slots, batch, blocks)
            best[batch] = max(best.get(batch, row), row, key=lambda r: r["cpu_share"])
    return [best[batch] for batch in job.batches]


def _machine(device: str) -> dict[str, str]:
    """Return what the rows say of the machine: processor, torch version and its vector instructions, day (UTC)."""
    import torch

    machine = _cpu_name() if device == "cpu" else torch.cuda.get_device_name()
    capability = torch.backends.cpu.get_cpu_capability() if device == "cpu" else f"CUDA {torch.version.cuda}"
    day = datetime.now(UTC).date().isoformat()
    return {"machine": machine, "torch": f"{torch.__version__} {capability}", "date": day}


def _cpu_name() -> str:
    """Return the processor's name with family and model where /proc tells them (clouds often hide the full name)."""
    try:
        facts = _proc("cpuinfo")
    except OSError:
        return platform.processor() or platform.machine()
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def _proc(file: str) -> dict[str, str]:
    """Return the ``key: value`` lines of a file of /proc."""
    lines = (line.partition(":") for line in Path("/proc", file).read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _check(models: Sequence[str], device: str, threads: Sequence[int], batches: Sequence[int], cores: int) -> None:
    """Raise InputError for what cannot be measured here."""
    import torch

    known = import_torchvision().models.list_models(module=import_torchvision().models)
    for model in models:
        if model not in known:
            raise InputError(f"profile: unknown model {model!r}; torchvision has {', '.join(known[:4])}, ..")
    if device not in ("cpu", "cuda"):
        raise InputError(f"profile: device {device!r} is not cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        needs = "a CUDA build of torch and a driver are needed"
        raise InputError(f"profile: device cuda: torch finds no GPU here ({needs})")
    for what, values in (("batches", batches), ("threads", threads)):
        if not values or any(int(v) != v or v < 1 for v in values):
            raise InputError(f"profile: {what} {list(values)} must be whole numbers of at least 1")
    if max(threads) > cores:
        raise InputError(f"profile: threads {max(threads)}: this machine has {cores} processors")


def _save_model(model: str, folder: Path) -> str:
    """Write the model once for all workers, who time loading it."""
    import torch

    path = folder / f"{model}.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(build(model), path)
    return str(path)


def _run_slots(job: _Job, slots: int) -> dict[int, list[list[dict[str, Any]]]]:
    """Run the job in ``slots`` processes at once; return batch -> blocks -> one dict a slot."""
    context = mp.get_context("spawn")
    before = {key: os.environ.get(key) for key in _ALLOCATOR}
    os.environ.update(_ALLOCATOR)  # read by the C library when a worker starts
    try:
        with ProcessPoolExecutor(slots, context, _share, (context.Barrier(slots),)) as pool:
            futures = [pool.submit(_serve, job) for _ in range(slots)]
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    errors = [error for future in futures if (error := future.exception())]
    if any(isinstance(error, BrokenProcessPool) for error in errors):  # killed for its memory, say
        raise RuntimeError(f"profile: a worker measuring {job.model} died; is there enough memory?")
    if errors:  # a broken barrier only says that another worker failed first
        raise min(errors, key=lambda error: isinstance(error, BrokenBarrierError))
    answers = [future.result() for future in futures]
    return {b: [[a[b][r] for a in answers] for r in range(job.rounds)] for b in job.batches}


_shared: dict[str, Any] = {}
"""What a worker process holds beside its job: the barrier at which all slots meet, so that each has one worker."""


def _share(barrier: Any) -> None:
    _shared["barrier"] = barrier


def _serve(job: _Job) -> dict[int, list[dict[str, Any]]]:
    """Measure in a worker process: batch -> list of blocks."""
    try:
        return _measure(job, _shared["barrier"])
    except Exception:
        _shared["barrier"].abort()
        raise


def _measure(job: _Job, barrier: Any) -> dict[int, list[dict[str, Any]]]:
    import torch

    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(True)
    import_torchvision()
    barrier.wait()
    runtime_mb = _memory_mb(job.device)
    barrier.wait()
    start = time.perf_counter()
    network = torch.load(job.file, weights_only=False)  # this program wrote the file
    network = network.eval().to(job.device, memory_format=torch.channels_last)
    load_s = time.perf_counter() - start
    blocks: dict[int, list[dict[str, Any]]] = {batch: [] for batch in job.batches}
    with torch.inference_mode():
        for _ in range(job.rounds):
            for batch in job.batches:
                block = _block(job, network, batch, barrier)
                blocks[batch].append(block | {"load_s": load_s, "runtime_mb": runtime_mb})
    return blocks


def _block(job: _Job, network: Any, batch: int, barrier: Any) -> dict[str, Any]:
    """Time forward passes of one batch size for ``block_s`` seconds, after a warm-up pass, in step with other slots."""
    import torch

    def answer() -> None:
        network(images)
        if job.device == "cuda":
            torch.cuda.synchronize()  # its kernels run behind the program's back

    images = torch.rand(batch, 3, job.input_px, job.input_px, device=job.device)
    images = images.contiguous(memory_format=torch.channels_last)
    gc.collect()
    _forget_peak(job.device)
    answer()
    times: list[float] = []
    barrier.wait()
    cpu, begin = time.process_time(), time.perf_counter()
    while len(times) < job.least_runs or time.perf_counter() - begin < job.block_s:
        start = time.perf_counter()
        answer()
        times.append(time.perf_counter() - start)
    share = (time.process_time() - cpu) / ((time.perf_counter() - begin) * job.threads)
    return {"times": times, "cpu_share": share, "memory_mb": _memory_mb(job.device, peak=True)}


def _forget_peak(device: str) -> None:
    """Start the peak of memory anew (Linux: writing 5 to clear_refs resets VmHWM; see proc(5))."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process so far
            Path("/proc/self/clear_refs").write_text("5")


def _memory_mb(device: str, peak: bool = False) -> float:
    """Return resident memory (CPU) or the allocator's (CUDA) in MB of 2^20 bytes, now or at its peak."""
    if device == "cuda":
        import torch

        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    try:
        return int(_proc("self/status")["VmHWM" if peak else "VmRSS"].split()[0]) / 1024
    except (OSError, KeyError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage / (2**20 if platform.system() == "Darwin" else 1024)


def _row(job: _Job, slots: int, batch: int, blocks: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Summarise the block with the least median over all its slots."""
    pooled = [np.concatenate([slot["times"] for slot in block]) * 1e3 for block in blocks]
    medians = [float(np.median(times)) for times in pooled]
    best = int(np.argmin(medians))
    times, block = pooled[best], pd.DataFrame(blocks[best])
    row = {"model": job.model, "device": job.device, "threads": job.threads, "slots": slots, "batch": batch}
    row |= {"p50_ms": medians[best], "p99_ms": np.quantile(times, 0.99), "mean_ms": times.mean(), "runs": len(times)}
    row |= {"worst_over_best_block": max(medians) / medians[best], "cpu_share": block["cpu_share"].mean()}
    row |= {"load_ms": block["load_s"].median() * 1e3, "runtime_mb": block["runtime_mb"].max()}
    memory_mb = max(slot["memory_mb"] for slot in blocks[0])  # later rounds hold larger batches' memory
    return row | {"memory_mb": memory_mb, "tag": "measured"}
