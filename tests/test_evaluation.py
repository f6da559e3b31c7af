"""The table of runs: the same bytes whatever happened on the way, honest windows, equal tuning, what the table says."""

import subprocess
import sys
from math import inf

import numpy as np
import pandas as pd
import pytest

from selfserve.cli import main
from selfserve.errors import InputError
from selfserve.evaluation import run, summary, tuning
from selfserve.evaluation.run import Case, Runs
from selfserve.policies.base import Choice, Range
from selfserve.protocol import Decision, Route, Step

OVERRIDES = run.as_json({"rate_scale": 1.0, "warmup_s": 200.0})
SCENARIOS = [("standard", OVERRIDES)]


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """A trace of an hour with a wave of five minutes, as a user would bring it."""
    seconds = np.arange(3600)
    counts = np.rint(20 + 15 * np.sin(seconds * 2 * np.pi / 300)).astype(int)
    path = tmp_path_factory.mktemp("traces") / "wave.csv"
    pd.DataFrame({"second": seconds, "requests": counts}).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory):
    """A policy of the user's that wants what no scenario has."""
    path = tmp_path_factory.mktemp("policies") / "picky.py"
    path.write_text(
        "from selfserve.errors import InputError\n"
        "class Picky:\n"
        "    interval_s = 10.0\n"
        "    def reset(self, scenario, history):\n"
        "        raise InputError('picky needs a quantum pool')\n"
        "    def decide(self, observation): ...\n"
    )
    return path


def some_cases(trace, policies=("static", "reactive", "mixed"), **others):
    windows = run.spread_windows(trace, "evaluate", 2, 600)
    return run.grid(policies, windows, SCENARIOS, **others)


def table_bytes(folder, runs, cases, labels):
    rows = runs(cases)
    run.write_parquet(run.table(cases, labels, rows), folder / "runs.parquet")
    run.write_parquet(run.class_table(cases, labels, rows), folder / "classes.parquet")
    return (folder / "runs.parquet").read_bytes() + (folder / "classes.parquet").read_bytes()


@pytest.fixture(scope="module")
def whole(trace, tmp_path_factory):
    """The table of a run that nothing disturbed, on one process."""
    folder = tmp_path_factory.mktemp("whole")
    cases, labels = some_cases(trace)
    return table_bytes(folder, Runs(folder, jobs=1), cases, labels)


