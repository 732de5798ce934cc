"""Pixels: an object fills its box and nothing else, and its digit stays inside one patch."""

import numpy as np
import pytest

from seeing.data.painting import CELL, GLYPHS, MASKS, PATCH, SHAPES, SPAN, Light, Scenes, paint


def scene(shape, corner, cell, digit=3):
    """One object, in slot 0; the other slots are padding."""
    column, row = cell % 4, cell // 4

    def slots(value):
        return np.full((1, 16), value)

    corners = np.zeros((1, 16, 2), dtype=int)
    corners[0, 0] = (column * CELL + corner[0], row * CELL + corner[1])
    return Scenes(
        count=np.array([1]),
        hard=np.array([False]),
        cell=np.where(np.arange(16) == 0, cell, 0)[None],
        colour=slots(0),
        shape=slots(shape),
        digit=slots(digit),
        corner=corners,
    )


def light(noise=0.0, contrast=1.0, clutter=0, dimmest=1.0):
    return Light(np.array([noise]), np.array([contrast]), np.array([clutter]), np.array([dimmest]))


def nothing(s):
    return Scenes(np.array([0]), s.hard, s.cell, s.colour, s.shape, s.digit, s.corner)


def painted(s, lamp=None, seed=0):
    return paint(s, lamp or light(), np.random.default_rng(seed))[0].astype(int)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("corner", [(0, 0), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("cell", [0, 6, 15])
def test_what_an_object_changes_is_exactly_its_box(shape, corner, cell):
    s = scene(shape, corner, cell)
    changed = np.argwhere((painted(s) != painted(nothing(s))).any(axis=-1))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
    x, y = s.corner[0, 0]
    assert (left, top, right, bottom) == (x, y, x + SPAN, y + SPAN)


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("corner", [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_a_plate_lies_in_the_lower_right_patch_of_its_cell(digit, corner):
    """Two digits differ on the plate only, so the pixels that tell them apart lie in one patch."""
    for seed in range(8):
        one, other = (painted(scene(0, corner, 5, d), seed=seed) for d in (digit, (digit + 1) % 10))
        changed = np.argwhere((one != other).any(axis=-1))
        assert len(changed)
        assert set(map(tuple, changed // PATCH)) == {(3, 3)}


def test_glyphs_are_ten_different_digits_with_a_margin():
    assert len({glyph.tobytes() for glyph in GLYPHS}) == 10
    inner = GLYPHS[:, 1:-1, 1:-1].sum(axis=(1, 2))
    assert (inner == GLYPHS.sum(axis=(1, 2))).all()
    assert (inner > 0).all()


def test_shapes_differ_and_touch_all_four_sides():
    assert len({mask.tobytes() for mask in MASKS}) == len(SHAPES)
    for mask in MASKS:
        for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
            assert side.any()


def test_noise_contrast_and_clutter_do_what_they_say():
    s = scene(1, (1, 1), 5)
    plain = painted(s)
    assert np.abs(painted(s, light(noise=0.2)) - plain).mean() > 20
    half = painted(s, light(contrast=0.5))
    assert np.abs((half - 127.5) - 0.5 * (plain - 127.5)).max() <= 1
    assert (painted(s, light(clutter=12)) != plain).any(axis=-1).mean() > 0.02


def test_illumination_only_darkens_and_no_further_than_asked():
    s = scene(1, (1, 1), 5)
    plain = painted(s)
    shares = [
        painted(s, light(dimmest=0.4), seed=seed) / np.maximum(painted(s, seed=seed), 1) for seed in range(20)
    ]
    bright = plain > 100
    assert all(share[bright].max() <= 1.01 for share in shares)
    assert all(share[bright].min() >= 0.38 for share in shares)
    assert min(share[bright].min() for share in shares) < 0.7
    assert (painted(s, light(dimmest=1.0)) == plain).all()
