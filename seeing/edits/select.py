"""Selectors: which positions an edit is about, said once and resolved against each prompt.

``Span("image") & ~Span("evidence")`` means other positions in every prompt, so a selector is a value
that is resolved when the prompt runs. It gives a mask over all positions seen so far, the prompt and what
was decoded, one row an item of the batch. Plain values stand for selectors wherever one is expected:
a span's name, a list of positions, or a list of boxes in pixels of the original image.

Selectors that look at the model itself read earlier sites of the same pass: `seen.Seen` the rows of
grounding layers, `sinks.Sinks` the residual stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from seeing.edits.layers import whole
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.regions import box_of, depth, plain
from seeing.grid import VisualGrid
from seeing.prompt import Prompt
from seeing.vlm import VLM


class Selector(ABC):
    """A set of positions, composed with ``&``, ``|`` and ``~``."""

    @property
    def parts(self) -> tuple[Selector, ...]:
        """The selectors that it is composed of."""
        return ()

    @property
    def reads(self) -> frozenset[int]:
        """Layers of the text stack whose last row must have been read before the selector can be resolved."""
        return frozenset().union(*(part.reads for part in self.parts))

    def watches(self, layer: int | None) -> frozenset[str]:
        """Names whose values of this pass the selector needs where it selects in ``layer``."""
        return frozenset().union(*(part.watches(layer) for part in self.parts))

    @property
    def local(self) -> bool:
        """Whether it selects other positions in other layers."""
        return any(part.local for part in self.parts)

    @property
    def may_be_empty(self) -> bool:
        """Whether it is meant that a prompt may have no such position."""
        return False

    @abstractmethod
    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        """The positions selected, over all positions seen so far."""

    def fit(self, vlm: VLM) -> None:
        """Check what the selector reads against the model. Raises `BadEdit`."""
        for part in self.parts:
            part.fit(vlm)

    def spelled(self) -> str:
        """How it is written inside a composition, where plain values do not stand for selectors."""
        return repr(self)

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

    ``last`` is the newest position: the prompt's last token, then each decoded one, which in a prompt that
    goes on with a given answer are those that the answer's tokens are predicted at. ``answer`` are
    the decoded tokens, and the answers of earlier turns. ``evidence`` are the image tokens on the sample's
    boxes (rule "any").
    """

    name: str

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise BadEdit(f"a span has a name, got {self.name!r:.200}")

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        place = torch.arange(at.n_seen, device=at.device).expand(at.batch, -1)
        if at.crosses is not None and self.name in ("last", "answer", "question", "template", "text"):
            raise BadEdit(
                f"layer {at.crosses} attends to the image's keys only, {self.name!r} is none of them; leave "
                f"the cross-attention layers out with layers=…"
            )
        if self.name == "last":
            if at.newest_is is not None:
                return torch.full_like(place, at.newest_is == "all", dtype=torch.bool)
            if len(at.steps) > 1:
                return at.prompt.spans.mask("predicts").to(at.device)
            return place == at.n_seen - 1
        if self.name == "all":
            return torch.ones_like(place, dtype=torch.bool)
        if self.name == "answer":
            said = place >= at.n_prompt
            earlier = at.prompt is not None and "answer" in at.prompt.spans
            return said | at.widened(at.prompt.spans.mask("answer")).to(said.device) if earlier else said
        prompt = at.need_prompt(f"the selector {self.name!r}")
        if self.name == "evidence":
            return at.widened(prompt.evidence())
        if self.name not in prompt.spans:
            known = ", ".join(dict.fromkeys((*prompt.spans, "last", "all", "answer", "evidence")))
            raise BadEdit(f"no positions are called {self.name!r}; this prompt has {known}")
        return at.widened(prompt.spans.mask(self.name))

    def spelled(self) -> str:
        return f"Span({self.name!r})"

    def __repr__(self) -> str:
        return repr(self.name)


#: Every position.
ALL = Span("all")


