"""Edits do what they say, in the prompt pass and at every decoded token, and nothing else.

The truth is the bare model of the same weights with an attention written out by hand, in which scores,
z and every named activation are changed by plain functions; or with weights changed by hand. A generation
is held against runs over the whole sequence so far, with the rows that the edit names edited in each.
"""

import gc
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import seeing
from seeing import edits as E
from seeing.zoo.build import TOKEN

NEVER = torch.finfo(torch.float32).min
QUESTION = "what digit is on the red square ?"
LONGER = "what digit is on the red square on the blue circle ?"
KERNELS = ["sdpa", "eager"]
NO_TEXT = [TOKEN["<eos>"], TOKEN["<image>"]]


def close(found, expected, atol=1e-5):
    """To 1e-5 of the largest number."""
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=atol * scale)


def logits_of(vlm, prompt):
    return vlm.cache(prompt, "logits")["logits"]


def moved(found, before):
    """That an edit did something at the last position, far above rounding."""
    assert (found[:, -1] - before[:, -1]).abs().max() > 1e-3


def mask_of(prompt, positions, n):
    """Positions by name or number -> (batch, n) booleans, worked out by hand."""
    mask = torch.zeros(len(prompt.inputs["input_ids"]), n, dtype=torch.bool)
    length = prompt.length
    if isinstance(positions, list):
        mask[:, positions] = True
    elif positions == "all":
        mask[:] = True
    elif positions == "last":
        mask[:, length - 1 :] = True
    elif positions == "answer":
        mask[:, length:] = True
    elif positions == "image":
        mask[:, :length] = prompt.inputs["input_ids"] == 4
    else:
        assert torch.is_tensor(positions)
        mask[:, :length] = positions
    return mask


def during(prompt, rows, when):
    """Rows of a whole sequence that an edit of this ``when`` reaches: each is the newest once, or prompt."""
    rows = rows.clone()
    if when == "prompt":
        rows[:, prompt.length :] = False
    if when == "decode":
        rows[:, : prompt.length] = False
    return rows


def scored(prompt, change, *, keys, queries="last", heads=None, when="both"):
    """A function of all scores (batch, head, query, key) that changes those of the edges named."""

    def fn(scores):
        n = scores.shape[-1]
        rows = during(prompt, mask_of(prompt, queries, n), when)
        edges = rows[:, None, :, None] & mask_of(prompt, keys, n)[:, None, None, :]
        some = torch.zeros(scores.shape[1], dtype=torch.bool)
        some[list(range(scores.shape[1])) if heads is None else heads] = True
        return torch.where(edges & some[:, None, None], change(scores), scores)

    return fn


def rowed(prompt, change, *, positions="last", when="both"):
    """A function of an activation (batch, pos, …) that changes the positions named."""

    def fn(value):
        rows = during(prompt, mask_of(prompt, positions, value.shape[1]), when)
        return torch.where(rows.reshape(*rows.shape, *(1,) * (value.ndim - 2)), change(value), value)

    return fn


def headed(prompt, factor, heads, when="both"):
    """A function of z (batch, pos, head, d) that multiplies some heads."""
    scale = torch.ones(4)
    scale[heads] = factor
    return rowed(prompt, lambda z: z * scale[:, None], positions="all", when=when)


def each(layers, site, fn):
    return {f"text.{layer}.{site}": fn for layer in layers}


def times(gain):
    return lambda scores: scores + math.log(gain)


def plus(value):
    return lambda scores: scores + value


def cut(scores):
    return torch.full_like(scores, NEVER)


def vector(width, seed=1):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


V, D, M = vector(32), vector(8), vector(48)

