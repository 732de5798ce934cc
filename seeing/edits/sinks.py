"""The selector of attention sinks: tokens that draw attention whatever they hold.

A few dimensions of the residual stream are huge at a few tokens, the same dimensions in every prompt, and
attention goes there (massive activations, arXiv 2402.17762; visual attention sinks, arXiv 2503.03321).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from seeing.edits.layers import heads_of, number
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.scores import is_number
from seeing.edits.select import Selector
from seeing.vlm import VLM


@dataclass(frozen=True)
class Sinks(Selector):
    """The tokens that are sinks where the edit acts: max over ``dims`` of |x_d| / rms(x) above ``threshold``.

    x is what enters the layer, ``resid_pre``, so that the layer's own attention can be edited by it. Tokens
    of the prompt only. A layer may have none. LLaMA-2-7B has dims (2533, 1415), 13B (2100, 4743), with a
    threshold of 20 (arXiv 2503.03321); other models have others.
    """

    dims: tuple[int, ...]
    threshold: float = 20.0

    #: Early layers have no sinks yet.
    may_be_empty = True
    local = True

    def __post_init__(self):
        object.__setattr__(self, "dims", tuple(sorted(set(heads_of(self.dims)))))
        if not (is_number(self.threshold) and self.threshold > 0):
            raise BadEdit(f"a threshold is a positive number, got {self.threshold!r}")
        object.__setattr__(self, "threshold", number(self.threshold))

    def fit(self, vlm: VLM) -> None:
        for dim in self.dims:
            if not 0 <= dim < vlm.cfg.d_model:
                raise BadEdit(f"no dimension {dim}: the residual stream has 0-{vlm.cfg.d_model - 1}")

    def watches(self, layer: int | None) -> frozenset[str]:
        return frozenset() if layer is None else frozenset({f"text.{layer}.resid_pre"})

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        key = ("sinks", self, at.layer)
        if key not in at.readings:
            if at.step:
                raise BadEdit(f"{self!r} is found in the prompt pass, which this edit does not see")
            found = self.found(at.readings[f"text.{at.layer}.resid_pre"])
            at.readings[key] = (found & at.asked.to(found.device)).cpu()
        return at.widened(at.readings[key])

    def found(self, stream: Tensor) -> Bool[Tensor, "batch pos"]:
        """The sinks of a residual stream (batch, pos, d_model)."""
        x = stream.float()
        sizes = x[..., list(self.dims)].abs().amax(-1)
        return sizes > self.threshold * x.pow(2).mean(-1).sqrt()


def sinks(dims: Iterable[int] | int, threshold: float = 20.0) -> Sinks:
    """`Sinks` of some dimensions of the residual stream."""
    return Sinks(tuple(heads_of(dims)), threshold)


__all__ = ["Sinks", "sinks"]
