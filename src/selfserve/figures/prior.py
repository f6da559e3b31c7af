"""The figures of notebook 04: tidy tables of :mod:`selfserve.studies.prior` in, matplotlib figures out."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from selfserve.figures.style import WIDTH_IN, colors, finish, policy_style

_MARKERS = ("o", "s", "^", "D", "v", "P")
_FLOOR_PCT = 1e-3
"""Violations are drawn on a logarithmic axis from here; fewer are drawn at its foot."""
_WORST = 10
"""Costs over the bound beyond this are drawn at this."""


def scheme_style(scheme: str) -> dict[str, Any]:
    """Return the look of a scheme: that of its policy; a variant ("mixed, no hold") is dashed and hollow."""
    base, _, variant = scheme.partition(", ")
    style = policy_style(base)
    return style | ({"linestyle": (0, (2, 1)), "markerfacecolor": "white"} if variant else {})


def _bars(ax: Axes, schemes: list[str], values: list[float], base: float = 0.0) -> None:
    for i, (scheme, value) in enumerate(zip(schemes, values, strict=True)):
        color = policy_style(scheme.partition(", ")[0])["color"]
        hollow = ", " in scheme
        face = to_rgba(color, 0.25) if hollow else color
        ax.bar(
            i, value - base, bottom=base, width=0.75, facecolor=face, edgecolor=color, hatch="////" if hollow else None
        )
    ax.set_xticks(range(len(schemes)), schemes, rotation=90)
    ax.grid(axis="x", visible=False)


def _percent_axis(ax: Axes, top: float = 100.0) -> None:
    """Make a logarithmic axis of violations, in percent."""
    ax.set_yscale("log")
    ax.set_ylim(_FLOOR_PCT, top)
    ticks = [t for t in (0.001, 0.01, 0.1, 1, 10, 100) if t <= top]
    ax.set_yticks(ticks, [f"≤{t:g}" if t == _FLOOR_PCT else f"{t:g}" for t in ticks])


def _late_axis(ax: Axes) -> None:
    """Make a horizontal logarithmic axis of violations, in percent."""
    ax.set(xscale="log", xlim=(_FLOOR_PCT * 0.7, 150), xlabel="late requests, percent")
    ax.set_xticks([0.001, 0.01, 0.1, 1, 10, 100], ["≤0.001", "", "0.1", "1", "10", "100"])
    ax.minorticks_off()


def _violations(values: pd.Series) -> pd.Series:
    return values.clip(lower=_FLOOR_PCT)


def cost_and_violations(table: pd.DataFrame, schemes: list[str]) -> Figure:
    """Draw cost over the reactive baseline (above) and violations (below), a column a trace."""
    traces = list(table["trace"].unique())
    fig, axes = plt.subplots(2, len(traces), figsize=(WIDTH_IN, 4.3), sharex=True, sharey="row", squeeze=False)
    data = table.set_index(["trace", "scheme"])
    for column, trace in enumerate(traces):
        above, below = axes[:, column]
        _bars(above, schemes, [float(data.loc[(trace, s), "cost_ratio"]) for s in schemes])
        above.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        above.set_title(trace)
        values = _violations(pd.Series([float(data.loc[(trace, s), "slo_violation_pct"]) for s in schemes]))
        _percent_axis(below)
        _bars(below, schemes, list(values), base=_FLOOR_PCT)
    axes[0, 0].set(ylabel="cost / cost of reactive", ylim=(0, None))
    axes[1, 0].set_ylabel("late requests, percent")
    return finish(fig)


def over_provisioning(table: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Draw time-average machines over reactive's, and the values read off the paper's figure 4.

    Args:
        table: columns trace, scheme, machines_ratio.
        published: columns trace, scheme, value; traces by the paper's name.
    """
    schemes = [s for s in ("util_aware", "exascale") if s in set(table["scheme"])]
    traces = list(table["trace"].unique())
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 2.8))
    for i, scheme in enumerate(schemes):
        x = np.arange(len(traces)) + (i - 0.5) * 0.36
        mine = table[table["scheme"] == scheme].set_index("trace").loc[traces, "machines_ratio"]
        ax.bar(x, mine, width=0.32, color=policy_style(scheme)["color"], label=f"{scheme}, here")
        for place, value in zip(x, mine, strict=True):
            ax.text(place, 0.05, f"{value:.2f}", ha="center", va="bottom", color="white", fontsize="small", rotation=90)
        paper = published[published["scheme"] == scheme].set_index("trace")["value"].reindex(traces)
        marker: dict[str, Any] = {
            "marker": "D",
            "linestyle": "none",
            "markerfacecolor": "white",
            "markeredgewidth": 1.3,
        }
        ax.plot(x, paper, color=policy_style(scheme)["color"], label=f"{scheme}, paper's figure 4", **marker)
    ax.axhline(1, color="0.3", linewidth=0.9, linestyle="--")
    ax.set_xticks(range(len(traces)), traces)
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="mean machines / reactive's", ylim=(0, None))
    ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.18), columnspacing=1.0, handletextpad=0.4)
    return finish(fig)


