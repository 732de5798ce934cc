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

#: Every edit that has one, at its neutral setting.
NEUTRAL = (
    partial(E.Bias, value=0),
    partial(E.ScaleAttention, gain=1),
    partial(E.Temperature, value=1),
    partial(E.Amplify, share=0),
    partial(E.MapScores, torch.clone),
    partial(E.ScalePattern, factor=1),
    partial(E.ScalePattern, factor=1, renormalize=True),
    lambda keys, **place: E.Redistribute(keys, ~E.Boxes(tuple(BOX)), 0.0, **place),
    partial(E.MapPattern, torch.clone),
)


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


PARTS = pytest.mark.parametrize("part", ["scores", "pattern"])


def of_part(part):
    """All edits of a part of the attention, and their formulas one behind the other."""
    some = [entry for entry in EDITS.values() if entry[1] == part and entry[0] is not E.Knockout]

    def change(value, keys, seen):
        for _, _, formula in some:
            value = formula(value, keys, seen)
        return value

    return [make for make, _, _ in some], change


@PARTS
def test_rows_of_the_question_edited_in_a_padded_batch_are_the_twins(case, batch, plain, part):
    """All kinds of edits of scores, or of patterns, one behind the other."""
    makes, change = of_part(part)
    layers = [layer for layer, kernel in case.vlm.sites.kernels["text"].items() if not kernel.cross]
    hand = {
        case.attention(layer): rows_by_hand(part, change, span(batch, "question"), boxed(batch))
        for layer in layers
    }
    compare(
        case, batch, plain, sum(make(keys=BOX, queries="question", layers=layers) for make in makes), hand
    )


@PARTS
def test_some_heads_of_all_rows_edited_are_the_twins(case, batch, plain, part):
    """All kinds of edits one behind the other; other heads in other layers."""
    makes, change = of_part(part)
    kernels = case.vlm.sites.kernels["text"]
    across = [layer for layer, kernel in kernels.items() if kernel.cross]
    heads = {min(kernels): [0, 3], max(kernels): [1], **{layer: [1, 2] for layer in across}}
    hand = {}
    for layer, some in heads.items():
        keys = boxed(batch.cross if layer in across else batch)
        hand[case.attention(layer)] = rows_by_hand(part, change, everywhere(batch), keys, some)
    compare(case, batch, plain, sum(make(keys=BOX, queries="all", heads=heads) for make in makes), hand)


def test_edges_cut_in_all_rows_leave_padding_and_windows_as_they_are(case, batch, plain):
    """A row that is left with nothing to see, in a narrow window, writes zeros."""
    layers = [layer for layer, kernel in case.vlm.sites.kernels["text"].items() if not kernel.cross]
    keys = span(batch, "image") | span(batch, "question")
    hand = {
        case.attention(layer): rows_by_hand(
            "scores", lambda s, k, _: s.masked_fill(k, -torch.inf), everywhere(batch), keys
        )
        for layer in layers
    }
    cut = E.Knockout(keys=E.Span("image") | "question", queries="all", layers=layers)
    compare(case, batch, plain, cut, hand)


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


def test_neutral_edits_of_all_rows_move_by_rounding(case, batch, plain):
    real = batch.inputs["attention_mask"].bool()
    edits = sum(make(keys=BOX, queries="all") for make in NEUTRAL)
    found = logits_of(case.vlm.with_edits(edits), batch)
    close(found[real], plain[id(batch)][real], 1e-5)


def test_the_model_without_edits_is_bit_equal_afterwards(case, batch, plain):
    logits_of(case.vlm.with_edits(E.Knockout(keys=BOX, queries="all")), batch)
    with torch.no_grad():
        assert torch.equal(case.model(**batch.inputs).logits, plain[id(batch)])
    assert torch.equal(logits_of(case.vlm, batch), plain[id(batch)])
