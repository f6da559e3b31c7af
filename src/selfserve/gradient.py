"""A net trained by gradient through the cost of recorded load.

Rollouts of the formulas record what a net would see and what the formulas set. What machines, and functions for what is
over, would have cost under other settings is then arithmetic on the record, where loads are a fluid and rounding up is
half a machine more. Worlds with spot machines, whose losses a load does not show, are left out, and those without load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from selfserve.controller import Corrected, Layers
from selfserve.environment import Episode
from selfserve.errors import require
from selfserve.features import ACTIONS, AT, CORRECTIONS, FILTER, OBSERVATIONS, STATICS, Flock, Orders
from selfserve.steering import WINDOWS
from selfserve.training import MOST_MACHINES, card, episodes, rollout

MOVED = ("headroom", "safety", "fast", "slow", "weight", "hold")
"""What the net corrects: what decides how many machines there are."""
HIDDEN, BATCH, RATE, DECAY, MOVES = 32, 48, 3e-3, 0.01, 0.005
"""Hidden units, worlds of a step, learning rate and weight decay of AdamW, and what a squared correction costs."""
HELD = 120
"""Intervals that a machine is held at most here, 20 minutes of training situations; worlds whose formulas hold machines
longer are left out too."""
ON_FUNCTIONS, BURST = 0.65, 1.45
"""Functions answer this part of the load over the machines ready (the rest waits, or goes in longer batches), and all
of what is over so many times the machines. Set by hand, after training situations 0 to 119: there functions answered
0.55 to 0.65 of what was over up to 1.4 times the machines, 0.85 of it at 1.9 times."""
_PLACES = [ACTIONS.index(name) for name in MOVED]
_OWN = torch.tensor([not name.startswith("action_") for name in OBSERVATIONS])


@dataclass(frozen=True)
class Record:
    """What the formulas saw and set in E worlds at T decisions; loads are in machines of their work."""

    observations: Tensor
    """[T, E, F]"""
    averages: Tensor
    """[T, E, J] of the load, by :data:`~selfserve.steering.WINDOWS`."""
    change: Tensor
    """[T, E] standard deviation of the load over boot times."""
    base: Tensor
    """[T, E, N] the formulas' settings."""
    load: Tensor
    """[T, E] of the interval before the decision, by measured service times."""
    scored: Tensor
    """[T, E] 1 from the end of the warm-up on."""
    pays: Tensor
    """[E] see :attr:`selfserve.steering.Steering.pays`."""
    boot: Tensor
    """[E] intervals from deciding on a machine to its first answer."""
    pending: Tensor
    """[E] intervals of these that are not billed."""
    price: Tensor
    """[E] of work on functions over that on machines."""

    def of(self, worlds: np.ndarray) -> Record:
        """Return the record of some worlds."""
        each = {f.name: getattr(self, f.name) for f in fields(self)}
        return Record(**{name: x[worlds] if x.ndim == 1 else x[:, worlds] for name, x in each.items()})


class _Recording(Corrected):
    def __init__(self, flock: Flock) -> None:
        super().__init__(flock)
        self.rows: list[tuple[np.ndarray, ...]] = []

    def orders(self) -> Orders:
        flock, seen = self.flock, self.flock.seen
        assert seen is not None  # an observation comes first
        averages = (flock.averages * flock.unit[:, None]).sum(axis=2)
        load = self.measured() * (seen.arrivals * flock.unit).sum(axis=1) / max(seen.interval_s, 1e-9)
        scored = (seen.time_s > flock.warmup_s + 1e-6).astype(float)
        observations = flock.observations(self.action)
        self.rows.append((observations, averages, flock.change(), flock.base.copy(), load, scored))
        return super().orders()


def record(played: Sequence[Episode]) -> Record:
    """Play episodes by the formulas and return what they saw and set, of those without spot machines."""
    helms: list[_Recording] = []

    def formulas(flock: Flock) -> _Recording:
        helms.append(_Recording(flock))
        return helms[0]

    calm = [e for e in played if all(pool.market != "spot" for pool in e.scenario.pools)]
    require(bool(calm), "training by gradient: all situations have spot machines; right is more situations")
    rollout(calm, formulas)
    helm, flock = helms[0], helms[0].flock
    columns = [np.stack(column) for column in zip(*helm.rows, strict=True)]
    price = np.exp(flock.statics[:, STATICS.index("function_price")])
    pending_s = np.array([c.scenario.vm.pending_s for c in flock.cases])
    worlds = (helm.pays, flock.boot_s / flock.interval_s, pending_s / flock.interval_s, price)
    known = Record(*(torch.as_tensor(x, dtype=torch.float64) for x in (*columns, *worlds)))
    loaded = (known.scored * known.load)[1:].sum(dim=0) > 0
    fits = (known.base[..., AT["hold"]] * known.boot).amax(dim=0) <= HELD
    return known.of(np.flatnonzero((loaded & fits).numpy()))


def setting(known: Record, action: Tensor, name: str) -> Tensor:
    """Return a setting [T, E] under corrections [T, E, A], as :meth:`Flock.corrected` has it."""
    _, kind, by, low, high = CORRECTIONS[ACTIONS.index(name)]
    own, moved = known.base[..., AT[name]], action[..., ACTIONS.index(name)]
    return torch.clamp(own * by**moved if kind == "times" else own + by * moved, low, high)


