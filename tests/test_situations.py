"""Situations: what is sampled lies in its ranges, repeats, and never crosses from one split into another."""

import numpy as np
import pytest

from selfserve.errors import InputError
from selfserve.scenario import load_scenario
from selfserve.situations import distribution, sample
from selfserve.traces import split_ranges
from selfserve.twins import twin_names

MANY = 84
SPLITS = ("train", "validate", "evaluate")


@pytest.fixture(scope="module")
def sampled():
    return {split: [sample(split, i, twins=True) for i in range(MANY)] for split in SPLITS}


@pytest.mark.parametrize(("split", "index"), [("train", 2), ("evaluate", 5), ("evaluate", 6)])
def test_its_overrides_give_its_scenario(split, index):
    one = sample(split, index, twins=True)
    assert load_scenario(one.base, one.overrides).digest == one.scenario.digest


def test_a_seed_says_everything(sampled):
    again = sample("validate", 7, twins=True)
    assert again.scenario.digest == sampled["validate"][7].scenario.digest
    assert again.workload(1).digest == sampled["validate"][7].workload(1).digest
    assert again.workload(1).digest != again.workload(2).digest


def test_splits_are_disjoint(sampled):
    seeds = [one.seed for split in SPLITS for one in sampled[split]]
    assert len(set(seeds)) == 3 * MANY
    firsts = sorted(own["first_seed"] for own in distribution()["splits"].values())
    assert np.diff(firsts).min() >= 1_000_000  # sample() takes no index beyond it
    families = {split: {one.family for one in sampled[split]} for split in SPLITS}
    assert families["train"] == families["validate"] == families["evaluate"] - {"mmpp", "azure_code"}
    assert {one.tags["seen"] for one in sampled["evaluate"] if one.family in ("mmpp", "azure_code")} == {
        "never trained on"
    }


def test_windows_of_a_trace_keep_to_their_part(sampled):
    for split in SPLITS:
        for one in sampled[split]:
            starts = [one.window(i) for i in range(one.windows)]
            assert starts == sorted(starts)
            if one.source in twin_names():
                a, b = split_ranges(one.trace())[split]
                assert all(a <= start and start + length <= b for start, length in starts), one
            else:
                assert all(start + length <= one.trace().seconds for start, length in starts)
    with pytest.raises(InputError, match="right is 0 to 3"):
        sampled["train"][0].window(4)


def test_ranges_are_kept_and_filled(sampled):
    everyone = [one.scenario for split in SPLITS for one in sampled[split]]
    ready = np.array([x.vm.pending_s + x.vm.boot_s for x in everyone])
    assert ready.min() >= 30 - 1e-9 and ready.max() <= 300 and ready.min() < 45 and ready.max() > 200
    init = np.array([x.function.init_s for x in everyone])
    assert init.min() >= 0.5 and init.max() <= 10 and init.max() > 7
    price = []
    for x in everyone:
        vm, fn = x.pools[0], x.pools[-1]
        price.append(fn.usd_per_busy_hour * fn.service_ns[1, 1] * vm.slots / vm.usd_per_hour / vm.service_ns[1, 1])
    assert 1.49 < min(price) < 2 and 6 < max(price) < 8.01
    assert {x.prices for x in everyone} == {"aws_us_east_1", "azure_eastus", "gcp_us_central1"}
    assert {x.service.believed_factor for x in everyone} == {0.8, 1.0, 1.2}
    sizes = {split: [one.scenario.load_machines for one in sampled[split]] for split in SPLITS}
    assert max(sizes["train"]) <= 30 and 100 < max(sizes["evaluate"]) <= 200
    assert sample("evaluate", 3, machines=1000.0).scenario.load_machines == 1000.0


def test_every_class_can_be_served(sampled):
    """Some model meets floor and mean, and answers within the SLO at p99 on a warm function."""
    for x in (one.scenario for split in SPLITS for one in sampled[split]):
        tail = 1 + 2.33 * x.service.spread
        fn = x.pools[-1]
        for c in x.classes:
            wanted = max(c.min_accuracy_pct, c.mean_accuracy_pct or 0.0)
            able = [m for m in range(len(x.models)) if x.models[m].accuracy_pct >= wanted]
            assert any(tail * fn.service_ns[m, 1] / 1e9 <= c.slo_s for m in able), (x.name, c)


def test_spot_comes_every_third_time_with_storms_in_the_window(sampled):
    for one in sampled["evaluate"]:
        assert (
            ("spot" in [p.market for p in one.scenario.pools]) == (one.index % 3 == 2) == (one.tags["market"] == "spot")
        )
    storms = [storm for one in sampled["evaluate"] for storm in one.scenario.spot.storms]
    assert storms and all(600 <= storm.start_s < 4200 for storm in storms)


def test_generated_loads_are_what_they_are_called():
    def per_minute(index: int) -> np.ndarray:
        counts = sample("evaluate", index).trace().counts
        return counts[: len(counts) // 60 * 60].reshape(-1, 60).mean(axis=1)

    crowd, smooth, bursts = (np.median([np.ptp(per_minute(i + 7 * k)) for k in range(5)]) for i in (3, 4, 5))
    assert smooth < bursts and smooth < crowd
    mean = sample("evaluate", 4).workload(0).counts.mean()
    assert mean > 0


def test_wrong_requests_are_told_in_a_line():
    with pytest.raises(InputError, match="right is train, validate, evaluate"):
        sample("test", 0)
    with pytest.raises(InputError, match="0 to 999999"):
        sample("train", 1_000_000)
