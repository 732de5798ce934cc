"""What every probe and method takes: an image, a question, its answers, and where the evidence lies.

All data sets hand out this one type, so nothing above needs to know where a sample came from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from PIL import Image

from seeing.grid import Box


@dataclass(frozen=True, eq=False)
class EvidenceSample:
    """One question about one image, with its evidence.

    `answers`: every spelling that counts as right (one text stands for itself), kept as a tuple. `boxes`: the
    evidence, absolute pixels (x1, y1, x2, y2) of `image`. `meta`: whatever the data set knows beside that;
    read-only.

    Raises ValueError when a field is empty or of the wrong kind, or when a box is not finite, is empty, or
    lies outside the image.
    """

    id: str
    image: Image.Image
    question: str
    answers: Sequence[str]
    boxes: tuple[Box, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.answers, str):
            object.__setattr__(self, "answers", (self.answers,))
        if not isinstance(self.image, Image.Image):
            self._refuse(
                f"image is a {type(self.image).__name__}", "a PIL image", "open it with PIL.Image.open"
            )
        if not self.question.strip():
            self._refuse("the question is empty", "some text", "give the question that the boxes answer")
        if not self.answers or not all(isinstance(a, str) and a.strip() for a in self.answers):
            self._refuse(f"answers are {self.answers!r}", "one or more texts", "pass a tuple such as ('7',)")
        for box in self.boxes:
            self._check(box)
        object.__setattr__(self, "answers", tuple(self.answers))
        object.__setattr__(self, "boxes", tuple(tuple(float(edge) for edge in box) for box in self.boxes))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    def __reduce__(self):
        # A read-only view of a mapping does not travel to another process; the mapping does.
        fields = (self.id, self.image, self.question, self.answers, self.boxes, dict(self.meta))
        return EvidenceSample, fields

    def _check(self, box: Box) -> None:
        if len(box) != 4 or not all(math.isfinite(edge) for edge in box):
            self._refuse(f"box {tuple(box)}", "four finite numbers", "pass (x1, y1, x2, y2) in pixels")
        x1, y1, x2, y2 = box
        if x1 >= x2 or y1 >= y2:
            self._refuse(
                f"box {tuple(box)} has no area", "x1 < x2 and y1 < y2", "turn (x, y, w, h) into corners"
            )
        width, height = self.image.size
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            self._refuse(
                f"box {tuple(box)} lies outside the image of {width} x {height} px",
                "a box that overlaps it",
                "check that the box is in pixels of this image, before any resize",
            )

    def _refuse(self, found: str, expected: str, remedy: str) -> None:
        raise ValueError(f"sample {self.id!r}: {found}; expected {expected}; {remedy}.")