def test_killed_runs_are_not_lost_and_the_table_is_the_same(trace, whole, tmp_path, monkeypatch):
    cases, labels = some_cases(trace)
    measure, count = run.measure, 0

    def dies_at_the_third(case):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return measure(case)

    monkeypatch.setattr(run, "measure", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        Runs(tmp_path, jobs=1)(cases)
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 2
    with pytest.raises(KeyboardInterrupt):
        count = 1
        Runs(tmp_path, jobs=1)(cases)
    again = Runs(tmp_path, jobs=1)
    assert table_bytes(tmp_path, again, cases, labels) == whole
    assert again.computed == len(cases) - 3
    finished = Runs(tmp_path, jobs=1)
    assert table_bytes(tmp_path, finished, cases, labels) == whole
    assert finished.computed == 0


def test_order_and_number_of_processes_do_not_matter(trace, whole, tmp_path):
    cases, labels = some_cases(trace)
    assert table_bytes(tmp_path, Runs(tmp_path, jobs=2), cases[::-1], labels[::-1]) == whole


def test_a_spoilt_file_is_computed_again(trace, tmp_path):
    cases, _ = some_cases(trace, ("static",))
    rows = Runs(tmp_path, jobs=1)(cases)
    next(iter(sorted((tmp_path / "runs").rglob("*.json")))).write_text('{"cost')
    again = Runs(tmp_path, jobs=1)
    assert again(cases) == rows
    assert again.computed == 1


def test_rows_say_everything(trace, tmp_path):
    cases, labels = some_cases(trace)
    table = run.table(cases, labels, Runs(tmp_path, jobs=1)(cases))
    assert len(table) == 6
    split = table["vm_cost_usd"] + table["spot_cost_usd"] + table["function_cost_usd"]
    assert np.allclose(split, table["cost_usd"])
    assert (table["cost_to_oracle"] >= 1).all()
    assert (table["bound_usd"] >= table["oracle_cost_usd"] * (1 - 1e-6)).all()
    assert (table["scored_s"] == 400).all()
    assert (table["code_version"] == run.code_version()).all()
    assert table.groupby("start_s")["decisions"].nunique().eq(3).all(), "three policies decide differently"
    classes = run.class_table(cases, labels, Runs(tmp_path, jobs=1)(cases))
    sums = classes.groupby(["policy", "start_s"])["requests"].sum()
    assert (sums == table.set_index(["policy", "start_s"])["requests"].astype(float)).all()


def test_a_policy_that_does_not_fit_is_a_row_with_the_reason(trace, policy_file, tmp_path):
    cases, labels = some_cases(trace, (f"{policy_file}:Picky", "static"))
    table = run.table(cases, labels, Runs(tmp_path, jobs=1)(cases))
    picky = table["policy"].str.endswith("Picky")
    assert table.loc[picky, "reason"].eq("picky needs a quantum pool").all()
    assert table.loc[picky, "cost_usd"].isna().all()
    assert table.loc[~picky, "cost_usd"].gt(0).all()
    shown = summary.systems(table)
    assert list(shown["runs"]) == [0, 2]


def test_a_run_is_known_by_all_that_goes_in(trace, policy_file):
    base = Case("static", trace, 0, 300, overrides=OVERRIDES)
    others = [
        Case("reactive", trace, 0, 300, overrides=OVERRIDES),
        Case("static", trace, 1, 300, overrides=OVERRIDES),
        Case("static", trace, 0, 301, overrides=OVERRIDES),
        Case("static", trace, 0, 300, "spot", overrides=OVERRIDES),
        Case("static", trace, 0, 300, parameters='{"machines": 2}', overrides=OVERRIDES),
        Case("static", trace, 0, 300, overrides=run.as_json({"rate_scale": 2.0, "warmup_s": 200.0})),
        Case("static", trace, 0, 300, overrides=OVERRIDES, seed=1),
        Case("static", trace, 0, 300, overrides=OVERRIDES, oracle=False),
    ]
    assert len({run._key(c) for c in [base, *others]}) == 1 + len(others)
    own = Case(f"{policy_file}:Picky", trace, 0, 300, overrides=OVERRIDES)
    before, text = run._key(own), policy_file.read_text()
    policy_file.write_text(text + "# changed\n")
    assert run._key(own) != before
    policy_file.write_text(text)
    assert run._key(own) == before


class Deciding:
    """Plays a decision for each time it is asked."""

    interval_s = 10.0

    def __init__(self, *decisions):
        self.decisions = iter(decisions)

    def reset(self, scenario, history): ...

    def decide(self, observation):
        return next(self.decisions)


def log_hash(*decisions):
    recorded = run._Recorded(Deciding(*decisions))
    for i in range(len(decisions)):
        recorded.decide(type("Seen", (), {"time_s": 10.0 * i})())
    return recorded.hash.hexdigest()


def test_a_log_is_what_holds_when_not_how_it_is_said():
    here, there = ((Route((Step(0, 0),)),),), ((Route((Step(0, 1),)),),)
    said = log_hash(Decision((1,), here), Decision((1,), here), Decision((2,), here))
    otherwise = ((Route((Step(np.int64(0), 0),), weight=1),),)
    again = Decision((np.int64(1),), otherwise, (1,), (0.0,), "in other words")
    assert log_hash(again, again, Decision((2,), here)) == said
    assert log_hash(Decision((1,), here), Decision((2,), here), Decision((2,), here)) != said
    assert log_hash(Decision((1,), here), Decision((1,), here), Decision((2,), there)) != said


# --- windows


def test_windows_lie_apart_in_their_part(trace):
    windows = run.spread_windows(trace, "evaluate", 3, 200)
    first, last = 2160, 3600  # the last 40% of an hour
    assert [w[1] for w in windows] == [2300, 2780, 3260]
    assert all(first <= a and a + n <= last for _, a, n in windows)
    assert run.spread_windows(trace, "evaluate", 3, 10_000) == [(trace, first + i * 480, 480) for i in range(3)]


def test_windows_shorter_than_the_warm_up_are_refused(trace):
    run.check_windows([(trace, 0, 201)], SCENARIOS)
    with pytest.raises(InputError, match=r"window 5 to 205 s of .*wave.csv: 200 s leave nothing .*scenario standard"):
        run.check_windows([(trace, 5, 200)], SCENARIOS)


def test_what_was_trained_on_is_refused():
    ranges = {"WITS": [(0, 100), (500, 600)], "twitter_hour": [(0, 3600)]}
    run.refuse_overlap(ranges, [("WITS", 100, 400), ("berkeley", 0, 100), ("twitter", 0, 7 * 3600)])
    with pytest.raises(InputError, match="window 590 to 700 s of WITS overlaps the training range 500 to 600 s"):
        run.refuse_overlap(ranges, [("WITS", 100, 400), ("WITS", 590, 110)])
    with pytest.raises(InputError, match="of twitter overlaps the training range 0 to 3600 s of twitter_hour"):
        run.refuse_overlap(ranges, [("twitter", 8 * 3600 - 1, 60)])


def test_a_policy_that_was_trained_names_its_ranges(policy_file, trace, tmp_path, capsys):
    path = tmp_path / "trained.py"
    card = {"training_ranges": {trace: [[0, 3000]]}}
    path.write_text(policy_file.read_text().replace("    interval_s", f"    card = {card}\n    interval_s"))
    assert run.training_ranges(f"{path}:Picky") == {trace: [(0, 3000)]}
    assert run.training_ranges("reactive") == run.training_ranges("clairvoyant") == {}
    assert main(arguments(trace, tmp_path / "out", "--policies", f"{path}:Picky")) == 2
    assert "overlaps the training range 0 to 3000 s" in capsys.readouterr().err


# --- tuning


def drive(space, value, budget, seed=0):
    """Run a search to its end; return the (value, parameters) tried."""
    one, tried = tuning.search(space, budget, seed), []
    asked = next(one)
    while True:
        got = [value(p) for p in asked]
        tried += zip(got, asked, strict=True)
        try:
            asked = one.send(got)
        except StopIteration:
            return tried


def bowl(p):
    return (p.get("x", 9.0) - 3.0) ** 2 + abs(np.log(p.get("y", 1.0) / 100.0)) + {"a": 5.0}.get(p.get("kind", "a"), 0.0)


SPACE = tuning.Space(
    {"x": Range(0.0, 10.0), "y": Range(1.0, 1000.0, log=True, integer=True)}, {"kind": ("a", "b")}, np.array([0.9, 0.1])
)


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 40])
def test_a_search_starts_with_the_authors_and_keeps_to_its_budget(budget):
    tried = drive(SPACE, bowl, budget)
    assert len(tried) == budget
    assert tried[0] == (bowl({}), {})
    for _, p in tried:
        assert 0.0 <= p.get("x", 5.0) <= 10.0
        assert p.get("y", 1) in range(1, 1001)


