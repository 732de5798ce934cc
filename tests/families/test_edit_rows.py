"""Every edit of rows of attention in every family, against the same edit made by hand in the twin.

Three places: the last row of one prompt, in every layer, those with the picture's keys alone among them; the
question's rows in a padded batch; all rows of that batch, in some heads of the first and the last layer.
"""

import math
from functools import partial

import pytest
import torch
from tiny.hand import close, moved, rows_by_hand

from seeing import edits as E

QUESTION, OTHER = "what digit is on the red square ?", "what digit is on the blue circle on the red square ?"
#: Some of the picture's tokens, in every family.
BOX = [(20.0, 12.0, 48.0, 44.0)]


def uniform(weights, keys, seen):
    mine = keys & seen
    share = (weights * mine).sum(-1, keepdim=True) / mine.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(mine, share, weights)


def redistributed(weights, keys, seen, share=0.6):
    """From the keys to all others, in proportion."""
    taken = (weights * keys).sum(-1, keepdim=True) * share
    rest = weights * ~keys
    return torch.where(
        rest.sum(-1, keepdim=True) > 0,
        torch.where(keys, weights * (1 - share), rest * (1 + taken / rest.sum(-1, keepdim=True))),
        weights,
    )


def where_much_is_lost(weights, keys, seen):
    much = (weights * keys).sum(-1, keepdim=True) >= 0.05
    return torch.where(much, redistributed(weights, keys, seen), weights)


def renormalized(weights, keys, seen):
    scaled = torch.where(keys, 0.25 * weights, weights)
    return scaled * (weights.sum(-1, keepdim=True) / scaled.sum(-1, keepdim=True).clamp_min(1e-30))


#: Name -> (the edit of keys, which part of the attention it changes, the same by hand).
EDITS = {
    "Bias": (partial(E.Bias, value=1.5), "scores", lambda s, k, _: s + 1.5 * k),
    "ScaleAttention": (partial(E.ScaleAttention, gain=6.0), "scores", lambda s, k, _: s + math.log(6) * k),
    "Knockout": (E.Knockout, "scores", lambda s, k, _: s.masked_fill(k, -torch.inf)),
    "Temperature": (
        partial(E.Temperature, value=0.4),
        "scores",
        lambda s, k, _: torch.where(k, s / 0.4, s),
    ),
    "Amplify": (
        partial(E.Amplify, share=0.9),
        "scores",
        lambda s, k, _: torch.where(k, s + 0.9 * s.abs(), s),
    ),
    "MapScores": (
        partial(E.MapScores, lambda scores: 2 * scores.clamp(min=-8).cos()),
        "scores",
        lambda s, k, _: torch.where(k, 2 * s.clamp(min=-8).cos(), s),
    ),
    "ScalePattern": (
        partial(E.ScalePattern, factor=0.25),
        "pattern",
        lambda p, k, _: torch.where(k, 0.25 * p, p),
    ),
    "ScalePattern, renormalized": (
        partial(E.ScalePattern, factor=0.25, renormalize=True),
        "pattern",
        renormalized,
    ),
    "SetPattern, uniform": (partial(E.SetPattern, "uniform"), "pattern", uniform),
    "SetPattern, zero": (partial(E.SetPattern, 0), "pattern", lambda p, k, _: p * ~k),
    "Redistribute": (
        lambda keys, **place: E.Redistribute(keys, ~E.Boxes(tuple(BOX)), 0.6, **place),
        "pattern",
        redistributed,
    ),
    "Redistribute, where": (
        lambda keys, **place: E.Redistribute(
            keys, ~E.Boxes(tuple(BOX)), 0.6, E.Attending(keys, least=0.05), **place
        ),
        "pattern",
        where_much_is_lost,
    ),
    "MapPattern": (partial(E.MapPattern, torch.sqrt), "pattern", lambda p, k, _: torch.where(k, p.sqrt(), p)),
}

NEUTRAL = {
    "Bias": partial(E.Bias, value=0),
    "ScaleAttention": partial(E.ScaleAttention, gain=1),
    "Temperature": partial(E.Temperature, value=1),
    "Amplify": partial(E.Amplify, share=0),
    "MapScores": partial(E.MapScores, torch.clone),
    "ScalePattern": partial(E.ScalePattern, factor=1),
    "ScalePattern, renormalized": partial(E.ScalePattern, factor=1, renormalize=True),
    "Redistribute": lambda keys, **place: E.Redistribute(keys, ~E.Boxes(tuple(BOX)), 0.0, **place),
    "MapPattern": partial(E.MapPattern, torch.clone),
}


@pytest.fixture(scope="module")
def batch(case, picture):
    """Two rows, one padded, pictures of different shapes."""
    prompt = case.vlm.prompts([(picture(76, 52), QUESTION), (picture(50, 90, 1), OTHER)])
    assert not prompt.inputs["attention_mask"].all()
    return prompt


@pytest.fixture(scope="module")
def one(case):
    return case.prompt()


@pytest.fixture(scope="module")
def plain(case, one, batch):
    """The bare model's logits."""
    with torch.no_grad():
        return {id(prompt): case.model(**prompt.inputs).logits for prompt in (one, batch)}


