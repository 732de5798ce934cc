"""JSON files: the layout of the authors' release, and lists of records in general.

A folder holds `metadata.json`, a list of records as in Visual-CoT's lines, and `images/`. `answers`, a list,
may stand for `answer`. Samples are numbered by their place in the file, as the authors number them, whatever
the limit. Other benchmarks put the list under `data`, beside a few words about themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seeing.data.failures import BadData, Wrong
from seeing.data.lines import check_text
from seeing.data.records import Records
from seeing.data.spec import Spec

#: The file that makes a folder a data set.
METADATA = "metadata.json"


class JsonList(Records):
    """A JSON file with a list of records."""

    def __init__(self, spec: Spec, path: Path, found: Any) -> None:
        super().__init__(spec, path, path.parent.name if path.name == METADATA else path.stem)
        listed = found.get("data") if isinstance(found, Mapping) else found
        if not isinstance(listed, list):
            keys = f"an object with {', '.join(map(repr, found))}" if isinstance(found, Mapping) else found
            raise BadData(
                f"{path} holds {keys!s:.200}; expected a list of records, an object with one as 'data', or "
                "COCO's 'images' and 'annotations'"
            )
        if not listed:
            raise BadData(f"{path} holds no samples")
        self._records = listed

    def __len__(self) -> int:
        return len(self._records)

    def record(self, i: int) -> Mapping[str, Any]:
        record = self._records[self._within(i)]
        if not isinstance(record, dict):
            raise Wrong("malformed line", f"record {i} is a {type(record).__name__}, expected an object")
        return record


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises BadData."""
    check_text(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.strip():
            return json.loads(text)
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text ({error})") from error
    except RecursionError as error:
        raise BadData(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise BadData(f"{path} is no JSON: {error}") from error
    raise BadData(f"{path} is empty")
