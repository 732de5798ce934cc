"""Edits of single heads: z, what a head writes out, before the output projection mixes the heads.

Heads are query heads, also where several share one key/value head. They act at every position, in
the prompt pass and at every decoded token, unless told otherwise: a head set to zero is a head whose columns
of the output projection are zero.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.edit import Edit, SiteEdit
from seeing.edits.layers import check_heads, head_table, number, own, when_said
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.residual import width_of
from seeing.edits.select import ALL, selector
from seeing.edits.source import Source
from seeing.names import Name
from seeing.vlm import VLM

#: What `AblateHeads` sets heads to.
ABLATIONS = ("zero", "mean", "resample")

Z = Float[Tensor, "batch pos some d_head"]


class HeadEdit(Edit):
    """An edit of z: some heads of some layers, at some positions."""

    heads: Any
    positions: Any

    def __post_init__(self):
        self._say(heads=head_table(self.heads), positions=selector(self.positions), when=when_said(self.when))

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        check_heads(self.heads, vlm)
        return tuple(
            OnHeads(f"text.{layer}.attn.z", heads, self, self.positions, self.when)
            for layer, heads in self.heads
        )

    @abstractmethod
    def z(self, z: Z, heads: tuple[int, ...], at: Moment) -> Tensor:
        """The edited output of ``heads`` of the layer ``at.layer``, as if every position were chosen."""


@dataclass(frozen=True, eq=False, repr=False)
class OnHeads(SiteEdit):
    """A `HeadEdit` in one layer."""

    site: str
    heads: tuple[int, ...]
    edit: HeadEdit
    positions: Any
    when: Any

    def value(self, value: Float[Tensor, "batch pos head d_head"], at: Moment) -> Tensor:
        index = torch.tensor(self.heads, device=value.device)
        given = value.index_select(2, index)
        edited = self.edit.z(given, self.heads, at).to(value.dtype)
        if self.positions != ALL:
            mask = at.acting(self.positions, "positions", self, value.shape[1])
            edited = torch.where(mask[:, :, None, None], edited, given)
        return value.index_copy(2, index, edited)


@dataclass(frozen=True, eq=False, repr=False)
class ScaleHeads(HeadEdit):
    """Multiply z of the heads by ``factor``: 0 takes them out, 1 changes nothing."""

    heads: Any
    factor: float
    positions: Any = field(default="all", kw_only=True)
    when: Any = "both"

    def __post_init__(self):
        super().__post_init__()
        if number(self.factor) is None:
            raise BadEdit(f"a factor is a finite number, got {self.factor!r}")
        self._say(factor=number(self.factor))

    def z(self, z: Z, heads: tuple[int, ...], at: Moment) -> Tensor:
        return z * self.factor


@dataclass(frozen=True, eq=False, repr=False)
class SetHeads(HeadEdit):
    """Set z of the heads: ``value`` is a number, or a tensor that broadcasts to (batch, pos, head, d_head).

    The head axis are the heads named in a layer, in ascending order, the same in every layer.
    """

    heads: Any
    value: Any
    positions: Any = field(default="all", kw_only=True)
    when: Any = "both"

    def __post_init__(self):
        super().__post_init__()
        try:
            self._say(value=own(torch.as_tensor(self.value)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadEdit(f"heads are set to a number or a tensor: {error}") from error
        if self.value.ndim > 4 or not torch.isfinite(self.value).all():
            raise BadEdit(f"heads are set to finite values of at most four axes, got {self.value!r:.200}")

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        shape = tuple(self.value.shape)
        check_heads(self.heads, vlm)
        for layer, heads in self.heads:
            width = width_of(Name("attn.z", "text", layer), vlm)
            if shape and width is not None and shape[-1] not in (1, width):
                raise BadEdit(f"{self!r}: heads of layer {layer} are {width} wide, the value {shape[-1]}")
            if len(shape) > 1 and shape[-2] not in (1, len(heads)):
                raise BadEdit(f"{self!r}: the value has {shape[-2]} heads, layer {layer} names {len(heads)}")
        return super().fit(vlm)

    def z(self, z: Z, heads: tuple[int, ...], at: Moment) -> Tensor:
        try:
            return torch.broadcast_to(at.each(self.value.to(z)), z.shape)
        except RuntimeError as error:
            raise BadEdit(f"{self!r} does not fit z of these heads, {tuple(z.shape)}: {error}") from error


@dataclass(frozen=True, eq=False, repr=False)
class AblateHeads(HeadEdit):
    """Take heads out: ``AblateHeads({12: [3, 7]})``.

    ``to`` is what they write instead. "zero". "mean": their mean, over ``source`` (a cache that holds
    ``text.*.attn.z``: its prompts, all positions but padding), or without one over the prompt at hand.
    "resample": what they write in another prompt, ``source``, position by position, aligned by span as in
    `Patch`; without one, in the next row of the batch. Resampling is of the prompt pass alone.
    """

    heads: Any
    to: str = "zero"
    source: Any = None
    positions: Any = field(default="all", kw_only=True)
    when: Any = "both"

    def __post_init__(self):
        super().__post_init__()
        if self.to not in ABLATIONS:
            raise BadEdit(f"heads are ablated to one of {', '.join(map(repr, ABLATIONS))}; got {self.to!r}")
        if self.to == "zero" and self.source is not None:
            raise BadEdit("an ablation to zero takes no source; say to='mean' or to='resample'")
        if self.to == "resample" and self.when == "both":
            self._say(when="prompt")
        if isinstance(self.source, Mapping) or self.source is None:
            names = [f"text.{layer}.attn.z" for layer, _ in self.heads]
            self._say(source=None if self.source is None else Source.of(self.source, names, self.positions))
        elif not isinstance(self.source, Source):
            raise BadEdit(f"a source is what vlm.cache gave, got {type(self.source).__name__}")

    def z(self, z: Z, heads: tuple[int, ...], at: Moment) -> Tensor:
        if self.to == "zero":
            return torch.zeros_like(z)
        if self.to == "mean":
            return self._mean(z, heads, at).expand_as(z)
        if self.source is None:
            return self._next_row(z, at)
        return self.source.onto(z, f"text.{at.layer}.attn.z", self.positions, at, heads)

    def _mean(self, z: Z, heads: tuple[int, ...], at: Moment) -> Float[Tensor, "#batch 1 some d_head"]:
        if self.source is not None:
            return self.source.mean(f"text.{at.layer}.attn.z", z)[:, :, list(heads)]
        # Decoded tokens have what the prompt's own had.
        key = ("mean z", id(self), at.layer)
        if key not in at.readings:
            if at.step:
                raise BadEdit(
                    f"{self!r} takes the mean over the prompt, whose pass it does not see: give a source"
                )
            real = at.tokens(at.real() & at.asked, z.shape[1])[:, :, None, None]
            at.readings[key] = torch.where(real, z, 0).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return at.readings[key]

    def _next_row(self, z: Z, at: Moment) -> Tensor:
        if at.batch == at.copies:
            raise BadEdit(
                f"{self!r} takes what the heads write in the next row of the batch, and there is one row; "
                f"give source=vlm.cache(other_prompt, 'text.*.attn.z')"
            )
        return Source.next_row(z, at, self.positions)
