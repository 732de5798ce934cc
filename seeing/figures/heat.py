"""A map of 0..1 as coloured, see-through pixels: the one ramp of attention over an image, in every view."""

import numpy as np
from jaxtyping import Float, UInt8

from seeing.figures import theme


def heat_rgba(heat: Float[np.ndarray, "row col"]) -> UInt8[np.ndarray, "row col 4"]:
    """Colour a map by theme.HEAT_STOPS; values are clipped to 0..1, and NaN is wholly transparent.

    Args:
        heat: 0 = least attended, 1 = most.

    Returns:
        Red, green, blue and alpha of 0..255, to be laid over the image.
    """
    stops = np.asarray(theme.HEAT_STOPS)
    level = np.nan_to_num(np.clip(heat, 0.0, 1.0))
    channels = [np.interp(level, stops[:, 0], stops[:, i]) for i in (1, 2, 3)]
    alpha = np.where(np.isfinite(heat), 255 * np.interp(level, stops[:, 0], stops[:, 4]), 0)
    return np.rint(np.stack([*channels, alpha], axis=-1)).astype(np.uint8)


def colourscale() -> list[tuple[float, str]]:
    """The same ramp as a plotly colour scale."""
    return [(at, f"rgba({r},{g},{b},{alpha:g})") for at, r, g, b, alpha in theme.HEAT_STOPS]
