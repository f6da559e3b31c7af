"""Equal tuning: one search with one budget for every system, on training windows only.

The first evaluation is the authors' parameters. Up to a third of the budget goes to what is chosen from a list
(``Choice``, and the models and the VM pool where a system cannot decide them), one list after the other, each value
tried with the best found so far. CMA-ES (``cmaes``, the reference implementation by Nomura and Shibata, 2024) has the
rest for the numbers, in the unit cube around the authors'. All see the same windows and the same random numbers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from selfserve.errors import InputError
from selfserve.evaluation import run
from selfserve.evaluation.run import Case, Row, Runs, Window, scenario_of, trace_of
from selfserve.policies import make_policy, parameter_names
from selfserve.policies.base import Choice, Range
from selfserve.scenario import Scenario
from selfserve.traces import split_ranges

TARGET_PCT = 0.1
"""Violations that a system may have at no penalty, percent of the requests."""
PENALTY = 0.5
"""Per percentage point over the target: a tenth of a point costs as much as 5% more dollars."""
LENGTH_S, LEAST_SCORED_S = 1800, 1200
"""Length of a training window, warm-up included; seconds of it that are scored at least, however long that is."""
IMPOSSIBLE = 1e3
"""Objective of parameters that a policy or scenario refuses."""
HOPELESS = 1.0
"""What is worse than the best by this on the first window is not run on the others: it ranks where it stands."""
_LEAST_USD = 1e-6


def objective(rows: Iterable[Row]) -> float:
    """Return the mean over runs of log cost plus the penalty for violations (SLOs and accuracies) over the target."""
    values = []
    for row in rows:
        if row["reason"]:
            return IMPOSSIBLE
        violated = row["slo_violation_pct"] + row["accuracy_violation_pct"]
        values.append(log(max(row["cost_usd"], _LEAST_USD)) + PENALTY * max(0.0, violated - TARGET_PCT))
    return float(np.mean(values))


def training_windows(traces: Sequence[str], length_s: int = LENGTH_S) -> list[Window]:
    """Return a window in the middle of each trace's training part; none of traces that are never trained on."""
    parts = {name: split_ranges(trace_of(name))["train"] for name in traces}
    usable = [name for name, (first, last) in parts.items() if last > first]
    return [window for name in usable for window in run.spread_windows(name, "train", 1, length_s)]


@dataclass(frozen=True)
class Space:
    """What a tuner may set, by parameter: ranges of numbers, other values than the authors' where there is a list.

    ``authors`` are the authors' numbers in the unit cube.
    """

    numbers: Mapping[str, Range]
    lists: Mapping[str, tuple[object, ...]]
    authors: np.ndarray

    def decode(self, point: np.ndarray) -> dict[str, object]:
        """Return the numbers of a point of the unit cube, to four digits."""
        values: dict[str, object] = {}
        for (name, r), u in zip(self.numbers.items(), point.tolist(), strict=True):
            x = r.at(u)
            values[name] = round(x) if r.integer else float(f"{x:.4g}")
        return values


def space_of(policy: str, scenario: Scenario) -> Space:
    """Return a policy's search space in a scenario: its ``tunable``, and models and VM pool where it takes them."""
    made = make_policy(policy)
    tunable = getattr(type(made), "tunable", {})
    numbers = {name: x for name, x in tunable.items() if isinstance(x, Range)}
    lists = {name: x.values for name, x in tunable.items() if isinstance(x, Choice)}
    machines = tuple(p.name for p in scenario.pools if not p.is_function)
    for name, values in (("pool", machines if len(machines) > 1 else ()), ("models", ("cheapest", "most_accurate"))):
        if name in parameter_names(policy):
            lists.setdefault(name, values)
    others = {name: tuple(v for v in values if v != getattr(made, name, None)) for name, values in lists.items()}
    others = {name: values for name, values in others.items() if values}
    return Space(numbers, others, np.array([_unit(r, getattr(made, name, None)) for name, r in numbers.items()]))


def _unit(r: Range, value: object) -> float:
    if not isinstance(value, int | float):
        return 0.5
    return float(min(max(r.place(value), 0.02), 0.98))


Found = tuple[float, dict[str, object]]
"""Objective and parameters."""
Search = Generator[list[dict[str, object]], list[float], None]


def search(space: Space, budget: int, seed: int) -> Search:
    """Yield sets of parameters to try and take in their objectives, ``budget`` of them in all; lowest wins."""
    from cmaes import CMA

    best: Found = ((yield [{}])[0], {})
    left, lists = budget - 1, budget // 3
    for name, values in space.lists.items():
        tries = [best[1] | {name: value} for value in values][: min(lists, left)]
        if tries:
            lists, left = lists - len(tries), left - len(tries)
            best = min([best, *zip((yield tries), tries, strict=True)], key=lambda found: found[0])
    if not space.numbers or left < 1:
        return
    chosen = best[1]
    optimiser = CMA(space.authors, 0.25, bounds=np.tile([0.0, 1.0], (len(space.authors), 1)), seed=seed % 2**32)
    while left > 0:
        points = [optimiser.ask() for _ in range(optimiser.population_size)]
        tries = [chosen | space.decode(point) for point in points[:left]]
        got = yield tries
        left -= len(tries)
        if len(tries) == len(points):
            optimiser.tell(list(zip(points, got, strict=True)))


