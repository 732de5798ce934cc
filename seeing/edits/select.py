"""Selectors: which positions an edit is about, said once and resolved against each prompt.

``Span("image") & ~Span("evidence")`` means other positions in every prompt, so a selector is a value
that is resolved when the prompt runs. It gives a mask over all positions seen so far, the prompt and what
was decoded, one row an item of the batch. Plain values stand for selectors wherever one is expected:
a span's name, a list of positions, or a list of boxes in pixels of the original image.

`Seen` is the one that looks: the evidence that the model's own attention points at, read from
earlier layers of the same pass.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from seeing.grid import VisualGrid
from seeing.prompt import Prompt
from seeing.vlm import VLM


class EmptySelection(ValueError):
    """A selector that selects nothing in the prompt at hand."""


class BadEdit(ValueError):
    """An edit that does not fit the model or the prompt."""


@dataclass
class Moment:
    """One step of a run, as the edits see it.

    ``step`` 0 is the prompt pass, later ones decode one token each. ``readings`` lasts through the
    run: what `Seen` has read of each layer. ``crosses`` is the cross-attention layer whose keys the
    prompt describes, if it does.
    """

    prompt: Prompt | None
    step: int
    n_prompt: int
    batch: int
    device: torch.device
    readings: dict[Any, Tensor] = field(default_factory=dict)
    resolved: dict[Any, Tensor] = field(default_factory=dict)
    n_keys: int | None = None
    crosses: int | None = None

    @property
    def n_seen(self) -> int:
        """Positions so far: the prompt's, and one a decoded token."""
        return self.n_prompt + self.step

    def mask(self, selector: Selector) -> Bool[Tensor, "batch pos"]:
        """The selector's positions; resolved once a step."""
        if selector not in self.resolved:
            self.resolved[selector] = selector.mask(self).to(self.device)
        return self.resolved[selector]

    def some(self, selector: Selector, what: str, decodes: bool = True) -> Bool[Tensor, "batch pos"]:
        """The selector's positions, where every row must have some, now or (``decodes``) when it decodes.

        Raises `EmptySelection` otherwise: an edit that acts on nothing would pass for one without effect.
        """
        mask = self.mask(selector)
        empty = ~mask.any(1)
        if decodes and empty.any():
            empty = ~replace(self, step=self.step + 1, resolved={}).mask(selector).any(1)
        if empty.any():
            row = int(empty.nonzero()[0])
            raise EmptySelection(f"{what}={selector!r} selects no position in row {row} of the prompt")
        return mask

    def on(self, device: torch.device) -> Moment:
        """The same moment for values on ``device``: the layers of a model may lie on several."""
        return self if device == self.device else replace(self, device=device, resolved={})

    def newest(self, n_keys: int) -> Moment:
        """The same moment for keys of a layer that keeps the newest ``n_keys`` only."""
        return self if n_keys == self.n_seen else replace(self, n_keys=n_keys)

    def across(self, layer: int) -> Moment:
        """The same moment over the keys of a cross-attention layer: selectors mean the image's keys there."""
        cross = self.need_prompt(f"an edit of cross-attention layer {layer}").cross
        return replace(self, prompt=cross, step=0, n_prompt=cross.length, resolved={}, crosses=layer)

    def keys(self, selector: Selector, decodes: bool = True) -> Bool[Tensor, "batch key"]:
        """The keys selected, among those that the layer at hand holds. Raises as `some`."""
        mask = self.some(selector, "keys", decodes and self.crosses is None)
        return mask if self.n_keys is None else mask[:, -self.n_keys :]

    def need_prompt(self, what: str) -> Prompt:
        if self.prompt is None:
            raise BadEdit(f"{what} needs to know the prompt: run the edited model on a Prompt, vlm.prompt(…)")
        return self.prompt

    def widened(self, mask: Bool[Tensor, "batch prompt"]) -> Bool[Tensor, "batch pos"]:
        """A mask over the prompt, with the decoded tokens left out."""
        return torch.nn.functional.pad(mask, (0, self.n_seen - mask.shape[1]))