def test_a_search_finds_what_is_better():
    tried = drive(SPACE, bowl, 60)
    value, best = min(tried, key=lambda found: found[0])
    assert best["kind"] == "b"
    assert value < 0.1 * bowl({})
    assert tried == drive(SPACE, bowl, 60), "the same seed tries the same"
    assert tried != drive(SPACE, bowl, 60, seed=1)


def test_a_search_that_meets_refusals_goes_on():
    tried = drive(SPACE, lambda p: tuning.IMPOSSIBLE if p.get("x", 0.0) > 5 else bowl(p), 40)
    assert min(tried, key=lambda found: found[0])[0] < bowl({})


def test_violations_over_the_target_cost():
    row = {"reason": "", "cost_usd": 1.0, "slo_violation_pct": 0.05, "accuracy_violation_pct": 0.05}
    assert tuning.objective([row]) == 0.0
    late = tuning.objective([row | {"slo_violation_pct": 0.15}])
    assert late == pytest.approx(0.05), "a tenth of a point is 5% of the cost"
    assert tuning.objective([row | {"accuracy_violation_pct": 0.15}]) == pytest.approx(late)
    assert tuning.objective([row, row | {"reason": "no"}]) == tuning.IMPOSSIBLE
    nothing_done = row | {"cost_usd": 0.0, "slo_violation_pct": 100.0}
    assert tuning.objective([nothing_done]) > tuning.objective([row | {"cost_usd": 100.0}])


