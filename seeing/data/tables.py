"""Tables in one file: CSV and Parquet.

A CSV table is read row by row, like lines. Of a Parquet file everything but the pictures is held; those are
streamed, so that going through the rows in order takes the memory of a few pictures.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seeing.data.failures import BadData, Wrong
from seeing.data.fields import from_text
from seeing.data.lines import csv_rows
from seeing.data.records import Records
from seeing.data.spec import Spec

#: Rows of pictures that are decoded at a time.
_STREAMED = 8


class CsvRows(Records):
    """A table of text with a header; `delimiter` parts its cells. Lists are written as JSON."""

    def __init__(self, spec: Spec, path: Path, delimiter: str = ",") -> None:
        super().__init__(spec, path, path.stem)
        self._delimiter = delimiter
        self._rows = csv_rows(path, delimiter)
        self._header = self._cells(0)
        if len(self._rows) < 2:
            raise BadData(f"{path} has a header and no rows")
        if len(set(self._header)) < len(self._header):
            raise BadData(f"{path} has two columns of one name: {', '.join(self._header)!s:.200}")

    def __len__(self) -> int:
        return len(self._rows) - 1

    def record(self, i: int) -> Mapping[str, Any]:
        row = self._within(i) + 1
        try:
            cells = self._cells(row)
        except UnicodeDecodeError as error:
            raise Wrong(
                "malformed line", f"line {self._rows.number[row]} is not UTF-8 text ({error})"
            ) from error
        if len(cells) != len(self._header):
            raise Wrong(
                "malformed line",
                f"line {self._rows.number[row]} has {len(cells)} cells, the header has {len(self._header)}",
            )
        return from_text(dict(zip(self._header, cells, strict=True)), self.columns)

    def _cells(self, row: int) -> list[str]:
        text = self._rows.read(row).decode("utf-8").splitlines(keepends=True)
        return next(csv.reader(text, delimiter=self._delimiter))


class ParquetRows(Records):
    """A Parquet file; pictures are names, or bytes as the library `datasets` writes them."""

    def __init__(self, spec: Spec, path: Path) -> None:
        super().__init__(spec, path, path.stem)
        try:
            self._file = pq.ParquetFile(path)
            leaves = [self._file.schema.column(k) for k in range(len(self._file.schema))]
            self._heavy = [one.path for one in leaves if _is_bytes(one)]
            light = [one.path for one in leaves if not _is_bytes(one)]
            self._light = self._file.read(columns=light).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise BadData(f"can't read {path}: {' '.join(str(error).split())}") from error
        if not len(self):
            raise BadData(f"{path} holds no samples")
        self._stream: tuple[int, Iterator[dict[str, Any]]] = (-1, iter(()))
        self._one_at_a_time = Lock()

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def light(self, i: int) -> Mapping[str, Any]:
        rows = self._light.slice(self._within(i), 1).to_pylist()
        return rows[0] if rows else {}

    def record(self, i: int) -> Mapping[str, Any]:
        light = dict(self.light(i))
        if self._heavy:
            try:
                pictures = self._pictures(i)
            except (pa.ArrowException, OSError, StopIteration) as error:
                raise Wrong("broken picture", f"row {i} can't be read: {error}") from error
            for name, value in pictures.items():
                both = isinstance(value, Mapping) and isinstance(light.get(name), Mapping)
                light[name] = {**light[name], **value} if both else value
        return light

    def _pictures(self, i: int) -> dict[str, Any]:
        """The columns of bytes of row `i`; the next row is at hand then."""
        with self._one_at_a_time:
            at, stream = self._stream
            if at != i:
                stream = self._streamed(i)
            row = next(stream)
            self._stream = (i + 1, stream)
        return row

    def _streamed(self, i: int) -> Iterator[dict[str, Any]]:
        start = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if start + rows > i:
                batches = self._file.iter_batches(_STREAMED, row_groups=[group], columns=self._heavy)
                for number, row in enumerate((row for batch in batches for row in _rows(batch)), start):
                    if number >= i:
                        yield row
            start += rows


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for k in range(batch.num_rows):
        yield {
            name: column[k].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }


def _is_bytes(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"
