"""A study to read: the rows, failures and settings of one results folder, or of several that belong together.

Folders are joined when they say the same of what they share. Two that contradict each other (another answer
to the same question, another method of the same name) are refused: a table of both would compare nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from seeing.study.columns import FAILURE, KEY
from seeing.study.folder import read_document, read_failures, read_rows
from seeing.study.settings import StudyError, differences

#: Settings without which answers can't be compared, whatever model gave them.
_FOR_ALL = ("prompt", "max_new_tokens")


@dataclass(frozen=True, eq=False)
class Study:
    """What a study found.

    Attributes:
        rows: a line an answer, by the columns of `seeing.study.columns.SCHEMA`.
        failures: a line a failure, by `seeing.study.columns.FAILURE`; a method of None stands for all.
        documents: what each folder's ``study.json`` says.
        folders: where they are.
    """

    rows: pd.DataFrame
    failures: pd.DataFrame
    documents: tuple[Mapping[str, Any], ...]
    folders: tuple[Path, ...]

    @classmethod
    def open(cls, *folders: str | Path) -> Study:
        """Read one folder, or join several. A folder may be read while the study runs.

        A row that several folders have counts once. Raises `StudyError` for a folder that holds no study,
        and for folders that contradict each other.
        """
        if not folders:
            raise StudyError("found no folder to read; give the folder of a study")
        paths = tuple(Path(folder) for folder in folders)
        documents = tuple(read_document(path) for path in paths)
        for place, document in enumerate(documents):
            for earlier in range(place):
                _agree(documents[earlier], document, paths[earlier], paths[place])
        frames = [read_rows(path).to_pandas().assign(_folder=place) for place, path in enumerate(paths)]
        rows = _joined(pd.concat(frames, ignore_index=True), paths)
        found = [failure for path in paths for failure in read_failures(path)]
        failures = pd.DataFrame(found, columns=list(FAILURE)).drop_duplicates(ignore_index=True)
        failures["method"] = failures["method"].astype(object).where(failures["method"].notna(), None)
        return cls(rows, failures, documents, paths)

    @property
    def settings(self) -> tuple[Mapping[str, Any], ...]:
        """The settings of each folder."""
        return tuple(document["settings"] for document in self.documents)

    @property
    def models(self) -> tuple[str, ...]:
        return self._names("models", "model")

    @property
    def data(self) -> tuple[str, ...]:
        return self._names("data", "data")

    @property
    def methods(self) -> tuple[str, ...]:
        return self._names("methods", "method")

    def only(
        self,
        models: Iterable[str] | None = None,
        data: Iterable[str] | None = None,
        methods: Iterable[str] | None = None,
    ) -> Study:
        """The part of some models, data sets and methods, in the order given.

        Raises `StudyError` for names that the study does not have.
        """
        study = self
        for column, wanted, known in (
            ("model", models, self.models),
            ("data", data, self.data),
            ("method", methods, self.methods),
        ):
            if wanted is not None:
                study = study._only(column, list(dict.fromkeys(wanted)), known)
        return study

    def _only(self, column: str, wanted: Sequence[str], known: Sequence[str]) -> Study:
        for name in wanted:
            if name not in known:
                raise StudyError(f"found no {column} {name!r} in the study; it has {', '.join(known)}")
        order = {name: place for place, name in enumerate(wanted)}
        rows = self.rows[self.rows[column].isin(wanted)]
        rows = rows.sort_values(column, key=lambda names: names.map(order), kind="stable")
        of_all = self.failures[column].isna()  # what failed before any method was tried
        failures = self.failures[of_all | self.failures[column].isin(wanted)]
        key = {"model": "models", "data": "data", "method": "methods"}[column]
        documents = tuple(_cut(document, key, wanted) for document in self.documents)
        return replace(
            self,
            rows=rows.reset_index(drop=True),
            failures=failures.reset_index(drop=True),
            documents=documents,
        )

    def _names(self, settings: str, column: str) -> tuple[str, ...]:
        """The names in a column: as the settings order them, and then what only rows and failures name."""
        listed = [_name(entry) for one in self.settings for entry in one.get(settings, ())]
        there = [*self.rows[column].unique(), *self.failures[column].dropna().unique()]
        return tuple(dict.fromkeys([name for name in listed if name is not None] + there))

    def table(self, metric: str | Sequence[str] | None = None, layout: str = "methods", **options: Any):
        """A table of the study; see `seeing.study.layouts.table`."""
        from seeing.study.layouts import table

        return table(self, metric, layout, **options)


def _name(entry: Any) -> str | None:
    """What an entry of the settings is called in the rows."""
    if isinstance(entry, str):
        return entry
    return entry.get("text", entry.get("name"))


def _cut(document: Mapping[str, Any], key: str, wanted: Sequence[str]) -> Mapping[str, Any]:
    settings = document["settings"]
    entries = {_name(entry): entry for entry in settings.get(key, ())}
    return {
        **document,
        "settings": {**settings, key: [entries[name] for name in wanted if name in entries]},
    }


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], there: Path, here: Path) -> None:
    """Raise `StudyError` where two studies mean something else by the same name."""
    ours, theirs = one["settings"], other["settings"]
    found = [line for key in _FOR_ALL for line in differences(ours.get(key), theirs.get(key), key)]
    if _by_name(ours, "models").keys() & _by_name(theirs, "models").keys():
        found += differences(ours.get("seed"), theirs.get("seed"), "seed")
        profiles = ours.get("profile"), theirs.get("profile")
        if None not in profiles:  # methods that were asked without a profile need none
            found += differences(*profiles, "profile")
    for entries in (
        (_by_name(ours, "models"), _by_name(theirs, "models")),
        (one.get("models", {}), other.get("models", {})),
        (_by_name(ours, "methods"), _by_name(theirs, "methods")),
    ):
        for name in sorted(entries[0].keys() & entries[1].keys()):
            found += differences(entries[0][name], entries[1][name], name)
    if found:
        raise StudyError(
            f"{there} and {here} can't be read as one study ({'; '.join(found)}); give them one at a time"
        )


def _by_name(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: entry for entry in settings.get(key, ()) if (name := _name(entry)) is not None}


def _joined(rows: pd.DataFrame, paths: Sequence[Path]) -> pd.DataFrame:
    """Each row once. Raises `StudyError` where two say something else of the same."""
    rows["truth"] = [tuple(truth) for truth in rows["truth"]]
    _one_story(rows, ["data", "sample"], ["question", "truth"], paths)
    _one_story(rows, list(KEY), ["answer"], paths)
    rows = rows.drop_duplicates(list(KEY), ignore_index=True)
    return rows.drop(columns="_folder")


def _one_story(rows: pd.DataFrame, key: list[str], told: list[str], paths: Sequence[Path]) -> None:
    stories = rows.drop_duplicates([*key, *told])
    again = stories[stories.duplicated(key, keep=False)]
    if again.empty:
        return
    _, of_first = next(iter(again.groupby(key, sort=False)))
    one, other = of_first.iloc[0], of_first.iloc[1]
    raise StudyError(
        f"{paths[one['_folder']]} and {paths[other['_folder']]} contradict each other on "
        f"{' · '.join(str(one[name]) for name in key)}: "
        + "; ".join(
            f"{name} {one[name]!r} in one, {other[name]!r} in the other"
            for name in told
            if one[name] != other[name]
        )
        + f" ({again.groupby(key).ngroups} such); give them one at a time"
    )
