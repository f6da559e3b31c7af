"""The Gymnasium environment: a controller corrects the planner's settings, or sets machine counts itself.

``gymnasium.make("selfserve:selfserve/InferenceServing-v0", trace="WITS-twin", scenario="standard")``, or with
``situations="train"`` a new situation at every reset. What is shared with the vector form is :class:`Course`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Any

import gymnasium
import numpy as np

from selfserve.analytic import Pilot
from selfserve.errors import InputError
from selfserve.features import ACTIONS, FILTER, OBSERVED, STATICS, Case, Flock, Orders, Seen
from selfserve.planner import ResourceSelector
from selfserve.scenario import Scenario, load_scenario
from selfserve.simulator import Simulator
from selfserve.situations import Split, sample
from selfserve.steering import PlannerSettings
from selfserve.traces import split_ranges
from selfserve.workload import Workload, load_trace, make_workload

RAW_ACTIONS = ("home", "spot")
RAW_MOST = 4.0
"""Largest raw count, in multiples of the machines that the load before the window keeps busy."""
RAW_SIZES = (len(OBSERVED) + len(RAW_ACTIONS) + len(STATICS), len(RAW_ACTIONS))
"""Lengths of what is observed, and of an action, where machines are set directly."""
WORKLOADS_KEPT = 1024


@dataclass(frozen=True)
class Task:
    """Where episodes come from, and how a controller acts in them; the constructor arguments of the environment."""

    trace: str | None = None
    scenario: str = "standard"
    overrides: Mapping[str, object] | None = None
    start_s: int | None = None
    length_s: int = 4200
    situations: Split | None = None
    first: int = 0
    count: int = 200
    twins: bool = False
    interval_s: float = 10.0
    every: int = 1
    settings: PlannerSettings | None = None
    raw: bool = False
    analytic: bool = False
    most_machines: float | None = None

    def __post_init__(self) -> None:
        """Check what would only show later."""
        if (self.trace is None) == (self.situations is None):
            raise InputError(
                "environment: give trace=NAME|FILE.csv (with scenario=..), or situations=train|validate|evaluate"
            )
        for name, value in (("every", self.every), ("count", self.count), ("length_s", self.length_s)):
            if value < 1:
                raise InputError(f"environment: {name}={value}: must be 1 or more")
        if not self.interval_s > 0:
            raise InputError(f"environment: interval_s={self.interval_s}: must be above 0")

    @property
    def actions(self) -> int:
        """Return the length of an action."""
        return len(RAW_ACTIONS if self.raw else ACTIONS)

    def spaces(self) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
        """Return the spaces of observations and actions of one world."""
        length = len(OBSERVED) + self.actions + len(STATICS)
        return (
            gymnasium.spaces.Box(-10.0, 10.0, (length,), np.float32),
            gymnasium.spaces.Box(-1.0, 1.0, (self.actions,), np.float32),
        )

    def episode(self, rng: np.random.Generator) -> Episode:
        """Draw the next episode."""
        if self.situations is not None:
            index = self.first + int(rng.integers(self.count))
            key: tuple[Any, ...] = (self.situations, index, int(rng.integers(4)), self.twins, self.most_machines)
            scenario, workload, name = _situation(*key)
        else:
            scenario = _scenario(self.scenario, json.dumps(dict(self.overrides or {}), sort_keys=True))
            trace, start = _trace(str(self.trace)), self.start_s
            if start is None:
                a, b = split_ranges(trace)["train"]
                a, b = (a, b) if b - a >= self.length_s else (0, trace.seconds)
                start = a + int(rng.integers(max(1, b - a - self.length_s)))
            workload = _window(str(self.trace), scenario, start, self.length_s)
            name = f"{self.trace}-{start}"
        seed = int(rng.integers(2**31))
        return Episode(name, scenario, workload, seed, _case(scenario, workload, self.interval_s, self.settings))


@dataclass(frozen=True)
class Episode:
    """A window to be served: scenario, load, seed of all that is random, and the planner prepared for it."""

    name: str
    scenario: Scenario
    workload: Workload
    seed: int
    case: Case


class _ByDigest:
    """A cache key of a scenario and a workload: their digests."""

    def __init__(self, scenario: Scenario, workload: Workload) -> None:
        self.scenario, self.workload = scenario, workload

    def __hash__(self) -> int:
        return hash((self.scenario.digest, self.workload.digest))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByDigest) and (self.scenario.digest, self.workload.digest) == (
            other.scenario.digest,
            other.workload.digest,
        )


@lru_cache(maxsize=WORKLOADS_KEPT)
def _situation(
    split: Split, index: int, window: int, twins: bool, most_machines: float | None
) -> tuple[Scenario, Workload, str]:
    one = sample(split, index, at_most=most_machines or inf, twins=twins)
    return one.scenario, one.workload(window), f"{one.name}.{window}"


@lru_cache
def _scenario(name: str, overrides: str) -> Scenario:
    return load_scenario(name, json.loads(overrides))


_trace = lru_cache(load_trace)


@lru_cache(maxsize=WORKLOADS_KEPT)
def _cut(trace: str, digest: str, start_s: int, length_s: int) -> Workload:
    return make_workload(_trace(trace), _KNOWN[digest], start_s, length_s)


_KNOWN: dict[str, Scenario] = {}


def _window(trace: str, scenario: Scenario, start_s: int, length_s: int) -> Workload:
    _KNOWN[scenario.digest] = scenario
    return _cut(trace, scenario.digest, start_s, length_s)


@lru_cache(maxsize=WORKLOADS_KEPT)
def _prepared(key: _ByDigest, interval_s: float, settings: PlannerSettings | None) -> Case:
    return Case(key.scenario, key.workload.history, interval_s, settings)


def _case(scenario: Scenario, workload: Workload, interval_s: float, settings: PlannerSettings | None) -> Case:
    return _prepared(_ByDigest(scenario, workload), interval_s, settings)


def _unit_work_usd(case: Case) -> np.ndarray:
    """Return dollars of a request on busy machines, [K], by single models and one by one.

    So it knows nothing of how the planner serves, and costs of different planners compare.
    """
    alone = ResourceSelector(case.scenario, case.state.selector)
    return np.array([alone.cost_usd(k, p) for k, p in enumerate(alone.pool_of)])


def most_machines(flock: Flock) -> np.ndarray:
    """Return the largest raw counts of worlds whose load was seen before the window, [E]."""
    return np.maximum(1.0, np.ceil(RAW_MOST * flock.slow()))


def counted(flock: Flock, orders: Orders, action: np.ndarray, most: np.ndarray) -> Orders:
    """Return orders with the machines of a raw action, [E, 2] in [-1, 1]: of each role from none to ``most`` [E]."""
    counts = np.rint((action + 1) / 2 * most[:, None]).astype(np.int64)
    flock.targets = np.minimum((flock.of_role * counts[:, :, None]).sum(axis=1).astype(np.int64), flock.limit)
    return replace(orders, machines=flock.targets)


class Course:
    """The episodes of E worlds under way: planner, action in force, money.

    Attributes:
        violation_price: reward that a violated request costs, in mean requests' ideal bills.
        accuracy_price: reward that a point of missed mean accuracy costs, in mean requests' ideal bills.
    """

    violation_price: float = 20.0
    accuracy_price: float = 0.5

    def __init__(self, task: Task, episodes: list[Episode]) -> None:
        self.task, self.episodes = task, episodes
        self.flock = flock = Flock([e.case for e in episodes])
        self.planner: Flock | Pilot = Pilot(flock) if task.analytic else flock
        self.action = np.zeros((len(episodes), task.actions))
        mean = np.array([e.workload.counts.mean() for e in episodes]) * task.interval_s
        shares = np.array([[c.share for c in e.scenario.classes] for e in episodes])
        self._usd = np.stack([_unit_work_usd(c) for c in flock.cases])
        self.mean = np.maximum(mean, 1e-9)
        self.ideal_usd = self.mean * (shares * self._usd).sum(axis=1)
        """[E] an interval's mean work by single models, one by one, on busy machines."""
        self.most = most_machines(flock)
        self._debt = np.zeros(len(episodes))
        self._market = [[p.market for p in e.scenario.pools] for e in episodes]
        self._paid = {
            f"{name}_usd": np.array(
                [[*(m == market for m in row), *[False] * (flock.pools - len(row))] for row in self._market]
            )
            for name, market in (("vm", "on_demand"), ("spot", "spot"), ("function", "function"))
        }

    @property
    def warmup(self) -> int:
        """Return the intervals before anything is scored."""
        return round(max(e.scenario.warmup_s for e in self.episodes) / self.task.interval_s)

    @property
    def intervals(self) -> int:
        """Return the intervals of the window."""
        return int(-(-self.episodes[0].workload.seconds // self.task.interval_s))

    def act(self, action: np.ndarray) -> None:
        """Move the action in force towards [E, A] (a raw one is taken as it is)."""
        wanted = np.clip(np.asarray(action, dtype=float), -1.0, 1.0)
        self.action = wanted if self.task.raw else self.action + FILTER * (wanted - self.action)

    def orders(self, neutral: bool = False) -> Orders:
        """Return what the action in force decides, or the planner alone."""
        flock = self.flock
        if self.task.raw or neutral:
            orders = flock.decide(flock.base, flock.base_level)
            if neutral or not self.task.raw:
                return orders
            return counted(flock, orders, self.action, self.most)
        return flock.decide(*flock.corrected(self.action))

    def score(self, seen: Seen) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Take in an interval; return the rewards [E] and what they are made of.

        The reward is ``-(dollars - work at VM price) / ideal bill - violation_price x violations - accuracy_price x
        points newly missed``, violations and points per mean arrivals of an interval.
        """
        self.planner.observe(seen)
        spent, work = seen.spend_usd.sum(axis=1), (seen.arrivals * self._usd).sum(axis=1)
        late, missed = seen.late.sum(axis=1), np.maximum(0.0, self.flock.debt() * self.flock.answers).sum(axis=1)
        newly, self._debt = np.maximum(0.0, missed - self._debt), missed
        reward = -(spent - work) / self.ideal_usd
        reward -= (self.violation_price * late + self.accuracy_price * newly) / self.mean
        answers = seen.served.sum(axis=(1, 2, 3))
        parts = {
            "cost_usd": spent, **{name: (seen.spend_usd * mask).sum(axis=1) for name, mask in self._paid.items()},
            "work_usd": work, "requests": seen.arrivals.sum(axis=1), "answers": answers, "violations": late,
            "accuracy_sum": seen.accuracy_sum.sum(axis=1), "accuracy_missed": missed,
        }  # fmt: skip
        return reward, parts

    def observations(self) -> np.ndarray:
        """Return what the controllers see, float32 [E, F]."""
        return self.flock.observations(self.action)


class InferenceServing(gymnasium.Env[np.ndarray, np.ndarray]):
    """Serve a window of requests; every step a controller corrects the planner for the next ``every`` intervals.

    **Action space** ``Box(-1, 1, (15,), float32)``; an action is low-pass filtered, then changes a setting of the
    planner (:class:`selfserve.steering.PlannerSettings`) within bounds (:data:`selfserve.features.CORRECTIONS`):

    | index | setting | change at 1 | meaning |
    |---|---|---|---|
    | 0 | headroom | x 1.3 | machines over the smoothed load |
    | 1 | safety | + 1 | and in standard deviations of its change over a boot |
    | 2, 3 | fast, slow | x 3 | time constants of the two load averages |
    | 4 | weight | + 0.5 | of the fast one |
    | 5 | hold | x 3 | how long machines stay after the load fell |
    | 6 | drain | x 3 | time to work off what waits |
    | 7 | leave_margin | x 1.3 | when a request leaves for a function |
    | 8 | cold_margin | + 1 | allowance for a cold start there |
    | 9 | spot_share | + 0.5 | of the load meant for spot machines |
    | 10 | spot_headroom | x 1.3 | spot machines over their share |
    | 11 | late_binding | + 4 | step down a model when time is short |
    | 12-14 | level | up to + 0.5 | accuracy level of the classes, tightest SLO group first |

    In ``InferenceServingRaw-v0`` (``raw=True``) the two actions are machines at home and on spot, from 0 at -1 to four
    times what the load before the window keeps busy at 1; routes stay the planner's.

    **Observation space** ``Box(-10, 10, (75,), float32)`` (raw: 62), all scale-free; names in order are
    :data:`selfserve.features.OBSERVATIONS`. Loads and machines are over a slow average of the load:

    | part | entries |
    |---|---|
    | load | now, before, means of 3, 6, 12, 30 intervals, highest, deviation, averages over boot times |
    | forecast | bias and size of its error at the boot horizon, deviation of changes over a boot |
    | home, spot | ready, booting, planned, busy share, log of queue seconds |
    | service | oldest wait over its SLO, functions' share of answers and dollars, log violations lately and so far |
    | class groups (3) | share of the load against the stated, accuracy points missed, part of the window elapsed |
    | fleet | spot machines lost or refused lately, log of the load in machines, one machine over it |
    | action | the filtered action in force |
    | situation | boot and its spread, price ratios, cold start, service spread, SLOs, shares, accuracy room |

    **Reward**: ``-(dollars - work at VM price) / ideal bill - violation_price x violations - accuracy_price x points``
    (:meth:`Course.score`); both prices are attributes of :attr:`course` that a trainer may change.

    **Episode**: a window of the load. ``reset`` plays the warm-up with the uncorrected planner, so that every step is
    scored. The end of the window *truncates*: the service would go on, so its state has value. Nothing *terminates*:
    no state of a serving system is final.

    **Info**: ``cost_usd`` with its parts ``vm_usd``, ``spot_usd``, ``function_usd``; ``work_usd``, ``requests``,
    ``answers``, ``violations``, ``accuracy_sum``, ``accuracy_missed``, ``time_s``, ``episode_name``; at the end
    ``summary``, the keys of ``simulate --json``.

    Args:
        render_mode: ``rgb_array`` draws load against capacity.
        task: the constructor arguments of :class:`Task` by name: ``trace``, ``scenario``, ``overrides``, ``start_s``
            (default: a random start in the trace's training half), ``length_s``, or ``situations`` with ``first``,
            ``count`` and ``twins``; ``interval_s``, ``every``, ``settings``, ``raw``, ``analytic``
            (correct the formulas, not fixed settings), ``most_machines`` (larger situations are thinned to it).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **task: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"environment: render_mode={render_mode}: must be rgb_array or none")
        self.render_mode, self.task = render_mode, Task(**task)
        self.observation_space, self.action_space = self.task.spaces()
        self.prices = {"violation_price": Course.violation_price, "accuracy_price": Course.accuracy_price}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the next episode behind its warm-up."""
        super().reset(seed=seed)
        episode = self.task.episode(self.np_random)
        self.course = Course(self.task, [episode])
        self.simulator = Simulator(episode.scenario, episode.workload, self.task.interval_s, histogram=True)
        self.log: list[tuple[float, ...]] = []
        self.course.planner.observe(Seen.one(self.simulator.reset(episode.seed)))
        for _ in range(min(self.course.warmup, self.course.intervals - 1)):
            self._advance(self.course.orders(neutral=True))
        return self.course.observations()[0], {"time_s": self.simulator.now_ns / 1e9, "episode_name": episode.name}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold an action for ``every`` intervals."""
        self.course.act(np.asarray(action)[None])
        self.course.violation_price, self.course.accuracy_price = self.prices.values()
        total, info = 0.0, dict[str, Any]()
        for _ in range(self.task.every):
            reward, parts = self._advance(self.course.orders())
            total += float(reward[0])
            for name, value in parts.items():
                info[name] = float(value[0]) + (info.get(name, 0.0) if name != "accuracy_missed" else 0.0)
            if self.simulator.done:
                break
        info |= {"time_s": self.simulator.now_ns / 1e9, "episode_name": self.course.episodes[0].name}
        observation = self.course.observations()[0]
        if self.simulator.done:
            info["summary"] = self.simulator.finish("environment").summary
        return observation, total, False, bool(self.simulator.done), info

    def _advance(self, orders: Orders) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        seen = Seen.one(self.simulator.advance(self.course.flock.decision(orders)))
        reward, parts = self.course.score(seen)
        if self.render_mode:
            flock = self.course.flock
            load = float(((seen.arrivals / seen.interval_s) * flock.unit).sum())
            ready, booting = ((flock.of_role[0] @ x[0]).tolist() for x in (seen.ready, seen.booting))
            self.log.append((seen.time_s, load, ready[0], ready[1], sum(booting), float(parts["violations"][0])))
        return reward, parts

    def render(self) -> np.ndarray | None:
        """Draw load against capacity so far, uint8 [360, 640, 3]."""
        if self.render_mode is None:
            return None
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
        t, load, home, spot, booting, late = np.array(self.log).T if self.log else np.zeros((6, 0))
        minutes = t / 60
        axes.stackplot(minutes, home, spot, booting, colors=("#56B4E9", "#029E73", "#CCCCCC"), step="post",
                       labels=("on-demand", "spot", "booting"))  # fmt: skip
        axes.plot(minutes, load, color="#D55E00", label="load")
        axes.plot(minutes[late > 0], load[late > 0], "x", color="black", markersize=4, label="violations")
        axes.set(xlabel="time, min", ylabel="machines", ylim=(0, None))
        axes.set_title(self.course.episodes[0].name, fontsize=9)
        axes.legend(loc="upper left", fontsize=7, ncols=5, frameon=False)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def seeds_of(seed: int | None, n: int) -> Iterator[int | None]:
    """Return the seed of each of n worlds: consecutive, as Gymnasium's own vector environments do."""
    return iter([None] * n if seed is None else range(seed, seed + n))
