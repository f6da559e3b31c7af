"""Traces and workloads: what loads, what is refused, and what scaling and cutting keep."""

import hashlib
import math
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfserve import traces
from selfserve.errors import InputError
from selfserve.scenario import Model, Pool, RequestClass, Scenario
from selfserve.traces import SOURCES, Source, make_trace
from selfserve.twins import load_recipe, statistics
from selfserve.workload import describe, load_trace, make_workload, mean_work, split_ranges

NS = 1_000_000_000
FACTS = {  # seconds, requests: the published files
    "WITS": (46_798, 6_691_332),
    "berkeley": (204_517, 27_523_920),
    "twitter": (82_805, 4_328_646),
    "twitter_hour": (3_601, 279_939),
    "azure_code": (3_436, 8_819),
}


def pool(name, market, usd, slots, service_ms):
    service = np.array([[0, ms * 1_000_000] for ms in service_ms], dtype=np.int64)
    models = tuple(m for m, ms in enumerate(service_ms) if ms)
    return Pool(
        name,
        name,
        market,
        models,
        slots,
        1,
        4096.0,
        100,
        usd,
        0.0,
        0.0,
        0.0,
        service,
        service,
        ("measured",) * len(models),
    )


def scenario(**changes):
    parts = {
        "classes": (RequestClass("strict", 0.75, 0.5, 70.0), RequestClass("relaxed", 0.25, 5.0, 80.0)),
        "pools": (pool("vm", "on_demand", 0.1, 2, (20, 50, 400)), pool("big", "on_demand", 1.0, 16, (19, 48, 380))),
        "models": (Model("small", 65.0), Model("middle", 75.0), Model("large", 82.0)),
        "load_machines": 10.0,
    }
    return Scenario("test", **(parts | changes))


def plain(rate_scale=1.0, **changes):
    return scenario(load_machines=None, rate_scale=rate_scale, **changes)


def counted(counts, name="made"):
    return make_trace(name, np.asarray(counts, dtype=np.int64))


def exact(times_s, name="made"):
    return make_trace(name, *traces._exact(np.asarray(times_s, dtype=float)))


@pytest.fixture
def csv(tmp_path):
    def write(content):
        path = tmp_path / "mine.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["second,requests\n0,3\n1,0\n4,7\n", "\ufeffsecond, requests\r\n0,3\r\n1,0\r\n4,7\r\n\r\n"]
)
def test_counts_per_second_and_missing_seconds_are_zero(csv, text):
    trace = load_trace(csv(text))
    assert trace.name == "mine" and trace.seconds == 5 and trace.times_ns is None
    assert trace.counts.tolist() == [3, 0, 0, 0, 7] and trace.counts.dtype == np.int64


