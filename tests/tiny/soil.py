"""What heads are planted in: LLaVA and Qwen2-VL with weights of zero but for a tower that names what it sees.

A picture is a grid of plain tiles, one a token. Red and green of a tile are the cosine and sine of its code,
blue is the mark. The tower hands each patch's mean colour on; hidden units of the projector are detectors:
one a code, one a code that is marked, one the mark. One head of the tower looks at the mark and writes
nothing.

In the stream every quantity has dimensions of its own, small beside a constant that fills the rest, so that
norms divide by a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from tiny.packed import images_only

ANSWERS = ("0", "1", "2", "3", "4", "5")
PLACES = ("attic", "barn", "cellar", "deck", "eaves", "forge")
ASKED = ("what", "is", "on", "the", "marked", "tile", "in", "old", "dark", "?", ":", "it")
SPECIAL = PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<bos>", "<eos>", "<unk>", "<image>"
AROUND = {"video_token": "<video>", "vision_start_token": "<see>", "vision_end_token": "</see>"}
WORDS = (*SPECIAL, *AROUND.values(), *PLACES, *ASKED, *ANSWERS)
TOKEN = {word: i for i, word in enumerate(WORDS)}
IDS = dict(pad_token_id=TOKEN[PAD], bos_token_id=TOKEN[BOS], eos_token_id=TOKEN[EOS])

N = len(ANSWERS)
#: Tiles of a picture; of LLaVA's, SEEN × SEEN in the middle are seen.
ROWS, COLS, SEEN = 8, 12, 8
LAYERS, HEADS, KV_HEADS, D_HEAD, WIDTH = 4, 4, 2, 16, 64
#: Where in the stream what lies; behind it the constant.
ANSWER, CODE, MARKED, CARRIED, PLACE = (slice(start, start + N) for start in range(0, 5 * N, N))
MARK, LAST, ASK, PLACED, DONE, LATER, FIRST, OLD, DARK, TOLD_OLD, TOLD_DARK, REST = range(5 * N, 5 * N + 12)
CONSTANT = 8.0
#: What a norm of the text model divides by.
RMS = CONSTANT * math.sqrt((WIDTH - REST) / WIDTH)
#: The largest difference of scores in a row that looks.
SHARPNESS = 12.0

#: Pixels of a tile as a tower sees it, and the dimensions of a colour in it: red, −red, green, −green …
SIDE, TOWER, TOWER_HEADS, COLOUR = 14, 24, 2, 6
MEAN, STD = [0.5] * 3, [0.4] * 3
#: Blue is either end of its range, and so ± this.
BLUE = 1.25


def llava(tower: tuple[int, int]) -> tuple[nn.Module, Any]:
    """A CLIP tower, in which the CLS of head ``tower`` looks at the mark; 8 × 8 tokens."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=SEEN * SIDE,
            patch_size=SIDE,
            hidden_size=TOWER,
            intermediate_size=8,
            num_hidden_layers=3,
            num_attention_heads=TOWER_HEADS,
            projection_dim=8,
        ),
        text_config=LlamaConfig(**_text(), rope_parameters=dict(rope_type="default", rope_theta=1e8)),
        image_token_index=TOKEN[IMAGE],
        image_seq_length=SEEN**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **IDS,
    )
    model = _empty(LlavaForConditionalGeneration(config))
    seeing, constant = model.model.vision_tower, 6.0
    std = constant * math.sqrt((TOWER - COLOUR - 2) / TOWER)
    with torch.no_grad():
        _colours(seeing.embeddings.patch_embedding.weight)
        # a flag for CLS, and a constant for the norms
        seeing.embeddings.class_embedding[COLOUR], seeing.embeddings.class_embedding[COLOUR + 1] = 1, -1
        seeing.embeddings.position_embedding.weight[:, COLOUR + 2 :: 2] = constant
        seeing.embeddings.position_embedding.weight[:, COLOUR + 3 :: 2] = -constant
        attention, dim = seeing.encoder.layers[tower[0]].self_attn, tower[1] * TOWER // TOWER_HEADS
        attention.q_proj.weight[dim, COLOUR] = attention.k_proj.weight[dim, 4] = _look() * std
    projector = model.model.multi_modal_projector
    _detectors(projector.linear_1, projector.linear_2, std, merged=1)
    settings = CLIPImageProcessorPil(
        size={"shortest_edge": SEEN * SIDE},
        crop_size={"height": SEEN * SIDE, "width": SEEN * SIDE},
        image_mean=MEAN,
        image_std=STD,
    )
    processor = LlavaProcessor(
        settings,
        _tokenizer(),
        patch_size=SIDE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )
    return model, processor


