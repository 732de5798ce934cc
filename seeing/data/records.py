"""A data set made of records: mappings with a question, answers, boxes, and the name of a picture.

A reader says where record `i` is; everything else is the same for all of them and stands here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from seeing.data.dataset import Dataset
from seeing.data.failures import BadData, BadSample, Wrong
from seeing.data.fields import Columns, has_column
from seeing.data.pictures import Pictures
from seeing.data.samples import EvidenceSample
from seeing.data.spec import Spec


class Records(Dataset):
    """Records by number, read as samples. Ids are the records' own, or else their numbers."""

    def __init__(self, spec: Spec, path: Path | None, name: str) -> None:
        spec = spec.at(path)
        self.spec = str(spec)
        self.name = spec.options.get("name") or name
        self.columns = Columns.mapped(spec.columns, spec.options.get("box_format"))
        self.pictures = Pictures.beside(path, spec.options.get("images"))

    @abstractmethod
    def record(self, i: int) -> Mapping[str, Any]:
        """Record `i`. Raises Wrong when it can't be read."""

    def light(self, i: int) -> Mapping[str, Any]:
        """Record `i` without the bytes of its picture. Raises Wrong."""
        return self.record(i)

    def scan(self, n: int) -> Iterator[Mapping[str, Any] | Wrong]:
        """The first `n` records without the bytes of their pictures, or what is wrong with them, in order."""
        for i in range(n):
            try:
                yield self.light(i)
            except Wrong as wrong:
                yield wrong

    def written(self, i: int) -> Mapping[str, Any]:
        """The record under whose names a column mapping speaks. Raises Wrong."""
        return self.light(i)

    def check_columns(self, columns: Mapping[str, str], looked_at: int = 100) -> None:
        """Raise BadData for a mapping to a column that none of the first records has."""
        seen: set[str] = set()
        missing = {field: name for field, name in columns.items() if name}
        for i in range(min(len(self), looked_at) if missing else 0):
            try:
                record = self.written(i)
            except Wrong:
                continue
            seen.update(map(str, record))
            missing = {field: name for field, name in missing.items() if not has_column(record, name)}
        for field, name in missing.items():
            raise BadData(
                f"{self.spec}: no column {name!r} for {field}; there are {', '.join(sorted(seen))!s:.300}"
            )

    def id(self, i: int) -> str:
        self._within(i)
        return self._ids[0][i] if self._gives_ids else str(i)

    @property
    def repeated_ids(self) -> Sequence[str]:
        return self._ids[1] if self._gives_ids else ()

    def sample(self, i: int) -> EvidenceSample:
        id = self.id(i)
        try:
            record = self.record(i)
            question = self.columns.question(record)
            answers = self.columns.answers(record)
            boxes = self.columns.boxes(record)
            image = self.pictures.read(self.columns.of(record, "image"), record.get("dataset"))
            self.columns.check_size(record, image.size)
            boxes = self.columns.in_pixels(boxes, image.size)
            meta = self._meta(record)
        except Wrong as wrong:
            raise BadSample(id, str(wrong), wrong.kind) from wrong
        try:
            return EvidenceSample(id, image, question, answers, boxes, meta)
        except ValueError as error:
            raise BadSample(id, str(error).removeprefix(f"sample {id!r}: "), "bad box") from error

    def said(self, n: int) -> Iterator[Any]:
        fields = ("id", "question", "answers", "boxes", "width", "height")
        for record in self.scan(n):
            if isinstance(record, Wrong):
                yield str(record)
                continue
            said = {key: self.columns.of(record, key) for key in fields}
            yield {
                **said,
                "image": _named(self.columns.of(record, "image")),
                "format": self.columns.box_format,
            }

    @cached_property
    def has_boxes(self) -> bool:
        return any(self._boxed(record) for record in self.scan(len(self)))

    def _boxed(self, record: Mapping[str, Any] | Wrong) -> bool:
        try:
            return not isinstance(record, Wrong) and bool(self.columns.boxes(record))
        except Wrong:
            return False

    @cached_property
    def _gives_ids(self) -> bool:
        """Whether the first record that can be read has an id."""
        readable = (record for record in self.scan(len(self)) if not isinstance(record, Wrong))
        return self.columns.of(next(readable, {}), "id") is not None

    @cached_property
    def _ids(self) -> tuple[list[str], tuple[str, ...]]:
        return unique_ids([self._given_id(record) for record in self.scan(len(self))])

    def _given_id(self, record: Mapping[str, Any] | Wrong) -> str | None:
        found = None if isinstance(record, Wrong) else self.columns.of(record, "id")
        text = str(found)
        whole = isinstance(found, (str, int)) and len(text) <= 200 and text.isprintable() and text.strip()
        return text if whole else None

    def _meta(self, record: Mapping[str, Any]) -> dict[str, Any]:
        used = self.columns.used()
        return {key: value for key, value in record.items() if key not in used and not _heavy(value)}


def unique_ids(given: Sequence[str | None]) -> tuple[list[str], tuple[str, ...]]:
    """An id for each, and the ids that were given more than once.

    The first of several keeps the id, the others get `#2`, `#3`, …; what has none gets its number.
    """
    taken = {one for one in given if one is not None}
    seen: set[str] = set()
    repeated: dict[str, int] = {}
    ids = []
    for number, one in enumerate(given):
        id = str(number) if one is None else one
        if id in seen or (one is None and id in taken):
            if one is not None:
                repeated.setdefault(one, 1)
            count = repeated.get(id, 1) + 1
            while f"{id}#{count}" in taken or f"{id}#{count}" in seen:
                count += 1
            if one is not None:
                repeated[one] = count
            id = f"{id}#{count}"
        seen.add(id)
        ids.append(id)
    return ids, tuple(repeated)


def _named(image: Any) -> Any:
    """The name of a picture, of whatever a record says of it."""
    if isinstance(image, Mapping):
        return image.get("path")
    return image if isinstance(image, (str, list)) else None


def _heavy(value: Any) -> bool:
    """Pictures and bytes, which don't belong into what is noted of a sample."""
    if isinstance(value, Mapping):
        return any(_heavy(one) for one in value.values())
    return not isinstance(value, (str, int, float, bool, list, tuple, type(None)))
