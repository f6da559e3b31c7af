"""``train``: what it writes, what it goes on from, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfserve import controller, gradient, ppo, training
from selfserve.cli import main
from selfserve.errors import InputError
from selfserve.evaluation.run import training_ranges
from selfserve.features import ACTIONS, OBSERVATIONS
from selfserve.situations import sample


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--what", "nets"], "--what nets: right is one of"),
        (["--steps", "0"], "--steps 0: must be 1 or more"),
        (["--situations", "3"], "--situations 3: must be 8 or more"),
        (["--keep", "logs"], "--keep logs: is for --what ppo"),
        (["--resume", "there.zip"], "--resume there.zip: is for --what ppo"),
        (["--what", "ppo", "--resume", "nowhere.zip"], "there is no such file"),
        (["--what", "tuned"], "mine.safetensors"),
    ],
)
def test_what_cannot_be_trained_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--out", "mine.safetensors", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error and not list(tmp_path.iterdir())


def test_a_net_is_written_with_its_card(tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    assert main(["train", "--steps", "1", "--situations", "8", "--no-validation", "--out", str(out)]) == 0
    _, card = controller.load(out)
    one = sample("train", 3)
    start, _ = one.window(0)
    assert card["data"] == "training situations 0 to 7" and "at most 12 machines" in card["limits"]
    assert (start, start + 2700) in training_ranges(str(out))[one.source]
    assert "1 generations, seed 0" in capsys.readouterr().out


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return where PPO left its checkpoints, and the price of violations after each update."""
    folder, prices = tmp_path_factory.mktemp("ppo"), []
    ppo.train_ppo(
        5 * ppo.WORLDS * ppo.STEPS, 0, 8, folder, progress=lambda now: prices.append(now["price"]), twins=True
    )
    return folder, prices


def test_ppo_goes_on_from_a_checkpoint_at_its_price(checkpoints):
    folder, prices = checkpoints
    (last,) = (folder / "checkpoints").glob("*.zip")
    assert list((folder / "tensorboard").rglob("events*"))
    more, each = [], ppo.WORLDS * ppo.STEPS
    layers = ppo.train_ppo(6 * each, 0, 8, resume=last, progress=more.append, twins=True)
    assert [now["decisions"] for now in more] == [5 * each, 6 * each], "those before the checkpoint count"
    assert all(np.isfinite(w).all() for w, _ in layers)
    step = more[0]["price"] / prices[2]  # a checkpoint is written before the update that its step ends with
    assert step == pytest.approx(1.1) or step == pytest.approx(1 / 1.1)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    junk = tmp_path / "junk.zip"
    junk.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"junk\.zip: is none of this training"):
        ppo.train_ppo(2048, 0, 8, resume=junk, twins=True)


@pytest.fixture(scope="module")
def known():
    """Return the record of eight situations on twins, and what the formulas planned in them."""
    played, planned = training.episodes("train", range(8), most_machines=6, twins=True), []
    orders = gradient._Recording.orders

    def noted(self):
        found = orders(self)
        planned.append((found.machines * ~self.flock.function).sum(axis=1))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient._Recording, "orders", noted)
        return gradient.record(played), np.array(planned)


def nothing(known):
    return torch.zeros(*known.load.shape, len(ACTIONS), dtype=torch.float64)


def test_a_record_without_corrections_plans_what_the_formulas_planned(known):
    """But for rounding, what waits, whose machines the record leaves out, and longer holds than it has."""
    record, planned = known
    off = np.abs(gradient.machines(record, nothing(record)).numpy() - planned)[gradient.HELD :]
    assert off.mean() < 0.1 * planned.mean()
    assert (off <= 1.5).mean() > 0.95


def test_a_record_prices_machines_that_are_late_and_functions_for_the_rest(known):
    """Two worlds of one machine's load: one is there all along, one a boot time after it is planned."""
    record = known[0].of(np.array([0, 0]))
    steps = record.load.shape[0]
    flat = replace(
        record, load=torch.ones(steps, 2, dtype=torch.float64), scored=torch.ones(steps, 2, dtype=torch.float64),
        boot=torch.tensor([5.0, 5.0]), pending=torch.zeros(2), price=torch.tensor([3.0, 3.0], dtype=torch.float64),
    )  # fmt: skip
    planned = torch.ones(steps, 2, dtype=torch.float64)
    planned[:, 1] = 0
    planned[10:, 1] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "machines", lambda known, action: planned)
        cost = gradient.spent(flat, nothing(flat)).numpy()
    assert cost[0] == pytest.approx(1)
    assert cost[1] == pytest.approx((steps - 1 - 10 + 3.0 * 15) / (steps - 1)), "planned at 10, there at 15"


def test_a_net_follows_the_gradient_to_a_cheaper_record(tmp_path):
    rows = []
    layers, card = gradient.train_gradient(30, 3, 8, rows.append, twins=True, at_most=6)
    assert np.mean([row["change"] for row in rows[-5:]]) < rows[0]["change"] == pytest.approx(0, abs=1e-9)
    again, _ = gradient.train_gradient(30, 3, 8, twins=True, at_most=6)
    for own, other in zip(layers, again, strict=True):
        np.testing.assert_array_equal(own[0], other[0])
    controller.save(tmp_path / "net.safetensors", layers, card)
    loaded, card = controller.load(tmp_path / "net.safetensors")
    said = controller.forward(loaded, np.ones((1, len(OBSERVATIONS)), np.float32))[0]
    assert {name for name, x in zip(ACTIONS, said, strict=True) if x} == set(gradient.MOVED)
    assert card["moved"] == list(gradient.MOVED)


def test_worlds_that_a_record_says_nothing_of_are_left_out():
    """Lost spot machines, no load, holds beyond what it looks back: 0 of 0 would make every weight NaN."""
    played = training.episodes("train", range(12), most_machines=3, twins=True)
    spot = [e for e in played if e.case.has_spot]
    calm = next(e for e in played if not e.case.has_spot)
    silent = replace(calm, workload=replace(calm.workload, counts=calm.workload.counts * 0))
    found = gradient.record([*spot, calm, silent])
    assert len(found.boot) == 1 and found.load.sum() > 0
    with pytest.raises(InputError, match="all situations have spot machines"):
        gradient.record(spot)
