"""Boosts of the own region in one pass equal the passes that they stand for.

The truth is the bare eager model, in which the boost is a hook on the attention mask, at positions found by
hand in a plain pass before.
"""

import pytest
import torch

from seeing import edits as E
from seeing.edits.select import BadEdit
from seeing.methods import BoostInPass, SecondLook

HEADS = {0: [1, 2], 1: [3]}
BEHIND = (2, 3, 4, 5)
MANY = {0: [1], 2: [0, 3], 5: [2]}


def logits_of(vlm, prompt):
    return vlm.cache(prompt, "logits")["logits"][:, -1]


@pytest.fixture
def one(asked):
    return asked[:1]


@pytest.mark.parametrize("which", ["one", "asked"])
def test_the_boost_in_one_pass_is_two_passes_by_hand(request, random, bare, by_hand, same, which):
    asked = request.getfixturevalue(which)
    keys = by_hand.keys(bare, asked, HEADS)
    method = BoostInPass(HEADS, BEHIND, gain=16.0)
    prompt = random.prompts(asked)
    logits = by_hand.boosted_logits(bare, asked, keys, 16.0, BEHIND)
    assert (logits - logits_of(random, prompt)).abs().amax(1).min() > 0.01, "the boost moves every row"
    torch.testing.assert_close(
        logits_of(random.with_edits(method.edit()), prompt), logits, atol=1e-4, rtol=1e-5
    )
    with bare.boosted(keys, 16.0, BEHIND):
        truth = bare.answers(*asked)
    same(method.answer(random, prompt), truth)


def test_the_boost_in_one_pass_is_the_boost_of_given_positions(random, bare, by_hand, asked):
    """To 1e-5, since both run under the same kernel."""
    keys = by_hand.keys(bare, asked, HEADS)
    prompt = random.prompts(asked)
    positions = E.Positions(tuple(map(tuple, keys)))
    given = random.with_edits(E.ScaleAttention(keys=positions, gain=16.0, layers=BEHIND))
    seen = random.with_edits(BoostInPass(HEADS, BEHIND, gain=16.0).edit())
    torch.testing.assert_close(logits_of(seen, prompt), logits_of(given, prompt), atol=1e-5, rtol=1e-5)
    assert [str(answer) for answer in seen.answer(prompt)] == [str(answer) for answer in given.answer(prompt)]


def test_a_boost_changes_answers(random, asked):
    """Or the comparisons of answers would hold for any boost."""
    prompt = random.prompts(asked)
    base = [answer.ids.tolist() for answer in random.answer(prompt)]
    for method in (BoostInPass(HEADS, BEHIND), SecondLook(MANY)):
        answers = [answer.ids.tolist() for answer in method.answer(random, prompt)]
        assert answers != base
        assert max(map(len, answers)) == 4, "several tokens are decoded"


@pytest.mark.parametrize("method", [BoostInPass(HEADS, BEHIND, gain=1.0), SecondLook(MANY, gain=1.0)])
def test_gain_1_is_neutral(random, asked, method):
    prompt = random.prompts(asked)
    for given, base in zip(method.answer(random, prompt), random.answer(prompt)):
        assert given.ids.tolist() == base.ids.tolist()
        torch.testing.assert_close(given.token_logprobs, base.token_logprobs, atol=1e-5, rtol=0)


def test_a_boost_in_one_pass_acts_behind_what_it_reads(random, one):
    with pytest.raises(BadEdit, match="behind"):
        BoostInPass({3: [0]}, (3, 4)).answer(random, random.prompts(one))


def test_the_own_region_is_not_a_single_spike(planted, bare_planted, squares, by_hand):
    """One white patch holds the planted head's attention; cleaned away, it is not the region any more."""
    samples = [one for one in squares(8, side=14) if min(one.boxes[0]) >= 14 and max(one.boxes[0]) < 98]
    prompt = planted.prompts(samples)
    heads = {2: [1]}
    moved = 0
    for row, sample in enumerate(samples):
        rows = bare_planted.image_rows(sample.image, sample.question)[2, 1].reshape(8, 8)
        raw, clean = by_hand.best_window(rows), by_hand.best_window(by_hand.denoise(rows))
        moved += by_hand.tokens(raw) != by_hand.tokens(clean)
        keys = tuple(1 + token for token in by_hand.tokens(clean))
        assert SecondLook(heads).edit(planted, prompt).keys.rows[row] == keys
    assert moved
    given = planted.with_edits(BoostInPass(heads, (3, 4), gain=4.0).edit())
    same = planted.with_edits(SecondLook(heads, layers=(3, 4)).edit(planted, prompt))
    torch.testing.assert_close(logits_of(given, prompt), logits_of(same, prompt), atol=1e-5, rtol=1e-5)


def test_a_boost_in_one_pass_is_one_pass(random, asked, counter):
    prompt = random.prompts(asked)
    with counter(random._module) as count:
        BoostInPass(HEADS, BEHIND).answer(random, prompt)
    assert count.looks == 1
    assert count.tokens == [prompt.length, 1, 1, 1]
