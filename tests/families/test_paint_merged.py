"""Checkpoints of a family that differ in a part: each is proved at load and painted to the pixel.

A part is a tower that clips its linear maps, another text model, or experts in place of an MLP. Pictures are
taken as they are, so that nothing leaks: the tokens that moved are those that the painted region touches.
"""

from __future__ import annotations

import functools

import pytest
import torch
from tiny.merged import MIXED, gemma4, mistral3, paligemma
from tiny.packed import BUILDERS as PACKED
from tiny.pictures import noise, painted
from transformers import Ministral3Config

import seeing
from seeing.names import UnknownName

EXPERTS = dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=24)
GLOBAL = dict(attention_k_eq_v=True, num_global_key_value_heads=1)
ALONE = dict(hidden_size_per_layer_input=0, num_kv_shared_layers=0)
GEMMA2 = dict(model_type="gemma2", sliding_window=12, query_pre_attn_scalar=6, layer_types=MIXED)
#: Queries far into the prompt are scaled up, so that positions count and not their distance alone.
YARN = dict(
    rope_type="yarn",
    rope_theta=1e4,
    factor=64.0,
    original_max_position_embeddings=32,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.5,
)

MADE = {
    "gemma4-clipped": functools.partial(gemma4, vision=dict(use_clipped_linears=True)),
    "gemma4-dense": functools.partial(gemma4, text=GLOBAL | ALONE, vision=dict(standardize=True)),
    "gemma4-experts": functools.partial(gemma4, text=EXPERTS | GLOBAL | ALONE),
    "gemma4-causal": functools.partial(gemma4, text=dict(use_bidirectional_attention=None)),
    "gemma4-wide": functools.partial(gemma4, text=dict(use_double_wide_mlp=True)),
    "paligemma2": functools.partial(paligemma, text=GEMMA2),
    "ministral3": functools.partial(mistral3, Ministral3Config, rope_parameters=YARN),
    **{name: made for name, made in PACKED.items() if name.endswith("_moe")},
}
#: A picture that the processor takes as it is, and the pixels of a token's side on it.
SIZE = dict.fromkeys(MADE, (70, 42)) | {name: (120, 84) for name in MADE if name.startswith("gemma4")}
SIZE["paligemma2"] = (56, 56)
SIDE = {name: 12 if name.startswith("gemma4") else 14 for name in MADE}
QUESTIONS = "hi", "what digit is on the red square ?"


@functools.cache
def vlm_of(name: str) -> seeing.VLM:
    return seeing.load(MADE[name]())


@pytest.fixture(params=MADE)
def name(request) -> str:
    return request.param


@pytest.fixture
def unmixed(name):
    """The model with a tower in which no patch sees another."""
    vlm = vlm_of(name)
    stack = vlm.family.vision(vlm._module)
    weights = [
        weight
        for layer in range(len(stack))
        for weight in getattr(stack.attention(layer), stack.out).parameters()
    ]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
        yield vlm
        for weight, value in zip(weights, before):
            weight.copy_(value)


@pytest.mark.parametrize("tokens", [(0, 0, 1, 1), (1, 1, 3, 2), (3, 2, 4, 3)])
@pytest.mark.parametrize("margin", [-1, 0, 1])
def test_the_tokens_that_a_region_touches_move(name, unmixed, tokens, margin):
    """The region's sides are borders of tokens, or a pixel to either side of them."""
    picture = noise(SIZE[name])
    x0, y0, x1, y1 = (SIDE[name] * border for border in tokens)
    region = (max(x0 - margin, 0), max(y0 - margin, 0), x1 + margin, y1 + margin)
    prompts = [unmixed.prompt(one, QUESTIONS[0]) for one in (picture, painted(picture, region))]
    (grid,) = prompts[0].grids
    plain, other = (unmixed.cache(one, "text.embed")["text.embed"][0, grid.positions] for one in prompts)
    moved = (plain - other).abs().amax(1) > 1e-5
    assert moved.any()
    assert torch.equal(moved, grid.labels([region]))


def test_a_padded_row_is_the_row_alone(name):
    """Ministral 3 scales queries by their position, so this holds only if padding is not counted."""
    vlm = vlm_of(name)
    rows = [(noise(SIZE[name], seed), question) for seed, question in enumerate(QUESTIONS)]
    together = vlm.cache(vlm.prompts(rows), "logits")["logits"]
    for row, (picture, question) in enumerate(rows):
        alone = vlm.cache(vlm.prompt(picture, question), "logits")["logits"][0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)


def test_heads_of_a_tower_that_clips_have_no_share():
    """What is clipped is no sum over heads; what heads read and write beside it is there all the same."""
    vlm = vlm_of("gemma4-clipped")
    prompt = vlm.prompt(noise(SIZE["gemma4-clipped"]), QUESTIONS[0])
    with pytest.raises(UnknownName, match="clip"):
        vlm.cache(prompt, "vision.0.attn.result")
    seen = vlm.cache(prompt, ["vision.0.attn.z", "vision.0.attn_out", "vision.0.mlp.post"])
    layer = vlm._module.model.vision_tower.encoder.layers[0]
    with torch.no_grad():
        given = layer.self_attn.o_proj(seen["vision.0.attn.z"].flatten(2))
    total = layer.self_attn.o_proj.linear(seen["vision.0.attn.z"].flatten(2))
    assert not torch.allclose(given, total, atol=1e-2), "nothing is clipped here"
    assert float(seen["vision.0.mlp.post"].max()) <= float(layer.mlp.down_proj.input_max) + 1e-6
    torch.testing.assert_close(
        layer.post_attention_layernorm(given), seen["vision.0.attn_out"], rtol=1e-4, atol=1e-4
    )


def test_dense_layers_among_experts_keep_their_last_map():
    """GLM-4.5V's first layers have an MLP, Gemma 4's experts stand beside one."""
    vlm = vlm_of("glm4v_moe")
    prompt = vlm.prompt(noise(SIZE["glm4v_moe"]), QUESTIONS[0])
    assert "text.0.mlp.post" in vlm.cache(prompt, "text.0.mlp.post")
    with pytest.raises(UnknownName, match="no single last map"):
        vlm.cache(prompt, "text.1.mlp.post")
    assert "text.1.mlp.post" in vlm_of("gemma4-experts").sites
