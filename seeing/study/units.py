"""A study in pieces: which samples of which data set go to which model together.

A unit is the smallest piece that a process takes, and that leaves one Parquet file. Units have numbers that
depend on the study's settings alone, so that any process, on any machine, means the same by "unit 17".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Samples of a unit.
SIZE = 64


@dataclass(frozen=True)
class Unit:
    """Samples ``start`` to ``stop`` of data set ``data`` for model ``model``, both by their number."""

    number: int
    model: int
    data: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"m{self.model}-d{self.data}-{self.start:09d}"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Task:
    """A unit to be answered, and the keys of its entries that are there already."""

    unit: Unit
    done: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Entry:
    """What a worker hands back at a time: one batch of a unit, under one method.

    ``key`` names it within its unit; the same key always holds the same samples. The last entry of a unit is
    `Entry.end`, which holds nothing.
    """

    unit: int
    key: str
    rows: Sequence[dict[str, Any]] = ()
    failures: Sequence[dict[str, Any]] = ()
    last: bool = field(default=False)

    @classmethod
    def end(cls, unit: Unit) -> Entry:
        return cls(unit.number, "end", last=True)

    def as_dict(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "key": self.key,
            "rows": list(self.rows),
            "failures": list(self.failures),
            "last": self.last,
        }


def units_of(n_models: int, sizes: Iterable[int], size: int = SIZE, skip: int = 0) -> tuple[Unit, ...]:
    """The units of a study: each model's in turn, and in it each data set's, in the order of their samples.

    Args:
        sizes: samples of each data set.
        size: samples of a unit; the last one of a data set may have fewer.
        skip: samples at the start of the first data set that are not asked.
    """
    sizes = list(sizes)
    pieces = [
        (model, data, start, min(start + size, count))
        for model in range(n_models)
        for data, count in enumerate(sizes)
        for start in range(skip if data == 0 else 0, count, size)
    ]
    return tuple(Unit(number, *piece) for number, piece in enumerate(pieces))
