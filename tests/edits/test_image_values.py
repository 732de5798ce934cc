"""Edits of the picture as values: what they make of pixels, how they read and compare, what they refuse."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tiny.pictures import noise

from seeing import edits as E
from seeing.turns import Turn

QUESTION, LONGER = "what digit is on the red square ?", "what digit is on the red square on the blue circle ?"


@pytest.fixture
def picture() -> Image.Image:
    return noise((98, 84))


def blurred(picture: Image.Image, sigma: float) -> np.ndarray:
    """A Gaussian written out, the border pixels continued."""
    reach = int(5 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    pixels = np.pad(np.asarray(picture, dtype=float), [(reach, reach), (reach, reach), (0, 0)], mode="edge")
    pixels = np.apply_along_axis(np.convolve, 0, pixels, weights, mode="valid")
    return np.apply_along_axis(np.convolve, 1, pixels, weights, mode="valid")


def shown(edit: E.Edit, picture: Image.Image, question: str = QUESTION) -> np.ndarray:
    """The picture that the processor is given."""
    return np.asarray(edit.turn(0, Turn.of(picture, question)).images[0])


# -- the pictures ------------------------------------------------------------------------------------------


def test_blur_is_a_gaussian_of_a_tenth_of_the_longer_side():
    """Pillow approximates it by boxes: within a few levels of the true one, of that width and no other."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[30:50, 50:75] = 255
    picture, box = Image.fromarray(pixels), (40, 20, 90, 60)
    found = shown(E.Occlude([box], "blur"), picture).astype(float)
    inside = np.s_[20:60, 40:90]
    error = {sigma: np.abs(found - blurred(picture, sigma))[inside].max() for sigma in (9, 12, 15)}
    assert error[12] < 8, error
    assert min(error[9], error[15]) > 2 * error[12], error
    outside = np.ones((80, 120), bool)
    outside[inside] = False
    np.testing.assert_array_equal(found[outside], pixels[outside])


def test_evidence_that_reaches_past_the_picture_is_cut_off(picture):
    """As everywhere: boxes of data sets do."""
    turn = Turn.of(picture, QUESTION, [(-5, 70, 20.5, 120)])
    cropped = E.Crop("evidence").turn(0, turn)
    assert cropped.images[0].size == (21, 14)
    assert cropped.boxes == ((0, 0, 20.5, 14),)


def test_a_border_that_is_whole_but_for_rounding_covers_no_further_pixel(picture):
    nearly = (10 - 1e-9, 10 + 1e-9, 20 + 1e-9, 20 - 1e-9)
    found, expected = shown(E.Occlude([nearly], (0, 0, 0)), picture), np.array(picture)
    expected[10:20, 10:20] = 0
    np.testing.assert_array_equal(found, expected)
    assert shown(E.Crop(nearly), picture).shape == (10, 10, 3)


