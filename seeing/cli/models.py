"""`seeing models`: the families that are read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from seeing.cli.options import AsJson
from seeing.cli.terminal import UserError, console, show_json


def models(
    family: Annotated[str | None, typer.Argument(help="One family: its geometry and its traps.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the families of models that are read, or describe one."""
    from rich.table import Table

    from seeing.families.table import rows

    found = rows()
    named = found
    if family is not None:
        named = [row for row in found if family in (row.name, *row.model_types)]
        if not named:
            raise UserError(f"no family {family!r}; there are {', '.join(row.name for row in found)}")
    if as_json:
        show_json([asdict(row) for row in named])
        return
    if family is not None:
        typer.echo("\n\n".join(row.about for row in named))
        return
    table = Table()
    for column in ("family", "model_type", "what", "image tokens are", "tower", "inputs that must be there"):
        table.add_column(column, overflow="fold")
    for row in found:
        needs = ", ".join(row.needs) or "–"
        table.add_row(row.name, "\n".join(row.model_types), row.what, row.places, row.tower, needs)
    console(160).print(table)
