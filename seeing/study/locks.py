"""Who is at work on what: locks that end with the process that holds them.

Several processes may work in one folder, started by hand, by a cluster's queue, or because somebody forgot
that one is running. Each takes a unit before it answers it. The locks are the operating system's, on bytes of
one file: a killed process holds none, so nothing has to be cleaned up, and nothing is answered twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Folders that this process works in. Locks of bytes belong to a process: against itself they do not hold.
_OPEN: set[Path] = set()

#: The byte that everybody at work shares, behind those of all units.
_PRESENT = 2**40


class Locks:
    """Numbered locks in one file, and one for short changes of what all share."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        if self.path in _OPEN:
            raise RuntimeError(
                f"this process is at work on {self.path.parent} already; end that study first, or start "
                f"another process"
            )
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        _OPEN.add(self.path)

    def take(self, number: int) -> bool:
        """Take a lock, if nobody has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number + 1)
        except BlockingIOError:
            return False
        except PermissionError:  # what some systems say of a lock that is held
            return False
        return True

    def give(self, number: int) -> None:
        """Give a lock back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number + 1)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else is in here."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    def join(self) -> None:
        """Be at work here, until this process ends or closes."""
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _PRESENT)

    def only_one(self) -> bool:
        """Whether nobody else is at work here."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _PRESENT)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def close(self) -> None:
        """Give everything back."""
        if self.path in _OPEN:
            _OPEN.discard(self.path)
            os.close(self._file)
