"""Belief: planted models that see and use, see and don't, use and don't see, and neither."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seeing
from seeing import edits as E
from seeing import probes
from seeing.data.plates import plates
from seeing.edits import BadEdit
from seeing.figures.belief import belief_scatter
from seeing.probes.believing.belief import QUADRANTS
from seeing.probes.believing.elsewhere import NoRoom, elsewhere, generator

EXPECTED = {
    "believes": "seen and believed",
    "unbelieving": "seen, not believed",
    "blind believer": "believed without looking",
    "neither": "neither",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_planted_model_is_in_its_quadrant(plant, planted_samples, kind):
    model = plant(kind)
    layers = [model.looks[0]] if model.looks else [1]
    found = probes.belief(model.vlm, planted_samples(6, seed=1, unusual=True), layers=layers, batch_size=4)
    assert found.n == 6
    assert set(found.quadrant) == {EXPECTED[kind]}
    assert found.correct.tolist() == [model.by_picture] * 6
    table = found.table().set_index("quadrant")
    assert tuple(table.index) == QUADRANTS
    assert table.n[EXPECTED[kind]] == 6
    assert table.accuracy[EXPECTED[kind]] == float(model.by_picture)
    assert table.n.sum() == 6
    assert table.share.sum() == pytest.approx(1)
    if model.looks:
        assert found.auroc.min() == 1
        assert found.pointing.min() == 1
    if not model.by_picture:
        assert found.contrast.abs().max() < 1e-3


def test_one_model_may_be_in_several_quadrants(plant, planted_samples):
    model = plant("each way")
    asked = [
        one
        for old in (False, True)
        for dark in (False, True)
        for one in planted_samples(3, seed=4, old=old, dark=dark, unusual=True)
    ]
    asked = [replace(one, id=f"{number}") for number, one in enumerate(asked)]
    found = probes.belief(model.vlm, asked, layers=[model.looks[0]], heads=None)
    by_head = probes.belief(model.vlm, asked, heads={model.looks[0]: [model.looks[1]]})
    for one, quadrant in zip(asked, by_head.quadrant):
        words = {
            (False, False): "seen and believed",
            (False, True): "seen, not believed",
            (True, False): "believed without looking",
            (True, True): "neither",
        }
        assert quadrant == words[one.meta["old"], one.meta["dark"]]
    assert by_head.where == "1 head"
    assert found.where == f"layer {model.looks[0]}"


def test_who_looks_from_the_question_is_seen_there(plant, planted_samples):
    model, asked = plant("two hops"), planted_samples(4, seed=2, unusual=True)
    blind = probes.belief(model.vlm, asked, layers=[model.looks[0]])
    seen = probes.belief(model.vlm, asked, layers=[model.looks[0]], queries="question")
    assert set(blind.quadrant) == {"believed without looking"}
    assert set(seen.quadrant) == {"seen and believed"}


def test_drops_are_those_of_a_mask_made_by_hand(plant, planted_samples):
    model, (sample,) = plant("believes"), planted_samples(1, seed=3, unusual=True)
    found = probes.belief(model.vlm, [sample], layers=[1], draws=3)
    prompt = model.vlm.prompt(sample)
    answer = model.vlm.answer(prompt)
    inputs = prompt.with_answer(answer).inputs
    grid, length = prompt.grids[0], prompt.length
    said = torch.arange(length - 1, length - 1 + len(answer.ids))

    def logprob(hidden):
        ids = inputs["input_ids"]
        mask = torch.full((ids.shape[1],) * 2, -1e9).triu(1)
        text = (ids[0] != model.eager.config.image_token_id).nonzero()
        mask[text, grid.positions[hidden]] = -1e9
        with torch.no_grad():
            out = model.eager(**{**inputs, "attention_mask": mask[None, None]}).logits[0]
        return float(out[said].log_softmax(-1)[torch.arange(len(said)), answer.ids].sum())

    labels = grid.labels(sample.boxes)
    random = generator(0, sample.id)
    regions = [elsewhere(grid, sample.boxes, labels, random)[0] for _ in range(3)]
    plain = logprob(torch.zeros_like(labels))
    assert float(found.logprob[0]) == pytest.approx(plain, abs=1e-4)
    assert float(found.evidence_drop[0]) == pytest.approx(plain - logprob(labels), abs=1e-3)
    by_hand = [plain - logprob(region) for region in regions]
    assert found.control_drop[0].tolist() == pytest.approx(by_hand, abs=1e-3)
    assert float(found.contrast[0]) == pytest.approx(plain - logprob(labels) - np.mean(by_hand), abs=2e-3)


def test_a_sample_has_the_same_numbers_in_any_batch(plant, planted_samples):
    model, asked = plant("believes"), planted_samples(5, seed=5)
    together = probes.belief(model.vlm, asked, layers=[1], batch_size=5, through_image=True)
    alone = probes.belief(model.vlm, asked[::-1], layers=[1], batch_size=1, through_image=True)
    for name in ("auroc", "evidence_drop", "logprob", "moved"):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name).flip(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(together.control_drop, alone.control_drop.flip(0), rtol=0, atol=1e-4)
    assert together.control_drop.shape == (5, 5)


def test_given_answers_are_scored_and_judged_by_what_the_model_says(plant, planted_samples):
    model, asked = plant("unbelieving"), planted_samples(3, seed=6, unusual=True)
    found = probes.belief(model.vlm, asked, layers=[1], answers="given")
    assert found.answers == tuple(one.answers[0] for one in asked)
    assert not found.correct.any()
    assert (found.logprob < math.log(0.1)).all()


def test_what_cannot_be_asked_is_left_out_and_counted(plant, planted_samples):
    model, (good, other) = plant("believes"), planted_samples(2, seed=7)
    width, height = good.image.size
    everything = replace(good, id="all", boxes=((0, 0, width, height),))
    wanting = [
        replace(good, id="no boxes", boxes=()),
        everything,
        good,
        {
            "id": "outside",
            "image": good.image,
            "question": "what ?",
            "answers": ("0",),
            "boxes": [(-9, -9, -1, -1)],
        },
        replace(other, id="unknown words", question="quelle couleur ?"),
        other,
    ]
    found = probes.belief(model.vlm, iter(wanting), layers=[1], batch_size=6)
    assert found.ids == (good.id, other.id)
    assert [one.id for one in found.left_out] == ["no boxes", "outside", "unknown words", "all"]
    assert all(one.reason for one in found.left_out)
    with pytest.raises(ValueError, match="no as many others"):
        probes.belief(model.vlm, everything, layers=[1])
    for wrong in (dict(layers=[99]), dict(heads={0: [99]}), dict(layers=[-9])):
        with pytest.raises(BadEdit):
            probes.belief(model.vlm, good, **wrong)
    for wrong in (
        dict(draws=0),
        dict(layers=[1], heads={1: [0]}),
        dict(answers=None),
        dict(batch_size=0),
        dict(queries=[3]),
    ):
        with pytest.raises(ValueError):
            probes.belief(model.vlm, good, **wrong)
    with pytest.raises(TypeError):
        probes.belief(model.vlm, "a picture")


def test_the_table_and_the_figure_say_the_same(plant, planted_samples):
    model, asked = plant("believes"), planted_samples(4, seed=8)
    asked = [replace(asked[0], id="<b>x</b>"), *asked[1:]]
    found = probes.belief(model.vlm, asked, layers=[1])
    frame = found.to_frame()
    assert list(frame["sample"]) == list(found.ids)
    assert len(frame) == 4
    np.testing.assert_allclose(frame.believed, frame.evidence_drop - frame.control_drop, atol=1e-9)
    for dark in (False, True):
        figure = found.figure(dark=dark)
        assert sum(len(trace.x) for trace in figure.data) == 4
        assert "n = 4" in figure.layout.title.text
        assert not any("<b>x" in text for trace in figure.data for text in trace.text or ())
    moved = replace(found, believed_above=1e6)
    assert set(moved.quadrant) <= {"seen, not believed", "neither"}
    with pytest.raises(ValueError, match="labels"):
        belief_scatter(
            np.zeros(2), np.zeros(2), np.ones(2, bool), labels=["a"], quadrants=QUADRANTS, lines=(0, 0)
        )


def test_of_a_cropped_picture_the_evidence_is_where_the_crop_has_it(trained):
    window = (14, 14, 112, 112)
    asked = [one for one in plates("crowded", 12) if one.boxes[0][0] > 14 and one.boxes[0][1] > 14][:3]
    by_hand = [
        replace(
            one,
            image=one.image.crop(window),
            boxes=tuple(tuple(edge - 14 for edge in box) for box in one.boxes),
        )
        for one in asked
    ]
    cropped = probes.belief(trained.with_edits(E.Crop(window)), asked, layers=[4])
    expected = probes.belief(trained, by_hand, layers=[4])
    for name in ("auroc", "evidence_drop", "logprob"):
        torch.testing.assert_close(getattr(cropped, name), getattr(expected, name), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="no as many others"):
        probes.belief(trained.with_edits(E.Crop("evidence")), asked[:1], layers=[4])


@pytest.fixture
def broken(trained):
    """The embedded model with one weight that is no number."""
    weight = trained.family.head(trained._module).weight.data
    kept = weight.clone()
    weight[3, 0] = float("nan")
    yield trained
    weight.copy_(kept)


def test_a_model_that_gives_nan_is_no_number(broken):
    sample = plates("crowded", 1)[0]
    prompt = broken.prompt(sample).with_answer("7")
    assert broken.score(prompt).logprob.isnan().all()
    with pytest.raises(ValueError, match="NaN"):
        probes.belief(broken, sample, layers=[4], answers="given")


@pytest.fixture(scope="module")
def trained():
    return seeing.load("plates-tiny")


def test_the_embedded_model_is_asked_with_its_own_profile(trained):
    profile = probes.profile(trained, plates("crowded", 12, seed=1))
    found = probes.belief(trained, plates("crowded", 8), layers=profile)
    assert found.n == 8
    assert len(profile.layers) == 1
    assert found.where == f"layer {profile.layers[0]}"
    # what it says of a square hangs on what it may see of that square
    assert found.contrast[found.correct].mean() > found.contrast[~found.correct].nan_to_num().mean() or (
        found.correct.all()
    )
    by_default = probes.belief(trained, plates("crowded", 2))
    assert by_default.where == f"all {trained.cfg.n_layers} layers"


@given(
    box=st.tuples(st.integers(0, 200), st.integers(0, 130), st.integers(5, 90), st.integers(5, 60)),
    seed=st.integers(0, 10),
)
@settings(max_examples=40, deadline=None)
def test_elsewhere_is_as_many_tokens_and_none_of_the_evidence(plant, planted_samples, box, seed):
    (sample,) = planted_samples(1)
    grid = plant("believes").vlm.prompt(sample).grids[0]
    x, y, width, height = box
    boxes = [(x, y, x + width, y + height)]
    evidence = grid.labels(boxes)
    if not evidence.any():
        return
    tokens, _moved = elsewhere(grid, boxes, evidence, generator(seed, "a"))
    assert tokens.sum() == evidence.sum()
    assert not (tokens & evidence).any()
    again, _ = elsewhere(grid, boxes, evidence, generator(seed, "a"))
    assert torch.equal(tokens, again)


def test_moved_boxes_keep_their_shape(plant, planted_samples):
    (sample,) = planted_samples(1, at=(0, 2))
    grid = plant("believes").vlm.prompt(sample).grids[0]
    evidence = grid.labels(sample.boxes)
    shapes = []
    for seed in range(6):
        tokens, moved = elsewhere(grid, sample.boxes, evidence, generator(seed, "a"))
        assert moved
        rows, cols = np.nonzero(grid.as_grid(tokens.double().numpy(), grid.overview) > 0)
        shapes.append((np.ptp(rows), np.ptp(cols)))
    assert len(shapes) == 6
    assert max(high for high, _ in shapes) <= 1
    everywhere = torch.ones_like(evidence)
    with pytest.raises(NoRoom):
        elsewhere(grid, sample.boxes, everywhere, generator(0, "a"))
