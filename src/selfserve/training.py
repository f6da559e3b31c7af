"""Rollouts of many situations at once, and what is tuned and trained on them.

Training and choosing use situations of the ``train`` and ``validate`` splits alone; candidates meet the same loads,
boots and losses (common random numbers), so that differences of cost are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from selfserve.analytic import MULTIPLIERS, NAMES, Pilot, constants, multipliers
from selfserve.controller import LEAST_S, Corrected, Layers, as_known, forward
from selfserve.environment import RAW_ACTIONS, Course, Episode, Task, counted, most_machines
from selfserve.features import ACTIONS, AT, OBSERVATIONS, Case, Flock, Orders, Seen
from selfserve.policies.base import Range
from selfserve.policies.tuned import Tuned
from selfserve.scenario import Scenario, Storm, load_scenario
from selfserve.situations import Split, distribution, sample
from selfserve.steering import OWN_SHARE
from selfserve.traces import make_trace, split_ranges
from selfserve.vector import Road
from selfserve.workload import load_trace, make_workload, mean_work

TARGET_PCT = 0.1
"""Violations that cost nothing, percent of a situation's requests."""
PENALTY = 0.5
"""Per percentage point over it, and per point of mean accuracy missed: a tenth costs as much as 5% more dollars."""
EVERY = 6
"""Intervals between the decisions of a net that PPO trains, a minute of training situations; its card says so."""
LENGTH_S = 2700
"""Seconds of a training window that are played."""
MOST_MACHINES, PPO_MACHINES = 12.0, 8.0
"""Training situations are scaled down to this size: settings have no scale, and requests are what a rollout costs."""


class Helm(Protocol):
    """What decides for a flock: constants, formulas, formulas with a net."""

    def observe(self, seen: Seen) -> None:
        """Take in the interval that just ended."""

    def orders(self) -> Orders:
        """Return what should hold until the next interval."""


class Constants:
    """Settings that never change.

    Args:
        flock: the worlds' planners.
        numbers: the settings, [N] or [E, N].
    """

    def __init__(self, flock: Flock, numbers: np.ndarray) -> None:
        self.flock = flock
        flock.base = np.broadcast_to(numbers, flock.base.shape).copy()

    def observe(self, seen: Seen) -> None:
        """Take in the interval that just ended."""
        self.flock.observe(seen)

    def orders(self) -> Orders:
        """Return what the constants decide."""
        return self.flock.decide(self.flock.base, self.flock.base_level)


class Counting(Pilot):
    """A net that sets machines itself, as in ``InferenceServingRaw-v0``; routes, and the warm-up, are the formulas'."""

    def __init__(self, flock: Flock, layers: Layers) -> None:
        super().__init__(flock)
        self.layers, self.most, self._next_s = layers, most_machines(flock), float(flock.warmup_s.max())
        self.action = np.zeros((flock.shape[0], len(RAW_ACTIONS)))

    def orders(self) -> Orders:
        """Return what the formulas decide, with the machines of the net."""
        orders, seen = super().orders(), self.flock.seen
        assert seen is not None  # an observation comes first
        if seen.time_s < self.flock.warmup_s.max() - 1e-6:
            return orders
        if seen.time_s >= self._next_s - 1e-6:
            self.action = forward(self.layers, self.flock.observations(self.action))
            self._next_s += EVERY * self.flock.interval_s
        return counted(self.flock, orders, self.action, self.most)


@dataclass(frozen=True)
class Outcome:
    """What E rollouts cost, warm-up left out: arrays [E]."""

    cost: np.ndarray
    """Dollars over the work by single models, one by one, on busy machines."""
    violation_pct: np.ndarray
    missed_pct: np.ndarray
    """Points by which the worst class missed its mean accuracy in the last accuracy window."""
    class_late_pct: np.ndarray
    """[E, GROUPS] late requests of the classes, the tightest SLO first."""

    def objective(self, target_pct: float = TARGET_PCT, penalty: float = PENALTY) -> np.ndarray:
        """Return log cost plus penalties, [E]."""
        over = np.maximum(0.0, self.violation_pct - target_pct)
        return np.log(self.cost) + penalty * (over + self.missed_pct)


