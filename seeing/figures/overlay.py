"""Attention laid over the image it was paid to, with the evidence boxes and the model's own region."""

import base64
import io

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8
from PIL import Image

from seeing.figures import theme
from seeing.figures.heat import colourscale

Boxes = Float[np.ndarray, "box 4"] | Int[np.ndarray, "box 4"]


def attention_overlay(
    image: UInt8[np.ndarray, "height width 3"] | Image.Image,
    heat: Float[np.ndarray, "row col"],
    *,
    boxes: Boxes | None = None,
    region: tuple[float, float, float, float] | None = None,
    extent: tuple[float, float, float, float] | None = None,
    opacity: float = 1.0,
    slider: bool = True,
    title: str = "Where the model looked",
    caption: str = "",
    dark: bool = False,
) -> go.Figure:
    """The image, the map over it, the evidence boxes (solid) and the model's own region (dashed).

    Args:
        image: RGB pixels.
        heat: any grid, of tokens or of pixels, from the top left; ≥ 0; coloured from 0 to its maximum.
        boxes: evidence, xyxy in pixels of `image`.
        region: the model's own region, xyxy in pixels.
        extent: the part of the image that the grid covers, xyxy in pixels (a crop); left out: all of it.
        opacity: of the map, 0..1.
        slider: a slider for the opacity under the figure.
        title, caption: plain text; the caption stands under the title (a question, an answer).
        dark: the dark scheme.

    Raises:
        ValueError: an opacity outside 0..1, an extent without area.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"found the opacity {opacity}, expected 0 to 1; 0 hides the map")
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = picture.size
    left, top, right, bottom = extent or (0.0, 0.0, float(width), float(height))
    if not (right > left and bottom > top):
        raise ValueError(
            f"found the extent {(left, top, right, bottom)}, expected x0 < x1 and y0 < y1; order its corners"
        )
    rows, cols = heat.shape
    step_x, step_y = (right - left) / cols, (bottom - top) / rows
    fig = go.Figure()
    fig.add_trace(
        go.Heatmap(
            z=heat,
            x0=left + step_x / 2,
            dx=step_x,
            y0=top + step_y / 2,
            dy=step_y,
            zmin=0,
            zmax=_top(heat),
            colorscale=colourscale(),
            opacity=opacity,
            name="attention",
            colorbar={"thickness": 10, "outlinewidth": 0, "len": 0.9},
            hovertemplate="x %{x:.0f} px, y %{y:.0f} px<br>attention %{z:.3g}<extra></extra>",
        )
    )
    # The own region's dashes come last: where they lie on the evidence box, both colours show.
    own = None if region is None else np.asarray([region], dtype=float)
    if own is not None:
        rectangles(fig, own, "rgba(255,255,255,0.9)", 4.5, "solid", None)
    if boxes is not None and len(boxes):
        rectangles(fig, boxes, "rgba(255,255,255,0.9)", 6.5, "solid", None)
        rectangles(fig, boxes, theme.colour_of("evidence"), 4, "solid", "evidence box")
    if own is not None:
        rectangles(fig, own, theme.colour_of("look"), 2.5, "7px,7px", "the model's own region")
    fig.add_layout_image(
        source=data_uri(picture),
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
    if slider:
        fig.update_layout(sliders=[_opacity_slider(opacity)])
    units = "attention of each place; x and y in pixels of the original image"
    theme.dress(fig, title=title, n="n = 1 image", units=caption or units, dark=dark, height=460)
    return fig.update_layout(margin={"l": 8, "b": 110 if slider else 40})


def _top(heat: Float[np.ndarray, "row col"]) -> float:
    """The end of the colour scale; 1 for a map without a positive value."""
    finite = heat[np.isfinite(heat)]
    return float(finite.max()) if len(finite) and finite.max() > 0 else 1.0


def rectangles(fig: go.Figure, boxes: Boxes, colour: str, width: float, dash: str, name: str | None) -> None:
    """All boxes as one line with gaps; without a name a pale casing, which keeps the line over it visible."""
    x0, y0, x1, y1, gap = *np.asarray(boxes, dtype=float).T, np.full(len(boxes), np.nan)
    fig.add_trace(
        go.Scatter(
            x=np.stack([x0, x1, x1, x0, x0, gap], axis=1).ravel(),
            y=np.stack([y0, y0, y1, y1, y0, gap], axis=1).ravel(),
            mode="lines",
            line={"color": colour, "width": width, "dash": dash},
            name=name,
            showlegend=name is not None,
            hoverinfo="skip" if name is None else "name",
        )
    )


def _opacity_slider(opacity: float) -> dict[str, object]:
    """Steps of a tenth that restyle the map, which is the first trace."""
    steps = [
        {"label": f"{i / 10:g}", "method": "restyle", "args": [{"opacity": i / 10}, [0]]} for i in range(11)
    ]
    return {
        "active": round(opacity * 10),
        "steps": steps,
        "currentvalue": {"prefix": "map opacity "},
        "pad": {"t": 26},
    }


def data_uri(image: Image.Image) -> str:
    """The image inside the figure, so that a saved notebook or page needs no file beside it."""
    memory = io.BytesIO()
    image.convert("RGB").save(memory, format="PNG")
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode("ascii")
