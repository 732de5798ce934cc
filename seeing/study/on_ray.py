"""The engine that runs on Ray: a pool of workers with an open model each, on one machine or many.

A unit goes to whichever worker is free, and each of its entries comes back as soon as it is there. What this
process has heard is all that counts: what dead workers left undone is sent out again (`rounds`), without the
entries that were heard. So none is lost and none is double, wherever a machine was pulled out.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from seeing.study.answering import Worker
from seeing.study.job import Job
from seeing.study.pool import DEATHS, Raised, Share, answers, said_as_ours, tried
from seeing.study.preparing import Prepared, prepare
from seeing.study.rounds import ROUNDS, rounds
from seeing.study.settings import StudyError
from seeing.study.units import Entry, Task

#: Bytes of a local cluster's object store: entries are small, and nothing else goes through it.
STORE = 200 * 2**20


class OnRay:
    """Runs units on Ray.

    Args:
        workers: how many, each with a model of its own. By default one a GPU; without GPUs, one for two CPUs.
        address: of a cluster that runs already, "auto" for the one of this machine. By default the one that
            `RAY_ADDRESS` names, and without it a local one, until `close` or the end of this process.
        num_gpus, num_cpus: of each worker. By default what is there, shared out among the workers, and at
            most one GPU: a model that needs more says so here.

    A cluster that this process is connected to already is used as it is, and left running.

    Raises `StudyError` where Ray is not installed, and for a number that makes no sense.
    """

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
        self.make = opened
        self._started = False
        _ray()

    def prepare(self, job: Job) -> Prepared:
        """Open the job's model on one worker, and look at it."""
        sent = _packed(job)
        ray, share = _ray(), self.connected()
        with said_as_ours(job.name):
            # The process ends with the task, and lets go of the model that it opened.
            remote = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_calls=1, max_retries=DEATHS)
            found = ray.get(remote(tried).remote(_look, sent, share.threads, os.getcwd()))
        if isinstance(found, Raised):
            found.again()
        return found

    def run(self, job: Job, tasks: Iterable[Task]) -> Iterator[Entry]:
        """The entries of all tasks, each unit's ending with its last one; of several units in any order.

        Raises what `Worker` raises, and `StudyError` at the end for units that nobody could answer.
        """
        sent, tasks = _packed(job), list(tasks)
        if not tasks:
            return
        share = self.connected()
        told = (sent, share.threads, os.getcwd())
        with said_as_ours(job.name):
            left = yield from rounds(lambda some: answers(self.make, told, some, share), tasks)
        if left:
            raise StudyError(_given_up(job, left))

    def close(self) -> None:
        """End what this engine has started: a local cluster, or the connection to another one."""
        if self._started:
            self._started = False
            _ray().shutdown()

    def connected(self) -> Share:
        """Connect to the cluster. Gives what each worker gets of it."""
        ray = _ray()
        if not ray.is_initialized():
            _connect(ray, self.address)
            self._started = True
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = Share.of(nodes, self.workers, self.num_gpus, self.num_cpus)
        cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
        if share.cpus * share.workers > cpus or share.gpus * share.workers > gpus:
            warnings.warn(
                f"{share} are more than the cluster has now ({cpus:g} CPUs, {gpus:g} GPUs); workers start as "
                f"there is room for them",
                stacklevel=3,
            )
        return share


def opened(sent: bytes, threads: int, folder: str) -> Worker:
    """What sits in each actor."""
    return Worker(_unpacked(sent, threads, folder))


def _look(sent: bytes, threads: int, folder: str) -> Prepared:
    job = _unpacked(sent, threads, folder)
    return prepare(job, job.open())


def _packed(job: Job) -> bytes:
    """A job on its way to another process. Raises `StudyError` for one that has to stay."""
    if not job.travels:
        raise StudyError(
            f"{job.name} is an open model, which stays in its process; a study on Ray takes the name or the "
            f"folder that it was loaded from"
        )
    try:
        return _ray().cloudpickle.dumps(job)
    except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        raise StudyError(
            f"something of the data, the methods or the loading of {job.name} can't be sent to another "
            f"process: {error}"
        ) from error


def _unpacked(sent: bytes, threads: int, folder: str) -> Job:
    """The job, in a process that is like the one that it comes from."""
    import torch

    torch.set_num_threads(threads)
    if os.path.isdir(folder):  # where folders are shared, relative paths mean the same
        os.chdir(folder)
    return pickle.loads(sent)


def _connect(ray: Any, address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray's core calls it an error that actors with arguments may be replaced, which is what is wanted here.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address="local", include_dashboard=False, object_store_memory=STORE, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StudyError(f"no Ray cluster at {address or 'this machine'}: {error}") from error


def _given_up(job: Job, left: Sequence[Task]) -> str:
    units = [task.unit for task in left]
    where = ", ".join(f"{job.data[unit.data].name} {unit.start} to {unit.stop - 1}" for unit in units[:5])
    more = f" and {len(units) - 5} other units" if len(units) > 5 else ""
    return (
        f"workers of {job.name} died {ROUNDS} times in a row at samples {where}{more}; what they answered "
        f"before is kept, and all others are done. Mostly the system kills a worker for memory: start the "
        f"study again with fewer workers, or on larger machines"
    )


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StudyError("--engine ray needs Ray: pip install 'seeing[ray]'") from error
    return ray
