"""Edits of pre-softmax rows: what the chosen queries attend to.

All of them act on some queries (by default the newest position: the last prompt token, then each
decoded one), some keys, some heads and some layers, and are exact under any kernel, since the rows
are computed from the kernel's own arguments and put over its output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.edit import RowEdit
from seeing.edits.heads import heads_of
from seeing.edits.select import BadEdit, Moment, attention_layers, selector
from seeing.vlm import VLM


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number."""
    return isinstance(value, Real) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class _Keyed(RowEdit):
    """Queries, keys, layers and heads: what the edits of this module share."""

    keys: Any
    queries: Any = "last"
    layers: Any = "all"
    heads: Any = None
    when: str = "both"

    def __post_init__(self):
        object.__setattr__(self, "keys", selector(self.keys))
        object.__setattr__(self, "queries", selector(self.queries))
        if self.heads is not None:
            object.__setattr__(self, "heads", heads_of(self.heads))
        if not isinstance(self.layers, (str, int, slice)):
            object.__setattr__(self, "layers", tuple(self.layers))
        self._check_when()

    def fit(self, vlm: VLM) -> RowEdit:
        n_heads = vlm.cfg.n_heads
        for head in self.heads or ():
            if not 0 <= head < n_heads:
                raise BadEdit(f"no head {head}: the text stack has heads 0-{n_heads - 1}")
        return replace(self, layers=attention_layers(self.layers, vlm))

    def key_mask(self, at: Moment) -> Tensor:
        """(batch, 1, 1, key), True at the keys chosen. Raises `EmptySelection` for a row that has none."""
        return at.keys(self.keys, decodes=self.when != "prompt")[:, None, None, :]


@dataclass(frozen=True, kw_only=True)
class Bias(_Keyed):
    """Add ``value`` to the scores of the chosen queries at the chosen keys.

    A bias of log γ multiplies each chosen key's weight by γ against every other key.
    """

    value: float

    def __post_init__(self):
        super().__post_init__()
        if not is_number(self.value):
            raise BadEdit(f"a bias is a finite number, got {self.value!r}; Knockout cuts edges")

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return scores + self.value * self.key_mask(at)


@dataclass(frozen=True, kw_only=True)
class ScaleAttention(_Keyed):
    """Multiply the weight of the chosen keys by ``gain`` before normalising: a bias of log gain.

    ``gain=1`` changes nothing but rounding, for the rows are written anew. With weight m on the keys
    before, the weight after is gain·m / (1 + (gain − 1)·m).
    """

    gain: float

    def __post_init__(self):
        super().__post_init__()
        if not (is_number(self.gain) and self.gain > 0):
            raise BadEdit(f"a gain is a positive number, got {self.gain!r}; Knockout takes keys away")

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return scores + math.log(self.gain) * self.key_mask(at)


@dataclass(frozen=True, kw_only=True)
class Knockout(_Keyed):
    """Cut the edges from the chosen queries to the chosen keys: −∞, on top of the mask that is there.

    A query that is left with no key at all writes zeros. Keys that the mask hides already (later
    tokens, padding) stay hidden.
    """

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return torch.where(self.key_mask(at), float("-inf"), scores)
