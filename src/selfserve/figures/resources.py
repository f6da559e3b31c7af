"""The figures of notebook 02: tables of the studies ``resources`` and ``elasticity`` in, matplotlib figures out."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from selfserve.figures.style import WIDTH_IN, colors, finish, log_axis, name_rows, series, trace_marks

_RATES = (1, 10, 100, 1000)
_OPTIONS = {
    "function": ("function", 1, "s", "--"), "VM": ("VM, on demand", 0, "o", "-"), "spot": ("VM, spot", 2, "^", "-."),
    "GPU": ("GPU machine", 3, "D", ":"),
}  # fmt: skip
"""Label, colour, marker and line of each option."""


def start_up(table: pd.DataFrame) -> Figure:
    """Every start-up time by what it is of, on a logarithmic axis; hollow: what the standard scenario assumes."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.5))
    looks = {"VM": (colors()[0], "o", "virtual machine"), "function": (colors()[1], "s", "function"),
             "load": (colors()[2], "^", "model load"), "assumed": ("black", "D", "assumed here")}  # fmt: skip
    for y, (_, rows) in enumerate(table.groupby("what", sort=False)):
        group, seconds = rows["group"].iloc[0], rows["seconds"]
        color, marker, label = looks[group]
        face = "none" if group == "assumed" else color
        ax.plot([seconds.min(), seconds.max()], [y, y], color=color, linewidth=1, alpha=0.5)
        ax.plot(seconds, [y] * len(rows), marker, color=color, markerfacecolor=face, label=label)
    name_rows(ax, list(dict.fromkeys(table["what"])))
    ax.set(xlabel="seconds", xlim=(0.008, 250))
    log_axis(ax.xaxis, (0.01, 0.1, 1, 10, 100))
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles.keys(), ncols=4, loc="outside upper center")
    return finish(fig)


def machine_types(table: pd.DataFrame) -> Figure:
    """Dollars per million answers of an always busy machine, on demand and spot: CPUs left, GPUs right."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.6), width_ratios=[1, 1])
    gpu = table["accelerator"] != ""
    for ax, rows, title in zip(axes, (table[~gpu], table[gpu]), ("CPU machines", "GPU machines"), strict=True):
        y = np.arange(len(rows))
        spot = rows["spot_usd_per_million"]
        low = (spot - rows["spot_min_usd_per_million"]).fillna(0)
        high = (rows["spot_max_usd_per_million"] - spot).fillna(0)
        ax.errorbar(spot, y, xerr=[low, high], fmt="^", color=colors()[2], capsize=2, label="spot (bar: zones)")
        ax.plot(rows["usd_per_million"], y, "o", color=colors()[0], label="on demand")
        name_rows(ax, list((rows["resource"] + " " + rows["accelerator"]).str.strip()))
        ax.set(title=title, xlabel="US dollars per million answers", xlim=(0, rows["usd_per_million"].max() * 1.08))
    return finish(fig, axes[0], ncols=2)


def constant_rates(table: pd.DataFrame, crossings: pd.DataFrame) -> Figure:
    """Dollars per million answers against the rate, a panel a model; marked: where a VM comes down to functions."""
    models = list(dict.fromkeys(table["model"]))
    rows = -(-len(models) // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(WIDTH_IN, 2.35 * rows + 0.4), squeeze=False)
    for ax, model in zip(axes.flat, models, strict=False):
        mine = table[table["model"] == model]
        for option, (label, color, marker, line) in _OPTIONS.items():
            look: Any = {"label": label, "color": colors()[color], "marker": marker, "linestyle": line, "markersize": 4}
            ax.plot("rate", "usd_per_million", data=mine[mine["option"] == option], **look)
        top = 2.0 * mine.loc[mine["option"] == "function", "usd_per_million"].mean()
        rate = float(crossings.set_index("model").at[model, "rate"])
        ax.axvline(rate if np.isfinite(rate) else np.nan, color="0.4", linewidth=1, linestyle=(0, (1, 1)))
        ax.set(title=f"{model} (VM {f'from {rate:.3g}/s' if np.isfinite(rate) else 'never'})", ylim=(0, top))
        log_axis(ax.xaxis, _RATES)
    for ax in axes.flat[len(models) :]:
        ax.set_visible(False)
    fig.supxlabel("requests/s, constant", fontsize="medium")
    fig.supylabel("US dollars per million answers", fontsize="medium")
    return finish(fig, axes[0, 0], ncols=4)


def regimes(table: pd.DataFrame, simulated: pd.DataFrame) -> Figure:
    """The cheapest resource by rate for every measured model; diamonds: the crossover as simulated."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 4.0), width_ratios=[2.6, 1], sharey=True)
    low, high = 0.3, 5000.0
    for y, row in enumerate(table.itertuples()):
        end = high if np.isnan(row.gpu_from) else row.gpu_from
        parts = (low, row.vm_from, "function"), (row.vm_from, end, "VM"), (end, high, "GPU")
        for left, right, option in parts:
            style: Any = {"color": colors()[_OPTIONS[option][1]], "hatch": "///" if option == "VM" else ""}
            axes[0].barh(y, right - left, 0.72, left, linewidth=0, alpha=0.75, edgecolor="white", **style)
    ys = [list(table["model"]).index(model) for model in simulated["model"]]
    axes[0].plot(simulated["rate"], ys, "D", color="black", markersize=4)
    name_rows(axes[0], list(table["model"]))
    axes[0].set(xlim=(low, high), xlabel="requests/s, constant (diamond: simulated)", ylim=(len(table) - 0.4, -1.6))
    log_axis(axes[0].xaxis, _RATES)
    for x, option in ((0.75, "function"), (90, "VM"), (2400, "GPU")):
        axes[0].text(x, -0.65, option, color=colors()[_OPTIONS[option][1]], weight="bold", va="bottom", ha="center")
    axes[1].plot(table["busy_pct"], range(len(table)), "o", color=colors()[0])
    axes[1].set(xlabel="how busy the VM is at\nthe crossover (%)", xlim=(0, max(50, 1.1 * table["busy_pct"].max())))
    axes[1].grid(axis="y", visible=False)
    return finish(fig)


