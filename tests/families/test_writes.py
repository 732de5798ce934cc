"""Writes and edits in every family, against a hook on the twin: branch and skip must both move."""

import pytest
import torch

from seeing import edits as E

MASKED = -1e30

#: What a family's branches end with, where that is not the attention itself.
ENDS = {"gemma3": "post_attention_layernorm", "gemma4": "post_attention_layernorm"}
ENDS |= {"glm4v": "post_self_attn_layernorm"}


def close(found, expected):
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * size)


def bend(value):
    """A change of every number; what the mask hides stays hidden."""
    return torch.where(value < MASKED, value, 0.8 * value + 0.05 * value.roll(1, -1).clamp(min=-9))


def written(case, prompt, name, fn):
    """The logits when ``name`` is assigned ``fn`` of itself."""
    stack, layer, *path, last = name.split(".")
    with torch.no_grad(), case.vlm.trace(prompt):
        view = getattr(case.vlm, stack)[int(layer)]
        for part in path:
            view = getattr(view, part)
        setattr(view, last, fn(getattr(view, last)))
        logits = case.vlm.logits.save()
    return logits


@pytest.fixture(scope="module")
def prompt(case):
    return case.prompt()


@pytest.fixture(scope="module")
def plain(case, prompt):
    with torch.no_grad():
        return case.model(**prompt.inputs).logits


@pytest.fixture
def layer(case):
    """A layer with attention that is not the first."""
    return [layer for layer in case.vlm.sites.kernels["text"] if layer][-1]


def moves(found, expected, plain):
    close(found, expected)
    assert (found - plain).abs().max() > 1e-3


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "resid_mid", "attn_out"])
def test_a_write_to_the_stream_moves_branch_and_skip(case, prompt, plain, layer, site):
    if site == "resid_mid" and f"text.{layer}.resid_mid" in case.vlm.sites.absent:
        pytest.skip("a parallel block has no resid_mid")
    module = case.layers[layer]
    before = {}

    def keep(value):
        before["resid_pre"] = value
        return value

    def at_branch(value):
        gate = module.cross_attn_attn_gate.tanh() if hasattr(module, "cross_attn_attn_gate") else 1.0
        if site == "attn_out":
            return bend(value * gate) / gate
        return (bend(before["resid_pre"] + value * gate) - before["resid_pre"]) / gate

    if site == "resid_pre":
        hooks = [(module, "in", bend)]
    elif site == "resid_post":
        hooks = [(module, "out", bend)]
    else:
        end = getattr(module, ENDS[case.name]) if case.name in ENDS else case.attention(layer)
        hooks = [(module, "in", keep), (end, "out", at_branch)]
    moves(
        written(case, prompt, f"text.{layer}.{site}", bend), case.twin.run(prompt.inputs, hooks=hooks), plain
    )


@pytest.mark.parametrize("part", ["q", "k", "v", "scores", "pattern"])
def test_a_write_to_the_attention_is_the_same_by_hand(case, prompt, plain, layer, part):
    hand = {case.attention(layer): lambda name, value: bend(value) if name == part else value}
    expected = case.twin.run(prompt.inputs, edits=hand)
    moves(written(case, prompt, f"text.{layer}.attn.{part}", bend), expected, plain)


def test_a_head_taken_out_is_a_head_whose_columns_are_zero(case, prompt, plain, layer):
    cut = case.vlm.with_edits(E.AblateHeads({layer: [1]})).cache(prompt, "logits")["logits"]

    def without(name, value):
        if name == "z":
            value = value.clone()
            value[:, :, 1] = 0
        return value

    moves(cut, case.twin.run(prompt.inputs, edits={case.attention(layer): without}), plain)
    assert torch.equal(case.vlm.cache(prompt, "logits")["logits"], plain)


def test_result_written_back_is_the_same_model(case, prompt, plain, layer):
    close(written(case, prompt, f"text.{layer}.attn.result", lambda value: value.clone()), plain)
    doubled = written(case, prompt, f"text.{layer}.attn.result", lambda value: 2 * value)
    assert (doubled - plain).abs().max() > 1e-3


def test_the_tower_is_written_in_reading_order(case, prompt, plain):
    """Its pattern written back as it is, and one patch's stream turned round, in the tower's own slot."""
    stack = case.vlm.family.vision(case.twin.model)
    order = case.vlm.family.patch_order(case.model, prompt.inputs)
    close(written(case, prompt, "vision.0.attn.pattern", lambda value: value.clone()), plain)
    slot = 2 if stack.packed else 0
    where = int(order[slot]) if stack.packed else 0

    def spike(value):
        value = value.clone()
        value.narrow(0 if stack.packed else 1, where, 1).mul_(-1)
        return value

    def seen(value):
        value = value.clone()
        value[:, slot] *= -1
        return value

    expected = case.twin.run(prompt.inputs, hooks=[(stack.layers[0], "in", spike)])
    moves(written(case, prompt, "vision.0.resid_pre", seen), expected, plain)


def test_an_identity_edit_moves_by_rounding_and_a_cut_moves(case, prompt, plain):
    boosted = case.vlm.with_edits(E.ScaleAttention(keys="image", gain=1.0))
    close(boosted.cache(prompt, "logits")["logits"], plain)
    blind = case.vlm.with_edits(E.Knockout(keys="image", queries="all"))
    assert (blind.cache(prompt, "logits")["logits"] - plain).abs().max() > 1e-3
    assert torch.equal(case.vlm.cache(prompt, "logits")["logits"], plain)


def test_the_gradient_of_rows_is_eager_autograds(case, prompt, layer):
    """d loss / d pattern, for the last row, without an eager kernel."""
    name = f"text.{layer}.attn.pattern"
    cache = case.vlm.cache(prompt, [name, "logits"], grad=True)
    loss = cache["logits"][0, -1, 7:20].sum()
    (found,) = torch.autograd.grad(loss, cache[name])
    logits = case.twin.run(prompt.inputs, grad=True)
    (call,) = case.twin.calls[case.attention(layer)]
    (expected,) = torch.autograd.grad(logits[0, -1, 7:20].sum(), call["pattern"])
    close(found[:, :, 0], expected[:, :, -1])
    assert found.abs().max() > 1e-4
