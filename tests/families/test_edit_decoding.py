"""Edits at decoded tokens equal one pass of the twin over prompt and answer, edited in the rows that decode.

Step t of a generation decodes from row n − 1 + t, n being the prompt's length. The pass by hand has no KV
cache and no steps: what an edit did in the prompt twice, or not at a decoded token, would show in its logits.
"""

import math

import pytest
import torch
from tiny.hand import close, moved, rows_by_hand

from seeing import edits as E

BOX = [(20.0, 12.0, 48.0, 44.0)]
STEPS = 3
#: When an edit acts, and the steps that this means.
WHEN = {"both": (0, 1, 2), "prompt": (0,), "decode": (1, 2), range(1, 2): (1,)}
WHENS = pytest.mark.parametrize("when", WHEN, ids=str)


@pytest.fixture(scope="module")
def prompt(case):
    return case.prompt()


@pytest.fixture(scope="module")
def plain(case, prompt):
    """The twin's own logits of each step, in one pass over what the model decodes by itself."""
    return case.twin.run(extended(case, prompt, generated(case.vlm, prompt)[0]))[0, prompt.length - 1 :]


def settings(vlm):
    """Three steps, none of which decodes a picture's token, which no pass takes behind the pictures."""
    return dict(
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        suppress_tokens=[vlm.family.image_token_id(vlm._module)],
        output_logits=True,
        return_dict_in_generate=True,
    )


def generated(vlm, prompt):
    """(ids, logits of each step) of a generation."""
    with torch.no_grad(), vlm.generate(prompt, **settings(vlm)) as tracer:
        result = tracer.result.save()
    return result.sequences[:, -STEPS:], torch.stack(result.logits)[:, 0]


def extended(case, prompt, ids):
    """The prompt's inputs with the tokens behind them that were decoded from."""
    more = ids.shape[1] - 1
    inputs = {key: value for key, value in prompt.inputs.items() if key != "position_ids"}
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[:, :-1]], 1)
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, more), value=1)
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in inputs:
            inputs[key] = torch.nn.functional.pad(inputs[key], (0, more), value=BEHIND.get(case.name, 0))
    if (mask := inputs.get("cross_attention_mask")) is not None:
        inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, more, -1, -1)], 1)
    return inputs


#: The token type of an answer, where it is not the prompt's: PaliGemma's is causal, its prompt is not.
BEHIND = {"paligemma": 1}


def newest(prompt, when):
    """(1, row): the rows that decode in the steps of ``when``."""
    mask = torch.zeros(1, prompt.length + STEPS - 1, dtype=torch.bool)
    mask[0, [prompt.length - 1 + step for step in WHEN[when]]] = True
    return mask


def all_of(prompt, when):
    """(1, row): every row of the steps of ``when``, all of the prompt in step 0."""
    mask = newest(prompt, when)
    mask[0, : prompt.length] = 0 in WHEN[when]
    return mask


def boxed(prompt, length):
    """(1, key): the keys that look at the box."""
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, prompt.grids[0].positions[torch.as_tensor(prompt.grids[0].labels(BOX))]] = True
    return mask


def rows_of_every_layer(case, prompt, when, part, change):
    """The twin's edits of the rows that decode, at the keys on the box."""
    total, edits = prompt.length + STEPS - 1, {}
    for layer, kernel in case.vlm.sites.kernels["text"].items():
        keys = boxed(prompt.cross, prompt.cross.length) if kernel.cross else boxed(prompt, total)
        edits[case.attention(layer)] = rows_by_hand(part, change, newest(prompt, when), keys)
    return edits


def compare(case, prompt, plain, made, **by_hand):
    ids, logits = generated(case.vlm.with_edits(made), prompt)
    expected = case.twin.run(extended(case, prompt, ids), **by_hand)[0, prompt.length - 1 :]
    close(logits, expected)
    assert any(moved(one, other) for one, other in zip(logits, plain))


@pytest.mark.parametrize("when", ["both", range(1, 2)], ids=str)
def test_scores_edited_while_decoding(case, prompt, plain, when):
    """All kinds of score edits, one behind the other."""
    place = dict(keys=BOX, when=when)
    edits = (
        E.Bias(value=0.7, **place)
        + E.MapScores(lambda scores: 1.1 * scores, **place)
        + E.ScaleAttention(gain=1.5, **place)
        + E.Temperature(value=0.8, **place)
        + E.Amplify(share=0.3, **place)
    )

    def change(scores, keys, seen):
        new = (1.1 * (scores + 0.7) + math.log(1.5)) / 0.8
        return torch.where(keys, new + 0.3 * new.abs(), scores)

    compare(case, prompt, plain, edits, edits=rows_of_every_layer(case, prompt, when, "scores", change))


def test_edges_cut_while_decoding(case, prompt, plain):
    hand = rows_of_every_layer(case, prompt, "both", "scores", lambda s, k, _: s.masked_fill(k, -torch.inf))
    compare(case, prompt, plain, E.Knockout(keys=BOX), edits=hand)


