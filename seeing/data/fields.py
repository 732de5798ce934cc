"""What a record says, field by field, whatever it calls them and however it writes them.

Benchmarks agree on what a sample is and on little else: one answer or a list, boxes as corners or as corner
and size, one box bare or nested. Every reader reads through here, so they all take the same spellings and
refuse the same things.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from seeing.data.failures import BadData, Wrong
from seeing.data.spec import FIELDS
from seeing.grid import Box

#: The names under which a field is looked for; the first that holds something counts. `answers` and
#: `possible_answers` beat `answer`, as in the code of Seeing but Not Believing (arXiv 2510.17771).
NAMES = MappingProxyType(
    {
        "id": ("id", "question_id", "questionId"),
        "image": ("image", "image_path", "img_path", "file_name"),
        "question": ("question",),
        "answers": ("answers", "possible_answers", "answer"),
        "boxes": ("bboxs", "bboxes", "boxes", "bbox"),
        "width": ("width",),
        "height": ("height",),
    }
)
#: Boxes of one sample. Areas of unions are exact, at a price that goes with the square of this.
MAX_BOXES = 1000
#: How boxes may be written. `fraction` is xyxy, as fractions of the width and the height.
BOX_FORMATS = ("xyxy", "xywh", "fraction")


@dataclass(frozen=True)
class Columns:
    """Under which names a record keeps its fields, and how its boxes are written."""

    names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: NAMES)
    box_format: str = "xyxy"

    def __post_init__(self) -> None:
        if self.box_format not in BOX_FORMATS:
            raise BadData(f"box_format is one of {', '.join(BOX_FORMATS)}, got {self.box_format!r}")

    @classmethod
    def mapped(cls, columns: Mapping[str, str], box_format: str | None = None) -> Columns:
        """The usual names, but for the fields that `columns` names; an empty name leaves a field out."""
        for key, value in columns.items():
            if key not in FIELDS or not isinstance(value, str):
                raise BadData(
                    f"columns maps {key!r} to {value!r}; expected the name of a column, for one of "
                    f"{', '.join(FIELDS)}"
                )
        given = {key: (value,) if value else () for key, value in columns.items()}
        return cls(MappingProxyType({**NAMES, **given}), box_format or "xyxy")

    def of(self, record: Mapping[str, Any], field: str) -> Any:
        """What the record holds of a field, or None. `objects.bbox` looks inside `objects`."""
        for name in self.names[field]:
            found = _looked_up(record, name)
            if found is not None and not (isinstance(found, (str, list)) and not found):
                return found
        return None

    def used(self) -> frozenset[str]:
        """The first words of all names, which no longer go among what else a sample says."""
        return frozenset(name for names in self.names.values() for name in names)

    def question(self, record: Mapping[str, Any]) -> str:
        found = self.of(record, "question")
        if not isinstance(found, str) or not found.strip():
            said = "no question" if found is None or found == "" else f"a question that is {found!r:.80}"
            raise Wrong("no question", f"the record has {said}; {self._looked_for('question')}")
        return _sound(found, "question")

    def answers(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """All spellings; blank ones are left out, and numbers become text."""
        found = self.of(record, "answers")
        several = found if isinstance(found, (list, tuple)) else [found]
        texts = tuple(text for one in several if (text := _answer(one)).strip())
        if not texts:
            raise Wrong("no answer", f"the record has no answer; {self._looked_for('answers')}")
        return texts

    def boxes(self, record: Mapping[str, Any]) -> list[Box]:
        """The boxes as they are written: four numbers each. Raises Wrong."""
        found = self.of(record, "boxes")
        if found is None:
            return []
        if not isinstance(found, (list, tuple)):
            raise Wrong("bad box", f"boxes are {found!r:.80}, expected lists of four numbers")
        if all(not isinstance(one, (list, tuple)) for one in found):
            found = [found]
        elif all(isinstance(one, (list, tuple)) and one and _nested(one) for one in found):
            found = [box for one in found for box in one]
        if len(found) > MAX_BOXES:
            raise Wrong("bad box", f"the record has {len(found)} boxes, expected {MAX_BOXES} at most")
        return [_four(box) for box in found]

    def in_pixels(self, boxes: Sequence[Box], size: tuple[int, int]) -> tuple[Box, ...]:
        """Boxes as xyxy pixels of a picture of `size`. Raises Wrong."""
        width, height = size
        if self.box_format == "fraction":
            if any(not -0.01 <= edge <= 1.01 for box in boxes for edge in box):
                raise Wrong("bad box", f"boxes {list(boxes)!s:.120} are not fractions; try box_format=xyxy")
            return tuple((a * width, b * height, c * width, d * height) for a, b, c, d in boxes)
        # A box of a fraction of one pixel is no evidence in any picture: these are fractions of its sides.
        if boxes and max(size) > 1 and all(0 <= edge <= 1 for box in boxes for edge in box):
            raise Wrong(
                "bad box",
                f"boxes {list(boxes)!s:.120} lie within one pixel of the {width} x {height} picture; if they "
                "are fractions of its sides, say box_format=fraction",
            )
        if self.box_format == "xywh":
            return tuple((x, y, x + w, y + h) for x, y, w, h in boxes)
        return tuple(boxes)

    def check_size(self, record: Mapping[str, Any], size: tuple[int, int]) -> None:
        """Raise Wrong when the record says that its picture has another size: boxes would lie elsewhere."""
        said = tuple(self.of(record, side) for side in ("width", "height"))
        if None in said:
            return
        try:
            numbers = tuple(float(one) for one in said)
        except (TypeError, ValueError, OverflowError):
            raise Wrong("other size", f"width and height are {said!r:.80}, expected two numbers") from None
        if numbers != size:
            raise Wrong(
                "other size",
                f"the picture is {size[0]} x {size[1]}, the record says {said[0]} x {said[1]}: boxes in "
                "pixels of the one lie elsewhere in the other; give the original picture, or leave width and "
                "height out (columns width=,height=) if the boxes fit the picture as it is",
            )

    def _looked_for(self, field: str) -> str:
        names = self.names[field]
        return f"looked for {' or '.join(map(repr, names))}" if names else "its column is left out"


def from_text(record: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """A record whose cells are all text (CSV), with lists of answers and boxes read as JSON."""
    for kind in ("answers", "boxes"):
        for name in columns.names[kind]:
            cell = record.get(name)
            if isinstance(cell, str) and cell.lstrip().startswith("["):
                # An answer may begin with a bracket; boxes that stay text are refused by name.
                with suppress(ValueError, RecursionError):
                    record[name] = json.loads(cell)
    return record


def has_column(record: Mapping[str, Any], name: str) -> bool:
    """Whether the record has that column, with anything in it; `objects.bbox` looks inside `objects`."""
    return name in record or _looked_up(record, name) is not None


def _looked_up(record: Any, name: str) -> Any:
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first) if dot else None
    return _looked_up(inner, rest) if isinstance(inner, Mapping) else None


def _answer(value: Any) -> str:
    if isinstance(value, Mapping):  # VQA v2: {"answer": "yes", "answer_confidence": "yes", …}
        value = value.get("answer")
    if value is None or isinstance(value, (list, tuple, Mapping, bytes)) or value != value:
        return ""
    return _sound(str(value), "answer")


def _sound(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Wrong("broken text", f"the {what} {text!r:.80} holds half a character") from None
    return text


def _nested(value: Sequence) -> bool:
    return all(isinstance(one, (list, tuple)) for one in value)


def _four(box: Any) -> Box:
    """Four numbers. Raises Wrong."""
    if (
        not isinstance(box, (list, tuple))
        or len(box) != 4
        or any(isinstance(edge, (bool, str)) or not hasattr(edge, "__float__") for edge in box)
    ):
        raise Wrong("bad box", f"box {box!r:.120} is not four numbers")
    try:
        return tuple(float(edge) for edge in box)
    except OverflowError:
        raise Wrong("bad box", f"box {box!r:.120} holds a number that is too large") from None
