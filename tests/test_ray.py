"""A Ray cluster of two nodes gives the table that one process gives, also when a node dies on the way."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
from ray.cluster_utils import Cluster

from selfserve.errors import InputError
from selfserve.evaluation import run
from selfserve.evaluation.run import Runs

SCENARIOS = [("standard", run.as_json({"rate_scale": 1.0, "warmup_s": 200.0}))]

DEADLY = """
import os, signal
from pathlib import Path
import ray
from selfserve.policies.reactive import Reactive
class Deadly(Reactive):
    def decide(self, observation):
        victim = Path(__file__).with_name("victim")
        if observation.time_s == 300 and victim.exists() and ray.is_initialized():
            if ray.get_runtime_context().get_node_id() == victim.read_text():
                os.kill(os.getppid(), signal.SIGKILL)  # a worker's parent runs the node
                signal.pause()
        return super().decide(observation)
"""
"""A policy that kills the node it runs on in the middle of a run, if that is the victim."""
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Cases, labels, and the bytes of their table from one process."""
    folder = tmp_path_factory.mktemp("work")
    seconds = np.arange(3600)
    counts = np.rint(20 + 15 * np.sin(seconds * 2 * np.pi / 300)).astype(int)
    pd.DataFrame({"second": seconds, "requests": counts}).to_csv(folder / "wave.csv", index=False)
    (folder / "deadly.py").write_text(DEADLY)
    windows = run.spread_windows(str(folder / "wave.csv"), "evaluate", 2, 600)
    cases, labels = run.grid([f"{folder / 'deadly.py'}:Deadly", "static", "mixed"], windows, SCENARIOS, [0, 1])
    return cases, labels, table_bytes(folder, cases, labels, Runs(folder, jobs=1)(cases))


def table_bytes(folder, cases, labels, rows):
    run.write_parquet(run.table(cases, labels, rows), folder / "runs.parquet")
    return (folder / "runs.parquet").read_bytes()


@pytest.fixture
def cluster():
    """Two nodes on this machine, each with a processor; nothing is left running."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False,
                   "_system_config": QUICK_TO_NOTICE})  # fmt: skip
    made.second = made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def test_two_nodes_give_the_table_of_one_process(work, cluster, tmp_path):
    cases, labels, wanted = work
    runs = Runs(tmp_path, ray=cluster.address)
    assert table_bytes(tmp_path, cases, labels, runs(cases)) == wanted
    assert runs.computed == len(cases)


def test_a_node_that_dies_takes_nothing_with_it(work, cluster, tmp_path):
    cases, labels, wanted = work
    (Path(cases[0].policy.rpartition(":")[0]).parent / "victim").write_text(cluster.second.node_id)
    runs = Runs(tmp_path, ray=cluster.address)
    assert table_bytes(tmp_path, cases, labels, runs(cases)) == wanted
    deadline = time.monotonic() + 30
    while cluster.second.any_processes_alive() and time.monotonic() < deadline:
        time.sleep(0.1)  # the node's other processes end after the one that was killed
    assert not cluster.second.any_processes_alive(), "the node was killed by a run of its own"


def test_no_cluster_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster there"):
        Runs(tmp_path, ray="127.0.0.1:1")
