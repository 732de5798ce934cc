"""What a model looked at, as one file: the picture under its attention, and as a method showed it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from seeing.figures import attention_overlay, heat_rgba, theme
from seeing.figures.overlay import data_uri
from seeing.grid import Box

#: Sides of a panel, in pixels: small pictures are enlarged, large ones made smaller.
LEAST, MOST = 360, 900
MARGIN = 16
TEXT = 15


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture, with attention over it where it has a map.

    Attributes:
        caption: what is shown, and what was answered.
        picture: the picture.
        heat: (height, width) attention at each pixel, ≥ 0; NaN where no token looks.
        boxes: the annotated evidence, xyxy pixels.
        region: the model's own region, xyxy pixels.
    """

    caption: str
    picture: Image.Image
    heat: Float[np.ndarray, "height width"] | None = None
    boxes: Sequence[Box] = ()
    region: Box | None = None


def write_looked(panels: Sequence[Panel], path: Path, title: str) -> Path:
    """Panels side by side as a picture, or as a page (.html) that needs no other file."""
    if path.suffix.lower() == ".html":
        path.write_text(page(panels, title), encoding="utf-8")
    else:
        side_by_side(panels, title).save(path)
    return path


def side_by_side(panels: Sequence[Panel], title: str) -> Image.Image:
    """The panels in one picture, the title above and each caption below its panel."""
    drawn = [_drawn(panel) for panel in panels]
    captions = [_wrapped(one.caption, picture.width) for one, picture in zip(panels, drawn)]
    width = sum(one.width + MARGIN for one in drawn) + MARGIN
    head = _wrapped(title, width - 2 * MARGIN)
    top = 2 * MARGIN + _height(head)
    bottom = max(one.height for one in drawn) + max(map(_height, captions)) + 2 * MARGIN
    sheet = Image.new("RGB", (width, top + bottom), theme.PAPER["light"])
    pen, left = ImageDraw.Draw(sheet), MARGIN
    pen.multiline_text((MARGIN, MARGIN), head, theme.INK["light"], _font())
    for picture, caption in zip(drawn, captions):
        sheet.paste(picture, (left, top))
        pen.multiline_text((left, top + picture.height + MARGIN // 2), caption, theme.INK["light"], _font())
        left += picture.width + MARGIN
    return sheet


def page(panels: Sequence[Panel], title: str) -> str:
    """The panels as one page: attention with a slider for its opacity, other pictures as they are."""
    parts = []
    for panel in panels:
        if panel.heat is None:
            parts.append(f'<figure><img src="{data_uri(panel.picture)}" alt=""></figure>')
        else:
            figure = attention_overlay(
                panel.picture,
                np.nan_to_num(panel.heat),
                boxes=np.asarray(panel.boxes) if panel.boxes else None,
                region=panel.region,
            )
            # The library itself goes into the page once, with the first figure.
            first = not any("plotly" in part for part in parts)
            parts.append(figure.to_html(full_html=False, include_plotlyjs=first))
        parts.append(f"<p>{html.escape(panel.caption)}</p>")
    style = f"body{{font-family:{theme.FONT};max-width:60rem;margin:2rem auto}}img{{width:100%}}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style><h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _drawn(panel: Panel) -> Image.Image:
    """The panel's picture at its size on the sheet, with all that lies over it."""
    picture = panel.picture.convert("RGB")
    longest = max(picture.size)
    scale = min(max(longest, LEAST), MOST) / longest
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    if panel.heat is not None:
        top = np.nanmax(panel.heat, initial=0.0)
        veil = Image.fromarray(heat_rgba(panel.heat / top if top > 0 else panel.heat))
        picture = Image.alpha_composite(picture.convert("RGBA"), veil.resize(size, Image.Resampling.BOX))
        picture = picture.convert("RGB")
    pen = ImageDraw.Draw(picture)
    for box in panel.boxes:
        _frame(pen, box, scale, theme.colour_of("evidence"))
    if panel.region is not None:
        _frame(pen, panel.region, scale, theme.colour_of("look"))
    return picture


def _frame(pen: ImageDraw.ImageDraw, box: Box, scale: float, colour: str) -> None:
    """A frame with a pale casing, which keeps it visible on any picture."""
    x0, y0, x1, y1 = (edge * scale for edge in box)
    corners = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))
    pen.rectangle(corners, outline="white", width=5)
    pen.rectangle(corners, outline=colour, width=3)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _wrapped(text: str, width: int) -> str:
    """The text in lines that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _height(text: str) -> int:
    return (text.count("\n") + 1) * (TEXT + 5)
