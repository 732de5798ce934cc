"""How a plates scene becomes pixels. It knows shapes, glyphs and light, and nothing of questions or splits.

An image is 112 x 112 RGB: a textured background, small scraps of clutter, objects on a 4 x 4 lattice of 28-px
cells. An object is a coloured shape that spans 26 x 26 px, with a white plate that carries a digit. The plate
stays inside the lower-right 14 x 14 patch of the cell: a digit that is cut by patch borders is not learnt by
a tower this small.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

SIDE = 112
PATCH = 14
CELL = 28
LATTICE = SIDE // CELL
CELLS = LATTICE * LATTICE
SPAN = 26
"""Side of an object in pixels; it is shifted by 0 to CELL - SPAN px inside its cell."""

COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.12, 0.60, 0.18),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.90, 0.82, 0.10),
    "purple": (0.58, 0.18, 0.70),
    "cyan": (0.15, 0.75, 0.85),
}
SHAPES = ("square", "circle", "triangle", "diamond")

_GLYPH_ROWS = """
### .#. ### ### #.# ### ### ### ### ###
#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
#.# .#. ### ### ### ### ### ..# ### ###
#.# .#. #.. ..# ..# ..# #.# .#. #.# ..#
### ### ### ### ..# ### ### .#. ### ###
"""
_STROKE = 2
_PLATE_HIGH, _PLATE_WIDE = 12, 8


def _glyphs() -> Bool[np.ndarray, "10 12 8"]:
    """The ten plates as ink masks: a 3 x 5 glyph with two-pixel strokes and a margin of one pixel."""
    rows = [row.split() for row in _GLYPH_ROWS.split("\n") if row]
    cells = np.array([[[mark == "#" for mark in row[digit]] for row in rows] for digit in range(10)])
    ink = cells.repeat(_STROKE, axis=1).repeat(_STROKE, axis=2)
    return np.pad(ink, ((0, 0), (1, 1), (1, 1)))


def _masks() -> Bool[np.ndarray, "4 26 26"]:
    """The shapes in the order of SHAPES; each touches all four sides of its square, so its box is exact."""
    y, x = np.mgrid[:SPAN, :SPAN]
    half = SPAN / 2
    dy, dx = np.abs(y + 0.5 - half), np.abs(x + 0.5 - half)
    return np.stack([dy < SPAN, dy**2 + dx**2 <= half**2, dx <= (y + 1) / 2, dy + dx <= half])


GLYPHS = _glyphs()
MASKS = _masks()
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Scenes:
    """What stands in a batch of images. Entries past `count` of an image are padding and are not painted.

    `cell`, `colour`, `shape`, `digit`: (image, slot) with 16 slots; `corner`: (image, slot, xy), the object's
    upper left pixel; `count`: objects an image; `hard`: whether the first object's neighbours share its
    colour or shape.
    """

    count: Int[np.ndarray, " image"]
    hard: Bool[np.ndarray, " image"]
    cell: Int[np.ndarray, "image 16"]
    colour: Int[np.ndarray, "image 16"]
    shape: Int[np.ndarray, "image 16"]
    digit: Int[np.ndarray, "image 16"]
    corner: Int[np.ndarray, "image 16 2"]

    def __len__(self) -> int:
        return len(self.count)


@dataclass(frozen=True, eq=False)
class Light:
    """How clean the picture is, one value an image: `noise` is the sigma of Gaussian noise in units of the
    full range, `contrast` scales distances from mid grey, `clutter` counts scraps, `dimmest` is the floor of
    a smooth random illumination (1 leaves the image as it is).
    """

    noise: Float[np.ndarray, " image"]
    contrast: Float[np.ndarray, " image"]
    clutter: Int[np.ndarray, " image"]
    dimmest: Float[np.ndarray, " image"]


def _enlarge(grid: Float[np.ndarray, "image h w channel"]) -> Float[np.ndarray, "image 112 112 channel"]:
    """Bilinear enlargement of a coarse grid to the whole image, as two small matrix products."""

    def weights(knots: int) -> np.ndarray:
        at = np.linspace(0, knots - 1, SIDE)[:, None]
        return np.maximum(0, 1 - np.abs(at - np.arange(knots))).astype(np.float32)

    return np.einsum("yh,nhwc,xw->nyxc", weights(grid.shape[1]), grid, weights(grid.shape[2]), optimize=True)


def _background(n: int, rng: np.random.Generator) -> Float[np.ndarray, "image 112 112 3"]:
    """Soft colour clouds under stripes of a random direction, period and strength."""
    clouds = _enlarge(rng.uniform(0.2, 0.8, (n, 5, 5, 3)).astype(np.float32))
    angle, period, phase, strength = rng.uniform(
        [[0.0], [5.0], [0.0], [0.0]], [[np.pi], [20.0], [2 * np.pi], [0.12]], (4, n)
    ).astype(np.float32)
    at = np.arange(SIDE, dtype=np.float32)
    turn = 2 * np.pi / period
    along = (turn * np.sin(angle))[:, None, None] * at[:, None] + (turn * np.cos(angle))[:, None, None] * at
    clouds += (strength[:, None, None] * np.sin(along + phase[:, None, None]))[..., None]
    return clouds


def _scraps(
    canvas: Float[np.ndarray, "image 112 112 3"], clutter: np.ndarray, rng: np.random.Generator
) -> None:
    """Paint small rectangles in shades of the object colours over the background, in place."""
    image = np.repeat(np.arange(len(canvas)), clutter)
    total = len(image)
    high, wide = rng.integers(3, 13, (2, total))
    top, left = rng.integers(-2, SIDE - 3, (2, total)).clip(0)
    shade = _PALETTE[rng.integers(len(_PALETTE), size=total)] + rng.normal(0, 0.12, (total, 3)).astype(
        np.float32
    )
    for i, y, x, h, w, ink in zip(image, top, left, high, wide, shade, strict=True):
        canvas[i, y : y + h, x : x + w] = ink


def _objects(canvas: Float[np.ndarray, "image 112 112 3"], scenes: Scenes, rng: np.random.Generator) -> None:
    """Paint each object and its plate, in place."""
    n, slots = scenes.cell.shape
    body = _PALETTE[scenes.colour] + rng.normal(0, 0.04, (n, slots, 3)).astype(np.float32)
    paper = rng.uniform(0.88, 1.0, (n, slots)).astype(np.float32)
    ink = rng.uniform(0.0, 0.15, (n, slots)).astype(np.float32)
    origin = np.stack([scenes.cell % LATTICE, scenes.cell // LATTICE], axis=-1) * CELL
    # The plate lies in the patch and in the object's box, so it may move only as far as both allow.
    room = (scenes.corner - origin) + SPAN - PATCH - np.array([_PLATE_WIDE, _PLATE_HIGH])
    plate = origin + PATCH + np.floor(rng.random((n, slots, 2)) * (room + 1)).astype(int)
    for i in range(n):
        for j in range(scenes.count[i]):
            x, y = scenes.corner[i, j]
            canvas[i, y : y + SPAN, x : x + SPAN][MASKS[scenes.shape[i, j]]] = body[i, j]
            x, y = plate[i, j]
            marks = np.where(GLYPHS[scenes.digit[i, j]], ink[i, j], paper[i, j])
            canvas[i, y : y + _PLATE_HIGH, x : x + _PLATE_WIDE] = marks[..., None]


def _illumination(dimmest: Float[np.ndarray, " image"], rng: np.random.Generator) -> np.ndarray:
    """A smooth field an image, between `dimmest` and 1; a random band of that range, so it may also dim
    evenly.
    """
    n = len(dimmest)
    low, high = np.sort(rng.uniform(0, 1, (2, n)), axis=0)
    knots = low[:, None, None] + (high - low)[:, None, None] * rng.uniform(0, 1, (n, 4, 4))
    knots = 1 - (1 - dimmest)[:, None, None] * knots
    return _enlarge(knots[..., None].astype(np.float32))


def paint(scenes: Scenes, light: Light, rng: np.random.Generator) -> UInt8[np.ndarray, "image 112 112 3"]:
    """The images of `scenes` under `light`, (image, y, x, rgb) in 0..255; every random stroke comes from
    `rng`.
    """
    canvas = _background(len(scenes), rng)
    _scraps(canvas, light.clutter, rng)
    _objects(canvas, scenes, rng)
    each = (slice(None), None, None, None)
    canvas = 0.5 + light.contrast.astype(np.float32)[each] * (canvas - 0.5)
    canvas += light.noise.astype(np.float32)[each] * rng.standard_normal(canvas.shape, dtype=np.float32)
    canvas = canvas.clip(0, 1)
    dimmed = light.dimmest < 1
    if dimmed.any():
        canvas[dimmed] *= _illumination(light.dimmest[dimmed], rng)
    return (255 * canvas + 0.5).astype(np.uint8)
