"""The folder of a study: what is in it survives whatever ends the process.

    study.json       what the study is, and who worked on it
    profiles/        the profile of each model
    rows/            a Parquet file a finished unit
    failures/        a JSON file a finished unit in which something failed
    journal/         a unit in progress: a line a batch and method, each on the disk before the next is begun
    study.lock       what processes lock, so that no unit is answered twice

A unit's journal becomes its Parquet file in one step, and only then goes away. Killed at any moment, a study
has every batch that it finished, and started again it does the others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seeing.study.columns import SCHEMA
from seeing.study.durable import append_line, cut, read_lines, write_whole
from seeing.study.folder import VERSION, gathered, read_document
from seeing.study.locks import Locks
from seeing.study.settings import StudyError, differences
from seeing.study.units import Entry, Unit


class Store:
    """A study's folder, to write in. ``with Store(folder, …) as store: …``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: Mapping[str, Any]):
        """Open a folder, or make it.

        Args:
            settings: of the study, as JSON gives them.
            run: who is at work, since when and with what; kept beside the settings.

        Raises `StudyError` for a folder of another study, with the difference, and for one that holds
        something else.
        """
        self.folder = Path(folder)
        _make(self.folder)
        self._locks = Locks(self.folder / "study.lock")
        try:
            with self._locks.alone():
                self._begin(settings, run)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._locks.close()

    def _begin(self, settings: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        path = self.folder / "study.json"
        document = None
        if path.exists():
            document = read_document(self.folder)
            found = list(differences(document["settings"], settings))
            if found and self._locks.only_one() and self._empty():
                # A mistake that was found before the first answer does not bind the folder.
                document = None
            elif found:
                raise StudyError(
                    f"{self.folder} holds a study with other settings ({'; '.join(found)}); go on with the "
                    f"settings that are there, or give another folder"
                )
        if document is None:
            for profile in (self.folder / "profiles").glob("*.json"):
                profile.unlink()
            document = {"seeing study": VERSION, "settings": settings, "models": {}, "runs": []}
        for name in ("rows", "failures", "journal", "profiles"):
            (self.folder / name).mkdir(exist_ok=True)
        document["runs"].append(dict(run))
        self._say(document)
        self._locks.join()

    def _empty(self) -> bool:
        """Whether nothing has been answered yet."""
        return not any(any((self.folder / name).glob("*")) for name in ("rows", "failures", "journal"))

    def _say(self, document: Mapping[str, Any]) -> None:
        write_whole(
            self.folder / "study.json", json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
        )

    # -- what is known of a model ------------------------------------------------------------------

    def know(self, model: str, facts: Mapping[str, Any]) -> None:
        """Keep what a model turned out to be.

        Raises `StudyError` where it is no longer what it was when the study began.
        """
        with self._locks.alone():
            document = read_document(self.folder)
            known = document["models"].setdefault(model, dict(facts))
            if found := list(differences(known, facts)):
                raise StudyError(
                    f"{model} is not the model that {self.folder} was begun with ({'; '.join(found)})"
                )
            self._say(document)

    def profile(self, name: str) -> str | None:
        """The text of a model's profile, where the folder has it."""
        path = self._profile(name)
        return path.read_text(encoding="utf-8") if path.exists() else None

    def keep_profile(self, name: str, text: str) -> str:
        """Keep a model's profile. Gives the one that counts: another process may have been first."""
        path = self._profile(name)
        with self._locks.alone():
            if not path.exists():
                write_whole(path, text.encode())
        return path.read_text(encoding="utf-8")

    def _profile(self, name: str) -> Path:
        return self.folder / "profiles" / f"{name}.json"

    # -- units -------------------------------------------------------------------------------------

    def take(self, unit: Unit) -> dict[str, int] | None:
        """Take a unit to work on. None where it is done, or another process has it.

        Gives the keys of the entries that are there, with the number of their rows and failures.
        """
        if self.sealed(unit) or not self._locks.take(unit.number):
            return None
        if self.sealed(unit):  # by the one that had it until now
            self._locks.give(unit.number)
            return None
        path = self._journal(unit)
        entries, size = read_lines(path)
        cut(path, size)
        return {entry["key"]: len(entry["rows"]) + len(entry["failures"]) for entry in entries}

    def give(self, unit: Unit) -> None:
        self._locks.give(unit.number)

    def write(self, unit: Unit, entry: Entry) -> None:
        """Put an entry on the disk. Raises `StudyError` where the disk takes no more."""
        with self._writing():
            append_line(self._journal(unit), entry.as_dict())

    def seal(self, unit: Unit) -> None:
        """Turn a unit's journal into its Parquet file. Raises `StudyError` where the disk takes no more."""
        path = self._journal(unit)
        rows, failures = gathered(read_lines(path)[0])
        with self._writing():
            if failures:
                content = json.dumps(failures, indent=1, ensure_ascii=False).encode() + b"\n"
                write_whole(self.folder / "failures" / f"{unit.name}.json", content)
            write_whole(self._part(unit), parquet(rows))
            path.unlink(missing_ok=True)

    def sealed(self, unit: Unit) -> bool:
        return self._part(unit).exists()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StudyError(
                f"can't write to {self.folder}: {error.strerror or error}; what was finished is kept, and "
                f"the same words go on with it"
            ) from error

    def _journal(self, unit: Unit) -> Path:
        return self.folder / "journal" / f"{unit.name}.jsonl"

    def _part(self, unit: Unit) -> Path:
        return self.folder / "rows" / f"{unit.name}.parquet"


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _make(folder: Path) -> None:
    """Make a folder for a study. Raises `StudyError` for one that has rows of something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise StudyError(f"can't write to {folder}: {error.strerror or error}") from error
    if "study.json" not in there and (foreign := there & {"rows", "journal", "failures"} - {"study.lock"}):
        if "study.lock" in there:  # killed before it had begun
            return
        raise StudyError(
            f"{folder} holds {', '.join(sorted(foreign))} and no study.json; give an empty or a new folder"
        )
