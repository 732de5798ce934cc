"""The families: one file each, and the registry that finds the one for a model.

`find` reads facts off the model (its ``model_type``), never a checkpoint's name.
"""

from __future__ import annotations

from torch import nn

from seeing.families.family import Family, FamilyContractError, Stack, UnknownFamily
from seeing.families.llava import Llava

FAMILIES: tuple[Family, ...] = (Llava(),)


def find(model: nn.Module) -> Family:
    """The family that speaks for ``model``. Raises `UnknownFamily` with the supported list."""
    return family_of(getattr(getattr(model, "config", None), "model_type", None), type(model).__name__)


def family_of(model_type: str | None, owner: str) -> Family:
    """The family that reads ``model_type``, as ``owner`` calls its kind. Raises `UnknownFamily`."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    supported = ", ".join(sorted(kind for family in FAMILIES for kind in family.model_types))
    raise UnknownFamily(f"no family reads model_type {model_type!r} ({owner}); supported: {supported}")


__all__ = ["FAMILIES", "Family", "FamilyContractError", "Stack", "UnknownFamily", "family_of", "find"]
