"""What became of the papers' claims on the resource side (C06-C09, C11-C14, C17-C21), from the tables of ``prior``.

The bands are those of ``claims.csv``. Nothing is fitted to reach them; what the papers leave open is fixed in the
policies' docstrings and shown under other readings in notebook 04.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from selfserve.studies.claims import judge, verdict_table

PAPER_TRACES = ("berkeley", "WITS", "twitter", "wiki_like")
"""The four traces of WoSC'20."""
PUBLISHED = pd.DataFrame(
    [
        (trace, scheme, value)
        for scheme, values in {"util_aware": (1.30, 1.35, 1.29, 1.22), "exascale": (1.50, 1.59, 1.44, 1.52)}.items()
        for trace, value in zip(PAPER_TRACES, values, strict=True)
    ],
    columns=["trace", "scheme", "value"],
)
"""Machines over reactive's, read off figure 4 of WoSC'20 (about +-0.02; WITS under exascale may be clipped)."""
SMALL_PCT = 0.05
"""Violations below this count as none where two shares are compared."""


# --- tables that the claims and figures need


def paragon_pairs(sweep: pd.DataFrame) -> pd.DataFrame:
    """Return paragon beside mixed for each trace, overflow rule, strict share and seed of the strict sweep.

    ``saving_pct`` is of mixed's cost, ``violation_gap_pp`` paragon's minus mixed's.
    """
    keys = ["trace", "strict_share", "seed"]
    parts = []
    for rule, suffix in (("fits", ""), ("free slot", ", free slot")):
        mine, other = (sweep[sweep["scheme"] == name + suffix].set_index(keys) for name in ("paragon", "mixed"))
        saving = 100 * (1 - mine["cost_usd"] / other["cost_usd"])
        gap = mine["slo_violation_pct"] - other["slo_violation_pct"]
        parts.append(pd.DataFrame({"rule": rule, "saving_pct": saving, "violation_gap_pp": gap}).reset_index())
    return pd.concat(parts, ignore_index=True)


def function_shares(sweep: pd.DataFrame) -> pd.DataFrame:
    """Return the percent of all requests that functions answered, by class, for each run of the strict sweep."""
    parts = []
    for name in ("strict", "relaxed"):
        share = 100 * sweep[f"functions.{name}"].fillna(0) / sweep["requests"]
        columns = sweep[["trace", "scheme", "strict_share", "seed"]]
        parts.append(columns.assign(**{"class": name, "function_pct": share}))
    return pd.concat(parts, ignore_index=True)


def savings(hours: pd.DataFrame) -> pd.DataFrame:
    """Return what mixed, under both overflow rules, saves on reactive and exascale in each whole hour (percent)."""
    hourly = hours[~hours["whole"]]
    keys = ["trace", "start_s"]
    out = hourly[hourly["scheme"].isin(["mixed", "mixed, free slot"])].copy()
    for other in ("reactive", "exascale"):
        base = hourly[hourly["scheme"] == other].set_index(keys)["cost_usd"].rename("base")
        out[f"saving_on_{other}_pct"] = 100 * (1 - out["cost_usd"] / out.join(base, on=keys)["base"])
    return out


def sign_change(x: pd.Series, y: pd.Series) -> float:
    """Return the threshold on ``x`` that best separates ``y`` > 0 (above it) from the rest; NaN if it never changes."""
    order = np.argsort(x.to_numpy(), kind="stable")
    xs, positive = x.to_numpy()[order], (y.to_numpy() > 0)[order]
    if positive.all() or not positive.any():
        return float("nan")
    right = np.array([(~positive[:i]).sum() + positive[i:].sum() for i in range(1, len(xs))])
    i = int(right.argmax()) + 1
    return float(xs[i - 1] + xs[i]) / 2


def over_static(hours: pd.DataFrame) -> pd.DataFrame:
    """Return functions only over the static fleet for the peak minute, for each window of the hours table."""
    keys = ["trace", "start_s", "whole"]
    static = hours[hours["scheme"] == "static"].set_index(keys)["cost_usd"].rename("static_usd")
    out = hours[hours["scheme"] == "functions only"].join(static, on=keys)
    return out.assign(over_static=out["cost_usd"] / out["static_usd"])


def crossing(ratios: pd.DataFrame) -> float:
    """Return the mean / peak at which functions only cost what the static fleet does: the ratio is linear in it."""
    return float((ratios["mean_to_peak"] / ratios["over_static"]).median())


# --- verdicts


def _of(table: pd.DataFrame, scheme: str, column: str) -> pd.Series:
    """Return one column of a scheme by trace, the paper's four traces alone (or their twins in a quick run)."""
    mine = table[table["scheme"] == scheme].set_index("trace")[column]
    return mine[[trace for trace in mine.index if str(trace).removesuffix("-twin") in PAPER_TRACES]]