def episodes(
    split: Split, indices: Sequence[int], length_s: int | None = LENGTH_S, most_machines: float | None = MOST_MACHINES,
    window: int | None = None, exact: bool = False, twins: bool = False, cascades: bool = True,
) -> list[Episode]:  # fmt: skip
    """Return a window of each situation, cut to ``length_s``, on at most ``most_machines``.

    Args:
        split: train, validate or evaluate.
        indices: situations of it.
        length_s: most seconds of a window (default: an hour has 2,700; None: all).
        most_machines: larger situations are thinned to this size (None: none is).
        window: the same one of all situations (default: they take turns).
        exact: give every situation ``most_machines``.
        twins: use the twins of the real traces.
        cascades: see :class:`~selfserve.steering.Steering`.
    """
    found = []
    for i in indices:
        own = i // 5 if window is None else window
        one = sample(split, i, machines=most_machines if exact else None, at_most=most_machines or inf, twins=twins)
        whole = one.workload(own % one.windows)
        if length_s and whole.seconds > length_s:
            whole = replace(whole, seconds=length_s, counts=whole.counts[:length_s])
        name = f"{one.name}.{own % one.windows}"
        case = Case(one.scenario, whole.history, one.scenario.interval_s, cascades=cascades)
        found.append(Episode(name, one.scenario, whole, i, case))
    return found


def rollout(played: Sequence[Episode], helm: Callable[[Flock], Helm]) -> Outcome:
    """Play episodes of one length side by side and return what they cost."""
    course = Course(Task(situations="train", interval_s=played[0].scenario.interval_s), list(played))
    road, flock = Road(course), course.flock
    mine, seen = helm(flock), road.start()
    mine.observe(seen)
    n, warm = len(played), np.array([e.scenario.warmup_s for e in played])
    spent, work, late, arrived = np.zeros(n), np.zeros(n), *np.zeros((2, n, flock.shape[1]))
    while road.now_ns < road.end_ns:
        seen = road.advance(mine.orders())
        mine.observe(seen)
        scored = seen.time_s > warm + 1e-6
        spent += scored * seen.spend_usd.sum(axis=1)
        work += scored * (seen.arrivals * course._usd).sum(axis=1)
        late += scored[:, None] * seen.late
        arrived += scored[:, None] * seen.arrivals
    missed = np.maximum(0.0, flock.debt()).max(axis=1)
    share = lambda late, of: 100 * late / np.maximum(1, of)  # noqa: E731
    each = share(*(np.einsum("egk,ek->eg", flock.group, x) for x in (late, arrived)))
    return Outcome(spent / np.maximum(work, 1e-12), share(late.sum(axis=1), arrived.sum(axis=1)), missed, each)


def evolve(
    start: np.ndarray, bounds: np.ndarray, helm: Callable[[Flock, np.ndarray], Helm], played: Sequence[Episode],
    generations: int, seed: int, population: int = 12, batch: int = 8, sigma: float = 0.2,
    progress: Callable[[int, float, np.ndarray], None] | None = None, quiet: bool = False,
) -> np.ndarray:  # fmt: skip
    """Return the mean of a CMA-ES (Hansen 2016, by ``cmaes``) after ``generations``.

    Every generation meets ``batch`` of the episodes, the same for all its candidates.

    Args:
        start: [C] where the search starts.
        bounds: [C, 2] least and most.
        helm: makes the helm from a flock and the candidates' constants [E, C].
        played: training episodes.
        generations: number of generations.
        seed: of the search and of the batches.
        population: candidates of a generation.
        batch: episodes of a generation.
        sigma: first step as a share of the bounds' width.
        progress: told generation, mean objective and mean constants.
        quiet: without a progress bar.
    """
    from cmaes import CMA

    rng, low, wide = np.random.default_rng(seed), bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    unit = np.clip((start - low) / wide, 0.02, 0.98)
    search = CMA(
        unit, sigma, bounds=np.tile([0.0, 1.0], (len(start), 1)), seed=seed % 2**32, population_size=population
    )
    order: list[int] = []
    for generation in tqdm(range(generations), desc="CMA-ES", unit="generation", disable=quiet):
        order = order if len(order) >= batch else [*order, *rng.permutation(len(played)).tolist()]
        mine, order = [played[i] for i in order[:batch]], order[batch:]
        points = np.array([search.ask() for _ in range(population)])
        each = np.repeat(low + points * wide, batch, axis=0)

        def steered(flock: Flock, each: np.ndarray = each) -> Any:
            return helm(flock, each)

        got = rollout(mine * population, steered)
        values = got.objective().reshape(population, batch).mean(axis=1)
        search.tell(list(zip(points, values.tolist(), strict=True)))
        if progress is not None:
            progress(generation, float(values.mean()), low + search.mean * wide)
    return np.asarray(low + search.mean * wide)


