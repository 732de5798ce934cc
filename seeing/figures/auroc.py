"""Evidence locality by depth: at which layers does attention tell the evidence from the rest of the image?"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from seeing.figures import theme
from seeing.figures.curves import add_curve, check_curves, layer_axis


def auroc_by_depth(
    mean: Float[np.ndarray, "group layer"],
    low: Float[np.ndarray, "group layer"],
    high: Float[np.ndarray, "group layer"],
    *,
    groups: Sequence[str],
    n: Sequence[int],
    chosen: Sequence[int] = (),
    title: str = "Evidence AUROC by depth",
    metric: str = "AUROC",
    units: str = "area under the ROC curve, 0–1",
    chance: float | None = 0.5,
    dark: bool = False,
) -> go.Figure:
    """Mean AUROC of attention over image tokens against the evidence labels, a curve a group of samples.

    Args:
        mean: AUROC, 0..1; NaN leaves a gap.
        low, high: the 95 % interval of each mean; NaN leaves the band out.
        groups: "all", "correct" or "wrong", one a curve; correct is solid and wrong dashed.
        n: samples behind each curve.
        chosen: the profiled layers, 0-based; marked.
        title: plain text.
        metric: what is drawn, where it is not AUROC, and its ``units``.
        chance: what attention gives that knows nothing of the evidence; None draws no line.
        dark: the dark scheme.

    Raises:
        ValueError: labels that don't fit the curves, an unknown group, a chosen layer that isn't there.
    """
    check_curves(len(mean), groups=groups, n=n)
    layers = mean.shape[1]
    fig = go.Figure()
    mark_layers(fig, chosen, layers)
    for i, group in enumerate(groups):
        if group not in theme.DASHES:
            raise ValueError(f"found the group {group!r}, expected one of {sorted(theme.DASHES)}; rename it")
        add_curve(
            fig,
            mean[i],
            low[i],
            high[i],
            name=f"{group} (n = {n[i]:,})",
            colour=theme.colour_of("neutral" if group == "all" else "evidence"),
            dash=theme.DASHES[group],
            symbol="circle" if group != "wrong" else "circle-open",
            legendgroup=group,
            showlegend=True,
        )
    if chance is not None:
        fig.add_trace(
            go.Scatter(
                x=[-0.5, layers - 0.5],
                y=[chance, chance],
                mode="lines",
                line={"color": theme.colour_of("neutral"), "width": 1, "dash": "dot"},
                name=f"chance ({chance:g})",
                hoverinfo="skip",
            )
        )
    fig.update_xaxes(layer_axis(layers))
    fig.update_yaxes(title_text=metric)
    if metric == "AUROC":
        drawn = np.concatenate([mean.ravel(), low.ravel()])
        drawn = drawn[np.isfinite(drawn)]
        floor = min(0.48, float(drawn.min()) - 0.02) if len(drawn) else 0.48
        fig.update_yaxes(range=[floor, 1.01])
    return theme.dress(
        fig,
        title=title,
        n=theme.counts(n),
        units=f"{units}; band: 95 % interval",
        dark=dark,
        height=360,
    )


def mark_layers(fig: go.Figure, chosen: Sequence[int], layers: int, **where: int) -> None:
    """Shade the profiled layers and name the shade once in the legend.

    Args:
        fig: drawn into.
        chosen: 0-based.
        layers: how many there are.
        where: `row` and `col` of the panel, in a figure that has several.

    Raises:
        ValueError: a layer outside 0..layers-1.
    """
    for layer in chosen:
        if not 0 <= layer < layers:
            raise ValueError(
                f"found the chosen layer {layer}, expected 0 to {layers - 1}; layers are 0-based"
            )
        fig.add_vrect(
            x0=layer - 0.5,
            x1=layer + 0.5,
            fillcolor=theme.translucent(theme.colour_of("look"), 0.14),
            line_width=0,
            layer="below",
            **where,
        )
    if len(chosen):
        swatch = {"symbol": "square", "size": 11, "color": theme.translucent(theme.colour_of("look"), 0.3)}
        fig.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", marker=swatch, name="profiled layers"), **where
        )
