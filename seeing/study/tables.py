"""A table as a value: what stands in it, apart from how it is set.

It holds the texts for readers and, beside them, the numbers that they were made of, for programs. Each way of
setting it is one method: terminal, Markdown, LaTeX, HTML, CSV, JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

Mark = Literal["", "best", "second"]


@dataclass(frozen=True)
class Cell:
    """A text, and whether it is the best or second best of its column."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Column:
    """A heading, and one over it that neighbours may share."""

    heading: str
    group: str = ""
    words: bool = False


@dataclass(frozen=True)
class Block:
    """Lines under a title of their own, or under none."""

    title: str
    lines: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, eq=False)
class Table:
    """A table that can be set.

    Attributes:
        title: what it is of.
        columns: left to right.
        blocks: top to bottom; each line has a cell a column.
        notes: sentences under it: what was counted, left out, tested.
        numbers: what the texts say, a line each, with more than they say.
    """

    title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    numbers: pd.DataFrame

    def __post_init__(self) -> None:
        for block in self.blocks:
            for line in block.lines:
                if len(line) != len(self.columns):
                    raise ValueError(f"found {len(line)} cells for {len(self.columns)} columns: {line}")

    def to_terminal(self):
        """For `rich`: ``rich.print(table.to_terminal())``."""
        from seeing.study.typesetting import terminal

        return terminal(self)

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown, its notes as a list under it."""
        from seeing.study.typesetting import markdown

        return markdown(self)

    def to_latex(self) -> str:
        """A ``table`` with ``booktabs``; the best of a column bold, the second underlined."""
        from seeing.study.typesetting import latex

        return latex(self)

    def to_html(self) -> str:
        """A ``<table>``, every text escaped."""
        from seeing.study.typesetting import html

        return html(self)

    def to_frame(self) -> pd.DataFrame:
        """The numbers."""
        return self.numbers.copy()

    def to_csv(self) -> str:
        """The numbers, shares in 0..1. A text that a spreadsheet would take for a formula gets a ``'``."""
        texts = self.numbers.select_dtypes(["object", "string"]).columns
        safe = {name: self.numbers[name].map(_no_formula) for name in texts}
        return self.numbers.assign(**safe).to_csv(index=False, lineterminator="\n")

    def to_json(self) -> str:
        """Title, notes and numbers; null where there is no number."""
        lines = json.loads(self.numbers.to_json(orient="records", double_precision=15))
        document: dict[str, Any] = {"title": self.title, "notes": list(self.notes), "numbers": lines}
        return json.dumps(document, indent=1, ensure_ascii=False)

    def __str__(self) -> str:
        return self.to_markdown()

    def __rich__(self):
        return self.to_terminal()

    def _repr_html_(self) -> str:
        return self.to_html()


def _no_formula(value: Any) -> Any:
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )
