"""``train`` trains the controller's net, or tunes constants, over training situations."""

from __future__ import annotations

import argparse
import time
from typing import Any

from selfserve.cli import common
from selfserve.cli.common import option
from selfserve.errors import InputError

NETS, CONSTANTS = ("net", "gradient", "ppo"), ("analytic", "tuned", "tuned_fixed")
USUAL = {"gradient": (300, "steps", 240), "ppo": (60_000, "decisions", 60)}
"""Default and name of ``--steps``, and default of ``--situations``; elsewhere 20 generations and 60."""


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``train``."""
    common.add_command(
        commands, "train", train, "train the controller's net, or tune constants, over training situations",
        "train --steps 20 --seed 0 --out mine.safetensors",
        option("--what", "NAME", f"{', '.join((*NETS, *CONSTANTS))}; default net", "net"),
        option("--steps", "N", "generations, default 20 (gradient: steps, 300; ppo: decisions, 60000)", None, type=int),
        option("--seed", "N", "default 0", 0, type=common.seed),
        option("--situations", "N", "training situations, default 60 (gradient: 240)", None, type=int),
        option("--keep", "DIR", "ppo: tensorboard logs and checkpoints"),
        option("--resume", "FILE.zip", "ppo: a checkpoint to go on from"),
        option("--no-validation", None, "do not play validation situations for the net's card afterwards"),
        option("--out", "FILE", "the controller (.safetensors), or a section of constants (.toml)", required=True),
    )  # fmt: skip


def train(args: argparse.Namespace) -> None:
    """Run ``train``."""
    if args.what not in (*NETS, *CONSTANTS):
        raise InputError(f"--what {args.what}: right is one of {', '.join((*NETS, *CONSTANTS))}")
    out = common.output_file(args.out, "--out", ".safetensors" if args.what in NETS else ".toml")
    assert out is not None  # required
    steps, unit, situations = USUAL.get(args.what, (20, "generations", 60))
    steps = steps if args.steps is None else args.steps
    situations = situations if args.situations is None else args.situations
    for name in ("keep", "resume"):
        if getattr(args, name) and args.what != "ppo":
            raise InputError(f"--{name} {getattr(args, name)}: is for --what ppo; {args.what} keeps no checkpoints")
    for name, value, least in (("steps", steps, 1), ("situations", situations, 8)):
        if value < least:
            raise InputError(f"--{name} {value}: must be {least} or more")
    if args.what in NETS:
        from selfserve import controller
        from selfserve.studies.training import scores

        begun = time.perf_counter()
        layers, card = _net(args, steps, situations)
        card |= {"train_s": round(time.perf_counter() - begun)}
        controller.save(out, layers, card if args.no_validation else card | {"validation": scores(layers, card)})
    else:
        from selfserve import training

        found = training.tune_constants(args.what, steps, args.seed, situations)
        with common.replacing(out) as part:
            part.write_text("".join([f"[{args.what}]\n", *(f"{k} = {v:g}\n" for k, v in found.items())]), "utf-8")
    print(f"{args.out}: {args.what}, {steps} {unit}, seed {args.seed}")


def _net(args: argparse.Namespace, steps: int, situations: int) -> tuple[Any, dict[str, Any]]:
    from pathlib import Path

    from selfserve import training

    if args.what == "net":
        return training.train(steps, args.seed, situations)
    if args.what == "gradient":
        from selfserve.gradient import train_gradient

        return train_gradient(steps, args.seed, situations)
    from selfserve.ppo import train_ppo

    resume = Path(args.resume) if args.resume else None
    if resume is not None and not resume.is_file():
        raise InputError(f"--resume {args.resume}: there is no such file")
    layers = train_ppo(steps, args.seed, situations, Path(args.keep) if args.keep else None, resume)
    return layers, training.card(situations, args.seed, ppo=True, method="PPO", decisions=steps)
