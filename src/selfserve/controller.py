"""The self-managed controller: formulas, a net's corrections, batches and constants retuned by replaying its own past.

A net is a small multi-layer perceptron (tanh, tanh at the end) from :data:`selfserve.features.OBSERVATIONS` to
corrections in [-1, 1], kept as a safetensors file whose metadata hold its card. Replay is handed in as a callable, so
that this module knows no simulator. Where an observation is negative or not finite the last decision stands (before
the first one: that of the formulas), and its reason says so; where one is out of a net's range the formulas decide
alone, and nothing is scaled down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from selfserve.analytic import MULTIPLIERS, NAMES, Pilot, multipliers
from selfserve.errors import InputError
from selfserve.features import ACTIONS, FARTHEST, FILTER, OBSERVATIONS, Case, Flock, Orders, Seen
from selfserve.planner import functions_alone
from selfserve.protocol import Decision, Observation
from selfserve.scenario import Scenario

T = TypeVar("T")
Layers = Sequence[tuple[np.ndarray, np.ndarray]]
"""Weights [out, in] and biases [out] of each layer, float32."""
Replay = Callable[[Scenario, np.ndarray, np.ndarray, Layers, Sequence[float]], np.ndarray]
"""From scenario as it is known, load [seconds], candidates' multipliers [N, C], net and candidates' ``own_share`` [N]
to their objectives [N]."""
SIZES = (len(OBSERVATIONS), len(ACTIONS))
"""Lengths of what a net sees and says."""
LAYOUT = {"observations": list(OBSERVATIONS), "actions": list(ACTIONS)}
"""Names of what a net sees and says, in order, as its card has them."""
OUT_OF_RANGE = "formulas alone: an observation is out of range"
MARGIN = 0.01
"""Self-tuned constants must beat the present ones by this much of log cost (differences below 1% are noise)."""
CANDIDATES, RECOMBINED = 6, 2
"""What a second of CPU allows. On 44 on-demand validation situations, windows 1 and 2, they save 0.3% (0.65) and 0.4%
(0.5) of the cost of ``analytic``; 8 and 3, on 5 machines, 0.8% (0.45) and 0.5% (0.4), in 1.1 to 1.7 s a search."""
SHARES = (0.45, 0.75)
"""Shares of the SLO for batches that are tried before a run; they too must beat the usual one by the margin. On 43
validation situations with spot machines that saves 2.0% (1.1), in window 2; 0.9 was left out after window 0, where one
situation cost 78% more with it."""
EVERY_S = 3600.0
ADOPT_S = 300.0
"""A search may take this long; its outcome holds from then on."""
HOURS_KEPT_S = 7200
LEAST_S = 1500
"""Shorter pasts are not replayed: ten minutes of warm-up leave nothing to compare."""
SPOT_KEPT = "; constants kept, the past does not show what insurance against the next loss of spot machines is worth"
"""On validation situations with spot machines, constants retuned on two past hours cost 2% more than those kept."""
SEARCHED = {
    "headroom": 0.06, "safety": 0.4, "fast": 0.15, "trust": 0.2, "slow": 0.8, "weight": 0.2, "hold": 1.2, "drain": 0.6,
    "leave": 0.08, "cold": 0.2, "late_binding": 0.3,
}  # fmt: skip
"""Multipliers that self-tuning searches, with the standard deviation of its candidates."""


def forward(layers: Layers, observations: np.ndarray) -> np.ndarray:
    """Return corrections [E, len(ACTIONS)] for observations [E, len(OBSERVATIONS)]."""
    x = observations
    for weight, bias in layers:
        x = np.tanh(x @ weight.T + bias)
    return x


def save(path: Path, layers: Layers, card: Mapping[str, Any]) -> None:
    """Write a net and its card (JSON text under ``card`` in the metadata), with the names of what it sees and says."""
    tensors = {f"{what}.{i}": np.ascontiguousarray(x, np.float32) for i, pair in enumerate(layers)
               for what, x in zip(("weight", "bias"), pair, strict=True)}  # fmt: skip
    named = LAYOUT if (layers[0][0].shape[1], layers[-1][0].shape[0]) == SIZES else {}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, {"card": json.dumps({**card, **named}, sort_keys=True)})
    part.replace(path)


def load(path: str | Path, sizes: tuple[int, int] = SIZES) -> tuple[Layers, dict[str, Any]]:
    """Return a net and its card; ``sizes`` are the lengths of what it sees and says.

    Raises:
        InputError: the file is not there, or is no controller of these observations and actions.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {})["card"])
            n = sum(key.startswith("weight.") for key in file.keys())
            layers = [(file.get_tensor(f"weight.{i}"), file.get_tensor(f"bias.{i}")) for i in range(n)]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"controller {path}: is no controller file (safetensors with a card): {error}") from error
    shape = (layers[0][0].shape[1], layers[-1][0].shape[0]) if layers else (0, 0)
    if shape != sizes:
        wanted = f"{sizes[0]} observations and {sizes[1]} actions"
        raise InputError(f"controller {path}: has {shape[0]} observations and {shape[1]} actions; right is {wanted}")
    if sizes == SIZES and {key: card.get(key) for key in LAYOUT} != LAYOUT:
        raise InputError(f"controller {path}: was trained on other observations or actions; right is to train it anew")
    return layers, card


