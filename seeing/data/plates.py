"""The embedded task: find the object that a question names, and read the digit on its plate.

"what digit is on the red square ?" takes two steps, find by colour and shape, then read. Both fail in ways
that can be told apart: the attention misses the object, or it finds it and the answer says something else.
`PRIOR` is a fixed table (colour, shape) -> digit. A model that was trained where digits often follow the
table has a reason to answer without looking, as real models have; at test time digits are uniform, or
contradict the table.

Images are generated, never stored. Each split and each training run draws from its own random stream, and the
streams carry different keys, so a test image is never a training image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from seeing.data.painting import (
    CELL,
    CELLS,
    COLOURS,
    LATTICE,
    PATCH,
    SHAPES,
    SIDE,
    SPAN,
    Light,
    Scenes,
    paint,
)
from seeing.data.samples import EvidenceSample

COLOUR_NAMES = tuple(COLOURS)
PRIOR: Mapping[tuple[str, str], int] = MappingProxyType(
    {
        (colour, shape): int(digit)
        for colour, digits in zip(COLOUR_NAMES, ("7204", "1385", "6920", "4157", "0638", "9471"), strict=True)
        for shape, digit in zip(SHAPES, digits, strict=True)
    }
)
"""The digit that a (colour, shape) pair "usually" carries; every digit stands in it two or three times."""

_TABLE = np.array([[PRIOR[colour, shape] for shape in SHAPES] for colour in COLOUR_NAMES])
_PAIRS = _TABLE.size
_ENTROPY = 20_251_017_771
_TRAINING, _TESTING = 0, 1
CHUNK = 64
"""Samples are drawn so many at a time, whole, so that one does not depend on how many are asked for."""
IGNORE = -100
"""The label of a patch that a per-patch head is not asked about."""


@dataclass(frozen=True)
class PlatesSplit:
    """A distribution of scenes. Ranges are inclusive, and each image draws its own value; their defaults are
    the light in which the last training stage ends, so a split that names only `objects` differs from it in
    nothing else.

    `objects`: how many; `noise`: sigma, in units of the full range; `contrast`: 1 is full; `clutter`: scraps
    of colour; `hard`: share of images whose objects resemble the first one; `prior`: chance that a digit
    follows `PRIOR`; `conflict`: digits never follow it; `dim`: chance of a smooth random illumination that
    goes down to `dimmest`.
    """

    objects: tuple[int, int]
    noise: tuple[float, float] = (0.02, 0.25)
    contrast: tuple[float, float] = (0.45, 1.0)
    clutter: tuple[int, int] = (0, 12)
    hard: float = 0.5
    prior: float = 0.0
    conflict: bool = False
    dim: float = 0.0
    dimmest: float = 0.4


SPLITS: Mapping[str, PlatesSplit] = MappingProxyType(
    {
        "calibration": PlatesSplit(objects=(6, 16)),
        "easy": PlatesSplit(objects=(2, 6)),
        "moderate": PlatesSplit(objects=(8, 12)),
        "crowded": PlatesSplit(objects=(14, 16)),
        "noisy": PlatesSplit(objects=(6, 10), noise=(0.18, 0.25), contrast=(0.45, 0.75), clutter=(10, 20)),
        "prior-conflict": PlatesSplit(objects=(14, 16), conflict=True),
    }
)
"""The test splits, frozen: a published number names its split, so a changed split needs a new name."""


@dataclass(frozen=True, eq=False)
class PlatesBatch:
    """Training images, `asked` questions an image, and what each patch shows.

    `colour`, `shape`, `digit`: (image, question), indices into COLOUR_NAMES, SHAPES and 0..9. `patch_colour`,
    `patch_shape`: (image, patch), one past the last index on background; `patch_digit`: IGNORE there.
    """

    images: UInt8[np.ndarray, "image 112 112 3"]
    colour: Int[np.ndarray, "image question"]
    shape: Int[np.ndarray, "image question"]
    digit: Int[np.ndarray, "image question"]
    patch_colour: Int[np.ndarray, "image patch"]
    patch_shape: Int[np.ndarray, "image patch"]
    patch_digit: Int[np.ndarray, "image patch"]


def question(colour: str, shape: str) -> str:
    """The question about one object, in the words of the embedded model's vocabulary."""
    return f"what digit is on the {colour} {shape} ?"