START = {
    "headroom": 1.0, "safety": 0.0, "fast": 0.2, "slow": 2.0, "weight": 0.7, "hold": 1.0, "drain": 1.0,
    "leave_margin": 1.1, "cold_margin": 0.8, "spot_share": 0.8, "spot_headroom": 1.05, "spot_caution": 2.0,
    "late_binding": 0.2,
}  # fmt: skip
"""Hand-set constants of the planner, from which ``tuned`` was first searched."""


def constant_space() -> dict[str, Range]:
    """Return where the planner's constants are searched, by setting: those of ``tuned``, and two that it keeps."""
    found = {n: r for n, r in Tuned.tunable.items() if isinstance(r, Range) and n in AT}
    return found | {"spot_headroom": Range(0.7, 1.6), "late_binding": Range(0.0, 2.0)}


def constants_helm(flock: Flock, points: np.ndarray) -> Helm:
    """Return :class:`Constants` at points [E, C] of the unit cube over :func:`constant_space`."""
    numbers = flock.base.copy()
    for i, (name, own) in enumerate(constant_space().items()):
        numbers[:, AT[name]] = own.at(points[:, i])
    return Constants(flock, numbers)


def search_constants(start: Mapping[str, float], played: Sequence[Episode], generations: int, seed: int, **more: Any
                     ) -> dict[str, float]:  # fmt: skip
    """Return the planner's constants that :func:`evolve` finds from ``start``, to four digits.

    Args:
        start: by setting; what is missing begins at :data:`START`.
        played: episodes.
        generations: of the search.
        seed: of the search.
        **more: of :func:`evolve`.
    """
    space = constant_space()
    places = np.array([own.place(start.get(n, START[n])) for n, own in space.items()])
    found = evolve(places, np.tile([0.0, 1.0], (len(space), 1)), constants_helm, played, generations, seed, **more)
    return {n: float(f"{own.at(x):.4g}") for (n, own), x in zip(space.items(), found.tolist(), strict=True)}


def standard_windows(each: int = 20, machines: float = MOST_MACHINES) -> list[Episode]:
    """Return windows of scenario ``standard`` over the training parts of the three real traces."""
    scenario, found = load_scenario("standard", {"load_machines": machines}), []
    for j, name in enumerate(("WITS", "berkeley", "twitter")):
        trace = load_trace(name)
        a, b = split_ranges(trace)["train"]
        for i in range(each):
            whole = make_workload(
                trace, scenario, a + (b - a - LENGTH_S) * i // max(1, each - 1), LENGTH_S, 1000 * j + i
            )
            case = Case(scenario, whole.history, scenario.interval_s)
            found.append(Episode(f"{name}.{i}", scenario, whole, 1000 * j + i, case))
    return found


