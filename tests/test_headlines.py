"""The papers' headlines and claims C22, C23, C25: verdicts on tables made by hand, and real runs on a twin."""

import numpy as np
import pandas as pd
import pytest

from selfserve.evaluation import run
from selfserve.forecast import FORECASTERS
from selfserve.policies import policy_names
from selfserve.scenario import load_scenario
from selfserve.steering import Steering
from selfserve.studies import forecasts, systems
from selfserve.studies import headlines as study

KEYS = ("cost_usd", "spot_cost_usd", "slo_violation_pct", "accuracy_violation_pct", "mean_accuracy_pct")


def runs(rows):
    """Return runs: (scenario, policy, trace) -> the values of KEYS."""
    return pd.DataFrame([
        {"scenario": s, "policy": p, "trace": t, "reason": ""} | dict(zip(KEYS, values, strict=True))
        for (s, p, t), values in rows.items()
    ])  # fmt: skip


def test_headlines_name_systems_that_are_there():
    known = pd.read_csv(study.Path(study.__file__).with_name("headlines.csv"), keep_default_na=False)
    assert set(known["system"]) | set(known["against"]) <= set(policy_names())
    assert set(known["measure"]) <= set(study.LEAST) and set(known["direction"]) <= {"below", "above"}
    assert (known[["headline", "source"]] != "").all(axis=None)


def test_a_headline_is_judged_by_its_direction_on_every_trace():
    cheaper, dearer, late = (1.0, 0, 0.0, 0, 80), (2.0, 0, 0.0, 0, 80), (2.0, 0, 1.0, 0, 80)
    both = {("standard", "spock", "a"): cheaper, ("standard", "reactive", "a"): late}
    found = study.headlines(runs(both)).set_index("seen")["verdict"].tolist()
    assert found == ["reproduced", "reproduced"]
    both |= {("standard", "spock", "b"): late, ("standard", "reactive", "b"): dearer}
    found = study.headlines(runs(both))
    assert found["verdict"].tolist() == ["partly", "partly"] and "0.50 to 1.00" in found["seen"].iloc[1]


def test_a_difference_below_a_percent_is_none():
    both = {("standard", "paragon", "a"): (0.995, 0, 0, 0, 80), ("standard", "mixed", "a"): (1.0, 0, 0, 0, 80)}
    assert study.headlines(runs(both))["verdict"].tolist() == ["not reproduced"]


def test_the_discount_is_taken_out_of_the_spot_machines_bill():
    rows = {("spot", "cocktail", "a"): (2.0, 1.0, 0, 0, 80)}
    rows |= {("standard", p, "a"): (4.0, 0, 0, 0, 80) for p in ("infaas", "clipper")}
    scaled = runs({("standard", "clipper", "a"): (3.0, 0, 0, 0, 80)})
    both = study.spot_discount(runs(rows), scaled).set_index("against")
    assert both.loc["clipper", "with_discount"] == pytest.approx(1.5), "the scaled one, not the static one"
    found = both.loc["infaas"]
    assert found["with_discount"] == pytest.approx(2.0)
    assert found["without_discount"] == pytest.approx(4.0 / (1.0 + 1.0 / found["spot_price_ratio"]))
    assert 0.3 < found["spot_price_ratio"] < 0.4
    verdict = study.judge_discount(study.spot_discount(runs(rows), scaled))
    assert verdict["id"] == "C22" and "not met: 1.2 to 1.6 with the discount" in verdict["why"]


def test_accuracy_is_judged_by_order_dip_and_recovery():
    minutes = pd.DataFrame({"since": range(-20, 21), "lost": [0.0] * 20 + [5.0] + [0.0] * 20})
    minutes["accuracy_pct"] = 80.0 + 0.01 * (minutes["since"] % 2)
    minutes.loc[minutes["since"].between(0, 2), "accuracy_pct"] = 78.0
    rows = {("standard", p, "a"): (1, 0, 0, v, 80) for p, v in (("infaas", 30), ("clipper", 10), ("cocktail", 1))}
    found = study.judge_accuracy(runs(rows), minutes)
    assert found["verdict"] == "partly" and "dip 2.0" in found["measured"] and "after 3 minutes" in found["measured"]


def test_modes_are_judged_by_the_cheapest_that_is_in_time():
    costs = {"VMs alone": (9, 1), "VMs in batches": (9, 2), "functions alone": (5, 5), "functions in batches": (4, 4),
             "VMs and functions": (6, 2)}  # fmt: skip
    table = pd.DataFrame([{"mode": m, "slo_s": s, "trace": "a", "usd_per_hour": float(c[i]), "late_pct": 0.0}
                          for m, c in costs.items() for i, s in enumerate((0.1, 1.0))])  # fmt: skip
    found = study.judge_modes(table)
    assert found["verdict"] == "partly" and "100 ms functions in batches, 1000 ms VMs alone" in found["measured"]
    assert "a: batching moves it" in found["why"], "functions at 100 ms and VMs at 1,000 ms, in batches or not"
    table.loc[table["mode"] == "functions in batches", "usd_per_hour"] = 0.5
    assert study.judge_modes(table)["verdict"] == "reproduced"
    flat = pd.concat([table, table.assign(trace="b", usd_per_hour=table["usd_per_hour"].where(
        table["mode"] == "VMs and functions", 10.0))])  # fmt: skip
    assert "b: the order changes" in study.judge_modes(flat)["why"], "each trace by itself"
    table.loc[table["mode"].str.contains("functions"), "late_pct"] = 50.0
    assert "100 ms VMs" in study.judge_modes(table)["measured"]


