"""Scores of heads and their controls; gaze heads and evidence heads, against sums by hand on eager rows."""

import math

import numpy as np
import pytest
import torch

from seeing import edits as E
from seeing import methods, probes
from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit
from seeing.probes import HeadScores
from seeing.probes.heads.scores import ranked

NAN = math.nan
SCORES = torch.tensor([[0.1, 0.9, 0.5, 0.9], [NAN, NAN, NAN, NAN], [0.7, 0.2, 0.3, 0.0]])


def scored(**changes):
    return HeadScores("some score", SCORES, 12, **changes)


# ---- any scores --------------------------------------------------------------------------------------------


def test_the_ranking_goes_down_and_holds_heads_with_a_score():
    ranking = scored().ranking()
    assert [place[:2] for place in ranking] == [
        (0, 1),
        (0, 3),
        (2, 0),
        (0, 2),
        (2, 2),
        (2, 1),
        (0, 0),
        (2, 3),
    ]
    assert [score for *_, score in ranking] == pytest.approx([0.9, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.0])
    assert [place[:2] for place in scored().ranking(below=1)] == [(0, 1), (0, 3), (0, 2), (0, 0)]


def test_equal_heads_are_ranked_by_what_breaks_the_tie():
    ties = torch.zeros(3, 4)
    ties[0, 3] = 1
    assert [place[:2] for place in scored(ties=ties).ranking()[:2]] == [(0, 3), (0, 1)]
    ties[0, 3] = NAN
    assert [place[:2] for place in scored(ties=ties).ranking()[:2]] == [(0, 1), (0, 3)]


@pytest.mark.parametrize("k", range(1, 9))
def test_the_best_are_those_that_edits_name(k):
    table = scored().top(k)
    assert table == E.top_heads(SCORES, k)
    assert sum(map(len, table.values())) == k
    assert E.AblateHeads(table) == E.AblateHeads(E.top_heads(SCORES, k))


@pytest.mark.parametrize(("k", "below"), [(0, None), (9, None), (5, 1)])
def test_more_heads_than_have_a_score_are_refused(k, below):
    with pytest.raises(BadEdit, match="heads with a score"):
        scored().top(k, below)


@pytest.mark.parametrize("seed", range(4))
def test_controls_are_as_many_others_of_the_same_layers(seed):
    found, top = scored().random(3, seed), scored().top(3)
    assert {layer: len(heads) for layer, heads in found.items()} == {0: 2, 2: 1}
    assert not any(set(found[layer]) & set(top[layer]) for layer in found)
    assert scored().random(3, seed) == found


def test_controls_are_drawn_evenly():
    drawn = [scored().random(1, seed)[0][0] for seed in range(300)]
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert (np.abs(counts[[0, 2, 3]] - 100) < 4 * math.sqrt(300 * 2 / 9)).all()


def test_controls_from_anywhere_keep_off_the_best_and_off_layers_without_scores():
    several = [scored().random(2, seed, same_layers=False) for seed in range(30)]
    drawn = {(layer, head) for table in several for layer, heads in table.items() for head in heads}
    assert drawn == {(0, 0), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3)}
    assert all(sum(map(len, table.values())) == 2 for table in several)
    assert set(scored().random(2, same_layers=False, below=1)) == {0}


def test_too_few_others_are_an_error():
    with pytest.raises(BadEdit, match=r"3 heads are to be drawn from layers \[0\], where 1 are left"):
        scored().random(4)


def test_controls_are_those_of_the_methods(random, crowded):
    found = probes.gaze_heads(random, crowded[:2], progress=False)
    for seed in range(3):
        assert found.random(5, seed) == methods.random_heads(random, found.top(5), seed)


def test_to_frame_has_a_row_for_every_head_and_its_parts():
    frame = scored(parts={"mass": 2 * SCORES}).to_frame()
    assert list(frame.columns) == ["layer", "head", "score", "mass"]
    at = frame.set_index(["layer", "head"])
    assert at.loc[(2, 0), "score"] == pytest.approx(0.7)
    assert at.loc[(2, 0), "mass"] == pytest.approx(1.4)
    assert len(frame) == 12


@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_outlines_the_best(dark):
    fig = scored().figure(3, dark=dark)
    drawn = next(trace for trace in fig.data if trace.type == "heatmap")
    np.testing.assert_array_equal(drawn.z, SCORES.double().numpy().T)
    rings = {(shape.x0 + 0.5, shape.y0 + 0.5) for shape in fig.layout.shapes}
    assert rings == {(0, 1), (0, 3), (2, 0)}
    assert "n = 12" in fig.layout.title.text
    assert not scored().figure().layout.shapes


# ---- gaze --------------------------------------------------------------------------------------------------


def gaze_by_hand(bare, samples, labels_of):
    """(sample, layer, head): weight on the evidence, weight on the picture."""
    on, image = [], []
    for sample in samples:
        rows = bare.image_rows(sample.image, sample.question)
        on.append(rows[..., labels_of(sample)].sum(-1))
        image.append(rows.sum(-1))
    return np.array(on), np.array(image)