def against_bound(table: pd.DataFrame, schemes: list[str]) -> Figure:
    """Draw cost over the bound that allows each run its own violations, a row a scheme, a marker a trace.

    The first row is the bound of those that serve requests one by one (no late answers allowed).
    """
    single = table.drop_duplicates("trace")
    ratio = single["unbatched_usd"] / single["bound_usd"]
    first = single.assign(scheme="bound, no batches", cost_to_oracle=ratio, slo_violation_pct=np.nan)
    table, schemes = pd.concat([table, first]), ["bound, no batches", *schemes]
    traces = list(table["trace"].unique())
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 0.3 * len(schemes) + 1.2), sharey=True, width_ratios=(1.6, 1))
    for i, trace in enumerate(traces):
        data = table[table["trace"] == trace].set_index("scheme").reindex(schemes)
        y = np.arange(len(schemes)) + (i - (len(traces) - 1) / 2) * 0.12
        marks = {"color": colors()[i], "marker": _MARKERS[i % len(_MARKERS)], "linestyle": "none", "label": trace}
        axes[0].plot(data["cost_to_oracle"].clip(upper=_WORST), y, **marks)
        axes[1].plot(_violations(data["slo_violation_pct"]), y, **marks)
    axes[0].axvline(1, color="black", linewidth=1.5)
    axes[0].set(xscale="log", xlim=(0.93, 1.15 * _WORST), xlabel="cost / lower bound at the run's own violations")
    axes[0].set_xticks([1, 1.5, 2, 3, 5, _WORST], ["1", "1.5", "2", "3", "5", f"≥{_WORST}"])
    axes[0].minorticks_off()
    axes[0].set_yticks(range(len(schemes)), schemes)
    axes[0].set_ylim(len(schemes) - 0.5, -0.5)
    _late_axis(axes[1])
    for place in np.arange(0.5, len(schemes) - 1):
        for ax in axes:
            ax.axhline(place, color="0.9", linewidth=0.8)
    for ax in axes:
        ax.grid(axis="y", visible=False)
    fig.legend(*axes[0].get_legend_handles_labels(), ncols=len(traces), loc="outside upper center")
    return finish(fig)


def load_and_capacity(lines: pd.DataFrame) -> Figure:
    """Draw load and ready machines over time, a panel a scheme; shading below shows what functions answered."""
    schemes = list(lines["scheme"].unique())
    fig, axes = plt.subplots(len(schemes), 1, figsize=(WIDTH_IN, 1.4 * len(schemes) + 0.5), sharex=True, sharey=True)
    top = 1.05 * max(lines["load"].max(), lines["ready"].max())
    for ax, scheme in zip(np.atleast_1d(axes), schemes, strict=True):
        data, style = lines[lines["scheme"] == scheme], scheme_style(scheme)
        ax.plot(data["minute"], data["load"], color="0.35", linewidth=0.6, label="load")
        ax.plot(data["minute"], data["ready"], color=style["color"], linewidth=1.6, label="ready machines")
        share = data["function_pct"].fillna(0) / 100 * data["load"]
        ax.fill_between(data["minute"], 0, share, color="black", linewidth=0, label="of it, answered by functions")
        ax.set_title(scheme, loc="left", fontweight="bold", color=style["color"], pad=2)
        ax.set(xlim=(data["minute"].min(), data["minute"].max()), ylim=(0, top))
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=3, loc="outside upper center")
    fig.supylabel("machines", fontsize="medium")
    np.atleast_1d(axes)[-1].set_xlabel("minutes since the window's start")
    return finish(fig)


