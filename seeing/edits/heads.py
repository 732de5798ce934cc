"""Edits of single heads: z, what a head writes out, before the output projection mixes the heads.

Heads are query heads, also where several share one key/value head. They act at every position, in
the prompt pass and at every decoded token: a head set to zero is a head whose columns of the output
projection are zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.edit import HeadEdit
from seeing.edits.select import BadEdit, attention_layers, whole
from seeing.vlm import VLM

HeadTable = tuple[tuple[int, tuple[int, ...]], ...]


def head_table(heads: Any) -> HeadTable:
    """``{layer: [heads]}``, or pairs (layer, head), as a sorted table. Raises `BadEdit`."""
    if isinstance(heads, Mapping):
        pairs = heads.items()
    elif isinstance(heads, Sequence) and heads and all(isinstance(pair, Sequence) for pair in heads):
        pairs = heads
    else:
        raise BadEdit(f"heads are a dict {{layer: [heads]}} or pairs (layer, head), got {heads!r}")
    table: dict[int, set[int]] = {}
    for pair in pairs:
        if len(pair) != 2 or whole(pair[0]) is None or whole(pair[0]) < 0:
            raise BadEdit(
                f"heads are a dict {{layer: [heads]}} or pairs (layer, head), layers from 0; got {heads!r}"
            )
        table.setdefault(whole(pair[0]), set()).update(heads_of(pair[1]))
    if not table:
        raise BadEdit(f"no heads are named in {heads!r}")
    return tuple((layer, tuple(sorted(table[layer]))) for layer in sorted(table))


def heads_of(spec: Any) -> tuple[int, ...]:
    """One head or several, whole numbers of any library's kind. Raises `BadEdit` for anything else."""
    if isinstance(spec, Mapping):
        raise BadEdit(
            f"heads here are a whole number or several, got {spec!r}; say the layers with layers=, "
            f"{{layer: [heads]}} is for AblateHeads, ScaleHeads and seen"
        )
    several = isinstance(spec, Iterable) and not isinstance(spec, str) and whole(spec) is None
    found = tuple(whole(head) for head in (spec if several else [spec]))
    if not found or None in found:
        raise BadEdit(f"heads are a whole number or several, got {spec!r}")
    return found


@dataclass(frozen=True)
class ScaleHeads(HeadEdit):
    """Multiply z of the heads by ``factor``: 0 takes them out, 1 changes nothing."""

    heads: Any
    factor: float
    when: str = "both"

    def __post_init__(self):
        object.__setattr__(self, "heads", head_table(self.heads))
        if not math.isfinite(self.factor):
            raise BadEdit(f"a factor is a finite number, got {self.factor}")
        self._check_when()

    def fit(self, vlm: VLM) -> HeadEdit:
        _check_heads(self.heads, vlm)
        return self

    def z(self, z: Float[Tensor, "batch pos some d_head"]) -> Tensor:
        return z * self.factor


@dataclass(frozen=True)
class AblateHeads(HeadEdit):
    """Set z of the heads to zero: ``AblateHeads({12: [3, 7]})``."""

    heads: Any
    when: str = "both"

    def __post_init__(self):
        object.__setattr__(self, "heads", head_table(self.heads))
        self._check_when()

    def fit(self, vlm: VLM) -> HeadEdit:
        _check_heads(self.heads, vlm)
        return self

    def z(self, z: Float[Tensor, "batch pos some d_head"]) -> Tensor:
        return torch.zeros_like(z)

    def __repr__(self) -> str:
        return f"AblateHeads({ {layer: list(some) for layer, some in self.heads} }, when={self.when!r})"


def _check_heads(table: HeadTable, vlm: VLM) -> None:
    for layer, some in table:
        attention_layers(layer, vlm)
        for head in some:
            if not 0 <= head < vlm.cfg.n_heads:
                raise BadEdit(
                    f"no head {head!r} in layer {layer}: the text stack has heads 0-{vlm.cfg.n_heads - 1}"
                )
