"""Profiles keep the ⌈share⌉ of layers that see the evidence best, rank the heads, and are kept as files."""

import dataclasses
import hashlib
import json
import math
from importlib.metadata import version

import numpy as np
import pytest
import torch
from tiny.tiled import BUILDERS

import seeing
from seeing import edits as E
from seeing import methods, probes
from seeing.data.plates import plates
from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit
from seeing.metrics import Locality
from seeing.probes.attention.evidence import Evidence
from seeing.probes.profiles.profile import profile_of
from seeing.zoo.build import build_model, build_processor


def evidence_of(layers, heads=None):
    """An `Evidence` with these AUROCs and nothing else."""
    layers = torch.tensor(layers, dtype=torch.float64)
    heads = torch.tensor(heads, dtype=torch.float64) if heads else layers[:, None].expand(-1, 2)
    return Evidence(
        heads=Locality(*[heads] * 6),
        layers=Locality(*[layers] * 6),
        samples=Locality(*[layers[None]] * 6),
        ids=("one",),
        left_out=(),
    )


#: Layers of a model, and how many the paper keeps of them.
PUBLISHED = {32: 4, 40: 4, 28: 3, 64: 7, 34: 4, 62: 7}


@pytest.mark.parametrize(
    ("n_layers", "kept"), [*PUBLISHED.items(), (1, 1), (6, 1), (10, 1), (11, 2), (20, 2), (30, 3)]
)
def test_a_tenth_of_the_layers_rounded_up(n_layers, kept):
    auroc = [((7 * layer) % n_layers) / n_layers for layer in range(n_layers)]
    found = profile_of(evidence_of(auroc))
    assert len(found.layers) == kept
    best = sorted(range(n_layers), key=lambda layer: -auroc[layer])[:kept]
    assert found.layers == tuple(sorted(best))


@pytest.mark.parametrize(
    ("top", "n_layers", "kept"),
    [(0.07, 100, 7), (0.28, 25, 7), (0.5, 6, 3), (0.51, 6, 4), (1, 6, 6), (1e-9, 6, 1)],
)
def test_a_share_is_not_rounded_up_by_floating_point(top, n_layers, kept):
    assert len(profile_of(evidence_of([0.5 + layer / 1000 for layer in range(n_layers)]), top).layers) == kept


def test_of_equal_layers_the_first_is_kept():
    assert profile_of(evidence_of([0.5, 0.9, 0.9, 0.9, 0.2])).layers == (1,)


@pytest.mark.parametrize("top", [0, -0.1, 1.01, float("nan")])
def test_a_share_outside_0_to_1_is_refused(random, crowded, top):
    with pytest.raises(ValueError, match="share"):
        probes.profile(random, crowded[:1], top)


HEADS = [[0.6, 0.9, 0.1], [0.8, 0.2, 0.95], [0.7, 0.99, 0.5]]


def test_the_best_heads_by_layer():
    found = profile_of(evidence_of([0.6, 0.7, 0.8], HEADS))
    assert found.heads(1) == {2: [1]}
    assert found.heads(3) == {0: [1], 1: [2], 2: [1]}
    assert found.heads() == {0: [1], 1: [0, 2], 2: [1]}
    assert found.heads(9) == {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2]}


def test_the_best_heads_below_a_layer():
    found = profile_of(evidence_of([0.6, 0.7, 0.8], HEADS))
    assert found.heads(2, below=2) == {0: [1], 1: [2]}
    assert found.heads(1, below=1) == {0: [1]}


@pytest.mark.parametrize(("k", "below"), [(0, None), (10, None), (7, 2), (-1, None), (1, 0)])
def test_more_heads_than_there_are_is_an_error(k, below):
    with pytest.raises(ValueError, match="heads"):
        profile_of(evidence_of([0.6, 0.7, 0.8], HEADS)).heads(k, below)


def test_a_planted_head_makes_its_layer_the_profile(planted, squares):
    samples = squares(8)
    found = probes.profile(planted, samples)
    assert found.layers == (2,)
    assert found.heads(1) == {2: [1]}
    assert found.n == 8
    assert torch.equal(found.auroc_heads, probes.evidence(planted, samples).auroc)
    assert found.auroc_layers.argmax() == 2


def test_the_template_is_how_the_question_is_asked(random, crowded):
    found = probes.profile(random, crowded[:2], template="the {question} is")
    asked = probes.evidence(random, crowded[:2], template="the {question} is")
    assert torch.equal(found.auroc_heads, asked.auroc)
    assert not torch.equal(found.auroc_heads, probes.profile(random, crowded[:2]).auroc_heads)


def test_the_embedded_model_sees(trained, crowded):
    """Its middle layers look at the evidence of crowded scenes."""
    found = probes.profile(trained, crowded)
    assert (found.auroc_layers[1:5] > 0.85).any()
    assert 0 < found.layers[0] < 5