def readings(table: pd.DataFrame) -> Figure:
    """Draw cost per million requests and violations of every reading of "reactive", a panel a policy."""
    names = list(table["reading"].unique())
    traces = list(table["trace"].unique())
    fig, axes = plt.subplots(2, 2, figsize=(WIDTH_IN, 0.32 * len(names) * 2 + 1.4), sharey=True, sharex="col")
    for row, policy in enumerate(("reactive", "mixed")):
        for i, trace in enumerate(traces):
            data = table[(table["scheme"] == policy) & (table["trace"] == trace)].set_index("reading").loc[names]
            first = table[(table["scheme"] == "reactive") & (table["trace"] == trace)].set_index("reading")["cost_usd"]
            y = np.arange(len(names)) + (i - (len(traces) - 1) / 2) * 0.13
            marks = {"color": colors()[i], "marker": _MARKERS[i], "linestyle": "none", "label": trace}
            axes[row, 0].plot(data["cost_usd"] / first[names[0]], y, **marks)
            axes[row, 1].plot(_violations(data["slo_violation_pct"]), y, **marks)
        axes[row, 0].axvline(1, color="0.4", linewidth=0.8, linestyle="--")
        axes[row, 0].set_yticks(range(len(names)), names)
        axes[row, 0].set_title(policy, loc="left", fontweight="bold", color=policy_style(policy)["color"])
        for ax in axes[row]:
            ax.grid(axis="y", visible=False)
            for place in np.arange(0.5, len(names) - 1):
                ax.axhline(place, color="0.9", linewidth=0.8)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    axes[0, 0].set_xlim(0, None)
    axes[1, 0].set_xlabel(f"cost / cost of reactive {names[0]}")
    _late_axis(axes[1, 1])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=len(traces), loc="outside upper center")
    return finish(fig)


def boot_sweep(table: pd.DataFrame) -> Figure:
    """Draw cost over reactive's and violations against the start-up of VMs, a column a trace."""
    return _sweep(table, "start_up_s", "seconds from decision to ready VM")


def price_sweep(table: pd.DataFrame, schemes: list[str], now: float) -> Figure:
    """Draw cost over reactive's against the price of functions, a panel a trace; the dotted line is today's price."""
    traces = list(table["trace"].unique())
    fig, axes = plt.subplots(1, len(traces), figsize=(WIDTH_IN, 2.7), sharey=True, squeeze=False)
    for ax, trace in zip(axes[0], traces, strict=True):
        for scheme in schemes:
            data = table[(table["trace"] == trace) & (table["scheme"] == scheme)]
            ax.plot(data["price_ratio"], data["cost_ratio"], label=scheme, **scheme_style(scheme))
        ax.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        ax.axvline(now, color="0.4", linewidth=0.8, linestyle=":")
        ax.set(title=trace, xticks=sorted(table["price_ratio"].unique()))
    axes[0, 0].set(ylabel="cost / cost of reactive", ylim=(0, None))
    fig.supxlabel("price of an answer on functions / on busy VMs", fontsize="medium")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=len(schemes), loc="outside upper center")
    return finish(fig)


def _sweep(table: pd.DataFrame, x: str, label: str) -> Figure:
    traces, schemes = list(table["trace"].unique()), list(table["scheme"].unique())
    fig, axes = plt.subplots(2, len(traces), figsize=(WIDTH_IN, 4.2), sharex=True, sharey="row", squeeze=False)
    for column, trace in enumerate(traces):
        above, below = axes[:, column]
        _percent_axis(below)
        for scheme in schemes:
            data = table[(table["trace"] == trace) & (table["scheme"] == scheme)]
            above.plot(data[x], data["cost_ratio"], label=scheme, **scheme_style(scheme))
            below.plot(data[x], _violations(data["slo_violation_pct"]), **scheme_style(scheme))
        above.set(title=trace)
    axes[0, 0].set(ylabel="cost / cost of reactive", ylim=(0, None))
    axes[1, 0].set_ylabel("late requests, percent")
    fig.supxlabel(label, fontsize="medium")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=len(schemes), loc="outside upper center")
    return finish(fig)


