"""What a cut of attention does to the answer, by the layer around which edges are cut: one curve a flow."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from seeing.figures import theme
from seeing.figures.curves import add_curve, check_curves, layer_axis

#: What a flow is drawn as: the colour says what is hidden, the dash from whom.
_COLOURS = {
    "image": "image",
    "evidence": "evidence",
    "non-evidence": "non-evidence",
    "question": "question",
    "last": "text",
    "random": "neutral",
}
_DASHES = {"last": "solid", "question": "dash"}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")


def knockout_curves(
    mean: Float[np.ndarray, "flow layer"],
    low: Float[np.ndarray, "flow layer"],
    high: Float[np.ndarray, "flow layer"],
    *,
    flows: Sequence[str],
    window: int,
    units: str,
    n: int,
    dark: bool = False,
) -> go.Figure:
    """One curve a flow over the centre of its window, with its band and a line at no change.

    Args:
        mean: the change of each flow; NaN leaves a gap.
        low, high: the 95 % interval of each mean.
        flows: "image->last" …: what is hidden, and from whom.
        window: layers that are cut at a time.
        units: of the change.
        n: samples behind each value.
        dark: the dark scheme.

    Raises:
        ValueError: labels that don't fit the curves.
    """
    check_curves(len(mean), flows=flows)
    fig, layers = go.Figure(), mean.shape[1]
    for i, flow in enumerate(flows):
        source, _, reader = flow.partition("->")
        add_curve(
            fig,
            mean[i],
            low[i],
            high[i],
            name=flow.replace("->", " → "),
            colour=theme.colour_of(_COLOURS.get(source, "neutral")),
            dash="dot" if source == "random" else _DASHES.get(reader, "dashdot"),
            symbol=_SYMBOLS[i % len(_SYMBOLS)],
            legendgroup=flow,
            showlegend=True,
        )
    fig.add_trace(
        go.Scatter(
            x=[-0.5, layers - 0.5],
            y=[0, 0],
            mode="lines",
            line={"color": theme.colour_of("neutral"), "width": 1.2, "dash": "dot"},
            name="no change",
            hoverinfo="skip",
        )
    )
    fig.update_xaxes(layer_axis(layers))
    fig.update_xaxes(title_text=f"centre of the window of {window} layer{'s' * (window > 1)} (0-based)")
    fig.update_yaxes(title_text="change")
    return theme.dress(
        fig,
        title="Attention knockout",
        n=f"n = {n:,}",
        units=f"{units}; band: 95 % interval",
        dark=dark,
        height=430,
    )