def test_a_policy_gets_what_it_cannot_decide():
    space = tuning.space_of("reactive", run.scenario_of("spot"))
    assert space.lists == {"pool": ("vm", "spot"), "models": ("most_accurate",)}
    assert "pool" not in tuning.space_of("reactive", run.scenario_of("standard")).lists


class Planned:
    """A policy of the user's with a number and a list to tune."""

    tunable = {"headroom": Range(0.5, 3.0, log=True), "side": Choice(("left", "right"))}  # noqa: RUF012

    def __init__(self, headroom=1.0, side="left"):
        self.headroom, self.side, self.interval_s = headroom, side, 10.0

    def reset(self, scenario, history): ...

    def decide(self, observation): ...


def test_a_declared_range_is_searched_around_the_authors_value(monkeypatch):
    monkeypatch.setattr(tuning, "make_policy", lambda name: Planned())
    monkeypatch.setattr(tuning, "parameter_names", lambda name: ["headroom", "side"])
    space = tuning.space_of("planned", run.scenario_of("standard"))
    assert space.lists == {"side": ("right",)}
    assert space.decode(space.authors) == {"headroom": 1.0}


def test_tuning_is_kept_and_never_sees_the_evaluation_part(trace, tmp_path):
    windows = tuning.training_windows([trace], 600)
    run.refuse_overlap({trace: [(2160, 3600)]}, windows)
    runs = Runs(tmp_path, jobs=1)
    records = tuning.tune(["reactive", "static"], [("spot", OVERRIDES)], windows, runs, tmp_path / "tuning", 6)
    assert [r["policy"] for r in records] == ["reactive", "static"]
    assert all(r["objective"] <= r["authors_objective"] and r["evaluations"] <= 6 for r in records)
    assert records[0]["parameters"].get("pool") == "spot", "the cheaper market is the better static choice"
    again = Runs(tmp_path / "elsewhere", jobs=1)
    kept = tuning.tune(["reactive", "static"], [("spot", OVERRIDES)], windows, again, tmp_path / "tuning", 6)
    assert kept == records
    assert again.computed == 0
    cases, labels = run.grid(["reactive"], [(trace, 2300, 300)], [("spot", OVERRIDES)], tuned=records)
    assert [(c.parameters, x["kind"]) for c, x in zip(cases, labels, strict=True)] == [
        ("{}", "authors"), (run.as_json(records[0]["parameters"]), "tuned")
    ]  # fmt: skip
    with pytest.raises(InputError, match="none of the traces has a training part"):
        tuning.tune(["reactive"], SCENARIOS, [], runs, tmp_path, 6)


def test_what_is_hopeless_on_one_window_is_not_run_on_the_others(trace, tmp_path):
    windows = [(trace, 300, 300), (trace, 700, 300), (trace, 1100, 300)]
    plain, asked = tmp_path / "plain.py", []
    plain.write_text(
        "class Plain:\n"
        "    def __init__(self, pool: str | None = None, models: str = 'cheapest'):\n"
        "        self.pool, self.models, self.interval_s = pool, models, 10.0\n"
        "    def reset(self, scenario, history): ...\n"
        "    def decide(self, observation): ...\n"
    )

    def runs(cases, text):
        asked.append(len(cases))
        free = {"slo_violation_pct": 0.0, "accuracy_violation_pct": 0.0, "reason": ""}
        return [
            free | {"cost_usd": 100.0 if "accurate" in c.parameters else 2.0 - ("spot" in c.parameters)} for c in cases
        ]

    record = tuning.tune([f"{plain}:Plain", "clairvoyant"], [("spot", OVERRIDES)], windows, runs, tmp_path, 12)[0]
    assert asked == [1, 2, 2, 4, 1, 0], "authors, two pools, and the dear models, on the first window and the others"
    assert record["parameters"] == {"pool": "spot"}
    assert record["objective"] == 0.0
    assert record["evaluations"] == 4


# --- what the table says


