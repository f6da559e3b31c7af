"""The command line as its users meet it: contracts, one-line errors, files written whole or not at all."""

import json
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest

from selfserve import __version__
from selfserve.cli import main

COMMANDS = ["simulate", "bound", "profile", "catalog", "traces", "notebooks", "bench"]
CONTRACT = (
    "policy trace scenario seed requests answered rejected cost_usd vm_cost_usd function_cost_usd cost_per_million_usd "
    "slo_violation_pct accuracy_violation_pct mean_accuracy_pct p50_s p99_s function_share_pct cold_starts launches "
    "vm_utilisation_pct oracle_cost_usd cost_to_oracle classes"
).split()
WINDOW = ["--length-s", "600", "--scenario-set", "warmup_s=120", "--scenario-set", "load_machines=2"]
LAUNCH_AND_RELEASE = '''
from selfserve.protocol import Decision, Route, Step


class Brief:
    """Asks for one machine at 0 and gives it back at ``until_s``; VMs only."""

    interval_s = 10.0

    def __init__(self, *, until_s: float = 20.0) -> None:
        self.until_s = until_s

    def reset(self, scenario, history):
        """Route every class to the first pool and its model."""
        model = scenario.pools[0].models[0]
        self.routes = tuple((Route((Step(0, model),)),) for _ in scenario.classes)

    def decide(self, observation):
        """Follow the plan."""
        return Decision((int(observation.time_s < self.until_s), 0), self.routes)
'''


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Ten minutes of bursty requests as a user's CSV."""
    path = tmp_path_factory.mktemp("traces") / "mine.csv"
    counts = np.random.default_rng(3).poisson(np.where(np.arange(600) % 200 < 150, 20, 60))
    pd.DataFrame({"second": np.arange(600), "requests": counts}).to_csv(path, index=False)
    return str(path)


