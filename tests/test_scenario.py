"""Scenarios: what a file becomes, and the one line that a wrong file earns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfserve import catalog
from selfserve.catalog import carry
from selfserve.errors import InputError
from selfserve.policies import make_policy
from selfserve.scenario import FOLDER, NS, load_scenario, scenario_names, service_table
from selfserve.simulator import simulate
from selfserve.workload import load_trace, make_workload

STANDARD = (FOLDER / "standard.toml").read_text()


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_standard_is_what_its_file_and_the_catalogue_say():
    scenario = load_scenario("standard")
    vm, fn = scenario.pools
    assert [c.name for c in scenario.classes] == ["strict", "accurate", "relaxed"]
    assert (vm.resource, vm.market, vm.slots, vm.max_machines) == ("c6i.large", "on_demand", 2, 2000)
    assert vm.usd_per_hour == 0.085 and vm.usd_per_busy_hour == 0 and vm.usd_per_request == 0
    assert fn.is_function and fn.slots == 1
    assert fn.usd_per_busy_hour == pytest.approx(1769 / 1024 * 1.66667e-5 * 3600, rel=1e-12)
    assert fn.usd_per_request == 2e-7
    assert fn.usd_per_hour == pytest.approx(1769 / 1024 * 4.1667e-6 * 3600, rel=1e-12)
    accuracies = [accuracy for _, accuracy in sorted((m.name, m.accuracy_pct) for m in scenario.models)]
    assert accuracies == [84.062, 82.52, 75.274, 80.858]
    assert scenario.load_machines == 20 and scenario.rate_scale is None
    assert set(vm.sources) == {"measured"}


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_resolves_to_a_usable_service_table(name):
    scenario = load_scenario(name)
    assert scenario.name == name and len(scenario.digest) == 64
    for pool in scenario.pools:
        resident = pool.service_ns[list(pool.models), 1:]
        assert (resident > 0).all() and (np.diff(resident, axis=1) >= 0).all()
        absent = [m for m in range(len(scenario.models)) if m not in pool.models]
        assert not pool.service_ns[absent].any() and not pool.service_ns[:, 0].any()


def test_the_scenarios_differ_in_kind_as_their_names_say():
    assert {p.market for p in load_scenario("standard").pools} == {"on_demand", "function"}
    assert "spot" in {p.market for p in load_scenario("spot").pools}
    accelerators = catalog.load_prices("aws_us_east_1")["accelerator"]
    gpus = [p for p in load_scenario("gpu").pools if accelerators[p.resource]]
    assert gpus and all(p.slots == 1 and p.max_batch >= 64 for p in gpus)
    wide = load_scenario("wide").pools
    assert len({p.resource for p in wide if not p.is_function}) >= 3
    assert len({p.memory_mb for p in wide if p.is_function}) >= 3


def test_spot_pool_costs_the_catalogues_spot_median():
    spot = next(p for p in load_scenario("spot").pools if p.market == "spot")
    listed = catalog.load_prices("aws_us_east_1").loc[spot.resource]
    assert spot.usd_per_hour == listed["spot_usd_per_hour"] < listed["usd_per_hour"]


def test_overrides_reach_every_kind_of_key():
    scenario = load_scenario(
        "standard",
        {
            "vm.boot_s": 200.0,
            "function.price_factor": 4,
            "load_machines": 50,
            "pools.vm.max_machines": 10,
            "classes.strict.slo_s": 1.0,
            "classes.accurate.mean_accuracy_pct": None,
            "correctness.error_correlation": 0.0,
        },
    )
    base = load_scenario("standard")
    assert scenario.vm.boot_s == 200.0 and scenario.load_machines == 50
    assert scenario.pools[0].max_machines == 10 and scenario.classes[0].slo_s == 1.0
    assert (scenario.correctness.error_correlation, scenario.correctness.confidence_auroc) == (0.0, 0.85)
    assert scenario.classes[1].mean_accuracy_pct is None
    for price in ("usd_per_hour", "usd_per_busy_hour", "usd_per_busy_hour_provisioned", "usd_per_request"):
        assert getattr(scenario.pools[1], price) == pytest.approx(4 * getattr(base.pools[1], price), rel=1e-12)
    assert load_scenario("standard", {"rate_scale": 0.5}).load_machines is None


def test_believed_factor_moves_beliefs_and_not_the_truth():
    base, wrong = load_scenario("standard"), load_scenario("standard", {"service.believed_factor": 1.2})
    for a, b in zip(base.pools, wrong.pools, strict=True):
        assert np.array_equal(a.service_ns, b.service_ns)
        assert np.abs(b.believed_ns - 1.2 * a.service_ns).max() <= 0.5
    assert wrong.pools[0].service_s(0) == wrong.pools[0].believed_ns[0, 1] / NS


def test_digest_follows_content_and_not_the_files_place(tmp_path):
    base = load_scenario("standard")
    assert load_scenario("standard").digest == base.digest
    assert load_scenario(write(tmp_path, STANDARD)).digest == base.digest
    assert load_scenario(write(tmp_path, STANDARD + "\n# a remark\n")).digest == base.digest
    assert load_scenario("standard", {"vm.boot_s": 84.0}).digest != base.digest
    assert load_scenario("standard", {"service.spread": 0.2}).digest != base.digest


def test_prices_come_from_the_users_own_list_and_edits_take_effect(tmp_path):
    path = tmp_path / "prices.csv"
    text = (catalog.ROOT / "prices" / "aws_us_east_1.csv").read_text()
    path.write_text(text)
    before = load_scenario("standard", {"prices": str(path)})
    assert "c6i.large,vm,2,4.0,,,,0.085," in text
    path.write_text(text.replace("c6i.large,vm,2,4.0,,,,0.085,", "c6i.large,vm,2,4.0,,,,0.17,"))
    after = load_scenario("standard", {"prices": str(path)})
    assert (before.pools[0].usd_per_hour, after.pools[0].usd_per_hour) == (0.085, 0.17)
    assert before.digest != after.digest


def test_a_price_list_may_leave_out_what_is_not_used(tmp_path):
    import pandas as pd

    path = tmp_path / "prices.csv"
    listed = pd.read_csv(catalog.ROOT / "prices" / "aws_us_east_1.csv")
    listed.drop(columns=["provisioned_usd_per_gb_s", "provisioned_duration_usd_per_gb_s"]).to_csv(path, index=False)
    scenario = load_scenario("standard", {"prices": str(path), "load_machines": 1.0})
    function = next(p for p in scenario.pools if p.is_function)
    assert function.usd_per_hour == function.usd_per_busy_hour > 0 == function.usd_per_busy_hour_provisioned
    policy, workload = make_policy("mixed"), make_workload(load_trace("WITS-twin"), scenario, 0, 900)
    assert simulate(scenario, workload, policy, 0).summary["cost_usd"] > 0


@pytest.mark.parametrize(
    ("device", "accelerator"),
    [("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"), ("NVIDIA A10G", "A10G"), ("Tesla T4", "T4"),
     ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA A100-SXM4-40GB", "A100"), ("Xeon", "")],
)  # fmt: skip
def test_a_gpus_profile_is_for_that_gpu_alone(device, accelerator):
    assert carry._accelerator_of(device) == accelerator


def test_service_is_interpolated_between_profiled_batches_and_never_falls():
    import pandas as pd

    rows = pd.DataFrame({"batch": [1, 2, 4], "service_ms": [1.0, 0.9, 2.5]})
    assert service_table(rows, 4).tolist() == [1_000_000, 1_000_000, 1_700_000, 2_500_000]


def test_more_threads_mean_fewer_slots_and_faster_answers():
    one, two = (load_scenario("standard", {"pools.vm.threads": t}).pools[0] for t in (1, 2))
    assert (one.slots, two.slots) == (2, 1)
    heavy = -1  # the largest model gains most from a second thread
    assert two.service_ns[heavy, 1] < one.service_ns[heavy, 1]


BAD = {
    "an unknown key comes before a missing one": (
        {"workload.drift": 0.1, "classes.strict.slo_s": None},
        "unknown key workload.drift; known here: share_drift",
    ),
    "an unknown key of a list entry": ({"pools.vm.cpu": 2}, "unknown key pools.vm.cpu; known here: name, resource"),
    "an unknown key at the top": ({"intervall_s": 2}, "unknown key intervall_s; known here: name, classes"),
    "a missing key": ({"classes.strict.slo_s": None}, "key classes.strict.slo_s is missing"),
    "a missing section": ({"pools": None}, "key pools is missing"),
    "slo 0": ({"classes.strict.slo_s": 0}, "classes.strict.slo_s = 0: input should be greater than 0"),
    "a word for a number": ({"vm.boot_s": "long"}, "vm.boot_s = 'long': input should be a valid number"),
    "not a number": ({"vm.boot_s": float("nan")}, "vm.boot_s = nan: input should be a finite number"),
    "true for a number": ({"vm.boot_s": True}, "vm.boot_s = True: input should be a valid number"),
    "a spread below zero": (
        {"vm.boot_spread": -0.1},
        "vm.boot_spread = -0.1: input should be greater than or equal to 0",
    ),
    "errors that are all the same": (
        {"correctness.error_correlation": 1.0},
        "correctness.error_correlation = 1.0: input should be less than 1",
    ),
    "confidence of chance": (
        {"correctness.confidence_auroc": 0.5},
        "correctness.confidence_auroc = 0.5: input should be greater than 0.5",
    ),
    "shares": ({"classes.strict.share": 0.6}, "classes.share: the shares sum to 1.1, not to 1"),
    "accuracy above 100": ({"classes.strict.min_accuracy_pct": 101}, "less than or equal to 100"),
    "accuracy out of reach": (
        {"classes.strict.min_accuracy_pct": 90},
        "classes.strict.min_accuracy_pct = 90: no model of the pools reaches it; the best is convnext_base",
    ),
    "mean below floor": (
        {"classes.accurate.mean_accuracy_pct": 70},
        "mean_accuracy_pct = 70 is below min_accuracy_pct",
    ),
    "unknown model": ({"pools.vm.models": ["resnet5"]}, "pools.vm.models: unknown model 'resnet5'"),
    "no model": ({"pools.vm.models": []}, "pools.vm.models = []"),
    "a model twice": ({"pools.vm.models": ["resnet50", "resnet50"]}, "pools.vm.models: a model is named twice"),
    "unknown resource": ({"pools.vm.resource": "c9.huge"}, "pools.vm.resource = 'c9.huge': not in the price list"),
    "unknown market": (
        {"pools.vm.market": "barter"},
        "pools.vm.market = 'barter': input should be 'on_demand' or 'spot'",
    ),
    "market of a function": ({"pools.fn.market": "spot"}, "pools.fn.market: lambda is a function"),
    "memory of a machine": ({"pools.vm.memory_mb": 2048}, "pools.vm.memory_mb: c6i.large is a machine"),
    "a function without memory": ({"pools.fn.memory_mb": None}, "pools.fn.memory_mb: missing"),
    "a function with too much": (
        {"pools.fn.memory_mb": 20000},
        "pools.fn: memory_mb 20000.0: lambda takes 128 to 10240",
    ),
    "no spot price": ({"pools.vm.resource": "p5.4xlarge", "pools.vm.market": "spot"}, "no spot price of p5.4xlarge"),
    "threads": ({"pools.vm.threads": 3}, "pools.vm: threads 3: c6i.large has 2 vCPUs"),
    "models that do not fit a machine": (
        {"pools.vm.models": ["vgg16", "convnext_base", "swin_b", "vit_b_16", "wide_resnet50_2"]},
        "pools.vm.models: 2 worker(s) with vgg16",
    ),
    "a model that does not fit a function": ({"pools.fn.memory_mb": 256}, "lambda has 256 MB"),
    "two ways to scale": ({"rate_scale": 1.0, "pools.vm.threads": 1}, None),
    "unknown price list": ({"prices": "moon"}, "price list 'moon': no such file; the catalogue has aws_us_east_1"),
    "unknown profile": ({"profile": "abacus"}, "profile 'abacus': no such file"),
    "storms that overlap": (
        {"spot.storms": [[0, 100, 1, 0.5], [50, 10, 1, 0.5]]},
        "those from 0 s and 50 s overlap; one must end before the next",
    ),
    "a storm of no length": ({"spot.storms": [[0, 0, 1, 0.5]]}, "spot.storms.0"),
    "a short storm": ({"spot.storms": [[0, 1, 1]]}, "spot.storms.0"),
    "an override of nobody": ({"classes.vip.slo_s": 1.0}, "override classes.vip.slo_s: there is no 'vip'"),
    "an override below a number": ({"interval_s.x": 1.0}, "'interval_s' has no keys below it"),
    "two pools of a name": ({"pools.fn.name": "vm"}, "pools.name = 'vm' appears twice"),
}


@pytest.mark.parametrize("case", [case for case, (_, message) in BAD.items() if message])
def test_bad_input_is_one_line_that_names_file_and_key(case):
    overrides, message = BAD[case]
    with pytest.raises(InputError) as caught:
        load_scenario("standard", overrides)
    assert message in str(caught.value) and str(caught.value).startswith("standard.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("load_machines = 20 ", "load_machines = 20\nrate_scale = 1.0 ", "load_machines, rate_scale: both are set"),
        ("load_machines = 20 ", "", "load_machines, rate_scale: neither is set"),
        ("[vm]", "[vm", "not TOML: "),
        ('name = "standard"', "", "key name is missing"),
    ],
)
def test_bad_files(tmp_path, old, new, message):
    assert old in STANDARD
    path = write(tmp_path, STANDARD.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    assert message in str(caught.value) and path in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_binary_junk(tmp_path):
    with pytest.raises(InputError, match=r"no such file; scenarios by name: .*standard"):
        load_scenario("nowhere")
    path = tmp_path / "junk.toml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="not TOML"):
        load_scenario(str(path))
