"""Edits of the picture, before the processor: the model sees another image, nothing inside is touched.

Each acts on the first picture of every row, and sees it as the edits before left it: behind a `Crop`,
boxes and maps are those of the cropped picture. The row's evidence boxes move along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter
from torch import Tensor

from seeing.edits.edit import ImageEdit
from seeing.edits.layers import number, whole
from seeing.edits.moment import BadEdit
from seeing.edits.regions import (
    EVIDENCE,
    box_of,
    check_rows,
    depth,
    evidence_of,
    hull,
    inside,
    pixels_of,
    plain,
    seen_through,
    shared,
)
from seeing.edits.scores import is_number
from seeing.grid import Boxes
from seeing.maps import highlight
from seeing.turns import Turn

#: A colour: red, green and blue in 0-255.
Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Highlight(ImageEdit):
    """Dim a picture where its evidence map is dark: Î = (α + (1 − α)·ẽ)·I (Liu et al. 2026, step E).

    ``maps`` is one map for every row, or one a row: values in [0, 1], of the size (height, width) that the
    picture has when this edit comes. ``alpha`` is what is left of a pixel without evidence; 1 changes
    nothing.
    """

    maps: Float[np.ndarray | Tensor, "height width"] | Sequence[Float[np.ndarray | Tensor, "_ _"]]
    alpha: float = 0.5
    when: str = "both"

    def __post_init__(self):
        given = (self.maps,) if isinstance(self.maps, (np.ndarray, Tensor)) else self.maps
        if not (isinstance(given, Sequence) and len(given)):
            raise BadEdit(f"maps are one (height, width), or one a row; got {self.maps!r:.200}")
        self._say(maps=tuple(map(_map, given)))
        if not (is_number(self.alpha) and 0 <= self.alpha <= 1):
            raise BadEdit(f"alpha is a number in [0, 1], got {self.alpha!r}")
        self._say(alpha=number(self.alpha))
        self._before_the_pass()

    def check(self, n_rows: int) -> None:
        if len(self.maps) != 1:
            check_rows(self.maps, n_rows, "maps")

    def image(self, row: int, picture: Image.Image) -> Image.Image:
        one = self.maps[row if len(self.maps) > 1 else 0]
        if one.shape != picture.size[::-1]:
            raise BadEdit(
                f"row {row}: expected a map (height, width) of {picture.size[::-1]}, found {one.shape}; maps "
                f"have the picture's size as it is when this edit's turn comes"
            )
        return highlight(picture, one, self.alpha)

    def __repr__(self) -> str:
        return f"Highlight(<{len(self.maps)} map(s)>, alpha={self.alpha}, when={self.when!r})"


def _map(spec: Any) -> Float[np.ndarray, "height width"]:
    """An evidence map of one's own that nobody can write on. Raises `BadEdit`."""
    try:
        found = np.array(spec.detach().cpu() if isinstance(spec, Tensor) else spec)
        # Written so that NaN fails it; interpolation may leave [0, 1] by rounding.
        good = found.ndim == 2 and bool(((found >= -1e-6) & (found <= 1 + 1e-6)).all())
    except (TypeError, ValueError) as error:
        raise BadEdit(f"a map is an array of numbers (height, width): {error}") from error
    if not good:
        raise BadEdit(
            f"a map has (height, width) values in [0, 1], none of them NaN; got {found.dtype} {found.shape}"
            f"{f' in [{found.min():.4g}, {found.max():.4g}]' if found.ndim == 2 and found.size else ''}"
        )
    found.flags.writeable = False
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Crop(ImageEdit):
    """Show a window of the picture: ``Crop("evidence", pad=0.5)``, ``Crop((28, 0, 56, 28))``.

    ``window`` is "evidence" (the box around the row's boxes), a box for every row, or a list of boxes, one a
    row: xyxy in pixels, inside the picture. ``pad`` enlarges it by that share of its width to the left and to
    the right, and of its height above and below, as far as the picture goes. Whole pixels are cut out, all
    that the window overlaps. The whole picture as window changes nothing.

    The crop takes the picture's place, and the row's evidence boxes move along: they are cut off at its
    border, and those outside are gone. With ``append`` the picture stays, boxes and all, and the crop is one
    more picture behind the others, as in ViCrop (arXiv 2502.17422).
    """

    window: str | Boxes
    append: bool = False
    pad: float = 0
    when: str = "both"

    def __post_init__(self):
        window = plain(self.window)
        if isinstance(window, str) and window != EVIDENCE:
            raise BadEdit(f"a window is 'evidence', a box or one box a row; got {window!r}")
        if window != EVIDENCE:
            rows = window if depth(window) == 2 else (window,)
            self._say(window=shared([box_of(box) for box in rows]))
        if not (is_number(self.pad) and self.pad >= 0):
            raise BadEdit(f"pad is a share of the window's sides, 0 or more; got {self.pad!r}")
        self._say(pad=number(self.pad))
        self._before_the_pass()

    def check(self, n_rows: int) -> None:
        if depth(self.window) == 2:
            check_rows(self.window, n_rows, "windows")

    def turn(self, row: int, turn: Turn) -> Turn:
        first, *others = turn.images
        x0, y0, x1, y1 = self._window(row, turn)
        wide, high = self.pad * (x1 - x0), self.pad * (y1 - y0)
        window = pixels_of((x0 - wide, y0 - high, x1 + wide, y1 + high), first.size, row)
        crop = first.crop(window)
        if self.append:
            return replace(turn, images=(first, *others, crop))
        return replace(turn, images=(crop, *others), boxes=seen_through(window, turn.boxes))

    def _window(self, row: int, turn: Turn) -> tuple[float, ...]:
        size = turn.images[0].size
        if self.window == EVIDENCE:
            return hull(seen_through((0, 0, *size), evidence_of(row, turn)))
        window = self.window[row] if depth(self.window) == 2 else self.window
        if not inside(window, size):
            raise BadEdit(
                f"row {row}: window {window} reaches out of its picture of {size[0]}×{size[1]}; expected "
                f"pixels inside it, as it is when this edit's turn comes"
            )
        return window