@pytest.mark.parametrize("when", ["both", range(1, 2)], ids=str)
def test_patterns_edited_while_decoding(case, prompt, plain, when):
    """All kinds of pattern edits, one behind the other."""
    place = dict(keys=BOX, when=when)
    others = ~E.Boxes(tuple(BOX))
    edits = (
        E.SetPattern("uniform", **place)
        + E.MapPattern(torch.sqrt, **place)
        + E.ScalePattern(factor=0.5, **place)
        + E.Redistribute(BOX, others, 0.3, when=when)
        + E.SetPattern(0.0, keys=[0], when=when)
    )

    def change(weights, keys, seen):
        mine = keys & seen
        share = (weights * mine).sum(-1, keepdim=True) / mine.sum(-1, keepdim=True).clamp_min(1)
        weights = torch.where(mine, 0.5 * share.sqrt(), weights)
        rest = weights * ~keys
        gone = 0.3 * (weights * keys).sum(-1, keepdim=True)
        weights = torch.where(keys, 0.7 * weights, rest * (1 + gone / rest.sum(-1, keepdim=True)))
        first = torch.arange(weights.shape[-1]) == 0
        return weights * ~first

    hand = rows_of_every_layer(case, prompt, when, "pattern", change)
    compare(case, prompt, plain, edits, edits=hand)


@WHENS
def test_heads_and_the_stream_edited_while_decoding(case, prompt, plain, when):
    """Heads at every position, the newest position's stream."""
    kernels, middle = list(case.vlm.sites.kernels["text"]), case.vlm.cfg.n_layers // 2
    first, last = kernels[0], kernels[-1]
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, case.vlm.cfg.d_model, generator=generator)
    size = case.attention(last).o_proj.weight.shape[1] // case.vlm.cfg.n_heads
    value = torch.randn(size, generator=generator)
    site = f"text.{middle}.resid_post"
    edits = (
        E.AblateHeads({first: [0]}, when=when)
        + E.ScaleHeads({last: [1]}, -1.5, when=when)
        + E.SetHeads({last: [3]}, value, positions="last", when=when)
        + E.Steer(site, one, 2.0, when=when)
        + E.Rotate(site, two, 0.5, when=when)
        + E.ProjectOut(site, one, when=when)
    )
    every, rows = all_of(prompt, when)[..., None], newest(prompt, when)[..., None]

    def ablate(x):
        place = torch.arange(x.shape[-1]) // (x.shape[-1] // case.vlm.cfg.n_heads)
        return torch.where(every & (place == 0), 0, x)

    def scale_and_set(x):
        place = torch.arange(x.shape[-1]) // size
        x = torch.where(every & (place == 1), -1.5 * x, x)
        return torch.where(rows & (place == 3), value.repeat(case.vlm.cfg.n_heads), x)

    def steer(x):
        x = torch.where(rows, x + 2 * one, x)
        length = x.norm(dim=-1, keepdim=True)
        unit, v = x / length, two / two.norm()
        turned = unit + (0.5 * (1 + (-(unit @ v)).clamp(min=0)))[..., None] * v
        x = torch.where(rows, length * turned / turned.norm(dim=-1, keepdim=True), x)
        along = one / one.norm()
        return torch.where(every, x - (x @ along)[..., None] * along, x)

    hooks = [
        (case.attention(first).o_proj, "in", ablate),
        (case.attention(last).o_proj, "in", scale_and_set),
        (case.layers[middle], "out", steer),
    ]
    compare(case, prompt, plain, edits, hooks=hooks)


def test_answers_of_an_edited_batch_are_those_of_its_prompts(case, picture):
    """Each row under its own selection, at decoded tokens too, in spite of its padding."""
    rows = [
        (picture(76, 52), "what digit is on the red square ?", ((20, 12, 48, 44),)),
        (picture(50, 90, 1), "what digit is on the blue circle on the red square ?", ((5, 40, 40, 80),)),
    ]
    edits = E.ScaleAttention(keys="evidence", gain=8.0) + E.Steer(
        f"text.{case.vlm.cfg.n_layers - 1}.resid_post", torch.arange(case.vlm.cfg.d_model) / 20, 0.5
    )
    edited = case.vlm.with_edits(edits)
    answers = edited.answer(case.vlm.prompts(rows), max_new_tokens=STEPS)
    for (image, question, boxes), answer in zip(rows, answers, strict=True):
        alone = edited.answer(case.vlm.prompt(image, question, boxes=boxes), max_new_tokens=STEPS)
        assert answer.ids.tolist() == alone.ids.tolist()
        close(answer.token_logprobs, alone.token_logprobs)


def test_a_generation_without_edits_is_bit_equal_afterwards(case, prompt):
    generated(case.vlm.with_edits(E.Knockout(keys=BOX)), prompt)
    with torch.no_grad():
        bare = case.model.generate(**prompt.inputs, **settings(case.vlm))
    assert torch.equal(torch.stack(bare.logits)[:, 0], generated(case.vlm, prompt)[1])
