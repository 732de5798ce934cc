"""Boosts of the own region: one pass, or a second look, equal the passes that they stand for.

The truth is the bare eager model, in which the boost is a hook on the attention mask, at positions found by
hand in a plain pass before.
"""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from seeing import edits as E
from seeing.edits.select import BadEdit
from seeing.methods import BoostInPass, SecondLook
from seeing.methods.vea import own_rows

HEADS = {0: [1, 2], 1: [3]}
BEHIND = (2, 3, 4, 5)
MANY = {0: [1], 2: [0, 3], 5: [2]}


def keys_by_hand(bare, by_hand, asked, heads):
    """The positions of each row's own window in the padded batch."""
    longest = max(len(question.split()) for _, question in asked)
    keys = []
    for picture, question in asked:
        window = by_hand.own_window(bare.image_rows(picture, question), heads)
        keys.append([1 + longest - len(question.split()) + token for token in by_hand.tokens(window)])
    return keys


def logits_of(vlm, prompt):
    return vlm.cache(prompt, "logits")["logits"][:, -1]


def boosted_logits(bare, asked, keys, gain, layers):
    with torch.no_grad(), bare.boosted(keys, gain, layers):
        return bare.model(**bare.inputs(*asked)).logits[:, -1]


@pytest.fixture
def one(asked):
    return asked[:1]


@pytest.mark.parametrize("which", ["one", "asked"])
def test_the_boost_in_one_pass_is_two_passes_by_hand(request, random, bare, by_hand, same, which):
    asked = request.getfixturevalue(which)
    keys = keys_by_hand(bare, by_hand, asked, HEADS)
    method = BoostInPass(HEADS, BEHIND, gain=16.0)
    prompt = random.prompts(asked)
    logits = boosted_logits(bare, asked, keys, 16.0, BEHIND)
    assert (logits - logits_of(random, prompt)).abs().amax(1).min() > 0.01, "the boost moves every row"
    torch.testing.assert_close(
        logits_of(random.with_edits(method.edit()), prompt), logits, atol=1e-4, rtol=1e-5
    )
    with bare.boosted(keys, 16.0, BEHIND):
        truth = bare.answers(*asked)
    same(method.answer(random, prompt), truth)


def test_the_boost_in_one_pass_is_the_boost_of_given_positions(random, bare, by_hand, asked):
    """To 1e-5, since both run under the same kernel."""
    keys = keys_by_hand(bare, by_hand, asked, HEADS)
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
        assert SecondLook(heads).boost(prompt, own_rows(planted, prompt, heads)).keys.rows[row] == keys
    assert moved
    given = planted.with_edits(BoostInPass(heads, (3, 4), gain=4.0).edit())
    same = planted.with_edits(
        SecondLook(heads, layers=(3, 4)).boost(prompt, own_rows(planted, prompt, heads))
    )
    torch.testing.assert_close(logits_of(given, prompt), logits_of(same, prompt), atol=1e-5, rtol=1e-5)


# ---- second look -------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["all", "deep", (1, 4)])
@pytest.mark.parametrize("which", ["one", "asked"])
def test_a_second_look_is_a_whole_second_pass(request, random, which, layers):
    asked = request.getfixturevalue(which)
    prompt = random.prompts(asked)
    method = SecondLook(MANY, gain=4.0, layers=layers)
    whole = random.with_edits(method.boost(prompt, own_rows(random, prompt, MANY)))
    first = method.answer(random, prompt)
    for given, expected in zip(first, whole.answer(prompt)):
        assert given.ids.tolist() == expected.ids.tolist()
        torch.testing.assert_close(given.token_logprobs, expected.token_logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["one", "asked"])
def test_the_first_step_of_a_second_look_has_the_logits_of_a_second_pass(
    request, random, bare, by_hand, which, monkeypatch
):
    asked = request.getfixturevalue(which)
    prompt = random.prompts(asked)
    steps = []
    inner = random._module.generate

    def listen(*args, **kwargs):
        out = inner(*args, **kwargs)
        steps.append(torch.stack(out.logits))
        return out

    monkeypatch.setattr(random._module, "generate", listen)
    method = SecondLook(MANY)
    method.answer(random, prompt)
    random.with_edits(method.boost(prompt, own_rows(random, prompt, MANY))).answer(prompt)
    _, second, whole = steps
    torch.testing.assert_close(second, whole, atol=1e-5, rtol=1e-5)
    keys = keys_by_hand(bare, by_hand, asked, MANY)
    truth = boosted_logits(bare, asked, keys, 4.0, range(6))
    torch.testing.assert_close(second[0], truth, atol=1e-4, rtol=1e-5)


def test_a_second_look_answers_as_the_bare_model_boosted_by_hand(random, bare, by_hand, asked, same):
    keys = keys_by_hand(bare, by_hand, asked, MANY)
    with bare.boosted(keys, 4.0, range(6)):
        truth = bare.answers(*asked)
    same(SecondLook(MANY).answer(random, random.prompts(asked)), truth)


def test_a_second_look_of_one_prompt_is_an_answer(random, asked):
    prompt, batch = random.prompt(*asked[0]), random.prompts(asked[:1])
    alone, [listed] = SecondLook(MANY).answer(random, prompt), SecondLook(MANY).answer(random, batch)
    assert isinstance(alone, str)
    assert alone == listed
    assert alone.ids.tolist() == listed.ids.tolist()


