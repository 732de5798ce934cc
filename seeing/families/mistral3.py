"""Mistral 3 and Pixtral: a Pixtral tower on pictures at their own resolution, with a break after every row.

Geometry. The picture is shrunk to fit the longest edge where it is larger; both sides are rounded up to
multiples of patch × merge, and it is squashed to that. One token is merge × merge patches (Pixtral: one),
in reading order.

Traps. ``[IMG_BREAK]`` after every row and ``[IMG_END]`` at the end are words, not image tokens: the image
tokens of a picture are not contiguous. Pixtral is a LLaVA by its ``model_type``; the tower's type tells. The
tower runs all pictures as one sequence under a mask of blocks. The image processor pads pictures to one
size, so ``image_sizes`` must be there.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.families.squashed import whole_grid
from seeing.families.stacks import decoder_stack
from seeing.grid import VisualGrid


class Mistral3(Family):
    """`Mistral3ForConditionalGeneration`: tokens of merge × merge patches."""

    name = "mistral3"
    model_types = frozenset({"mistral3"})
    required = ("image_sizes",)
    #: With so few tokens the model fails: transformers' Mistral 3 squeezes a single one away.
    least = 1
    pixels = ("pixel_values", "image_sizes")

    def text(self, model: nn.Module) -> Stack:
        return decoder_stack(model.get_decoder())

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        config = tower.config
        return Stack(
            name="vision",
            layers=tuple(tower.transformer.layers),
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_attention_heads,
            d_head=config.head_dim,
            d_model=config.hidden_size,
            attn="attention",
            mlp="feed_forward",
        )

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.multi_modal_projector

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        rows, cols, _ = _raster(processor, image_size)
        if rows * cols <= self.least:
            raise FamilyContractError(
                f"{self.name}: a picture of {image_size[0]}×{image_size[1]} becomes {rows}×{cols} tokens, "
                f"which transformers' model can't run; make it larger, or less narrow"
            )
        return rows * cols

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        rows, cols, side = _raster(processor, image_size)
        return whole_grid(image_size, (cols * side, rows * side), rows, cols, positions)


class Pixtral(Mistral3):
    """`LlavaForConditionalGeneration` with the Pixtral tower: one token a patch."""

    name = "pixtral"
    least = 0
    model_types = frozenset({"llava"})

    def speaks_for(self, config: Any) -> bool:
        return super().speaks_for(config) and config.vision_config.model_type == "pixtral"


def _raster(processor: Any, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """(rows, columns) of tokens and the pixels of a token's side, as the image processor has it."""
    size = processor.image_processor.size
    longest = size["longest_edge"]
    side = processor.patch_size * processor.spatial_merge_size
    width, height = image_size
    ratio = max(width / longest, height / longest)
    if ratio > 1:
        width, height = math.floor(width / ratio), math.floor(height / ratio)
    return (height - 1) // side + 1, (width - 1) // side + 1, side