def machines(known: Record, action: Tensor) -> Tensor:
    """Return the machines [T, E] that the corrected settings plan, as :meth:`Flock.decide` without queues."""
    get = lambda name: setting(known, action, name)  # noqa: E731
    place = lambda x: torch.clamp(torch.log2(x / WINDOWS[0]), 0, len(WINDOWS) - 1)[..., None]  # noqa: E731
    near = lambda x: torch.relu(1 - (place(x) - torch.arange(len(WINDOWS))).abs())  # noqa: E731
    mix = near(get("slow")) + get("weight")[..., None] * (near(get("fast")) - near(get("slow")))
    past = torch.cat([known.averages[:1].expand(HELD, -1, -1), known.averages]).unfold(0, HELD + 1, 1)
    loads, age = torch.relu((mix[..., None, :] @ past)[..., 0, :]), torch.arange(HELD, -1, -1)
    hold = (get("hold") * known.boot)[..., None]
    kept = torch.where(age > 0, torch.sigmoid(hold + 0.5 - age), 1.0)  # soft, so that it has a gradient
    needed = get("headroom") * (loads * kept).amax(dim=2) + (known.pays + get("safety")) * known.change
    return torch.relu(needed) + 0.5


def spent(known: Record, action: Tensor) -> Tensor:
    """Return what machines and functions cost, over the load on busy machines, [E].

    A machine is there a boot time after it was planned, if it was planned ever since; billed once it is not pending.
    """
    planned = machines(known, action)
    ready, billed = (_ever_since(planned, ago)[:-1] for ago in (torch.ceil(known.boot - 1e-12), known.pending.round()))
    load, scored = known.load[1:], known.scored[1:]  # what comes after a decision
    over = ON_FUNCTIONS * torch.relu(load - ready) + (1 - ON_FUNCTIONS) * torch.relu(load - BURST * ready)
    return (scored * (billed + known.price * over)).sum(dim=0) / (scored * load).sum(dim=0)


def _ever_since(planned: Tensor, ago: Tensor) -> Tensor:
    """Return the machines [T, E] that were planned at each decision since ``ago`` [E] intervals."""
    most = int(ago.max())
    past = torch.cat([planned[:1].expand(most, -1), planned]).unfold(0, most + 1, 1)
    return torch.where(torch.arange(most, -1, -1) <= ago[:, None], past, torch.inf).amin(dim=2)


def train_gradient(
    steps: int, seed: int, situations: int, progress: Callable[[dict[str, float]], None] | None = None,
    twins: bool = False, at_most: float = MOST_MACHINES,
) -> tuple[Layers, dict[str, Any]]:  # fmt: skip
    """Train a net of two layers on the record of training situations; return it and its card.

    Args:
        steps: of AdamW, each on so many of the worlds.
        seed: of weights and worlds.
        situations: training situations 0 to this number.
        progress: told each step's mean log of cost over that of the formulas.
        twins: use the twins of the real traces.
        at_most: larger situations are thinned to so many machines.
    """
    known = record(episodes("train", range(situations), most_machines=at_most, twins=twins))
    torch.manual_seed(seed)
    rng, worlds = np.random.default_rng(seed), len(known.boot)
    # what never changes in the record teaches nothing, and the action in force would follow itself
    seen = _OWN & (known.observations.amax(dim=(0, 1)) > known.observations.amin(dim=(0, 1)))
    first = torch.nn.Linear(len(OBSERVATIONS), HIDDEN, dtype=torch.float64)
    last = torch.nn.Linear(HIDDEN, len(MOVED), dtype=torch.float64)
    for x in (first.bias, last.weight, last.bias):
        torch.nn.init.zeros_(x)
    usual = spent(known, torch.zeros(*known.load.shape, len(ACTIONS), dtype=torch.float64))
    # the filter through which corrections go, as a matrix over the decisions
    age = torch.arange(len(known.load))[:, None] - torch.arange(len(known.load))
    filtered = torch.tril(FILTER * (1 - FILTER) ** age.clamp(min=0).double())
    weights = [*first.parameters(), *last.parameters()]
    search = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(search, steps)
    for step in tqdm(range(steps), desc="gradient", unit="step"):
        mine = rng.permutation(worlds)[:BATCH]
        part = known.of(mine)
        wanted = torch.tanh(last(torch.tanh(first(part.observations * seen))))
        moved = torch.einsum("ts,sea->tea", filtered, wanted)
        action = torch.zeros(*moved.shape[:2], len(ACTIONS), dtype=torch.float64)
        action = action.index_copy(2, torch.tensor(_PLACES), moved)
        change = torch.log(spent(part, action) / usual[mine]).mean()
        search.zero_grad()
        (change + MOVES * (moved**2).mean()).backward()
        search.step()
        slower.step()
        if progress is not None:
            progress({"seed": seed, "step": step, "change": float(change.detach())})
    method = f"gradient through the cost of recorded load, of {worlds} of these situations (none with spot machines)"
    return _layers(first, last, seen), card(situations, seed, twins, method=method, steps=steps, moved=MOVED)


def _layers(first: torch.nn.Linear, last: torch.nn.Linear, own: Tensor) -> Layers:
    """Return the net as the controller has it: a correction that is not moved has no weights."""
    weight, bias = np.zeros((len(ACTIONS), HIDDEN), np.float32), np.zeros(len(ACTIONS), np.float32)
    weight[_PLACES], bias[_PLACES] = last.weight.detach().numpy(), last.bias.detach().numpy()
    seen = (first.weight.detach() * own).numpy().astype(np.float32)
    return [(seen, first.bias.detach().numpy().astype(np.float32)), (weight, bias)]
