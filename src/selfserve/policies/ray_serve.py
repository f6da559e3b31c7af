"""Ray Serve's autoscaler, with VMs as its nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from selfserve.policies.base import Choice, Range
from selfserve.policies.fleet import FleetPolicy
from selfserve.protocol import Observation


@dataclass(kw_only=True, eq=False)
class RayServe(FleetPolicy):
    """Replicas for the ongoing requests, two each, once 30 s (up) or 600 s (down) of readings agree.

    ray-project/ray, ``python/ray/serve/autoscaling_policy.py`` and the defaults of its guide (2.32 and later): ongoing
    requests, queued ones included, averaged over the last 30 s, over the target of two a replica; the step is
    multiplied by the scaling factors (1); a change happens after its delay of unbroken agreement in direction, and then
    to the replicas wanted at that moment. Interpreted: a replica is a slot; readings come every 10 s, as the metrics do
    (the loop itself runs every 0.1 s and would see the same figures); the maximum, 100 replicas under
    ``num_replicas="auto"``, is relative here (``ceiling``), since loads differ; a fleet begins with the replicas
    that the history keeps busy, else with one.

    Args:
        ongoing: requests that a replica is meant to hold.
        look_back_s: seconds that readings are averaged over.
        up_delay_s: seconds of agreement before replicas are added.
        down_delay_s: seconds of agreement before they are removed.
        up_factor: share of the missing replicas that is added.
        down_factor: share of those too many that is removed.
    """

    name: ClassVar[str] = "ray_serve"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        "ongoing": Range(0.3, 5.0, log=True),
        "look_back_s": Range(10.0, 300.0, log=True),
        "up_delay_s": Range(0.0, 120.0),
        "down_delay_s": Range(0.0, 1200.0),
        "up_factor": Range(0.3, 2.0),
        "down_factor": Range(0.2, 1.0),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("ongoing", (4.0, 3.0, 2.0, 1.4, 1.0, 0.7, 0.5))
    limits: ClassVar = {
        "above 0": "ongoing look_back_s up_factor down_factor",
        "0 or more, or inf": "up_delay_s down_delay_s",
    }
    interval_s: float = 10.0
    ceiling: float = 2.5
    ongoing: float = 2.0
    look_back_s: float = 30.0
    up_delay_s: float = 30.0
    down_delay_s: float = 600.0
    up_factor: float = 1.0
    down_factor: float = 1.0

    def start(self, pool: int) -> None:
        """Begin with the replicas for the history's load, where there is one."""
        self._flying = {p: deque[float](maxlen=max(1, round(self.look_back_s / self.interval_s))) for p in self.homes}
        self._agreed = dict.fromkeys(self.homes, 0)
        self._replicas = {p: max(self.minimum, ceil(self.expected(p) * self.slots(p) - 1e-9)) for p in self.homes}
        self.targets[pool] = ceil(self._replicas[pool] / self.slots(pool))

    def machines(self, pool: int, observation: Observation) -> int:
        """Return the machines for the replicas wanted after this reading."""
        if observation.time_s <= 0:
            return self.targets[pool]
        waiting = float(observation.queued_request_s[pool].sum())
        served = float(observation.busy_slot_s[pool]) * max(1.0, float(observation.batch_mean[pool]))
        self._flying[pool].append((served + waiting) / observation.interval_s)
        now, running = self._replicas[pool], max(1, int(observation.ready[pool]) * self.slots(pool))
        step = sum(self._flying[pool]) / len(self._flying[pool]) / self.ongoing - running
        wanted = max(self.minimum, ceil(running + (self.up_factor if step > 0 else self.down_factor) * step - 1e-9))
        sign = (wanted > now) - (wanted < now)
        agreed = self._agreed[pool] = self._agreed[pool] + sign if sign * self._agreed[pool] > 0 else sign
        delay_s = self.up_delay_s if sign > 0 else self.down_delay_s
        if sign and abs(agreed) > delay_s / self.interval_s + 1e-9:
            self._agreed[pool], self._replicas[pool] = 0, wanted
        return ceil(self._replicas[pool] / self.slots(pool))
