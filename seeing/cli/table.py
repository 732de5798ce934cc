"""`seeing table`: what a study found, as a table."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from seeing.cli.terminal import UserError

#: What a file's name ends in, for each format.
FORMATS = {
    "terminal": ".txt",
    "markdown": ".md",
    "latex": ".tex",
    "csv": ".csv",
    "json": ".json",
    "html": ".html",
}


def table(
    studies: Annotated[list[Path], typer.Argument(help="The folder of a study, or several to join.")],
    layout: Annotated[
        str, typer.Option(help="methods (each against the base), paper, ablation or ranks.")
    ] = "methods",
    metric: Annotated[
        str | None, typer.Option(help="em, f1, anls, vqa, logprob, n_tokens, seconds; several with commas.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The method to compare with; base where there is one.")
    ] = None,
    models: Annotated[str | None, typer.Option(help="Only these models, with commas.")] = None,
    data: Annotated[str | None, typer.Option(help="Only these data sets, with commas.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these methods, with commas, in this order.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="terminal, markdown, latex, csv, json or html; as FILE ends, unless said."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it there.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the permutation tests.")] = 0,
) -> None:
    """Means with 95 % intervals, differences to the base with their tests, ranks over data sets.

    Several studies are read as one, where they don't contradict each other.
    """
    chosen = _format("json" if json else format, out)
    if seed < 0:
        raise UserError(f"--seed is 0 or more, got {seed}")

    from seeing.study.layouts import table as lay_out
    from seeing.study.settings import StudyError
    from seeing.study.study import Study

    try:
        study = Study.open(*studies).only(_names(models), _names(data), _names(methods))
        made = lay_out(study, metric, layout, base=base, seed=seed)
    except StudyError as error:
        raise UserError(error) from error
    if chosen == "terminal" and out is None:
        Console(width=None if sys.stdout.isatty() else 160).print(made)
        return
    text = _plain(made) if chosen == "terminal" else getattr(made, f"to_{chosen}")()
    if out is None:
        typer.echo(text, nl=not text.endswith("\n"))
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"can't write {out}: {error.strerror or error}") from error


def _plain(made: Any) -> str:
    """What a terminal would show, without colours."""
    console = Console(file=io.StringIO(), width=160)
    console.print(made)
    return console.file.getvalue()


def _format(format: str | None, out: Path | None) -> str:
    """The format that was asked for, or else the one that the file's name ends in."""
    if format is None and (out is None or not out.suffix):
        return "terminal"
    if format is None:
        found = [name for name, ending in FORMATS.items() if ending == out.suffix]
        if not found:
            raise UserError(
                f"no format ends in {out.suffix}: give one of {', '.join(FORMATS.values())}, or --format"
            )
        return found[0]
    if format not in FORMATS:
        raise UserError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    return format


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name for one in text.split(",") if (name := one.strip())]