def test_cocktail_keeps_its_accuracy_while_machines_are_lost():
    minutes = study.accuracy_in_failure(quick=True)
    assert minutes.loc[minutes["since"].between(0, 3), "lost"].sum() > 0
    assert minutes["accuracy_pct"].between(70, 90).all()


def test_correctness_moves_what_a_cascade_gives(tmp_path):
    found = (
        study.correctness(tmp_path, quick=True)
        .set_index(["policy", "error_correlation", "confidence_auroc"])
        .sort_index()
    )
    assert len(found) == 1 + 3 * 4
    planner, alone = found.loc["tuned", "cost_usd"], found.loc[study.ALONE, "cost_usd"].item()
    assert planner[0.8 if 0.8 in planner.index else 0.2].max() < alone, "the cheap model need not be sure for long"
    assert planner[0.2, 0.95] < planner[0.2, 0.7], "who knows its errors passes on less"
    assert (
        found.loc[("cocktail", 0.2), "mean_accuracy_pct"].min()
        > found.loc[("cocktail", 0.95), "mean_accuracy_pct"].max()
    )


def test_markets_rank_the_systems_in_every_place(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "policy_names", lambda: ["batch", "reactive"])
    found = systems.markets(tmp_path, quick=True)
    assert found["market"].notna().all() and set(found["market"]) == {"aws", "functions x8", "1 machine"}
    dear = found.set_index(["market", "policy"])["function_cost_usd"]
    now = systems.price_ratio(load_scenario("standard"))  # what it pays for is dearer by as much, or it batches more
    assert 0.75 * 8 / now < dear["functions x8", "batch"] / dear["aws", "batch"] <= 1.01 * 8 / now


def test_forecasts_are_judged_on_bursty_traces_and_by_what_they_cost():
    error = pd.DataFrame([("WITS", "lstm", 1.0, 0.6), ("WITS", "linear_trend", 2.0, 1.0), ("twitter", "lstm", 3.0, 1.5),
                          ("twitter", "linear_trend", 2.0, 1.0)],
                         columns=["trace", "forecaster", "rmse", "relative"])  # fmt: skip
    cost = pd.DataFrame([("mark", "WITS", "lstm", 1.05, 0.2), ("mark", "WITS", "linear_trend", 1.0, 0.1),
                         ("cocktail", "WITS", "lstm", 1.3, 0.2), ("cocktail", "WITS", "linear_trend", 1.0, 9.0)],
                        columns=["policy", "trace", "forecaster", "cost_ratio", "slo_violation_pct"])  # fmt: skip
    found = forecasts.judge_forecasts(error, cost)
    assert found["verdict"] == "reproduced" and "twitter: LSTM 1.50" in found["measured"]
    assert "(1 of 2 runs) cost changes by up to 5.0%" in found["measured"], "a run that is late saves nothing"
    assert forecasts.judge_forecasts(error.assign(relative=0.9), cost)["verdict"] == "partly"


def test_every_forecaster_is_measured_and_run(tmp_path, monkeypatch):
    error = forecasts.errors(quick=True)
    assert set(error["forecaster"]) == set(FORECASTERS) and (error["rmse"] > 0).all()
    monkeypatch.setattr(forecasts, "FORECASTERS", ("last_value", "linear_trend"))
    cost = forecasts.effect(tmp_path, quick=True)
    assert cost.set_index("forecaster").loc["linear_trend", "cost_ratio"] == 1
    assert cost["cost_usd"].nunique() == 2, "another forecast, another fleet"


def test_spending_adds_up_to_the_bill():
    window = systems.windows(quick=True)[0]
    spent = systems.spending(True, ["mixed"]).set_index("minute")
    bill = run.measure(run.Case("mixed", *window, oracle=False))["cost_usd"]
    assert spent[["busy", "idle", "functions"]].sum(axis=1).sum() / 60 == pytest.approx(bill, rel=0.03)
    assert len(spent) * 60 == window[2] - load_scenario("standard").warmup_s
    assert (spent["busy"] > 0).all() and (spent["idle"] > 0).any() and (spent["load"] > 0).all()


def test_parts_leave_out_what_they_say():
    for name in ("standard", "spot"):
        left_out = systems.parts(name)
        assert ("spot" in left_out) == (name == "spot")
        scenario = load_scenario(name)
        parameters, overrides = left_out["safety"]
        assert Steering(scenario, np.ones(60), 10.0).pays[0] + parameters["safety"] == pytest.approx(0)
        for part in ("overflow", systems.NONE):
            parameters, overrides = left_out[part]
            alone = load_scenario(name, overrides)
            assert not any(p.is_function for p in alone.pools) and len(alone.pools) == len(scenario.pools) - 1
        assert Steering(alone, np.ones(60), 10.0).pays[0] + parameters["safety"] == pytest.approx(0, abs=1e-6)
        assert all(
            p.items() <= parameters.items() for n, (p, _) in left_out.items() if n not in ("safety", systems.DEAREST)
        )