def tune_constants(
    what: str, generations: int, seed: int, situations: int = 60, sigma: float = 0.2
) -> dict[str, float]:
    """Return constants tuned by :func:`evolve`: a section of ``controllers/constants.toml``.

    Args:
        what: ``tuned`` (settings of the planner over training situations), ``tuned_fixed`` (the same for scenario
            ``standard`` alone, from hand-set starts) or ``analytic`` (multipliers of the formulas).
        generations: of the search.
        seed: of the search.
        situations: training situations 0 to this number.
        sigma: first step as a share of the bounds' width.
    """
    played = standard_windows() if what == "tuned_fixed" else episodes("train", range(situations))
    if what == "analytic":
        bounds = np.array([MULTIPLIERS[n][1:] for n in NAMES])
        point = evolve(multipliers(), bounds, Pilot, played, generations, seed, sigma=sigma)
        return {n: float(f"{x:.4g}") for n, x in zip(NAMES, point, strict=True)}
    return search_constants({}, played, generations, seed, sigma=sigma)


REPLAY_MACHINES, EXPERT_MACHINES = 3.0, 5.0
"""Size to which a load is thinned for replay, by the controller (a search is to take about a second) and the expert: a
request-level replay costs by the request."""
REPLAY_SEED = 7_003_001
"""Of all that is random in a replay: no run's own, so that no boot or service time of the run to come is known."""
REPLAY_TARGET_PCT, REPLAY_PENALTY = 0.03, 1.0
"""Stricter than in training: constants that suit the past hours best leave less room for the next ones."""


def _storm(begin_s: float) -> Storm:
    """Return a storm in the middle of what ``distribution.toml`` draws from."""
    given = distribution()["spot"]
    rows = [given[f"storm_{key}"] for key in ("length_s", "interruptions_per_hour", "refused_share")]
    return Storm(begin_s, *(float(np.sqrt(r["low"] * r["high"])) for r in rows))


def past_episode(
    scenario: Scenario, load: np.ndarray, cascades: bool = True, own_share: float = OWN_SHARE,
    machines: float = REPLAY_MACHINES,
) -> Episode:  # fmt: skip
    """Return a load [seconds] as an episode, thinned to so many machines; its first quarter is the history.

    What functions may run at once is thinned with the load: bursts that they cannot take are late in the replay too.
    The share of the classes is the stated one. When spot storms come is not known: the load meets one storm, of the
    middle of the ranges of training situations.
    """
    part = min(1.0, machines / (float(load.mean()) * mean_work(scenario)))
    function = scenario.function
    most, burst = (max(1, round(part * n)) for n in (function.concurrency, function.burst_per_10s))
    start = len(load) // 4
    known = replace(
        scenario, load_machines=None, rate_scale=part, warmup_s=min(scenario.warmup_s, 0.6 * (len(load) - start)),
        function=replace(function, concurrency=most, burst_per_10s=burst),
        spot=replace(scenario.spot, storms=(_storm((len(load) - start) / 2),)),
    )  # fmt: skip
    counts = np.diff(np.rint(np.cumsum(load)), prepend=0.0).astype(np.int64)  # a load below one a second stays one
    workload = make_workload(make_trace("replay", counts), known, start, len(load) - start)
    case = Case(known, workload.history, known.interval_s, cascades=cascades, own_share=own_share)
    return Episode("replay", known, workload, REPLAY_SEED, case)


def replay(
    scenario: Any, load: np.ndarray, tried: np.ndarray, layers: Any, shares: Sequence[float], cascades: bool = True
) -> np.ndarray:
    """Return the objective [N] of multipliers [N, C] and shares for batches [N]; see ``controller.Replay``."""
    past = {share: past_episode(scenario, load, cascades, share) for share in set(shares)}
    played = [past[share] for share in shares]
    return rollout(played, lambda flock: Corrected(flock, layers, tried)).objective(REPLAY_TARGET_PCT, REPLAY_PENALTY)


