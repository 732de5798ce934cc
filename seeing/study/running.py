"""`run`: models × data × methods, into a folder that can be gone on with.

    from seeing import study

    found = study.run("plates-tiny", "plates:256", "base,vea,second_look", "out/plates")
    found.table()

Started again with the same words, a study goes on where it was ended: by Ctrl-C, by a full disk, by a power
cut. Several processes may run the same words at once, and share the work.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import seeing
from seeing.study.job import Job
from seeing.study.local import Engine, Local
from seeing.study.planning import Plan, plan
from seeing.study.settings import StudyError
from seeing.study.store import Store
from seeing.study.study import Study
from seeing.study.units import Entry, Task, Unit

#: Told how many rows are there, how many there will be, and how many failed just now.
Progress = Callable[[int, int, int], None]

#: Seconds between two looks at units that other processes have.
PATIENCE = 0.5

#: Packages that numbers depend on.
_PACKAGES = ("torch", "transformers", "nnsight", "numpy", "scipy", "pillow", "tokenizers")


def run(
    models: Any,
    data: Any,
    methods: Any,
    out: str | PathLike,
    *,
    engine: str | Engine = "local",
    progress: Progress | None = None,
    resume: bool = True,
    command: str | None = None,
    **settings: Any,
) -> Study:
    """Ask each model about each sample under each method, and keep what it says.

    Args:
        models: what `seeing.load` takes, or a VLM; one or several.
        data: what `open_data` takes (``"plates:256"``, a folder, a file, samples); one or several.
        methods: names with settings, ``"base,vea,vea_in_pass:gain=2"``, files of edits, or a mapping of
            names to methods and edits.
        out: the folder. One with a study of the same settings is gone on with.
        engine: "local", "ray", or an engine made by hand.
        progress: told how many rows are done, of how many, and how many samples failed just now.
        resume: False refuses a folder that holds a study already.
        command: what to write down as the command that repeats this.
        settings: of the study: ``load`` (keyword arguments of `seeing.load`), ``prompt``,
            ``max_new_tokens``, ``rows`` and ``tokens`` (of a batch, at most), ``seed``, ``profile`` (a file
            or a `Profile`), ``calibration`` (a data set to profile on), ``hold_out`` (as many samples of the
            first data set, to profile on and not to ask), ``limit`` (samples of each data set).

    Raises `StudyError` for settings that make no study and for a folder of another one, `BadData`,
    `BadMethod`, and what `seeing.load` raises. A sample that fails is no error: it stands in ``.failures``.
    """
    return carry_out(
        plan(models, data, methods, **settings),
        out,
        engine=engine,
        progress=progress,
        resume=resume,
        command=command,
    )


def carry_out(
    made: Plan,
    out: str | PathLike,
    *,
    engine: str | Engine = "local",
    progress: Progress | None = None,
    resume: bool = True,
    command: str | None = None,
) -> Study:
    """Run a plan; see `run`."""
    out = Path(out)
    if not resume and (out / "study.json").exists():
        raise StudyError(f"{out} holds a study already; give another folder, or go on with it (--resume)")
    working = engine_of(engine)
    with Store(out, made.settings.as_dict(), this_run(command)) as store:
        told = _Told(progress, made, store)
        for number, job in enumerate(made.jobs):
            todo = [unit for unit in made.units if unit.model == number and not store.sealed(unit)]
            if todo:
                _ask(store, working, _prepared(store, working, job, number), todo, told)
    return Study.open(out)


def engine_of(engine: str | Engine) -> Engine:
    """An engine by name. Raises `StudyError` for a name that there is not."""
    if engine == "local":
        return Local()
    if engine == "ray":
        from seeing.study.on_ray import OnRay

        return OnRay()
    if isinstance(engine, str):
        raise StudyError(f"no engine {engine!r}; there are local and ray")
    return engine


def _prepared(store: Store, engine: Engine, job: Job, number: int) -> Job:
    """The job with the model's profile: that of the folder, or a new one."""
    known = store.profile(f"m{number}")
    found = engine.prepare(replace(job, profile=known) if known is not None else job)
    store.know(job.name, found.facts)
    if found.profile is not None:
        known = store.keep_profile(f"m{number}", found.profile)
    return replace(job, profile=known)


def _ask(store: Store, engine: Engine, job: Job, todo: list[Unit], told: _Told) -> None:
    """Answer units, each with its lock, until all are sealed, here or by others."""
    by_number = {unit.number: unit for unit in todo}
    while todo:
        taken: set[int] = set()

        def tasks(todo: list[Unit] = todo, taken: set[int] = taken) -> Iterator[Task]:
            for unit in todo:
                done = store.take(unit)
                if done is not None:
                    taken.add(unit.number)
                    told.there(sum(done.values()))
                    yield Task(unit, frozenset(done))

        for entry in engine.run(job, tasks()):
            unit = by_number[entry.unit]
            if entry.last:
                store.seal(unit)
                store.give(unit)
                taken.discard(unit.number)
            else:
                store.write(unit, entry)
                told(entry)
        if taken:
            raise StudyError(
                f"the engine ended and left units {sorted(taken)} undone; start the study again to go on"
            )
        todo = [unit for unit in todo if not store.sealed(unit)]
        if todo:
            time.sleep(PATIENCE)
            told.others(sum(map(len, todo)))


class _Told:
    """How far a study is."""

    def __init__(self, progress: Progress | None, made: Plan, store: Store):
        self._progress, self._methods = progress, len(made.settings.methods)
        self._total = made.n_rows
        self._done = sum(len(unit) for unit in made.units if store.sealed(unit)) * self._methods
        self._say(0)

    def __call__(self, entry: Entry) -> None:
        lost = sum(
            self._methods if one["method"] is None else 1 for one in entry.failures if one["stage"] != "look"
        )
        self._done = min(self._done + len(entry.rows) + lost, self._total)
        self._say(len(entry.failures))

    def there(self, rows: int) -> None:
        """``rows`` are there from an earlier run."""
        self._done = min(self._done + rows, self._total)
        self._say(0)

    def others(self, left: int) -> None:
        """``left`` samples are in the hands of other processes."""
        self._done = max(self._done, self._total - left * self._methods)
        self._say(0)

    def _say(self, failed: int) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, failed)


def this_run(command: str | None) -> dict[str, Any]:
    """Who is at work, since when, and with what."""
    versions = {"python": sys.version.split()[0], "seeing": seeing.__version__}
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command or shlex.join(["python", *sys.argv]),
        "versions": versions | {name: version(name) for name in _PACKAGES},
        "commit": commit_of(Path(seeing.__file__).parent),
    }


def commit_of(folder: Path) -> str | None:
    """The git commit of the source in ``folder``, with a + where it was changed; None where git has none."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # A package that was installed into somebody's repository is no part of it.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
