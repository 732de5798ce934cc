"""Contrastive decoding: the logits of two runs, of which one carries other edits, mixed at every token.

Both runs are rows of one batch. The prompt runs twice, side by side, each row under its own edits, and
before a token is chosen their log-probabilities are mixed into both, so that they decode the same
token. There is no second model, no second KV cache to keep in step, and one forward a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.edit import Edit, Edits, SiteEdit
from seeing.edits.layers import number, when_said
from seeing.edits.moment import BadEdit
from seeing.edits.scores import is_number
from seeing.names import Name
from seeing.traced import RunEnded
from seeing.vlm import VLM

if TYPE_CHECKING:
    from seeing.edits.program import Program


@dataclass(frozen=True, eq=False, repr=False)
class Contrast(Edit):
    """Decode from (1 + w)·log p − w·log p′, where p′ is the run under ``with_`` in place of the other edits.

    ``weight`` is w; ``own`` is the factor of log p where it is not 1 + w. ``plausibility`` β leaves only
    tokens with p ≥ β·max p. With ``decay`` λ the weight of the t-th token (from 1) is w·(1 − g)/g,
    g = exp(−λ·t).

    Log-probabilities differ from logits by a constant, so this is VCD (arXiv 2311.16922; w = a, β = 0.1), CRG
    (2403.02325), PAI's guidance (2407.21771; w = γ − 1), M3ID (2403.14003; w = 1 with decay 0.02) and AGLA
    (2406.12718; ``own=1, weight=-a``), each with its own ``with_``. w = 0 is neutral but for rounding.

    The mix stands at the last position of ``logits``, in the prompt pass and at each decoded token. ``with_``
    may edit pictures, rows, heads and sites of the text; the tower's sites hold both runs' pictures at once
    and are refused.
    """

    with_: Any
    weight: float
    plausibility: float | None = None
    own: float | None = None
    decay: float | None = None
    when: Any = "both"

    def __post_init__(self):
        if not isinstance(self.with_, (Edit, Edits)):
            raise BadEdit(f"a contrast is with a run under edits, Edits() for none; got {self.with_!r:.200}")
        for name in ("weight", "own", "decay"):
            value = getattr(self, name)
            if not (is_number(value) or (value is None and name != "weight")):
                raise BadEdit(f"{name} is a finite number, got {value!r}")
        if self.plausibility is not None and not (
            is_number(self.plausibility) and 0 < self.plausibility <= 1
        ):
            raise BadEdit(
                "plausibility is a share of the best token's probability, in (0, 1], got "
                f"{self.plausibility!r}"
            )
        if self.decay is not None and self.decay < 0:
            raise BadEdit(f"a decay is at least 0, got {self.decay}")
        plain = {name: number(getattr(self, name)) for name in ("weight", "plausibility", "own", "decay")}
        self._say(when=when_said(self.when), **plain)

    @property
    def others(self) -> tuple[Edit, ...]:
        """The edits of the run that is contrasted with."""
        return (self.with_,) if isinstance(self.with_, Edit) else self.with_.edits

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        for edit in self.others:
            for part in edit.fit(vlm):
                name = Name.parse(part.site) if isinstance(part, SiteEdit) else None
                if name and name.in_tower:
                    raise BadEdit(
                        f"{name} holds the pictures of both runs of a contrast and can't be edited in one; "
                        f"edit the picture, or sites of the text"
                    )
        return (self,)

    def mixed(
        self, own: Float[Tensor, "batch d_vocab"], other: Float[Tensor, "batch d_vocab"], step: int
    ) -> Float[Tensor, "batch d_vocab"]:
        """What is decoded from, of the two runs' logits."""
        p, q = own.float().log_softmax(-1), other.float().log_softmax(-1)
        weight = self.weight
        if self.decay is not None:
            weight = weight * math.expm1(self.decay * (step + 1))
        mixed = (1 + weight if self.own is None else self.own) * p - weight * q
        if self.plausibility is not None:
            bar = p.max(-1, keepdim=True).values + math.log(self.plausibility)
            mixed = mixed.masked_fill(p < bar, float("-inf"))
        return mixed.to(own.dtype)


@dataclass
class Mixing:
    """A `Contrast` made ready: the program of the other run, and the visit of the logits."""

    contrast: Contrast
    other: Program

    def __getstate__(self) -> dict:
        # What the other run is edited by is in its program; edits of pictures don't travel.
        return {**vars(self), "contrast": replace(self.contrast, with_=Edits())}

    def run(self, vlm: VLM, steps: Iterable[int]) -> None:
        """Mix the logits in every step. Called inside a trace, for the whole batch: own rows, then others."""
        for step in steps:
            if step >= self.contrast.stop:
                break
            site = vlm.sites["logits"]
            try:
                logits = site.read()
            except RunEnded:
                return
            own, other = logits[:, -1].chunk(2)
            # Where nothing is mixed the other run still has to decode the same token.
            mixed = self.contrast.mixed(own, other, step) if self.contrast.now(step) else own
            site.write(torch.cat([logits[:, :-1], torch.cat([mixed, mixed])[:, None]], 1))
