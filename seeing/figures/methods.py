"""Methods side by side: accuracy with its interval, beside the base as a reference."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from seeing.figures import theme


def method_comparison(
    accuracy: Float[np.ndarray, " method"],
    low: Float[np.ndarray, " method"],
    high: Float[np.ndarray, " method"],
    *,
    names: Sequence[str],
    n: int,
    acts_on: Sequence[str] = (),
    through: Sequence[str] = (),
    labels: Sequence[str] = (),
    base: int = 0,
    title: str = "Accuracy by method",
    dark: bool = False,
) -> go.Figure:
    """A dot and its interval for each method, top to bottom as given; the base goes through as a line.

    The colour says which region a method acts on, the marker through which channel (see `theme`); where
    neither is told, all are dots of one colour.

    Args:
        accuracy: 0..1.
        low, high: the ends of its 95 % interval.
        names: plain text.
        n: samples behind each row.
        acts_on: "nothing", "own", "evidence", "image" or "random", one a method.
        through: "nothing", "prompt", "pixels" or "attention", one a method.
        labels: a short plain text to the right of each row, for example the difference to base.
        base: the row that is the reference.
        title: plain text.
        dark: the dark scheme.

    Raises:
        ValueError: labels that don't fit the rows, an unknown region or channel, a base that isn't there.
    """
    count = len(accuracy)
    told = bool(acts_on or through)
    acts_on, through = acts_on or ["nothing"] * count, through or ["attention"] * count
    for what, values in (
        ("names", names),
        ("acts_on", acts_on),
        ("through", through),
        ("labels", labels or names),
    ):
        if len(values) != count:
            raise ValueError(f"found {len(values)} {what} for {count} methods; pass one a method")
    if not 0 <= base < count:
        raise ValueError(
            f"found the base row {base}, expected 0 to {count - 1}; pass the row of the reference"
        )
    fig = go.Figure()
    _reference(fig, accuracy[base], low[base], high[base], count)
    named: set[str] = set()
    for region, channel in dict.fromkeys(zip(acts_on, through, strict=True)):
        if region not in theme.REGIONS or channel not in theme.CHANNELS:
            raise ValueError(
                f"found a method on {region!r} through {channel!r}, expected one of {sorted(theme.REGIONS)} "
                f"through one of {sorted(theme.CHANNELS)}; correct acts_on and through"
            )
        rows = np.array([i for i in range(count) if (acts_on[i], through[i]) == (region, channel)])
        symbol = theme.CHANNELS[channel] + ("-open" if region == "random" else "")
        fig.add_trace(
            go.Scatter(
                x=accuracy[rows],
                y=rows,
                mode="markers",
                marker={
                    "color": theme.REGIONS[region],
                    "symbol": symbol,
                    "size": 10,
                    "line": {"width": 2, "color": theme.REGIONS[region]},
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": high[rows] - accuracy[rows],
                    "arrayminus": accuracy[rows] - low[rows],
                    "color": theme.REGIONS[region],
                    "thickness": 1.8,
                    "width": 4,
                },
                customdata=np.stack([low[rows], high[rows]], axis=-1),
                text=[theme.escape(names[i]) for i in rows],
                hovertemplate=(
                    "%{text}<br>%{x:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%})<extra></extra>"
                ),
                name=theme.REGION_WORDS[region],
                legendgroup=region,
                showlegend=told and region not in named,
            )
        )
        named.add(region)
    if labels:
        fig.add_trace(
            go.Scatter(
                x=high,
                y=np.arange(count),
                mode="text",
                text=[f"  {theme.escape(label)}" for label in labels],
                textposition="middle right",
                textfont={"size": 11},
                cliponaxis=False,
                hoverinfo="skip",
                showlegend=False,
            )
        )
    fig.update_xaxes(title_text="accuracy", tickformat=".0%")
    fig.update_yaxes(
        range=[count - 0.4, -0.6],
        tickvals=list(range(count)),
        ticktext=[theme.escape(name) for name in names],
        showgrid=False,
        ticks="",
    )
    fig.update_layout(margin_r=56 if labels else 16)
    return theme.dress(
        fig,
        title=title,
        n=f"n = {n:,}",
        units="share right, 95 % interval" + ("; ● attention ■ pixels" if told else ""),
        dark=dark,
        height=190 + 27 * count,
    )


def _reference(fig: go.Figure, value: float, low: float, high: float, count: int) -> None:
    """The base as a line from top to bottom, with its interval as a pale band."""
    grey = theme.colour_of("neutral")
    fig.add_vrect(x0=low, x1=high, fillcolor=theme.translucent(grey, 0.12), line_width=0, layer="below")
    fig.add_trace(
        go.Scatter(
            x=[value, value],
            y=[-0.6, count - 0.4],
            mode="lines",
            line={"color": grey, "width": 1.2, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
            name="base",
        )
    )
