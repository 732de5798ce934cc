"""COCO's tables: pictures, and boxes that something is said about.

An annotation with `question` is a question: its `answer` or `answers` count, or else the name of its
category. Annotations of one picture that ask the same are one sample with several boxes. An annotation with
`sentences`, `caption` or `expression` refers to its box: each phrase is one sample that asks what kind of
object it names, and the category is the answer. COCO writes a box as corner and size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seeing.data.failures import BadData, Wrong
from seeing.data.fields import Columns
from seeing.data.records import Records
from seeing.data.spec import Spec

#: What is asked about a phrase that refers to a box.
QUESTION = "What kind of object is this: {}?"
#: Where an annotation keeps the phrases that refer to its box.
PHRASES = ("sentences", "caption", "captions", "expression", "expressions")
#: Where one phrase of several keeps its words.
_WORDS = ("raw", "sent", "sentence", "caption", "text")


class Coco(Records):
    """A JSON file with `images` and `annotations`, and `categories` where answers are theirs."""

    def __init__(self, spec: Spec, path: Path, found: Mapping[str, Any]) -> None:
        box_format = spec.options.get("box_format", "xywh")
        super().__init__(Spec(spec.where, {**spec.options, "box_format": box_format}), path, path.stem)
        # A mapping speaks of annotations; records made of them carry the usual names.
        self._written, self.columns = self.columns, Columns(box_format=box_format)
        self._images = {
            one["id"]: one for one in _table(found, "images", path) if isinstance(one.get("id"), (int, str))
        }
        self._categories = {
            one["id"]: one["name"]
            for one in (_table(found, "categories", path) if "categories" in found else ())
            if isinstance(one.get("id"), (int, str)) and isinstance(one.get("name"), str)
        }
        self._samples = list(self._asked(_table(found, "annotations", path)))
        if not self._samples:
            raise BadData(
                f"no annotation of {path} asks or names anything; expected 'question', or one of "
                f"{', '.join(map(repr, PHRASES))}, beside 'bbox'"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def record(self, i: int) -> Mapping[str, Any]:
        id, question, notes = self._samples[self._within(i)]
        first = notes[0]
        image = self._images.get(_key(first.get("image_id")))
        if image is None:
            raise Wrong("missing picture", f"image_id {first.get('image_id')!r:.80} is not among the images")
        answers = self._written.of(first, "answers")
        boxes = [box for note in notes if (box := self._written.of(note, "boxes")) is not None]
        return {
            "id": id,
            "question": question,
            "answers": answers if answers is not None else self._category(first),
            "boxes": boxes,
            "image": image.get("file_name"),
            **{side: image.get(side) for side in ("width", "height")},
            "category": self._category(first),
            "image_id": first.get("image_id"),
        }

    def written(self, i: int) -> Mapping[str, Any]:
        return self._samples[i][2][0]

    def _category(self, note: Mapping[str, Any]) -> str | None:
        return self._categories.get(_key(note.get("category_id")))

    def _asked(self, notes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list]]:
        """(id, question, annotations) of each sample."""
        grouped: dict[tuple, list] = {}
        for number, note in enumerate(notes):
            id = str(note.get("id", number))
            question = self._written.of(note, "question")
            if question is None:
                phrases = list(_phrases(note))
                for k, phrase in enumerate(phrases):
                    single = id if len(phrases) == 1 else f"{id}/{k}"
                    yield single, QUESTION.format(phrase.strip().rstrip(".")), [note]
                continue
            key = (_key(note.get("image_id")), str(question), str(self._written.of(note, "answers")))
            if key not in grouped:
                grouped[key] = []
                yield id, question, grouped[key]
            grouped[key].append(note)


def is_coco(found: Any) -> bool:
    """Whether a JSON file holds COCO's tables."""
    return isinstance(found, dict) and "images" in found and "annotations" in found


def _table(found: Mapping[str, Any], name: str, path: Path) -> list[Mapping[str, Any]]:
    table = found[name]
    if not isinstance(table, list) or not all(isinstance(one, dict) for one in table):
        raise BadData(f"{name!r} of {path} is no list of objects, as in COCO")
    return table


def _phrases(note: Mapping[str, Any]) -> Iterator[str]:
    for name in PHRASES:
        found = note.get(name)
        for one in found if isinstance(found, list) else [found]:
            if isinstance(one, Mapping):
                one = next((one[word] for word in _WORDS if isinstance(one.get(word), str)), None)
            if isinstance(one, str) and one.strip():
                yield one


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None
