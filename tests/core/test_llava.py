"""LLaVA's geometry against its processors: paint on a picture, and see which patches of the pixels move.

Nothing here repeats the arithmetic of a resize or a crop. A region of a picture is changed, the real image
processor runs on both pictures, and a patch whose pixels moved must be a token whose box holds that region.
"""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import seeing
from seeing.families import FamilyContractError, UnknownFamily
from seeing.prompt import Turn, build

QUESTION = "what digit is on the red square ?"
SIDE, PATCH = 56, 14

#: How far a painted pixel reaches through a bicubic resize, in pixels of the resized picture.
REACH = 2.0

CROP = {"height": SIDE, "width": SIDE}

#: Every way in which a LLaVA checkpoint may prepare a picture.
SETTINGS = {
    "crop": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=CROP),
    "larger": CLIPImageProcessorPil(size={"shortest_edge": SIDE + 17}, crop_size=CROP),
    "smaller": CLIPImageProcessorPil(size={"shortest_edge": SIDE - 17}, crop_size=CROP),
    "odd": CLIPImageProcessorPil(size={"shortest_edge": 61}, crop_size={"height": 61, "width": 61}),
    "oblong": CLIPImageProcessorPil(size={"shortest_edge": 45}, crop_size={"height": 45, "width": 84}),
    "squash": CLIPImageProcessorPil(size=CROP, do_center_crop=False),
    "squash, crop": CLIPImageProcessorPil(size={"height": 70, "width": 84}, crop_size=CROP),
    "squash, odd": SiglipImageProcessorPil(size={"height": 61, "width": 50}),
    "siglip": SiglipImageProcessorPil(size=CROP),
    "pad": LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": SIDE}, crop_size=CROP),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=CROP),
}


@pytest.fixture(scope="module")
def grid_of(tiny):
    """``grid_of(setting, size)``: the grid of a picture of that size, by the library."""
    vlm = tiny().vlm
    processors = {}
    for name, pixels in SETTINGS.items():
        processors[name] = copy.copy(vlm.processor)
        processors[name].image_processor = pixels

    def grid_of(name, size):
        processor = processors[name]
        count = vlm.family.n_tokens(vlm._module, processor, size)
        return vlm.family.grid(vlm._module, processor, size, torch.arange(count))

    return grid_of


def patches(pixels: np.ndarray) -> np.ndarray:
    """(channel, height, width) -> (patch, values), in reading order, as the tower's convolution cuts."""
    channels, height, width = pixels.shape
    rows, cols = height // PATCH, width // PATCH
    cut = pixels[:, : rows * PATCH, : cols * PATCH].reshape(channels, rows, PATCH, cols, PATCH)
    return cut.transpose(1, 3, 0, 2, 4).reshape(rows * cols, -1)


def moved(processor, size: tuple[int, int], region: tuple[int, int, int, int]) -> np.ndarray:
    """Which patches move when the region of a gray picture turns white."""
    picture = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    painted = picture.copy()
    x0, y0, x1, y1 = region
    painted[y0:y1, x0:x1] = 255
    before, after = (
        patches(processor(Image.fromarray(one), return_tensors="np")["pixel_values"][0])
        for one in (picture, painted)
    )
    return np.abs(after - before).max(1) > 1e-4


def reach(grid) -> tuple[float, float]:
    """How far paint spreads, in pixels of the original: the kernel is as wide as the coarser of the two."""
    x0, y0, x1, y1 = grid.view.box
    width, height = (x1 - x0) / grid.view.size[0], (y1 - y0) / grid.view.size[1]
    return REACH * max(width, 1.0) + width, REACH * max(height, 1.0) + height


def overlaps(boxes: np.ndarray, region, by: tuple[float, float]) -> np.ndarray:
    """Which boxes a region overlaps, once it is wider by ``by`` on every side; NaN overlaps nothing."""
    x0, y0, x1, y1 = region
    wide = np.minimum(boxes[:, 2], x1 + by[0]) > np.maximum(boxes[:, 0], x0 - by[0])
    high = np.minimum(boxes[:, 3], y1 + by[1]) > np.maximum(boxes[:, 1], y0 - by[1])
    return wide & high


@st.composite
def pictures(draw):
    """A size, from 1:10 to 10:1, and a region of it."""
    short = draw(st.integers(8, 150))
    long = draw(st.integers(short, min(10 * short, 600)))
    size = (short, long) if draw(st.booleans()) else (long, short)
    x0, y0 = (draw(st.integers(0, edge - 1)) for edge in size)
    x1, y1 = x0 + draw(st.integers(1, 40)), y0 + draw(st.integers(1, 40))
    return size, (x0, y0, min(x1, size[0]), min(y1, size[1]))


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=pictures())
def test_patches_that_move_are_tokens_that_hold_the_paint(grid_of, name, case):
    """Both ways: what moved holds paint, within the resize's reach; what holds paint well inside moved."""
    size, region = case
    grid, found = grid_of(name, size), moved(SETTINGS[name], size, region)
    boxes, by = grid.boxes.numpy(), reach(grid)
    assert len(found) == len(grid)
    assert not (found & ~overlaps(boxes, region, by)).any(), "a patch moved whose box is elsewhere"
    inner = (-by[0], -by[1])
    assert not (overlaps(boxes, region, inner) & ~found).any(), "a box holds paint that its patch never saw"


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=pictures())
def test_what_the_crop_cut_off_moves_nothing_and_is_no_tokens(grid_of, name, case):
    size, region = case
    grid = grid_of(name, size)
    labels = grid.labels([region]).numpy()
    x0, y0, x1, y1 = grid.view.box
    gap = max(x0 - region[2], region[0] - x1), max(y0 - region[3], region[1] - y1)
    by = reach(grid)
    if gap[0] >= 0 or gap[1] >= 0:
        assert not labels.any()
        if gap[0] > by[0] or gap[1] > by[1]:
            assert not moved(SETTINGS[name], size, region).any()
    else:
        assert labels.any() == (grid.covers([region]) > 0)


