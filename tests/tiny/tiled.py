"""Tiny LLaVA-NeXT, LLaVA-OneVision and Llama 3.2 Vision: pictures cut into tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from tiny.parts import chat_template, generation_config, sharpen, tokenizer

SIDE, PATCH = 28, 7

TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)
TOWER = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=SIDE,
    patch_size=PATCH,
)


def special(tokens: Any) -> dict[str, int]:
    return dict(
        pad_token_id=tokens.pad_token_id, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id
    )


def made(model: torch.nn.Module, tokens: Any) -> torch.nn.Module:
    sharpen(model)
    model.generation_config = generation_config(tokens)
    return model


def pinpoints(side: int, most: int, tiles: int) -> list[list[int]]:
    """Every canvas of at most ``tiles`` tiles, at most ``most`` a side; one tile is no canvas."""
    counts = range(1, most + 1)
    return [[side * r, side * c] for r in counts for c in counts if 1 < r * c <= tiles]


def next_of(text: Any, **more: Any):
    tokens = tokenizer({"image_token": "<image>"})
    canvases = pinpoints(SIDE, most=3, tiles=4)
    config = LlavaNextConfig(
        text_config=text(vocab_size=len(tokens), **TEXT, **special(tokens), **more),
        vision_config=CLIPVisionConfig(**TOWER),
        image_token_index=tokens.image_token_id,
        image_grid_pinpoints=canvases,
        tie_word_embeddings=False,
        **special(tokens),
    )
    settings = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=dict(height=SIDE, width=SIDE), image_grid_pinpoints=canvases
    )
    processor = LlavaNextProcessor(
        settings,
        tokens,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )
    return made(LlavaNextForConditionalGeneration(config), tokens), processor


def llava_next():
    return next_of(MistralConfig, sliding_window=None)


def llava_next_llama():
    return next_of(LlamaConfig, attention_bias=True)


def llava_onevision():
    """As in the released towers, the patches leave the last pixels of a tile out."""
    side, n, aspect = SIDE + 2, SIDE // PATCH, "anyres_max_6"
    tokens = tokenizer({"image_token": "<image>", "video_token": "<video>"})
    canvases = [[side, side], *pinpoints(side, most=4, tiles=9)]
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(vocab_size=len(tokens), **TEXT, **special(tokens)),
        vision_config=SiglipVisionConfig(**TOWER | dict(image_size=side), vision_use_head=False),
        image_token_index=tokens.image_token_id,
        video_token_index=tokens.video_token_id,
        image_grid_pinpoints=canvases,
        vision_aspect_ratio=aspect,
        tie_word_embeddings=False,
        **special(tokens),
    )
    settings = LlavaOnevisionImageProcessorPil(
        size=dict(height=side, width=side), image_grid_pinpoints=canvases
    )
    whole = LlavaOnevisionProcessor

    # the video part needs torchvision, and whether there is one is read from the signature
    def init(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.num_image_tokens, self.vision_aspect_ratio = n * n, aspect
        self.vision_feature_select_strategy = "full"
        for kind in ("image", "video"):
            setattr(self, f"{kind}_token", getattr(tokenizer, f"{kind}_token"))
            setattr(self, f"{kind}_token_id", getattr(tokenizer, f"{kind}_token_id"))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    kind = type(whole.__name__, (whole,), {"__init__": init, "__module__": whole.__module__})
    processor = kind(settings, tokens, chat_template=chat_template("<image>"))
    return made(LlavaOnevisionForConditionalGeneration(config), tokens), processor


def mllama():
    tokens = tokenizer({"image_token": "<|image|>"}, ["<|python_tag|>"])
    config = MllamaConfig(
        text_config=dict(
            vocab_size=len(tokens),
            **TEXT | dict(num_hidden_layers=4),
            **special(tokens),
            cross_attention_layers=[1, 3],
            rope_parameters=dict(rope_type="default", rope_theta=1e4),
        ),
        vision_config=dict(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=3,
            image_size=SIDE,
            patch_size=PATCH,
            intermediate_layers_indices=[0, 1],
            vision_output_dim=24 * 3,
        ),
        image_token_index=tokens.image_token_id,
    )
    model = made(MllamaForConditionalGeneration(config), tokens)
    gates = (weight for name, weight in model.named_parameters() if "gate" in name and weight.numel() == 1)
    with torch.no_grad():
        for number, gate in enumerate(gates):
            gate.fill_((-1) ** number * (0.5 + 0.06 * number))
    settings = MllamaImageProcessorPil(size=dict(height=SIDE, width=SIDE), max_image_tiles=4)
    return model, MllamaProcessor(settings, tokens, chat_template=chat_template("<|image|>"))


BUILDERS: dict[str, Callable[[], tuple[torch.nn.Module, Any]]] = {
    "llava_next": llava_next,
    "llava_next-llama": llava_next_llama,
    "llava_onevision": llava_onevision,
    "mllama": mllama,
}
