"""Figures of notebook 01: models, their cost, their profile, and how far carrying it can be trusted."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from selfserve.figures.style import WIDTH_IN, colors, finish, use_style

_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


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
    ax.annotate(f"floor {floor_pct:g} %", (low * 1.03, floor_pct + 0.3), color="0.35", fontsize=8)
    ax.annotate(
        f"bound {bound_ms:g} ms", (bound_ms * 0.96, 60), color="0.35", fontsize=8, rotation=90, ha="right", va="bottom"
    )
    ax.set(xscale="log", xlim=(low, high), xlabel="latency of one answer, batch 1, one vCPU (ms)")
    ax.set(ylabel="ImageNet top-1 accuracy (%)", ylim=(table["accuracy_pct"].min() - 3, 87))
    _log_ticks(ax, "x")
    ax.legend(loc="lower right", bbox_to_anchor=(0.93, 0.0))
    _label_points(ax, table)
    return finish(fig)


def iso_sets(by_latency: pd.DataFrame, by_accuracy: pd.DataFrame) -> Figure:
    """Models of one latency bound by accuracy (left) and of one accuracy floor by latency (right)."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.9), width_ratios=[1.1, 1])
    bound, floor = by_latency["bound_ms"].iloc[0], by_accuracy["floor_pct"].iloc[0]
    left = by_latency.sort_values("accuracy_pct")
    right = by_accuracy.sort_values("latency_ms", ascending=False)
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
    series = (
        ("vm_usd_per_million", "busy VM", colors()[0], "o", "-"),
        ("function_usd_per_million", "warm function", colors()[1], "s", "--"),
    )
    front = table[table["front"]].sort_values("accuracy_pct")
    for column, label, color, marker, line in series:
        axes[0].plot(table["accuracy_pct"], table[column], marker, color=color, alpha=0.35, markeredgewidth=0)
        axes[0].plot(front["accuracy_pct"], front[column], color=color, marker=marker, linestyle=line, label=label)
    axes[0].set(xlabel="top-1 accuracy (%)", ylabel="US dollars per million answers")
    axes[0].set_ylim(0, table["function_usd_per_million"].max() * 1.05)
    axes[0].legend(loc="upper left", title="line: Pareto front")
    ratio = table["function_usd_per_million"] / table["vm_usd_per_million"]
    axes[1].plot(table["latency_ms"], ratio, "D", color=colors()[2])
    axes[1].axhline(1, color="0.4", linewidth=1)
    axes[1].annotate("a busy VM", (table["latency_ms"].max(), 1.06), ha="right", va="bottom", color="0.35", fontsize=8)
    axes[1].set(xscale="log", xlabel="latency on one vCPU (ms)", ylabel="function cost over busy-VM cost")
    axes[1].set_ylim(0, ratio.max() * 1.15)
    _log_ticks(axes[1], "x")
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
    axes[0].annotate(
        f"{rate:.0f} ms a GMAC\n(median)", (ends[1], rate * ends[0] * 2), ha="right", color="0.3", fontsize=8
    )
    axes[0].set(xscale="log", yscale="log", xlabel="size of the model (GMACs)", ylabel="latency, batch 1 (ms)")
    _log_ticks(axes[0], "x", (1,))
    _log_ticks(axes[0], "y", (1,))
    for i, model in enumerate(shown):
        look = {"color": colors()[i], "marker": "osD^vP"[i], "linestyle": ("-", "--", "-.", ":")[i % 4]}
        rows = batching[batching["model"] == model]
        one = rows[rows["threads"] == 1]
        axes[1].plot(one["batch"], one["relative_to_batch_1"], **look)
        two = rows[rows["threads"] == 2]
        axes[2].plot(two["batch"], two["speedup_of_threads"], label=model, **look)
    axes[1].set(ylabel="time of an image over batch 1", ylim=(0, 1.35))
    axes[2].set(ylabel="speed-up by a second thread", ylim=(0, 2.3))
    axes[2].axhline(2, color="0.5", linewidth=1, linestyle=":")
    for ax in axes[1:]:
        ax.set_xscale("log", base=2)
        ax.set(xlabel="batch size (images)", xticks=sorted(batching["batch"].unique()))
        ax.xaxis.set_major_formatter(_PLAIN)
    axes[1].axhline(1, color="0.5", linewidth=1, linestyle=":")
    fig.legend(*axes[2].get_legend_handles_labels(), loc="outside upper center", ncols=len(shown), fontsize=8)
    return finish(fig)


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
    ax.set(xscale="log", yticks=range(len(names)), xlabel="carried value over published value")
    ax.set_yticklabels([f"{name} ({n})" for name, n in zip(names, summary["values"], strict=True)])
    ax.set_ylim(len(names) - 0.5, -0.7)
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if check["ratio"].min() / 2 <= t <= check["ratio"].max() * 2]
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(_PLAIN)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.annotate("factor of two", (1.05, -0.66), fontsize=8, color="0.35", va="top")
    ax.grid(False, axis="y")
    return finish(fig)