class Corrected(Pilot):
    """Formulas corrected by a net, for a flock of any size.

    A net that decides once in ``every`` intervals does so after the warm-up, as PPO trains it.
    """

    def __init__(self, flock: Flock, layers: Layers = (), values: np.ndarray | None = None, every: int = 1) -> None:
        super().__init__(flock, values)
        self._every, self._acts_s = every, float(flock.warmup_s.max()) if every > 1 else 0.0
        self.layers, self.action = layers, np.zeros((flock.shape[0], len(ACTIONS)))
        self.notes = [""] * flock.shape[0]
        """Of each world, what there is to say about the last interval."""

    def observe(self, seen: Seen) -> None:
        """Take in the interval that just ended."""
        if seen.time_s > 0:
            self.notes = [""] * len(self.notes)
        super().observe(seen)

    def orders(self) -> Orders:
        """Return what the corrected formulas decide."""
        if not self.layers:
            return super().orders()
        seen = self.flock.observations(self.action)
        wanted = self.wanted(seen)
        strange = (np.abs(seen) >= FARTHEST).any(axis=1)
        if strange.any():
            self.notes = [f"{n}; {OUT_OF_RANGE}" if s else n for n, s in zip(self.notes, strange, strict=True)]
        assert self.flock.seen is not None  # an observation comes first
        if self.flock.seen.time_s >= self._acts_s - 1e-6:
            self.action = self.action + FILTER * (np.where(strange[:, None], 0.0, wanted) - self.action)
            self._acts_s += self._every * self.flock.interval_s
        before = self.flock.targets
        orders = self.flock.decide(*self.flock.corrected(np.where(strange[:, None], 0.0, self.action)))
        kept = np.where(strange[:, None], np.maximum(orders.machines, before), orders.machines)
        self.flock.targets = orders.machines = kept
        return orders

    def wanted(self, seen: np.ndarray) -> np.ndarray:
        """Return the net's corrections [E, A] for observations [E, F]."""
        return forward(self.layers, seen)


