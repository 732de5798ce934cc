"""RAPT by depth: how much attention a token of each segment gets beside a token of the whole prompt."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from seeing.figures import theme
from seeing.figures.curves import add_curve, check_curves, layer_axis

#: Segments that share the colour of another: which, and their own marker.
_KIN = {"answer": ("text", "pentagon"), "template": ("text", "x"), "sinks": ("neutral", "star")}


def rapt_by_depth(
    mean: Float[np.ndarray, "curve layer"],
    low: Float[np.ndarray, "curve layer"],
    high: Float[np.ndarray, "curve layer"],
    *,
    segments: Sequence[str],
    groups: Sequence[str],
    n: Sequence[int],
    title: str = "Attention per token by depth",
    log: bool = True,
    dark: bool = False,
) -> go.Figure:
    """Relative attention per token, one colour a segment; correct solid, wrong dashed; a line at 1.0.

    Args:
        mean: RAPT, a ratio ≥ 0; NaN leaves a gap.
        low, high: the 95 % interval of each mean; NaN leaves the band out.
        segments: "evidence", "non-evidence", "image" (or "image:0" …), "question", "answer", "template",
            "text" or "sinks", one a curve.
        groups: "all", "correct" or "wrong", one a curve.
        n: samples behind each curve.
        title: plain text.
        log: a logarithmic axis, on which twice and half its share are equally far from 1.0.
        dark: the dark scheme.

    Raises:
        ValueError: labels that don't fit the curves, an unknown group or segment.
    """
    check_curves(len(mean), segments=segments, groups=groups, n=n)
    fig = go.Figure()
    floor = _floor(mean, low) if log else 0.0
    for i, (segment, group) in enumerate(zip(segments, groups, strict=True)):
        if group not in theme.DASHES:
            raise ValueError(f"found the group {group!r}, expected one of {sorted(theme.DASHES)}; rename it")
        colour, symbol = _look_of(segment)
        add_curve(
            fig,
            mean[i],
            np.maximum(low[i], floor),
            high[i],
            name=segment if segment not in segments[:i] else f"{segment}, {group}",
            colour=colour,
            dash=theme.DASHES[group],
            symbol=symbol + ("-open" if group == "wrong" else ""),
            legendgroup=segment,
            showlegend=segment not in segments[:i],
        )
        fig.data[-1].hovertemplate = fig.data[-1].hovertemplate.replace(
            "<br>", f" · {group}, n = {n[i]:,}<br>", 1
        )
    _explain_dashes(fig, groups, n)
    layers = mean.shape[1]
    fig.add_trace(
        go.Scatter(
            x=[-0.5, layers - 0.5],
            y=[1.0, 1.0],
            mode="lines",
            line={"color": theme.colour_of("neutral"), "width": 1.2, "dash": "dot"},
            name="its proportional share (1.0)",
            hoverinfo="skip",
        )
    )
    fig.update_xaxes(layer_axis(layers))
    fig.update_yaxes(title_text="RAPT (ratio)", type="log" if log else "linear")
    if log:
        # Plotly's own ticks on two decades or less are every digit, too dense to read.
        fig.update_yaxes(
            tickvals=[digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)], tickformat="~g"
        )
    shown = list(dict.fromkeys(zip(groups, n, strict=True)))
    return theme.dress(
        fig,
        title=title,
        n=theme.counts([count for _, count in shown]),
        units="per token ÷ whole prompt (RAPT); band: 95 % interval",
        dark=dark,
        height=400,
    )


def _look_of(segment: str) -> tuple[str, str]:
    """The colour and the marker of a segment's curves."""
    kind = "image" if segment.startswith("image:") else segment
    kin, symbol = _KIN.get(kind, (kind, theme.SYMBOLS.get(kind)))
    if symbol is None:
        known = sorted((*theme.SYMBOLS, *_KIN))
        raise ValueError(f"found the segment {segment!r}, expected one of {known}; rename it")
    return theme.colour_of(kin), symbol


def _floor(mean: Float[np.ndarray, "curve layer"], low: Float[np.ndarray, "curve layer"]) -> float:
    """Where a band whose lower end isn't positive ends on a logarithmic axis."""
    positive = np.concatenate([mean[mean > 0], low[low > 0]])
    return float(positive.min()) / 2 if len(positive) else 1e-6


def _explain_dashes(fig: go.Figure, groups: Sequence[str], n: Sequence[int]) -> None:
    """A grey line in the legend for each group, because the coloured ones name the segments only."""
    for group, count in dict(zip(groups, n, strict=True)).items():
        line = {"color": theme.colour_of("neutral"), "dash": theme.DASHES[group], "width": 2.2}
        fig.add_trace(
            go.Scatter(x=[None], y=[None], mode="lines", line=line, name=f"{group} (n = {count:,})")
        )