class Counter:
    """How often the vision tower runs, and how many tokens each pass of the text stack takes."""

    def __init__(self, model):
        self.looks, self.tokens = 0, []
        self.hooks = [
            model.model.vision_tower.register_forward_pre_hook(self._look),
            model.model.language_model.norm.register_forward_pre_hook(self._pass),
        ]

    def _look(self, module, args):
        self.looks += 1

    def _pass(self, module, args):
        self.tokens.append(args[0].shape[1])

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for hook in self.hooks:
            hook.remove()


def test_a_second_look_costs_one_decoded_token(random, asked):
    prompt = random.prompts(asked)
    with Counter(random._module) as plain:
        random.answer(prompt)
    assert plain.looks == 1
    assert plain.tokens == [prompt.length, 1, 1, 1]
    with Counter(random._module) as second:
        SecondLook(MANY).answer(random, prompt)
    assert second.looks == 1
    assert second.tokens == [prompt.length, 1, 1, 1, 1]
    with Counter(random._module) as whole:
        method = SecondLook(MANY)
        random.with_edits(method.boost(prompt, own_rows(random, prompt, MANY))).answer(prompt)
    assert whole.looks == 2


def test_a_boost_in_one_pass_is_one_pass(random, asked):
    prompt = random.prompts(asked)
    with Counter(random._module) as count:
        BoostInPass(HEADS, BEHIND).answer(random, prompt)
    assert count.looks == 1
    assert count.tokens == [prompt.length, 1, 1, 1]


def test_a_second_look_refuses_a_prompt_whose_earlier_tokens_see_the_last(random, one):
    def bidirectional(module, args, kwargs):
        queries = kwargs["hidden_states"].shape[1] if "hidden_states" in kwargs else args[0].shape[1]
        if queries == 1:
            return None
        return args, {**kwargs, "attention_mask": torch.zeros(1, 1, queries, queries)}

    hooks = [
        layer.self_attn.register_forward_pre_hook(bidirectional, with_kwargs=True)
        for layer in random._module.model.language_model.layers
    ]
    try:
        prompt = random.prompts(one)
        assert (random.cache(prompt, "text.0.attn.pattern", queries=[-2])["text.0.attn.pattern"] > 0).all()
        with pytest.raises(BadEdit, match="prefix-bidirectional"):
            SecondLook(MANY).answer(random, prompt)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(SecondLook(MANY).answer(random, prompt)) == 1


EDITS = {
    "heads": E.AblateHeads({1: [0], 3: [2, 3]}),
    "steer": E.Steer("text.2.resid_post", torch.linspace(-1, 1, 128), 3.0),
    "knockout": E.Knockout(queries="question", keys="image", layers=(1, 2)),
    "own boost": E.ScaleAttention(keys="image", gain=3.0, layers=(4,), heads=[1]),
    "in one pass": E.ScaleAttention(keys=E.seen({0: [1]}), gain=8.0, layers=(3,)),
    "prompt only": E.Knockout(keys="question", layers=(2,), when="prompt"),
    "tower": E.Steer("vision.2.resid_post", torch.linspace(-1, 1, 96), 3.0, positions="all"),
    "projector": E.Steer("projector.out", torch.linspace(-1, 1, 128), 3.0, positions="all"),
    "decode only": E.Knockout(keys="question", layers=(2,), when="decode"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_second_look_goes_with_other_edits(random, asked, name):
    """It equals the whole second pass of the edited model, whatever the edit acts on."""
    edited = random.with_edits(EDITS[name])
    prompt = random.prompts(asked)
    method = SecondLook(MANY)
    whole = edited.with_edits(method.boost(prompt, own_rows(edited, prompt, MANY))).answer(prompt)
    plain = method.answer(random, prompt)
    given = method.answer(edited, prompt)
    assert any(one.logprob != two.logprob for one, two in zip(given, plain)), "the edit shows nowhere"
    for one, two in zip(given, whole):
        assert one.ids.tolist() == two.ids.tolist()
        torch.testing.assert_close(one.token_logprobs, two.token_logprobs, atol=1e-5, rtol=0)


def test_an_empty_cache_is_nothing_to_go_on_from(random, one):
    """The picture is looked at, and edits of the tower act."""
    prompt = random.prompts(one)
    for vlm in (random, random.with_edits(EDITS["tower"])):
        [given], [plain] = vlm.answer(prompt, past_key_values=DynamicCache()), vlm.answer(prompt)
        assert given.ids.tolist() == plain.ids.tolist()
        assert given.logprob == pytest.approx(plain.logprob, abs=1e-5)


def test_a_second_look_goes_with_a_highlight(random, crowded):
    evidence = np.zeros((112, 112))
    evidence[20:90, 30:70] = 1
    edited = random.with_edits(E.Highlight(evidence, 0.3))
    prompt = random.prompts(crowded[:3])
    method = SecondLook(MANY)
    whole = edited.with_edits(method.boost(prompt, own_rows(edited, prompt, MANY))).answer(prompt)
    for one, two in zip(method.answer(edited, prompt), whole):
        assert one.ids.tolist() == two.ids.tolist()
        torch.testing.assert_close(one.token_logprobs, two.token_logprobs, atol=1e-5, rtol=0)


def test_a_second_look_reads_all_heads_of_a_layer_that_names_none(random, crowded):
    prompt = random.prompt(crowded[0])
    every = SecondLook({2: [0, 1, 2, 3]}).answer(random, prompt)
    assert SecondLook({2: []}).answer(random, prompt).logprob == pytest.approx(every.logprob, abs=1e-6)
