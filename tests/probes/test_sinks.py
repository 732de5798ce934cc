"""Sinks that were planted in the stream are found, and what they draw is summed by hand on eager rows."""

import numpy as np
import pytest
import torch
from tiny.merged import BUILDERS as MERGED
from tiny.tiled import BUILDERS

import seeing
from seeing import edits as E
from seeing import methods, probes
from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit
from seeing.probes.heads.sinks import SEGMENTS

DIMS = (37, 5)
LONGER = "what digit is on the red square on the blue circle ?"
#: <bos>, and the image token at row 2, column 3, behind it.
PLACES = [0, 1 + 8 * 2 + 3]


def huge():
    """A vector that is huge in two dimensions."""
    big = torch.zeros(128)
    big[37], big[5] = 300.0, -200.0
    return big


@pytest.fixture(scope="module")
def asked(crowded):
    """Samples whose questions differ in length, so that a batch is padded."""
    return [
        crowded[0],
        EvidenceSample("longer", crowded[1].image, LONGER, ("7",), crowded[1].boxes),
        crowded[2],
    ]


@pytest.fixture(scope="module")
def sunk(random):
    """Behind layer 1 the two places are huge in two dimensions."""
    at = E.Span("template") | E.Boxes(((44.0, 30.0, 54.0, 40.0),))
    return random.with_edits(E.Steer("text.1.resid_post", huge(), 1.0, at, when="prompt"))


@pytest.fixture(scope="module")
def truth(bare, asked):
    """By Hugging Face alone, for each sample: the last token's rows (layer, head, key), and |x| / rms of what
    enters each layer (layer, token, dimension).
    """
    streams, layers = [], bare.model.model.language_model.layers

    def sink(module, args, out):
        out = out.clone()
        out[:, PLACES] += huge()
        return out

    hooks = [layers[1].register_forward_hook(sink)]
    hooks += [one.register_forward_pre_hook(lambda module, args: streams.append(args[0])) for one in layers]
    found = []
    for one in asked:
        streams.clear()
        rows = torch.from_numpy(bare.attention(one.image, one.question))[:, :, -1]
        x = torch.cat(streams).double().abs()
        found.append((rows, x / x.pow(2).mean(-1, keepdim=True).sqrt()))
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture(scope="module")
def found(sunk, asked):
    return probes.sinks(sunk, iter(asked), tau=5, batch_size=2, progress=False)


def test_the_planted_dimensions_are_found_in_the_first_batch(found, truth):
    assert tuple(found.dims) == DIMS
    largest = [max(float(sizes[..., dim].max()) for _, sizes in truth[:2]) for dim in DIMS]
    np.testing.assert_allclose(found.dims.ratios, largest, rtol=1e-4)
    assert found.selector == E.sinks(DIMS, 5)


def test_sinks_are_where_they_were_planted_and_from_the_layer_behind_on(found, truth, asked):
    told = [(one.id, one.position, one.first_layer, one.n_layers) for one in found.tokens]
    by_hand = []
    for sample, (_, sizes) in zip(asked, truth):
        marks = sizes[..., list(DIMS)].amax(-1) > 5
        for position in marks.any(0).nonzero()[:, 0].tolist():
            layers = marks[:, position].nonzero()[:, 0].tolist()
            by_hand.append((sample.id, position, layers[0], len(layers)))
    assert told == by_hand
    assert [one[1:3] for one in told] == [(place, 2) for _ in asked for place in PLACES]
    assert [one.segment for one in found.tokens[:2]] == ["template", "image"]
    assert found.tokens[0].box is None
    assert found.tokens[1].box == pytest.approx((42, 28, 56, 42))


def test_sinks_are_counted_by_layer_and_segment(found):
    counts = dict(zip(SEGMENTS, found.counts.T.tolist()))
    later = [0, 0, 1, 1, 1, 1]
    assert counts == {
        "image": later,
        "question": [0] * 6,
        "template": later,
        "answer": [0] * 6,
        "other": [0] * 6,
    }


def test_what_sinks_draw_and_what_others_would_are_summed_by_hand(found, truth):
    mass, control = np.zeros((6, 4, 2)), np.zeros((6, 4, 2))
    for rows, sizes in truth:
        for layer, head in np.ndindex(6, 4):
            sinks = {place for place in range(rows.shape[-1]) if sizes[layer, place, list(DIMS)].max() > 5}
            image = set(range(1, 65))
            for kind, there in enumerate((image, set(range(rows.shape[-1])) - image)):
                row = rows[layer, head]
                mass[layer, head, kind] += sum(float(row[one]) for one in sinks & there) / 3
                others = np.mean([float(row[one]) for one in there - sinks])
                control[layer, head, kind] += len(sinks & there) * others / 3
    np.testing.assert_allclose(found.mass, mass, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.control, control, rtol=1e-4, atol=1e-7)
    assert found.pull[:2].isnan().all()
    np.testing.assert_allclose(found.pull[2:], mass[2:] / control[2:], rtol=1e-3)


def test_the_control_is_the_mean_over_random_tokens(found, truth, asked):
    """Drawn at random many times over, the tokens draw what the expectation says."""
    rng = np.random.default_rng(0)
    others = np.setdiff1d(np.arange(1, 65), PLACES)
    for head in range(4):
        drawn = [rows[3, head, rng.choice(others, 400)].mean() for rows, _ in truth]
        spread = np.mean([float(rows[3, head, others].std()) for rows, _ in truth]) / (3 * 400) ** 0.5
        assert abs(np.mean(drawn) - float(found.control[3, head, 0])) < 5 * spread


