"""Idefics 3 and SmolVLM: the picture in square tiles, and after them the picture as a whole.

Geometry. The longer side is scaled to ``size["longest_edge"]``, then both sides are squashed to the next
multiples of ``max_image_size["longest_edge"]``, a tile's side. Tiles follow row by row, and last comes the
picture squashed to one tile (the "global" image); alone, where one tile holds all or ``do_image_splitting``
is off. ``scale_factor`` squared patches are one token (pixel shuffle), in reading order.

Traps. A small picture is scaled up first, so it has as many tiles as a large one of its aspect. Words such
as ``<row_1_col_1>`` and line breaks stand between the tiles and are no image tokens. The connector reads the
tower's final norm. A tile of nothing but zeros is taken for padding of the batch and left out by the model;
no picture makes one while values are normalised by a mean of one half.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.families.stacks import decoder_stack, raster_tower
from seeing.families.tiles import Tile, n_tiles, tiled_grid
from seeing.grid import VisualGrid

#: No side is scaled beyond this many pixels, whatever the image processor's settings say.
LONGEST = 4096


class Idefics3(Family):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`."""

    name = "idefics3"
    model_types = frozenset({"idefics3", "smolvlm"})
    pixels = ("pixel_values", "pixel_attention_mask")

    def text(self, model: nn.Module) -> Stack:
        return decoder_stack(model.get_decoder())

    def vision(self, model: nn.Module) -> Stack:
        return raster_tower(model.get_encoder(modality="image"))

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.connector

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        tile = self._tile(model, processor)
        return n_tiles(self._canvas(processor.image_processor, image_size)) * tile.tokens

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        canvas = self._canvas(processor.image_processor, image_size)
        return tiled_grid(image_size, self._tile(model, processor), canvas, positions)

    def _tile(self, model: nn.Module, processor: Any) -> Tile:
        side = processor.image_processor.max_image_size["longest_edge"]
        tile = Tile(side, model.config.vision_config.patch_size, model.config.scale_factor)
        return tile.check(self.name, processor.image_seq_len)

    def _canvas(self, settings: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """(columns, rows) of tiles."""
        if not settings.do_image_splitting:
            return 1, 1
        width, height = self._resized(settings, image_size)
        side, aspect = settings.max_image_size["longest_edge"], width / height
        if width >= height:
            cols = math.ceil(width / side)
            return cols, math.ceil(int(cols * side / aspect) / side)
        rows = math.ceil(height / side)
        return math.ceil(int(rows * side * aspect) / side), rows

    def _resized(self, settings: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after the processor's first resize."""
        if not settings.do_resize:
            return image_size
        size = {key: value for key, value in dict(settings.size).items() if value}
        if set(size) == {"height", "width"}:
            return size["width"], size["height"]
        if set(size) != {"longest_edge"}:
            raise FamilyContractError(
                f"{self.name}: the image processor resizes to {size}; this family reads "
                f"{{'longest_edge'}} or {{'height', 'width'}}"
            )
        width, height = image_size
        aspect = width / height
        if wide := width >= height:
            width, height = size["longest_edge"], int(size["longest_edge"] / aspect)
        else:
            width, height = int(size["longest_edge"] * aspect), size["longest_edge"]
        # the shorter side is made even, and never empty
        width, height = (width, max(height + height % 2, 1)) if wide else (max(width + width % 2, 1), height)
        aspect = width / height
        if max(width, height) <= LONGEST:
            return width, height
        return (LONGEST, max(int(LONGEST / aspect), 1)) if wide else (max(int(LONGEST * aspect), 1), LONGEST)
