"""Tokens look where their family says: a painted region moves the features of the tokens on it, no others.

The towers are copies whose attention adds nothing, so that a feature depends on its own patches alone. What
is left to leak is the resize, which reaches as far as its filter does in pixels of the coarser picture.
"""

from __future__ import annotations

import copy
import functools
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny.pictures import noise, painted
from tiny.tiles_last import BUILDERS, SIDE, cohere2_rule
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.idefics3.image_processing_pil_idefics3 import (
    Idefics3ImageProcessorPil,
    get_resize_output_image_size,
)

from seeing.families.aya_vision import AyaVision, Cohere2Vision, closest_canvas
from seeing.families.family import FamilyContractError
from seeing.families.idefics3 import Idefics3
from seeing.families.internvl import InternVL, nearest_canvas
from seeing.grid import VisualGrid

FAMILIES = {
    "internvl": InternVL(),
    "internvl-gap": InternVL(),
    "aya_vision": AyaVision(),
    "cohere2_vision": Cohere2Vision(),
    "idefics3": Idefics3(),
    "smolvlm": Idefics3(),
}
LANDSCAPE, PORTRAIT, LONG, HIGH, SMALL = (76, 52), (50, 90), (300, 30), (29, 290), (5, 3)
THIN, LINE = (1, 200), (200, 1)
#: Exact multiples of a tile.
TILES = (56, 84), (28, 28), (112, 56), (168, 28)

sizes = st.tuples(st.integers(1, 200), st.integers(1, 200))
corners = st.tuples(*[st.floats(0, 1)] * 4)


@functools.cache
def parts(name: str):
    """The family, its tiny model without mixing in the tower, and the processor."""
    family = FAMILIES[name]
    model, processor = BUILDERS[name.removesuffix("-gap")]()
    if name.endswith("-gap"):
        # the patches leave the last pixels of a tile out
        processor.image_processor.size = {"height": SIDE + 5, "width": SIDE + 5}
    stack = family.vision(model)
    with torch.no_grad():
        for layer in range(len(stack)):
            for weight in getattr(stack.attention(layer), stack.out).parameters():
                weight.zero_()
    return family, model, processor


