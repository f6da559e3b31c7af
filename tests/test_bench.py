"""The benchmarks at a tiny size: complete, and both sides of each comparison find the same. Never how fast they are."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "bench.py"
CONTRACT = {
    "w1_requests_per_s", "w1_ratio_to_c", "w2_requests_per_s", "w2_ratio_to_simpy", "env_steps_per_s",
    "env_requests_per_s", "env_ratio_to_simulator", "ppo_steps_per_s", "decision_p99_ms", "load_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_under_test", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reports_every_key_of_the_contract(bench, capsys):
    found = bench.run(quick=True)
    assert set(found) >= CONTRACT
    measured = {key: value for key, value in found.items() if key.startswith(("w1", "w2", "simulate"))}
    assert len(measured) == 6
    assert all(value > 0 for value in measured.values()), measured
    out, err = capsys.readouterr()
    assert out == ""  # stdout belongs to the command line's JSON
    assert err.count("ratio") == 3


def test_simulator_and_c_agree_to_the_nanosecond(bench):
    ours, theirs = bench.w1_latencies(seconds=10)
    assert ours == theirs > 0


def test_w1_overflows_a_little(bench):
    case = bench.w1(60)
    simulator = case.simulator()
    simulator.advance(case.decision)
    summary = simulator.finish().summary
    assert 0.0 < summary["function_share_pct"] < 5.0
    assert summary["vm_utilisation_pct"] == pytest.approx(90.0, abs=1.0)


def test_simulator_and_simpy_agree_on_a_system_where_every_mechanism_is_at_work(bench):
    case = bench.w2(400, load_machines=8.0)
    system = bench.simpy_system(case)
    system.env.run()
    found = bench.agreement(case, system)
    assert len(found) == 4
    share = found.pop("function share, %")
    assert 0.5 < share[0] < 20.0
    assert share[1] == pytest.approx(share[0], rel=0.03)
    for what, (ours, theirs) in found.items():
        assert theirs == pytest.approx(ours, rel=0.01), what
    assert sum(system.answers) == case.workload.counts[bench.W2_WARMUP_S :].sum()


def test_w2_uses_batches_late_binding_and_all_models(bench):
    case = bench.w2(300, load_machines=8.0)
    result = bench.simulate(case.scenario, case.workload, bench.Constant(case.decision, 10.0), decisions=True)
    assert result.answered.sum((0, 2)).min() > 0  # every model answers
    accurate = result.answered[0, :, 1]
    tiny, base = accurate[2], accurate[3]
    assert tiny > 9.5 * base > 0  # 9 to 1 by weight, so some of the larger model's requests were bound late
    assert result.decisions is not None
    mean_batches = [c for c in result.decisions.columns if c.startswith("batch_mean")]
    assert result.decisions[mean_batches].to_numpy().max() > 1.5


def test_ratios_are_null_without_their_yardsticks(bench, monkeypatch):
    def missing(*args: object, **options: object) -> None:
        raise FileNotFoundError("cc")

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    found = bench.run(quick=True, progress=False)
    assert found["w1_ratio_to_c"] is None and found["w2_ratio_to_simpy"] is None
    assert found["w1_requests_per_s"] > 0 and found["w2_requests_per_s"] > 0
