"""Files that are whole or not there, whatever ends the process or the machine."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, make sure that it is on the disk, and then give it its name."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make sure that what a folder lists is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: Path, value: Any) -> None:
    """Put one value behind those of a file of lines, each with its checksum, and wait for the disk."""
    new = not path.exists()
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    with open(path, "ab") as file:
        file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def read_lines(path: Path) -> tuple[list[Any], int]:
    """The values of a file of lines up to the first broken one, and the number of bytes that they take.

    A line that was being written when the power went is broken, and so is whatever stands behind it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    values, good = [], 0
    for line in content.splitlines(keepends=True):
        check, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text):
            break
        values.append(json.loads(text))
        good += len(line)
    return values, good


def cut(path: Path, size: int) -> None:
    """Drop what stands in a file behind ``size`` bytes."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
