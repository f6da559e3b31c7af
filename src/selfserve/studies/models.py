"""Notebook 01: what models can do, how fast they are, what an answer costs, how far the profile can be trusted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from selfserve import catalog
from selfserve.catalog.carry import GPU_BATCHES, carry_profile, gpu_curve, gpu_work, scale_by_gmacs
from selfserve.studies import claims

FUNCTION = "lambda"
_NEAREST_MACHINE = {"c4.large": "c5.large"}
"""A machine that is sold no more, and the nearest that is."""
_STAND_INS = {"squeezenet": "squeezenet1_1", "inception": "inception_v3", "resnet200": "resnet50"}
"""Which measured model's scaling stands for a published one's when only ratios are compared."""


def model_table(
    resource: str = "c6i.large",
    function_mb: float = 1769,
    prices: str = "aws_us_east_1",
    profile: str = "cpu",
    tags: Iterable[str] = ("measured",),
) -> pd.DataFrame:
    """Return one row a model, fastest first: accuracy, size, latency and the cost of a million answers.

    ``latency_ms`` is a single request on one thread of a fully busy ``resource``; ``vm_usd_per_million`` its share of
    the machine's price when all slots are always busy; ``function_usd_per_million`` what a warm function bills, rounded
    up to the millisecond, with the request price. ``front``: no other model of the table is both as accurate and as
    fast; ``dominated_by`` names the most accurate one that is.
    """
    listed, rows = catalog.load_prices(prices), catalog.load_profile(profile)
    machine, function = listed.loc[resource], listed.loc[FUNCTION]
    chosen = rows[rows["tag"].isin(tuple(tags)) & (rows["device"] == "cpu")]
    models = catalog.load_models()
    out = []
    for name in dict.fromkeys(chosen["model"]):
        vm = carry_profile(rows, name, machine).iloc[0]
        fn = carry_profile(rows, name, function, memory_mb=function_mb).iloc[0]
        billed_s = np.ceil(fn["service_ms"]) / 1000
        out.append(
            {
                "model": name,
                "accuracy_pct": catalog.accuracy_of(name),
                "gmacs": models["gmacs"].get(name, np.nan),
                "parameters_m": models["parameters"].get(name, np.nan) / 1e6,
                "latency_ms": vm["service_ms"],
                "function_ms": fn["service_ms"],
                "vm_usd_per_million": vm["service_ms"] * 1e3 * machine["usd_per_hour"] / 3600 / int(machine["vcpu"]),
                "function_usd_per_million": 1e6
                * (billed_s * function_mb / 1024 * function["usd_per_gb_s"] + function["usd_per_request"]),
                "tag": vm["tag"],
            }
        )
    return _mark_front(pd.DataFrame(out).sort_values("latency_ms", ignore_index=True))


def _mark_front(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``front`` and ``dominated_by`` (accuracy against latency)."""
    by: list[str] = []
    for row in table.itertuples():
        better = table[
            (table["accuracy_pct"] >= row.accuracy_pct)
            & (table["latency_ms"] <= row.latency_ms)
            & ((table["accuracy_pct"] > row.accuracy_pct) | (table["latency_ms"] < row.latency_ms))
        ]
        by.append("" if better.empty else str(better.loc[better["accuracy_pct"].idxmax(), "model"]))
    return table.assign(dominated_by=by, front=[not name for name in by])


def iso_latency(table: pd.DataFrame, bounds_ms: Iterable[float]) -> pd.DataFrame:
    """Return, for each latency bound, the models that keep it, in long form."""
    parts = [table[table["latency_ms"] <= bound].assign(bound_ms=bound) for bound in bounds_ms]
    return pd.concat(parts, ignore_index=True)[["bound_ms", "model", "accuracy_pct", "latency_ms", "front"]]


def iso_accuracy(table: pd.DataFrame, floors_pct: Iterable[float]) -> pd.DataFrame:
    """Return, for each accuracy floor, the models that reach it (long form, with latency and cost)."""
    parts = [table[table["accuracy_pct"] >= floor].assign(floor_pct=floor) for floor in floors_pct]
    columns = ["floor_pct", "model", "accuracy_pct", "latency_ms", "vm_usd_per_million", "front"]
    return pd.concat(parts, ignore_index=True)[columns]


