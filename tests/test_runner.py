"""The notebook runner: what it refuses, what it skips, and what a failure says."""

import json
from pathlib import Path

import nbformat
import pytest

from selfserve.errors import InputError
from selfserve.runner import (
    NotebookError,
    check_parameters,
    find_notebooks,
    parse_scalar,
    publish_reference,
    run_notebooks,
)

WRITES = """\
import os, pathlib
for kind in ("figures", "tables"):
    (pathlib.Path(os.environ["SELFSERVE_RESULTS"]) / kind).mkdir(parents=True, exist_ok=True)
(pathlib.Path(os.environ["SELFSERVE_RESULTS"]) / "figures" / f"{NAME}.png").write_text(f"{quick} {seed}")
(pathlib.Path(os.environ["SELFSERVE_RESULTS"]) / "tables" / f"{NAME}.csv").write_text(f"quick\\n{quick}\\n")
"""
PARAMETERS = "quick: bool = False\nseed: int = 0\nscale: float = 1.0\nlabel: str = 'a'\nloose = 3"


def write_notebook(project: Path, name: str, code: str, parameters: str = PARAMETERS) -> Path:
    cells = [
        nbformat.v4.new_markdown_cell("# A question"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code.replace("NAME", repr(name))),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = project / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project whose results go to ``results``, away from the user's own."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    for name in ("requirements.txt", "constraints.txt"):
        (tmp_path / name).write_text("numpy\n")
    for name in ("PYTHONHASHSEED", "PYDEVD_DISABLE_FILE_VALIDATION"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SELFSERVE_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_notebooks_are_numbered_and_chosen_by_number_or_name(project):
    for name in ("02_b", "01_a", "explore"):
        write_notebook(project, name, "pass")
    folder = project / "notebooks"
    assert [path.stem for path in find_notebooks(folder)] == ["01_a", "02_b"]
    assert [path.stem for path in find_notebooks(folder, ["02"])] == ["02_b"]
    assert [path.stem for path in find_notebooks(folder, ["01_a", "02_b.ipynb"])] == ["01_a", "02_b"]
    with pytest.raises(InputError, match="no '07'; there are 01_a, 02_b"):
        find_notebooks(folder, ["01", "07"])
    with pytest.raises(InputError, match="no numbered notebook"):
        find_notebooks(project)


def test_parameters_are_checked_against_the_parameters_cell(project):
    path = write_notebook(project, "01_a", "pass")
    right = {"quick": "False", "seed": "7", "scale": "2", "label": "7"}
    assert check_parameters(path, right) == {"quick": False, "seed": 7, "scale": 2.0, "label": "7"}
    wrong = [
        ({"quik": True}, "no parameter 'quik'; its parameters cell declares quick, seed, scale, label, loose"),
        ({"quick": "no"}, "'no' is not true or false"),
        ({"quick": 1}, "1 is not true or false"),
        ({"seed": "1.5"}, "'1.5' is not of type int"),
        ({"seed": True}, "True is not of type int"),
        ({"label": 3}, "3 is not of type str"),
        ({"loose": 4}, "loose needs one of the annotations bool, int, float, str"),
    ]
    for values, message in wrong:
        with pytest.raises(InputError, match=message):
            check_parameters(path, values)


@pytest.mark.parametrize(("text", "kind", "value"), [("true", bool, True), ("-3", int, -3), ("1e-3", float, 0.001)])
def test_text_is_read_as_the_declared_type(text, kind, value):
    parsed = parse_scalar(text, kind, "x")
    assert (type(parsed), parsed) == (kind, value)


def test_a_stranger_stops_the_run_before_anything_runs(project):
    write_notebook(project, "01_a", WRITES)
    write_notebook(project, "02_b", WRITES, parameters="quick: bool = False")
    with pytest.raises(InputError, match=r"02_b\.ipynb: no parameter 'seed'"):
        run_notebooks(quick=True, parameters={"seed": "1"}, project=project)
    assert not (project / "results").exists()


def test_a_rerun_skips_what_has_not_changed(project, capsys):
    results = project / "results"
    first, _ = (write_notebook(project, name, WRITES) for name in ("01_a", "02_b"))
    run = lambda **options: run_notebooks(project=project, **options)  # noqa: E731

    assert run(quick=True, parameters={"seed": "5"}).ran == ["01_a", "02_b"]
    assert (results / "figures" / "01_a.png").read_text() == "True 5"
    executed = nbformat.read(results / "notebooks" / "01_a.ipynb", as_version=4)
    assert any("seed = 5" in cell.source for cell in executed.cells)
    runs = (results / "runs.csv").read_text().splitlines()
    assert runs[1:3] == ["01_a,quick,figures/01_a.png", "01_a,quick,tables/01_a.csv"]

    capsys.readouterr()
    assert run(quick=True, parameters={"seed": "5"}).skipped == ["01_a", "02_b"]
    assert "01_a: nothing it depends on has changed, skipped" in capsys.readouterr().out

    # An output in a cell is not a change, its source is; so is a figure that has gone or is another's.
    notebook = json.loads(first.read_text())
    notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    first.write_text(json.dumps(notebook))
    (results / "figures" / "02_b.png").unlink()
    assert run(quick=True, parameters={"seed": "5"}) == (["02_b"], ["01_a"])
    (results / "tables" / "01_a.csv").write_text("edited")
    write_notebook(project, "02_b", WRITES + "1\n")
    assert run(quick=True, parameters={"seed": "5"}) == (["01_a", "02_b"], [])

    # Other parameters, other pins, the other mode and --force run again.
    assert run(quick=True, only=["02"]).ran == ["02_b"]
    (project / "constraints.txt").write_text("numpy<9\n")
    assert run(quick=True, only=["02"]).ran == ["02_b"]
    assert run(only=["02"]).ran == ["02_b"]
    assert run(only=["02"], force=True).ran == ["02_b"]
    assert "02_b,full,tables/02_b.csv" in (results / "runs.csv").read_text()


def test_a_failure_names_notebook_cell_and_error_and_keeps_what_was_there(project):
    write_notebook(project, "01_a", WRITES)
    write_notebook(project, "02_b", "first = 1\nraise KeyError('no such pool\\nmore')")
    write_notebook(project, "03_c", WRITES)
    with pytest.raises(NotebookError) as failure:
        run_notebooks(quick=True, project=project)
    message = str(failure.value)
    assert message.startswith("02_b: cell 3 of 3 failed: KeyError: 'no such pool")
    assert "\n" not in message
    results = project / "results"
    assert (results / "figures" / "01_a.png").exists()
    assert (results / "notebooks" / "02_b.ipynb").exists()
    assert not (results / "notebooks" / "03_c.ipynb").exists()

    write_notebook(project, "02_b", WRITES)
    assert run_notebooks(quick=True, project=project) == (["02_b", "03_c"], ["01_a"])


def test_a_killed_kernel_is_told_in_one_line(project):
    write_notebook(project, "01_a", "import os\nos._exit(3)")
    with pytest.raises(NotebookError, match="01_a: its kernel died"):
        run_notebooks(quick=True, project=project)


def test_the_reference_holds_tables_and_pictures_of_a_full_run_only(project):
    write_notebook(project, "01_a", WRITES)
    run_notebooks(quick=True, project=project)
    with pytest.raises(InputError, match="01_a has no results of a full run"):
        publish_reference(project)
    run_notebooks(project=project)
    stale = project / "results" / "reference" / "figures" / "old.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    (stale.parents[1] / "README.md").touch()
    assert publish_reference(project) == 2
    kept = sorted(path.name for path in (project / "results" / "reference").rglob("*") if path.is_file())
    assert kept == ["01_a.csv", "01_a.png", "README.md"], "what is written by hand stays"