def sizes(table: pd.DataFrame) -> Figure:
    """Dollars per million answers against the rate for every size of a family; right: over the smallest size."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 2.9))
    floor = table["usd_per_million"].min()
    for i, (name, rows) in enumerate(table.groupby("resource", sort=False)):
        label = f"{name} ({rows['vcpu'].iloc[0]} vCPU)"
        axes[0].plot(rows["rate"], rows["usd_per_million"], label=label, markersize=4, **series(i))
        axes[1].plot(rows["rate"], rows["relative"], markersize=4, **series(i))
    axes[0].set(ylabel="US dollars per million", ylim=(0, 6 * floor))
    axes[1].axhspan(0.9, 1.1, color="0.9", zorder=0)
    axes[1].text(1.1, 1.13, "± 10%", color="0.35", va="bottom")
    axes[1].set(ylabel="cost over the smallest size", ylim=(0, 4))
    for ax in axes:
        ax.set_xlabel("requests/s, constant")
        log_axis(ax.xaxis, _RATES)
    return finish(fig, axes[0], ncols=4, fontsize="small")


def memory(table: pd.DataFrame, paper: pd.DataFrame, mb_per_vcpu: float) -> Figure:
    """Time and cost of a warm invocation against memory; hollow: the paper's times, and their cost at list price."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.3))
    for i, (model, rows) in enumerate(table.groupby("model", sort=False)):
        axes[0].plot(rows["memory_mb"] / 1024, rows["time_s"], label=model, markersize=4, **series(i))
        axes[1].plot(rows["memory_mb"] / 1024, rows["usd_per_million"], markersize=4, **series(i))
    for i, (name, rows) in enumerate(paper.groupby("paper_model", sort=False)):
        style = series(i) | {"color": "0.35", "linestyle": "-", "markerfacecolor": "white", "linewidth": 0.8}
        axes[0].plot(rows["gb"], rows["time_s"], label=f"{name}, paper", **style)
        axes[1].plot(rows["gb"], rows["usd_per_million"], **style)
    axes[0].set(ylabel="seconds an invocation")
    log_axis(axes[0].yaxis, subs=(1,))
    axes[1].set(ylabel="US dollars per million", ylim=(0, None))
    for ax in axes:
        ax.set_xlabel("memory, GB")
        ax.axvline(mb_per_vcpu / 1024, color="0.5", linewidth=1, linestyle=":")
        log_axis(ax.xaxis, (0.5, 1, 2, 4, 10))
    note: Any = {"transform": axes[1].get_xaxis_transform(), "ha": "right", "va": "top", "color": "0.35"}
    axes[1].text(mb_per_vcpu / 1024 * 0.94, 0.98, "1 vCPU", **note)
    return finish(fig, axes[0], ncols=3, fontsize="small")


