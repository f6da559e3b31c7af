"""The tables of notebook 06: the situations, what a controller sees and may do in them, and one world against many."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from selfserve.environment import InferenceServing
from selfserve.features import ACTIONS, CORRECTIONS, LEVEL_BY, OBSERVATIONS
from selfserve.situations import Split, distribution, price_ratio, sample
from selfserve.vector import InferenceServingVector

Task = Mapping[str, Any]


def task_of(quick: bool) -> dict[str, Any]:
    """Return the windows that the notebook serves: situations of training, or (quick) a short one of a small twin."""
    small = {"load_machines": 3, "warmup_s": 300.0}
    quickly = {"trace": "WITS-twin", "overrides": small, "length_s": 1200}
    return quickly if quick else {"situations": "train", "count": 60}


def situations_table(count: int, quick: bool) -> pd.DataFrame:
    """Return one row a situation: the first ``count`` of every split, with what was sampled for them."""
    rows = []
    for split in get_args(Split):
        for i in range(count):
            one = sample(split, i, twins=quick)
            s = one.scenario
            rows.append({
                "split": split, "situation": one.name, "family": one.family, "load": one.source, **one.tags,
                "machines": s.load_machines, "ready_s": s.vm.pending_s + s.vm.boot_s, "price_ratio": price_ratio(s),
                "init_s": s.function.init_s, "service_spread": s.service.spread, "believed": s.service.believed_factor,
                "share_drift": s.share_drift, "prices": s.prices, "least_slo_s": min(c.slo_s for c in s.classes),
            })  # fmt: skip
    return pd.DataFrame(rows)


def loads(quick: bool) -> pd.DataFrame:
    """Return one evaluation window of each family: requests/s of each half minute over the window's mean."""
    parts = []
    for i, family in enumerate(distribution()["splits"]["evaluate"]["families"]):
        one = sample("evaluate", i, twins=quick)
        start, length = one.window(1)
        counts = one.trace().counts[start : start + length // 30 * 30].reshape(-1, 30).mean(axis=1)
        minutes = (np.arange(len(counts)) + 0.5) / 2
        parts.append(pd.DataFrame({"family": family, "minute": minutes, "load": counts / counts.mean()}))
    return pd.concat(parts, ignore_index=True)


def actions_table() -> pd.DataFrame:
    """Return one row an action: what it changes, how far, and the bounds."""
    rows = [(name, f"{'x' if kind == 'times' else '+'} {by:g}", low, high) for name, kind, by, low, high in CORRECTIONS]
    rows += [(name, f"+ {LEVEL_BY:g}", 0.0, 1.0) for name in ACTIONS[len(CORRECTIONS) :]]
    return pd.DataFrame(rows, columns=["action", "change_at_1", "least", "most"])


def episode(task: Task, seed: int) -> pd.DataFrame:
    """Return one row an interval of the planner's own run: machines, load, violations, dollars over the ideal bill."""
    env = InferenceServing(**task, render_mode="rgb_array")
    env.reset(seed=seed)
    rewards, truncated = [], False
    while not truncated:
        _, reward, _, truncated, info = env.step(np.zeros(len(ACTIONS), np.float32))
        rewards.append((info["time_s"], info["episode_name"], info["cost_usd"] / env.course.ideal_usd[0], reward))
    frame = pd.DataFrame(env.log, columns=["time_s", "load", "home", "spot", "booting", "violations"])
    return frame.merge(pd.DataFrame(rewards, columns=["time_s", "episode", "cost", "reward"]), on="time_s")


def _played(env: InferenceServingVector, seeds: Sequence[int], actions: Any) -> pd.DataFrame:
    """Return cost over the ideal bill, violations in percent and reward a step of every world over one episode."""
    env.reset(seed=list(seeds))
    ideal = env.course.ideal_usd
    names, zero = ("cost_usd", "requests", "violations", "reward"), np.zeros(env.num_envs)
    total, steps, done = dict.fromkeys(names, zero), 0, False
    while not done:
        _, reward, _, truncated, info = env.step(actions(steps))
        steps, done = steps + 1, bool(truncated.all())
        for name in total:
            total[name] = total[name] + (reward if name == "reward" else info[name])
    return pd.DataFrame({
        "episode": info["episode_name"], "cost": total["cost_usd"] / ideal / steps,
        "violation_pct": 100 * total["violations"] / np.maximum(1, total["requests"]),
        "reward": total["reward"] / steps,
    })  # fmt: skip


def sensitivity(task: Task, episodes: int, seed: int) -> pd.DataFrame:
    """Return what each action does when it is held at -1 or 1 all along, against the planner alone.

    One row an episode, action and value: cost (ratio to the planner's), violations (percent), and both of the planner.
    """
    variants = [("none", 0.0), *((name, value) for name in ACTIONS for value in (-1.0, 1.0))]
    held = np.array([[value * (own == name) for own in ACTIONS] for name, value in variants], np.float32)
    env, parts = InferenceServingVector(len(variants), **task), []
    for i in tqdm(range(episodes), desc="actions", unit="episode"):
        frame = _played(env, [seed + i] * len(variants), lambda step: held)
        frame[["action", "value"]] = variants
        frame["cost_ratio"] = frame["cost"] / frame["cost"].iloc[0]
        frame["more_violations_pct"] = frame["violation_pct"] - frame["violation_pct"].iloc[0]
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def agents(task: Task, episodes: int, seed: int) -> pd.DataFrame:
    """Return how agents that know nothing do: no correction, random corrections, random machine counts."""
    rng, parts = np.random.default_rng(seed), []
    for name, raw, spread in (
        ("planner alone", False, 0.0),
        ("random corrections", False, 1.0),
        ("random counts", True, 1.0),
    ):
        env = InferenceServingVector(episodes, **task, raw=raw)
        shape = env.action_space.shape
        played = _played(
            env, range(seed, seed + episodes), lambda step, at=shape, by=spread: by * rng.uniform(-1, 1, at)
        )
        parts.append(played.assign(agent=name))
    return pd.concat(parts, ignore_index=True)


def agreement(task: Task, worlds: int, steps: int, seed: int) -> pd.DataFrame:
    """Return the largest differences between single environments and the vector form under the same random actions."""
    rng, env = np.random.default_rng(seed), InferenceServingVector(worlds, **task)
    actions = rng.uniform(-1, 1, (steps, worlds, len(ACTIONS))).astype(np.float32)
    env.reset(seed=seed)
    many = [env.step(a) for a in actions]
    rows = []
    for w in range(worlds):
        one = InferenceServing(**task)
        one.reset(seed=seed + w)
        single = [one.step(a) for a in actions[:, w]]
        pairs = list(zip(single, many, strict=True))
        rows.append({
            "world": w, "episode": one.course.episodes[0].name, "steps": steps,
            "observations": max(float(np.abs(a[0] - b[0][w]).max()) for a, b in pairs),
            "rewards": max(abs(a[1] - float(b[1][w])) for a, b in pairs),
        })  # fmt: skip
    return pd.DataFrame(rows)


def speed(worlds: int, steps: int, seed: int) -> dict[str, float]:
    """Return environment steps per CPU second at about 200 requests a step, for one world and for many."""
    task: dict[str, Any] = {"trace": "twitter-twin", "overrides": {"rate_scale": 0.4}, "length_s": 20 * (steps + 100)}
    found = {}
    for name, env, shape in (
        ("one", InferenceServing(**task), (len(ACTIONS),)),
        ("many", InferenceServingVector(worlds, **task), (worlds, len(ACTIONS))),
    ):
        env.reset(seed=seed)
        begun, action = time.process_time(), np.zeros(shape, np.float32)
        requests = sum(float(np.sum(env.step(action)[4]["requests"])) for _ in range(steps))
        found[name] = steps * (shape[0] if len(shape) > 1 else 1) / (time.process_time() - begun)
        found["requests"] = requests / steps / (shape[0] if len(shape) > 1 else 1)
    return found


def observed(task: Task, seed: int, steps: int = 60) -> pd.DataFrame:
    """Return what is observed over an episode's first steps: name, least, mean and largest value."""
    env = InferenceServing(**task)
    rows = [env.reset(seed=seed)[0]] + [env.step(np.zeros(len(ACTIONS), np.float32))[0] for _ in range(steps)]
    values = np.array(rows)
    columns = {"least": values.min(axis=0), "mean": values.mean(axis=0), "most": values.max(axis=0)}
    return pd.DataFrame({"observation": OBSERVATIONS, **columns})
