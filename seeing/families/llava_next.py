"""LLaVA-NeXT and LLaVA-OneVision: the whole picture once, then the same picture in tiles.

Geometry. The first block of tokens is the whole picture squashed into one tile. For the second, the
picture is scaled into the best canvas of ``image_grid_pinpoints`` with its aspect kept, padded with
equal borders, and cut into tiles. The patches of all tiles are put back together as one raster, its
rows or columns that hold nothing but border are cut off, and a learned ``image_newline`` follows
each row. OneVision shrinks a raster of far more than ``anyres_max_N`` tiles' patches bilinearly.

Traps. The newline has an image token of its own in ``input_ids`` and no place. Borders are cut off in
whole patches, on both sides alike, so the outer rows may hold some border; in a picture that is very
long and thin nothing is left but the first block. Where the patches don't fill a tile (378 of 384
pixels in the released OneVision), its last pixels are in no token. A token of a shrunk raster mixes
two patches a side, its box is the share of the raster that is its own. OneVision tiles a picture only
where it is alone in its row: of several, each is padded to a square and squashed into one tile, with one
newline behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError
from seeing.families.patches import Patches, class_tokens, split
from seeing.families.stacks import DecoderAndTower
from seeing.grid import Level, View, VisualGrid, cells
from seeing.rectangles import ROUNDING


class LlavaNext(DecoderAndTower):
    """`LlavaNextForConditionalGeneration`."""

    name = "llava_next"
    model_types = frozenset({"llava_next"})
    required = ("image_sizes",)
    packs = True

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        tile = self._tile(model, processor)
        rows, cols = self._raster(model, Canvas.of(processor.image_processor, tile, image_size))
        return tile.patches**2 + rows * (cols + 1)

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        tile = self._tile(model, processor)
        canvas = Canvas.of(processor.image_processor, tile, image_size)
        rows, cols = self._raster(model, canvas)
        n = tile.patches
        boxes = [
            cells(image_size, View.cut(image_size, (tile.side,) * 2, (0, 0) + (n * tile.patch,) * 2), n, n)
        ]
        levels = [Level("thumbnail", n, n)]
        if rows and cols:
            levels.append(Level("tile", rows, cols, start=n * n, stride=cols + 1))
        boxes.append(canvas.boxes(rows, cols))
        return VisualGrid(
            image_size=image_size,
            positions=positions,
            boxes=torch.cat(boxes),
            view=View.cut(image_size, canvas.resized),
            levels=tuple(levels),
        )

    def patches(self, model: nn.Module, processor: Any, grid: VisualGrid, length: int) -> tuple[Patches, ...]:
        """The whole picture, then the canvas tile by tile, borders and all."""
        tile = self._tile(model, processor)
        cls, n = class_tokens(model.get_encoder(modality="image")), tile.patches
        if n * n + cls != length:
            raise FamilyContractError(
                f"{self.name}: a tile has {n}×{n} patches and {cls} class token, the tower {length} tokens"
            )
        views = Canvas.of(processor.image_processor, tile, grid.image_size).views()
        slots, known = cls + torch.arange(n * n), tuple(range(cls))
        tiles = [VisualGrid.regular(grid.image_size, view, n, n, slots, name="tile") for view in views]
        return tuple(Patches(one, known) for one in (split(grid, grid.levels[0], 1, cls), *tiles))

    def _raster(self, model: nn.Module, canvas: Canvas) -> tuple[int, int]:
        """(rows, cols) of the tokens of the tiles, newlines not counted."""
        return tuple(canvas.kept(axis) for axis in (1, 0))

    def _tile(self, model: nn.Module, processor: Any) -> Tile:
        settings, config = processor.image_processor, model.config.vision_config
        size, crop = dict(settings.size), dict(settings.crop_size or {})
        side = crop.get("height") or size.get("height") or size.get("shortest_edge")
        if side != config.image_size:
            raise FamilyContractError(
                f"{self.name}: the image processor makes tiles of {side} pixels, the vision tower takes "
                f"{config.image_size}; give the processor of this checkpoint"
            )
        return Tile(side, config.patch_size)


class LlavaOnevision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`."""

    name = "llava_onevision"
    model_types = frozenset({"llava_onevision"})

    def among(self, n_images: int) -> Family:
        return self if n_images == 1 else OnevisionSquares()

    def _raster(self, model: nn.Module, canvas: Canvas) -> tuple[int, int]:
        rows, cols = super()._raster(model, canvas)
        most = int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (most * canvas.tile.patches**2))
        return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)