# ---- H_VG --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "kept"), [(0.1, {2: [1]}), (0.3, {0: [1], 1: [2], 2: [1]}), (1 / 9, {2: [1]})]
)
def test_the_same_share_of_heads_is_kept(top, kept):
    assert profile_of(evidence_of([0.6, 0.7, 0.8], HEADS), top).best_heads == kept


def test_layers_that_see_no_picture_are_not_among_those_that_the_share_is_of():
    """Of twelve layers three look: a third of those is one."""
    layers, heads = np.full(12, np.nan), np.full((12, 2), np.nan)
    layers[[3, 7, 11]], heads[[3, 7, 11]] = [0.6, 0.9, 0.8], [[0.6, 0.9], [0.8, 0.2], [0.7, 0.5]]
    found = profile_of(evidence_of(layers.tolist(), heads.tolist()), 0.3)
    assert found.layers == (7,)
    assert profile_of(evidence_of(layers.tolist(), heads.tolist()), 1.0).layers == (3, 7, 11)
    assert found.best_heads == {3: [1], 7: [0]}


def test_heads_have_random_ones_to_be_compared_with(random, crowded):
    found = probes.profile(random, crowded[:3], progress=False)
    control = found.scores.random(3, seed=4)
    assert sum(map(len, control.values())) == 3
    assert control == methods.random_heads(random, found.heads(3), seed=4)


# ---- kept --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(trained, crowded):
    without = EvidenceSample("no boxes", crowded[0].image, crowded[0].question, ("7",), ())
    return probes.profile(
        trained, [*crowded[:4], without], 0.2, data="crowded", template="qa", progress=False
    )


def test_a_profile_comes_back_as_it_was_saved(kept, trained, tmp_path):
    kept.save(tmp_path / "profile.json")
    found = probes.Profile.load(tmp_path / "profile.json", trained)
    assert torch.equal(found.auroc_layers, kept.auroc_layers)
    assert torch.equal(found.auroc_heads, kept.auroc_heads)
    same = ("layers", "n", "top", "left_out", "origin", "best_heads")
    assert all(getattr(found, name) == getattr(kept, name) for name in same)
    assert found.heads(3, below=4) == kept.heads(3, below=4)
    assert found.evidence is None
    assert kept.evidence.n == kept.n == 4
    found.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "profile.json").read_text()


def test_a_file_says_what_the_profile_was_made_of(kept, crowded, tmp_path):
    kept.save(tmp_path / "profile.json")
    text = (tmp_path / "profile.json").read_text(encoding="utf-8")
    origin = json.loads(text)["origin"]
    ids = "".join(f"{sample.id}\n" for sample in crowded[:4])
    assert origin["model"] == "plates-tiny"
    assert origin["family"] == "llava"
    assert origin["data"] == "crowded"
    assert origin["template"] == "qa"
    assert origin["ids"] == hashlib.sha256(ids.encode()).hexdigest()
    assert origin["versions"] == {
        "seeing": seeing.__version__,
        **{name: version(name) for name in ("torch", "transformers", "nnsight")},
    }
    assert json.loads(text)["left_out"] == {"no evidence boxes": 1}
    assert json.loads(text)["n"] == 4


def test_a_hub_id_is_kept_whole_and_a_folder_by_its_name(random, crowded, monkeypatch, tmp_path):
    config = random._module.config
    for name, told in (
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        (str(tmp_path), tmp_path.name),
        ("", ""),
    ):
        monkeypatch.setattr(config, "_name_or_path", name)
        monkeypatch.setattr(config, "_commit_hash", "0123abc", raising=False)
        origin = probes.profile(random, crowded[:1], progress=False).origin
        assert (origin.model, origin.commit) == (told, "0123abc")


def test_layers_without_a_number_stay_without_one(tmp_path):
    nan = math.nan
    found = profile_of(evidence_of([nan, 0.7, nan], [[nan, nan], [0.9, 0.8], [nan, nan]]))
    found.save(tmp_path / "profile.json")
    json.loads((tmp_path / "profile.json").read_text(), parse_constant=pytest.fail)
    again = probes.Profile.load(tmp_path / "profile.json")
    assert again.auroc_heads.isnan().tolist() == [[True, True], [False, False], [True, True]]
    assert again.best_heads == found.best_heads == {1: [0]}
    assert again.origin is None


def build_deep(n_layers):
    """A model like the embedded one, with so many layers."""
    return build_model(n_layers).eval(), build_processor()


