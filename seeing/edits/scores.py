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
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.edits.edit import ScoreEdit
from seeing.edits.layers import number
from seeing.edits.moment import BadEdit, Moment


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite real number."""
    return number(value) is not None


#: A bias up to here is added as it is: float32 keeps scores to 1e-5 beside it.
MILD = 64.0

#: A bias beyond is taken as this: exp(−1e4) is zero in any precision.
LARGEST = 1e4


def biased(
    scores: Float[Tensor, "batch head rows key"], keys: Bool[Tensor, "batch 1 #rows key"], by: float
) -> Float[Tensor, "batch head rows key"]:
    """``scores`` with ``by`` more at ``keys``, in each row up to a constant, which a softmax doesn't see.

    A large bias would drown the scores in rounding where it is added. What it favours stays as it is, the
    rest of a row goes down, and the row's largest score is what it was. A row in which it favours nothing
    that is seen is left alone, for there it is such a constant.
    """
    if abs(by) <= MILD:
        return scores + by * keys
    seen = scores > float("-inf")
    favoured = seen & (keys if by > 0 else ~keys)
    down = seen & ~favoured & favoured.any(-1, keepdim=True)
    moved = torch.where(down, scores - min(abs(by), LARGEST), scores)
    lost = scores.amax(-1, keepdim=True) - moved.amax(-1, keepdim=True)
    # Where nothing is seen both are −∞.
    return moved + lost.nan_to_num(0.0)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Bias(ScoreEdit):
    """Add ``value`` to the scores of the chosen queries at the chosen keys.

    A bias of log γ multiplies each chosen key's weight by γ against every other key. A large one (1e4, as in
    gaze steering, arXiv 2606.14703) puts all weight on the keys, in proportion; more than 1e4 is the same as
    1e4, and the scores that show are then those of the row up to a constant.
    """

    value: float

    def __post_init__(self):
        super().__post_init__()
        if not is_number(self.value):
            raise BadEdit(f"a bias is a finite number, got {self.value!r}; Knockout cuts edges")
        self._say(value=number(self.value))

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return biased(scores, self.key_mask(at), self.value)


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
        self._say(gain=number(self.gain))

    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        return biased(scores, self.key_mask(at), math.log(self.gain))


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
        self._say(value=number(self.value))

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
        self._say(share=number(self.share))

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
