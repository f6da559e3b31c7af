"""The figures of notebook 04: tidy tables of :mod:`selfserve.studies.prior` in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from selfserve.figures.style import WIDTH_IN, finish, name_rows, policy_style, trace_marks, trace_style

_FLOOR_PCT = 1e-3
"""Violations are drawn on a logarithmic axis from here; fewer are drawn at its foot."""
_WORST = 10
"""Costs over the bound beyond this are drawn at this."""


def scheme_style(scheme: str) -> dict[str, Any]:
    """Return the look of a scheme: that of its policy; a variant ("mixed, no hold") is dashed and hollow."""
    base, _, variant = scheme.partition(", ")
    style = policy_style(base)
    return style | ({"linestyle": (0, (2, 1)), "markerfacecolor": "white"} if variant else {})


def _color(scheme: str) -> Any:
    return policy_style(scheme.partition(", ")[0])["color"]


def _percent_axis(ax: Axes) -> None:
    """Make the vertical axis one of violations, in percent."""
    ax.set(yscale="log", ylim=(_FLOOR_PCT, 100))
    ax.set_yticks([0.001, 0.01, 0.1, 1, 10, 100], ["≤0.001", "0.01", "0.1", "1", "10", "100"])


def _late_axis(ax: Axes) -> None:
    """Make the horizontal axis one of violations, in percent."""
    ax.set(xscale="log", xlim=(_FLOOR_PCT * 0.7, 150), xlabel="late requests, percent")
    ax.set_xticks([0.001, 0.01, 0.1, 1, 10, 100], ["≤0.001", "", "0.1", "1", "10", "100"])
    ax.minorticks_off()


def _violations(values: pd.Series) -> pd.Series:
    return values.clip(lower=_FLOOR_PCT)


def _dots(axes: Sequence[Axes], data: pd.DataFrame, cost: pd.Series, i: int, n: int, label: str) -> None:
    """Draw cost (left) and violations (right) of the i-th of n traces, a row of ``data`` a row, beside each other."""
    y = np.arange(len(data)) + (i - (n - 1) / 2) * 0.12
    axes[0].plot(cost, y, **trace_marks(label, label=label))
    axes[1].plot(_violations(data["slo_violation_pct"]), y, **trace_marks(label))


def _line_between_rows(axes: Sequence[Axes], rows: int) -> None:
    for ax in axes:
        for place in np.arange(0.5, rows - 1):
            ax.axhline(place, color="0.9", linewidth=0.8)
        ax.grid(axis="y", visible=False)


def _bar_columns(columns: Mapping[str, pd.DataFrame], names: Sequence[str], colors: list[Any], cost: str) -> Figure:
    """Draw cost (above) and violations (below) as bars, a column a table with a row a name."""
    fig, axes = plt.subplots(2, len(columns), figsize=(WIDTH_IN, 4.4), sharex=True, sharey="row", squeeze=False)
    for (above, below), (title, data) in zip(axes.T, columns.items(), strict=True):
        for ax, values, foot in (
            (above, data["cost_ratio"], 0.0), (below, _violations(data["slo_violation_pct"]), _FLOOR_PCT),
        ):  # fmt: skip
            ax.bar(range(len(names)), values - foot, width=0.75, bottom=foot, color=colors)
            ax.grid(axis="x", visible=False)
        above.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        above.set_title(title)
        _percent_axis(below)
        below.set_xticks(range(len(names)), names, rotation=90)
    axes[0, 0].set(ylabel=cost, ylim=(0, None))
    axes[1, 0].set_ylabel("late requests, percent")
    return finish(fig)


def cost_and_violations(table: pd.DataFrame, schemes: list[str]) -> Figure:
    """Draw cost over the reactive baseline (above) and violations (below), a column a trace."""
    columns = {str(t): rows.set_index("scheme").loc[schemes] for t, rows in table.groupby("trace", sort=False)}
    return _bar_columns(columns, schemes, [_color(scheme) for scheme in schemes], "cost / cost of reactive")


def spock(table: pd.DataFrame) -> Figure:
    """Draw cost over functions only, and violations, of Spock's schemes: a column a trace and policy."""
    names = ("autoscale", "X-autoscale", "spock", "ideal")
    columns = {
        f"{trace}\n{policy}": rows.set_index("scheme").loc[[f"{name}, {policy}" for name in names]]
        for trace, rows in table.groupby("trace", sort=False)
        for policy in ("reactive", "predictive")
    }
    looks = [*(policy_style(name)["color"] for name in ("reactive", "exascale", "spock")), "0.2"]
    return _bar_columns(columns, names, looks, "cost / functions only")


