"""Figures of notebook 01: models, their cost, their profile, and how far carrying it can be trusted."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from selfserve.figures.style import WIDTH_IN, colors, finish, log_axis, name_rows, series, use_style


def accuracy_latency(table: pd.DataFrame, floor_pct: float, bound_ms: float) -> Figure:
    """Accuracy against latency: the Pareto front, the dominated models, an accuracy floor and a latency bound."""
    use_style()
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 4.2))
    front, behind = table[table["front"]], table[~table["front"]]
    blue, red = colors()[0], colors()[3]
    ax.step(front["latency_ms"], front["accuracy_pct"], where="post", color=blue, linewidth=1.2)
    ax.plot(front["latency_ms"], front["accuracy_pct"], "o", color=blue, label="on the front: nothing better")
    ax.plot(behind["latency_ms"], behind["accuracy_pct"], "x", color=red, mew=1.5, label="dominated")
    low, high = table["latency_ms"].min() * 0.7, max(table["latency_ms"].max(), bound_ms) * 1.25
    ax.axhline(floor_pct, color="0.55", linestyle=":", linewidth=1)
    ax.axvline(bound_ms, color="0.55", linestyle=":", linewidth=1)
    note: Any = {"color": "0.35", "fontsize": 8}
    ax.annotate(f"floor {floor_pct:g} %", (low * 1.03, floor_pct + 0.3), **note)
    ax.annotate(f"bound {bound_ms:g} ms", (bound_ms * 0.96, 60), rotation=90, ha="right", va="bottom", **note)
    log_axis(ax.xaxis)
    ax.set(xlim=(low, high), xlabel="latency of one answer, batch 1, one vCPU (ms)")
    ax.set(ylabel="ImageNet top-1 accuracy (%)", ylim=(table["accuracy_pct"].min() - 3, 87))
    ax.legend(loc="lower right", bbox_to_anchor=(0.93, 0.0))
    _label_points(ax, table)
    return finish(fig)


def iso_sets(by_latency: pd.DataFrame, by_accuracy: pd.DataFrame) -> Figure:
    """Models of one latency bound by accuracy (left) and of one accuracy floor by latency (right)."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.9), width_ratios=[1.1, 1])
    bound, floor = by_latency["bound_ms"].iloc[0], by_accuracy["floor_pct"].iloc[0]
    left, right = by_latency.sort_values("accuracy_pct"), by_accuracy.sort_values("latency_ms", ascending=False)
    _bars(axes[0], left, "accuracy_pct", "{:.1f}")
    axes[0].set(title=f"latency at most {bound:g} ms", xlabel="top-1 accuracy (%)", xlim=(0, 105))
    _bars(axes[1], right, "latency_ms", "{:.0f}")
    axes[1].set(title=f"accuracy at least {floor:g} %", xlabel="latency of one answer (ms)")
    axes[1].set_xlim(0, right["latency_ms"].max() * 1.15)
    return finish(fig)


