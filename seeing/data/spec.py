"""A data set as one line of text: `WHERE?option=value&option=value`.

A command line, a file of settings and another process all name a data set in words. The words must open the
same samples everywhere, so they carry the column mapping and the folder of the pictures too. WHERE is taken
as it is written; options are escaped as in an address, so the last question mark is the one that parts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from seeing.data.failures import BadData

#: What a record says of a sample; a column mapping gives the name under which a file keeps it.
FIELDS = ("id", "image", "question", "answers", "boxes", "width", "height")
#: What else may stand behind the question mark.
SETTINGS = ("images", "split", "config", "revision", "box_format", "name", "limit")


@dataclass(frozen=True)
class Spec:
    """Where a data set is, and how to read it."""

    where: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        """The spec that `text` writes. Raises BadData."""
        if not text.strip():
            raise BadData("no data set is named; give a file, a folder, plates:N or hub:owner/name")
        where, mark, written = text.rpartition("?")
        if not mark or _exists(text):
            return cls(text)
        options: dict[str, str] = {}
        for part in written.split("&") if written else ():
            key, equals, value = part.partition("=")
            if not equals or key not in FIELDS + SETTINGS:
                raise BadData(
                    f"{text!r}: {part!r} is no option; behind the question mark stand NAME=VALUE, with NAME "
                    f"one of {', '.join(FIELDS + SETTINGS)}, joined by &"
                )
            if key in options:
                raise BadData(f"{text!r}: {key!r} is given twice")
            options[key] = unquote(value)
        return cls(where, options)

    def with_options(self, **options: Any) -> Spec:
        """The same with these options too; None leaves an option as it is."""
        added = {key: str(value) for key, value in options.items() if value is not None}
        return Spec(self.where, {**self.options, **added})

    def at(self, where: Path | None) -> Spec:
        """The same at an absolute path, which another process finds from any folder; so the pictures."""
        images = self.options.get("images")
        placed = self if where is None else Spec(str(where.absolute()), self.options)
        return placed.with_options(images=images and from_home(images).absolute())

    @property
    def columns(self) -> dict[str, str]:
        """The column mapping among the options."""
        return {key: value for key, value in self.options.items() if key in FIELDS}

    @property
    def limit(self) -> int | None:
        written = self.options.get("limit")
        return None if written is None else whole_number("limit", written)

    def __str__(self) -> str:
        written = "&".join(f"{key}={quote(value, safe='/:, ')}" for key, value in self.options.items())
        return f"{self.where}?{written}" if written or "?" in self.where else self.where


def whole_number(what: str, written: str, least: int = 1) -> int:
    """A number written in digits. Raises BadData."""
    if not (written.isascii() and written.isdigit()) or len(written) > 18 or int(written) < least:
        raise BadData(f"{what} is a whole number, {least} or more; got {written!r}")
    return int(written)


def parse_columns(written: str) -> dict[str, str]:
    """`question=q,answers=a`, as the command line takes it. Raises BadData."""
    columns: dict[str, str] = {}
    for part in written.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key not in FIELDS:
            raise BadData(
                f"{part.strip()!r} maps no column; write FIELD=COLUMN, FIELD one of {', '.join(FIELDS)}, "
                "joined by commas; FIELD= leaves a field out"
            )
        if key in columns:
            raise BadData(f"the column of {key!r} is given twice")
        columns[key] = value
    return columns


def from_home(path: str | PathLike) -> Path:
    """A path whose ``~`` is somebody's home, where there is one; else as it is written."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path)


def _exists(text: str) -> bool:
    try:
        return from_home(text).exists()
    except OSError:  # longer than a name may be
        return False
