"""Notebook 02's tables: exact costs against hand calculations, simulated fleets, and prices that move crossovers."""

import json
from math import ceil, exp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from selfserve import catalog
from selfserve.errors import InputError
from selfserve.figures import resources as figures
from selfserve.studies import elasticity
from selfserve.studies import resources as study

AWS = "aws_us_east_1"
LIST = catalog.ROOT / "prices" / "aws_us_east_1.csv"


def changed_list(folder, kind: str, column: str, factor: float) -> str:
    """Write a copy of the price list in which one column of one kind of resource is multiplied."""
    table = pd.read_csv(LIST, dtype=str, keep_default_na=False)
    mine = table["kind"] == kind
    table.loc[mine, column] = [repr(factor * float(text)) for text in table.loc[mine, column]]
    path = folder / "prices.csv"
    table.to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def doubled(tmp_path_factory) -> str:
    return changed_list(tmp_path_factory.mktemp("prices"), "vm", "usd_per_hour", 2.0)


@pytest.fixture(scope="module")
def regime() -> pd.DataFrame:
    return study.regimes(AWS)


def test_doubling_the_vm_prices_moves_the_crossover(doubled):
    models = ("mobilenet_v3_large", "convnext_base")
    before, after = study.crossover(models, 0, AWS), study.crossover(models, 0, doubled)
    assert after["rate"][0] == pytest.approx(2 * before["rate"][0])
    assert after["rate"][1] >= 2 * before["rate"][1] * (1 - 1e-9), "a busier machine may be late: then a larger fleet"
    assert after["rate"].tolist() == pytest.approx(study.crossover(models, 0, AWS, 2.0)["rate"].tolist())
    assert (after["late_pct"] <= study.ALLOWED_PCT).all()


def test_machines_that_never_pay_have_no_crossover():
    never = study.crossover(("mobilenet_v3_large",), 0, AWS, 20.0)
    assert never["rate"].tolist() == [np.inf]
    figures.constant_rates(study.constant_rates(("mobilenet_v3_large",), (1, 5), 0, AWS), never)


def test_doubling_the_vm_prices_moves_every_computed_border(doubled, regime):
    after = study.regimes(doubled)
    assert (after["vm_from"] / regime["vm_from"]).to_numpy() == pytest.approx(2.0)
    assert (after["gpu_from"] / regime["gpu_from"]).between(0.9, 1.1).all(), "GPU machines have doubled as well"


def test_cheaper_functions_move_it_too(tmp_path, regime):
    half = changed_list(tmp_path, "function", "usd_per_gb_s", 0.5)
    after = study.regimes(half)
    assert (after["vm_from"] > 1.5 * regime["vm_from"])[regime["vm_ms"] > 100].all()


def test_the_price_list_is_read_anew(tmp_path):
    path = changed_list(tmp_path, "vm", "usd_per_hour", 1.0)
    first = study.crossover(("resnet50",), 0, path)
    changed_list(tmp_path, "vm", "usd_per_hour", 1.5)
    assert study.crossover(("resnet50",), 0, path)["rate"][0] == pytest.approx(1.5 * first["rate"][0])


def test_an_invocation_is_billed_by_whole_milliseconds():
    function = pd.Series({"usd_per_gb_s": 1e-5, "usd_per_request": 2e-7})
    assert study.invocation_usd(10.2, 2048, function, spread=0.0) == pytest.approx(0.011 * 2 * 1e-5 + 2e-7)
    assert study.invocation_usd(10.2, 2048, function, spread=0.0, round_ms=100) == pytest.approx(0.1 * 2e-5 + 2e-7)
    assert study.invocation_usd(10.2, 2048, function) > study.invocation_usd(9.2, 2048, function)


def test_the_computed_crossover_is_where_both_bills_are_equal(regime):
    listed, row = catalog.load_prices("aws_us_east_1"), regime.set_index("model").loc["resnet50"]
    assert row["vm_from"] * 3600 * row["function_usd_per_million"] / 1e6 == pytest.approx(
        listed.at[study.VM, "usd_per_hour"]
    )
    assert row["busy_pct"] == pytest.approx(100 * row["vm_from"] * row["vm_ms"] / 1000 / listed.at[study.VM, "vcpu"])


