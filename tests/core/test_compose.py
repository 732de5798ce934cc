"""Sums of random edits against a naive model: every edit as a loop over rows, heads and keys, under eager.

The order is the documented one: scores in the order written, then z, then the residual stream.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seeing import edits as E

LAYERS, HEADS, LENGTH = 4, 4, 25
NEVER = float("-inf")


def some(size, low=1, high=4):
    return st.lists(st.integers(0, size - 1), min_size=low, max_size=high, unique=True)


@st.composite
def row_edits(draw):
    """(what makes the edit, its layers, and the same by hand on one row of scores, given query and head)."""
    kind = draw(st.sampled_from(["scale", "bias", "cut"]))
    keys, queries = draw(some(LENGTH)), draw(some(LENGTH))
    layers, heads = draw(some(LAYERS, high=3)), draw(st.none() | some(HEADS, high=3))
    named = dict(keys=keys, queries=queries, layers=layers, heads=heads)
    number = draw(st.floats(0.1, 8))
    make, value = {
        "cut": (lambda: E.Knockout(**named), NEVER),
        "bias": (lambda: E.Bias(**named, value=4 - number), 4 - number),
        "scale": (lambda: E.ScaleAttention(**named, gain=number), math.log(number)),
    }[kind]

    def by_hand(row, query, head):
        if query in queries and (heads is None or head in heads):
            for key in keys:
                row[key] += value

    return make, layers, by_hand


@st.composite
def head_edits(draw):
    layer, heads = draw(st.integers(0, LAYERS - 1)), draw(some(HEADS, high=2))
    factor = draw(st.sampled_from([0.0, 0.5, 2.0]))

    def make():
        return E.AblateHeads({layer: heads}) if factor == 0 else E.ScaleHeads({layer: heads}, factor)

    return make, layer, heads, factor


@st.composite
def steers(draw):
    site = draw(st.sampled_from(["resid_pre", "resid_mid", "mlp_out"]))
    name = f"text.{draw(st.integers(0, LAYERS - 1))}.{site}"
    positions, strength, seed = draw(some(LENGTH)), draw(st.floats(-2, 2)), draw(st.integers(0, 99))
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return lambda: E.Steer(name, vector, strength, positions), name, positions, strength * vector


def naive(rows, heads, steered):
    """The same changes by name, for the reference model."""
    by_name = {}

    def scores_of(layer):
        def fn(scores):
            scores = scores.clone()
            for _, layers, by_hand in rows:
                if layer in layers:
                    for query in range(LENGTH):
                        for head in range(HEADS):
                            by_hand(scores[0, head, query], query, head)
            return scores

        return fn

    def pattern_of(pattern):
        """A row that was cut off from everything writes nothing, not a mean of all keys."""
        return pattern.nan_to_num(0.0)

    for layer in {layer for _, layers, _ in rows for layer in layers}:
        by_name[f"text.{layer}.attn.scores"] = hiding(scores_of(layer))
        by_name[f"text.{layer}.attn.pattern"] = pattern_of
    for _, layer, some_heads, factor in heads:
        before = by_name.get(f"text.{layer}.attn.z", lambda z: z)
        scale = torch.ones(HEADS, 1)
        scale[some_heads] = factor
        by_name[f"text.{layer}.attn.z"] = lambda z, before=before, scale=scale: before(z) * scale
    for _, name, positions, vector in steered:
        before = by_name.get(name, lambda value: value)

        def fn(value, before=before, positions=positions, vector=vector):
            value = before(value).clone()
            value[:, positions] += vector
            return value

        by_name[name] = fn
    return by_name


def hiding(fn):
    """Eager masks with a large negative number; a cut is −∞, and so is what was hidden in a cut row."""
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    return lambda scores: fn(scores).masked_fill(later, NEVER)


def close(found, expected):
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@settings(max_examples=12, deadline=None)
@given(
    st.lists(row_edits(), min_size=1, max_size=4),
    st.lists(head_edits(), max_size=2),
    st.lists(steers(), max_size=2),
    st.integers(0, 999),
)
def test_a_sum_of_edits_is_what_a_naive_model_does(tiny, prompt, kernel, rows, heads, steered, seed):
    """And neither the place of kinds in the sum, nor adding them one by one, changes it."""
    assert prompt.length == LENGTH
    one = tiny(kernel)
    total = [make() for make, *_ in (*rows, *heads, *steered)]
    with torch.no_grad():
        expected = tiny(kernel).reference(prompt, naive(rows, heads, steered))["logits"]
    summed = E.Edits(tuple(total))
    logits = one.vlm.with_edits(summed).cache(prompt, "logits")["logits"]
    close(logits, expected)
    edited = one.vlm
    for place in torch.randperm(len(total), generator=torch.Generator().manual_seed(seed)).tolist():
        edited = edited.with_edits(total[place])
    close(edited.cache(prompt, "logits")["logits"], expected)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_row_cut_off_from_all_it_saw_looks_nowhere_else(tiny, prompt, kernel):
    """Eager's mask is a finite number: with no visible key left, a softmax would spread over the hidden."""
    vlm = tiny(kernel).vlm
    edited = vlm.with_edits(E.Knockout(queries=[4, 7], keys=list(range(8)), layers=1, heads=[0, 2]))
    found = edited.cache(prompt, ["text.1.attn.pattern", "text.1.attn.z"], queries=[4, 6, 7])
    plain = vlm.cache(prompt, ["text.1.attn.pattern", "text.1.attn.z"], queries=[4, 6, 7])
    pattern, z = found["text.1.attn.pattern"], found["text.1.attn.z"]
    assert (pattern[:, [0, 2]][:, :, [0, 2]] == 0).all()
    assert (z[:, [4, 7]][:, :, [0, 2]] == 0).all()
    assert torch.equal(pattern[:, [1, 3]], plain["text.1.attn.pattern"][:, [1, 3]])
    assert torch.equal(z[:, 6], plain["text.1.attn.z"][:, 6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_and_items_that_no_edit_names_stay_the_kernels_own(tiny, picture, dtype):
    """Bit for bit, in the very rows that are edited: a softmax of our own would round elsewhere."""
    vlm = tiny(dtype=dtype).vlm
    batch = vlm.prompts([(picture(), "what ?"), (picture(50, 90, 1), "what digit is on the red square ?")])
    edit = E.ScaleAttention(keys="image", gain=5.0, queries=E.Positions(((-1,), (-2,))), layers=2, heads=[1])
    found = vlm.with_edits(edit).cache(batch, "text.2.attn.z")["text.2.attn.z"]
    plain = vlm.cache(batch, "text.2.attn.z")["text.2.attn.z"]
    changed = (found != plain).any(-1)
    assert changed.nonzero().tolist() == [[0, batch.length - 1, 1], [1, batch.length - 2, 1]]
