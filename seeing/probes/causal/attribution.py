"""Attribution patching: what every patch would do, to first order, from one backward pass.

Patching every head at every span takes a pass each. The gradient of the answer's metric with respect to an
activation, times the difference of the two runs there, is what the patch would do if the model were linear
between them (Nanda 2023, Attribution Patching; Syed et al. 2023, arXiv 2310.10348):

    change ≈ ∇ metric(base) · (goal − base),

for all heads and all edges of attention at once. How good the approximation is, is measured, not believed:
`Attribution.compare` patches a part of the places in earnest.

Edges are those into the rows that say the answer: a head's weight on the tokens of a span. Keys and values
are what tokens of a span offer to the heads that share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits.select import ALL, Selector
from seeing.figures.patching import patching_map
from seeing.probes.causal.effects import METRICS
from seeing.probes.causal.pairs import Corruption, Pair, pairs
from seeing.probes.causal.patching import Runs, check_asked
from seeing.probes.causal.positions import SPANS, mask_of, needs_boxes, of_picture, positions_of
from seeing.probes.progress import Progress
from seeing.probes.running import RunningMean
from seeing.probes.samples import Answered, Ledger, LeftOut
from seeing.prompt import Prompt, Template
from seeing.vlm import VLM, Activations

if TYPE_CHECKING:
    from seeing.probes.causal.comparison import Comparison

#: What is attributed, and the site that holds it: layer × head × span.
KINDS = {"heads": "attn.z", "edges": "attn.pattern", "keys": "attn.k", "values": "attn.v"}


@dataclass(frozen=True)
class Settings:
    """What an attribution was asked: the same of both kinds of passes."""

    spans: Mapping[str, Selector]
    direction: str
    metric: str
    answers: Answered
    template: Template | None
    corrupted: Corruption


@dataclass(frozen=True)
class Attribution:
    """The change of the metric that each patch would make, to first order; means over samples.

    Attributes:
        heads: (layer, head, span) what the head writes at the tokens of the span (z).
        edges: (layer, head, span) the weights of the answering rows on the tokens of the span.
        keys: (layer, kv_head, span) and
        values: (layer, kv_head, span) of the tokens of the span.
        spans: labels of the span axis.
        gap: the mean of goal − base, which the changes are to be held against.
        settings: what was asked.
        ids, left_out: the samples counted, and those that were not.

    NaN in layers without attention, and where keys are not those that the span names.
    """

    heads: Float[Tensor, "layer head span"]
    edges: Float[Tensor, "layer head span"]
    keys: Float[Tensor, "layer kv_head span"]
    values: Float[Tensor, "layer kv_head span"]
    spans: tuple[str, ...]
    gap: float
    settings: Settings
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    def of(self, kind: str = "heads") -> Float[Tensor, "layer head span"]:
        """One of heads, edges, keys, values."""
        if kind not in KINDS:
            raise KeyError(f"nothing of the kind {kind!r}; there are {', '.join(KINDS)}")
        return getattr(self, kind)

    def top(self, k: int = 10, kind: str = "heads") -> list[tuple[int, int, str, float]]:
        """(layer, head, span, change), the ``k`` largest in size."""
        found = self.of(kind)
        order = found.abs().flatten().nan_to_num(-1.0).argsort(descending=True, stable=True)[:k]
        places = [place_of(int(one), found.shape) for one in order]
        return [
            (layer, head, self.spans[span], float(found[layer, head, span]))
            for layer, head, span in places
            if not found[layer, head, span].isnan()
        ]

    def compare(
        self,
        vlm: VLM,
        clean: Iterable[EvidenceSample] | EvidenceSample | Prompt,
        k: int = 10,
        kind: str = "heads",
        *,
        corrupted: Corruption | None = None,
        batch_size: int = 4,
        progress: Progress = None,
    ) -> Comparison:
        """Hold the attributions against exact patches in ``2k`` places.

        They are the ``k`` largest in size, and as many spread evenly over the ranks of the rest.

        Args:
            clean: samples to patch; attributions are made anew of these.
            corrupted: as it was asked for before; say it again where it was an iterator.
        """
        # The comparison is made of attributions, so its module stands on this one.
        from seeing.probes.causal.comparison import compare

        settings = self.settings if corrupted is None else replace(self.settings, corrupted=corrupted)
        return compare(vlm, clean, self, k, kind, settings, batch_size, progress)

    def to_frame(self) -> pd.DataFrame:
        """One row a place: kind, layer, head, span and change."""
        frames = []
        for kind in KINDS:
            found = self.of(kind)
            index = pd.MultiIndex.from_product(
                [[kind], range(found.shape[0]), range(found.shape[1]), self.spans],
                names=["kind", "layer", "head", "span"],
            )
            frames.append(pd.DataFrame({"change": found.flatten().numpy()}, index=index))
        return pd.concat(frames).reset_index()

    def figure(self, kind: str = "heads", *, dark: bool = False) -> go.Figure:
        """Layer × head, one panel a span."""
        found = self.of(kind)
        axes = {"layer": range(found.shape[0]), "head": range(found.shape[1]), "span": self.spans}
        return patching_map(
            found.numpy(),
            axes,
            metric=METRICS[self.settings.metric],
            direction=self.settings.direction,
            n=self.n,
            title=f"Attribution patching of {kind}",
            units="change to first order",
            dark=dark,
        )


def attribution(
    vlm: VLM,
    clean: Iterable[EvidenceSample] | EvidenceSample | Prompt,
    corrupted: Corruption,
    *,
    spans: Sequence[str | Selector] = SPANS,
    direction: str = "denoise",
    metric: str = "logit_diff",
    answers: Answered = "given",
    template: Template | None = None,
    batch_size: int = 4,
    progress: Progress = None,
) -> Attribution:
    """Attribution patching of all heads, edges, keys and values: two passes and a backward a batch.

    Args:
        clean, corrupted: the pairs, see `pairs`; both sides need the same tokens in the same places.
        spans: whose tokens are patched together.
        direction: "denoise" attributes clean activations put into the corrupted run, "noise" corrupted
            ones put into the clean run. The gradient is that of the run that is changed.
        metric: one of `effects.METRICS`; the logit difference is the one nearest to linear. KL has no
            gradient at the clean run, so "noise" by "kl" is zero to first order.
        answers: whose answer is measured.

    Raises ValueError when no pair could be counted.
    """
    check_asked(direction, metric)
    if metric == "kl" and direction == "noise":
        raise ValueError(
            "the divergence is at its least in the clean run, so its gradient there is zero: say "
            "direction='denoise', or another metric"
        )
    where = positions_of(spans)
    settings = Settings(where, direction, metric, answers, template, corrupted)
    ledger, gap = Ledger(), RunningMean()
    means = {kind: RunningMean() for kind in KINDS}
    for pair in paired(vlm, clean, settings, ledger, batch_size, progress):
        found = Attributed.of(vlm, pair, settings)
        for kind, mean in means.items():
            mean.add(found.by_span(kind))
        gap.add((found.runs.end - found.runs.start)[:, None])
        ledger.ids.extend(pair.ids)
    ledger.need("a clean and a corrupted side with the same tokens in the same places")
    return Attribution(
        **{kind: mean.mean for kind, mean in means.items()},
        spans=tuple(where),
        gap=float(gap.mean),
        settings=settings,
        ids=tuple(ledger.ids),
        left_out=tuple(ledger.left_out),
    )


def paired(
    vlm: VLM, clean: Any, settings: Settings, ledger: Ledger, batch_size: int, progress: Progress
) -> Iterable[Pair]:
    """Pairs whose two sides have the same tokens in the same places."""
    where = tuple(settings.spans.values())
    return pairs(
        vlm,
        clean,
        settings.corrupted,
        ledger,
        aligned=(ALL, *where),
        boxes=needs_boxes(where),
        template=settings.template,
        batch_size=batch_size,
        progress=progress,
        answers=settings.answers,
        what="attributed pairs",
    )


def place_of(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of a flattened tensor, axis by axis."""
    return tuple(int(one) for one in torch.unravel_index(torch.tensor(index), tuple(shape)))