def strict_sweep(pairs: pd.DataFrame, shares: pd.DataFrame) -> Figure:
    """Draw what paragon saves on mixed, what it costs in violations, and who uses functions, against the strict share.

    Args:
        pairs: columns trace, rule, strict_share, seed, saving_pct, violation_gap_pp.
        shares: columns trace, scheme, strict_share, class, function_pct (percent of all requests).
    """
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.1))
    for i, (trace, mine) in enumerate(pairs.groupby("trace", sort=False)):
        for rule, data in mine.groupby("rule", sort=False):
            line = {"color": colors()[i], "marker": _MARKERS[i], "linestyle": "-" if rule == "free slot" else ":"}
            for ax, column in zip(axes, ("saving_pct", "violation_gap_pp"), strict=False):
                groups = data.groupby("strict_share")[column]
                mean, low, high = groups.mean(), groups.min(), groups.max()
                ax.fill_between(100 * mean.index, low, high, color=colors()[i], alpha=0.2, linewidth=0)
                ax.plot(100 * mean.index, mean, label=f"{trace}, {rule}", **line)
    for ax in axes[:2]:
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.set_xlabel("strict queries, percent")
    axes[0].set_ylabel("saved by paragon on mixed, percent")
    axes[1].set_ylabel("late, paragon − mixed, points")
    _function_shares(axes[2], shares)
    fig.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    return finish(fig)


def _function_shares(ax: Axes, shares: pd.DataFrame) -> None:
    """Draw stacked shares of requests on functions by class: mixed left, paragon right of each strict share."""
    places = sorted(shares["strict_share"].unique())
    for offset, scheme in ((-0.2, "mixed, free slot"), (0.2, "paragon, free slot")):
        bottom = np.zeros(len(places))
        for name, alpha in (("strict", 1.0), ("relaxed", 0.35)):
            data = shares[(shares["scheme"] == scheme) & (shares["class"] == name)].groupby("strict_share")[
                "function_pct"
            ]
            height = data.mean().reindex(places).fillna(0).to_numpy()
            color = policy_style(scheme.partition(", ")[0])["color"]
            label = f"{scheme.partition(', ')[0]}, {name}"
            ax.bar(
                np.arange(len(places)) + offset, height, 0.36, bottom=bottom, color=to_rgba(color, alpha), label=label
            )
            bottom += height
    ax.set_xticks(range(len(places)), [f"{100 * s:.0f}" for s in places])
    ax.set(xlabel="strict queries, percent", ylabel="on functions, percent")
    ax.set_ylim(0, ax.get_ylim()[1] * 1.6)
    ax.grid(axis="x", visible=False)
    ax.legend(fontsize="small", loc="upper left", handlelength=1.0, handletextpad=0.4, labelspacing=0.2)


def start_up_map(best: pd.DataFrame, limit_pct: float) -> Figure:
    """Draw the cheapest scheme with few violations for each start-up of VMs and functions, and its lead in percent."""
    traces = list(best["trace"].unique())
    fig, axes = plt.subplots(1, len(traces), figsize=(WIDTH_IN, 2.9), sharey=True, squeeze=False)
    starts, colds = sorted(best["start_up_s"].unique()), sorted(best["cold_s"].unique())
    for ax, trace in zip(axes[0], traces, strict=True):
        for row in best[best["trace"] == trace].itertuples():
            x, y = starts.index(row.start_up_s), colds.index(row.cold_s)
            color = policy_style(row.best)["color"] if row.best != "none" else "0.9"
            ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=to_rgba(color, 0.45), edgecolor="white"))
            lead = f"\n+{row.margin_pct:.1f}%\n{row.second}" if row.second != "none" else ""
            ax.text(x, y, f"{row.best}{lead}", ha="center", va="center", fontsize=6.5)
        ax.set_xticks(range(len(starts)), [f"{s:g}" for s in starts])
        ax.set_yticks(range(len(colds)), [f"{c:g}" for c in colds])
        ax.set(title=trace, xlim=(-0.5, len(starts) - 0.5), ylim=(-0.5, len(colds) - 0.5))
        ax.grid(visible=False)
    axes[0, 0].set_ylabel("cold start of a function, s")
    fig.supxlabel("seconds from decision to ready VM", fontsize="medium")
    fig.suptitle(
        f"cheapest scheme with at most {limit_pct:g}% late; below it the runner-up and how much dearer", fontsize=9
    )
    return finish(fig)


