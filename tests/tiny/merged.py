"""Tiny Gemma 3, Gemma 4, PaliGemma, Mistral 3 and Pixtral: one raster of tokens over the whole picture."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PixtralVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from tiny.parts import chat_template, generation_config, offset_norms, sharpen, tokenizer

TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=2048,
)
SIGLIP = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=56,
    patch_size=7,
    vision_use_head=False,
)
MIXED = ["sliding_attention", "full_attention"] * 2


def special(tokens: Any) -> dict[str, int]:
    return dict(
        pad_token_id=tokens.pad_token_id, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id
    )


def made(model: torch.nn.Module, tokens: Any) -> torch.nn.Module:
    sharpen(model)
    model.generation_config = generation_config(tokens)
    return model


def gemma3():
    tokens = tokenizer(
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    )
    ids = tokens.get_vocab()
    config = Gemma3Config(
        text_config=dict(
            vocab_size=len(tokens),
            **TEXT,
            **special(tokens),
            sliding_window=12,
            layer_types=MIXED,
            query_pre_attn_scalar=6,
        ),
        vision_config=SIGLIP,
        mm_tokens_per_image=16,
        image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        **special(tokens),
    )
    model = offset_norms(made(Gemma3ForConditionalGeneration(config), tokens))
    settings = Gemma3ImageProcessorPil(size=dict(height=56, width=56))
    return model, Gemma3Processor(
        settings, tokens, chat_template=chat_template("<start_of_image>"), image_seq_length=16
    )


def gemma4(text=(), vision=()):
    """``text`` and ``vision`` override what the configurations say, as in `paligemma`."""
    tokens = tokenizer(
        {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
        },
        ["<|video|>", "<|audio>", "<audio|>"],
    )
    ids = tokens.get_vocab()
    config = Gemma4Config(
        text_config=dict(
            vocab_size=len(tokens),
            **TEXT | dict(num_hidden_layers=6),
            **special(tokens),
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"] * 3,
            global_head_dim=16,
            hidden_size_per_layer_input=6,
            vocab_size_per_layer_input=len(tokens),
            num_kv_shared_layers=2,
            use_bidirectional_attention="vision",
            final_logit_softcapping=30.0,
        )
        | dict(text),
        vision_config=dict(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=8,
            patch_size=4,
            pooling_kernel_size=3,
            position_embedding_size=128,
        )
        | dict(vision),
        audio_config=None,
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        audio_token_id=ids["<|audio|>"],
        boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"],
        **special(tokens),
    )
    model = made(Gemma4ForConditionalGeneration(config), tokens)
    with torch.no_grad():
        for number, layer in enumerate(model.get_decoder().layers):
            layer.layer_scalar.fill_(0.65 + 0.1 * number)
        for name, bound in model.model.vision_tower.named_buffers():
            if name.endswith(("_min", "_max")):
                bound.fill_(-0.8 if name.endswith("_min") else 0.9)
            elif name.startswith("std_"):
                bound.copy_(torch.linspace(0.5, 1.5, len(bound)))
    settings = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3)

    def init(self, image_processor=None, tokenizer=None, chat_template=None, image_seq_length=70, **kwargs):
        self.image_seq_length = image_seq_length
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.boi_token, self.eoi_token = tokenizer.boi_token, tokenizer.eoi_token
        self.video_token, self.video_token_id = "<|video|>", tokenizer.convert_tokens_to_ids("<|video|>")
        self.audio_token, self.audio_token_id = tokenizer.audio_token, tokenizer.audio_token_id
        self.boa_token, self.eoa_token = "<|audio>", "<audio|>"
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    kind = type(
        "Gemma4Processor", (Gemma4Processor,), {"__init__": init, "__module__": Gemma4Processor.__module__}
    )
    return model, kind(settings, tokens, chat_template=chat_template("<|image|>"))


def paligemma(text=()):
    tokens = tokenizer({"image_token": "<image>"})
    config = PaliGemmaConfig(
        text_config=dict(model_type="gemma", vocab_size=len(tokens) + 1152, **TEXT, **special(tokens))
        | dict(text),
        vision_config=SIGLIP | dict(patch_size=14, projection_dim=32),
        image_token_index=tokens.image_token_id,
        projection_dim=32,
        **special(tokens),
    )
    settings = SiglipImageProcessorPil(size=dict(height=56, width=56))
    settings.image_seq_length = 16
    processor = PaliGemmaProcessor(settings, tokens)
    return offset_norms(made(PaliGemmaForConditionalGeneration(config), tokens)), processor


def pixtral_processor(tokens: Any, merge: int) -> Any:
    """Its module asks for torchvision for one function only, which the other backend has too."""
    name = "transformers.models.pixtral.image_processing_pixtral"
    stub = types.ModuleType(name)
    stub.get_resize_output_image_size = image_processing_pil_pixtral.get_resize_output_image_size
    there = sys.modules.setdefault(name, stub)
    kind = importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    if there is stub:
        del sys.modules[name]
    settings = PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=dict(height=7, width=7))
    return kind(
        settings, tokens, patch_size=7, spatial_merge_size=merge, chat_template=chat_template("[IMG]")
    )


PIXTRAL = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    head_dim=8,
    image_size=112,
    patch_size=7,
)


def mistral3(text_class: type = MistralConfig, **text: Any):
    tokens = tokenizer({"image_token": "[IMG]"}, ["[IMG_BREAK]", "[IMG_END]"])
    config = Mistral3Config(
        text_config=text_class(
            vocab_size=len(tokens), **TEXT, **special(tokens), **dict(sliding_window=None) | text
        ),
        vision_config=PixtralVisionConfig(**PIXTRAL),
        image_token_index=tokens.image_token_id,
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        **special(tokens),
    )
    return made(Mistral3ForConditionalGeneration(config), tokens), pixtral_processor(tokens, 2)


def pixtral():
    tokens = tokenizer({"image_token": "[IMG]"}, ["[IMG_BREAK]", "[IMG_END]"])
    config = LlavaConfig(
        text_config=MistralConfig(vocab_size=len(tokens), **TEXT, **special(tokens), sliding_window=64),
        vision_config=PixtralVisionConfig(**PIXTRAL | dict(patch_size=14)),
        image_token_index=tokens.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        **special(tokens),
    )
    processor = pixtral_processor(tokens, 1)
    processor.patch_size = 14
    processor.image_processor.patch_size = dict(height=14, width=14)
    return made(LlavaForConditionalGeneration(config), tokens), processor


BUILDERS: dict[str, Callable[[], tuple[torch.nn.Module, Any]]] = {
    made.__name__: made for made in (gemma3, gemma4, paligemma, mistral3, pixtral)
}