def cold_starts(table: pd.DataFrame) -> Figure:
    """Share of cold starts, latency and cost of a function against the mean gap between its calls."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.7))
    blue, orange = colors()[0], colors()[1]
    axes[0].plot(table["gap_s"], table["exact_pct"], color="0.4", label="exp(−keep-alive / gap)")
    axes[0].plot(table["gap_s"], table["cold_pct"], "o", color=blue, label="simulated")
    axes[0].set(ylabel="cold starts, percent", ylim=(0, 115), yticks=range(0, 101, 20))
    axes[1].plot(table["gap_s"], table["p99_s"], color=orange, marker="s", linestyle="--", label="p99")
    axes[1].plot(table["gap_s"], table["p50_s"], color=blue, marker="o", label="p50")
    axes[1].set(ylabel="seconds to the answer", ylim=(0, None))
    axes[2].plot(table["gap_s"], table["usd_per_million"], color=blue, marker="o")
    axes[2].set(ylabel="US dollars per million", ylim=(0, None))
    for ax in axes:
        ax.set_xlabel("mean gap, s")
        log_axis(ax.xaxis, _RATES)
    axes[0].legend(loc="upper left", fontsize="small", handlelength=1.2)
    axes[1].legend(loc="center left", fontsize="small", handlelength=1.2)
    return finish(fig)


def boot_and_billing(rents: pd.DataFrame, bursts: pd.DataFrame) -> Figure:
    """The bill of a short rental; cost and lateness of a burst on VMs asked for at its start and on functions."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.0))
    axes[0].plot(rents["release_s"], 100 * rents["usd"], color="0.4", label="computed")
    axes[0].plot(rents["release_s"], 100 * rents["simulated_usd"], "o", color=colors()[0], label="simulated")
    ready = float((rents["release_s"] - rents["useful_s"])[rents["useful_s"] > 0].iloc[0])
    axes[0].axvspan(0, ready, color="0.92", zorder=0)
    middle: Any = {"ha": "center", "va": "top", "color": "0.35", "rotation": 90}
    axes[0].text(ready / 2, 100 * rents["usd"].max(), "booting", **middle)
    axes[0].set(xlabel="s from asking to release", ylabel="bill of one VM, cents", ylim=(0, None), xlim=(0, None))
    axes[0].legend(loc="lower right", fontsize="small")
    looks: dict[str, dict[str, Any]] = {
        "VMs": series(0) | {"label": "VMs asked for at its start"}, "functions": series(1) | {"label": "functions"},
        "kept": {"color": "0.4", "marker": "", "linestyle": ":", "label": "VMs kept for an hour"},
    }  # fmt: skip
    for option, look in looks.items():
        rows = bursts[bursts["option"] == option]
        axes[1].plot(rows["length_s"], rows["usd"], markersize=4, **look)
        axes[2].plot(rows["length_s"], rows["late_pct"], markersize=4, **look)  # none for those kept
    axes[1].set(ylabel="US dollars a burst", ylim=(0, None))
    axes[2].set(ylabel="later than 1 s, percent", ylim=(0, 105))
    for ax in axes[1:]:
        ax.set_xlabel("length of the burst, s")
        log_axis(ax.xaxis, (10, 60, 600, 3600))
    return finish(fig, axes[1], ncols=3)


def spot(zones: pd.DataFrame, losses: pd.DataFrame) -> Figure:
    """Spot price by zone and interruption band, and what interruptions do to a fleet with so many spares."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.6), width_ratios=[1.25, 1])
    order = list(zones.groupby("instance_type")["percent"].median().sort_values().index)
    for i, band in enumerate(("<5%", "5-10%", "10-15%", "15-20%", ">20%")):
        if len(rows := zones[zones["band"] == band]):
            look = series(i) | {"linestyle": "none", "markersize": 4.5, "alpha": 0.85, "label": band}
            axes[0].plot(rows["percent"], [order.index(name) for name in rows["instance_type"]], **look)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].set(xlabel="spot price, % of on demand (a mark a zone)", xlim=(0, 100))
    axes[0].legend(title="interrupted\nin a month", loc="center right")
    axes[0].grid(axis="y", visible=False)
    for i, (spare, rows) in enumerate(losses.groupby("spare")):
        label = f"{spare} ({rows['cost_pct'].iloc[0]:.0f}%)"
        axes[1].plot(rows["interruptions"], rows["late_pct"], label=label, markersize=4, **series(i))
    axes[1].set(xlabel="interruptions per machine-hour", ylabel="later than 1 s, percent", ylim=(0, 105))
    axes[1].set_xscale("symlog", linthresh=0.02, linscale=0.4)
    ticks = sorted(set(losses["interruptions"]))
    axes[1].set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize="small")
    axes[1].minorticks_off()
    axes[1].set_xlim(-0.004, 1.3 * ticks[-1])
    axes[1].legend(title="spare machines\n(cost of on demand)", loc="upper left")
    return finish(fig)


def mean_and_peak(waves: pd.DataFrame, windows: pd.DataFrame, crossing: float) -> Figure:
    """Cost of functions alone over that of VMs for the peak, against mean / peak."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.4))
    ax.plot(waves["mean_to_peak"], waves["cost_ratio"], color="0.25", label="on/off load, simulated")
    for name, rows in windows.groupby(windows["trace"].str.removesuffix("-twin"), sort=False):
        whole, style = rows["hours"] == 0, trace_marks(name)
        x, y = rows["mean_to_peak"], rows["cost_ratio"]
        ax.plot(x[~whole], y[~whole], markersize=3, alpha=0.35, **style)
        ax.plot(x[whole], y[whole], markersize=8, markeredgecolor="black", label=name, **style)
    ax.axvline(crossing, color="0.5", linewidth=1, linestyle=":")
    ax.text(crossing + 0.015, 0.05, f"mean / peak {crossing:.2f}", color="0.3", va="bottom")
    ax.axhline(1, color="0.5", linewidth=1)
    ax.set(ylabel="cost over VMs for the peak", xlabel="mean / peak minute", xlim=(0, 1.02), ylim=(0, 3))
    return finish(fig, ax, ncols=4)
