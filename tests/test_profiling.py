"""Measuring models: real rows of a small model, usable at once in a scenario, and wrong requests."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from selfserve.errors import InputError
from selfserve.profiling import profile
from selfserve.scenario import load_scenario

QUICK = {"rounds": 1, "block_s": 0.02, "least_runs": 2, "attempts": 1, "progress": False}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return profile(["mobilenet_v3_small"], threads=(1,), batches=(2, 1), **QUICK)


def test_rows_describe_the_measurement_and_the_machine(rows):
    assert rows["batch"].tolist() == [1, 2] and set(rows["tag"]) == {"measured"}
    cores = len(os.sched_getaffinity(0))
    assert (rows["slots"] == cores).all() and (rows["runs"] >= 2 * cores).all()
    assert (rows["p50_ms"] > 0).all() and (rows["p99_ms"] >= rows["p50_ms"]).all()
    assert (rows["load_ms"] > 0).all() and (rows["memory_mb"] > rows["runtime_mb"]).all()
    assert (rows[["machine", "torch", "date"]] != "").all(axis=None) and rows["load_1m"].notna().all()


def test_workers_settings_stay_theirs(rows):
    assert len(rows) and not [key for key in os.environ if key.startswith("MALLOC_")]


def test_a_new_profile_serves_a_scenario(rows, tmp_path):
    path = tmp_path / "mine.csv"
    rows.to_csv(path, index=False)
    mine = {"profile": str(path), "classes.accurate.mean_accuracy_pct": None}
    mine |= {f"classes.{c}.min_accuracy_pct": 60.0 for c in ("strict", "accurate", "relaxed")}
    mine |= {f"pools.{p}.models": ["mobilenet_v3_small"] for p in ("vm", "fn")}
    pool = load_scenario("standard", mine).pools[0]
    assert pool.max_batch == 2
    assert pool.service_ns[0, 1] == pytest.approx(rows.loc[0, "p50_ms"] * 1e6, abs=1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"models": ["resnet1000"]}, "unknown model 'resnet1000'"),
        ({"models": ["resnet18"], "device": "tpu"}, "device 'tpu' is not cpu or cuda"),
        ({"models": ["resnet18"], "batches": [0]}, "batches [0] must be whole numbers of at least 1"),
        ({"models": ["resnet18"], "batches": []}, "batches [] must be"),
        ({"models": ["resnet18"], "threads": [1.5]}, "threads [1.5] must be"),
        ({"models": ["resnet18"], "threads": [4096]}, "threads 4096: this machine has"),
    ],
)
def test_requests_that_cannot_be_measured(request_, message):
    with pytest.raises(InputError) as caught:
        profile(**request_)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_cuda_without_a_gpu_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda: torch finds no GPU here"):
        profile(["resnet18"], device="cuda")


def test_disturbed_cells_are_measured_again_and_the_quietest_attempt_stands(monkeypatch):
    from selfserve import profiling

    shares = {1: [0.99], 2: [0.4, 0.7, 0.6]}
    asked = []

    def run(job, slots):
        asked.append(job.batches)
        block = {"load_s": 0.1, "runtime_mb": 1.0, "memory_mb": 2.0}
        return {b: [[block | {"times": [0.01 * b], "cpu_share": shares[b].pop(0)}]] for b in job.batches}

    monkeypatch.setattr(profiling, "_run_slots", run)
    monkeypatch.setattr(profiling, "_save_model", lambda model, folder: "")
    rows = profile(["resnet18"], batches=(1, 2), progress=False)
    assert asked == [(1, 2), (2,), (2,)]
    assert rows["cpu_share"].tolist() == [0.99, 0.7]


def test_a_worker_that_fails_says_why(monkeypatch):
    from selfserve import profiling

    monkeypatch.setattr(profiling, "_save_model", lambda model, folder: "/nowhere/model.pt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        profile(["resnet18"], batches=(1,), **QUICK)
