"""How every head looks at each sample's picture: what the finders of heads go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.grid import VisualGrid
from seeing.probes.reading import read_rows
from seeing.probes.samples import Answered, Ledger, batches
from seeing.vlm import VLM


@dataclass(frozen=True, eq=False)
class Look:
    """One sample's picture as the heads see it.

    Attributes:
        grid: where the tokens of the (first) picture look.
        weights: (layer, head, token) attention on them; NaN in layers that have none over the picture.
    """

    sample: EvidenceSample
    grid: VisualGrid
    weights: Float[Tensor, "layer head token"]


def looks(
    vlm: VLM,
    samples: Iterable[EvidenceSample] | EvidenceSample,
    ledger: Ledger,
    *,
    layers: list[int] | None = None,
    answers: Answered = None,
    **settings: Any,
) -> Iterator[Look]:
    """Each sample that makes a prompt, one batch in memory at a time.

    Args:
        ledger: where samples go that make none. The caller counts the others.
        layers: which layers to read, all by default.
        answers: None reads the row of the last prompt token. "given" or "own" puts an answer behind the
            prompt (the sample's first, the model's) and takes the mean over the rows that predict its tokens.
        settings: of `batches`.
    """
    queries = "last" if answers is None else "answer"
    for batch in batches(vlm, samples, ledger, answers=answers, **settings):
        reading = read_rows(vlm, batch.prompt, queries, layers)
        rows = reading.asked.mean(reading.over_images.double().movedim(-2, -1))
        keys = reading.prompt.keys
        for row, sample in enumerate(batch.samples):
            grid = keys.grids[keys.grid_rows.index(row)]
            yield Look(sample, grid, rows[row][..., grid.positions])


__all__ = ["Look", "looks"]
