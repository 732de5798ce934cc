"""The engine that runs on Ray: a pool of Ray Data's actors, one open model in each, on one machine or many.

A unit goes to whichever actor is free, and each of its entries comes back as soon as it is there. What this
process has heard is all that counts: Ray is told not to do anything twice by itself. When actors die, Ray
replaces them, and what they left undone is sent out again in a next round, without the entries that were
heard. So an entry is never lost and never double, wherever a machine was pulled out.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from seeing.study.answering import Worker
from seeing.study.job import Job
from seeing.study.preparing import Prepared, prepare
from seeing.study.settings import StudyError
from seeing.study.units import Entry, Task

#: Rounds in a row in which a unit may bring nothing new, before it is given up.
ROUNDS = 3

#: How often Ray replaces an actor that dies. One that is dead for good is missed until the next round only.
RESTARTS = 3

#: Bytes of a local cluster's object store: entries are small, and nothing else goes through it.
STORE = 200 * 2**20


class OnRay:
    """Runs units on Ray.

    Args:
        workers: how many, each with a model of its own. By default one a GPU; without GPUs, one for two CPUs.
        address: of a cluster that runs already, "auto" for the one of this machine. By default the one that
            `RAY_ADDRESS` names, and without it a local one, which is started for the run and ended after it.
        num_gpus, num_cpus: of each worker. By default the cluster's, shared out among the workers; where
            there are GPUs, a worker has at most one, and a model that needs more says so here.

    A cluster that this process is connected to already is used as it is, and left running.
    """

    #: What sits in each actor: made of a job, it answers tasks.
    worker: type = Worker

    def __init__(
        self,
        workers: int | None = None,
        address: str | None = None,
        num_gpus: float | None = None,
        num_cpus: float | None = None,
    ):
        if workers is not None and workers < 1:
            raise StudyError(f"a study on Ray needs 1 worker or more, got {workers}")
        for name, value in (("num_gpus", num_gpus), ("num_cpus", num_cpus)):
            if value is not None and value < 0:
                raise StudyError(f"{name} of a worker is 0 or more, got {value}")
        self.workers, self.address, self.num_gpus, self.num_cpus = workers, address, num_gpus, num_cpus
        _ray()

    def prepare(self, job: Job) -> Prepared:
        """Open the job's model on one worker, and look at it."""
        _travelling(job)
        ray = _ray()
        with self._connected() as share, _said_as_ours(ray, job):
            # The process ends with the task, and lets go of the model that it opened.
            remote = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_calls=1, max_retries=RESTARTS)
            return _opened(ray.get(remote(_prepared).remote(job, share.threads, os.getcwd())))

    def run(self, job: Job, tasks: Iterable[Task]) -> Iterator[Entry]:
        """The entries of all tasks, each unit's ending with its last one; of several units in any order.

        Raises what `Worker` raises, and `StudyError` at the end for units that nobody could answer.
        """
        _travelling(job)
        left = {task.unit.number: task for task in tasks}
        in_vain = dict.fromkeys(left, 0)
        with self._connected() as share:
            while sent := [task for number, task in left.items() if in_vain[number] < ROUNDS]:
                heard: set[int] = set()
                for entry in _round(self.worker, job, sent, share):
                    task = left.get(entry.unit)
                    if task is None or entry.key in task.done:
                        continue
                    heard.add(entry.unit)
                    left[entry.unit] = replace(task, done=task.done | {entry.key})
                    if entry.last:
                        del left[entry.unit]
                    yield entry
                for task in sent:
                    number = task.unit.number
                    in_vain[number] = 0 if number in heard else in_vain[number] + 1
        if left:
            raise StudyError(_given_up(job, list(left.values())))

    @contextmanager
    def _connected(self) -> Iterator[_Share]:
        """What each worker gets of a cluster. One that is started here ends with the context."""
        ray = _ray()
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, self.address)
        try:
            yield self._share(ray.cluster_resources())
        finally:
            if ours:
                ray.shutdown()

    def _share(self, there: dict[str, float]) -> _Share:
        """A worker's part of what is there."""
        cpus, gpus = there.get("CPU", 1.0), int(there.get("GPU", 0))
        wants_gpu = bool(gpus) if self.num_gpus is None else self.num_gpus > 0
        workers = self.workers
        if workers is None:
            workers = int(gpus / (self.num_gpus or 1)) if wants_gpu else int(cpus / (self.num_cpus or 2))
            workers = max(1, workers)
        # A worker's share must lie on one GPU: three workers on two GPUs get a half each.
        own_gpus = self.num_gpus
        if own_gpus is None:
            own_gpus = min(1.0, 1 / math.ceil(workers / gpus)) if gpus else 0.0
        own_cpus = self.num_cpus
        if own_cpus is None:
            own_cpus = cpus / workers if cpus < workers else float(cpus // workers)
        share = _Share(workers, own_cpus, own_gpus)
        if own_gpus * workers > gpus or own_cpus * workers > cpus:
            warnings.warn(
                f"{share} are more than the cluster has now ({cpus:g} CPUs, {gpus} GPUs): workers start as "
                f"there is room for them",
                stacklevel=2,
            )
        return share


@dataclass(frozen=True)
class _Share:
    """How many workers there are, and what each of them has."""

    workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def __str__(self) -> str:
        return f"{self.workers} workers with {self.cpus:g} CPUs and {self.gpus:g} GPUs each"


class _Seat:
    """An actor: the model that it opened, and what it answers."""

    def __init__(self, worker: type, job: Job, threads: int, folder: str):
        self._worker = _tried(lambda: worker(_here(job, threads, folder)))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        # What is raised here is heard, and ends the study; what Ray loses is not, and is sent again.
        if isinstance(self._worker, bytes):
            yield _message(error=self._worker)
            return
        (task,) = map(pickle.loads, batch["task"].to_pylist())
        entries = self._worker.answer(task)
        while (entry := _tried(lambda: next(entries, None))) is not None:
            if isinstance(entry, bytes):
                yield _message(error=entry)
                return
            yield _message(entry=json.dumps(entry.as_dict()))


def _prepared(job: Job, threads: int, folder: str) -> Prepared | bytes:
    def look() -> Prepared:
        _here(job, threads, folder)
        return prepare(job, job.open())

    return _tried(look)


def _here(job: Job, threads: int, folder: str) -> Job:
    """Make another process the like of the one that sent it the job."""
    import torch

    torch.set_num_threads(threads)
    if os.path.isdir(folder):  # where the folder is shared, relative paths mean the same
        os.chdir(folder)
    return job


def _round(worker: type, job: Job, tasks: Sequence[Task], share: _Share) -> Iterator[Entry]:
    """A pool's entries, as they come. Each task is sent once: what an actor takes with it is missing."""
    ray = _ray()
    from ray.data import ActorPoolStrategy, from_items

    with _quiet(), _said_as_ours(ray, job), warnings.catch_warnings():
        # Ray announces that max_restarts and its kin go away in 2.64, which `seeing[ray]` excludes.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        answered = from_items(
            [{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)
        ).map_batches(
            _Seat,
            fn_constructor_args=(worker, job, share.threads, os.getcwd()),
            compute=ActorPoolStrategy(size=min(share.workers, len(tasks)), max_tasks_in_flight_per_actor=1),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=RESTARTS,
            max_task_retries=0,
        )
        batches = iter(answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        for batch in batches:
            for message in batch.to_pylist():
                if message["error"] is not None:
                    _opened(message["error"])
                yield Entry(**json.loads(message["entry"]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data set for entries that come one by one from actors that may die, and that says nothing of it."""
    from ray.data import DataContext

    settings = {
        "target_max_block_size": 1,  # an entry leaves its actor at once
        "max_errored_blocks": -1,  # what an actor took with it is our business
        "enable_progress_bars": False,
        "print_on_execution_start": False,
    }
    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    before = {name: getattr(context, name) for name in settings if hasattr(context, name)}
    level = log.level
    for name in before:
        setattr(context, name, settings[name])
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def _said_as_ours(ray: Any, job: Job) -> Iterator[None]:
    """Turn what Ray says of workers that can't be kept alive into one line."""
    try:
        yield
    except ray.exceptions.RayError as error:
        found = str(error).strip().splitlines() or [type(error).__name__]
        raise StudyError(
            f"Ray can't keep a worker of {job.name} alive: {found[0]} (mostly the system kills a "
            f"worker that has too little memory for its model: use fewer workers, or larger machines)"
        ) from error


def _tried(make: Callable[[], Any]) -> Any:
    """What a function gives, or what it raised, as bytes."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 (raised again in the process that asked)
        return _packed(error)


def _packed(error: Exception) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps((error, trace))
        pickle.loads(packed)
    except Exception:  # noqa: BLE001 (an exception may hold anything, and be made of anything)
        return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return packed


def _opened(found: Any) -> Any:
    """What `_tried` gave in another process: given, or raised."""
    if not isinstance(found, bytes):
        return found
    error, trace = pickle.loads(found)
    error.add_note(f"In a worker on Ray:\n{trace}")
    raise error


def _message(entry: str | None = None, error: bytes | None = None) -> pa.Table:
    return pa.table({"entry": pa.array([entry], pa.string()), "error": pa.array([error], pa.binary())})


def _given_up(job: Job, left: Sequence[Task]) -> str:
    where = ", ".join(
        f"{job.data[task.unit.data].name} {task.unit.start} to {task.unit.stop - 1}" for task in left[:5]
    )
    more = f" and {len(left) - 5} other units" if len(left) > 5 else ""
    return (
        f"workers of {job.name} died {ROUNDS} times in a row at samples {where}{more}; what they answered "
        f"before is kept, and all others are done. Mostly the system kills a worker for memory: start the "
        f"study again with fewer workers, or on larger machines"
    )


def _travelling(job: Job) -> None:
    if not job.travels:
        raise StudyError(
            f"{job.name} is an open model, which stays in its process; a study on Ray takes the name or the "
            f"folder that it was loaded from"
        )


def _connect(ray: Any, address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS")
    common = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address="local", include_dashboard=False, object_store_memory=STORE, **common)
        else:
            ray.init(address=address, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StudyError(f"no Ray cluster at {address or 'this machine'}: {error}") from error


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StudyError("--engine ray needs Ray: pip install 'seeing[ray]'") from error
    return ray
