"""How far a probe is: a bar on a terminal or in a notebook, once the work proves long."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

#: Told how many samples are done, after each batch; None shows a bar, False nothing.
Progress = Callable[[int], None] | bool | None

#: Seconds of work before a bar appears.
PATIENCE = 2.0


class Shown:
    """Progress of one probe: ``with shown(…) as told: told(done)``."""

    def __init__(self, progress: Progress, total: int | None, what: str):
        self._call = progress if callable(progress) else None
        self._total, self._what = total, what
        self._start = time.monotonic()
        self._bar: Bar | None = None
        console = Console(stderr=True)
        self._visible = progress in (None, True) and (console.is_terminal or console.is_jupyter)
        self._console = console

    def __call__(self, done: int) -> None:
        """Say that ``done`` samples are done, of all."""
        if self._call is not None:
            self._call(done)
        if not self._visible or (self._bar is None and time.monotonic() - self._start < PATIENCE):
            return
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> Shown:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def total_of(samples: object) -> int | None:
    """How many there are, where that is known without going through them."""
    return len(samples) if hasattr(samples, "__len__") else None
