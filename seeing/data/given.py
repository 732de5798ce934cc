"""Samples that are there already: the embedded task, and those that a program made itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from seeing.data.dataset import Dataset
from seeing.data.failures import BadData
from seeing.data.plates import CHUNK, SPLITS, chunk_of_plates
from seeing.data.records import unique_ids
from seeing.data.samples import EvidenceSample
from seeing.data.spec import Spec, whole_number

#: The split that `plates:N` takes.
DEFAULT_SPLIT = "crowded"


class Plates(Dataset):
    """The embedded task: `plates:N`, `plates:SPLIT:N` or `plates:SPLIT:N:SEED`, painted when asked for."""

    has_boxes = True

    def __init__(self, spec: Spec) -> None:
        parts = spec.where.split(":")[1:]
        if not 1 <= len(parts) <= 3:
            raise BadData(f"{spec.where!r} is no plates:N, plates:SPLIT:N or plates:SPLIT:N:SEED")
        split, n, seed = [DEFAULT_SPLIT, *parts, "0"] if len(parts) == 1 else [*parts, "0"][:3]
        if split not in SPLITS:
            raise BadData(f"no split {split!r} of plates; the splits are {', '.join(SPLITS)}")
        self._split, self._n = split, whole_number("the number of plates", n)
        self._seed = whole_number("the seed of plates", seed, least=0)
        self.spec = str(Spec(f"plates:{split}:{self._n}:{self._seed}", spec.options))
        self.name = spec.options.get("name") or f"plates-{split}" + (f"-{self._seed}" if self._seed else "")

    def __len__(self) -> int:
        return self._n

    def id(self, i: int) -> str:
        return f"plates/{self._split}/{self._seed}/{self._within(i)}"

    def sample(self, i: int) -> EvidenceSample:
        return _painted(self._split, self._seed, self._within(i) // CHUNK)[i % CHUNK]

    def said(self, n: int) -> Iterator[Any]:
        yield {"split": self._split, "seed": self._seed, "n": n}
        # All follows from these; the first questions and answers tell if drawing changes.
        for sample in _painted(self._split, self._seed, 0)[:n]:
            yield _words(sample)

    def first(self, n: int) -> Dataset:
        options = Spec.parse(self.spec).options
        return (
            super().first(n)
            if not 1 <= n < self._n
            else Plates(Spec(f"plates:{self._split}:{n}:{self._seed}", options))
        )


class Given(Dataset):
    """Samples in memory. They travel to another process as they are."""

    def __init__(self, samples: Iterable[EvidenceSample], name: str = "samples") -> None:
        found = list(samples)
        for one in found:
            if not isinstance(one, EvidenceSample):
                raise BadData(f"samples are EvidenceSamples, got {type(one).__name__}")
        if not found:
            raise BadData("no samples were given")
        ids, self._repeated = unique_ids([one.id for one in found])
        self._samples = [
            one if one.id == id else replace(one, id=id) for one, id in zip(found, ids, strict=True)
        ]
        self.name, self.spec = name, f"samples:{name}"

    def __len__(self) -> int:
        return len(self._samples)

    def id(self, i: int) -> str:
        return self._samples[self._within(i)].id

    def sample(self, i: int) -> EvidenceSample:
        return self._samples[self._within(i)]

    def said(self, n: int) -> Iterator[Any]:
        for sample in self._samples[:n]:
            pixels = hashlib.sha256(sample.image.tobytes()).hexdigest()
            yield {**_words(sample), "image": pixels, "size": sample.image.size}

    @property
    def has_boxes(self) -> bool:
        return any(sample.boxes for sample in self._samples)

    @property
    def repeated_ids(self) -> Sequence[str]:
        return self._repeated

    def first(self, n: int) -> Dataset:
        return super().first(n) if n < 1 else Given(self._samples[:n], self.name)

    def __reduce__(self):
        return Given, (self._samples, self.name)


def _words(sample: EvidenceSample) -> dict[str, Any]:
    return {key: getattr(sample, key) for key in ("id", "question", "answers", "boxes")}


@lru_cache(maxsize=2)
def _painted(split: str, seed: int, chunk: int) -> list[EvidenceSample]:
    return chunk_of_plates(split, seed, chunk)
