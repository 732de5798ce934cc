"""A data set hands out samples one at a time, and says of each one that it can't why.

A study runs for days over pictures that somebody else collected: one is missing, one is cut short, a box lies
outside. So nothing is opened before it is asked for, what is wrong with a sample is said when that sample is
opened, and the data set as a whole stands.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from seeing.data.failures import BadData, BadSample
from seeing.data.samples import EvidenceSample
from seeing.data.spec import Spec

__all__ = ["BadData", "BadSample", "Dataset", "First"]


class Dataset(ABC):
    """Samples by number, opened one at a time.

    `name` is short and stands in tables; `spec` is a text with which `open_data` opens the same again, in
    another process too; `has_boxes` says whether some sample has evidence boxes.
    """

    name: str
    spec: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def id(self, i: int) -> str:
        """The id of sample `i`: unique, and known without a picture. It does not depend on a limit."""

    @abstractmethod
    def sample(self, i: int) -> EvidenceSample:
        """Sample `i`, its picture read now. Raises BadSample."""

    @abstractmethod
    def said(self, n: int) -> Iterator[Any]:
        """What each of the first `n` samples says, its id too but not its picture, as JSON."""

    @property
    @abstractmethod
    def has_boxes(self) -> bool: ...

    @property
    def repeated_ids(self) -> Sequence[str]:
        """Ids that the source gives more than once; here each has one of its own."""
        return ()

    def fingerprint(self) -> str:
        """Hex digits that change with any id, question, answer, box or picture's name. Opens no picture."""
        found, written = hashlib.sha256(), json.JSONEncoder(sort_keys=True, default=str).encode
        for said in self.said(len(self)):
            found.update(written(said).encode() + b"\n")
        return found.hexdigest()

    def first(self, n: int) -> Dataset:
        """The first `n` samples, under the same ids."""
        if n < 1:
            raise BadData(f"a limit is 1 or more, got {n}")
        return self if n >= len(self) else First(self, n)

    def readable(self, told: Callable[[BadSample], None] | None = None) -> Iterator[EvidenceSample]:
        """The samples that can be had, in order; `told` hears of each that can't."""
        for i in range(len(self)):
            try:
                sample = self.sample(i)
            except BadSample as bad:
                if told is not None:
                    told(bad)
                continue
            yield sample

    def __iter__(self) -> Iterator[EvidenceSample]:
        """All samples, in order. Raises BadSample at the first that can't be had: see `readable`."""
        return (self.sample(i) for i in range(len(self)))

    def __reduce__(self):
        # Another process opens the files again: nothing that was read travels.
        from seeing.data.opening import open_data

        return open_data, (self.spec,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self)} samples, {self.spec}>"

    def _within(self, i: int) -> int:
        """`i`, which must be a number of a sample. Raises IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has samples 0 to {len(self) - 1}, asked for {i}")
        return i


class First(Dataset):
    """The first samples of another data set."""

    def __init__(self, whole: Dataset, n: int) -> None:
        self.whole, self.n, self.name = whole, n, whole.name
        self.spec = str(Spec.parse(whole.spec).with_options(limit=n))

    def __len__(self) -> int:
        return self.n

    def id(self, i: int) -> str:
        return self.whole.id(self._within(i))

    def sample(self, i: int) -> EvidenceSample:
        return self.whole.sample(self._within(i))

    def said(self, n: int) -> Iterator[Any]:
        return self.whole.said(min(n, self.n))

    @property
    def has_boxes(self) -> bool:
        return self.whole.has_boxes

    @property
    def repeated_ids(self) -> Sequence[str]:
        return self.whole.repeated_ids

    def first(self, n: int) -> Dataset:
        return self.whole.first(min(n, self.n)) if n >= 1 else super().first(n)