def cost_per_answer(table: pd.DataFrame) -> Figure:
    """Cost of a million answers against accuracy, on a busy VM and on warm functions, and the ratio of the two."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.3), width_ratios=[1.5, 1])
    front = table[table["front"]].sort_values("accuracy_pct")
    looks = (("vm", "busy VM", "o", "-"), ("function", "warm function", "s", "--"))
    for color, (kind, label, marker, line) in zip(colors(), looks, strict=False):
        usd = f"{kind}_usd_per_million"
        axes[0].plot(table["accuracy_pct"], table[usd], marker, color=color, alpha=0.35, markeredgewidth=0)
        axes[0].plot(front["accuracy_pct"], front[usd], color=color, marker=marker, linestyle=line, label=label)
    axes[0].set(xlabel="top-1 accuracy (%)", ylabel="US dollars per million answers")
    axes[0].set_ylim(0, table["function_usd_per_million"].max() * 1.05)
    axes[0].legend(loc="upper left", title="line: Pareto front")
    ratio = table["function_usd_per_million"] / table["vm_usd_per_million"]
    axes[1].plot(table["latency_ms"], ratio, "D", color=colors()[2])
    axes[1].axhline(1, color="0.4", linewidth=1)
    axes[1].annotate("a busy VM", (table["latency_ms"].max(), 1.06), ha="right", va="bottom", color="0.35", fontsize=8)
    log_axis(axes[1].xaxis)
    axes[1].set(xlabel="latency on one vCPU (ms)", ylabel="function cost over busy-VM cost")
    axes[1].set_ylim(0, ratio.max() * 1.15)
    return finish(fig)


def profile_overview(batching: pd.DataFrame, table: pd.DataFrame, shown: list[str]) -> Figure:
    """What the profile says: latency against GMACs, time of an image by batch size, gain of a second thread."""
    use_style()
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.1), width_ratios=[1.15, 1, 1])
    gmacs, ms = table["gmacs"], table["latency_ms"]
    axes[0].plot(gmacs, ms, "o", color=colors()[0])
    rate = float(np.median(ms / gmacs))
    ends = np.array([gmacs.min() * 0.8, gmacs.max() * 1.25])
    axes[0].plot(ends, rate * ends, color="0.4", linestyle="--", linewidth=1)
    text = f"{rate:.0f} ms a GMAC\n(median)"
    axes[0].annotate(text, (ends[1], rate * ends[0] * 2), ha="right", color="0.3", fontsize=8)
    axes[0].set(xlabel="size of the model (GMACs)", ylabel="latency, batch 1 (ms)")
    for axis in (axes[0].xaxis, axes[0].yaxis):
        log_axis(axis, subs=(1,))
    for i, model in enumerate(shown):
        rows = batching[batching["model"] == model]
        one, two = rows[rows["threads"] == 1], rows[rows["threads"] == 2]
        axes[1].plot(one["batch"], one["relative_to_batch_1"], **series(i))
        axes[2].plot(two["batch"], two["speedup_of_threads"], label=model, **series(i))
    axes[1].set(ylabel="time of an image over batch 1", ylim=(0, 1.35))
    axes[2].set(ylabel="speed-up by a second thread", ylim=(0, 2.3))
    for ax, level in zip(axes[1:], (1, 2), strict=True):
        ax.axhline(level, color="0.5", linewidth=1, linestyle=":")
        log_axis(ax.xaxis, sorted(batching["batch"].unique()))
        ax.minorticks_off()
        ax.set_xlabel("batch size (images)")
    return finish(fig, axes[2], ncols=len(shown), fontsize=8)


def carry_errors(check: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Carried over published values, by check: one dot a value, the median, and a band of a factor of two."""
    use_style()
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.4))
    ax.axvspan(0.5, 2, color="0.93", zorder=0)
    ax.axvline(1, color="0.4", linewidth=1)
    names = list(summary["check"])
    for place, name in enumerate(names):
        ratio = check.loc[check["check"] == name, "ratio"].sort_values().to_numpy()
        offsets = np.linspace(-0.22, 0.22, len(ratio)) if len(ratio) > 1 else np.zeros(1)
        ax.plot(ratio, place + offsets, "o", color=colors()[place], alpha=0.75, markersize=4, markeredgewidth=0)
        ax.plot(summary["median_ratio"][place], place, "|", color="black", markersize=18, markeredgewidth=2)
    name_rows(ax, [f"{name} ({n})" for name, n in zip(names, summary["values"], strict=True)])
    ax.set(xlabel="carried value over published value", ylim=(len(names) - 0.5, -0.7))
    least, most = check["ratio"].min() / 2, check["ratio"].max() * 2
    log_axis(ax.xaxis, [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if least <= t <= most])
    ax.annotate("factor of two", (1.05, -0.66), fontsize=8, color="0.35", va="top")
    return finish(fig)


def _bars(ax: Axes, table: pd.DataFrame, column: str, text: str) -> None:
    """Draw horizontal bars with their values; models on the Pareto front are solid, others pale and hatched."""
    look: Any = {"color": [colors()[0] if front else "0.85" for front in table["front"]], "edgecolor": "0.6"}
    look["hatch"] = ["" if front else "////" for front in table["front"]]
    bars = ax.barh(range(len(table)), table[column], height=0.72, linewidth=0, **look)
    ax.bar_label(bars, fmt=text, padding=3, fontsize=7.5)
    ax.set_yticks(range(len(table)), table["model"], fontsize=8)
    ax.grid(False, axis="y")


def _label_points(ax: Axes, table: pd.DataFrame) -> None:
    """Write each model's name beside its point, at the first of a few places where it covers nothing drawn before."""
    fig = ax.get_figure(root=True)
    assert fig is not None
    fig.draw_without_rendering()  # the layout must stand before places are compared
    points = ax.transData.transform(table[["latency_ms", "accuracy_pct"]].to_numpy())
    scale = fig.dpi / 72
    legend = ax.get_legend()
    assert legend is not None
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in points] + [legend.get_window_extent()]
    for (x0, y0), (x1, y1) in pairwise(points[table["front"].to_numpy()]):  # the steps of the front
        taken += [Bbox([(x0, y0 - 2), (x1, y0 + 2)]), Bbox([(x1 - 2, y0), (x1 + 2, y1)])]
    inside = ax.get_window_extent()
    for (x, y), row in zip(points, table.to_dict("records"), strict=True):
        width, height = 4.1 * len(row["model"]) * scale, 8 * scale
        for dx, dy, ha in _PLACES:
            x0 = x + dx * scale - {"left": 0.0, "right": width, "center": width / 2}[ha]
            box = Bbox.from_bounds(x0, y + dy * scale - height / 2, width, height)
            within = inside.x0 < box.x0 and box.x1 < inside.x1 and box.y1 < inside.y1
            if within and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        at, color = (row["latency_ms"], row["accuracy_pct"]), "black" if row["front"] else "0.35"
        where: Any = {"textcoords": "offset points", "ha": ha, "va": "center"}
        ax.annotate(row["model"], at, (dx, dy), fontsize=7.5, color=color, **where)


_PLACES = (
    (6, 0, "left"), (-6, 0, "right"), (-4, 8, "right"), (6, 7, "left"), (6, -8, "left"), (0, 9, "center"),
    (0, -9, "center"), (-6, -8, "right"), (0, 17, "center"), (0, -17, "center"), (12, 15, "left"), (12, -15, "left"),
)  # fmt: skip
"""Offsets from a point to its label, points, in order of preference."""
