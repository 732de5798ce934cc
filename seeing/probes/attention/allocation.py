"""Allocation: how a row of attention shares its weight between image and text.

Mass of a segment is the sum of its weights. Image, question, template and answer part a row: their masses
sum to 1. Others lie across these: evidence and non-evidence part the image, ``image:0``, ``image:1`` … are
its pictures, and sinks are tokens of any of them.

RAPT (relative attention per token, Liu et al. 2026, arXiv 2510.17771) is the mean attention of a token in the
segment over the mean attention of a token in the whole prompt: 1.0 is a segment's proportional share, and
uniform attention gives 1.0 everywhere. A row that can't see all of the sequence, an earlier one or one of an
answer, is measured by the tokens that it can see.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing import figures
from seeing.data.samples import EvidenceSample
from seeing.probes.attention.allocations import MeanAllocation, Sums
from seeing.probes.attention.rounds import Answers, rounds
from seeing.probes.progress import Progress
from seeing.probes.reading import Reading, read_rows
from seeing.probes.samples import Ledger, LeftOut
from seeing.prompt import Prompt, Template
from seeing.vlm import VLM, Queries

#: The segments of the paper's figure, and the answer beside them.
DRAWN = ("image", "question", "answer", "evidence", "non-evidence")


@dataclass(frozen=True)
class Allocation:
    """Attention of a prompt's rows, by segment.

    Attributes:
        segments: names, in the order of the segment axis: image (and image:0 … where there are several),
            question, template, answer where the prompt holds one, where it has boxes evidence and
            non-evidence, and sinks where they are asked for.
        mass: (batch, segment, layer, head), in [0, 1]; with ``each`` (…, token), one a query row.
        rapt: likewise; NaN for a segment without a token that the row sees.
    """

    segments: tuple[str, ...]
    mass: Float[Tensor, "batch segment layer head *token"]
    rapt: Float[Tensor, "batch segment layer head *token"]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def n(self) -> int:
        """Prompts."""
        return len(self.mass)

    def of(self, segment: str) -> Float[Tensor, "batch layer head *token"]:
        """The mass on one segment."""
        return self.mass[:, _place(self.segments, segment)]

    def rapt_by_layer(self) -> Float[Tensor, "batch segment layer *token"]:
        """RAPT of each layer's mean row, as the paper draws it by depth."""
        return self.rapt.mean(3)

    def to_frame(self) -> pd.DataFrame:
        """One row a batch item, segment, layer and head (and query row, token), with mass and rapt."""
        batch, _, layers, heads, *tokens = self.mass.shape
        names = ["item", "segment", "layer", "head", *(["token"] if tokens else [])]
        axes = [range(batch), self.segments, range(layers), range(heads), *map(range, tokens)]
        index = pd.MultiIndex.from_product(axes, names=names)
        columns = {"mass": self.mass.flatten().numpy(), "rapt": self.rapt.flatten().numpy()}
        return pd.DataFrame(columns, index=index).reset_index()

    def figure(self, *, segments: Iterable[str] | None = None, dark: bool = False) -> go.Figure:
        """RAPT by depth, the mean over the batch (and over its query rows)."""
        drawn = [name for name in DRAWN if name in self.segments] if segments is None else list(segments)
        places = [_place(self.segments, name) for name in drawn]
        by_layer = self.rapt_by_layer()[:, places]
        mean = by_layer.flatten(3).nanmean(-1) if by_layer.ndim > 3 else by_layer
        mean = mean.nanmean(0).double().numpy()
        bare = mean * float("nan")
        groups, n = ["all"] * len(drawn), [self.n] * len(drawn)
        return figures.rapt_by_depth(mean, bare, bare, segments=drawn, groups=groups, n=n, dark=dark)


def allocation(
    vlm: VLM,
    samples: Prompt | Iterable[EvidenceSample] | EvidenceSample,
    query: Queries = "last",
    *,
    each: bool = False,
    sinks: Any = None,
    answers: Answers = "own",
    by_answer: bool = False,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
) -> Allocation | MeanAllocation:
    """Attention by segment, per layer and head.

    Args:
        samples: a `Prompt`, for an `Allocation` of each of its rows; or samples, gone through once, for the
            means over them with intervals, a `MeanAllocation`.
        query: which rows: "last", the prompt's last token; "answer", the rows that predict the tokens of an
            answer; a span's name, or positions. Several rows of one prompt are averaged.
        each: keep every row apart (of a prompt only).
        sinks: one more segment, a selector such as ``E.sinks(dims)``, resolved in each layer in the same
            pass, or positions. It lies across the others, and holds tokens of the prompt only, none of an
            answer. NaN in cross-attention layers.
        answers: for query "answer" over samples: the model's "own" greedy answer, or the first "given".
        by_answer: let the model answer, and part the samples into those it gets right (exact match) and
            wrong: ``.correct`` and ``.wrong``.
        template: how the question is asked (see `VLM.prompt`).
        batch_size: samples in one pass.

    Example:
        ``probes.allocation(vlm, samples, by_answer=True).figure()``
    """
    if isinstance(samples, Prompt):
        if by_answer or template is not None:
            raise ValueError("a prompt stands as it is and knows no answer; give samples for these")
        return allocate(read_rows(vlm, samples, query, sinks=sinks), each=each)
    if each:
        raise ValueError("rows are kept apart for a prompt; over samples they are averaged")
    ledger, sums = Ledger(), Sums(by_answer)
    for one in rounds(
        vlm,
        samples,
        ledger,
        query,
        answers=answers,
        by_answer=by_answer,
        template=template,
        batch_size=batch_size,
        progress=progress,
        what="allocation",
    ):
        found = allocate(read_rows(vlm, one.prompt, query, sinks=sinks), lenient=True)
        sums.add([sample.id for sample in one.samples], found.mass, found.rapt, one.right)
        for sample in one.samples:
            ledger.count(sample)
        segments = found.segments
    ledger.need("a prompt")
    return sums.result(segments, tuple(ledger.left_out))


