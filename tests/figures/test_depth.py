"""Depth figures draw the arrays that they were given: every curve, every band, every gap."""

import numpy as np
import pytest

from seeing import figures
from seeing.figures import theme
from seeing.figures.curves import band

MEAN = np.array([[0.6, 0.9, 0.95, 0.9], [0.55, 0.85, np.nan, 0.88]])
LOW, HIGH = MEAN - 0.05, MEAN + 0.04


def curves(fig):
    """The curves proper: one marker a layer."""
    return [trace for trace in fig.data if trace.mode == "lines+markers"]


def bands(fig):
    return [trace for trace in fig.data if trace.fill == "toself"]


def auroc(**changes):
    given = {"groups": ["correct", "wrong"], "n": [174, 82], "chosen": [1, 2]} | changes
    return figures.auroc_by_depth(MEAN, LOW, HIGH, **given)


def test_auroc_curves_are_the_arrays():
    drawn = curves(auroc())
    assert len(drawn) == 2
    for i, trace in enumerate(drawn):
        np.testing.assert_array_equal(trace.x, np.arange(4))
        np.testing.assert_array_equal(trace.y, MEAN[i])
        np.testing.assert_array_equal(trace.customdata, np.stack([LOW[i], HIGH[i]], axis=-1))


def test_auroc_bands_go_along_low_and_back_along_high():
    first, second = bands(auroc())
    np.testing.assert_array_equal(first.x, [0, 1, 2, 3, 3, 2, 1, 0])
    np.testing.assert_array_equal(first.y, [*LOW[0], *HIGH[0][::-1]])
    np.testing.assert_array_equal(second.x, [0, 1, 1, 0, np.nan, 3, 3])


def test_correct_is_solid_and_wrong_dashed_in_the_colour_of_the_evidence():
    correct, wrong = curves(auroc())
    assert (correct.line.dash, wrong.line.dash) == ("solid", "dash")
    assert correct.line.color == wrong.line.color == theme.COLOURS["evidence"]
    assert (correct.name, wrong.name) == ("correct (n = 174)", "wrong (n = 82)")


def test_chosen_layers_are_shaded_where_they_are():
    shapes = auroc().layout.shapes
    assert [(shape.x0, shape.x1) for shape in shapes] == [(0.5, 1.5), (1.5, 2.5)]


def test_titles_hold_n_and_units():
    assert "n = 174 + 82" in auroc().layout.title.text
    assert "0–1" in auroc().layout.title.text


def test_a_low_auroc_stays_in_view():
    fig = figures.auroc_by_depth(MEAN - 0.4, LOW - 0.4, HIGH - 0.4, groups=["correct", "wrong"], n=[1, 1])
    assert fig.layout.yaxis.range[0] < np.nanmin(LOW - 0.4)


def test_a_curve_of_nothing_but_gaps_is_drawn_as_nothing():
    nothing = np.full((1, 3), np.nan)
    fig = figures.auroc_by_depth(nothing, nothing, nothing, groups=["all"], n=[0])
    assert len(bands(fig)) == 0
    assert np.isnan(curves(fig)[0].y).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": [174]}, "found 1 n for 2 curves"),
        ({"groups": ["right", "wrong"]}, "found the group 'right'"),
        ({"chosen": [4]}, "found the chosen layer 4, expected 0 to 3"),
    ],
)
def test_auroc_names_what_does_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        auroc(**changes)


def rapt(mean=MEAN, low=LOW, high=HIGH, **changes):
    given = {"segments": ["evidence", "evidence"], "groups": ["correct", "wrong"], "n": [174, 82]} | changes
    return figures.rapt_by_depth(mean, low, high, **given)


def test_rapt_curves_are_the_arrays_in_one_colour_a_segment():
    drawn = curves(rapt(segments=["evidence", "question"]))
    for i, trace in enumerate(drawn):
        np.testing.assert_array_equal(trace.y, MEAN[i])
    assert [trace.line.color for trace in drawn] == [theme.COLOURS["evidence"], theme.COLOURS["question"]]
    assert [trace.line.dash for trace in drawn] == ["solid", "dash"]


def test_rapt_has_a_line_at_one_and_n_in_its_title():
    fig = rapt()
    assert any(list(trace.y) == [1.0, 1.0] for trace in fig.data if trace.y is not None)
    assert "n = 174 + 82" in fig.layout.title.text
    assert fig.layout.yaxis.type == "log"
    assert rapt(log=False).layout.yaxis.type == "linear"


def test_rapt_legend_names_each_segment_and_group_once():
    fig = rapt(
        np.vstack([MEAN, MEAN]),
        np.vstack([LOW, LOW]),
        np.vstack([HIGH, HIGH]),
        segments=["evidence", "evidence", "image", "image"],
        groups=["correct", "wrong"] * 2,
        n=[174, 82] * 2,
    )
    named = [trace.name for trace in fig.data if trace.showlegend is not False]
    assert named == [
        "evidence",
        "image",
        "correct (n = 174)",
        "wrong (n = 82)",
        "its proportional share (1.0)",
    ]


def test_a_band_that_reaches_zero_stays_on_the_logarithmic_axis():
    fig = rapt(low=np.zeros_like(LOW))
    assert np.nanmin(bands(fig)[0].y) > 0


def test_rapt_names_an_unknown_segment():
    with pytest.raises(ValueError, match="found the segment 'sky'"):
        rapt(segments=["evidence", "sky"])


def test_band_of_one_layer_and_of_none():
    nan = np.nan
    x, y = band(np.array([nan, 1.0, nan]), np.array([nan, 2.0, nan]))
    np.testing.assert_array_equal(x, [1, 1])
    np.testing.assert_array_equal(y, [1, 2])
    assert len(band(np.array([nan]), np.array([1.0]))[0]) == 0