#: An edit, and the same by hand: a function of the prompt that gives changes by name.
CASES = {
    "gain": (
        E.ScaleAttention(keys="image", gain=5.0),
        lambda p: each(range(4), "attn.scores", scored(p, times(5.0), keys="image")),
    ),
    "gain-deep-heads": (
        E.ScaleAttention(keys="image", gain=0.2, layers="deep", heads=[1, 2]),
        lambda p: each([2, 3], "attn.scores", scored(p, times(0.2), keys="image", heads=[1, 2])),
    ),
    "gain-all-queries": (
        E.ScaleAttention(keys=[5, 8, -2], gain=3.0, queries="all", layers=slice(0, 3), heads=3),
        lambda p: each(
            range(3),
            "attn.scores",
            scored(p, times(3.0), keys=[5, 8, p.length - 2], queries="all", heads=[3]),
        ),
    ),
    "gain-decode": (
        E.ScaleAttention(keys="image", gain=5.0, when="decode"),
        lambda p: each(range(4), "attn.scores", scored(p, times(5.0), keys="image", when="decode")),
    ),
    "gain-prompt": (
        E.ScaleAttention(keys="image", gain=5.0, when="prompt"),
        lambda p: each(range(4), "attn.scores", scored(p, times(5.0), keys="image", when="prompt")),
    ),
    "bias": (
        E.Bias(keys="question", value=-2.0, layers=[1, 3]),
        lambda p: each([1, 3], "attn.scores", scored(p, plus(-2.0), keys=p.spans.mask("question"))),
    ),
    "bias-from-the-image": (
        E.Bias(keys="image", queries="image", value=1.5, layers=-1, heads=(0,)),
        lambda p: each([3], "attn.scores", scored(p, plus(1.5), keys="image", queries="image", heads=[0])),
    ),
    "knockout": (
        E.Knockout(keys="image", layers=(1, 2)),
        lambda p: each([1, 2], "attn.scores", scored(p, cut, keys="image")),
    ),
    "knockout-heads": (
        E.Knockout(keys="image", queries="question", heads=[0, 3]),
        lambda p: each(
            range(4),
            "attn.scores",
            scored(p, cut, keys="image", queries=p.spans.mask("question"), heads=[0, 3]),
        ),
    ),
    "knockout-of-answers": (
        E.Knockout(keys="text", queries="answer", layers=2),
        lambda p: each([2], "attn.scores", scored(p, cut, keys=p.spans.mask("text"), queries="answer")),
    ),
    "ablate": (
        E.AblateHeads({1: [0, 3], 2: [1]}),
        lambda p: {"text.1.attn.z": headed(p, 0, [0, 3]), "text.2.attn.z": headed(p, 0, [1])},
    ),
    "ablate-decode": (
        E.AblateHeads({1: [0, 3]}, when="decode"),
        lambda p: {"text.1.attn.z": headed(p, 0, [0, 3], when="decode")},
    ),
    "scale-heads": (
        E.ScaleHeads({0: [2]}, 2.5),
        lambda p: {"text.0.attn.z": headed(p, 2.5, [2])},
    ),
    "steer": (
        E.Steer("text.1.resid_post", V, 1.5),
        lambda p: {"text.1.resid_post": rowed(p, plus(1.5 * V))},
    ),
    "steer-prompt": (
        E.Steer("text.1.resid_post", V, 1.5, when="prompt"),
        lambda p: {"text.1.resid_post": rowed(p, plus(1.5 * V), when="prompt")},
    ),
    "steer-all": (
        E.Steer("text.2.resid_mid", V, -1.0, positions="all"),
        lambda p: {"text.2.resid_mid": rowed(p, plus(-V), positions="all")},
    ),
    "steer-positions": (
        E.Steer("text.0.resid_pre", V, 2.0, positions=[5, 20]),
        lambda p: {"text.0.resid_pre": rowed(p, plus(2 * V), positions=[5, 20])},
    ),
    "steer-image": (
        E.Steer("text.embed", V, positions="image"),
        lambda p: {"text.embed": rowed(p, plus(V), positions="image")},
    ),
    "steer-z": (
        E.Steer("text.1.attn.z", D, 2.0),
        lambda p: {"text.1.attn.z": rowed(p, plus(2 * D))},
    ),
    "steer-q": (
        E.Steer("text.1.attn.q", D, 2.0, positions="all"),
        lambda p: {"text.1.attn.q": rowed(p, plus(2 * D), positions="all")},
    ),
    "steer-result": (
        E.Steer("text.2.attn.result", V, 0.5),
        lambda p: {"text.2.attn.result": rowed(p, plus(0.5 * V))},
    ),
    "steer-mlp": (
        E.Steer("text.3.mlp.post", M, 2.0) + E.Steer("text.1.mlp_out", V) + E.Steer("text.1.attn_out", V),
        lambda p: {
            "text.3.mlp.post": rowed(p, plus(2 * M)),
            "text.1.mlp_out": rowed(p, plus(V)),
            "text.1.attn_out": rowed(p, plus(V)),
        },
    ),
    "steer-the-tower": (
        E.Steer("vision.1.resid_post", vector(24), 2.0, positions="all"),
        lambda p: {"vision.1.resid_post": plus(2 * vector(24))},
    ),
    "steer-the-projector": (
        E.Steer("projector.out", V, 2.0, positions="all"),
        lambda p: {"projector.out": plus(2 * V)},
    ),
    "steer-logits": (
        E.Steer("logits", vector(31), 2.0),
        lambda p: {"logits": rowed(p, plus(2 * vector(31)))},
    ),
    "whens": (
        E.ScaleAttention(keys="image", gain=5.0, layers=1, when="prompt")
        + E.Knockout(keys="question", layers=1, when="decode")
        + E.AblateHeads({1: [0]}, when="decode")
        + E.ScaleHeads({1: [2]}, 3.0, when="prompt")
        + E.Steer("text.1.attn.z", D, when="prompt")
        + E.Steer("text.1.attn.z", D, 3.0, when="decode"),
        lambda p: {
            "text.1.attn.scores": then(
                scored(p, times(5.0), keys="image", when="prompt"),
                scored(p, cut, keys=p.spans.mask("question"), when="decode"),
            ),
            "text.1.attn.z": then(
                headed(p, 0, [0], when="decode"),
                headed(p, 3.0, [2], when="prompt"),
                rowed(p, plus(D), when="prompt"),
                rowed(p, plus(3 * D), when="decode"),
            ),
        },
    ),
    "sum": (
        E.ScaleAttention(keys="image", gain=3.0, layers=(1, 2))
        + E.AblateHeads({2: [3]})
        + E.Knockout(keys=[6, 9], layers=2, heads=0)
        + E.Steer("text.2.resid_post", V)
        + E.Steer("text.2.attn.z", D)
        + E.ScaleHeads({2: [1]}, 2.0)
        + E.Bias(keys="question", value=1.0, layers=2)
        + E.Steer("text.2.attn.q", D),
        lambda p: {
            "text.1.attn.scores": scored(p, times(3.0), keys="image"),
            "text.2.attn.q": rowed(p, plus(D)),
            "text.2.attn.scores": then(
                scored(p, times(3.0), keys="image"),
                scored(p, cut, keys=[6, 9], heads=[0]),
                scored(p, plus(1.0), keys=p.spans.mask("question")),
            ),
            "text.2.attn.z": then(headed(p, 0, [3]), rowed(p, plus(D)), headed(p, 2.0, [1])),
            "text.2.resid_post": rowed(p, plus(V)),
        },
    ),
}


def then(*functions):
    def fn(value):
        for one in functions:
            value = one(value)
        return value

    return fn


#: What the prompt pass does not show.
DECODED = {"gain-decode", "ablate-decode", "knockout-of-answers"}


@pytest.fixture
def pair(vlm, picture):
    """Two rows of different length, each with evidence of its own."""
    turns = [
        seeing.EvidenceSample("a", picture(), QUESTION, ("1",), ((20, 10, 45, 40),)),
        seeing.EvidenceSample("b", picture(50, 90, seed=1), LONGER, ("2",), ((0, 50, 20, 70),)),
    ]
    return vlm.prompts(turns)


