"""Localization heads: those whose attention is much on the picture and in few blobs. No boxes are needed.

Kang et al., *Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding* (CVPR
2025, arXiv 2503.06287). For each sample, with M a head's attention from the last token over the image's
tokens:

1. attention sum S = Σ M. Sorted, the sums of all heads rise slowly and then steeply; heads from the elbow on
   look at the picture. The elbow is the point farthest from the chord between the first and the last.
2. spatial entropy H = −Σ p_c log p_c, p_c the share of component c among the 8-connected components of
   ReLU(M − mean M) above 1e-3. One compact blob has H = 0.
3. heads with more than 0.05 on a token of the picture's bottom row are dropped: sinks lie there.

The ``best`` heads of lowest entropy are the sample's choice, and a head's score is how often it is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits.layers import attention_layers
from seeing.grid import VisualGrid
from seeing.probes.heads.looks import looks
from seeing.probes.heads.scores import HeadScores
from seeing.probes.progress import Progress
from seeing.probes.running import RunningMean
from seeing.probes.samples import Answered, Ledger
from seeing.prompt import Prompt, Template
from seeing.vlm import VLM

#: Cells of one map that touch, diagonals too, are one component; cells of two maps never are.
_TOUCHING = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]).astype(bool)

_PARTS = ("image sum", "past elbow", "bottom row", "entropy")


def localization_heads(
    vlm: VLM,
    samples: Prompt | Iterable[EvidenceSample] | EvidenceSample,
    *,
    best: int = 10,
    floor: float = 1e-3,
    times_mean: float = 1.0,
    bottom: float = 0.05,
    layers: Any = "all",
    answers: Answered = None,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
) -> HeadScores:
    """How often each head is among the ``best`` heads of lowest spatial entropy: its selection frequency.

    Heads of equal entropy (all that have one blob) are chosen by their attention sum; heads of equal
    frequency are ranked by their mean entropy. A picture of several tiles is judged on its overview, the
    sum is that of all its tokens; cells that show padding count for nothing.

    Args:
        best: how many heads a sample chooses.
        floor: the least that a cell of a component has above the mean.
        times_mean: what is taken off the map, as a multiple of its mean. The paper takes the mean off; code
            that goes back to the authors' takes off twice of it.
        bottom: a head with more than this on one token of the bottom row is dropped.
        layers: which compete; that code passes over the first two (``slice(2, None)``).
        answers: read the rows that predict the sample's first answer ("given") or the model's ("own")
            instead of the last prompt token's, mean over its tokens.

    ``parts``: "image sum" (mean S), "past elbow" and "bottom row" (shares of samples), "entropy" (mean over
    the samples where the head passed the elbow and has a component).

    Raises ValueError when no sample could be counted.
    """
    if best < 1:
        raise ValueError(f"a sample chooses at least one head, got best={best}")
    if not (floor >= 0 and times_mean > 0 and bottom >= 0):
        raise ValueError(
            f"expected floor ≥ 0, times_mean > 0 and bottom ≥ 0, got {floor}, {times_mean} and {bottom}"
        )
    chosen_layers = list(attention_layers(layers, vlm))
    ledger, score = Ledger(), RunningMean()
    parts = {name: RunningMean() for name in _PARTS}
    settings = dict(template=template, batch_size=batch_size, progress=progress, what="heads")
    for look in looks(vlm, samples, ledger, layers=chosen_layers, answers=answers, **settings):
        found = judge(look.weights, look.grid, best=best, floor=floor, times_mean=times_mean, bottom=bottom)
        if not found["chosen"].nan_to_num().any():
            ledger.leave_out(look.id, "no head that looks at the picture has a region on it")
            continue
        ledger.ids.append(look.id)
        score.add(_spread(found["chosen"], chosen_layers, vlm)[None])
        for name, mean in parts.items():
            mean.add(_spread(found[name], chosen_layers, vlm)[None])
    ledger.need("a head that looks at a region")
    means = {name: mean.mean for name, mean in parts.items()}
    return HeadScores(
        "selection frequency",
        score.mean,
        len(ledger.ids),
        tuple(ledger.left_out),
        f"share of samples in which the head is among the {best} of lowest spatial entropy",
        means,
        ties=-means["entropy"],
    )


def judge(
    rows: Float[Tensor, "layer head token"],
    grid: VisualGrid,
    *,
    best: int = 10,
    floor: float = 1e-3,
    times_mean: float = 1.0,
    bottom: float = 0.05,
) -> dict[str, Float[Tensor, "layer head"]]:
    """One sample: which heads it chooses ("chosen", 0 or 1), and what decided; NaN in layers without rows."""
    scores = rows.double().numpy()
    flat = scores.reshape(-1, scores.shape[-1])
    read = ~np.isnan(flat).any(1)
    # In steps of 1e-6: where all keys are the picture, all sums are 1, within rounding.
    sums = np.where(read, flat.sum(1).round(6), np.nan)
    looks = read & (sums >= (elbow(sums[read]) if read.any() else np.inf))
    maps = grid.as_grid(flat, grid.overview, unplaced=np.nan)
    lowest = np.full(len(flat), np.nan)
    placed = np.flatnonzero(~np.isnan(maps[read][0]).all(1)) if read.any() else []
    if len(placed):
        lowest = np.where(read, np.nan_to_num(maps[:, placed[-1]]).max(1), np.nan)
    on_bottom = lowest > bottom
    entropy = np.full(len(flat), np.nan)
    entropy[looks] = spatial_entropy(maps[looks], floor, times_mean)
    candidates = np.flatnonzero(looks & ~on_bottom & ~np.isnan(entropy))
    # In steps of 1e-9, so that rounding does not tell one blob from another.
    order = np.lexsort((-sums[candidates], entropy[candidates].round(9)))
    chosen = np.where(read, 0.0, np.nan)
    chosen[candidates[order[:best]]] = 1.0
    found = {
        "chosen": chosen,
        "image sum": sums,
        "past elbow": np.where(read, looks, np.nan),
        "bottom row": np.where(read, on_bottom, np.nan),
        "entropy": entropy,
    }
    return {name: torch.from_numpy(value.reshape(scores.shape[:2])) for name, value in found.items()}


def elbow(values: Float[np.ndarray, " value"]) -> float:
    """The value at the elbow of the sorted values: the one farthest from the chord of the first and last.

    Of a straight line, and of values that differ by 1e-5 of their size at most, it is the smallest value.
    """
    if not len(values):
        raise ValueError("no values, so they have no elbow")
    ordered = np.sort(values)
    # The distance to a chord goes with the difference in height, so no axis needs a scale.
    away = np.abs(ordered - np.linspace(ordered[0], ordered[-1], len(ordered)))
    if away.max() <= 1e-5 * max(abs(ordered[0]), abs(ordered[-1])):
        return float(ordered[0])
    return float(ordered[away.argmax()])


def spatial_entropy(
    maps: Float[np.ndarray, "map rows cols"], floor: float = 1e-3, times_mean: float = 1.0
) -> Float[np.ndarray, " map"]:
    """H = −Σ p_c log p_c over the 8-connected components of each map, in nats; NaN for a map without one.

    A component is of cells where ReLU(M − times_mean · mean M) is above ``floor``, and p_c its share of what
    all components hold of it. NaN cells have no place: they are in no mean and no component.
    """
    if not len(maps):
        return np.empty(0)
    placed = ~np.isnan(maps)
    mean = np.where(placed, maps, 0.0).sum((1, 2)) / np.maximum(placed.sum((1, 2)), 1)
    above = np.where(placed, np.maximum(maps - times_mean * mean[:, None, None], 0.0), 0.0)
    above = np.where(above > floor, above, 0.0)
    labelled, count = ndimage.label(above > 0, structure=_TOUCHING)
    held = np.bincount(labelled.ravel(), above.ravel(), count + 1)[1:]
    owner = np.zeros(count, dtype=int)
    where = np.nonzero(labelled)
    owner[labelled[where] - 1] = where[0]
    total = np.bincount(owner, held, len(maps))
    share = held / total[owner]
    entropy = np.bincount(owner, -share * np.log(share), len(maps))
    # Minus zero of a single component would print as such.
    return np.where(total > 0, entropy + 0.0, np.nan)


def _spread(values: Float[Tensor, "some head"], layers: list[int], vlm: VLM) -> Float[Tensor, "layer head"]:
    """Values of some layers among all, NaN in the others."""
    whole = values.new_full((vlm.cfg.n_layers, values.shape[1]), torch.nan)
    whole[layers] = values
    return whole


__all__ = ["elbow", "judge", "localization_heads", "spatial_entropy"]
