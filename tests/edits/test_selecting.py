"""Where and when edits act: heads, layers, steps, sinks, and selections that may be empty."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seeing import edits as E


def logits_of(vlm, prompt):
    return vlm.cache(prompt, "logits")["logits"]


def same(vlm, prompt, one, other):
    return torch.equal(logits_of(vlm.with_edits(one), prompt), logits_of(vlm.with_edits(other), prompt))


def knockout(**more):
    return E.Knockout(keys="image", **more)


def test_heads_are_said_in_many_ways(random, crowded):
    prompt = random.prompt(crowded[0])
    table = knockout(heads={1: [0, 2], 3: [1]})
    mask = np.zeros((6, 4), dtype=bool)
    mask[1, 0] = mask[1, 2] = mask[3, 1] = True
    scores = torch.zeros(6, 4)
    scores[1, 0], scores[1, 2], scores[3, 1], scores[5, 3] = 3.0, 2.0, 4.0, float("nan")
    for heads in (mask, torch.tensor(mask), [(1, 0), (1, 2), (3, 1)], E.top_heads(scores, 3)):
        assert knockout(heads=heads) == table
    assert not same(random, prompt, table, knockout(heads={1: [0, 2]}))
    assert same(random, prompt, knockout(heads=[1, 3], layers=2), knockout(heads={2: [1, 3]}))


def test_top_heads_are_the_best_with_a_score():
    scores = torch.tensor([[0.1, float("nan")], [0.9, 0.9], [0.5, 0.2]])
    assert E.top_heads(scores, 2) == {1: [0, 1]}
    assert E.top_heads(scores, 3, below=2) == {0: [0], 1: [0, 1]}
    with pytest.raises(E.BadEdit, match="1 to 5"):
        E.top_heads(scores, 6)


def test_layers_are_said_in_many_ways(random, crowded):
    prompt = random.prompt(crowded[0])
    profile = SimpleNamespace(layers=(3, 4, 5))
    for layers in (
        "deep",
        slice(3, None),
        slice(-3, None),
        [5, 4, 3],
        np.array([3, 4, 5]),
        (-1, -2, -3),
        profile,
    ):
        assert same(random, prompt, knockout(layers=layers), knockout(layers=(3, 4, 5)))


def test_a_selection_may_be_empty_where_that_is_said(random, crowded):
    prompt = random.prompt(crowded[0])
    nothing = E.Span("question") & E.Span("image")
    with pytest.raises(E.EmptySelection, match=r"E\.maybe"):
        logits_of(random.with_edits(E.Knockout(keys=nothing)), prompt)
    logits = logits_of(random.with_edits(E.Knockout(keys=E.maybe(nothing))), prompt)
    torch.testing.assert_close(logits, logits_of(random, prompt), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("when", "steps"),
    [
        ("both", {0, 1, 2, 3, 4}),
        ("prompt", {0}),
        ("decode", {1, 2, 3, 4}),
        (2, {2}),
        (range(1, 3), {1, 2}),
        (slice(3, None), {3, 4}),
        (E.Steps(0, 2), {0, 1}),
    ],
)
def test_an_edit_acts_in_its_steps_only(random, crowded, when, steps):
    """A bias of 30 leaves nothing outside the picture in the rows of the steps it acts in."""
    prompt = random.prompt(crowded[0])
    edited = random.with_edits(E.Bias(keys="image", value=30.0, layers=0, when=when))
    outside = []
    with edited.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False) as tracer:
        for _ in tracer.iter[:5]:
            outside.append(1 - edited.text[0].attn.pattern[0, :, -1, 1:65].sum(-1))
    assert {step for step, left in enumerate(outside) if left.max() < 1e-4} == steps


@pytest.mark.parametrize("when", ["never", -1, range(3, 3), range(0, 4, 2), 1.5, None])
def test_steps_that_are_none_are_refused(when):
    with pytest.raises(E.BadEdit):
        E.Knockout(keys="image", when=when)


def test_sinks_are_the_tokens_whose_stream_is_huge_in_their_dimensions(random, crowded):
    prompt = random.prompts(crowded[:2])
    cache = random.cache(prompt, "text.*.resid_pre")
    dims, threshold = [3, 40], 1.5
    edit = E.Redistribute(E.sinks(dims, threshold), "question", 1.0, layers=(1, 4))
    edited = random.with_edits(edit).cache(prompt, ["text.1.attn.pattern"])["text.1.attn.pattern"][:, :, 0]
    plain = random.cache(prompt, "text.1.attn.pattern")["text.1.attn.pattern"][:, :, 0]
    x = cache["text.1.resid_pre"]
    huge = (x[..., dims].abs() / x.pow(2).mean(-1, keepdim=True).sqrt()).amax(-1) > threshold
    assert 0 < huge.sum() < huge.numel()
    question = prompt.spans.mask("question") & ~huge
    for row in range(2):
        taken = plain[row][:, huge[row]].sum(-1)
        assert float(edited[row][:, huge[row]].abs().max()) == 0
        grown = edited[row][:, question[row]] / plain[row][:, question[row]]
        expected = 1 + taken / plain[row][:, question[row]].sum(-1)
        torch.testing.assert_close(grown, expected[:, None].expand_as(grown), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(edited[row].sum(-1), torch.ones(4), rtol=0, atol=1e-5)


def test_sinks_in_a_dimension_that_is_not_there_are_refused(random):
    with pytest.raises(E.BadEdit, match="no dimension 5000"):
        random.with_edits(E.Knockout(keys=E.sinks([5000])))


def test_a_selector_that_looks_is_not_used_before_it_has_looked(random):
    edit = E.Steer("text.1.resid_pre", torch.ones(random.cfg.d_model), positions=E.seen(layers=[1]))
    with pytest.raises(E.BadEdit, match="acts behind all that it reads"):
        random.with_edits(edit)
