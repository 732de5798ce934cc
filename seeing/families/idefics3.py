"""Idefics 3 and SmolVLM: a grid of square tiles, then the whole picture as one more.

Geometry. The longest edge is scaled to ``size`` with the aspect kept, then both sides are rounded up to
whole tiles and the picture is squashed to that. Tiles come row by row, the whole picture squashed into
one tile comes last; where one tile is enough, it is the only one. A tile's patches are merged
scale_factor × scale_factor into a token, in reading order.

Traps. The picture is enlarged where it is small, so that the number of tiles depends on its aspect alone.
Between the tiles are words (``<row_1_col_1>``, line ends): the image tokens of a picture are not
contiguous. A batch pads each row's tiles with black ones, which the model drops ahead of the tower.
The tower's last norm lies between its last layer and the connector.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from seeing.families.family import Family, Stack
from seeing.families.stacks import raster_tower
from seeing.families.tiles import check_side, n_tiles, square, text_stack, tiled_grid
from seeing.grid import VisualGrid

#: No picture is scaled beyond this side, whatever ``size`` says: a constant of the image processor.
LARGEST = 4096


class Idefics3(Family):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`."""

    name = "idefics3"
    model_types = frozenset({"idefics3", "smolvlm"})
    pixels = ("pixel_values", "pixel_attention_mask")

    def text(self, model: nn.Module) -> Stack:
        return text_stack(model)

    def vision(self, model: nn.Module) -> Stack:
        return raster_tower(model.get_encoder(modality="image"))

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.connector

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        side, _, n = self._tile(model, processor)
        return n_tiles(tiles(processor.image_processor, side, image_size)) * n * n

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        side, covered, n = self._tile(model, processor)
        found = tiles(processor.image_processor, side, image_size)
        return tiled_grid(image_size, found, side, covered, n, positions)

    def _tile(self, model: nn.Module, processor: Any) -> tuple[int, int, int]:
        """A tile's side in pixels, how many of them the patches cover, and tokens a side."""
        config = model.config.vision_config
        side, patch = square(config.image_size, "image_size"), square(config.patch_size, "patch_size")
        check_side(self.name, processor.image_processor.max_image_size["longest_edge"], side)
        patches = side // patch
        return side, patches * patch, patches // model.config.scale_factor


def tiles(settings: Any, side: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, cols) of tiles, as the image processor makes them."""
    if not settings.do_image_splitting:
        return 1, 1
    width, height = scaled(settings, image_size)
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = int(width / aspect)
    else:
        height = math.ceil(height / side) * side
        width = int(height * aspect)
    return math.ceil(height / side), math.ceil(width / side)


def scaled(settings: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) after the first resize, which keeps the aspect but for rounding."""
    width, height = image_size
    if not settings.do_resize:
        return width, height
    longest = settings.size["longest_edge"]
    for most, even in ((longest, True), (LARGEST, False)):
        if not even and max(width, height) <= most:
            continue
        aspect = width / height
        if width >= height:
            width, height = most, int(most / aspect)
            height += height % 2 if even else 0
        else:
            width, height = int(most * aspect), most
            width += width % 2 if even else 0
        width, height = max(width, 1), max(height, 1)
    return width, height
