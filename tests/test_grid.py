"""VisualGrid against paint: boxes are painted on a lattice of eighths of a pixel, and counted."""

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seeing.grid import Level, View, VisualGrid, cells, coverage

FINE = 8  # subpixels a pixel: all coordinates below are drawn as multiples of 1/8, so counts are exact areas


def grid_over(view, rows, cols, image_size):
    return VisualGrid.regular(image_size, view, rows, cols, torch.arange(5, 5 + rows * cols))


def paint(box, image_size):
    """The subpixels of the image that a box (in eighths) covers."""
    canvas = np.zeros((image_size[1] * FINE, image_size[0] * FINE), dtype=bool)
    x0, y0, x1, y1 = (max(0, edge) for edge in box)
    canvas[y0:y1, x0:x1] = True
    return canvas


@st.composite
def painted(draw):
    """A grid whose cells, and a few boxes whose edges, are multiples of 1/8 pixel; and their paint."""
    size = (draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    x0, y0 = draw(st.integers(-30, size[0] * FINE - 1)), draw(st.integers(-30, size[1] * FINE - 1))
    assume(x0 + cols * width > 0)
    assume(y0 + rows * height > 0)
    view = View((x0 / FINE, y0 / FINE, (x0 + cols * width) / FINE, (y0 + rows * height) / FINE), (64, 48))
    tokens = [
        paint((x0 + c * width, y0 + r * height, x0 + (c + 1) * width, y0 + (r + 1) * height), size)
        for r in range(rows)
        for c in range(cols)
    ]
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        left, top = draw(st.integers(0, size[0] * FINE - 1)), draw(st.integers(0, size[1] * FINE - 1))
        boxes.append((left, top, left + draw(st.integers(1, 120)), top + draw(st.integers(1, 120))))
    assume(all(max(box) > FINE for box in boxes))  # a box inside the first pixel is refused: see below
    evidence = np.any([paint(box, size) for box in boxes], axis=0)
    return grid_over(view, rows, cols, size), np.array(tokens), np.array(boxes) / FINE, evidence


@settings(deadline=None, max_examples=150)
@given(painted())
def test_labels_and_covers_are_the_painted_areas(case):
    grid, tokens, boxes, evidence = case
    area = tokens.sum((1, 2))
    inside = (tokens & evidence).sum((1, 2))
    assert (grid.placed.numpy() == (area > 0)).all()
    assert (grid.labels(boxes).numpy() == (inside > 0)).all()
    assert (grid.labels(boxes, "half").numpy() == ((2 * inside >= area) & (area > 0))).all()
    assert (grid.labels(boxes, "all").numpy() == ((inside == area) & (area > 0))).all()
    np.testing.assert_allclose(grid.labels(boxes, "fraction"), inside / np.maximum(area, 1), atol=1e-12)
    assert grid.covers(boxes) == pytest.approx((tokens.any(0) & evidence).sum() / evidence.sum())


@settings(deadline=None, max_examples=100)
@given(painted(), st.integers(0, 2**32 - 1))
def test_a_heat_map_pixel_is_the_mean_of_its_tokens_by_area(case, seed):
    grid, tokens, _, _ = case
    scores = np.random.default_rng(seed).normal(size=len(grid))
    width, height = grid.image_size

    def by_pixel(canvas):
        return canvas.reshape(height, FINE, width, FINE).sum((1, 3))

    weight = by_pixel(tokens.sum(0).astype(float))
    total = by_pixel(np.tensordot(scores, tokens, 1))
    truth = np.where(weight > 0, total / np.maximum(weight, 1), np.nan)
    np.testing.assert_allclose(grid.heatmap(scores), truth, atol=1e-9)
    assert np.isnan(truth).sum() == (grid.heatmap(scores, fill=-7.0) == -7.0).sum()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 10), st.integers(1, 10), st.floats(0.1, 300), st.floats(0.1, 300), st.floats(-50, 50))
def test_cells_tile_the_part_of_the_view_that_lies_in_the_image(rows, cols, width, height, shift):
    size = (60, 45)
    view = View((shift, -shift, shift + width, -shift + height), (10, 10))
    boxes = cells(size, view, rows, cols).numpy()
    boxes = boxes[~np.isnan(boxes[:, 0])]
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()
    x0, y0, x1, y1 = view.box
    truth = max(0, min(x1, 60) - max(x0, 0)) * max(0, min(y1, 45) - max(y0, 0))
    assert area == pytest.approx(truth, abs=1e-3)


# ---- known numbers -----------------------------------------------------------------------------------------


