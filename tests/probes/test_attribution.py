"""Attributions: right to first order, held against patches made in earnest."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from seeing import edits as E
from seeing.probes.causal.attribution import KINDS, attribution
from seeing.probes.causal.patching import patching


def repainted(sample):
    pixels = np.asarray(sample.image.convert("RGB"))
    return dataclasses.replace(sample, image=Image.fromarray(pixels[..., ::-1].copy()))


def nudged(sample):
    """The sample with a few of its pixels one step brighter."""
    pixels = np.array(sample.image.convert("RGB"))
    pixels[::9, ::7] = np.minimum(pixels[::9, ::7], 254) + 1
    return dataclasses.replace(sample, image=Image.fromarray(pixels))


@pytest.fixture(scope="module")
def close_by(random, crowded):
    return attribution(random, crowded[:2], nudged, spans=("image", "last"), direction="noise")


@pytest.mark.parametrize("kind", KINDS)
def test_near_by_an_attribution_is_what_the_patch_does(random, crowded, close_by, kind):
    found = close_by.compare(random, crowded[:2], 3, kind)
    size = float(found.exact.abs().max())
    assert size > 1e-4
    torch.testing.assert_close(found.approximate, found.exact, rtol=0, atol=0.05 * size + 2e-5)
    assert found.correlation > 0.99


def test_exact_patches_of_heads_are_those_of_patching(random, crowded):
    given = attribution(random, crowded[:3], repainted, spans=("evidence", "last"))
    found = given.compare(random, crowded[:3], 2)
    layers = sorted({one.layer for one in found.places})
    patched = patching(
        random,
        crowded[:3],
        repainted,
        heads=True,
        spans=("evidence", "last"),
        layers=layers[:1],
        metric="logit_diff",
    )
    assert given.gap == pytest.approx(patched.gap, abs=1e-3)
    for place, exact in zip(found.places, found.exact.tolist()):
        if place.layer == layers[0]:
            span = ("evidence", "last").index(place.span)
            assert exact == pytest.approx(float(patched.change[0, place.head, span]), abs=1e-3)


def test_places_compared_are_the_largest_and_some_of_all_ranks(random, crowded, close_by):
    found = close_by.compare(random, crowded[:1], 2, corrupted=repainted)
    values = close_by.heads.abs()
    sizes = [values[one.layer, one.head, ("image", "last").index(one.span)] for one in found.places]
    assert [int((values > size).sum()) for size in sizes[:3]] == [0, 1, 2]
    assert sizes[-1] == values.min()
    assert len(set(found.places)) == 4
    assert found.ids == (crowded[0].id,)


def test_batches_of_any_size_give_the_same(random, crowded):
    short = dataclasses.replace(crowded[0], question="what digit ?")
    samples = [short, *crowded[1:3]]
    whole, parts = (
        attribution(random, iter(samples), repainted, batch_size=size, metric="logprob") for size in (3, 2)
    )
    for kind in KINDS:
        torch.testing.assert_close(parts.of(kind), whole.of(kind), atol=1e-3, rtol=1e-3)
    assert whole.ids == parts.ids == tuple(one.id for one in samples)


def test_rows_of_an_answer_of_several_words_are_all_attributed(random, crowded):
    prompt = random.prompts(crowded[:1]).with_answer([[9, 12, 7]])
    other = random.prompts([repainted(crowded[0])])
    found = attribution(random, prompt, other, spans=("image", "last"), metric="logprob")
    compared = found.compare(random, prompt, 2, "edges")
    assert compared.exact.abs().max() > 1e-3
    first = random.prompts(crowded[:1]).with_answer([[9]])
    alone = attribution(random, first, other, spans=("image", "last"), metric="logprob")
    assert (alone.edges - found.edges).abs().max() > 1e-3


def test_under_an_edit_of_pictures_it_is_the_run_that_is_attributed(random, crowded):
    edited = random.with_edits(E.Crop("evidence", append=True))
    found = attribution(edited, crowded[:2], repainted, spans=("image", "last"))
    patched = patching(edited, crowded[:2], repainted, spans="image", layers=0, metric="logit_diff")
    assert found.gap == pytest.approx(patched.gap, abs=1e-3)
    near = attribution(edited, crowded[:2], nudged, spans=("image", "last"), direction="noise")
    compared = near.compare(edited, crowded[:2], 3)
    size = float(compared.exact.abs().max())
    torch.testing.assert_close(compared.approximate, compared.exact, atol=0.1 * size, rtol=0.1)


def test_sides_with_other_tokens_are_left_out(random, crowded):
    def change(sample):
        changed = repainted(sample)
        return dataclasses.replace(changed, question="what digit ?") if sample is crowded[0] else changed

    found = attribution(random, crowded[:2], change, spans="image")
    assert found.ids == (crowded[1].id,)
    assert "tokens in the corrupted prompt" in found.left_out[0].reason


def test_what_has_no_gradient_or_is_not_attributed_says_so(random, crowded, close_by):
    with pytest.raises(ValueError, match="its gradient there is zero"):
        attribution(random, crowded[:1], repainted, metric="kl", direction="noise")
    with pytest.raises(KeyError, match="nothing of the kind 'mlps'"):
        close_by.of("mlps")
    with pytest.raises(ValueError, match="k is at least 1"):
        close_by.compare(random, crowded[:1], 0)


def test_divergence_has_a_gradient_in_the_corrupted_run(random, crowded):
    found = attribution(random, crowded[:1], E.Occlude("evidence"), metric="kl", spans="last")
    assert found.gap < 0
    assert found.heads.abs().max() > 1e-4


def test_attributions_are_told_by_rank_as_a_table_and_as_figures(random, crowded, close_by):
    best = close_by.top(2)
    layer, head, span, change = best[0]
    assert abs(change) == float(close_by.heads.abs().max())
    assert float(close_by.heads[layer, head, ("image", "last").index(span)]) == change
    frame = close_by.to_frame()
    assert set(frame.kind) == set(KINDS)
    row = frame[
        (frame.kind == "heads") & (frame.layer == layer) & (frame["head"] == head) & (frame.span == span)
    ]
    assert float(row.change.iloc[0]) == change
    drawn = [trace for trace in close_by.figure("edges").data if trace.type == "heatmap"]
    np.testing.assert_array_equal(drawn[1].z, close_by.edges[:, :, 1].T.numpy())
    compared = close_by.compare(random, crowded[:1], 2)
    points = next(trace for trace in compared.figure().data if trace.name == "places")
    np.testing.assert_array_equal(points.x, compared.exact.numpy())
    assert list(compared.to_frame().approximate) == compared.approximate.tolist()
