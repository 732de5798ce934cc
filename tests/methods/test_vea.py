"""VEA and the window highlight equal the paper's steps done by hand and shown to the bare model."""

import numpy as np
import pytest

from seeing import edits as E
from seeing.methods import Base, Vea, WindowHighlight, vea
from seeing.probes import profile
from seeing.probes.profiles.profile import Profile

HEADS = {1: [0, 2], 3: [1]}


@pytest.fixture(scope="module")
def layers():
    return (1, 3)


def grid_of(bare, picture, question, layers):
    """The mean row of some layers over the image, 8 × 8."""
    return bare.image_rows(picture, question)[list(layers)].mean((0, 1)).reshape(8, 8)


def test_base_is_the_bare_model(random, bare, crowded, same):
    for sample in crowded[:3]:
        answer = Base().answer(random, random.prompt(sample))
        same([answer], bare.answers((sample.image, sample.question)))


def test_base_in_a_padded_batch_is_the_bare_model(random, bare, asked, same):
    truth = bare.answers(*asked)
    assert len({tuple(ids) for ids, *_ in truth}) == 4
    assert {len(ids) for ids, *_ in truth} != {4}, "some rows stop early, some don't"
    same(Base().answer(random, random.prompts(asked)), truth)


@pytest.mark.parametrize("mode", ["nearest", "reflect"])
def test_the_map_is_the_papers(random, bare, crowded, by_hand, layers, mode):
    sample = crowded[0]
    found = Vea(layers, boundary=mode).maps(random, random.prompt(sample))
    grid = by_hand.denoise(grid_of(bare, sample.image, sample.question, layers))
    assert len(found) == 1
    np.testing.assert_allclose(found[0], by_hand.smooth_map(grid, mode), atol=1e-4)


def test_a_spike_is_cleaned_away(planted, bare_planted, squares, by_hand):
    """One white patch inside the picture holds a row's attention: more than 10 × its neighbours'."""
    sample = next(one for one in squares(8, side=14) if min(one.boxes[0]) >= 14 and max(one.boxes[0]) < 112)
    prompt = planted.prompt(sample)
    raw = grid_of(bare_planted, sample.image, sample.question, (2,))
    clean = by_hand.denoise(raw)
    assert (raw != clean).sum() == 1
    found = {
        denoise: Vea((2,), sigma=0.1, denoise=denoise).maps(planted, prompt)[0] for denoise in (False, True)
    }
    np.testing.assert_allclose(found[1], by_hand.smooth_map(clean, "nearest", 11.2), atol=1e-4)
    np.testing.assert_allclose(found[0], by_hand.smooth_map(raw, "nearest", 11.2), atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.3


@pytest.mark.parametrize(("mode", "alpha"), [("nearest", 0.5), ("reflect", 0.2)])
def test_vea_is_the_papers_steps(random, bare, crowded, by_hand, same, layers, mode, alpha):
    method = Vea(layers, alpha, boundary=mode)
    prompt = random.prompts(crowded[:4])
    shown = []
    for sample, found in zip(crowded, method.maps(random, prompt)):
        grid = by_hand.denoise(grid_of(bare, sample.image, sample.question, layers))
        np.testing.assert_allclose(found, by_hand.smooth_map(grid, mode), atol=1e-4)
        # The map found goes on: a pixel at a half may round to one side here, to the other there.
        shown.append((by_hand.highlighted(sample.image, found, alpha), sample.question))
    truth = bare.answers(*shown)
    plain = bare.answers(*[(sample.image, sample.question) for sample in crowded[:4]])
    assert all(abs(one[2][0] - two[2][0]) > 0.01 for one, two in zip(truth, plain)), "the highlight shows"
    same(method.answer(random, prompt), truth)
    same([method.answer(random, random.prompt(crowded[1]))], truth[1:2])


def test_alpha_1_is_the_base(random, crowded):
    prompt = random.prompts(crowded[:4])
    for given, base in zip(Vea((1, 3), alpha=1.0).answer(random, prompt), random.answer(prompt)):
        assert given.ids.tolist() == base.ids.tolist()
        assert given.logprob == base.logprob


def test_the_authors_smooth_by_reflection_and_we_do_not():
    assert vea((1, 3)) == Vea((1, 3), boundary="nearest")
    assert vea((1, 3), authors=True) == Vea((1, 3), boundary="reflect")
    assert vea((1, 3), authors=True, alpha=0.2) == Vea((1, 3), alpha=0.2, boundary="reflect")
    assert "reflect" in vea((1, 3), authors=True).about


def test_vea_takes_the_layers_of_a_profile(trained, crowded):
    found = profile(trained, crowded[:4])
    assert isinstance(found, Profile)
    assert vea(found).layers == found.layers


def test_the_second_question_is_asked_in_the_vea_template(random, bare, crowded, same):
    """The read is of the prompt as it was given, the answer of the other template."""
    sample = crowded[0]
    method = Vea((1, 3), alpha=1.0, template="is the {question}")
    same(
        [method.answer(random, random.prompt(sample))],
        bare.answers((sample.image, f"is the {sample.question}")),
    )


def test_the_map_of_a_picture_that_is_cropped_has_its_size_and_is_dark_where_nobody_saw(random, mixed):
    for sample in mixed:
        found = Vea((1, 3)).maps(random, random.prompt(sample))[0]
        width, height = sample.image.size
        assert found.shape == (height, width)
        assert found.max() > 0.99
        short, lost = min(width, height), abs(width - height) // 2
        if lost > 2:
            edge = found[:, : lost - 2] if width > height else found[: lost - 2]
            assert (edge == 0).all()
            assert (found > 0).mean() > 0.9 * short / max(width, height)


def test_the_window_highlight_dims_all_but_the_own_window(random, bare, crowded, by_hand, same):
    shown = []
    for sample in crowded[:4]:
        window = by_hand.own_window(bare.image_rows(sample.image, sample.question), HEADS)
        shown.append((by_hand.highlighted(sample.image, by_hand.box_map(window), 0.3), sample.question))
    truth = bare.answers(*shown)
    assert truth != bare.answers(*[(sample.image, sample.question) for sample in crowded[:4]])
    same(WindowHighlight(HEADS, alpha=0.3).answer(random, random.prompts(crowded[:4])), truth)


def test_the_processor_runs_once_for_the_highlight_and_the_template(random, crowded, monkeypatch):
    prompt = random.prompts(crowded[:2])
    asked = []
    run = type(random.processor).__call__

    def counted(self, *args, **kwargs):
        asked.append(kwargs["text"])
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(random.processor), "__call__", counted)
    Vea((1, 3), template="is the {question}").answer(random, prompt)
    (texts,) = asked
    assert all(f"is the {sample.question}" in text for sample, text in zip(crowded, texts, strict=False))


def test_the_map_of_an_edited_picture_is_that_of_its_own_tokens(random, crowded):
    """Behind a crop the tokens see other places, and the map has the size of what is left."""
    sample = crowded[0]
    window = (10, 20, 80, 110)
    found = Vea((1, 3)).maps(random.with_edits(E.Crop(window)), random.prompt(sample))[0]
    expected = Vea((1, 3)).maps(random, random.prompt(sample.image.crop(window), sample.question))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