def _list(values: pd.Series, digits: int = 2) -> str:
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in values.items())


def span(values: pd.Series, digits: int = 2) -> str:
    """Return the least and the greatest value in words: ``0.98 to 1.02``."""
    return f"{values.min():.{digits}f} to {values.max():.{digits}f}"


def _within(values: pd.Series, low: float, high: float) -> bool:
    """Return whether all values lie in a band that is stated to two digits."""
    return bool(values.round(2).between(low, high).all())


def _fewer(values: pd.Series, base: pd.Series, factor: float) -> bool:
    return bool((values <= factor * base + (base <= SMALL_PCT) * SMALL_PCT).all())


def over_provisioning(compared: pd.DataFrame) -> list[dict[str, str]]:
    """Judge C06, C07 and C08 on the comparison."""
    machines = {s: _of(compared, s, "machines_ratio") for s in ("util_aware", "exascale")}
    cost = {s: _of(compared, s, "cost_ratio") for s in ("util_aware", "exascale", "mixed", "mixed, free slot")}
    late = {s: _of(compared, s, "slo_violation_pct") for s in ("reactive", "util_aware", "exascale", "mixed")}
    wiki = [t for t in cost["mixed"].index if t == "wiki_like"]
    bursty = [t for t in cost["mixed"].index if t != "wiki_like"]
    gap = (late["mixed"] - late["exascale"]).abs()
    return [
        judge(
            "C06",
            f"util_aware {_list(machines['util_aware'])}; exascale {_list(machines['exascale'])}",
            {
                "util_aware 1.15-1.40 on all traces": _within(machines["util_aware"], 1.15, 1.40),
                "exascale 1.25-1.65 on all traces": _within(machines["exascale"], 1.25, 1.65),
                "reactive < util_aware < exascale on all traces": bool(
                    ((machines["util_aware"] > 1) & (machines["exascale"] > machines["util_aware"])).all()
                ),
            },
            "reactive holds the busiest interval of three minutes, exascale 1.5 times a line through 500 s: on a "
            "bursty trace the former already stands well above the mean, so their distance shrinks",
        ),
        judge(
            "C07",
            f"cost util_aware {span(cost['util_aware'])}, exascale {span(cost['exascale'])}; late reactive "
            f"{_list(late['reactive'])}%, util_aware {_list(late['util_aware'])}%, exascale {_list(late['exascale'])}%",
            {
                "both cost more than reactive": bool((cost["util_aware"] > 1).all() and (cost["exascale"] > 1).all()),
                "util_aware at most 0.7 of reactive's violations": _fewer(late["util_aware"], late["reactive"], 0.7),
                "exascale at most 0.5 of reactive's violations": _fewer(late["exascale"], late["reactive"], 0.5),
            },
        ),
        judge(
            "C08",
            f"cost mixed {_list(cost['mixed'])} (free-slot rule {span(cost['mixed, free slot'])}); late mixed "
            f"{_list(late['mixed'])}%, exascale {_list(late['exascale'])}%",
            {
                "0.80-1.02 of reactive's cost on the bursty traces": _within(cost["mixed"][bursty], 0.80, 1.02),
                "at least reactive's cost on wiki": _within(cost["mixed"][wiki], 1.0, np.inf),
                "within 0.5 points of exascale's violations": _within(gap, 0.0, 0.5),
            },
            "mixed scales its VMs by reactive's rule, so it can save no more than the machines that reactive adds for "
            "its queue, and functions come on top; where the violations differ, those of mixed are the fewer",
        ),
    ]


def shape(hours: pd.DataFrame) -> dict[str, str]:
    """Judge C09 on many hours."""
    table = savings(hours)
    parts, words = {}, []
    for against in ("reactive", "exascale"):
        mine = table[table["scheme"] == "mixed"]
        y = mine[f"saving_on_{against}_pct"]
        rank = float(spearmanr(mine["burstiness_pct"], y).statistic)
        change = sign_change(mine["burstiness_pct"], y)
        words.append(
            f"saving on {against} {span(y, 1)}%, Spearman {rank:.2f}, sign change "
            + (f"at {change:.0f}%" if np.isfinite(change) else "none")
        )
        if against == "reactive":
            parts["Spearman of saving and burstiness at least 0.5"] = rank >= 0.5
            parts["saving changes sign between 35 and 65%"] = 35 <= change <= 65
    why = (
        "with equal VM rules mixed pays functions for the bursts that reactive answers late; and exascale's margin is "
        "idle where load is smooth, so mixed saves most on it there"
    )
    return judge("C09", f"{len(table) // 2} hours; " + "; ".join(words), parts, why)


