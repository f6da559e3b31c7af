"""The figures of notebooks 07 and 08: tidy tables of the studies in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from selfserve.figures.style import (
    LEAST_LATE_PCT,
    MARKERS,
    WIDTH_IN,
    finish,
    log_axis,
    marks,
    name_rows,
    policy_style,
    series,
)


def multipliers(table: pd.DataFrame) -> Figure:
    """Draw where each multiplier of the formulas began and ended, between its bounds."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 0.6 + 0.2 * len(table)))
    wide, rows = table["most"] - table["least"], range(len(table))
    start, tuned = ((table[c] - table["least"]) / wide for c in ("start", "tuned"))
    ax.hlines(rows, start, tuned, color="0.6", linewidth=1)
    ax.plot(start, rows, **marks(0, label="set by hand"))
    ax.plot(tuned, rows, **marks(1, label="after the search"))
    name_rows(ax, [f"{n.replace('_', ' ')}  [{a:g}, {b:g}]" for n, a, b in
                   zip(table["multiplier"], table["least"], table["most"], strict=True)])  # fmt: skip
    ax.set(xlim=(-0.03, 1.03), xlabel="place between the bounds")
    return finish(fig, ax, ncols=2)


def curves(nets: pd.DataFrame, gradient: pd.DataFrame, ppo: pd.DataFrame) -> Figure:
    """Draw what the searches saw: objective of the evolution strategy, cost on the record, PPO's reward and violations.

    A step of the gradient is drawn as the mean of the last twenty, each of which saw a part of the worlds.
    """
    fig, ((left, down), (mid, right)) = plt.subplots(2, 2, figsize=(WIDTH_IN, 4.6))
    for i, (seed, own) in enumerate(nets.groupby("seed")):
        left.plot(own["generation"], own["objective"], label=f"seed {seed:g}", **series(i))
    left.set(xlabel="generation", ylabel="mean objective", title="evolution strategy")
    left.legend(fontsize="small")
    change = 100 * np.expm1(gradient["change"].rolling(20, min_periods=1).mean())
    down.plot(gradient["step"], change, markevery=0.1, **series(0))
    down.set(xlabel="step", ylabel="change of cost (%)", title="gradient, on the record")
    mid.plot(ppo["decisions"] / 1000, ppo["reward"], **series(0))
    mid.set(xlabel="thousand decisions", ylabel="mean reward", title="PPO, corrections")
    right.plot(ppo["decisions"] / 1000, ppo["late_pct"], **series(3))
    right.set(xlabel="thousand decisions", ylabel="late requests (%)", title="PPO, corrections", ylim=(0, None))
    return finish(fig)


def weights(table: pd.DataFrame) -> Figure:
    """Draw the mean weights of the one-layer nets; a dot marks those whose sign nine in ten nets share."""
    wide = table.pivot(index="correction", columns="observation", values="weight")
    rows, columns = list(dict.fromkeys(table["correction"])), list(dict.fromkeys(table["observation"]))
    wide, limit = wide.loc[rows, columns], table["weight"].abs().max()
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.0))
    sns.heatmap(wide, cmap="PuOr", vmin=-limit, vmax=limit, ax=ax, linewidths=0.5, cbar_kws={"label": "mean weight"})
    for _, row in table[table["same_sign"] >= 0.9].iterrows():
        ax.plot(columns.index(row["observation"]) + 0.5, rows.index(row["correction"]) + 0.5, "ko", markersize=3)
    ax.set_xticklabels([c.replace("_", " ") for c in columns], rotation=35, ha="right", fontsize=8)
    ax.set_yticklabels([r.replace("_", " ") for r in rows], rotation=0, fontsize=8)
    ax.set(xlabel="", ylabel="")
    return finish(fig)


def by_kind(table: pd.DataFrame, methods: Sequence[str], base: str) -> Figure:
    """Draw percent of cost against ``base`` with its interval, a row a kind of situation, a mark a method."""
    own = table[table["method"].isin(methods)]
    names = list(dict.fromkeys(zip(own["kind"], own["value"], strict=True)))
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 0.9 + 0.24 * len(names)))
    for i, method in enumerate(methods):
        rows = own[own["method"] == method].set_index(["kind", "value"]).loc[names]
        y = np.arange(len(names)) + 0.24 * (i - (len(methods) - 1) / 2)
        look = policy_style(method)
        ax.hlines(y, rows["low_pct"], rows["high_pct"], color=look["color"], linewidth=1.2)
        ax.plot(rows["change_pct"], y, label=method, **look | {"linestyle": "none"})
    ax.axvline(0, color="black", linewidth=0.8)
    count = own.groupby(["kind", "value"])["situations"].max()
    shown = [v if k in ("all", v) else f"{k}: {v}" for k, v in names]
    name_rows(ax, [f"{text} ({count[name]})" for text, name in zip(shown, names, strict=True)], fontsize=8)
    ax.set(xlabel=f"cost against {base}, %")
    return finish(fig, ax, ncols=len(methods))


