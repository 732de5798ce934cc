"""Tiny InternVL, Aya Vision, Command A Vision, Idefics 3 and SmolVLM: tiles first, the whole picture last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.image_utils import SizeDict
from transformers.models.aya_vision.processing_aya_vision import AyaVisionProcessor
from transformers.models.cohere2_vision.processing_cohere2_vision import Cohere2VisionProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor
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


def images_only(base: type, init: Callable) -> type:
    """A processor of class ``base`` without its video part, which needs torchvision."""
    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})


def internvl_of(text: Any):
    tokens = tokenizer(
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    )
    config = InternVLConfig(
        text_config=text(vocab_size=len(tokens), **TEXT, **special(tokens)),
        vision_config=InternVLVisionConfig(**TOWER, attention_bias=True, use_qk_norm=True),
        image_token_id=tokens.context_image_token_id,
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        tie_word_embeddings=False,
    )
    model = made(InternVLForConditionalGeneration(config), tokens)
    settings = GotOcr2ImageProcessorPil(size=dict(height=SIDE, width=SIDE), min_patches=1, max_patches=6)

    def init(self, image_processor=None, tokenizer=None, image_seq_length=256, chat_template=None, **kwargs):
        InternVLProcessor.__init__(
            self, image_processor, tokenizer, None, image_seq_length, chat_template, **kwargs
        )

    processor = images_only(InternVLProcessor, init)(
        settings,
        tokens,
        image_seq_length=config.image_seq_length,
        chat_template=chat_template("<IMG_CONTEXT>"),
    )
    return model, processor


def internvl():
    return internvl_of(Qwen2Config)


def internvl_qwen3():
    return internvl_of(lambda **sizes: Qwen3Config(head_dim=8, **sizes))


def cohere2(tokens: Any) -> Cohere2Config:
    """Layers of both kinds: with a window and positions, and without either."""
    kinds = ["sliding_attention", "full_attention"] * 2
    sizes = TEXT | dict(num_hidden_layers=4)
    return Cohere2Config(
        vocab_size=len(tokens), **sizes, **special(tokens), sliding_window=24, layer_types=kinds
    )


def aya_vision():
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "TILE"]
    tokens = tokenizer({"image_token": "<image>"}, ["<|IMG_PATCH|>", *marks])
    side, factor = SIDE + 4, 2
    config = AyaVisionConfig(
        text_config=cohere2(tokens),
        vision_config=SiglipVisionConfig(**TOWER | dict(image_size=side), vision_use_head=False),
        downsample_factor=factor,
        image_token_index=tokens.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    config.alignment_intermediate_size = 40
    model = made(AyaVisionForConditionalGeneration(config), tokens)
    settings = GotOcr2ImageProcessorPil(size=dict(height=side, width=side), min_patches=1, max_patches=6)
    processor = AyaVisionProcessor(
        settings,
        tokens,
        patch_size=PATCH,
        downsample_factor=factor,
        img_size=side,
        chat_template=chat_template("<image>"),
    )
    return model, processor


class Cohere2ImageProcessorPil(GotOcr2ImageProcessorPil):
    """What the image processor of Command A Vision does, which is there for torchvision only."""

    crop_to_patches = True
    patch_size = 16

    def crop_image_to_patches(
        self, image, min_patches, max_patches, use_thumbnail=True, patch_size=None, resample=None
    ):
        side, (height, width) = patch_size.height, image.shape[-2:]
        grids = [(w, h) for w in range(1, max_patches + 1) for h in range(1, max_patches + 1)]
        grids = sorted((grid for grid in grids if grid[0] * grid[1] <= max_patches), key=lambda g: g[0] * g[1])
        scale = (np.array(grids) * side / np.stack([width, height])).min(-1)
        all_small = (scale < 1).all()
        cols, rows = grids[scale.argmax() if all_small else np.where(scale < 1, 10e9, scale).argmin()]
        whole = self.resize(image, SizeDict(height=side * rows, width=side * cols), resample=resample)
        tiles = [
            whole[:, side * row : side * (row + 1), side * col : side * (col + 1)]
            for row in range(rows)
            for col in range(cols)
        ]
        return tiles if len(tiles) == 1 else [*tiles, self.resize(image, patch_size, resample=resample)]


def cohere2_vision():
    names = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokens = tokenizer(names | {"img_line_break_token": "<br>"})
    config = Cohere2VisionConfig(
        text_config=cohere2(tokens),
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        downsample_factor=2,
        image_token_id=tokens.image_token_id,
        alignment_intermediate_size=40,
    )
    model = made(Cohere2VisionForConditionalGeneration(config), tokens)
    settings = Cohere2ImageProcessorPil(size=dict(height=SIDE, width=SIDE), max_patches=6)
    settings.patch_size = SIDE // PATCH // 2
    return model, Cohere2VisionProcessor(settings, tokens, chat_template=chat_template("<image>"))


def idefics3_of(config_class: type, model_class: type, settings_class: type, processor_class: type):
    marks = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    words = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>", *marks]
    tokens = tokenizer({"image_token": "<image>"}, words)
    factor = 2
    config = config_class(
        text_config=LlamaConfig(vocab_size=len(tokens), **TEXT, **special(tokens), attention_bias=True),
        vision_config=TOWER,
        image_token_id=tokens.image_token_id,
        scale_factor=factor,
        **special(tokens),
    )
    model = made(model_class(config), tokens)
    settings = settings_class(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE})
    processor = processor_class(
        settings,
        tokens,
        image_seq_len=(SIDE // PATCH // factor) ** 2,
        chat_template=chat_template("<image>"),
    )
    return model, processor


def idefics3():
    return idefics3_of(
        Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor
    )


def smolvlm():
    def init(self, image_processor, tokenizer, image_seq_len=169, chat_template=None, **kwargs):
        self.fake_image_token, self.global_image_token = "<fake_token_around_image>", "<global-img>"
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        self.end_of_utterance_token, self.image_seq_len = "<end_of_utterance>", image_seq_len
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kwargs)

    # its own template method asks the video part for frames
    members = {
        "__init__": init,
        "__module__": SmolVLMProcessor.__module__,
        "apply_chat_template": ProcessorMixin.apply_chat_template,
    }
    processor = type("SmolVLMProcessor", (SmolVLMProcessor,), members)
    return idefics3_of(SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil, processor)


BUILDERS: dict[str, Callable[[], tuple[torch.nn.Module, Any]]] = {
    "internvl": internvl,
    "internvl-qwen3": internvl_qwen3,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
}