class Selector(ABC):
    """A set of positions, composed with ``&``, ``|`` and ``~``."""

    @property
    def parts(self) -> tuple[Selector, ...]:
        """The selectors that it is composed of."""
        return ()

    @property
    def reads(self) -> frozenset[int]:
        """Layers of the text stack that must have been read before the selector can be resolved."""
        return frozenset().union(*(part.reads for part in self.parts))

    @abstractmethod
    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        """The positions selected, over all positions seen so far."""

    def fit(self, vlm: VLM) -> None:
        """Check what the selector reads against the model. Raises `BadEdit`."""
        for part in self.parts:
            part.fit(vlm)

    def __and__(self, other: Any) -> Selector:
        return Both(self, selector(other))

    __rand__ = __and__

    def __or__(self, other: Any) -> Selector:
        return Either(self, selector(other))

    __ror__ = __or__

    def __invert__(self) -> Selector:
        return Not(self)


@dataclass(frozen=True)
class Span(Selector):
    """Positions by name: a span of the prompt, or ``last``, ``all``, ``answer``, ``evidence``.

    ``last`` is the newest position: the prompt's last token, then each decoded one. ``answer`` are
    the decoded tokens. ``evidence`` are the image tokens on the sample's boxes (rule "any").
    """

    name: str

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        place = torch.arange(at.n_seen, device=at.device).expand(at.batch, -1)
        if at.crosses is not None and self.name in ("last", "answer", "question", "template", "text"):
            raise BadEdit(
                f"layer {at.crosses} attends to the image's keys only, {self.name!r} is none of them; leave "
                f"the cross-attention layers out with layers=…"
            )
        if self.name == "last":
            return place == at.n_seen - 1
        if self.name == "all":
            return torch.ones_like(place, dtype=torch.bool)
        if self.name == "answer":
            return place >= at.n_prompt
        prompt = at.need_prompt(f"the selector {self.name!r}")
        if self.name == "evidence":
            return at.widened(prompt.evidence())
        if self.name not in prompt.spans:
            known = ", ".join((*prompt.spans, "last", "all", "answer", "evidence"))
            raise BadEdit(f"no positions are called {self.name!r}; this prompt has {known}")
        return at.widened(prompt.spans.mask(self.name))

    def __repr__(self) -> str:
        return repr(self.name)


@dataclass(frozen=True)
class Positions(Selector):
    """Positions by number, the same for every row or one tuple a row.

    They count from the start of the padded row, as in ``prompt.spans``; negative ones from its end. One
    that is padding is refused, so that a position does not mean one token in a batch and another alone.
    """

    rows: tuple[tuple[int, ...], ...]

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        if len(self.rows) not in (1, at.batch):
            raise BadEdit(f"positions are given for {len(self.rows)} rows, the batch has {at.batch}")
        mask = torch.zeros(at.batch, at.n_seen, dtype=torch.bool)
        for row in range(at.batch):
            for position in self.rows[row % len(self.rows)]:
                if not -at.n_prompt <= position < at.n_prompt:
                    raise BadEdit(f"position {position} is outside the prompt of {at.n_prompt} tokens")
                mask[row, position % at.n_prompt] = True
        if at.prompt is not None and at.crosses is None:
            padding = mask[:, : at.n_prompt] & (at.prompt.inputs["attention_mask"].cpu() == 0)
            for row, position in padding.nonzero()[:1].tolist():
                raise BadEdit(
                    f"position {position} is padding in row {row} of the batch; give positions row by row, "
                    f"from the end (negative), or by a span's name"
                )
        return mask

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "batch pos"]) -> Positions:
        """The positions where a (batch, pos) mask is true."""
        return cls(tuple(tuple(row.nonzero()[:, 0].tolist()) for row in mask))

    def __repr__(self) -> str:
        return repr(list(self.rows[0])) if len(self.rows) == 1 else f"Positions({self.rows!r})"


@dataclass(frozen=True)
class Boxes(Selector):
    """The tokens of every row's first picture that overlap boxes, xyxy pixels of the original image."""

    boxes: tuple[tuple[float, ...], ...]

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        prompt = at.need_prompt("a selector of boxes")
        mask = torch.zeros(len(prompt), prompt.length, dtype=torch.bool)
        for row, grid in first_grids(prompt):
            mask[row, grid.positions[grid.labels(self.boxes)]] = True
        return at.widened(mask)

    def __repr__(self) -> str:
        return repr(list(self.boxes))


@dataclass(frozen=True)
class _Pair(Selector):
    left: Selector
    right: Selector

    @property
    def parts(self) -> tuple[Selector, ...]:
        return self.left, self.right


class Both(_Pair):
    """The positions that two selectors share."""

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return at.mask(self.left) & at.mask(self.right)

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


