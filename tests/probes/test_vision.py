"""The vision tower's own look, against the attentions that the bare tower gives under the eager kernel."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from seeing import edits as E
from seeing import probes
from seeing.families import FamilyContractError
from seeing.families.patches import split
from seeing.grid import Level, View, VisualGrid, cells
from seeing.probes.attention import vision
from seeing.probes.attention.locality import look_at

CROPPED = "ignore:the model did not see all of the evidence"


def tower_rows(bare, sample):
    """(layer, head, patch): the class token's row of the bare tower, whose first token it is."""
    pixels = bare.inputs((sample.image, sample.question))["pixel_values"]
    with torch.no_grad():
        out = bare.model.model.vision_tower(pixels, output_attentions=True)
    return torch.cat(out.attentions).double().numpy()[:, :, 0, 1:]


@pytest.mark.filterwarnings(CROPPED)
def test_evidence_of_the_tower_is_scikit_learns_on_the_class_tokens_row(random, bare, mixed, labels_of):
    found = probes.evidence(random, mixed, stack="vision", batch_size=4)
    rows, labels = [tower_rows(bare, one) for one in mixed], [labels_of(one) for one in mixed]
    assert found.stack == "vision"
    assert found.auroc.shape == (4, 4)
    for metric, truth in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        heads = np.array(
            [[[truth(seen, head) for head in layer] for layer in one] for one, seen in zip(rows, labels)]
        )
        assert heads.std() > 0.02
        np.testing.assert_allclose(getattr(found.heads, metric), heads.mean(0), atol=1e-6)
        layers = [[truth(seen, layer) for layer in one.mean(1)] for one, seen in zip(rows, labels)]
        np.testing.assert_allclose(getattr(found.samples, metric), layers, atol=1e-6)


def test_the_tower_looks_before_any_question_is_read(random, crowded):
    asked = probes.evidence(random, crowded[:3], stack="vision")
    other = [replace(one, question="what digit is on the blue circle ?") for one in crowded[:3]]
    assert torch.equal(asked.auroc, probes.evidence(random, other, stack="vision").auroc)


def test_the_tower_is_parted_by_answers_as_the_text_is(trained, crowded):
    found = probes.evidence(trained, crowded, stack="vision", by_answer=True)
    text = probes.evidence(trained, crowded, by_answer=True)
    assert found.correct.ids == text.correct.ids
    assert found.wrong.stack == "vision"
    assert "vision tower" in found.figure().layout.title.text


def test_a_tower_has_no_rows_of_the_text(random, crowded):
    with pytest.raises(ValueError, match="names rows of the text"):
        probes.evidence(random, crowded[:1], stack="vision", queries="question")
    with pytest.raises(ValueError, match="'text' or 'vision'"):
        probes.evidence(random, crowded[:1], stack="audio")
    with pytest.raises(ValueError, match="'any', 'half' or 'all'"):
        probes.evidence(random, crowded[:1], rule="fraction")


def test_chunks_of_queries_add_up(random, crowded, monkeypatch):
    """A tower without a class token: the mean over all its queries, few of them at a time."""
    monkeypatch.setattr(vision.Placed, "asking", property(lambda self: self.patches.grid.positions))
    prompt = random.prompts(crowded[:2])
    whole = vision.read_tower(random, prompt)
    monkeypatch.setattr(vision, "CHUNK", 7 * 2 * 4 * 65)
    torch.testing.assert_close(vision.read_tower(random, prompt).rows, whole.rows, atol=1e-7, rtol=1e-5)
    pattern = random.cache(prompt, "vision.1.attn.pattern", queries="all")["vision.1.attn.pattern"]
    torch.testing.assert_close(whole.rows[1], pattern[:, :, 1:].mean(2), atol=1e-7, rtol=1e-5)


def test_the_pictures_that_edits_leave_are_looked_at(random, crowded):
    dark = random.with_edits(E.Occlude("evidence"))
    prompt = random.prompt(crowded[0])
    assert not torch.equal(vision.read_tower(dark, prompt).rows, vision.read_tower(random, prompt).rows)


@pytest.mark.parametrize(("items", "length"), [(3, 65), (2, 64), (2, 66), (1, 130)])
def test_tokens_that_the_geometry_does_not_give_are_refused(random, crowded, items, length):
    prompt = random.prompts(crowded[:2])
    assert len(vision.place(random, prompt, 2, 65)) == 2
    with pytest.raises(FamilyContractError, match="the tower"):
        vision.place(random, prompt, items, length)


# ---- patches of tokens ------------------------------------------------------------------------------------


def test_a_token_is_cut_into_its_patches_in_reading_order():
    grid = VisualGrid.regular((60, 40), View((0, 0, 60, 40), (60, 40)), 2, 3, torch.arange(6))
    found = split(grid, grid.levels[0], 2, start=5)
    assert found.positions.tolist() == list(range(5, 29))
    corners = [(10 * col, 10 * row) for row in range(4) for col in range(6)]
    assert [tuple(box) for box in found.boxes.tolist()] == [(x, y, x + 10, y + 10) for x, y in corners]


def test_tokens_that_were_clipped_are_not_cut():
    view = View((-10.0, 0.0, 50.0, 40.0), (60, 40))
    grid = VisualGrid((50, 40), torch.arange(6), cells((50, 40), view, 2, 3), view, (Level("patch", 2, 3),))
    with pytest.raises(ValueError, match="different sizes"):
        split(grid, grid.levels[0], 2)
    assert torch.equal(split(grid, grid.levels[0], 1).boxes, grid.boxes)


def test_each_tile_is_scored_by_itself_and_those_of_one_kind_are_left_out(random, crowded):
    """Two softmaxes: what one tile gets is not compared with what another gets."""
    turn = random.prompt(crowded[0]).turns[0]
    turn = replace(turn, boxes=((0, 0, 30, 20),))
    view = View((0.0, 0.0, 60.0, 40.0), (60, 40))
    halves = [
        VisualGrid.regular((60, 40), View((x, 0.0, x + 30.0, 40.0), (30, 40)), 2, 3, torch.arange(6))
        for x in (0.0, 30.0)
    ]
    whole = VisualGrid.regular((60, 40), view, 2, 2, torch.arange(4))
    rows = torch.rand(2, 3, 1, 6, generator=torch.Generator().manual_seed(0))
    look = look_at(turn, whole, "any", list(zip(halves, (rows, rows * 100))))
    assert len(look.parts) == 1  # the right half has no evidence
    labels = [True, True, True, False, False, False]
    truth = [[roc_auc_score(labels, head) for head in layer] for layer in rows[:, :, 0]]
    np.testing.assert_allclose(look.scores()[0, :, :-1, 0], truth)
    both = look_at(turn, whole, "any", [(halves[0], rows), (whole, rows[..., :4])])
    truth = np.mean(
        [truth, [[roc_auc_score([1, 0, 0, 0], h[:4]) for h in layer] for layer in rows[:, :, 0]]], 0
    )
    np.testing.assert_allclose(both.scores()[0, :, :-1, 0], truth)
    split_up = [
        VisualGrid.regular((60, 40), View((0.0, y, 60.0, y + 20.0), (60, 20)), 1, 2, torch.arange(2))
        for y in (0.0, 20.0)
    ]
    turn = replace(turn, boxes=((0, 0, 60, 20),))
    none = look_at(turn, whole, "any", [(one, rows[..., :2]) for one in split_up])
    assert none.reason == "no tile holds both evidence and other patches"
