"""The environment: its spaces and rules, its planner against the scalar one, one world against many."""

import subprocess
import sys
import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from selfserve.environment import Course, Episode, InferenceServing, Task
from selfserve.errors import InputError
from selfserve.features import ACTIONS, AT, LEVELS, OBSERVATIONS, Case, Flock, Seen
from selfserve.simulator import Simulator, simulate
from selfserve.situations import sample
from selfserve.steering import PlannerSettings, Steering, steer
from selfserve.studies import environment as study
from selfserve.vector import InferenceServingVector, to_stable_baselines3
from selfserve.warming import WARMED_FROM_S

NAMES = ("selfserve:selfserve/InferenceServing-v0", "selfserve:selfserve/InferenceServingRaw-v0")
SHORT = {
    "trace": "WITS-twin", "scenario": "standard", "length_s": 400,
    "overrides": {"load_machines": 5, "warmup_s": 200.0},
}  # fmt: skip
STORMY = 2
"""A training situation with spot machines and a storm."""


def short_case(index: int, seconds: int = 1000):
    one = sample("train", index, twins=True)
    whole = one.workload(2)
    return one.scenario, replace(whole, seconds=seconds, counts=whole.counts[:seconds])


@pytest.mark.parametrize("name", NAMES)
def test_checkers_are_content(name):
    env = gymnasium.make(name, **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)
        check_env_sb3(env.unwrapped)


def test_pages_name_the_spaces():
    env, raw = InferenceServing(**SHORT), InferenceServing(**SHORT, raw=True)
    assert env.observation_space.shape == (len(OBSERVATIONS),)
    page = " ".join((InferenceServing.__doc__ or "").split())
    for space in (env.observation_space, env.action_space):
        assert f"({space.shape[0]},), float32" in page
    assert f"raw: {raw.observation_space.shape[0]}" in page


def test_the_window_truncates_and_its_parts_add_up():
    env = InferenceServing(**SHORT)
    _, info = env.reset(seed=3)
    assert info["time_s"] == 200
    steps, spent, violations, terminated, truncated = 0, 0.0, 0.0, False, False
    while not truncated:
        _, _, terminated, truncated, info = env.step(env.action_space.sample() * 0)
        assert not terminated
        assert info["cost_usd"] == pytest.approx(info["vm_usd"] + info["spot_usd"] + info["function_usd"])
        steps, spent, violations = steps + 1, spent + info["cost_usd"], violations + info["violations"]
    assert steps == 20 and info["time_s"] == 400
    summary = info["summary"]
    assert summary["requests"] > 1000
    # what is scored differs at the edges only: bills by arrival, answers after the end
    assert spent == pytest.approx(summary["cost_usd"], rel=0.15)


def test_a_seed_repeats_a_run_and_another_does_not():
    def run(seed: int) -> list[float]:
        env = InferenceServing(situations="train", twins=True, first=3, count=2)
        env.action_space.seed(0)
        env.reset(seed=seed)
        return [env.step(env.action_space.sample())[1] for _ in range(5)]

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize("served", [{"cascades": False}, {"own_share": 0.0}, {"own_share": 0.9}])
def test_costs_are_over_work_that_does_not_hang_on_how_it_is_served(served):
    one = sample("validate", 10, machines=5, twins=True)
    cases = [Case(one.scenario, one.workload(0).history, 10.0, **how) for how in ({}, served)]
    usual, other = (
        Course(Task(situations="validate"), [Episode("", one.scenario, one.workload(0), 0, case)]).ideal_usd
        for case in cases
    )
    assert usual == other > 0
    assert not np.array_equal(cases[0].work, cases[1].work)


