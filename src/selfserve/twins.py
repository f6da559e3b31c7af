"""Statistical twins of the published traces: a fitted recipe and a seed, not the data."""

from __future__ import annotations

import numpy as np

from selfserve.traces import Trace, make_trace


def twin_names() -> list[str]:
    """Return the twins that load by name."""
    return ["wiki_like"]


def load_twin(name: str) -> Trace:
    """Generate a twin from its recipe."""
    day = 86400
    t = np.arange(day) / day
    rate = 498.0 * (1 + 0.45 * np.sin(2 * np.pi * (t - 0.35)))
    return make_trace(name, np.random.Generator(np.random.Philox(0)).poisson(rate))
