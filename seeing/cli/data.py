"""`seeing data`: what a data set holds, before anything long starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from seeing.cli.options import BoxFormat, Columns, Images, Split
from seeing.cli.terminal import UserError, positive, progress, writable

#: The exit code when some samples can't be had.
SOME_FAIL = 1

data = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    help="Look at a data set: what it holds, and what is wrong with it.",
)

Where = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A .jsonl, .json, .csv, .tsv or .parquet file, a folder, hub:owner/name[:split], or plates:N.",
    ),
]


@data.command(epilog="Example: [bold]seeing data check docvqa.jsonl --images pictures[/bold]")
def check(
    where: Where,
    images: Images = None,
    columns: Columns = None,
    split: Split = None,
    box_format: BoxFormat = None,
    limit: Annotated[int | None, typer.Option(help="Look at the first so many samples only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
) -> None:
    """Open every sample once and tell what is there. Exit code 1 when some samples can't be had."""
    found = opened(where, images, columns, split, box_format, limit)

    from seeing.data.check import check as look

    with progress() as tell:
        report = look(found, tell if sys.stderr.isatty() else None)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1))
    else:
        show(report)
    if report.failed:
        raise typer.Exit(SOME_FAIL)


@data.command("show", epilog="Example: [bold]seeing data show plates:crowded:8 --n 2 --out pictures[/bold]")
def show_samples(
    where: Where,
    images: Images = None,
    columns: Columns = None,
    split: Split = None,
    box_format: BoxFormat = None,
    n: Annotated[int, typer.Option(help="How many samples.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the pictures, with their boxes drawn.")
    ] = None,
) -> None:
    """Show the first samples, and with --out their pictures with the boxes drawn."""
    positive("--n", n)
    found = opened(where, images, columns, split, box_format, n)

    from seeing.data.dataset import BadSample

    if out is not None:
        writable(out)
    for i in range(len(found)):
        try:
            sample = found.sample(i)
        except BadSample as bad:
            typer.echo(f"{found.id(i)}\n  {bad.kind}: {bad.reason}")
            continue
        typer.echo(f"{sample.id}\n  {sample.question}\n  {' | '.join(sample.answers)}")
        boxes = ", ".join(str(tuple(round(edge, 1) for edge in box)) for box in sample.boxes) or "no boxes"
        typer.echo(f"  {sample.image.width} x {sample.image.height} px; {boxes}")
        if out is not None:
            typer.echo(f"  {draw(sample, out / f'{i:04d}.png')}")


def opened(
    where: str,
    images: Path | None,
    columns: str | None,
    split: str | None,
    box_format: str | None,
    limit: int | None,
):
    """The data set that the command line names."""
    if limit is not None:
        positive("--limit", limit)

    from seeing.data.opening import BadData, open_data
    from seeing.data.spec import parse_columns

    try:
        mapped = parse_columns(columns) if columns else None
        return open_data(
            where, columns=mapped, images=images, limit=limit, split=split, box_format=box_format
        )
    except BadData as error:
        raise UserError(error) from error


def show(report) -> None:
    """A report, to the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(f"[bold]{report.name}[/bold]: {report.good} of {report.samples} samples can be had")
    table = Table()
    for name in ("", "least", "median", "mean", "most"):
        table.add_column(name, justify="left" if not name else "right")
    rows = ("width", "height", "answers", "boxes")
    numbers = [(name, getattr(report, name), "{:.6g}") for name in rows]
    numbers.append(("evidence, share of the picture", report.share, "{:.2%}"))
    for name, spread, shape in numbers:
        if spread is not None:
            table.add_row(
                name, *(shape.format(x) for x in (spread.least, spread.median, spread.mean, spread.most))
            )
    if report.good:
        console.print(table)
        console.print(f"{report.with_boxes} of {report.good} have evidence boxes")
    for kind, failures in report.failed.items():
        console.print(f"[bold]{failures.count} fail: {kind}[/bold]")
        for id, reason in failures.examples:
            console.print(f"  {id}: {reason}", markup=False)
        if failures.count > len(failures.examples):
            console.print(f"  … and {failures.count - len(failures.examples)} more")
    if report.repeated:
        shown = ", ".join(report.repeated[:5])
        console.print(
            f"{len(report.repeated)} ids are given more than once, and got #2, #3, … : {shown}", markup=False
        )
    console.print(f"fingerprint {report.fingerprint[:16]}")


def draw(sample, path: Path) -> Path:
    """The sample's picture with its boxes, written to `path`."""
    from PIL import ImageDraw

    picture = sample.image.copy()
    pen = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in sample.boxes:
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=(255, 0, 0), width=max(1, picture.width // 200))
    picture.save(path)
    return path