class Either(_Pair):
    """The positions that at least one of two selectors chooses."""

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return at.mask(self.left) | at.mask(self.right)

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


@dataclass(frozen=True)
class Not(Selector):
    inner: Selector

    @property
    def parts(self) -> tuple[Selector, ...]:
        return (self.inner,)

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return ~at.mask(self.inner)

    def __repr__(self) -> str:
        return f"~{self.inner!r}"


def first_grids(prompt: Prompt) -> Iterable[tuple[int, VisualGrid]]:
    """Each row with the grid of its first picture."""
    return ((row, prompt.grids[prompt.grid_rows.index(row)]) for row in range(len(prompt)))


def selector(spec: Any) -> Selector:
    """A selector from what stands for one. Raises `BadEdit` for anything else."""
    if isinstance(spec, Selector):
        return spec
    if isinstance(spec, str):
        return Span(spec)
    if isinstance(spec, (Tensor, np.ndarray, np.generic)):
        values = torch.as_tensor(spec)
        if values.dtype == torch.bool and values.ndim in (1, 2):
            return Positions.of_mask(values.reshape(-1, values.shape[-1]))
        return selector(values.tolist())
    if (position := whole(spec)) is not None:
        return Positions(((position,),))
    if isinstance(spec, Sequence) and len(spec):
        positions = tuple(map(whole, spec))
        if None not in positions:
            if _is_box(spec, positions):
                raise BadEdit(
                    f"is {spec!r} a box or four positions? A box is [{spec!r}], positions are a list"
                )
            return Positions((positions,))
        if all(isinstance(one, (Sequence, np.ndarray)) and len(one) == 4 for one in spec):
            return Boxes(tuple(tuple(float(edge) for edge in box) for box in spec))
    raise BadEdit(
        f"{spec!r} selects no positions; give a name ('image', 'question', 'evidence', 'last', …), "
        f"positions, boxes (x0, y0, x1, y1), or a selector"
    )


def _is_box(spec: Any, numbers: tuple[int, ...]) -> bool:
    """Whether four numbers read like a box: a tuple, two corners, and not in the order of positions."""
    if not isinstance(spec, tuple) or len(numbers) != 4 or list(numbers) == sorted(set(numbers)):
        return False
    x0, y0, x1, y1 = numbers
    return 0 <= x0 < x1 and 0 <= y0 < y1


def whole(value: Any) -> int | None:
    """``value`` as an int where it is a whole number of any library's kind, else None."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def attention_layers(spec: Any, vlm: VLM) -> tuple[int, ...]:
    """`layers_of` a model for an edit of attention: "all", "deep" and slices pass over layers without rows.

    Raises `BadEdit` for a layer that is named and has none.
    """
    layers, with_rows = layers_of(spec, vlm.cfg.n_layers), vlm.sites.kernels["text"]
    named = not isinstance(spec, (str, slice))
    for layer in layers:
        if layer not in with_rows and named:
            raise BadEdit(f"layer {layer} has no attention: {vlm.sites.absent[f'text.{layer}.attn.pattern']}")
    found = tuple(layer for layer in layers if layer in with_rows)
    if not found:
        raise BadEdit(f"{spec!r} selects no layer with attention; those are {', '.join(map(str, with_rows))}")
    return found


def layers_of(spec: Any, n_layers: int) -> tuple[int, ...]:
    """Layers from "all", "deep" (the second half), an int, a slice, or several ints.

    Raises `BadEdit` for a layer that the model lacks, or for none.
    """
    if isinstance(spec, str) and spec in ("all", "deep"):
        return tuple(range(n_layers // 2 if spec == "deep" else 0, n_layers))
    if isinstance(spec, slice):
        layers = tuple(range(n_layers)[spec])
    else:
        single = whole(spec) is not None
        if not single and (isinstance(spec, str) or not isinstance(spec, Iterable)):
            raise BadEdit(f"layers are 'all', 'deep' (the second half), ints or a slice; got {spec!r}")
        chosen = [spec] if single else list(spec)
        for layer in chosen:
            if whole(layer) is None or not -n_layers <= whole(layer) < n_layers:
                raise BadEdit(f"no layer {layer!r}: the text stack has layers 0-{n_layers - 1}")
        layers = tuple(sorted({whole(layer) % n_layers for layer in chosen}))
    if not layers:
        raise BadEdit(f"{spec!r} selects none of the {n_layers} layers")
    return layers
