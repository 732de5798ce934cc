"""Early layers' say in the logits: what layers before the last would answer, mixed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seeing.edits.edit import Edit, SiteEdit
from seeing.edits.layers import layers_of, layers_said, number, when_said
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.scores import is_number
from seeing.unembedding import plain
from seeing.vlm import VLM


@dataclass(frozen=True, eq=False, repr=False)
class MixLayers(Edit):
    """Mix what ``layers`` would answer into the logits: y ← (1 − w)·y + w·mean over layers of W_U h.

    h is ``resid_post`` of a layer, unembedded as it is: VISTA's self-logits augmentation (arXiv 2502.03628;
    its code leaves the final norm out, and ``norm=True`` puts it in). w = ``weight``; 0 changes nothing.
    """

    layers: Any
    weight: float = 0.3
    norm: bool = False
    when: Any = "both"

    def __post_init__(self):
        self._say(layers=layers_said(self.layers), when=when_said(self.when))
        if not (is_number(self.weight) and 0 <= self.weight <= 1):
            raise BadEdit(f"a weight is a share in [0, 1], got {self.weight!r}")
        self._say(weight=number(self.weight))

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        names = [f"text.{layer}.resid_post" for layer in layers_of(self.layers, vlm.cfg.n_layers)]
        norm = vlm.family.text(vlm._module).norm if self.norm else None
        return (_MixNames(tuple(names), self.weight, norm, vlm.family.head(vlm._module), self.when),)


@dataclass(frozen=True, eq=False, repr=False)
class _MixNames(SiteEdit):
    names: tuple[str, ...]
    weight: float
    norm: nn.Module | None
    head: nn.Module
    when: Any
    site: str = "logits"

    def watches(self, layer: int | None) -> frozenset[str]:
        return frozenset(self.names)

    def value(self, value: Float[Tensor, "batch pos d_vocab"], at: Moment) -> Tensor:
        early = [
            plain(self.head, self._normed(at.readings[name][:, -value.shape[1] :])) for name in self.names
        ]
        mean = torch.stack(early).mean(0).to(value.device)
        return ((1 - self.weight) * value + self.weight * mean).to(value.dtype)

    def _normed(self, hidden: Tensor) -> Tensor:
        return hidden if self.norm is None else plain(self.norm, hidden)
