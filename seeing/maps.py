"""From token scores to an evidence map, and from the map to a highlighted image.

The middle of VEA, steps C to E of *Seeing but Not Believing* (Liu et al., ICLR 2026, arXiv 2510.17771):
denoise the scores on their token grid, paint them on a canvas of the picture that the model sees, smooth,
normalize, bring the map to the original image, and dim what it leaves dark. Each step is a function of its
own and `evidence_map` is their composition, so that an ablation leaves one out and a new method puts one in
between.

A second, sharper region lives here too: the window of tokens with the largest sum.

Two boundaries for the smoothing. "reflect" is what the authors' code does, but at σ = half the shorter side
it mirrors a blob so often that the peak moves to the image's border: a 28-pixel box centred at (42, 42) of
112×112 peaks at (0, 0), and its own centre is left with 0.68. "nearest" keeps the peak at (41, 41), and is
the default.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy import ndimage
from torch import Tensor

from seeing.grid import Box, Scores, VisualGrid, coverage, token_scores
from seeing.mosaic import BEYOND, TRUNCATE, Mosaic

BOUNDARIES = tuple(BEYOND)

#: The pixels of the maps that are made in one go.
TOGETHER = 2**22

Grids = Float[np.ndarray, "*batch rows cols"]
Canvas = Float[np.ndarray, "*batch height width"]


# ---- the evidence map --------------------------------------------------------------------------------------


def denoise(scores: Grids, factor: float = 10.0) -> Grids:
    """Replace outliers by the mean of their eight neighbours (VEA, step C).

    e > factor · max(neighbours) makes an outlier. Every decision and every mean is taken on the input, so one
    outlier does not hide behind another. Tokens at the edge see an edge-padded window (numpy's mode "edge"):
    it repeats the token itself, so with factor ≥ 1 a token at the edge is never replaced. A grid with a side
    under 3 comes back as it was.

    Raises ValueError for scores that are negative or not finite: the rule compares ratios of attention.
    """
    if not (np.isfinite(scores).all() and (scores >= 0).all()):
        raise ValueError(
            "expected finite scores ≥ 0 to denoise (attention weights), found a negative, NaN or"
            " infinite one: the rule is a ratio; use denoise=False for signed scores"
        )
    if min(scores.shape[-2:]) < 3:
        return scores.copy()
    padded = np.pad(scores, [(0, 0)] * (scores.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    around = sliding_window_view(padded, (3, 3), axis=(-2, -1)).reshape(*scores.shape, 9)
    neighbours = np.delete(around, 4, axis=-1)
    return np.where(scores > factor * neighbours.max(-1), neighbours.mean(-1), scores)


def paint(scores: Scores, grid: VisualGrid) -> Canvas:
    """Token scores as constant boxes on a canvas of the picture that the model sees (model pixels).

    Where that picture shows padding the canvas holds the lowest painted score.
    """
    canvas = grid.view_map(scores)
    blank = np.isnan(canvas)
    if blank.all():
        raise ValueError(f"no token of {grid} has a place: there is nothing to paint")
    return np.where(blank, np.nanmin(canvas, axis=(-2, -1), keepdims=True), canvas)


def smooth(canvas: Canvas, sigma: float = 0.5, boundary: str = "nearest") -> Canvas:
    """Gaussian blur (VEA, step D): `scipy.ndimage.gaussian_filter`, truncated at 4 σ.

    Args:
        sigma: as a share of the canvas's shorter side; 0 leaves the canvas as it is.
        boundary: what lies beyond the canvas. "nearest": the border's values go on. "reflect": the canvas
            mirrored, which is the authors' choice (see the module's docstring for what it does to wide
            blurs).
    """
    pixels = _pixels(sigma, boundary, canvas.shape[-2:])
    if pixels == 0:
        return canvas.copy()
    return ndimage.gaussian_filter(canvas, pixels, mode=boundary, truncate=TRUNCATE, axes=(-2, -1))


def _pixels(sigma: float, boundary: str, size: tuple[int, ...]) -> float:
    """A blur's σ in pixels. ValueError for a σ that is no share of a side, and for an unknown boundary."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"expected a boundary among {', '.join(BOUNDARIES)}, found {boundary!r}")
    if not 0 <= sigma <= 5:
        raise ValueError(
            f"expected sigma as a share of the shorter side, 0 to 5, found {sigma}: is it in pixels?"
        )
    return sigma * min(size)


