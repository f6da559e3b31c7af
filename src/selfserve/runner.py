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
from collections.abc import Mapping, Sequence
from contextlib import suppress
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


def _record(copy: Path) -> dict[str, Any] | None:
    """Return the stamp beside an executed copy, or None where there is none that can be read."""
    try:
        record: dict[str, Any] = json.loads(copy.with_suffix(".json").read_text())
        return record if record.keys() >= {"mode", "inputs", "files"} else None
    except (OSError, ValueError, AttributeError):
        return None


def project_root() -> Path:
    """Return the project's folder: the nearest one upwards from here with notebooks, else this file's checkout.

    Raises:
        InputError: if there is none (the package was installed without its project).
    """
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    wanted = f"no folder with notebooks/ and pyproject.toml at or above {Path.cwd()}"
    raise InputError(f"notebooks: {wanted}; run this in the project")


def find_notebooks(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the numbered notebooks (``01_name.ipynb``) of a folder in order, or those that ``only`` numbers or names.

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

    The cell tagged ``parameters`` declares them with annotations. papermill itself only warns of a misspelled name and
    passes the text ``false`` as a truthy string.

    Raises:
        InputError: on a name that is not declared, or a value that is not of the declared type.
    """
    import papermill

    declared, checked = papermill.inspect_notebook(str(notebook)), {}
    for name, value in values.items():
        if name not in declared:
            has = ", ".join(declared) or "none"
            raise InputError(f"{notebook.name}: no parameter {name!r}; its parameters cell declares {has}")
        if (kind := _TYPES.get(declared[name]["inferred_type_name"])) is None:
            raise InputError(f"{notebook.name}: parameter {name} needs one of the annotations {', '.join(_TYPES)}")
        checked[name] = parse_scalar(value, kind, f"{notebook.name}: parameter {name}")
    return checked


def parse_scalar(value: Scalar, kind: type, where: str) -> Scalar:
    """Return a value as ``kind`` (bool, int, float or str); text is read, an int may stand for a float.

    Raises:
        InputError: if it is not of that kind; the message starts with ``where``.
    """
    if isinstance(value, str) and kind is bool:
        value = {"true": True, "false": False}.get(value.lower(), value)
    elif isinstance(value, str) or (kind is float and type(value) is int):
        with suppress(ValueError):  # the text stays text, which the next line refuses
            value = kind(value)
    if type(value) is not kind:
        right = "true or false" if kind is bool else f"of type {kind.__name__}"
        raise InputError(f"{where} = {value!r} is not {right}")
    return value


def run_notebooks(
    *, quick: bool = False, force: bool = False, only: Sequence[str] = (),
    parameters: Mapping[str, Scalar] | None = None, project: Path | None = None,
) -> Report:  # fmt: skip
    """Run the numbered notebooks one after the other, skipping those whose inputs have not changed.

    Results go to the folder ``SELFSERVE_RESULTS`` if set, else to the project's ``results``. Progress bars are drawn on
    a terminal only.

    Args:
        quick: run on small synthetic inputs (the notebooks' parameter ``quick``).
        force: run all, changed or not.
        only: see :func:`find_notebooks`.
        parameters: further parameters, for every notebook that runs.
        project: the folder that holds ``notebooks``; found from the working directory if None.

    Raises:
        InputError: on a notebook or parameter that is not there, before anything runs.
        NotebookError: when a notebook fails; what earlier ones wrote stays.
    """
    from tqdm import tqdm

    project = project or project_root()
    results = Path(os.environ.get("SELFSERVE_RESULTS") or project / "results").resolve()
    # The kernels inherit these.
    os.environ.update(SELFSERVE_RESULTS=str(results), PYTHONHASHSEED="0", PYDEVD_DISABLE_FILE_VALIDATION="1")
    if traces := os.environ.get("SELFSERVE_TRACES"):
        os.environ["SELFSERVE_TRACES"] = str(Path(traces).resolve())
    notebooks = find_notebooks(project / "notebooks", only)
    values = [check_parameters(path, {"quick": quick, **(parameters or {})}) for path in notebooks]
    common, report = _common_digest(project, quick), Report([], [])
    with tqdm(total=len(notebooks), desc="notebooks", unit="nb", position=0, disable=None) as bar:
        for path, own in zip(notebooks, values, strict=True):
            inputs = _digest(b"\0".join([common, _source(path), json.dumps(own, sort_keys=True).encode()]))
            bar.set_description(path.stem)
            if not force and _is_current(path.name, results, inputs):
                report.skipped.append(path.stem)
                bar.write(f"{path.stem}: nothing it depends on has changed, skipped (--force runs it)", file=sys.stdout)
            else:
                start = time.perf_counter()
                files = _run_one(path, results, own, inputs)
                _write_index(project, results)
                report.ran.append(path.stem)
                bar.write(f"{path.stem}: {len(files)} files in {time.perf_counter() - start:.0f} s", file=sys.stdout)
            bar.update()
    return report


def _run_one(source: Path, results: Path, values: Mapping[str, Scalar], inputs: str) -> list[str]:
    """Execute one notebook and stamp it; return the figures and tables that it wrote, relative to the results."""
    copy = results / "notebooks" / source.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.with_suffix(".json").unlink(missing_ok=True)
    before = _snapshot(results)
    _execute(source, copy, values)
    written = sorted(name for name, state in _snapshot(results).items() if before.get(name) != state)
    record = {"mode": "quick" if values["quick"] else "full", "parameters": dict(values), "inputs": inputs}
    files = {"files": {name: _digest((results / name).read_bytes()) for name in written}}
    _write_text(copy.with_suffix(".json"), json.dumps(record | files, indent=1) + "\n")
    return written


def _execute(source: Path, copy: Path, values: Mapping[str, Scalar]) -> None:
    """Run a notebook in a kernel of this interpreter; every failure becomes a NotebookError."""
    import papermill

    name = source.stem
    bar = {"desc": f"  {name}", "position": 1, "leave": False, "unit": "cell"} if sys.stderr.isatty() else False
    try:
        papermill.execute_notebook(
            str(source), str(copy), dict(values), kernel_name="python3", progress_bar=bar, cwd=str(source.parent),
            extra_arguments=["--log-level=ERROR"],  # else each kernel warns of its local port
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        # papermill put a cell of its own behind the tagged one, which a reader of the source does not see.
        tags = [cell["metadata"].get("tags", []) for cell in _cells(source)]
        at = error.cell_index + (error.cell_index <= next(i for i, own in enumerate(tags) if "parameters" in own))
        what = f"cell {at} of {len(tags)} failed: {error.ename}: {_first_line(error.evalue)}; see {copy}"
    except RuntimeError as error:  # nbclient's DeadKernelError, and jupyter_client's for one that never answered
        what = f"its kernel died, out of memory perhaps: {_first_line(str(error))}"
    else:
        return
    raise NotebookError(f"{name}: {what}")


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["(no message)"])[0]


def _is_current(notebook: str, results: Path, inputs: str) -> bool:
    """Whether the stamp names these inputs, and all that the notebook wrote is still there unchanged."""
    copy = results / "notebooks" / notebook
    record = _record(copy)
    if record is None or record["inputs"] != inputs or not copy.is_file():
        return False
    files = ((results / name, digest) for name, digest in record["files"].items())
    return all(path.is_file() and _digest(path.read_bytes()) == digest for path, digest in files)


def _snapshot(results: Path) -> dict[str, tuple[int, int, int]]:
    """Return what tells that a figure or table was written anew: inode, size and time of modification."""
    paths = (path for top in ("figures", "tables") for path in (results / top).rglob("*") if path.is_file())
    states = ((path.relative_to(results).as_posix(), path.stat()) for path in paths)
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states}


def _write_index(project: Path, results: Path) -> None:
    rows = ["notebook,mode,file"]
    for path in find_notebooks(project / "notebooks"):
        if record := _record(results / "notebooks" / path.name):
            rows += [f"{path.stem},{record['mode']},{name}" for name in record["files"]]
    _write_text(results / "runs.csv", "\n".join(rows) + "\n")


def _common_digest(project: Path, quick: bool) -> bytes:
    """Digest what every notebook depends on: package and its data, traces, pins, interpreter."""
    from selfserve.traces import SOURCES, trace_file

    roots = (Path(__file__).parent, project / "traces")
    files = [path for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts] + [project / name for name in _PINS]
    parts = [platform.python_version(), *(f"{path.name} {_digest(path.read_bytes())}" for path in files)]
    if not quick:  # published traces carry their checksums, so that being there is all that can change
        parts += [name for name in SOURCES if trace_file(name).is_file()]
    return "\n".join(parts).encode()


def _source(path: Path) -> bytes:
    """Return what a run depends on: the cells' kinds, tags and sources, not their outputs."""
    cells = [[c["cell_type"], c["metadata"].get("tags", []), "".join(c["source"])] for c in _cells(path)]
    return json.dumps(cells).encode()


def _cells(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    results = Path(os.environ.get("SELFSERVE_RESULTS") or project / "results").resolve()
    reference, names = project / "results" / "reference", []
    for path in find_notebooks(project / "notebooks"):
        record = _record(results / "notebooks" / path.name)
        if record is None or record["mode"] != "full":
            what = f"{path.stem} has no results of a full run to publish"
            raise InputError(f"notebooks: {what}; run it without --quick first")
        names += [name for name in record["files"] if name.endswith(".png") or name.startswith("tables/")]
    if lost := [name for name in names if not (results / name).is_file()]:
        raise InputError(f"notebooks: {lost[0]} is not in {results}; run its notebook again")
    for folder in ("tables", "figures"):  # what else is there is written by hand
        shutil.rmtree(reference / folder, ignore_errors=True)
    for name in names:
        target = reference / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results / name, target)
    return len(names)
