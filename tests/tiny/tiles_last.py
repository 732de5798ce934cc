"""Tiny InternVL, Aya Vision, Command A Vision, Idefics 3 and SmolVLM: tiles, and the whole picture last."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.aya_vision.processing_aya_vision import AyaVisionProcessor
from transformers.models.cohere2_vision.processing_cohere2_vision import Cohere2VisionProcessor
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tiny.parts import chat_template, generation_config, sharpen, tokenizer

SIDE, PATCH, MERGE = 28, 7, 2
SQUARE = dict(height=SIDE, width=SIDE)
TOKENS = (SIDE // PATCH // MERGE) ** 2

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
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=SIDE,
    patch_size=PATCH,
)
#: Cohere's own layers alternate so, with rotary positions where the window slides.
MIXED = dict(
    TEXT,
    num_hidden_layers=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
    sliding_window=12,
)


def special(tokens: Any) -> dict[str, int]:
    return dict(
        pad_token_id=tokens.pad_token_id, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id
    )


def made(model: torch.nn.Module, tokens: Any) -> torch.nn.Module:
    sharpen(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # the scales of a layer's branches, large enough that a branch without one would show
            if "lambda_" in name:
                weight.add_(0.6)
    model.generation_config = generation_config(tokens)
    return model


def images_only(base: type) -> type:
    """A processor of class ``base`` without its video part, which needs torchvision."""
    parts = {
        "get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"]),
        "video_processor": types.SimpleNamespace(num_frames=None, fps=None),
        "__module__": base.__module__,
    }
    return type(base.__name__, (base,), parts)


def internvl_of(text: Any, **more: Any):
    tokens = tokenizer(
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    )
    config = InternVLConfig(
        text_config=text(vocab_size=len(tokens), **TEXT, **special(tokens), **more),
        vision_config=TOWER | dict(attention_bias=True),
        image_token_id=tokens.context_image_token_id,
        image_seq_length=TOKENS,
        downsample_ratio=1 / MERGE,
        tie_word_embeddings=False,
        **special(tokens),
    )
    settings = GotOcr2ImageProcessorPil(size=SQUARE, max_patches=6)
    processor = images_only(InternVLProcessor)(
        settings, tokens, None, image_seq_length=TOKENS, chat_template=chat_template("<IMG_CONTEXT>\n")
    )
    return made(InternVLForConditionalGeneration(config), tokens), processor


def internvl():
    return internvl_of(Qwen2Config)


def internvl_qwen3():
    return internvl_of(Qwen3Config, head_dim=12)


def aya_vision():
    words = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL"]
    tokens = tokenizer({"image_token": "<image>"}, [*words, *(f"TILE_{number}" for number in range(1, 7))])
    config = AyaVisionConfig(
        text_config=Cohere2Config(vocab_size=len(tokens), **MIXED, **special(tokens)),
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        image_token_index=tokens.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=MERGE,
        tie_word_embeddings=False,
        **special(tokens),
    )
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessorPil(size=SQUARE, max_patches=6),
        tokens,
        patch_size=PATCH,
        img_size=SIDE,
        downsample_factor=MERGE,
        chat_template=chat_template("<image>"),
    )
    return made(AyaVisionForConditionalGeneration(config), tokens), processor


def cohere2_rule() -> Callable:
    """The choice of a canvas, whose module asks for torchvision to resize, which is not needed here."""
    name = "transformers.models.cohere2_vision.image_processing_cohere2_vision"
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    stubs = {
        stub: types.ModuleType(stub) for stub in names if importlib.util.find_spec("torchvision") is None
    }
    if stubs:
        stubs[names[-1]].functional = None
    sys.modules.update(stubs)
    try:
        return importlib.import_module(name).get_optimal_tiled_canvas
    finally:
        for stub in stubs:
            del sys.modules[stub]


class Cohere2VisionImageProcessorPil(GotOcr2ImageProcessorPil):
    """The family's own choice of a canvas; cutting it is the same."""

    crop_to_patches = True
    patch_size = TOKENS**0.5

    def crop_image_to_patches(self, *args: Any, **kwargs: Any) -> list:
        module, rule = image_processing_pil_got_ocr2, "get_optimal_tiled_canvas"
        before = getattr(module, rule)
        setattr(module, rule, cohere2_rule())
        try:
            return super().crop_image_to_patches(*args, **kwargs)
        finally:
            setattr(module, rule, before)


def cohere2_vision():
    tokens = tokenizer(
        {
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        }
    )
    config = Cohere2VisionConfig(
        text_config=Cohere2Config(vocab_size=len(tokens), **MIXED, **special(tokens)),
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        image_token_id=tokens.image_token_id,
        downsample_factor=MERGE,
        alignment_intermediate_size=40,
        tie_word_embeddings=False,
        **special(tokens),
    )
    settings = Cohere2VisionImageProcessorPil(size=SQUARE, max_patches=6)
    processor = Cohere2VisionProcessor(settings, tokens, chat_template=chat_template("<|IMG_PATCH|>"))
    return made(Cohere2VisionForConditionalGeneration(config), tokens), processor


def split_words() -> list[str]:
    cells = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    return ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *cells]


def idefics_of(config_class: type, model_class: type, kind: type, settings: Any, merge: int, *video: None):
    side = settings.max_image_size["longest_edge"]
    tokens = tokenizer({"image_token": "<image>", "video_token": "<video>"}, split_words())
    config = config_class(
        text_config=LlamaConfig(vocab_size=len(tokens), **TEXT, **special(tokens), attention_bias=True),
        vision_config=TOWER | dict(image_size=side),
        image_token_id=tokens.image_token_id,
        scale_factor=merge,
        tie_word_embeddings=False,
        **special(tokens),
    )
    seq_len = (side // PATCH // merge) ** 2
    processor = kind(settings, tokens, *video, image_seq_len=seq_len, chat_template=chat_template("<image>"))
    return made(model_class(config), tokens), processor


def idefics3():
    settings = Idefics3ImageProcessorPil(size=dict(longest_edge=80), max_image_size=dict(longest_edge=SIDE))
    return idefics_of(Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, settings, MERGE)


def smolvlm():
    # a package that spells numbers out is asked for, which only videos need
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    kind = images_only(processing_smolvlm.SmolVLMProcessor)
    side = 2 * SIDE
    settings = SmolVLMImageProcessorPil(
        size=dict(longest_edge=2 * side), max_image_size=dict(longest_edge=side)
    )
    return idefics_of(SmolVLMConfig, SmolVLMForConditionalGeneration, kind, settings, 2 * MERGE, None)


BUILDERS: dict[str, Callable[[], tuple[torch.nn.Module, Any]]] = {
    "internvl": internvl,
    "internvl-qwen3": internvl_qwen3,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
}
