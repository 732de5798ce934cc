"""What stands in the folder of a study, read: its settings, its rows, its failures.

A folder can be read at any time, also while somebody works in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seeing.study.columns import SCHEMA
from seeing.study.durable import read_lines
from seeing.study.settings import StudyError

#: What this code writes and reads.
VERSION = 1


def read_document(folder: Path) -> dict[str, Any]:
    """What ``study.json`` says. Raises `StudyError` for a folder that holds no study."""
    path = Path(folder) / "study.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{folder} holds no study: there is no study.json") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} can't be read: {error}") from error
    if not isinstance(document, dict) or document.get("seeing study") != VERSION:
        raise StudyError(f"{path} says no 'seeing study': {VERSION}; it was not written by this version")
    return document


def read_rows(folder: Path) -> pa.Table:
    """All rows of a study, by `SCHEMA`: those of finished units, and of those in progress."""
    # Journals first: one that is sealed meanwhile is then found among the parts, and counted once.
    journals = _journals(folder)
    parts = sorted((Path(folder) / "rows").glob("*.parquet"))
    sealed = {part.stem for part in parts}
    tables = [SCHEMA.empty_table(), *(_part(part) for part in parts)]
    for name, entries in journals.items():
        if name not in sealed:
            tables.append(pa.Table.from_pylist(gathered(entries)[0], schema=SCHEMA))
    return pa.concat_tables(tables)


def read_failures(folder: Path) -> list[dict[str, Any]]:
    """All failures of a study, as `columns.FAILURE` has them."""
    journals = _journals(folder)
    sealed = {part.stem for part in (Path(folder) / "rows").glob("*.parquet")}
    found = []
    for path in sorted((Path(folder) / "failures").glob("*.json")):
        if path.stem in sealed:
            found += json.loads(path.read_text(encoding="utf-8"))
    for name, entries in journals.items():
        if name not in sealed:
            found += gathered(entries)[1]
    return found


def gathered(entries: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and failures of a unit's entries, each key once, in the order of the samples and methods."""
    own = {entry["key"]: entry for entry in reversed(entries)}.values()
    rows = sorted((row for entry in own for row in entry["rows"]), key=lambda row: row["place"])
    failures = sorted(
        (one for entry in own for one in entry["failures"]),
        key=lambda one: (one["sample"], one["method"] or ""),
    )
    return [{name: value for name, value in row.items() if name != "place"} for row in rows], failures


def _journals(folder: Path) -> dict[str, list[Any]]:
    return {path.stem: read_lines(path)[0] for path in sorted((Path(folder) / "journal").glob("*.jsonl"))}


def _part(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowInvalid, OSError) as error:
        raise StudyError(
            f"{path} can't be read ({error}); take it away, and the study does its unit again"
        ) from error