@pytest.mark.parametrize("warm_s", [None, 20.0])
@pytest.mark.parametrize("cascades", [False, True])
@pytest.mark.parametrize("index", [0, STORMY])
def test_flock_decides_as_the_planner_does(index, cascades, warm_s):
    """Under random settings, a flock of one gives the decisions of ``steer``, to the last slack."""
    scenario, workload = short_case(index)
    init_s = WARMED_FROM_S + 1 if warm_s else WARMED_FROM_S - 1
    function = replace(scenario.function, init_s=init_s, keep_alive_s=warm_s or scenario.function.keep_alive_s)
    scenario, called = replace(scenario, function=function), 0
    state = Steering(scenario, workload.history, 10.0, cascades=cascades)
    flock = Flock([Case(scenario, workload.history, 10.0, cascades=cascades)])
    simulator, rng = Simulator(scenario, workload, 10.0, histogram=False), np.random.default_rng(index)
    seen = simulator.reset(1)
    while not simulator.done:
        numbers, levels = flock.corrected(rng.uniform(-1, 1, (1, len(ACTIONS))))
        levels = np.rint(levels * (LEVELS - 1)) / (LEVELS - 1)
        state.observe(seen)
        flock.observe(Seen.one(seen))
        values = {name: float(numbers[0, i]) for name, i in AT.items()}
        mine = flock.decision(flock.decide(numbers, levels))
        theirs = steer(state, PlannerSettings(**values, levels=tuple(levels[0].tolist())))
        assert (mine.machines, mine.batch_max, mine.batch_wait_s) == (
            theirs.machines, theirs.batch_max, theirs.batch_wait_s,
        )  # fmt: skip
        for a, b in zip(
            (r for own in mine.routes for r in own), (r for own in theirs.routes for r in own), strict=True
        ):
            assert a.weight == pytest.approx(b.weight, abs=1e-12)
            called += a.weight > 0 and scenario.pools[a.steps[0].pool].is_function
            for x, y in zip(a.steps, b.steps, strict=True):
                assert x.leave_slack_s == pytest.approx(y.leave_slack_s) and x.late_slack_s == pytest.approx(
                    y.late_slack_s
                )
                same = ("pool", "model", "admit", "late_model", "then", "unsure_share")
                assert [getattr(x, n) for n in same] == [getattr(y, n) for n in same]
        seen = simulator.advance(theirs)
    assert (called > 0) == bool(warm_s)


def test_neutral_actions_are_the_planner():
    """An environment that nobody corrects bills what the planner bills by itself."""

    class Alone:
        interval_s = 10.0

        def reset(self, scenario, history):
            self.state = Steering(scenario, history, 10.0)

        def decide(self, observation):
            self.state.observe(observation)
            return steer(self.state, PlannerSettings())

    env = InferenceServing(**SHORT, start_s=5000)
    env.reset(seed=0)
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(np.zeros(len(ACTIONS), np.float32))
    episode = env.course.episodes[0]
    alone = simulate(episode.scenario, episode.workload, Alone(), episode.seed)
    assert info["summary"]["cost_usd"] == alone.summary["cost_usd"]
    assert info["summary"]["slo_violation_pct"] == alone.summary["slo_violation_pct"]


@pytest.mark.parametrize(
    "task", [SHORT, {"situations": "train", "twins": True, "first": 1, "count": 2}, {**SHORT, "raw": True, "every": 3}]
)
def test_one_world_equals_its_place_among_many(task):
    """Same seeds, same actions: the same observations, rewards and info, also where worlds differ in their pools."""
    worlds, steps = 3, 12
    many, one = InferenceServingVector(worlds, **task), InferenceServing(**task)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, worlds, *one.action_space.shape)).astype(np.float32)
    first, _ = many.reset(seed=7)
    seen = [many.step(a) for a in actions]
    for w in range(worlds):
        np.testing.assert_array_equal(one.reset(seed=7 + w)[0], first[w])
        for t in range(steps):
            observation, reward, _, truncated, info = one.step(actions[t, w])
            assert reward == pytest.approx(seen[t][1][w], rel=1e-9)
            assert truncated == seen[t][3][w]
            for key in ("cost_usd", "spot_usd", "requests", "violations", "accuracy_missed"):
                assert info[key] == pytest.approx(seen[t][4][key][w], rel=1e-9, abs=1e-15), key
            if truncated:
                np.testing.assert_array_equal(observation, seen[t][4]["final_obs"][w])
                observation, _ = one.reset()
            np.testing.assert_array_equal(observation, seen[t][0][w])


