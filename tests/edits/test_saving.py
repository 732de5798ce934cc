"""Edits as JSON: what is read back is equal, does the same, and was never executed."""

import json

import numpy as np
import pytest
import torch

from seeing import edits as E
from seeing import methods

S = E.Span

PLAIN = [
    E.Bias(keys="image", value=1.5, queries="question", layers=slice(1, None), heads={1: [0], 2: [3]}),
    E.ScaleAttention(keys=S("image") & ~S("evidence"), gain=2.0, layers="deep", when=range(1, 4)),
    E.Knockout(keys=E.maybe("answer") | E.Boxes(((0, 0, 14, 14),), image=1), queries=[3, 4], layers=(0, 2)),
    E.ScaleAttention(keys=E.seen({1: [0], 2: []}, window=(1, 3)), gain=3.0, layers=3),
    E.Temperature(value=0.5) + E.Amplify(keys="image", share=0.2),
    E.ScalePattern(keys="image", factor=0.0, renormalize=True, when="decode"),
    E.SetPattern("uniform", keys="image", heads=[0, 1]),
    E.Redistribute(E.sinks([3, 7]), "image", 0.4, E.Attending("image", 0.2, E.sinks([3, 7]), 0.5)),
    E.AblateHeads({1: [0], 3: [2]}) + E.ScaleHeads({0: [1]}, 2.0, positions="question"),
    E.MixLayers([1, 2], 0.3),
    E.Crop("evidence", pad=0.2) + E.Occlude([(0, 0, 9, 9)], fill="blur") + E.Noise(0.1, keep=0.9, seed=3),
    E.Contrast(E.Noise(0.2) + E.Knockout(queries="all", keys="image"), 0.5, plausibility=0.1, decay=0.02),
    E.Contrast(E.Edits(), 1.0, when=E.Steps(2)),
]


@pytest.mark.parametrize("edits", PLAIN, ids=lambda edits: repr(edits)[:40])
def test_what_is_read_back_is_equal(edits):
    again = E.from_json(edits.to_json())
    assert again == edits
    assert hash(again) == hash(edits)
    assert repr(again) == repr(edits)
    assert type(again) is type(edits)


def tensors(vlm, prompt):
    d = vlm.cfg.d_model
    vector = torch.randn(d, generator=torch.Generator().manual_seed(0))
    return (
        E.Steer("text.1.resid_post", vector, 3.0, norm_preserving=True)
        + E.Rotate("text.2.resid_post", vector.bfloat16(), 0.2)
        + E.ProjectOut("text.0-1.resid_post", torch.stack([vector, vector.flip(0)]))
        + E.SetResidual("text.embed", vector, "question")
        + E.SetHeads({1: [0, 1]}, torch.ones(2, 1))
        + E.SetPattern(torch.full((prompt.length,), 0.01), keys="image")
        + E.Patch("text.2.mlp_out", vlm.cache(prompt, "text.2.mlp_out"), "image")
        + E.AblateHeads({3: [0]}, "mean", vlm.cache(prompt, "text.*.attn.z"))
        + E.Highlight(np.linspace(0, 1, 112 * 112).reshape(112, 112), 0.3)
    )


def test_tensors_stand_beside_the_file(random, crowded, tmp_path):
    prompt = random.prompt(crowded[0])
    edits = tensors(random, prompt)
    edits.to_json(tmp_path / "my edits.json")
    assert {path.name for path in tmp_path.iterdir()} == {"my edits.json", "my edits.safetensors"}
    again = E.from_json(tmp_path / "my edits.json")
    assert again == edits
    logits = [random.with_edits(one).cache(prompt, "logits")["logits"] for one in (edits, again)]
    assert torch.equal(*logits)


def test_tensors_stand_in_the_text_where_there_is_no_file(random, crowded):
    edits = tensors(random, random.prompt(crowded[0]))
    assert E.from_json(edits.to_json()) == edits


@pytest.mark.parametrize("edit", [E.MapScores(lambda z: z * 2), E.MapPattern(torch.relu)])
def test_a_function_can_not_be_saved(edit):
    with pytest.raises(E.BadEdit, match=r"function .* can't be saved"):
        (E.Temperature(value=2.0) + edit).to_json()


MILD = json.loads(E.Temperature(value=2.0).to_json())["edits"]

#: A sum of sums of sums.
NESTED = MILD
for _ in range(400):
    NESTED = {"kind": "Edits", "edits": [NESTED]}


def changed(**more):
    return json.dumps({**json.loads(E.Temperature(value=2.0).to_json()), **more})


