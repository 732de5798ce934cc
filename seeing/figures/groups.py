"""Accuracy of methods in parts of a data set: where does a method help, where does it harm?"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from seeing.figures import theme

#: Markers that tell the parts apart where colour does not.
_SYMBOLS = ("diamond-open", "circle", "square", "cross", "triangle-up")
#: What parts are coloured as where they have no meaning of their own.
_MEANINGS = ("image", "non-evidence", "text", "question", "neutral")


def accuracy_by_group(
    accuracy: Float[np.ndarray, "group method"],
    low: Float[np.ndarray, "group method"],
    high: Float[np.ndarray, "group method"],
    *,
    groups: Sequence[str],
    n: Sequence[int],
    names: Sequence[str],
    labels: Sequence[Sequence[str]] = (),
    meanings: Sequence[str] = _MEANINGS,
    title: str = "Accuracy by group",
    dark: bool = False,
) -> go.Figure:
    """A dot and its 95 % interval for each method and part, methods from top to bottom as given.

    Args:
        accuracy: 0..1; NaN, of a part without a sample, is left out.
        low, high: the ends of its interval.
        groups: names of the parts, plain text; at most five.
        n: samples of each part.
        names: of the methods, plain text.
        labels: a short plain text beside each dot, a list a part: what a method fixed and broke.
        meanings: of the parts' colours, as in `theme.COLOURS`.
        title: plain text.
        dark: the dark scheme.

    Raises:
        ValueError: names or labels that don't fit the table, more parts than can be told apart.
    """
    for what, given, expected in (
        ("groups", groups, accuracy.shape[0]),
        ("counts", n, accuracy.shape[0]),
        ("methods", names, accuracy.shape[1]),
        ("lists of labels", labels or groups, accuracy.shape[0]),
        *(("labels", one, accuracy.shape[1]) for one in labels),
    ):
        if len(given) != expected:
            raise ValueError(
                f"found {len(given)} {what}, expected {expected}, as the table has; name each once"
            )
    if len(groups) > min(len(_SYMBOLS), len(meanings)):
        raise ValueError(f"found {len(groups)} groups, fewer can be told apart; join some")
    fig = go.Figure()
    step = 0.56 / max(1, len(groups) - 1)
    for place, (group, meaning, symbol) in enumerate(zip(groups, meanings, _SYMBOLS)):
        colour = theme.colour_of(meaning)
        offset = (place - (len(groups) - 1) / 2) * step
        text = [theme.escape(one) for one in labels[place]] if labels else [""] * len(names)
        fig.add_trace(
            go.Scatter(
                x=accuracy[place],
                y=np.arange(len(names)) + offset,
                mode="markers+text",
                text=[f"   {one}" if one else "" for one in text],
                textposition="top right",
                textfont={"size": 10},
                marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2, "color": colour}},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": high[place] - accuracy[place],
                    "arrayminus": accuracy[place] - low[place],
                    "color": colour,
                    "thickness": 1.8,
                    "width": 4,
                },
                customdata=np.stack([low[place], high[place]], axis=-1),
                hovertemplate=(
                    f"{theme.escape(group)}<br>%{{x:.1%}} (%{{customdata[0]:.1%}} to %{{customdata[1]:.1%}})"
                    f"<extra></extra>"
                ),
                name=f"{theme.escape(group)} (n = {n[place]:,})",
            )
        )
    fig.update_xaxes(title_text="accuracy", tickformat=".0%", range=[-0.03, 1.08])
    fig.update_yaxes(
        range=[len(names) - 0.4, -0.6],
        tickvals=list(range(len(names))),
        ticktext=[theme.escape(name) for name in names],
        showgrid=False,
        ticks="",
    )
    return theme.dress(
        fig,
        title=title,
        n=theme.counts(n),
        units="share right, 95 % interval (Wilson); +fixed −broken against base on the same samples",
        dark=dark,
        height=200 + 44 * len(names),
    )