def made_table(costs, violations=0.0, policy="a", **others):
    """Return rows of a system, a window each."""
    n = len(costs)
    blank = dict.fromkeys((*run.WHO, *run.COUNTS, *run.NUMBERS, *run.DIGESTS))
    row = blank | {"policy": policy, "kind": "authors", "trace": "t", "scenario": "s", "overrides": "{}", "seed": 0}
    row |= {"length_s": 3600, "scored_s": 3600, "requests": 100, "accuracy_violation_pct": 0.0, "reason": ""}
    row |= {"bound_usd": 1.0, "oracle_cost_usd": 1.0, "decisions": policy} | others
    rows = [row | {"start_s": i, "cost_usd": c, "cost_to_oracle": c} for i, c in enumerate(costs)]
    return pd.DataFrame(rows).assign(slo_violation_pct=np.broadcast_to(violations, n))


def test_differences_are_paired_by_window():
    table = pd.concat([made_table([1.0, 10.0, 100.0]), made_table([1.1, 11.0, 110.0], policy="b")])
    found = summary.intervals(table, "a").set_index("policy")
    assert found.loc["b", "cost_ratio"] == pytest.approx(1.1)
    assert found.loc["b", ["low", "high"]].tolist() == pytest.approx([1.1, 1.1])
    assert found.loc["a", "cost_ratio"] == 1.0
    one = summary.intervals(table[table["start_s"] == 0], "a")
    assert one["low"].isna().all()


def test_what_tuning_gains_counts_cost_and_violations():
    authors = pd.concat([made_table([2.0, 8.0]), made_table([1.0, 1.0], policy="b")])
    tuned = pd.concat([made_table([1.0, 4.0]), made_table([1.0, 1.0], 1.1, policy="b")]).assign(kind="tuned")
    found = summary.gained(pd.concat([authors, tuned, made_table([1.0], policy="alone")]))
    assert list(found.index) == ["a", "b"]
    assert found["cost_ratio"].tolist() == pytest.approx([0.5, 1.0])
    assert found["gain"].tolist() == pytest.approx([np.log(2), -0.5]), "a point over the target costs a half"


def test_an_interval_covers_the_mean_of_what_varies():
    values = np.random.default_rng(0).normal(1.0, 0.1, 30)
    low, high = summary.interval(values)
    assert low < values.mean() < high
    assert 0.04 < high - low < 0.12  # 2 x 1.96 x 0.1 / sqrt(30) = 0.07
    assert summary.interval(values) == (low, high)


def test_systems_weigh_windows_by_what_was_asked():
    table = made_table([1.0, 3.0], [0.0, 10.0]).assign(requests=[300, 100], bound_usd=[1.0, 1.0])
    row = summary.systems(table).iloc[0]
    assert row["usd_per_hour"] == 2.0
    assert row["slo_violation_pct"] == 2.5
    assert row["to_bound"] == 2.0


def test_rankings_and_how_alike_they_are():
    places = {"x": [1.0, 2.0, 3.0], "y": [1.5, 2.5, 9.0], "z": [3.0, 2.0, 1.0]}
    tables = [
        made_table([cost], policy=policy, scenario=place)
        for place, costs in places.items()
        for policy, cost in zip("abc", costs, strict=True)
    ]
    tables.append(made_table([0.1], policy="only in x", scenario="x"))
    ranking = summary.ranks(pd.concat(tables), ["scenario"])
    assert ranking["x"].tolist() == [1, 2, 3]
    assert ranking["z"].tolist() == [3, 2, 1]
    tau = summary.stability(ranking)
    assert tau.loc["x", "y"] == 1.0
    assert tau.loc["x", "z"] == -1.0
    late = pd.concat([made_table([1.0], 5.0, "cheap and late"), made_table([3.0], 0.0, "dear and safe")])
    assert summary.ranks(late, ["scenario"])["s"].tolist() == [2, 1]


def frontier(costs, violations, policy="a"):
    parts = [made_table([c], v, policy, knob=float(i)) for i, (c, v) in enumerate(zip(costs, violations, strict=True))]
    return summary.systems(pd.concat(parts))


def test_a_curve_keeps_what_nothing_beats():
    curve = summary.curve(frontier([3.0, 2.0, 2.5, 1.0], [0.1, 1.0, 2.0, 5.0]))
    assert curve.tolist() == [[0.1, 3.0], [1.0, 2.0], [5.0, 1.0]]
    assert summary.cost_at(curve, np.array([0.0, 0.1, 0.99, 7.0])).tolist() == [inf, 3.0, 3.0, 1.0]


