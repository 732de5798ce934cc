"""What layers would say: words over layers and positions, words over the picture, and a target by depth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Shaped
from PIL import Image

from seeing.figures import theme
from seeing.figures.curves import add_curve, layer_axis
from seeing.figures.overlay import Boxes, data_uri, rectangles

#: Letters of a word that a cell shows; all of it stands in the hover box.
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Cells:
    """What is said in each cell of a figure: the likeliest words first, and their probabilities.

    Attributes:
        words: (…, k) plain text; "" where a cell holds no token.
        probs: (…, k), 0..1; NaN where a cell holds no token.
    """

    words: Shaped[np.ndarray, "*cell k"]
    probs: Float[np.ndarray, "*cell k"]

    def shown(self) -> Shaped[np.ndarray, "*cell"]:
        """The likeliest word of each, short enough for a cell, as plotly draws it letter by letter."""
        found = np.empty(self.words.shape[:-1], dtype=object)
        for at in np.ndindex(found.shape):
            found[at] = theme.escape(_short(self.words[at][0]))
        return found

    def hover(self) -> Shaped[np.ndarray, "*cell"]:
        """All words of each with their probabilities, as lines of a hover box."""
        found = np.empty(self.words.shape[:-1], dtype=object)
        for at in np.ndindex(found.shape):
            pairs = zip(self.words[at], self.probs[at])
            found[at] = "<br>".join(f"{theme.escape(word)}  {prob:.3f}" for word, prob in pairs if word)
        return found


def lens_grid(
    cells: Cells,
    *,
    layers: Sequence[int],
    columns: Sequence[str],
    site: str,
    what: str,
    dark: bool = False,
) -> go.Figure:
    """Layers upward, positions from left to right; in each cell the likeliest word, coloured by probability.

    Args:
        layers: their numbers, 0-based, ascending.
        columns: what stands at each position, plain text.
        site: what was decoded, plain text.
        what: of which sample, plain text.
        dark: the dark scheme.

    Raises:
        ValueError: labels that don't fit the cells.
    """
    n_layers, n_places = len(layers), len(columns)
    if cells.words.shape[:2] != (n_layers, n_places):
        raise ValueError(
            f"found words of {cells.words.shape[:2]} layers and positions for {n_layers} and {n_places} "
            f"names; name each once"
        )
    fig = go.Figure(
        go.Heatmap(
            z=cells.probs[..., 0],
            text=cells.shown(),
            customdata=cells.hover(),
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            texttemplate="%{text}" if n_places <= 40 else None,
            textfont={"size": 10},
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "p"}, "thickness": 10, "outlinewidth": 0},
            name="logit lens",
            hovertemplate="layer %{y}, position %{x}<br>%{customdata}<extra></extra>",
        )
    )
    fig.update_xaxes(
        title_text="position and the token there",
        tickvals=list(range(n_places)),
        ticktext=[theme.escape(_short(one, 16)) for one in columns],
        showgrid=False,
    )
    fig.update_yaxes(
        title_text="layer (0-based)",
        tickvals=list(range(n_layers)),
        ticktext=[str(layer) for layer in layers],
        showgrid=False,
    )
    return theme.dress(
        fig,
        title=f"What each layer would say: {what}",
        n="n = 1 sample",
        units=f"the likeliest token of {site}, unembedded; colour: its probability, 0–1",
        dark=dark,
        height=max(320, min(900, 170 + 22 * n_layers)),
    )


def words_over_image(
    image: Image.Image,
    cells: Cells,
    edges_x: Float[np.ndarray, " col_edge"],
    edges_y: Float[np.ndarray, " row_edge"],
    *,
    layers: Sequence[int],
    start: int = -1,
    boxes: Boxes | None = None,
    caption: str = "",
    dark: bool = False,
) -> go.Figure:
    """The picture under a raster of words, one raster a layer, and a slider that goes through the layers.

    Args:
        cells: (layer, row, col, k).
        edges_x, edges_y: where the cells' columns and rows begin and end, pixels of the picture.
        layers: their numbers, 0-based.
        start: which of them is shown first.
        boxes: evidence, xyxy in pixels of the picture.
        caption: plain text under the title.
        dark: the dark scheme.

    Raises:
        ValueError: layers or edges that don't fit the rasters.
    """
    expected = (len(layers), len(edges_y) - 1, len(edges_x) - 1)
    if cells.words.shape[:3] != expected:
        raise ValueError(
            f"found rasters of words of {cells.words.shape[:3]}, expected {expected}, the layers, rows and "
            f"columns that are named"
        )
    width, height = image.size
    first = range(len(layers))[start]
    fig = go.Figure()
    shown, hover = cells.shown(), cells.hover()
    size = float(np.clip(92 / expected[2], 6, 12))
    for number, layer in enumerate(layers):
        fig.add_trace(
            go.Heatmap(
                x=edges_x,
                y=edges_y,
                z=cells.probs[number, ..., 0],
                text=shown[number],
                customdata=hover[number],
                zmin=0,
                zmax=1,
                colorscale=_VEIL,
                texttemplate="%{text}",
                textfont={"size": size, "color": "#FFFFFF"},
                xgap=1,
                ygap=1,
                visible=number == first,
                name=f"layer {layer}",
                colorbar={"title": {"text": "p"}, "thickness": 10, "outlinewidth": 0, "len": 0.9},
                hovertemplate=f"layer {layer}<br>%{{customdata}}<extra></extra>",
            )
        )
    if boxes is not None and len(boxes):
        rectangles(fig, boxes, "rgba(255,255,255,0.9)", 5, "solid", None)
        rectangles(fig, boxes, theme.colour_of("evidence"), 2.5, "solid", "evidence box")
    rasters = list(range(len(layers)))
    steps = [
        {
            "label": str(layer),
            "method": "restyle",
            "args": [{"visible": [number == other for other in rasters]}, rasters],
        }
        for number, layer in enumerate(layers)
    ]
    fig.update_layout(
        sliders=[{"active": first, "steps": steps, "currentvalue": {"prefix": "layer "}, "pad": {"t": 26}}]
    )
    fig.add_layout_image(
        source=data_uri(image),
        xref="x",
        yref="y",
        x=0,
        y=0,
        sizex=width,
        sizey=height,
        sizing="stretch",
        layer="below",
    )
    fig.update_xaxes(range=[0, width], visible=False, constrain="domain")
    fig.update_yaxes(range=[height, 0], visible=False, scaleanchor="x", constrain="domain")
    units = "each image token's likeliest word; colour: its probability, 0–1"
    theme.dress(
        fig,
        title="What the image tokens say",
        n="n = 1 image",
        units=f"{caption} · {units}" if caption else units,
        dark=dark,
        height=560,
    )
    return fig.update_layout(margin={"l": 8, "b": 130 if boxes is not None and len(boxes) else 110})


#: Words in white need a dark ground: the unsure are veiled, the sure glow.
_VEIL = [(0.0, "rgba(12,10,40,0.55)"), (0.5, "rgba(110,25,70,0.6)"), (1.0, "rgba(213,94,0,0.75)")]


def lens_by_depth(
    mean: Float[np.ndarray, "2 layer"],
    low: Float[np.ndarray, "2 layer"],
    high: Float[np.ndarray, "2 layer"],
    *,
    n: int,
    dark: bool = False,
) -> go.Figure:
    """By depth, how often the target is the likeliest token, and its probability: means over samples.

    Args:
        mean, low, high: the two curves in that order, each with its 95 % interval; NaN leaves a gap.
        n: samples.
        dark: the dark scheme.
    """
    fig = go.Figure()
    looks = (
        ("on top", theme.colour_of("evidence"), "solid", "circle"),
        ("probability", theme.colour_of("text"), "dash", "diamond"),
    )
    for curve, (name, colour, dash, symbol) in enumerate(looks):
        add_curve(
            fig,
            mean[curve],
            low[curve],
            high[curve],
            name=name,
            colour=colour,
            dash=dash,
            symbol=symbol,
            legendgroup=name,
            showlegend=True,
        )
    fig.update_xaxes(layer_axis(mean.shape[1]))
    fig.update_yaxes(title_text="share, probability", range=[-0.02, 1.02])
    return theme.dress(
        fig,
        title="The target token by depth",
        n=theme.counts([n]),
        units="logit lens: share of samples where it is on top, mean probability; band: 95 % interval",
        dark=dark,
        height=360,
    )


def _short(word: str, longest: int = _SHOWN) -> str:
    return word if len(word) <= longest else word[: longest - 1] + "…"