def test_noise_is_normal_and_differs_from_pixel_to_pixel_and_channel_to_channel():
    gray = Image.new("RGB", (160, 120), (127, 127, 127))
    noisy = shown(E.Noise(0.1), gray).astype(float)
    draws = (noisy - 127) / 25.5
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1) < 0.02
    # Rounding to levels is undone by as much of a uniform draw.
    smooth = (draws + (np.random.default_rng(0).random(draws.shape) - 0.5) / 25.5).ravel()
    assert stats.kstest(smooth, "norm").pvalue > 1e-3
    for one, other in (
        (noisy[:-1], noisy[1:]),
        (noisy[:, :-1], noisy[:, 1:]),
        (noisy[..., 0], noisy[..., 1]),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03


def test_noise_is_clipped_where_it_leaves_the_range(picture):
    noisy = shown(E.Noise(2.0), picture)
    assert (noisy == 0).mean() > 0.3
    assert (noisy == 255).mean() > 0.3


def test_noise_depends_on_seed_picture_and_question_and_on_nothing_else(picture):
    first = shown(E.Noise(0.1), picture)
    np.testing.assert_array_equal(shown(E.Noise(0.1), picture.copy()), first)
    other_row = E.Noise(0.1).turn(7, Turn.of(picture, QUESTION)).images[0]
    np.testing.assert_array_equal(np.asarray(other_row), first)
    difference = first.astype(int) - np.asarray(picture)
    middle = (np.asarray(picture) > 100) & (np.asarray(picture) < 155)
    changed = picture.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    for other, shown_to in (
        (shown(E.Noise(0.1, seed=1), picture), picture),
        (shown(E.Noise(0.1), picture, LONGER), picture),
        (shown(E.Noise(0.1), changed), changed),
    ):
        moved = other.astype(int) - np.asarray(shown_to)
        assert abs(np.corrcoef(difference[middle], moved[middle])[0, 1]) < 0.1


@pytest.mark.parametrize("step", [0, 1, 500, 999])
def test_diffused_noise_is_that_of_the_authors_of_vcd(step):
    """Their function `add_diffusion_noise`, in the space (I/255 − 0.5)/0.25."""
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    kept = torch.cumprod(1 - betas, dim=0)
    edit = E.Noise.diffused(step, seed=4)
    assert edit.keep == pytest.approx(float(torch.sqrt(kept)[step]), abs=1e-12)
    assert edit.sigma == pytest.approx(0.25 * float(torch.sqrt(1 - kept)[step]), abs=1e-12)
    assert edit.seed == 4


def test_diffused_noise_of_a_picture_has_the_mean_and_deviation_of_the_formula():
    """x_t = √ᾱ·x + √(1 − ᾱ)·ε, back in levels."""
    level, edit = 60, E.Noise.diffused(500)
    noisy = shown(edit, Image.new("RGB", (200, 150), (level,) * 3)).astype(float)
    x = (level / 255 - 0.5) / 0.25
    found = (noisy / 255 - 0.5) / 0.25
    assert found.mean() == pytest.approx(0.863 * x, abs=0.01)
    assert found.std() == pytest.approx((1 - 0.863**2) ** 0.5, rel=0.03)


# -- values ------------------------------------------------------------------------------------------------

VALUES = [
    E.Crop("evidence"),
    E.Crop((1, 2, 3.5, 4)),
    E.Crop([(1, 2, 3.5, 4), (0, 0, 9, 9)], append=True, pad=0.25),
    E.Occlude("evidence", "blur"),
    E.Occlude([(1, 2, 3, 4)], (1, 2, 3)),
    E.Occlude([[(1, 2, 3, 4)], [(1, 2, 3, 4), (5, 5, 6, 6)]]),
    E.Noise(0.5, 0.25, seed=9),
    E.Noise.diffused(700),
]


@pytest.mark.parametrize("edit", VALUES, ids=repr)
def test_an_edit_reads_like_the_expression_that_makes_it(edit):
    again = eval(repr(edit), vars(E))
    assert again == edit
    assert hash(again) == hash(edit)
    assert sum(other == edit for other in VALUES) == 1
    with pytest.raises(FrozenInstanceError):
        edit.when = "prompt"


def test_all_settings_show():
    assert repr(E.Crop([(28, 0, 56, 28)])) == "Crop((28, 0, 56, 28), append=False, pad=0, when='both')"
    assert repr(E.Occlude("evidence")) == "Occlude('evidence', fill='mean', when='both')"
    assert repr(E.Noise(0.1)) == "Noise(0.1, keep=1.0, seed=0, when='both')"
    assert repr(E.Highlight([np.ones((2, 2))] * 2)) == "Highlight(<2 map(s)>, alpha=0.5, when='both')"


def test_boxes_are_the_same_from_whatever_holds_them():
    box = (28, 0, 56, 28)
    crops = [box, [*box], np.array(box), torch.tensor(box), [box], np.array([box], dtype=float)]
    assert len({E.Crop(one) for one in crops}) == 1
    lists = [
        [box, (1, 2, 3, 4)],
        np.array([box, (1, 2, 3, 4)]),
        (torch.tensor(box), np.array([1.0, 2, 3, 4])),
    ]
    assert len({E.Occlude(one) for one in lists}) == 1
    assert E.Crop([box, box]) != E.Crop(box)


def test_highlights_are_compared_by_their_maps():
    rng = np.random.default_rng(0)
    maps = [rng.random((4, 6)), rng.random((6, 4))]
    one, same = E.Highlight(maps, 0.3), E.Highlight([each.copy() for each in maps], 0.3)
    assert one == same
    assert hash(one) == hash(same)
    assert one != E.Highlight(maps, 0.4)
    assert one != E.Highlight(maps[::-1], 0.3)
    assert E.Highlight(np.zeros((2, 3))) != E.Highlight(np.zeros((3, 2)))
    before = hash(one)
    maps[0][0, 0] = 5
    assert hash(one) == before, "the caller's array is not the edit's"


# -- what does not fit -------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: E.Crop("image"), "'evidence', a box or one box a row; got 'image'"),
        (lambda: E.Crop(7), "7 is no box"),
        (lambda: E.Crop([]), r"\(\) is no box"),
        (lambda: E.Crop((1, 2, 3)), r"\(1, 2, 3\) is no box"),
        (lambda: E.Crop((5, 2, 5, 4)), r"x0 < x1 and y0 < y1"),
        (lambda: E.Crop((1, 2, NAN, 4)), "is no box"),
        (lambda: E.Crop((1, 2, INF, 4)), "is no box"),
        (lambda: E.Crop([(1, 2, 3, 4), (1, 2, 3)]), r"\(1, 2, 3\) is no box"),
        (lambda: E.Crop(np.zeros((2, 2, 4))), "is no box"),
        (lambda: E.Crop("evidence", pad=-0.1), "pad is a share .* got -0.1"),
        (lambda: E.Crop("evidence", pad=NAN), "pad is a share .* got nan"),
        (lambda: E.Crop("evidence", when="prompt"), "when='both'"),
        (lambda: E.Occlude("image"), "boxes are 'evidence'"),
        (lambda: E.Occlude([]), "none of them empty"),
        (lambda: E.Occlude([[(1, 2, 3, 4)], []]), "none of them empty"),
        (lambda: E.Occlude((1, 2, 3, 4)), "boxes are 'evidence', a list"),
        (lambda: E.Occlude([(3, 2, 1, 4)]), r"\(3, 2, 1, 4\) is no box"),
        (lambda: E.Occlude("evidence", "median"), "fill is .* got 'median'"),
        (lambda: E.Occlude("evidence", (1, 2)), r"fill is .* got \(1, 2\)"),
        (lambda: E.Occlude("evidence", (1, 2, 256)), "0-255"),
        (lambda: E.Occlude("evidence", (1, 2, -1)), "0-255"),
        (lambda: E.Occlude("evidence", (0.5, 0.5, 0.5)), "whole numbers"),
        (lambda: E.Occlude("evidence", when="decode"), "when='both'"),
        (lambda: E.Noise(NAN), "sigma .* got nan"),
        (lambda: E.Noise(-0.1), "sigma .* got -0.1"),
        (lambda: E.Noise(INF), "sigma .* got inf"),
        (lambda: E.Noise("0.1"), "sigma .* got '0.1'"),
        (lambda: E.Noise(0.1, keep=1.5), "keep .* got 1.5"),
        (lambda: E.Noise(0.1, keep=NAN), "keep .* got nan"),
        (lambda: E.Noise(0.1, seed=0.5), "seed .* got 0.5"),
        (lambda: E.Noise(0.1, when="prompt"), "when='both'"),
        (lambda: E.Noise.diffused(1000), "0-999, got 1000"),
        (lambda: E.Noise.diffused(-1), "0-999, got -1"),
        (lambda: E.Noise.diffused(0.5), "0-999, got 0.5"),
        (lambda: E.Highlight(np.zeros((2, 2)), alpha=NAN), "alpha"),
        (lambda: E.Highlight(np.zeros((2, 2)), when="decode"), "when='both'"),
    ],
)
def test_settings_that_mean_nothing_are_refused_when_written(unchecked, make, says):
    with pytest.raises(E.BadEdit, match=says):
        make()
