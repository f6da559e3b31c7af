"""The planner whose constants are computed: from prices, boot times, spread and what is measured as it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from selfserve.controller import Controller


@dataclass(kw_only=True, eq=False)
class Analytic(Controller):
    """:class:`selfserve.analytic.Pilot` alone: no net, no self-tuning.

    Args:
        cascades: two models may answer a class one after the other, where that is less work.
    """

    name: ClassVar[str] = "analytic"


@dataclass(kw_only=True, eq=False)
class Learned(Controller):
    """The controller: formulas, a net's corrections, batches and constants retuned by replaying the run's own past.

    Args:
        file: a safetensors file of a net (default: the formulas without one).
        self_tuning: whether it retunes itself.
        cascades: as for ``analytic``; the shipped nets were trained with them.
    """

    name: ClassVar[str] = "controller"
    file: str | None = None
    self_tuning: bool = True

    def __post_init__(self) -> None:
        """Load the net and hand the replay over."""
        from selfserve.training import replay

        if self.self_tuning:
            self.replay = partial(replay, cascades=self.cascades)
        self.load(self.file)
