"""Sinks: tokens that draw attention whatever they hold, where they are, and how much they draw.

A few dimensions of the residual stream are huge at a few tokens, the same dimensions in every prompt, and
attention goes to these tokens (massive activations, arXiv 2402.17762). In vision-language models some of them
are image tokens without any content of interest (visual attention sinks, arXiv 2503.03321). Which dimensions
is a property of the language model, so they are looked for in the model at hand (`sink_dims`).

A token is a sink of a layer where max_d |x_d| / rms(x) is above τ in what enters the layer. What sinks draw
is compared with what as many random tokens of the same kind (image or text) would draw: the expectation over
all draws, so that the control adds no noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing import edits as E
from seeing.data.samples import EvidenceSample
from seeing.edits.layers import heads_of, whole
from seeing.figures import sink_pull_by_depth
from seeing.grid import Box
from seeing.probes.progress import Progress
from seeing.probes.reading import Reading, batched, read_rows
from seeing.probes.running import RunningMean
from seeing.probes.samples import Ledger, LeftOut, batches
from seeing.prompt import Prompt, Template
from seeing.vlm import VLM

#: Tokens that a sink is compared with are of its kind.
KINDS = ("image", "text")

#: Where a sink stands, in the order of the segment axis. "other" are markers between and around the parts.
SEGMENTS = ("image", "question", "template", "answer", "other")

Prompts = Prompt | Iterable[EvidenceSample | tuple]


# ---- dimensions --------------------------------------------------------------------------------------------


class SinkDims(tuple[int, ...]):
    """Sink dimensions of a model, the largest first; ``print`` shows how large they are.

    Attributes:
        ratios: how large each gets at some token: |x_d| / rms(x).
        rest: how large the median dimension gets.
    """

    ratios: tuple[float, ...]
    rest: float

    @classmethod
    def of(cls, dims: Iterable[int], ratios: Iterable[float], rest: float) -> SinkDims:
        found = cls(dims)
        found.ratios, found.rest = tuple(ratios), rest
        return found

    def __str__(self) -> str:
        each = ", ".join(f"{dim} ({ratio:.1f})" for dim, ratio in zip(self, self.ratios))
        return f"{each} × rms, where the median dimension reaches {self.rest:.1f}"


def sink_sizes(vlm: VLM, prompts: Prompts) -> Float[Tensor, "token d_model"]:
    """How large each dimension is at each token, |x_d| / rms(x), at its largest over what enters the layers.

    Tokens of all prompts in a row, without padding, in one pass that keeps one layer at a time.
    """
    prompt = prompts if isinstance(prompts, Prompt) else vlm.prompts(prompts)
    largest = _Largest(vlm)
    with torch.no_grad(), vlm.trace(prompt) as tracer:
        largest.run()
        tracer.stop()
    return largest.sizes[vlm.shown(prompt).inputs["attention_mask"].bool().cpu()]


class _Largest:
    """The largest |x| / rms of each dimension over the layers of one pass."""

    def __init__(self, vlm: VLM):
        names = (f"text.{layer}.resid_pre" for layer in range(vlm.cfg.n_layers))
        self.sites = [vlm.sites[name] for name in names]
        self.sizes: Float[Tensor, "batch pos d_model"] | None = None

    def run(self) -> None:
        """Called in a trace."""
        for site in self.sites:
            x = site.read().float().abs()
            sizes = (x / x.pow(2).mean(-1, keepdim=True).sqrt()).cpu()
            self.sizes = sizes if self.sizes is None else torch.maximum(self.sizes, sizes)


def sink_dims(vlm: VLM, prompts: Prompts, k: int = 2, tau: float = 20.0, *, batch_size: int = 8) -> SinkDims:
    """The ``k`` (or fewer) dimensions that make sinks in this model, the largest first.

    `methods.var`, `edits.sinks` and `sinks` take them. A dimension is one if it is above ``tau`` × rms in
    some layer, at one token in ten at most (else it would make sinks of them all), and reaches twice what the
    median dimension does. LLaMA-2-7B has 2533 and 1415. No dimension can exceed √d_model × rms, so narrow
    models have none at 20. A few prompts are enough; many stream by, ``batch_size`` in one pass.

    Raises `BadEdit` where there is none; it says how large the largest get.
    """
    if whole(k) is None or k < 1:
        raise E.BadEdit(f"k is how many dimensions to look for, at least 1; got {k!r}")
    tops, above, tokens = [], 0.0, 0
    for sizes in _each(vlm, prompts, batch_size):
        tops = [torch.stack([*tops, sizes.amax(0)]).amax(0)]
        above, tokens = above + (sizes > tau).double().sum(0), tokens + len(sizes)
    if not tops:
        raise E.BadEdit("no prompts were given to look for sinks in; a few samples are enough")
    (top,), often = tops, above / tokens
    rest = float(top.median())
    good = (top > tau) & (often <= 0.1) & (top > 2 * rest)
    ranked = top.argsort(descending=True, stable=True).tolist()
    dims = [dim for dim in ranked if good[dim]][:k]
    if not dims:
        largest = SinkDims.of(ranked[:k], top[ranked[:k]].tolist(), rest)
        raise E.BadEdit(
            f"no dimension of this model makes sinks at tau={tau}. The largest: {largest}. Sinks are few "
            f"tokens with a dimension above tau × rms and far above the rest; a lower tau finds weaker ones"
        )
    return SinkDims.of(dims, top[dims].tolist(), rest)


def _each(vlm: VLM, prompts: Prompts, batch_size: int) -> Iterator[Float[Tensor, "token d_model"]]:
    if isinstance(prompts, (Prompt, EvidenceSample)):
        yield sink_sizes(vlm, prompts if isinstance(prompts, Prompt) else [prompts])
        return
    for some in batched(prompts, batch_size):
        yield sink_sizes(vlm, some)


# ---- tokens ------------------------------------------------------------------------------------------------


class SinkToken(NamedTuple):
    """A sink of one sample: where it stands, and from which layer on."""

    id: str
    #: In the sequence, without padding.
    position: int
    segment: str
    #: The first layer that it is a sink of, and of how many it is one.
    first_layer: int
    n_layers: int
    #: Where an image token looks, in pixels of the original picture.
    box: Box | None


@dataclass(frozen=True, eq=False)
class Sinks:
    """Sinks of a data set, and what they draw from the last prompt token.

    Attributes:
        dims: the dimensions that make them.
        tau: above how much × rms.
        counts: (layer, segment) how many a sample has, mean; segments as in `SEGMENTS`.
        mass: (layer, head, kind) weight on sinks; kinds are image and text.
        control: (layer, head, kind) weight on as many other tokens of that kind, in expectation: of those
            that the row is shown, neither behind it nor before its window.
        tokens: each sample's sinks.
        n: samples counted.
        left_out: the others, with the reason.

    NaN in layers without attention over the sequence.
    """

    dims: SinkDims
    tau: float
    counts: Float[Tensor, "layer segment"]
    mass: Float[Tensor, "layer head kind"]
    control: Float[Tensor, "layer head kind"]
    tokens: tuple[SinkToken, ...]
    n: int
    left_out: tuple[LeftOut, ...]

    @property
    def selector(self) -> E.Sinks:
        """These sinks as edits select them, and as `allocation` takes them."""
        return E.sinks(self.dims, self.tau)

    @property
    def pull(self) -> Float[Tensor, "layer head kind"]:
        """How many times more than random tokens of their kind sinks draw; NaN where there are none."""
        return self.mass / torch.where(self.control > 0, self.control, torch.nan)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer, head and kind: mass and control."""
        layers, heads, _ = self.mass.shape
        index = pd.MultiIndex.from_product(
            [range(layers), range(heads), KINDS], names=["layer", "head", "kind"]
        )
        columns = {"mass": self.mass.flatten().numpy(), "control": self.control.flatten().numpy()}
        return pd.DataFrame(columns, index=index).reset_index()

    def tokens_frame(self) -> pd.DataFrame:
        """One row a sink of a sample."""
        return pd.DataFrame(self.tokens, columns=SinkToken._fields)

    def figure(self, *, dark: bool = False) -> go.Figure:
        """What sinks draw by depth, heads averaged, beside the control."""
        mass, control = (value.mean(1).T.numpy() for value in (self.mass, self.control))
        return sink_pull_by_depth(mass, control, kinds=KINDS, n=self.n, dark=dark)


