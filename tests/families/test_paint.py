"""Tokens look where their family says: a painted region moves the tokens on it, no others.

The towers are copies whose attention adds nothing, so that a token depends on its own patches alone. What
is left to leak is the resize, which reaches as far as its filter does in pixels of the coarser picture.
Pictures that are not resized are known to the pixel.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny.merged import BUILDERS as MERGED
from tiny.packed import BUILDERS as PACKED
from tiny.pictures import noise, painted

import seeing
from seeing.families import FamilyContractError
from seeing.grid import VisualGrid
from seeing.zoo import open_zoo

#: Mixtures of experts have the tower and the geometry of the dense models.
PACKED_NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v")
NAMES = ("llava", *PACKED_NAMES, *MERGED)
#: A picture that the processor takes as it is, in its smallest whole tokens.
AS_IT_IS = dict.fromkeys(NAMES, (70, 42)) | dict(
    llava=(112, 112), gemma3=(56, 56), paligemma=(56, 56), gemma4=(120, 84)
)
#: How far the filter reaches, in pixels of the coarser picture, and half a pixel of rounding.
TAPS = {Image.Resampling.BILINEAR: 1.5, Image.Resampling.BICUBIC: 2.5, Image.Resampling.LANCZOS: 3.5}

#: Small, but two tokens: Mistral 3's own model fails on a picture of one.
LANDSCAPE, PORTRAIT, LONG, HIGH, SMALL = (76, 52), (50, 90), (300, 30), (29, 290), (17, 5)
#: As long as the tiny Gemma 4 has positions for.
THIN, LINE = (1, 25), (25, 1)
MULTIPLES, SQUARE = (84, 56), (112, 112)

sides, shorts = st.integers(20, 130), st.integers(20, 25)
sizes = st.one_of(
    st.tuples(sides, sides),
    st.tuples(shorts, st.just(1)),
    st.tuples(st.just(1), shorts),
    sides.map(lambda side: (side, 10 * side)),
    sides.map(lambda side: (10 * side, side)),
)
corners = st.tuples(*[st.floats(0, 1)] * 4)
fast = settings(max_examples=6, deadline=None, derandomize=True)


@functools.cache
def vlm_of(name: str) -> seeing.VLM:
    """The tiny model of this name without mixing in the tower."""
    model, processor = open_zoo("plates-null") if name == "llava" else (PACKED | MERGED)[name]()
    model = copy.deepcopy(model)
    vlm = seeing.load((model, processor), check=False)
    stack = vlm.family.vision(model)
    with torch.no_grad():
        for layer in range(len(stack)):
            for weight in getattr(stack.attention(layer), stack.out).parameters():
                weight.zero_()
    return vlm


def region_of(size: tuple[int, int], corners: tuple[float, ...]) -> tuple[int, int, int, int]:
    """A region of whole pixels inside the picture, never empty."""
    (x0, x1), (y0, y1) = (
        sorted((int(a * (length - 1)), int(b * (length - 1))))
        for a, b, length in zip(corners[:2], corners[2:], size)
    )
    return x0, y0, x1 + 1, y1 + 1


def patches_of(name: str, grid: VisualGrid) -> VisualGrid:
    """The places of the tower's patches, of which merge × merge are a token."""
    merge = vlm_of(name)._module.config.vision_config.spatial_merge_size
    (level,) = grid.levels
    rows, cols = level.rows * merge, level.cols * merge
    return VisualGrid.regular(grid.image_size, grid.view, rows, cols, torch.arange(rows * cols))


def values_of(name: str, *pictures: Image.Image) -> tuple[dict[str, torch.Tensor], tuple[VisualGrid, ...]]:
    """What is looked at, a row each: image tokens, and of packed towers patches and features; the places."""
    vlm = vlm_of(name)
    prompt = vlm.prompt(list(pictures), "what digit ?")
    names = ["text.embed"] + ["vision.0.resid_pre", "projector.out"] * (name in PACKED_NAMES)
    seen = vlm.cache(prompt, names)
    tokens = torch.cat([grid.positions for grid in prompt.grids])
    return {
        key: value[0, tokens] if key == "text.embed" else value.flatten(0, -2) for key, value in seen.items()
    }, prompt.grids


def places_of(name: str, key: str, grids: tuple[VisualGrid, ...]) -> list[VisualGrid]:
    return [patches_of(name, grid) for grid in grids] if key == "vision.0.resid_pre" else list(grids)