def normalize(canvas: Canvas) -> Canvas:
    """Min–max to [0, 1], each map by itself. A constant map becomes 0.

    Constant means: to rounding. A blur leaves differences of 1e-17 on a flat map, and stretching those to [0,
    1] would draw evidence from nothing; a spread of less than 1e-12 of the map's size is no spread.
    """
    low, high = canvas.min(axis=(-2, -1), keepdims=True), canvas.max(axis=(-2, -1), keepdims=True)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("expected a finite map to normalize, found NaN or infinity: fill uncovered pixels")
    flat = high - low <= 1e-12 * np.maximum(np.abs(low), np.abs(high))
    return np.where(flat, 0.0, (canvas - low) / np.where(flat, 1.0, high - low))


def onto_image(canvas: Float[np.ndarray, "*batch view_height view_width"], grid: VisualGrid) -> Canvas:
    """A map over the model's picture -> a map over the original image, (height, width) of the original.

    Linear between pixel centres; 0 where a pixel's centre lies outside the model's picture (a crop). When the
    model sees the original pixel for pixel the map comes back bit by bit.
    """
    if canvas.shape[-2:] != grid.view.size[::-1]:
        raise ValueError(
            f"expected a canvas (height, width) of {grid.view.size[::-1]}, the picture that the"
            f" model sees, found {canvas.shape[-2:]}"
        )
    if grid.view.is_whole(grid.image_size):
        return canvas.copy()
    (width, height), (x0, y0, x1, y1) = grid.image_size, grid.view.box
    ys, xs = np.arange(height) + 0.5, np.arange(width) + 0.5
    # a pixel's centre is half a pixel into it, on either side of the map
    canvas = _between(canvas, (ys - y0) * canvas.shape[-2] / (y1 - y0) - 0.5, axis=-2)
    canvas = _between(canvas, (xs - x0) * canvas.shape[-1] / (x1 - x0) - 0.5, axis=-1)
    inside = np.outer((ys >= y0) & (ys <= y1), (xs >= x0) & (xs <= x1))
    return np.where(inside, canvas, 0.0)


def _between(
    canvas: Float[np.ndarray, "*shape"], at: Float[np.ndarray, " point"], axis: int
) -> Float[np.ndarray, "*resampled"]:
    """Values at points of an axis, linear between its pixels; beyond the last one they go on."""
    at = at.clip(0, canvas.shape[axis] - 1)
    before = np.floor(at).astype(int)
    behind = np.minimum(before + 1, canvas.shape[axis] - 1)
    share = np.expand_dims(at - before, -1) if axis == -2 else at - before
    return canvas.take(before, axis) * (1 - share) + canvas.take(behind, axis) * share


def evidence_map(
    scores: Scores, grid: VisualGrid, *, denoise: bool = True, sigma: float = 0.5, boundary: str = "nearest"
) -> Canvas:
    """Where the evidence is, in [0, 1], for every pixel of the original image (VEA, steps C and D).

    denoise (each level's grid by itself) → paint → smooth → normalize → onto_image; paint and smooth are one
    step, to rounding the same (`mosaic`). The paper's ablations are denoise=False and sigma=0; its authors'
    boundary is "reflect".

    Args:
        scores: one score ≥ 0 a visual token, for example attention from the last prompt token, mean over the
            profiled layers; leading axes are maps of their own.
        sigma: see `smooth`.
        boundary: see `smooth`.
    """
    scores = denoise_tokens(scores, grid) if denoise else scores
    pixels = _pixels(sigma, boundary, grid.view.size)
    return onto_image(normalize(Mosaic.of(scores, grid).blurred(pixels, boundary)), grid)