# -- the prompt pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_an_edit_is_the_same_change_by_hand(tiny, prompt, case, kernel, clean):
    """At every position, not only where it acts."""
    one = tiny(kernel)
    edit, by_hand = CASES[case]
    before = logits_of(one.vlm, prompt)
    logits = logits_of(one.vlm.with_edits(edit), prompt)
    close(logits, one.reference(prompt, by_hand(prompt))["logits"])
    if case in DECODED:
        assert torch.equal(logits, before)
    else:
        change = (logits - before).abs()
        assert change.max() > 1e-3
    assert torch.equal(logits_of(one.vlm, prompt), before)


@pytest.mark.parametrize("case", [case for case in CASES if case not in DECODED])
def test_an_edit_in_a_padded_batch_is_the_same_change_by_hand(tiny, vlm, batch, case):
    """Last, spans and positions are found behind the padding, which stays hidden."""
    edit, by_hand = CASES[case]
    logits = logits_of(vlm.with_edits(edit), batch)
    expected = tiny().reference(batch, by_hand(batch))["logits"]
    real = batch.inputs["attention_mask"].bool()
    assert not real.all()
    close(logits[real], expected[real])
    assert (logits - logits_of(vlm, batch))[real].abs().max() > 1e-3


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("case", ["gain-deep-heads", "knockout-heads", "ablate", "steer-z", "sum"])
def test_heads_are_query_heads_however_keys_are_shared(tiny, picture, case, kv_heads):
    one = tiny(kv_heads=kv_heads)
    prompt = one.vlm.prompt(picture(), QUESTION)
    edit, by_hand = CASES[case]
    close(logits_of(one.vlm.with_edits(edit), prompt), one.reference(prompt, by_hand(prompt))["logits"])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", ["sum", "knockout", "steer-q", "steer-result"])
def test_what_an_edited_model_shows_is_what_it_uses(tiny, prompt, case, kernel):
    """Every name of the text stack, as the model with the same change by hand has it."""
    one = tiny(kernel)
    edit, by_hand = CASES[case]
    edited = one.vlm.with_edits(edit)
    names = [name for name in edited.names() if name.startswith("text.") or name == "logits"]
    found = edited.cache(prompt, names, queries="all")
    expected = one.reference(prompt, by_hand(prompt))
    for name in names:
        hidden = expected[name] < -1e30
        assert torch.equal(found[name] < -1e30, hidden), name
        close(found[name].masked_fill(hidden, 0), expected[name].masked_fill(hidden, 0))


def test_a_query_that_is_left_without_keys_writes_zeros(tiny, vlm, prompt):
    """The first token sees itself only."""

    def nothing(pattern):
        pattern = pattern.clone()
        pattern[:, :, 0] = 0
        return pattern

    logits = logits_of(vlm.with_edits(E.Knockout(queries=[0], keys=[0], layers=1)), prompt)
    close(logits, tiny().reference(prompt, {"text.1.attn.pattern": nothing})["logits"])


def test_a_knockout_does_not_open_what_the_mask_hides(vlm, prompt):
    """Later keys are hidden already; to cut them changes nothing."""
    edit = E.Knockout(queries=[5], keys=[6, 7, 24])
    close(logits_of(vlm.with_edits(edit), prompt), logits_of(vlm, prompt))
    boosted = logits_of(vlm.with_edits(E.ScaleAttention(queries=[5], keys=[6, 7, 24], gain=1e6)), prompt)
    close(boosted, logits_of(vlm, prompt))


# -- heads against weights, steering against torch's hooks ---------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 1.7])
def test_a_heads_factor_is_a_factor_of_its_columns(tiny, vlm, prompt, factor):
    """Of the output projection: d_head columns a query head."""
    model, _ = tiny().pair()
    with torch.no_grad():
        for layer, head in ((1, 2), (3, 0)):
            model.model.language_model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] *= (
                factor
            )
        expected = model(**prompt.inputs).logits
    heads = {1: [2], 3: [0]}
    edit = E.AblateHeads(heads) if factor == 0 else E.ScaleHeads(heads, factor)
    logits = logits_of(vlm.with_edits(edit), prompt)
    close(logits, expected)
    moved(logits, logits_of(vlm, prompt))


@pytest.mark.parametrize("positions", ["last", "all", [4, 20]])
def test_steering_is_a_torch_hook(tiny, vlm, prompt, positions):
    model, _ = tiny().pair()
    rows = {"last": [-1], "all": slice(None)}.get(
        positions if isinstance(positions, str) else None, positions
    )

    def hook(module, args, output):
        output = output.clone()
        output[:, rows] += 2 * V
        return output

    model.model.language_model.layers[2].register_forward_hook(hook)
    with torch.no_grad():
        expected = model(**prompt.inputs).logits
    logits = logits_of(vlm.with_edits(E.Steer("text.2.resid_post", V, 2.0, positions=positions)), prompt)
    close(logits, expected)


# -- neutral settings, and what is left untouched ------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        E.ScaleAttention(keys="image", gain=1.0, queries="all"),
        E.Bias(keys="image", value=0.0, queries="all"),
        E.ScaleHeads({0: [0, 1, 2, 3], 2: [1]}, 1.0),
        E.Steer("text.1.resid_post", V, 0.0),
        E.Steer("vision.1.resid_post", vector(24), 0.0, positions="all"),
        E.Highlight(np.zeros((60, 80)), alpha=1.0),
    ],
    ids=lambda edit: type(edit).__name__,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_neutral_settings_change_nothing(tiny, prompt, edit, kernel):
    one = tiny(kernel)
    close(logits_of(one.vlm.with_edits(edit), prompt), logits_of(one.vlm, prompt), 1e-6)


