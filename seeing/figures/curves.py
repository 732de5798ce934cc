"""A curve over layers with its interval band: the piece that every depth figure is made of."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from seeing.figures import theme


def add_curve(
    fig: go.Figure,
    mean: Float[np.ndarray, " layer"],
    low: Float[np.ndarray, " layer"],
    high: Float[np.ndarray, " layer"],
    *,
    name: str,
    colour: str,
    dash: str,
    symbol: str,
    legendgroup: str,
    showlegend: bool,
) -> None:
    """Draw one curve and, under it, the band between `low` and `high`. NaN leaves a gap in either.

    Args:
        fig: drawn into.
        mean, low, high: one number a layer, in the figure's own units.
        name: plain text, escaped here; stands in the legend and the hover box.
        colour: `#rrggbb`.
        dash: plotly's dash of the line.
        symbol: plotly's marker.
        legendgroup: curves that a click on the legend hides together.
        showlegend: whether this curve stands in the legend.
    """
    x, y = band(low, high)
    if len(x):
        fig.add_trace(
            go.Scatter(
                x=x,
                y=y,
                fill="toself",
                fillcolor=theme.translucent(colour, 0.16),
                mode="none",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=legendgroup,
                name=f"{theme.escape(name)}, 95 % interval",
            )
        )
    fig.add_trace(
        go.Scatter(
            x=np.arange(len(mean)),
            y=mean,
            customdata=np.stack([low, high], axis=-1),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2.2},
            marker={"color": colour, "symbol": symbol, "size": 7 if len(mean) <= 16 else 4},
            name=theme.escape(name),
            legendgroup=legendgroup,
            showlegend=showlegend,
            hovertemplate=(
                f"{theme.escape(name)}<br>layer %{{x}}: %{{y:.3f}} "
                "(%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>"
            ),
        )
    )


def band(
    low: Float[np.ndarray, " layer"], high: Float[np.ndarray, " layer"]
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """The outline of the band: each run of finite layers, along `low` and back along `high`; NaN between."""
    finite = np.isfinite(low) & np.isfinite(high)
    xs: list[float] = []
    ys: list[float] = []
    for run in _runs(np.flatnonzero(finite)):
        if xs:
            xs.append(np.nan)
            ys.append(np.nan)
        xs.extend([*run, *run[::-1]])
        ys.extend([*low[run], *high[run][::-1]])
    return np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)


def _runs(where: Int[np.ndarray, " finite"]) -> list[np.ndarray]:
    """Split sorted layer ids wherever one is missing."""
    return [run for run in np.split(where, np.flatnonzero(np.diff(where) > 1) + 1) if len(run)]


def check_curves(count: int, **labels: Sequence[object]) -> None:
    """Each of the named label lists must hold one entry a curve.

    Raises:
        ValueError: a list of another length.
    """
    for name, values in labels.items():
        if len(values) != count:
            raise ValueError(f"found {len(values)} {name} for {count} curves; pass one a curve")


def layer_axis(count: int) -> dict[str, object]:
    """The x axis of every depth figure: whole layers, 0-based, half a layer of room at both ends."""
    return {
        "title": {"text": "layer (0-based)"},
        "range": [-0.5, count - 0.5],
        "dtick": max(1, int(np.ceil(count / 12))),
        "tick0": 0,
    }