@dataclass(frozen=True)
class Positions(Selector):
    """Positions by number, the same for every row or one tuple a row.

    They count from the start of the padded row, as in ``prompt.spans``; negative ones from its end. One
    that is padding is refused, so that a position does not mean one token in a batch and another alone. Those
    of a mask know its ``length``, and a prompt of another length is refused.
    """

    rows: tuple[tuple[int, ...], ...]
    length: int | None = None

    def __post_init__(self):
        rows = tuple(self.rows) if _several(self.rows) else ()
        rows = tuple(tuple(map(whole, row)) if _several(row) else (None,) for row in rows)
        if not rows or any(None in row for row in rows):
            raise BadEdit(
                f"positions are whole numbers, one tuple for all rows or one a row, as in "
                f"Positions(((3, 4),)); got {self.rows!r:.200}"
            )
        if self.length is not None and (whole(self.length) is None or self.length < 1):
            raise BadEdit(f"the length of a mask is a whole number, got {self.length!r:.200}")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "length", None if self.length is None else whole(self.length))

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        prompts = at.batch // at.copies
        if len(self.rows) not in (1, prompts):
            raise BadEdit(f"positions are given for {len(self.rows)} rows, the batch has {prompts}")
        length = at.n_prompt - at.shift
        # Behind a prompt that goes on with a given answer, negative ones count from the prompt's own end.
        asked = length - (0 if at.prompt is None else at.prompt.n_given)
        if self.length not in (None, length, asked):
            raise BadEdit(
                f"a mask of {self.length} positions is about a prompt of {self.length} tokens, this one has "
                f"{length}; a span's name or positions from the end mean the same in both"
            )
        mask = torch.zeros(at.batch, at.n_seen, dtype=torch.bool)
        for row in range(at.batch):
            for position in self.rows[row // at.copies % len(self.rows)]:
                padding = 0 if at.padding is None or self.length is not None else int(at.padding[row])
                if not padding - asked <= position < length - padding:
                    raise BadEdit(f"position {position} is outside the prompt of {length - padding} tokens")
                mask[row, position + at.shift + (asked if position < 0 else padding)] = True
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
        return cls(tuple(tuple(row.nonzero()[:, 0].tolist()) for row in mask), mask.shape[1])

    def spelled(self) -> str:
        return f"Positions({self.rows!r}{'' if self.length is None else f', length={self.length}'})"

    def __repr__(self) -> str:
        return repr(list(self.rows[0])) if len(self.rows) == 1 and self.length is None else self.spelled()


@dataclass(frozen=True)
class Boxes(Selector):
    """The tokens of each row's picture ``image`` that overlap boxes, xyxy pixels of the original picture."""

    boxes: tuple[tuple[float, ...], ...]
    image: int = 0

    def __post_init__(self):
        boxes = plain(self.boxes)
        if depth(boxes) != 2 or whole(self.image) is None or self.image < 0:
            raise BadEdit(
                f"boxes are some (x0, y0, x1, y1), in a picture counted from 0; got {self.boxes!r:.200}, "
                f"image={self.image!r:.200}"
            )
        boxes = tuple(tuple(map(float, box_of(box))) for box in boxes)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "image", whole(self.image))

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        prompt = at.need_prompt("a selector of boxes")
        mask = torch.zeros(len(prompt), prompt.length, dtype=torch.bool)
        for row, grid in grids_of(prompt, self.image):
            mask[row, grid.positions[grid.labels(self.boxes)]] = True
        return at.widened(mask)

    def spelled(self) -> str:
        return f"Boxes({self.boxes!r}, image={self.image})"

    def __repr__(self) -> str:
        return repr(list(self.boxes)) if self.image == 0 else self.spelled()


@dataclass(frozen=True)
class _Pair(Selector):
    left: Selector
    right: Selector

    def __post_init__(self):
        _check_parts(self)

    @property
    def parts(self) -> tuple[Selector, ...]:
        return self.left, self.right


class Both(_Pair):
    """The positions that two selectors share."""

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return at.mask(self.left) & at.mask(self.right)

    def __repr__(self) -> str:
        return f"({self.left.spelled()} & {self.right.spelled()})"


class Either(_Pair):
    """The positions that at least one of two selectors chooses."""

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return at.mask(self.left) | at.mask(self.right)

    def __repr__(self) -> str:
        return f"({self.left.spelled()} | {self.right.spelled()})"


@dataclass(frozen=True)
class _Single(Selector):
    inner: Selector

    def __post_init__(self):
        _check_parts(self)

    @property
    def parts(self) -> tuple[Selector, ...]:
        return (self.inner,)


class Not(_Single):
    """All positions but those of a selector, padding among them."""

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return ~at.mask(self.inner)

    def __repr__(self) -> str:
        return f"~{self.inner.spelled()}"


class Maybe(_Single):
    """The positions of a selector, of which a prompt may have none: there the edit does nothing."""

    may_be_empty = True

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return at.mask(self.inner)

    def __repr__(self) -> str:
        return f"maybe({self.inner!r})"


def _check_parts(composed: Selector) -> None:
    for part in composed.parts:
        if not isinstance(part, Selector):
            raise BadEdit(f"{type(composed).__name__} is composed of selectors, got {part!r:.200}")


def maybe(spec: Any) -> Maybe:
    """``spec``, where it is meant that it may select nothing: ``E.Knockout(keys=E.maybe("answer"), …)``."""
    return Maybe(selector(spec))


def grids_of(prompt: Prompt, image: int = 0) -> Iterable[tuple[int, VisualGrid]]:
    """Each row with the grid of its picture number ``image``. Raises `BadEdit` for a row that lacks it."""
    for row in range(len(prompt)):
        own = [grid for grid, owner in zip(prompt.grids, prompt.grid_rows) if owner == row]
        if image >= len(own):
            raise BadEdit(f"row {row} of the prompt has {len(own)} picture(s), none is number {image}")
        yield row, own[image]


def selector(spec: Any) -> Selector:
    """A selector from what stands for one. Raises `BadEdit` for anything else."""
    if isinstance(spec, Selector):
        return spec
    if isinstance(spec, str):
        if spec == "seen":
            raise BadEdit(
                "what the model sees is read from layers: E.seen(layers=[...]), or {layer: [heads]}"
            )
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
            return Boxes(plain(list(spec)))
    raise BadEdit(
        f"{spec!r} selects no positions; give a name ('image', 'question', 'evidence', 'last', …), "
        f"positions, boxes (x0, y0, x1, y1), or a selector"
    )


def _several(spec: Any) -> bool:
    return isinstance(spec, Iterable) and not isinstance(spec, (str, bytes, Mapping))


def _is_box(spec: Any, numbers: tuple[int, ...]) -> bool:
    """Whether four numbers read like a box: a tuple, two corners, and not in the order of positions."""
    if not isinstance(spec, tuple) or len(numbers) != 4 or list(numbers) == sorted(set(numbers)):
        return False
    x0, y0, x1, y1 = numbers
    return 0 <= x0 < x1 and 0 <= y0 < y1
