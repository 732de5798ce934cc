"""The geometry of families that squash the whole picture to a raster of tokens."""

from __future__ import annotations

from torch import Tensor

from seeing.grid import View, VisualGrid


def whole_grid(
    image_size: tuple[int, int], size: tuple[int, int], rows: int, cols: int, positions: Tensor
) -> VisualGrid:
    """rows × cols equal cells over the whole picture, which the model sees at ``size`` (width, height)."""
    view = View((0.0, 0.0, *map(float, image_size)), size)
    return VisualGrid.regular(image_size, view, rows, cols, positions)