def moved_by(plain: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(row,): which rows differ by more than rounding."""
    change = (plain - other).abs().amax(1)
    return change > max(1e-5, 1e-4 * float(change.max()))


def check(name: str, grid: VisualGrid, moved: torch.Tensor, region: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = grid.view.box
    per_pixel = torch.tensor([x1 - x0, y1 - y0]).double() / torch.tensor(grid.view.size)
    room = TAPS[vlm_of(name).processor.image_processor.resample] * per_pixel.clamp(min=1)
    box = torch.tensor([*map(float, region)], dtype=torch.float64)
    near = (grid.boxes[:, :2] - room < box[2:]).all(1) & (grid.boxes[:, 2:] + room > box[:2]).all(1)
    assert not (moved & ~near).any(), "a token far from the painted region moved"
    assert moved[grid.labels([region], "half")].all(), "a token on the painted region did not move"


def taken(name: str, size: tuple[int, int]) -> bool:
    """Whether the image processor takes such a picture; it may refuse lines, which have no raster then."""
    vlm = vlm_of(name)
    try:
        vlm.processor.image_processor([noise(size)])
    except ValueError:
        assert min(size) == 1
        with pytest.raises(ValueError):
            vlm.family.grid(vlm._module, vlm.processor, size, torch.arange(0))
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
@settings(fast, max_examples=30)
@given(size=sizes)
@example(LANDSCAPE)
@example(PORTRAIT)
@example(LONG)
@example(HIGH)
@example(SMALL)
@example(THIN)
@example(LINE)
@example(MULTIPLES)
@example(SQUARE)
@example((1, 1))
@example((5, 3))
@example((1, 150))
@example((150, 1))
@example((1, 300))
@example((300, 1))
def test_n_tokens_are_those_that_the_processor_writes(name, size):
    vlm = vlm_of(name)
    if not taken(name, size):
        return
    family, processor = vlm.family, vlm.processor
    inputs = processor(
        text=[family.placeholder(processor)], images=family.pictures([[noise(size)]]), return_tensors="pt"
    )
    written = int((inputs["input_ids"] == family.image_token_id(vlm._module)).sum())
    if name == "mistral3" and written == 1:
        # transformers' model can't run it: said before it is tried.
        with pytest.raises(FamilyContractError, match="becomes 1×1 tokens"):
            family.n_tokens(vlm._module, processor, size)
        return
    assert family.n_tokens(vlm._module, processor, size) == written > 0
    assert len(family.grid(vlm._module, processor, size, torch.arange(written))) == written


@pytest.mark.parametrize("name", NAMES)
@fast
@given(size=sizes, corners=corners)
@example(LANDSCAPE, (0.2, 0.3, 0.7, 0.8))
@example(PORTRAIT, (0.0, 0.5, 0.5, 1.0))
@example(LONG, (0.3, 0.0, 0.6, 0.5))
@example(HIGH, (0.5, 0.5, 1.0, 0.6))
@example(SMALL, (0.0, 0.0, 0.5, 0.0))
@example(THIN, (0.0, 0.4, 1.0, 0.7))
@example(LINE, (0.4, 0.0, 0.7, 1.0))
@example(MULTIPLES, (0.5, 0.0, 0.99, 0.5))
def test_paint(name, size, corners):
    if not taken(name, size):
        return
    picture, region = noise(size), region_of(size, corners)
    (plain, grids), (other, _) = values_of(name, picture), values_of(name, painted(picture, region))
    for key in plain:
        (places,) = places_of(name, key, grids)
        moved = moved_by(plain[key], other[key])
        assert len(moved) == len(places)
        assert moved.any() or name == "llava"
        check(name, places, moved, region)


@pytest.mark.parametrize("name", NAMES)
@fast
@given(corners=corners)
@example((0.0, 0.0, 0.0, 0.0))
@example((0.49, 0.49, 0.49, 0.49))
@example((0.3, 0.2, 0.3, 0.9))
@example((0.2, 0.6, 0.9, 0.6))
def test_a_picture_taken_as_it_is_is_known_to_the_pixel(name, corners):
    """Nothing is resized, so nothing leaks: the tokens that moved are those that the region touches."""
    size = AS_IT_IS[name]
    picture, region = noise(size), region_of(size, corners)
    (plain, grids), (other, _) = values_of(name, picture), values_of(name, painted(picture, region))
    assert grids[0].view.is_whole(size)
    for key in plain:
        (places,) = places_of(name, key, grids)
        assert torch.equal(moved_by(plain[key], other[key]), places.labels([region])), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("pair", [(LANDSCAPE, PORTRAIT), (HIGH, MULTIPLES)])
def test_two_pictures_of_a_prompt(name, which, pair):
    """Painting one of them moves tokens of that one only, and those that it moves alone."""
    pictures = [noise(size, seed) for seed, size in enumerate(pair)]
    region = region_of(pair[which], (0.1, 0.3, 0.6, 0.7))
    other = list(pictures)
    other[which] = painted(other[which], region)
    (plain, grids), (changed, _) = values_of(name, *pictures), values_of(name, *other)
    (alone, _), (alone_changed, _) = values_of(name, pictures[which]), values_of(name, other[which])
    for key in plain:
        places = places_of(name, key, grids)
        moved = list(moved_by(plain[key], changed[key]).split([len(one) for one in places]))
        assert not moved[1 - which].any(), key
        check(name, places[which], moved[which], region)
        assert torch.equal(moved[which], moved_by(alone[key], alone_changed[key])), key
