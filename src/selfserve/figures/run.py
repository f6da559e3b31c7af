"""One run over time: the load against the machines that were there to carry it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
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
    fig, (above, below) = subplots(2, 1, figsize=(WIDTH_IN, 4.4), sharex=True, height_ratios=[2, 1])
    hours = np.append(table["time_s"], table["time_s"].iloc[-1] + table["interval_s"].iloc[-1]) / 3600
    lines: list[tuple[Axes, str, str, dict[str, Any]]] = [
        (above, "started_machines", "started (ready or booting)", {"color": blue, "linestyle": ":"}),
        (above, "ready_machines", "ready", {"color": blue, "linewidth": 1.6}),
        (above, "load_machines", "offered load", {"color": orange, "linewidth": 0.9}),
        (below, "to_functions_per_s", "answered by functions", {"color": green, "linestyle": "--"}),
        (below, "late_per_s", "answered late", {"color": red}),
    ]
    for ax, column, label, look in lines:
        ax.stairs(table[column], hours, baseline=None, label=label, **look)
    for ax, unit in ((above, "machines"), (below, "requests/s")):
        ax.set(ylabel=unit, ylim=(0, None), xlim=(hours[0], hours[-1]))
        if warmup_s:
            ax.axvspan(0, warmup_s / 3600, color="0.93", zorder=0, label="warm-up, not scored" if ax is above else None)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0, borderaxespad=0.3, columnspacing=1.2)
    below.set_xlabel("time since the window's start (h)")
    fig.suptitle(title)
    return finish(fig)
