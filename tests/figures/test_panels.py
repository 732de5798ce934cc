"""Head map, method comparison and overlay: the drawn values are the given ones, at their true places."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from seeing import figures
from seeing.figures import theme

VALUES = np.array([[0.5, 0.6, np.nan], [0.9, 0.95, 0.7]])


def head_map(**changes):
    return figures.layer_head_map(VALUES, **({"metric": "AUROC", "n": 40} | changes))


def test_head_map_draws_layers_across_and_heads_down():
    fig = head_map()
    drawn = next(trace for trace in fig.data if trace.type == "heatmap")
    np.testing.assert_array_equal(drawn.z, VALUES.T)
    np.testing.assert_array_equal(drawn.x, [0, 1])
    np.testing.assert_array_equal(drawn.y, [0, 1, 2])
    assert fig.layout.yaxis2.range[0] > fig.layout.yaxis2.range[1]
    assert "n = 40" in fig.layout.title.text


def test_head_map_margin_is_the_mean_of_the_finite_heads_or_what_was_given():
    mean = next(trace for trace in head_map().data if trace.name == "mean over heads")
    np.testing.assert_allclose(mean.y, [0.55, 0.85])
    given = next(t for t in head_map(marginal=np.array([0.1, 0.2])).data if t.name == "heads averaged")
    np.testing.assert_array_equal(given.y, [0.1, 0.2])


def test_head_map_outlines_the_chosen_heads_and_shades_the_chosen_layers():
    shapes = head_map(chosen_heads=[(1, 2)], chosen_layers=[0]).layout.shapes
    shade, ring = shapes
    assert (shade.x0, shade.x1) == (-0.5, 0.5)
    assert (ring.x0, ring.x1, ring.y0, ring.y1) == (0.5, 1.5, 1.5, 2.5)


def test_head_map_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"found the chosen head \(1, 3\)"):
        head_map(chosen_heads=[(1, 3)])
    with pytest.raises((ValueError, TypeError), match="marginal"):
        head_map(marginal=np.zeros(3))


ACCURACY = np.array([0.7, 0.8, 0.87, 0.69])
LOW, HIGH = ACCURACY - 0.05, ACCURACY + 0.04


def comparison(**changes):
    given = {
        "names": ["base", "second-look", "oracle", "<b>random</b>"],
        "n": 256,
        "acts_on": ["nothing", "own", "evidence", "random"],
        "through": ["nothing", "attention", "pixels", "attention"],
    }
    return figures.method_comparison(ACCURACY, LOW, HIGH, **(given | changes))


def test_comparison_draws_each_method_once_with_its_interval():
    dots = [trace for trace in comparison().data if trace.mode == "markers"]
    rows = np.concatenate([trace.y for trace in dots])
    np.testing.assert_array_equal(np.sort(rows), np.arange(4))
    for trace in dots:
        at = np.asarray(trace.y)
        np.testing.assert_array_equal(trace.x, ACCURACY[at])
        np.testing.assert_allclose(trace.x + np.asarray(trace.error_x.array), HIGH[at])
        np.testing.assert_allclose(trace.x - np.asarray(trace.error_x.arrayminus), LOW[at])


def test_comparison_colours_by_region_and_marks_by_channel():
    dots = {trace.name: trace.marker for trace in comparison().data if trace.mode == "markers"}
    assert dots["own region"].color == theme.COLOURS["look"]
    assert dots["own region"].symbol == "circle"
    assert dots["evidence box (oracle)"].color == theme.COLOURS["evidence"]
    assert dots["evidence box (oracle)"].symbol == "square"
    assert dots["random region"].symbol == "circle-open"


def test_comparison_of_methods_that_say_nothing_has_one_colour_and_no_legend():
    fig = comparison(acts_on=(), through=())
    dots = [trace for trace in fig.data if trace.mode == "markers"]
    assert len(dots) == 1
    assert not dots[0].showlegend
    np.testing.assert_array_equal(dots[0].x, ACCURACY)
    assert "attention" not in fig.layout.title.text


def test_comparison_has_the_base_as_its_line_and_n_in_its_title():
    fig = comparison()
    line = next(trace for trace in fig.data if trace.name == "base")
    assert list(line.x) == [0.7, 0.7]
    assert "n = 256" in fig.layout.title.text


def test_comparison_escapes_names_and_labels():
    fig = comparison(labels=["", "+1", "+2", "<i>"])
    assert fig.layout.yaxis.ticktext[3] == "&lt;b&gt;random&lt;/b&gt;"
    assert "<b>random" not in fig.to_json()
    assert "<i>" not in fig.to_json()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": ["base"]}, "found 1 names for 4 methods"),
        ({"base": 4}, "found the base row 4"),
        ({"acts_on": ["nothing", "own", "sky", "random"]}, "found a method on 'sky' through 'pixels'"),
    ],
)
def test_comparison_names_what_does_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        comparison(**changes)


IMAGE = np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)
HEAT = np.array([[0.0, 0.2, 0.4, 0.1], [0.3, 0.8, 0.5, 0.0], [0.1, 0.0, 0.0, 0.2]])


def test_overlay_draws_the_heat_at_the_centres_of_its_cells():
    fig = figures.attention_overlay(IMAGE, HEAT)
    drawn = fig.data[0]
    np.testing.assert_array_equal(drawn.z, HEAT)
    assert (drawn.x0, drawn.dx, drawn.y0, drawn.dy) == (10, 20, 10, 20)
    assert drawn.zmax == 0.8
    assert list(fig.layout.xaxis.range) == [0, 80]
    assert list(fig.layout.yaxis.range) == [60, 0]
    assert "n = 1 image" in fig.layout.title.text


def test_overlay_puts_a_crop_where_it_was_cut():
    drawn = figures.attention_overlay(IMAGE, HEAT, extent=(10.0, 0.0, 70.0, 60.0)).data[0]
    assert (drawn.x0, drawn.dx, drawn.y0, drawn.dy) == (17.5, 15, 10, 20)


def test_overlay_holds_the_image_itself():
    source = figures.attention_overlay(IMAGE, HEAT).layout.images[0].source
    picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(picture), IMAGE)
    same = figures.attention_overlay(Image.fromarray(IMAGE), HEAT).layout.images[0].source
    assert same == source


def test_overlay_outlines_each_evidence_box_and_the_own_region():
    boxes = np.array([[1, 2, 11, 12], [20, 30, 40, 50]])
    fig = figures.attention_overlay(IMAGE, HEAT, boxes=boxes, region=(5.0, 6.0, 7.0, 8.0))
    lines = {trace.name: trace for trace in fig.data if trace.showlegend}
    evidence, own = lines["evidence box"], lines["the model's own region"]
    np.testing.assert_array_equal(evidence.x, [1, 11, 11, 1, 1, np.nan, 20, 40, 40, 20, 20, np.nan])
    np.testing.assert_array_equal(evidence.y, [2, 2, 12, 12, 2, np.nan, 30, 30, 50, 50, 30, np.nan])
    assert evidence.line.color == theme.COLOURS["evidence"]
    assert own.line.color == theme.COLOURS["look"]
    assert fig.data[-1] is own


def test_overlay_slider_moves_the_opacity_of_the_map():
    (slider,) = figures.attention_overlay(IMAGE, HEAT, opacity=0.4).layout.sliders
    assert slider.active == 4
    assert slider.steps[7].args[0] == {"opacity": 0.7}
    assert list(slider.steps[7].args[1]) == [0]
    assert not figures.attention_overlay(IMAGE, HEAT, slider=False).layout.sliders


def test_overlay_escapes_its_caption_and_names_what_does_not_fit():
    fig = figures.attention_overlay(IMAGE, HEAT, caption="<img src=x>", title="$a$")
    assert "&lt;img src=x&gt;" in fig.layout.title.text
    assert "$" not in fig.layout.title.text
    with pytest.raises(ValueError, match=r"found the opacity 1\.5"):
        figures.attention_overlay(IMAGE, HEAT, opacity=1.5)
    with pytest.raises(ValueError, match="found the extent"):
        figures.attention_overlay(IMAGE, HEAT, extent=(70.0, 0.0, 10.0, 60.0))


def test_heat_colours_run_along_the_ramp_and_nan_is_clear():
    pixels = figures.heat_rgba(np.array([[0.0, 1.0], [np.nan, 7.0]]))
    first, last = theme.HEAT_STOPS[0], theme.HEAT_STOPS[-1]
    assert list(pixels[0, 0]) == [*first[1:4], round(255 * first[4])]
    assert list(pixels[0, 1]) == [*last[1:4], round(255 * last[4])]
    assert pixels[1, 0, 3] == 0
    np.testing.assert_array_equal(pixels[1, 1], pixels[0, 1])
