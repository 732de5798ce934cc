"""Tokens have places.

A vision-language model turns an image into a run of visual tokens, and every family does so in its own way:
crop, squash, pad, tiles, thumbnails, merged patches. This module knows none of that. It keeps what is left
when the family has spoken: which tokens of the sequence are visual, and which box of the *original* image
each looks at. One map, used both ways: annotated boxes become token labels, token scores become heat maps.

Coordinates are absolute pixels of the original image, xyxy, continuous: pixel (x, y) covers [x, x+1] × [y,
y+1], and (0, 0, width, height) is the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing.rectangles import ROUNDING, coverage, cuts, edges, holds, joined, overlap, share_inside, union

RULES = ("any", "half", "all", "fraction")

Box = tuple[float, float, float, float]
Boxes = Sequence | np.ndarray | Tensor
Scores = Float[Tensor, "*batch token"] | Float[np.ndarray, "*batch token"]


@dataclass(frozen=True)
class View:
    """Where the picture that the model sees lies in the original image.

    `box` is xyxy in original pixels and may reach past the image, where the model sees padding; `size` is
    (width, height) of the same picture in model pixels. Give the part that the patches cover: a convolution
    drops the pixels that don't fill a last patch.
    """

    box: Box
    size: tuple[int, int]

    def __post_init__(self):
        if len(self.box) != 4 or not np.isfinite(self.box).all():
            raise ValueError(f"a view's box is four finite numbers (x0, y0, x1, y1), found {self.box}")
        x0, y0, x1, y1 = self.box
        if x1 - x0 <= ROUNDING or y1 - y0 <= ROUNDING:
            raise ValueError(f"a view needs x0 < x1 and y0 < y1, found {self.box}: is it xywh?")
        _check_size(self.size)

    @classmethod
    def cut(cls, image_size: tuple[int, int], resized: tuple[int, int], window: Box | None = None) -> View:
        """The view of a processor that resizes the image to `resized` and cuts `window` out of the result.

        Sizes are (width, height). `window` is xyxy in pixels of the resized image (default: all of it): a
        centre crop lies inside, a padded canvas reaches past it, a tile is one cell of it.
        """
        _check_size(image_size)
        _check_size(resized)
        x0, y0, x1, y1 = window or (0, 0, *resized)
        width, height = image_size[0] / resized[0], image_size[1] / resized[1]
        box = (float(x0 * width), float(y0 * height), float(x1 * width), float(y1 * height))
        return cls(box, (round(x1 - x0), round(y1 - y0)))

    def is_whole(self, image_size: tuple[int, int]) -> bool:
        """Whether the model sees the original image, all of it, pixel for pixel."""
        return tuple(self.box) == (0, 0, *image_size) and tuple(self.size) == tuple(image_size)

    def from_image(self, boxes: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 4"]:
        """xyxy boxes in original pixels -> the same boxes in model pixels."""
        x0, y0, x1, y1 = self.box
        return (boxes - [x0, y0, x0, y0]) * ([self.size[0] / (x1 - x0), self.size[1] / (y1 - y0)] * 2)


@dataclass(frozen=True)
class Level:
    """One rectangular block of a grid's tokens: a patch grid, one tile, a thumbnail, a column of newlines.

    Cell (r, c) is the grid's token number start + r · stride + c. `stride` is the step from row to row, by
    default `cols`; a block with one newline token after every row has stride cols + 1.
    """

    name: str
    rows: int
    cols: int
    start: int = 0
    stride: int | None = None

    def __post_init__(self):
        if min(self.rows, self.cols) < 1 or self.start < 0:
            raise ValueError(f"a level needs rows, cols ≥ 1 and start ≥ 0, found {self}")
        if self.stride is not None and self.stride < self.cols:
            raise ValueError(f"a stride below cols makes the rows of a level overlap, found {self}")

    @property
    def tokens(self) -> Int[np.ndarray, "rows cols"]:
        """The grid's token number of every cell."""
        stride = self.cols if self.stride is None else self.stride
        return self.start + stride * np.arange(self.rows)[:, None] + np.arange(self.cols)


