"""The figure of ``advise``: what runs over time, and what a month costs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from selfserve.figures.style import WIDTH_IN, colors, finish

_PARTS = {"vm": "on-demand VMs", "spot": "spot VMs", "function": "functions", "bound": "_bound"}


def advice(over_time: pd.DataFrame, costs: pd.DataFrame, policy: str) -> Figure:
    """Draw machines and load over time, the functions' share, and dollars a month of policy, default and bound."""
    fig = plt.figure(figsize=(WIDTH_IN, 4.6))
    grid = fig.add_gridspec(3, 1, height_ratios=[1.0, 1.3, 1.1])
    load, ready, cost = (fig.add_subplot(grid[i]) for i in range(3))
    ready.sharex(load)
    step = max(1, len(over_time) // 800)
    shown = over_time.groupby(over_time.index // step).mean()
    load.plot(shown["hour"], shown["load"], color="0.35", linewidth=0.9)
    load.set(ylabel="requests/s", ylim=(0, None), xlim=(shown["hour"].min(), shown["hour"].max()))
    load.tick_params(labelbottom=False)
    machines = [name for name in over_time.columns if name not in ("hour", "load", "function_pct")]
    ready.stackplot(
        shown["hour"], [shown[name] for name in machines], labels=[f"pool {name}" for name in machines],
        colors=[colors()[i] for i in range(len(machines))], linewidth=0,
    )  # fmt: skip
    least = shown[machines].sum(axis=1).max()
    share = shown["function_pct"].fillna(0) / 100 * least
    ready.plot(shown["hour"], share, color="black", linewidth=0.8, label=f"functions' share of answers × {least:.0f}")
    ready.set(ylabel="ready machines", xlabel="hours since the trace's start", ylim=(0, 1.35 * max(least, 1)))
    ready.legend(loc="upper left", ncols=3, fontsize="small")
    load.set_title(f"{policy} on this trace", loc="left", fontweight="bold")
    left = pd.Series(0.0, index=costs.index)
    for i, (part, text) in enumerate(_PARTS.items()):
        if part in costs and costs[part].fillna(0).any():
            color = "0.6" if part == "bound" else colors()[{"vm": 0, "spot": 1, "function": 2}[part]]
            cost.barh(
                costs["what"], costs[part].fillna(0), left=left, color=color, label=text, hatch="" if i % 2 else "//"
            )
            left += costs[part].fillna(0)
    for y, total in enumerate(left):
        cost.text(total, y, f" ${total:,.0f}", va="center")
    cost.set(xlabel="dollars a month", xlim=(0, 1.15 * left.max()))
    cost.invert_yaxis()
    cost.grid(axis="y", visible=False)
    cost.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3, fontsize="small")
    return finish(fig)
