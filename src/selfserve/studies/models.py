"""Notebook 01: what models can do, how fast they are, what an answer costs, how far the profile can be trusted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from selfserve import catalog
from selfserve.catalog.carry import GPU_BATCHES, gpu_curve, gpu_work, scale_by_gmacs, single_ms
from selfserve.studies import claims

FUNCTION, PRICES = "lambda", "aws_us_east_1"
_NEAREST_MACHINE = {"c4.large": "c5.large"}
"""A machine that is sold no more, and the nearest that is."""
_STAND_INS = {"squeezenet": "squeezenet1_1", "inception": "inception_v3", "resnet200": "resnet50"}
"""Which measured model's scaling stands for a published one's when only ratios are compared."""


def measured_rows() -> pd.DataFrame:
    """Return the rows of the ``cpu`` profile that were measured."""
    rows = catalog.load_profile("cpu")
    return rows[(rows["tag"] == "measured") & (rows["device"] == "cpu")].copy()


def model_table(resource: str, function_mb: float) -> pd.DataFrame:
    """Return one row a measured model, fastest first: accuracy, size, latency and the cost of a million answers.

    ``latency_ms`` is a single request on one thread of a fully busy ``resource``; ``vm_usd_per_million`` its share of
    the machine's price when all slots are always busy; ``function_usd_per_million`` what a warm function bills, rounded
    up to the millisecond, with the request price. ``front``: no other model of the table is both as accurate and as
    fast; ``dominated_by`` names the most accurate one that is.
    """
    listed, rows, models = catalog.load_prices(PRICES), measured_rows(), catalog.load_models()
    machine, function = listed.loc[resource], listed.loc[FUNCTION]
    out = []
    for name in dict.fromkeys(rows["model"]):
        vm_ms, fn_ms = single_ms(rows, name, machine), single_ms(rows, name, function, memory_mb=function_mb)
        row = {"model": name, "accuracy_pct": catalog.accuracy_of(name), "gmacs": models["gmacs"].get(name, np.nan)}
        row |= {"parameters_m": models["parameters"].get(name, np.nan) / 1e6, "latency_ms": vm_ms, "function_ms": fn_ms}
        row["vm_usd_per_million"] = vm_ms * 1e3 * machine["usd_per_hour"] / 3600 / int(machine["vcpu"])
        usd = np.ceil(fn_ms) / 1000 * function_mb / 1024 * function["usd_per_gb_s"] + function["usd_per_request"]
        out.append(row | {"function_usd_per_million": 1e6 * usd, "tag": "measured"})
    table = pd.DataFrame(out).sort_values("latency_ms", ignore_index=True)
    accuracy, ms = table["accuracy_pct"], table["latency_ms"]
    better = [(accuracy >= a) & (ms <= t) & ((accuracy > a) | (ms < t)) for a, t in zip(accuracy, ms, strict=True)]
    by = [table.at[accuracy[those].idxmax(), "model"] if those.any() else "" for those in better]
    return table.assign(dominated_by=by, front=[not name for name in by])


def iso_latency(table: pd.DataFrame, bound_ms: float) -> pd.DataFrame:
    """Return the models that keep a latency bound."""
    kept = table[table["latency_ms"] <= bound_ms].assign(bound_ms=bound_ms)
    return kept[["bound_ms", "model", "accuracy_pct", "latency_ms", "front"]]


def iso_accuracy(table: pd.DataFrame, floor_pct: float) -> pd.DataFrame:
    """Return the models that reach an accuracy floor, with latency and cost."""
    kept = table[table["accuracy_pct"] >= floor_pct].assign(floor_pct=floor_pct)
    return kept[["floor_pct", "model", "accuracy_pct", "latency_ms", "vm_usd_per_million", "front"]]


def iso_summary(table: pd.DataFrame, bounds_ms: Iterable[float], floors_pct: Iterable[float]) -> pd.DataFrame:
    """Return one row a constraint: how many models meet it, how far apart they are, and the best choice."""
    rows = []
    for bound in sorted(bounds_ms):
        if len(fit := iso_latency(table, bound)):
            spread = f"{np.ptp(fit['accuracy_pct']):.1f} accuracy points"
            best = fit.at[fit["accuracy_pct"].idxmax(), "model"]
            rows.append((f"latency at most {bound:g} ms", len(fit), spread, best))
    for floor in sorted(floors_pct):
        if len(fit := iso_accuracy(table, floor)):
            spread = f"{fit['latency_ms'].max() / fit['latency_ms'].min():.1f} x in latency"
            best = fit.at[fit["latency_ms"].idxmin(), "model"]
            rows.append((f"accuracy at least {floor:g} %", len(fit), spread, best))
    return pd.DataFrame(rows, columns=["constraint", "models", "spread", "best"])


def batching_table() -> pd.DataFrame:
    """Return the measured rows with the time of one image and its ratio to that of batch 1 and of one thread."""
    rows = measured_rows()
    rows["image_ms"] = image = rows["p50_ms"] / rows["batch"]
    first = image.where(rows["batch"] == 1).groupby([rows["model"], rows["threads"]]).transform("first")
    alone = image.where(rows["threads"] == 1).groupby([rows["model"], rows["batch"]]).transform("first")
    rows = rows.assign(relative_to_batch_1=image / first, speedup_of_threads=alone / image)
    columns = ["model", "threads", "batch", "p50_ms", "p99_ms", "image_ms", "relative_to_batch_1", "speedup_of_threads"]
    return rows[[*columns, "runs", "cpu_share"]].reset_index(drop=True)


def profile_statements(batching: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    """Return the figures that the text states of the profile (ratios and percent; times are those of batch 1)."""
    rate = table["latency_ms"] / table["gmacs"]
    relative = rate / rate.median()
    most = int(batching["batch"].max())
    full = batching[(batching["batch"] == most) & (batching["threads"] == 1)]
    saving = 100 * (1 - full.set_index("model")["relative_to_batch_1"])
    second = batching[(batching["batch"] == 1) & (batching["threads"] == 2)]["speedup_of_threads"]
    says: dict[str, Any] = {"rank_gmacs": float(stats.spearmanr(table["gmacs"], table["latency_ms"]).statistic)}
    says |= {"factor_large": float(np.exp(np.abs(np.log(relative[table["gmacs"] > 1])).max()))}
    says |= {"slowest_small": float(100 / relative[table["gmacs"] <= 1].max()), "batch": most}
    says |= {"saving_least": saving.min(), "saving_least_model": saving.idxmin(), "saving_median": saving.median()}
    says |= {"saving_most": saving.max(), "saving_model": saving.idxmax()}
    return says | {"speedup_median": float(second.median())}


def describe_profile() -> pd.Series:
    """Return what the measured profile is: machine, software, days, how many models and runs, and how quiet it was."""
    rows, models = measured_rows(), catalog.load_models()
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


def published_comparison() -> pd.DataFrame:
    """Return the models that the published pool and the measured profile share: accuracy and latency of both.

    The published latency is that of a lone inference on the machine named in ``resource``; ``whole_machine_ms`` is the
    carried one with all its vCPUs as threads of one worker, ``one_vcpu_ms`` with one thread on the busy machine.
    """
    rows, listed = measured_rows(), catalog.load_prices(PRICES)
    published = catalog.load_facts("published_models")
    out = []
    for row in published[published["torchvision"].isin(rows["model"])].to_dict("records"):
        name, machine = row["torchvision"], listed.loc[_NEAREST_MACHINE.get(row["resource"], row["resource"])]
        known = {"model": name, "published_accuracy_pct": row["accuracy_pct"]}
        known |= {"accuracy_pct": catalog.accuracy_of(name), "published_ms": row["latency_ms"]}
        known["whole_machine_ms"] = single_ms(rows, name, machine, int(machine["vcpu"]))
        known["one_vcpu_ms"] = single_ms(rows, name, machine)
        out.append(known | {"resource": row["resource"], "source": row["source"]})
    return pd.DataFrame(out)


# Carried against published


def carry_check() -> pd.DataFrame:
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
    rows, listed = catalog.load_profile("cpu"), catalog.load_prices(PRICES)
    published, reference = catalog.load_facts("published_models"), catalog.load_facts("reference_latency")
    both = published[published["torchvision"].isin(rows["model"]) & published["concurrent"].notna()]
    machine = listed.loc["c5.xlarge"]
    carried = [single_ms(rows, name, machine) for name in both["torchvision"]]
    work = machine["vcpu"] * both["latency_ms"] / both["concurrent"]
    parts = [_check("VM work (c5.xlarge)", both["torchvision"], "batch 1", carried, work)]
    measured = reference["model"].isin(rows.loc[rows["tag"] == "measured", "model"])
    desktop = reference[(reference["device"] == "CPU i9-10940X (14 cores)") & measured]
    carried = [single_ms(rows, name, listed.loc["c5.4xlarge"], threads=14) for name in desktop["model"]]
    parts.append(_check("14 threads (desktop CPU)", desktop["model"], "batch 1", carried, desktop["latency_ms"]))
    parts += _check_memory(rows, listed.loc[FUNCTION], reference)
    table = reference[(reference["kind"] == "gpu") & reference["batch"].isin(GPU_BATCHES)]
    card = table["device"].str.partition("-")[0]
    for by, name in (("published", "GPU batches, as carried"), ("gmacs", "GPU batches, by GMACs")):
        cells = zip(card, table["batch"], table["model"], strict=True)
        carried = [gpu_curve(gpu, [batch], gpu_work(model, by))[0] for gpu, batch, model in cells]
        settings = card + ", batch " + table["batch"].astype(str)
        parts.append(_check(name, table["model"], settings, carried, table["latency_ms"]))
    table = pd.concat([*parts, _check_scaled()], ignore_index=True)
    return table.assign(ratio=table["carried"] / table["published"])


def check_summary(check: pd.DataFrame) -> pd.DataFrame:
    """Return one row a check: values compared, median ratio, and the factors within which half and all of them lie."""
    groups = check.assign(off=np.exp(np.abs(np.log(check["ratio"])))).groupby("check", sort=False)
    pairs = {"values": ("ratio", "size"), "median_ratio": ("ratio", "median")}
    return groups.agg(**pairs, half_within=("off", "median"), all_within=("off", "max")).reset_index()


def _check_memory(rows: pd.DataFrame, function: pd.Series, reference: pd.DataFrame) -> list[pd.DataFrame]:
    table = reference[(reference["kind"] == "function") & reference["model"].isin(_STAND_INS)].copy()
    table["mb"] = table["device"].str.extract(r"(\d+)MB").astype(int)
    out = []
    for model, group in table.groupby("model"):
        times = group.set_index("mb")["latency_ms"]
        base = 1024 if 1024 in times.index else times.index.min()
        others = times.index[times.index != base]
        carried = [single_ms(rows, _STAND_INS[str(model)], function, memory_mb=mb) for mb in (*others, base)]
        settings = [f"{mb} to {base} MB" for mb in others]
        ratios = np.array(carried[:-1]) / carried[-1]
        out.append(_check("memory of a function", model, settings, ratios, times[others] / times[base]))
    return out


def _check_scaled() -> pd.DataFrame:
    rows, models = measured_rows(), catalog.load_models()
    truth = rows[(rows["threads"] == 1) & (rows["batch"] == 1)].set_index("model")["p50_ms"]
    truth, carried = truth[truth.index.isin(models.index)], []
    for name in truth.index:
        guess = scale_by_gmacs(rows[rows["model"] != name], models).set_index(["model", "threads", "batch"])
        carried.append(guess.at[(name, 1, 1), "p50_ms"])
    return _check("scaled by GMACs (CPU)", truth.index, "batch 1, left out", carried, truth)


def _check(name: str, model: object, setting: object, carried: object, published: object) -> pd.DataFrame:
    values = {"carried": np.asarray(carried, dtype=float), "published": np.asarray(published, dtype=float)}
    table = pd.DataFrame(values).assign(check=name, model=np.asarray(model), setting=np.asarray(setting))
    return table[["check", "model", "setting", "carried", "published"]]


def judge_claims(table: pd.DataFrame, bound_ms: float, floor_pct: float) -> pd.DataFrame:
    """Return claims C01 to C03 with band, measured value and verdict, from the measured models."""
    both = published_comparison()
    rank, alone = (
        float(stats.spearmanr(both["published_ms"], both[column]).statistic)
        for column in ("whole_machine_ms", "one_vcpu_ms")
    )
    dominated, spread = table[~table["front"]], table["latency_ms"].max() / table["latency_ms"].min()
    fast, good = iso_latency(table, bound_ms), iso_accuracy(table, floor_pct)["latency_ms"]
    points, ratio = np.ptp(fast["accuracy_pct"]), good.max() / good.min()
    by = table.set_index("model")["dominated_by"].get("vgg16")
    first = claims.judge("C01",
        f"rank correlation {rank:.2f} over {len(both)} common models on the published machine's vCPUs ({alone:.2f} on "
        f"one vCPU); {len(dominated)} of {len(table)} dominated; latency spread {spread:.0f}x; accuracy "
        f"{claims.span(table['accuracy_pct'], 1, '-')} %",
        {"rank correlation >= 0.8": rank >= 0.8, ">= 1 dominated": len(dominated) >= 1, "spread >= 5x": spread >= 5},
        f"only {len(both)} of the 12 models are common; DenseNet-121 is slower than ResNet-50 there, faster here; "
        + (f"vgg16 is dominated by {by}" if by else "vgg16 is not dominated"),
    )  # fmt: skip
    second = claims.judge("C02",
        f"{len(fast)} models keep {bound_ms:g} ms and lie {points:.1f} points apart",
        {"spread >= 10 points": points >= 10, ">= 4 models": len(fast) >= 4},
        "a vCPU of today serves every model of the pool within the bound" if len(fast) == len(table) else "",
    )  # fmt: skip
    third = claims.judge("C03",
        f"{len(good)} models reach {floor_pct:g} % at {claims.span(good, 0, '-')} ms, {ratio:.1f}x apart",
        {"max/min >= 2": ratio >= 2},
    )  # fmt: skip
    return claims.verdict_table([first, second, third])
