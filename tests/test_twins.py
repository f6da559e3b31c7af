"""Twins: how close they come, and that a recipe is all there is to them."""

import numpy as np
import pytest

from selfserve import twins
from selfserve.errors import InputError
from selfserve.studies import workloads as study
from selfserve.traces import SOURCES, burstiness, day_shape, dispersion, make_trace
from selfserve.twins import closeness, fit_twin, generate, load_recipe, load_twin, recipe_folder, statistics, twin_names
from selfserve.workload import load_trace


def bursty_trace():
    """Three hours with a swing and bursts of some ten seconds, counts in units of 2."""
    rng = np.random.default_rng(5)
    t = np.arange(3 * 3600)
    rate = 60 * (1 + 0.4 * np.sin(2 * np.pi * t / 7200))
    bursts = np.repeat(rng.gamma(4, 0.25, len(t) // 10), 10)
    return make_trace("bursty", 2 * rng.poisson(rate * bursts / 2))


@pytest.mark.parametrize("name", twin_names())
def test_committed_twins_come_within_a_tenth_of_their_targets(name):
    recipe, twin = load_recipe(name), load_trace(name)
    assert twin.name == name and twin.seconds == recipe.seconds and (twin.counts >= 0).all()
    ratios = closeness(twin, recipe.targets)
    assert ratios.keys() == {key for key, target in recipe.targets.items() if target} and len(ratios) >= 2
    for ratio in ratios.values():
        assert ratio == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", twin_names())
def test_a_recipe_is_small_and_gives_the_same_trace_every_time(name):
    assert (recipe_folder() / f"{name}.json").stat().st_size < 60_000
    assert load_twin(name).digest == load_twin(name).digest
    other = generate(name, load_recipe(name), seed=12345)
    assert other.digest != load_twin(name).digest
    assert other.counts.mean() == pytest.approx(load_twin(name).counts.mean(), rel=0.4)


def test_twins_have_their_originals_kind_of_times():
    for name in SOURCES:
        twin = load_twin(f"{name}-twin")
        assert (twin.times_ns is not None) == (name in ("twitter_hour", "azure_code"))
        if twin.times_ns is not None:
            assert (np.diff(twin.times_ns) >= 0).all()
            assert np.array_equal(np.bincount(twin.times_ns // 10**9, minlength=twin.seconds), twin.counts)


def test_wiki_like_is_a_smooth_day_with_the_papers_mean_and_peak():
    counts = load_trace("wiki_like").counts
    assert len(counts) == 86_400 and counts.max() == 778 and counts.mean() == pytest.approx(498, rel=0.005)
    assert burstiness(counts) == pytest.approx(0.36, abs=0.005)
    hours = day_shape(counts)
    assert hours.max() / hours.min() > 2 and np.abs(np.diff(hours)).max() < 0.2 * counts.mean()
    assert dispersion(counts[12 * 3600 : 12 * 3600 + 300]) < 3  # near Poisson inside five minutes


def test_fit_twin_recovers_the_statistics_of_a_trace():
    trace = bursty_trace()
    recipe = fit_twin(trace)
    assert recipe.unit == 2 and recipe.seconds == trace.seconds and not recipe.exact_times
    twin = generate("copy", recipe)
    assert (twin.counts % 2 == 0).all()
    for key, ratio in closeness(twin, statistics(trace)).items():
        assert ratio == pytest.approx(1.0, abs=0.1), key
    assert not np.array_equal(twin.counts, trace.counts)
    assert recipe.seed in range(twins.CANDIDATE_SEEDS)


def test_a_written_recipe_generates_the_same_twin(tmp_path, monkeypatch):
    recipe = fit_twin(bursty_trace())
    twins.write_recipe(recipe, tmp_path / "bursty-twin.json")
    monkeypatch.setattr(twins, "recipe_folder", lambda: tmp_path)
    assert load_twin("bursty-twin").digest == generate("bursty-twin", recipe).digest
    assert [path.name for path in tmp_path.iterdir()] == ["bursty-twin.json"]


def test_what_cannot_be_fitted_or_found_says_so(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"trace short: 599 s .* at least 600 s"):
        fit_twin(make_trace("short", np.ones(599)))
    with pytest.raises(InputError, match=r"with 0 requests"):
        fit_twin(make_trace("none", np.zeros(700)))
    monkeypatch.setattr(twins, "recipe_folder", lambda: tmp_path)
    with pytest.raises(InputError, match=r"twin gone-twin: .* not there"):
        load_twin("gone-twin")


def test_the_quick_study_needs_twins_only(monkeypatch, tmp_path):
    monkeypatch.setenv("SELFSERVE_TRACES", str(tmp_path))  # an empty folder
    traces = study.shown(quick=True)
    assert list(traces) == [*study.TWINS, "wiki_like"]
    close = study.twin_closeness(traces, other_seeds=2)
    assert set(close["source"]) == {"recipe"} and ((close["ratio"] - 1).abs() < 0.1).all()
    assert set(study.twin_excerpts(traces)["side"]) == {"twin"}
    claim = study.burstiness_claim(traces).set_index("trace")
    assert (
        claim.loc["wiki_like", "measured_pct"] == pytest.approx(36, abs=0.5)
        and not claim.loc["wiki_like", "above_threshold"]
    )
    with pytest.raises(InputError, match="SELFSERVE_TRACES"):
        study.shown(quick=False)


def test_shown_splits_cover_each_trace_once():
    traces = study.shown(quick=True)
    for name, parts in study.splits(traces).groupby("trace"):
        assert parts["start_h"].iloc[0] == 0 and parts["end_h"].iloc[-1] == traces[name].seconds / 3600
        assert (parts["start_h"].to_numpy()[1:] == parts["end_h"].to_numpy()[:-1]).all()


def test_drift_of_shares_stays_a_share_and_is_flat_without_drift():
    table = study.class_drift(drifts=(0.0, 0.5), hours=1)
    total = table.groupby(["drift", "seed", "hour"])["share"].sum()
    assert total.to_numpy() == pytest.approx(np.ones(len(total))) and len(total) == 2 * 2 * 60
    spread = table.groupby(["drift", "class"])["share"].std()
    assert (spread[0.0] < 1e-9).all() and (spread[0.5] > 0.005).all()
