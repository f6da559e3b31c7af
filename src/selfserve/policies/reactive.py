"""Scale on observed demand, VMs only: the baseline that the founding paper normalises to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfserve.policies.base import PlannerPolicy


@dataclass(kw_only=True, eq=False)
class Reactive(PlannerPolicy):
    """Machines for the load of the last interval; requests queue without limit until these are up.

    WoSC'20 section 2.3 ("reactive", figures 4 and 5), after "autoscale" in Spock (CLOUD'19, section V). Interpreted:
    demand is the interval's arrivals times the believed work per request over all slots of a machine, plus what waits,
    to be worked off while a new machine comes up; a busy machine is not idle and stays. Counting only arrivals, as
    Spock does, is ``drain_s=inf``, its reading every second ``interval_s=1``, its X-autoscale ``headroom=1.5``.
    """

    name: ClassVar[str] = "reactive"
