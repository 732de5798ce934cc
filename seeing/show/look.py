"""Where a model looks in one prompt, as a picture can show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from seeing.edits.seen import seen_window
from seeing.grid import Box
from seeing.maps import window_box
from seeing.metrics import auroc
from seeing.probes.heads.looks import looks
from seeing.probes.samples import Ledger
from seeing.prompt import Prompt
from seeing.vlm import VLM


@dataclass(frozen=True, eq=False)
class PictureLook:
    """Where the last token of a prompt looks in its (first) picture.

    Attributes:
        layers: what was read.
        heat: (height, width) attention at each pixel of the original, mean over layers and heads; NaN where
            no token looks.
        region: the window that the best heads point at, xyxy pixels; None where no heads are known.
        evidence_auroc: of the boxes, mean over the layers; None without boxes.
    """

    layers: tuple[int, ...]
    heat: Float[np.ndarray, "height width"]
    region: Box | None = None
    evidence_auroc: float | None = None


def look(
    vlm: VLM,
    prompt: Prompt,
    layers: Sequence[int],
    heads: Mapping[int, Sequence[int]] | None = None,
    window: tuple[int, int] = (2, 2),
) -> PictureLook:
    """One pass: the mean row of ``layers`` over the picture, and the region that ``heads`` point at."""
    read = sorted({*layers, *(heads or ())})
    found = next(iter(looks(vlm, prompt, Ledger(), layers=read)))
    grid, at = found.grid, {layer: place for place, layer in enumerate(read)}
    by_layer = found.weights[[at[layer] for layer in layers]].mean(1)
    seen = by_layer[~by_layer.isnan().any(1)]
    if not len(seen):
        raise ValueError(f"none of layers {list(layers)} sees the picture's tokens one by one")
    score = None
    if found.boxes:
        labels, placed = grid.labels(found.boxes), grid.placed
        if 0 < int(labels[placed].sum()) < int(placed.sum()):
            score = float(auroc(seen[:, placed], labels[placed]).mean())
    region = None
    if heads:
        rows = [found.weights[at[layer], head] for layer, some in heads.items() for head in some]
        region = window_box(grid, seen_window(grid, sum(rows) / len(rows), window))
    heat = grid.heatmap(seen.mean(0).nan_to_num())
    return PictureLook(tuple(layers), heat, region, score)
