"""The belief scatter: was the evidence seen, and does the answer hang on it?"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from seeing.figures import theme

#: Colours of the quadrants: what was seen and used is evidence, what was seen alone is looking.
_MEANINGS = ("evidence", "look", "text", "neutral")


def belief_scatter(
    seen: Float[np.ndarray, " sample"],
    believed: Float[np.ndarray, " sample"],
    correct: Bool[np.ndarray, " sample"],
    *,
    labels: Sequence[str],
    quadrants: Sequence[str],
    lines: tuple[float, float],
    where: str = "",
    dark: bool = False,
) -> go.Figure:
    """One marker a sample: seen to the right, believed upwards; a wrong answer is hollow.

    Args:
        seen: AUROC of the attention to the evidence, 0–1.
        believed: nats that the answer loses without the evidence, beyond a control.
        correct: whether the answer is right.
        labels: shown on hover, plain text.
        quadrants: names of right top, right bottom, left top and left bottom.
        lines: where seen and believed begin.
        where: the layers or heads that were read, plain text.
        dark: the dark scheme.

    Raises:
        ValueError: another number of labels than samples, or of quadrants than four.
    """
    if len(labels) != len(seen) or len(quadrants) != 4:
        raise ValueError(
            f"found {len(labels)} labels for {len(seen)} samples and {len(quadrants)} quadrants, expected a "
            f"label each and four quadrants"
        )
    fig = go.Figure()
    right, up = seen > lines[0], believed > lines[1]
    inside = (right & up, right & ~up, ~right & up, ~right & ~up)
    for place, (name, meaning, mine) in enumerate(zip(quadrants, _MEANINGS, inside)):
        n = int(mine.sum())
        accuracy = f", {correct[mine].mean():.0%} right" if n else ""
        for good in (True, False):
            some = mine & (correct == good)
            fig.add_trace(
                go.Scatter(
                    x=seen[some],
                    y=believed[some],
                    mode="markers",
                    marker={
                        "color": theme.colour_of(meaning),
                        "symbol": "circle" if good else "circle-open",
                        "size": 9,
                        "opacity": 0.8,
                        "line": {"width": 1.6, "color": theme.colour_of(meaning)},
                    },
                    text=[theme.escape(label) for label, one in zip(labels, some) if one],
                    hovertemplate="%{text}<br>AUROC %{x:.3f}, %{y:.2f} nats<extra></extra>",
                    name=f"{theme.escape(name)}: {n}{accuracy}" if good else "wrong",
                    legendgroup=name,
                    showlegend=good,
                )
            )
        fig.add_annotation(
            # beside the line, where there are the fewest markers
            x=lines[0],
            xshift=6 if place < 2 else -6,
            y=1 if place % 2 == 0 else 0,
            yref="paper",
            xanchor="left" if place < 2 else "right",
            yanchor="top" if place % 2 == 0 else "bottom",
            align="left" if place < 2 else "right",
            text=f"{theme.escape(name)}<br>{n}{accuracy}",
            showarrow=False,
            font={"color": theme.colour_of(meaning), "size": 12},
        )
    line = {"color": theme.colour_of("neutral"), "width": 1.2, "dash": "dot"}
    fig.add_vline(x=lines[0], line=line)
    fig.add_hline(y=lines[1], line=line)
    fig.update_xaxes(title_text="seen: AUROC of attention to the evidence", range=[-0.02, 1.02])
    low, high = min([lines[1], *believed]), max([lines[1], *believed])
    room = 0.14 * max(high - low, 1e-3)
    fig.update_yaxes(
        title_text="believed: drop without the evidence, beyond control (nats)",
        range=[low - room, high + room],
    )
    theme.dress(
        fig,
        title="Seen and believed",
        n=theme.counts([len(seen)]),
        units=f"read at {where or 'the given layers'}; filled: right answer, hollow: wrong",
        dark=dark,
        height=520,
    )
    return fig.update_layout(showlegend=False)
