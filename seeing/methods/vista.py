"""VISTA: steering towards what the picture adds, and early layers' say in the logits (arXiv 2502.03628)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit, Edits, MixLayers, Rotate
from seeing.edits.layers import layers_of
from seeing.methods.contrastive import blind
from seeing.methods.method import Edited
from seeing.prompt import Prompt
from seeing.vlm import VLM

Prompts = Prompt | Iterable[EvidenceSample | tuple]


def vista(
    vectors: Float[Tensor, "layer d_model"],
    strength: float = 0.1,
    *,
    layers: Any = "all",
    window: Any = slice(-8, -2),
    weight: float = 0.3,
    site: str = "mlp_out",
) -> Edited:
    """VISTA (arXiv 2502.03628): every token turned towards ``vectors``, and layers mixed into the logits.

    With n(·) the unit vector and λ = ``strength`` (0.01-0.17 in the paper), at ``site`` of each of ``layers``
    x ← ‖x‖ · n(n(x) + λ·(1 + max(0, cos(x, −v)))·n(v)): what the MLP writes, as in the authors' code;
    ``site="resid_post"`` turns the stream itself. Then y ← (1 − w)·y + w·mean of W_U h over the layers of
    ``window``, w = ``weight``, h without the final norm. The window is the authors' for 32 layers, counted
    from the end. λ = 0 and w = 0 are neutral.
    """
    turned = [
        Rotate(f"text.{layer}.{site}", vectors[layer], strength, positions="all")
        for layer in layers_of(layers, len(vectors))
    ]
    mixed = (MixLayers(window, weight),) if weight else ()
    return Edited(Edits((*turned, *mixed)), f"VISTA: turned by {strength}, early layers' logits {weight}")


def vista_vectors(
    vlm: VLM, positive: Prompts, negative: Prompts | None = None
) -> Float[Tensor, "layer d_model"]:
    """What `vista` steers towards: the first principal component, plus the mean, of differences of pairs.

    A difference is of what leaves the layers (``resid_post``) at the last token, positive minus negative, all
    layers as one vector, as in the authors' code. ``negative`` are by default the same prompts without their
    pictures, as `blind` has it. The component is of length one and has the sign of the mean; one pair has
    none, and its vector is the difference.
    """
    with_ = _last(vlm, positive)
    without = _last(vlm.with_edits(blind()), positive) if negative is None else _last(vlm, negative)
    if len(with_) != len(without):
        raise BadEdit(f"differences are of pairs: {len(with_)} prompts are positive, {len(without)} negative")
    differences = (with_ - without).flatten(1)
    mean = differences.mean(0)
    if len(differences) > 1:
        first = torch.linalg.svd(differences - mean, full_matrices=False).Vh[0]
        mean = mean + (first if mean @ first >= 0 else -first)
    return mean.unflatten(0, with_.shape[1:])


def _last(vlm: VLM, prompts: Prompts) -> Float[Tensor, "prompt layer d_model"]:
    prompt = prompts if isinstance(prompts, Prompt) else vlm.prompts(prompts)
    names = [f"text.{layer}.resid_post" for layer in range(vlm.cfg.n_layers)]
    cache = vlm.cache(prompt, names)
    return torch.stack([cache[name][:, -1].float().cpu() for name in names], 1)
