"""Edits of pre-softmax rows: what the chosen queries attend to.

All of them act on some queries (by default the newest position: the last prompt token, then each
decoded one), some keys, some heads and some layers, and are exact under any kernel, since the rows
are computed from the kernel's own arguments and put over its output. Keys that the model's mask hides
(later tokens, padding, what has left a window) stay hidden whatever an edit says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.edit import ScoreEdit
from seeing.edits.moment import BadEdit, Moment


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number."""
    return isinstance(value, Real) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Bias(ScoreEdit):
    """Add ``value`` to the scores of the chosen queries at the chosen keys.

    A bias of log γ multiplies each chosen key's weight by γ against every other key. A large one (1e4 and
    more, as in gaze steering, arXiv 2606.14703) puts all weight on the keys, in proportion.
    """

    value: float

    def __post_init__(self):
        super().__post_init__()
        if not is_number(self.value):
            raise BadEdit(f"a bias is a finite number, got {self.value!r}; Knockout cuts edges")

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return scores + self.value * self.key_mask(at)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ScaleAttention(ScoreEdit):
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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Knockout(ScoreEdit):
    """Cut the edges from the chosen queries to the chosen keys: −∞, on top of the mask that is there.

    What is cut stays cut, whatever the edits behind do.
    A query that is left with no key at all writes zeros. Keys that the mask hides already (later
    tokens, padding) stay hidden. Attention knockout, Geva et al. 2023 (arXiv 2304.14767).
    """

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return torch.where(self.key_mask(at), float("-inf"), scores)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Temperature(ScoreEdit):
    """Divide the scores at the chosen keys by ``value``: below 1 sharper, above 1 flatter, 1 neutral.

    At all keys this is the temperature of the softmax. At some keys only it is ScalingVis and AdaptVis
    (arXiv 2503.01773), which multiply the image's scores by w = 1 / ``value``.
    """

    value: float
    keys: Any = field(default="all", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not (is_number(self.value) and self.value > 0):
            raise BadEdit(f"a temperature is a positive number, got {self.value!r}")

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return torch.where(self.key_mask(at), scores / self.value, scores)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Amplify(ScoreEdit):
    """Add ``share`` of their own size to the scores at the chosen keys: z + share·|z|; 0 is neutral.

    PAI (arXiv 2407.21771): a push that is never down, whatever the sign of the score.
    """

    share: float

    def __post_init__(self):
        super().__post_init__()
        if not is_number(self.share):
            raise BadEdit(f"a share is a finite number, got {self.share!r}")

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return torch.where(self.key_mask(at), scores + self.share * scores.abs(), scores)


@dataclass(frozen=True, eq=False, repr=False)
class MapScores(ScoreEdit):
    """Replace the scores at the chosen keys by ``fn(scores)``.

    ``fn`` takes pre-softmax rows (batch, head, rows, key) in float32, −∞ where masked, and gives as many
    back; what it gives at keys, heads and rows that are not chosen, or masked, is not used.
    """

    fn: Callable[[Tensor], Tensor]
    keys: Any = field(default="all", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.fn):
            raise BadEdit(f"MapScores takes a function of scores, got {self.fn!r}")

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        mapped = self.fn(scores)
        if not isinstance(mapped, Tensor) or mapped.shape != scores.shape:
            return mapped
        return torch.where(self.key_mask(at), mapped, scores)