def iso_summary(table: pd.DataFrame, bounds_ms: Iterable[float], floors_pct: Iterable[float]) -> pd.DataFrame:
    """Return one row a constraint: how many models meet it, how far apart they are, and the best choice."""
    rows = []
    for bound, group in iso_latency(table, bounds_ms).groupby("bound_ms"):
        best = group.loc[group["accuracy_pct"].idxmax()]
        spread = group["accuracy_pct"].max() - group["accuracy_pct"].min()
        rows.append((f"latency at most {bound:g} ms", len(group), f"{spread:.1f} accuracy points", best["model"]))
    for floor, group in iso_accuracy(table, floors_pct).groupby("floor_pct"):
        best = group.loc[group["latency_ms"].idxmin()]
        ratio = group["latency_ms"].max() / group["latency_ms"].min()
        rows.append((f"accuracy at least {floor:g} %", len(group), f"{ratio:.1f} x in latency", best["model"]))
    return pd.DataFrame(rows, columns=["constraint", "models", "spread", "best"])


def batching_table(profile: str = "cpu") -> pd.DataFrame:
    """Return the measured rows with the time of one image and its ratio to that of batch 1 and of one thread."""
    rows = catalog.load_profile(profile)
    rows = rows[(rows["tag"] == "measured") & (rows["device"] == "cpu")].copy()
    rows["image_ms"] = rows["p50_ms"] / rows["batch"]
    single = rows[rows["batch"] == 1].set_index(["model", "threads"])["image_ms"]
    first = single.reindex(rows.set_index(["model", "threads"]).index).to_numpy()
    rows["relative_to_batch_1"] = rows["image_ms"] / first
    alone = rows[rows["threads"] == 1].set_index(["model", "batch"])["image_ms"]
    rows["speedup_of_threads"] = alone.reindex(rows.set_index(["model", "batch"]).index).to_numpy() / rows["image_ms"]
    columns = ["model", "threads", "batch", "p50_ms", "p99_ms", "image_ms", "relative_to_batch_1", "speedup_of_threads"]
    return rows[[*columns, "runs", "cpu_share"]].reset_index(drop=True)


