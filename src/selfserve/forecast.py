"""Forecasters of the load: what a policy expects for the time that a new machine takes to come up.

All have one interface: :meth:`Forecaster.fit` takes the requests per second before a run, :meth:`Forecaster.predict`
those of the last minutes and says what the next ``horizon_s`` seconds bring. Load is read in bins of ten seconds, as by
IPA's predictor (its artifact, ``optimizer/adapter.py``). :func:`error_table` compares them, as Cocktail's
table 4 does (NSDI'22).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd

from selfserve.errors import InputError

BIN_S = 10
"""Seconds of a bin."""
Of = Literal["mean", "max", "last"]
"""What is predicted of the bins up to the horizon: their mean, the highest, or the last, requests/s."""


def in_bins(counts: np.ndarray) -> np.ndarray:
    """Return the mean requests/s of whole bins counted back from the end of ``counts`` [seconds].

    Less than a bin counts as one; nothing at all as one of no load.
    """
    counts = np.asarray(counts, dtype=float)
    n = len(counts) // BIN_S
    if n == 0:
        return np.array([counts.mean() if len(counts) else 0.0])
    return counts[len(counts) - n * BIN_S :].reshape(n, BIN_S).mean(axis=1)


def bins_until(horizon_s: float) -> int:
    """Return the whole bins that reach ``horizon_s``, at least one."""
    return max(1, ceil(horizon_s / BIN_S - 1e-9))


def _statistic(path: np.ndarray, of: Of) -> float:
    return float(path[-1] if of == "last" else path.mean() if of == "mean" else path.max())


class Forecaster:
    """What the forecasters share; by itself the last value: every coming bin is as the last one.

    Attributes:
        window_s: seconds of recent load that a prediction reads.
        note: what a run should know of the fit (empty: nothing unusual).
    """

    name: ClassVar[str] = "last_value"
    window_s: int = BIN_S
    note: str = ""

    def fit(self, counts: np.ndarray) -> None:
        """Learn from ``counts``, the requests per second before the run, shape [seconds]."""

    def predict(self, recent: np.ndarray, horizon_s: float, of: Of = "mean") -> float:
        """Return requests/s over the next ``horizon_s`` seconds, given those of the last seconds, shape [seconds]."""
        path = self.path(in_bins(np.asarray(recent)[-self.window_s :]), bins_until(horizon_s))
        return max(0.0, _statistic(path, of))

    def path(self, bins: np.ndarray, n: int) -> np.ndarray:
        """Return the next ``n`` bins after ``bins``, requests/s."""
        return np.full(n, bins[-1])


class MovingAverage(Forecaster):
    """Every coming bin is as the mean of the last ``window_s`` seconds (100 s, the window of Fifer's predictors)."""

    name = "moving_average"

    def __init__(self, window_s: int = 100) -> None:
        self.window_s = window_s

    def path(self, bins: np.ndarray, n: int) -> np.ndarray:
        """Return the next ``n`` bins."""
        return np.full(n, bins.mean())


class LinearTrend(Forecaster):
    """A least-squares line through the last 500 s (Spock, CLOUD'19, section V)."""

    name = "linear_trend"

    def __init__(self, window_s: int = 500) -> None:
        self.window_s = window_s

    def path(self, bins: np.ndarray, n: int) -> np.ndarray:
        """Return the next ``n`` bins."""
        t = np.arange(len(bins)) - (len(bins) - 1) / 2
        slope = float(t @ bins) / float(t @ t) if len(bins) > 1 else 0.0
        return bins.mean() + slope * (t[-1] + np.arange(1, n + 1))


class Holt(Forecaster):
    """Damped exponential smoothing (Holt), its three constants fitted to the history by statsmodels.

    A prediction repeats the recursion over the last ten minutes with these constants; without an hour of history they
    are 0.5, 0.1 and 0.9.
    """

    name = "holt"
    window_s = 600
    smoothing: tuple[float, float, float] = (0.5, 0.1, 0.9)
    """Share of the newest bin in the level, of the newest slope in the trend, and what a step keeps of the trend."""

    def fit(self, counts: np.ndarray) -> None:
        """Fit the constants to at most the last day."""
        if len(counts) < 3600:
            self.note = "constants not fitted: less than an hour of history"
            return
        from statsmodels.tsa.holtwinters import Holt as Model  # imported where needed: it takes a second

        fitted = Model(in_bins(counts[-86_400:]), damped_trend=True, initialization_method="estimated").fit()
        level, trend, damping = (fitted.params[k] for k in ("smoothing_level", "smoothing_trend", "damping_trend"))
        self.smoothing = float(level), float(trend), float(damping)
        self.note = ""

    def path(self, bins: np.ndarray, n: int) -> np.ndarray:
        """Return the next ``n`` bins."""
        alpha, beta, phi = self.smoothing
        level, trend = float(bins[0]), 0.0
        for x in bins[1:].tolist():
            before = level
            level = alpha * x + (1 - alpha) * (level + phi * trend)
            trend = beta * (level - before) + (1 - beta) * phi * trend
        return level + trend * np.cumsum(phi ** np.arange(1, n + 1))


_TRAINED: dict[tuple[Any, ...], Any] = {}
"""Networks of this process by their history and settings, so that a run over the same window trains once."""


class Lstm(Forecaster):
    """A long short-term memory network trained on the history, as MArk, Cocktail and IPA predict load.

    One layer of ``hidden`` units reads the last ``window_s`` seconds in bins relative to their mean; a dense layer
    gives, for every number of bins ahead, the mean, the maximum and the last one relative to that mean. Trained by Adam
    on the squared error, the last fifth of the history choosing when to stop; the seed fixes everything. IPA's artifact
    reads twelve bins of ten seconds; window, units and updates are our choice. With too little history it is the linear
    trend instead, and :attr:`note` says so.

    Args:
        longest_s: longest horizon that it learns.
        seed: of the initial weights and the order of the samples.
    """

    name = "lstm"
    least_s: ClassVar[int] = 7200
    """History below which nothing is trained."""

    def __init__(
        self, longest_s: float = 300.0, *, window_s: int = 300, hidden: int = 24, updates: int = 3000, seed: int = 0
    ):
        self.window_s, self.hidden, self.updates, self.seed = window_s, hidden, updates, seed
        self.ahead = bins_until(longest_s)
        self.note = "not fitted"
        self._trend = LinearTrend()
        self._network: Any = None

    def fit(self, counts: np.ndarray) -> None:
        """Train on at most the last two days, in well under a minute on one core."""
        counts = np.ascontiguousarray(counts, dtype=float)[-172_800:]
        if len(counts) < max(self.least_s, 4 * (self.window_s + self.ahead * BIN_S)) or not counts.any():
            self._network = None
            self.note = f"linear trend: less than {self.least_s // 3600} hours of history to train on"
            return
        key = (
            hashlib.sha256(counts.tobytes()).hexdigest(),
            self.window_s,
            self.ahead,
            self.hidden,
            self.updates,
            self.seed,
        )
        if key not in _TRAINED:
            _TRAINED[key] = self._train(in_bins(counts))
        self._network = _TRAINED[key]
        self.note = ""

    def predict(self, recent: np.ndarray, horizon_s: float, of: Of = "mean") -> float:
        """Return requests/s over the next ``horizon_s`` seconds; see :meth:`Forecaster.predict`."""
        recent = np.asarray(recent)
        if self._network is None or len(recent) < self.window_s:
            return self._trend.predict(recent, horizon_s, of)
        bins = in_bins(recent[-self.window_s :])
        mean, k = max(float(bins.mean()), 1e-9), min(bins_until(horizon_s), self.ahead) - 1
        return max(0.0, float(self._answer(bins / mean - 1)[get_args(Of).index(of), k]) * mean)

    def _train(self, bins: np.ndarray) -> Any:
        import torch  # imported where needed: it takes seconds
        from torch import nn

        width, ahead = self.window_s // BIN_S, self.ahead
        rows = np.lib.stride_tricks.sliding_window_view(bins, width + ahead)
        rows = rows[:: ceil(len(rows) / 16_000)]
        future, steps = rows[:, width:], np.arange(1, ahead + 1)
        scale = np.maximum(rows[:, :width].mean(axis=1), 1e-9)[:, None, None]
        wanted = np.stack([np.cumsum(future, axis=1) / steps, np.maximum.accumulate(future, axis=1), future], axis=1)
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        torch.set_num_threads(1)
        torch.manual_seed(self.seed)
        try:
            lstm, dense = nn.LSTM(1, self.hidden, batch_first=True), nn.Linear(self.hidden, 3 * ahead)
            nn.init.zeros_(dense.weight)
            # A load of another size is only rescaled: the network sees bins relative to their mean.
            x = torch.from_numpy((rows[:, :width, None] / scale - 1).astype(np.float32))
            y = torch.from_numpy((wanted / scale).astype(np.float32)).reshape(len(rows), -1)
            # An error counts by its requests/s, so that busy times weigh as they do in the table of errors.
            weight = torch.from_numpy((scale[:, :, 0] / scale.mean()).astype(np.float32) ** 2)
            cut = len(rows) * 4 // 5 - width - ahead
            parameters = [*lstm.parameters(), *dense.parameters()]
            adam = torch.optim.Adam(parameters, lr=4e-3)
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.updates)

            def forward(inputs: Any) -> Any:
                return 1 + dense(lstm(inputs)[0][:, -1])

            best, kept = np.inf, [p.detach().clone() for p in parameters]
            order = torch.empty(0, dtype=torch.long)
            for update in range(1, self.updates + 1):
                order = order[128:] if len(order) > 128 else torch.randperm(cut)
                batch = order[:128]
                loss = (weight[batch] * (forward(x[batch]) - y[batch]) ** 2).mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
                decay.step()
                if update % 100 == 0:
                    with torch.no_grad():
                        held = float((weight[cut:] * (forward(x[cut:]) - y[cut:]) ** 2).mean())
                    if held < best:
                        best, kept = held, [p.detach().clone() for p in parameters]
        finally:
            torch.set_num_threads(threads)
            torch.set_rng_state(state)

        return tuple(p.detach().numpy().astype(float) for p in kept)

    def _answer(self, x: np.ndarray) -> np.ndarray:
        """Return what the network says of one sequence [bins], shape [3, bins ahead]; a prediction needs no torch."""
        of_input, of_state, bias_input, bias_state, dense, offset = self._network
        h = c = np.zeros(self.hidden)
        for value in x.tolist():
            z = of_input[:, 0] * value + bias_input + bias_state + of_state @ h
            i, f, g, o = z.reshape(4, self.hidden)
            c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            h = np.tanh(c) / (1 + np.exp(-o))
        return (1 + dense @ h + offset).reshape(3, self.ahead)


