"""The second look on the embedded kind of model: against the bare eager model, and beside other edits.

The truth is the bare model, in which the boost is a hook on the attention mask, at positions found by hand
in a plain pass before. Tests of every family are in ``tests/families``.
"""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import seeing
from seeing import edits as E
from seeing.methods import SecondLook

MANY = {0: [1], 2: [0, 3], 5: [2]}


@pytest.fixture
def one(asked):
    return asked[:1]


@pytest.mark.parametrize("layers", ["all", "deep", (1, 4)])
@pytest.mark.parametrize("which", ["one", "asked"])
def test_a_second_look_is_a_whole_second_pass(request, random, which, layers):
    asked = request.getfixturevalue(which)
    prompt = random.prompts(asked)
    method = SecondLook(MANY, gain=4.0, layers=layers)
    whole = random.with_edits(method.edit(random, prompt))
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
    random.with_edits(method.edit(random, prompt)).answer(prompt)
    _, second, whole = steps
    torch.testing.assert_close(second, whole, atol=1e-5, rtol=1e-5)
    keys = by_hand.keys(bare, asked, MANY)
    truth = by_hand.boosted_logits(bare, asked, keys, 4.0, range(6))
    torch.testing.assert_close(second[0], truth, atol=1e-4, rtol=1e-5)


def test_a_second_look_answers_as_the_bare_model_boosted_by_hand(random, bare, by_hand, asked, same):
    keys = by_hand.keys(bare, asked, MANY)
    with bare.boosted(keys, 4.0, range(6)):
        truth = bare.answers(*asked)
    same(SecondLook(MANY).answer(random, random.prompts(asked)), truth)


def test_a_second_look_of_one_prompt_is_an_answer(random, asked):
    prompt, batch = random.prompt(*asked[0]), random.prompts(asked[:1])
    alone, [listed] = SecondLook(MANY).answer(random, prompt), SecondLook(MANY).answer(random, batch)
    assert isinstance(alone, str)
    assert alone == listed
    assert alone.ids.tolist() == listed.ids.tolist()


def test_a_second_look_costs_one_decoded_token(random, asked, counter):
    prompt = random.prompts(asked)
    with counter(random._module) as plain:
        random.answer(prompt)
    assert plain.looks == 1
    assert plain.tokens == [prompt.length, 1, 1, 1]
    with counter(random._module) as second:
        SecondLook(MANY).answer(random, prompt)
    assert second.looks == 1
    assert second.tokens == [prompt.length, 1, 1, 1, 1]
    with counter(random._module) as whole:
        method = SecondLook(MANY)
        random.with_edits(method.edit(random, prompt)).answer(prompt)
    assert whole.looks == 2


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
    whole = edited.with_edits(method.edit(edited, prompt)).answer(prompt)
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
    whole = edited.with_edits(method.edit(edited, prompt)).answer(prompt)
    for one, two in zip(method.answer(edited, prompt), whole):
        assert one.ids.tolist() == two.ids.tolist()
        torch.testing.assert_close(one.token_logprobs, two.token_logprobs, atol=1e-5, rtol=0)


def test_a_second_look_reads_all_heads_of_a_layer_that_names_none(random, crowded):
    prompt = random.prompt(crowded[0])
    every = SecondLook({2: [0, 1, 2, 3]}).answer(random, prompt)
    assert SecondLook({2: []}).answer(random, prompt).logprob == pytest.approx(every.logprob, abs=1e-6)


# ---- where the cache is not kept -------------------------------------------------------------------


