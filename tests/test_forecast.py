"""Forecasters: each does what its name says, the network learns, and the table of errors tells them apart."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.tsa.holtwinters import Holt as Reference

from selfserve import forecast
from selfserve.errors import InputError
from selfserve.forecast import Forecaster, Holt, LinearTrend, Lstm, MovingAverage, make_forecaster

WAVE = np.random.default_rng(0).poisson(100 + 60 * np.sin(2 * np.pi * np.arange(14_400) / 600)).astype(float)
"""Four hours of a wave of ten minutes: a line or an average misses it at 100 s, a network can learn it."""


@pytest.fixture(scope="module")
def learned():
    lstm = Lstm(100.0, updates=600)
    lstm.fit(WAVE[:10_800])
    return lstm


def test_bins_are_counted_back_from_now():
    assert forecast.in_bins(np.r_[np.full(5, 9.0), np.full(10, 1.0), np.full(10, 2.0)]).tolist() == [1.0, 2.0]
    assert forecast.in_bins(np.array([4.0, 6.0])).tolist() == [5.0]
    assert forecast.in_bins(np.zeros(0)).tolist() == [0.0]
    assert [forecast.bins_until(s) for s in (0.0, 10.0, 10.1, 100.0)] == [1, 1, 2, 10]


def test_last_value_average_and_line():
    ramp = np.arange(600.0)
    assert Forecaster().predict(ramp, 100.0) == pytest.approx(594.5)
    assert MovingAverage().predict(ramp, 100.0) == pytest.approx(549.5)
    line = LinearTrend()
    assert line.predict(ramp, 100.0, "last") == pytest.approx(694.5)
    assert line.predict(ramp, 100.0, "max") == pytest.approx(694.5)
    assert line.predict(ramp, 100.0, "mean") == pytest.approx(649.5)
    assert line.predict(ramp[::-1], 300.0, "last") == 0.0  # no load below none


def test_holt_repeats_what_statsmodels_fits():
    holt = Holt()
    holt.fit(WAVE)
    assert not holt.note and holt.smoothing != Holt.smoothing
    bins = forecast.in_bins(WAVE[-600:])
    alpha, beta, phi = holt.smoothing
    known = dict(initialization_method="known", initial_level=bins[0], initial_trend=0.0)
    model = Reference(bins[1:], damped_trend=True, **known)
    fitted = model.fit(smoothing_level=alpha, smoothing_trend=beta, damping_trend=phi, optimized=False)
    np.testing.assert_allclose(holt.path(bins, 10), fitted.forecast(10), rtol=1e-6)


def test_the_network_learns_what_a_line_cannot(learned):
    errors = {"lstm": [], "linear_trend": [], "moving_average": []}
    for t in range(11_400, 14_300, 50):
        truth = WAVE[t + 90 : t + 100].mean()
        for name, found in errors.items():
            one = learned if name == "lstm" else make_forecaster(name, 100.0)
            found.append((one.predict(WAVE[:t], 100.0, "last") - truth) ** 2)
    rmse = {name: np.mean(found) ** 0.5 for name, found in errors.items()}
    assert rmse["lstm"] < 0.5 * min(rmse["linear_trend"], rmse["moving_average"])


def test_one_network_answers_mean_maximum_and_shorter_horizons(learned):
    recent = WAVE[:12_150]  # the top of the wave: it falls from here
    mean, highest, last = (learned.predict(recent, 100.0, of) for of in ("mean", "max", "last"))
    assert last < mean < highest
    assert learned.predict(recent, 20.0, "mean") > mean
    assert learned.predict(recent, 900.0) == mean  # it knows no further than it learned


def test_the_network_scales_with_the_load(learned):
    for factor in (0.1, 10.0):
        rescaled = learned.predict(WAVE[:12_000] * factor, 100.0) / factor
        assert rescaled == pytest.approx(learned.predict(WAVE[:12_000], 100.0), rel=1e-3)


def test_training_is_the_same_every_time(learned, monkeypatch):
    monkeypatch.setattr(forecast, "_TRAINED", {})
    again, other = Lstm(100.0, updates=600), Lstm(100.0, updates=1200, seed=1)
    again.fit(WAVE[:10_800])
    other.fit(WAVE[:10_800])
    recent = WAVE[:12_345]
    assert again.predict(recent, 100.0) == learned.predict(recent, 100.0) != other.predict(recent, 100.0)


@pytest.mark.parametrize("history", [np.zeros(0), WAVE[:3600], np.zeros(10_000)])
def test_without_history_the_network_is_a_line_and_says_so(history):
    lstm = Lstm(100.0)
    lstm.fit(history)
    assert lstm.note.startswith("linear trend")
    assert lstm.predict(np.arange(600.0), 100.0, "last") == LinearTrend().predict(np.arange(600.0), 100.0, "last")


def test_nothing_seen_is_no_load():
    for name in forecast.FORECASTERS:
        assert make_forecaster(name, 100.0).predict(np.zeros(0), 100.0, "max") == 0.0


def test_the_table_of_errors(monkeypatch):
    monkeypatch.setattr(Lstm, "least_s", 20_000)
    frame = forecast.error_table({"wave": (WAVE[:10_800], WAVE[10_800:])}, points=100)
    assert frame.forecaster.tolist() == list(forecast.FORECASTERS)
    by_name = frame.set_index("forecaster")
    assert by_name.loc["linear_trend", "relative"] == 1.0
    # A fifth of a wave ahead of a level that the average lags behind: the last value errs by what the wave moves.
    assert by_name.loc["last_value", "rmse"] == pytest.approx(60 * np.sqrt(2) * np.sin(np.pi * 95 / 600), rel=0.15)
    assert by_name.loc["lstm", "note"] and by_name.loc["lstm", "rmse"] == by_name.loc["linear_trend", "rmse"]
    assert (frame.nrmse > 0).all()


def test_an_unknown_forecaster_is_refused():
    with pytest.raises(InputError, match=r"forecaster arima: unknown \(known: last_value, moving_average"):
        make_forecaster("arima", 100.0)