def sinks(
    vlm: VLM,
    samples: Prompt | Iterable[EvidenceSample] | EvidenceSample,
    dims: Iterable[int] | int | None = None,
    *,
    k: int = 2,
    tau: float = 20.0,
    template: Template | None = None,
    batch_size: int = 8,
    progress: Progress = None,
) -> Sinks:
    """The sinks of a model over a data set.

    Args:
        dims: sink dimensions; left out, they are looked for in the first batch (`sink_dims` with ``k`` and
            ``tau``).
        tau: how many times rms a dimension is above at a sink.

    Raises `BadEdit` where no dimension makes sinks, ValueError when no sample could be counted.
    """
    ledger, tokens = Ledger(), []
    counts, mass, control = RunningMean(), RunningMean(), RunningMean()
    settings = dict(template=template, batch_size=batch_size, progress=progress, what="sinks")
    coming = _rounds(vlm, samples, ledger, **settings)
    if dims is None:
        first = next(coming, None)
        if first is not None:
            dims, coming = sink_dims(vlm, first[0], k, tau), chain([first], coming)
    elif not isinstance(dims, SinkDims):
        dims = SinkDims.of(heads_of(dims), (), torch.nan)
    for prompt, ids in coming:
        reading = read_rows(vlm, prompt, sinks=E.sinks(dims, tau))
        parts = segments_of(reading.prompt)
        for row, name in enumerate(ids):
            ledger.ids.append(name)
            marks, read = reading.sinks[row], ~reading.rows[row, :, 0, -1].isnan().any(-1)
            here = torch.stack([(marks & part[row]).sum(1) for part in parts.values()], -1).double()
            counts.add(here.masked_fill(~read[:, None], torch.nan)[None])
            drawn = [_drawn(reading, row, kind) for kind in KINDS]
            mass.add(torch.stack([on for on, _ in drawn], -1)[None])
            control.add(torch.stack([off for _, off in drawn], -1)[None])
            tokens += tokens_of(name, reading, row, parts)
    ledger.need("a prompt to look for sinks in")
    return Sinks(
        dims,
        tau,
        counts.mean,
        mass.mean,
        control.mean,
        tuple(tokens),
        len(ledger.ids),
        tuple(ledger.left_out),
    )