def inputs_of(name: str, rows: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
    """What the processor makes of rows with these pictures."""
    family, _, processor = parts(name)
    text = [family.placeholder(processor) * len(row) for row in rows]
    return processor(text=text, images=family.pictures(rows), padding=True, return_tensors="pt")


@torch.no_grad()
def features_of(name: str, *rows: list[Image.Image]) -> torch.Tensor:
    """(token, width): of every picture of every row, in the order of the image tokens."""
    _, model, _ = parts(name)
    inputs = inputs_of(name, list(rows))
    keys = ("pixel_values", "pixel_attention_mask")
    seen = model.model.get_image_features(**{key: inputs[key] for key in keys if key in inputs}).pooler_output
    return torch.cat(list(seen))


def grid_of(name: str, size: tuple[int, int]) -> VisualGrid:
    family, model, processor = parts(name)
    return family.grid(model, processor, size, torch.arange(family.n_tokens(model, processor, size)))


def reach(name: str, grid: VisualGrid, whole: bool) -> torch.Tensor:
    """(2,): how far beyond its box, in pixels of the original, a token may look along x and y."""
    _, _, processor = parts(name)
    width, height = grid.image_size
    steps, taps, side = [grid.image_size], 2.5, dict(processor.image_processor.size).get("height")
    if name in ("idefics3", "smolvlm"):
        found = get_resize_output_image_size(
            np.empty((3, height, width)), processor.image_processor.size["longest_edge"]
        )
        steps, taps = [*steps, found[::-1], grid.view.size], 3.5
        side = processor.image_processor.max_image_size["longest_edge"]
    steps.append((side, side) if whole else grid.view.size)
    pixels = torch.tensor([width, height]).double() / torch.tensor(steps)
    return taps * torch.maximum(pixels[1:], pixels[:-1]).sum(0)


def check(name: str, grid: VisualGrid, moved: torch.Tensor, region: tuple[int, int, int, int]) -> None:
    box = torch.tensor([*map(float, region)], dtype=torch.float64)
    assert grid.placed.all()
    for level in grid.levels:
        tokens = torch.as_tensor(level.tokens.ravel())
        boxes, room = grid.boxes[tokens], reach(name, grid, level.name == "thumbnail")
        near = (boxes[:, :2] - room < box[2:]).all(1) & (boxes[:, 2:] + room > box[:2]).all(1)
        assert not (moved[tokens] & ~near).any(), f"a token of {level} far from the painted region moved"
        inside = (boxes[:, :2] >= box[:2]).all(1) & (boxes[:, 2:] <= box[2:]).all(1)
        assert moved[tokens][inside].all(), f"a token of {level} on the painted region did not move"


def region_of(size: tuple[int, int], corners: tuple[float, ...]) -> tuple[int, int, int, int]:
    """A region of whole pixels inside the picture, never empty."""
    (x0, x1), (y0, y1) = (
        sorted((int(a * (length - 1)), int(b * (length - 1))))
        for a, b, length in zip(corners[:2], corners[2:], size)
    )
    return x0, y0, x1 + 1, y1 + 1


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(size=sizes, corners=corners)
@example(LANDSCAPE, (0.2, 0.3, 0.7, 0.8))
@example(PORTRAIT, (0.0, 0.5, 0.5, 1.0))
@example(LONG, (0.3, 0.0, 0.6, 0.5))
@example(HIGH, (0.5, 0.5, 1.0, 0.9))
@example(SMALL, (0.0, 0.0, 0.5, 0.0))
@example(THIN, (0.0, 0.4, 1.0, 0.7))
@example(LINE, (0.4, 0.0, 0.7, 1.0))
@example(TILES[0], (0.5, 0.0, 0.99, 0.5))
@example(TILES[1], (0.5, 0.5, 0.7, 0.7))
@example(TILES[2], (0.0, 0.5, 0.34, 1.0))
@example(TILES[3], (0.7, 0.0, 1.0, 1.0))
def test_paint(name, size, corners):
    family, model, processor = parts(name)
    picture, region = noise(size), region_of(size, corners)
    found = inputs_of(name, [[picture]])["input_ids"] == family.image_token_id(model)
    assert int(found.sum()) == family.n_tokens(model, processor, size)
    plain, other = (features_of(name, [one]) for one in (picture, painted(picture, region)))
    grid = grid_of(name, size)
    assert len(plain) == len(grid)
    moved = (plain - other).abs().amax(1) > 1e-5
    assert moved.any() or name == "internvl-gap"
    check(name, grid, moved, region)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rows", [[[LANDSCAPE, PORTRAIT]], [[LANDSCAPE], [PORTRAIT]]])
def test_two_pictures(name, rows):
    """The features of two pictures are those one by one, in a row or in two; each has its own places."""
    region = (5, 10, 40, 60)
    first, second = noise(LANDSCAPE), noise(PORTRAIT, seed=1)
    fill = {LANDSCAPE: first, PORTRAIT: second}
    plain = features_of(name, *[[fill[size] for size in row] for row in rows])
    torch.testing.assert_close(
        plain, torch.cat([features_of(name, [one]) for one in (first, second)]), rtol=1e-4, atol=1e-4
    )
    fill[PORTRAIT] = painted(second, region)
    other = features_of(name, *[[fill[size] for size in row] for row in rows])
    grids = [grid_of(name, size) for size in (LANDSCAPE, PORTRAIT)]
    still, moved = (plain - other).abs().amax(1).gt(1e-5).split([len(grid) for grid in grids])
    assert not still.any()
    check(name, grids[1], moved, region)


def some_sizes(n: int = 400) -> list[tuple[int, int]]:
    """Sizes as photographs have them, and all small ones, where rounding shows."""
    draw = random.Random(0)
    wide = [(draw.randint(1, 3000), draw.randint(1, 3000)) for _ in range(n)]
    return wide + [(draw.randint(1, 90), draw.randint(1, 90)) for _ in range(n)]


@pytest.mark.parametrize(("side", "fewest", "most"), [(448, 1, 12), (364, 1, 12), (30, 2, 6), (448, 1, 1)])
def test_the_nearest_canvas_is_the_processors(side, fewest, most):
    processor = copy.deepcopy(parts("internvl")[2])
    processor.image_processor.size = {"height": side, "width": side}
    processor.image_processor.min_patches, processor.image_processor.max_patches = fewest, most
    for width, height in [*some_sizes(), (side, side), (2 * side, side), (2 * side, 2 * side), (side, 1)]:
        expected = get_optimal_tiled_canvas((height, width), (side, side), fewest, most)
        assert nearest_canvas("internvl", processor, (width, height)) == expected


@pytest.mark.parametrize(("side", "most"), [(512, 12), (30, 6), (512, 1)])
def test_the_closest_canvas_is_the_processors(side, most):
    rule = cohere2_rule()
    for width, height in [*some_sizes(), (side, side), (2 * side, side), (3 * side, 3 * side), (side, 1)]:
        expected = rule((height, width), (side, side), 1, most)
        assert closest_canvas((width, height), side, most) == tuple(expected)


class Sizes(Idefics3ImageProcessorPil):
    """The processor, with empty pictures for resized ones."""

    def resize(self, image, size, **kwargs):
        if size.longest_edge:
            height, width = get_resize_output_image_size(image, size.longest_edge)
        else:
            height, width = size.height, size.width
        return np.broadcast_to(np.float32(0), (3, height, width))


@pytest.mark.parametrize(("longest", "side"), [(1456, 364), (2048, 512), (512, 512), (5000, 364), (60, 28)])
def test_the_split_is_the_processors(longest, side):
    settings = Sizes(size=dict(longest_edge=longest), max_image_size=dict(longest_edge=side))
    for width, height in [*some_sizes(), (side, side), (2 * side, side), (1, 3000), (3000, 1)]:
        image = np.broadcast_to(np.float32(0), (3, height, width))
        image = settings.resize_for_vision_encoder(settings.resize(image, settings.size), side)
        _, rows, cols = settings.split_images(image, settings.max_image_size)
        assert FAMILIES["idefics3"]._canvas(settings, (width, height)) == (max(cols, 1), max(rows, 1))


def changed(name: str, **values):
    """The processor with other settings of its image processor."""
    family, model, processor = parts(name)
    processor = copy.deepcopy(processor)
    for key, value in values.items():
        setattr(processor.image_processor, key, value)
    return family, model, processor


@pytest.mark.parametrize(
    ("name", "off"), [("cohere2_vision", "crop_to_patches"), ("idefics3", "do_image_splitting")]
)
def test_a_picture_that_is_not_tiled_is_one_raster(name, off):
    family, model, processor = changed(name, **{off: False})
    count = family.n_tokens(model, processor, LANDSCAPE)
    inputs = processor(text=family.placeholder(processor), images=noise(LANDSCAPE), return_tensors="pt")
    assert count == int((inputs["input_ids"] == family.image_token_id(model)).sum())
    (level,) = family.grid(model, processor, LANDSCAPE, torch.arange(count)).levels
    assert (level.name, level.rows * level.cols) == ("patch", count)


@pytest.mark.parametrize("name", ["internvl", "aya_vision"])
def test_tiles_are_made_whatever_the_image_processors_own_setting(name):
    """Its default is no tiles, and the processor asks for them."""
    family, model, processor = changed(name, crop_to_patches=False)
    assert "thumbnail" in {level.name for level in grid_of(name, LANDSCAPE).levels}
    assert family.n_tokens(model, processor, LANDSCAPE) == len(grid_of(name, LANDSCAPE))


def test_the_first_resize_may_be_to_a_given_size_or_left_out():
    for change in (dict(size=dict(height=56, width=84)), dict(do_resize=False)):
        family, model, processor = changed("idefics3", **change)
        inputs = processor(text="<image>", images=noise(PORTRAIT), return_tensors="pt")
        found = int((inputs["input_ids"] == family.image_token_id(model)).sum())
        assert found == family.n_tokens(model, processor, PORTRAIT)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_processor_of_another_checkpoint_is_told_from_this_one(name):
    other = dict(height=14, width=14), dict(longest_edge=14)
    family, model, processor = changed(name, size=other[0], max_image_size=other[1])
    with pytest.raises(FamilyContractError, match="checkpoint"):
        family.n_tokens(model, processor, LANDSCAPE)


def test_sizes_that_no_family_reads_are_told():
    family, model, processor = changed("aya_vision", size=dict(height=28, width=56))
    with pytest.raises(FamilyContractError, match="squares"):
        family.n_tokens(model, processor, LANDSCAPE)
    family, model, processor = changed("smolvlm", size=dict(shortest_edge=100))
    with pytest.raises(FamilyContractError, match="longest_edge"):
        family.grid(model, processor, LANDSCAPE, torch.arange(4))
