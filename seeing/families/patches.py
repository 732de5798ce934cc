"""The patches of a vision tower: where they lie in the picture, and where in the tower's sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from seeing.grid import Level, VisualGrid

#: What towers call the embedding of a token that stands in front of the patches and is none of them.
CLASS_TOKENS = ("class_embedding", "cls_token")


@dataclass(frozen=True)
class Patches:
    """The patches of one picture, or of one tile of it, that attend to each other.

    Attributes:
        grid: their places; its ``positions`` count the tower's own sequence.
        cls: where in that sequence the class tokens stand; none in a tower without.
    """

    grid: VisualGrid
    cls: tuple[int, ...] = ()

    def shifted(self, offset: int) -> Patches:
        """The same patches ``offset`` slots further on."""
        return Patches(self.grid.shifted(offset), tuple(slot + offset for slot in self.cls))


def class_tokens(tower: nn.Module) -> int:
    """How many tokens stand in front of a tower's patches: 1 or 0."""
    return int(any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in tower.named_parameters()))


def split(grid: VisualGrid, level: Level, merge: int, start: int = 0) -> VisualGrid:
    """The ``merge`` × ``merge`` patches of each token of a level, as one raster in reading order.

    Their slots count from ``start``. Raises ValueError where tokens that were clipped to the picture would
    have to be cut: it is not known where their patches end.
    """
    boxes = grid.boxes[torch.from_numpy(level.tokens)]
    if merge > 1:
        sides = boxes[..., 2:] - boxes[..., :2]
        if not torch.allclose(sides, sides[:1, :1].expand_as(sides), rtol=0, atol=1e-6):
            raise ValueError(f"the tokens of {level} have different sizes, so they can't be cut into patches")
    near, far = boxes[..., :2], boxes[..., 2:]
    # row inner_row col inner_col corner
    steps = torch.stack(torch.meshgrid(*[torch.arange(merge)] * 2, indexing="ij")[::-1], -1)[:, None]
    low, high = (
        near[:, None, :, None] + (far - near)[:, None, :, None] * (steps + side) / merge for side in (0, 1)
    )
    rows, cols = level.rows * merge, level.cols * merge
    return VisualGrid(
        image_size=grid.image_size,
        positions=start + torch.arange(rows * cols),
        boxes=torch.cat([low, high], -1).reshape(-1, 4),
        view=grid.view,
        levels=(Level(level.name, rows, cols),),
    )


def joined(grids: list[VisualGrid], starts: np.ndarray) -> VisualGrid:
    """Rasters of one picture that stand in one sequence, each from its start on."""
    sizes = np.cumsum([0, *map(len, grids)])
    (levels,) = zip(*(one.levels for one in grids))
    return VisualGrid(
        image_size=grids[0].image_size,
        positions=torch.cat([one.positions + int(start) for one, start in zip(grids, starts)]),
        boxes=torch.cat([one.boxes for one in grids]),
        view=grids[0].view,
        levels=tuple(
            Level(level.name, level.rows, level.cols, start=int(size)) for level, size in zip(levels, sizes)
        ),
    )
