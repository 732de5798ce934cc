"""A tiny ViP-LLaVA: a CLIP tower, and a projector on three of its streams side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LlavaProcessor, VipLlavaConfig, VipLlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tiny.parts import chat_template, generation_config, sharpen, tokenizer

SIDE = 42
PATCH = 7


def vipllava():
    tokens = tokenizer({"image_token": "<image>"})
    config = VipLlavaConfig(
        text_config=dict(
            model_type="llama",
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
        ),
        vision_config=dict(
            model_type="clip_vision_model",
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=4,
            num_attention_heads=3,
            image_size=SIDE,
            patch_size=PATCH,
            projection_dim=24,
        ),
        image_token_index=tokens.image_token_id,
        vision_feature_layer=[-2, 1, -3],
        image_seq_length=(SIDE // PATCH) ** 2,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    model = sharpen(VipLlavaForConditionalGeneration(config))
    model.generation_config = generation_config(tokens)
    settings = CLIPImageProcessorPil(
        size=dict(shortest_edge=SIDE), crop_size=dict(height=SIDE, width=SIDE), do_center_crop=True
    )
    processor = LlavaProcessor(
        settings,
        tokens,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )
    return model, processor


BUILDERS: dict[str, Callable[[], tuple[torch.nn.Module, Any]]] = {"vipllava": vipllava}
