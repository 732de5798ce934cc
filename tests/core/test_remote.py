"""An edited trace runs where the library is not: it is packed here, run there by nnsight alone, and the same.

Two processes do it (`travel/departure.py` and `travel/arrival.py`). The second can import torch,
transformers, nnsight and what those need, and has nothing of ours but the saved model.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnsight.modeling import huggingface

TRAVEL = Path(__file__).parent / "travel"
EVERY_FAMILY = [
    f"{model}/{case}" for model in ("llava", "packed", "tiled", "mllama") for case in ("edited", "generation")
]
EDITED = ("edited", "evidence", "twice-edited", "picture", "in-a-session", "written-in-the-block")
LLAVA = (
    "bare",
    "seen",
    "rows",
    "sites",
    "contrast",
    "evidence",
    "twice-edited",
    "nnsights-own-names",
    "written-in-the-block",
    "in-a-session",
)


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """The folder that both processes have filled."""
    folder = tmp_path_factory.mktemp("trip")
    for script, path in (("departure.py", TRAVEL.parents[1]), ("arrival.py", None)):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if path is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), env.get("PYTHONPATH"))))
        run = subprocess.run(
            [sys.executable, TRAVEL / script, folder], env=env, cwd=folder, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-4000:]
    return folder


def here(trip, case):
    return torch.load(trip / f"{case}.pt")


def there(trip, case):
    return torch.load(trip / f"{case}.out")


@pytest.mark.parametrize(
    "case", [*EVERY_FAMILY, *(f"llava/{case}" for case in (*LLAVA, "picture", "bare-inputs"))]
)
def test_a_trace_gives_there_what_it_gave_here(trip, case):
    ours, theirs = here(trip, case), there(trip, case)
    assert not isinstance(theirs, str), theirs
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", EDITED)
def test_the_edits_act_there(trip, case):
    bare, edited = (there(trip, f"llava/{one}")["logits"] for one in ("bare", case))
    assert (edited - bare).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("boxes-missing", "BadPrompt: row 0"),
        ("edited-bare-inputs", "BadEdit: edits are resolved against a Prompt"),
    ],
)
def test_what_is_refused_here_is_refused_there(trip, case, error):
    assert here(trip, f"llava/{case}") == there(trip, f"llava/{case}")
    assert there(trip, f"llava/{case}").startswith(error)


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("invokes", "BadPrompt: 2 invokes of prompts become a batch where the processor is"),
        ("changed-there", "BadPrompt: the processor and the pictures stayed where this prompt was made"),
        ("picture-in-a-session", "BadPrompt: the edits change pictures"),
    ],
)
def test_what_needs_the_processor_says_so_there(trip, case, error):
    assert isinstance(here(trip, f"llava/{case}"), dict)
    assert there(trip, f"llava/{case}").startswith(error)


def test_pictures_that_could_not_be_edited_are_refused_before_anything_is_sent(trip):
    error = (trip / "llava" / "picture-invoke.refused").read_text()
    assert error.startswith("BadPrompt: the edits change pictures")
    assert not (trip / "llava" / "picture-invoke.blob").exists()


def test_nnsights_dry_run_of_a_remote_trace_gives_the_same_and_changes_nothing(trip):
    dry, behind = here(trip, "llava/local"), here(trip, "llava/behind-local")
    edited = here(trip, "llava/edited")["logits"]
    assert torch.equal(dry["first"], edited)
    assert torch.equal(behind["first"], edited)
    assert torch.equal(dry["ids"], behind["ids"])


def test_a_server_knows_the_model_by_nnsights_own_class(vlm, monkeypatch):
    monkeypatch.setitem(huggingface._ID_CACHE, vlm.repo_id, "owner/model")
    key = vlm.to_model_key()
    assert key.startswith("nnsight.modeling.transformers.TransformersModel:")
    assert "image-text-to-text" in key


def test_a_copy_is_no_prompt_that_travels(prompt):
    for copied in (copy.copy(prompt), copy.deepcopy(prompt)):
        assert copied.turns[0].images[0].size == prompt.turns[0].images[0].size
        assert torch.equal(copied.row(0).inputs["input_ids"], prompt.inputs["input_ids"])
