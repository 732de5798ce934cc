"""Images and maps as small data URIs, so that a report of many photos stays one file that opens at once."""

import base64
import io

import numpy as np
from jaxtyping import Float
from PIL import Image

from seeing.figures import heat_rgba

# Longest side in pixels and WebP quality, tried in turn until a picture fits its bytes.
LADDER = ((384, 82), (384, 65), (320, 60), (256, 55), (192, 45), (128, 35))
PICTURE_BYTES = 28_000
# A map is smooth or as coarse as the tokens: more pixels than this add nothing.
MAP_SIDE = 64


def picture_uri(image: Image.Image) -> str:
    """The image as WebP of at most about PICTURE_BYTES, shrunk as far as that takes."""
    image = image.convert("RGB")
    for side, quality in LADDER:
        data = _encode(_fit(image, side), quality=quality, method=4)
        if len(data) <= PICTURE_BYTES:
            break
    return _uri(data)


def map_uri(heat: Float[np.ndarray, "row col"]) -> str:
    """A map of 0..1 coloured as everywhere (figures.heat_rgba), with its transparency, as lossless WebP."""
    small = heat
    if max(heat.shape) > MAP_SIDE:
        grey = Image.fromarray(np.nan_to_num(np.clip(heat, 0, 1)).astype(np.float32))
        small = np.clip(np.asarray(_fit(grey, MAP_SIDE), dtype=float), 0, 1)
    return _uri(_encode(Image.fromarray(heat_rgba(np.asarray(small, dtype=float))), lossless=True))


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The image with its longest side at most `side` pixels; a smaller one as it is."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(scale * length)) for length in image.size], Image.Resampling.BOX)


def _encode(image: Image.Image, **options: object) -> bytes:
    memory = io.BytesIO()
    image.save(memory, format="WEBP", **options)
    return memory.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
