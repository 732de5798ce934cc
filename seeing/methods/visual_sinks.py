"""Visual attention redistribution (VAR): weight that sinks draw is given to the rest of the picture.

A few dimensions of the residual stream are huge at a few tokens, and attention goes to these tokens whatever
they hold (arXiv 2503.03321). Which dimensions is a property of the language model, so they are looked for in
the model at hand (`sink_dims`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from seeing.edits import Attending, Redistribute, Span, sinks
from seeing.methods.method import Edited
from seeing.probes.heads.sinks import SinkDims, sink_dims, sink_sizes

__all__ = ["SinkDims", "sink_dims", "sink_sizes", "var"]


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
