"""`seeing models`: the families that are read."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from seeing.cli.terminal import UserError


def models(
    family: Annotated[str | None, typer.Argument(help="One family: its geometry and its traps.")] = None,
) -> None:
    """List the families of models that are read, or describe one."""
    from seeing.families.table import rows

    found = rows()
    if family is not None:
        named = [row for row in found if family in (row.name, *row.model_types)]
        if not named:
            raise UserError(f"no family {family!r}; there are {', '.join(row.name for row in found)}")
        typer.echo("\n\n".join(row.about for row in named))
        return
    table = Table()
    for column in ("family", "model_type", "what", "image tokens are", "tower", "inputs that must be there"):
        table.add_column(column, overflow="fold")
    for row in found:
        needs = ", ".join(row.needs) or "–"
        table.add_row(row.name, "\n".join(row.model_types), row.what, row.places, row.tower, needs)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
