"""The common look, and figures and tables that come out the same every time."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from selfserve.figures import style

POLICIES = (
    "bound clairvoyant static reactive util_aware exascale mixed spock paragon mark batch inferall clipper infaas "
    "tolerance_tiers cocktail proteus forecast_milp target_tracking knative ray_serve tuned tuned_fixed analytic "
    "controller"
).split()


def figure():
    style.use_style()
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, 1], **style.policy_style("mixed"))
    return style.finish(fig)


def test_policies_look_the_same_each_time_and_unlike_each_other():
    looks = {name: style.policy_style(name) for name in POLICIES}
    assert all(style.policy_style(name) == look for name, look in looks.items())
    assert len({(str(v["color"]), v["marker"], str(v["linestyle"])) for v in looks.values()}) == len(POLICIES)
    near = ["reactive", "util_aware", "exascale", "mixed", "spock", "paragon", "clairvoyant", "tuned", "controller"]
    assert len({looks[name]["color"] for name in near[:6]}) == 6
    assert style.policy_style("my_own") == style.policy_style("my_own")


def test_a_figure_is_written_three_times_and_byte_for_byte_again(tmp_path, monkeypatch):
    data = pd.DataFrame({"x": [0.1, 1 / 3], "name": ["a", "b"]})
    written = []
    for run in ("first", "second"):
        monkeypatch.setenv("SELFSERVE_RESULTS", str(tmp_path / run))
        paths = style.save_figure(figure(), "f01_test", data)
        table = style.save_table(data, "t01_test")
        assert [p.name for p in paths] == ["f01_test.pdf", "f01_test.png", "f01_test.csv"]
        written.append([p.read_bytes() for p in [*paths, table]])
        assert sorted(p.name for p in (tmp_path / run / "figures").iterdir()) == sorted(p.name for p in paths)
    assert written[0] == written[1]
    assert written[0][2] == b"x,name\n0.1,a\n0.333333333,b\n"


def test_several_tables_of_one_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFSERVE_RESULTS", str(tmp_path))
    parts = {"left": pd.DataFrame({"a": [1]}), "right": pd.DataFrame({"b": [2]})}
    assert [p.name for p in style.save_figure(figure(), "f", parts)][2:] == ["f_left.csv", "f_right.csv"]


@pytest.mark.parametrize("depth", [0, 2])
def test_results_lie_beside_run_all_wherever_the_notebook_runs(tmp_path, monkeypatch, depth):
    monkeypatch.delenv("SELFSERVE_RESULTS", raising=False)
    (tmp_path / "run_all.sh").touch()
    inside = tmp_path.joinpath(*["deep"] * depth)
    inside.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(inside)
    assert style.results_dir() == tmp_path / "results"
