"""Gemma 4: pictures at their own aspect ratio, patches pooled k×k into one token.

Geometry. Both sides are rounded down to multiples of patch × pool within a budget of patches; the picture is
squashed to that, and k×k patches are averaged into one token, in reading order. The tower's rows are
padded to the budget.

Traps. Norms sit on the output of both branches of a text layer; a third branch adds the per-layer inputs
(``ple_out``), and the sum is multiplied by ``layer_scalar``. Layers of full attention have wider heads than
sliding ones, and the last layers may reuse the keys and values of an earlier one. Image tokens see each other
both ways in sliding layers where the configuration says so, which needs ``mm_token_type_ids``. The scaling
of scores is 1. Embeddings of words are scaled by √d_model. Some towers clip what their linear maps take and
give, so that the heads do not add up to what attention adds.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.families.patches import Patches, split
from seeing.families.squashed import whole_grid
from seeing.families.stacks import decoder_stack, raster_tower
from seeing.grid import VisualGrid

_CLIPPED = "the tower's output projections clip what they take and give, so no head has a share of its own"


class Gemma4(Family):
    """`Gemma4ForConditionalGeneration`, pictures only."""

    name = "gemma4"
    skips_rows = True
    model_types = frozenset({"gemma4"})
    required = ("mm_token_type_ids", "image_position_ids")
    pixels = ("pixel_values", "image_position_ids")

    def text(self, model: nn.Module) -> Stack:
        decoder = model.get_decoder()
        attn = decoder.layers[0].self_attn
        n_kv_heads = attn.k_proj.out_features // attn.head_dim
        return decoder_stack(decoder, d_head=attn.head_dim, n_kv_heads=n_kv_heads)

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        lacks = {"attn.result": _CLIPPED} if tower.config.use_clipped_linears else {}
        return raster_tower(tower, out="o_proj", down="down_proj", d_head=tower.config.head_dim, lacks=lacks)

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.embed_vision

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        rows, cols, _ = _raster(processor.image_processor, image_size)
        return rows * cols

    def patches(self, model: nn.Module, processor: Any, grid: VisualGrid, length: int) -> tuple[Patches, ...]:
        pool = processor.image_processor.pooling_kernel_size
        if len(grid) * pool**2 > length:
            raise FamilyContractError(
                f"gemma4: {len(grid)} image tokens of {pool}×{pool} patches, but the tower has {length}"
            )
        return (Patches(split(grid, grid.levels[0], pool)),)

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        rows, cols, side = _raster(processor.image_processor, image_size)
        return whole_grid(image_size, (cols * side, rows * side), rows, cols, positions)


def _raster(settings: Any, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """(rows, columns) of tokens and the pixels of a token's side, by the image processor's own rule."""
    rule = next(
        (
            getattr(sys.modules[kind.__module__], "get_aspect_ratio_preserving_size", None)
            for kind in type(settings).__mro__
            if hasattr(sys.modules[kind.__module__], "get_aspect_ratio_preserving_size")
        ),
        None,
    )
    if rule is None:
        raise FamilyContractError(f"gemma4: {type(settings).__name__} is no image processor of Gemma 4")
    width, height = image_size
    pool = settings.pooling_kernel_size
    height, width = rule(
        height=height,
        width=width,
        patch_size=settings.patch_size,
        max_patches=settings.max_soft_tokens * pool**2,
        pooling_kernel_size=pool,
    )
    side = settings.patch_size * pool
    return height // side, width // side, side
