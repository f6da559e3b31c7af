"""Target tracking, the default autoscaler of EC2."""

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
class TargetTracking(FleetPolicy):
    """Keeps the mean CPU utilisation of the fleet near a target, out quickly and in slowly.

    EC2 Auto Scaling user guide, "Target tracking scaling policies" (as of 2023): a metric a minute (detailed
    monitoring); an alarm above the target scales out in proportion to metric over target, machines still warming up not
    counting as capacity; an alarm below it scales in, but not while machines warm up, and counts are rounded so that
    the fleet errs on the large side. The guide says "more gradually" of scaling in and no more: here it waits for the
    readings and then goes to what the metric calls for at once. The service makes the alarms itself: three readings in
    a row above the target, fifteen below 90% of it (reported by users, not documented). Target 50% is the guide's
    example, it has no default. Interpreted: utilisation is the share of slot-seconds spent serving; a group begins with
    the machines that the load it first sees keeps busy at the target, as its owner would set it.

    Args:
        target: utilisation aimed at, in (0, 1].
        out_readings: readings in a row above the target that scale out.
        in_readings: readings in a row below ``in_below`` of it that scale in.
        in_below: share of the target that counts as below.
    """

    name: ClassVar[str] = "target_tracking"
    tunable: ClassVar[Mapping[str, Range | Choice]] = {
        "target": Range(0.2, 0.95),
        "out_readings": Range(1, 5, integer=True),
        "in_readings": Range(1, 30, integer=True),
        "in_below": Range(0.6, 1.0),
    }
    knob: ClassVar[tuple[str, tuple[float, ...]]] = ("target", (0.95, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3))
    limits: ClassVar = {"in (0, 1]": "target in_below", "1 or more": "out_readings in_readings"}
    target: float = 0.5
    out_readings: int = 3
    in_readings: int = 15
    in_below: float = 0.9

    def least(self, pool: int) -> int:
        """Return the least machines."""
        return self.minimum

    def start(self, pool: int) -> None:
        """Begin with the machines for the history's load, where there is one."""
        self._readings = {p: deque[float](maxlen=max(self.out_readings, self.in_readings)) for p in self.homes}
        self.targets[pool] = max(self.minimum, ceil(self.expected(pool) / self.target - 1e-9))
        self._begun = bool(self.planner.monitor.last.any())

    def machines(self, pool: int, observation: Observation) -> int:
        """Return the machines after this minute's reading."""
        now, ready = self.targets[pool], int(observation.ready[pool])
        if not self._begun and observation.time_s > 0:
            self._begun = pool == self.homes[-1]
            return max(self.minimum, ceil(self.expected(pool) / self.target - 1e-9))
        if ready == 0:
            return now
        readings = self._readings[pool]
        readings.append(float(observation.busy_slot_s[pool]) / (observation.interval_s * ready * self.slots(pool)))
        last = list(readings)
        wanted = ceil(ready * last[-1] / self.target - 1e-9)
        if len(last) >= self.out_readings and min(last[-self.out_readings :]) > self.target:
            return max(now, wanted)
        low = len(last) >= self.in_readings and max(last[-self.in_readings :]) < self.in_below * self.target
        if low and not observation.booting[pool].any():
            return max(self.minimum, min(now, wanted))
        return now
