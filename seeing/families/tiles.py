"""Tile geometry that families share: the picture squashed into rows × cols tiles, then squashed once more.

The picture is resized without regard to its aspect so that it fills a canvas of whole tiles. Tiles come row by
row, and behind them the whole picture as one more tile, the thumbnail, if there was more than one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seeing.families.family import FamilyContractError, Stack
from seeing.families.stacks import decoder_stack
from seeing.grid import Level, View, VisualGrid, cells


def tiled_grid(
    image_size: tuple[int, int],
    tiles: tuple[int, int],
    side: int,
    covered: int,
    n: int,
    positions: Tensor,
) -> VisualGrid:
    """Tiles row by row, each n × n tokens in reading order, then the thumbnail.

    Args:
        tiles: (rows, cols) of the canvas; (1, 1) is the thumbnail alone.
        side: pixels of a tile's side.
        covered: how many of these the tokens cover; the patches may leave the last ones out.
    """
    rows, cols = tiles
    boxes, levels = [], []
    for row, col in ((row, col) for row in range(rows) for col in range(cols) if rows * cols > 1):
        x, y = col * side, row * side
        view = View.cut(image_size, (cols * side, rows * side), (x, y, x + covered, y + covered))
        levels.append(Level("tile", n, n, start=len(levels) * n * n))
        boxes.append(cells(image_size, view, n, n))
    levels.append(Level("thumbnail", n, n, start=len(levels) * n * n))
    whole = View.cut(image_size, (side, side), (0, 0, covered, covered))
    boxes.append(cells(image_size, whole, n, n))
    return VisualGrid(
        image_size=image_size,
        positions=positions,
        boxes=torch.cat(boxes),
        view=View.cut(image_size, (cols * side, rows * side)),
        levels=tuple(levels),
    )


def n_tiles(tiles: tuple[int, int]) -> int:
    """How many tiles a picture gives, the thumbnail counted."""
    rows, cols = tiles
    return rows * cols + 1 if rows * cols > 1 else 1


def setting(processor: Any, name: str) -> Any:
    """A setting of the image processor; what the processor's class says comes first, as in a call."""
    ours = getattr(processor, "images_kwargs", {})
    return ours[name] if name in ours else getattr(processor.image_processor, name)


def closest_aspect(
    image_size: tuple[int, int], side: int, least: int, most: int
) -> tuple[int, int]:
    """(rows, cols) of the canvas whose aspect is closest to the picture's.

    Of several as close, a larger one wins while the picture has more than half its pixels.
    """
    width, height = image_size
    best, worst = (1, 1), float("inf")
    for rows, cols in _canvases(least, most):
        distance = abs(width / height - cols / rows)
        if distance < worst or (distance == worst and width * height > 0.5 * side * side * rows * cols):
            best, worst = (rows, cols), distance
    return best


def least_scaled(image_size: tuple[int, int], side: int, most: int) -> tuple[int, int]:
    """(rows, cols) of the canvas that the picture fills with the least upscaling, or else downscaling."""
    width, height = image_size
    scales = {
        (rows, cols): min(cols * side / width, rows * side / height) for rows, cols in _canvases(1, most)
    }
    up = {tiles: scale for tiles, scale in scales.items() if scale >= 1}
    return min(up, key=up.get) if up else max(scales, key=scales.get)


def _canvases(least: int, most: int) -> list[tuple[int, int]]:
    """Every (rows, cols) of ``least`` to ``most`` tiles, fewest tiles first, then narrow before wide."""
    found = [
        (rows, cols)
        for cols in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= rows * cols <= most
    ]
    return sorted(found, key=lambda tiles: tiles[0] * tiles[1])


def text_stack(model: nn.Module) -> Stack:
    """The text stack, whose MLP may be a mixture of experts in some layer."""
    decoder = model.get_decoder()
    plain = all(hasattr(layer.mlp, "down_proj") for layer in decoder.layers)
    return decoder_stack(decoder, down="down_proj" if plain else None)


def square(value: Any, what: str) -> int:
    """A size that a configuration gives as a number or as a pair of equal ones."""
    sides = set(value) if isinstance(value, (tuple, list)) else {value}
    if len(sides) != 1:
        raise FamilyContractError(f"expected a square {what}, found {value}")
    return int(sides.pop())


def check_side(family: str, found: int, expected: int) -> None:
    """The image processor and the tower must agree on a tile's size."""
    if found != expected:
        raise FamilyContractError(
            f"{family}: the image processor makes tiles of {found} pixels, the vision tower takes {expected}; "
            f"give the processor of this checkpoint"
        )
