"""Pictures from wherever a user keeps them, as upright RGB.

A photo may be a path, a PIL image or an array; it may be grayscale, a palette, transparent, CMYK, or
stored on its side with a note in EXIF. Models take upright RGB. Everything is brought there in one
place, and what can't be is refused with the reason, before anything runs.
"""

from __future__ import annotations

import io
import mimetypes
import struct
import warnings
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: What `load_image` takes.
ImageLike = Image.Image | np.ndarray | str | PathLike | bytes

#: Pixels. Above this a file is refused rather than decoded: a small file can claim any size.
MAX_PIXELS = 100_000_000


#: What Pillow's decoders raise on broken bytes, beside errors of their own.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, RuntimeError, TypeError, EOFError, LookupError, ArithmeticError),
    *(struct.error, Image.DecompressionBombError),
)


class BadImage(ValueError):
    """A picture that can't be read or that no model could take."""


class ImageTooLarge(BadImage):
    """A picture of more pixels than are decoded."""


def load_image(image: ImageLike) -> Image.Image:
    """``image`` as upright RGB.

    Arrays are (height, width) or (height, width, 3 or 4), uint8, or floats in [0, 1]; bytes are what a file
    holds. Transparent pixels are laid on white.

    Raises:
        BadImage: a missing, broken, truncated or gigantic file; an array of another shape or range.
    """
    if isinstance(image, np.ndarray):
        opened = _from_array(image)
    elif isinstance(image, Image.Image):
        opened = image
    elif isinstance(image, bytes):
        opened = _opened(io.BytesIO(image), f"a picture of {len(image):,} bytes")
    elif isinstance(image, (str, PathLike)):
        opened = _from_file(Path(image))
    else:
        raise BadImage(f"an image is a path, a PIL image or an array, got {type(image).__name__}")
    width, height = opened.size
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageTooLarge(f"the image is {width}×{height}; expected between 1 and {MAX_PIXELS:,} pixels")
    if opened.mode.startswith("I") or opened.mode == "F":
        raise BadImage(
            f"the image has mode {opened.mode!r} (more than 8 bits a channel); convert it to RGB first"
        )
    try:
        return _rgb(ImageOps.exif_transpose(opened))
    except _BROKEN as error:
        raise BadImage(f"the image can't be decoded: {error}") from error


def _from_file(path: Path) -> Image.Image:
    try:
        if not path.exists():
            raise BadImage(f"no such image file: {path}")
        kind = (mimetypes.guess_type(path.name)[0] or "").split("/")[0]
        if kind in ("video", "audio"):
            raise BadImage(f"{path} is named as {kind}: only pictures are read; give one frame as a picture")
    except OSError as error:  # a name that no file system takes: a URL or a file's content, say
        raise BadImage(f"no such image file: {path!s:.80} ({error.strerror})") from error
    if path.is_dir():
        raise BadImage(f"{path} is a folder, expected an image file")
    return _opened(path, str(path))


def _opened(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(source)
    except UnidentifiedImageError as error:
        raise BadImage(f"{name} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"{name} can't be opened: {error}") from error
    except _BROKEN as error:
        raise BadImage(f"{name} can't be opened: {error}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise BadImage(f"an image array is (height, width) or (height, width, 3 or 4), got {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise BadImage("a float image array holds values in [0, 1]; divide by 255 if it holds bytes")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise BadImage(f"an image array is uint8 or float, got {array.dtype}")
    return Image.fromarray(array)


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