def run(capsys, *arguments):
    """Return exit code, stdout and stderr of a command."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_version_and_help_with_an_example_each(capsys):
    assert run(capsys, "--version")[:2] == (0, f"selfserve {__version__}\n")
    for command in COMMANDS:
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert f"example: python -m selfserve {command}" in out


def test_help_waits_for_no_heavy_import():
    code = "import sys, selfserve.cli; print([m for m in ('numpy', 'pandas', 'numba', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_simulate_keeps_its_contract(capsys, trace, tmp_path):
    requests, decisions, figure = (tmp_path / name for name in ("requests.parquet", "decisions.parquet", "load.png"))
    files = ["--requests", requests, "--decisions", decisions, "--figure", figure]
    code, out, err = run(capsys, "simulate", "--policy", "mixed", "--trace", trace, *WINDOW, "--json", *files)
    assert code == 0
    assert "requests/s" in err
    record = json.loads(out.splitlines()[-1])
    assert [key for key in CONTRACT if key not in record] == []
    assert record["policy"], record["trace"] == ("mixed", "mine")
    assert record["requests"] == record["answered"] + record["rejected"] > 0
    assert record["cost_usd"] == pytest.approx(record["vm_cost_usd"] + record["function_cost_usd"])
    assert record["cost_to_oracle"] >= 1
    columns = {"name", "requests", "slo_violation_pct", "mean_accuracy_pct", "p50_s", "p99_s"}
    assert all(columns <= row.keys() for row in record["classes"])
    assert sum(row["requests"] for row in record["classes"]) == record["requests"]

    rows = pd.read_parquet(requests)
    names = "id arrival_s class pool model start_s finish_s cold slo_s violated".split()
    assert [name for name in names if name not in rows] == []
    assert len(rows) == record["requests"]
    assert rows["arrival_s"].between(120, 600, inclusive="left").all()
    log = pd.read_parquet(decisions)
    assert log["time_s"].iloc[0] == 0
    assert figure.stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decisions.parquet", "load.png", "requests.parquet"]

    again = run(capsys, "simulate", "--policy", "mixed", "--trace", trace, *WINDOW, "--json")
    assert again[1] == out
    free = run(capsys, "simulate", "--policy", "mixed", "--trace", trace, *WINDOW, "--json", "--no-bound")
    assert json.loads(free[1].splitlines()[-1]) == record | {"oracle_cost_usd": None, "cost_to_oracle": None}


def test_a_policy_of_the_users_is_billed_by_the_minute(capsys, tmp_path, trace):
    """One c6i.large asked for at 0, running at 17 s, released at 20 s: the minimum bill of 60 s at 0.085 $/h."""
    (tmp_path / "brief.py").write_text(LAUNCH_AND_RELEASE)
    arguments = [
        "simulate",
        "--policy",
        f"{tmp_path / 'brief.py'}:Brief",
        "--trace",
        trace,
        "--length-s",
        120,
        "--json",
    ]
    arguments += ["--scenario-set", "warmup_s=0", "--no-bound"]
    code, out, _ = run(capsys, *arguments)
    record = json.loads(out.splitlines()[-1])
    assert code == 0
    assert record["vm_cost_usd"] == pytest.approx(60 * 0.085 / 3600, abs=1e-12)
    assert record["rejected"] == record["requests"] > 0
    assert record["p99_s"] is None
    longer = run(capsys, *arguments, "--set", "until_s=90", "--scenario-set", "vm.boot_spread=0")[1]
    assert json.loads(longer.splitlines()[-1])["vm_cost_usd"] == pytest.approx(73 * 0.085 / 3600, abs=1e-12)


def test_the_clairvoyant_is_told_the_window(capsys, trace):
    code, out, _ = run(capsys, "simulate", "--policy", "clairvoyant", "--trace", trace, *WINDOW, "--json")
    record = json.loads(out.splitlines()[-1])
    assert code == 0
    assert record["policy"] == "clairvoyant"
    assert record["cost_to_oracle"] >= 1
    code, _, err = run(capsys, "simulate", "--policy", "clairvoyant", "--trace", trace, "--set", "a=1")
    assert (code, err) == (2, "selfserve: policy clairvoyant has no parameters, a was given\n")


def test_bound_prints_what_it_proves(capsys, trace):
    code, out, _ = run(capsys, "bound", "--trace", trace, *WINDOW, "--json")
    record = json.loads(out.splitlines()[-1])
    assert code == 0
    assert 0 < record["oracle_cost_usd"] <= record["relaxation_usd"] * (1 + 1e-9)
    loose = run(capsys, "bound", "--trace", trace, *WINDOW, "--violation-pct", 10, "--json")[1]
    assert json.loads(loose.splitlines()[-1])["oracle_cost_usd"] < record["oracle_cost_usd"]
    narrow = run(capsys, "bound", "--trace", trace, *WINDOW, "--resources", "fn", "--json")[1]
    assert json.loads(narrow.splitlines()[-1])["oracle_cost_usd"] > record["oracle_cost_usd"]


def test_traces_and_catalogue_are_shown(capsys, trace):
    code, out, _ = run(capsys, "traces", "list", "--json")
    assert code == 0
    assert {"WITS", "WITS-twin", "wiki_like"} <= set(json.loads(out.splitlines()[-1])["traces"])
    facts = json.loads(run(capsys, "traces", "describe", trace, "--json")[1].splitlines()[-1])
    assert facts["seconds"] == 600
    assert "c6i.large" in run(capsys, "catalog", "show")[1]
    assert "resnet50" in run(capsys, "catalog", "show", "models")[1]


SIMULATE = ["simulate", "--policy", "mixed", "--trace", "TRACE"]
WRONG = {
    "no command": ([], "required: COMMAND"),
    "stranger": ([*SIMULATE, "--polcy", "x"], "unrecognized arguments: --polcy x"),
    "abbreviation": ([*SIMULATE, "--req", "x.parquet"], "unrecognized arguments"),
    "not a number": ([*SIMULATE, "--seed", "a"], "--seed: invalid int value: 'a'"),
    "policy": (["simulate", "--policy", "magic", "--trace", "TRACE"], "magic"),
    "policy file": (["simulate", "--policy", "none.py:A", "--trace", "TRACE"], "none.py"),
    "parameter": ([*SIMULATE, "--set", "colour=red"], "headroom"),
    "parameter type": ([*SIMULATE, "--set", "headroom=much"], "headroom"),
    "parameter form": ([*SIMULATE, "--set", "headroom"], "'headroom' is not of the form KEY=VALUE"),
    "parameter twice": ([*SIMULATE, "--set", "headroom=1", "--set", "headroom=2"], "given twice"),
    "trace": (["simulate", "--policy", "mixed", "--trace", "nosuch.csv"], "nosuch.csv"),
    "scenario": ([*SIMULATE, "--scenario", "nosuch"], "nosuch"),
    "scenario key": ([*SIMULATE, "--scenario-set", "vm.bot_s=1"], "bot_s"),
    "slo": ([*SIMULATE, "--scenario-set", "classes.strict.slo_s=0"], "slo_s"),
    "start": ([*SIMULATE, "--start-s", "600"], "600"),
    "length": ([*SIMULATE, "--length-s", "0"], "length_s"),
    "ending": ([*SIMULATE, "--requests", "x.csv"], "must end in .parquet"),
    "output folder": ([*SIMULATE, "--decisions", "nowhere/x.parquet"], "cannot be written there"),
    "output is a folder": ([*SIMULATE, "--figure", "FOLDER.png"], "is a folder"),
    "violation": (["bound", "--trace", "TRACE", "--violation-pct", "101"], "not between 0 and 100"),
    "resources": (["bound", "--trace", "TRACE", "--resources", "gpu"], "gpu"),
    "list": (["profile", "--batches", "1,x", "--out", "p.csv"], "'1,x' is not a list of whole numbers"),
    "model": (["profile", "--models", "nosuch", "--out", "p.csv"], "nosuch"),
    "table": (["catalog", "show", "nosuch"], "nosuch"),
    "nothing to describe": (["traces", "describe"], "takes one trace"),
    "notebook": (["notebooks", "--only", "77"], "no '77'"),
    "bench": (["bench"], "bench.py is not there"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_with_one_line_and_code_2(case, capsys, trace, tmp_path, monkeypatch):
    """The line names the offender; nothing is printed to stdout, and no file appears."""
    (tmp_path / "FOLDER.png").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.ipynb").touch()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments, message = WRONG[case]
    code, out, err = run(capsys, *(trace if a == "TRACE" else a for a in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("selfserve: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_run_leaves_an_existing_file_as_it_was(capsys, trace, tmp_path):
    target = tmp_path / "requests.parquet"
    target.write_text("mine")
    code, *_ = run(capsys, *SIMULATE[:-1], trace, "--scenario", "nosuch", "--requests", target)
    assert code == 2
    assert target.read_text() == "mine"


def test_a_failed_notebook_ends_with_code_1(capsys, tmp_path, monkeypatch):
    cells = [
        nbformat.v4.new_code_cell("quick: bool = False", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("1 / 0"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "01_a.ipynb")
    for name in ("pyproject.toml", "requirements.txt", "constraints.txt"):
        (tmp_path / name).touch()
    for name in ("PYTHONHASHSEED", "PYDEVD_DISABLE_FILE_VALIDATION"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SELFSERVE_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "notebooks", "--quick")
    assert code == 1
    assert err.startswith("selfserve: 01_a: cell 2 of 2 failed: ZeroDivisionError: division by zero")
