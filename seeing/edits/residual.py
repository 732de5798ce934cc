"""Edits of named activations at chosen positions: steering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.edit import SiteEdit, chosen_rows
from seeing.edits.select import BadEdit, Moment, Selector, selector
from seeing.names import ROW_SITES, Name, UnknownName, expand
from seeing.vlm import VLM


@dataclass(frozen=True, eq=False)
class Steer(SiteEdit):
    """Add ``strength · vector`` to a named activation: ``Steer("text.14.resid_post", direction, 4.0)``.

    Acts at ``positions``, by default the newest one: the last prompt token, then each decoded token.
    The vector has the width of the site's last axis. Sites of the vision stack and the projector
    have no positions of the sequence: there it takes ``positions="all"``.
    """

    site: str
    vector: Any
    strength: float = 1.0
    positions: Selector | str | int | Sequence | Tensor = "last"
    when: str = "both"

    def __post_init__(self):
        object.__setattr__(self, "positions", selector(self.positions))
        try:
            object.__setattr__(self, "vector", torch.as_tensor(self.vector))
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadEdit(f"a steering vector is a tensor, an array or a list of numbers: {error}") from error
        if self.vector.ndim != 1 or not torch.isfinite(self.vector).all():
            raise BadEdit(f"a steering vector is one axis of finite numbers, got {tuple(self.vector.shape)}")
        if not math.isfinite(self.strength):
            raise BadEdit(f"a strength is a finite number, got {self.strength}")
        self._check_when()

    def fit(self, vlm: VLM) -> SiteEdit:
        try:
            site, *more = expand(self.site, vlm.names(), vlm.sites.absent)
        except UnknownName as error:
            raise BadEdit(f"Steer takes one site that the model has; {self.site!r}: {error}") from error
        if more:
            raise BadEdit(
                f"Steer takes one site; {self.site!r} names {1 + len(more)}: add one Steer for each"
            )
        name = Name.parse(site)
        if name.site in ROW_SITES:
            raise BadEdit(f"{site!r} holds rows of attention; Bias, ScaleAttention and Knockout edit those")
        if (
            name.stack != "text"
            and not site.startswith(("text.", "logits"))
            and repr(self.positions) != "'all'"
        ):
            raise BadEdit(f"{site!r} has no positions of the sequence; steer it with positions='all'")
        width = _width(name, vlm)
        if width not in (None, len(self.vector)):
            raise BadEdit(f"{site!r} is {width} wide, the steering vector has {len(self.vector)} numbers")
        return Steer(site, self.vector, self.strength, self.positions, self.when)

    def value(self, value: Float[Tensor, "..."], at: Moment) -> Tensor:
        if value.shape[-1] != len(self.vector):
            raise BadEdit(
                f"{self.site!r} is {value.shape[-1]} wide, the steering vector has {len(self.vector)} numbers"
            )
        steered = value + self.strength * self.vector.to(value)
        if repr(self.positions) == "'all'":
            return steered
        mask = at.some(self.positions, "positions", decodes=self.when != "prompt")
        mask = chosen_rows(mask, value.shape[1])
        return torch.where(mask.reshape(*mask.shape, *(1,) * (value.ndim - 2)), steered, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Steer):
            return NotImplemented
        return self._key() == other._key() and torch.equal(self.vector, other.vector)

    def __hash__(self) -> int:
        return hash((*self._key(), tuple(self.vector.tolist())))

    def _key(self) -> tuple:
        return self.site, self.strength, self.positions, self.when


def _width(name: Name, vlm: VLM) -> int | None:
    """The size of a site's last axis, where the configuration says it."""
    if name.site in ("mlp.post", "projector.in"):
        return None
    if name.site == "logits":
        return vlm.cfg.d_vocab
    sizes = vlm.cfg.vision if name.stack == "vision" or name.site == "vision.embed" else vlm.cfg
    return sizes.d_head if name.site in ("attn.q", "attn.k", "attn.v", "attn.z") else sizes.d_model