def profile(table: pd.DataFrame) -> Figure:
    """Draw the share of windows in which a method costs at most a ratio of the cheapest one."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 2.8))
    for method, own in table.groupby("method", sort=False):
        ax.plot(own["ratio"], 100 * own["share"], label=method, **policy_style(str(method)) | {"marker": ""})
    ax.set(xlabel="cost over that of the cheapest method in the window", ylabel="windows, %", ylim=(0, 102),
           xlim=(1, table["ratio"].max()))  # fmt: skip
    return finish(fig, ax, ncols=5)


def ablations(table: pd.DataFrame, base: str) -> Figure:
    """Draw what each variant costs against ``base`` and how late it is, by market."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH_IN, 0.9 + 0.25 * table["method"].nunique()), sharey=True)
    names = list(dict.fromkeys(table["method"]))
    for i, (market, own) in enumerate(table.groupby("value", sort=False)):
        rows, y = own.set_index("method").loc[names], np.arange(len(names)) + 0.25 * (i - 0.5)
        look = marks(i, label=market)
        left.hlines(y, rows["low_pct"], rows["high_pct"], color=look["color"], linewidth=1.2)
        left.plot(rows["change_pct"], y, **look)
        right.plot(rows["violation_pct"].clip(lower=LEAST_LATE_PCT), y, **look)
    left.axvline(0, color="black", linewidth=0.8)
    left.set(xlabel=f"cost against {base}, %")
    left.set_xscale("symlog", linthresh=10)
    reach = 1.4 * max(15.0, table[["change_pct", "low_pct", "high_pct"]].abs().max(axis=None))  # marks stay whole
    left.set_xticks([-50, -10, 0, 10, 50, 200], ["−50", "−10", "0", "10", "50", "200"])
    left.set_xlim(-min(reach, 100.0), reach)
    log_axis(right.xaxis, subs=(1, 3))
    most = max(0.1, 1.3 * table["violation_pct"].max())  # a decade at least, so that there are round ticks
    right.set(xlabel="late requests, %", xlim=(0.8 * LEAST_LATE_PCT, most))
    name_rows(left, names)
    return finish(fig, left, ncols=2)


def changes(table: pd.DataFrame, label: str = "change of cost, %") -> Figure:
    """Draw a map of percent by which something changes: kinds of situation, or what is varied, x what it changes."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 0.9 + 0.24 * len(table)))
    limit = float(np.nanquantile(np.abs(table.to_numpy()), 0.9))
    pairs = [x if isinstance(x, tuple) else (x, x) for x in table.index]
    shown = table.set_axis([v if k in ("all", v) else f"{k}: {v}" for k, v in pairs], axis=0)
    shown = shown.rename(columns=lambda c: c.replace("_", " ").replace(" ", "\n"))
    sns.heatmap(shown, annot=True, fmt="+.1f", cmap="PuOr_r", vmin=-limit, vmax=limit, linewidths=0.5, ax=ax,
                cbar_kws={"label": label}, annot_kws={"fontsize": 8})  # fmt: skip
    ax.set(xlabel="", ylabel="")
    ax.tick_params(rotation=0, labelsize=8)
    return finish(fig)


def frontier(table: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Draw cost against late requests as each method's headroom is shifted, a panel a market."""
    markets = sorted(table["market"].unique())
    fig, axes = plt.subplots(1, len(markets), figsize=(WIDTH_IN, 2.9), squeeze=False)
    for ax, market in zip(axes[0], markets, strict=True):
        for method in methods:
            own = table[(table["method"] == method) & (table["market"] == market)].sort_values("shift")
            ax.plot(own["violation_pct"].clip(lower=LEAST_LATE_PCT), own["cost"], label=method, **policy_style(method))
        log_axis(ax.xaxis, subs=(1, 3))
        ax.set(xlabel="late requests, %", title=market)
    axes[0, 0].set_ylabel("cost over the work's price")
    return finish(fig, axes[0, 0], ncols=len(methods))


