"""A run made of invented numbers that fit each other, so that the report is tested without a model."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from seeing.study.result import DemoResult, DepthCurve, GalleryItem, Head, MethodRow, Rule, Share

NASTY = "<script>alert(1)</script><b>$x$</b> %{x} </SCRIPT> \"' & é 漢"

NOTHING = Share(math.nan, math.nan, math.nan, 0)

# method, acts on, through, fixed and broken in a thousand
METHODS = (
    ("vea", "own", "pixels", 40, 66, "the paper's highlight: denoise, smooth, α = 0.5, boundary nearest"),
    ("vea-authors", "own", "pixels", 22, 91, "the same with the authors' boundary, reflect"),
    ("window-highlight", "own", "pixels", 141, 47, "highlight the best 2 × 2 window, α = 0.5"),
    ("boost-in-pass", "own", "attention", 86, 20, "read early layers, act on late ones, in one pass; γ = 16"),
    ("second-look", "own", "attention", 130, 26, "run the last token again with the region boosted, γ = 4"),
    ("oracle-highlight", "evidence", "pixels", 180, 30, "highlight the evidence box"),
    ("oracle-attention", "evidence", "attention", 181, 9, "boost attention to the evidence box, γ = 4"),
    ("random-window-attention", "random", "attention", 31, 41, "boost attention to a random window"),
    ("random-window-highlight", "random", "pixels", 32, 172, "highlight a random window"),
    ("all-image-attention", "image", "attention", 18, 15, "boost attention to every image token"),
)


def wilson(right: int, n: int) -> tuple[float, float, float]:
    """A share with its 95 % Wilson interval."""
    share, z = right / n, 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return share, max(0.0, centre - half), min(1.0, centre + half)


def _row(
    method: str, n: int, right: int, fixed: int, broken: int, acts_on: str, through: str, about: str
) -> MethodRow:
    delta = (fixed - broken) / n
    half = 1.96 * math.sqrt(max(fixed + broken - (fixed - broken) ** 2 / n, 0.0)) / n
    z = abs(fixed - broken) / math.sqrt(max(1, fixed + broken))
    return MethodRow(
        method,
        n,
        *wilson(right + fixed - broken, n),
        delta,
        max(-1.0, delta - half),
        min(1.0, delta + half),
        fixed,
        broken,
        math.erfc(z / math.sqrt(2)),
        acts_on,
        through,
        about,
    )


def _curves(layers: int, right: int, wrong: int, rng: np.random.Generator) -> tuple[DepthCurve, ...]:
    shape = {
        ("auroc", "evidence"): np.interp(
            np.linspace(0, 1, layers), [0, 0.2, 0.7, 1], [0.6, 0.95, 0.94, 0.88]
        ),
        ("rapt", "evidence"): np.linspace(1.1, 7.0, layers),
        ("rapt", "non-evidence"): np.linspace(0.9, 0.6, layers),
        ("rapt", "image"): np.linspace(0.95, 1.02, layers),
        ("rapt", "question"): np.linspace(2.6, 0.4, layers),
    }
    made = []
    for (metric, segment), mean in shape.items():
        for group, n, factor in (("correct", right, 1.0), ("wrong", wrong, 0.95)):
            value = mean * factor + 0.01 * rng.standard_normal(layers)
            half = 0.5 * value / math.sqrt(max(n, 1))
            made.append(
                DepthCurve(metric, segment, group, value, value - half, np.minimum(value + half, 9), n)
            )
    return tuple(made)


def _item(number: int, rng: np.random.Generator, side: int) -> GalleryItem:
    pixels = rng.integers(60, 200, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    draw, cell = ImageDraw.Draw(image), side / 4
    cells = rng.permutation(16)[:12]
    colours = ("#d33", "#3a3", "#36c", "#dc3", "#a3c", "#3bb")
    for i, at in enumerate(cells):
        x, y = cell * (at % 4), cell * (at // 4)
        draw.rectangle((x + 1, y + 1, x + cell - 3, y + cell - 3), fill=colours[i % 6])
        draw.rectangle((x + cell / 2, y + cell / 2, x + cell - 5, y + cell - 5), fill="white")
        draw.text((x + cell * 0.62, y + cell * 0.48), str(i % 10), fill="black")
    box = (
        cell * (cells[0] % 4),
        cell * (cells[0] // 4),
        cell * (cells[0] % 4 + 1),
        cell * (cells[0] // 4 + 1),
    )
    seen = number % 3 != 0
    look = cells[0] if seen else cells[1]
    region = (cell * (look % 4), cell * (look // 4), cell * (look % 4 + 1), cell * (look // 4 + 1))
    axis = (np.arange(56) + 0.5) * side / 56
    cx, cy = (region[0] + region[2]) / 2, (region[1] + region[3]) / 2
    bump = np.exp(-((axis[None] - cx) ** 2 + (axis[:, None] - cy) ** 2) / (2 * (side / 7) ** 2))
    bump = (bump - bump.min()) / (bump.max() - bump.min())
    wide = np.clip(bump**0.2, 0, 1)
    answers = {"base": str(number % 10), "vea": "3", "second-look": "0", "oracle-attention": "0"}
    correct = {
        "base": number % 4 < 2,
        "vea": number % 5 == 0,
        "second-look": number % 4 in (0, 2),
        "oracle-attention": True,
    }
    return GalleryItem(
        sample=f"crowded-{number:04d}",
        image=image,
        question="what digit is on the red square ?",
        truth=("0",),
        answers=answers,
        correct=correct,
        boxes=(box,),
        heat=bump[::7, ::7].copy(),
        region=region,
        seen=seen,
        maps={"nearest": wide, "reflect": wide[::-1, ::-1].copy()},
    )


def make(
    n: int = 256,
    wrong: int = 77,
    layers: int = 6,
    heads: int = 4,
    gallery: int = 24,
    side: int = 112,
    **changes: object,
) -> DemoResult:
    """A run of `n` samples of which the base gets `wrong` wrong; `changes` replace fields."""
    rng = np.random.default_rng(0)
    right = n - wrong
    seen_wrong, unseen_right = round(0.83 * wrong), round(0.06 * n)
    table = [MethodRow("base", n, *wilson(right, n), about="the question, the image as it is")]
    for method, acts_on, through, fixed, broken, about in METHODS:
        fixed, broken = min(wrong, round(fixed * n / 1000)), min(right, round(broken * n / 1000))
        table.append(_row(method, n, right, fixed, broken, acts_on, through, about))
    auroc = np.clip(0.55 + 0.4 * rng.random((layers, heads)) + 0.03 * np.arange(layers)[:, None], 0, 0.99)
    best = np.argsort(auroc, axis=None)[::-1][:4]
    chosen = tuple(Head(int(i // heads), int(i % heads), float(auroc.flat[i])) for i in best)
    result = DemoResult(
        model="plates-tiny",
        split="crowded",
        seed=0,
        n=n,
        calibration_n=200,
        layers=(1,),
        heads=chosen,
        auroc_heads=auroc,
        table=tuple(table),
        curves=_curves(layers, right, wrong, rng),
        wrong_seen=Share(*wilson(seen_wrong, wrong), wrong) if wrong else NOTHING,
        rule=Rule("second-look", seen_wrong / n, 0.55 if seen_wrong else math.nan, unseen_right / n, 0.2),
        gallery=tuple(_item(i, rng, side) for i in range(gallery)),
        command="seeing demo --split crowded --limit 256 --seed 0 --out demo",
        seconds=48.2,
        peak_mb=912.0,
        versions={"seeing": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "nnsight": "0.8.1"},
        notes=(
            "plates-tiny is an embedded model whose task and language prior were chosen to produce the "
            "effect: a test bed for the toolkit, not evidence about real vision-language models.",
        ),
    )
    return replace(result, **changes) if changes else result


@pytest.fixture(scope="session")
def run() -> Callable[..., DemoResult]:
    """`run(**changes)` makes an invented run."""
    return make


@pytest.fixture(scope="session")
def nasty() -> str:
    """Text that would act, were it not escaped."""
    return NASTY