@dataclass(frozen=True, eq=False, repr=False)
class Occlude(ImageEdit):
    """Cover regions of the picture: ``Occlude("evidence")``, ``Occlude([(28, 0, 56, 28)], fill=(0, 0, 0))``.

    ``boxes`` is "evidence" (the row's boxes), a list of boxes for every row, or one list a row: xyxy in
    pixels. Whole pixels are covered, all that a box overlaps. ``fill`` is "mean" (the picture's mean
    colour), "blur" (the picture itself under a Gaussian of a tenth of its longer side) or a colour (r, g, b)
    in 0-255. The row's evidence boxes stay: they say where the evidence was.
    """

    boxes: str | Boxes
    fill: str | Sequence[int] = "mean"
    when: str = "both"

    def __post_init__(self):
        boxes = plain(self.boxes)
        if boxes != EVIDENCE:
            rows = boxes if depth(boxes) == 3 else (boxes,)
            if depth(boxes) not in (2, 3) or not all(isinstance(one, tuple) and one for one in rows):
                raise BadEdit(
                    f"boxes are 'evidence', a list of (x0, y0, x1, y1) or one list a row, none of them "
                    f"empty; got {self.boxes!r:.200}"
                )
            self._say(boxes=shared([tuple(map(box_of, one)) for one in rows]))
        self._say(fill=_fill(self.fill))
        self._before_the_pass()

    def check(self, n_rows: int) -> None:
        if depth(self.boxes) == 3:
            check_rows(self.boxes, n_rows, "lists of boxes")

    def turn(self, row: int, turn: Turn) -> Turn:
        first, *others = turn.images
        boxes = self.boxes[row] if depth(self.boxes) == 3 else self.boxes
        boxes = evidence_of(row, turn) if boxes == EVIDENCE else boxes
        pixels, cover = np.array(first), self._cover(first)
        for x0, y0, x1, y1 in (pixels_of(box, first.size, row) for box in boxes):
            pixels[y0:y1, x0:x1] = cover[y0:y1, x0:x1]
        return replace(turn, images=(Image.fromarray(pixels), *others))

    def _cover(self, picture: Image.Image) -> np.ndarray:
        """(height, width, 3): what is seen where the picture is covered."""
        pixels = np.asarray(picture)
        if self.fill == "blur":
            return np.asarray(picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 10)))
        colour = np.rint(pixels.mean((0, 1))) if self.fill == "mean" else self.fill
        return np.broadcast_to(np.asarray(colour, dtype=np.uint8), pixels.shape)