@pytest.fixture
def llava():
    """LLaVA-1.5 on 640×480: resized to 448×336, the centre 336×336 cut out, 24×24 tokens."""
    view = View.cut((640, 480), (448, 336), (56, 0, 392, 336))
    return VisualGrid.regular((640, 480), view, 24, 24, torch.arange(5, 581))


def test_llava_sees_the_middle_of_a_wide_image(llava):
    assert llava.view == View((80.0, 0.0, 560.0, 480.0), (336, 336))
    assert llava.boxes[0].tolist() == pytest.approx([80, 0, 100, 20])
    assert llava.boxes[-1].tolist() == pytest.approx([540, 460, 560, 480])
    assert llava.boxes[25].tolist() == pytest.approx([100, 20, 120, 40])
    assert repr(llava) == "VisualGrid(640×480 image, 576 tokens at 5…580: patch 24×24)"
    assert len(llava) == 576
    assert set(llava.kind) == {"patch"}


def test_a_view_is_where_the_processor_cut():
    tile = View.cut((200, 100), (800, 400), (400, 0, 800, 200))
    assert tile == View((100.0, 0.0, 200.0, 50.0), (400, 200))
    assert View.cut((200, 100), (50, 75)) == View((0.0, 0.0, 200.0, 100.0), (50, 75))
    assert tile.from_image(np.array([[100.0, 0, 150, 50]])).tolist() == [[0, 0, 200, 200]]
    assert View((0, 0, 200, 100), (200, 100)).is_whole((200, 100))
    assert not View((0, 0, 200, 100), (100, 200)).is_whole((200, 100))
    assert not View((0, 0, 199, 100), (200, 100)).is_whole((200, 100))


def test_what_the_crop_cut_off_is_never_labelled(llava):
    assert llava.labels([(0, 0, 80, 480)]).sum() == 0  # touches the first tokens and overlaps none
    assert llava.covers([(0, 0, 80, 480)]) == 0
    assert llava.labels([(0, 0, 81, 480)]).sum() == 24
    assert llava.covers([(70, 0, 90, 10)]) == pytest.approx(0.5)
    assert llava.covers([(0, 0, 640, 480)]) == pytest.approx(0.75)
    heat = llava.heatmap(torch.ones(576))
    assert heat.shape == (480, 640)
    assert np.isnan(heat[:, :80]).all()
    assert np.isnan(heat[:, 560:]).all()
    assert (heat[:, 80:560] == 1).all()


def test_a_view_map_is_exactly_constant_boxes(llava):
    scores = np.random.default_rng(0).random((2, 576))
    blocks = np.kron(scores.reshape(2, 24, 24), np.ones((14, 14)))
    assert (llava.view_map(scores) == blocks).all()
    whole = grid_over(View((0, 0, 112, 84), (112, 84)), 6, 8, (112, 84))
    raster = np.kron(scores[0, :48].reshape(6, 8), np.ones((14, 14)))
    assert (whole.view_map(scores[0, :48]) == raster).all()
    assert (whole.heatmap(scores[0, :48]) == raster).all()


def test_rules_by_hand():
    grid = grid_over(View((0, 0, 40, 20), (40, 20)), 1, 2, (40, 20))
    both_halves = [(0, 0, 10, 20), (5, 0, 10, 20), (20, 0, 40, 20)]  # the second box lies in the first
    assert grid.labels(both_halves, "fraction").tolist() == [0.5, 1.0]
    assert grid.labels(both_halves, "half").tolist() == [True, True]
    assert grid.labels(both_halves, "all").tolist() == [False, True]
    assert grid.labels([(19, 0, 20, 1)]).tolist() == [True, False]
    assert grid.labels(torch.tensor([[19, 0, 21, 1]])).tolist() == [True, True]
    assert grid.labels([(0, 0, 9.9, 20)], "half").tolist() == [False, False]
    assert grid.labels(np.array([[-5.0, -5, 50, 30]]), "all").all()  # a box may reach past the image


def test_an_edge_that_misses_by_rounding_is_not_an_overlap():
    grid = grid_over(View((0, 0, 0.7 * 3, 1), (3, 1)), 1, 3, (3, 3))
    edge = float(grid.boxes[0, 2])
    assert grid.labels([(edge - 1e-12, 0, 2.5, 1)]).tolist() == [False, True, True]
    assert grid.labels([(edge - 1e-3, 0, 2.5, 1)]).tolist() == [True, True, True]