def scaling(table: pd.DataFrame) -> Figure:
    """Draw cost against ``tuned`` over the size of the load."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 2.6))
    for method, own in table.groupby("method", sort=False):
        mean = own.groupby("machines")["gain"].mean()
        look = policy_style(str(method))
        ax.plot(own["machines"], 100 * np.expm1(own["gain"]), **look | {"linestyle": "none", "alpha": 0.35})
        ax.plot(mean.index, 100 * np.expm1(mean), label=method, **look)
    ax.axhline(0, color="black", linewidth=0.8)
    log_axis(ax.xaxis, sorted(table["machines"].unique()))
    ax.set(xlabel="mean load, machines", ylabel="cost against tuned, %")
    return finish(fig, ax, ncols=4)


def reactions(table: pd.DataFrame) -> Figure:
    """Draw machines (above) and the share of functions (below) after each event, a line a policy."""
    events = list(dict.fromkeys(table["what"]))
    fig, axes = plt.subplots(2, len(events), figsize=(WIDTH_IN, 3.8), sharex=True, sharey="row", height_ratios=(2, 1))
    for (top, low), event in zip(axes.T, events, strict=True):
        own = table[table["what"] == event]
        for i, (policy, mine) in enumerate(own.groupby("scheme", sort=False)):
            if i == 0:
                top.plot(mine["minute"], mine["load"], color="0.5", linewidth=0.7, label="load, one model an answer")
            look = policy_style(str(policy)) | {"marker": "", "linewidth": 1.3}
            top.plot(mine["minute"], mine["ready"], label=policy, **look)
            low.plot(mine["minute"], mine["function_pct"], **look)
        top.set(title=event)
    axes[0, 0].set(ylabel="machines", ylim=(0, None))  # after all panels: their axes are one
    axes[1, 0].set(ylabel="on functions, %", ylim=(0, None))
    fig.supxlabel("minutes since the window's start", fontsize="medium")
    return finish(fig, axes[0, 0], ncols=5)


def settings(table: pd.DataFrame) -> Figure:
    """Draw what the formulas set over each swept quantity."""
    swept, shown = list(dict.fromkeys(table["swept"])), list(dict.fromkeys(table["setting"]))
    fig, axes = plt.subplots(len(swept), len(shown), figsize=(WIDTH_IN, 1.5 * len(swept) + 0.3), sharex="row",
                             sharey="col")  # fmt: skip
    for line, what in zip(axes, swept, strict=True):
        for i, (ax, setting) in enumerate(zip(line, shown, strict=True)):
            own = table[(table["swept"] == what) & (table["setting"] == setting)]
            ax.plot(own["value"], own["set_to"], marker=MARKERS[0], markersize=3)
            ax.tick_params(labelsize=7)
            if what == swept[0]:
                ax.set_title(setting.replace("_", " "), fontsize=9)
            ax.set_xlabel(what if i == len(shown) // 2 else "", fontsize=9)
    return finish(fig)


def standing(table: pd.DataFrame) -> Figure:
    """Draw cost over the bound against late requests of every system, a panel a market."""
    markets = [m for m in ("standard", "on-demand", "spot") if m in set(table["market"])]
    fig, axes = plt.subplots(1, len(markets), figsize=(WIDTH_IN, 3.9), sharey=True, squeeze=False)
    for ax, market in zip(axes[0], markets, strict=True):
        for _, row in table[(table["market"] == market) & (table["policy"] != "bound")].iterrows():
            look = policy_style(row["policy"]) | {"linestyle": "none", "markersize": 7}
            ax.plot(max(LEAST_LATE_PCT, row["violation_pct"]), row["to_bound"], label=row["policy"], **look)
        ax.axhline(1, color="black", linewidth=0.8)
        log_axis(ax.xaxis)
        ax.set_xticks((LEAST_LATE_PCT, 0.1, 1, 10), (f"≤ {LEAST_LATE_PCT}", "0.1", "1", "10"))
        log_axis(ax.yaxis, (0.7, 1, 1.5, 2, 3, 5, 10, 20, 50))
        ax.set(xlabel="late requests, %", title=market)
    axes[0, 0].set_ylabel("cost over the bound")
    return finish(fig, axes[0, 0], ncols=5, fontsize=8)
