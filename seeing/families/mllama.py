"""Llama 3.2 Vision: text layers between which others read the picture by cross-attention.

Geometry. The picture is one token of ``input_ids``. It is scaled with its aspect kept into the best
canvas of at most ``max_image_tiles`` tiles, put into the upper left corner, and the rest is padding;
tiles are read row by row. The keys of the cross-attention layers are, for each picture of the row,
``max_num_tiles`` tiles of 1 + P keys: a CLS key, then the patches. A picture that needs fewer tiles
leaves its last ones empty.

Traps. The keys of empty tiles are masked, those of padding in a tile that is used are not. Nor does
the tower keep padding out: its mask only parts padding from padding, so patches attend to empty tiles
and to the rows that fill a tile up to a multiple of 8. The tower is two stacks one after the other, the
second gated, and the projector reads hidden states of several layers of the first beside its end. The
cross-attention layers have a ``cross_attn`` in the place of ``self_attn``, and tanh gates on both
branches, which are zero in a fresh model: there the picture has no effect. A row's tokens ahead of
its picture are not kept from it: their mask is lifted, so that they attend to every key of the row,
empty tiles too, and what they lose is the MLP branch of those layers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.families.patches import Patches, joined, split
from seeing.families.stacks import decoder_stack
from seeing.grid import Level, View, VisualGrid, cells


class Mllama(Family):
    """`MllamaForConditionalGeneration`."""

    name = "mllama"
    model_types = frozenset({"mllama"})
    required = ("aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")
    pixels = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")

    def text(self, model: nn.Module) -> Stack:
        return decoder_stack(model.get_decoder(), attn=("self_attn", "cross_attn"))

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        config = tower.config
        return Stack(
            name="vision",
            layers=(*tower.transformer.layers, *tower.global_transformer.layers),
            n_heads=config.attention_heads,
            n_kv_heads=config.attention_heads,
            d_head=config.hidden_size // config.attention_heads,
            d_model=config.hidden_size,
            down="fc2",
        )

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.multi_modal_projector

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        return 1

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        view = View((0.0, 0.0, *map(float, image_size)), image_size)
        return VisualGrid.regular(image_size, view, 1, 1, positions, name="image")

    def cross_grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], index: int
    ) -> VisualGrid:
        config, settings = model.config.vision_config, processor.image_processor
        side, n = config.image_size, config.image_size // config.patch_size
        if (settings.size["height"], settings.max_image_tiles) != (side, config.max_num_tiles):
            raise FamilyContractError(
                f"mllama: the image processor makes up to {settings.max_image_tiles} tiles of "
                f"{settings.size['height']} pixels, the vision tower takes {config.max_num_tiles} of {side}; "
                f"give the processor of this checkpoint"
            )
        rows, cols = best_tiles(image_size, side, config.max_num_tiles)
        resized = fitted(image_size, side, (cols * side, rows * side))
        nowhere = torch.full((1, 4), torch.nan, dtype=torch.float64)
        seen = n * config.patch_size
        boxes, levels = [], []
        for tile in range(rows * cols):
            y, x = (side * number for number in divmod(tile, cols))
            view = View.cut(image_size, resized, (x, y, x + seen, y + seen))
            boxes += [nowhere, cells(image_size, view, n, n)]
            levels.append(Level("tile", n, n, start=tile * (1 + n * n) + 1))
        keys = config.max_num_tiles * (1 + n * n)
        boxes.append(nowhere.expand(keys - sum(map(len, boxes)), 4))
        return VisualGrid(
            image_size=image_size,
            positions=index * keys + torch.arange(keys),
            boxes=torch.cat(boxes),
            view=View.cut(image_size, resized),
            levels=tuple(levels),
        )

    def patches(self, model: nn.Module, processor: Any, grid: VisualGrid, length: int) -> tuple[Patches, ...]:
        """All tiles in one sequence: of each its class token, the patches, and padding to a multiple of 8."""
        config = model.config.vision_config
        n = config.image_size // config.patch_size
        tile = -(-(1 + n * n) // 8) * 8
        if config.max_num_tiles * tile != length:
            raise FamilyContractError(
                f"mllama: {config.max_num_tiles} tiles of {tile} tokens each, but the tower has {length}"
            )
        starts = tile * np.arange(len(grid.levels))
        tiles = [split(grid, level, 1, start=1) for level in grid.levels]
        return (Patches(joined(tiles, starts), tuple(starts.tolist())),)

    def tokenized(self, processor: Any, text: str) -> str:
        """The processor puts the first token behind the pictures of a text that lacks it."""
        if processor.bos_token in text:
            return text
        words = text
        while words.startswith(processor.image_token):
            words = words.removeprefix(processor.image_token)
        return text.removesuffix(words) + processor.bos_token + words


def best_tiles(image_size: tuple[int, int], side: int, most: int) -> tuple[int, int]:
    """(rows, cols) of the canvas that scales the picture up least, or else down least; the smallest such."""
    width, height = image_size
    counts = range(1, most + 1)
    scale = {
        (rows, cols): min(side * rows / height, side * cols / width)
        for rows in counts
        for cols in counts
        if rows * cols <= most
    }
    up = [value for value in scale.values() if value >= 1]
    best = min(up) if up else max(scale.values())
    return min((tiles for tiles, value in scale.items() if value == best), key=math.prod)


def fitted(image_size: tuple[int, int], side: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the picture on its canvas: as it is where it fits, but of a tile's side at least."""
    target = [min(max(length, side), whole) for length, whole in zip(image_size, canvas)]
    scale = [whole / length for whole, length in zip(target, image_size)]
    tight = 0 if scale[0] < scale[1] else 1
    loose = 1 - tight
    resized = [0, 0]
    resized[tight] = target[tight]
    resized[loose] = min(math.floor(image_size[loose] * scale[tight]) or 1, target[loose])
    return resized[0], resized[1]
