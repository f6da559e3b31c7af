"""The figures of notebook 06: tidy tables of :mod:`selfserve.studies.environment` in, matplotlib figures out."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from selfserve.figures.style import WIDTH_IN, colors, finish, log_axis, marks, name_rows

_PANELS = (
    ("ready_s", "machine ready after, s", "price_ratio", "function / machine price"),
    ("machines", "mean load, machines", "init_s", "cold start, s"),
    ("least_slo_s", "tightest SLO, s", "service_spread", "spread of service times"),
)


def situations(table: pd.DataFrame) -> Figure:
    """Draw what was sampled: each situation a mark in three planes, by split."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.7))
    for ax, (x, x_label, y, y_label) in zip(axes, _PANELS, strict=True):
        for i, split in enumerate(("train", "validate", "evaluate")):
            own = table[table["split"] == split]
            ax.plot(own[x], own[y], **marks(i, label=split, markersize=3.5, alpha=0.75))
        log_axis(ax.xaxis)
        log_axis(ax.yaxis)
        ax.set(xlabel=x_label, ylabel=y_label)
    return finish(fig, axes[0], ncols=3)


def loads(table: pd.DataFrame) -> Figure:
    """Draw a window of every family: load over its mean."""
    names = list(dict.fromkeys(table["family"]))
    fig, axes = plt.subplots(2, 4, figsize=(WIDTH_IN, 3.2), sharex=True)
    for i, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        own = table[table["family"] == name]
        ax.plot(own["minute"], own["load"], color=colors()[i], linewidth=0.9)
        ax.set(title=name, ylim=(0, None))
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    fig.supxlabel("minutes since the window's start", fontsize="medium")
    fig.supylabel("load over its mean", fontsize="medium")
    return finish(fig)


def episode(table: pd.DataFrame) -> Figure:
    """Draw one episode: load against machines, and dollars over the ideal bill with the violations below."""
    fig, (top, low) = plt.subplots(2, 1, figsize=(WIDTH_IN, 4.0), sharex=True, height_ratios=(2, 1))
    minutes, palette = table["time_s"] / 60, colors()
    every = ("home", "on-demand", palette[9]), ("spot", "spot", palette[2]), ("booting", "booting", palette[7])
    stacked = [one for one in every if table[one[0]].any()]
    top.stackplot(minutes, *(table[c] for c, _, _ in stacked), labels=[t for _, t, _ in stacked],
                  colors=[c for _, _, c in stacked], step="post", alpha=0.8)  # fmt: skip
    top.plot(minutes, table["load"], color=palette[3], linewidth=1.1, label="load")
    top.set(ylabel="machines", ylim=(0, None))
    low.plot(minutes, table["cost"], color=palette[0], linewidth=1, label="dollars over the ideal bill")
    late = table[table["violations"] > 0]
    low.plot(late["time_s"] / 60, late["cost"], **marks(3, label="some requests late", markersize=3))
    low.set(xlabel="minutes since the window's start", ylabel="dollars / ideal", ylim=(0, 1.5 * table["cost"].max()))
    low.legend(loc="upper right", fontsize="small", ncols=2)
    return finish(fig, top, ncols=4)


def sensitivity(table: pd.DataFrame) -> Figure:
    """Draw what each action does when held at an end: cost against the planner alone, and more or fewer violations."""
    means = table[table["action"] != "none"].groupby(["action", "value"], sort=False)[
        ["cost_ratio", "more_violations_pct"]
    ].mean().unstack()  # fmt: skip
    names = list(dict.fromkeys(table.loc[table["action"] != "none", "action"]))
    means = means.loc[names]
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.6), sharey=True)
    labels = {"cost_ratio": "cost over the planner's", "more_violations_pct": "violations, percentage points more"}
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        for i, value in enumerate((-1.0, 1.0)):
            ax.plot(means[column, value], range(len(names)), **marks(i, label=f"held at {value:+.0f}"))
        ax.hlines(range(len(names)), means[column].min(axis=1), means[column].max(axis=1), color="0.6", linewidth=1)
        ax.axvline(1.0 if column == "cost_ratio" else 0.0, color="black", linewidth=0.8)
        ax.set(xlabel=label)
    name_rows(axes[0], [name.replace("_", " ") for name in names])
    return finish(fig, axes[0], ncols=2)
