"""Localization heads, against the paper's words written out with loops on eager rows."""

import functools
import math

import numpy as np
import pytest
import torch
from tiny.tiled import BUILDERS as TILED
from tiny.tiles_last import BUILDERS as TILES_LAST

import seeing
from seeing import edits as E
from seeing import probes
from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit
from seeing.probes.heads.localization import elbow, judge, spatial_entropy

# ---- by hand -----------------------------------------------------------------------------------------------


def elbow_by_hand(values):
    """The value whose point lies farthest from the line between the first and the last point."""
    points = list(enumerate(sorted(values)))
    (x0, y0), (x1, y1) = points[0], points[-1]
    long = math.hypot(x1 - x0, y1 - y0)
    away = [abs((x1 - x0) * (y0 - y) - (x0 - x) * (y1 - y0)) / long for x, y in points]
    return points[max(range(len(points)), key=lambda place: away[place])][1]


def entropy_by_hand(grid, floor=1e-3, times_mean=1.0):
    """Flood fill over a dict of cell -> weight; None without a component."""
    mean = sum(grid.values()) / len(grid)
    above = {cell: value - times_mean * mean for cell, value in grid.items()}
    left = {cell for cell, value in above.items() if value > floor}
    held = []
    while left:
        edge, total = [left.pop()], 0.0
        while edge:
            row, col = edge.pop()
            total += above[row, col]
            near = {(row + i, col + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        held.append(total)
    shares = [one / sum(held) for one in held]
    return -sum(share * math.log(share) for share in shares) if held else None


def choice_by_hand(rows, cells, best):
    """The chosen (layer, head) of one sample; ``cells`` says the cell of each token, None for none."""
    places = list(np.ndindex(rows.shape[:2]))
    sums = {place: rows[place].sum() for place in places}
    least = elbow_by_hand(sums.values())
    bottom = max(cell[0] for cell in cells if cell)
    good = []
    for place in places:
        grid = {cell: rows[place][token] for token, cell in enumerate(cells) if cell}
        entropy = entropy_by_hand(grid)
        lowest = max(value for (row, _), value in grid.items() if row == bottom)
        if sums[place] >= least and entropy is not None and lowest <= 0.05:
            good.append((round(entropy, 9), -sums[place], place))
    return [place for *_, place in sorted(good)[:best]]


# ---- parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_elbow_is_the_point_farthest_from_the_chord(seed):
    values = np.random.default_rng(seed).pareto(1.0, 40)
    assert elbow(values) == pytest.approx(elbow_by_hand(values.tolist()))
    # No axis has a scale.
    assert elbow(1000 * values) == pytest.approx(1000 * elbow(values))


def test_the_elbow_of_few_or_even_values_is_the_least():
    assert elbow(np.array([0.3])) == 0.3
    assert elbow(np.array([0.4, 0.3])) == 0.3
    assert elbow(np.full(7, 0.2)) == 0.2
    assert elbow(np.arange(10) / 7) == 0
    with pytest.raises(ValueError, match="no values"):
        elbow(np.array([]))


@pytest.mark.parametrize("times_mean", [1.0, 2.0])
def test_spatial_entropy_is_that_of_flooded_components(times_mean):
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.full(35, 0.15), 30).reshape(30, 5, 7)
    found = spatial_entropy(maps, times_mean=times_mean)
    truth = [entropy_by_hand(dict(np.ndenumerate(one)), times_mean=times_mean) for one in maps]
    np.testing.assert_allclose(found, truth, atol=1e-12)
    assert len(set(np.round(truth, 6))) > 20


def test_two_equal_blobs_have_the_entropy_of_a_coin_and_one_blob_none():
    two = np.zeros((4, 6))
    two[0, 0] = two[3, 5] = 0.5
    one = np.zeros((4, 6))
    one[1, 1] = one[2, 2] = 0.5  # diagonal cells touch
    assert spatial_entropy(np.stack([two, one])) == pytest.approx([math.log(2), 0])


def test_a_flat_map_has_no_component_and_cells_without_a_place_are_none():
    flat = np.full((1, 3, 3), 1 / 9)
    assert np.isnan(spatial_entropy(flat)).all()
    assert spatial_entropy(np.empty((0, 3, 3))).shape == (0,)
    padded = np.full((1, 4, 4), np.nan)
    padded[0, :2, :3] = [[0.6, 0.0, 0.0], [0.0, 0.0, 0.4]]
    grid = {cell: value for cell, value in np.ndenumerate(padded[0]) if not math.isnan(value)}
    assert spatial_entropy(padded)[0] == pytest.approx(entropy_by_hand(grid))


# ---- the probe ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eager_rows(bare, mixed):
    """(sample, layer, head, token)"""
    return np.stack([bare.image_rows(one.image, one.question) for one in mixed])


@pytest.mark.parametrize("best", [1, 3, 10])
def test_selection_frequency_is_counted_by_hand_on_eager_rows(random, mixed, eager_rows, best):
    found = probes.localization_heads(random, iter(mixed), best=best, batch_size=4, progress=False)
    count = np.zeros((6, 4))
    cells = list(np.ndindex(8, 8))
    for rows in eager_rows:
        for place in choice_by_hand(rows, cells, best):
            count[place] += 1
    np.testing.assert_allclose(found.scores, count / len(mixed))
    assert found.n == len(mixed)
    assert 0 < count.max() < len(mixed) or best > 1
    np.testing.assert_allclose(found.parts["image sum"], eager_rows.sum(-1).mean(0), rtol=1e-5)


#: The overview comes first, or behind the tiles.
BUILDERS = {name: TILED[name] for name in ("llava_next", "mllama")} | {
    name: TILES_LAST[name] for name in ("internvl", "idefics3")
}


@functools.cache
def tiled(name):
    model, processor = BUILDERS[name]()
    return seeing.load((model, processor), check=False)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_picture_of_tiles_is_judged_on_its_overview(name, noise):
    """Rows drawn by hand over the tokens of an oblong picture: cells are known by their boxes alone."""
    vlm = tiled(name)
    grid = vlm.prompt(noise(120, 40), "what digit is on the red square ?").keys.grids[0]
    tokens = torch.from_numpy(grid.levels[grid.overview].tokens).flatten()
    some = set(tokens[grid.placed[tokens]].tolist())
    tops, lefts = (sorted({round(float(grid.boxes[one, axis]), 6) for one in some}) for axis in (1, 0))
    cells = [
        (tops.index(round(y, 6)), lefts.index(round(x, 6))) if token in some else None
        for token, (x, y) in enumerate(grid.boxes[:, :2].tolist())
    ]
    assert len({cell for cell in cells if cell}) == len(some) > 1
    rng = np.random.default_rng(1)
    rows = rng.dirichlet(np.full(len(grid), 0.1), (3, 4)) * rng.uniform(0.05, 1, (3, 4, 1))
    found = judge(torch.from_numpy(rows), grid, best=3)["chosen"]
    assert [tuple(place) for place in found.nonzero().tolist()] == sorted(choice_by_hand(rows, cells, 3))


def test_a_head_on_the_bottom_row_is_dropped_and_so_is_one_that_hardly_looks(random, crowded):
    grid = random.prompt(crowded[0]).grids[0]
    rows = np.full((2, 3, 64), 0.1 / 64)
    rows[0, 0, 20] = rows[0, 1, 60] = 0.5  # one in the middle, one on the bottom row
    rows[1, 0, 9] = rows[1, 0, 45] = 0.3  # two blobs
    rows[1, 1] = 0.08 / 64
    rows[1, 1, 9] = 0.02  # one blob, but the least attention of all
    found = judge(torch.from_numpy(rows), grid, best=2)
    assert found["chosen"].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert found["bottom row"].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert judge(torch.from_numpy(rows), grid, best=2, bottom=0.6)["chosen"].tolist() == [
        [1, 1, 0],
        [0, 0, 0],
    ]


def test_of_heads_with_one_blob_each_those_that_look_most_are_chosen(random, crowded):
    grid = random.prompt(crowded[0]).grids[0]
    rows = np.full((1, 5, 64), 1e-4)
    rows[0, :, 20] = [0.2, 0.5, 0.3, 0.4, 0.0]
    assert judge(torch.from_numpy(rows), grid, best=1)["chosen"].tolist() == [[0, 1, 0, 0, 0]]
    assert judge(torch.from_numpy(rows), grid, best=2)["chosen"].tolist() == [[0, 1, 0, 1, 0]]


def test_heads_that_look_at_nothing_but_the_picture_all_pass_whatever_the_rounding(random, crowded):
    grid = random.prompt(crowded[0]).grids[0]
    rows = torch.rand(2, 4, 64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    first = judge(rows, grid, best=2, floor=0)
    assert (first["past elbow"] == 1).all()
    noise = 1 + 1e-7 * torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1)).double()
    again = judge(rows * noise, grid, best=2, floor=0)
    assert torch.equal(again["past elbow"], first["past elbow"])
    assert torch.equal(again["chosen"], first["chosen"])
    # Of equal entropy and equal within rounding, the first are chosen.
    blobs = torch.zeros(1, 4, 64).double()
    blobs[0, :, 20] = 1 + torch.tensor([0, 3e-8, -3e-8, 6e-8])
    assert judge(blobs, grid, best=2)["chosen"].tolist() == [[1, 1, 0, 0]]


