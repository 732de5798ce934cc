"""Aya Vision and Command A Vision: a SigLIP tower over square tiles, Cohere's decoder.

Geometry. The picture is squashed to a canvas of tiles; they follow row by row, and where there are
several, the picture squashed to one tile comes last. ``downsample_factor`` squared patches are one token
(pixel shuffle), in reading order. Aya Vision takes the canvas of the nearest aspect, as InternVL does;
Command A Vision (``cohere2_vision``) the one to which the picture is scaled up least, or, if it is larger
than all of them, scaled down least.

Traps. Cohere's decoder is parallel: attention and MLP read the same normed stream, so there is no
``resid_mid``. Its layers with a sliding window have rotary positions, the others none. Words such as
``TILE_1`` stand between the tiles of Aya Vision, a line break behind each of Command A Vision: neither is
an image token. What stands for a picture in the text (``<image>``) is another token than the image token
in Aya Vision, the same in Command A Vision. Aya Vision reads the stream of ``vision_feature_layer``,
Command A Vision the tower's final norm.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from seeing.families.internvl import nearest_canvas
from seeing.families.stacks import DecoderAndTower
from seeing.families.tiles import Tile, n_tiles, side_of, tiled_grid
from seeing.grid import VisualGrid


class _Cohere(DecoderAndTower):
    """What the two share."""

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        return n_tiles(self._canvas(processor, image_size)) * self._tile(model, processor).tokens

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        canvas = self._canvas(processor, image_size)
        return tiled_grid(image_size, self._tile(model, processor), canvas, positions)

    def _tile(self, model: nn.Module, processor: Any) -> Tile:
        side = side_of(self.name, processor.image_processor.size)
        tile = Tile(side, model.config.vision_config.patch_size, model.config.downsample_factor)
        return tile.check(self.name, self._written(processor))

    @abstractmethod
    def _canvas(self, processor: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """(columns, rows) of tiles."""

    @abstractmethod
    def _written(self, processor: Any) -> int:
        """The image tokens that the processor writes for a tile."""


class AyaVision(_Cohere):
    """`AyaVisionForConditionalGeneration`."""

    name = "aya_vision"
    model_types = frozenset({"aya_vision"})

    def _canvas(self, processor: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        return nearest_canvas(self.name, processor, image_size)

    def _written(self, processor: Any) -> int:
        return (processor.img_size // processor.patch_size) ** 2


class Cohere2Vision(_Cohere):
    """`Cohere2VisionForConditionalGeneration`."""

    name = "cohere2_vision"
    model_types = frozenset({"cohere2_vision"})

    def _canvas(self, processor: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        settings = processor.image_processor
        if not settings.crop_to_patches:
            return 1, 1
        return closest_canvas(image_size, side_of(self.name, settings.size), settings.max_patches)

    def _written(self, processor: Any) -> int:
        return int(processor.patch_size**2)


def closest_canvas(image_size: tuple[int, int], side: int, most: int) -> tuple[int, int]:
    """(columns, rows) of the canvas of at most ``most`` tiles that needs the picture scaled up least.

    Down least where every canvas needs that; of canvases alike the one of fewest tiles.
    """
    counts = range(1, most + 1)
    canvases = [(cols, rows) for cols in counts for rows in counts if cols * rows <= most]
    canvases.sort(key=lambda canvas: canvas[0] * canvas[1])
    scales = {
        canvas: min(count * side / length for count, length in zip(canvas, image_size)) for canvas in canvases
    }
    up = [canvas for canvas in canvases if scales[canvas] >= 1]
    return min(up, key=scales.get) if up else max(canvases, key=scales.get)