def hours_scatter(table: pd.DataFrame) -> Figure:
    """Draw what mixed saves against the burstiness of each hour: on reactive and on exascale."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.2), sharex=True)
    for ax, against in zip(axes, ("reactive", "exascale"), strict=True):
        for i, trace in enumerate(table["trace"].unique()):
            data = table[table["trace"] == trace]
            for scheme, face in (("mixed", None), ("mixed, free slot", "white")):
                mine = data[data["scheme"] == scheme]
                marks = {"marker": _MARKERS[i], "linestyle": "none", "color": colors()[i], "markersize": 4}
                label = f"{trace}" if scheme == "mixed" else None
                y = mine[f"saving_on_{against}_pct"]
                ax.plot(mine["burstiness_pct"], y, markerfacecolor=face or colors()[i], label=label, **marks)
        ax.axhline(0, color="0.3", linewidth=0.9)
        ax.axvline(50, color="0.4", linewidth=0.8, linestyle="--")
        ax.set(xlabel="(peak − mean) / peak of the hour, percent", xlim=(0, 100))
        ax.set_ylabel(f"saved on {against}, percent")
    handles, labels = axes[0].get_legend_handles_labels()
    hollow = plt.Line2D([], [], color="0.3", marker="o", linestyle="none", markerfacecolor="white", markersize=4)
    fig.legend([*handles, hollow], [*labels, "free-slot rule"], ncols=len(labels) + 1, loc="outside upper center")
    return finish(fig)


def spock(table: pd.DataFrame) -> Figure:
    """Draw cost over functions only, and violations, of Spock's schemes: a row a policy, a column a trace."""
    traces = list(table["trace"].unique())
    names = ("autoscale", "X-autoscale", "spock", "ideal")
    fig, axes = plt.subplots(2, 2 * len(traces), figsize=(WIDTH_IN, 4.4), sharey="row", squeeze=False)
    alike = {"autoscale": "reactive", "X-autoscale": "exascale", "spock": "spock"}
    look: dict[str, Any] = {name: policy_style(other)["color"] for name, other in alike.items()} | {"ideal": "0.2"}
    for column, (trace, policy) in enumerate((t, p) for t in traces for p in ("reactive", "predictive")):
        data = table[table["trace"] == trace].set_index("scheme")
        above, below = axes[:, column]
        _percent_axis(below)
        for i, name in enumerate(names):
            row = data.loc[f"{name}, {policy}"]
            above.bar(i, row["cost_ratio"], color=look[name], width=0.75)
            height = max(float(row["slo_violation_pct"]), _FLOOR_PCT) - _FLOOR_PCT
            below.bar(i, height, bottom=_FLOOR_PCT, color=look[name], width=0.75)
        above.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        above.set(title=f"{trace}\n{policy}")
        above.set_xticks([])
        below.set_xticks(range(len(names)), names, rotation=90)
        for ax in (above, below):
            ax.grid(axis="x", visible=False)
    axes[0, 0].set(ylabel="cost / functions only", ylim=(0, None))
    axes[1, 0].set_ylabel("late queries, percent")
    return finish(fig)


def functions_only(table: pd.DataFrame, crossing: float) -> Figure:
    """Draw functions only over VMs for the peak against mean / peak minute: small for hours, large for whole parts."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.0))
    for i, trace in enumerate(table["trace"].unique()):
        data = table[table["trace"] == trace]
        hourly = ~data["whole"]
        marks: dict[str, Any] = {"marker": _MARKERS[i], "linestyle": "none", "color": colors()[i]}
        ax.plot(data["mean_to_peak"][hourly], data["over_static"][hourly], markersize=4, label=trace, **marks)
        whole: dict[str, Any] = {"markersize": 9, "markeredgecolor": "black"}
        ax.plot(data["mean_to_peak"][~hourly], data["over_static"][~hourly], **marks, **whole)
    x = np.linspace(0, 1, 50)
    ax.plot(x, x / crossing, color="0.5", linewidth=1, linestyle=":", zorder=0)
    ax.axhline(1, color="0.3", linewidth=0.9, linestyle="--")
    ax.annotate(f"equal at {crossing:.2f}", (crossing, 1), xytext=(6, -14), textcoords="offset points")
    ax.set(xlabel="mean / peak minute (small: an hour; large: the whole evaluation part)", xlim=(0, 1), ylim=(0, None))
    ax.set_ylabel("functions only / VMs for the peak")
    ax.legend(loc="upper left", ncols=2)
    return finish(fig)