def _fill(fill: str | Sequence[int]) -> str | Colour:
    colour = plain(fill)
    if colour in ("mean", "blur"):
        return colour
    good = isinstance(colour, tuple) and len(colour) == 3
    if not good or not all(whole(part) is not None and 0 <= part <= 255 for part in colour):
        raise BadEdit(f"fill is 'mean', 'blur' or a colour (r, g, b), whole numbers in 0-255; got {fill!r}")
    return colour if isinstance(colour, str) else tuple(map(whole, colour))


@dataclass(frozen=True, eq=False, repr=False)
class Noise(ImageEdit):
    """Noise over the picture: I′ = clip(127.5 + keep·(I − 127.5) + 255·sigma·ε, 0, 255), rounded.

    ε is standard normal, a number for each pixel and channel, drawn from ``seed``, the picture and the
    question: a row gets the same noise alone and in any batch. ``sigma=0, keep=1`` changes nothing, bit for
    bit.
    """

    sigma: float
    keep: float = 1.0
    seed: int = 0
    when: str = "both"

    def __post_init__(self):
        if not (is_number(self.sigma) and self.sigma >= 0):
            raise BadEdit(f"sigma is a share of a pixel's range, 0 or more; got {self.sigma!r}")
        if not (is_number(self.keep) and 0 <= self.keep <= 1):
            raise BadEdit(f"keep is the share of the contrast that is left, in [0, 1]; got {self.keep!r}")
        if whole(self.seed) is None:
            raise BadEdit(f"a seed is a whole number, got {self.seed!r}")
        self._say(sigma=number(self.sigma), keep=number(self.keep), seed=whole(self.seed))
        self._before_the_pass()

    @classmethod
    def diffused(cls, step: int, seed: int = 0) -> Noise:
        """The forward diffusion of VCD (arXiv 2311.16922) at ``step`` of its 1000 noise steps, 0-999.

        x_t = √ᾱ_t·x + √(1 − ᾱ_t)·ε, with ᾱ the running product of 1 − β, and β = sigmoid(u)·(0.5e-2 − 1e-5)
        + 1e-5 for u in 1000 steps from −6 to 6, as in the authors' code. They add it to the tensor that the
        processor has normalized. Here it is added to the picture, before the processor, in the space
        x = (I/255 − 0.5)/0.25, where pictures have about mean 0 and deviation 1; what leaves the range of a
        pixel is clipped.
        """
        if whole(step) is None or not 0 <= step < 1000:
            raise BadEdit(f"a step of the diffusion is a whole number in 0-999, got {step!r}")
        betas = (0.5e-2 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, 1000))) + 1e-5
        kept = float(np.cumprod(1 - betas)[step])
        return cls(sigma=0.25 * (1 - kept) ** 0.5, keep=kept**0.5, seed=seed)

    def turn(self, row: int, turn: Turn) -> Turn:
        first, *others = turn.images
        pixels = np.asarray(first)
        draw = np.random.default_rng(self._entropy(pixels, turn.question)).standard_normal(pixels.shape)
        noisy = 127.5 + self.keep * (pixels - 127.5) + 255 * self.sigma * draw
        noisy = np.rint(noisy.clip(0, 255)).astype(np.uint8)
        return replace(turn, images=(Image.fromarray(noisy), *others))

    def _entropy(self, pixels: np.ndarray, question: str) -> int:
        """A number that depends on the seed, the picture and the question, and on nothing else."""
        content = hashlib.sha256(f"{self.seed} {pixels.shape} {question}".encode())
        content.update(pixels.tobytes())
        return int.from_bytes(content.digest())
