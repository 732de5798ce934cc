"""The image-token lens: each token's word stands at the token's place in the picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.merged import BUILDERS as MERGED
from tiny.packed import BUILDERS as PACKED
from tiny.tiled import BUILDERS as TILED

import seeing
from seeing import probes
from seeing.figures.lens import Cells, words_over_image
from seeing.prompt import BadPrompt


@pytest.fixture(scope="module")
def sample(crowded, paste):
    """Oblong: the centre crop cuts 19 pixels off either side."""
    return paste(crowded[0], (150, 112), (19, 0))


@pytest.fixture(scope="module")
def found(random, sample):
    return probes.image_lens(random, sample, k=3)


def test_words_stand_where_their_tokens_look(found, bare, sample):
    with torch.no_grad():
        hidden = bare.model(
            **bare.inputs((sample.image, sample.question)), output_hidden_states=True
        ).hidden_states
        stream = bare.model.model.language_model.norm(hidden[4][0, 1:65])
        logp = bare.model.lm_head(stream).log_softmax(-1)
    vocabulary = bare.processor.tokenizer.convert_ids_to_tokens(range(logp.shape[-1]))
    expected = np.array([vocabulary[one] for one in logp.argmax(-1)], dtype=object).reshape(8, 8)
    np.testing.assert_array_equal(found.words(3), expected)
    assert len(set(expected.ravel())) > 3
    assert torch.equal(found.ids[:, 3], logp.topk(3).indices)
    torch.testing.assert_close(found.probs[:, 3], logp.exp().topk(3).values, atol=1e-5, rtol=1e-5)


def test_the_frame_says_each_tokens_box(found):
    frame = found.to_frame()
    assert len(frame) == 64 * 6 * 3
    row = frame.set_index(["token", "layer", "k"]).loc[(8 * 2 + 5, 4, 1)]
    assert (row.x0, row.y0, row.x1, row.y1) == (19 + 5 * 14, 28, 19 + 6 * 14, 42)
    assert row.level == "patch"
    assert row.prob == found.probs[21, 4, 1].item()
    assert found.lens.words[int(found.ids[21, 4, 1])] == row.word


def test_the_figure_lays_the_words_over_the_picture(found, sample):
    fig = found.figure(layer=2)
    rasters = [trace for trace in fig.data if trace.type == "heatmap"]
    assert [trace.visible for trace in rasters] == [number == 2 for number in range(6)]
    np.testing.assert_allclose(rasters[2].x, 19 + 14 * np.arange(9))
    np.testing.assert_allclose(rasters[2].y, 14 * np.arange(9))
    np.testing.assert_allclose(rasters[2].z, found.probs[:, 2, 0].reshape(8, 8))
    for at in np.ndindex(8, 8):
        assert rasters[2].text[at] == found.words(2)[at].replace("<", "&lt;").replace(">", "&gt;")
    box = next(trace for trace in fig.data if trace.name == "evidence box")
    assert (min(box.x[:4]), max(box.x[:4])) == (sample.boxes[0][0], sample.boxes[0][2])
    (slider,) = fig.layout.sliders
    assert slider.active == 2
    shown, traces = slider.steps[4].args
    assert shown["visible"] == [number == 4 for number in range(6)]
    assert list(traces) == list(range(6)), "the slider leaves the boxes alone"


def test_a_negative_layer_counts_from_the_models_last(found, random, sample):
    np.testing.assert_array_equal(found.words(-1), found.words(5))
    assert found.figure(-2).layout.sliders[0].active == 4
    some = probes.image_lens(random, sample, layers=[1, -2], k=1)
    np.testing.assert_array_equal(some.words(-2), found.words(4))
    for layer in (-1, -7, 6):
        with pytest.raises(ValueError, match=f"layer {layer} was not read"):
            some.words(layer)


def test_what_a_model_says_is_drawn_letter_by_letter():
    words = np.array([["<b>", "%{x}", "$a$"], ["", "a" * 30, "&amp;"]], dtype=object)[None, ..., None]
    cells = Cells(words, np.full(words.shape, 0.5))
    fig = words_over_image(
        Image.new("RGB", (30, 20)), cells, np.arange(4.0) * 10, np.arange(3.0) * 10, layers=[7]
    )
    text, hover = fig.data[0].text, fig.data[0].customdata
    assert text[0].tolist() == ["&lt;b&gt;", "%&#123;x}", "&#36;a&#36;"]
    assert text[1].tolist() == ["", "a" * 9 + "…", "&amp;amp;"]
    assert hover[1, 1] == "a" * 30 + "  0.500"
    assert hover[1, 0] == ""


def test_the_slider_needs_rasters_that_fit():
    words = np.full((2, 2, 3, 1), "a", dtype=object)
    with pytest.raises(ValueError, match=r"found rasters of words of \(2, 2, 3\), expected \(1, 2, 3\)"):
        words_over_image(
            Image.new("RGB", (9, 9)),
            Cells(words, np.ones(words.shape)),
            np.arange(4.0),
            np.arange(3.0),
            layers=[0],
        )


def noise(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "gemma3"])
def test_tiles_merged_patches_and_padding_keep_their_places(name):
    """Whatever a family makes of a picture, a word stands in the cell whose box is its token's."""
    vlm = seeing.load({**TILED, **PACKED, **MERGED}[name]())
    prompt = vlm.prompt(noise(76, 52, 0), "what digit is on the red square ?")
    found = probes.image_lens(vlm, prompt, k=1)
    grid = prompt.grids[0]
    for number, level in enumerate(grid.levels):
        words, placed = found.words(1, number), grid.placed.numpy()
        for (row, col), token in np.ndenumerate(level.tokens):
            assert words[row, col] == (found.lens.said(int(token))[1][0] if placed[token] else "")
        raster = found.figure(level=number).data[1]
        boxes = grid.boxes.numpy()[level.tokens]
        rows, cols = (~np.isnan(boxes[..., 0]).all(axis) for axis in (1, 0))
        assert np.asarray(raster.z).shape == (rows.sum(), cols.sum())
        assert (raster.x[0], raster.x[-1]) == (np.nanmin(boxes[..., 0]), np.nanmax(boxes[..., 2]))
        assert (raster.y[0], raster.y[-1]) == (np.nanmin(boxes[..., 1]), np.nanmax(boxes[..., 3]))


