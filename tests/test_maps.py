"""Evidence maps against hand-computed numbers, written-out convolutions and torch's own resampling."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from seeing import maps
from seeing.grid import Level, View, VisualGrid, cells
from seeing.maps import Window

RNG = np.random.default_rng(0)


def whole(rows, cols, patch=14):
    """A model that sees the original pixel for pixel, in rows × cols patches."""
    size = (cols * patch, rows * patch)
    return VisualGrid.regular(size, View((0, 0, *size), size), rows, cols, torch.arange(rows * cols))


def plates(*cells_on):
    """One 8×8 grid of 14-pixel patches; the named cells score 1, the others 0."""
    scores = np.zeros((8, 8))
    for cell in cells_on:
        scores[cell] = 1.0
    return scores.ravel(), whole(8, 8)


# ---- denoise -----------------------------------------------------------------------------------------------


def test_an_outlier_becomes_the_mean_of_its_neighbours():
    scores = np.arange(1.0, 26).reshape(5, 5)
    scores[2, 2] = 191.0  # its largest neighbour is 19
    expected = scores.copy()
    expected[2, 2] = (7 + 8 + 9 + 12 + 14 + 17 + 18 + 19) / 8
    np.testing.assert_array_equal(maps.denoise(scores), expected)
    scores[2, 2] = 190.0  # exactly 10 times: no outlier
    np.testing.assert_array_equal(maps.denoise(scores), scores)
    assert maps.denoise(scores, factor=9.0)[2, 2] == 13.0


def test_denoise_decides_on_the_input():
    scores = np.zeros((3, 4))
    scores[1, 1], scores[1, 2] = 1.0, 11.0
    result = maps.denoise(scores)
    assert result[1, 1] == 1.0  # its neighbour 11 protects it, though that one is replaced
    assert result[1, 2] == 1 / 8
    assert maps.denoise(np.pad([[5.0]], 2))[2, 2] == 0.0  # alone among zeros


def test_an_edge_padded_window_holds_the_token_itself():
    for cell in [(0, 0), (0, 2), (4, 4), (3, 0)]:
        scores = np.ones((5, 5))
        scores[cell] = 1e6
        np.testing.assert_array_equal(maps.denoise(scores), scores)
    scores = np.ones((3, 3))
    scores[0, 0] = 4.0  # with factor ½ even the padded corner is replaced: 3 of its 8 neighbours are itself
    assert maps.denoise(scores, factor=0.5)[0, 0] == (3 * 4 + 5 * 1) / 8
    scores[0, 0], scores[0, 1] = 1.0, 4.0  # on a side 1 of 8 is
    assert maps.denoise(scores, factor=0.5)[0, 1] == (1 * 4 + 7 * 1) / 8


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_denoise_is_the_loop(rows, cols, seed):
    scores = 10 ** np.random.default_rng(seed).uniform(-3, 1, size=(2, rows, cols))
    expected = scores.copy()
    if min(rows, cols) >= 3:
        for one, out in zip(scores, expected, strict=True):
            padded = np.pad(one, 1, mode="edge")
            for r in range(rows):
                for c in range(cols):
                    window = padded[r : r + 3, c : c + 3].ravel().tolist()
                    del window[4]
                    if one[r, c] > 10 * max(window):
                        out[r, c] = sum(window) / 8
    np.testing.assert_allclose(maps.denoise(scores), expected, rtol=1e-14)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (1, 1)])
def test_a_small_grid_is_left_alone(shape):
    scores = np.zeros(shape)
    scores[0, 0] = 1.0  # factor ½ would replace it
    np.testing.assert_array_equal(maps.denoise(scores, factor=0.5), scores)


def test_denoise_refuses_what_is_no_attention():
    for wrong in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="denoise=False"):
            maps.denoise(np.array([[1.0, wrong, 1.0]] * 3))


def test_padding_is_no_neighbour():
    # only the middle 3 of 5 rows see the image: token (1, 1) stands at the picture's edge, (2, 1) does not
    grid = VisualGrid.regular((30, 30), View((0, -10, 30, 40), (30, 50)), 5, 3, torch.arange(15))
    for row, expected in [(1, 50.0), (2, 1.0)]:
        scores = np.ones((5, 3))
        scores[[0, 4]] = 0.0
        scores[row, 1] = 50.0
        cleaned = maps.denoise_tokens(scores.ravel(), grid).reshape(5, 3)
        assert cleaned[row, 1] == expected
        assert (cleaned[[0, 4]] == 0).all()


# ---- smooth, normalize -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("boundary", "padding"), [("nearest", "edge"), ("reflect", "symmetric")])
@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_smooth_is_the_written_out_convolution(boundary, padding, sigma):
    canvas = RNG.random((2, 9, 30))
    pixels = sigma * 9  # the shorter side
    radius = int(4 * pixels + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / pixels) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(canvas, [(0, 0), (radius, radius), (radius, radius)], mode=padding)
    for axis in (1, 2):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    np.testing.assert_allclose(maps.smooth(canvas, sigma, boundary), padded, atol=1e-12)


def test_smooth_by_nothing_is_nothing():
    canvas = RNG.random((5, 6))
    np.testing.assert_array_equal(maps.smooth(canvas, 0.0), canvas)
    with pytest.raises(ValueError, match="nearest, reflect, found 'wrap'"):
        maps.smooth(canvas, 0.5, "wrap")
    for pixels in (56.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="share of the shorter side"):
            maps.smooth(canvas, pixels)


def test_normalize_by_hand():
    canvas = np.array([[[2.0, 4.0], [3.0, 6.0]], [[-1.0, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(maps.normalize(canvas), [[[0, 0.5], [0.25, 1]], [[0, 0.5], [1, 0.5]]])
    assert (maps.normalize(np.full((3, 4), 0.7)) == 0).all()
    assert (maps.normalize(np.zeros((3, 4))) == 0).all()
    assert (maps.normalize(np.array([[0.1, 0.1 + 1e-16, 0.1 - 1e-16]])) == 0).all()  # rounding is no evidence
    tiny = np.array([[1e-30, 3e-30]])
    np.testing.assert_array_equal(maps.normalize(tiny), [[0, 1]])
    with pytest.raises(ValueError, match="finite map"):
        maps.normalize(np.array([[0.0, np.nan]]))


@pytest.mark.parametrize("boundary", maps.BOUNDARIES)
def test_a_blurred_constant_is_still_constant(boundary):
    canvas = maps.smooth(np.full((37, 112), 0.1), 0.5, boundary)
    assert (maps.normalize(canvas) == 0).all()


# ---- evidence map ------------------------------------------------------------------------------------------


def test_the_authors_boundary_moves_the_peak_to_the_corner():
    # a 28-pixel box centred at (42, 42) of 112×112: tokens (2, 2) to (3, 3) of 8×8; σ = 56
    scores, grid = plates((2, 2), (2, 3), (3, 2), (3, 3))
    reflect = maps.evidence_map(scores, grid, boundary="reflect")
    assert np.unravel_index(reflect.argmax(), reflect.shape) == (0, 0)
    assert reflect[42, 42] == pytest.approx(0.68, abs=0.005)
    nearest = maps.evidence_map(scores, grid)
    peak = np.unravel_index(nearest.argmax(), nearest.shape)
    assert max(abs(np.array(peak) - 41)) <= 1
    assert nearest[42, 42] > 0.999


@pytest.mark.parametrize("boundary", maps.BOUNDARIES)
@pytest.mark.parametrize(("rows", "cols"), [(8, 8), (3, 9), (2, 5), (20, 2)])
def test_on_the_model_s_own_pixels_the_map_is_the_plain_composition(rows, cols, boundary):
    scores, grid = RNG.random(rows * cols), whole(rows, cols)
    scores[min(rows, 3) // 2 * cols + 1] = 100.0
    raster = maps.denoise(scores.reshape(rows, cols))
    canvas = gaussian_filter(np.kron(raster, np.ones((14, 14))), 0.5 * 14 * min(rows, cols), mode=boundary)
    plain = (canvas - canvas.min()) / (canvas.max() - canvas.min())
    for one in (scores, torch.from_numpy(scores)):
        found = maps.evidence_map(one, grid, boundary=boundary)
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-10)


def test_ablations_leave_one_step_out():
    scores, grid = RNG.random(64), whole(8, 8)
    scores[27] = 100.0
    plain = maps.evidence_map(scores, grid, denoise=False, sigma=0.0)
    np.testing.assert_array_equal(plain, np.kron(maps.normalize(scores.reshape(8, 8)), np.ones((14, 14))))
    cleaned = maps.evidence_map(scores, grid, sigma=0.0)
    assert plain.argmax() != cleaned.argmax()
    np.testing.assert_allclose(
        maps.evidence_map(scores, grid, denoise=False, sigma=0.3),
        maps.normalize(
            gaussian_filter(np.kron(scores.reshape(8, 8), np.ones((14, 14))), 0.3 * 112, mode="nearest")
        ),
        rtol=0,
        atol=1e-10,
    )
    signed = maps.evidence_map(-scores, grid, denoise=False)
    assert signed.min() == 0
    assert signed.max() == 1


def test_uniform_attention_is_no_evidence():
    assert (maps.evidence_map(np.full(64, 1 / 64), whole(8, 8)) == 0).all()


def test_leading_axes_are_maps_of_their_own():
    scores, grid = RNG.random((2, 3, 24)), whole(4, 6)
    together = maps.evidence_map(scores, grid)
    assert together.shape == (2, 3, 56, 84)
    np.testing.assert_array_equal(together[1, 2], maps.evidence_map(scores[1, 2], grid))
    squashed = VisualGrid.regular((50, 40), View((0, 0, 50, 40), (84, 56)), 4, 6, torch.arange(24))
    np.testing.assert_array_equal(
        maps.evidence_map(scores, squashed)[1, 0], maps.evidence_map(scores[1, 0], squashed)
    )


# ---- back to the original image ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 60), (33, 201), (336, 336), (7, 5), (1, 1)])
def test_a_squashed_view_comes_back_as_torch_would_resize_it(size):
    grid = VisualGrid.regular(size, View((0, 0, *size), (42, 28)), 2, 3, torch.arange(6))
    canvas = RNG.random((28, 42))
    truth = torch.nn.functional.interpolate(
        torch.from_numpy(canvas)[None, None], size[::-1], mode="bilinear", align_corners=False
    )[0, 0]
    np.testing.assert_allclose(maps.onto_image(canvas, grid), truth, atol=1e-12)


def test_a_crop_is_dark_outside():
    # 640×480 seen through the 336×336 centre of 448×336: columns 80 to 560
    view = View.cut((640, 480), (448, 336), (56, 0, 392, 336))
    grid = VisualGrid.regular((640, 480), view, 24, 24, torch.arange(576))
    canvas = 0.5 + RNG.random((336, 336))
    result = maps.onto_image(canvas, grid)
    inside = torch.nn.functional.interpolate(
        torch.from_numpy(canvas)[None, None], (480, 480), mode="bilinear"
    )
    np.testing.assert_allclose(result[:, 80:560], inside[0, 0], atol=1e-12)
    assert (result[:, :80] == 0).all()
    assert (result[:, 560:] == 0).all()
    view = View.cut((480, 640), (336, 448), (0, 56, 336, 392))
    tall = VisualGrid.regular((480, 640), view, 24, 24, torch.arange(576))
    np.testing.assert_allclose(maps.onto_image(canvas.T, tall), result.T, atol=1e-12)
    with pytest.raises(ValueError, match=r"\(336, 336\).*found \(336, 335\)"):
        maps.onto_image(canvas[:, 1:], grid)


def test_the_padding_around_a_picture_is_no_evidence():
    grid = VisualGrid.regular((40, 20), View((0, -10, 40, 30), (80, 80)), 4, 4, torch.arange(16))
    scores = np.arange(16.0)  # rows 0 and 3 see padding; the lowest score in the picture is 4
    canvas = maps.paint(scores, grid)
    assert (canvas[:20] == 4).all()
    assert (canvas[60:] == 4).all()
    assert canvas[20:60].min() == 4
    result = maps.evidence_map(scores, grid, denoise=False, sigma=0.0)
    assert result.shape == (20, 40)
    assert result[-1, -1] == 1.0
    nowhere = VisualGrid(
        (4, 4),
        torch.arange(2),
        torch.full((2, 4), torch.nan),
        View((0, 0, 4, 4), (4, 4)),
        (Level("newline", 2, 1),),
    )
    with pytest.raises(ValueError, match="nothing to paint"):
        maps.paint(np.ones(2), nowhere)


# ---- highlight ---------------------------------------------------------------------------------------------


def test_highlight_by_hand():
    image = Image.fromarray(np.array([[[200, 100, 51], [201, 0, 255]]], dtype=np.uint8))
    evidence = np.array([[1.0, 0.0]])
    lit = np.asarray(maps.highlight(image, evidence, 0.5))
    assert lit.tolist() == [[[200, 100, 51], [100, 0, 128]]]  # 100.5 rounds to the even 100, 127.5 to 128
    half = np.asarray(maps.highlight(image, np.array([[0.5, 0.5]]), 0.2))  # 0.2 + 0.8 · 0.5 = 0.6
    assert half.tolist() == [[[120, 60, 31], [121, 0, 153]]]


def test_highlight_at_the_ends_of_alpha():
    image = Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    evidence = RNG.random((6, 9))
    same = maps.highlight(image, evidence, 1.0)
    assert same.mode == "RGB"
    assert same is not image
    assert (np.asarray(same) == np.asarray(image)).all()
    np.testing.assert_array_equal(
        np.asarray(maps.highlight(image, evidence, 0.0)), np.rint(np.asarray(image) * evidence[..., None])
    )
    assert (np.asarray(maps.highlight(image, np.zeros((6, 9)), 0.0)) == 0).all()
    assert np.asarray(maps.highlight(image, evidence.astype(np.float32))).shape == (6, 9, 3)


@pytest.mark.parametrize(
    ("mode", "shape", "value", "alpha", "message"),
    [
        ("RGB", (4, 5), 0.5, 1.1, "alpha"),
        ("RGB", (4, 5), 0.5, -0.1, "alpha"),
        ("RGB", (4, 5), 0.5, float("nan"), "alpha"),
        ("RGB", (5, 4), 0.5, 0.5, r"\(4, 5\), found \(5, 4\)"),
        ("RGB", (4, 5), 1.01, 0.5, "normalize"),
        ("RGB", (4, 5), -0.01, 0.5, "normalize"),
        ("RGB", (4, 5), float("nan"), 0.5, "normalize"),
        ("L", (4, 5), 0.5, 0.5, "convert"),
        ("RGBA", (4, 5), 0.5, 0.5, "convert"),
    ],
)
def test_highlight_refuses(mode, shape, value, alpha, message):
    with pytest.raises(ValueError, match=message):
        maps.highlight(Image.new(mode, (5, 4)), np.full(shape, value), alpha)


# ---- windows -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_the_best_window_is_the_first_largest(rows, cols, data):
    size = data.draw(st.tuples(st.integers(1, rows), st.integers(1, cols)))
    scores = data.draw(st.lists(st.integers(-2, 2), min_size=2 * rows * cols, max_size=2 * rows * cols))
    scores = np.array(scores, dtype=float).reshape(2, rows, cols)  # small integers: ties are common
    for one, found in zip(scores, maps.best_windows(scores, size), strict=True):
        best, truth = -np.inf, None
        for r in range(rows - size[0] + 1):
            for c in range(cols - size[1] + 1):
                total = one[r : r + size[0], c : c + size[1]].sum()
                if total > best:
                    best, truth = total, Window(r, c, *size)
        assert found == truth == maps.best_window(one, size)
        assert one[found.mask((rows, cols))].sum() == best


def test_a_window_has_tokens_a_box_and_a_map():
    view = View.cut((640, 480), (448, 336), (56, 0, 392, 336))  # 20-pixel cells from x = 80
    grid = VisualGrid.regular((640, 480), view, 24, 24, torch.arange(5, 581))
    window = Window(1, 2, 2, 3)
    tokens = maps.window_tokens(grid, window)
    assert grid.positions[tokens].tolist() == [5 + n for n in (26, 27, 28, 50, 51, 52)]
    assert maps.window_box(grid, window) == pytest.approx((120, 20, 180, 60))
    mask = maps.window_mask_map(grid, window)
    assert mask.shape == (480, 640)
    assert (mask[20:60, 120:180] == 1).all()
    assert mask.sum() == 40 * 60
    assert (grid.labels([maps.window_box(grid, window)]) == tokens).all()


def test_a_window_map_shares_its_border_pixels():
    grid = VisualGrid.regular((5, 4), View((0, 0, 5, 4), (4, 4)), 2, 2, torch.arange(4))
    assert maps.window_mask_map(grid, Window(1, 0, 1, 1)).tolist() == [[0] * 5] * 2 + [[1, 1, 0.5, 0, 0]] * 2


def test_a_window_of_a_level_among_others():
    view = View((0, 0, 8, 4), (8, 4))
    boxes = torch.cat([cells((8, 4), view, 1, 2), cells((8, 4), view, 2, 4)])
    levels = (Level("thumbnail", 1, 2), Level("tile", 2, 4, start=2))
    grid = VisualGrid((8, 4), torch.arange(10), boxes, view, levels)
    assert maps.window_tokens(grid, Window(0, 1, 2, 2), "tile").nonzero().flatten().tolist() == [3, 4, 7, 8]
    assert maps.window_box(grid, Window(0, 1, 2, 2), 1) == (2, 0, 6, 4)
    with pytest.raises(ValueError, match="reaches outside a grid of 1×2"):
        maps.window_tokens(grid, Window(0, 1, 1, 2))


def test_windows_keep_off_padding():
    grid = VisualGrid.regular((40, 20), View((0, -10, 40, 30), (40, 40)), 4, 4, torch.arange(16))
    scores = np.arange(16.0)
    assert maps.best_window(grid.as_grid(scores)) == Window(2, 2, 2, 2)
    assert maps.best_window(grid.as_grid(scores, unplaced=-np.inf)) == Window(1, 2, 2, 2)
    assert maps.window_box(grid, Window(2, 2, 2, 2)) == (20, 10, 40, 20)
    with pytest.raises(ValueError, match="only padding"):
        maps.window_box(grid, Window(0, 0, 1, 4))


def test_random_windows_are_uniform_over_what_is_free():
    avoid = np.zeros((4, 5), dtype=bool)
    avoid[1, 1] = True
    rng = np.random.default_rng(1)
    drawn = [maps.random_window(rng, (4, 5), (2, 2), avoid) for _ in range(1600)]
    assert not any(avoid[window.mask((4, 5))].any() for window in drawn)
    counts = np.unique([(window.row, window.col) for window in drawn], axis=0, return_counts=True)[1]
    assert len(counts) == 3 * 4 - 4  # the four windows that hold the cell are never drawn
    assert counts.min() > 150  # 200 expected, standard deviation 13
    assert len({maps.random_window(rng, (4, 5)) for _ in range(400)}) == 12
    again = np.random.default_rng(1)
    assert [maps.random_window(again, (4, 5), (2, 2), avoid) for _ in range(9)] == drawn[:9]


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no window of 3×2 tokens fits into a grid of 2×4"):
        maps.best_window(np.ones((2, 4)), (3, 2))
    with pytest.raises(ValueError, match="no window of 0×2"):
        maps.random_window(np.random.default_rng(0), (2, 4), (0, 2))
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite sum"):
            maps.best_window(np.full((2, 4), wrong))
    one_bad = np.ones((3, 3))
    one_bad[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite sum"):
        maps.best_window(one_bad)
    with pytest.raises(ValueError, match="keeps off the 1 cells"):
        maps.random_window(np.random.default_rng(0), (3, 3), (2, 2), np.pad([[True]], 1))
    with pytest.raises(ValueError, match=r"mask of \(3, 3\), found \(2, 3\)"):
        maps.random_window(np.random.default_rng(0), (3, 3), (2, 2), np.zeros((2, 3), dtype=bool))