class SelfTuned(Corrected):
    """Corrected formulas whose multipliers are retuned, world by world, by replaying each world's last hours.

    Where spot machines carry the load they are not (see :data:`SPOT_KEPT`). In replays a net decides every interval.

    A search begins every ``EVERY_S`` in a thread of its own and its outcome holds from ``ADOPT_S`` later on. A
    simulated run waits for it then, so that it is the same however long a search takes; where ``waits`` is false, as in
    a live run, the outcome holds from the first decision after its end.
    """

    def __init__(
        self, flock: Flock, replay: Replay, layers: Layers = (), values: np.ndarray | None = None, waits: bool = True,
        every: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(flock, layers, values, every)
        self.waits = waits
        self._replay, self._thread = replay, ThreadPoolExecutor(max_workers=1, thread_name_prefix="self-tuning")
        self._past = [[np.asarray(c.history, float)[-HOURS_KEPT_S:]] for c in flock.cases]
        self._begun = np.zeros(len(self._past))  # requests of the second that is not over
        self._search: Future[list[tuple[np.ndarray, str]]] | None = None
        self._next_s = EVERY_S
        self.notes = self._adopt(self._retuned(self.values, self._known()))

    def observe(self, seen: Seen) -> None:
        """Take in the interval that just ended; begin a search or adopt its outcome when that is due."""
        self._begun += seen.arrivals.sum(axis=1)
        if seconds := round(seen.time_s) - round(seen.time_s - seen.interval_s):
            for past, requests in zip(self._past, self._begun.tolist(), strict=True):
                past.append(np.full(seconds, requests / seconds))
            self._begun[:] = 0.0
        notes = None
        if self._search is None and seen.time_s >= self._next_s:
            self._search = self._thread.submit(self._retuned, self.values, self._known())
        if (begun := self._search) and seen.time_s >= self._next_s + ADOPT_S and (self.waits or begun.done()):
            notes, self._search = self._adopt(begun.result()), None
            self._next_s += EVERY_S
        super().observe(seen)
        self.notes = notes or self.notes

    def _adopt(self, found: list[tuple[np.ndarray, str]]) -> list[str]:
        self.values = np.stack([values for values, _ in found])
        return [note for _, note in found]

    def _known(self) -> list[tuple[Scenario, np.ndarray, float] | None]:
        """Return what each world's replay is of: scenario, last hours, ``own_share``; None where it is not retuned."""
        for past in self._past:
            past[:] = [np.concatenate(past)[-HOURS_KEPT_S:]]
        worlds = zip(self.flock.cases, self._past, self.measured(), strict=True)
        return [
            None if c.has_spot or c.scenario.pools[c.homes[0]].market == "spot"
            else (as_known(c, factor), past[0], c.state.own_share) for c, past, factor in worlds
        ]  # fmt: skip

    def _retuned(
        self, values: np.ndarray, known: Sequence[tuple[Scenario, np.ndarray, float] | None]
    ) -> list[tuple[np.ndarray, str]]:
        """Return each world's multipliers, and the reason, after replaying its last hours under other ones."""
        return [
            (now, SPOT_KEPT) if its is None else unharmed((now, ""), retuned, *its, now, self._replay, self.layers)
            for its, now in zip(known, values, strict=True)
        ]


def unharmed(kept: tuple[T, str], choose: Callable[..., tuple[T, str]], *of: Any) -> tuple[T, str]:
    """Return what a search chooses, and why, or what is kept where it fails: serving does not end with it."""
    try:
        return choose(*of)
    except Exception as error:  # whatever it is, it goes into the reason
        return kept[0], f"{kept[1]}; nothing retuned, a replay failed: {type(error).__name__}: {error}"


def as_known(case: Case, factor: float) -> Scenario:
    """Return a scenario as who serves it knows it: services take what he believes, times what he measured of that.

    He measures machines; functions take as much longer than believed (``believed_factor`` is one number).
    """
    pools = (replace(p, service_ns=np.rint(factor * p.believed_ns).astype(np.int64)) for p in case.scenario.pools)
    return replace(case.scenario, pools=tuple(pools), interval_s=case.interval_s)


def retuned(
    scenario: Scenario, load: np.ndarray, own_share: float, now: np.ndarray, replay: Replay, layers: Layers
) -> tuple[np.ndarray, str]:
    """Return the multipliers that a replay of ``load`` finds better than the present ones by a margin, and why.

    What is put to the test is the mean of the best candidates (the recombination of evolution strategies): the best one
    alone is mostly the luckiest. They are found on the older half of the load, and tested on the newer.
    """
    if len(load) < LEAST_S or not load.any():
        return now, ""
    older, newer = np.array_split(load, 2)
    if len(newer) < LEAST_S or not (older.any() and newer.any()):
        older = newer = load
    tried = search(now, seed=len(load))
    order = np.argsort(replay(scenario, older, tried, layers, [own_share] * len(tried)), kind="stable")
    mean = tried[order[:RECOMBINED]].mean(axis=0)
    before, after = replay(scenario, newer, np.stack([now, mean]), layers, [own_share] * 2)
    gain = float(before - after)
    if gain > MARGIN:
        return mean, f"; retuned, replay {gain:.1%} cheaper"
    return now, f"; constants kept, replay finds {gain:.1%}"


def in_own_batches(case: Case, replay: Replay) -> tuple[Case, str]:
    """Return a case with the batches that replays of its history, by the formulas alone, find better, and why.

    Longer ones are less work and leave less time to wait; a fitted model of both beside the replays saved little.
    """
    load, tried = np.asarray(case.history, float)[-HOURS_KEPT_S:], (case.state.own_share, *SHARES)
    if len(load) < LEAST_S or not load.any():
        return case, ""
    found = replay(as_known(case, 1.0), load, np.tile(multipliers(), (len(tried), 1)), (), tried)
    best, gain = tried[int(np.argmin(found))], float(found[0] - found.min())
    if not gain > MARGIN:
        return case, ""
    made = case.scenario, case.history, case.interval_s, case.settings
    return Case(*made, cascades=case.state.cascades, own_share=best), f"; batches retuned, replay {gain:.1%} cheaper"


def search(now: np.ndarray, seed: int, candidates: int = CANDIDATES) -> np.ndarray:
    """Return multipliers to try [candidates, C]: the present ones first, then normal draws around them."""
    low, high = np.array([MULTIPLIERS[n][1:] for n in NAMES]).T
    step = np.array([SEARCHED.get(n, 0.0) for n in NAMES])
    draws = np.random.default_rng(seed).standard_normal((candidates, len(NAMES)))
    draws[0] = 0.0
    tried = now + step * draws
    return np.where(step > 0, np.clip(tried, low, high), now)


@dataclass(kw_only=True, eq=False)
class Controller:
    """Serves one run.

    Args:
        interval_s: seconds between decisions (default: the scenario's).
        cascades: see :class:`~selfserve.steering.Steering`.
        waits: for a search that is not done when it is due; see :class:`SelfTuned`.
    """

    name: ClassVar[str] = "controller"
    interval_s: float | None = None
    cascades: bool = True
    waits: bool = True
    replay: Replay | None = field(init=False, default=None, repr=False)
    layers: Layers = field(init=False, default=(), repr=False)
    card: dict[str, Any] = field(init=False, default_factory=dict, repr=False)

    def load(self, file: str | Path | None) -> None:
        """Take the net of a file."""
        if file is not None:
            self.layers, self.card = load(file)

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Start a run; batches and constants are retuned on the history where a replay was handed in."""
        self._own = getattr(self, "_own", self.interval_s)
        self.interval_s = self._own or scenario.interval_s
        self._only = functions_alone(scenario, cascades=self.cascades)
        if self._only:  # nothing to plan
            return
        case, note = Case(scenario, history, self.interval_s, cascades=self.cascades), ""
        every = self.card.get("every", 1)
        if self.replay is None:
            self.pilot: Corrected = Corrected(Flock([case]), self.layers, every=every)
        else:
            case, note = unharmed((case, ""), in_own_batches, case, self.replay)
            self.pilot = SelfTuned(Flock([case]), self.replay, self.layers, None, self.waits, every)
        self.pilot.notes = [own + note for own in self.pilot.notes]
        self._last: Decision | None = None

    def decide(self, observation: Observation) -> Decision:
        """Take in the last interval and decide."""
        if self._only:
            return self._only
        wrong = unusable(observation)
        if wrong:
            return self._doubt(wrong)
        self.pilot.observe(Seen.one(observation))
        decision = self._last = self.pilot.flock.decision(self.pilot.orders())
        return replace(decision, reason=f"{sum(decision.machines)} machines{self.pilot.notes[0]}")

    def _doubt(self, wrong: str) -> Decision:
        """Return the decision in force: with what is not known nothing is scaled down."""
        if self._last is not None:
            return replace(self._last, reason=f"nothing scaled down, the last decision stands: {wrong}")
        flock = self.pilot.flock
        self.pilot.observe(nothing_seen(flock))
        return replace(flock.decision(Pilot.orders(self.pilot)), reason=f"formulas alone: {wrong}")


def nothing_seen(flock: Flock) -> Seen:
    """Return what is seen at time 0: nothing."""
    n, k, p, m = 1, flock.shape[1], flock.pools, len(flock.cases[0].scenario.models)
    zero = np.zeros
    return Seen(
        time_s=0.0, interval_s=flock.interval_s, arrivals=zero((n, k)), ready=zero((n, p)), booting=zero((n, p)),
        busy_slot_s=zero((n, p)), queued=zero((n, p, k)), head_age_s=zero((n, p, k)), served=zero((n, p, m, k)),
        late=zero((n, k)), accuracy_sum=zero((n, k)), lost=zero((n, p)), refused=zero((n, p)), spend_usd=zero((n, p)),
        batch_mean=zero((n, p)),
    )  # fmt: skip


def unusable(observation: Observation) -> str:
    """Return why an observation cannot be used: negative or not finite; nothing where it can."""
    names = ("arrivals", "ready", "booting", "busy_slot_s", "queued", "head_age_s", "served", "late")
    for name in (*names, "accuracy_sum", "lost", "refused", "spend_usd", "batch_mean", "time_s", "interval_s"):
        values = np.asarray(getattr(observation, name))
        if not np.isfinite(values).all():
            return f"{name} is not finite"
        if (values < -1e-6).any():
            return f"{name} is below 0"
    if observation.time_s > 0 and observation.interval_s == 0:
        return "interval_s is 0"
    return ""