def qwen2_vl(tower: tuple[int, int]) -> tuple[nn.Module, Any]:
    """A packed tower, in which all patches of head ``tower`` look at the mark; 8 × 12 tokens, 2 × 2 patches
    each.
    """
    config = Qwen2VLConfig(
        text_config=dict(
            **_text(), rope_parameters=dict(rope_type="default", rope_theta=1e8, mrope_section=[2, 3, 3])
        ),
        vision_config=dict(
            depth=3,
            embed_dim=TOWER,
            hidden_size=WIDTH,
            num_heads=TOWER_HEADS,
            patch_size=SIDE // 2,
            spatial_merge_size=2,
            mlp_ratio=1,
        ),
        image_token_id=TOKEN[IMAGE],
        video_token_id=TOKEN["<video>"],
        vision_start_token_id=TOKEN["<see>"],
        vision_end_token_id=TOKEN["</see>"],
        tie_word_embeddings=False,
    )
    model = _empty(Qwen2VLForConditionalGeneration(config))
    # Red² + green² is 1 and blue² is the same everywhere, so that the norm of a colour is a constant.
    seeing, std = model.model.visual, math.sqrt(2 * (1 + BLUE**2) / TOWER)
    d_head = TOWER // TOWER_HEADS
    with torch.no_grad():
        _colours(seeing.patch_embed.proj.weight)
        block, dim = seeing.blocks[tower[0]], tower[1] * d_head + d_head // 2 - 1
        block.norm1.bias[COLOUR] = 1
        block.attn.qkv.weight[dim, COLOUR] = _look()
        block.attn.qkv.weight[TOWER + dim, 4] = _look() * std
    _detectors(seeing.merger.mlp[0], seeing.merger.mlp[2], std, merged=4)
    pixels = ROWS * COLS * SIDE**2
    settings = Qwen2VLImageProcessorPil(
        patch_size=SIDE // 2,
        merge_size=2,
        size=dict(shortest_edge=pixels // 4, longest_edge=pixels),
        image_mean=MEAN,
        image_std=STD,
    )
    processor = images_only(Qwen2VLProcessor, _tokenizer(), settings, "")
    processor.chat_template = _template("<see> <image> </see>")
    return model, processor


FAMILIES: dict[str, Callable[[tuple[int, int]], tuple[nn.Module, Any]]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
}


# ---- weights -----------------------------------------------------------------------------------------------


def _empty(model: nn.Module) -> nn.Module:
    """All weights zero, and all norms' gains one."""
    model.config.seeing_templates = {"qa": "{question}", "vea": "{question}"}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float(("norm" in name or "ln_q" in name) and name.endswith("weight")))
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=4, **IDS)
    return model.eval()


def _look() -> float:
    """What query and key each need, so that the mark stands out by `SHARPNESS`."""
    return math.sqrt(SHARPNESS / (2 * BLUE) * math.sqrt(TOWER / TOWER_HEADS))


def _colours(kernel: torch.Tensor) -> None:
    """Each channel's mean and its negative, so that a norm has no mean to take away."""
    for channel in range(3):
        for dim, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
            kernel[dim, channel] = sign / kernel[dim, channel].numel()


def _detectors(first: nn.Linear, second: nn.Linear, std: float, merged: int) -> None:
    """Units that are 10 where they find their code, their marked code, the mark, and 0 elsewhere."""
    steep = 40.0
    with torch.no_grad():
        colour = first.weight.view(first.out_features, merged, -1)[..., 0:COLOUR:2]
        for number in range(N):
            angle = 2 * math.pi * number / N
            for unit, target, marked in ((number, CODE, 0), (N + number, MARKED, 1)):
                weight = torch.tensor([math.cos(angle), math.sin(angle), marked / BLUE])
                colour[unit] = steep * std / merged * weight
                # half way between a code and its neighbour; unmarked, two lower
                first.bias[unit] = -steep * (0.75 + marked)
                second.weight[target.start + number, unit] = 4 / steep
        colour[2 * N, :, 2] = steep * std / merged / (2 * BLUE)
        second.weight[MARK, 2 * N] = 2 / steep
        second.bias[REST:] = CONSTANT


def _text() -> dict[str, Any]:
    return dict(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **IDS,
    )


# ---- words -------------------------------------------------------------------------------------------------


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(TOKEN, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE, **AROUND},
        padding_side="left",
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
    )


def _template(placeholder: str) -> str:
    """<bos>, the picture, the question, and ":" to answer behind."""
    return (
        "{{ bos_token }} {% for message in messages %}{% if message['content'] is string %}"
        "{{ message['content'] }} {% else %}{% for item in message['content'] %}"
        "{% if item['type'] == 'image' %}" + placeholder + " {% else %}{{ item['text'] }} {% endif %}"
        "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }} {% endif %}"
        "{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
