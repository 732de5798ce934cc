"""What can be wrong: with a data set, with one sample of it, with one record on its way to a sample."""

from __future__ import annotations


class BadData(ValueError):
    """A data set that can't be opened at all."""


class BadSample(ValueError):
    """One sample that can't be had: its id, the reason in one line, and which kind of failure it is."""

    def __init__(self, id: str, reason: str, kind: str = "broken sample") -> None:
        super().__init__(id, reason, kind)
        self.id, self.reason, self.kind = id, " ".join(reason.split()), kind

    def __str__(self) -> str:
        return f"sample {self.id!r}: {self.reason}"


class Wrong(Exception):
    """What is wrong with a record: the kind of failure, and the reason. Who knows the id says the rest."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
