"""The engine that runs here: one process, one model, one unit after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from seeing.study.answering import Worker
from seeing.study.job import Job
from seeing.study.preparing import Prepared, prepare
from seeing.study.units import Entry, Task
from seeing.vlm import VLM


@runtime_checkable
class Engine(Protocol):
    """What answers a study's units, somewhere."""

    def prepare(self, job: Job) -> Prepared:
        """Open the job's model and look at it."""

    def run(self, job: Job, tasks: Iterable[Task]) -> Iterator[Entry]:
        """The entries of all tasks, each unit's ending with `Entry.end`; of several units in any order."""


class Local:
    """Runs units in this process. The model is opened once, for `prepare` and `run`."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._vlm: VLM | None = None

    def prepare(self, job: Job) -> Prepared:
        return prepare(job, self._open(job))

    def run(self, job: Job, tasks: Iterable[Task]) -> Iterator[Entry]:
        worker = Worker(job, self._open(job))
        for task in tasks:
            yield from worker.answer(task)

    def _open(self, job: Job) -> VLM:
        if self._name != job.name:
            # The model before is let go of first: two may not fit.
            self._name = self._vlm = None
            self._name, self._vlm = job.name, job.open()
        return self._vlm
