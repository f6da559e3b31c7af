"""Runs the numbered notebooks with papermill: parameters checked, finished work skipped, failures told in one line.

Executed copies go to ``results/notebooks``, each with a stamp beside it. A notebook is skipped while its stamp holds:
same code, catalogue, traces, notebook source, parameters and requirements, and every file that it wrote is still
there unchanged. ``results/runs.csv`` says which mode made which file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfserve.errors import InputError

Scalar = bool | int | float | str
_TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
_PINS = ("requirements.txt", "constraints.txt")


class NotebookError(RuntimeError):
    """A notebook failed; the message names it, the cell and the error."""


class Report(NamedTuple):
    """The names of the notebooks that ran and of those that were skipped."""

    ran: list[str]
    skipped: list[str]


class _Place(NamedTuple):
    """A notebook, its executed copy and its stamp."""

    source: Path
    copy: Path
    stamp: Path

    def record(self) -> dict[str, Any] | None:
        """Return the stamp, or None where there is none that can be read."""
        try:
            record: dict[str, Any] = json.loads(self.stamp.read_text())
            return record if record.keys() >= {"mode", "inputs", "files"} else None
        except (OSError, ValueError, AttributeError):
            return None


def _place(source: Path, results: Path) -> _Place:
    return _Place(source, results / "notebooks" / source.name, results / "notebooks" / f"{source.stem}.json")


def project_root() -> Path:
    """Return the project's folder: the nearest one upwards from here with notebooks, else this file's checkout.

    Raises:
        InputError: if there is none (the package was installed without its project).
    """
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise InputError(
        f"notebooks: no folder with notebooks/ and pyproject.toml at or above {Path.cwd()}; run this in the project"
    )


def find_notebooks(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the numbered notebooks (``01_name.ipynb``) of a folder in order, or those that ``only`` names.

    Args:
        folder: where the notebooks are.
        only: numbers or names, for instance ``["01", "03_workloads"]``; empty for all.

    Raises:
        InputError: if there is none, or something in ``only`` names none.
    """
    names = {path: {path.stem[:2], path.stem, path.name} for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not names:
        raise InputError(f"notebooks: {folder} holds no numbered notebook such as 01_models.ipynb")
    if strangers := set(only).difference(*names.values()):
        raise InputError(f"notebooks: no {min(strangers)!r}; there are {', '.join(path.stem for path in names)}")
    return [path for path, own in names.items() if not only or own & set(only)]


def check_parameters(notebook: Path, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the values for a notebook's parameters, text converted to the declared types.

    papermill itself only warns of a misspelled name and passes the text ``false`` as a truthy string.

    Args:
        notebook: the notebook; its cell tagged ``parameters`` declares the names with annotations.
        values: values by name; text is read as the declared type.

    Raises:
        InputError: on a name that is not declared, or a value that is not of the declared type.
    """
    import papermill

    declared = {name: p["inferred_type_name"] for name, p in papermill.inspect_notebook(str(notebook)).items()}
    checked: dict[str, Scalar] = {}
    for name, value in values.items():
        if name not in declared:
            has = ", ".join(declared) or "none"
            raise InputError(f"{notebook.name}: no parameter {name!r}; its parameters cell declares {has}")
        kind = _TYPES.get(declared[name])
        if kind is None:
            raise InputError(f"{notebook.name}: parameter {name} needs one of the annotations {', '.join(_TYPES)}")
        checked[name] = parse_scalar(value, kind, f"{notebook.name}: parameter {name}")
    return checked


def parse_scalar(value: Scalar, kind: type, where: str) -> Scalar:
    """Return a value as ``kind`` (bool, int, float or str); text is read, an int may stand for a float.

    Raises:
        InputError: if it is not of that kind; the message starts with ``where``.
    """
    words = {"true": True, "false": False}
    if isinstance(value, str) and kind is bool:
        value = words.get(value.lower(), value)
    elif isinstance(value, str) or (kind is float and type(value) is int):
        try:
            value = kind(value)
        except ValueError:
            pass  # the text stays text, which the next line refuses
    if type(value) is not kind:
        right = "true or false" if kind is bool else f"of type {kind.__name__}"
        raise InputError(f"{where} = {value!r} is not {right}")
    return value


def run_notebooks(
    *,
    quick: bool = False,
    force: bool = False,
    only: Sequence[str] = (),
    parameters: Mapping[str, Scalar] | None = None,
    project: Path | None = None,
    progress: bool | None = None,
) -> Report:
    """Run the numbered notebooks one after the other, skipping those whose inputs have not changed.

    Results go to the folder ``SELFSERVE_RESULTS`` if set, else to the project's ``results``.

    Args:
        quick: run on small synthetic inputs (the notebooks' parameter ``quick``).
        force: run all, changed or not.
        only: numbers or names of the notebooks to run; empty for all.
        parameters: further parameters, for every notebook that runs.
        project: the folder that holds ``notebooks``; found from the working directory if None.
        progress: draw progress bars; by default only on a terminal.

    Raises:
        InputError: on a notebook or parameter that is not there, before anything runs.
        NotebookError: when a notebook fails; what earlier ones wrote stays.
    """
    from tqdm import tqdm

    project = project or project_root()
    results = Path(os.environ.get("SELFSERVE_RESULTS") or project / "results").resolve()
    # The kernels inherit these.
    os.environ.update(SELFSERVE_RESULTS=str(results), PYTHONHASHSEED="0", PYDEVD_DISABLE_FILE_VALIDATION="1")
    notebooks = find_notebooks(project / "notebooks", only)
    values = [check_parameters(path, {"quick": quick, **(parameters or {})}) for path in notebooks]
    common = _common_digest(project, quick)
    show = sys.stderr.isatty() if progress is None else progress
    report = Report([], [])
    with tqdm(total=len(notebooks), desc="notebooks", unit="nb", position=0, disable=not show) as bar:
        for path, own in zip(notebooks, values, strict=True):
            place = _place(path, results)
            inputs = _digest([common, _source(path), json.dumps(own, sort_keys=True).encode()])
            bar.set_description(path.stem)
            if not force and _is_current(place, results, inputs):
                report.skipped.append(path.stem)
                bar.write(f"{path.stem}: nothing it depends on has changed, skipped (--force runs it)", file=sys.stdout)
            else:
                start = time.perf_counter()
                files = _run_one(place, results, own, inputs, show)
                _write_index(project, results)
                report.ran.append(path.stem)
                bar.write(f"{path.stem}: {len(files)} files in {time.perf_counter() - start:.0f} s", file=sys.stdout)
            bar.update()
    return report


def _run_one(place: _Place, results: Path, values: Mapping[str, Scalar], inputs: str, show: bool) -> list[str]:
    """Execute one notebook and stamp it; return the figures and tables that it wrote, relative to the results."""
    place.copy.parent.mkdir(parents=True, exist_ok=True)
    place.stamp.unlink(missing_ok=True)
    before = _snapshot(results)
    _execute(place, values, show)
    written = sorted(name for name, state in _snapshot(results).items() if before.get(name) != state)
    record = {
        "mode": "quick" if values["quick"] else "full",
        "parameters": dict(values),
        "inputs": inputs,
        "files": {name: _file_digest(results / name) for name in written},
    }
    _write_text(place.stamp, json.dumps(record, indent=1) + "\n")
    return written


def _execute(place: _Place, values: Mapping[str, Scalar], show: bool) -> None:
    """Run a notebook in a kernel of this interpreter; every failure becomes a NotebookError."""
    import papermill

    name = place.source.stem
    bar = {"desc": f"  {name}", "position": 1, "leave": False, "unit": "cell"} if show else False
    try:
        papermill.execute_notebook(
            str(place.source),
            str(place.copy),
            dict(values),
            kernel_name="python3",
            progress_bar=bar,
            cwd=str(place.source.parent),
            extra_arguments=["--log-level=ERROR"],  # else each kernel warns of its local port
        )
    except papermill.PapermillExecutionError as error:
        cell = _source_cell(place.source, error.cell_index)
        raise NotebookError(
            f"{name}: {cell} failed: {error.ename}: {_first_line(error.evalue)}; see {place.copy}"
        ) from None
    except RuntimeError as error:  # nbclient's DeadKernelError, and jupyter_client's for one that never answered
        raise NotebookError(f"{name}: its kernel died, out of memory perhaps: {_first_line(str(error))}") from None


def _source_cell(source: Path, executed: int) -> str:
    """Name the cell of the source at an index of the executed copy, into which papermill put its own cell."""
    cells = _cells(source)
    injected = 1 + next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    return f"cell {executed + (executed < injected)} of {len(cells)}"


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["(no message)"])[0]


def _is_current(place: _Place, results: Path, inputs: str) -> bool:
    """Whether the stamp names these inputs, and all that the notebook wrote is still there unchanged."""
    record = place.record()
    if record is None or record["inputs"] != inputs or not place.copy.is_file():
        return False
    files = record["files"].items()
    return all((results / name).is_file() and _file_digest(results / name) == digest for name, digest in files)


def _snapshot(results: Path) -> dict[str, tuple[int, int, int]]:
    """Return what tells that a figure or table was written anew: inode, size and time of modification."""
    paths = (path for top in ("figures", "tables") for path in (results / top).rglob("*") if path.is_file())
    states = ((path.relative_to(results).as_posix(), path.stat()) for path in paths)
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states}


def _write_index(project: Path, results: Path) -> None:
    rows = ["notebook,mode,file"]
    for path in find_notebooks(project / "notebooks"):
        if record := _place(path, results).record():
            rows += [f"{path.stem},{record['mode']},{name}" for name in record["files"]]
    _write_text(results / "runs.csv", "\n".join(rows) + "\n")


def _common_digest(project: Path, quick: bool) -> bytes:
    """Digest what every notebook depends on: package and its data, traces, pins, interpreter."""
    from selfserve.traces import SOURCES, trace_file

    package = Path(__file__).parent
    files = [path for root in (package, project / "traces") for path in sorted(root.rglob("*")) if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts] + [project / name for name in _PINS]
    parts = [platform.python_version(), *(f"{path.name} {_file_digest(path)}" for path in files)]
    if not quick:  # published traces carry their checksums, so that being there is all that can change
        parts += [name for name in SOURCES if trace_file(name).is_file()]
    return "\n".join(parts).encode()


def _source(path: Path) -> bytes:
    """Return what a run depends on: the cells' kinds, tags and sources, not their outputs."""
    cells = [[c["cell_type"], c["metadata"].get("tags", []), "".join(c["source"])] for c in _cells(path)]
    return json.dumps(cells).encode()


def _cells(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def publish_reference(project: Path | None = None) -> int:
    """Copy the tables and PNG figures of a full run to ``results/reference``, which is committed; return their number.

    Raises:
        InputError: if a notebook's results are missing or not those of a full run.
    """
    project = project or project_root()
    results = project / "results"
    records = {path.stem: _place(path, results).record() for path in find_notebooks(project / "notebooks")}
    names = []
    for notebook, record in records.items():
        if record is None or record["mode"] != "full":
            raise InputError(
                f"notebooks: {notebook} has no results of a full run to publish; run it without --quick first"
            )
        names += [name for name in record["files"] if name.endswith(".png") or name.startswith("tables/")]
    shutil.rmtree(results / "reference", ignore_errors=True)
    for name in names:
        target = results / "reference" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results / name, target)
    return len(names)