def with_keys(**keys):
    return changed(edits={**MILD, "keys": keys})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no edits in JSON"),
        ("{}", "'version' and 'edits'"),
        (changed(version=2), "version 2, this code reads 1"),
        (changed(edits={"kind": "Popen", "args": ["ls"]}), "no edit is made of a 'Popen'"),
        (changed(edits={"kind": "Temperature", "value": 2.0, "evil": 1}), "Temperature is not made of"),
        (changed(edits={"kind": "Temperature", "value": -1}), "a temperature is a positive number"),
        (changed(edits={"kind": "tensor", "name": "t0"}), "tensor 't0' that is not among"),
        (changed(tensors="!!"), "tensors of these edits are broken"),
        (changed(tensors="AAAA"), "tensors of these edits are broken"),
        (changed(tensors_in="x.safetensors"), "read it by its path"),
        (changed(version=True), "version True, this code reads 1"),
        (changed(edits=5), "no edit but 5"),
        (changed(edits=[1, 2]), "no edit but"),
        (changed(edits={"kind": "Span", "name": "image"}), "no edit but 'image'"),
        (changed(edits={"kind": []}), "the name of its kind"),
        (changed(edits={"kind": "tensor", "name": []}), "tensor"),
        (changed(edits={"kind": "Edits", "edits": [1, 2]}), "edits are made of edits"),
        (changed(edits={"kind": "Edits", "edits": "ab"}), "edits are made of edits"),
        (
            changed(edits={"kind": "Contrast", "with_": {"kind": "Edits", "edits": ["x"]}, "weight": 1.0}),
            "edits are made of edits",
        ),
        (with_keys(kind="Span", name=5), "a span has a name, got 5"),
        (with_keys(kind="Both", left="image", right="question"), "Both is composed of selectors"),
        (with_keys(kind="Not", inner="image"), "Not is composed of selectors"),
        (with_keys(kind="Maybe", inner=3), "Maybe is composed of selectors"),
        (with_keys(kind="Positions", rows=3), "positions are whole numbers"),
        (with_keys(kind="Positions", rows=[[1.5]]), "positions are whole numbers"),
        (with_keys(kind="Positions", rows=[[1]], length="x"), "length of a mask"),
        (with_keys(kind="Boxes", boxes=[[0, 0, float("nan"), 9]]), "is no box"),
        (with_keys(kind="Boxes", boxes="abcd"), "boxes are some"),
        (with_keys(kind="Seen", heads="abc"), "seen reads"),
        (with_keys(kind="Seen", heads=[[1, ["a"]]]), "whole numbers"),
        (with_keys(kind="Seen", heads=[[1, [0]]], window=[0, 2]), "a window is"),
        (
            changed(edits={**MILD, "layers": {"kind": "Slice", "start": "a", "stop": None, "step": 0}}),
            "a slice of layers",
        ),
        (changed(edits={**MILD, "layers": {"kind": "Around", "layer": -1, "window": 9}}), "a window is"),
        (changed(edits={**MILD, "value": True}), "a temperature is a positive number"),
        (
            changed(
                edits={
                    "kind": "Patch",
                    "site": "text.1.mlp_out",
                    "source": {"kind": "Source", "names": ["a"], "values": []},
                }
            ),
            "a Source",
        ),
        (changed(edits=NESTED), "nested too deeply"),
        ('{"version": 1, "edits": ' + "[" * 100_000, "nested too deeply"),
        ("[1, 2]", "an object with 'version' and 'edits'"),
        ('"hello"', "an object with 'version' and 'edits'"),
        ("hello", "'hello' is neither"),
        ("", "'' is neither"),
        ("x" * 100_000, "is neither"),
        ("a\0b", "is neither"),
        (5, "'5' is neither"),
    ],
)
def test_what_is_no_edit_is_refused(unchecked, text, message):
    with pytest.raises(E.BadEdit, match=message):
        E.from_json(text)


def test_tensors_are_read_from_beside_the_file_only(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.safetensors").write_bytes(b"")
    path = tmp_path / "in" / "edits.json"
    path.write_text(changed(tensors_in="../out.safetensors"))
    with pytest.raises(E.BadEdit, match="beside the file"):
        E.from_json(path)


def test_files_that_are_not_there_are_named(random, crowded, tmp_path):
    edits = tensors(random, random.prompt(crowded[0]))
    edits.to_json(tmp_path / "edits.json")
    (tmp_path / "edits.safetensors").unlink()
    with pytest.raises(E.BadEdit, match=r"'edits\.safetensors', beside the file"):
        E.from_json(tmp_path / "edits.json")
    with pytest.raises(E.BadEdit, match=r"other\.json' is neither"):
        E.from_json(tmp_path / "other.json")


def test_edits_are_not_written_over_their_own_tensors(tmp_path):
    edit = E.Steer("text.1.resid_post", torch.ones(3))
    with pytest.raises(E.BadEdit, match=r"write the edits to x\.json"):
        edit.to_json(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_masks_and_windows_of_layers_are_read_back():
    edit = E.Knockout(keys=torch.tensor([[False, True], [True, False]]), queries="last")
    assert E.from_json(edit.to_json()) == edit
    assert "length=2" in repr(E.from_json(edit.to_json()))
    knockout = methods.attention_knockout("last", "image", 3, window=2).edits
    assert E.from_json(knockout.to_json()) == knockout
