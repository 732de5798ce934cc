"""The one visual language: what each colour, dash and marker means, in light and in dark.

A reader who has learnt one figure can read the next only where green is the evidence in all of them. Every
colour is therefore looked up here by what it means. The hues are Okabe and Ito's, safe for the common
colour-vision deficiencies (the sky blue is darkened to stand out on white too; a deeper purple and a grey are
added). Colour never carries a meaning alone: a dash, a marker or a word says it too.
"""

from collections.abc import Sequence

import plotly.graph_objects as go
import plotly.io as pio

# What the colour stands for. Hues of one family belong together: blues are image, purples are words.
COLOURS: dict[str, str] = {
    "evidence": "#009E73",  # the annotated truth, and what acts on it (oracle)
    "look": "#D55E00",  # where the model itself looked, and what acts on it
    "image": "#0072B2",
    "non-evidence": "#3D9BD6",
    "question": "#CC79A7",
    "text": "#9B4F96",
    "neutral": "#808891",  # base, random controls, reference lines, "all samples"
}

# Correct answers are solid, wrong ones dashed, as in the paper.
DASHES: dict[str, str] = {"all": "solid", "correct": "solid", "wrong": "dash"}

SYMBOLS: dict[str, str] = {
    "evidence": "circle",
    "non-evidence": "diamond",
    "image": "square",
    "question": "triangle-up",
    "text": "cross",
}

# A method's colour says which region it acts on, its marker through which channel.
REGIONS: dict[str, str] = {
    "nothing": COLOURS["neutral"],
    "own": COLOURS["look"],
    "evidence": COLOURS["evidence"],
    "image": COLOURS["image"],
    "random": COLOURS["neutral"],
}
REGION_WORDS: dict[str, str] = {
    "nothing": "no edit",
    "own": "own region",
    "evidence": "evidence box (oracle)",
    "image": "all of the image",
    "random": "random region",
}
CHANNELS: dict[str, str] = {
    "nothing": "diamond",
    "prompt": "diamond",
    "pixels": "square",
    "attention": "circle",
}

# Attention laid over an image: (share of the maximum, red, green, blue, alpha). The unattended is veiled, so
# that what was looked at stays readable under a light glow.
HEAT_STOPS: tuple[tuple[float, int, int, int, float], ...] = (
    (0.0, 12, 10, 40, 0.66),
    (0.35, 110, 25, 70, 0.58),
    (0.65, 213, 94, 0, 0.5),
    (1.0, 255, 214, 90, 0.4),
)

PAPER = {"light": "#FFFFFF", "dark": "#14171A"}
INK = {"light": "#1D2125", "dark": "#E6E8EA"}
GRID = {"light": "#E4E7EA", "dark": "#2C3238"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


def template(scheme: str) -> go.layout.Template:
    """The plotly template of one scheme.

    Args:
        scheme: "light" or "dark".

    Raises:
        ValueError: another scheme was asked for.
    """
    if scheme not in PAPER:
        raise ValueError(f"found the scheme {scheme!r}, expected 'light' or 'dark'; pass one of the two")
    ink, grid = INK[scheme], GRID[scheme]
    axis = {
        "gridcolor": grid,
        "linecolor": COLOURS["neutral"],
        "tickcolor": COLOURS["neutral"],
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 8},
    }
    layout = go.Layout(
        font={"family": FONT, "size": 12, "color": ink},
        paper_bgcolor=PAPER[scheme],
        plot_bgcolor=PAPER[scheme],
        colorway=list(COLOURS.values()),
        colorscale={"sequential": "Cividis"},
        xaxis=axis,
        yaxis=axis,
        title={
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12, "l": 8},
            "font": {"size": 13},
        },
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "font": {"size": 11},
            "bgcolor": "rgba(0,0,0,0)",
        },
        margin={"l": 52, "r": 16, "t": 50, "b": 44},
        hoverlabel={"bgcolor": PAPER[scheme], "font": {"color": ink, "family": FONT, "size": 12}},
        hovermode="closest",
    )
    return go.layout.Template(layout=layout)


def scheme_name(dark: bool) -> str:
    """ "dark" or "light", the keys of this module's per-scheme tables."""
    return "dark" if dark else "light"


def dress(fig: go.Figure, *, title: str, n: str, units: str, dark: bool, height: int) -> go.Figure:
    """Give a figure the house's template and a title that says how many samples and in which units.

    Args:
        fig: changed in place.
        title: plain text, escaped here.
        n: how many, for example "n = 256"; stands in the title in brackets.
        units: what is drawn and in which units; stands under the title.
        dark: the dark scheme.
        height: pixels.

    Returns:
        `fig`.
    """
    small = f"<span style='font-size:11px'>{escape(units)}</span>"
    fig.update_layout(
        template=f"seeing-{scheme_name(dark)}",
        title_text=f"<b>{escape(title)} ({escape(n)})</b><br>{small}",
        height=height,
    )
    return fig


def counts(n: Sequence[int]) -> str:
    """The n of a title, for one or several groups: "n = 256", or "n = 174 + 82"."""
    return "n = " + " + ".join(f"{one:,}" for one in n) if len(n) else "n = 0"


def escape(text: str) -> str:
    """Text that plotly draws letter by letter.

    Plotly reads `<b>`, `<a href>` and entities as markup, `%{…}` as a template and `$…$` as TeX, in titles,
    labels, names and hover boxes. Text of a model or a data set passes through here into a figure.
    """
    for found, shown in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;"), ("%{", "%&#123;")):
        text = text.replace(found, shown)
    return text


def translucent(colour: str, alpha: float) -> str:
    """`#rrggbb` with an alpha of 0..1, as plotly's `rgba(…)`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def colour_of(meaning: str) -> str:
    """The colour that stands for a segment or role.

    Raises:
        ValueError: no colour has that meaning.
    """
    if meaning not in COLOURS:
        raise ValueError(
            f"found {meaning!r}, expected one of {sorted(COLOURS)}; add a meaning to theme.COLOURS"
        )
    return COLOURS[meaning]


pio.templates["seeing-light"] = template("light")
pio.templates["seeing-dark"] = template("dark")
