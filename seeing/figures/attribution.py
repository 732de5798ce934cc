"""Is the gradient's word as good as the patch? Attributions against the patches that they stand for."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from seeing.figures import theme


def attribution_scatter(
    approximate: Float[np.ndarray, " place"],
    exact: Float[np.ndarray, " place"],
    *,
    labels: Sequence[str],
    correlation: float,
    metric: str,
    n: int,
    dark: bool = False,
) -> go.Figure:
    """One point a place: across the exact patch, up the attribution, and the line where they agree.

    Args:
        approximate: gradient × difference.
        exact: what the patch does.
        labels: of each place, shown where the pointer is.
        correlation: Pearson's, over the places; NaN where there is none.
        metric: what both are measured by, with its unit.
        n: pairs behind each value.
        dark: the dark scheme.

    Raises:
        ValueError: labels or values of another number.
    """
    if not len(approximate) == len(exact) == len(labels):
        raise ValueError(
            f"found {len(approximate)} attributions, {len(exact)} patches and {len(labels)} labels; pass one "
            f"of each a place"
        )
    both = np.concatenate([approximate, exact])
    both = both[np.isfinite(both)]
    low, high = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
    room = 0.05 * (high - low) or 1.0
    ends = [low - room, high + room]
    fig = go.Figure()
    fig.add_trace(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": theme.colour_of("neutral"), "width": 1.2, "dash": "dot"},
            name="equal",
            hoverinfo="skip",
        )
    )
    fig.add_trace(
        go.Scatter(
            x=exact,
            y=approximate,
            mode="markers",
            marker={"color": theme.colour_of("look"), "size": 8, "line": {"width": 1}},
            customdata=[theme.escape(label) for label in labels],
            name="places",
            hovertemplate="%{customdata}<br>patch %{x:.4f}, attribution %{y:.4f}<extra></extra>",
        )
    )
    fig.update_xaxes(title_text="exact patch", range=ends)
    fig.update_yaxes(title_text="gradient × difference", range=ends)
    return theme.dress(
        fig,
        title="Attribution against patching",
        n=f"n = {n:,}",
        units=f"change of {metric}; {len(labels)} places, r = {correlation:.3f}",
        dark=dark,
        height=440,
    )
