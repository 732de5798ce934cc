"""The engine of a model that several processes share: rank 0 keeps the study, the others answer along.

Under tensor parallelism every rank has to run the same passes in the same order. So rank 0 plans, opens the
folder and writes, and says to the others what it does next: which model it opens, which unit it answers. They
do the same and keep nothing. All ranks call `run`, started by torchrun:

    on_ranks.run("Qwen/Qwen2.5-VL-72B-Instruct", data, methods, "results", load={"tp_plan": "auto"})
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist

from seeing.study import running
from seeing.study.job import Job
from seeing.study.local import Local
from seeing.study.preparing import Prepared
from seeing.study.settings import StudyError
from seeing.study.study import Study
from seeing.study.units import Entry, Task


class OnRanks:
    """Rank 0's engine; elsewhere `follow`."""

    def __init__(self) -> None:
        self._here = Local()
        # Of its own, on the CPU, beside the one that the model gathers with.
        self._group = dist.new_group(backend="gloo")

    def prepare(self, job: Job) -> Prepared:
        self._tell(("prepare", job))
        return self._here.prepare(job)

    def run(self, job: Job, tasks: Iterable[Task]) -> Iterator[Entry]:
        self._tell(("run", job))
        yield from self._here.run(job, self._told(tasks))

    def end(self) -> None:
        """There is nothing more to follow."""
        self._tell(None)

    def follow(self) -> None:
        """Do what rank 0 does, and keep none of it, until it ends."""
        while (said := self._tell()) is not None:
            what, job = said
            if what == "prepare":
                self._here.prepare(job)
            else:
                for _ in self._here.run(job, iter(self._tell, None)):
                    pass

    def _told(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for task in tasks:
            self._tell(task)
            yield task
        self._tell(None)

    def _tell(self, said: Any = None) -> Any:
        """What rank 0 says, on every rank."""
        holder = [said]
        dist.broadcast_object_list(holder, src=0, group=self._group)
        return holder[0]


def run(models: Any, data: Any, methods: Any, out: str | PathLike, **settings: Any) -> Study:
    """`seeing.study.run` of models that all ranks share, which all ranks call alike.

    Where rank 0 fails it raises, and torchrun ends the others.
    """
    _meet()
    engine = OnRanks()
    if dist.get_rank():
        engine.follow()
        return Study.open(out)
    found = running.run(models, data, methods, out, engine=engine, **settings)
    engine.end()
    return found


def _meet() -> None:
    """Join the ranks that torchrun started, each with its own device."""
    if dist.is_initialized():
        return
    if "WORLD_SIZE" not in os.environ:
        raise StudyError("a model is shared between processes, and this one is alone: start it with torchrun")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
