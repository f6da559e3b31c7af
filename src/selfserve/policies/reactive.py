"""Scale on observed demand, VMs only: the baseline that the founding paper normalises to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfserve.policies.base import PlannerPolicy


@dataclass(kw_only=True, eq=False)
class Reactive(PlannerPolicy):
    """Machines for the load of the last interval; requests queue without limit until these are up.

    WoSC'20 section 2.3 ("reactive", figures 4 and 5), after "autoscale" in Spock (CLOUD'19, section V). Interpreted:
    demand is the interval's arrivals times the believed work per request, over all slots of a machine; waiting requests
    launch nothing, but a busy machine is not idle and stays. Spock's reading is ``interval_s=1``, its over-provisioned
    X-autoscale ``headroom=1.5``.
    """

    name: ClassVar[str] = "reactive"
