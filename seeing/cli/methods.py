"""`seeing methods`: the methods that have a name."""

from __future__ import annotations

from typing import Annotated

import typer

from seeing.cli.options import AsJson
from seeing.cli.terminal import UserError, console, show_json

#: What a method needs, in words.
NEEDS = {
    "layers": "layers of a profile",
    "heads": "heads of a profile",
    "samples": "calibration samples",
    "boxes": "evidence boxes",
}


def methods(
    name: Annotated[str | None, typer.Argument(help="One method: its settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods that --methods takes by name, or the settings of one.

    A method is written NAME:setting=value:setting=value. Beside names stand saved edits (mine.json) and
    Python files (mine.py) that define METHODS = {"name": method}.
    """
    from seeing.methods.recipes import RECIPES
    from seeing.methods.settings import meant

    if name is not None and name not in RECIPES:
        raise UserError(f"no method {name!r}{meant(name, RECIPES)}; there are {', '.join(RECIPES)}")
    chosen = [one for one in RECIPES.values() if name in (None, one.name)]
    if as_json:
        show_json([_told(one) for one in chosen])
    elif name is None:
        _list(chosen)
    else:
        _describe(chosen[0])


def _told(recipe) -> dict:
    return {
        "name": recipe.name,
        "about": recipe.about,
        "paper": recipe.paper and f"arXiv {recipe.paper}",
        "needs": sorted(recipe.needs({})),
        "settings": [one.as_dict() for one in recipe.settings.values()],
    }


def _list(recipes: list) -> None:
    from rich.table import Table

    table = Table()
    for column in ("method", "what it does", "settings", "arXiv", "needs"):
        table.add_column(column, overflow="fold")
    for one in recipes:
        needs = ", ".join(NEEDS[need] for need in sorted(one.needs({})))
        table.add_row(one.name, one.about, ", ".join(one.settings), one.paper or "–", needs or "–")
    console().print(table)


def _describe(recipe) -> None:
    from rich.table import Table

    needs = ", ".join(NEEDS[need] for need in sorted(recipe.needs({})))
    paper = f" (arXiv {recipe.paper})" if recipe.paper else ""
    typer.echo(f"{recipe.name}: {recipe.about}{paper}" + (f"\nneeds {needs}" if needs else ""))
    if not recipe.settings:
        return
    table = Table()
    for column in ("setting", "takes", "default"):
        table.add_column(column, overflow="fold")
    for one in recipe.settings.values():
        table.add_row(one.name, one.kind.says, one.spelled)
    console().print(table)
