"""Where a patch moves the answer: maps of layer × span or layer × head, and what each head writes itself.

Effects have a sign, so the scale has two hues that meet at nothing: orange is what brings the other run's
answer, blue what works against it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from seeing.figures import theme
from seeing.figures.curves import layer_axis

#: What the directions of a patch are called in a title.
_DIRECTIONS = {"denoise": "clean into corrupted", "noise": "corrupted into clean"}


def patching_map(
    effect: Float[np.ndarray, "..."],
    axes: Mapping[str, Sequence],
    *,
    metric: str,
    direction: str,
    n: int,
    title: str = "Activation patching",
    units: str = "share of the way to the other run",
    dark: bool = False,
) -> go.Figure:
    """Heat maps with layers from left to right, one panel a site (spans down) or a span (heads down).

    Args:
        effect: an axis each of ``axes``; 0 none, 1 all of the way to the other run. NaN leaves a hole.
        axes: "site", "layer", "span", or "layer", "head", "span", or "layer", "head", with their labels.
        metric: what the effect is measured by, with its unit.
        direction: "denoise" or "noise".
        n: pairs behind each value.
        title: plain text.
        units: what the effect is counted in.
        dark: the dark scheme.

    Raises:
        ValueError: axes that are none of these, or that don't fit the array.
    """
    panels, layers, down = _panels(effect, axes)
    fig = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=min(0.08, 0.5 / len(panels)),
        subplot_titles=[theme.escape(name) for name in panels] if len(panels) > 1 else None,
    )
    bound = _bound(effect)
    for row, (name, values) in enumerate(panels.items(), start=1):
        fig.add_trace(
            go.Heatmap(
                x=layers,
                y=[str(label) for label in axes[down]],
                z=values.T,
                coloraxis="coloraxis",
                xgap=1 if len(layers) <= 32 else 0,
                ygap=1,
                name=theme.escape(name),
                hovertemplate=(
                    f"{theme.escape(name)}<br>layer %{{x}}, {down} %{{y}}: %{{z:.3f}}<extra></extra>"
                ),
            ),
            row=row,
            col=1,
        )
        fig.update_yaxes(
            title_text=down, autorange="reversed", type="category", showgrid=False, row=row, col=1
        )
    fig.update_xaxes(dtick=max(1, int(np.ceil(len(layers) / 12))), showgrid=False)
    fig.update_xaxes(title_text=layer_axis(len(layers))["title"]["text"], row=len(panels), col=1)
    fig.update_layout(coloraxis=signed(bound, dark))
    fig.update_annotations(font_size=12)
    rows = len(panels) * len(axes[down])
    theme.dress(
        fig,
        title=title,
        n=f"n = {n:,}",
        units=f"{units}, {_DIRECTIONS[direction]}; by {metric}",
        dark=dark,
        height=max(320, min(1400, 170 + 40 * len(panels) + 24 * rows)),
    )
    # The first panel's name stands between the title and the panel.
    return fig.update_layout(margin_t=74 if len(panels) > 1 else 54)


def direct_map(
    heads: Float[np.ndarray, "layer head"],
    attn: Float[np.ndarray, " layer"],
    mlp: Float[np.ndarray, " layer"],
    *,
    total: float,
    n: int,
    dark: bool = False,
) -> go.Figure:
    """What each head writes into the answer's logits itself; above it attention and MLP, layer by layer.

    Args:
        heads: logits for the answer and against the foil; NaN leaves a hole.
        attn, mlp: of the whole branch of each layer.
        total: the difference that all parts add up to.
        n: samples behind each value.
        dark: the dark scheme.
    """
    layers = np.arange(len(heads))
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.35, 0.65], vertical_spacing=0.05)
    for name, values, colour in (("attention", attn, "look"), ("MLP", mlp, "neutral")):
        fig.add_trace(
            go.Bar(
                x=layers,
                y=values,
                name=name,
                marker={"color": theme.colour_of(colour), "pattern": {"shape": "/" if name == "MLP" else ""}},
                hovertemplate=f"layer %{{x}}, {name}: %{{y:.3f}}<extra></extra>",
            ),
            row=1,
            col=1,
        )
    fig.add_trace(
        go.Heatmap(
            x=layers,
            y=np.arange(heads.shape[1]),
            z=heads.T,
            coloraxis="coloraxis",
            xgap=1 if len(layers) <= 32 else 0,
            ygap=1 if len(layers) <= 32 else 0,
            name="heads",
            hovertemplate="layer %{x}, head %{y}: %{z:.3f}<extra></extra>",
        ),
        row=2,
        col=1,
    )
    fig.update_xaxes(layer_axis(len(heads)))
    fig.update_xaxes(title_text=None, row=1, col=1)
    fig.update_xaxes(showgrid=False, row=2, col=1)
    fig.update_yaxes(title_text="logits", row=1, col=1)
    fig.update_yaxes(
        title_text="head",
        range=[heads.shape[1] - 0.5, -0.5],
        dtick=max(1, int(np.ceil(heads.shape[1] / 12))),
        showgrid=False,
        row=2,
        col=1,
    )
    fig.update_layout(coloraxis=signed(_bound(heads), dark) | {"colorbar": _bar(0.6)})
    return theme.dress(
        fig,
        title="Direct effect on the answer",
        n=f"n = {n:,}",
        units=f"logit(answer) − logit(foil), of {total:.2f} in all",
        dark=dark,
        height=max(400, min(760, 260 + 22 * heads.shape[1])),
    )


def signed(bound: float, dark: bool) -> dict:
    """A colour axis from blue through the paper's colour at 0 to orange."""
    middle = theme.PAPER[theme.scheme_name(dark)]
    scale = [[0, theme.colour_of("image")], [0.5, middle], [1, theme.colour_of("look")]]
    return {"colorscale": scale, "cmin": -bound, "cmax": bound, "colorbar": _bar(1.0)}


def _bar(length: float) -> dict:
    return {"thickness": 10, "outlinewidth": 0, "len": length, "y": 0, "yanchor": "bottom"}


def _bound(values: Float[np.ndarray, "..."]) -> float:
    """The end of the scale on either side; 1 where there is nothing to show."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def _panels(
    effect: Float[np.ndarray, "..."], axes: Mapping[str, Sequence]
) -> tuple[dict[str, Float[np.ndarray, "layer down"]], list, str]:
    """Each panel's (layer, down) values by its name; the layers; and which axis goes down."""
    shape = tuple(len(labels) for labels in axes.values())
    if effect.shape != shape:
        raise ValueError(f"found effects of shape {effect.shape} for axes of {shape}; pass one a label")
    layers = list(axes.get("layer", ()))
    names = tuple(axes)
    if names == ("site", "layer", "span"):
        return {str(site): effect[i] for i, site in enumerate(axes["site"])}, layers, "span"
    if names == ("layer", "head", "span"):
        return {str(span): effect[:, :, i] for i, span in enumerate(axes["span"])}, layers, "head"
    if names == ("layer", "head"):
        return {"heads": effect}, layers, "head"
    raise ValueError(f"found the axes {', '.join(names)}; expected site, layer, span or layer, head (, span)")