def profile_statements(batching: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    """Return the figures that the text states of the profile (ratios and percent; times are those of batch 1)."""
    rate = table["latency_ms"] / table["gmacs"]
    relative = rate / rate.median()
    large = relative[table["gmacs"] > 1]
    most = int(batching["batch"].max())
    full = batching[(batching["batch"] == most) & (batching["threads"] == 1)]
    saving = 100 * (1 - full.set_index("model")["relative_to_batch_1"])
    second = batching[(batching["batch"] == 1) & (batching["threads"] == 2)]["speedup_of_threads"]
    return {
        "rank_gmacs": float(stats.spearmanr(table["gmacs"], table["latency_ms"]).statistic),
        "factor_large": float(np.exp(np.abs(np.log(large)).max())),
        "slowest_small": float(100 / relative[table["gmacs"] <= 1].max()),
        "batch": most,
        "saving_median": float(saving.median()),
        "saving_least": float(saving.min()),
        "saving_least_model": saving.idxmin(),
        "saving_most": float(saving.max()),
        "saving_model": saving.idxmax(),
        "speedup_median": float(second.median()),
    }


def describe_profile(profile: str = "cpu") -> pd.Series:
    """Return what the measured profile is: machine, software, days, how many models and runs, and how quiet it was."""
    rows = catalog.load_profile(profile)
    rows = rows[rows["tag"] == "measured"]
    models = catalog.load_models()
    one = rows[(rows["threads"] == 1) & (rows["batch"] == 1) & rows["model"].isin(models.index)]
    gflops = 2 * models["gmacs"].reindex(one["model"]).to_numpy() / (one["p50_ms"].to_numpy() / 1000)
    return pd.Series(
        {
            "machine": ", ".join(sorted(set(rows["machine"]))),
            "cores": f"{rows['cores'].min():g}",
            "software": ", ".join(sorted(set(rows["torch"]))),
            "measured on": f"{min(rows['date'])} to {max(rows['date'])}",
            "models": rows["model"].nunique(),
            "forward passes timed": int(rows["runs"].sum()),
            "least CPU share of a cell": float(rows["cpu_share"].min()),
            "load average before a cell": f"{rows['load_1m'].median():.1f} (median)",
            "GFLOP/s of a vCPU, batch 1": f"{gflops.min():.0f} to {gflops.max():.0f}, median {np.median(gflops):.0f}",
        }
    )


def published_comparison(profile: str = "cpu", prices: str = "aws_us_east_1") -> pd.DataFrame:
    """Return the models that the published pool and the measured profile share: accuracy and latency of both.

    The published latency is that of a lone inference on the machine named in ``resource``; ``whole_machine_ms`` is the
    carried one with all its vCPUs as threads of one worker, ``one_vcpu_ms`` with one thread on the busy machine.
    """
    rows, listed = catalog.load_profile(profile), catalog.load_prices(prices)
    published = catalog.load_facts("published_models")
    measured = set(rows.loc[rows["tag"] == "measured", "model"])
    out = []
    for row in published[published["torchvision"].isin(measured)].to_dict("records"):
        name, machine = row["torchvision"], listed.loc[_NEAREST_MACHINE.get(row["resource"], row["resource"])]
        out.append(
            {
                "model": name,
                "published_accuracy_pct": row["accuracy_pct"],
                "accuracy_pct": catalog.accuracy_of(name),
                "published_ms": row["latency_ms"],
                "whole_machine_ms": carry_profile(rows, name, machine, int(machine["vcpu"]))["service_ms"].iloc[0],
                "one_vcpu_ms": carry_profile(rows, name, machine)["service_ms"].iloc[0],
                "resource": row["resource"],
                "source": row["source"],
            }
        )
    return pd.DataFrame(out)


def carry_check(profile: str = "cpu", prices: str = "aws_us_east_1") -> pd.DataFrame:
    """Compare carried with published values: ``check, model, setting, carried, published, ratio`` (long form).

    1. Work on a VM, absolute: vCPU-milliseconds of one inference on c5.xlarge (4 latency / concurrent inferences) from
       Cocktail's Table 1, for the models that both have.
    2. Many threads, absolute: a worker of 14 threads on c5.4xlarge against PyTorch Image Models on a desktop CPU with
       14 cores of the same generation (compiled graphs there, eager here).
    3. Memory of a function: time relative to that at 1,024 MB (2,048 MB for resnet200), InferAll's batch 1 values.
    4. Batches on a GPU: EfficientNet-B0 and -B4 on V100 and A100, with the work ratio that the carry function uses, and
    5. the same with the ratio of GMACs instead.
    6. Rows scaled by GMACs on a CPU: each measured model predicted from the others.
    """
    rows, listed = catalog.load_profile(profile), catalog.load_prices(prices)
    reference = catalog.load_facts("reference_latency")
    parts = [
        _check_vm(rows, listed.loc["c5.xlarge"]),
        _check_threads(rows, listed.loc["c5.4xlarge"], reference),
        _check_memory(rows, listed.loc[FUNCTION], reference),
        _check_gpu(reference, "published"),
        _check_gpu(reference, "gmacs"),
        _check_scaled(rows),
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(ratio=table["carried"] / table["published"])


def check_summary(check: pd.DataFrame) -> pd.DataFrame:
    """Return one row a check: values compared, median ratio, and the factors within which half and all of them lie."""
    off = np.exp(np.abs(np.log(check["ratio"])))
    groups = check.assign(off=off).groupby("check", sort=False)
    return groups.agg(
        values=("ratio", "size"),
        median_ratio=("ratio", "median"),
        half_within=("off", "median"),
        all_within=("off", "max"),
    ).reset_index()


def _check_vm(rows: pd.DataFrame, machine: pd.Series) -> pd.DataFrame:
    published = catalog.load_facts("published_models")
    both = published[published["torchvision"].isin(rows["model"]) & published["concurrent"].notna()]
    carried = [carry_profile(rows, name, machine)["service_ms"].iloc[0] for name in both["torchvision"]]
    work = machine["vcpu"] * both["latency_ms"] / both["concurrent"]
    return _check("VM work (c5.xlarge)", both["torchvision"], "batch 1", carried, work)


def _check_threads(rows: pd.DataFrame, machine: pd.Series, reference: pd.DataFrame) -> pd.DataFrame:
    measured = set(rows.loc[rows["tag"] == "measured", "model"])
    table = reference[(reference["device"] == "CPU i9-10940X (14 cores)") & reference["model"].isin(measured)]
    carried = [carry_profile(rows, name, machine, threads=14)["service_ms"].iloc[0] for name in table["model"]]
    return _check("14 threads (desktop CPU)", table["model"], "batch 1", carried, table["latency_ms"])


def _check_memory(rows: pd.DataFrame, function: pd.Series, reference: pd.DataFrame) -> pd.DataFrame:
    table = reference[(reference["kind"] == "function") & reference["model"].isin(_STAND_INS)].copy()
    table["mb"] = table["device"].str.extract(r"(\d+)MB").astype(int)
    out = []
    for model, group in table.groupby("model"):
        base = 1024 if (group["mb"] == 1024).any() else int(group["mb"].min())
        times = group.set_index("mb")["latency_ms"]
        stand_in = _STAND_INS[str(model)]
        carried = pd.Series(
            {mb: carry_profile(rows, stand_in, function, memory_mb=mb)["service_ms"].iloc[0] for mb in times.index}
        )
        others = [mb for mb in times.index if mb != base]
        settings = [f"{mb} to {base} MB" for mb in others]
        name = "memory of a function"
        out.append(_check(name, model, settings, (carried / carried[base])[others], (times / times[base])[others]))
    return pd.concat(out, ignore_index=True)


def _check_gpu(reference: pd.DataFrame, by: str) -> pd.DataFrame:
    table = reference[(reference["kind"] == "gpu") & reference["batch"].isin(GPU_BATCHES)]
    carried = [
        gpu_curve(row.device.partition("-")[0], [row.batch], gpu_work(row.model, by))[0] for row in table.itertuples()
    ]
    settings = table["device"].str.partition("-")[0] + ", batch " + table["batch"].astype(str)
    name = "GPU batches, as carried" if by == "published" else "GPU batches, by GMACs"
    return _check(name, table["model"], settings, carried, table["latency_ms"])


def _check_scaled(profile: pd.DataFrame) -> pd.DataFrame:
    measured = profile[(profile["tag"] == "measured") & (profile["device"] == "cpu")]
    models = catalog.load_models()
    names = [name for name in dict.fromkeys(measured["model"]) if name in models.index]
    carried: list[float] = []
    truth: list[float] = []
    for name in names:
        guess = scale_by_gmacs(measured[measured["model"] != name], models)
        for times, rows in ((carried, guess), (truth, measured)):
            single = rows[(rows["model"] == name) & (rows["threads"] == 1) & (rows["batch"] == 1)]
            times.append(float(single["p50_ms"].iloc[0]))
    return _check("scaled by GMACs (CPU)", names, "batch 1, left out", carried, truth)


def _check(name: str, model: object, setting: object, carried: object, published: object) -> pd.DataFrame:
    values = {"carried": np.asarray(carried, dtype=float), "published": np.asarray(published, dtype=float)}
    return pd.DataFrame(values).assign(check=name, model=np.asarray(model), setting=np.asarray(setting))[
        ["check", "model", "setting", "carried", "published"]
    ]


def judge_claims(table: pd.DataFrame, bound_ms: float = 500.0, floor_pct: float = 80.0) -> pd.DataFrame:
    """Return claims C01 to C03 with band, measured value and verdict, from the measured models."""
    both = published_comparison()
    rank = float(stats.spearmanr(both["published_ms"], both["whole_machine_ms"]).statistic)
    alone = float(stats.spearmanr(both["published_ms"], both["one_vcpu_ms"]).statistic)
    dominated = table[~table["front"]]
    low, high = table["accuracy_pct"].min(), table["accuracy_pct"].max()
    spread = float(table["latency_ms"].max() / table["latency_ms"].min())
    fast = iso_latency(table, [bound_ms])
    points = float(fast["accuracy_pct"].max() - fast["accuracy_pct"].min())
    good = iso_accuracy(table, [floor_pct])
    ratio = float(good["latency_ms"].max() / good["latency_ms"].min())
    vgg = table.loc[table["model"] == "vgg16", "dominated_by"]
    vgg_is = f"vgg16 is dominated by {vgg.iloc[0]}" if len(vgg) and vgg.iloc[0] else "vgg16 is not dominated"
    rows = [
        claims.judge(
            "C01",
            f"rank correlation {rank:.2f} over {len(both)} common models on the published machine's vCPUs "
            f"({alone:.2f} on one vCPU); {len(dominated)} of {len(table)} dominated; "
            f"latency spread {spread:.0f}x; accuracy {low:.1f}-{high:.1f} %",
            {
                "rank correlation >= 0.8": rank >= 0.8,
                ">= 1 dominated": len(dominated) >= 1,
                "spread >= 5x": spread >= 5,
            },
            f"only {len(both)} of the 12 models are common; DenseNet-121 is slower than ResNet-50 there, faster here; "
            f"{vgg_is}",
        ),
        claims.judge(
            "C02",
            f"{len(fast)} models keep {bound_ms:g} ms and lie {points:.1f} points apart",
            {"spread >= 10 points": points >= 10, ">= 4 models": len(fast) >= 4},
            "a vCPU of today serves every model of the pool within the bound" if len(fast) == len(table) else "",
        ),
        claims.judge(
            "C03",
            f"{len(good)} models reach {floor_pct:g} % at {good['latency_ms'].min():.0f}-"
            f"{good['latency_ms'].max():.0f} ms, {ratio:.1f}x apart",
            {"max/min >= 2": ratio >= 2},
            "the paper's pool reached 80 % only with large models; today's weights do with a medium one",
        ),
    ]
    return claims.verdict_table(rows)
