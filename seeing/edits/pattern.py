"""Edits of post-softmax rows: weights moved, scaled or set, behind the normalisation.

What is not renormalised no longer sums to one: a head whose weights on some keys are halved writes out less,
which is what zeroing "attention weights" means in most of the literature. Keys that the model's mask hides
keep weight zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.edits.edit import PatternEdit
from seeing.edits.layers import number, own
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.scores import is_number
from seeing.edits.select import Selector, selector

Rows = Float[Tensor, "batch head rows key"]
Seen = Bool[Tensor, "batch head rows key"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ScalePattern(PatternEdit):
    """Multiply the weights on the chosen keys by ``factor``; 0 takes them away, 1 changes nothing.

    ``renormalize`` makes the rows sum to what they did before (then it is `ScaleAttention`, where a gain is
    positive); without it the other weights stay as they are.
    """

    factor: float
    renormalize: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not (is_number(self.factor) and self.factor >= 0):
            raise BadEdit(f"a factor on weights is a number from 0 up, got {self.factor!r}")
        self._say(factor=number(self.factor))

    def pattern(self, pattern: Rows, at: Moment, seen: Seen) -> Tensor:
        scaled = torch.where(self.key_mask(at), pattern * self.factor, pattern)
        if not self.renormalize:
            return scaled
        left = scaled.sum(-1, keepdim=True)
        total = pattern.sum(-1, keepdim=True)
        return torch.where(left > 0, scaled * (total / left.clamp_min(1e-30)), scaled)


@dataclass(frozen=True, eq=False, repr=False)
class SetPattern(PatternEdit):
    """Set the weights on the chosen keys.

    ``value`` is "uniform" (the weight that lies on the chosen keys is spread evenly over those that the row
    sees), a number, or a tensor that broadcasts to (batch, head, rows, key) with the keys of the prompt as
    its last axis and one row, or as many as there are queries in the prompt pass. Decoded tokens, which a
    tensor can't know, get weight zero where they are chosen. Weights are not renormalised; one on a key that
    the mask hides is refused.
    """

    value: Any
    keys: Any = field(default="all", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.value, str):
            good = self.value == "uniform"
        elif is_number(self.value):
            good = self.value >= 0
            self._say(value=number(self.value))
        else:
            try:
                self._say(value=own(torch.as_tensor(self.value)))
            except (TypeError, ValueError, RuntimeError) as error:
                raise BadEdit(f"weights are 'uniform', a number or a tensor: {error}") from error
            value = self.value
            good = 1 <= value.ndim <= 4 and value.isfinite().all() and (value >= 0).all()
        if not good:
            raise BadEdit(
                "weights are 'uniform', a number from 0 up, or a finite tensor (…, key); got "
                f"{self.value!r:.200}"
            )

    def pattern(self, pattern: Rows, at: Moment, seen: Seen) -> Tensor:
        keys = self.key_mask(at)
        if isinstance(self.value, str):
            mine = keys & seen
            share = torch.where(mine, pattern, 0).sum(-1, keepdim=True) / mine.sum(
                -1, keepdim=True
            ).clamp_min(1)
            return torch.where(mine, share, pattern)
        value = self._over(pattern, at)
        if (hidden := (value > 0) & keys & ~seen & seen.any(-1, keepdim=True)).any():
            raise BadEdit(
                f"{self!r} puts weight on {int(hidden.sum())} keys that the mask hides from their rows; "
                f"leave them out with keys=…"
            )
        return torch.where(keys & seen, value.expand_as(pattern), pattern)

    def _over(self, pattern: Tensor, at: Moment) -> Tensor:
        """The value over the keys that the layer holds."""
        if is_number(self.value):
            return torch.full_like(pattern, self.value)
        value = self.value.to(pattern)
        length = at.n_prompt - at.shift
        if value.shape[-1] != length:
            raise BadEdit(f"{self!r}: the value has {value.shape[-1]} keys, the prompt {length}")
        value = at.pick_rows(value, repr(self))
        value = torch.nn.functional.pad(value, (at.shift, at.n_seen - at.n_prompt))[..., -pattern.shape[-1] :]
        try:
            return torch.broadcast_to(at.each(value), pattern.shape)
        except RuntimeError as error:
            raise BadEdit(
                f"{self!r} does not fit rows of (batch, head, rows, key) {tuple(pattern.shape)}; when it is "
                f"the prompt pass alone that it fits, say when='prompt'"
            ) from error


@dataclass(frozen=True)
class Attending:
    """Rows and heads by what they attend to: at least ``least`` of their weight lies on ``keys``.

    With ``sinks`` also: of that weight at most the share ``most`` lies on keys that are sinks.
    """

    keys: Any
    least: float = 0.0
    sinks: Any = None
    most: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "keys", selector(self.keys))
        object.__setattr__(self, "sinks", None if self.sinks is None else selector(self.sinks))
        for name in ("least", "most"):
            if not (is_number(getattr(self, name)) and 0 <= getattr(self, name) <= 1):
                raise BadEdit(f"{name} is a share in [0, 1], got {getattr(self, name)!r}")
            object.__setattr__(self, name, number(getattr(self, name)))

    def __call__(self, pattern: Rows, at: Moment) -> Bool[Tensor, "batch head rows 1"]:
        keys = at.key_mask(self.keys)
        mass = torch.where(keys, pattern, 0).sum(-1, keepdim=True)
        chosen = mass >= self.least
        if self.sinks is not None:
            sinks = keys & at.mask(self.sinks)[:, -pattern.shape[-1] :][:, None, None, :]
            lost = torch.where(sinks, pattern, 0).sum(-1, keepdim=True)
            chosen = chosen & (lost <= self.most * mass)
        return chosen


@dataclass(frozen=True, eq=False, repr=False)
class Redistribute(PatternEdit):
    """Move ``share`` of the weight on ``sinks`` to the keys ``to``, in proportion to their weights.

    Rows keep their sum. Keys that are both are sinks. A row with no weight on ``to`` is left alone.
    ``where`` says which rows and heads by what they attend to, `Attending`. Visual attention redistribution,
    arXiv 2503.03321: share = 1 − p.
    """

    sinks: Any
    to: Any
    share: float
    where: Attending | None = None
    keys: Any = field(default="all", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self._say(sinks=selector(self.sinks), to=selector(self.to))
        if not (is_number(self.share) and 0 <= self.share <= 1):
            raise BadEdit(f"a share of the weight is in [0, 1], got {self.share!r}")
        if not (self.where is None or isinstance(self.where, Attending)):
            raise BadEdit(f"where is None or E.Attending(keys, …), got {self.where!r:.200}")
        self._say(share=number(self.share))

    @property
    def selectors(self) -> tuple[Selector, ...]:
        more = () if self.where is None else (self.where.keys, self.where.sinks)
        return (*super().selectors, *(one for one in more if one is not None))

    def pattern(self, pattern: Rows, at: Moment, seen: Seen) -> Tensor:
        sinks, to = (at.key_mask(one, self.decodes) for one in (self.sinks, self.to))
        to = to & ~sinks
        taken = torch.where(sinks, pattern, 0) * self.share
        held = torch.where(to, pattern, 0)
        room = held.sum(-1, keepdim=True)
        moved = pattern - taken + held * (taken.sum(-1, keepdim=True) / room.clamp_min(1e-30))
        good = room > 0
        if self.where is not None:
            good = good & self.where(pattern, at)
        return torch.where(good, moved, pattern)


@dataclass(frozen=True, eq=False, repr=False)
class MapPattern(PatternEdit):
    """Replace the weights on the chosen keys by ``fn(pattern)``.

    ``fn`` takes post-softmax rows (batch, head, rows, key) in float32 and gives as many back, none negative;
    what it gives at keys, heads and rows that are not chosen is not used. Nothing is renormalised.
    """

    fn: Callable[[Tensor], Tensor]
    keys: Any = field(default="all", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.fn):
            raise BadEdit(f"MapPattern takes a function of weights, got {self.fn!r}")

    def pattern(self, pattern: Rows, at: Moment, seen: Seen) -> Tensor:
        mapped = self.fn(pattern)
        if not isinstance(mapped, Tensor) or mapped.shape != pattern.shape:
            return mapped
        return torch.where(self.key_mask(at) & seen, mapped, pattern)
