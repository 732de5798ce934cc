"""Layer × head map of any metric, with the layer curve in its margin: which heads ground the answer?"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from seeing.figures import theme
from seeing.figures.auroc import mark_layers
from seeing.figures.curves import layer_axis


def layer_head_map(
    values: Float[np.ndarray, "layer head"],
    *,
    metric: str,
    n: int,
    units: str = "0–1",
    marginal: Float[np.ndarray, " layer"] | None = None,
    chosen_layers: Sequence[int] = (),
    chosen_heads: Sequence[tuple[int, int]] = (),
    bounds: tuple[float, float] | None = None,
    dark: bool = False,
) -> go.Figure:
    """A heat map with layers from left to right and heads from top to bottom; above it one curve over layers.

    Args:
        values: the metric of each head; NaN leaves a hole.
        metric: its name, plain text.
        n: samples behind each value.
        units: of the metric.
        marginal: the layer's own value (for attention, of its heads' mean); left out: the mean over heads.
        chosen_layers: the profiled layers, 0-based; shaded in the margin.
        chosen_heads: (layer, head) pairs, outlined.
        bounds: the ends of the colour scale; left out: those of the values.
        dark: the dark scheme.

    Raises:
        ValueError: a chosen layer or head that isn't there, a marginal of another length.
    """
    layers, heads = values.shape
    curve_name = "heads averaged" if marginal is not None else "mean over heads"
    curve = marginal if marginal is not None else mean_over_heads(values)
    if len(curve) != layers:
        raise ValueError(f"found a marginal of {len(curve)} layers for {layers}; pass one value a layer")
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.3, 0.7], vertical_spacing=0.05)
    fig.add_trace(
        go.Scatter(
            x=np.arange(layers),
            y=curve,
            mode="lines+markers",
            line={"color": theme.colour_of("evidence"), "width": 2.2},
            marker={"size": 6},
            name=curve_name,
            hovertemplate=f"layer %{{x}}, {curve_name}: %{{y:.3f}}<extra></extra>",
        ),
        row=1,
        col=1,
    )
    mark_layers(fig, chosen_layers, layers, row=1, col=1)
    label_cells = layers <= 10 and heads <= 16
    # At column width the cells of a deep model are a few pixels: a gap would take half of them.
    gap = 1 if layers <= 32 else 0
    fig.add_trace(
        go.Heatmap(
            x=np.arange(layers),
            y=np.arange(heads),
            z=values.T,
            zmin=bounds[0] if bounds else None,
            zmax=bounds[1] if bounds else None,
            colorscale="Cividis",
            colorbar={"thickness": 10, "len": 0.66, "y": 0, "yanchor": "bottom", "outlinewidth": 0},
            texttemplate="%{z:.2f}" if label_cells else None,
            textfont={"size": 10},
            xgap=gap,
            ygap=gap,
            name=theme.escape(metric),
            hovertemplate=f"layer %{{x}}, head %{{y}}<br>{theme.escape(metric)} %{{z:.3f}}<extra></extra>",
        ),
        row=2,
        col=1,
    )
    _outline(fig, chosen_heads, layers, heads)
    fig.update_xaxes(layer_axis(layers))
    fig.update_xaxes(title_text=None, row=1, col=1)
    fig.update_yaxes(
        title_text="head",
        range=[heads - 0.5, -0.5],
        dtick=max(1, int(np.ceil(heads / 12))),
        showgrid=False,
        row=2,
        col=1,
    )
    fig.update_xaxes(showgrid=False, row=2, col=1)
    return theme.dress(
        fig,
        title=f"{metric} by layer and head",
        n=f"n = {n:,}",
        units=f"{units}; above: {curve_name}",
        dark=dark,
        height=max(380, min(720, 240 + 22 * heads)),
    )


def mean_over_heads(values: Float[np.ndarray, "layer head"]) -> Float[np.ndarray, " layer"]:
    """The mean of the finite heads of each layer; NaN where a layer has none."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0.0).sum(axis=1)
    return np.divide(total, finite.sum(axis=1), out=np.full(len(values), np.nan), where=finite.any(axis=1))


def _outline(fig: go.Figure, chosen: Sequence[tuple[int, int]], layers: int, heads: int) -> None:
    """A ring in the colour of the look around each head that the look is read from."""
    for layer, head in chosen:
        if not (0 <= layer < layers and 0 <= head < heads):
            raise ValueError(
                f"found the chosen head ({layer}, {head}), expected layers 0 to {layers - 1} and "
                f"heads 0 to {heads - 1}; both are 0-based"
            )
        fig.add_shape(
            type="rect",
            x0=layer - 0.5,
            x1=layer + 0.5,
            y0=head - 0.5,
            y1=head + 0.5,
            line={"color": theme.colour_of("look"), "width": 3},
            row=2,
            col=1,
        )
    if len(chosen):
        swatch = {"symbol": "square-open", "size": 11, "color": theme.colour_of("look"), "line": {"width": 3}}
        fig.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", marker=swatch, name="chosen heads"), row=2, col=1
        )
