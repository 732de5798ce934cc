"""What every command shares: the words for a user's mistake, checks before long work, a bar, a quiet load."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class UserError(Exception):
    """A mistake in what the user gave: shown as one line, exit code 2."""


def fail(message: str) -> None:
    typer.echo(f"seeing: {' '.join(message.split())}", err=True)
    sys.exit(2)


def positive(option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{option} is 1 or more, got {value}")


def writable(folder: Path, *names: str) -> None:
    """Make the folder now, so that a run does not end with nowhere to write its files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".seeing-writes-here"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror or error}") from error
    for name in names:
        if (folder / name).is_dir():
            raise UserError(f"can't write {folder / name}: there is a folder of that name")


def load(model: str):
    """The model, quietly."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    from seeing.families import FamilyContractError, UnknownFamily
    from seeing.loading import CannotLoad, load
    from seeing.zoo import ZOO

    if model in ZOO:
        # The tensors of an embedded model are so small that a second thread mostly waits for the first.
        torch.set_num_threads(1)
    try:
        return load(model)
    except (CannotLoad, UnknownFamily, FamilyContractError) as error:
        raise UserError(error) from error


class progress:
    """A progress bar on stderr, one line a stage; used as a context that gives the function to tell."""

    def __enter__(self):
        self.bar = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.tasks: dict[str, int] = {}
        self.bar.start()
        return self.tell

    def tell(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
        self.bar.update(self.tasks[what], completed=done)

    def __exit__(self, *exc) -> None:
        self.bar.stop()
