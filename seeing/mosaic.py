"""A canvas that is painted with tokens' boxes is a mosaic: few distinct rows, few distinct columns.

Painted pixel by pixel and blurred with a Gaussian of half its side, a canvas costs a convolution of thousands
of taps at each of its pixels. But between two edges of token boxes one row of pixels is like the next, and a
Gaussian blur works on rows and columns apart. So the blurred canvas is R · V · Cᵀ: the values V, one a piece,
between two thin matrices that say how much of each piece a blurred row, or column, holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from seeing.grid import Scores, VisualGrid, token_scores
from seeing.rectangles import coverage, edges

#: Beyond this many σ the Gaussian is cut off, as in `scipy.ndimage.gaussian_filter`.
TRUNCATE = 4.0

#: What lies beyond the canvas: the border's values go on, or the canvas mirrored; and numpy's name for it.
BEYOND = {"nearest": "edge", "reflect": "symmetric"}


@dataclass(frozen=True)
class Mosaic:
    """A canvas (height, width) in pieces: pixel (y, x) has the value of piece (rows[y], cols[x])."""

    values: Float[np.ndarray, "*batch down across"]
    rows: Int[np.ndarray, " height"]
    cols: Int[np.ndarray, " width"]

    @classmethod
    def of(cls, scores: Scores, grid: VisualGrid) -> Mosaic:
        """Token scores as constant boxes on the picture that the model sees (model pixels).

        A pixel has the mean of the tokens that cover it, weighted by how much of it each covers, and where no
        token does (padding) the lowest value that is painted. Raises ValueError for a score that is not
        finite, and where no token has a place.
        """
        scores, placed = token_scores(scores, len(grid)), grid.placed.numpy()
        if not placed.any():
            raise ValueError(f"no token of {grid} has a place: there is nothing to paint")
        if not np.isfinite(scores[..., placed]).all():
            raise ValueError(
                "expected a finite score for every token with a place, found NaN or infinity: draw weights "
                "(attention after the softmax), not masked logits"
            )
        scores = np.where(placed, scores, 0.0)
        boxes, (width, height) = grid.view.from_image(grid.boxes.numpy()), grid.view.size
        rasters = [edges(boxes[level.tokens]) for level in grid.levels]
        high, rows = _pieces([coverage(ys, height) for ys, _ in rasters])
        wide, cols = _pieces([coverage(xs, width) for _, xs in rasters])
        total, weight = 0.0, 0.0
        for level, down, across in zip(grid.levels, high, wide):
            total = total + down.T @ scores[..., level.tokens] @ across
            weight = weight + np.outer(down.sum(0), across.sum(0))
        covered = weight > 0
        values = total / np.where(covered, weight, 1.0)
        lowest = values.min(axis=(-2, -1), keepdims=True, where=covered, initial=np.inf)
        return cls(np.where(covered, values, lowest), rows, cols)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return len(self.rows), len(self.cols)

    def canvas(self) -> Float[np.ndarray, "*batch height width"]:
        """Pixel by pixel."""
        return self.values[..., self.rows[:, None], self.cols]

    def blurred(self, pixels: float, boundary: str) -> Float[np.ndarray, "*batch height width"]:
        """The canvas under a Gaussian of this σ: what `scipy.ndimage.gaussian_filter` makes of it."""
        if pixels == 0:
            return self.canvas()
        down, across = blur(self.rows, pixels, boundary), blur(self.cols, pixels, boundary)
        return down @ self.values @ across.T


def blur(
    pieces: Int[np.ndarray, " length"], sigma: float, boundary: str
) -> Float[np.ndarray, "length piece"]:
    """How much of each piece a blurred pixel holds, along one axis on which pixel i lies in ``pieces[i]``."""
    radius = int(TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    up_to = np.concatenate([[0.0], np.cumsum(kernel / kernel.sum())])
    beyond = np.pad(pieces, radius, mode=BEYOND[boundary])
    cuts = np.flatnonzero(np.diff(beyond)) + 1
    starts, ends = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(beyond)]])
    # A pixel's window begins at the pixel's own number in what is padded.
    windows = np.arange(len(pieces))[:, None]
    held = up_to[(ends - windows).clip(0, len(kernel))] - up_to[(starts - windows).clip(0, len(kernel))]
    return held @ np.eye(pieces.max() + 1)[beyond[starts]]


def _pieces(covered: list[np.ndarray]) -> tuple[list[np.ndarray], Int[np.ndarray, " length"]]:
    """Coverages (span, length) of several levels -> those of one pixel a piece, and each pixel's piece."""
    together = np.concatenate(covered)
    new = (together[:, 1:] != together[:, :-1]).any(0)
    first = np.concatenate([[0], np.flatnonzero(new) + 1])
    return [one[:, first] for one in covered], np.concatenate([[0], np.cumsum(new)])