def test_a_profile_of_another_model_is_refused(kept, random, tmp_path):
    kept.save(tmp_path / "profile.json")
    other = seeing.load(BUILDERS["llava_next"](), check=False)
    assert (other.cfg.n_layers, other.cfg.n_heads) != (6, 4)
    with pytest.raises(
        ValueError, match=r"profile of plates-tiny \(llava\), 6 layers of 4 heads.*llava_next"
    ):
        probes.Profile.load(tmp_path / "profile.json", other)
    with pytest.raises(ValueError, match="profile it with probes"):
        dataclasses.replace(kept, auroc_heads=kept.auroc_heads[:, :2]).check(random)
    with pytest.raises(ValueError, match=r"\(qwen2_vl\)"):
        dataclasses.replace(kept, origin=dataclasses.replace(kept.origin, family="qwen2_vl")).check(random)
    kept.check(random)


def test_a_profile_of_another_depth_is_refused_wherever_layers_are_said(kept, tmp_path):
    """Its layers are there too, so that their numbers alone would pass."""
    kept.save(tmp_path / "profile.json")
    other = seeing.load(build_deep(8), check=False)
    prompt = other.prompt(plates("crowded", 1)[0])
    for given in (kept, kept.layers, probes.Profile.load(tmp_path / "profile.json")):
        with pytest.raises(BadEdit, match="a profile's, of a stack of 6; this model has 8"):
            other.with_edits(E.Knockout(keys="image", layers=given))
        with pytest.raises(BadEdit, match="of a stack of 6"):
            other.with_edits(E.ScaleAttention(keys=E.seen(given), gain=2.0, layers=[7]))
        with pytest.raises(BadEdit, match="of a stack of 6"):
            methods.vea(given).answer(other, prompt)
    assert other.with_edits(E.Knockout(keys="image", layers=list(kept.layers))).answer(prompt) is not None


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        '{"seeing profile": 2}',
        '{"seeing profile": 1}',
        '{"seeing profile": 1, "layers": [9], "n": 1, "top": 0.1, "left_out": {}, "origin": null,'
        ' "auroc": {"layers": [0.5], "heads": [[0.5]]}}',
        '{"seeing profile": 1, "layers": [0], "n": 1, "top": 0.1, "left_out": {}, "origin": null,'
        ' "auroc": {"layers": [0.5, 0.6], "heads": [[0.5]]}}',
    ],
)
def test_what_is_no_profile_is_refused(text, tmp_path):
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(ValueError, match=r"profile.json' is no saved profile: .*; expected what"):
        probes.Profile.load(tmp_path / "profile.json")


def test_a_loaded_profile_stands_where_layers_and_heads_are_said(kept, trained, crowded, tmp_path):
    kept.save(tmp_path / "profile.json")
    found = probes.Profile.load(tmp_path / "profile.json", trained)
    prompt = trained.prompt(crowded[5])
    last = found.layers[-1] + 1
    for layers in (found, found.layers):
        boost = E.ScaleAttention(keys=E.seen(layers=layers), gain=4.0, layers=slice(last, None))
        assert str(trained.with_edits(boost).answer(prompt)) == str(
            trained.with_edits(
                E.ScaleAttention(keys=E.seen(layers=list(kept.layers)), gain=4.0, layers=slice(last, None))
            ).answer(prompt)
        )
        assert E.Knockout(keys="image", layers=layers) == E.Knockout(keys="image", layers=list(kept.layers))
        assert methods.vea(layers) == methods.vea(kept)
    assert methods.second_look(found.heads(2)).answer(trained, prompt) is not None


# ---- shown -------------------------------------------------------------------------------------------------


def test_to_frame_says_what_is_kept():
    found = profile_of(evidence_of([0.6, 0.7, 0.8], HEADS), 0.3)
    frame = found.to_frame().set_index(["layer", "head"])
    assert len(frame) == 3 * 4
    assert frame.loc[(1, -1), "auroc"] == pytest.approx(0.7)
    assert frame.loc[(1, 2), "auroc"] == pytest.approx(0.95)
    chosen = [place for place in frame.index if frame.loc[place, "chosen"]]
    assert chosen == [(0, 1), (1, 2), (2, -1), (2, 1)]


def test_a_profile_reads_as_its_choice(kept):
    best = float(kept.auroc_layers[list(kept.layers)].mean())
    assert repr(kept).startswith(
        f"Profile(plates-tiny, n=4; layers {list(kept.layers)} with AUROC {best:.3f}"
    )


def test_the_figure_shades_the_layers_and_outlines_the_heads():
    found = profile_of(evidence_of([0.6, 0.7, 0.8], HEADS))
    shade, ring = found.figure().layout.shapes
    assert (shade.x0, shade.x1) == (1.5, 2.5)
    assert (ring.x0, ring.y0) == (1.5, 0.5)
    assert len(found.figure(4).layout.shapes) == 5
