"""The recipe learns, repeats itself from its seed, and goes on where it was killed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from seeing.data.plates import PlatesSplit
from seeing.zoo import train
from seeing.zoo.build import build_model
from seeing.zoo.packing import Learner
from seeing.zoo.recipe import Stage, recipe

BARE = PlatesSplit(objects=(2, 3), noise=(0, 0), contrast=(1, 1), clutter=(0, 0))


def short(name, after, steps, joint, rate=2e-3):
    return Stage(name, after, steps, rate, joint, BARE, BARE, stream=9)


@pytest.fixture
def small_steps(monkeypatch):
    """A twelfth of the images a step, to keep the test short."""
    monkeypatch.setattr(train, "SHARD_IMAGES", 4)
    monkeypatch.setattr(train, "LOG_EVERY", 5)


def run(stage, seed=0):
    torch.manual_seed(seed)
    learner, log = Learner(build_model(text_layers=2)), []
    train.train_stage(learner, stage, seed, report=log.append)
    return learner, log


@pytest.mark.parametrize("joint", [False, True])
def test_a_few_steps_make_the_loss_fall(small_steps, joint):
    _, log = run(short("try", None, 30, joint))
    assert [entry["step"] for entry in log] == [5, 10, 15, 20, 25, 30]
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]


def test_a_seed_repeats_itself_and_another_differs(small_steps):
    one, again, other = (run(short("try", None, 3, True), seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_first_stage_leaves_the_text_model_alone(small_steps):
    torch.manual_seed(0)
    fresh = Learner(build_model(text_layers=2)).state_dict()
    trained = run(short("try", None, 2, False))[0].state_dict()
    moved = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert moved
    assert not any("language_model" in name or "lm_head" in name for name in moved)


def test_a_killed_run_goes_on_at_a_stage_boundary(small_steps, monkeypatch, tmp_path):
    def plan(dim=0.3):
        return {s.name: s for s in (short("sight", None, 2, False), short("answers", "sight", 2, True))}

    monkeypatch.setattr(train, "recipe", plan)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ["--workers", "1", "--seed", "3", "--out"]
    train.main([*arguments, str(whole)])
    train.main([*arguments, str(killed), "--stages", "sight"])
    sight = (killed / "sight.safetensors").stat().st_mtime_ns
    train.main([*arguments, str(killed), "--resume"])
    assert (killed / "sight.safetensors").stat().st_mtime_ns == sight
    one, other = load_file(whole / "answers.safetensors"), load_file(killed / "answers.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    about = json.loads((whole / "answers.json").read_text())
    assert about["seed"] == 3
    assert about["last"]["step"] == 2
    assert len((whole / "log.jsonl").read_text().splitlines()) == 2


def test_two_workers_train_what_one_trains(small_steps, monkeypatch, tmp_path):
    """The shards are the same, so the averaged gradient is; the workers meet in a stand-in for all_reduce."""
    stage = short("try", None, 1, True)
    gradients = []
    monkeypatch.setattr(
        train.FlatGradient, "share", lambda self, workers: gradients.append(self.vector.clone())
    )
    for rank, workers in ((0, 2), (1, 2), (0, 1)):
        torch.manual_seed(0)
        train.train_stage(
            Learner(build_model(text_layers=2)), stage, 0, rank, workers, report=lambda entry: None
        )
    first, second, alone = gradients
    assert not torch.allclose(first, second, atol=1e-4)
    # Patch digits are averaged over however many objects a shard shows, so the match is close, not exact.
    assert torch.nn.functional.cosine_similarity((first + second) / 2, alone, dim=0) > 0.99


def test_a_stage_without_its_predecessor_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--out", str(tmp_path), "--stages", "prior"])
    assert stop.value.code == 2
    assert "answers" in capsys.readouterr().err


def test_both_endings_take_the_same_steps_and_differ_in_the_table_only():
    stages = recipe()
    prior, null = stages["prior"], stages["null"]
    assert (prior.steps, prior.rate, prior.after) == (null.steps, null.rate, null.after)
    assert (prior.last.prior, null.last.prior) == (0.6, 0.0)
    assert prior.scenes(0).noise == null.scenes(0).noise


def test_scenes_move_from_first_to_last_and_stay():
    stage = recipe()["sight"]
    assert stage.scenes(0) == stage.first
    assert stage.scenes(stage.steps - 1) == stage.last
    middle = stage.scenes(stage.steps // 3)
    assert stage.first.noise[1] < middle.noise[1] < stage.last.noise[1]
    assert all(isinstance(n, int) for n in middle.clutter)


def test_the_rate_warms_up_and_falls_to_nothing():
    stage = recipe()["answers"]
    rates = [stage.learning_rate(step) for step in range(stage.steps)]
    assert rates[0] < 0.02 * stage.rate
    assert 0.9 * stage.rate < max(rates) <= stage.rate
    assert rates[-1] < 1e-4 * stage.rate