@dataclass(frozen=True, eq=False, repr=False)
class VisualGrid:
    """One image's visual tokens and their places.

    Attributes:
        image_size: (width, height) of the original image.
        positions: token -> index into the sequence, strictly increasing (int64, CPU).
        boxes: token -> xyxy box in the original image (float64, CPU). A token without a place (padding, a
            newline) has a box of four NaN and is never evidence. What a crop cut off is in no token's box, so
            it is never labelled.
        view: where the picture that the model sees lies in the original.
        levels: the rectangular blocks of tokens. Tokens outside every level have no place.

    Raises ValueError when these contradict each other.
    """

    image_size: tuple[int, int]
    positions: Int[Tensor, " token"]
    boxes: Float[Tensor, "token 4"]
    view: View
    levels: tuple[Level, ...]

    def __post_init__(self):
        object.__setattr__(self, "positions", self.positions.detach().cpu().long())
        object.__setattr__(self, "boxes", self.boxes.detach().cpu().double())
        _check_size(self.image_size)
        _check_positions(self.positions)
        _check_token_boxes(self.boxes, len(self), self.image_size)
        _check_levels(self)

    @classmethod
    def regular(
        cls,
        image_size: tuple[int, int],
        view: View,
        rows: int,
        cols: int,
        positions: Int[Tensor, " token"],
        name: str = "patch",
    ) -> VisualGrid:
        """A plain raster of rows × cols equal cells over one view, in reading order."""
        boxes = cells(image_size, view, rows, cols)
        return cls(image_size, positions, boxes, view, (Level(name, rows, cols),))

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        blocks = ", ".join(f"{level.name} {level.rows}×{level.cols}" for level in self.levels)
        at = f" at {self.positions[0]}…{self.positions[-1]}" if len(self) else ""
        width, height = self.image_size
        return f"VisualGrid({width}×{height} image, {len(self)} tokens{at}: {blocks})"

    @property
    def kind(self) -> tuple[str, ...]:
        """The name of each token's level; "other" for a token outside every level."""
        kinds = np.full(len(self), "other", dtype=object)
        for level in self.levels:
            kinds[level.tokens] = level.name
        return tuple(kinds)

    @property
    def placed(self) -> Bool[Tensor, " token"]:
        """Which tokens have a place in the image."""
        return ~self.boxes[:, 0].isnan()

    def shifted(self, offset: int) -> VisualGrid:
        """The same grid `offset` places further on in the sequence, as after left padding."""
        _ = self._sees_all  # found once, for all copies
        moved = copy(self)  # whose boxes and levels have been checked
        object.__setattr__(moved, "positions", self.positions + offset)
        _check_positions(moved.positions)
        return moved

    def labels(self, boxes: Boxes, rule: str = "any") -> Bool[Tensor, " token"] | Float[Tensor, " token"]:
        """Which tokens see the evidence.

        Args:
            boxes: the evidence, (n, 4), xyxy in pixels of the original image. Boxes may overlap.
            rule: "any" — the token's box overlaps a box (Liu et al. 2026, arXiv 2510.17771); "half" — at
                least half of its area lies in the union of the boxes; "all" — all of it does; "fraction" —
                the share of its area in the union.

        Returns: a bool each token, or for "fraction" a float64 in [0, 1]; without a place it is False or 0.
        Overlaps narrower than 1e-6 of a pixel are rounding, and shares are compared with a slack of 1e-6.
        Raises ValueError for an unknown rule, for no boxes, and for boxes that are malformed, not finite,
        empty, inverted or outside the image.
        """
        if rule not in RULES:
            raise ValueError(f"expected a rule among {', '.join(RULES)}, found {rule!r}")
        evidence, tokens = _check_evidence(boxes, self.image_size), self.boxes.numpy()
        if rule == "any":
            wide = overlap(tokens[:, [0, 2]], evidence[:, [0, 2]]) > ROUNDING
            high = overlap(tokens[:, [1, 3]], evidence[:, [1, 3]]) > ROUNDING
            return torch.from_numpy((wide & high).any(1))
        share = torch.from_numpy(share_inside(tokens, evidence))
        return share if rule == "fraction" else share >= {"half": 0.5, "all": 1.0}[rule] - 1e-6

    def covers(self, boxes: Boxes) -> float:
        """The share of the boxes' area (of their union, inside the image) that some token sees, in [0, 1].

        Below 1 where a crop cut evidence off, 0 when the model can't have seen it. Boxes as in `labels`.
        """
        evidence = np.clip(_check_evidence(boxes, self.image_size), 0, [*self.image_size] * 2)
        if self._sees_all:
            return 1.0
        ys = cuts(evidence[:, [1, 3]], *(rows for rows, _ in self._rasters))
        xs = cuts(evidence[:, [0, 2]], *(cols for _, cols in self._rasters))
        wanted = union(evidence, ys, xs)
        seen = np.zeros_like(wanted)
        for rows, cols in self._rasters:
            seen |= np.outer(holds(rows, ys).any(0), holds(cols, xs).any(0))
        area = np.outer(np.diff(ys), np.diff(xs))
        return float(area[wanted & seen].sum() / area[wanted].sum())

    @cached_property
    def _rasters(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each level's y-edges of rows and x-edges of columns."""
        return [edges(self.boxes.numpy()[level.tokens]) for level in self.levels]

    @cached_property
    def _sees_all(self) -> bool:
        """Whether some level's tokens lie over the whole image."""
        width, height = self.image_size
        return any(joined(rows, height) and joined(cols, width) for rows, cols in self._rasters)

    def heatmap(
        self, scores: Scores, levels: str | Sequence[str] | None = None, fill: float = float("nan")
    ) -> Float[np.ndarray, "*batch height width"]:
        """Token scores as an image of the original's size.

        Each pixel is the mean of the tokens that cover it, weighted by how much of its area each covers; a
        pixel that no token covers is `fill`. `levels` names the levels to draw (default: all that have a
        place). Scores of tokens without a place are ignored; the others must be finite (ValueError).
        """
        return self._paint(scores, self.boxes.numpy(), self.image_size, levels, fill)

    def view_map(
        self, scores: Scores, levels: str | Sequence[str] | None = None, fill: float = float("nan")
    ) -> Float[np.ndarray, "*batch height width"]:
        """Token scores as constant boxes on a canvas of the view's size (model pixels); else as `heatmap`."""
        return self._paint(scores, self.view.from_image(self.boxes.numpy()), self.view.size, levels, fill)

    def as_grid(
        self, scores: Scores, level: int | str = 0, unplaced: float | None = None
    ) -> Float[np.ndarray, "*batch rows cols"]:
        """Token scores as the rows × cols raster of one level (an index, or a name that only one level has).

        Cells without a place keep their score, or become `unplaced` where that is given (-inf, say, keeps a
        best window off the padding).
        """
        tokens = self.level(level).tokens
        grid = token_scores(scores, len(self))[..., tokens]
        return grid if unplaced is None else np.where(self.placed.numpy()[tokens], grid, unplaced)

    def level(self, which: int | str) -> Level:
        """One level, by index or by a name that only one level has (ValueError when there is no such one)."""
        found = self._named(which) if isinstance(which, str) else self.levels[which:][:1]
        if len(found) != 1:
            raise ValueError(f"expected one level for {which!r}, found {len(found)} in {self}: give an index")
        return found[0]

    @property
    def overview(self) -> int:
        """The index of the level that sees the most of the picture: the thumbnail, where there are tiles."""

        def seen(level: Level) -> float:
            boxes = self.boxes.numpy()[level.tokens].reshape(-1, 4)
            sides = boxes[:, 2:] - boxes[:, :2]
            return float(np.nansum(sides[:, 0] * sides[:, 1]))

        areas = [seen(level) for level in self.levels]
        # Of those that see about as much the coarsest: patches may leave a few pixels of a tile out.
        best = [i for i, area in enumerate(areas) if area >= 0.9 * max(areas)]
        return min(best, key=lambda i: self.levels[i].rows * self.levels[i].cols)

    def _named(self, names: str | Sequence[str] | None) -> tuple[Level, ...]:
        known = {level.name for level in self.levels}
        wanted = {names} if isinstance(names, str) else known if names is None else set(names)
        if not wanted or not wanted <= known:
            raise ValueError(f"expected levels among {sorted(known)}, found {sorted(wanted)}")
        return tuple(level for level in self.levels if level.name in wanted)

    def _paint(self, scores, boxes, size, levels, fill):
        scores, placed = token_scores(scores, len(self)), self.placed.numpy()
        if not np.isfinite(scores[..., placed]).all():
            raise ValueError(
                "expected a finite score for every token with a place, found NaN or infinity:"
                " draw weights (attention after the softmax), not masked logits"
            )
        scores = np.where(placed, scores, 0.0)
        total, weight = np.zeros((*scores.shape[:-1], size[1], size[0])), np.zeros((size[1], size[0]))
        for level in self._named(levels):
            rows, cols = edges(boxes[level.tokens])
            rows, cols = coverage(rows, size[1]), coverage(cols, size[0])
            total += rows.T @ scores[..., level.tokens] @ cols
            weight += np.outer(rows.sum(0), cols.sum(0))
        covered = np.broadcast_to(weight > 0, total.shape)
        return np.divide(total, weight, out=np.full_like(total, fill), where=covered)


def cells(image_size: tuple[int, int], view: View, rows: int, cols: int) -> Float[Tensor, "token 4"]:
    """Boxes, in original pixels, of rows × cols equal cells of a view, in reading order.

    Clipped to the image; a cell outside (padding) is four NaN. Tiled families concatenate several of these.
    """
    _check_size(image_size)
    if min(rows, cols) < 1:
        raise ValueError(f"expected at least one row and one column of tokens, found {rows}×{cols}")
    x0, y0, x1, y1 = view.box
    xs = np.clip(x0 + (x1 - x0) * np.arange(cols + 1) / cols, 0, image_size[0])
    ys = np.clip(y0 + (y1 - y0) * np.arange(rows + 1) / rows, 0, image_size[1])
    corners = np.broadcast_arrays(xs[None, :-1], ys[:-1, None], xs[None, 1:], ys[1:, None])
    boxes = np.stack(corners, -1).reshape(rows * cols, 4)
    boxes[(boxes[:, 2:] - boxes[:, :2] <= ROUNDING).any(1)] = np.nan
    return torch.from_numpy(boxes)


def token_scores(scores: Scores, tokens: int) -> Float[np.ndarray, "*batch token"]:
    """Scores as a float64 array of their own. ValueError unless the last axis has one score a token."""
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().double().numpy()
    if not scores.ndim or scores.shape[-1] != tokens:
        raise ValueError(
            f"expected scores over {tokens} visual tokens, found shape {tuple(scores.shape)}:"
            " index the row with grid.positions first"
        )
    return scores.astype(np.float64)


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"expected a size (width, height) of at least 1×1 pixels, found {tuple(size)}")


