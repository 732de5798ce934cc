"""`seeing probe`: a probe over a data set, as a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seeing.cli.data import opened
from seeing.cli.knowing import known, profile_file
from seeing.cli.options import (
    AsJson,
    Attn,
    BoxFormat,
    Check,
    Columns,
    Data,
    DeviceMap,
    Dtype,
    Images,
    Model,
    ProfileFile,
    Prompted,
    Revision,
    Rows,
    Split,
)
from seeing.cli.probing import PROBES, PROFILED, read, run
from seeing.cli.terminal import (
    UserError,
    console,
    load,
    mistakes,
    positive,
    readable,
    show_json,
    writable_file,
)

#: How many rows of a table the terminal shows.
SHOWN = 40

HELP = "Look into a model over samples: where attention goes, and what an answer rests on.\n\n" + "\n".join(
    f"[bold]{name}[/bold]: {one.about}" for name, one in PROBES.items()
)


def probe(
    name: Annotated[str, typer.Argument(help="One of those above.")],
    model: Model,
    data: Data,
    limit: Annotated[int | None, typer.Option(help="The first so many samples only.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the probe, as in Python; or several."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="What wrong_attention tries; see [bold]seeing methods[/bold].")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option("--out", "-o", help="Write the table (.parquet, .csv, .json), the figure (.html)."),
    ] = None,
    profile: ProfileFile = None,
    template: Prompted = "qa",
    rows: Rows = 16,
    images: Images = None,
    columns: Columns = None,
    split: Split = None,
    box_format: BoxFormat = None,
    as_json: AsJson = False,
    revision: Revision = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    attn: Attn = None,
    check: Check = True,
) -> None:
    given = read(name, settings or [])
    positive("--rows", rows)
    for path in out or ():
        writable_file(path, ".parquet", ".csv", ".json", ".html")
    profile_file(profile)
    found = opened(data, images, columns, split, box_format, limit)
    named = _named(name, methods)
    vlm = load(model, revision, dtype, device_map, attn, check)
    needs = frozenset().union(*(one.needs for one in named))
    if name in PROFILED and "layers" not in given:
        needs |= {"layers"}
    known_profile = known(vlm, model, profile, needs=needs).profile
    with mistakes(ValueError, TypeError):
        result = run(
            name,
            vlm,
            readable(found),
            given,
            profile=known_profile,
            methods={one.text: one.build(vlm, known_profile).method for one in named},
            template=None if template == "plain" else template,
            batch_size=rows,
        )
    frame = result.to_frame()
    for path in out or ():
        _write(result, frame, path)
    if as_json:
        _say_json(name, result, frame)
    else:
        _say(name, result, frame)
    for path in out or ():
        typer.echo(f"{path} written", err=True)


def _named(name: str, methods: str | None) -> tuple[Any, ...]:
    from seeing.methods import parse_methods

    if methods is None:
        return ()
    if name != "wrong_attention":
        raise UserError(f"--methods is for the probe wrong_attention; {name} looks at the model as it is")
    with mistakes():
        return parse_methods(methods)


def _write(result: Any, frame: Any, path: Path) -> None:
    kind = path.suffix.lower()
    with mistakes(OSError):
        if kind == ".html":
            result.figure().write_html(path)
        elif kind == ".parquet":
            frame.to_parquet(path, index=False)
        elif kind == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", force_ascii=False, indent=1)


def _left_out(result: Any) -> list[list[str]]:
    return [list(map(str, one)) for one in getattr(result, "left_out", None) or ()]


def _say_json(name: str, result: Any, frame: Any) -> None:
    told = {"probe": name, "samples": result.n, "left_out": _left_out(result)}
    show_json(told | {"rows": frame.to_dict("records")})


def _say(name: str, result: Any, frame: Any) -> None:
    """The table, made short."""
    from pandas.api.types import is_numeric_dtype
    from rich.table import Table
    from rich.text import Text

    short = PROBES[name].short(frame)
    table = Table(title=f"{name}, n = {result.n}")
    for column in short.columns:
        table.add_column(str(column), justify="right" if is_numeric_dtype(short[column]) else "left")
    for row in short.head(SHOWN).itertuples(index=False):
        table.add_row(*(Text(_spelled(value)) for value in row))
    console().print(table)
    if len(short) > SHOWN:
        typer.echo(f"… and {len(short) - SHOWN} rows more: write the table with --out")
    for sample, reason in _left_out(result)[:5]:
        typer.echo(f"left out: sample {sample!r}: {reason}", err=True)


def _spelled(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