def _bars(ax: Axes, table: pd.DataFrame, column: str, text: str) -> None:
    """Draw horizontal bars with their values; models on the Pareto front are solid, others pale and hatched."""
    for place, row in enumerate(table.to_dict("records")):
        look = {"color": colors()[0]} if row["front"] else {"color": "0.85", "hatch": "////", "edgecolor": "0.6"}
        ax.barh(place, row[column], height=0.72, linewidth=0, **look)
        ax.annotate(text.format(row[column]), (row[column], place), xytext=(3, 0), textcoords="offset points",
                    va="center", fontsize=7.5)  # fmt: skip
    ax.set_yticks(range(len(table)))
    ax.set_yticklabels(table["model"], fontsize=8)
    ax.grid(False, axis="y")


def _log_ticks(ax: Axes, which: str, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(_PLAIN)
    axis.set_minor_formatter(NullFormatter())


def _label_points(ax: Axes, table: pd.DataFrame) -> None:
    """Write each model's name beside its point, at the first of a few places where it covers nothing drawn before."""
    fig = ax.get_figure(root=True)
    assert fig is not None
    fig.draw_without_rendering()  # the layout must stand before places are compared
    points = ax.transData.transform(table[["latency_ms", "accuracy_pct"]].to_numpy())
    scale = fig.dpi / 72
    taken: list[tuple[float, ...]] = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    legend = ax.get_legend()
    if legend is not None:
        taken.append(tuple(legend.get_window_extent().extents))
    front = points[table["front"].to_numpy()]
    for (x0, y0), (x1, y1) in pairwise(front):  # the steps of the front
        taken += [(x0, y0 - 2, x1, y0 + 2), (x1 - 2, y0, x1 + 2, y1)]
    inside = ax.get_window_extent()
    for (x, y), row in zip(points, table.to_dict("records"), strict=True):
        name = row["model"]
        width, height = 4.1 * len(name) * scale, 8 * scale
        for dx, dy, ha in _PLACES:
            x0 = x + dx * scale - {"left": 0.0, "right": width, "center": width / 2}[ha]
            y0 = y + dy * scale - height / 2
            box = (x0, y0, x0 + width, y0 + height)
            within = inside.x0 < box[0] and box[2] < inside.x1 and box[3] < inside.y1
            if within and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        at, color = (row["latency_ms"], row["accuracy_pct"]), "black" if row["front"] else "0.35"
        ax.annotate(name, at, (dx, dy), textcoords="offset points", ha=ha, va="center", fontsize=7.5, color=color)


_PLACES = (
    (6, 0, "left"), (-6, 0, "right"), (-4, 8, "right"), (6, 7, "left"), (6, -8, "left"), (0, 9, "center"),
    (0, -9, "center"), (-6, -8, "right"), (0, 17, "center"), (0, -17, "center"), (12, 15, "left"), (12, -15, "left"),
)  # fmt: skip
"""Offsets from a point to its label, points, in order of preference."""


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