def _check_positions(positions: Tensor) -> None:
    if positions.ndim != 1:
        raise ValueError(f"expected positions of shape (token,), found {tuple(positions.shape)}")
    if len(positions) and (positions[0] < 0 or (positions.diff() <= 0).any()):
        raise ValueError(
            f"expected strictly increasing positions ≥ 0, found {positions[:8].tolist()}…:"
            " take them in sequence order, each once"
        )


def _check_token_boxes(boxes: Tensor, tokens: int, image_size: tuple[int, int]) -> None:
    if tuple(boxes.shape) != (tokens, 4):
        raise ValueError(
            f"expected boxes of shape ({tokens}, 4) for {tokens} positions, found"
            f" {tuple(boxes.shape)}: the grid and the prompt count image tokens differently"
        )
    boxes = boxes[~boxes.isnan().all(1)]
    low, high = -ROUNDING, torch.tensor([*image_size] * 2) + ROUNDING
    good = (boxes[:, :2] < boxes[:, 2:]).all(1) & ((boxes >= low) & (boxes <= high)).all(1)
    if len(bad := boxes[~good]):
        raise ValueError(
            f"expected token boxes xyxy inside the {image_size[0]}×{image_size[1]} image, or"
            f" four NaN, found {len(bad)} others, first {bad[0].tolist()}: clip them, and give a"
            " token that sees only padding four NaN"
        )


