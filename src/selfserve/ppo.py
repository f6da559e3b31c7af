"""Proximal policy optimisation of the net that corrects the formulas, by stable-baselines3.

The reward is dollars over the ideal bill with violations at a price that adapts: it rises while more than
``TARGET_PCT`` of the requests are late and falls while fewer are, within ``PRICES`` (a multiplier without limits winds
up). Corrections are noisy in their means alone: the filter of the environment keeps noise off the machines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback
from stable_baselines3.common.vec_env import VecEnvWrapper
from tqdm.auto import tqdm

from selfserve.environment import RAW_MOST
from selfserve.errors import InputError
from selfserve.training import EVERY, PPO_MACHINES
from selfserve.vector import InferenceServingVector, to_stable_baselines3

TARGET_PCT = 0.05
PRICES = (5.0, 100.0)
"""Least and most that a violated request costs, in mean requests' ideal bills."""
WORLDS, STEPS = 64, 32
"""Worlds side by side, and their steps between updates."""
HIDDEN = (32, 32)
RAW_START = 1.2
"""Machines that a raw net begins with, of those that the load before the window keeps busy; set by hand."""


class _Squashed(VecEnvWrapper):
    """Actions through tanh, as the shipped net has it at its end."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async(np.tanh(actions))

    def step_wait(self) -> Any:
        return self.venv.step_wait()


class _Price(BaseCallback):
    """Adapts the price of violations after each rollout, and logs what it saw."""

    def __init__(self, progress: Callable[[dict[str, float]], None] | None) -> None:
        super().__init__()
        self.progress = progress

    def _on_training_start(self) -> None:
        self.price, self.late, self.requests = getattr(self.model, "violation_price", 20.0), 0.0, 0.0
        self._set_price()
        self.bar = tqdm(total=self.locals["total_timesteps"], desc="PPO", unit="decision")

    def _on_step(self) -> bool:
        self.late += sum(info["violations"] for info in self.locals["infos"])
        self.requests += sum(info["requests"] for info in self.locals["infos"])
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()

    def _on_rollout_end(self) -> None:
        late_pct = 100 * self.late / max(1.0, self.requests)
        self.price = float(np.clip(self.price * (1.1 if late_pct > TARGET_PCT else 1 / 1.1), *PRICES))
        self._set_price()
        self.logger.record("selfserve/late_pct", late_pct)
        self.logger.record("selfserve/violation_price", self.price)
        if self.progress is not None:
            reward = float(np.mean(self.locals["rollout_buffer"].rewards))
            self.progress(
                {"decisions": self.num_timesteps, "reward": reward, "late_pct": late_pct, "price": self.price}
            )
        self.late = self.requests = 0.0

    def _set_price(self) -> None:
        self.model.violation_price = self.price  # type: ignore[attr-defined]  # so that checkpoints have it
        prices = self.training_env.get_attr("prices")[0]
        self.training_env.set_attr("prices", prices | {"violation_price": self.price})


def train_ppo(
    steps: int, seed: int, situations: int = 60, folder: Path | None = None, resume: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None, twins: bool = False, raw: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Train and return the layers of the net.

    Args:
        steps: decisions of all worlds together, those before a checkpoint among them.
        seed: of the net, the noise and the episodes.
        situations: training situations 0 to this number.
        folder: where tensorboard logs and checkpoints go (default: neither is kept).
        resume: a checkpoint to go on from.
        progress: told decisions, mean reward, late requests (percent) and their price after each rollout.
        twins: use the twins of the real traces.
        raw: the net sets machines itself instead of correcting the formulas.

    Raises:
        InputError: ``resume`` is no checkpoint of such a net.
    """
    worlds = InferenceServingVector(
        WORLDS, situations="train", count=situations, every=EVERY, analytic=True, most_machines=PPO_MACHINES,
        twins=twins, raw=raw,
    )  # fmt: skip
    env = _Squashed(to_stable_baselines3(worlds))
    env.seed(seed)
    if resume is not None:
        try:
            model = PPO.load(resume, env=env)
        except (ValueError, KeyError, AttributeError, OSError, EOFError, RuntimeError, BadZipFile) as error:
            raise InputError(f"checkpoint {resume}: is none of this training: {error}") from error
        model.set_random_seed(seed + model.num_timesteps)  # not the episodes and the noise of the beginning again
    else:
        shape = {"net_arch": list(HIDDEN), "activation_fn": torch.nn.Tanh, "log_std_init": -2.0}
        model = PPO(
            "MlpPolicy", env, n_steps=STEPS, batch_size=512, n_epochs=5, gamma=0.975, learning_rate=3e-4, seed=seed,
            policy_kwargs=shape, tensorboard_log=None if folder is None else str(folder / "tensorboard"),
        )  # fmt: skip
        out: Any = model.policy.action_net
        with torch.no_grad():  # so that it begins as the formulas, or with a few machines to spare
            out.weight.mul_(0.01)
            out.bias.fill_(np.arctanh(2 * RAW_START / RAW_MOST - 1) if raw else 0.0)
    kept = [] if folder is None else [CheckpointCallback(4 * STEPS, str(folder / "checkpoints"))]
    left = max(1, steps - model.num_timesteps)
    model.learn(left, CallbackList([_Price(progress), *kept]), reset_num_timesteps=resume is None)
    env.close()
    return layers_of(model)


def layers_of(model: PPO) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weight [out, in] and bias [out] of each layer of a model's actor."""
    policy: Any = model.policy
    linear = [m for m in policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)]
    return [(m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in (*linear, policy.action_net)]
