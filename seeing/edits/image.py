"""Edits of the picture, before the processor: the model sees another image, nothing inside is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from seeing.edits.edit import ImageEdit
from seeing.edits.select import BadEdit
from seeing.maps import highlight


@dataclass(frozen=True, eq=False)
class Highlight(ImageEdit):
    """Dim a picture where its evidence map is dark: Î = (α + (1 − α)·ẽ)·I (Liu et al. 2026, step E).

    ``maps`` is one map for every row, or one a row: values in [0, 1], of the original picture's
    size (height, width). ``alpha`` is what is left of a pixel without evidence; 1 changes nothing.
    """

    maps: Float[np.ndarray, "height width"] | Sequence[Float[np.ndarray, "_ _"]]
    alpha: float = 0.5
    when: str = "both"

    def __post_init__(self):
        maps = (self.maps,) if isinstance(self.maps, np.ndarray) else tuple(self.maps)
        object.__setattr__(self, "maps", maps)
        if not 0 <= self.alpha <= 1:
            raise BadEdit(f"alpha is in [0, 1], got {self.alpha}")
        if self.when != "both":
            raise BadEdit("a picture is edited before the pass, for all of it; leave when='both'")

    def check(self, n_rows: int) -> None:
        if len(self.maps) not in (1, n_rows):
            raise BadEdit(f"{len(self.maps)} maps for {n_rows} row(s); give one map, or one a row")

    def image(self, row: int, picture: Image.Image) -> Image.Image:
        return highlight(picture, self.maps[row if len(self.maps) > 1 else 0], self.alpha)

    def __repr__(self) -> str:
        return f"Highlight(<{len(self.maps)} map(s)>, alpha={self.alpha})"