def test_layers_that_do_not_compete_have_no_score(random, crowded):
    found = probes.localization_heads(random, crowded[:4], layers=slice(2, None), best=2, progress=False)
    assert found.scores[:2].isnan().all()
    assert not found.scores[2:].isnan().any()
    assert min(found.top(2)) >= 2
    with pytest.raises(BadEdit, match="no layer 17"):
        probes.localization_heads(random, crowded[:1], layers=[17])
    with pytest.raises(ValueError, match="best=0"):
        probes.localization_heads(random, crowded[:1], best=0)


def test_uniform_attention_localizes_nothing_and_says_so(uniform, crowded):
    with pytest.raises(ValueError, match="no head that looks at the picture has a region"):
        probes.localization_heads(uniform, crowded[:2], progress=False)


def test_boxes_are_not_needed_and_what_is_no_prompt_is_left_out(random, crowded):
    bare = [EvidenceSample(one.id, one.image, one.question, one.answers, ()) for one in crowded[:3]]
    found = probes.localization_heads(random, bare, progress=False)
    assert torch.equal(found.scores, probes.localization_heads(random, crowded[:3], progress=False).scores)
    long = "what digit is on the red square ? " * 400
    broken = EvidenceSample("broken", crowded[0].image, long, ("7",), ())
    some = probes.localization_heads(random, [*bare, broken], progress=False)
    assert torch.equal(found.scores, some.scores)
    assert [one.id for one in some.left_out] == ["broken"]
    assert "context" in some.left_out[0].reason


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_planted_head_is_chosen_every_time(family, plant, planted_samples):
    model = plant("believes", family=family)
    found = probes.localization_heads(
        model.vlm, planted_samples(12, seed=7), best=1, batch_size=5, progress=False
    )
    inside = [one for one in planted_samples(12, seed=7) if one.meta["at"][0] < 7]
    assert found.ranking()[0][:2] == model.looks
    # On the bottom row its region passes for a sink.
    assert found.scores[model.looks] >= len(inside) / 12 - 1e-9
    edited = model.vlm.with_edits(E.AblateHeads(found.top(1)))
    prompt = model.vlm.prompt(inside[0])
    assert str(edited.answer(prompt)) != str(model.vlm.answer(prompt))


def test_rows_of_the_answer_find_a_head_that_looks_late(plant, planted_samples):
    model = plant("believes", late=True)
    given = [one for one in planted_samples(10, seed=8, late=True) if one.meta["at"][0] < 7]
    found = probes.localization_heads(model.vlm, given, best=1, answers="given", progress=False)
    assert found.ranking()[0][:2] == model.looks
    assert found.scores[model.looks] == 1
    own = probes.localization_heads(model.vlm, given, best=1, answers="own", progress=False)
    assert torch.equal(own.scores, found.scores)