def _check_levels(grid: VisualGrid) -> None:
    owners, boxes = np.zeros(len(grid), dtype=int), grid.boxes.numpy()
    for level in grid.levels:
        tokens = level.tokens
        if tokens[-1, -1] >= len(grid):
            raise ValueError(f"{level} ends at token {tokens[-1, -1]}, but the grid has {len(grid)} tokens")
        owners[tokens] += 1
        rows, cols = edges(boxes[tokens])
        raster = np.stack(np.broadcast_arrays(cols[:, 0], rows[:, :1], cols[:, 1], rows[:, 1:]), -1)
        raster[np.isnan(raster).any(-1)] = np.nan
        if not np.allclose(raster, boxes[tokens], rtol=0, atol=ROUNDING, equal_nan=True):
            raise ValueError(
                f"the boxes of {level} are no raster: cells of one row must share their y-edges,"
                " cells of one column their x-edges (are the tokens in reading order?)"
            )
    if (owners > 1).any():
        raise ValueError(f"token {owners.argmax()} belongs to {owners.max()} levels of {grid}")
    if stray := int((grid.placed.numpy() & (owners == 0)).sum()):
        raise ValueError(f"{stray} tokens of {grid} have a place but no level: add the level of those cells")


def _check_evidence(boxes: Boxes, image_size: tuple[int, int]) -> Float[np.ndarray, "box 4"]:
    if isinstance(boxes, Tensor):
        boxes = boxes.detach().cpu().numpy()
    if len(boxes) == 0:
        raise ValueError("found no evidence boxes: a sample without them has no labels, leave it out")
    if any(np.shape(box) != (4,) for box in boxes):
        raise ValueError(f"expected boxes (n, 4), xyxy, found {boxes!r:.80}: one box is [(x0, y0, x1, y1)]")
    found = np.asarray(boxes, dtype=np.float64)
    sides, (width, height) = found[:, 2:] - found[:, :2], image_size
    outside = (found[:, :2] >= [width, height]).any(1) | (found[:, 2:] <= 0).any(1)
    shares = (np.abs(found) <= 1).all(1) & (sides < 1).any(1) & (min(width, height) > 1)
    for wrong, hint in (
        (~np.isfinite(found).all(1), "four finite numbers"),
        ((sides <= ROUNDING).any(1), "x0 < x1 and y0 < y1: xyxy, not xywh, and not empty"),
        (outside, f"a part inside the {width}×{height} image: pixels of the original, not of a resized one"),
        (shares, "absolute pixels, but it lies inside the first one: multiply shares by the image's size"),
    ):
        if wrong.any():
            first = found[wrong][0].tolist()
            raise ValueError(f"evidence box {wrong.argmax()}: found {first}, expected {hint}")
    return found
