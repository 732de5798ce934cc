"""The geometry of families that squash the picture to a canvas of square tiles, and read tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seeing.families.family import FamilyContractError
from seeing.grid import Level, View, VisualGrid, cells


@dataclass(frozen=True)
class Tile:
    """A square tile: ``side`` pixels, in patches of ``patch`` pixels, ``merge`` squared of them a token."""

    side: int
    patch: int
    merge: int

    @property
    def across(self) -> int:
        """Tokens a side."""
        return self.side // self.patch // self.merge

    @property
    def tokens(self) -> int:
        return self.across**2

    @property
    def seen(self) -> int:
        """The pixels a side that the tokens cover; what doesn't fill a last patch is dropped."""
        return self.across * self.merge * self.patch

    def check(self, name: str, written: int) -> Tile:
        """The tile itself, if the processor writes as many image tokens as the tower gives features."""
        if written != self.tokens:
            raise FamilyContractError(
                f"{name}: the processor writes {written} image tokens a tile, a tile of {self.side} pixels "
                f"gives {self.tokens} ({self.patch}-pixel patches, {self.merge}×{self.merge} a token); give "
                f"the processor of this checkpoint"
            )
        return self


def side_of(name: str, size: Any) -> int:
    """The side of the square that an image processor's ``size`` states."""
    stated = {key: value for key, value in dict(size).items() if value}
    if set(stated) != {"height", "width"} or stated["height"] != stated["width"]:
        raise FamilyContractError(
            f"{name}: the image processor makes tiles of {stated}; this family reads squares, "
            f"{{'height', 'width'}} alike"
        )
    return stated["height"]


def one_number(value: int | Sequence[int]) -> int:
    """A size that a configuration may state as a pair."""
    return value if isinstance(value, int) else value[0]


def n_tiles(canvas: tuple[int, int]) -> int:
    """Tiles of a canvas of (columns, rows), the picture as a whole behind them counted in."""
    cols, rows = canvas
    return rows * cols + (rows * cols > 1)


def tiled_grid(
    image_size: tuple[int, int], tile: Tile, canvas: tuple[int, int], positions: Int[Tensor, " token"]
) -> VisualGrid:
    """Tiles row by row, each a raster of its own, and last the picture as a whole in one more tile.

    ``canvas`` counts (columns, rows) of tiles. A canvas of one tile is the picture as a whole.
    """
    cols, rows = canvas
    n, side, seen = tile.across, tile.side, tile.seen
    last = View.cut(image_size, (side, side), (0, 0, seen, seen))
    if rows * cols == 1:
        return VisualGrid.regular(image_size, last, n, n, positions)
    corners = [(col * side, row * side) for row in range(rows) for col in range(cols)]
    resized = (cols * side, rows * side)
    views = [View.cut(image_size, resized, (x, y, x + seen, y + seen)) for x, y in corners]
    levels = [Level("tile", n, n, start=index * n * n) for index in range(len(views))]
    return VisualGrid(
        image_size=image_size,
        positions=positions,
        boxes=torch.cat([cells(image_size, view, n, n) for view in [*views, last]]),
        view=View.cut(image_size, resized),
        levels=(*levels, Level("thumbnail", n, n, start=len(views) * n * n)),
    )
