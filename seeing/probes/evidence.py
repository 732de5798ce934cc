"""Evidence locality: does a layer, does a head, look where the answer is?

For each sample the attention of the last prompt token over the image tokens is compared with the
labels that the annotated boxes give them. A layer's score is that of its heads' mean row, as in the
paper (Liu et al. 2026, arXiv 2510.17771); a head's is its own. 0.5 is chance for AUROC.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.metrics import Locality, locality
from seeing.probes.reading import Progress, Reading, checked, read_samples
from seeing.prompt import Template
from seeing.vlm import VLM


@dataclass(frozen=True)
class Evidence:
    """Evidence locality of a data set.

    Attributes:
        heads: per metric (layer, head), the mean over samples.
        layers: per metric (layer,), of the heads' mean row, the mean over samples.
        samples: per metric (sample, layer), of the heads' mean row.
        ids: the samples counted, in the order of ``samples``.
        left_out: (id, reason) of each sample that has no locality: no boxes, or no token sees them.
    """

    heads: Locality
    layers: Locality
    samples: Locality
    ids: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def auroc(self) -> Float[Tensor, "layer head"]:
        """AUROC of each head."""
        return self.heads.auroc

    @property
    def n(self) -> int:
        return len(self.ids)

    def ranking(self, below: int | None = None) -> list[tuple[int, int, float]]:
        """(layer, head, AUROC) from the best head down; only layers < ``below``, where it is given."""
        auroc = self.auroc[:below]
        order = auroc.flatten().nan_to_num(-1).argsort(descending=True, stable=True)
        places = [divmod(int(index), auroc.shape[1]) for index in order]
        return [(layer, head, float(auroc[layer, head])) for layer, head in places]

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and head, one column a metric; head −1 is the heads' mean row."""
        n_layers, n_heads = self.auroc.shape
        rows = []
        for layer in range(n_layers):
            for head in range(-1, n_heads):
                values = self.layers if head < 0 else self.heads
                place = (layer,) if head < 0 else (layer, head)
                rows.append(
                    {"layer": layer, "head": head}
                    | {metric: float(values._asdict()[metric][place]) for metric in Locality._fields}
                )
        return pd.DataFrame(rows)


def evidence(
    vlm: VLM,
    samples: Iterable[EvidenceSample] | EvidenceSample,
    *,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Evidence:
    """Evidence locality per layer and head, over samples with evidence boxes.

    Args:
        template: how the question is asked (see `VLM.prompt`).
        batch_size: samples in one forward pass.
        progress: called with the number of samples done.

    Raises ValueError when no sample could be counted; the reasons are in the message.
    """
    collected, ids, left_out = EvidenceSums(), [], []
    for batch, reading in read_samples(
        vlm, checked(samples), template=template, batch_size=batch_size, progress=progress
    ):
        for row, sample in enumerate(batch):
            reason = collected.add(reading, row)
            if reason is None:
                ids.append(sample.id)
            else:
                left_out.append((sample.id, reason))
    if not ids:
        reasons = "; ".join(f"{one}: {why}" for one, why in left_out[:3]) or "no samples were given"
        raise ValueError(f"no sample has evidence that the model could see ({reasons})")
    return collected.result(tuple(ids), tuple(left_out))


class EvidenceSums:
    """Running sums of locality: what `evidence` keeps of each sample, and the mean at the end."""

    def __init__(self):
        self._heads: list[Tensor] | None = None
        self._counts: list[Tensor] | None = None
        self._layers: list[Locality] = []

    def add(self, reading: Reading, row: int) -> str | None:
        """Count row ``row`` of a reading. Returns why it can't be counted, or None."""
        turn = reading.prompt.turns[row]
        if not turn.boxes:
            return "no evidence boxes"
        prompt, rows = reading.prompt.keys, reading.over_images
        grid = prompt.grids[prompt.grid_rows.index(row)]
        labels = grid.labels(turn.boxes)
        seen, labels = grid.placed, labels[grid.placed]
        if not labels.any():
            return "no image token sees the evidence"
        if labels.all():
            return "every image token is evidence"
        scores = rows[row, :, :, -1][..., grid.positions[seen]]
        heads, layers = _where_read(scores, labels)
        if self._heads is None:
            self._heads = [torch.zeros_like(metric) for metric in heads]
            self._counts = [torch.zeros_like(metric) for metric in heads]
        for total, count, metric in zip(self._heads, self._counts, heads):
            total += metric.nan_to_num(0.0, posinf=float("inf"))
            count += ~metric.isnan()
        self._layers.append(layers)
        return None

    def result(self, ids: tuple[str, ...], left_out: tuple[tuple[str, str], ...]) -> Evidence:
        samples = Locality(*(torch.stack(metric) for metric in zip(*self._layers)))
        return Evidence(
            heads=Locality(*(total / count for total, count in zip(self._heads, self._counts))),
            layers=Locality(*(metric.nanmean(0) for metric in samples)),
            samples=samples,
            ids=ids,
            left_out=left_out,
        )


def _where_read(scores: Float[Tensor, "layer head token"], labels: Bool[Tensor, " token"]) -> tuple:
    """Locality of every head and of the heads' mean row; NaN in layers without rows."""
    read = ~scores.isnan().any(-1).any(-1)
    found = locality(scores[read], labels), locality(scores[read].mean(1), labels)

    def spread(metric: Tensor) -> Tensor:
        whole = metric.new_full((len(read), *metric.shape[1:]), torch.nan)
        whole[read] = metric
        return whole

    return tuple(Locality(*map(spread, one)) for one in found)
