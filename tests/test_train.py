"""``train``: what it writes, what it goes on from, and what it refuses."""

import numpy as np
import pytest

from selfserve import controller, ppo
from selfserve.cli import main
from selfserve.errors import InputError
from selfserve.evaluation.run import training_ranges
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