def start_up(best: pd.DataFrame) -> dict[str, str]:
    """Judge C11: does the cheapest scheme with few violations, or the order of all, change with start-up times."""
    leaders = {
        str(trace): "; ".join(
            f"{start:g} s {'/'.join(dict.fromkeys(names))}"
            for start, names in mine.groupby("start_up_s", sort=False)["best"]
        )
        for trace, mine in best.groupby("trace", sort=False)
    }
    orders = best.groupby("trace", sort=False)["order"].nunique()
    return judge(
        "C11",
        "cheapest with few violations by start-up of VMs: "
        + ", ".join(f"{trace} ({words})" for trace, words in leaders.items())
        + f"; orders of all schemes: {_list(orders, 0)}",
        {
            "the cheapest is the same for all start-ups": bool((best.groupby("trace")["best"].nunique() == 1).all()),
            "the order of all schemes is the same for all start-ups": bool((orders == 1).all()),
        },
        "a VM-only scheme drops out where machines come too late to keep its violations few",
    )


def workload_1(sweep: pd.DataFrame, share: float = 0.5) -> list[dict[str, str]]:
    """Judge C12, C13 and C14 on the strict sweep; the mix that the paper leaves open is taken as half and half."""
    means = sweep.groupby(["scheme", "trace", "strict_share"])[["cost_usd", "slo_violation_pct"]].mean()
    ratio = {s: means.loc[s, "cost_usd"] / means.loc["reactive", "cost_usd"] for s in ("mixed", "mixed, free slot")}
    late = means.loc["reactive", "slo_violation_pct"]
    late = late[late >= 1]  # where reactive violates enough for a reduction to mean anything
    cut = 100 * (1 - means.loc["mixed", "slo_violation_pct"].reindex(late.index) / late)
    rows = [
        judge(
            "C12",
            f"over all strict shares: cost {span(ratio['mixed'])} (free-slot rule {span(ratio['mixed, free slot'])}); "
            + (
                f"late under reactive {span(late, 1)}%, cut by {span(cut, 1)}%"
                if len(late)
                else "reactive never 1% late"
            ),
            {
                "cost 0.80-1.05 of reactive's": _within(ratio["mixed"], 0.80, 1.05),
                "violations cut by 40-75%": len(cut) > 0 and _within(cut, 40, 75),
            },
            "a larger cut is more than the paper claims",
        )
    ]
    pairs = paragon_pairs(sweep)
    free = pairs[(pairs["rule"] == "free slot") & (pairs["strict_share"] == share)]
    means = free.groupby("trace")[["saving_pct", "violation_gap_pp"]].mean()
    best = pairs[pairs["rule"] == "free slot"].groupby(["trace", "strict_share"])["saving_pct"].mean()
    positive = float((free["saving_pct"] > 0).mean())
    rows.append(
        judge(
            "C13",
            f"at {100 * share:.0f}% strict, free-slot rule: saving {_list(means['saving_pct'], 1)}%, violations "
            f"{_list(means['violation_gap_pp'], 3)} points, positive in {100 * positive:.0f}% of seeds; over all "
            f"shares {span(best, 1)}%",
            {
                "cost 0.88-0.97 of mixed's": bool(means["saving_pct"].between(3, 12).all()),
                "violations within 0.5 points": bool((means["violation_gap_pp"].abs() <= 0.5).all()),
                "saving positive in at least 90% of seeds": positive >= 0.9,
            },
            "strict queries need functions whenever no slot is free, whoever holds the slots; a relaxed query that "
            "waits instead keeps one busy, so that the saving approaches the paper's only where most are relaxed",
        )
    )
    return [*rows, mechanism(sweep, best)]


def mechanism(sweep: pd.DataFrame, saving: pd.Series) -> dict[str, str]:
    """Judge C14: paragon's function share by strict share, and its saving where every query is strict."""
    paragon = function_shares(sweep[sweep["scheme"] == "paragon, free slot"])
    total = paragon.groupby(["trace", "strict_share", "seed"])["function_pct"].sum()
    total = total.groupby(["trace", "strict_share"]).mean()
    falls = all(bool(total[trace].is_monotonic_increasing) for trace in total.index.levels[0])
    relaxed = float(paragon.loc[paragon["class"] == "relaxed", "function_pct"].max())
    all_strict = saving.xs(1.0, level="strict_share")
    ends = "; ".join(f"{t} {v.iloc[0]:.1f} to {v.iloc[-1]:.1f}%" for t, v in total.groupby(level=0))
    return judge(
        "C14",
        f"function share from no to only strict queries: {ends}; of relaxed ones at most {relaxed:.2f}%; saving "
        f"without relaxed queries {_list(all_strict, 1)}%",
        {
            "function share falls with the relaxed share": falls,
            "no saving without relaxed queries": bool((all_strict.abs() < 0.5).all()),
        },
    )