def test_each_of_two_pictures_has_its_own_words():
    vlm = seeing.load(PACKED["qwen2_vl"]())
    one, two = noise(76, 52, 0), noise(50, 90, 1)
    prompt = vlm.prompt([one, two], "what digit is on the red square ?", boxes=[(0, 0, 20, 20)])
    second = probes.image_lens(vlm, prompt, image=1)
    assert second.image.size == (50, 90)
    assert len(second.grid) == len(second.ids) == len(prompt.grids[1])
    whole = probes.logit_lens(vlm, prompt, "image")
    assert torch.equal(second.ids, whole.top[len(prompt.grids[0]) :])
    assert probes.image_lens(vlm, prompt).boxes == ((0, 0, 20, 20),)
    assert second.boxes == ()
    with pytest.raises(BadPrompt, match="none is number 2"):
        probes.image_lens(vlm, prompt, image=2)


def test_a_picture_outside_the_stream_has_no_words(found, random, crowded):
    vlm = seeing.load(TILED["mllama"]())
    with pytest.raises(BadPrompt, match="cross-attention"):
        probes.image_lens(vlm, vlm.prompt(noise(76, 52, 0), "what digit is on the red square ?"))
    with pytest.raises(BadPrompt, match="2"):
        probes.image_lens(random, random.prompts(crowded[:2]))
    with pytest.raises(ValueError, match="was not read"):
        found.words(6)


@pytest.mark.parametrize("several", [list, iter])
def test_several_samples_are_asked_for_one_at_a_time(random, sample, several, unchecked):
    with pytest.raises(BadPrompt, match="one sample, or a prompt of one row; got list"):
        probes.image_lens(random, several([sample]))