def tuned_on_past(case: Case, generations: int = 8, seconds: int = 7200) -> dict[str, float]:
    """Return the planner's constants that a search on the last ``seconds`` of a history finds, from those of ``tuned``.

    That is an expert who retunes a situation on its own history before he serves it, with the service times that he
    believes. On a history that is too short for the controller to retune (``controller.LEAST_S``) he keeps ``tuned``.
    """
    known, load = constants("tuned"), np.asarray(case.history, float)[-seconds:]
    if len(load) < LEAST_S or not np.any(load):
        return {n: known[n] for n in constant_space()}
    played = [past_episode(as_known(case, 1.0), load, case.state.cascades, case.state.own_share, EXPERT_MACHINES)]
    found = search_constants(known, played, generations, 0, batch=1, sigma=0.08, quiet=True)
    both, space = ({n: known[n] for n in found}, found), constant_space()
    points = np.array([[own.place(one[n]) for n, own in space.items()] for one in both])
    costs = rollout(played * 2, lambda flock: constants_helm(flock, points)).objective()
    return both[int(np.argmin(costs))]  # a short search may end at a worse place


WATCHED = ("mean_12", "deviation", "forecast_error", "change", "busy_home", "function_spend", "late_so_far",
           "spot_trouble", "fleet", "machine", "function_price", "boot")  # fmt: skip
MOVED = ("headroom", "safety", "fast", "hold", "leave_margin", "spot_share", "spot_headroom")
"""What a trained net looks at and what it corrects: few enough for an evolution strategy on few rollouts."""


def net_of(points: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the layers, weight [.., A, F] and bias [.., A], of points [.., MOVED x (WATCHED + 1)]."""
    table = points.reshape(*points.shape[:-1], len(MOVED), len(WATCHED) + 1)
    weight = np.zeros((*points.shape[:-1], len(ACTIONS), len(OBSERVATIONS)), np.float32)
    bias = np.zeros(weight.shape[:-1], np.float32)
    rows = [ACTIONS.index(name) for name in MOVED]
    for i, name in enumerate(WATCHED):
        weight[..., rows, OBSERVATIONS.index(name)] = table[..., i]
    bias[..., rows] = table[..., -1]
    return [(weight, bias)]


def train(
    generations: int, seed: int, situations: int = 60,
    progress: Callable[[int, float, np.ndarray], None] | None = None, twins: bool = False,
    machines: float = MOST_MACHINES,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, Any]]:  # fmt: skip
    """Train a net of one layer that corrects the formulas, by :func:`evolve`; return it and its card.

    Args:
        generations: of the search, 12 candidates on 8 situations each.
        seed: of the search.
        situations: training situations 0 to this number.
        progress: as of :func:`evolve`.
        twins: use the twins of the real traces.
        machines: larger situations are thinned to this size.
    """

    class Many(Corrected):
        """A net of its own for each world."""

        def wanted(self, seen: np.ndarray) -> np.ndarray:
            ((weight, bias),) = self.layers
            return np.asarray(np.tanh(np.einsum("eaf,ef->ea", weight, seen) + bias))

    played = episodes("train", range(situations), most_machines=machines, twins=twins)
    size = len(MOVED) * (len(WATCHED) + 1)
    bounds = np.tile([-1.0, 1.0], (size, 1))
    make = lambda flock, points: Many(flock, net_of(points))  # noqa: E731
    point = evolve(np.zeros(size), bounds, make, played, generations, seed, sigma=0.06, progress=progress)
    return net_of(point), card(
        situations,
        seed,
        twins,
        method="CMA-ES on a layer of tanh units",
        generations=generations,
        watched=WATCHED,
        moved=MOVED,
    )


def card(situations: int, seed: int, twins: bool = False, ppo: bool = False, **more: Any) -> dict[str, Any]:
    """Return what a controller's file says about itself: data, seeds, limits, and ``more``.

    The search plays the beginning of one window of each situation; PPO all of any.
    """
    ranges: dict[str, list[tuple[int, int]]] = {}
    for i in range(situations):
        one = sample("train", i, twins=twins)
        for start, length in map(one.window, range(one.windows) if ppo else [i // 5 % one.windows]):
            ranges.setdefault(one.source, []).append((start, start + (length if ppo else min(length, LENGTH_S))))
    limits = f"CPU pools; three classes; at most {PPO_MACHINES if ppo else MOST_MACHINES:g} machines in training"
    data = f"training situations 0 to {situations - 1}"
    pace = {"every": EVERY} if ppo else {}
    return {"data": data, "training_ranges": ranges, "seed": seed, "limits": limits, **pace, **more}
