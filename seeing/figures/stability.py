"""How a choice of layers or heads settles with the number of samples: agreement, and who is chosen."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.subplots import make_subplots

from seeing.figures import theme


def choice_by_size(
    sizes: Int[np.ndarray, " size"],
    jaccard: Float[np.ndarray, " size"],
    low: Float[np.ndarray, " size"],
    high: Float[np.ndarray, " size"],
    chosen: Float[np.ndarray, "size place"],
    *,
    names: Sequence[str],
    kept: Sequence[str],
    what: str,
    n: int,
    draws: int,
    dark: bool = False,
) -> go.Figure:
    """Above, agreement with the choice of all samples by their number; below, how often each is chosen.

    Args:
        sizes: numbers of samples, from few to many.
        jaccard: of a draw's choice and that of all samples, mean over draws, 0..1.
        low, high: where 95 % of the draws lie.
        chosen: share of the draws in which each layer or head is chosen, 0..1.
        names: of the columns of `chosen`, plain text.
        kept: the names that all samples choose, outlined.
        what: "layers" or "heads".
        n: samples that were drawn from.
        draws: of each size.
        dark: the dark scheme.

    Raises:
        ValueError: names that don't fit the columns, a kept name that is none of them.
    """
    if len(names) != chosen.shape[1] or not set(kept) <= set(names):
        raise ValueError(
            f"found {len(names)} names for {chosen.shape[1]} columns and {list(kept)} kept; pass one name a "
            f"column, and kept ones among them"
        )
    fig = make_subplots(rows=2, cols=1, row_heights=[0.45, 0.55], vertical_spacing=0.16)
    colour = theme.colour_of("look")
    # Sizes are labels at equal steps in both panels: 10, 20, 50, 100 would crowd on a line.
    ticks = [f"{size:,}" for size in sizes]
    fig.add_trace(
        go.Scatter(
            x=ticks,
            y=jaccard,
            error_y={
                "type": "data",
                "array": high - jaccard,
                "arrayminus": jaccard - low,
                "color": theme.translucent(colour, 0.5),
                "thickness": 1.4,
            },
            mode="lines+markers",
            line={"color": colour, "width": 2.2},
            marker={"size": 7},
            name="agreement with all samples",
            hovertemplate="%{x} samples: Jaccard %{y:.3f}<extra></extra>",
            showlegend=False,
        ),
        row=1,
        col=1,
    )
    places = np.arange(len(names))
    fig.add_trace(
        go.Heatmap(
            x=places,
            y=ticks,
            z=chosen,
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            colorbar={"thickness": 10, "len": 0.5, "y": 0, "yanchor": "bottom", "outlinewidth": 0},
            xgap=1,
            ygap=1,
            customdata=np.broadcast_to(np.array([theme.escape(name) for name in names]), chosen.shape),
            name="chosen",
            hovertemplate="%{customdata}, %{y} samples<br>chosen in %{z:.0%} of the draws<extra></extra>",
        ),
        row=2,
        col=1,
    )
    for place in places[np.isin(np.array(names), np.array(kept))]:
        fig.add_vrect(
            x0=place - 0.5,
            x1=place + 0.5,
            line={"color": colour, "width": 2.5},
            fillcolor="rgba(0,0,0,0)",
            row=2,
            col=1,
        )
    fig.update_yaxes(title_text="Jaccard index", range=[-0.02, 1.05], row=1, col=1)
    fig.update_xaxes(type="category", row=1, col=1)
    fig.update_yaxes(title_text="samples", type="category", showgrid=False, row=2, col=1)
    step = max(1, int(np.ceil(len(names) / 20)))
    fig.update_xaxes(
        title_text="layer (0-based)" if what == "layers" else "head, as layer.head (0-based)",
        tickvals=places[::step],
        ticktext=[theme.escape(name) for name in names[::step]],
        showgrid=False,
        row=2,
        col=1,
    )
    return theme.dress(
        fig,
        title=f"How the choice of {what} settles with samples",
        n=f"n = {n:,}, {draws:,} draws of each size",
        units="agreement with the choice of all samples, and 95 % of the draws; below: share of draws, 0–1",
        dark=dark,
        height=460,
    )
