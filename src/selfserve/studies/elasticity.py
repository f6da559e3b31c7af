"""The tables of notebook 02 on what changes: start-up, cold starts, bills of short rentals, bursts, spot losses, peaks.

As in :mod:`selfserve.studies.resources`, one model is served; prices are computed and waiting is simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from selfserve import catalog
from selfserve.planner import peak_minute_rate
from selfserve.policies import make_policy
from selfserve.scenario import Scenario, load_scenario
from selfserve.simulator import Result, simulate
from selfserve.simulator.draws import lognormal_table
from selfserve.studies import claims
from selfserve.studies.resources import FUNCTION, FUNCTION_MB, VM, WARMUP_S, capacity, late, least, offer, play, steady
from selfserve.traces import Trace, split_ranges
from selfserve.workload import load_trace, make_workload

BOOTS_S = (60.0, 100.0, 200.0, 300.0)
INITS_S = (1.0, 2.5, 5.0, 10.0)
"""Seconds from asking for a VM to its first answer, and of a cold start, over which claim C11 is swept."""
COCKTAIL_CALLS_MS = {
    "squeezenet": (4909, 885),
    "resnet18": (4105, 1049),
    "resnet50": (3728, 1443),
    "inception": (3055, 1907),
    "resnet101": (7222, 1933),
    "resnet200": (10613, 3282),
    "caffenet": (6976, 1086),
}
"""Round trip of the first and of the second call of a function, ms (Cocktail's artifact, cold-starts.csv)."""


# Starting up


def start_up() -> pd.DataFrame:
    """Return start-up times as measured, published or assumed: ``group, what, seconds, source``, one row a value."""
    facts = catalog.load_facts("startup_times")
    machines = facts[~facts["configuration"].astype(str).str.contains("stopped|hibern|warm")]
    rows: list[tuple[str, str, Sequence[float], str]] = []
    for metric, text in (("pending_to_running", "asked to running"), ("total_to_ssh", "asked to log-in, bare Linux")):
        values = list(machines.loc[machines["metric"] == metric, "value"])
        rows.append(("VM", text, values, "brevdev/ec2-coldboot-research; daemonology.net"))
    rows.append(("VM", "Spock's VMs, ready to serve", [60.0, 100.0], "Spock, CLOUD'19, section V"))
    for subject, text in (("python zip", "plain Python, zip"), ("python image", "plain Python, image")):
        mine = facts[(facts["subject"] == subject) & facts["metric"].str.startswith("init_p")]
        rows.append(("function", f"{text} (p50, p95, p99)", list(mine["value"]), "maxday/lambda-perf"))
    heavy = facts["subject"].astype(str).str.contains("pandas")
    rows.append(
        ("function", "Python with pandas and pyarrow", list(facts[heavy]["value"]), "fourTheorem/lambda-datasci-perf")
    )
    slower = [(first - second) / 1000 for first, second in COCKTAIL_CALLS_MS.values()]
    rows.append(("function", "model: first less second call", slower, "Cocktail, NSDI'22, cold-starts.csv"))
    claimed = facts["metric"].str.startswith("cold_start_")
    rows.append(("function", "PyTorch in an image (claims)", list(facts[claimed]["value"]), "authors' statements"))
    profile = catalog.load_profile("cpu")
    measured = profile[(profile["tag"] == "measured") & (profile["device"] == "cpu") & (profile["threads"] == 1)]
    loads = list(measured.groupby("model")["load_ms"].max() / 1000)
    rows.append(("load", "a model from disk into memory", loads, "measured here (notebook 01)"))
    assumed = load_scenario("standard")
    spread = lognormal_table(assumed.vm.boot_spread)[[205, 2048, 3890]] / 65536
    boots = list(assumed.vm.pending_s + assumed.vm.boot_s * spread)
    rows.append(("assumed", "VM, asked to first answer (p5, p50, p95)", boots, "standard scenario"))
    rows.append(("assumed", "function, cold start with its model", [assumed.function.init_s], "standard scenario"))
    out = [(group, what, float(value), source) for group, what, values, source in rows for value in values]
    return pd.DataFrame(out, columns=["group", "what", "seconds", "source"])


def cold_starts(
    gaps_s: Sequence[float], model: str = "resnet50", requests: int = 1000, seed: int = 0, prices: str = "aws_us_east_1"
) -> pd.DataFrame:
    """Return cold share, latency and cost of a function called at Poisson times with these mean gaps, seconds.

    ``exact_pct`` is exp(-keep-alive / gap), the chance that a gap outlasts the keep-alive (a lone container, service
    short against the gap); ``provisioned_usd_per_million`` is what one container kept ready would cost instead.
    """
    scenario = offer(FUNCTION, model, prices, memory_mb=FUNCTION_MB, warmup_s=0.0)
    keep_s, pool, rows = scenario.function.keep_alive_s, scenario.pools[0], []
    for gap in gaps_s:
        counts = np.random.default_rng([seed, round(1000 * gap)]).poisson(1 / gap, round(requests * gap))
        seen = play(scenario, counts, seed, machines=0, interval_s=float(len(counts))).summary
        ready = pool.usd_per_hour / 3600 * gap + pool.service_s(0) / 3600 * pool.usd_per_busy_hour_provisioned
        row = {"gap_s": gap, "requests": seen["requests"], "exact_pct": 100 * np.exp(-keep_s / gap)}
        row |= {"cold_pct": 100 * seen["cold_starts"] / max(1, seen["requests"]), "p50_s": seen["p50_s"]}
        row |= {"p99_s": seen["p99_s"], "usd_per_million": seen["cost_per_million_usd"]}
        rows.append(row | {"provisioned_usd_per_million": 1e6 * (ready + pool.usd_per_request)})
    return pd.DataFrame(rows)


# Boot and billing


def rental(release_s: Sequence[float], prices: str = "aws_us_east_1") -> pd.DataFrame:
    """Return the bill of one VM asked for at 0 and given back at these times: computed (rule 4.4) and simulated."""
    scenario, rows = offer(VM, "resnet50", prices, warmup_s=0.0), []
    ready_s = scenario.vm.pending_s + scenario.vm.boot_s
    for end in release_s:
        life = end - scenario.vm.pending_s
        billed = max(scenario.vm.minimum_bill_s, ceil(life)) if life >= 0 else 0.0
        seen = play(scenario, np.zeros(ceil(end) + 120, np.int64), machines=1, until_s=end, interval_s=1.0).summary
        row = {"release_s": end, "useful_s": max(0.0, end - ready_s), "billed_s": billed}
        row |= {"usd": billed * scenario.pools[0].usd_per_hour / 3600, "simulated_usd": seen["vm_cost_usd"]}
        rows.append(row)
    return pd.DataFrame(rows)


def bursts(
    lengths_s: Sequence[int],
    boots_s: Sequence[float] = (100.0,),
    inits_s: Sequence[float] = (2.5,),
    rate: float = 50.0,
    model: str = "resnet50",
    seed: int = 0,
    prices: str = "aws_us_east_1",
) -> pd.DataFrame:
    """Return cost and lateness of a burst out of nothing, served by VMs asked for when it starts, or by functions.

    The VMs are the least that carry the burst's rate; they go when it is over and answered. ``start_s``: from asking
    for a VM to its first answer, or a cold start. ``kept`` is that fleet standing ready for the hour around the burst
    (computed). Long form: ``length_s, option, start_s, usd, late_pct, p99_s, requests, machines``.
    """
    vm = offer(VM, model, prices, warmup_s=0.0)
    fn = offer(FUNCTION, model, prices, memory_mb=FUNCTION_MB, warmup_s=0.0)
    n = ceil(rate / capacity(vm))
    kinds: list[tuple[str, float, Scenario, int]] = [
        ("VMs", boot, replace(vm, vm=replace(vm.vm, boot_s=boot - vm.vm.pending_s)), n) for boot in boots_s
    ]
    kinds += [("functions", init, replace(fn, function=replace(fn.function, init_s=init)), 0) for init in inits_s]
    rows = []
    for length in lengths_s:
        load = np.random.default_rng([seed, length]).poisson(rate, length)
        for option, start, scenario, machines in kinds:
            counts = np.concatenate([load, np.zeros(round(3 * start) + 600, np.int64)])
            result = play(scenario, counts, seed, machines=machines, until_s=float(length), interval_s=1.0)
            seen = result.summary
            rows.append((length, option, start, seen["cost_usd"], late(result), seen["p99_s"], load.sum(), machines))
        hours = max(1.0, length / 3600)
        rows.append((length, "kept", 0.0, n * vm.pools[0].usd_per_hour * hours, np.nan, np.nan, load.sum(), n))
    columns = ["length_s", "option", "start_s", "usd", "late_pct", "p99_s", "requests", "machines"]
    return pd.DataFrame(rows, columns=columns)


# Spot


def spot_zones(prices: str = "aws_us_east_1") -> pd.DataFrame:
    """Return the spot price of every zone found, as percent of on demand, with the type's interruption band.

    The snapshots are undated; of two of the same zone the newer layout counts. Types whose list price was cut since
    (their on-demand price there differs from today's list) are left out.
    """
    history, listed = catalog.load_facts("spot_history"), catalog.load_prices(prices)
    zones = history[(history["kind"] == "spot_price_zone") & history["instance_type"].isin(listed.index)]
    zones = zones.drop_duplicates(["instance_type", "zone"], keep="last")
    today = listed["usd_per_hour"].reindex(zones["instance_type"]).to_numpy()
    zones = zones[np.isclose(zones["on_demand_usd_h"], today, rtol=0.01)]
    percent = 100 * zones["spot_usd_h"] / zones["on_demand_usd_h"]
    band = listed["interruption_band"].reindex(zones["instance_type"]).to_numpy()
    columns = ["instance_type", "zone", "percent", "band", "source"]
    return zones.assign(percent=percent, band=band)[columns].reset_index(drop=True)


def spot_bands() -> pd.DataFrame:
    """Return saving (percent) and interruption band of the types in both dated months of the Spot Advisor."""
    history = catalog.load_facts("spot_history")
    months = history[history["kind"] == "advisor_saving_month"]
    wide = months.pivot(index="instance_type", columns="as_of", values=["saving_pct", "interruption_band"])
    return wide.dropna()


def spot_losses(
    interruptions_per_hour: Sequence[float],
    spares: Sequence[int] = (0, 1, 2, 4),
    machines: int = 20,
    hours: float = 12,
    model: str = "convnext_base",
    seed: int = 0,
    prices: str = "aws_us_east_1",
) -> pd.DataFrame:
    """Return what losses do to a steady load on spot machines alone: ``spare, interruptions, late_pct, cost_pct``.

    The load keeps ``machines`` machines 95% busy; the spot fleet has ``spare`` more, and one that gets its notice is
    replaced at the next decision. ``cost_pct`` is the spot bill over that of ``machines`` on demand.
    """
    spot = offer(VM, model, prices, market="spot")
    on_demand, rows = float(catalog.load_prices(prices).at[VM, "usd_per_hour"]), []
    counts = steady(0.95 * machines * capacity(spot), seed, round(hours * 3600))
    for spare in tqdm(spares, desc="spot losses", unit="fleet", mininterval=2):
        for hourly in interruptions_per_hour:
            scenario = replace(spot, spot=replace(spot.spot, interruptions_per_hour=hourly))
            result = play(scenario, counts, seed, machines=machines + spare)
            cost = 100 * result.summary["cost_usd"] / (machines * on_demand * hours)
            rows.append((spare, hourly, late(result), cost, result.summary["launches"]))
    return pd.DataFrame(rows, columns=["spare", "interruptions", "late_pct", "cost_pct", "launches"])


# Mean and peak


def waves(shares: Sequence[float], rate: float = 200.0, seed: int = 0, prices: str = "aws_us_east_1") -> pd.DataFrame:
    """Return functions over VMs for a load that is on for a share of every ten minutes, simulated for an hour.

    The VMs are the least fleet whose slots carry ``rate`` (resnet50), all the hour. ``mean_to_peak`` is the share.
    """
    vm = offer(VM, "resnet50", prices)
    fn = offer(FUNCTION, "resnet50", prices, memory_mb=FUNCTION_MB)
    n, rows = ceil(rate / capacity(vm)), []
    for share in shares:
        counts = steady(rate, seed, 3600)
        phase = np.arange(len(counts)) % 600
        counts[phase >= round(600 * share)] = 0
        on = play(vm, counts, seed, machines=n), play(fn, counts, seed, machines=0)
        usd = [float(result.summary["cost_usd"]) for result in on]
        rows.append((share, *usd, usd[1] / usd[0], *(late(result) for result in on)))
    columns = ["mean_to_peak", "vm_usd", "function_usd", "cost_ratio", "vm_late_pct", "function_late_pct"]
    return pd.DataFrame(rows, columns=columns)


def windows(names: Sequence[str], regime: pd.DataFrame, hours: Sequence[int] = (1, 24)) -> pd.DataFrame:
    """Return, for windows of traces, mean over peak minute and functions' cost over peak-provisioned VMs' (computed).

    For resnet50 (its row of :func:`~selfserve.studies.resources.regimes`), each trace scaled to a mean of 20 busy
    machines; ``hours`` 0 is the whole trace. A trace has whole windows only.
    """
    one, rows = regime.set_index("model").loc["resnet50"], []
    per_machine = 100 * one["vm_from"] / one["busy_pct"]
    for name in names:
        trace = load_trace(name)
        rates = trace.counts * (20 * per_machine / trace.counts.mean())
        for length in (*hours, 0):
            width = length * 3600 or trace.seconds
            for i in range(trace.seconds // width):
                counts = rates[width * i : width * (i + 1)]
                peak, mean = peak_minute_rate(counts), float(counts.mean())
                if peak > 0:
                    ratio = mean / one["vm_from"] / ceil(peak / per_machine)
                    rows.append((name, length, i, mean, peak, mean / peak, ratio))
    return pd.DataFrame(rows, columns=["trace", "hours", "window", "mean", "peak", "mean_to_peak", "cost_ratio"])


def hybrids(names: Sequence[str], hours: float = 4, seed: int = 0, prices: str = "aws_us_east_1") -> pd.DataFrame:
    """Return peak-provisioned VMs, functions only and Spock's hybrids, simulated at the start of each evaluation part.

    The VMs for the peak are the least constant fleet with at most ``ALLOWED_PCT`` late, found with hindsight.

    Long form: ``trace, mean_to_peak, scheme, usd, late_pct, function_pct, cost_ratio`` (resnet50, 20 busy machines).
    """
    pools = [
        {"name": "vm", "resource": VM, "models": ["resnet50"], "max_machines": 100_000},
        {"name": "fn", "resource": FUNCTION, "memory_mb": FUNCTION_MB, "models": ["resnet50"]},
    ]
    scenario = offer(VM, "resnet50", prices, pools=pools, load_machines=20, rate_scale=None)
    parts = [_schemes(load_trace(name), scenario, hours, seed) for name in tqdm(names, desc="hybrids", unit="trace")]
    table = pd.concat(parts, ignore_index=True)
    base = table[table["scheme"] == "VMs for the peak"].set_index("trace")["usd"]
    return table.assign(cost_ratio=table["usd"] / table["trace"].map(base))


def _schemes(trace: Trace, scenario: Scenario, hours: float, seed: int) -> pd.DataFrame:
    start, end = split_ranges(trace)["evaluate"]
    workload = make_workload(trace, scenario, start, min(end - start, round(hours * 3600)), seed)
    scored = workload.counts[WARMUP_S:]
    peak, rows = peak_minute_rate(scored), []

    def run(name: str, /, **parameters: object) -> Result:
        return simulate(scenario, workload, make_policy(name, **parameters), seed)

    per_machine = capacity(replace(scenario, pools=scenario.pools[:1]))
    results = {
        "VMs for the peak": least(floor(scored.mean() / per_machine), lambda n: run("static", machines=n))[1],
        "functions only": run("mixed", headroom=0.0, keep_s=0.0),
        "Spock, reactive": run("spock", policy="reactive"),
        "Spock, predictive": run("spock", policy="predictive"),
    }
    for scheme, result in results.items():
        seen = result.summary
        row = {"trace": trace.name, "mean_to_peak": scored.mean() / peak, "scheme": scheme, "usd": seen["cost_usd"]}
        rows.append(row | {"late_pct": late(result), "function_pct": seen["function_share_pct"]})
    return pd.DataFrame(rows)


# Claims


def judge_claims(starts: pd.DataFrame, swept: pd.DataFrame, wave: pd.DataFrame, hybrid: pd.DataFrame) -> pd.DataFrame:
    """Return C11 (the part that needs no policy) and C21 with band, measured value and verdict.

    Args:
        starts: of :func:`start_up`.
        swept: of :func:`bursts` over ``BOOTS_S`` and ``INITS_S``.
        wave: of :func:`waves`.
        hybrid: of :func:`hybrids`.
    """
    return claims.verdict_table([_judge_start_up(starts, swept), _judge_peaks(wave, hybrid)])


def flips(swept: pd.DataFrame) -> pd.DataFrame:
    """Return every pair of boot and cold start for each burst: cost and lateness of VMs over those of functions."""
    vms, functions = (swept[swept["option"] == option] for option in ("VMs", "functions"))
    pairs = vms.merge(functions, on="length_s", suffixes=("_vm", "_fn"))
    return pairs.assign(cost_ratio=pairs["usd_vm"] / pairs["usd_fn"], later=pairs["late_pct_vm"] > pairs["late_pct_fn"])


def _judge_start_up(starts: pd.DataFrame, swept: pd.DataFrame) -> dict[str, str]:
    pairs = flips(swept)
    values = {what: group for what, group in starts.groupby("what")["seconds"]}
    login, model = values["asked to log-in, bare Linux"], values["model: first less second call"]
    python = values["Python with pandas and pyarrow"]
    dearer = pairs[pairs["cost_ratio"] > 1]
    where = "; ".join(
        f"a burst of {r.length_s:g} s with boot {r.start_s_vm:g} s and cold start {r.start_s_fn:g} s"
        for r in dearer.itertuples()
    )
    return claims.judge(
        "C11",
        f"VM to log-in {login.min():.0f}-{login.max():.0f} s; function with libraries {python.min():.1f}-"
        f"{python.max():.1f} s, with a model {model.min():.1f}-{model.max():.1f} s over a warm call; VMs asked for at "
        f"the start of a burst cost {pairs['cost_ratio'].min():.2f}-{pairs['cost_ratio'].max():.2f} of functions",
        {
            "VM start of 60 s or more": bool(login.min() >= 60),
            "function start within 1-10 s": bool(python.min() >= 1 and max(python.max(), model.max()) <= 10),
            "functions late less often at every boot and cold start": bool(pairs["later"].all()),
            "ranking by cost the same at every boot and cold start": dearer.empty or len(dearer) == len(pairs),
        },
        "measured VMs are bare Linux without a server or model, and have grown faster; the ranking of policies under "
        f"the same sweep is in notebook 04; VMs are dearer than functions in: {where or 'no case'}",
    )


def _judge_peaks(wave: pd.DataFrame, hybrid: pd.DataFrame) -> dict[str, str]:
    crossing = crossing_share(wave)
    spock = hybrid[hybrid["scheme"].str.startswith("Spock")]
    theirs = spock[spock["trace"].str.removesuffix("-twin").isin(("WITS", "berkeley"))]
    parts = {
        f"{scheme}: 2-15 % on functions on Spock's two traces": bool(group["function_pct"].between(2, 15).all())
        for scheme, group in theirs.groupby("scheme")
    }
    inside = spock["function_pct"].between(2, 15)
    shares = "; ".join(
        f"{s} {g['function_pct'].min():.1f}-{g['function_pct'].max():.1f} %" for s, g in spock.groupby("scheme")
    )
    outside = ", ".join(f"{r.trace} {r.function_pct:.1f} % ({r.scheme})" for r in spock[~inside].itertuples())
    return claims.judge(
        "C21",
        f"costs cross at mean/peak {crossing:.2f} ({wave['cost_ratio'].min():.2f} at {wave['mean_to_peak'].min():.2f}, "
        f"{wave['cost_ratio'].max():.2f} at {wave['mean_to_peak'].max():.2f}); on functions: {shares}",
        {"a crossing within 0.2-0.8": 0.2 <= crossing <= 0.8, **parts},
        "the crossing is the share of time that a VM must be busy to be worth its price; a reactive fleet that holds "
        "idle VMs for 3 minutes keeps them for the busiest second, so that little overflows; outside: "
        f"{outside or 'none'}",
    )


def crossing_share(wave: pd.DataFrame) -> float:
    """Return mean/peak at which functions cost as much as peak-provisioned VMs (interpolated; NaN without one)."""
    x, y = wave["mean_to_peak"].to_numpy(), wave["cost_ratio"].to_numpy()
    above = np.flatnonzero(y >= 1)
    if not len(above) or above[0] == 0:
        return float("nan")
    i = int(above[0])
    return float(np.interp(1.0, y[i - 1 : i + 1], x[i - 1 : i + 1]))