def test_a_dropped_copy_leaves_no_trace(tiny, vlm, prompt, clean):
    """The original, while the edited one lives, after it ran, and after it is gone."""
    with torch.no_grad():
        bare = tiny().twin("sdpa")(**prompt.inputs).logits
    said = vlm.answer(prompt)
    edited = vlm.with_edits(CASES["sum"][0])
    assert torch.equal(logits_of(vlm, prompt), bare)
    edited.answer(prompt)
    assert torch.equal(logits_of(vlm, prompt), bare)
    del edited
    gc.collect()
    assert torch.equal(logits_of(vlm, prompt), bare)
    assert torch.equal(vlm.answer(prompt).ids, said.ids)


def test_an_edit_of_some_rows_leaves_the_others_bit_for_bit(vlm, prompt):
    edited = vlm.with_edits(E.ScaleAttention(keys="image", gain=4.0) + E.Steer("text.1.resid_post", V))
    assert torch.equal(logits_of(edited, prompt)[:, :-1], logits_of(vlm, prompt)[:, :-1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_edit_of_some_heads_leaves_the_others_bit_for_bit(tiny, prompt, kernel):
    vlm = tiny(kernel).vlm
    edited = vlm.with_edits(E.ScaleAttention(keys="image", gain=4.0, queries="all", heads=2, layers=1))
    plain, found = (one.cache(prompt, "text.1.attn.z")["text.1.attn.z"] for one in (vlm, edited))
    assert torch.equal(found[:, :, [0, 1, 3]], plain[:, :, [0, 1, 3]])
    assert not torch.equal(found[:, :, 2], plain[:, :, 2])


def test_weights_and_edits_are_shared_not_changed(vlm, prompt):
    edit = CASES["sum"][0]
    shown = repr(edit)
    edited = vlm.with_edits(edit)
    assert edited._module is vlm._module
    assert edited.edits == edit
    assert vlm.edits is None
    logits_of(edited, prompt)
    assert repr(edit) == shown


def test_an_edited_model_runs_again_and_again(vlm, prompt, batch):
    """Other prompts, stopped passes and generations between; nothing is kept from run to run."""
    edited = vlm.with_edits(E.ScaleAttention(keys=E.seen({0: [0, 1]}), gain=8.0, layers=(2, 3)))
    first = logits_of(edited, prompt)
    edited.cache(prompt, "text.0.attn.pattern")
    edited.cache(batch, "text.3.attn.pattern")
    edited.answer(batch, max_new_tokens=2)
    edited.generate(prompt, max_new_tokens=1)
    assert torch.equal(logits_of(edited, prompt), first)


# -- decoding ----------------------------------------------------------------------------------------


def decoded(vlm, prompt, n=4):
    """The logits of every step, and the tokens, none of which ends it or stands for a picture."""
    out = vlm.generate(
        prompt,
        max_new_tokens=n,
        suppress_tokens=NO_TEXT,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.logits, out.sequences[:, prompt.length :]


def longer(prompt, new):
    """The prompt with tokens behind it, numbered as a generation does: padding has no number."""
    mask = torch.cat([prompt.inputs["attention_mask"], torch.ones_like(new)], 1)
    return SimpleNamespace(
        inputs=dict(
            prompt.inputs,
            input_ids=torch.cat([prompt.inputs["input_ids"], new], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        )
    )


@pytest.mark.parametrize("case", CASES)
def test_a_generation_is_edited_at_every_step(tiny, vlm, prompt, case, clean):
    """Step t is the last row of a run over the whole sequence in which the same rows are edited, once."""
    edit, by_hand = CASES[case]
    steps, new = decoded(vlm.with_edits(edit), prompt)
    plain, _ = decoded(vlm, prompt)
    assert len(steps) == 4
    for step, logits in enumerate(steps):
        expected = tiny().reference(longer(prompt, new[:, :step]), by_hand(prompt))
        close(logits, expected["logits"][:, -1])
    if case in DECODED:
        assert torch.equal(steps[0], plain[0])
        assert (steps[1] - plain[1]).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["gain", "knockout", "ablate", "steer", "bias-from-the-image", "sum"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_padded_batch_is_edited_at_every_step(tiny, batch, case, kernel):
    one = tiny(kernel)
    edit, by_hand = CASES[case]
    steps, new = decoded(one.vlm.with_edits(edit), batch, 3)
    for step, logits in enumerate(steps):
        expected = one.reference(longer(batch, new[:, :step]), by_hand(batch))
        close(logits, expected["logits"][:, -1])


def test_the_first_step_is_the_edited_prompt_pass(vlm, prompt):
    """Not edited twice: a gain of 5 is no gain of 25."""
    edited = vlm.with_edits(CASES["gain"][0])
    steps, _ = decoded(edited, prompt, 2)
    close(steps[0], logits_of(edited, prompt)[:, -1])
    twice = logits_of(vlm.with_edits(E.ScaleAttention(keys="image", gain=25.0)), prompt)[:, -1]
    assert (steps[0] - twice).abs().max() > 1e-3


def test_an_answer_is_the_greedy_generation_of_the_edited_model(vlm, prompt):
    edited = vlm.with_edits(E.Steer("text.2.resid_post", V, 6.0))
    ids = edited.generate(prompt, max_new_tokens=4)[0, prompt.length :]
    answer = edited.answer(prompt, max_new_tokens=4)
    assert answer.ids.tolist() == ids[: len(answer.ids)].tolist()
    assert answer.ids.tolist() != vlm.answer(prompt, max_new_tokens=4).ids.tolist()


def test_edited_rows_are_read_while_decoding(tiny, vlm, prompt):
    """A traced generation of an edited model shows what it attends to at each step."""
    edit, by_hand = CASES["gain"]
    edited = vlm.with_edits(edit)
    with torch.no_grad(), edited.generate(prompt, max_new_tokens=3, suppress_tokens=NO_TEXT) as tracer:
        rows = [].save()
        for _step in tracer.iter[:3]:
            rows.append(edited.text[2].attn.pattern[:, :, -1].clone())
        ids = tracer.result.save()
    for step in range(3):
        expected = tiny().reference(
            longer(prompt, ids[:, prompt.length : prompt.length + step]), by_hand(prompt)
        )
        close(rows[step], expected["text.2.attn.pattern"][:, :, -1])


def test_answers_are_keys_only_when_there_are_any(tiny, vlm, prompt):
    """Beside an edit that acts in the prompt pass already."""
    edit = E.Bias(keys="answer", queries="answer", value=2.0) + E.ScaleAttention(keys="image", gain=3.0)
    steps, new = decoded(vlm.with_edits(edit), prompt)

    def fn(scores):
        scores = scored(prompt, plus(2.0), keys="answer", queries="answer")(scores)
        return scored(prompt, times(3.0), keys="image")(scores)

    for step, logits in enumerate(steps):
        expected = tiny().reference(longer(prompt, new[:, :step]), each(range(4), "attn.scores", fn))
        close(logits, expected["logits"][:, -1])


# -- composition -------------------------------------------------------------------------------------


def test_edits_of_one_kind_act_in_the_order_written(tiny, vlm, prompt):
    """A factor and a shift of z: ScaleHeads before Steer at one kernel; two factors multiply."""
    a, b = E.ScaleHeads({1: [0]}, 3.0), E.ScaleHeads({1: [0]}, 0.5)
    product = logits_of(vlm.with_edits(E.ScaleHeads({1: [0]}, 1.5)), prompt)
    close(logits_of(vlm.with_edits(a + b), prompt), product)
    zero = E.AblateHeads({1: [0]})
    close(logits_of(vlm.with_edits(a + zero), prompt), logits_of(vlm.with_edits(zero), prompt))


def test_a_knockout_wins_over_a_gain_in_either_order(vlm, prompt):
    gain, knock = E.ScaleAttention(keys="image", gain=9.0), E.Knockout(keys="image")
    expected = logits_of(vlm.with_edits(knock), prompt)
    close(logits_of(vlm.with_edits(gain + knock), prompt), expected)
    close(logits_of(vlm.with_edits(knock + gain), prompt), expected)


@pytest.mark.parametrize("case", ["gain", "steer", "ablate", "steer-the-tower"])
def test_edits_of_an_edited_model_are_the_sum(vlm, prompt, case):
    """One after the other, in the order written; the models between stay as they are."""
    first, second = CASES["sum"][0], CASES[case][0]
    between = vlm.with_edits(first)
    alone = logits_of(between, prompt)
    both = between.with_edits(second)
    expected = logits_of(vlm.with_edits(first + second), prompt)
    assert torch.equal(logits_of(both, prompt), expected)
    assert torch.equal(logits_of(between, prompt), alone)
    assert not torch.equal(expected, alone)
    assert both.edits == first + second


def test_an_edit_given_twice_acts_twice(vlm, prompt):
    gain = E.ScaleAttention(keys="image", gain=2.0)
    four = logits_of(vlm.with_edits(E.ScaleAttention(keys="image", gain=4.0)), prompt)
    close(logits_of(vlm.with_edits(gain).with_edits(gain), prompt), four)
    for site in ("text.1.resid_post", "text.1.attn.result", "text.1.attn_out"):
        steer = E.Steer(site, V)
        once, twice = (decoded(vlm.with_edits(edit), prompt, 2)[0]
                       for edit in (E.Steer(site, V, 2.0), steer + steer))  # fmt: skip
        for step in range(2):
            close(twice[step], once[step])


def test_nnsights_own_edits_and_ours_add_up(tiny, vlm, prompt, clean):
    """A copy of `vlm.edit()` that is edited, and an edited one of which `edit()` makes a copy."""
    edit, by_hand = CASES["gain"]
    expected = tiny().reference(prompt, {**by_hand(prompt), "text.1.mlp_out": lambda value: value * 0.5})[
        "logits"
    ]
    with vlm.edit() as (_, copy):
        copy.text[1].mlp_out = copy.text[1].mlp_out * 0.5
    close(logits_of(copy.with_edits(edit), prompt), expected)
    edited = vlm.with_edits(edit)
    with edited.edit() as (_, copy):
        copy.text[1].mlp_out = copy.text[1].mlp_out * 0.5
    close(logits_of(copy, prompt), expected)


def test_a_trace_edits_on_top(tiny, vlm, prompt):
    edit, by_hand = CASES["gain"]
    edited = vlm.with_edits(edit)
    with torch.no_grad(), edited.trace(prompt):
        edited.text[2].attn.pattern[:, 1] *= 0.5
        logits = edited.logits.save()

    def half(pattern):
        pattern = pattern.clone()
        pattern[:, 1] *= 0.5
        return pattern

    close(logits, tiny().reference(prompt, {**by_hand(prompt), "text.2.attn.pattern": half})["logits"])


def test_a_trace_edits_a_steered_value_on_top(vlm, prompt):
    """Also one that is only computed on reading: what it was steered by is not lost."""
    edited = vlm.with_edits(E.Steer("text.2.attn.result", V, 2.0))
    with torch.no_grad(), edited.trace(prompt):
        edited.text[2].attn.result[:, -1, 0] += V
        logits = edited.logits.save()
    # Each of the four heads is steered by 2 V, and one of them by V more.
    close(logits, logits_of(vlm.with_edits(E.Steer("text.2.attn_out", V, 9.0)), prompt))


def test_each_invoke_reads_its_part_of_a_steered_value(vlm, prompt, picture):
    edited = vlm.with_edits(E.Steer("text.2.attn.result", V, positions="question"))
    other = vlm.prompt(picture(50, 90, seed=1), LONGER)
    with torch.no_grad(), edited.trace() as tracer:
        with tracer.invoke(prompt):
            first = edited.text[2].attn.result.clone().save()
        with tracer.invoke(other):
            second = edited.text[2].attn.result.clone().save()
    for found, one in ((first, prompt), (second, other)):
        plain = vlm.cache(one, "text.2.attn.result")["text.2.attn.result"]
        steered = rowed(one, plus(V), positions=one.spans.mask("question"))(plain)
        close(found[:, -one.length :], steered)


def test_several_invokes_of_an_edited_model(tiny, vlm, prompt, picture):
    """Each invoke's prompt is edited by its own places, and reads its own rows."""
    edited = vlm.with_edits(E.ScaleAttention(keys="question", gain=4.0))
    other = vlm.prompt(picture(50, 90, seed=1), LONGER)
    with torch.no_grad(), edited.trace() as tracer:
        with tracer.invoke(prompt):
            first = edited.text[1].attn.pattern[:, :, -1].clone().save()
        with tracer.invoke(other):
            second = edited.text[1].attn.pattern[:, :, -1].clone().save()
            logits = edited.logits[:, -1].save()
    for found, one in ((first, prompt), (second, other)):
        fn = scored(one, times(4.0), keys=one.spans.mask("question"))
        expected = tiny().reference(one, each(range(4), "attn.scores", fn))
        close(found[..., -one.length :], expected["text.1.attn.pattern"][:, :, -1])
    close(logits, expected["logits"][:, -1])


def test_a_gradient_reaches_the_steering_vector(tiny, vlm, prompt):
    """As a direction is learned: ∂ logit / ∂ vector, against autograd by hand, behind an edit of rows."""
    learned = V.clone().requires_grad_()
    edit = E.Steer("text.1.resid_post", learned, 2.0) + E.ScaleAttention(keys="image", gain=3.0, layers=2)
    edited = vlm.with_edits(edit)
    with edited.trace(prompt):
        logit = edited.logits[0, -1, 5].save()
    (found,) = torch.autograd.grad(logit, learned)
    by_hand = V.clone().requires_grad_()
    reference = tiny().reference(
        prompt,
        {
            "text.1.resid_post": rowed(prompt, lambda value: value + 2 * by_hand),
            "text.2.attn.scores": scored(prompt, times(3.0), keys="image"),
        },
    )
    (expected,) = torch.autograd.grad(reference["logits"][0, -1, 5], by_hand)
    assert expected.abs().max() > 1e-2
    close(found, expected)


# -- values ------------------------------------------------------------------------------------------


def test_edits_are_values():
    """Equal when they say the same, of one hash, frozen."""
    make = [
        lambda gain=2.0: E.ScaleAttention(keys="image", gain=gain, layers=[1, 2], heads=[0]),
        lambda factor=2.0: E.ScaleHeads({1: [0, 2]}, factor),
        lambda strength=2.0: E.Steer("text.1.resid_post", V.clone(), strength),
        lambda value=2.0: E.Bias(keys=[1, 2], value=value, queries=E.Span("image") & ~E.Span("last")),
        lambda gain=2.0: E.ScaleAttention(keys=E.seen({1: [0]}), gain=gain, layers=2),
        lambda gain=2.0: E.ScaleAttention(keys="image", gain=gain) + E.AblateHeads({1: [0]}),
    ]
    for one in make:
        assert one() == one()
        assert hash(one()) == hash(one())
        assert one() != one(3.0)
        assert len({one(), one(), one(3.0)}) == 2
    assert E.Steer("text.1.resid_post", V) != E.Steer("text.1.resid_post", -V)
    assert E.AblateHeads({1: [2, 0], 0: [1]}) == E.AblateHeads([(0, 1), (1, 0), (1, 2)])
    assert E.ScaleAttention(keys="image", gain=2.0) != E.ScaleAttention(keys="image", gain=2.0, when="decode")
    with pytest.raises(AttributeError):
        make[0]().gain = 3.0


def test_sums_are_flat_and_keep_the_order():
    a, b, c = E.Knockout(keys="image"), E.AblateHeads({1: [0]}), E.Bias(keys="image", value=1.0)
    assert ((a + b) + c).edits == (a + (b + c)).edits == (a, b, c)
    assert a + b != b + a
    assert len(a + b + c) == 3
    with pytest.raises(TypeError):
        a + 1


def test_edits_show_what_they_say():
    edit = E.ScaleAttention(keys="image", gain=2.0, layers="deep") + E.AblateHeads({12: [3, 7]})
    assert repr(edit) == (
        "ScaleAttention(keys='image', queries='last', layers='deep', heads=None, when='both', gain=2.0)"
        " + AblateHeads({12: [3, 7]}, to='zero', source=None, positions='all', when='both')"
    )
    assert "seen({3: [0], 4: []}, window=(2, 2), denoise=True)" in repr(
        E.ScaleAttention(keys=E.seen({4: [], 3: [0]}), gain=2.0)
    )


# -- acting on what was seen ---------------------------------------------------------------------------


def best_block(one, prompt, heads):
    """Row by row: the 2 × 2 block of the 4 × 4 image tokens with the largest mean attention, by hand."""
    weights = one.eager(prompt).attentions
    mask = torch.zeros(len(prompt), prompt.length, dtype=torch.bool)
    for row in range(len(prompt)):
        image = (prompt.inputs["input_ids"][row] == 4).nonzero()[:, 0]
        rows = [weights[layer][row, head, -1, image] for layer, some in heads.items() for head in some]
        mean = torch.stack(rows).mean(0).reshape(4, 4)
        sums = {(r, c): float(mean[r : r + 2, c : c + 2].sum()) for r in range(3) for c in range(3)}
        r, c = max(sums, key=sums.get)
        mask[row, image.reshape(4, 4)[r : r + 2, c : c + 2].flatten()] = True
    return mask


@pytest.mark.parametrize("heads", [{1: [2]}, {0: [1, 3], 1: [0]}, {1: [0, 1, 2, 3]}])
def test_what_is_seen_in_one_pass_is_what_two_passes_find(tiny, vlm, prompt, batch, heads):
    """Read by hand from eager weights, then boosted by hand; also while tokens are decoded."""
    edit = E.ScaleAttention(keys=E.seen(heads, denoise=False), gain=16.0, layers=(2, 3))
    for one in (prompt, batch):
        window = best_block(tiny(), one, heads)
        assert window.sum(1).tolist() == [4] * len(one)
        changes = each([2, 3], "attn.scores", scored(one, times(16.0), keys=window))
        steps, new = decoded(vlm.with_edits(edit), one, 3)
        for step, logits in enumerate(steps):
            close(logits, tiny().reference(longer(one, new[:, :step]), changes)["logits"][:, -1])


def test_layers_without_heads_mean_all_of_their_heads(vlm, prompt):
    some = E.ScaleAttention(keys=E.seen({0: [0, 1, 2, 3], 1: range(4)}), gain=16.0, layers=3)
    every = E.ScaleAttention(keys=E.seen([0, 1]), gain=16.0, layers=3)
    assert torch.equal(logits_of(vlm.with_edits(some), prompt), logits_of(vlm.with_edits(every), prompt))


def test_steering_acts_where_it_was_seen(tiny, vlm, prompt):
    edit = E.Steer("text.2.resid_post", V, 2.0, positions=E.seen({1: [2]}, denoise=False))
    window = best_block(tiny(), prompt, {1: [2]})
    expected = tiny().reference(prompt, {"text.2.resid_post": rowed(prompt, plus(2 * V), positions=window)})
    close(logits_of(vlm.with_edits(edit), prompt), expected["logits"])


@pytest.mark.parametrize(
    "edit",
    [
        E.ScaleAttention(keys=E.seen({2: [0]}), gain=2.0, layers=(1, 3)),
        E.ScaleAttention(keys=E.seen({2: [0]}), gain=2.0, layers=2),
        E.ScaleAttention(keys=~E.seen({2: [0]}) & E.Span("image"), gain=2.0, layers="all"),
        E.Knockout(keys="image", queries=E.seen({2: [0]}), layers=0),
        E.Steer("text.1.resid_post", V, positions=E.seen({2: [0]})),
        E.Steer("text.embed", V, positions=E.seen({0: [0]})),
    ],
)
def test_acting_before_reading_is_refused(vlm, edit):
    with pytest.raises(E.BadEdit, match="acts behind all that it reads"):
        vlm.with_edits(edit)


# -- per row -----------------------------------------------------------------------------------------


def test_each_row_of_a_batch_has_its_own_places(tiny, vlm, pair):
    """Evidence of its own boxes, positions of its own."""
    places = E.Positions(((9, 12), (3, 6, 20)))
    edit = E.ScaleAttention(keys="evidence", gain=6.0, layers=(1, 2)) + E.Bias(
        keys=places, queries=places, value=2.0, layers=3
    )
    chosen = torch.zeros(2, pair.length, dtype=torch.bool)
    chosen[0, [9, 12]] = True
    chosen[1, [3, 6, 20]] = True
    evidence = torch.zeros_like(chosen)
    for row, boxes in enumerate(turn.boxes for turn in pair.turns):
        grid = pair.grids[row]
        evidence[row, grid.positions[grid.labels(boxes)]] = True
    assert evidence[0].sum() != evidence[1].sum()
    changes = each([1, 2], "attn.scores", scored(pair, times(6.0), keys=evidence))
    changes |= each([3], "attn.scores", scored(pair, plus(2.0), keys=chosen, queries=chosen))
    steps, new = decoded(vlm.with_edits(edit), pair, 2)
    for step, logits in enumerate(steps):
        close(logits, tiny().reference(longer(pair, new[:, :step]), changes)["logits"][:, -1])


def test_an_edited_batch_is_its_prompts_one_by_one(vlm, pair):
    edited = vlm.with_edits(
        E.ScaleAttention(keys="evidence", gain=6.0)
        + E.Steer("text.1.resid_post", V, positions="question")
        + E.ScaleAttention(keys=E.seen({0: [0, 1]}), gain=4.0, layers=3)
    )
    together = logits_of(edited, pair)
    for row in range(2):
        single = pair.row(row)
        close(together[row, -single.length :], logits_of(edited, single)[0])


# -- pictures ----------------------------------------------------------------------------------------


def dimmed(picture, evidence, alpha):
    pixels = np.asarray(picture).astype(np.float64)
    return Image.fromarray(np.rint((alpha + (1 - alpha) * evidence[..., None]) * pixels).astype(np.uint8))


def test_a_highlight_is_the_dimmed_picture_through_the_processor(tiny, vlm, prompt):
    rng = np.random.default_rng(0)
    evidence = rng.random((60, 80))
    picture = prompt.turns[0].images[0]
    by_hand = tiny().processor.image_processor(dimmed(picture, evidence, 0.3), return_tensors="pt")
    assert not torch.equal(by_hand["pixel_values"], prompt.inputs["pixel_values"])
    with torch.no_grad():
        expected = tiny().twin("sdpa")(**{**prompt.inputs, "pixel_values": by_hand["pixel_values"]}).logits
    edited = vlm.with_edits(E.Highlight(evidence, alpha=0.3))
    kept = prompt.inputs["pixel_values"].clone()
    with torch.no_grad(), edited.trace(prompt):
        pixels = edited.model.vision_tower.input.save()
        logits = edited.logits.save()
    assert torch.equal(pixels, by_hand["pixel_values"])
    assert torch.equal(logits, expected)
    moved(logits, logits_of(vlm, prompt))
    assert torch.equal(prompt.inputs["pixel_values"], kept)
    ids = edited.generate(prompt, max_new_tokens=3)
    bare = tiny().twin("sdpa").generate(**{**prompt.inputs, **by_hand}, max_new_tokens=3)
    assert torch.equal(ids, bare)


def test_a_highlight_that_leaves_all_is_no_highlight(vlm, prompt):
    edited = vlm.with_edits(E.Highlight(np.zeros((60, 80)), alpha=1.0))
    assert torch.equal(logits_of(edited, prompt), logits_of(vlm, prompt))


def test_a_highlight_of_a_batch_has_a_map_a_row(vlm, batch):
    """Each dims its own picture, beside an edit of rows."""
    rng = np.random.default_rng(0)
    maps = [rng.random((60, 80)), rng.random((90, 50))]
    more = E.ScaleAttention(keys="image", gain=3.0)
    found = logits_of(vlm.with_edits(E.Highlight(maps, alpha=0.3) + more), batch)
    turns = [(dimmed(turn.images[0], one, 0.3), turn.question) for turn, one in zip(batch.turns, maps)]
    assert torch.equal(found, logits_of(vlm.with_edits(more), vlm.prompts(turns)))


def test_pictures_that_maps_do_not_fit_are_refused(vlm, prompt, batch, clean):
    with pytest.raises(ValueError, match=r"\(60, 80\), found \(8, 8\)"):
        logits_of(vlm.with_edits(E.Highlight(np.zeros((8, 8)))), prompt)
    three = vlm.prompts([(turn.images[0], turn.question) for turn in (*batch.turns, batch.turns[0])])
    with pytest.raises(E.BadEdit, match="2 maps"):
        logits_of(vlm.with_edits(E.Highlight([np.ones((60, 80)), np.ones((90, 50))])), three)


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: E.ScaleAttention(keys="image", gain=2.0, layers=4), "no layer 4"),
        (lambda: E.Knockout(keys="image", layers=[0, 9]), "no layer 9"),
        (lambda: E.Bias(keys="image", value=1.0, heads=4), "no head 4"),
        (lambda: E.AblateHeads({4: [0]}), "no layer 4"),
        (lambda: E.AblateHeads({1: [4]}), "no head 4 in layer 1"),
        (lambda: E.ScaleHeads({-1: [0]}, 2.0), "from 0"),
        (lambda: E.Steer("text.9.resid_post", V), "layers 0-3"),
        (lambda: E.Steer("text.1.attn.pattern", V), "rows of attention"),
        (lambda: E.Steer("vision.1.resid_post", vector(24)), "positions='all'"),
        (lambda: E.Steer("projector.out", V), "positions='all'"),
        (lambda: E.Steer("text.1.resid_post", D), "32 wide"),
        (lambda: E.Edits(), "no edits"),
        (lambda: E.Knockout(keys="image", when="later"), "when is one of"),
        (lambda: E.ScaleAttention(keys="image", gain=0.0), "Knockout"),
        (lambda: E.ScaleAttention(keys="image", gain=float("nan")), "positive"),
        (lambda: E.Bias(keys="image", value=float("-inf")), "Knockout"),
        (lambda: E.ScaleHeads({1: [0]}, float("inf")), "finite"),
        (lambda: E.AblateHeads({}), "no heads"),
        (lambda: E.AblateHeads([3, 7]), "dict"),
        (lambda: E.Steer("text.1.resid_post", V * float("nan")), "finite"),
        (lambda: E.Highlight(np.zeros((2, 2)), alpha=2.0), "alpha"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused_before_anything_runs(vlm, edit, message):
    with pytest.raises(E.BadEdit, match=message):
        vlm.with_edits(edit())


def test_only_edits_are_edits(vlm, unchecked):
    with pytest.raises(TypeError, match=r"seeing\.edits"):
        vlm.with_edits("knockout")


def test_an_edit_that_fails_in_a_run_leaves_the_model_clean(vlm, prompt, clean):
    """At a place that only the prompt knows, behind an edit that did act."""
    edited = vlm.with_edits(
        E.Steer("text.0.resid_post", V, positions="all") + E.Knockout(keys=[99], layers=2)
    )
    for _ in range(2):
        with pytest.raises(E.BadEdit, match="99"):
            logits_of(edited, prompt)
        with pytest.raises(E.BadEdit, match="99"):
            edited.answer(prompt)


@pytest.mark.parametrize("case", ["gain", "steer-positions", "bias"])
def test_raw_inputs_are_refused(vlm, prompt, case, clean):
    """Nobody knows where the image is, or where the prompt ends."""
    edited = vlm.with_edits(CASES[case][0])
    with pytest.raises(E.BadEdit, match=r"vlm\.prompt"), torch.no_grad(), edited.trace(**prompt.inputs):
        edited.logits.save()


def test_a_static_cache_is_refused(vlm, prompt, clean):
    """Its keys are more than the tokens there are: positions would be wrong without a word."""
    edited = vlm.with_edits(CASES["gain"][0])
    with pytest.raises(E.BadEdit, match="static KV cache"):
        edited.generate(prompt, max_new_tokens=3, cache_implementation="static")


# -- what reads like something else ------------------------------------------------------------------


def test_a_table_of_heads_says_the_layers_too(vlm, prompt):
    by_table = vlm.with_edits(E.Knockout(keys="image", heads={1: [0], 2: [3]}))
    one_by_one = vlm.with_edits(
        E.Knockout(keys="image", heads=[0], layers=1) + E.Knockout(keys="image", heads=3, layers=2)
    )
    assert torch.equal(logits_of(by_table, prompt), logits_of(one_by_one, prompt))
    with pytest.raises(E.BadEdit, match="none of the layers"):
        vlm.with_edits(E.Knockout(keys="image", heads={1: [0]}, layers=2))


def test_a_glob_steers_every_site_it_names(vlm, prompt):
    at_once = vlm.with_edits(E.Steer("text.1-2.resid_post", V))
    one_by_one = vlm.with_edits(E.Steer("text.1.resid_post", V) + E.Steer("text.2.resid_post", V))
    assert torch.equal(logits_of(at_once, prompt), logits_of(one_by_one, prompt))


def test_four_numbers_that_may_be_a_box_are_refused():
    with pytest.raises(E.BadEdit, match="a box or four positions"):
        E.Knockout(keys=(0, 0, 20, 20))


def test_a_sum_of_edits_is_their_composition():
    edits = [E.AblateHeads({1: [0]}), E.Knockout(keys="image")]
    assert sum(edits) == edits[0] + edits[1]
