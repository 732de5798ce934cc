"""Controls: the annotated evidence, a random window, all of the image; and no method leaves a trace."""

import numpy as np
import pytest
import torch

from seeing import edits as E
from seeing.maps import window_tokens
from seeing.methods import (
    Base,
    BoostInPass,
    Edited,
    OracleHighlight,
    RandomAttention,
    RandomHighlight,
    SecondLook,
    Vea,
    WindowHighlight,
    all_image_attention,
    oracle_attention,
)
from seeing.methods.controls import box_map, random_windows
from seeing.prompt import BadPrompt

HEADS = {0: [1], 2: [0, 3]}
METHODS = {
    "base": Base(),
    "vea": Vea((1, 3)),
    "window-highlight": WindowHighlight(HEADS),
    "boost-in-pass": BoostInPass(HEADS, (3, 4, 5)),
    "second-look": SecondLook(HEADS),
    "oracle-attention": oracle_attention(),
    "oracle-highlight": OracleHighlight(),
    "random-attention": RandomAttention(),
    "random-highlight": RandomHighlight(),
    "image-attention": all_image_attention(),
    "edited": Edited(E.AblateHeads({1: [0]})),
}


def pairs(samples):
    return [(sample.image, sample.question) for sample in samples]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_the_model_as_it_was(random, crowded, name):
    prompt = random.prompts(crowded[:2])
    before = random.cache(prompt, ["logits", "text.*.attn.pattern"])
    words = random.answer(prompt)
    METHODS[name].answer(random, prompt)
    after = random.cache(prompt, ["logits", "text.*.attn.pattern"])
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [answer.logprob for answer in random.answer(prompt)] == [answer.logprob for answer in words]
    assert random.edits is None


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_gives_what_its_prompts_give_alone(random, crowded, name):
    together = METHODS[name].answer(random, random.prompts(crowded[:3]))
    assert isinstance(together, list)
    for answer, sample in zip(together, crowded):
        alone = METHODS[name].answer(random, random.prompt(sample))
        assert isinstance(alone, str)
        assert alone.ids.tolist() == answer.ids.tolist()
        # a highlighted pixel at a half may round to either side
        torch.testing.assert_close(alone.token_logprobs, answer.token_logprobs, atol=5e-3, rtol=0)


def test_methods_are_values_with_a_line_of_their_own():
    assert Vea((1,)) == Vea((1,))
    assert RandomAttention(seed=1) != RandomAttention(seed=2)
    lines = [method.about for method in METHODS.values()]
    assert all(line and "\n" not in line for line in lines)
    assert len(set(lines)) == len(lines)


# ---- the annotated evidence --------------------------------------------------------------------


def test_the_oracle_boost_is_a_boost_of_the_labelled_tokens(random, bare, mixed, labels_of, same):
    keys = [(1 + labels_of(sample).nonzero()[0]).tolist() for sample in mixed]
    with bare.boosted(keys, 4.0, range(6)):
        truth = bare.answers(*pairs(mixed))
    assert truth != bare.answers(*pairs(mixed))
    same(oracle_attention().answer(random, random.prompts(mixed)), truth)


def test_all_image_attention_is_a_boost_of_all_image_tokens(random, bare, crowded, same):
    with bare.boosted([range(1, 65)] * 3, 2.5, range(6)):
        truth = bare.answers(*pairs(crowded[:3]))
    assert truth != bare.answers(*pairs(crowded[:3]))
    same(all_image_attention(2.5).answer(random, random.prompts(crowded[:3])), truth)


def test_the_oracle_highlight_dims_all_but_the_box(random, bare, mixed, by_hand, same):
    shown = []
    for sample in mixed:
        evidence = np.zeros(sample.image.size[::-1])
        for x0, y0, x1, y1 in sample.boxes:
            evidence[int(y0) : int(y1), int(x0) : int(x1)] = 1
        shown.append((by_hand.highlighted(sample.image, evidence, 0.3), sample.question))
    truth = bare.answers(*shown)
    assert truth != bare.answers(*pairs(mixed))
    same(OracleHighlight(alpha=0.3).answer(random, random.prompts(mixed)), truth)


def test_a_box_map_is_1_on_every_pixel_that_a_box_touches():
    painted = box_map((6, 4), [(1.5, 0.0, 3.0, 1.2), (4.0, 3.0, 9.0, 9.0), (-2.0, 2.0, 1.0, 3.0)])
    expected = [
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert painted.tolist() == expected


@pytest.mark.parametrize("method", [oracle_attention(), OracleHighlight()])
def test_an_oracle_without_boxes_is_an_error(random, crowded, paste, method):
    """Not a picture dimmed all over, or an answer of the plain model."""
    with pytest.raises(BadPrompt, match="no evidence boxes"):
        method.answer(random, random.prompt(crowded[0].image, crowded[0].question))
    with pytest.raises(BadPrompt, match="no image token sees"):
        method.answer(random, random.prompt(paste(crowded[1], (336, 112), (0, 0))))


# ---- a random window ---------------------------------------------------------------------------


def test_random_windows_do_not_depend_on_the_batch(random, crowded):
    together = random_windows(random.prompts(crowded), (2, 2), seed=3)
    backwards = random_windows(random.prompts(crowded[::-1]), (2, 2), seed=3)
    alone = [random_windows(random.prompt(sample), (2, 2), seed=3)[0] for sample in crowded]
    assert together == alone == backwards[::-1]


def test_random_windows_depend_on_the_seed_and_the_picture(random, crowded):
    prompt = random.prompts(crowded)
    drawn = [random_windows(prompt, (2, 2), seed) for seed in range(20)]
    assert len({tuple(map(str, windows)) for windows in drawn}) == 20
    places = [(window.row, window.col) for windows in drawn for window in windows]
    assert {row for row, _ in places} == {col for _, col in places} == set(range(7))
    assert len(set(drawn[0])) > 6, "the pictures have windows of their own"
    # 240 draws from 49 places, chi-square with 48 degrees of freedom: 99.9 % lie below 84
    counts = np.bincount([7 * row + col for row, col in places], minlength=49)
    assert ((counts - 240 / 49) ** 2 / (240 / 49)).sum() < 84


def test_a_random_boost_boosts_its_window(random, bare, crowded, same):
    samples = crowded[:4]
    prompt = random.prompts(samples)
    windows = random_windows(prompt, (2, 2), 5)
    keys = [[1 + 8 * (w.row + i) + w.col + j for i in (0, 1) for j in (0, 1)] for w in windows]
    assert [window_tokens(grid, w).nonzero()[:, 0].tolist() for grid, w in zip(prompt.grids, windows)] == [
        [key - 1 for key in some] for some in keys
    ]
    with bare.boosted(keys, 8.0, range(6)):
        truth = bare.answers(*pairs(samples))
    same(RandomAttention(gain=8.0, seed=5).answer(random, prompt), truth)
    other = RandomAttention(gain=8.0, seed=6).answer(random, prompt)
    assert [answer.logprob for answer in other] != [sum(one[2]) for one in truth]


def test_a_random_highlight_dims_all_but_its_window(random, bare, crowded, by_hand, same):
    samples = crowded[:4]
    prompt = random.prompts(samples)
    windows = random_windows(prompt, (2, 2), 5)
    shown = [
        (by_hand.highlighted(sample.image, by_hand.box_map((w.row, w.col))), sample.question)
        for sample, w in zip(samples, windows)
    ]
    same(RandomHighlight(seed=5).answer(random, prompt), bare.answers(*shown))