def test_padding_has_no_place():
    # a 40×20 image, padded to a square and seen by 4×4 tokens: the first and last row see only padding
    grid = grid_over(View.cut((40, 20), (40, 20), (0, -10, 40, 30)), 4, 4, (40, 20))
    assert grid.view == View((0.0, -10.0, 40.0, 30.0), (40, 40))
    assert grid.placed.tolist() == [False] * 4 + [True] * 8 + [False] * 4
    assert grid.labels([(0, 0, 40, 20)], "all").tolist() == grid.placed.tolist()
    assert grid.labels([(0, 0, 40, 20)], "fraction").tolist() == [0.0] * 4 + [1.0] * 8 + [0.0] * 4
    scores = np.array([np.nan] * 4 + [1.0] * 8 + [np.inf] * 4)  # scores of padding are nobody's business
    assert (grid.heatmap(scores) == 1).all()
    assert np.isnan(grid.view_map(scores)).sum() == 2 * 10 * 40
    assert (grid.as_grid(scores, unplaced=-np.inf)[[0, 3]] == -np.inf).all()


# ---- several levels ----------------------------------------------------------------------------------------


@pytest.fixture
def tiled():
    """A thumbnail of 1×2 tokens, then 2×4 tokens with a newline after each row; 8×4 pixels."""
    whole = View((0, 0, 8, 4), (16, 8))
    rows = cells((8, 4), whole, 2, 4).view(2, 4, 4)
    newline = torch.full((2, 1, 4), torch.nan, dtype=torch.float64)
    boxes = torch.cat([cells((8, 4), whole, 1, 2), torch.cat([rows, newline], 1).view(10, 4)])
    levels = (
        Level("thumbnail", 1, 2),
        Level("tile", 2, 4, start=2, stride=5),
        Level("newline", 2, 1, start=6, stride=5),
    )
    return VisualGrid((8, 4), torch.arange(12), boxes, whole, levels)


def test_levels_are_drawn_alone_or_together(tiled):
    scores = torch.arange(12.0)
    assert tiled.kind == ("thumbnail",) * 2 + (("tile",) * 4 + ("newline",)) * 2
    assert tiled.as_grid(scores, "tile").tolist() == [[2, 3, 4, 5], [7, 8, 9, 10]]
    assert tiled.as_grid(scores, 0).tolist() == [[0, 1]]
    tile, thumbnail = tiled.heatmap(scores, "tile"), tiled.heatmap(scores, ["thumbnail"])
    assert tile[0].tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    assert thumbnail[3].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(tiled.heatmap(scores), (tile + thumbnail) / 2)  # each covers every pixel once
    assert np.isnan(tiled.heatmap(scores, "newline")).all()
    assert tiled.labels([(0, 0, 1, 1)]).nonzero().flatten().tolist() == [0, 2]
    assert tiled.covers([(3, 1, 5, 3)]) == 1
    assert tiled.view_map(scores, "tile").shape == (8, 16)


def test_leading_axes_are_maps_of_their_own(tiled):
    scores = torch.rand(3, 2, 12, dtype=torch.float64)
    heat = tiled.heatmap(scores)
    assert heat.shape == (3, 2, 4, 8)
    np.testing.assert_array_equal(heat[1, 0], tiled.heatmap(scores[1, 0].numpy()))
    assert tiled.as_grid(scores, "tile").shape == (3, 2, 2, 4)
    assert tiled.heatmap(torch.rand(12).bfloat16()).dtype == np.float64


def test_shifting_moves_the_tokens_and_not_their_places(tiled):
    moved = tiled.shifted(7)
    assert moved.positions.tolist() == list(range(7, 19))
    assert torch.equal(moved.boxes.nan_to_num(-1), tiled.boxes.nan_to_num(-1))
    with pytest.raises(ValueError, match="positions ≥ 0"):
        tiled.shifted(-1)


def test_coverage_snaps_edges_that_only_rounding_moved():
    assert coverage(np.array([[1.0, 3.0000000001], [0.25, 1.5], [np.nan, np.nan]]), 4).tolist() == [
        [0, 1, 1, 0],
        [0.75, 0.5, 0, 0],
        [0, 0, 0, 0],
    ]


def test_a_column_of_a_long_image_is_its_own_row_of_pixels():
    grid = grid_over(View((0, 0, 10, 100), (14, 140)), 10, 1, (10, 100))
    heat = grid.heatmap(np.arange(10.0))
    assert (heat == np.repeat(np.arange(10.0), 10)[:, None]).all()


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "no evidence boxes"),
        (torch.empty(0, 4), "no evidence boxes"),
        ((10, 10, 20, 20), r"one box is \[\("),
        ([(10, 10, 20)], "expected boxes"),
        ([(10, 10, 20, 20), (1, 2, 3)], "expected boxes"),
        ([(10, 10, 10, 20)], "x0 < x1"),
        ([(10, 10, 20, 20), (30, 10, 20, 20)], "evidence box 1.*x0 < x1"),
        ([(10, 10, float("nan"), 20)], "finite"),
        ([(10, 10, float("inf"), 20)], "finite"),
        ([(640, 10, 700, 20)], "640×480"),
        ([(-20, 10, 0, 20)], "640×480"),
        ([(0.1, 0.2, 0.5, 0.9)], "absolute pixels"),
    ],
)
@pytest.mark.parametrize("ask", ["labels", "covers"])
def test_wrong_evidence_is_refused(llava, boxes, message, ask):
    with pytest.raises(ValueError, match=message):
        getattr(llava, ask)(boxes)


