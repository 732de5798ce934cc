"""Activation patching: where does a run hold what its answer depends on?

Two runs ask the same question of a picture and of a changed one (`pairs`). Into one of them, the base, an
activation of the other is put, at one site, in one layer, at the positions of one span, and the answer is
measured again (Meng et al. 2022, arXiv 2202.05262; for good practice Zhang & Nanda 2024, arXiv 2309.16042):

    effect = (patched − base) / (goal − base),

so that 1 is all of the way to the other run and 0 none of it. Over samples it is the ratio of the two means:
a mean of ratios would be ruled by the samples whose two runs hardly differ. ``direction="denoise"`` puts
clean activations into the corrupted run, and an effect of 1 says that this place is enough to bring the
answer back; ``"noise"`` puts corrupted ones into the clean run, and an effect of 1 says that the answer
can't do without.

A place is as fine as one head: ``heads=True`` patches z of every head, before the output projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit, Patch
from seeing.edits.layers import layers_of
from seeing.edits.select import Selector
from seeing.figures.patching import patching_map
from seeing.probes.causal.effects import METRICS, Measure, check_metric, rival, share_moved
from seeing.probes.causal.pairs import Corruption, Pair, answer_ids, pairs
from seeing.probes.causal.positions import SPANS, needs_boxes, positions_of
from seeing.probes.progress import Progress
from seeing.probes.running import Bootstrap, RunningMean
from seeing.probes.samples import Answered, Ledger, LeftOut
from seeing.prompt import Prompt, Template
from seeing.stats import Interval
from seeing.vlm import VLM, Activations

#: Which run is changed: the corrupted one by clean activations, or the clean one by corrupted ones.
DIRECTIONS = ("denoise", "noise")

#: Sites of the stream: what stands before and behind the branches, and what those add.
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Patched:
    """Effects of patches, one for each place.

    Attributes:
        axes: the axes of the tensors by name, with their labels: "site", "layer", "span", or "layer", "head",
            "span", or "layer", "head".
        effect: (*axes) the mean of patched − base over the mean of goal − base. NaN where the model has no
            such place, or where the two runs differ by rounding on average.
        interval: of ``effect``, two tensors (*axes), 95 %, bootstrapped over samples.
        change: (*axes) the mean of patched − base, in units of the metric.
        gap: the mean of goal − base.
        share: (*axes) the mean over samples of each sample's own (patched − base) / (goal − base); those
            whose two runs differ by rounding are left out of it.
        count: (*axes) samples behind ``share``.
        metric: one of `effects.METRICS`.
        direction: "denoise" or "noise".
        kind: what was patched, as the figure says it.
        ids: the samples counted.
        left_out: those that were not, each with its reason.
    """

    axes: Mapping[str, tuple]
    effect: Float[Tensor, "*axes"]
    interval: Interval
    change: Float[Tensor, "*axes"]
    gap: float
    share: Float[Tensor, "*axes"]
    count: Int[Tensor, "*axes"]
    metric: str
    direction: str
    kind: str
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    def at(self, **where: Any) -> Float[Tensor, "*rest"]:
        """The effects at some labels: ``patched.at(span="evidence", layer=3)``.

        Raises KeyError for an axis or a label that is not there.
        """
        found = self.effect
        for axis, labels in reversed(self.axes.items()):
            if axis in where:
                label = where.pop(axis)
                if label not in labels:
                    raise KeyError(f"no {axis} {label!r}; there are {', '.join(map(str, labels))}")
                found = found.select(list(self.axes).index(axis), labels.index(label))
        if where:
            raise KeyError(f"no axis {', '.join(where)}; there are {', '.join(self.axes)}")
        return found

    def top(self, k: int = 10) -> list[tuple]:
        """The ``k`` places with the largest effect, each as its labels and the effect."""
        order = self.effect.flatten().nan_to_num(-torch.inf).argsort(descending=True, stable=True)
        places = list(product(*self.axes.values()))
        flat = self.effect.flatten()
        return [(*places[one], float(flat[one])) for one in order[:k].tolist() if not flat[one].isnan()]

    def to_frame(self) -> pd.DataFrame:
        """One row a place: its labels, effect, low, high, change, share and count."""
        index = pd.MultiIndex.from_product(self.axes.values(), names=list(self.axes))
        low, high = self.interval
        values = dict(effect=self.effect, low=low, high=high, change=self.change, share=self.share)
        values["count"] = self.count
        columns = {name: value.flatten().numpy() for name, value in values.items()}
        return pd.DataFrame(columns, index=index).reset_index()

    def figure(self, *, dark: bool = False) -> go.Figure:
        """Panels of layer × span, one a site, or of layer × head, one a span."""
        return patching_map(
            self.effect.numpy(),
            self.axes,
            metric=METRICS[self.metric],
            direction=self.direction,
            n=self.n,
            title=self.kind,
            dark=dark,
        )


def patching(
    vlm: VLM,
    clean: Iterable[EvidenceSample] | EvidenceSample | Prompt,
    corrupted: Corruption,
    *,
    sites: str | Sequence[str] = "resid_post",
    heads: bool = False,
    spans: Sequence[str | Selector] = SPANS,
    layers: Any = "all",
    direction: str = "denoise",
    metric: str = "logprob",
    answers: Answered = "given",
    template: Template | None = None,
    batch_size: int = 8,
    progress: Progress = None,
) -> Patched:
    """Activation patching over layers, spans and sites, or over layers, heads and spans.

    Args:
        clean: samples, or a `Prompt`.
        corrupted: how the other side of each pair is made: ``"another"`` (the next sample's picture), an
            edit of pictures (``E.Noise(0.5)``, ``E.Occlude("evidence")``), a function of the sample, other
            samples, or another `Prompt`.
        sites: sites of a layer: "resid_post", "attn_out", "mlp_out", "attn.z" …
        heads: patch z head by head in place of ``sites``.
        spans: which positions, patched together: "image", "evidence", "non-evidence", "question",
            "template", "last" (the rows that say the answer), or any selector.
        direction: "denoise" or "noise", see above.
        metric: one of `effects.METRICS`. The foil of "logit_diff" is what the corrupted run would
            rather say.
        answers: whose answer is measured: the sample's ("given"), or the model's own to the clean prompt.
        batch_size: pairs in a forward pass. Each place is one pass over the batch; activations of the
            other run are read once.

    Returns: effects with axes (site, layer, span), or (layer, head, span).
    Raises ValueError when no pair could be counted, BadEdit for places that the model lacks.
    """
    check_asked(direction, metric)
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites:
        raise ValueError(f"no sites are named: {', '.join(SITES)}, attn.z")
    chosen = layers_of(layers, vlm.cfg.n_layers)
    where = positions_of(spans)
    if heads:
        axes = {"layer": chosen, "head": tuple(range(vlm.cfg.n_heads)), "span": tuple(where)}
        places = [
            Place(f"text.{layer}.attn.z", where[span], (head,))
            for layer, head, span in product(*axes.values())
        ]
    else:
        axes = {"site": sites, "layer": chosen, "span": tuple(where)}
        places = [Place(f"text.{layer}.{site}", where[span]) for site, layer, span in product(*axes.values())]
    check_places(vlm, places)
    sums, ledger = Sums(), Ledger()
    for pair in pairs(
        vlm,
        clean,
        corrupted,
        ledger,
        aligned=tuple(where.values()),
        boxes=needs_boxes(list(where.values())),
        template=template,
        batch_size=batch_size,
        progress=progress,
        answers=answers,
        what="patched pairs",
    ):
        runs = Runs.of(vlm, pair, direction, metric)
        sums.add(runs.start, runs.end, runs.patched(places))
        ledger.ids.extend(pair.ids)
    ledger.need("a clean and a corrupted side to compare")
    return sums.result(axes, metric, direction, "Activation patching", ledger)


def check_asked(direction: str, metric: str) -> None:
    """Raise ValueError for a direction or a metric that there is not."""
    check_metric(metric)
    if direction not in DIRECTIONS:
        raise ValueError(f"a direction is 'denoise' or 'noise', got {direction!r}")


@dataclass(frozen=True)
class Place:
    """Where one patch goes: a name, positions, and the heads, where it is not all of it."""

    name: str
    positions: Selector
    heads: tuple[int, ...] | None = None


def check_places(vlm: VLM, places: Sequence[Place]) -> None:
    """Raise BadEdit when the model has none of the places; those that it lacks are NaN."""
    names = list(dict.fromkeys(place.name for place in places))
    lacking = [name for name in names if name not in vlm.sites]
    if known := [name for name in lacking if name not in vlm.sites.absent]:
        raise BadEdit(f"no site is called {known[0]!r}; a layer has {', '.join(SITES)} and attn.z")
    if len(lacking) == len(names):
        raise BadEdit(f"the model has none of these places; {lacking[0]}: {vlm.sites.absent[lacking[0]]}")


@dataclass(frozen=True)
class Runs:
    """The two runs of a pair, measured, and which of them is changed.

    Attributes:
        base: the prompt whose run is changed; ``goal`` the one whose activations go in.
        clean, corrupted: (batch, token, d_vocab) logits of the rows that predict the answer.
        measure: the metric.
    """

    vlm: VLM
    base: Prompt
    goal: Prompt
    clean: Float[Tensor, "batch token d_vocab"]
    corrupted: Float[Tensor, "batch token d_vocab"]
    measure: Measure
    direction: str

    @classmethod
    def of(cls, vlm: VLM, pair: Pair, direction: str, metric: str) -> Runs:
        clean, corrupted = (vlm.score(one).logits.float().cpu() for one in (pair.clean, pair.corrupted))
        ids = answer_ids(pair.clean)
        measure = Measure(metric, ids, rival(corrupted[:, 0], ids[:, 0]), clean.log_softmax(-1))
        sides = (pair.corrupted, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupted)
        return cls(vlm, *sides, clean, corrupted, measure, direction)

    @property
    def start(self) -> Float[Tensor, " batch"]:
        """The metric of the run that is changed."""
        return self.measure(self.corrupted if self.direction == "denoise" else self.clean)

    @property
    def end(self) -> Float[Tensor, " batch"]:
        """The metric of the run whose activations go in."""
        return self.measure(self.clean if self.direction == "denoise" else self.corrupted)

    def patched(self, places: Sequence[Place]) -> Float[Tensor, "place batch"]:
        """The metric under each patch, one pass a place; NaN for places that the model lacks."""
        names = [name for name in dict.fromkeys(place.name for place in places) if name in self.vlm.sites]
        source = self.vlm.cache(self.goal, names)
        return torch.stack([self._one(place, source) for place in places])

    def _one(self, place: Place, source: Activations) -> Float[Tensor, " batch"]:
        if place.name not in source:
            return self.start.new_full((len(self.base),), torch.nan)
        patch = Patch(place.name, source, place.positions, heads=place.heads)
        return self.measure(self.vlm.with_edits(patch).score(self.base).logits.cpu())


class Sums:
    """What is kept of each batch of pairs: sums of shares and changes, and their bootstrap draws."""

    def __init__(self):
        self.share, self.change, self.gap, self.draws = (
            RunningMean(),
            RunningMean(),
            RunningMean(),
            Bootstrap(),
        )

    def add(
        self,
        start: Float[Tensor, " batch"],
        end: Float[Tensor, " batch"],
        patched: Float[Tensor, "place batch"],
    ) -> None:
        """Add a batch: the metric of the run that is changed, of the other one, and under each patch."""
        self.share.add(share_moved(patched, start, end).T)
        change, gap = (patched - start).T, (end - start)[:, None]
        self.change.add(change)
        self.gap.add(gap)
        # Side by side, so that a draw weighs a sample's change and its gap alike.
        self.draws.add(torch.cat([change, gap], 1))

    def result(
        self, axes: Mapping[str, Sequence], metric: str, direction: str, kind: str, ledger: Ledger
    ) -> Patched:
        shape = [len(labels) for labels in axes.values()]
        change, gap = self.change.mean, self.gap.mean
        means = self.draws.means
        ends = torch.tensor([0.025, 0.975], dtype=means.dtype)
        low, high = torch.nanquantile(means[:, :-1] / means[:, -1:], ends, dim=0)
        effect = share_moved(change[:, None], torch.zeros_like(gap), gap)[:, 0]
        return Patched(
            axes=axes,
            effect=effect.reshape(shape),
            interval=Interval(low.reshape(shape), high.reshape(shape)),
            change=change.reshape(shape),
            gap=float(gap),
            share=self.share.mean.reshape(shape),
            count=self.share.count.reshape(shape),
            metric=metric,
            direction=direction,
            kind=kind,
            ids=tuple(ledger.ids),
            left_out=tuple(ledger.left_out),
        )