def evidence_maps(
    scores: Sequence[Float[np.ndarray | Tensor, " _"]], grids: Sequence[VisualGrid], **settings: Any
) -> list[Float[np.ndarray, "_ _"]]:
    """`evidence_map` of many pictures. Those whose tokens have the same places are made together."""
    alike: dict[Hashable, list[int]] = {}
    for number, grid in enumerate(grids):
        place = grid.image_size, grid.view, grid.levels, grid.boxes.numpy().tobytes()
        alike.setdefault(place, []).append(number)
    found: dict[int, np.ndarray] = {}
    for numbers in alike.values():
        grid = grids[numbers[0]]
        # Of large pictures a few at a time.
        several = max(1, TOGETHER // max(math.prod(grid.image_size), math.prod(grid.view.size)))
        for start in range(0, len(numbers), several):
            some = numbers[start : start + several]
            made = evidence_map(
                np.stack([token_scores(scores[n], len(grid)) for n in some]), grid, **settings
            )
            found |= dict(zip(some, made))
    return [found[number] for number in range(len(grids))]


def denoise_tokens(
    scores: Scores, grid: VisualGrid, factor: float = 10.0
) -> Float[np.ndarray, "*batch token"]:
    """`denoise` on each level's raster of a grid, token scores to token scores.

    Rows and columns that see only padding are left out: they are no neighbours of the picture's tokens.
    """
    result, placed = token_scores(scores, len(grid)), grid.placed.numpy()
    for level in grid.levels:
        tokens = level.tokens
        rows, cols = placed[tokens].any(1), placed[tokens].any(0)
        tokens = tokens[rows][:, cols]
        if tokens.size:
            result[..., tokens] = denoise(result[..., tokens], factor)
    return result


def highlight(
    image: Image.Image, evidence: Float[np.ndarray, "height width"], alpha: float = 0.5
) -> Image.Image:
    """Dim an image where the evidence map is dark: Î = (α + (1 − α) · ẽ) · I (VEA, step E).

    Args:
        image: mode RGB.
        evidence: in [0, 1], of the image's size.
        alpha: what is left of a pixel without evidence, in [0, 1]; 1 changes nothing.

    Returns: a new image, mode RGB; values are rounded to the nearest integer, halves to the even one.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha in [0, 1], found {alpha}")
    if image.mode != "RGB":
        raise ValueError(f"expected an image of mode RGB, found {image.mode}: use image.convert('RGB')")
    if evidence.shape != image.size[::-1]:
        raise ValueError(f"expected a map (height, width) of {image.size[::-1]}, found {evidence.shape}")
    # the comparison is written so that NaN fails it; interpolation may leave [0, 1] by rounding
    if not ((evidence >= -1e-6) & (evidence <= 1 + 1e-6)).all():
        raise ValueError("expected a map in [0, 1], found values outside, or NaN: normalize it first")
    gain = alpha + (1 - alpha) * np.clip(evidence.astype(np.float64), 0.0, 1.0)
    return Image.fromarray(np.rint(gain[..., None] * np.asarray(image)).astype(np.uint8))


# ---- windows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A block of rows × cols tokens of one level, its first cell at (row, col)."""

    row: int
    col: int
    rows: int
    cols: int

    def mask(self, shape: tuple[int, int]) -> Bool[np.ndarray, "rows cols"]:
        """The window's cells as a mask of a level of shape (rows, cols). ValueError when it reaches out."""
        if min(self.row, self.col) < 0 or self.row + self.rows > shape[0] or self.col + self.cols > shape[1]:
            raise ValueError(f"{self} reaches outside a grid of {shape[0]}×{shape[1]} tokens")
        mask = np.zeros(shape, dtype=bool)
        mask[self.row : self.row + self.rows, self.col : self.col + self.cols] = True
        return mask


def window_sums(scores: Grids, size: tuple[int, int] = (2, 2)) -> Float[np.ndarray, "*batch rows2 cols2"]:
    """The sum of every window of `size` (rows, cols), by its first cell. ValueError when none fits."""
    _check_fits(size, scores.shape[-2:])
    return sliding_window_view(scores, size, axis=(-2, -1)).sum(axis=(-2, -1))


def best_windows(scores: Grids, size: tuple[int, int] = (2, 2)) -> list[Window]:
    """For each grid of a batch the window with the largest sum; of equal ones the first in reading order.

    A score of -inf keeps windows off a cell. Raises ValueError for NaN and +inf, and when no window is
    finite.
    """
    sums = window_sums(scores, size)
    sums = sums.reshape(-1, *sums.shape[-2:])
    best = sums.reshape(len(sums), -1).max(axis=1)
    if not np.isfinite(best).all():
        raise ValueError(
            "expected a window with a finite sum in every grid, found the best sums"
            f" {best[~np.isfinite(best)].tolist()}"
        )
    return [Window(*divmod(int(one.argmax()), one.shape[1]), *size) for one in sums]


def best_window(scores: Float[np.ndarray, "rows cols"], size: tuple[int, int] = (2, 2)) -> Window:
    """The window of `size` (rows, cols) with the largest sum of scores; else as `best_windows`."""
    return best_windows(scores, size)[0]


def random_window(
    rng: np.random.Generator,
    shape: tuple[int, int],
    size: tuple[int, int] = (2, 2),
    avoid: Bool[np.ndarray, "rows cols"] | None = None,
) -> Window:
    """A window of `size` in a level of `shape`, uniform among those with no cell in `avoid`: the control.

    Raises ValueError when no such window is left.
    """
    _check_fits(size, shape)
    taken = np.zeros(shape) if avoid is None else avoid.astype(float)
    if taken.shape != tuple(shape):
        raise ValueError(f"expected avoid as a mask of {tuple(shape)}, found {taken.shape}")
    free = np.argwhere(window_sums(taken, size) == 0)
    if not len(free):
        raise ValueError(
            f"no window of {size[0]}×{size[1]} tokens in {shape[0]}×{shape[1]} keeps off the"
            f" {int(taken.sum())} cells to avoid"
        )
    row, col = rng.choice(free)
    return Window(int(row), int(col), *size)


def window_tokens(grid: VisualGrid, window: Window, level: int | str | None = None) -> Bool[Tensor, " token"]:
    """The window's tokens as a mask over the grid's tokens; grid.positions[mask] is where they stand.

    ``level`` is the one that the window counts in, by default the grid's overview.
    """
    tokens = grid.level(grid.overview if level is None else level).tokens
    mask = torch.zeros(len(grid), dtype=torch.bool)
    mask[torch.from_numpy(tokens[window.mask(tokens.shape)])] = True
    return mask


def window_box(grid: VisualGrid, window: Window, level: int | str | None = None) -> Box:
    """The window's xyxy box in pixels of the original image. ValueError when it sees only padding."""
    boxes = grid.boxes[window_tokens(grid, window, level) & grid.placed]
    if not len(boxes):
        raise ValueError(f"{window} of {grid} has no place in the image: it sees only padding")
    x0, y0, x1, y1 = (*boxes[:, :2].amin(0).tolist(), *boxes[:, 2:].amax(0).tolist())
    return x0, y0, x1, y1


def window_mask_map(
    grid: VisualGrid, window: Window, level: int | str | None = None
) -> Float[np.ndarray, "height width"]:
    """The window as an evidence map of the original image: 1 inside, 0 outside, a border pixel its share."""
    x0, y0, x1, y1 = window_box(grid, window, level)
    width, height = grid.image_size
    return np.outer(coverage(np.array([[y0, y1]]), height), coverage(np.array([[x0, x1]]), width))


def _check_fits(size: tuple[int, int], shape: tuple[int, ...]) -> None:
    if min(size) < 1 or size[0] > shape[0] or size[1] > shape[1]:
        raise ValueError(f"no window of {size[0]}×{size[1]} tokens fits into a grid of {shape[0]}×{shape[1]}")
