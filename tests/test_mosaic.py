"""A mosaic blurred piece by piece is scipy's Gaussian filter of the canvas painted pixel by pixel."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from seeing import maps
from seeing.grid import Level, View, VisualGrid, cells
from seeing.mosaic import Mosaic


def raster():
    """One patch is 14 × 14 pixels of the view: edges fall between pixels."""
    return VisualGrid.regular((90, 61), View((0, 0, 90, 61), (126, 84)), 6, 9, torch.arange(54))


def uneven():
    """5 × 7 cells over 33 × 47 pixels: pixels at edges have a share of two rows, or columns."""
    return VisualGrid.regular((47, 33), View((0, 0, 47, 33), (47, 33)), 5, 7, torch.arange(35))


def thin():
    """Three columns of less than a pixel."""
    return VisualGrid.regular((2, 9), View((0, 0, 2, 9), (2, 9)), 4, 3, torch.arange(12))


def padded():
    """A square canvas around a flat picture: the rows above and below see padding."""
    return VisualGrid.regular((40, 20), View((0, -10, 40, 30), (80, 80)), 5, 5, torch.arange(25))


def tiled():
    """A 5 × 5 thumbnail behind 2 × 3 tiles of 4 × 4, each row of tiles ended by tokens without a place."""
    size, parts, levels, start = (91, 67), [], [], 0
    for row in range(2):
        for col in range(3):
            box = (91 * col / 3, 67 * row / 2, 91 * (col + 1) / 3, 67 * (row + 1) / 2)
            parts.append(cells(size, View(box, (30, 30)), 4, 4))
            levels.append(Level(f"tile {row},{col}", 4, 4, start=start))
            start += 16
        parts.append(torch.full((3, 4), torch.nan, dtype=torch.float64))
        levels.append(Level(f"newline {row}", 3, 1, start=start))
        start += 3
    view = View((0, 0, 91, 67), (83, 59))
    parts.append(cells(size, view, 5, 5))
    levels.append(Level("thumbnail", 5, 5, start=start))
    boxes = torch.cat(parts)
    return VisualGrid(size, torch.arange(len(boxes)), boxes, view, tuple(levels))


def cropped():
    """Two tiles of a picture that leave its middle to nobody."""
    size = (60, 30)
    left = cells(size, View((0, 0, 20, 30), (20, 30)), 3, 2)
    right = cells(size, View((37, 0, 60, 30), (23, 30)), 3, 4)
    levels = (Level("left", 3, 2), Level("right", 3, 4, start=6))
    return VisualGrid(
        size, torch.arange(18), torch.cat([left, right]), View((0, 0, 60, 30), (60, 30)), levels
    )


GRIDS = [raster, uneven, thin, padded, tiled, cropped]


@pytest.fixture(params=GRIDS, ids=lambda one: one.__name__)
def grid(request):
    return request.param()


def test_the_pieces_are_the_canvas(grid):
    scores = np.random.default_rng(0).random((2, 3, len(grid))) - 0.5
    found = Mosaic.of(scores, grid)
    assert found.size == grid.view.size[::-1]
    np.testing.assert_allclose(found.canvas(), maps.paint(scores, grid), rtol=0, atol=1e-14)
    assert np.array_equal(found.blurred(0, "nearest"), found.canvas())


@pytest.mark.parametrize("boundary", ["nearest", "reflect"])
@pytest.mark.parametrize("pixels", [0.3, 2.0, 17.5, 130.0])
def test_a_blurred_mosaic_is_scipys_filter_of_the_canvas(grid, boundary, pixels):
    scores = np.random.default_rng(1).random((2, len(grid)))
    canvas = maps.paint(scores, grid)
    expected = gaussian_filter(canvas, pixels, mode=boundary, truncate=4.0, axes=(-2, -1))
    assert np.ptp(canvas) > 0.5
    np.testing.assert_allclose(
        Mosaic.of(scores, grid).blurred(pixels, boundary), expected, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("boundary", ["nearest", "reflect"])
def test_the_evidence_map_is_the_composition_of_its_steps(grid, boundary):
    scores = np.random.default_rng(2).random((3, len(grid))) ** 8
    canvas = maps.smooth(maps.paint(maps.denoise_tokens(scores, grid), grid), 0.5, boundary)
    expected = maps.onto_image(maps.normalize(canvas), grid)
    found = maps.evidence_map(scores, grid, boundary=boundary)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    for one, alone in zip(found, scores):
        np.testing.assert_allclose(maps.evidence_map(alone, grid, boundary=boundary), one, rtol=0, atol=1e-12)


def test_what_can_not_be_painted_is_refused():
    with pytest.raises(ValueError, match="finite score"):
        Mosaic.of(np.full(54, np.nan), raster())
    with pytest.raises(ValueError, match="expected scores over 54"):
        Mosaic.of(np.ones(53), raster())
    nowhere = torch.full((2, 4), torch.nan)
    newlines = VisualGrid(
        (4, 4), torch.arange(2), nowhere, View((0, 0, 4, 4), (4, 4)), (Level("newline", 2, 1),)
    )
    with pytest.raises(ValueError, match="nothing to paint"):
        Mosaic.of(np.ones(2), newlines)


def test_maps_of_many_pictures_are_those_of_each(monkeypatch):
    """Grids of one geometry, wherever their tokens stand, and others between them; a few at a time."""
    grids = [raster(), tiled(), raster().shifted(7), padded(), raster()]
    scores = [np.random.default_rng(number).random(len(grid)) for number, grid in enumerate(grids)]
    for together in (maps.TOGETHER, 20_000, 1):
        monkeypatch.setattr(maps, "TOGETHER", together)
        found = maps.evidence_maps(scores, grids, sigma=0.2, boundary="reflect")
        for one, score, grid in zip(found, scores, grids, strict=True):
            alone = maps.evidence_map(score, grid, sigma=0.2, boundary="reflect")
            np.testing.assert_allclose(one, alone, rtol=0, atol=1e-12)
