"""The words that simulator, policies, environment and live workers share.

Indices everywhere: ``P`` pools, ``M`` models and ``K`` request classes, each in the order of the
:class:`~selfserve.scenario.Scenario`. Times are seconds here and integer nanoseconds inside the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from selfserve.scenario import Scenario

BOOT_AGE_BINS = 32
"""Columns of ``Observation.booting``: machines not yet ready, by age in bins of 10 s (the last is open)."""


SHARES = 4096
"""Parts in which the simulator splits a class's traffic among its routes (rule 3.5 of the physics page)."""


class Admit(IntEnum):
    """When a step takes a request; the last step of a route always does."""

    ALWAYS = 0
    IF_IDLE = 1
    """A slot is free and nothing would be displaced (for functions: a container can start at once)."""
    IF_FITS = 2
    """The predicted finish is not after the deadline (rule 6 of the physics page)."""


class Then(IntEnum):
    """What follows the answer of a stage (rule 10 of the physics page)."""

    DONE = 0
    IF_UNSURE = 1
    """Cascade: an answer that the model is unsure of goes on to the next stage."""
    ALSO = 2
    """Ensemble: the next stage answers as well, and the majority counts."""


@dataclass(frozen=True, slots=True)
class Step:
    """One place a request may go: a pool and the model that answers there.

    A request still waiting ``leave_slack_s`` before its deadline moves on to the stage's next step (``-inf``: it
    stays). If less than ``late_slack_s`` is left when it is dispatched, ``late_model`` answers instead of ``model``.
    A step with ``then`` ends a stage: of all requests, ``unsure_share`` would be passed on by an IF_UNSURE stage.
    """

    pool: int
    model: int
    admit: Admit = Admit.ALWAYS
    leave_slack_s: float = -inf
    late_model: int | None = None
    late_slack_s: float = 0.0
    then: Then = Then.DONE
    unsure_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """Steps tried in order; a class's traffic is split among its routes in proportion to ``weight``."""

    steps: tuple[Step, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy wants from now until its next decision.

    Attributes:
        machines: target of each pool, length P (for function pools: provisioned, paid containers).
        routes: the routes of each class, length K.
        batch_max: largest batch of each pool, length P (default 1 everywhere).
        batch_wait_s: longest wait of a batch that is not full, length P, seconds (default 0 everywhere).
        reason: one line for the decision log.
    """

    machines: tuple[int, ...]
    routes: tuple[tuple[Route, ...], ...]
    batch_max: tuple[int, ...] = ()
    batch_wait_s: tuple[float, ...] = ()
    reason: str = ""


@dataclass(slots=True)
class Observation:
    """What happened in the interval that just ended, and what stands at its end.

    Counts and integrals cover the last ``interval_s`` seconds; ``ready``, ``booting``, ``queued`` and ``head_age_s``
    are the state at ``time_s``. The first observation of a run (``time_s == 0``) is all zeros.
    """

    time_s: float
    interval_s: float
    arrivals: np.ndarray
    """[H, K] arrivals per class in each of the H whole seconds of the interval (H = ceil(interval_s))."""
    ready: np.ndarray
    """[P] machines able to take work (function pools: provisioned containers)."""
    booting: np.ndarray
    """[P, BOOT_AGE_BINS] machines decided but not ready, by age since the decision in bins of 10 s."""
    busy_slot_s: np.ndarray
    """[P] slot-seconds of service (function pools: container-seconds, initialisation included)."""
    queued: np.ndarray
    """[P, K] requests waiting now."""
    queued_request_s: np.ndarray
    """[P, K] integral of the waiting requests over the interval, request-seconds."""
    head_age_s: np.ndarray
    """[P, K] age since arrival of the oldest waiting request, seconds (0 where none waits)."""
    served: np.ndarray
    """[P, M, K] requests answered in the interval, by pool, model and class."""
    late: np.ndarray
    """[K] of those, the ones answered after their deadline."""
    accuracy_sum: np.ndarray
    """[K] sum of the answering models' accuracy over the answers, in percent."""
    cold_starts: np.ndarray
    """[P] function containers created in the interval."""
    lost: np.ndarray
    """[P] spot machines whose interruption notice came in the interval."""
    refused: np.ndarray
    """[P] spot launches refused in the interval."""
    batch_mean: np.ndarray
    """[P] mean size of the batches started in the interval (0 where none started)."""
    spend_usd: np.ndarray
    """[P] dollars that accrued in the interval."""


@runtime_checkable
class Policy(Protocol):
    """Anything that maps an observation to a decision every ``interval_s`` seconds."""

    interval_s: float

    def reset(self, scenario: Scenario, history: np.ndarray) -> None:
        """Start a run. ``history`` holds the requests per second, shape [seconds], before the window starts."""

    def decide(self, observation: Observation) -> Decision:
        """Return what should hold until the next call."""


class Backend(Protocol):
    """Something that carries decisions out: the simulator, Ray workers, a cloud account."""

    def reset(self, seed: int) -> Observation:
        """Start anew and return the observation at time 0."""

    def advance(self, decision: Decision) -> Observation:
        """Apply a decision, let one interval pass and return what happened in it."""
