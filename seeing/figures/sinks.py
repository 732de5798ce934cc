"""What sinks draw by depth, beside what as many random tokens would: do they deserve the name?"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from seeing.figures import theme
from seeing.figures.curves import add_curve, check_curves, layer_axis


def sink_pull_by_depth(
    mass: Float[np.ndarray, "kind layer"],
    control: Float[np.ndarray, "kind layer"],
    *,
    kinds: Sequence[str],
    n: int,
    title: str = "Attention on sinks by depth",
    dark: bool = False,
) -> go.Figure:
    """Two curves a kind of token: what sinks draw (solid), and as many random tokens of that kind (dashed).

    Args:
        mass: attention of the last prompt token on sinks, 0..1; NaN leaves a gap.
        control: the same on random tokens.
        kinds: "image" or "text", one a row.
        n: samples behind each value.
        title: plain text.
        dark: the dark scheme.

    Raises:
        ValueError: labels that don't fit the curves, a kind without a colour.
    """
    check_curves(len(mass), kinds=kinds, controls=list(control))
    layers = mass.shape[1]
    bare = np.full(layers, np.nan)
    fig = go.Figure()
    for i, kind in enumerate(kinds):
        colour = theme.colour_of(kind)
        shared = {"colour": colour, "symbol": theme.SYMBOLS[kind], "legendgroup": kind, "showlegend": True}
        add_curve(fig, mass[i], bare, bare, name=f"{kind} sinks", dash="solid", **shared)
        shared["symbol"] += "-open"
        add_curve(fig, control[i], bare, bare, name=f"as many random {kind} tokens", dash="dot", **shared)
    for trace in fig.data:
        trace.hovertemplate = f"{trace.name}<br>layer %{{x}}: %{{y:.3f}}<extra></extra>"
    fig.update_xaxes(layer_axis(layers))
    fig.update_yaxes(title_text="attention", rangemode="tozero")
    return theme.dress(
        fig,
        title=title,
        n=theme.counts([n]),
        units="share of the last prompt token's attention, 0–1, heads averaged",
        dark=dark,
        height=360,
    )