def logits_of(vlm, prompt):
    return vlm.cache(prompt, "logits")["logits"]


def boxed(prompt):
    """(batch, key): the tokens, or the keys of a cross-attention layer, that look at the box."""
    mask = torch.zeros(len(prompt), prompt.length, dtype=torch.bool)
    for row, grid in zip(prompt.grid_rows, prompt.grids):
        mask[row, grid.positions[torch.as_tensor(grid.labels(BOX))]] = True
    return mask


def span(prompt, name):
    return prompt.spans.mask(name)


def last(prompt):
    return torch.arange(prompt.length).expand(len(prompt), -1) == prompt.length - 1


def everywhere(prompt):
    return torch.ones(len(prompt), prompt.length, dtype=torch.bool)


def compare(case, prompt, plain, edit, by_hand):
    """The edited logits are the twin's at every token that is no padding, and not the plain ones."""
    real = prompt.inputs["attention_mask"].bool()
    found = logits_of(case.vlm.with_edits(edit), prompt)[real]
    close(found, case.twin.run(prompt.inputs, edits=by_hand)[real])
    assert moved(found, plain[id(prompt)][real])


@pytest.mark.parametrize("name", EDITS)
def test_the_last_row_edited_in_every_layer_is_the_twins(case, one, plain, name):
    make, part, change = EDITS[name]
    by_hand = {
        case.attention(layer): rows_by_hand(
            part, change, last(one), boxed(one.cross if kernel.cross else one)
        )
        for layer, kernel in case.vlm.sites.kernels["text"].items()
    }
    compare(case, one, plain, make(keys=BOX), by_hand)


@pytest.mark.parametrize("name", EDITS)
def test_rows_of_the_question_edited_in_a_padded_batch_are_the_twins(case, batch, plain, name):
    make, part, change = EDITS[name]
    layers = [layer for layer, kernel in case.vlm.sites.kernels["text"].items() if not kernel.cross]
    if name.startswith("Redistribute"):
        keys, chosen = BOX, boxed(batch)
    else:
        keys, chosen = E.Span("image") | "question", span(batch, "image") | span(batch, "question")
    by_hand = {
        case.attention(layer): rows_by_hand(part, change, span(batch, "question"), chosen) for layer in layers
    }
    compare(case, batch, plain, make(keys=keys, queries="question", layers=layers), by_hand)


@pytest.mark.parametrize("name", EDITS)
def test_some_heads_of_all_rows_edited_are_the_twins(case, batch, plain, name):
    make, part, change = EDITS[name]
    kernels = case.vlm.sites.kernels["text"]
    across = [layer for layer, kernel in kernels.items() if kernel.cross]
    heads = {min(kernels): [0, 3], max(kernels): [1], **{layer: [1, 2] for layer in across}}
    by_hand = {}
    for layer, some in heads.items():
        keys = boxed(batch.cross if layer in across else batch)
        by_hand[case.attention(layer)] = rows_by_hand(part, change, everywhere(batch), keys, some)
    compare(case, batch, plain, make(keys=BOX, queries="all", heads=heads), by_hand)


@pytest.mark.parametrize("shared", [True, False], ids=["one row", "every row"])
def test_a_pattern_set_is_the_twins(case, batch, plain, shared):
    """One row of weights for the last query, or a whole pattern; hidden keys get none."""
    kernels = case.vlm.sites.kernels["text"]
    layer = max(kernels)
    case.twin.run(batch.inputs)
    own = case.twin.calls[case.attention(layer)][0]["pattern"]
    value = torch.rand(own.shape, generator=torch.Generator().manual_seed(0)) * (own > 0) / 10
    value, queries = (value[:, :, -1:], last(batch)) if shared else (value, everywhere(batch))
    keys = E.Span("all") if kernels[layer].cross else E.Span("image")
    edit = E.SetPattern(value, keys=keys, queries="last" if shared else "all", layers=layer, when="prompt")
    chosen = torch.ones_like(own[:, 0, 0], dtype=torch.bool) if kernels[layer].cross else span(batch, "image")
    hand = rows_by_hand("pattern", lambda p, k, s: torch.where(k & s, value.expand_as(p), p), queries, chosen)
    compare(case, batch, plain, edit, {case.attention(layer): hand})


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_edit_of_all_rows_moves_by_rounding(case, batch, plain, name):
    real = batch.inputs["attention_mask"].bool()
    found = logits_of(case.vlm.with_edits(NEUTRAL[name](keys=BOX, queries="all")), batch)
    close(found[real], plain[id(batch)][real], 1e-5)


def test_the_model_without_edits_is_bit_equal_afterwards(case, one, batch, plain):
    edited = case.vlm.with_edits(E.Knockout(keys=BOX, queries="all") + E.SetPattern("uniform", keys=BOX))
    for prompt in (one, batch):
        logits_of(edited, prompt)
        with torch.no_grad():
            assert torch.equal(case.model(**prompt.inputs).logits, plain[id(prompt)])
        assert torch.equal(logits_of(case.vlm, prompt), plain[id(prompt)])