def test_wrong_questions_are_refused(llava, tiled):
    with pytest.raises(ValueError, match="any, half, all, fraction"):
        llava.labels([(0, 0, 9, 9)], "most")
    with pytest.raises(ValueError, match=r"576 visual tokens, found shape \(575,\)"):
        llava.heatmap(torch.rand(575))
    scores = torch.rand(576)
    scores[3] = -torch.inf
    with pytest.raises(ValueError, match="softmax"):
        llava.heatmap(scores)
    with pytest.raises(ValueError, match="'thumbnail', 'tile'"):
        tiled.heatmap(torch.rand(12), "tiles")
    with pytest.raises(ValueError, match="expected one level for 3, found 0"):
        tiled.as_grid(torch.rand(12), 3)
    twins = VisualGrid(
        (8, 4),
        torch.arange(4),
        cells((8, 4), View((0, 0, 8, 4), (8, 4)), 2, 2),
        View((0, 0, 8, 4), (8, 4)),
        (Level("tile", 1, 2), Level("tile", 1, 2, start=2)),
    )
    with pytest.raises(ValueError, match="expected one level for 'tile', found 2"):
        twins.level("tile")


BOXES = cells((8, 4), View((0, 0, 8, 4), (8, 4)), 2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.zeros(8, dtype=torch.long)}, "strictly increasing"),
        ({"positions": torch.arange(8) - 1}, "positions ≥ 0"),
        ({"image_size": (7, 4)}, "inside the 7×4 image"),
        ({"image_size": (0, 4)}, "at least 1×1"),
        ({"boxes": BOXES.flip(1)}, "inside the 8×4 image"),
        ({"boxes": BOXES.masked_fill(torch.arange(32).view(8, 4) == 2, torch.nan)}, "or four NaN"),
        ({"boxes": BOXES.view(2, 4, 4).transpose(0, 1).reshape(8, 4)}, "reading order"),
        ({"levels": (Level("patch", 3, 4),)}, "ends at token 11, but the grid has 8 tokens"),
        ({"levels": (Level("patch", 2, 4), Level("tile", 1, 1, start=3))}, "token 3 belongs to 2 levels"),
        ({"levels": (Level("patch", 1, 4),)}, "4 tokens of .* have a place but no level"),
    ],
)
def test_a_grid_that_contradicts_itself_does_not_exist(change, message):
    good = {
        "image_size": (8, 4),
        "positions": torch.arange(8),
        "boxes": BOXES,
        "view": View((0, 0, 8, 4), (8, 4)),
        "levels": (Level("patch", 2, 4),),
    }
    VisualGrid(**good)
    with pytest.raises(ValueError, match=message):
        VisualGrid(**(good | change))


def test_boxes_and_positions_are_counted_without_a_type_checker_too():
    jaxtyping.config.update("jaxtyping_disable", True)  # under the tests' type checker it would speak first
    try:
        with pytest.raises(ValueError, match=r"shape \(7, 4\) for 7 positions, found \(8, 4\)"):
            VisualGrid((8, 4), torch.arange(7), BOXES, View((0, 0, 8, 4), (8, 4)), (Level("patch", 2, 4),))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_wrong_views_and_levels_do_not_exist():
    with pytest.raises(ValueError, match="xywh"):
        View((10, 10, 5, 20), (4, 4))
    with pytest.raises(ValueError, match="finite"):
        View((0.0, 0.0, float("nan"), 4.0), (4, 4))
    with pytest.raises(ValueError, match="1×1"):
        View((0, 0, 4, 4), (0, 4))
    with pytest.raises(ValueError, match="rows, cols ≥ 1"):
        Level("tile", 0, 4)
    with pytest.raises(ValueError, match="stride below cols"):
        Level("tile", 2, 4, stride=3)
    with pytest.raises(ValueError, match="found 0×3"):
        cells((4, 4), View((0, 0, 4, 4), (4, 4)), 0, 3)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), max_size=6), st.integers(1, 12))
def test_spans_are_joined_where_every_pixel_is_in_one(spans, length):
    from seeing.rectangles import joined

    edges = np.array([(start, start + size) for start, size in spans] or [(np.nan, np.nan)], dtype=float)
    every = all(any(start <= pixel < start + size for start, size in spans) for pixel in range(length))
    assert joined(edges, length) == every
