"""One run over time: the load against the machines that were there to carry it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.pyplot import subplots

from selfserve.figures.style import WIDTH_IN, colors, finish, use_style


def load_against_capacity(table: pd.DataFrame, title: str, warmup_s: float = 0.0) -> Figure:
    """Draw a run over time: load and machines above, requests that went to functions or were late below.

    Args:
        table: one row an interval with ``time_s``, ``interval_s``, ``load_machines`` (work that arrived, in machines
            kept busy), ``ready_machines``, ``started_machines`` (ready and booting), ``to_functions_per_s`` and
            ``late_per_s``.
        title: what was run.
        warmup_s: seconds at the start that are not scored, shaded.
    """
    use_style()
    blue, orange, green, red = colors()[:4]
    fig, (above, below) = subplots(2, 1, figsize=(WIDTH_IN, 4.2), sharex=True, height_ratios=[2, 1])
    edges = np.append(table["time_s"], table["time_s"].iloc[-1] + table["interval_s"].iloc[-1]) / 3600
    above.stairs(table["load_machines"], edges, color=orange, linewidth=0.9, label="offered load")
    above.stairs(
        table["started_machines"], edges, color=blue, linestyle=":", label="machines started (ready or booting)"
    )
    above.stairs(table["ready_machines"], edges, color=blue, linewidth=1.6, label="machines ready")
    above.set(ylabel="machines", title=title, ylim=(0, None))
    below.stairs(table["to_functions_per_s"], edges, color=green, linestyle="--", label="answered by functions")
    below.stairs(table["late_per_s"], edges, color=red, label="answered late")
    below.set(
        xlabel="time since the window's start (h)", ylabel="requests/s", xlim=(edges[0], edges[-1]), ylim=(0, None)
    )
    for ax in (above, below):
        if warmup_s:
            ax.axvspan(0, warmup_s / 3600, color="0.93", zorder=0, label="warm-up, not scored" if ax is above else None)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finish(fig)
