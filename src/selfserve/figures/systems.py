"""Figures of notebook 05: capabilities, cost against violations, frontiers, rankings, parts left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from selfserve.figures.style import (
    LEAST_LATE_PCT,
    WIDTH_IN,
    finish,
    log_axis,
    marks,
    name_rows,
    panels,
    series,
    trace_marks,
    trace_style,
)


def capabilities(table: pd.DataFrame, dimensions: Sequence[str]) -> Figure:
    """Draw which system decides what: a mark where it does."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 0.6 + 0.24 * len(table)))
    for x, name in enumerate(dimensions):
        rows = np.flatnonzero(table[name])
        ax.plot(np.full(len(rows), x), rows, **marks(0, markersize=8))
    name_rows(ax, list(table["system"]))
    ax.set_xticks(range(len(dimensions)), [d.replace("_", " ") for d in dimensions])
    ax.xaxis.tick_top()
    ax.set_xlim(-0.5, len(dimensions) - 0.5)
    return finish(fig)


def cost_and_violations(systems: pd.DataFrame) -> Figure:
    """Draw each system's cost over the bound without violations and its late requests, a mark a scenario.

    Args:
        systems: rows of :func:`selfserve.evaluation.summary.systems`; means over traces are drawn.
    """
    names = {scenario: f"scenario {scenario}" for scenario in ("standard", "spot")}
    return _cost_and_late(systems[systems["scenario"].isin(names)], "scenario", names)


def tuned(systems: pd.DataFrame) -> Figure:
    """Draw the same of one scenario with the authors' parameters and equally tuned."""
    return _cost_and_late(systems, "kind", {"authors": "authors' parameters", "tuned": "equally tuned"})


def _cost_and_late(systems: pd.DataFrame, by: str, names: Mapping[str, str]) -> Figure:
    """Draw a row a system, the cheapest on top, and in it a mark for each value of a column."""
    able = systems[systems["runs"] > 0].assign(log=lambda t: np.log(t["to_bound"]))
    mean = able.groupby(["policy", by])[["log", "slo_violation_pct"]].mean().unstack(by)
    mean = mean.loc[mean["log"][next(iter(names))].sort_values().index]
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 0.9 + 0.22 * len(mean)), sharey=True, width_ratios=(3, 2))
    for ax, both in zip(axes, (np.exp(mean["log"]), mean["slo_violation_pct"].clip(lower=LEAST_LATE_PCT)), strict=True):
        ax.hlines(range(len(mean)), both.min(axis=1), both.max(axis=1), color="0.7", lw=1)
        for i, (value, label) in enumerate(names.items()):
            ax.plot(both[value], range(len(mean)), label=label, **marks(i, markersize=5))
    name_rows(axes[0], list(mean.index))
    axes[1].grid(axis="y", visible=False)
    axes[0].axvline(1, color="black", lw=0.8)
    log_axis(axes[0].xaxis, subs=(1, 1.5, 2, 3, 5, 7))
    log_axis(axes[1].xaxis, (0.01, 0.1, 1, 10))
    axes[0].set(xlabel="cost over the bound", ylim=(len(mean) - 0.5, -0.5))
    axes[1].set(xlabel="late requests (%)")
    return finish(fig, axes[0], ncols=2)


def frontiers(table: pd.DataFrame) -> Figure:
    """Draw dollars per hour against late requests along each system's main knob: a panel a system, a line a trace.

    The grey lines are the planner's (``tuned``), the same in every panel.
    """
    names = [name for name in dict.fromkeys(table["policy"]) if name != "tuned"]
    fig, axes = panels(names, 5, 1.25, "late requests (%)", "dollars per hour")
    for ax, name in zip(axes, names, strict=True):
        for trace, mine in table.groupby("trace", sort=False):
            for policy, look in (("tuned", {"color": "0.6", "lw": 1.5}), (name, {"label": trace} | trace_style(trace))):
                one = mine[mine["policy"] == policy].sort_values("knob")
                late = one["slo_violation_pct"].clip(lower=LEAST_LATE_PCT)
                ax.plot(late, one["usd_per_hour"], **look | {"markersize": 3})
        log_axis(ax.xaxis, (0.01, 1))
    axes[0].set_ylim(0, table.loc[table["policy"] == "tuned", "usd_per_hour"].max() * 2)
    return finish(fig, axes[0], ncols=3)