def test_beaten_is_who_is_above_everywhere():
    low, high, crossing = [1.0, 2.0, 3.0], [1.1, 2.1, 3.1], [0.9, 2.1, 3.1]
    violations = [5.0, 1.0, 0.1]
    table = pd.concat(
        [frontier(low, violations, "low"), frontier(high, violations, "high"), frontier(crossing, violations, "cross")]
    )
    found = summary.beaten_table(table)
    pairs = set(zip(found["beaten"], found["by"], strict=True))
    assert ("high authors", "low authors") in pairs
    assert not any(one == "cross authors" or one == "low authors" for one, _ in pairs)
    assert not summary.beaten(np.zeros((0, 2)), summary.curve(frontier(low, violations)))


def test_a_knob_is_swept(trace):
    cases, labels = run.grid(["reactive", "clairvoyant"], [(trace, 2300, 300)], SCENARIOS, frontier=True)
    knob = getattr(type(run.make_policy("reactive")), "knob", None)
    assert [x["knob"] for x in labels] == list(knob[1] if knob else [])
    assert all(c.policy == "reactive" for c in cases)


# --- the command


def arguments(trace, out, *more):
    return ["evaluate", "--policies", "static,reactive", "--traces", trace, "--windows", "1", "--length-s", "300",
            "--scenario-set", "rate_scale=1.0", "--scenario-set", "warmup_s=60.0", "--tune", "0", "--jobs", "1",
            "--out", str(out), *more]  # fmt: skip


def test_the_command_writes_tables_and_prints_each_system(trace, tmp_path, capsys):
    assert main(arguments(trace, tmp_path / "out")) == 0
    shown = capsys.readouterr()
    assert "static authors" in shown.out
    assert "2 runs computed" in shown.err
    table = pd.read_parquet(tmp_path / "out" / "runs.parquet")
    assert list(table["policy"]) == ["reactive", "static"]
    assert len(pd.read_parquet(tmp_path / "out" / "classes.parquet")) == 6
    assert main(arguments(trace, tmp_path / "out")) == 0
    assert "0 runs computed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--windows", "0"], "--windows 0: must be 1 or more"),
        (["--policies", "static,nobody"], "policy nobody: unknown"),
        (["--policies", "static,all"], "policy static is named twice"),
        (["--policies", "static,,reactive"], "is not a list such as a,b"),
        (["--traces", "nowhere"], "trace 'nowhere': neither a file nor a known trace"),
        (["--scenarios", "nowhere"], "nowhere"),
        (["--length-s", "60"], "leave nothing after the warm-up of 60 s"),
    ],
)
def test_wrong_input_is_one_line(trace, tmp_path, capsys, more, message):
    assert main(arguments(trace, tmp_path / "out", *more)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cluster_needs_the_extra(trace, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(arguments(trace, tmp_path / "out", "--ray", "auto")) == 2
    assert "pip install -r requirements-live.txt" in capsys.readouterr().err


def test_a_run_is_of_another_version_whatever_it_is_computed_with_changes():
    """Replays of the controller go through training, environment and vector: none may be left out of the hash."""
    code = "import sys, selfserve.bound, selfserve.simulator, selfserve.training, selfserve.policies.analytic\n"
    code += "print(*(m for m in sys.modules if m.startswith('selfserve.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    parts = {name.split(".")[1] for name in loaded}
    assert {"vector", "environment", "training", "simulator"} <= parts
    assert not parts & {name.removesuffix(".py") for name in run._NOT_COMPUTED_WITH}


def test_training_windows_are_longer_where_the_warm_up_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SELFSERVE_RESULTS", str(tmp_path))
    assert main(["evaluate", "--policies", "static", "--traces", "WITS-twin", "--windows", "1", "--length-s", "1900",
                 "--scenario-set", "load_machines=2", "--scenario-set", "warmup_s=1800", "--tune", "2", "--jobs", "1",
                 "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err  # fmt: skip
    assert set(pd.read_parquet(tmp_path / "out" / "runs.parquet")["kind"]) == {"authors", "tuned"}