@dataclass(frozen=True)
class Attributed:
    """One batch of pairs: gradients of the base run, and both runs' activations."""

    vlm: VLM
    runs: Runs
    grads: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    goal: Activations
    spans: Mapping[str, Selector]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, vlm: VLM, pair: Pair, settings: Settings) -> Attributed:
        runs = Runs.of(vlm, pair, settings.direction, settings.metric)
        layers = vlm.sites.kernels["text"]
        names = [f"text.{layer}.{site}" for layer in layers for site in KINDS.values()]
        # The rows that say the answer stand in the same columns in every row of a batch.
        columns = tuple(runs.base.spans.mask("predicts").any(0).nonzero()[:, 0].tolist())
        base = vlm.cache(runs.base, [*names, "logits"], list(columns), grad=True)
        metric = runs.measure(_answering(base["logits"], runs.base))
        grads = dict(zip(names, torch.autograd.grad(metric.sum(), [base[name] for name in names])))
        kept = {name: base[name].detach() for name in names}
        goal = vlm.cache(runs.goal, names, list(columns))
        return cls(vlm, runs, grads, kept, goal, settings.spans, columns)

    def each(self, name: str) -> Float[Tensor, "batch ..."]:
        """gradient × difference of a name, entry by entry."""
        return self.grads[name].float() * (self.goal[name].float() - self.base[name].float())

    def by_span(self, kind: str) -> Float[Tensor, "batch layer head span"]:
        """The attributions of a kind; NaN in layers that have none."""
        kernels, layers = self.vlm.sites.kernels["text"], []
        for layer in range(self.vlm.cfg.n_layers):
            name = f"text.{layer}.{KINDS[kind]}"
            layers.append(self._layer(kind, name, kernels[layer].cross) if layer in kernels else None)
        like = next(one for one in layers if one is not None)
        return torch.stack([torch.full_like(like, torch.nan) if one is None else one for one in layers], 1)

    def _layer(self, kind: str, name: str, cross: bool) -> Float[Tensor, "batch head span"]:
        each = self.each(name)
        # (batch, position, head): what the tokens of a span are summed over.
        each = each.sum(2).transpose(1, 2) if kind == "edges" else each.sum(3)
        found = []
        for one in self.spans.values():
            mask = self._mask(one, kind, cross, each.shape[1])
            if mask is None:
                found.append(each.new_full((len(each), each.shape[2]), torch.nan))
            else:
                found.append(torch.einsum("bph,bp->bh", each, mask.to(each)))
        return torch.stack(found, -1).cpu()

    def _mask(self, one: Selector, kind: str, cross: bool, length: int) -> Bool[Tensor, "batch pos"] | None:
        """The positions of a span where this kind of activation has them; None where it has none of them."""
        prompt = self.runs.base
        if not cross or kind == "heads":
            return mask_of(prompt, one)
        return mask_of(prompt.cross, one) if of_picture(one) else None


def _answering(
    logits: Float[Tensor, "batch pos d_vocab"], prompt: Prompt
) -> Float[Tensor, "batch token d_vocab"]:
    """The rows of logits that say the answer."""
    at = prompt.spans["predicts"].clamp_min(0).to(logits.device)
    return logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))


__all__ = ["KINDS", "Attributed", "Attribution", "attribution"]
