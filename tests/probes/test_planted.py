"""Each probe names what was planted: the head, the layer, the path, and whether it is believed."""

import pytest
import torch
from tiny.planted import ANSWERS, KINDS
from tiny.soil import FAMILIES

# ---- the plants themselves, by Hugging Face alone ----------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_model_answers_as_its_kind_does(kind, family, plant, planted_samples):
    model = plant(kind, family=family)
    given = planted_samples(40, unusual=True)
    said = list(model.vlm.answer(model.vlm.prompts(given)))
    assert said == [model.says(one) for one in given]
    right = [one in sample.answers for one, sample in zip(said, given)]
    assert all(right) if model.by_picture else not any(right)
    assert len(set(said)) == len(ANSWERS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_head_of_a_planted_model_looks_and_no_other(kind, family, plant, planted_samples):
    model = plant(kind, family=family)
    for sample in planted_samples(3, seed=1, tile=14):
        prompt = model.vlm.prompt(sample)
        row = -1 if model.looker == ":" else -2
        rows = model.attention(sample)[:, :, row]
        mass = rows[..., prompt.evidence()[0]].sum(-1)
        even = 2 / (prompt.length + 1 + row)
        assert prompt.evidence().sum() == 2
        for layer, head in torch.cartesian_prod(torch.arange(4), torch.arange(4)).tolist():
            if (layer, head) == model.looks:
                assert mass[layer, head] > 0.99
            elif (layer, head) != model.usual:
                assert mass[layer, head] <= even * (1 + 1e-4)


@pytest.mark.parametrize(("family", "cols", "left"), [("llava", 8, 2), ("qwen2_vl", 12, 0)])
def test_a_planted_picture_has_its_box_on_two_tiles_at_any_size(family, cols, left, plant, planted_samples):
    model = plant("believes", family=family)
    for sample in planted_samples(6, seed=2) + planted_samples(6, seed=2, tile=30):
        row, col = sample.meta["at"]
        grid = model.vlm.prompt(sample).grids[0]
        assert sample.image.size[0] * 2 == sample.image.size[1] * 3
        expected = [cols * row + col - left, cols * row + col - left + 1]
        assert grid.labels(sample.boxes).nonzero()[:, 0].tolist() == expected


def test_an_answer_goes_with_the_marked_tiles_and_not_with_others(plant, planted_samples):
    model = plant("believes")
    answers = [
        str(model.vlm.answer(model.vlm.prompt(planted_samples(1, seed=3, code=code, at=(4, 5))[0])))
        for code in range(len(ANSWERS))
    ]
    assert answers == list(ANSWERS)


def test_a_late_model_looks_from_the_first_word_of_its_answer(plant, planted_samples):
    model = plant("believes", late=True)
    given = planted_samples(8, seed=4, unusual=True, late=True)
    said = list(model.vlm.answer(model.vlm.prompts(given)))
    assert said == [one.answers[0] for one in given] == [model.says(one) for one in given]
    prompt = model.vlm.prompt(given[0])
    assert model.attention(given[0])[1, 2, -1, prompt.evidence()[0]].sum() < 0.03


def test_an_unknown_kind_is_refused_by_name():
    from tiny.planted import planted

    with pytest.raises(ValueError, match="no kind 'sleeps'"):
        planted("sleeps")
