"""Regions of a picture, as edits are told them: boxes for every row, boxes row by row, or its evidence.

Boxes are xyxy in pixels, continuous as everywhere: pixel (x, y) covers [x, x + 1] × [y, y + 1]. What is cut
out or covered are whole pixels, all those that a box overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from seeing.edits.layers import number
from seeing.edits.moment import BadEdit
from seeing.grid import Box
from seeing.rectangles import ROUNDING
from seeing.turns import BadPrompt, Turn

#: The name that stands for each row's own boxes.
EVIDENCE = "evidence"

#: Whole pixels, xyxy.
Pixels = tuple[int, int, int, int]


def plain(spec: Any) -> Any:
    """Arrays, tensors and lists as tuples of Python's numbers, all the way down."""
    if isinstance(spec, (Tensor, np.ndarray, np.generic)):
        spec = spec.tolist()
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return tuple(map(plain, spec))
    return int(spec) if isinstance(spec, float) and spec.is_integer() else spec


def depth(spec: Any) -> int:
    """How deep tuples are nested: 1 is a box, 2 are boxes, 3 are boxes row by row."""
    return 1 + max(map(depth, spec), default=0) if isinstance(spec, tuple) else 0


def box_of(spec: Any) -> Box:
    """A box that is one. Raises `BadEdit`."""
    good = isinstance(spec, tuple) and len(spec) == 4
    good = good and all(number(edge) is not None for edge in spec)
    if not good or spec[0] >= spec[2] or spec[1] >= spec[3]:
        raise BadEdit(f"{spec!r:.200} is no box; expected (x0, y0, x1, y1) in pixels, x0 < x1 and y0 < y1")
    return spec


def shared(rows: Sequence) -> Any:
    """What was given row by row, or itself where only one was given: that one is for every row."""
    return rows[0] if len(rows) == 1 else tuple(rows)


def check_rows(given: Sequence, n_rows: int, what: str) -> None:
    """Raise `BadEdit` unless there is one a row."""
    if len(given) != n_rows:
        raise BadEdit(f"{len(given)} {what} for {n_rows} row(s); give one for all, or one a row")


def evidence_of(row: int, turn: Turn) -> tuple[Box, ...]:
    """The boxes of a row's evidence. Raises `BadPrompt` for a row without."""
    if not turn.boxes:
        raise BadPrompt(
            f"row {row} of the prompt ({turn.question!r}) has no evidence boxes; make it with "
            f"vlm.prompt(image, question, boxes=[(x0, y0, x1, y1)]). A crop that left them all out has none"
        )
    return turn.boxes


def pixels_of(box: Box, size: tuple[int, int], row: int) -> Pixels:
    """The whole pixels that a box overlaps in a picture of ``size``; what reaches past it is cut off.

    Raises `BadEdit` for a box that lies outside, or that reads like shares of the picture.
    """
    (x0, y0, x1, y1), (width, height) = box, size
    if max(map(abs, box)) <= 1 and min(x1 - x0, y1 - y0) < 1 < min(size):
        raise BadEdit(
            f"row {row}: box {box} lies inside the first pixel of a picture of {width}×{height}; expected "
            f"pixels, multiply shares by the picture's size"
        )
    x0, y0 = (max(math.floor(edge + ROUNDING), 0) for edge in (x0, y0))
    x1, y1 = min(math.ceil(x1 - ROUNDING), width), min(math.ceil(y1 - ROUNDING), height)
    if x0 >= x1 or y0 >= y1:
        raise BadEdit(
            f"row {row}: box {box} covers nothing of its picture of {width}×{height}; expected a part inside"
        )
    return x0, y0, x1, y1


def inside(box: Box, size: tuple[int, int]) -> bool:
    """Whether a box lies in a picture of ``size`` with all of it."""
    x0, y0, x1, y1 = box
    return min(x0, y0) >= -ROUNDING and x1 <= size[0] + ROUNDING and y1 <= size[1] + ROUNDING


def hull(boxes: Sequence[Box]) -> Box:
    """The smallest box around boxes."""
    x0, y0, x1, y1 = zip(*boxes)
    return min(x0), min(y0), max(x1), max(y1)


def seen_through(window: Pixels, boxes: Sequence[Box]) -> tuple[Box, ...]:
    """Boxes of a picture in a crop of it: moved along and cut off at its border; what is outside is gone."""
    left, top, right, bottom = window
    found = []
    for x0, y0, x1, y1 in boxes:
        x0, x1 = max(x0, left) - left, min(x1, right) - left
        y0, y1 = max(y0, top) - top, min(y1, bottom) - top
        if min(x1 - x0, y1 - y0) > ROUNDING:
            found.append((x0, y0, x1, y1))
    return tuple(found)
