"""Where the patches of every family's tower lie, and what the probes read of them, against the bare model."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import seeing
from seeing import probes
from seeing.data.samples import EvidenceSample
from seeing.families import FamilyContractError
from seeing.probes.attention.vision import read_tower

QUESTION = "what digit is on the red square ?"
BOX = (18, 12, 60, 39)
#: A few patches of the coarsest raster.
CHANGED = (19, 12, 39, 29)
#: A resize spreads what changes by so many pixels of the original.
SPREAD = 6


def negative(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The picture with a box inverted."""
    changed = picture.copy()
    changed.paste(Image.fromarray(255 - np.asarray(picture.crop(box))), box[:2])
    return changed


def test_patches_lie_where_pixels_reach_them(case, picture):
    """Pixels of a box are changed: patches on it change, none away from it, none of another picture."""
    vlm, image, other = case.vlm, picture(76, 52), (picture(50, 90, 1), QUESTION)
    before, after = (vlm.prompts([other, (one, QUESTION)]) for one in (image, negative(image, CHANGED)))
    with torch.no_grad():
        one, two = (vlm.cache(prompt, "vision.embed")["vision.embed"] for prompt in (before, after))
    moved = (one - two).abs().amax(-1)
    left, top, right, bottom = CHANGED
    around = (left - SPREAD, top - SPREAD, right + SPREAD, bottom + SPREAD)
    inside, away = 0, 0
    for placed in read_tower(vlm, before).placed:
        grid = placed.patches.grid
        shown = moved[placed.item, grid.positions]
        if placed.picture == 0:
            assert (shown < 1e-5).all()
            continue
        on, off = grid.labels([CHANGED], "all"), ~grid.labels([around])
        assert (shown[on] > 1e-3).all()
        assert (shown[off] < 1e-5).all()
        inside, away = inside + int(on.sum()), away + int(off.sum())
        assert all(moved[placed.item, slot] < 1e-5 for slot in placed.patches.cls)
        moved[placed.item, grid.positions] = 0
    assert inside >= 1
    assert (moved < 1e-5).all(), "a token that has no place saw the box"
    assert away >= 4


def raster(width, height, rows, cols, box=None):
    """Which cells of a raster over (part of) the picture overlap BOX; ``box`` is the part."""
    x0, y0, x1, y1 = box or (0, 0, width, height)
    xs, ys = np.linspace(x0, x1, cols + 1), np.linspace(y0, y1, rows + 1)
    a, b, c, d = BOX
    wide = np.minimum(xs[1:], c) - np.maximum(xs[:-1], a) > 1e-6
    high = np.minimum(ys[1:], d) - np.maximum(ys[:-1], b) > 1e-6
    return np.outer(high, wide).ravel()


def tiles(cells):
    """InternVL's and the like's for 76 × 52: three tiles by two, then the picture as a whole."""
    wide, high, corners = 76 / 3, 26, [(col, row) for row in (0, 1) for col in (0, 1, 2)]
    parts = [(wide * col, high * row, wide * (col + 1), high * (row + 1)) for col, row in corners]
    return [raster(76, 52, cells, cells, part) for part in (*parts, None)]


#: By hand, which tokens of a picture of 76 × 52 see BOX. LLaVA scales it by 112/52 and sees the middle.
TOKENS = {
    "llava": lambda: raster(76, 52, 8, 8, (12.166, 0, 64.166, 52)),
    "qwen2_5_vl": lambda: raster(76, 52, 4, 5),
    "gemma3": lambda: raster(76, 52, 4, 4),
    "internvl": lambda: np.concatenate(tiles(2)),
}


@pytest.fixture(scope="module")
def sample(picture):
    return EvidenceSample("a", picture(76, 52), QUESTION, ("1",), (BOX,))


