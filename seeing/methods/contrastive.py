"""Published methods that decode from two runs, of which one sees the picture worse, or better.

p is the log-probability of a token in the run as it is, p′ in the other one. Both decode the same tokens, and
the mix is made at each of them (`Contrast`), whose log-probabilities are those of the answer. With
``plausibility`` β tokens with p < max p + log β are left out; not so at a weight of 0, which is neutral.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from seeing.edits import Amplify, Contrast, Edits, Highlight, Knockout, Noise, Occlude
from seeing.edits.edit import Edit
from seeing.edits.moment import BadEdit
from seeing.methods.method import Answers, Edited, Method
from seeing.prompt import Prompt
from seeing.vlm import VLM

#: One map for every row, or one a row: (height, width) of the picture, values in [0, 1].
Maps = Float[np.ndarray, "height width"] | Sequence[Float[np.ndarray, "_ _"]]


def blind() -> Knockout:
    """The prompt without its picture: no position attends to the image's tokens, in any layer.

    The tokens stay where they are, so positions are those of the full prompt, and so do the markers that a
    template puts around a picture: the text knows that there is one, and can't see it. (The image's own
    tokens are cut from each other too, which nothing else sees.)
    """
    return Knockout(queries="all", keys="image")


def vcd(alpha: float = 0.5, step: int = 500, plausibility: float | None = 0.1, seed: int = 0) -> Edited:
    """Visual contrastive decoding (arXiv 2311.16922): (1 + α)·p − α·p′, p′ of the picture under noise.

    ``step`` (0-999) is how far the picture is diffused, `Noise.diffused`. α = 0 is neutral.
    """
    return Edited(
        _contrast(Noise.diffused(step, seed), alpha, plausibility),
        f"VCD: against the picture at noise step {step}, α = {alpha}",
    )


def m3id(decay: float = 0.02, plausibility: float | None = 0.1, weight: float = 1.0) -> Edited:
    """M3ID (arXiv 2403.14003): p + (1 − g)/g · (p − p′), p′ without the picture, g = exp(−λ·t).

    λ = ``decay``, t counts decoded tokens from 1: the picture counts more, the longer an answer gets.
    ``weight`` multiplies the second term, 1 in the paper. λ = 0 is neutral. The picture is taken away as
    `blind` has it.
    """
    return Edited(
        _contrast(blind(), weight if decay else 0, plausibility, decay=decay),
        f"M3ID: against the prompt without its picture, decay {decay}",
    )


def crg(boxes: Any = "evidence", alpha: float = 1.0, fill: Any = (0, 0, 0)) -> Edited:
    """Contrastive region guidance (arXiv 2403.02325): (1 + α)·p − α·p′, p′ with ``boxes`` blacked out.

    ``boxes`` are "evidence" (those of the sample), or xyxy pixels, as in `Occlude`. α = 0 is neutral.
    """
    return Edited(
        _contrast(Occlude(boxes, fill), alpha),
        f"CRG: against the picture without {boxes!r:.60}, α = {alpha}",
    )


def pai(
    alpha: float = 0.2, gamma: float = 1.1, layers: Any = slice(2, None), plausibility: float | None = 0.1
) -> Edited:
    """Paying more attention to image (PAI, arXiv 2407.21771): a push towards the picture, and guidance.

    In ``layers`` the last row's scores on the picture get z ← z + α·|z|. Tokens are decoded from
    γ·p − (γ − 1)·p′, p′ without the picture (`blind`) and without the push. α = 0, γ = 1 are neutral; γ = 1
    needs no second run.
    """
    push = Edits((Amplify(keys="image", share=alpha, layers=layers),))
    guided = push if gamma == 1 else push + _contrast(blind(), gamma - 1, plausibility)
    return Edited(guided, f"PAI: α = {alpha} on the picture, γ = {gamma}")


@dataclass(frozen=True, eq=False)
class Agla(Method):
    """Assembly of global and local attention (AGLA, arXiv 2406.12718): p + α·p′, p′ of the salient part.

    p′ is of the picture with all that is not salient made black: each pixel times its map in [0, 1]. The
    authors' maps are GradCAMs of BLIP-ITM, of which the best pixels are kept. Here ``saliency`` is maps, or a
    function (vlm, prompt) -> maps, such as ``vea(layers).maps``; ``keep`` is the share of pixels that stay,
    None for the map as it is. α = 0 is neutral.
    """

    saliency: Maps | Callable[[VLM, Prompt], Maps]
    alpha: float = 1.0
    plausibility: float | None = 0.5
    keep: float | None = None

    def __post_init__(self):
        if self.keep is not None and not 0 < self.keep <= 1:
            raise BadEdit(f"keep is a share of the pixels, in (0, 1], got {self.keep!r}")

    @property
    def about(self) -> str:
        return f"AGLA: together with the salient part of the picture, α = {self.alpha}"

    def edits(self, vlm: VLM, prompt: Prompt) -> Contrast:
        maps = self.saliency(vlm, prompt) if callable(self.saliency) else self.saliency
        if self.keep is not None:
            maps = [_best(one, self.keep) for one in ([maps] if isinstance(maps, np.ndarray) else maps)]
        return _contrast(Highlight(maps, alpha=0), -self.alpha, self.plausibility, own=1)

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        return vlm.with_edits(self.edits(vlm, prompt)).answer(prompt)


def agla(saliency: Maps | Callable[[VLM, Prompt], Maps], alpha: float = 1.0, **settings: Any) -> Agla:
    """`Agla`: decoded together with the picture of which ``saliency`` leaves the salient part."""
    return Agla(saliency, alpha, **settings)


def _best(one: Float[np.ndarray, "height width"], share: float) -> Float[np.ndarray, "height width"]:
    """1 at the ``share`` of pixels with the highest values, 0 elsewhere."""
    return (one >= np.quantile(one, 1 - share)).astype(float)


def _contrast(other: Edit, weight: float, plausibility: float | None = None, **settings: Any) -> Contrast:
    return Contrast(other, weight, plausibility if weight else None, **settings)
