"""What the library `datasets` reads: a folder it wrote, a folder of data files, or a name on the Hub.

Rows are taken as they are stored, so no picture is decoded on the way and none is read before it is asked
for. No program that comes with a data set is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seeing.data.failures import BadData
from seeing.data.records import Records
from seeing.data.spec import Spec

#: The files by which a folder shows that `save_to_disk` wrote it.
SAVED = ("state.json", "dataset_dict.json")


class Hub(Records):
    """Rows of a `datasets.Dataset`."""

    def __init__(self, spec: Spec, path: Path, name: str, rows: Any) -> None:
        super().__init__(spec, path, name)
        self._rows = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, i: int) -> Mapping[str, Any]:
        row = self._rows[self._within(i)]
        return {name: row[name][0].as_py() for name in row.column_names}

    def light(self, i: int) -> Mapping[str, Any]:
        row = self._rows[self._within(i)]
        return {name: _without_bytes(row[name]) for name in row.column_names}


def open_saved(spec: Spec, folder: Path) -> Records:
    """A folder that `save_to_disk` wrote. Raises BadData."""
    datasets = _library(str(folder))
    try:
        found = datasets.load_from_disk(str(folder))
    except _failures(datasets) as error:
        raise BadData(f"can't open {folder}: {_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        found = found[_split(spec, list(found), str(folder))]
    return _rows(spec, folder, folder.name, found)


def open_folder(spec: Spec, folder: Path) -> Records:
    """A folder of data files (Parquet, CSV, JSON, pictures) as the Hub keeps them. Raises BadData."""
    return _rows(spec, folder, folder.name, _loaded(spec, str(folder)))


def open_hub(spec: Spec) -> Records:
    """`hub:owner/name` or `hub:owner/name:split`. Raises BadData."""
    _, id, *split = spec.where.split(":")
    if not id or len(split) > 1 or (split and "split" in spec.options):
        raise BadData(f"{spec.where!r} is no hub:owner/name or hub:owner/name:split")
    rows = _loaded(spec.with_options(split=split[0] if split else None), id)
    return _rows(spec, None, id.rpartition("/")[2], rows)


def _rows(spec: Spec, path: Path | None, name: str, rows: Any) -> Records:
    if not len(rows):
        raise BadData(f"{spec.where} holds no samples")
    return Hub(spec, path, name, rows)


def _loaded(spec: Spec, where: str) -> Any:
    datasets = _library(where)
    chosen = {key: spec.options[key] for key in ("revision",) if key in spec.options}
    config = spec.options.get("config")
    try:
        splits = datasets.get_dataset_split_names(where, config, **chosen)
        split = _split(spec, splits, where)
        return datasets.load_dataset(where, config, split=split, **chosen)
    except BadData:
        raise
    except _failures(datasets) as error:
        raise BadData(f"can't open {where} with the library datasets: {_line(error)}") from error


def _split(spec: Spec, splits: list[str], where: str) -> str:
    chosen = spec.options.get("split")
    if chosen is None and len(splits) == 1:
        return splits[0]
    if chosen not in splits:
        said = "is not among the splits" if chosen else "has several splits"
        raise BadData(f"{chosen or where} {said}; say split=, one of {', '.join(map(str, splits))}")
    return chosen


def _library(where: str) -> Any:
    if find_spec("datasets") is None:
        raise BadData(f"{where} is read with the library datasets: pip install 'seeing[hub]'")
    import datasets

    return datasets


def _failures(datasets: Any) -> tuple[type[Exception], ...]:
    """What the library raises for data that is not there, or not of its kind."""
    own = datasets.exceptions.DatasetsError
    return (own, OSError, ValueError, RuntimeError, LookupError, TypeError, NotImplementedError, ImportError)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _without_bytes(column: pa.ChunkedArray) -> Any:
    """One row's value, without the bytes of pictures: of a picture its path, of several theirs."""
    kind = column.type
    if _is_picture(kind):
        return {"path": pc.struct_field(column, "path")[0].as_py()}
    if pa.types.is_list(kind) and _is_picture(kind.value_type):
        return [{"path": path} for path in pc.struct_field(pc.list_flatten(column), "path").to_pylist()]
    return None if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else column[0].as_py()


def _is_picture(kind: pa.DataType) -> bool:
    """Whether values are pictures as the library stores them, `{"bytes", "path"}`."""
    return pa.types.is_struct(kind) and {one.name for one in kind} == {"bytes", "path"}
