"""Directions to steer with: what tells two sets of prompts apart, at one site."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits.moment import BadEdit
from seeing.edits.residual import sites_of
from seeing.edits.source import span_labels
from seeing.prompt import Prompt
from seeing.vlm import VLM

#: Prompts in any form that `VLM.prompts` and `VLM.prompt` take.
Prompts = Prompt | EvidenceSample | tuple | Iterable[Prompt | EvidenceSample | tuple]

#: How a direction is made of pairs.
HOWS = ("mean", "pca")


def steering_vector(
    vlm: VLM, positive: Prompts, negative: Prompts, site: str, how: str = "mean", positions: Any = "last"
) -> Float[Tensor, " d"]:
    """The direction from ``negative`` to ``positive`` at ``site``, for `Steer` and `ProjectOut`.

    Args:
        positive, negative: prompts, samples, or tuples (image, question): one or several of each.
        site: one name, such as ``text.14.resid_post``.
        how: "mean", the difference of the means (arXiv 2312.06681); "pca", the first principal direction of
            the paired differences (uncentred, arXiv 2310.01405), of length one, with the sign of their mean.
            Pairs go in the order given, as many of each kind.
        positions: "last", or a span's name, whose positions are averaged within a prompt.

    Raises `BadEdit` for a site that is not one, for no prompts, for pairs that don't pair, for no difference.
    """
    if how not in HOWS:
        raise BadEdit(f"how is one of {', '.join(map(repr, HOWS))}, got {how!r}")
    name, *more = sites_of("a steering vector", site, vlm)
    if more:
        raise BadEdit(f"a direction is of one site, {site!r} names {1 + len(more)}")
    with_, without = (_vectors(vlm, prompts, name, positions) for prompts in (positive, negative))
    if how == "mean":
        return with_.mean(0) - without.mean(0)
    if len(with_) != len(without):
        raise BadEdit(f"how='pca' takes pairs: {len(with_)} prompts are positive, {len(without)} negative")
    differences = with_ - without
    if not differences.any():
        raise BadEdit(f"the prompts do not differ at {name}: there is no direction between them")
    first = torch.linalg.svd(differences.double(), full_matrices=False).Vh[0].float()
    return first if differences.mean(0) @ first >= 0 else -first


def _vectors(vlm: VLM, prompts: Prompts, name: str, positions: str) -> Float[Tensor, "prompt d"]:
    """One vector a prompt: the mean over its positions."""
    single = isinstance(prompts, (Prompt, EvidenceSample, tuple))
    found: list[Tensor] = []
    for one in [prompts] if single else prompts:
        prompt = one if isinstance(one, Prompt) else vlm.prompts([one])
        value = vlm.cache(prompt, name)[name].float().cpu()
        value = value.flatten(2)
        if positions == "last":
            found += list(value[:, -1])
            continue
        _, labels = span_labels(prompt)
        mask = (labels >= 0) if positions == "all" else prompt.spans.mask(positions)
        found += [row[some].mean(0) for row, some in zip(value, mask)]
    if not found:
        raise BadEdit("a direction is between prompts, and there are none")
    return torch.stack(found)


__all__ = ["steering_vector"]