def allocate(reading: Reading, *, each: bool = False, lenient: bool = False) -> Allocation:
    """Allocation of a reading's rows, their mean unless ``each``.

    Where rows of a batch have no boxes, or boxes that no token sees, that raises or leaves the segment out;
    ``lenient`` makes evidence and non-evidence NaN in those rows.
    """
    prompt, asked = reading.prompt, reading.asked
    masks = segments_of(prompt, lenient=lenient)
    place = torch.arange(prompt.length)
    # Keys before the row's own, and later ones where some head sees them (bidirectional prompts).
    seen = (place <= asked.positions[..., None]) | (reading.rows > 0).any(1).any(1)
    seen &= prompt.inputs["attention_mask"].bool().cpu()[:, None]
    # batch layer query key: a window hides the keys before it, layer by layer
    seen = seen[:, None] & (~reading.windowed[:, None, None] | (reading.rows > 0).any(2))
    parts = {name: _shares(reading.rows, mask, seen) for name, mask in masks.items()}
    if reading.sinks is not None:
        parts["sinks"] = _shares(reading.rows, reading.sinks, seen)
    if reading.cross is not None:
        keys = segments_of(prompt.cross, lenient=lenient)
        seen = (reading.cross > 0).any(1).any(1)[:, None]
        nothing = torch.zeros_like(keys["image"])
        for name in masks:
            across = _shares(reading.cross, keys.get(name, nothing), seen)
            is_cross = ~across[0].isnan()
            parts[name] = tuple(torch.where(is_cross, a, b) for a, b in zip(across, parts[name]))
    if lenient:
        unknown = ~masks["evidence"].any(1) if prompt.cross is None else ~keys["evidence"].any(1)
        for name in ("evidence", "non-evidence"):
            for part in parts[name]:
                part[unknown] = torch.nan
    kept = (lambda part: part.masked_fill(~asked.valid[:, None, None], torch.nan)) if each else asked.mean
    mass, rapt = (torch.stack([kept(one) for one in part], 1) for part in zip(*parts.values()))
    return Allocation(tuple(parts), mass, rapt)


def _shares(
    rows: Float[Tensor, "batch layer head query key"],
    mask: Bool[Tensor, "batch *layer key"],
    seen: Bool[Tensor, "batch layers query key"],
) -> tuple[Float[Tensor, "batch layer head query"], Float[Tensor, "batch layer head query"]]:
    """Mass and RAPT of one segment, the same in all layers or one a layer."""
    mask = mask if mask.ndim == 3 else mask[:, None]
    mass = torch.einsum("blhqk,blk->blhq", rows, mask.expand(-1, rows.shape[1], -1).to(rows.dtype))
    # batch layer query
    tokens = (mask[:, :, None] & seen).sum(-1)
    return mass, mass / tokens[:, :, None] * seen.sum(-1)[:, :, None]


def segments_of(prompt: Prompt, *, lenient: bool = False) -> dict[str, Bool[Tensor, "batch pos"]]:
    """The segments of a prompt as masks; ``lenient`` as in `allocate`."""
    spans = prompt.spans
    named = ("question", "template", "answer")
    masks = {name: spans.mask(name) for name in spans if name.startswith("image") or name in named}
    if "image:1" not in masks:
        masks.pop("image:0", None)  # one picture: the same as "image"
    if lenient:
        masks["evidence"] = _evidence_seen(prompt)
    elif all(turn.boxes for turn in prompt.turns):
        masks["evidence"] = prompt.evidence()
    if "evidence" in masks:
        masks["non-evidence"] = masks["image"] & ~masks["evidence"]
    return masks


def _evidence_seen(prompt: Prompt) -> Bool[Tensor, "batch pos"]:
    """`Prompt.evidence`, with nothing in the rows that have none."""
    mask = torch.zeros(len(prompt), prompt.length, dtype=torch.bool)
    for row, turn in enumerate(prompt.turns):
        if turn.boxes:
            grid = prompt.grids[prompt.grid_rows.index(row)]
            mask[row, grid.positions[grid.labels(turn.boxes)]] = True
    return mask


def _place(segments: tuple[str, ...], segment: str) -> int:
    if segment not in segments:
        raise KeyError(f"no segment {segment!r}; there are {', '.join(segments)}")
    return segments.index(segment)