@pytest.mark.parametrize("case", sorted(TOKENS), indirect=True)
@pytest.mark.filterwarnings("ignore:the model did not see all of the evidence")
def test_evidence_is_scikit_learns_on_eager_rows(case, sample):
    """Under Hugging Face's own eager kernel, in a batch with a longer prompt: padding and all."""
    longer = EvidenceSample("b", sample.image, QUESTION + " " + QUESTION, ("1",), (BOX,))
    found = probes.evidence(case.vlm, [sample, longer])
    inputs, labels = case.vlm.prompt(sample).inputs, TOKENS[case.name]()
    case.twin.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = case.twin.model(**inputs, output_attentions=True)
    image = inputs["input_ids"][0] == case.model.config.image_token_id
    rows = torch.cat(out.attentions)[:, :, -1, image].double().numpy()
    assert rows.shape[-1] == len(labels)
    # A window that ends before the picture: the row sees none of it.
    truth = [roc_auc_score(labels, row) if row.any() else np.nan for row in rows.mean(1)]
    assert np.nanmax(truth) - np.nanmin(truth) > 0.01
    np.testing.assert_allclose(found.samples.auroc[0], truth, atol=2e-3)
    alone = probes.evidence(case.vlm, sample)
    truth = [[roc_auc_score(labels, head) if layer.any() else np.nan for head in layer] for layer in rows]
    np.testing.assert_allclose(alone.auroc, truth, atol=1e-6)


def packed_order(rows, cols, merge=2):
    """The tower's slots of raster patches: groups of merge × merge, each in reading order."""
    return np.arange(rows * cols).reshape(rows // merge, cols // merge, merge, merge).swapaxes(1, 2).ravel()


#: Of each tower, (patches of the last call's rows by hand, the labels of each of its softmaxes).
TOWERS = {
    "llava": lambda calls: [(calls[0][0, :, 0, 1:], raster(76, 52, 8, 8, (12.166, 0, 64.166, 52)))],
    "gemma3": lambda calls: [(calls[0][0].mean(1), raster(76, 52, 8, 8))],
    "internvl": lambda calls: [(one[:, 0, 1:], seen) for one, seen in zip(calls[0], tiles(4))],
    "qwen2_vl": lambda calls: [(calls[0][0].mean(1)[:, packed_order(8, 10)], raster(76, 52, 8, 10))],
    "pixtral": lambda calls: [(calls[0][0].mean(1), raster(76, 52, 4, 6))],
}


@pytest.mark.parametrize("case", sorted(TOWERS), indirect=True)
@pytest.mark.filterwarnings("ignore:the model did not see all of the evidence")
def test_evidence_of_the_tower_is_scikit_learns_on_rows_by_hand(case, sample):
    found = probes.evidence(case.vlm, sample, stack="vision")
    case.twin.run(case.vlm.prompt(sample).inputs)
    stack = case.vlm.family.vision(case.twin.model)
    for layer in range(len(stack)):
        calls = [call["pattern"] for call in case.twin.calls[stack.attention(layer)]]
        parts = [(rows.double().numpy(), labels) for rows, labels in TOWERS[case.name](calls)]
        parts = [(rows, labels) for rows, labels in parts if 0 < labels.sum() < len(labels)]
        truth = np.mean([[roc_auc_score(labels, head) for head in rows] for rows, labels in parts], 0)
        np.testing.assert_allclose(found.auroc[layer], truth, atol=1e-6)
        mean = np.mean([roc_auc_score(labels, rows.mean(0)) for rows, labels in parts])
        np.testing.assert_allclose(found.layers.auroc[layer], mean, atol=1e-6)


@pytest.mark.parametrize("case", ["qwen2_5_vl"], indirect=True)
def test_a_windowed_layer_gives_a_patch_the_mean_over_its_own_window(case, picture):
    """Patches of two pictures in one row; a window of 2 × 2 tokens sums to its share of the patches."""
    prompt = case.vlm.prompts([(picture(76, 52), QUESTION), (picture(50, 90, 1), QUESTION)])
    reading = read_tower(case.vlm, prompt)
    for number, (rows, cols) in enumerate([(4, 5), (6, 4)]):
        ((patches, seen),) = reading.of(number)
        assert len(patches.grid) == 4 * rows * cols
        torch.testing.assert_close(seen.sum(-1), torch.ones(3, 4), atol=1e-5, rtol=0)
        sums = seen.reshape(3, 4, 2 * rows, 2 * cols)[..., :4, :4].sum((-1, -2))
        share = torch.full((4,), 16 / (4 * rows * cols))
        torch.testing.assert_close(sums[0], share, atol=1e-5, rtol=0)
        assert (sums[1] - share).abs().max() > 1e-4  # the layer that sees all of the picture


@pytest.mark.parametrize("case", ["llava"], indirect=True)
def test_a_family_that_knows_no_places_says_so(case, sample):
    vlm = seeing.load((case.model, case.processor), check=False, family="generic")
    with pytest.raises(FamilyContractError, match="by the family's geometry"):
        probes.evidence(vlm, sample, stack="vision")
