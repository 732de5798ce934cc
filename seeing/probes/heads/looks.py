"""How every head looks at each sample's picture: what the finders of heads go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.grid import Box, VisualGrid
from seeing.probes.reading import read_rows
from seeing.probes.samples import Answered, Ledger, batches
from seeing.prompt import Prompt
from seeing.queries import Queries
from seeing.vlm import VLM


@dataclass(frozen=True, eq=False)
class Look:
    """One sample's picture as the heads see it.

    Attributes:
        id: the sample's, or the number of a prompt's row.
        boxes: its evidence.
        grid: where the tokens of the (first) picture look.
        weights: (layer, head, token) attention on them; NaN in layers that have none over the picture.
    """

    id: str
    boxes: tuple[Box, ...]
    grid: VisualGrid
    weights: Float[Tensor, "layer head token"]


def looks(
    vlm: VLM,
    samples: Prompt | Iterable[EvidenceSample] | EvidenceSample,
    ledger: Ledger,
    *,
    boxes: bool = False,
    layers: list[int] | None = None,
    answers: Answered = None,
    **settings: Any,
) -> Iterator[Look]:
    """Each sample that makes a prompt, one batch in memory at a time; or each row of a prompt.

    Args:
        ledger: where samples go that make none. The caller counts the others.
        boxes: leave out what has no evidence boxes.
        layers: which layers to read, all by default.
        answers: None reads the row of the last prompt token. "given" or "own" puts an answer behind the
            prompt (the sample's first, the model's) and takes the mean over the rows that predict its tokens.
        settings: of `batches`.

    Raises ValueError for answers asked of a prompt.
    """
    queries = "last" if answers is None else "answer"
    if not isinstance(samples, Prompt):
        for batch in batches(vlm, samples, ledger, boxes=boxes, answers=answers, **settings):
            yield from _of(vlm, batch.prompt, [one.id for one in batch.samples], queries, layers)
        return
    if answers is not None:
        raise ValueError("answers are put behind the prompts of samples; a prompt stands as it is")
    for look in _of(vlm, samples, [str(row) for row in range(len(samples))], queries, layers):
        if boxes and not look.boxes:
            ledger.leave_out(look.id, "no evidence boxes")
        else:
            yield look


def _of(
    vlm: VLM, prompt: Prompt, ids: list[str], queries: Queries, layers: list[int] | None
) -> Iterator[Look]:
    reading = read_rows(vlm, prompt, queries, layers)
    rows = reading.asked.mean(reading.over_images.double().movedim(-2, -1))
    keys = reading.prompt.keys
    for row, (name, turn) in enumerate(zip(ids, reading.prompt.turns)):
        grid = keys.grids[keys.grid_rows.index(row)]
        yield Look(name, tuple(turn.boxes), grid, rows[row][..., grid.positions])


__all__ = ["Look", "looks"]
