"""The environment's vector form: many worlds stepped in one compiled call, and its adapter to stable-baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from selfserve.environment import Course, Task, seeds_of
from selfserve.errors import InputError
from selfserve.features import Orders, Seen
from selfserve.protocol import SHARES
from selfserve.scenario import LONGEST_S, Scenario, to_ns
from selfserve.simulator import Worlds
from selfserve.simulator.state import NO_SLACK


def padded(scenario: Scenario, pools: int) -> Scenario:
    """Return a scenario with pools that nothing uses, so that worlds of unlike scenarios stack."""
    spare = replace(scenario.pools[0], market="spot", max_machines=0, usd_per_hour=0.0)
    more = tuple(replace(spare, name=f"unused_{i}") for i in range(pools - len(scenario.pools)))
    return replace(scenario, pools=scenario.pools + more)


class Road:
    """The worlds of E episodes in one stack: orders in, what was seen out.

    Raises:
        InputError: the episodes' windows differ in length.
    """

    def __init__(self, course: Course) -> None:
        self.course, flock, episodes = course, course.flock, course.episodes
        if len({e.workload.seconds for e in episodes}) > 1:
            raise InputError("environment: worlds stepped together need windows of one length")
        self.scenarios = [padded(e.scenario, flock.pools) for e in episodes]
        self.worlds = Worlds(self.scenarios, [e.workload for e in episodes], course.task.interval_s)
        self.end_ns = self.worlds.end_ns
        routes = np.array([[len(routes) for routes in c.routes] for c in flock.cases])
        self._own = own = np.arange(flock.shape[2]) < routes[:, :, None]
        self._at = (*np.nonzero(own), flock.step[own])
        seconds = flock.second >= 0
        self._second, self._in_two = (*np.nonzero(seconds), flock.second[seconds]), seconds[own]
        batches = [[*c.state.batches, *[1] * (flock.pools - len(c.state.batches))] for c in flock.cases]
        self._batch = np.maximum(1, np.array(batches, np.int64))
        waits = [[to_ns(x) for x in c.state.homes.batch_wait_s] for c in flock.cases]
        self._wait = np.array([[*row, *[0] * (flock.pools - len(row))] for row in waits], np.int64)

    def start(self) -> Seen:
        """Make the worlds and return what is seen at time 0: nothing."""
        room = np.maximum(1, np.ceil(2 * self.course.flock.slow())).astype(np.int64)
        self.worlds.reset([e.seed for e in self.course.episodes])
        for world, machines in zip(self.worlds.worlds, room, strict=True):
            world.make_room_for_machines(np.full(len(world.pools), machines))
        self._fresh = True
        return self._read()

    @property
    def now_ns(self) -> int:
        """Simulated time, nanoseconds."""
        return self.worlds.now_ns

    def advance(self, orders: Orders) -> Seen:
        """Put orders in force and run one interval in every world."""
        if self._fresh:
            self._fresh = False
            for e, world in enumerate(self.worlds.worlds):
                world.write_routes(self.course.flock.decision(orders, e).routes)
        self._direct(orders)
        self.worlds.advance(orders.machines, self._batch, self._wait)
        return self._read()

    def _direct(self, orders: Orders) -> None:
        """Write what moves in the routes, as ``write_routes`` does for one world."""
        running, stack, r = np.cumsum(orders.weight, axis=2), self.worlds.stack, orders.weight.shape[2]
        stack.routes["threshold"][:, :, :r] = np.rint(running / running[:, :, -1:] * SHARES)
        slack, late = orders.leave_slack_s[self._own], orders.late_slack_s[self._own]
        leave_ns = np.where(slack == -np.inf, NO_SLACK, np.rint(np.clip(slack, -LONGEST_S, LONGEST_S) * 1e9))
        stack.steps["slack"][self._at] = leave_ns
        stack.steps["slack"][self._second] = leave_ns[self._in_two]
        stack.steps["late_slack"][self._at] = np.rint(late * 1e9)
        stack.steps["late_model"][self._at] = np.where(late > 0, self.course.flock.late_model[self._own], -1)

    def _read(self) -> Seen:
        """Read the interval that just ended; the same as ``Simulator`` observes of one world."""
        seen = self.worlds.observe()
        for name in ("cold_starts", "queued_request_s"):
            del seen[name]
        seen["arrivals"], seen["booting"] = seen["arrivals"].sum(axis=1), seen["booting"].sum(axis=2)
        return Seen(time_s=self.now_ns / 1e9, interval_s=self.worlds.span_ns / 1e9, **seen)


class InferenceServingVector(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many :class:`selfserve.environment.InferenceServing`, equal to as many single ones with the same seeds.

    All windows have one length, so that all worlds end together; a new episode starts in the same step
    (``AutoresetMode.SAME_STEP``: ``infos["final_obs"]`` has the last observations). ``infos`` holds arrays [E].

    Args:
        num_envs: number of worlds E.
        render_mode: none.
        task: as the single environment's.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **task: Any) -> None:
        if render_mode is not None:
            raise InputError(f"environment: render_mode={render_mode}: the vector form draws nothing; use a single one")
        self.num_envs, self.task, self.render_mode = num_envs, Task(**task), None
        self.single_observation_space, self.single_action_space = self.task.spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.prices = {"violation_price": Course.violation_price, "accuracy_price": Course.accuracy_price}
        self._rngs = [seeding.np_random(None)[0] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start all worlds' next episodes; world i is seeded with ``seed + i`` or the i-th of a list."""
        seeds = seeds_of(seed, self.num_envs) if seed is None or isinstance(seed, int | np.integer) else iter(seed)
        self._rngs = [
            old if one is None else seeding.np_random(one)[0] for old, one in zip(self._rngs, seeds, strict=True)
        ]
        return self._start(), {"time_s": np.full(self.num_envs, self._road.now_ns / 1e9), "episode_name": self._names()}

    def _start(self) -> np.ndarray:
        self.course = Course(self.task, [self.task.episode(rng) for rng in self._rngs])
        self._road = Road(self.course)
        self.course.planner.observe(self._road.start())
        for _ in range(min(self.course.warmup, self.course.intervals - 1)):
            self.course.score(self._road.advance(self.course.orders(neutral=True)))
        return self.course.observations()

    def _names(self) -> np.ndarray:
        return np.array([e.name for e in self.course.episodes], dtype=object)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Hold actions [E, A] for ``every`` intervals."""
        course = self.course
        course.act(actions)
        course.violation_price, course.accuracy_price = self.prices.values()
        total, info = np.zeros(self.num_envs), dict[str, Any]()
        for _ in range(self.task.every):
            reward, parts = course.score(self._road.advance(course.orders()))
            total += reward
            for name, value in parts.items():
                info[name] = value if name == "accuracy_missed" or name not in info else info[name] + value
            if self._road.now_ns >= self._road.end_ns:
                break
        done = self._road.now_ns >= self._road.end_ns
        info |= {"time_s": np.full(self.num_envs, self._road.now_ns / 1e9), "episode_name": self._names()}
        observations = course.observations()
        if done:
            info |= {"final_obs": observations, "_final_obs": np.full(self.num_envs, True)}
            observations = self._start()
        nothing = np.zeros(self.num_envs, bool)
        return observations, total, nothing, np.full(self.num_envs, done), info


def to_stable_baselines3(env: InferenceServingVector) -> Any:
    """Return the vector environment as a ``VecEnv`` of stable-baselines3.

    Every world's end is a time limit: ``infos[i]`` has ``TimeLimit.truncated`` and ``terminal_observation``, from which
    algorithms bootstrap. ``set_attr("prices", {...})`` changes what violations and missed accuracy cost.
    """
    from stable_baselines3.common.vec_env import VecEnv  # imported where needed: it takes seconds

    class Adapter(VecEnv):
        """The same worlds under the other interface."""

        def __init__(self) -> None:
            self.env = env
            super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

        def reset(self) -> np.ndarray:
            observations, _ = env.reset(seed=list(self._seeds))
            self._reset_seeds()
            return observations

        def step_async(self, actions: np.ndarray) -> None:
            self._actions = actions

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
            observations, rewards, terminated, truncated, info = env.step(self._actions)
            last = info.pop("final_obs", None)
            columns = {name: np.asarray(value).tolist() for name, value in info.items() if not name.startswith("_")}
            infos = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            if last is not None:
                for one, observation in zip(infos, last, strict=True):
                    one |= {"TimeLimit.truncated": True, "terminal_observation": observation}
            return observations, rewards.astype(np.float32), terminated | truncated, infos

        def close(self) -> None:
            env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(env, attr_name)] * len(list(self._get_indices(indices)))

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            setattr(env, attr_name, value)

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            return [getattr(env, method_name)(*args, **kwargs)] * len(list(self._get_indices(indices)))

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * len(list(self._get_indices(indices)))

    return Adapter()
