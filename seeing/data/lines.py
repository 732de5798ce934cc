"""Where each record of a text file begins, so that a file of a million lines is read one record at a time."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seeing.data.failures import BadData

#: How files begin that are no UTF-8 text, and what to do about it.
_OTHERS = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstandard; unpack it first",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Lines:
    """Records of a file: each one's first byte, the byte behind it, and the number of its line, from 1."""

    path: Path
    start: array
    end: array
    number: array

    def __len__(self) -> int:
        return len(self.start)

    def read(self, i: int) -> bytes:
        """The bytes of record `i`."""
        # Opened anew for each: a file that stays open shares its place with forked processes.
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.start[i])
            return file.read(self.end[i] - self.start[i])

    def read_all(self, n: int) -> Iterator[bytes]:
        """The first `n` records, in one go."""
        with open(self.path, "rb") as file:
            for start, end in zip(self.start[:n], self.end[:n], strict=True):
                file.seek(start)
                yield file.read(end - start)


def check_text(path: Path) -> None:
    """Raise BadData for what can't be read or is not UTF-8 text by its first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise BadData(f"can't read {path}: {error.strerror or error}") from error
    for mark, said in _OTHERS.items():
        if head.startswith(mark):
            raise BadData(f"{path} {said}")


def json_lines(path: Path) -> Lines:
    """One record a line; blank lines are none."""
    check_text(path)
    return _index(
        path, ((place, place + len(line), n) for place, line, n in _lines(path) if not line.isspace())
    )


def csv_rows(path: Path, delimiter: str = ",") -> Lines:
    """One record a row, the header among them; a row may hold line breaks in quotes."""
    check_text(path)
    return _index(path, _rows(path, delimiter))


def _index(path: Path, records: Iterator[tuple[int, int, int]]) -> Lines:
    found = Lines(path, array("q"), array("q"), array("q"))
    try:
        for start, end, number in records:
            found.start.append(start)
            found.end.append(end)
            found.number.append(number)
    except csv.Error as error:
        raise BadData(f"{path} is no CSV table: {error}") from error
    if not found:
        raise BadData(f"{path} is empty")
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """(first byte, the line, its number), without the mark that some editors put first."""
    place = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            skipped = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
            yield place + skipped, line[skipped:], number
            place += len(line)


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, int, int]]:
    starts, ends = array("q"), array("q")

    def text() -> Iterator[str]:
        for place, line, _ in _lines(path):
            starts.append(place)
            ends.append(place + len(line))
            yield line.decode("utf-8", errors="replace")

    reader, lines_before = csv.reader(text(), delimiter=delimiter), 0
    for row in reader:
        if any(cell.strip() for cell in row):
            yield starts[lines_before], ends[reader.line_num - 1], lines_before + 1
        lines_before = reader.line_num
