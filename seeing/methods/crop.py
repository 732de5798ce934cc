"""ViCrop: what the question looks at, shown once more, close up (arXiv 2502.17422).

The relative attention map divides what the last token of the question looks at by what that of a generic
prompt does: what every question looks at cancels. The window of the picture that holds most of it is cut out
and appended as a second picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from seeing.edits import BadEdit, Crop
from seeing.edits.layers import attention_layers
from seeing.grid import Box, VisualGrid
from seeing.maps import Window, best_window, window_sums
from seeing.methods.method import Answers, Method, grids_of, token_maps
from seeing.probes.reading import read_rows
from seeing.prompt import Prompt
from seeing.vlm import VLM

#: The prompt that asks for nothing in particular.
GENERIC = "Write a general description of the image."

#: Sizes of the window, as multiples of the crop size.
RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)


@dataclass(frozen=True)
class ViCrop(Method):
    """ViCrop with relative attention (arXiv 2502.17422): M = A(question) / A(generic prompt), then a crop.

    A is the last token's row over the picture, mean over heads and ``layers`` (the paper has one: 14 of 32 in
    LLaVA-1.5, 22 of 28 in Qwen2.5-VL). Windows are squares of ``size`` × each of ``ratios`` pixels of the
    picture: of each size the one with the largest sum of M, and of these the one that is sharpest, with the
    sum furthest above those of the windows beside it (`sharpness`).

    ``size`` is by default the shorter side of the picture as the model sees it. A model that sees pictures at
    their own size has no such number: give one, 224 in the authors' code. A picture that is no larger is
    shown again as a whole.

    Needs a model that takes several pictures in a prompt.
    """

    layers: Any
    generic: str = GENERIC
    size: int | None = None
    ratios: tuple[float, ...] = RATIOS
    about = "the region that the question looks at, appended as a second picture"

    def __post_init__(self):
        if not self.ratios or min(self.ratios) <= 0 or (self.size is not None and self.size < 1):
            raise BadEdit(
                f"windows are a positive number of pixels times positive ratios, got size={self.size!r}, "
                f"ratios={self.ratios!r}"
            )

    def maps(self, vlm: VLM, prompt: Prompt) -> list[Float[np.ndarray, " _"]]:
        """The relative attention of each row's image tokens."""
        generic = prompt.with_turns(lambda _, turn: replace(turn, question=self.generic, template=None))
        asked, usual = (self._read(vlm, one) for one in (prompt, generic))
        return [one / np.maximum(other, 1e-12) for one, other in zip(asked, usual)]

    def windows(self, vlm: VLM, prompt: Prompt) -> list[Box]:
        """What is cut out of each row's picture: xyxy pixels."""
        return [
            best_box(one, grid, self.size or min(grid.view.size), self.ratios)
            for one, grid in zip(self.maps(vlm, prompt), grids_of(prompt))
        ]

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        edited = vlm.with_edits(Crop(self.windows(vlm, prompt), append=True))
        return edited.answer(prompt)

    def _read(self, vlm: VLM, prompt: Prompt) -> list[Float[np.ndarray, " _"]]:
        layers = attention_layers(self.layers, vlm)
        rows = read_rows(vlm, prompt, layers=layers).over_images[:, :, :, -1].mean((1, 2))
        if rows.isnan().any():
            raise BadEdit(
                f"not all of layers {list(layers)} see the picture's tokens one by one; name those that do"
            )
        return token_maps(prompt, rows)


def vicrop(layers: Any, **settings: Any) -> ViCrop:
    """`ViCrop` that reads ``layers``: a layer, several, or those of a `Profile`."""
    return ViCrop(getattr(layers, "layers", layers), **settings)


def best_box(
    scores: Float[np.ndarray, " token"], grid: VisualGrid, size: float, ratios: tuple[float, ...] = RATIOS
) -> Box:
    """The sharpest square of ``size`` × one of ``ratios`` pixels; the whole picture where none is smaller.

    Windows are counted in tokens of the grid's overview, and the square lies about the best one's centre,
    moved and cut so that it stays in the picture.
    """
    tokens = grid.level(grid.overview).tokens
    placed = grid.placed.numpy()[tokens]
    tokens = tokens[placed.any(1)][:, placed.any(0)]
    boxes, raster = grid.boxes.numpy()[tokens].reshape(-1, 4), scores[tokens]
    corner, end = np.nanmin(boxes[:, :2], 0), np.nanmax(boxes[:, 2:], 0)
    cell = (end - corner) / raster.shape[::-1]
    found: list[tuple[float, float, Window]] = []
    for ratio in ratios:
        cols, rows = np.clip((size * ratio / cell).astype(int), 1, raster.shape[::-1]).tolist()
        if (rows, cols) != raster.shape:
            window = best_window(raster, (rows, cols))
            found.append((sharpness(raster, window), ratio, window))
    width, height = grid.image_size
    if not found:
        return 0, 0, width, height
    _, ratio, window = max(found, key=lambda one: one[0])
    centre = corner + cell * (window.col + window.cols / 2, window.row + window.rows / 2)
    half = np.minimum(size * ratio, grid.image_size) / 2
    centre = np.clip(centre, half, grid.image_size - half)
    return (*(centre - half).tolist(), *(centre + half).tolist())


def sharpness(scores: Float[np.ndarray, "rows cols"], window: Window) -> float:
    """How far a window's sum is above the mean of those one token to each side, divided by its tokens."""
    sums = window_sums(scores, (window.rows, window.cols))
    beside = [(window.row + dy, window.col + dx) for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0))]
    around = [sums[r, c] for r, c in beside if 0 <= r < sums.shape[0] and 0 <= c < sums.shape[1]]
    return float((sums[window.row, window.col] - np.mean(around)) / (window.rows * window.cols))