def _rounds(
    vlm: VLM, samples: Prompt | Iterable[EvidenceSample] | EvidenceSample, ledger: Ledger, **settings: Any
) -> Iterator[tuple[Prompt, list[str]]]:
    """Prompts, and the names of their rows."""
    if isinstance(samples, Prompt):
        yield samples, [str(row) for row in range(len(samples))]
        return
    for batch in batches(vlm, samples, ledger, **settings):
        yield batch.prompt, [one.id for one in batch.samples]


def segments_of(prompt: Prompt) -> dict[str, Bool[Tensor, "batch pos"]]:
    """The sequence parted into `SEGMENTS`, without padding."""
    rest = prompt.inputs["attention_mask"].bool().cpu()
    parts = {}
    for name in SEGMENTS[:-1]:
        mask = prompt.spans.mask(name) if name in prompt.spans else torch.zeros_like(rest)
        parts[name] = mask & rest
        rest = rest & ~mask
    return {**parts, "other": rest}


def _drawn(
    reading: Reading, row: int, kind: str
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """What the last row gives to sinks of a kind, and to as many others of the kind in expectation."""
    prompt, weights = reading.prompt, reading.rows[row, :, :, -1].double()
    image = prompt.spans.mask("image")[row]
    there = prompt.inputs["attention_mask"][row].bool().cpu() & (image if kind == "image" else ~image)
    # Tokens of an answer stand behind the row, others before its window: it is not shown them.
    shown = torch.arange(prompt.length) <= reading.asked.positions[row, -1]
    there = there & shown & (~reading.windowed[:, None] | (weights > 0).any(1))
    on, off = (mask.double() for mask in (reading.sinks[row] & there, ~reading.sinks[row] & there))
    mass = torch.einsum("lhk,lk->lh", weights, on)
    each = torch.einsum("lhk,lk->lh", weights, off) / off.sum(1)[:, None]
    n = on.sum(1)[:, None]
    # Without sinks nothing is compared; where all tokens of the kind are sinks there is no control.
    return mass, torch.where((n == 0) & ~mass.isnan(), 0.0, n * each)


def tokens_of(
    name: str, reading: Reading, row: int, parts: dict[str, Bool[Tensor, "batch pos"]]
) -> list[SinkToken]:
    """The sinks of one row, as a table."""
    prompt, marks = reading.prompt, reading.sinks[row]
    padding = prompt.length - int(prompt.inputs["attention_mask"][row].sum())
    boxes = _boxes(prompt, row)
    found = []
    for position in marks.any(0).nonzero()[:, 0].tolist():
        segment = next((name for name, part in parts.items() if part[row, position]), None)
        if segment is None:  # padding
            continue
        at: Int[Tensor, " layer"] = marks[:, position].nonzero()[:, 0]
        found.append(
            SinkToken(
                name,
                position - padding,
                segment,
                int(at[0]),
                len(at),
                boxes.get(position),
            )
        )
    return found


def _boxes(prompt: Prompt, row: int) -> dict[int, Box]:
    """The boxes of a row's image tokens by position, of those that have a place."""
    found = {}
    for grid, owner in zip(prompt.grids, prompt.grid_rows):
        if owner == row:
            placed = np.flatnonzero(grid.placed.numpy())
            found |= {int(grid.positions[one]): tuple(grid.boxes[one].tolist()) for one in placed}
    return found


__all__ = ["SinkDims", "SinkToken", "Sinks", "sink_dims", "sink_sizes", "sinks"]
