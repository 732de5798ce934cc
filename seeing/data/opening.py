"""`open_data`: whatever a data set is written as, opened.

    plates:64, plates:SPLIT:N, plates:SPLIT:N:SEED   the embedded task
    FOLDER with metadata.json                        the layout of the authors' release
    FOLDER that save_to_disk wrote, or of data files through the library `datasets`
    FILE.jsonl, .json, .csv, .tsv, .parquet          Visual-CoT's lines, lists, COCO's tables, other tables
    hub:owner/name, hub:owner/name:split             a name on the Hugging Face Hub

Behind a question mark stand options: `docvqa.jsonl?images=pictures&question=query&limit=100`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path

from seeing.data.coco import Coco, is_coco
from seeing.data.dataset import Dataset
from seeing.data.failures import BadData, BadSample
from seeing.data.fields import Columns
from seeing.data.folder import METADATA, JsonList, read_json
from seeing.data.given import Given, Plates
from seeing.data.hub import SAVED, open_folder, open_hub, open_saved
from seeing.data.records import Records
from seeing.data.samples import EvidenceSample
from seeing.data.spec import Spec, from_home
from seeing.data.tables import CsvRows, ParquetRows
from seeing.data.visualcot import JsonLines

__all__ = ["BadData", "BadSample", "Dataset", "open_data"]

#: Files that hold pickled objects, which run code when they are read.
_PICKLES = (".p", ".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib")
_PACKED = (".gz", ".zip", ".zst", ".bz2", ".xz", ".tar", ".tgz")


def open_data(
    data: str | PathLike | Iterable[EvidenceSample] | Dataset,
    *,
    columns: Mapping[str, str] | None = None,
    images: str | PathLike | None = None,
    limit: int | None = None,
    split: str | None = None,
    box_format: str | None = None,
    name: str | None = None,
) -> Dataset:
    """A data set, of which no picture is opened yet.

    Args:
        data: a text as above, a path, samples, or a data set.
        columns: the names under which records keep `id`, `image`, `question`, `answers`, `boxes`, `width` and
            `height`, where they are not the usual ones. An empty name leaves a field out.
        images: the folder that pictures are looked for in.
        limit: the first so many samples only.
        split: of a data set with several.
        box_format: "xyxy" or "xywh" in pixels, or "fraction": xyxy as fractions of the picture's sides.
        name: what tables call it.

    Raises:
        BadData: nothing is there, or what is there is no data set. What is wrong with single samples is
            raised by `sample`, one by one.
    """
    options = {"images": images and fspath(images), "split": split, "box_format": box_format, "name": name}
    if not isinstance(data, (str, PathLike)):
        if columns or any(options.values()):
            raise BadData(
                "columns, images, split, box_format and name are for data in files, not for samples"
            )
        found = data if isinstance(data, Dataset) else Given(_several(data))
        return found if limit is None else found.first(limit)
    Columns.mapped(columns or {})  # says which field is none
    spec = Spec.parse(data) if isinstance(data, str) else Spec(fspath(data))
    spec = spec.with_options(**(columns or {}), **options)
    limit = spec.limit if limit is None else limit
    found = _opened(Spec(spec.where, {key: one for key, one in spec.options.items() if key != "limit"}))
    if isinstance(found, Records):
        found.check_columns(spec.columns)
    return found if limit is None else found.first(limit)


def _several(data: Iterable[EvidenceSample]) -> Iterable[EvidenceSample]:
    if isinstance(data, EvidenceSample):
        return [data]
    if not isinstance(data, Iterable):
        raise BadData(f"data is a path, a text such as plates:64, or samples; got {type(data).__name__}")
    return data


def _opened(spec: Spec) -> Dataset:
    if spec.where.startswith("plates:"):
        return Plates(spec)
    if spec.where.startswith("hub:"):
        return open_hub(spec)
    path = from_home(spec.where)
    try:
        if path.is_dir():
            return _folder(spec, path.absolute())
        if path.is_file():
            return _file(spec, path.absolute())
    except OSError as error:
        raise BadData(f"can't open {spec.where!r:.200}: {error.strerror or error}") from error
    raise BadData(f"no data set at {spec.where!r:.200}; give a file, a folder, plates:N or hub:owner/name")


def _folder(spec: Spec, folder: Path) -> Dataset:
    if (folder / METADATA).is_file():
        return _file(spec, folder / METADATA)
    if (folder / "metadata.jsonl").is_file():
        return JsonLines(spec, folder / "metadata.jsonl", folder.name)
    if any((folder / name).is_file() for name in SAVED):
        return open_saved(spec, folder)
    if not any(folder.iterdir()):
        raise BadData(f"{folder} is empty")
    return open_folder(spec, folder)


def _file(spec: Spec, path: Path) -> Dataset:
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        return JsonLines(spec, path)
    if kind == ".json":
        return _json(spec, path)
    if kind in (".csv", ".tsv"):
        return CsvRows(spec, path, "\t" if kind == ".tsv" else ",")
    if kind == ".parquet":
        return ParquetRows(spec, path)
    if kind in _PICKLES:
        raise BadData(
            f"{path} may hold pickled objects, which run code when read; export it as JSON or Parquet"
        )
    if kind in _PACKED:
        raise BadData(f"{path} is packed; unpack it first")
    raise BadData(f"{path} is of no kind that is read; expected .jsonl, .json, .csv, .tsv or .parquet")


def _json(spec: Spec, path: Path) -> Dataset:
    try:
        found = read_json(path)
    except BadData:
        # The Hub names JSON lines .json too; then the first line is an object by itself.
        with suppress(BadData):
            lines = JsonLines(spec, path)
            if len(lines) > 1 and lines.begins_well():
                return lines
        raise
    return Coco(spec, path, found) if is_coco(found) else JsonList(spec, path, found)