def tune(
    policies: Sequence[str],
    scenarios: Sequence[tuple[str, str]],
    windows: Sequence[Window],
    runs: Runs,
    folder: Path,
    budget: int = 40,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Tune every policy in every scenario (name and overrides as JSON); all searches go on side by side.

    Args:
        policies: names or files; those with nothing to tune are passed over.
        scenarios: where each is tuned.
        windows: what on, see :func:`training_windows`.
        runs: runs and keeps what is tried.
        folder: where the records are kept as JSON, named by a hash of everything that goes in.
        budget: evaluations (of all windows) of each search.
        seed: of the runs and of the search.

    Returns:
        A record per policy and scenario: ``policy, scenario, overrides, parameters`` (what differs from the authors'),
        ``objective, authors_objective, evaluations, budget, windows``.

    Raises:
        InputError: no training window.
    """
    if not windows:
        raise InputError("tuning: none of the traces has a training part to tune on (traces describe NAME)")
    done: list[dict[str, Any]] = []
    live: list[_Tuning] = []
    for policy in policies:
        for name, overrides in scenarios:
            scenario = scenario_of(name, overrides)
            space = Space({}, {}, np.zeros(0)) if policy == "clairvoyant" else space_of(policy, scenario)
            if not (space.numbers or space.lists):
                continue
            what = [[trace_of(w[0]).digest, *w[1:]] for w in windows]
            key = run.digest_of(policy, run.policy_digest(policy), scenario.digest, what, budget, seed)
            path = folder / f"{policy.replace('/', '_').replace(':', '_')}-{name}-{key[:12]}.json"
            if (kept := run.read_json(path)) is not None:
                done.append(kept | {"scenario": name, "overrides": overrides})  # as they are written here
            else:
                live.append(_Tuning(policy, name, overrides, path, search(space, budget, seed)))
    while live:
        text = f"tuning, {max(len(mine.tried) for mine in live)} of {budget} tried"
        for part in (windows[:1], windows[1:]):
            cases = [mine.cases(part, seed) for mine in live]
            rows = iter(runs([c for each in cases for c in each], text))
            for mine, each in zip(live, cases, strict=True):
                mine.take([next(rows) for _ in each], len(part))
        for mine in list(live):
            if mine.ended(len(windows)):
                done.append(mine.record() | {"budget": budget, "windows": [list(w) for w in windows]})
                run.write_json(mine.path, done[-1])
                live.remove(mine)
    return sorted(done, key=lambda r: (policies.index(r["policy"]), scenarios.index((r["scenario"], r["overrides"]))))


class _Tuning:
    """One search under way."""

    def __init__(self, policy: str, scenario: str, overrides: str, path: Path, search: Search) -> None:
        self.policy, self.scenario, self.overrides, self.path = policy, scenario, overrides, path
        self.search, self.tried = search, list[Found]()
        self.first = IMPOSSIBLE  # of the best so far, on the first window
        self._ask(next(search))

    def _ask(self, tries: list[dict[str, object]]) -> None:
        self.asked: list[tuple[dict[str, object], list[Row]]] = [(parameters, []) for parameters in tries]

    def _going(self) -> list[tuple[dict[str, object], list[Row]]]:
        return [one for one in self.asked if not one[1] or objective(one[1]) < self.first + HOPELESS]

    def cases(self, windows: Sequence[Window], seed: int) -> list[Case]:
        """Return what is to be run next: each set of parameters that is not hopeless on each of the windows."""
        where = self.scenario, self.overrides
        tries = [run.as_json(parameters) for parameters, _ in self._going()]
        return [Case(self.policy, *w, where[0], p, where[1], seed, oracle=False) for p in tries for w in windows]

    def take(self, rows: list[Row], windows: int) -> None:
        """Take in the runs asked for."""
        for i, (_, mine) in enumerate(self._going()):
            mine += rows[i * windows : (i + 1) * windows]

    def ended(self, windows: int) -> bool:
        """Tell the search how its tries did; return whether it has ended."""
        values = []
        for parameters, rows in self.asked:
            value, best = objective(rows), min([found[0] for found in self.tried], default=IMPOSSIBLE)
            if len(rows) < windows:
                value += best - self.first
            elif value < best:
                self.first = objective(rows[:1])
            values.append(value)
            self.tried.append((value, parameters))
        try:
            self._ask(self.search.send(values))
        except StopIteration:
            return True
        return False

    def record(self) -> dict[str, Any]:
        """Return which parameters won, the earliest of equals."""
        value, best = min(self.tried, key=lambda found: found[0])
        where = {"policy": self.policy, "scenario": self.scenario, "overrides": self.overrides, "parameters": best}
        return where | {"objective": value, "authors_objective": self.tried[0][0], "evaluations": len(self.tried)}