def test_the_ends_of_a_long_picture_are_seen_by_no_token(grid_of):
    grid = grid_of("crop", (300, 60))
    for region in [(0, 0, 100, 60), (200, 0, 300, 60)]:
        assert not moved(SETTINGS["crop"], (300, 60), region).any()
        assert not grid.labels([region]).any()
    assert moved(SETTINGS["crop"], (300, 60), (120, 0, 180, 60)).all()
    assert grid.labels([(120, 0, 180, 60)]).all()


def test_padding_is_a_token_without_a_place(grid_of):
    """A wide picture in a square: the rows above and below it look at padding."""
    grid = grid_of("pad", (400, 100))
    assert grid.placed.reshape(4, 4)[:, 0].tolist() == [False, True, True, False]
    found = moved(SETTINGS["pad"], (400, 100), (0, 0, 400, 100))
    assert torch.equal(torch.from_numpy(found), grid.placed)
    assert grid.covers([(0, 0, 400, 100)]) == 1


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=pictures())
def test_squashing_sees_everything(grid_of, case):
    size, region = case
    for name in ("squash", "siglip", "pad"):
        assert grid_of(name, size).covers([region]) == pytest.approx(1)


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=pictures())
def test_there_are_as_many_tokens_as_the_processor_writes(tiny, picture, name, case):
    """Of the whole processor, which counts them by the pixels that it made."""
    size, _ = case
    assume(math.prod(size) < 40_000)
    vlm = tiny().vlm
    processor = copy.copy(vlm.processor)
    processor.image_processor = SETTINGS[name]
    prompt = build(vlm.family, vlm._module, processor, [Turn.of(picture(*size), QUESTION)])
    assert len(prompt.grids[0]) == int(
        (prompt.inputs["input_ids"] == vlm._module.config.image_token_id).sum()
    )


def test_sizes_of_another_kind_are_refused(tiny):
    vlm = tiny().vlm
    processor = copy.copy(vlm.processor)
    for size in ({"shortest_edge": 56, "longest_edge": 80}, {"max_height": 56, "max_width": 56}):
        processor.image_processor = CLIPImageProcessorPil(size=size, crop_size=CROP)
        with pytest.raises(FamilyContractError, match="resizes to"):
            vlm.family.n_tokens(vlm._module, processor, (80, 60))


# -- the tower's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tower", "patch", "side", "strategy"),
    [
        ("clip", 14, 56, "default"),
        ("clip", 14, 56, "full"),
        ("clip", 6, 42, "full"),
        ("clip", 6, 45, "default"),
        ("siglip", 14, 60, "full"),
    ],
)
def test_the_features_that_move_are_those_of_the_painted_tokens(
    tiny, picture, tower, patch, side, strategy, monkeypatch
):
    """Through the model: with attention cut out of the tower, a feature depends on its own patch only."""
    vlm = tiny(tower=tower, patch=patch, side=side, strategy=strategy).vlm
    for layer in vlm._module.model.vision_tower.encoder.layers:
        out = layer.self_attn.out_proj
        monkeypatch.setattr(out, "weight", torch.nn.Parameter(torch.zeros_like(out.weight)))
    image = picture(90, 70)
    painted = image.copy()
    painted.paste((0, 0, 0), (40, 20, 48, 30))
    features = [
        vlm.cache(vlm.prompt(one, QUESTION), "projector.out")["projector.out"][0] for one in (image, painted)
    ]
    found = (features[0] - features[1]).abs().amax(-1) > 1e-6
    grid = vlm.prompt(image, QUESTION).grids[0]
    assert len(grid) == len(found) == (side // patch) ** 2 + (tower == "clip" and strategy == "full")
    labels = grid.labels([(40, 20, 48, 30)])
    assert found[labels].all()
    by = reach(grid)
    assert not (found.numpy() & ~overlaps(grid.boxes.numpy(), (40, 20, 48, 30), by)).any()
    assert 0 < int(found.sum()) < len(found)


def test_the_cls_token_comes_first_and_has_no_place(tiny, picture):
    vlm = tiny(strategy="full").vlm
    grid = vlm.prompt(picture(), QUESTION).grids[0]
    assert len(grid) == 17
    assert grid.kind == ("other", *["patch"] * 16)
    assert not grid.placed[0]
    assert grid.placed[1:].all()
    assert not grid.labels([(0, 0, 80, 60)])[0]


def test_siglip_has_no_cls_token_to_keep(tiny, picture):
    grid = tiny(tower="siglip", strategy="full").vlm.prompt(picture(), QUESTION).grids[0]
    assert len(grid) == 16
    assert grid.placed.all()
    assert grid.boxes[0].tolist() == [0, 0, 20, 15]


def test_another_tower_is_refused_with_those_that_are_read(tiny):
    """A LLaVA is read by its tower, not by its model_type alone."""
    model, processor = tiny().pair()
    config = copy.deepcopy(model.config)
    strange = type(config)(
        text_config=config.text_config,
        vision_config=dict(
            model_type="dinov2",
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
        ),
        image_token_index=config.image_token_index,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    other = LlavaForConditionalGeneration(strange)
    with pytest.raises(
        UnknownFamily, match=r"'llava' with a vision tower of type 'dinov2'.*supported: .*llava"
    ):
        seeing.load((other, processor))
