"""Calls of functions that have gone cold, before they are needed.

A queue that outgrows the machines leaves for functions in bursts, and each request that finds no warm container starts
one: hundreds, billed for the whole cold start and late, where a few would do. So when nothing has used a function for
as long as its containers stay warm, a few requests go straight to it: enough to start as many containers as the whole
load would keep busy. While those come up, none of them can take another one's request. They stay warm for the next
``keep_alive_s`` at no charge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from selfserve.protocol import SHARES, Step
from selfserve.scenario import Scenario

WARMED_FROM_S = 3.0
"""Functions are called where a cold start takes at least this long. On validation situations that saves 2% of the cost
there; from 1.5 s on it saves no more, and from 0 it costs more."""
LEAST_CONTAINERS, MOST_CALLS = 3.0, 0.2
"""Fewest containers of a class that are started so, and the largest part of its requests that start them. Set by hand:
on validation situations 8 containers, and half or twice those kept busy, were within 0.2% of on-demand cost."""


class Calls(NamedTuple):
    """What goes straight to a function, class by class."""

    steps: tuple[tuple[Step, ...], ...]
    """None where a class makes no calls."""
    pool: np.ndarray
    model: np.ndarray
    service_s: np.ndarray
    """[K] of a call, 0 where there are none."""

    @classmethod
    def of(cls, scenario: Scenario, steps: Sequence[tuple[Step, ...]]) -> Calls:
        """Return the calls with these steps."""
        first = [c[0] if c else Step(0, 0) for c in steps]
        pool, model = np.array([[s.pool, s.model] for s in first]).T
        service_s = [scenario.pools[s.pool].service_s(s.model) if c else 0.0 for s, c in zip(first, steps, strict=True)]
        return cls(tuple(steps), pool, model, np.array(service_s))


def warm_until(before: np.ndarray, used: np.ndarray, seen: Any, init_s: Any, keep_alive_s: Any) -> np.ndarray:
    """Return until when functions stay warm, seconds, after an interval in which some were used.

    Those that were cold when it began were called in it, and answer when they have come up.

    Args:
        before: what this was when the interval began, [K] or [E, K].
        used: whether the function that a class leaves for answered anything in it, [K] or [E, K].
        seen: the interval (an ``Observation`` or that of many worlds).
        init_s: a cold start, seconds, a number or [E].
        keep_alive_s: how long a container stays warm, as ``init_s``.
    """
    begun = seen.time_s - seen.interval_s
    init_s, keep_alive_s = np.expand_dims(init_s, -1), np.expand_dims(keep_alive_s, -1)
    until = np.where((begun > 0) & (before <= begun), seen.time_s + init_s, before)
    return np.where(used, np.maximum(until, seen.time_s + keep_alive_s), until)


def called(rate: np.ndarray, service_s: np.ndarray, init_s: Any, seen: Any, until: np.ndarray) -> np.ndarray:
    """Return the part of each class's requests, [K] or [E, K], that goes straight to a function gone cold.

    Args:
        rate: requests/s, [K] or [E, K].
        service_s: of one of them on the function; 0 where none should go.
        init_s: a cold start, seconds, a number or [E].
        seen: the interval that just ended.
        until: what :func:`warm_until` says.
    """
    within_s = np.expand_dims(np.minimum(init_s, seen.interval_s), -1)
    wanted = np.maximum(rate * service_s, LEAST_CONTAINERS) / np.maximum(rate * within_s, 1e-9)
    due = (rate > 0) & (service_s > 0) & (until <= seen.time_s) & (seen.time_s > 0)
    return np.where(due, np.clip(wanted, 1 / SHARES, MOST_CALLS), 0.0)