FORECASTERS: Mapping[str, type[Forecaster]] = {
    cls.name: cls for cls in (Forecaster, MovingAverage, LinearTrend, Holt, Lstm)
}
"""The forecasters by name."""
SHARED_S = 600.0
"""The horizon up to which systems share a network, seconds: Cocktail's, the longest of a paper."""


def make_forecaster(name: str, horizon_s: float, seed: int = 0) -> Forecaster:
    """Return a forecaster by name for horizons up to ``horizon_s``.

    Networks learn :data:`SHARED_S` at least, so that systems with shorter horizons share one network a history.

    Raises:
        InputError: there is none of that name.
    """
    if name not in FORECASTERS:
        raise InputError(f"forecaster {name}: unknown (known: {', '.join(FORECASTERS)})")
    return Lstm(max(horizon_s, SHARED_S), seed=seed) if name == "lstm" else FORECASTERS[name]()


def error_table(
    loads: Mapping[str, tuple[np.ndarray, np.ndarray]],
    horizon_s: float = 100.0,
    of: Of = "last",
    points: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the error of every forecaster on every trace at a horizon, by default that of a VM's boot (claim C24).

    Args:
        loads: by name of the trace, the requests per second to fit on and those to predict, which follow them.
        horizon_s: how far ahead, seconds.
        of: what is predicted.
        points: moments at which a prediction is made, evenly over the second part.
        seed: of the trained network.

    Returns:
        Columns trace, forecaster, horizon_s, of, rmse (requests/s), relative (rmse over the linear trend's), nrmse
        (rmse over the mean load) and note.
    """
    rows = []
    for trace, (before, after) in loads.items():
        whole, n = np.concatenate((before, after)).astype(float), bins_until(horizon_s) * BIN_S
        moments = np.unique(np.linspace(max(len(before), 600), len(whole) - n, points).astype(int))
        ahead = [in_bins(whole[t : t + n]) for t in moments]
        truth = np.array([_statistic(path, of) for path in ahead])
        for name in FORECASTERS:
            forecaster = make_forecaster(name, horizon_s, seed)
            forecaster.fit(before)
            guess = np.array([forecaster.predict(whole[max(0, t - 3600) : t], horizon_s, of) for t in moments])
            rmse = float(np.sqrt(np.mean((guess - truth) ** 2)))
            rows.append((trace, name, horizon_s, of, rmse, rmse / max(float(truth.mean()), 1e-9), forecaster.note))
    frame = pd.DataFrame(rows, columns=["trace", "forecaster", "horizon_s", "of", "rmse", "nrmse", "note"])
    line = frame[frame.forecaster == "linear_trend"].set_index("trace").rmse
    frame.insert(5, "relative", frame.rmse / frame.trace.map(line))
    return frame
