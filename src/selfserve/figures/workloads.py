"""The figures of notebook 03: tidy tables of :mod:`selfserve.studies.workloads` in, matplotlib figures out."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from selfserve.figures.style import LINES, WIDTH_IN, colors, finish, name_rows, series, trace_style

_STATISTICS = {
    "mean": "mean", "median": "median", "peak": "peak", "peak_to_median": "peak / median",
    "burstiness": "(peak − mean) / peak", "dispersion_1s": "dispersion at 1 s", "dispersion_60s": "dispersion at 60 s",
}  # fmt: skip


def traces_over_time(shapes: pd.DataFrame, splits: pd.DataFrame) -> Figure:
    """Draw each trace: mean of each minute, the band of its lowest and highest second, and its splits."""
    names = shapes["trace"].unique()
    rows = -(-len(names) // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(WIDTH_IN, 1.85 * rows + 0.2))
    for ax, name in zip(axes.flat, names, strict=False):
        data, color = shapes[shapes["trace"] == name], trace_style(name)["color"]
        ax.fill_between(data["hour"], data["low"], data["high"], color=color, alpha=0.25, linewidth=0)
        ax.plot(data["hour"], data["mean"], color=color, linewidth=1)
        top = data["high"].max() * 1.22
        ax.set(title=name, xlim=(0, data["hour"].iloc[-1]), ylim=(0, top))
        parts, shade = splits[splits["trace"] == name], {"train": "none", "validate": "0.83", "evaluate": "0.94"}
        for row in parts[parts["end_h"] > parts["start_h"]].itertuples():  # shaded, and named along the panel's top
            ax.axvspan(row.start_h, row.end_h, color=shade[row.split], zorder=0, linewidth=0)
            text = "val." if row.end_h - row.start_h < 0.2 * parts["end_h"].max() else row.split
            at: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "top"}
            ax.text((row.start_h + row.end_h) / 2, 0.98, text, fontsize="small", **at)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    fig.supxlabel("hours since the trace's start", fontsize="medium")
    fig.supylabel("requests/s (line: mean of a minute; band: its lowest and highest second)", fontsize="medium")
    return finish(fig)


def day_shape(table: pd.DataFrame) -> Figure:
    """Draw hourly means over the trace's mean against hours since its start, labelled at the line's end."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.0))
    for name, data in table.groupby("trace", sort=False):
        ax.plot(data["hour"] + 0.5, data["relative"], label=name, markersize=4, linewidth=1.2, **trace_style(str(name)))
    ax.axhline(1.0, color="0.6", linewidth=0.8)
    ax.set(xlabel="hours since the trace's start (time of day unknown)", ylabel="hourly mean / trace mean")
    ax.set(ylim=(0, None), xlim=(0, table["hour"].max() + 1))
    ax.set_xticks(np.arange(0, table["hour"].max() + 6, 6))
    ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return finish(fig)


