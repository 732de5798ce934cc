"""What every command shares: the words for a user's mistake, checks before long work, a bar, a quiet load."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from seeing.data.dataset import BadSample, Dataset
    from seeing.data.samples import EvidenceSample


class UserError(Exception):
    """A mistake in what the user gave: shown as one line, exit code 2."""


def fail(message: str) -> None:
    typer.echo(f"seeing: {' '.join(message.split())}", err=True)
    sys.exit(2)


def prose(text: str | None) -> str:
    """A docstring as help: paragraphs that the terminal may break where it likes."""
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(" ".join(one.split()) for one in paragraphs)


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


@contextmanager
def mistakes(*others: type[Exception]) -> Iterator[None]:
    """Says what the package refuses (a picture, a question, a method, a model …) as the user's mistake.

    ``others`` are further exceptions that mean one here. What is none keeps its traceback.
    """
    try:
        yield
    except (ValueError, *others) as error:
        if isinstance(error, (*_refusals(), *others)):
            raise UserError(error) from error
        raise


def _refusals() -> tuple[type[Exception], ...]:
    from seeing.data.dataset import BadData, BadSample
    from seeing.data.images import BadImage
    from seeing.edits import BadEdit
    from seeing.families import FamilyContractError, UnknownFamily
    from seeing.loading import CannotLoad
    from seeing.methods import BadMethod
    from seeing.prompt import BadPrompt

    return (
        *(BadData, BadSample, BadImage, BadEdit, BadMethod, BadPrompt),
        *(CannotLoad, UnknownFamily, FamilyContractError),
    )


def load(
    model: str,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    attn: str | None = None,
    check: bool = True,
):
    """The model, quietly, as the options of `seeing.cli.options` say."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    from seeing.loading import load
    from seeing.zoo import ZOO

    if model in ZOO:
        # The tensors of an embedded model are so small that a second thread mostly waits for the first.
        torch.set_num_threads(1)
    given = dict(revision=revision, dtype=dtype, device_map=device_map, attn_implementation=attn)
    given = {name: value for name, value in given.items() if value is not None}
    with mistakes():
        return load(model, check, **given)


def readable(data: Dataset) -> Iterator[EvidenceSample]:
    """The samples that can be had, one at a time; each that can't is a line on stderr, up to ten of them."""
    bad = 0

    def told(sample: BadSample) -> None:
        nonlocal bad
        bad += 1
        if bad <= 10:
            typer.echo(f"left out: {sample}", err=True)

    yield from data.readable(told)
    if bad > 10:
        typer.echo(f"left out: {bad - 10} more", err=True)


def writable_file(path: Path, *kinds: str) -> None:
    """That a file can be written, before the work that fills it; ``kinds`` are the endings it may have."""
    if kinds and path.suffix.lower() not in kinds:
        raise UserError(f"can't write {path}: its name ends in {path.suffix!r}; expected {', '.join(kinds)}")
    writable(path.parent, path.name)


def show_json(told: Any) -> None:
    """Plain data, to stdout. JSON has no NaN: it is null."""
    import json

    typer.echo(json.dumps(_plain(told), ensure_ascii=False, indent=1))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def console(width: int = 120) -> Console:
    """Where tables go: as wide as the terminal, or ``width`` in a file."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


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
