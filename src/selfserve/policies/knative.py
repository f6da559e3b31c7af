"""Knative's pod autoscaler, with VMs as its nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import ClassVar

from selfserve.policies.base import Choice, Range
from selfserve.policies.fleet import FleetPolicy
from selfserve.protocol import Observation


@dataclass(kw_only=True, eq=False)
class Knative(FleetPolicy):
    """Pods for the mean concurrency of a minute; for that of six seconds while it panics.

    knative/serving, ``pkg/autoscaler/scaling/autoscaler.go`` (function ``Scale``) and the defaults of
    ``config/core/configmaps/autoscaler.yaml``: every 2 s the requests in flight, averaged over the stable and the panic
    window, divided by the target per pod, are kept between half and 1,000 times the ready pods. If the panic window
    asks for twice the ready pods or more, it panics: it follows the larger window, never down, until a stable window
    has passed since the last such reading. Zero pods come after a grace period of 30 s. Interpreted: a pod is a slot,
    since a model answers one batch at a time, so its concurrency is 1 rather than the default 100 of web servers; 70%
    of it is aimed at, as by default. Requests in flight are those served and waiting. The nodes are as many VMs as the
    pods fill. One pod stays, since the first request would wait for a VM; ``minimum=0`` is Knative's default. A VM
    takes some 50 times as long as a pod and no request is turned away, so that what waits meanwhile would ask for any
    number of nodes: ``ceiling`` stands for the size of the cluster.

    Args:
        concurrency: requests that a pod is meant to hold.
        utilization: share of these that is aimed at.
        window_s: stable window, seconds.
        panic_share: panic window over the stable one.
        panic_threshold: pods asked for over pods ready at which it panics.
        up_rate: largest growth over ready pods.
        down_rate: largest shrinkage.
        grace_s: seconds without demand before the last pod goes.
    """

    name: ClassVar[str] = "knative"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        "concurrency": Range(0.5, 8.0, log=True),
        "window_s": Range(10.0, 600.0, log=True),
        "panic_share": Range(0.02, 1.0, log=True),
        "panic_threshold": Range(1.1, 20.0, log=True),
        "up_rate": Range(1.2, 1000.0, log=True),
        "down_rate": Range(1.05, 10.0, log=True),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("utilization", (1.5, 1.2, 1.0, 0.85, 0.7, 0.5, 0.35))
    limits: ClassVar = {
        "above 0": "concurrency utilization window_s panic_share",
        "above 1": "panic_threshold up_rate down_rate",
        "0 or more, or inf": "grace_s",
    }
    interval_s: float = 2.0
    ceiling: float = 2.5
    concurrency: float = 1.0
    utilization: float = 0.7
    window_s: float = 60.0
    panic_share: float = 0.1
    panic_threshold: float = 2.0
    up_rate: float = 1000.0
    down_rate: float = 2.0
    grace_s: float = 30.0

    def start(self, pool: int) -> None:
        """Begin with the pods for the history's load, where there is one."""
        self._flying = {p: deque[float](maxlen=max(1, round(self.window_s / self.interval_s))) for p in self.homes}
        self._panic_s = {p: -inf for p in self.homes}
        self._panic_pods = dict.fromkeys(self.homes, 0)
        self._needed_s = dict.fromkeys(self.homes, -inf)
        self.targets[pool] = max(self.least(pool), ceil(self.expected(pool) - 1e-9))

    def machines(self, pool: int, observation: Observation) -> int:
        """Return the machines for the pods that this tick wants."""
        if observation.time_s <= 0:
            return self.targets[pool]
        waiting = float(observation.queued_request_s[pool].sum())
        served = float(observation.busy_slot_s[pool]) * max(1.0, float(observation.batch_mean[pool]))
        flying = self._flying[pool]
        flying.append((served + waiting) / observation.interval_s)
        last = list(flying)[-max(1, round(self.panic_share * self.window_s / self.interval_s)) :]
        ready = max(1, int(observation.ready[pool]) * self.slots(pool))
        least, most = floor(ready / self.down_rate), ceil(ready * self.up_rate)
        target = self.concurrency * self.utilization
        stable, panic = (ceil(sum(w) / len(w) / target - 1e-9) for w in (flying, last))
        pods = min(max(stable, least), most)
        if panic / ready >= self.panic_threshold:
            self._panic_s[pool] = observation.time_s
        elif observation.time_s > self._panic_s[pool] + self.window_s:
            self._panic_s[pool], self._panic_pods[pool] = -inf, 0
        if self._panic_s[pool] > -inf:
            pods = self._panic_pods[pool] = max(pods, min(max(panic, least), most), self._panic_pods[pool])
        if pods > 0:
            self._needed_s[pool] = observation.time_s
        elif observation.time_s < self._needed_s[pool] + self.grace_s:
            pods = 1
        return ceil(max(pods, self.minimum) / self.slots(pool))
