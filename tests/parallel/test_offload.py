"""A model too large for memory, with layers on disk, gives bit for bit what it gives in memory."""

import pytest
import torch
from parallel.checks import ALL, MODELS, SOME, equal, found_by
from parallel.documented import program
from transformers import AutoModelForImageTextToText

import seeing
from seeing.data.plates import plates
from seeing.loading import CannotLoad

#: Every other text layer on disk, and the first and last steps; the tower where the model runs.
PLATES = {
    "model.language_model.embed_tokens": "disk",
    "model.multi_modal_projector": "disk",
    "model.vision_tower": "cpu",
    "model.language_model.rotary_emb": "cpu",
    "model.language_model.norm": "disk",
    "lm_head": "disk",
} | {f"model.language_model.layers.{layer}": ("cpu", "disk")[layer % 2] for layer in range(6)}

#: All of the text model on disk: its layers have gates of their own.
GATES = {"model.vision_model": "cpu", "model.multi_modal_projector": "cpu", "model.language_model": "disk"}
GATES |= {"lm_head": "disk"}


@pytest.fixture(scope="module")
def away(saved, tmp_path_factory):
    """Models whose weights are read in while they run, proved at load."""
    folders = [tmp_path_factory.mktemp("weights") for _ in range(2)]
    gates = AutoModelForImageTextToText.from_pretrained(
        saved / "gates", device_map=GATES, offload_folder=folders[1]
    )
    return {
        "plates": seeing.load("plates-tiny", device_map=PLATES, offload_folder=folders[0]),
        "gates": seeing.load((gates, MODELS["gates"]()[1])),
    }


CHECKED = [("plates", check) for check in ALL] + [("gates", check) for check in SOME]


@pytest.mark.parametrize(("model", "check"), CHECKED, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_read_in_gives_what_is_held_in_memory(away, whole, model, check):
    found = found_by([check], away[model])[check.__name__]
    equal(found, whole[model][check.__name__], within=0)


def test_the_weights_stay_away_behind_a_run(away):
    for vlm in away.values():
        for layer in (1, 3):
            attn = vlm.family.text(vlm._module).attention(layer)
            assert attn.o_proj.weight.is_meta
            assert not vlm.W_O[layer].is_meta


def test_the_documented_program_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(program("Layers on disk"), said := {})
    assert said["vlm"].family.text(said["vlm"]._module).attention(4).o_proj.weight.is_meta
    vlm = seeing.load("plates-tiny", check=False)
    assert capsys.readouterr().out.startswith(str(vlm.answer(vlm.prompt(plates("easy", 1)[0]))))


def test_a_model_with_no_place_to_run_is_refused(tmp_path):
    with pytest.raises(CannotLoad, match="all of the model on disk"):
        seeing.load("plates-tiny", device_map={"": "disk"}, offload_folder=tmp_path)


def test_a_device_map_of_transformers_own_is_taken(whole):
    vlm = seeing.load("plates-tiny", device_map="auto")
    found = found_by([ALL[0]], vlm)["names"]
    equal(found, whole["plates"]["names"], within=1e-5)
    assert vlm.device == torch.device("cpu") or torch.cuda.is_available()