def burstiness_scatter(hours: pd.DataFrame, whole: pd.DataFrame, threshold_pct: float) -> Figure:
    """Draw dispersion at 60 s against (peak - mean) / peak: small for each hour, large for the whole trace."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.8))
    for row in whole.itertuples():
        style = {key: value for key, value in trace_style(row.trace).items() if key != "linestyle"}
        data = hours[hours["trace"] == row.trace]
        ax.scatter(data["burstiness_pct"], data["dispersion_60s"], s=9, alpha=0.45, **style)
        look: dict[str, Any] = {"s": 75, "edgecolor": "black", "zorder": 3, "label": row.trace, **style}
        ax.scatter([100 * row.burstiness], [row.dispersion_60s], **look)
    ax.axvline(threshold_pct, color="0.4", linestyle="--", linewidth=1)
    note: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "va": "top"}
    ax.text(threshold_pct + 0.5, 0.98, f"{threshold_pct:.0f}%", **note)
    ax.text(1, 0.98, "large: whole trace\nsmall: each hour", **note)
    ax.set(xlabel="(peak − mean) / peak, percent", xlim=(0, 100))
    ax.set(ylabel="variance / mean of requests in 60 s", yscale="log")
    return finish(fig, ax, ncols=4)


def twin_closeness(table: pd.DataFrame) -> Figure:
    """Draw each statistic of each twin over its original, with the 10% aim and the spread over other seeds."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 4.4))
    names = list(table["trace"].unique())
    ax.axvspan(0.9, 1.1, color="0.92", zorder=0)
    ax.axvline(1.0, color="0.5", linewidth=0.8)
    for i, name in enumerate(names):
        data, style = table[table["trace"] == name], trace_style(name)
        y = data["statistic"].map(list(_STATISTICS).index) + (i - (len(names) - 1) / 2) * 0.15
        spread: Any = {"fmt": "none", "ecolor": style["color"], "elinewidth": 1, "alpha": 0.6, "capsize": 2}
        ax.errorbar(data["other_seeds_mean"], y, xerr=data["other_seeds_sd"], **spread)
        ax.plot(data["ratio"], y, markersize=6, label=name, **style | {"linestyle": "none"})
    name_rows(ax, list(_STATISTICS.values()))
    ax.set_xlabel("twin / original\n(marker: the twin; bar: mean ± s.d. over other seeds; grey: ±10%)")
    ax.legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.4, 1.0), columnspacing=1.2)
    return finish(fig)


def twin_detail(excerpts: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """Draw, for each trace, its busiest minutes by the second (original, where known, and twin) and its memory."""
    names, sides = excerpts["trace"].unique(), list(excerpts["side"].unique())
    looks = {"original": series(0), "twin": series(1)}
    shape = (len(names), len(sides) + 1)
    fig, axes = plt.subplots(*shape, figsize=(WIDTH_IN, 1.45 * len(names) + 0.3), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        top = 1.05 * excerpts.loc[excerpts["trace"] == name, "requests"].max()
        for ax, side in zip(row, sides, strict=False):
            piece = excerpts[(excerpts["trace"] == name) & (excerpts["side"] == side)]
            ax.plot(piece["second"] / 60, piece["requests"], color=looks[side]["color"], linewidth=0.7)
            ax.set(ylim=(0, top), xlim=(0, (piece["second"].max() + 1) / 60))
            memory = correlations[(correlations["trace"] == name) & (correlations["side"] == side)]
            look = looks[side] | {"label": side, "markersize": 3, "linewidth": 1}
            row[-1].plot(memory["lag_s"], memory["autocorrelation"], **look)
        row[0].set_ylabel(f"{name}\nrequests/s")
        row[-1].set(xscale="log", ylim=(-0.12, 1), xlim=(0.8, 5000))
    for ax, title in zip(axes[0], [*sides, "autocorrelation"], strict=True):
        ax.set_title(title)
    for ax in axes[-1, :-1]:
        ax.set_xlabel("minutes of the busiest stretch")
    axes[-1, -1].set_xlabel("lag, s")
    axes[0, -1].legend(loc="lower left", fontsize="small")
    return finish(fig)


def class_drift(table: pd.DataFrame) -> Figure:
    """Draw the class shares over time, a panel for each drift, a line for each class and seed."""
    drifts = table["drift"].unique()
    fig, axes = plt.subplots(1, len(drifts), figsize=(WIDTH_IN, 2.8), sharey=True)
    for ax, drift in zip(axes, drifts, strict=True):
        for i, (name, data) in enumerate(table[table["drift"] == drift].groupby("class", sort=False)):
            for n, (_, line) in enumerate(data.groupby("seed")):
                width, label = (0.8, None) if n else (1.6, str(name))
                look = {"color": colors()[i], "linestyle": LINES[i], "linewidth": width, "label": label}
                ax.plot(line["hour"], 100 * line["share"], **look)
        ax.set(title=f"share_drift = {drift:g}", xlabel="hours into the window", ylim=(0, 100))
        ax.set(xlim=(0, table["hour"].max()), xticks=np.arange(0, table["hour"].max() + 0.5, 2))
    axes[0].set_ylabel("share of requests, percent")
    return finish(fig, axes[0], ncols=6)