def over_provisioning(table: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Draw time-average machines over reactive's, and the values read off the paper's figure 4."""
    traces = list(table["trace"].unique())
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 2.8))
    for i, scheme in enumerate(("util_aware", "exascale")):
        x, color = np.arange(len(traces)) + (i - 0.5) * 0.36, policy_style(scheme)["color"]
        mine = table[table["scheme"] == scheme].set_index("trace").loc[traces, "machines_ratio"]
        ax.bar(x, mine, width=0.32, color=color, label=f"{scheme}, here")
        for place, value in zip(x, mine, strict=True):
            ax.text(place, 0.05, f"{value:.2f}", ha="center", va="bottom", color="white", fontsize="small", rotation=90)
        paper = published[published["scheme"] == scheme].set_index("trace")["value"].reindex(traces)
        hollow: Any = {"markerfacecolor": "white", "markeredgewidth": 1.3, "color": color}
        ax.plot(x, paper, "D", label=f"{scheme}, paper's figure 4", **hollow)
    ax.axhline(1, color="0.3", linewidth=0.9, linestyle="--")
    ax.set_xticks(range(len(traces)), traces)
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="mean machines / reactive's", ylim=(0, None))
    return finish(fig, ax, ncols=2)


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
        _dots(axes, data, data["cost_to_oracle"].clip(upper=_WORST), i, len(traces), trace)
    axes[0].axvline(1, color="black", linewidth=1.5)
    axes[0].set(xscale="log", xlim=(0.93, 1.15 * _WORST), xlabel="cost / lower bound at the run's own violations")
    axes[0].set_xticks([1, 1.5, 2, 3, 5, _WORST], ["1", "1.5", "2", "3", "5", f"≥{_WORST}"])
    axes[0].minorticks_off()
    name_rows(axes[0], schemes)
    axes[0].set_ylim(len(schemes) - 0.5, -0.5)
    _late_axis(axes[1])
    _line_between_rows(axes, len(schemes))
    return finish(fig, axes[0], ncols=len(traces))


def load_and_capacity(lines: pd.DataFrame) -> Figure:
    """Draw load, ready and busy machines over time, a panel a scheme; black below shows what functions answered."""
    schemes = list(lines["scheme"].unique())
    fig, axes = plt.subplots(len(schemes), 1, figsize=(WIDTH_IN, 1.4 * len(schemes) + 0.5), sharex=True, sharey=True)
    top = 1.05 * lines[["load", "ready", "busy"]].max(axis=None)
    for ax, scheme in zip(np.atleast_1d(axes), schemes, strict=True):
        data, style = lines[lines["scheme"] == scheme], scheme_style(scheme)
        ax.plot(data["minute"], data["load"], color="0.35", linewidth=0.6, label="load, one model an answer")
        ax.plot(data["minute"], data["ready"], color=style["color"], linewidth=1.6, label="ready machines")
        ax.fill_between(data["minute"], 0, data["busy"], color=style["color"], linewidth=0, alpha=0.25, label="busy")
        share = data["function_pct"].fillna(0) / 100 * data["load"]
        ax.fill_between(data["minute"], 0, share, color="black", linewidth=0, label="of the load, on functions")
        ax.set_title(scheme, loc="left", fontweight="bold", pad=2)
        ax.set(xlim=(data["minute"].min(), data["minute"].max()), ylim=(0, top))
    fig.supylabel("machines", fontsize="medium")
    np.atleast_1d(axes)[-1].set_xlabel("minutes since the window's start")
    return finish(fig, np.atleast_1d(axes)[0], ncols=2)


def readings(table: pd.DataFrame) -> Figure:
    """Draw cost per million requests and violations of every reading of "reactive", a panel a policy."""
    names, traces = list(table["reading"].unique()), list(table["trace"].unique())
    fig, axes = plt.subplots(2, 2, figsize=(WIDTH_IN, 0.32 * len(names) * 2 + 1.4), sharey=True, sharex="col")
    by = table.set_index(["scheme", "trace", "reading"]).sort_index()
    for row, policy in zip(axes, ("reactive", "mixed"), strict=True):
        for i, trace in enumerate(traces):
            data = by.loc[(policy, trace)].loc[names]
            _dots(row, data, data["cost_usd"] / by.at[("reactive", trace, names[0]), "cost_usd"], i, len(traces), trace)
        row[0].axvline(1, color="0.4", linewidth=0.8, linestyle="--")
        row[0].set_yticks(range(len(names)), names)
        row[0].set_title(policy, loc="left", fontweight="bold")
        _line_between_rows(row, len(names))
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    axes[0, 0].set_xlim(0, None)
    axes[1, 0].set_xlabel(f"cost / cost of reactive {names[0]}")
    _late_axis(axes[1, 1])
    return finish(fig, axes[0, 0], ncols=len(traces))


def boot_sweep(table: pd.DataFrame) -> Figure:
    """Draw cost over reactive's and violations against the start-up of VMs, a column a trace."""
    return _sweep(table, "start_up_s", "seconds from decision to ready VM", rows=2, height=4.2)


def price_sweep(table: pd.DataFrame, schemes: list[str], now: float) -> Figure:
    """Draw cost over reactive's against the price of functions, a panel a trace; the dotted line is today's price."""
    table = table[table["scheme"].isin(schemes)]
    fig = _sweep(table, "price_ratio", "price of an answer on functions / on busy VMs", rows=1, height=2.7)
    for ax in fig.axes:
        ax.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        ax.axvline(now, color="0.4", linewidth=0.8, linestyle=":")
        ax.set_xticks(sorted(table["price_ratio"].unique()))
    return fig


def _sweep(table: pd.DataFrame, x: str, label: str, rows: int, height: float) -> Figure:
    """Draw cost over reactive's (and, in a second row, violations) against ``x``, a column a trace, a line a scheme."""
    traces, schemes = list(table["trace"].unique()), list(table["scheme"].unique())
    fig, axes = plt.subplots(rows, len(traces), figsize=(WIDTH_IN, height), sharex=True, sharey="row", squeeze=False)
    for column, trace in zip(axes.T, traces, strict=True):
        column[0].set(title=trace)
        for scheme in schemes:
            data = table[(table["trace"] == trace) & (table["scheme"] == scheme)]
            column[0].plot(data[x], data["cost_ratio"], label=scheme, **scheme_style(scheme))
            for below in column[1:]:
                below.plot(data[x], _violations(data["slo_violation_pct"]), **scheme_style(scheme))
        for below in column[1:]:
            _percent_axis(below)
    axes[0, 0].set(ylabel="cost / cost of reactive", ylim=(0, None))
    if rows > 1:
        axes[1, 0].set_ylabel("late requests, percent")
    fig.supxlabel(label, fontsize="medium")
    return finish(fig, axes[0, 0], ncols=len(schemes))


def strict_sweep(pairs: pd.DataFrame, shares: pd.DataFrame) -> Figure:
    """Draw what paragon saves on mixed, what that costs in violations, and who uses functions, by strict share."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.1))
    for trace, mine in pairs.groupby("trace", sort=False):
        for rule, data in mine.groupby("rule", sort=False):
            line = trace_marks(trace, linestyle="-" if rule == "free slot" else ":")
            for ax, column in zip(axes, ("saving_pct", "violation_gap_pp"), strict=False):
                groups = data.groupby("strict_share")[column]
                mean, low, high = groups.mean(), groups.min(), groups.max()
                ax.fill_between(100 * mean.index, low, high, color=line["color"], alpha=0.2, linewidth=0)
                ax.plot(100 * mean.index, mean, label=f"{trace}, {rule}", **line)
    for ax in axes[:2]:
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.set_xlabel("strict queries, percent")
    axes[0].set_ylabel("saved by paragon on mixed, percent")
    axes[1].set_ylabel("late, paragon − mixed, points")
    _function_shares(axes[2], shares)
    return finish(fig, axes[0], ncols=4)


def _function_shares(ax: Axes, shares: pd.DataFrame) -> None:
    """Draw stacked shares of requests on functions by class: mixed left, paragon right of each strict share."""
    places = sorted(shares["strict_share"].unique())
    for offset, scheme in ((-0.2, "mixed, free slot"), (0.2, "paragon, free slot")):
        bottom = np.zeros(len(places))
        for name, alpha in (("strict", 1.0), ("relaxed", 0.35)):
            data = shares[(shares["scheme"] == scheme) & (shares["class"] == name)]
            height = data.groupby("strict_share")["function_pct"].mean().reindex(places).fillna(0).to_numpy()
            look: Any = {"color": to_rgba(_color(scheme), alpha), "label": f"{scheme.partition(', ')[0]}, {name}"}
            ax.bar(np.arange(len(places)) + offset, height, 0.36, bottom=bottom, **look)
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
            color = _color(row.best) if row.best != "none" else "0.9"
            ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=to_rgba(color, 0.45), edgecolor="white"))
            lead = f"\n+{row.margin_pct:.1f}%\n{row.second}" if row.second != "none" else ""
            ax.text(x, y, f"{row.best}{lead}", ha="center", va="center", fontsize=6.5)
        ax.set_xticks(range(len(starts)), [f"{s:g}" for s in starts])
        ax.set_yticks(range(len(colds)), [f"{c:g}" for c in colds])
        ax.set(title=trace, xlim=(-0.5, len(starts) - 0.5), ylim=(-0.5, len(colds) - 0.5))
        ax.grid(visible=False)
    axes[0, 0].set_ylabel("cold start of a function, s")
    fig.supxlabel("seconds from decision to ready VM", fontsize="medium")
    text = f"cheapest scheme with at most {limit_pct:g}% late; below it the runner-up and how much dearer"
    fig.suptitle(text, fontsize=9)
    return finish(fig)


def hours_scatter(table: pd.DataFrame) -> Figure:
    """Draw what mixed saves against the burstiness of each hour: on reactive and on exascale."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.2), sharex=True)
    for ax, against in zip(axes, ("reactive", "exascale"), strict=True):
        for trace in table["trace"].unique():
            data = table[table["trace"] == trace]
            for scheme, face in (("mixed", trace_style(trace)["color"]), ("mixed, free slot", "white")):
                mine, label = data[data["scheme"] == scheme], trace if scheme == "mixed" else None
                look = trace_marks(trace, markersize=4, markerfacecolor=face, label=label)
                ax.plot(mine["burstiness_pct"], mine[f"saving_on_{against}_pct"], **look)
        ax.axhline(0, color="0.3", linewidth=0.9)
        ax.axvline(50, color="0.4", linewidth=0.8, linestyle="--")
        ax.set(xlabel="(peak − mean) / peak of the hour, percent", xlim=(0, 100))
        ax.set_ylabel(f"saved on {against}, percent")
    axes[0].plot([], [], "o", color="0.3", markerfacecolor="white", markersize=4, label="free-slot rule")
    return finish(fig, axes[0], ncols=table["trace"].nunique() + 1)


def functions_only(table: pd.DataFrame, crossing: float) -> Figure:
    """Draw functions only over VMs for the peak against mean / peak minute: small for hours, large for whole parts."""
    fig, ax = plt.subplots(figsize=(WIDTH_IN, 3.0))
    for trace, rows in table.groupby("trace", sort=False):
        look, whole = trace_marks(trace), rows["whole"]
        ax.plot(rows["mean_to_peak"][~whole], rows["over_static"][~whole], markersize=4, label=trace, **look)
        ax.plot(rows["mean_to_peak"][whole], rows["over_static"][whole], markersize=9, markeredgecolor="black", **look)
    x = np.linspace(0, 1, 50)
    ax.plot(x, x / crossing, color="0.5", linewidth=1, linestyle=":", zorder=0)
    ax.axhline(1, color="0.3", linewidth=0.9, linestyle="--")
    ax.annotate(f"equal at {crossing:.2f}", (crossing, 1), xytext=(6, -14), textcoords="offset points")
    ax.set(xlabel="mean / peak minute (small: an hour; large: the whole evaluation part)", xlim=(0, 1), ylim=(0, None))
    ax.set_ylabel("functions only / VMs for the peak")
    ax.legend(loc="upper left", ncols=2)
    return finish(fig)
