"""``train`` trains the controller's net over training situations."""

from __future__ import annotations

import argparse
from typing import Any

from selfserve.cli import common
from selfserve.cli.common import option
from selfserve.errors import InputError


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``train``."""
    common.add_command(
        commands, "train", train, "train the controller's net over training situations",
        "train --steps 20 --seed 0 --out mine.safetensors",
        option("--steps", "N", "generations of the search, default 20", 20, type=int),
        option("--seed", "N", "default 0", 0, type=int),
        option("--situations", "N", "training situations, default 60", 60, type=int),
        option("--out", "FILE.safetensors", "where to write the controller", required=True),
    )  # fmt: skip


def train(args: argparse.Namespace) -> None:
    """Run ``train``."""
    from selfserve import controller, training

    out = common.output_file(args.out, "--out", ".safetensors")
    for name in ("steps", "situations"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be 1 or more")
    layers, card = training.train(args.steps, args.seed, max(8, args.situations))
    assert out is not None  # required
    controller.save(out, layers, card)
    print(f"{args.out}: {args.steps} generations, seed {args.seed}")