def plates(split: str, n: int, seed: int = 0) -> list[EvidenceSample]:
    """The first `n` samples of a split; the i-th is the same for every `n`.

    The evidence box is the object's. `meta` holds colour, shape, digit, prior (the table's digit), agrees
    (digit == prior), objects (how many), hard (neighbours resemble the target), and scene: (colour, shape,
    digit) of each object, the target first. Raises ValueError for a split that is not in SPLITS, and for n <
    1.
    """
    if split not in SPLITS:
        raise ValueError(
            f"no plates split {split!r}; expected one of {', '.join(SPLITS)}; pick one of these."
        )
    if n < 1:
        raise ValueError(f"asked for {n} samples of plates/{split}; expected 1 or more; raise n.")
    samples: list[EvidenceSample] = []
    while len(samples) < n:
        samples += chunk_of_plates(split, seed, len(samples) // CHUNK)
    return samples[:n]


def chunk_of_plates(split: str, seed: int, chunk: int) -> list[EvidenceSample]:
    """Samples `CHUNK * chunk` and on of a split."""
    scenes, images = _draw(SPLITS[split], CHUNK, split_stream(split, seed, chunk))
    return [_sample(f"plates/{split}/{seed}/{chunk * CHUNK + i}", scenes, images, i) for i in range(CHUNK)]


def training_batch(
    spec: PlatesSplit, images: int, asked: int, *, seed: int, stage: int, rank: int, step: int
) -> PlatesBatch:
    """One worker's share of one training step: `images` scenes of `spec`, `asked` questions about each."""
    rng = training_stream(seed, stage, rank, step)
    scenes, pixels = _draw(spec, images, rng)
    row = np.arange(images)[:, None]
    start = rng.integers(scenes.count)[:, None]
    slot = (start + np.arange(asked)) % scenes.count[:, None]

    side = SIDE // PATCH
    cell = np.arange(side) * PATCH // CELL
    cell_of_patch = (cell[:, None] * LATTICE + cell).ravel()
    standing = np.arange(CELLS) < scenes.count[:, None]

    def spread(values: np.ndarray, empty: int) -> np.ndarray:
        cells = np.full((images, CELLS), empty)
        cells[row, scenes.cell] = np.where(standing, values, empty)
        return cells[:, cell_of_patch]

    return PlatesBatch(
        images=pixels,
        colour=scenes.colour[row, slot],
        shape=scenes.shape[row, slot],
        digit=scenes.digit[row, slot],
        patch_colour=spread(scenes.colour, len(COLOUR_NAMES)),
        patch_shape=spread(scenes.shape, len(SHAPES)),
        patch_digit=spread(scenes.digit, IGNORE),
    )


def training_stream(seed: int, stage: int, rank: int, step: int) -> np.random.Generator:
    """The random stream of one worker at one step of one training stage."""
    return _stream(_TRAINING, seed, stage, rank, step)


def split_stream(split: str, seed: int, chunk: int) -> np.random.Generator:
    """The random stream of one chunk of a split. The names of splits are fixed, their order in SPLITS is
    not.
    """
    name = int.from_bytes(split.encode(), "big")
    return _stream(_TESTING, seed, chunk, name)


def _stream(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(_ENTROPY, spawn_key=key))


def _draw(
    spec: PlatesSplit, n: int, rng: np.random.Generator
) -> tuple[Scenes, UInt8[np.ndarray, "image 112 112 3"]]:
    low, high = spec.objects
    count = rng.integers(low, high + 1, n)
    hard = rng.random(n) < spec.hard
    pair = _pairs(hard, rng)
    colour, shape = pair // len(SHAPES), pair % len(SHAPES)
    cell = rng.permuted(np.tile(np.arange(CELLS), (n, 1)), axis=1)
    origin = np.stack([cell % LATTICE, cell // LATTICE], axis=-1) * CELL
    scenes = Scenes(
        count=count,
        hard=hard,
        cell=cell,
        colour=colour,
        shape=shape,
        digit=_digits(_TABLE[colour, shape], spec, rng),
        corner=origin + rng.integers(0, CELL - SPAN + 1, (n, CELLS, 2)),
    )
    light = Light(
        noise=rng.uniform(*spec.noise, n),
        contrast=rng.uniform(*spec.contrast, n),
        clutter=rng.integers(spec.clutter[0], spec.clutter[1] + 1, n),
        dimmest=np.where(rng.random(n) < spec.dim, spec.dimmest, 1.0),
    )
    return scenes, paint(scenes, light, rng)


def _pairs(hard: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, "image 16"]:
    """Sixteen different (colour, shape) pairs an image, in random order, the target's first. In a hard image
    those that share the target's colour or shape come before the others.
    """
    n = len(hard)
    order = rng.permuted(np.tile(np.arange(_PAIRS), (n, 1)), axis=1)
    target, others = order[:, :1], order[:, 1:]
    alike = (others // len(SHAPES) == target // len(SHAPES)) | (others % len(SHAPES) == target % len(SHAPES))
    later = np.argsort(~(alike & hard[:, None]), axis=1, kind="stable")
    return np.concatenate([target, np.take_along_axis(others, later, axis=1)], axis=1)[:, :CELLS]


def _digits(table: np.ndarray, spec: PlatesSplit, rng: np.random.Generator) -> Int[np.ndarray, "image 16"]:
    if spec.conflict:
        return (table + rng.integers(1, 10, table.shape)) % 10
    follows = rng.random(table.shape) < spec.prior
    return np.where(follows, table, rng.integers(0, 10, table.shape))


def _sample(
    name: str, scenes: Scenes, images: UInt8[np.ndarray, "image 112 112 3"], i: int
) -> EvidenceSample:
    scene = tuple(
        (COLOUR_NAMES[scenes.colour[i, j]], SHAPES[scenes.shape[i, j]], int(scenes.digit[i, j]))
        for j in range(scenes.count[i])
    )
    colour, shape, digit = scene[0]
    x, y = (int(edge) for edge in scenes.corner[i, 0])
    prior = PRIOR[colour, shape]
    return EvidenceSample(
        id=name,
        image=Image.fromarray(images[i]),
        question=question(colour, shape),
        answers=(str(digit),),
        boxes=((x, y, x + SPAN, y + SPAN),),
        meta={
            "colour": colour,
            "shape": shape,
            "digit": digit,
            "prior": prior,
            "agrees": digit == prior,
            "objects": len(scene),
            "hard": bool(scenes.hard[i]),
            "scene": scene,
        },
    )
