"""The families as a table, made from the code: what each reads, and what it must be given."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from seeing.families import FAMILIES
from seeing.families.family import Family


@dataclass(frozen=True)
class Row:
    """One family. ``about`` is the whole docstring of its file, geometry and traps included."""

    name: str
    model_types: tuple[str, ...]
    what: str
    places: str
    tower: str
    needs: tuple[str, ...]
    about: str


def rows() -> list[Row]:
    """One row a family, in the order of their names."""
    return sorted((_row(family) for family in FAMILIES), key=lambda row: row.name)


def _row(family: Family) -> Row:
    about = inspect.cleandoc(inspect.getmodule(type(family)).__doc__)
    doc = inspect.cleandoc(type(family).__doc__).split("\n")[0].rstrip(".")
    return Row(
        name=family.name,
        model_types=tuple(sorted(family.model_types)),
        what=doc,
        places=_places(family),
        tower="packed, read in reading order" if _overrides(family, "patch_order") else "batch of pictures",
        needs=family.required,
        about=about,
    )


def _places(family: Family) -> str:
    if _overrides(family, "cross_grid"):
        return "keys of cross-attention layers"
    return "tiles and row ends" if family.packs else "tokens of the sequence"


def _overrides(family: Family, method: str) -> bool:
    return getattr(type(family), method) is not getattr(Family, method)