def test_costs_at_constant_rates():
    table = study.constant_rates(("resnet50",), (5, 100), 0, AWS)
    by = table.set_index(["option", "rate"])
    price, spot = catalog.load_prices("aws_us_east_1").loc[study.VM, ["usd_per_hour", "spot_usd_per_hour"]]
    assert set(by.index.get_level_values(0)) == {"VM", "spot", "GPU", "function"}
    for rate in (5, 100):
        vm = by.loc[("VM", rate)]
        assert vm["usd_per_million"] == pytest.approx(vm["machines"] * price / 3600 / rate * 1e6)
        assert by.loc[("spot", rate), "usd_per_million"] == pytest.approx(vm["usd_per_million"] * spot / price)
    warm = study.regimes(AWS).set_index("model").at["resnet50", "function_usd_per_million"]
    assert by.loc[("function", 100), "usd_per_million"] == pytest.approx(warm, rel=0.01)
    assert by.loc[("VM", 5), "usd_per_million"] > by.loc[("function", 5), "usd_per_million"]
    assert by.loc[("VM", 100), "usd_per_million"] < by.loc[("function", 100), "usd_per_million"]


def test_the_least_fleet_is_the_least():
    scenario = study.offer(study.VM, "convnext_base", AWS)
    machines, result = study.least_fleet(scenario, 50)
    assert study.late(result) <= study.ALLOWED_PCT
    fewer = study.play(scenario, study.steady(50), machines=machines - 1)
    assert study.late(fewer) > study.ALLOWED_PCT
    assert machines >= ceil(50 / study.capacity(scenario))


def test_a_model_that_no_fleet_makes_fast_enough_is_named():
    with pytest.raises(InputError, match=r"vgg16 on lambda: its p99 alone is \d"):
        study.least_fleet(study.offer(study.FUNCTION, "vgg16", AWS, memory_mb=1536.0, service={"spread": 1.5}), 1)


def test_sizes_of_a_family_differ_by_less_than_one_machine():
    table = study.sizes((1, 200), 0, AWS)
    assert list(table.loc[table["rate"] == 1, "machines"]) == [1, 1, 1, 1]
    high = table[table["rate"] == 200]
    slots = high["machines"] * high["vcpu"]
    assert (slots - slots.min() < high["vcpu"]).all()


def test_memory_buys_time_at_no_cost_up_to_a_vcpu():
    table = study.memory(("inception_v3",), AWS)
    assert (table["time_s"].diff().dropna() < 0).all()
    below = table[table["memory_mb"] <= study.FUNCTION_MB]
    assert len(below) > 2 and below["usd_per_million"].max() < 1.01 * below["usd_per_million"].min()
    assert table["usd_per_million"].iloc[-1] > 1.2 * below["usd_per_million"].max()
    assert table["memory_mb"].min() > 512, "what does not hold runtime and model is left out"


def test_cold_starts_follow_the_keep_alive():
    table = elasticity.cold_starts((60, 600, 1800), 0, AWS)
    assert table["exact_pct"].to_numpy() == pytest.approx([100 * exp(-600 / gap) for gap in (60, 600, 1800)])
    error = 3 * np.sqrt(table["exact_pct"] * (100 - table["exact_pct"]) / table["requests"]) + 0.5
    assert ((table["cold_pct"] - table["exact_pct"]).abs() < error).all()
    assert table["usd_per_million"].is_monotonic_increasing


def test_the_bill_of_a_rental():
    table = elasticity.rental((10, 17, 20, 77, 78, 150), AWS)
    price = catalog.load_prices("aws_us_east_1").at[study.VM, "usd_per_hour"] / 3600
    assert list(table["billed_s"]) == [0, 60, 60, 60, 61, 133]
    assert table["simulated_usd"].to_numpy() == pytest.approx(price * table["billed_s"].to_numpy(), abs=1e-12)
    assert list(table["useful_s"]) == [0, 0, 0, 0, 0, 50]


def test_a_burst_is_cheap_and_late_on_vms_and_dear_and_on_time_on_functions():
    table = elasticity.bursts((60,), 0, AWS, (60.0, 300.0), (1.0, 10.0))
    vms, functions = (table[table["option"] == option].set_index("start_s") for option in ("VMs", "functions"))
    assert (vms["late_pct"] > 95).all() and (functions["late_pct"] < 25).all()
    assert vms.at[60.0, "usd"] < vms.at[300.0, "usd"] and functions.at[1.0, "usd"] < functions.at[10.0, "usd"]
    assert len(elasticity.flips(table)) == 4


