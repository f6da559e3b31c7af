"""The tables of notebook 07: how the controller's constants and nets are found, and which of them is shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from selfserve import training
from selfserve.analytic import MULTIPLIERS, NAMES, multipliers
from selfserve.controller import Layers, load, save
from selfserve.features import ACTIONS, OBSERVATIONS
from selfserve.studies.controller import by_kind, nets, rollouts

Net = tuple[Layers, dict[str, Any]]
"""A net and its card."""


def constants_table() -> pd.DataFrame:
    """Return the formulas' multipliers: start, bounds, tuned value."""
    tuned = multipliers()
    return pd.DataFrame([(n, *MULTIPLIERS[n], tuned[i]) for i, n in enumerate(NAMES)],
                        columns=["multiplier", "start", "least", "most", "tuned"])  # fmt: skip


def learning_curves(generations: int, seeds: Sequence[int], situations: int, quick: bool) -> pd.DataFrame:
    """Train nets anew, briefly, and return the mean objective of each generation: seed, generation, objective.

    Args:
        generations: of each search.
        seeds: of the searches.
        situations: training situations 0 to this number.
        quick: on twins of three machines.
    """
    machines = 3.0 if quick else training.MOST_MACHINES
    rows: list[dict[str, float]] = []

    def note(seed: int, generation: int, value: float, mean: np.ndarray) -> None:
        rows.append({"seed": seed, "generation": generation, "objective": value})

    for seed in seeds:
        training.train(generations, seed, situations, partial(note, seed), quick, machines)
    return pd.DataFrame(rows)


def ppo_curve(decisions: int, seed: int, situations: int, twins: bool, raw: bool = False) -> tuple[pd.DataFrame, Net]:
    """Train by PPO, briefly; return each rollout's reward, late requests and their price, and the net.

    A ``raw`` net sets machines itself.
    """
    from selfserve.ppo import train_ppo

    rows: list[dict[str, float]] = []
    layers = train_ppo(decisions, seed, situations, progress=rows.append, twins=twins, raw=raw)
    return pd.DataFrame(rows), (layers, training.card(situations, seed, twins, ppo=True, method="PPO"))


def gradient_curve(steps: int, seed: int, situations: int, quick: bool) -> tuple[pd.DataFrame, Net]:
    """Train by gradient; return each step's log of cost over that of the formulas, on the record, and the net.

    ``quick`` is on twins of three machines.
    """
    from selfserve.gradient import train_gradient

    rows: list[dict[str, float]] = []
    machines = 3.0 if quick else training.MOST_MACHINES
    net = train_gradient(steps, seed, situations, rows.append, quick, machines)
    return pd.DataFrame(rows), net


def keep(net: Net, file: Path) -> str:
    """Write a net with its card; return its file's name, a method of ``controller.rollouts``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save(file, *net)
    return str(file)


def scores(
    layers: Layers, card: Mapping[str, Any], situations: int = 39, machines: float = 12.0, twins: bool = False
) -> dict[str, Any]:
    """Return for a net's card what it costs beside the formulas alone on validation situations 0 to ``situations``.

    By market and in all: percent of cost with its 95% interval, and late requests in percent.
    """
    with TemporaryDirectory() as folder:
        file = f"{folder}/net.safetensors"
        save(Path(file), layers, card)
        played = rollouts(["analytic", file], range(situations), [0], "validate", machines, twins=twins)
    table = by_kind(played, "analytic", ["market"])
    against = f"the formulas, situations 0 to {situations - 1}, window 0, at most {machines:g} machines"
    return {"against": against} | {
        row.value: {
            "change_pct": round(row.change_pct, 2), "interval": [round(row.low_pct, 2), round(row.high_pct, 2)],
            "late_pct": round(row.violation_pct, 3),
        }
        for row in table[table["method"] == file].itertuples()
    }  # fmt: skip


def agreement(table: pd.DataFrame, nets: int, share: float = 0.9) -> tuple[int, float]:
    """Return how many weights of :func:`weights` have one sign in that share of the nets, and how many chance gives."""
    return int((table["same_sign"] >= share).sum()), float(2 * len(table) * binom.sf(ceil(share * nets) - 1, nets, 0.5))


def cards() -> pd.DataFrame:
    """Return what the shipped nets' cards say, a row each."""
    wanted = ("method", "seed", "generations", "decisions", "train_s", "validation", "data", "limits")
    found = [{"net": name} | {k: load(file)[1].get(k) for k in wanted} for name, file in nets().items()]
    return pd.DataFrame(found, columns=["net", *wanted])


def weights() -> pd.DataFrame:
    """Return how each correction of a one-layer net moves with each observation: mean over the nets, and their spread.

    ``same_sign`` is the share of the nets that agree with most of them about the sign.
    """
    layers = [load(file)[0] for file in nets().values()]
    linear = np.array([own[0][0] for own in layers if len(own) == 1])
    rows = []
    for action in training.MOVED:
        for seen in training.WATCHED:
            w = linear[:, ACTIONS.index(action), OBSERVATIONS.index(seen)]
            mean = float(w.mean())
            rows.append({"correction": action, "observation": seen, "weight": mean, "spread": float(w.std()),
                         "same_sign": float(max((w > 0).mean(), (w < 0).mean()))})  # fmt: skip
    return pd.DataFrame(rows)