class OnevisionSquares(LlavaOnevision):
    """LLaVA-OneVision where a row has several pictures: one padded square each, and a newline."""

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        return self._tile(model, processor).patches ** 2 + 1

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        tile, longest = self._tile(model, processor), max(image_size)
        x0, y0 = (-((longest - length) // 2) for length in image_size)
        seen = longest * tile.patches * tile.patch / tile.side
        view = View((float(x0), float(y0), x0 + seen, y0 + seen), (tile.patches * tile.patch,) * 2)
        boxes = cells(image_size, view, tile.patches, tile.patches)
        newline = torch.full((1, 4), torch.nan, dtype=torch.float64)
        levels = (Level("patch", tile.patches, tile.patches),)
        return VisualGrid(image_size, positions, torch.cat([boxes, newline]), view, levels)

    def patches(self, model: nn.Module, processor: Any, grid: VisualGrid, length: int) -> tuple[Patches, ...]:
        return Family.patches(self, model, processor, grid, length)


@dataclass(frozen=True)
class Tile:
    """A square tile of ``side`` pixels, in patches of ``patch`` pixels."""

    side: int
    patch: int

    @property
    def patches(self) -> int:
        """Patches a side."""
        return self.side // self.patch


@dataclass(frozen=True)
class Canvas:
    """A picture scaled into the middle of a canvas of tiles. Sizes and counts are (x, y)."""

    tile: Tile
    image_size: tuple[int, int]
    resized: tuple[int, int]
    tiles: tuple[int, int]

    @classmethod
    def of(cls, settings: Any, tile: Tile, image_size: tuple[int, int]) -> Canvas:
        """The canvas that the image processor takes for a picture of this size."""
        canvas = best_canvas(image_size, [(width, height) for height, width in settings.image_grid_pinpoints])
        scales = [whole / length for whole, length in zip(canvas, image_size)]
        tight = 0 if scales[0] < scales[1] else 1
        resized = [min(math.ceil(length * scales[tight]), whole) for length, whole in zip(image_size, canvas)]
        resized[tight] = canvas[tight]
        return cls(tile, image_size, tuple(resized), tuple(length // tile.side for length in canvas))

    def kept(self, axis: int) -> int:
        """How many columns (axis 0) or rows (axis 1) of patches stay when the borders are cut off."""
        return self.tiles[axis] * self.tile.patches - 2 * self._cut(axis)

    def boxes(self, rows: int, cols: int) -> Tensor:
        """(rows · (cols + 1), 4) boxes of the raster's tokens, each row with its newline, row by row."""
        xs, ys = self._edges(0, cols), self._edges(1, rows)
        boxes = np.full((rows, cols + 1, 4), np.nan)
        boxes[:, :cols, [0, 2]] = xs[None]
        boxes[:, :cols, [1, 3]] = ys[:, None]
        boxes[(boxes[..., 2:] - boxes[..., :2] <= ROUNDING).any(-1)] = np.nan
        return torch.from_numpy(boxes.reshape(-1, 4))

    def views(self) -> list[View]:
        """What the patches of each tile cover, row by row; borders lie outside the picture."""
        side, seen = self.tile.side, self.tile.patches * self.tile.patch
        left, top = ((count * side - length) // 2 for count, length in zip(self.tiles, self.resized))
        corners = [
            (col * side - left, row * side - top)
            for row in range(self.tiles[1])
            for col in range(self.tiles[0])
        ]
        return [View.cut(self.image_size, self.resized, (x, y, x + seen, y + seen)) for x, y in corners]

    def _cut(self, axis: int) -> int:
        """Patches that are cut off at each of the two ends of an axis."""
        whole = [count * self.tile.patches for count in self.tiles]
        wider = self.image_size[0] / self.image_size[1] > whole[0] / whole[1]
        if axis != int(wider):
            return 0
        inside = int(round(self.image_size[axis] * (whole[1 - axis] / self.image_size[1 - axis]), 7))
        return (whole[axis] - inside) // 2

    def _edges(self, axis: int, count: int) -> np.ndarray:
        """(count, 2) edges in pixels of the original, of ``count`` equal parts of the patches that stay."""
        side, patch, n = self.tile.side, self.tile.patch, self.tile.patches
        marks = self._cut(axis) + self.kept(axis) * np.arange(count + 1) / max(count, 1)
        # a part ends in the patch that it still holds, and begins in the next: tiles may have a gap between
        first, last = np.floor(marks[:-1] + ROUNDING), np.ceil(marks[1:] - ROUNDING) - 1
        starts, ends = (
            tile * side + (mark - tile * n) * patch
            for tile, mark in ((first // n, marks[:-1]), (last // n, marks[1:]))
        )
        length, inside = self.image_size[axis], self.resized[axis]
        border = (self.tiles[axis] * side - inside) // 2
        return np.clip((np.stack([starts, ends], 1) - border) * length / inside, 0, length)


def best_canvas(image_size: tuple[int, int], canvases: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The canvas on which most of the picture's pixels stay, and of these the one with least to spare."""

    def worth(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(whole / length for whole, length in zip(canvas, image_size))
        pixels = min(math.prod(int(length * scale) for length in image_size), math.prod(image_size))
        return pixels, pixels - math.prod(canvas)

    return max(canvases, key=worth)