def test_spares_protect_a_spot_fleet():
    table = elasticity.spot_losses((0.0, 2.0), 1, 0, AWS, spares=(0, 4), machines=10)
    table = table.set_index(["spare", "interruptions"])
    assert table.at[(0, 2.0), "late_pct"] > 10 > 1 > table.at[(4, 2.0), "late_pct"]
    assert table.at[(0, 0.0), "launches"] == 0 < table.at[(0, 2.0), "launches"]
    row = catalog.load_prices("aws_us_east_1").loc[study.VM]
    assert table.at[(0, 0.0), "cost_pct"] == pytest.approx(100 * row["spot_usd_per_hour"] / row["usd_per_hour"])


def test_spot_zones_are_shares_of_todays_price():
    zones = elasticity.spot_zones(AWS)
    assert zones["percent"].between(5, 100).all() and not zones.duplicated(["instance_type", "zone"]).any()
    assert "p5.48xlarge" not in set(zones["instance_type"]), "its price was cut after the snapshot"


def test_functions_alone_pay_when_the_mean_is_far_below_the_peak(regime):
    waves = elasticity.waves((0.1, 0.3, 0.4, 1.0), 0, AWS, rate=100)
    assert waves["cost_ratio"].is_monotonic_increasing
    busy = regime.set_index("model").at["resnet50", "busy_pct"] / 100
    assert elasticity.crossing_share(waves) == pytest.approx(busy, abs=0.04)
    traces = elasticity.windows(["azure_code-twin", "wiki_like"], regime)
    whole = traces[traces["hours"] == 0].set_index("trace")["cost_ratio"]
    assert whole["azure_code-twin"] < 1 < whole["wiki_like"]
    assert np.isnan(elasticity.crossing_share(waves.iloc[-1:]))


def test_verdicts_follow_the_measurements(regime):
    static = pd.DataFrame({"model": ["a"] * 4, "rate": [10, 50, 100, 200], "vm_usd": [0.1, 0.5, 1.0, 2.0]})
    static["function_usd"], static["ratio"], static["ratio_100ms"] = 2 * static["vm_usd"], 2.0, 3.0
    size = study.sizes((1, 1000), 0, AWS)
    swept, change = study.memory(("squeezenet1_1", "inception_v3"), AWS), study.memory_claim(AWS)
    good = study.judge_static(static, regime), study.judge_sizes(size), study.judge_memory(swept, change)
    assert [row["id"] for row in good] == ["C04", "C05", "C10"]
    assert [row["verdict"] for row in good[:2]] == ["reproduced", "reproduced"]
    bad = study.judge_static(static.assign(ratio=0.5), regime)
    assert bad["verdict"] == "partly" and "ratio > 1" in bad["why"]


def test_start_up_times_name_their_sources():
    table = elasticity.start_up()
    assert {"VM", "function", "load", "assumed"} == set(table["group"])
    assert (table["seconds"] > 0).all() and table["source"].str.len().gt(0).all()
    assert "measured here" in " ".join(table.loc[table["group"] == "load", "source"])


def test_figures_show_what_they_are_given(regime):
    rents, burst = elasticity.rental((0, 17, 150), AWS), elasticity.bursts((10,), 0, AWS)
    drawn = {
        "bill of one VM, cents": figures.boot_and_billing(rents, burst),
        "seconds": figures.start_up(elasticity.start_up()),
        "requests/s, constant (diamond: simulated)": figures.regimes(regime, study.crossover(("resnet50",), 0, AWS)),
    }
    for label, figure in drawn.items():
        labels = {text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())}
        assert label in labels
    assert plt.get_fignums() == []
    cost = drawn["bill of one VM, cents"].axes[1]
    assert cost.get_ylim()[0] == 0, "cost axes start at 0"


def test_the_notebook_takes_a_price_list():
    path = next((catalog.ROOT.parents[2] / "notebooks").glob("02_*.ipynb"))
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert 'prices: str = "aws_us_east_1"' in code[0]
    for table in ("study.regimes(", "study.crossover(", "study.constant_rates(", "study.sizes(", "study.static_claim("):
        call = next(source for source in code if table in source).split(table)[1]
        assert "prices" in call.split("\n")[0], f"{table}..) does not pass the notebook's price list on"