def spock(table: pd.DataFrame, hours: pd.DataFrame) -> list[dict[str, str]]:
    """Judge C17 to C21 on Spock's comparison and on many hours."""
    at = table.assign(trace=table["trace"].str.removesuffix("-twin")).set_index(["trace", "scheme"])
    traces = list(dict.fromkeys(at.index.get_level_values("trace")))
    policies = ("reactive", "predictive")

    def change(trace: str, policy: str, column: str, other: str = "autoscale") -> float:
        mine, base = at.loc[(trace, f"spock, {policy}"), column], at.loc[(trace, f"{other}, {policy}"), column]
        return 100 * (float(mine) / float(base) - 1) if base else float("nan")

    rows = []
    bands: Mapping[str, dict[str, tuple[float, float]]] = {
        "berkeley": {"reactive": (-25, -5), "predictive": (-10, 10)},
        "WITS": {"reactive": (-45, -15), "predictive": (-45, -15)},
    }
    for claim, trace in (("C17", "berkeley"), ("C18", "WITS")):
        if trace not in traces:
            continue
        late = {p: change(trace, p, "slo_violation_pct") for p in policies}
        cost = {p: change(trace, p, "cost_usd") for p in policies}
        parts = {f"cost, {p}": bands[trace][p][0] <= cost[p] <= bands[trace][p][1] for p in policies}
        if claim == "C17":
            parts |= {f"violations cut by 50-85%, {p}": -85 <= late[p] <= -50 for p in policies}
        elif "berkeley" in traces:
            more = all(cost[p] < change("berkeley", p, "cost_usd") for p in policies)
            parts["saving larger than on Berkeley under both policies"] = more
        levels = ", ".join(f"{p} {at.loc[(trace, f'autoscale, {p}'), 'slo_violation_pct']:.2f}%" for p in policies)
        few = {p: f"violations {late[p]:+.0f}%" if np.isfinite(late[p]) else "nothing late before" for p in policies}
        measured = "; ".join(f"{p}: {few[p]}, cost {cost[p]:+.0f}%" for p in policies)
        why = (
            "the authors' autoscale queues behind one VM, here all VMs share a queue, so a reactive fleet that holds "
            "the busiest second is hardly ever late and hardly needs functions; prediction leaves more to them"
        )
        rows.append(judge(claim, f"{measured}; late under autoscale: {levels}", parts, why))
    over = {(t, p): 1 + change(t, p, "cost_usd", "X-autoscale") / 100 for t in traces for p in policies}
    ideal = {(t, p): 1 + change(t, p, "cost_usd", "ideal") / 100 for t in traces for p in policies}
    rows.append(
        judge(
            "C19",
            ", ".join(f"{t} {p} {v:.2f}" for (t, p), v in over.items()),
            {f"0.35-0.75 on {t}, {p}": 0.35 <= round(v, 2) <= 0.75 for (t, p), v in over.items()},
            "X-autoscale has 1.5 times autoscale's machines, so 0.67 plus what functions cost is the least possible",
        )
    )
    rows.append(
        judge(
            "C20",
            ", ".join(f"{t} {p} {v:.2f}" for (t, p), v in ideal.items()),
            {f"1.00-1.12 on {t}, {p}": 1.0 <= round(v, 2) <= 1.12 for (t, p), v in ideal.items()},
            "an ideal VM that follows a prediction alone leaves many queries late, which Spock's functions do not",
        )
    )
    ratios = over_static(hours)
    equal = crossing(ratios)
    share = {(t, p): float(at.loc[(t, f"spock, {p}"), "function_share_pct"]) for t in traces for p in policies}
    seen = ratios["mean_to_peak"]
    rows.append(
        judge(
            "C21",
            f"equal at mean / peak minute {equal:.2f} (windows seen: {span(seen)}); on functions "
            + ", ".join(f"{t} {p} {v:.1f}%" for (t, p), v in share.items()),
            {
                "functions and peak VMs cost the same at a ratio of 0.2-0.8": 0.2 <= equal <= 0.8,
                "windows on both sides of it": bool(seen.min() < equal < seen.max()),
                "2-15% of requests on functions in the hybrid": all(2 <= v <= 15 for v in share.values()),
            },
        )
    )
    return rows


def verdicts(
    compared: pd.DataFrame, best: pd.DataFrame, sweep: pd.DataFrame, hours: pd.DataFrame, spock_table: pd.DataFrame
) -> pd.DataFrame:
    """Return the table of all claims of notebook 04: band, measured value, verdict and why."""
    rows = over_provisioning(compared)
    rows += [shape(hours), start_up(best), *workload_1(sweep), *spock(spock_table, hours)]
    return verdict_table(rows)