def test_the_gaze_score_is_the_weight_on_what_is_asked_about(random, bare, mixed, labels_of):
    found = probes.gaze_heads(random, iter(mixed), batch_size=4, progress=False)
    on, image = gaze_by_hand(bare, mixed, labels_of)
    even = np.array([labels_of(sample).mean() for sample in mixed])[:, None, None]
    np.testing.assert_allclose(found.scores, on.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.parts["image"], image.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.parts["share"], (on / image).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.parts["lift"], (on / image / even).mean(0), rtol=1e-5)
    relative = probes.gaze_heads(random, mixed, relative=True, progress=False)
    np.testing.assert_allclose(relative.scores, (on / image).mean(0), rtol=1e-5)
    assert [place[:2] for place in relative.ranking()] != [place[:2] for place in found.ranking()]


def test_uniform_attention_has_no_lift(uniform, crowded):
    found = probes.gaze_heads(uniform, crowded[:3], progress=False)
    torch.testing.assert_close(found.parts["lift"], torch.ones(6, 4, dtype=torch.float64))


def test_what_has_no_target_is_left_out_with_its_reason(random, crowded, paste):
    without = EvidenceSample("no boxes", crowded[0].image, crowded[0].question, ("7",), ())
    cut_off = paste(crowded[1], (336, 112), (0, 0))
    found = probes.gaze_heads(random, [crowded[0], without, cut_off], progress=False)
    assert found.n == 1
    assert {one.id: one.reason for one in found.left_out} == {
        "no boxes": "no evidence boxes",
        cut_off.id: "no image token sees the evidence",
    }
    with pytest.raises(ValueError, match="no boxes: no evidence boxes"):
        probes.gaze_heads(random, [without], progress=False)


def test_a_prompt_is_probed_as_its_samples_are(random, mixed):
    prompt = random.prompts(mixed[:3])
    for probe in (probes.gaze_heads, probes.localization_heads):
        alike = probe(random, mixed[:3], progress=False)
        torch.testing.assert_close(probe(random, prompt).scores, alike.scores, rtol=1e-5, atol=1e-7)
    bare = random.prompts([(one.image, one.question) for one in mixed[:2]])
    with pytest.raises(ValueError, match="0: no evidence boxes"):
        probes.gaze_heads(random, bare)
    with pytest.raises(ValueError, match="a prompt stands as it is"):
        probes.gaze_heads(random, prompt, answers="own")


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_planted_head_gazes_and_steering_it_moves_the_answer(family, plant, planted_samples):
    model = plant("believes", family=family)
    found = probes.gaze_heads(model.vlm, planted_samples(12, seed=5), batch_size=5, progress=False)
    assert found.ranking()[0][:2] == model.looks
    assert found.scores[model.looks] > 0.99
    assert found.ranking()[1][2] < 0.05
    # Held on another tile than the marked one, the head tells the code that is there.
    sample = planted_samples(1, seed=6, at=(2, 3), code=1)[0]
    row, col = next((row, col) for row, col in np.argwhere(sample.meta["codes"] == 4) if 3 <= col < 9)
    side = sample.image.size[1] / 8
    other = [((col + 0.1) * side, (row + 0.1) * side, (col + 0.9) * side, (row + 0.9) * side)]
    prompt = model.vlm.prompt(sample)
    assert str(model.vlm.answer(prompt)) == "1"
    for heads, said in ((found.top(1), "4"), (found.random(1), "1")):
        assert str(methods.gaze_heads(heads, other, when="both").answer(model.vlm, prompt)) == said


def test_rows_of_the_answer_find_a_head_that_looks_late(plant, planted_samples):
    model = plant("believes", late=True)
    given = planted_samples(6, seed=8, late=True)
    early = probes.gaze_heads(model.vlm, given, progress=False)
    assert early.scores[model.looks] < 0.05
    late = probes.gaze_heads(model.vlm, given, answers="given", progress=False)
    assert late.ranking()[0][:2] == model.looks
    # The answer has two words and an end; the head looks from one of the rows that predict them.
    rows = late.scores[model.looks] - early.scores[model.looks]
    assert 0.3 < rows < 0.6


# ---- evidence ----------------------------------------------------------------------------------------------


def test_evidence_heads_are_ranked_by_the_metric_of_the_probe(random, crowded):
    truth = probes.evidence(random, crowded[:4], progress=False)
    found = probes.evidence_heads(random, crowded[:4], progress=False)
    assert torch.equal(found.scores, truth.auroc)
    assert [place[:2] for place in found.ranking()] == [place[:2] for place in truth.ranking()]
    for metric in ("mass", "density_ratio"):
        other = ranked(truth, metric)
        assert torch.equal(other.scores, getattr(truth.heads, metric))
        assert set(other.parts) == set(truth.heads._fields) - {metric}
        assert other.n == 4


def test_a_metric_that_is_none_is_refused(random, crowded):
    with pytest.raises(ValueError, match="auroc, average_precision"):
        probes.evidence_heads(random, crowded[:1], "accuracy")


def test_the_planted_head_finds_the_evidence(planted, squares):
    found = probes.evidence_heads(planted, squares(16))
    assert found.top(1) == {2: [1]}
