"""Pictures of noise, and the same with a region painted over: what the paint proofs look through."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )


def painted(picture: Image.Image, region: tuple[int, int, int, int]) -> Image.Image:
    """Every pixel of the region changed, by half the range."""
    pixels = np.array(picture)
    x0, y0, x1, y1 = region
    pixels[y0:y1, x0:x1] += 128
    return Image.fromarray(pixels)
