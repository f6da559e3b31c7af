"""Advice: honest about what it scales, never below the bound, and one line for what it cannot answer."""

import json

import numpy as np
import pandas as pd
import pytest

from selfserve.advice import TARGET_PCT, advise
from selfserve.cli import main
from selfserve.errors import InputError


def csv(folder, seconds, rate):
    counts = np.random.default_rng(0).poisson(rate, seconds)
    path = folder / f"{seconds}x{rate}.csv"
    pd.DataFrame({"second": np.arange(seconds), "requests": counts}).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    return csv(tmp_path_factory.mktemp("traces"), 3600, 200)


@pytest.fixture(scope="module")
def answer(hour):
    return advise(hour, 0.5, 75.0)


def test_what_is_advised_keeps_the_slo_and_is_the_cheapest_that_does(answer):
    r = answer.record
    assert r["slo_violation_pct"] + r["accuracy_violation_pct"] <= TARGET_PCT
    fit = {name: x["month_usd"] for name, x in r["tried"].items() if x["slo_violation_pct"] <= TARGET_PCT}
    assert r["policy"] == min(fit, key=fit.get)
    assert r["cost_to_bound"] >= 1.0
    assert r["bound_month_usd"] <= r["month_usd"]


def test_shares_add_up_and_accuracy_is_kept(answer):
    r = answer.record
    assert sum(r["models_pct"].values()) == pytest.approx(100)
    assert sum(p["answers_pct"] for p in r["resources"]) == pytest.approx(100)
    costs = answer.costs.set_index("what")
    assert costs.loc[r["policy"], ["vm", "spot", "function"]].sum() == pytest.approx(r["month_usd"])


def test_a_month_is_the_trace_over_and_over(answer, tmp_path):
    """Two hours of a load cost what an hour of it costs, a month of either being 730 h."""
    longer = advise(csv(tmp_path, 7200, 200), 0.5, 75.0).record
    assert longer["month_usd"] == pytest.approx(answer.record["month_usd"], rel=0.15)
    assert longer["requests"] == pytest.approx(2 * answer.record["requests"], rel=0.02)
    assert any("shorter than a day" in sentence for sentence in longer["assumptions"])


def test_more_accuracy_costs_more(hour, answer):
    better = advise(hour, 2.0, 82.0).record
    assert better["bound_month_usd"] > answer.record["bound_month_usd"]
    assert better["month_usd"] > answer.record["month_usd"]
    assert "mobilenet_v3_large" not in better["models_pct"]


def test_the_command_prints_json_and_draws(hour, answer, tmp_path, capsys):
    figure = tmp_path / "advice.png"
    words = ["advise", "--trace", hour, "--slo-s", "0.5", "--accuracy-pct", "75", "--json", "--figure", str(figure)]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert json.loads(shown[-1])["month_usd"] == answer.record["month_usd"]
    assert figure.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("slo_s", "accuracy_pct", "message"),
    [(0.0, 75.0, "--slo-s 0: must be above 0"), (0.5, 101.0, "--accuracy-pct 101: must be"), (0.5, 99.0, "99")],
)
def test_what_cannot_be_is_said(hour, slo_s, accuracy_pct, message):
    with pytest.raises(InputError, match=message):
        advise(hour, slo_s, accuracy_pct)


def test_a_short_trace_says_nothing(tmp_path):
    with pytest.raises(InputError, match="600 s long; right is 1200 s or more"):
        advise(csv(tmp_path, 600, 5), 0.5, 75.0)
