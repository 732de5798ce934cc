"""Ray's part of a study: a pool of actors that is sent tasks, and what comes back of them.

Ray is told not to do anything twice by itself: a task whose actor dies is gone, and whoever sent it finds out
by what is missing. An actor opens a model once, and a dead one is replaced. Nothing here knows what is asked.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from seeing.study.settings import StudyError
from seeing.study.units import Entry, Task

#: Workers that may die in a row while they open their model, before nobody tries any more.
DEATHS = 3

_KILLED = (
    " (mostly the system kills a worker that has too little memory for its model: use fewer workers, or "
    "larger machines)"
)


@dataclass(frozen=True)
class Share:
    """How many workers there are, and what each of them has."""

    workers: int
    cpus: float
    gpus: float

    @classmethod
    def of(
        cls,
        nodes: Sequence[Mapping[str, float]],
        workers: int | None = None,
        gpus: float | None = None,
        cpus: float | None = None,
    ) -> Share:
        """A share of these nodes, each with its "CPU" and "GPU"; what is None goes by what is there.

        One worker a GPU, and its node's CPUs shared out in the same way; without GPUs, a worker for two CPUs.
        """
        n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if n_gpus == 0 or gpus == 0:
            n_cpus = sum(node.get("CPU", 0) for node in nodes)
            if workers is None:
                workers = max(1, sum(int(node.get("CPU", 0) / (cpus or 2)) for node in nodes))
            return cls(workers, _whole(n_cpus / workers) if cpus is None else cpus, gpus or 0.0)
        if workers is None:
            workers = max(1, int(n_gpus / (gpus or 1)))
        if gpus is None:
            # A share lies on one GPU: three workers on two GPUs get a half each.
            gpus = 1 / math.ceil(workers / n_gpus) if workers > n_gpus else 1.0
        if cpus is None:
            cpus = min(_whole(node["CPU"] * gpus / node["GPU"]) for node in nodes if node.get("GPU"))
        return cls(workers, cpus, gpus)

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def __str__(self) -> str:
        return f"{self.workers} workers with {self.cpus:g} CPUs and {self.gpus:g} GPUs each"


def _whole(cpus: float) -> float:
    """Whole CPUs, where there is one."""
    return float(int(cpus)) if cpus >= 1 else cpus


class Openings:
    """How many workers have begun to open their model since the last one that has it open."""

    def __init__(self) -> None:
        self._begun = 0

    def begun(self) -> int:
        self._begun += 1
        return self._begun

    def done(self) -> None:
        self._begun = 0


class Seat:
    """An actor: a worker that it made, and what that answers.

    What the worker raises is handed back as it is, also what it raised when it was made. An actor that Ray
    itself sees fail would only be made again, as one that dies is, without end: so deaths are counted.
    """

    def __init__(self, make: Callable[..., Any], arguments: Sequence[Any], openings: Any, most: int):
        import ray

        if ray.get(openings.begun.remote()) > most:
            self._worker: Any = Raised.of(StudyError(f"workers die while they open their model{_KILLED}"))
        else:
            self._worker = tried(make, *arguments)
            ray.get(openings.done.remote())

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        if isinstance(self._worker, Raised):
            yield _message(error=self._worker.packed)
            return
        (task,) = map(pickle.loads, batch["task"].to_pylist())
        entries = self._worker.answer(task)
        while (entry := tried(next, entries, None)) is not None:
            if isinstance(entry, Raised):
                yield _message(error=entry.packed)
                return
            yield _message(entry=json.dumps(entry.as_dict()))


def answers(
    make: Callable[..., Any], arguments: Sequence[Any], tasks: Sequence[Task], share: Share
) -> Iterator[Entry]:
    """The entries of a pool of ``make(*arguments)``, as they come, each task sent once.

    Raises what a worker raised.
    """
    import ray
    from ray.data import ActorPoolStrategy, from_items

    size = min(share.workers, len(tasks))
    openings = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Openings).remote()
    with _quiet(), warnings.catch_warnings():
        # Ray announces that max_restarts and its kin go away in 2.64, which `seeing[ray]` excludes.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        tables = (
            from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
            .map_batches(
                Seat,
                fn_constructor_args=(make, arguments, openings, size + DEATHS),
                compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=share.cpus,
                num_gpus=share.gpus,
                max_restarts=-1,
                max_task_retries=0,
            )
            .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        )
        # Closed, it takes its actors down, also where nobody wants the rest.
        with closing(message for table in tables for message in table.to_pylist()) as messages:
            for message in messages:
                if message["error"] is not None:
                    Raised(message["error"]).again()
                yield Entry(**json.loads(message["entry"]))


def _message(entry: str | None = None, error: bytes | None = None) -> pa.Table:
    return pa.table({"entry": pa.array([entry], pa.string()), "error": pa.array([error], pa.binary())})


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data, set for entries that leave their actors one by one, and saying nothing of actors that die."""
    from ray.data import DataContext

    settings = {
        "target_max_block_size": 1,  # an entry leaves its actor at once
        "max_errored_blocks": -1,  # what an actor took with it is found out by what is missing
        "enable_progress_bars": False,
        "print_on_execution_start": False,
    }
    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    before, level = {name: getattr(context, name) for name in settings if hasattr(context, name)}, log.level
    for name in before:
        setattr(context, name, settings[name])
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


# -- what was raised in another process ---------------------------------------------------------------


@dataclass(frozen=True)
class Raised:
    """An exception and its traceback, on their way from one process to another."""

    packed: bytes

    @classmethod
    def of(cls, error: Exception) -> Raised:
        trace = "".join(traceback.format_exception(error))
        try:
            packed = pickle.dumps((error, trace))
            pickle.loads(packed)
        except Exception:  # noqa: BLE001 (an exception may hold anything, and be made of anything)
            packed = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return cls(packed)

    def again(self) -> None:
        """Raise it here, with a note of where it comes from."""
        error, trace = pickle.loads(self.packed)
        error.add_note(f"In a worker on Ray:\n{trace}")
        raise error


def tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, or what it raised."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001 (raised again in the process that asked)
        return Raised.of(error)


@contextmanager
def said_as_ours(name: str) -> Iterator[None]:
    """Turn what Ray says of workers that it can't keep alive into one line."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        found = str(error).strip().splitlines() or [type(error).__name__]
        raise StudyError(f"Ray can't keep a worker of {name} alive: {found[0]}{_KILLED}") from error
