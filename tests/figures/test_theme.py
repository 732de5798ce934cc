"""The visual language keeps its promises: colours stand out on both papers, text is only ever drawn."""

import plotly.graph_objects as go
import plotly.io as pio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seeing.figures import theme


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_stands_out_on_the_paper(scheme):
    for meaning, colour in theme.COLOURS.items():
        assert contrast(colour, theme.PAPER[scheme]) >= 2.9, meaning
    assert contrast(theme.INK[scheme], theme.PAPER[scheme]) >= 7


def test_no_two_meanings_share_a_colour():
    assert len(set(theme.COLOURS.values())) == len(theme.COLOURS)


def test_each_region_has_the_colour_of_what_it_is():
    assert theme.REGIONS["evidence"] == theme.COLOURS["evidence"]
    assert theme.REGIONS["own"] == theme.COLOURS["look"]
    assert theme.REGIONS.keys() == theme.REGION_WORDS.keys()


def test_templates_are_registered_under_both_names():
    for scheme in ("light", "dark"):
        assert pio.templates[f"seeing-{scheme}"].layout.paper_bgcolor == theme.PAPER[scheme]


def test_an_unknown_scheme_or_meaning_is_named():
    with pytest.raises(ValueError, match="found the scheme 'sepia', expected 'light' or 'dark'"):
        theme.template("sepia")
    with pytest.raises(ValueError, match="found 'sky'"):
        theme.colour_of("sky")


def test_markup_templates_and_tex_are_escaped():
    assert theme.escape('<a href="x">') == '&lt;a href="x"&gt;'
    assert theme.escape("$x$") == "&#36;x&#36;"
    assert theme.escape("%{x}") == "%&#123;x}"
    assert theme.escape("R&D &lt;") == "R&amp;D &amp;lt;"


@given(st.text())
def test_no_escaped_text_holds_anything_that_plotly_acts_on(text):
    shown = theme.escape(text)
    assert not any(mark in shown for mark in ("<", ">", "$", "%{"))


def test_a_title_holds_n_and_units_and_no_markup_of_its_arguments():
    fig = theme.dress(go.Figure(), title="<b>", n="n = 3", units="<i>", dark=True, height=300)
    assert "&lt;b&gt; (n = 3)" in fig.layout.title.text
    assert "&lt;i&gt;" in fig.layout.title.text
    assert fig.layout.template.layout.paper_bgcolor == theme.PAPER["dark"]


def test_counts():
    assert theme.counts([174, 82]) == "n = 174 + 82"
    assert theme.counts([1234]) == "n = 1,234"
    assert theme.counts([]) == "n = 0"
