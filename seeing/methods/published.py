"""Published methods that edit attention in the pass itself, by name: a few lines each over the edits.

Scores z are pre-softmax, A is the pattern behind the softmax, I are the image's keys. Unless told otherwise
a method acts on the newest token's row, in the prompt pass and at every decoded token, in all heads and
layers. Defaults are those of the paper, or of its authors' code where they differ. Methods that mix two runs
are in `contrastive`, those that move weight off sinks in `visual_sinks`, and `vicrop` and `vista` have
modules of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.edits import BadEdit, Bias, Edits, Knockout, Positions, Temperature, maybe
from seeing.edits.layers import Around, as_dict, head_table
from seeing.edits.scores import is_number
from seeing.edits.select import selector
from seeing.methods.method import Answers, Edited, HeadTable, Method
from seeing.methods.second_look import SecondLook
from seeing.methods.vea import BoostInPass
from seeing.prompt import Prompt
from seeing.vlm import VLM

# ---- this project's own -------------------------------------------------------------------------


def vea_in_pass(heads: HeadTable | Any, layers: Iterable[int], gain: float = 16.0) -> BoostInPass:
    """VEA (arXiv 2510.17771) without its second pass: `BoostInPass`.

    ``heads`` are a table {layer: [heads]}, or a `Profile`, of which the best four before ``layers`` are read.
    What they point at gets ``gain`` times its weight in ``layers``, which lie behind. gain = 1 is neutral.
    """
    layers = tuple(layers)
    return BoostInPass(_table(heads, min(layers, default=None)), layers, gain)


def second_look(heads: HeadTable | Any = None, gain: float = 4.0, **settings: Any) -> SecondLook:
    """The last token run again, own region boosted, on the kept KV cache: `SecondLook`.

    ``heads`` are a table {layer: [heads]}, or a `Profile`, of which the best four are read; ``keys=`` are
    positions in place of a region that is read. gain = 1 is neutral.
    """
    return SecondLook(None if heads is None else _table(heads), gain, **settings)


def _table(heads: HeadTable | Any, below: int | None = None) -> HeadTable:
    return heads.heads(below=below) if callable(getattr(heads, "heads", None)) else heads


# ---- scores scaled ------------------------------------------------------------------------------


def scaling_vis(weight: float) -> Edited:
    """ScalingVis (arXiv 2503.01773): z ← w·z at the image's keys, in the last row of the prompt pass.

    w = ``weight`` below 1 flattens what the last token sees of the picture, above 1 sharpens it; 1 is
    neutral.
    """
    return Edited(_scaled(weight), f"scores on the picture times {weight}, prompt pass")


@dataclass(frozen=True)
class AdaptVis(Method):
    """AdaptVis (arXiv 2503.01773): `scaling_vis` by how sure the model is, row by row.

    One pass gives the probability p of the most likely first token. A row with p < ``threshold`` is answered
    with scores on the picture times ``low``, the others with ``high``; 1 and 1 are neutral. The paper tunes
    all three on a data set: ``low`` in 0.5-0.8, ``high`` in 1.2-2.0, ``threshold`` about 0.3.
    """

    low: float = 0.5
    high: float = 1.5
    threshold: float = 0.3

    def __post_init__(self):
        _scaled(self.low), _scaled(self.high)
        if not (is_number(self.threshold) and 0 <= self.threshold <= 1):
            raise BadEdit(f"a threshold is a probability in [0, 1], got {self.threshold!r}")

    @property
    def about(self) -> str:
        return (
            f"scores on the picture times {self.low} where p of the first token is under {self.threshold}, "
            f"else times {self.high}"
        )

    def confidence(self, vlm: VLM, prompt: Prompt) -> Float[Tensor, " batch"]:
        """The probability of each row's most likely first token."""
        return vlm.cache(prompt, "logits")["logits"][: len(prompt), -1].float().softmax(-1).amax(-1).cpu()

    def edits(self, vlm: VLM, prompt: Prompt) -> Edits:
        unsure = self.confidence(vlm, prompt) < self.threshold
        return _scaled(self.low, _last_of(prompt, unsure)) + _scaled(self.high, _last_of(prompt, ~unsure))

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        return vlm.with_edits(self.edits(vlm, prompt)).answer(prompt)


def adaptvis(low: float = 0.5, high: float = 1.5, threshold: float = 0.3) -> AdaptVis:
    """`AdaptVis`: scores on the picture times ``low`` where the model is unsure, else times ``high``."""
    return AdaptVis(low, high, threshold)


def _scaled(weight: float, queries: Any = "last") -> Temperature:
    if not (is_number(weight) and weight > 0):
        raise BadEdit(f"scores are multiplied by a positive number, got {weight!r}; Knockout cuts edges")
    return Temperature(value=1 / weight, keys="image", queries=queries, when="prompt")


def _last_of(prompt: Prompt, rows: Bool[Tensor, " batch"]) -> Any:
    """The last position of some rows."""
    last = torch.arange(prompt.length) == prompt.length - 1
    return maybe(Positions.of_mask(rows[:, None] & last))


# ---- edges cut, weight forced --------------------------------------------------------------------


def gaze_heads(
    heads: Any, target: Any, bias: float = 1e4, *, away: Any = "image", when: Any = "decode"
) -> Edited:
    """Gaze steering (arXiv 2606.14703): some heads look at ``target`` and at nothing else of the picture.

    In ``heads``, {layer: [heads]}, z ← z + B at ``target`` (any selector of positions) and z ← z − B at the
    rest of ``away``; at the default B = ``bias`` all weight goes to the target, in proportion. The authors
    steer decoded tokens; ``when="both"`` steers the prompt's last row too, on which the first token hangs.
    bias = 0 is neutral.
    """
    heads = as_dict(head_table(heads))
    rest = maybe(selector(away) & ~selector(target))
    towards = Bias(keys=target, value=bias, heads=heads, when=when)
    return Edited(
        towards + Bias(keys=rest, value=-bias, heads=heads, when=when),
        f"some heads look at {target!r:.60}, {when}",
    )


def attention_knockout(
    queries: Any, keys: Any, layer: int | None = None, *, window: int = 9, layers: Any = "all"
) -> Edited:
    """Attention knockout (arXiv 2304.14767; for pictures 2411.18620): edges queries → keys are cut, A = 0.

    In ``layers``, or in the ``window`` of layers around ``layer``, as many of them as there are: sweeping
    ``layer`` over a model shows where what flows. −∞ is added to the mask that is there, so padding and
    windows stay. Positions of the prompt as queries are cut in the prompt pass, "last" at decoded tokens too.
    """
    layers = layers if layer is None else Around(layer, window)
    cut = Knockout(queries=queries, keys=keys, layers=layers)
    return Edited(cut, f"edges {cut.queries!r:.40} → {cut.keys!r:.40} cut, layers {cut.layers}")
