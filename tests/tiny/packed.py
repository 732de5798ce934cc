"""Tiny Qwen-VL and GLM-V: towers that pack the patches of all pictures in one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin

from tiny.parts import chat_template, generation_config, offset_norms, sharpen, tokenizer

PATCH, MERGE = 7, 2
SIDE = PATCH * MERGE

TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
TOWER = dict(depth=3, num_heads=4, patch_size=PATCH, spatial_merge_size=MERGE, out_hidden_size=32)


def mrope(*section: int, **more: Any) -> dict:
    return dict(rope_type="default", rope_theta=1e4, mrope_section=list(section), **more)


def images_only(base: type, tokens: Any, settings: Any, placeholder: str) -> Any:
    """A processor of class ``base`` without its video part, which needs torchvision."""

    def init(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        for kind in ("image", "video"):
            token = getattr(tokenizer, f"{kind}_token")
            setattr(self, f"{kind}_token", token)
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
        for name, token in tokenizer.special_tokens_map.items():
            if name.startswith("vision_"):
                setattr(self, name, token)
                setattr(self, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
        self.video_start_id = tokenizer.convert_tokens_to_ids("<|begin_of_video|>")
        self.video_end_id = tokenizer.convert_tokens_to_ids("<|end_of_video|>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    made = type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})
    return made(settings, tokens, chat_template=chat_template(placeholder))


def qwen(config_class: type, model_class: type, processor_class: type, text: dict, tower: dict):
    tokens = tokenizer(
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }
    )
    ids = tokens.get_vocab()
    special = dict(pad_token_id=tokens.pad_token_id, bos_token_id=1, eos_token_id=tokens.eos_token_id)
    config = config_class(
        text_config=dict(vocab_size=len(tokens), **TEXT | text, **special),
        vision_config=TOWER | tower,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = sharpen(model_class(config))
    model.generation_config = generation_config(tokens)
    settings = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, size=dict(shortest_edge=4 * SIDE**2, longest_edge=60 * SIDE**2)
    )
    return model, images_only(
        processor_class, tokens, settings, "<|vision_start|><|image_pad|><|vision_end|>"
    )


def qwen2_vl():
    tower = dict(embed_dim=32, hidden_size=32, mlp_ratio=2)
    text = dict(rope_parameters=mrope(1, 1, 2))
    return qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, text, tower)


def qwen2_5_vl():
    tower = dict(hidden_size=32, intermediate_size=48, window_size=2 * SIDE, fullatt_block_indexes=[1])
    text = dict(rope_parameters=mrope(1, 1, 2))
    return qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, text, tower)


DEEP = dict(hidden_size=32, intermediate_size=48, num_position_embeddings=64, deepstack_visual_indexes=[0, 1])


def qwen3_vl():
    text = dict(head_dim=8, rope_parameters=mrope(2, 1, 1, mrope_interleaved=True))
    return qwen(Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, text, DEEP)


def qwen3_vl_moe():
    text = dict(head_dim=8, rope_parameters=mrope(2, 1, 1, mrope_interleaved=True), **EXPERTS)
    return qwen(Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, Qwen3VLProcessor, text, DEEP)


LINEAR = dict(
    num_hidden_layers=4,
    head_dim=16,
    layer_types=["linear_attention", "full_attention"] * 2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    rope_parameters=mrope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25),
)
FLAT = dict(hidden_size=32, intermediate_size=48, num_position_embeddings=64)


def calm(made: tuple[torch.nn.Module, Any]) -> tuple[torch.nn.Module, Any]:
    """Linear attention multiplies rounding up where its weights are large."""
    model, processor = made
    offset_norms(model)
    with torch.no_grad():
        for name, weight in model.get_decoder().named_parameters():
            if "linear_attn" in name and weight.ndim > 1:
                weight.mul_(0.5)
    return model, processor


def qwen3_5():
    return calm(qwen(Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor, LINEAR, FLAT))


def qwen3_5_moe():
    text = LINEAR | EXPERTS | dict(shared_expert_intermediate_size=24)
    return calm(qwen(Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, Qwen3VLProcessor, text, FLAT))


def glm(config_class: type, model_class: type, text: dict):
    words = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    tokens = tokenizer({"image_token": "<|image|>", "video_token": "<|video|>"}, words)
    ids = tokens.get_vocab()
    special = dict(pad_token_id=tokens.pad_token_id, bos_token_id=1, eos_token_id=tokens.eos_token_id)
    names = ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id")
    config = config_class(
        text_config=dict(vocab_size=len(tokens), **TEXT | text, **special),
        vision_config=TOWER | dict(hidden_size=32, intermediate_size=48, image_size=56),
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        tie_word_embeddings=False,
        **{name: ids[word] for name, word in zip(names, words)},
    )
    model = sharpen(model_class(config))
    model.generation_config = generation_config(tokens)
    settings = Glm4vImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        size=dict(shortest_edge=8 * SIDE**2, longest_edge=120 * SIDE**2),
    )
    placeholder = "<|begin_of_image|><|image|><|end_of_image|>"
    return model, images_only(Glm4vProcessor, tokens, settings, placeholder)


def glm4v():
    text = dict(rope_parameters=mrope(1, 1, 0, partial_rotary_factor=0.5))
    return glm(Glm4vConfig, Glm4vForConditionalGeneration, text)


def glm4v_moe():
    text = dict(
        rope_parameters=mrope(1, 1, 0, partial_rotary_factor=0.5),
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
    )
    return glm(Glm4vMoeConfig, Glm4vMoeForConditionalGeneration, text)


BUILDERS: dict[str, Callable[[], tuple[torch.nn.Module, Any]]] = {
    made.__name__: made
    for made in (
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_vl_moe,
        qwen3_5,
        qwen3_5_moe,
        glm4v,
        glm4v_moe,
    )
}
