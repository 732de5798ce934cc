"""Profiles: which layers and heads of a model look at the evidence.

The paper profiles a model once, on about 100 annotated samples, and keeps the ⌈10 %⌉ of layers with
the highest mean AUROC, L_VG. Heads are ranked in the same way here, beyond the paper: the best few
point more sharply than the mean of a layer. The samples of a profile should not be among those that
a method is later judged on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.probes.evidence import Evidence, evidence
from seeing.probes.reading import Progress
from seeing.prompt import Template
from seeing.vlm import VLM


@dataclass(frozen=True)
class Profile:
    """A model's grounding layers and heads.

    Attributes:
        layers: L_VG, ascending.
        auroc_layers: (layer,) mean AUROC of each layer's mean row.
        auroc_heads: (layer, head) mean AUROC of each head.
        n: samples counted.
    """

    layers: tuple[int, ...]
    auroc_layers: Float[Tensor, " layer"]
    auroc_heads: Float[Tensor, "layer head"]
    n: int
    _evidence: Evidence

    def heads(self, k: int = 4, below: int | None = None) -> dict[int, list[int]]:
        """The ``k`` best heads as {layer: [heads]}; only layers < ``below``, where it is given."""
        ranking = self._evidence.ranking(below)
        if not 1 <= k <= len(ranking):
            raise ValueError(f"k is between 1 and {len(ranking)} heads, got {k}")
        table: dict[int, list[int]] = {}
        for layer, head, _ in sorted(ranking[:k]):
            table.setdefault(layer, []).append(head)
        return table


def profile(
    vlm: VLM,
    samples: Iterable[EvidenceSample],
    top: float = 0.1,
    *,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Profile:
    """Profile ``vlm``: keep the ⌈``top``⌉ share of layers with the highest mean AUROC.

    Raises ValueError for ``top`` outside (0, 1] and when no sample could be counted.
    """
    if not 0 < top <= 1:
        raise ValueError(f"top is a share of layers in (0, 1], got {top}")
    found = evidence(vlm, samples, template=template, batch_size=batch_size, progress=progress)
    return profile_of(found, top)


def profile_of(found: Evidence, top: float = 0.1) -> Profile:
    """The profile that an evidence probe gives."""
    auroc = found.layers.auroc
    # 0.07 · 100 is 7.000000000000001, which is no eighth layer
    count = max(1, math.ceil(top * len(auroc) - 1e-9))
    # A layer without attention has no AUROC, and is not among the best.
    best = auroc.nan_to_num(-1).argsort(descending=True, stable=True)[:count]
    return Profile(tuple(sorted(best.tolist())), auroc, found.auroc, found.n, found)