def rankings(ranks: pd.DataFrame) -> Figure:
    """Draw the rank of each system in each situation: columns are names, or (scenario, overrides, trace)."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 0.9 + 0.27 * len(ranks)))
    ordered = ranks.loc[ranks.mean(axis=1).sort_values().index]
    wide = ordered.set_axis([policy for policy, *_ in ordered.index], axis=0)
    names = [c.replace(" ", "\n") if isinstance(c, str) else f"{c[0]}\n{c[2]}" for c in ordered.columns]
    wide = wide.set_axis(names, axis=1)
    sns.heatmap(
        wide, annot=True, fmt="d", cmap="cividis_r", cbar=False, linewidths=0.5, ax=ax, annot_kws={"fontsize": 8}
    )
    ax.set(xlabel="rank by log cost and late requests, 1 the best", ylabel="")
    ax.tick_params(axis="x", labelsize=7, rotation=0)
    ax.tick_params(axis="y", rotation=0)
    return finish(fig)


def parts(table: pd.DataFrame) -> Figure:
    """Draw what leaving out one part of the planner costs, a mark a trace, a panel a scenario."""
    scenarios = list(dict.fromkeys(table["scenario"]))
    names = list(table.loc[table["scenario"] == scenarios[-1], "part"].drop_duplicates())[1:]
    fig, axes = plt.subplots(1, len(scenarios), figsize=(WIDTH_IN, 2.9), sharey=True, sharex=True)
    for ax, scenario in zip(axes, scenarios, strict=True):
        for trace, mine in table[table["scenario"] == scenario].groupby("trace", sort=False):
            change = mine.set_index("part")["cost_ratio"].reindex(names)
            ax.plot(change, range(len(names)), label=trace, **trace_marks(trace, markersize=6))
        ax.axvline(1, color="black", lw=0.8)
        log_axis(ax.xaxis, subs=(1, 1.5, 2, 3, 5, 7))
        ax.set(xlabel="cost over that of all parts", title=scenario)
        name_rows(ax, names)
    return finish(fig, axes[0], ncols=3)


SPENT = {"busy": "machines at work", "idle": "machines that boot, wait or drain", "functions": "functions"}


def spending(table: pd.DataFrame) -> Figure:
    """Draw what each system pays for on average, the cheapest on top; a far dearer one is cut and its sum written."""
    means = table.groupby("system")[[*SPENT, "load"]].mean()
    means = means.loc[means[list(SPENT)].sum(axis=1).sort_values().index]
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 0.9 + 0.22 * len(means)))
    left = np.zeros(len(means))
    for i, (key, label) in enumerate(SPENT.items()):
        ax.barh(range(len(means)), means[key], left=left, color=series(i)["color"], label=label)
        left += means[key].to_numpy()
    ax.axvline(means["load"].mean(), color="black", lw=0.8, label="the load on busy machines, one by one")
    name_rows(ax, list(means.index))
    end = min(left[-1], 1.1 * left[-2:][0])
    if end < left[-1]:
        ax.text(0.98 * end, len(left) - 1, f"{left[-1]:.1f}", ha="right", va="center", color="white", weight="bold")
    ax.set(xlabel="dollars per hour", xlim=(0, end))
    return finish(fig, ax, ncols=2)


def spending_over_time(table: pd.DataFrame, systems: Sequence[str]) -> Figure:
    """Draw what systems pay for over time, a panel each, beside what the load needs (black); cut at four times that."""
    fig, axes = panels(systems, 3, 1.35, "minute", "dollars per hour")
    for ax, system in zip(axes, systems, strict=True):
        mine = table[table["system"] == system]
        colors = [series(i)["color"] for i in range(len(SPENT))]
        ax.stackplot(mine["minute"], mine[list(SPENT)].T, colors=colors, labels=list(SPENT.values()), lw=0)
        ax.plot(mine["minute"], mine["load"], color="black", lw=0.8, label="the load on busy machines, one by one")
    axes[0].set_ylim(0, min(4 * table["load"].max(), 1.05 * table[list(SPENT)].sum(axis=1).max()))
    return finish(fig, axes[0], ncols=2)


def modes(table: pd.DataFrame, late_pct: float) -> Figure:
    """Draw dollars per hour of each resource mode over the SLO, a panel a trace; hollow where it is late too often."""
    traces = list(dict.fromkeys(table["trace"]))
    fig, axes = plt.subplots(1, len(traces), figsize=(WIDTH_IN, 3.0), sharey=True, squeeze=False)
    for ax, trace in zip(axes[0], traces, strict=True):
        for i, (mode, mine) in enumerate(table[table["trace"] == trace].groupby("mode", sort=False)):
            look = series(i)
            ax.plot(mine["slo_s"], mine["usd_per_hour"], label=mode, **look)
            late = mine[mine["late_pct"] > late_pct]
            ax.plot(late["slo_s"], late["usd_per_hour"], **look | {"linestyle": "none", "markerfacecolor": "white"})
        log_axis(ax.xaxis, (0.1, 0.2, 0.5, 1))
        log_axis(ax.yaxis)
        ax.set(xlabel="SLO, s", title=trace)
    axes[0, 0].set_ylabel("dollars per hour")
    return finish(fig, axes[0, 0], ncols=5, fontsize=8)


def correctness(table: pd.DataFrame) -> Figure:
    """Draw cost and accuracy of cascades and ensembles over the error correlation, a line a quality of confidence.

    The first row of the table, a system of one model an answer, is the grey line.
    """
    alone, table = table.iloc[0], table.iloc[1:]
    policies = list(dict.fromkeys(table["policy"]))
    fig, axes = plt.subplots(2, len(policies), figsize=(WIDTH_IN, 3.8), sharex=True, sharey="row")
    for column, policy in zip(axes.T, policies, strict=True):
        for i, (auroc, mine) in enumerate(table[table["policy"] == policy].groupby("confidence_auroc")):
            for ax, key in zip(column, ("cost_usd", "mean_accuracy_pct"), strict=True):
                ax.plot(mine["error_correlation"], mine[key], label=f"AUROC {auroc:g}", **series(i))
        for ax, key in zip(column, ("cost_usd", "mean_accuracy_pct"), strict=True):
            ax.axhline(alone[key], color="0.5", lw=1.5, label=alone["policy"])
        column[0].set_title(policy)
        column[1].set_xlabel("error correlation")
    axes[0, 0].set(ylabel="dollars", ylim=(0, None))
    axes[1, 0].set_ylabel("mean accuracy, %")
    return finish(fig, axes[0, 0], ncols=2)
