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
from selfserve.scenario import Scenario, to_ns
from selfserve.simulator import many
from selfserve.simulator import state as s
from selfserve.simulator.world import make_room_for_machines, make_world, write_routes


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
        self.interval_ns = to_ns(course.task.interval_s)
        self.end_ns = episodes[0].workload.seconds * 1_000_000_000
        self.scenarios = [padded(e.scenario, flock.pools) for e in episodes]
        money = lambda name, per: np.array([[getattr(p, name) / per for p in x.pools] for x in self.scenarios])  # noqa: E731
        self._machine, self._busy = money("usd_per_hour", 3600e9), money("usd_per_busy_hour", 3600e3)
        self._kept, self._request = money("usd_per_busy_hour_provisioned", 3600e3), money("usd_per_request", 1.0)
        self._accuracy = np.array([[m.accuracy_pct for m in x.models] for x in self.scenarios])
        n, k, r = flock.shape
        own = np.arange(r) < np.array([[len(routes) for routes in c.routes] for c in flock.cases])[:, :, None]
        self._at = (*np.nonzero(own), flock.step[own])
        self._own, self._grid = own, (np.arange(n)[:, None, None], np.arange(flock.pools)[:, None], np.arange(k))
        batches = [[*c.state.batches, *[1] * (flock.pools - len(c.state.batches))] for c in flock.cases]
        self._batch = np.maximum(1, np.array(batches, np.int64))
        waits = [[to_ns(x) for x in c.state.homes.batch_wait_s] for c in flock.cases]
        self._wait = np.array([[*row, *[0] * (flock.pools - len(row))] for row in waits], np.int64)

    def start(self) -> Seen:
        """Make the worlds and return what is seen at time 0: nothing."""
        episodes, flock = self.course.episodes, self.course.flock
        peak = max(int(e.workload.counts.max(initial=0)) for e in episodes)
        room = np.maximum(1, np.ceil(2 * flock.slow())).astype(np.int64)
        worlds = []
        for e, (episode, scenario) in enumerate(zip(episodes, self.scenarios, strict=True)):
            w = make_world(
                scenario,
                episode.workload,
                self.course.task.interval_s,
                episode.seed,
                rows=False,
                histogram=False,
                peak=peak,
            )
            worlds.append(make_room_for_machines(w, np.full(flock.pools, room[e])))
        self.stack, self.now_ns, self._fresh = many.pile(worlds), 0, True
        self._spent = np.zeros((len(episodes), flock.pools))
        return self._read(0)

    def advance(self, orders: Orders) -> Seen:
        """Put orders in force and run one interval in every world."""
        if self._fresh:
            self._fresh = False
            for e, w in enumerate(many.worlds_in(self.stack)):
                write_routes(w, self.course.flock.decision(orders, e))
        self._direct(orders)
        self._make_room(orders.machines)
        many.decide_all(self.stack, self.now_ns, orders.machines, self._batch, self._wait)
        stop = min(self.now_ns + self.interval_ns, self.end_ns)
        self.stack = many.run_to(self.stack, stop)
        span, self.now_ns = stop - self.now_ns, stop
        return self._read(span)

    def _direct(self, orders: Orders) -> None:
        """Write what moves in the routes, as ``write_routes`` does for one world."""
        running, steps, r = np.cumsum(orders.weight, axis=2), self.stack.step, orders.weight.shape[2]
        self.stack.route_cum[:, :, :r] = np.rint(running / running[:, :, -1:] * 4096)
        slack, late = orders.leave_slack_s[self._own], orders.late_slack_s[self._own]
        steps[(*self._at, s.SLACK)] = np.where(slack == -np.inf, s.NO_SLACK, np.rint(np.clip(slack, -1e8, 1e8) * 1e9))
        steps[(*self._at, s.LATE_SLACK)] = np.rint(late * 1e9)
        steps[(*self._at, s.LATE_MODEL)] = np.where(late > 0, self.course.flock.late_model[self._own], -1)

    def _make_room(self, machines: np.ndarray) -> None:
        pool = self.stack.pool
        wanted = np.minimum(machines, pool[:, :, s.MAX_MACHINES])
        if ((wanted + wanted // 8 + 4) * pool[:, :, s.SLOTS] > pool[:, :, s.LEAVES]).any():
            worlds = many.worlds_in(self.stack)
            self.stack = many.pile([make_room_for_machines(w, m) for w, m in zip(worlds, machines, strict=True)])

    def _read(self, span_ns: int) -> Seen:
        """Read the interval that just ended out of the stack; the same as ``Simulator`` observes of one world."""
        stack, now = self.stack, self.now_ns
        queue, pool, bucket = stack.queue, stack.pool, int(stack.clock[0, s.BUCKET])
        head = queue[..., s.HEAD]
        queued = queue[..., s.TAIL] - head
        oldest = stack.ring[(*self._grid, head & (stack.ring.shape[3] - 1), s.ARRIVED)]
        served, spent = stack.served[:, bucket], self._spend()
        seen = Seen(
            time_s=now / 1e9, interval_s=span_ns / 1e9, arrivals=stack.arrivals.sum(axis=1),
            ready=pool[:, :, s.N_READY].copy(), booting=pool[:, :, s.N_BOOTING].copy(),
            busy_slot_s=stack.busy[:, bucket] / 1e9, queued=queued,
            head_age_s=np.where(queued > 0, now - oldest, 0) / 1e9, served=served.copy(),
            late=stack.late[:, bucket].copy(), accuracy_sum=np.einsum("epmk,em->ek", served, self._accuracy),
            lost=pool[:, :, s.LOST].copy(), refused=pool[:, :, s.REFUSED].copy(), spend_usd=spent - self._spent,
        )  # fmt: skip
        self._spent = spent
        return seen

    def _spend(self) -> np.ndarray:
        """Return dollars spent so far per world and pool, [E, P]."""
        stack, now = self.stack, self.now_ns
        pool, f = stack.pool, stack.function
        running = pool[:, :, s.CLOSED] + pool[:, :, s.N_READY] * now - pool[:, :, s.SUM_RUNNING]
        young = np.nonzero(pool[:, :, s.N_BOOTING])
        if len(young[0]):
            count = pool[young][:, s.MACHINES, None]  # rows beyond it are left over
            rows, i = stack.machine[young][:, : int(count.max())], np.arange(count.max())
            booting = (i < count) & (rows[:, :, s.ALIVE] == 1) & (rows[:, :, s.IS_READY] == 0)
            running[young] += (np.maximum(0, now - rows[:, :, s.RUNNING_AT]) * booting).sum(axis=1)
        busy = f[..., s.MS_ALL].sum(2) * self._busy + f[..., s.MS_PROVISIONED_ALL].sum(2) * self._kept
        return running * self._machine + busy + f[..., s.INVOCATIONS_ALL].sum(2) * self._request


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
        self.course.flock.observe(self._road.start())
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