@contextmanager
def bidirectional(model):
    """Every token of a prompt sees all others."""

    def lift(module, args, kwargs):
        queries = kwargs["hidden_states"].shape[1] if "hidden_states" in kwargs else args[0].shape[1]
        if queries == 1:
            return None
        return args, {**kwargs, "attention_mask": torch.zeros(1, 1, queries, queries)}

    layers = model.model.language_model.layers
    hooks = [layer.self_attn.register_forward_pre_hook(lift, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def agree(given, expected):
    for one, two in zip(given, expected, strict=True):
        assert one.ids.tolist() == two.ids.tolist()
        torch.testing.assert_close(one.token_logprobs, two.token_logprobs, atol=1e-5, rtol=0)


def test_a_prompt_whose_earlier_tokens_see_the_last_runs_again(random, one, counter):
    """Found on the way in a model that was not proved at load, and at load in one that was."""
    prompt, method = random.prompts(one), SecondLook(MANY)
    with bidirectional(random._module):
        assert (random.cache(prompt, "text.0.attn.pattern", queries=[-2])["text.0.attn.pattern"] > 0).all()
        with counter(random._module) as count:
            given = method.answer(random, prompt)
        assert count.looks == 2
        agree(given, random.with_edits(method.edit(random, prompt)).answer(prompt))
    with counter(random._module) as count:
        method.answer(random, prompt)
    assert count.looks == 1


def test_the_proof_finds_out_whether_an_earlier_token_sees_the_last(pair):
    model, processor = copy.deepcopy(pair[0]), pair[1]
    assert seeing.load((model, processor)).last_unseen is True
    with bidirectional(model):
        vlm = seeing.load((model, processor))
    assert vlm.last_unseen is False
    plan = SecondLook.plan(vlm)
    assert not plan.kept
    assert "sees the last" in plan.why


LOOK_BACK = {
    "read and act on earlier rows": E.ScaleAttention(
        keys=E.seen({0: [1]}), queries="question", gain=9.0, layers=3
    ),
    "read and steer earlier ones": E.Steer(
        "text.3.resid_post", torch.linspace(-1, 1, 128), 3.0, positions=E.seen({0: [1]})
    ),
    "watch": E.ScaleAttention(keys=E.maybe(E.sinks([3, 40], threshold=1.5)), gain=4.0, layers=(2, 4)),
    "contrast": E.Contrast(E.Knockout(keys="image"), weight=1.0),
}


@pytest.mark.parametrize("name", LOOK_BACK)
def test_beside_an_edit_that_looks_back_the_prompt_runs_again(random, asked, name):
    edited, prompt, method = random.with_edits(LOOK_BACK[name]), random.prompts(asked), SecondLook(MANY)
    plan = SecondLook.plan(edited)
    assert not plan.kept
    assert "looks at more" in plan.why
    whole = edited.with_edits(method.edit(edited, prompt)).answer(prompt)
    given = method.answer(edited, prompt)
    agree(given, whole)
    plain = method.answer(random, prompt)
    assert any(one.logprob != two.logprob for one, two in zip(given, plain)), "the edit shows nowhere"


def test_keys_that_watch_the_stream_are_found_in_a_whole_pass(random, asked):
    """Sinks are found where every token runs, and what is seen comes from the first look."""
    prompt = random.prompts(asked)
    keys = E.seen(MANY) | E.maybe(E.sinks([3, 40], threshold=1.5))
    method = SecondLook(keys=keys, gain=6.0, layers=(1, 3))
    edit = method.edit(random, prompt)
    assert edit.watches(1)
    assert not any(one.reads for one in edit.selectors)
    agree(method.answer(random, prompt), random.with_edits(edit).answer(prompt))
    without = SecondLook(keys=E.seen(MANY), gain=6.0, layers=(1, 3)).answer(random, prompt)
    assert any(one.logprob != two.logprob for one, two in zip(method.answer(random, prompt), without))


def test_a_checkpoint_that_asks_for_a_static_cache_gets_a_whole_pass(random, monkeypatch):
    assert SecondLook.plan(random).kept
    monkeypatch.setattr(random._module.generation_config, "cache_implementation", "hybrid")
    assert SecondLook.plan(random).kept
    monkeypatch.setattr(random._module.generation_config, "cache_implementation", "static")
    assert "'static'" in SecondLook.plan(random).why


# ---- keys and heads --------------------------------------------------------------------------------


def test_the_region_is_found_in_the_picture_that_runs(random, crowded):
    """Of a model whose edits crop the picture, it is the region in the crop."""
    window, method = (28, 28, 112, 98), SecondLook(MANY)
    cropped = random.prompts([(sample.image.crop(window), sample.question) for sample in crowded[:3]])
    edited = random.with_edits(E.Crop(window))
    assert SecondLook.plan(edited).kept
    agree(method.answer(edited, random.prompts(crowded[:3])), method.answer(random, cropped))


def test_keys_known_without_a_look_are_boosted_in_one_pass(random, crowded, counter):
    prompt = random.prompts(crowded[:3])
    with counter(random._module) as count:
        given = SecondLook(keys="evidence", gain=6.0).answer(random, prompt)
    assert count.looks == 1
    agree(given, random.with_edits(E.ScaleAttention(keys="evidence", gain=6.0)).answer(prompt))


def test_heads_and_keys_are_not_given_both_nor_neither():
    for given in ({}, dict(heads=MANY, keys="image")):
        with pytest.raises(E.BadEdit, match="one of them"):
            SecondLook(**given)


def test_positional_arguments_are_heads_gain_layers_and_window():
    method = SecondLook(MANY, 3.0, "deep", (1, 2))
    assert method == SecondLook(heads=MANY, gain=3.0, layers="deep", window=(1, 2))


def test_layers_that_the_model_lacks_are_refused_before_it_runs(random, one, counter):
    prompt = random.prompts(one)
    for method in (SecondLook({9: [0]}), SecondLook({0: [7]})):
        with counter(random._module) as count, pytest.raises(E.BadEdit, match="reads no"):
            method.answer(random, prompt)
        assert count.looks == 0
