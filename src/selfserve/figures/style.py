"""One look for every figure, and the one way to write figures and tables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

WIDTH_IN = 7.0
"""Width of a figure over both columns of a paper; ``COLUMN_IN`` is that of one column."""
COLUMN_IN = 3.4

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))

_POLICIES = (
    "bound", "clairvoyant", "static", "reactive", "util_aware", "exascale", "mixed", "spock", "paragon", "mark",
    "batch", "inferall", "clipper", "infaas", "tolerance_tiers", "cocktail", "proteus", "forecast_milp",
    "target_tracking", "knative", "ray_serve", "tuned", "tuned_fixed", "analytic", "controller",
)  # fmt: skip
"""Every policy has its place here, so that it looks the same in every figure."""


def use_style() -> None:
    """Set seaborn's colour-blind palette, paper-sized legible text and reproducible, embeddable output."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # matplotlib stamps PDFs with it instead of the time of day
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=1.05)
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH_IN, 3.2),
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "0.9",
            "legend.frameon": False,
            "lines.markersize": 5,
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
            "svg.hashsalt": "selfserve",
        }
    )


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
        "marker": _MARKERS[(place + place // len(palette)) % len(_MARKERS)],
        "linestyle": _LINES[(place // 2 + place) % len(_LINES)],
    }


def results_dir() -> Path:
    """Return the results folder: ``SELFSERVE_RESULTS``, else ``results`` beside the ``run_all.sh`` found upwards.

    Without either it is ``results`` in the current folder.
    """
    if configured := os.environ.get("SELFSERVE_RESULTS"):
        return Path(configured)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "run_all.sh").is_file():
            return folder / "results"
    return here / "results"


def save_figure(fig: Figure, name: str, data: pd.DataFrame | Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write ``figures/NAME.pdf``, ``.png`` (200 dpi) and the plotted data as ``.csv``; return the paths.

    The same figure and data give the same bytes. Several tables (a mapping) become ``NAME_KEY.csv`` each.
    """
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    folder = results_dir() / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    for path in paths:
        part = path.with_name(f".{path.stem}.part{path.suffix}")
        metadata = {"Creator": None, "Producer": None} if path.suffix == ".pdf" else {"Software": None}
        fig.savefig(part, dpi=200, metadata=metadata)
        part.replace(path)
    tables = {name: data} if isinstance(data, pd.DataFrame) else {f"{name}_{key}": table for key, table in data.items()}
    return paths + [_write_csv(table, folder / f"{stem}.csv") for stem, table in tables.items()]


def save_table(frame: pd.DataFrame, name: str) -> Path:
    """Write ``tables/NAME.csv`` and return its path."""
    folder = results_dir() / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    return _write_csv(frame, folder / f"{name}.csv")


def _write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table whole or not at all: to a file beside it, which is then renamed."""
    part = path.with_name(f".{path.name}.part")
    frame.to_csv(part, index=False, float_format="%.9g", lineterminator="\n")
    part.replace(path)
    return path


def finish(fig: Figure) -> Figure:
    """Close the figure in pyplot, so that a notebook shows it once and long runs hold no open figures."""
    plt.close(fig)
    return fig
