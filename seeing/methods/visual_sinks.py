"""Visual attention redistribution (VAR): weight that sinks draw is given to the rest of the picture.

A few dimensions of the residual stream are huge at a few tokens, and attention goes to these tokens whatever
they hold (arXiv 2503.03321). Which dimensions is a property of the language model, so they are looked for in
the model at hand (`sink_dims`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits import Attending, BadEdit, Redistribute, Span, sinks
from seeing.edits.layers import whole
from seeing.methods.method import Edited
from seeing.prompt import Prompt
from seeing.vlm import VLM


class SinkDims(tuple[int, ...]):
    """Sink dimensions of a model, the largest first; ``print`` shows how large they are.

    Attributes:
        ratios: how large each gets at some token: |x_d| / rms(x).
        rest: how large the median dimension gets.
    """

    ratios: tuple[float, ...]
    rest: float

    @classmethod
    def of(cls, dims: Iterable[int], ratios: Iterable[float], rest: float) -> SinkDims:
        found = cls(dims)
        found.ratios, found.rest = tuple(ratios), rest
        return found

    def __str__(self) -> str:
        each = ", ".join(f"{dim} ({ratio:.1f})" for dim, ratio in zip(self, self.ratios))
        return f"{each} × rms, where the median dimension reaches {self.rest:.1f}"


def var(
    dims: Iterable[int],
    tau: float = 20.0,
    rho: float = 0.5,
    p: float = 0.6,
    *,
    least: float = 0.2,
    layers: Any = slice(2, -1),
) -> Edited:
    """Visual attention redistribution (VAR, arXiv 2503.03321): A_S ← p·A_S, the rest goes to the picture.

    Sinks S are the tokens of which one of ``dims`` (`sink_dims` finds them) is above ``tau`` × rms in what
    enters a layer. In the rows of text tokens, of the prompt and decoded, heads that see the picture well are
    changed: at least ``least`` of their weight is on the picture, and at most the share ``rho`` of that on
    sinks. (1 − p)·A_S, from sinks of picture and text alike, is added to the picture's other tokens, in
    proportion to their weights; rows keep their sum. p = 1 is neutral. By default all layers act but the
    first two and the last.
    """
    found = sinks(dims, tau)
    edit = Redistribute(
        found,
        "image",
        1 - p,
        Attending("image", least, found, rho),
        queries=Span("text") | "answer",
        layers=layers,
    )
    return Edited(edit, f"VAR: {1 - p:.0%} of the weight on sinks to the picture, dims {list(found.dims)}")


def sink_sizes(
    vlm: VLM, prompts: Prompt | Iterable[EvidenceSample | tuple]
) -> Float[Tensor, "token d_model"]:
    """How large each dimension is at each token, |x_d| / rms(x), at its largest over what enters the layers.

    Tokens of all prompts in a row, without padding. One pass, and the streams of all layers in memory: a few
    prompts are enough.
    """
    prompt = prompts if isinstance(prompts, Prompt) else vlm.prompts(prompts)
    real = prompt.inputs["attention_mask"].bool().cpu()
    cache = vlm.cache(prompt, "text.*.resid_pre", device="cpu")
    streams = (value[real].float().abs() for value in cache.values())
    return torch.stack([x / x.pow(2).mean(-1, keepdim=True).sqrt() for x in streams]).amax(0)


def sink_dims(
    vlm: VLM, prompts: Prompt | Iterable[EvidenceSample | tuple], k: int = 2, tau: float = 20.0
) -> SinkDims:
    """The ``k`` (or fewer) dimensions that make sinks in this model, the largest first: what `var` takes.

    A dimension is one if it is above ``tau`` × rms in some layer, at one token in ten at most (else it would
    make sinks of them all), and reaches twice what the median dimension does. LLaMA-2-7B has 2533 and 1415.
    No dimension can exceed √d_model × rms, so narrow models have none at 20.

    Raises `BadEdit` where there is none; it says how large the largest get.
    """
    if whole(k) is None or k < 1:
        raise BadEdit(f"k is how many dimensions to look for, at least 1; got {k!r}")
    sizes = sink_sizes(vlm, prompts)
    top, often = sizes.amax(0), (sizes > tau).float().mean(0)
    rest = float(top.median())
    good = (top > tau) & (often <= 0.1) & (top > 2 * rest)
    ranked = top.argsort(descending=True, stable=True).tolist()
    dims = [dim for dim in ranked if good[dim]][:k]
    if not dims:
        largest = SinkDims.of(ranked[:k], top[ranked[:k]].tolist(), rest)
        raise BadEdit(
            f"no dimension of this model makes sinks at tau={tau}. The largest: {largest}. Sinks are few "
            f"tokens with a dimension above tau × rms and far above the rest; a lower tau finds weaker ones"
        )
    return SinkDims.of(dims, top[dims].tolist(), rest)