def test_observations_have_no_scale():
    """Ten times the load on ten times the machines looks about the same, but for the fleet's size itself."""
    looks = []
    for machines in (20, 200):
        env = InferenceServing(**{**SHORT, "overrides": {"load_machines": machines, "warmup_s": 200.0}}, start_s=5000)
        looks.append(env.reset(seed=0)[0])
    differs = {name for name, a, b in zip(OBSERVATIONS, *looks, strict=True) if abs(a - b) > 0.3}
    assert differs <= {"fleet", "machine", "late_lately", "late_so_far", "head_age"}


def test_rewards_price_violations():
    task = Task(**SHORT, start_s=5000)
    env = InferenceServing(**SHORT, start_s=5000)
    env.reset(seed=0)
    seen = env.course.flock.seen
    course = Course(task, env.course.episodes)
    course.flock.observe(replace(seen, time_s=0.0))
    plain, _ = course.score(replace(seen, late=np.zeros_like(seen.late)))
    course = Course(task, env.course.episodes)
    course.flock.observe(replace(seen, time_s=0.0))
    late, parts = course.score(replace(seen, late=np.ones_like(seen.late)))
    assert parts["violations"][0] == seen.late.shape[1]
    assert plain[0] - late[0] == pytest.approx(course.violation_price * seen.late.shape[1] / course.mean[0])


def test_gymnasium_makes_both_forms():
    one = gymnasium.make(NAMES[0], **SHORT, render_mode="rgb_array")
    one.reset(seed=0)
    one.step(one.action_space.sample())
    picture = one.render()
    assert picture.shape == (360, 640, 3) and picture.std() > 10
    many = gymnasium.make_vec(NAMES[1], num_envs=2, vectorization_mode="vector_entry_point", **SHORT)
    assert isinstance(many.unwrapped, InferenceServingVector)
    assert many.action_space.shape == (2, 2)


def test_stable_baselines3_trains_on_the_adapter():
    env = to_stable_baselines3(InferenceServingVector(2, **SHORT))
    env.seed(5)
    first = env.reset()
    direct = InferenceServingVector(2, **SHORT)
    np.testing.assert_array_equal(first, direct.reset(seed=5)[0])
    for _ in range(20):
        observations, rewards, dones, infos = env.step(np.zeros((2, len(ACTIONS)), np.float32))
    assert dones.all() and all(one["TimeLimit.truncated"] for one in infos)
    assert not np.array_equal(infos[0]["terminal_observation"], observations[0])
    assert rewards.dtype == np.float32
    env.set_attr("prices", {"violation_price": 5.0, "accuracy_price": 0.1})
    assert env.get_attr("prices")[1]["violation_price"] == 5.0
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(32)
    assert model.num_timesteps == 32


def test_wrong_arguments_are_told_in_a_line():
    with pytest.raises(InputError, match="give trace="):
        InferenceServing()
    with pytest.raises(InputError, match="every=0"):
        InferenceServing(**SHORT, every=0)
    with pytest.raises(InputError, match="render_mode=human"):
        InferenceServing(**SHORT, render_mode="human")
    with pytest.raises(InputError, match="windows of one length"):
        many = InferenceServingVector(2, situations="evaluate", twins=True, first=5, count=2)
        for seed in range(20):
            many.reset(seed=seed)


def test_what_an_action_does_is_told_against_the_planner_alone():
    larger = SHORT | {"overrides": {"load_machines": 12, "warmup_s": 200.0}}  # cascades need fewer machines
    effects = study.sensitivity(larger, 1, 0).set_index(["action", "value"])
    assert effects["cost_ratio"]["none", 0.0] == 1.0
    assert effects["cost_ratio"]["headroom", 1.0] > 1.05 > effects["cost_ratio"]["headroom", -1.0]
    assert list(study.actions_table()["action"]) == list(ACTIONS)
    same = study.agreement(SHORT, 2, 5, 0)
    assert same["observations"].max() == 0 and same["rewards"].max() < 1e-9


@pytest.mark.parametrize("order", ["gymnasium, selfserve", "selfserve, gymnasium"])
def test_gymnasium_knows_them_whichever_is_imported_first(order):
    code = f"import {order}; print([gymnasium.spec(n).id for n in {[n.split(':')[1] for n in NAMES]}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([name.split(":")[1] for name in NAMES])
