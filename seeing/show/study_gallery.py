"""Samples of a study to look at: the question, the truth, every method's answer, and the picture where it is.

Samples are drawn in turn from every model, data set and outcome, so that the rare ones are there to be looked
at. Pictures come from the data sets, which may have moved since: what is not there as it was is not shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from seeing.data.dataset import BadData, BadSample, Dataset
from seeing.data.opening import open_data
from seeing.data.samples import EvidenceSample
from seeing.show.gallery import MOST_CHARACTERS, OUTCOMES, Answer, Rect, clean
from seeing.show.pictures import picture_uri
from seeing.study.study import Study

MOST_CARDS = 160
#: The longest data set that is looked through for the pictures.
LONGEST = 200_000


@dataclass(frozen=True)
class StudyCard:
    """One sample under one model, ready for the template, which escapes every text."""

    group: str
    sample: str
    question: str
    truth: str
    answers: tuple[Answer, ...]
    outcome: str
    picture: str = ""
    width: int = 0
    height: int = 0
    boxes: tuple[Rect, ...] = ()


def cards(
    study: Study, base: str | None, method: str | None, *, pictures: bool = True
) -> tuple[StudyCard, ...]:
    """At most MOST_CARDS, each with its picture as far as those fit into the page."""
    there = _Pictures(study) if pictures else None
    made, room = [], MOST_CHARACTERS
    for (model, data, sample), rows, outcome in chosen(study, base, method):
        own = rows.set_index("method")
        first = rows.iloc[0]
        shown = there.of(data, sample) if there is not None and room > 0 else {}
        room -= len(shown.get("picture", ""))
        made.append(
            StudyCard(
                group=clean(f"{model} · {data}"),
                sample=clean(sample),
                question=clean(first["question"]),
                truth=clean(" / ".join(dict.fromkeys(first["truth"]))),
                answers=tuple(
                    Answer(name, clean(own.at[name, "answer"]), bool(own.at[name, "correct"]))
                    for name in study.methods
                    if name in own.index
                ),
                outcome=outcome,
                **shown,
            )
        )
    return tuple(made)


def outcome(right: Mapping[str, bool], base: str | None, method: str | None) -> str:
    """What became of the base's answer under the method, or that one of the two is missing."""
    if base not in right or method not in right:
        return "not compared"
    before, after = right[base], right[method]
    if before == after:
        return "both right" if before else "both wrong"
    return "broken" if before else "fixed"


def chosen(
    study: Study, base: str | None, method: str | None
) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame, str]]:
    """(model, data, sample), its rows and its outcome: one in turn from each model, data set and outcome."""
    rows = study.rows
    wide = rows.pivot(index=["model", "data", "sample"], columns="method", values="correct")
    queues: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    ranked = (*OUTCOMES, "not compared")
    for key, right in zip(wide.index, wide.to_dict("records")):
        known = {name: bool(one) for name, one in right.items() if not pd.isna(one)}
        queues.setdefault((*key[:2], outcome(known, base, method)), []).append(key)
    order = sorted(queues, key=lambda key: ranked.index(key[2]))
    taken = [
        (queues[key][turn], key[2])
        for turn in range(max(map(len, queues.values()), default=0))
        for key in order
        if turn < len(queues[key])
    ][:MOST_CARDS]
    columns = ["model", "data", "sample"]
    picked = rows.merge(pd.DataFrame([key for key, _ in taken], columns=columns), on=columns)
    own = dict(list(picked.groupby(columns)))
    for key, found in taken:
        yield key, own[key], found


class _Pictures:
    """Pictures and boxes of samples, from the data sets as the study's settings name them."""

    def __init__(self, study: Study):
        self._entries = {
            entry["name"]: entry
            for settings in study.settings
            for entry in settings.get("data", ())
            if isinstance(entry, Mapping) and {"name", "spec"} <= entry.keys()
        }
        self._open: dict[str, tuple[Dataset, dict[str, int]] | None] = {}

    def of(self, data: str, sample: str) -> dict[str, Any]:
        """The picture's fields of a card; none where there is no such picture any more."""
        if data not in self._open:
            self._open[data] = self._opened(self._entries.get(data))
        there = self._open[data]
        if there is None or sample not in there[1]:
            return {}
        with suppress(BadSample):
            return _shown(there[0].sample(there[1][sample]))
        return {}

    def _opened(self, entry: Mapping[str, Any] | None) -> tuple[Dataset, dict[str, int]] | None:
        if entry is None or entry["spec"].startswith("hub:"):  # a report fetches nothing
            return None
        try:
            dataset = open_data(entry["spec"])
            if len(dataset) > LONGEST or dataset.fingerprint() != entry.get("fingerprint"):
                return None
        except (BadData, BadSample, OSError):
            return None
        return dataset, {dataset.id(number): number for number in range(len(dataset))}


def _shown(sample: EvidenceSample) -> dict[str, Any]:
    width, height = sample.image.size
    boxes = tuple(Rect(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in sample.boxes)
    return {"picture": picture_uri(sample.image), "width": width, "height": height, "boxes": boxes}