def test_dimensions_can_be_given(sunk, asked, found):
    for given in (found.dims, DIMS, [5, 37]):
        again = probes.sinks(sunk, asked, given, tau=5, progress=False)
        torch.testing.assert_close(again.mass, found.mass, rtol=1e-5, atol=1e-7)
        assert again.tokens == found.tokens
    one = probes.sinks(sunk, asked, 100, tau=5, progress=False)
    assert not one.tokens
    assert (one.mass == 0).all()
    with pytest.raises(BadEdit, match="no dimension 128"):
        probes.sinks(sunk, asked, [128], progress=False)


def test_a_prompt_is_probed_as_its_samples_are(sunk, asked, found):
    again = probes.sinks(sunk, sunk.prompts(asked), tau=5)
    torch.testing.assert_close(again.mass, found.mass, rtol=1e-5, atol=1e-7)
    assert [one[1:] for one in again.tokens] == [one[1:] for one in found.tokens]
    assert [one.id for one in again.tokens] == ["0", "0", "1", "1", "2", "2"]


def test_a_model_without_sinks_says_how_large_its_dimensions_get(random, asked):
    with pytest.raises(BadEdit, match=r"makes sinks at tau=20.*× rms"):
        probes.sinks(random, asked, progress=False)
    with pytest.raises(ValueError, match="no samples were given"):
        probes.sinks(random, [], progress=False)


def test_dimensions_are_found_over_many_prompts_as_over_one_batch(sunk, asked):
    together = probes.sink_dims(sunk, asked, tau=5)
    apart = probes.sink_dims(sunk, iter(asked), tau=5, batch_size=1)
    assert together == apart == DIMS
    np.testing.assert_allclose(together.ratios, apart.ratios, rtol=1e-5)
    assert methods.sink_dims is probes.sink_dims
    assert methods.var(together).edits.sinks == E.sinks(DIMS, 20)
    with pytest.raises(BadEdit, match="no prompts were given"):
        probes.sink_dims(sunk, [], tau=5)


def test_frames_have_a_row_for_every_number(found):
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "head", "kind", "mass", "control"]
    at = frame.set_index(["layer", "head", "kind"])
    assert at.loc[(3, 2, "text"), "mass"] == float(found.mass[3, 2, 1])
    assert len(frame) == 6 * 4 * 2
    assert list(found.tokens_frame().columns) == [
        "id",
        "position",
        "segment",
        "first_layer",
        "n_layers",
        "box",
    ]
    assert len(found.tokens_frame()) == len(found.tokens) == 6


@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_has_sinks_and_controls_of_both_kinds(found, dark):
    fig = found.figure(dark=dark)
    drawn = {trace.name: trace.y for trace in fig.data}
    assert set(drawn) == {
        "image sinks",
        "text sinks",
        "as many random image tokens",
        "as many random text tokens",
    }
    np.testing.assert_allclose(drawn["image sinks"], found.mass[..., 0].mean(1))
    np.testing.assert_allclose(drawn["as many random text tokens"], found.control[..., 1].mean(1))
    assert "n = 3" in fig.layout.title.text


def test_the_control_is_of_tokens_that_the_row_is_shown(asked):
    """Neither those of a given answer, behind the row, nor those before a window of 12."""
    vlm = seeing.load(MERGED["gemma3"](), check=False)
    prompt = vlm.prompts(asked[:2])
    found = probes.sinks(vlm, prompt, [0, 1], tau=1)
    told = probes.sinks(vlm, prompt.with_answer(["red square on the blue circle", "green"]), [0, 1], tau=1)
    torch.testing.assert_close(told.mass, found.mass, atol=1e-6, rtol=1e-4, equal_nan=True)
    torch.testing.assert_close(told.control, found.control, atol=1e-6, rtol=1e-4, equal_nan=True)
    one = probes.sinks(vlm, vlm.prompt(asked[0]), [0, 1], tau=1)
    prompt = vlm.prompt(asked[0])
    text, place = ~prompt.spans.mask("image")[0], torch.arange(prompt.length)
    for layer in (0, 3):
        cache = vlm.cache(prompt, [f"text.{layer}.resid_pre", f"text.{layer}.attn.pattern"])
        x = cache[f"text.{layer}.resid_pre"][0].double()
        sunk = x[:, :2].abs().amax(-1) > x.pow(2).mean(-1).sqrt()
        there = text & (place >= prompt.length - 12) if layer == 0 else text
        row = cache[f"text.{layer}.attn.pattern"][0, :, -1].double()
        expected = (sunk & there).sum() * row[:, there & ~sunk].mean(1)
        assert 0 < (sunk & there).sum() < there.sum()
        torch.testing.assert_close(one.control[layer, :, 1], expected, atol=1e-6, rtol=1e-4)


def test_layers_without_attention_over_the_sequence_have_no_numbers(crowded):
    """In a mllama the layers that look at the picture have other keys."""

    vlm = seeing.load(BUILDERS["mllama"](), check=False)
    found = probes.sinks(vlm, crowded[:2], [0], tau=1.5, progress=False)
    cross = [layer for layer, kernel in vlm.sites.kernels["text"].items() if kernel.cross]
    assert found.mass.isnan().all((1, 2)).nonzero()[:, 0].tolist() == cross
    assert found.counts.isnan().all(1).nonzero()[:, 0].tolist() == cross
    assert cross
    assert found.tokens
