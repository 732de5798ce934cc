"""JSON lines: one sample a line, as Visual-CoT (arXiv 2403.16999) gives them.

`{"question", "answer", "image", "width", "height", "bboxs": [[x0, y0, x1, y1], …], "dataset", "split"}`, with
boxes in pixels of the picture of that width and height, and `possible_answers` where there are several. Only
the places of the lines are kept, so a file of a million opens at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seeing.data.failures import BadData, Wrong
from seeing.data.lines import json_lines
from seeing.data.records import Records
from seeing.data.spec import Spec


class JsonLines(Records):
    """A file with one JSON object a line."""

    def __init__(self, spec: Spec, path: Path, name: str | None = None) -> None:
        super().__init__(spec, path, name or path.stem)
        self._lines = json_lines(path)
        # A list goes over many lines; each would be a failure of its own.
        if self._lines.read(0).lstrip().startswith(b"["):
            raise BadData(f"{path} begins with a list, not with one object a line; name it .json")

    def __len__(self) -> int:
        return len(self._lines)

    def begins_well(self) -> bool:
        """Whether the first line is an object by itself."""
        try:
            return bool(self.record(0))
        except Wrong:
            return False

    def record(self, i: int) -> Mapping[str, Any]:
        return self._parsed(i, self._lines.read(self._within(i)))

    def scan(self, n: int) -> Iterator[Mapping[str, Any] | Wrong]:
        for i, line in enumerate(self._lines.read_all(n)):
            try:
                yield self._parsed(i, line)
            except Wrong as wrong:
                yield wrong

    def _parsed(self, i: int, line: bytes) -> Mapping[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = "is nested too deeply" if isinstance(error, RecursionError) else f"is no JSON ({error})"
            raise Wrong("malformed line", f"line {self._lines.number[i]} {said}") from error
        if not isinstance(record, dict):
            raise Wrong(
                "malformed line",
                f"line {self._lines.number[i]} holds a {type(record).__name__}, expected an object",
            )
        return record
