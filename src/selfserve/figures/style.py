"""One look for every figure, and the one way to write figures and tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

WIDTH_IN = 7.0
"""Width of a figure over both columns of a paper."""
LEAST_LATE_PCT = 0.003
"""Late requests below this are drawn here: a logarithmic axis has no zero."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))

_POLICIES = (
    "bound", "clairvoyant", "static", "reactive", "util_aware", "exascale", "mixed", "spock", "paragon", "mark",
    "batch", "inferall", "clipper", "infaas", "tolerance_tiers", "cocktail", "proteus", "forecast_milp",
    "target_tracking", "knative", "ray_serve", "tuned", "tuned_fixed", "analytic", "controller",
)  # fmt: skip
"""Every policy has its place here, so that it looks the same in every figure."""
_TRACES = ("WITS", "berkeley", "twitter", "twitter_hour", "azure_code", "wiki_like")


def use_style() -> None:
    """Set seaborn's colour-blind palette, paper-sized legible text and reproducible, embeddable output."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # matplotlib stamps PDFs with it instead of the time of day
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=1.05)
    mpl.rcParams.update(
        {"figure.figsize": (WIDTH_IN, 3.2), "figure.constrained_layout.use": True, "figure.dpi": 110, "axes.grid": True,
         "axes.spines.top": False, "axes.spines.right": False, "grid.color": "0.9", "legend.frameon": False,
         "lines.markersize": 5, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "selfserve"}
    )  # fmt: skip


def colors() -> list[tuple[float, float, float]]:
    """Return the ten colours of the palette in order."""
    return list(sns.color_palette("colorblind"))


def policy_style(name: str) -> dict[str, Any]:
    """Return ``color``, ``marker`` and ``linestyle`` of a policy, for ``ax.plot(..., **policy_style(name))``.

    The bound is black. A name that is not listed (a user's policy) gets a look that depends on the name alone.
    """
    if name == "bound":
        return {"color": "black", "marker": "_", "linestyle": (0, (1, 1))}
    place = _POLICIES.index(name) if name in _POLICIES else sum(map(ord, name))
    palette = colors()
    return {
        "color": palette[place % len(palette)],
        "marker": MARKERS[(place + place // len(palette)) % len(MARKERS)],
        "linestyle": LINES[(place // 2 + place) % len(LINES)],
    }


def results_dir() -> Path:
    """Return the results folder: ``SELFSERVE_RESULTS``, else ``results`` beside the ``run_all.sh`` found upwards.

    Without either it is ``results`` in the current folder.
    """
    if configured := os.environ.get("SELFSERVE_RESULTS"):
        return Path(configured)
    here = Path.cwd()
    roots = (folder for folder in (here, *here.parents) if (folder / "run_all.sh").is_file())
    return next(roots, here) / "results"


def save_figure(fig: Figure, name: str, data: pd.DataFrame | Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write ``figures/NAME.pdf``, ``.png`` (200 dpi) and the plotted data as ``.csv``; return the paths.

    The same figure and data give the same bytes. Several tables (a mapping) become ``NAME_KEY.csv`` each.
    """
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    paths = [_path("figures", f"{name}.pdf"), _path("figures", f"{name}.png")]
    for path in paths:
        part = path.with_name(f".{path.stem}.part{path.suffix}")
        metadata = {"Creator": None, "Producer": None} if path.suffix == ".pdf" else {"Software": None}
        fig.savefig(part, dpi=200, metadata=metadata)
        part.replace(path)
    tables = {name: data} if isinstance(data, pd.DataFrame) else {f"{name}_{key}": table for key, table in data.items()}
    return paths + [_write_csv(table, _path("figures", f"{stem}.csv")) for stem, table in tables.items()]


def save_table(frame: pd.DataFrame, name: str) -> Path:
    """Write ``tables/NAME.csv`` and return its path."""
    return _write_csv(frame, _path("tables", f"{name}.csv"))


def _path(folder: str, file: str) -> Path:
    (results_dir() / folder).mkdir(parents=True, exist_ok=True)
    return results_dir() / folder / file


def _write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table whole or not at all: to a file beside it, which is then renamed."""
    part = path.with_name(f".{path.name}.part")
    frame.to_csv(part, index=False, float_format="%.9g", lineterminator="\n")
    part.replace(path)
    return path


def series(i: int) -> dict[str, Any]:
    """Return ``color``, ``marker`` and ``linestyle`` of the i-th line of a figure."""
    return {"color": colors()[i], "marker": "osD^vPX"[i], "linestyle": LINES[i]}


def marks(i: int, **more: Any) -> dict[str, Any]:
    """Return the look of the i-th cloud of points of a figure."""
    return {"color": colors()[i], "marker": MARKERS[i], "linestyle": "none", **more}


def trace_style(name: str) -> dict[str, Any]:
    """Return ``color``, ``marker`` and ``linestyle`` of a trace; its twin looks the same."""
    base = name.removesuffix("-twin")
    i = _TRACES.index(base) if base in _TRACES else len(_TRACES)
    return marks(i, linestyle=LINES[i])


def trace_marks(name: str, **more: Any) -> dict[str, Any]:
    """Return the look of a trace's cloud of points."""
    return trace_style(name) | {"linestyle": "none"} | more


def log_axis(axis: Axis, ticks: Sequence[float] | None = None, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Make an axis logarithmic with plain numbers at ``ticks``, else at ``subs`` of every decade."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    if ticks is None:
        axis.set_major_locator(LogLocator(subs=subs))
    else:
        axis.set_ticks(list(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def name_rows(ax: Axes, names: Sequence[str], **text: Any) -> None:
    """Write the names of rows 0, 1, .. along the vertical axis, the first on top, without grid lines."""
    ax.set_yticks(range(len(names)), names, **text)
    ax.grid(axis="y", visible=False)
    if not ax.yaxis_inverted():
        ax.invert_yaxis()


def panels(names: Sequence[str], columns: int, height_in: float, x: str, y: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel a name, all with the same axes ``x`` and ``y``, rows ``height_in`` inches high."""
    rows = -(-len(names) // columns)
    size = (WIDTH_IN, 0.8 + height_in * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, names, strict=False):
        ax.set_title(name, fontsize=8)
        ax.tick_params(labelsize=7)
    fig.supxlabel(x, fontsize=9)
    fig.supylabel(y, fontsize=9)
    return fig, list(axes.flat[: len(names)])


def finish(fig: Figure, legend: Axes | None = None, **options: Any) -> Figure:
    """Close the figure in pyplot, so that a notebook shows it once and long runs hold no open figures.

    With ``legend`` the labels of these axes stand above the figure; ``options`` are those of matplotlib's legend.
    """
    if legend is not None:
        fig.legend(*legend.get_legend_handles_labels(), loc="outside upper center", **options)
    plt.close(fig)
    return fig