def test_exact_times_keep_their_place(csv):
    trace = load_trace(csv("arrival_s\n0.25\n0.25\n2.000000001\n700\n"))
    assert trace.times_ns.tolist() == [NS // 4, NS // 4, 2 * NS + 1, 700 * NS]
    assert trace.seconds == 701 and trace.counts[[0, 1, 2, 700]].tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize(
    "content, words",
    [
        ("", ["line 1", "''", "`second,requests`", "`arrival_s`"]),
        ("second,requests\n", ["empty trace", "at least one row"]),
        ("time,count\n0,1\n", ["line 1", "'time,count'", "`second,requests`"]),
        ("second,requests\n0,1\n1,-3\n", ["line 3", "column requests", "-3", "0 to 2000000"]),
        ("second,requests\n0,1\n1,\n", ["line 3", "column requests", "missing"]),
        ("second,requests\n0,1\n\n2,1\n", ["line 3", "1 values", "second,requests"]),
        ("second,requests\n0,1\n1\n", ["line 3", "1 values", "second,requests"]),
        ("second,requests\n0,1\n1,2,3\n", ["line 3", "3 values"]),
        ("second,requests\n0,1\n1,many\n", ["line 3", "column requests", "'many'", "finite number"]),
        ("second,requests\n0,nan\n", ["line 2", "column requests", "'nan'"]),
        ("second,requests\n0,1.5\n", ["line 2", "column requests", "1.5", "whole number"]),
        ("second,requests\n0,2000001\n", ["line 2", "column requests", "2000001", "limit"]),
        ("second,requests\n0,1e300\n", ["line 2", "column requests", "1e+300", "limit"]),
        ("second,requests\n0,1\n2,1\n1,1\n", ["line 4", "column second", "increase"]),
        ("second,requests\n0,1\n0,1\n", ["line 3", "column second", "repeated"]),
        ("second,requests\n-1,1\n", ["line 2", "column second", "-1"]),
        ("second,requests\n0.5,1\n", ["line 2", "column second", "0.5", "whole number"]),
        ("second,requests\n1700000000,1\n", ["line 2", "column second", "1700000000", "from the trace's start"]),
        ("arrival_s\n1.0\n0.5\n", ["line 3", "column arrival_s", "0.5", "sort"]),
        ("arrival_s\n1.0\nNaN\n", ["line 3", "column arrival_s", "'NaN'"]),
        ("arrival_s\n1.0\ninf\n", ["line 3", "column arrival_s", "'inf'"]),
        ("arrival_s\n-1.0\n", ["line 2", "column arrival_s", "-1"]),
        ("arrival_s\n1e9\n", ["line 2", "column arrival_s", "1000000000", "below 10000000"]),
        ("arrival_s\n1,2\n", ["line 2", "2 values"]),
        ("second,requests\n0,1_000\n", ["second,requests"]),
        (b"\x00\x01\x02\xff" * 50, ["not a text file", "`second,requests`"]),
        (b"second,requests\n0,\x00\n", ["not a text file"]),
        (b"PK\x03\x04 junk", ["line 1", "`arrival_s`"]),
    ],
)
def test_a_bad_file_is_one_line_that_says_where_and_what_is_right(csv, content, words):
    path = csv(content)
    with pytest.raises(InputError) as caught:
        load_trace(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(path) and ("right is" in message or "needed" in message)
    for word in words:
        assert word in message


def test_a_file_that_is_not_there_names_the_traces():
    with pytest.raises(InputError, match=r"'nowhere\.csv': neither a file nor a known trace.*WITS.*wiki_like"):
        load_trace("nowhere.csv")


def test_crowded_exact_times_are_refused(csv):
    with pytest.raises(InputError, match=r"line 3, column arrival_s: 7; right is at most 2000000"):
        load_trace(csv("arrival_s\n3\n" + "7\n" * 2_000_001))


# Published traces -----------------------------------------------------------------------------------------------------


def test_formats_of_the_published_files():
    assert SOURCES["berkeley"].read(b"1,1,40,80\n4,0,30,60\n")[0].tolist() == [80, 0, 0, 60]
    assert SOURCES["twitter"].read(b"0,0,1,44\n1,0,1,2\n1,0,1,46\n2,0,1,3\n")[0].tolist() == [44, 2, 46, 3]
    counts, times = SOURCES["twitter_hour"].read(b"0.5\n0.25\n2\n")
    assert counts.tolist() == [2, 0, 1] and times.tolist() == [NS // 2, 3 * NS // 4, 11 * NS // 4]
    counts, times = SOURCES["azure_code"].read(b"arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,8,1\n1.052,3,8\n")
    assert counts.tolist() == [1, 1] and times.tolist() == [0, 1_052_000_000]


@pytest.mark.parametrize("name", SOURCES)
def test_a_published_trace_is_as_published_or_names_both_remedies(name):
    if traces.trace_file(name).is_file():
        trace = load_trace(name)
        assert (trace.seconds, int(trace.counts.sum())) == FACTS[name]
        assert statistics(trace) == pytest.approx(load_recipe(f"{name}-twin").targets, rel=1e-8)
        renamed = load_trace(str(traces.trace_file(name)))
        assert (renamed.name, renamed.digest) == (name, trace.digest)
    else:
        with pytest.raises(InputError, match=r"traces fetch.*SELFSERVE_TRACES"):
            load_trace(name)


def test_a_missing_published_trace_names_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFSERVE_TRACES", str(tmp_path))
    with pytest.raises(
        InputError, match=r"WITS\.csv is not there; run `python -m selfserve traces fetch`.*SELFSERVE_TRACES"
    ):
        load_trace("WITS")


MADE = b"1,0,0,5\n2,0,0,6\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A made-up published trace on a local server; gives the (missing) download folder, the web folder, the server."""
    store, web = tmp_path / "store", tmp_path / "web"
    web.mkdir()
    (web / "made.csv").write_bytes(MADE)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(web)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name in list(SOURCES):
        monkeypatch.delitem(SOURCES, name)
    url = f"http://127.0.0.1:{server.server_port}/made.csv"
    read = traces._numbered_seconds
    monkeypatch.setitem(SOURCES, "made", Source(url, hashlib.sha256(MADE).hexdigest(), read, "split"))
    monkeypatch.setenv("SELFSERVE_TRACES", str(store))
    yield store, web, server
    server.shutdown()
    server.server_close()


def test_fetch_downloads_verifies_and_then_needs_no_network(made):
    store, _, server = made
    assert traces.fetch() == {"made": store / "made.csv"}
    assert load_trace("made").counts.tolist() == [5, 6]
    server.shutdown()
    server.server_close()
    assert traces.fetch() == {"made": store / "made.csv"}


def test_fetch_refuses_a_changed_file(made):
    store, web, _ = made
    (web / "made.csv").write_bytes(b"1,0,0,5\n2,0,0,7\n")
    with pytest.raises(InputError, match=r"trace made: cannot get http.*made\.csv.*SELFSERVE_TRACES"):
        traces.fetch()
    assert not (store / "made.csv").exists()


def test_fetch_without_network_is_one_line(made):
    _, _, server = made
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=r"cannot get .* check the network") as caught:
        traces.fetch()
    assert "\n" not in str(caught.value)


def test_a_changed_file_in_the_folder_is_refused(made):
    store, _, _ = made
    store.mkdir()
    (store / "made.csv").write_bytes(b"1,0,0,5\n")
    with pytest.raises(InputError, match=r"made\.csv has SHA-256 .* but the published file has"):
        load_trace("made")


# Scale ----------------------------------------------------------------------------------------------------------------


def test_mean_work_takes_the_cheapest_model_that_fits():
    # strict: middle (75%) in 50 ms on vm at 0.05 $/slot-h, or 48 ms on big at 0.0625; relaxed: large only, 400 ms on vm
    assert mean_work(scenario()) == pytest.approx(0.75 * 0.050 / 2 + 0.25 * 0.400 / 2)


def test_an_option_must_be_faster_than_the_slo():
    tight = (RequestClass("strict", 1.0, 0.05, 70.0),)
    assert mean_work(scenario(classes=tight)) == pytest.approx(0.048 / 16)
    with pytest.raises(InputError, match=r"class 'strict' .* load_machines .* rate_scale"):
        mean_work(scenario(classes=(RequestClass("strict", 1.0, 0.048, 70.0),)))


@pytest.mark.parametrize("machines", [1.0, 400.0])
def test_load_machines_is_the_mean_offered_work_of_the_whole_trace(machines):
    trace = counted(np.random.default_rng(0).poisson(100, 7200))
    wanted = scenario(load_machines=machines)
    work = make_workload(trace, wanted).counts.sum() * mean_work(wanted)
    assert work / 7200 == pytest.approx(machines, rel=0.01)
    assert make_workload(trace, wanted, 100, 60).rate_scale == make_workload(trace, wanted).rate_scale


def test_scaling_down_thins_binomially():
    scaled = make_workload(counted(np.full(20_000, 40)), plain(0.3)).counts
    assert scaled.mean() == pytest.approx(12.0, rel=0.01)
    assert scaled.var() == pytest.approx(40 * 0.3 * 0.7, rel=0.05)
    assert scaled.min() >= 0 and scaled.max() <= 40


def test_scaling_up_replicates():
    scaled = make_workload(counted(np.full(20_000, 40)), plain(2.3)).counts
    assert scaled.mean() == pytest.approx(92.0, rel=0.01)
    assert scaled.var() == pytest.approx(40 * 0.3 * 0.7, rel=0.05)
    assert scaled.min() >= 80 and scaled.max() <= 120
    assert make_workload(counted([1, 2, 3]), plain(3)).counts.tolist() == [3, 6, 9]


def test_exact_times_are_used_as_they_are_thinned_or_replicated_inside_their_second():
    trace = exact(np.sort(np.random.default_rng(1).uniform(0, 9000, 30_000)))
    same = make_workload(trace, plain(1.0))
    assert np.array_equal(same.times_ns, trace.times_ns)
    down = make_workload(trace, plain(0.4))
    assert np.isin(down.times_ns, trace.times_ns).all() and len(down.times_ns) == pytest.approx(12_000, rel=0.03)
    up = make_workload(trace, plain(2.5))
    assert np.isin(trace.times_ns, up.times_ns).all() and len(up.times_ns) == pytest.approx(75_000, rel=0.01)
    assert (up.counts >= 2 * trace.counts).all() and (up.counts <= 3 * trace.counts).all()
    for made_from in (same, down, up):
        assert (np.diff(made_from.times_ns) >= 0).all()
        assert np.array_equal(np.bincount(made_from.times_ns // NS, minlength=9000), made_from.counts)


@settings(max_examples=30, deadline=None)
@given(
    start=st.integers(0, 8998),
    length=st.integers(1, 9000),
    seed=st.integers(0, 5),
    scale=st.sampled_from([0.3, 1.0, 2.7]),
    times=st.booleans(),
)
def test_windows_agree_with_the_whole_trace(start, length, seed, scale, times):
    rng = np.random.default_rng(7)
    trace = exact(np.sort(rng.uniform(0, 9000, 5000))) if times else counted(rng.poisson(3, 9000))
    length = min(length, trace.seconds - start)
    whole = make_workload(trace, plain(scale), seed=seed)
    window = make_workload(trace, plain(scale), start, length, seed)
    assert np.array_equal(window.counts, whole.counts[start : start + length])
    assert np.array_equal(window.history, whole.counts[:start])
    if times:
        inside = (whole.times_ns >= start * NS) & (whole.times_ns < (start + length) * NS)
        assert np.array_equal(window.times_ns, whole.times_ns[inside] - start * NS)
    else:
        assert window.times_ns is None


def test_seed_and_content_make_the_digest():
    trace = counted(np.full(500, 10))
    one = make_workload(trace, plain(0.5), seed=1)
    assert make_workload(trace, plain(0.5), seed=1).digest == one.digest
    assert make_workload(trace, plain(0.5), seed=2).digest != one.digest
    assert not np.array_equal(make_workload(trace, plain(0.5), seed=2).counts, one.counts)


def test_a_window_may_outlast_its_trace_but_not_start_outside():
    window = make_workload(counted([1, 2, 3]), plain(), 1, 5)
    assert window.counts.tolist() == [2, 3, 0, 0, 0] and window.history.tolist() == [1] and window.seconds == 5
    with pytest.raises(InputError, match=r"start_s 3: .* 0 to 2"):
        make_workload(counted([1, 2, 3]), plain(), 3)
    with pytest.raises(InputError, match=r"start_s -1"):
        make_workload(counted([1, 2, 3]), plain(), -1)
    with pytest.raises(InputError, match=r"length_s 0: right is"):
        make_workload(counted([1, 2, 3]), plain(), 0, 0)


def test_a_trace_without_requests_or_with_too_many_cannot_be_scaled():
    with pytest.raises(InputError, match=r"trace made: no request.*rate_scale"):
        make_workload(counted([0, 0, 0]), scenario())
    assert make_workload(counted([0, 0, 0]), plain()).counts.tolist() == [0, 0, 0]
    with pytest.raises(InputError, match=r"over 2000000 requests in a second.*lower"):
        make_workload(counted([1, 1_900_000]), plain(2))


# Class shares ---------------------------------------------------------------------------------------------------------


def test_shares_without_drift_are_one_row():
    assert make_workload(counted([1] * 200), plain()).thresholds.tolist() == [[49152, 65536]]


def test_drift_starts_at_the_stated_shares_and_keeps_a_table_a_minute():
    table = make_workload(counted([1] * 400), plain(share_drift=0.5), 30, 301).thresholds
    assert table.shape == (6, 2) and table.dtype == np.int64 and table[0].tolist() == [49152, 65536]
    assert (table[:, -1] == 65536).all() and (np.diff(table, axis=1) >= 0).all() and len(np.unique(table[:, 0])) > 3


def test_drift_has_the_stated_spread_after_an_hour_and_overlapping_windows_share_its_steps():
    trace, drifting = counted(np.ones(8000)), plain(share_drift=0.4)

    def log_odds(start, length, seed):
        share = make_workload(trace, drifting, start, length, seed).thresholds[:, 0] / 65536
        return np.log(share / (1 - share)) - math.log(3)

    ends = np.array([log_odds(0, 3660, seed)[60] for seed in range(400)])
    assert ends.std() == pytest.approx(0.4, rel=0.12) and abs(ends.mean()) < 0.08
    whole, late = log_odds(0, 7200, 3), log_odds(3000, 1800, 3)
    assert late == pytest.approx(whole[50:80] - whole[50], abs=5e-4)


# Description and splits -----------------------------------------------------------------------------------------------


def test_describe_a_known_trace():
    facts = describe(counted([0, 1, 2, 3, 4] * 60))
    assert (facts["seconds"], facts["requests"], facts["mean"], facts["median"], facts["peak"]) == (
        300,
        600,
        2.0,
        2.0,
        4,
    )
    assert facts["peak_to_median"] == 2.0 and facts["burstiness"] == 0.5
    assert facts["dispersion_1s"] == pytest.approx(1.0) and facts["dispersion_60s"] == 0.0
    assert facts["autocorrelation"][10] == pytest.approx(1.0, abs=0.04) and math.isnan(facts["autocorrelation"][600])
    assert facts["day_shape"][0] == 2.0 and math.isnan(facts["day_shape"][1])


def test_dispersion_tells_poisson_from_bursts():
    rng = np.random.default_rng(0)
    poisson = describe(counted(rng.poisson(50, 40_000)))
    assert poisson["dispersion_1s"] == pytest.approx(1, abs=0.05) and poisson["dispersion_60s"] == pytest.approx(
        1, abs=0.2
    )
    bursts = describe(counted(rng.poisson(50 * np.repeat(rng.choice([0.5, 1.5], 400), 100))))
    assert bursts["dispersion_1s"] == pytest.approx(1 + 50 * 0.25, rel=0.1) and bursts["dispersion_60s"] > 300


def test_day_shape_folds_days():
    hours = np.repeat(np.arange(30), 3600)
    shape = describe(counted(hours))["day_shape"]
    assert shape[0] == 12.0 and shape[5] == 17.0 and shape[6] == 6.0 and len(shape) == 24


def test_describe_an_empty_stretch():
    facts = describe(counted([0] * 100))
    assert facts["burstiness"] == 0.0 and math.isnan(facts["peak_to_median"]) and math.isnan(facts["dispersion_1s"])


def test_splits_are_by_time_and_respect_what_a_trace_may_serve():
    assert split_ranges(counted([1] * 1000, "WITS")) == {
        "train": (0, 500),
        "validate": (500, 600),
        "evaluate": (600, 1000),
    }
    assert split_ranges(counted([1] * 10, "mine"))["evaluate"] == (6, 10)
    hour = split_ranges(counted([1] * 10, "twitter_hour-twin"))
    assert hour == {"train": (0, 10), "validate": (10, 10), "evaluate": (10, 10)}
    assert split_ranges(counted([1] * 10, "azure_code")) == {"train": (0, 0), "validate": (0, 0), "evaluate": (0, 10)}
