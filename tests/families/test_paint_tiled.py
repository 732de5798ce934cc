"""Tokens look where their family says: a painted region moves the features of the tokens on it, no others.

The towers are copies whose attention adds nothing, so that a feature depends on its own patch alone. What
is left to leak is the resize: a filter reaches two pixels of the coarser of its two pictures.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny.pictures import noise, painted
from tiny.tiled import BUILDERS

import seeing
from seeing.families.family import FamilyContractError
from seeing.families.llava_next import LlavaNext, LlavaOnevision
from seeing.families.mllama import Mllama
from seeing.grid import Box, VisualGrid

FAMILIES = {family.name: family for family in (LlavaNext(), LlavaOnevision(), Mllama())}
LANDSCAPE, PORTRAIT, LONG, HIGH, SMALL = (76, 52), (50, 90), (300, 30), (29, 290), (5, 3)
THIN, LINE = (1, 200), (200, 1)
#: Exact multiples of a tile, of 28 or 30 pixels, and a square that OneVision's canvas shrinks.
TILES = (56, 84), (90, 60), (28, 28), (120, 30), (90, 90)

sizes = st.tuples(st.integers(1, 200), st.integers(1, 200))
corners = st.tuples(*[st.floats(0, 1)] * 4)


@functools.cache
def parts(name: str):
    """The family, its tiny model without mixing in the tower, and the processor."""
    family = FAMILIES[name]
    model, processor = BUILDERS[name]()
    model = copy.deepcopy(model)
    stack = family.vision(model)
    with torch.no_grad():
        for layer in range(len(stack)):
            for weight in getattr(stack.attention(layer), stack.out).parameters():
                weight.zero_()
    return family, model, processor


def inputs_of(name: str, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    """What the processor makes of one row with these pictures."""
    family, _, processor = parts(name)
    text = family.placeholder(processor) * len(pictures)
    return processor(text=[text], images=family.pictures([pictures]), return_tensors="pt")


@torch.no_grad()
def features_of(name: str, pictures: list[Image.Image]) -> torch.Tensor:
    """(token, width): of every picture of the row, in the order of the tokens or keys."""
    family, model, _ = parts(name)
    inputs = inputs_of(name, pictures)
    if name == "mllama":
        seen = model.model.vision_model(
            **{key: inputs[key] for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
        )
        return family.projector(model)(seen.last_hidden_state).flatten(0, 3)
    keys = ("pixel_values", "image_sizes", "batch_num_images")
    seen = model.model.get_image_features(**{key: inputs[key] for key in keys if key in inputs})
    return torch.cat(list(seen.pooler_output))


def grid_of(name: str, size: tuple[int, int], index: int = 0) -> VisualGrid:
    """The places of what `features_of` gives for a picture."""
    family, model, processor = parts(name)
    if name == "mllama":
        return family.cross_grid(model, processor, size, index)
    count = family.n_tokens(model, processor, size)
    return family.grid(model, processor, size, torch.arange(count))


def reach(name: str, grid: VisualGrid) -> torch.Tensor:
    """(token, 2): how far beyond its box, in pixels of the original, a token may look along x and y."""
    _, model, _ = parts(name)
    config = model.config.vision_config
    found = torch.full((len(grid), 2), torch.nan, dtype=torch.float64)
    for level in grid.levels:
        squashed = level.name == "thumbnail"
        seen = (config.image_size,) * 2 if squashed else grid.view.size
        per_pixel = torch.tensor(grid.image_size).double() / torch.tensor(seen)
        mixes = 0 if squashed or name != "llava_onevision" else config.patch_size
        found[level.tokens] = 2.5 * per_pixel.clamp(min=1) + mixes * per_pixel
    return found


def check(name: str, grid: VisualGrid, moved: torch.Tensor, region: Box) -> None:
    box = torch.tensor([*map(float, region)], dtype=torch.float64)
    room, placed = reach(name, grid), grid.placed
    near = (grid.boxes[:, :2] - room < box[2:]).all(1) & (grid.boxes[:, 2:] + room > box[:2]).all(1)
    assert not moved[~placed].any(), "a token without a place moved"
    assert not (moved & ~near & placed).any(), "a token far from the painted region moved"
    area = (grid.boxes[:, 2:] - grid.boxes[:, :2]).prod(1)
    inside = (grid.boxes[:, :2] >= box[:2]).all(1) & (grid.boxes[:, 2:] <= box[2:]).all(1)
    for level in grid.levels:
        tokens = torch.as_tensor(level.tokens.ravel())
        # a cell that is nearly all border may be a share of a shrunk raster that no sample falls in
        whole = area[tokens] >= area[tokens].nan_to_num().max() / 2
        assert moved[tokens][inside[tokens] & whole].all(), f"a token of {level} on the region did not move"


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
@example(TILES[1], (0.0, 0.5, 0.34, 1.0))
@example(TILES[2], (0.5, 0.5, 0.7, 0.7))
@example(TILES[3], (0.7, 0.0, 1.0, 1.0))
@example(TILES[4], (0.3, 0.1, 0.9, 0.6))
def test_paint(name, size, corners):
    family, model, processor = parts(name)
    picture, region = noise(size), region_of(size, corners)
    found = inputs_of(name, [picture])["input_ids"] == family.image_token_id(model)
    assert int(found.sum()) == family.n_tokens(model, processor, size)
    plain, other = (features_of(name, [one]) for one in (picture, painted(picture, region)))
    grid = grid_of(name, size)
    assert len(plain) == len(grid)
    moved = (plain - other).abs().amax(1) > 1e-5
    assert moved.any() or name == "llava_onevision"
    check(name, grid, moved, region)


@pytest.mark.parametrize(("name", "size"), [*zip(FAMILIES, [(84, 28), (120, 30), (84, 28)])])
def test_a_picture_that_fits_its_canvas_is_known_to_the_pixel(name, size):
    """Nothing is resized, so nothing leaks: pixels between the patches of two tiles are in no token."""
    picture, grid = noise(size), grid_of(name, size)
    assert grid.view.size == size
    tiles = torch.tensor([kind == "tile" for kind in grid.kind])
    plain, unseen = features_of(name, [picture]), 0
    for x in range(12, 66):
        moved = (features_of(name, [painted(picture, (x, 9, x + 1, 10))]) - plain).abs().amax(1) > 1e-5
        assert torch.equal(moved[tiles], grid.labels([(x, 9, x + 1, 10)])[tiles])
        unseen += not moved[tiles].any()
    assert unseen == (4 if name == "llava_onevision" else 0)


@pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT, LONG, HIGH, SMALL, THIN, LINE, *TILES])
def test_tiles_of_mllama_are_those_that_its_processor_fills(size):
    used = inputs_of("mllama", [noise(size)])["aspect_ratio_mask"]
    assert int(used.sum()) == len(grid_of("mllama", size).levels)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llava_onevision"])
def test_two_pictures_of_a_row(name):
    """The features of a row are those of its pictures one by one, and each has its own places."""
    family, model, processor = parts(name)
    pictures, region = [noise(LANDSCAPE), noise(PORTRAIT, seed=1)], (5, 10, 40, 60)
    grids = [grid_of(name, picture.size, index) for index, picture in enumerate(pictures)]
    found = inputs_of(name, pictures)["input_ids"] == family.image_token_id(model)
    assert int(found.sum()) == sum(family.n_tokens(model, processor, picture.size) for picture in pictures)
    plain = features_of(name, pictures)
    other = features_of(name, [pictures[0], painted(pictures[1], region)])
    first, second = (plain - other).abs().amax(1).gt(1e-5).split([len(grid) for grid in grids])
    assert not first.any()
    check(name, grids[1], second, region)
    alone = torch.cat([features_of(name, [picture]) for picture in pictures])
    torch.testing.assert_close(plain, alone, rtol=1e-4, atol=1e-4)


def test_keys_of_a_second_picture_stand_behind_those_of_the_first():
    first, second = (grid_of("mllama", PORTRAIT, index) for index in (0, 1))
    assert second.positions.tolist() == (first.positions + len(first)).tolist()


@pytest.mark.parametrize(
    ("size", "kinds"), [(SMALL, {"thumbnail", "tile", "other"}), (THIN, {"thumbnail", "other"})]
)
def test_a_line_is_all_border_once_its_borders_are_cut_off(size, kinds):
    """Its aspect leaves no column of the canvas; the newlines stay."""
    assert set(grid_of("llava_next", size).kind) == kinds


def test_a_large_raster_is_shrunk():
    """Nine tiles are more than the tiny OneVision keeps; LLaVA-NeXT keeps all of its four."""
    n = BUILDERS["llava_onevision"]()[0].config.vision_config.image_size // 7
    level = grid_of("llava_onevision", (90, 90)).level("tile")
    assert level.rows == level.cols < 3 * n


@pytest.mark.parametrize("name", FAMILIES)
def test_a_processor_of_another_checkpoint_is_told_from_this_one(name):
    family, model, processor = parts(name)
    other = copy.deepcopy(processor)
    settings = other.image_processor
    settings.size = {"height": 14, "width": 14}
    settings.crop_size = {"height": 14, "width": 14}
    method = family.grid if name != "mllama" else family.cross_grid
    with pytest.raises(FamilyContractError, match="checkpoint"):
        method(model, other, LANDSCAPE, 0 if name == "mllama" else torch.arange(4))


@pytest.mark.parametrize("size", [(80, 40), (33, 90), (60, 60)])
def test_onevision_pads_the_pictures_of_a_row_that_has_several(size):
    """One square each and a newline; painted pixels move the tokens whose boxes they lie in."""
    model, processor = BUILDERS["llava_onevision"]()
    vlm = seeing.load((model, processor), check=False)
    with torch.no_grad():
        for layer in vlm.family.vision(model).layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.self_attn.out_proj.bias.zero_()
    other = Image.new("RGB", (50, 50), (90, 20, 200))
    before, after = (Image.new("RGB", size, (120, 130, 90)) for _ in range(2))
    x0, y0, x1, y1 = region = (size[0] // 3, size[1] // 2, size[0] // 3 + 20, size[1] // 2 + 18)
    after.paste((255, 0, 0), region)
    tokens = []
    for picture in (before, after):
        prompt = vlm.prompt([other, picture], "why ?")
        grid = prompt.grids[1]
        tokens.append(vlm.cache(prompt, "text.embed")["text.embed"][0, grid.positions])
    assert len(grid) == grid.levels[0].rows ** 2 + 1
    moved = (tokens[0] - tokens[1]).abs().amax(1)
    moved = moved > 1e-3 * moved.max()
    leak = 3 * max(size) / 30
    wide = [(max(x0 - leak, 0), max(y0 - leak, 0), min(x1 + leak, size[0]), min(y1 + leak, size[1]))]
    assert not moved[~grid.labels(wide)].any()
    assert moved[grid.labels([region], rule="half")].all()
    assert not moved[-1]
