"""Attention knockout: which flows of information, in which layers, does the answer hang on?

Edges of attention are cut, softmax scores set to −∞ from the rows of some tokens to the keys of others, in a
window of layers around each layer in turn, and the answer is measured again (Geva et al. 2023, arXiv
2304.14767; for pictures Neo et al. 2024, arXiv 2410.07149, and Zhang et al. 2024, arXiv 2411.18620). A flow
that the answer hangs on hurts it where, and only where, the model moves that information.

Cutting many tokens hurts more than cutting few. ``random->last`` is the control: as many image tokens as the
evidence has, drawn from those that are none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits import Edits, Knockout, Positions, maybe
from seeing.edits.layers import Around, layers_of
from seeing.edits.select import Selector, Span
from seeing.figures.knockout import knockout_curves
from seeing.probes.causal.effects import percent_change
from seeing.probes.causal.pairs import with_answer
from seeing.probes.causal.positions import lacking, named, needs_boxes, of_picture
from seeing.probes.progress import Progress
from seeing.probes.running import Bootstrap, RunningMean
from seeing.probes.samples import Answered, Ledger, LeftOut, batches
from seeing.prompt import Prompt, Template
from seeing.stats import Interval
from seeing.vlm import VLM

#: Flows of the published analyses, "keys->queries": what is hidden from whom.
FLOWS = (
    "image->question",
    "image->last",
    "evidence->last",
    "non-evidence->last",
    "random->last",
    "question->last",
    "last->last",
)

#: How a change of the answer is said, with its unit.
MEASURES = {
    "logprob": "log p′ − log p of the answer, nats",
    "prob": "p′ − p of the answer",
    "percent": "100·(p′ − p)/p of the answer, %",
}

#: Control: image tokens that are no evidence, as many as the evidence has.
RANDOM = "random"


@dataclass(frozen=True)
class Knockouts:
    """What cutting each flow does to the answer, by the centre of the window of layers that is cut.

    Attributes:
        flows: labels of the flow axis.
        layers: the centres, labels of the layer axis.
        logprob: (flow, layer) mean over samples of log p′ − log p, p the answer's probability.
        prob: (flow, layer) mean of p′ − p.
        percent: (flow, layer) mean of 100·(p′ − p)/p, as published: −100 takes the answer away. It has no
            bound above, so samples that are answered wrong rule it: give it those that are answered right,
            or ``answers="own"``.
        intervals: of each of the three, by name, two tensors, 95 %, bootstrapped over samples.
        window: layers cut at a time.
        base: mean probability of the answer in the uncut run.
        ids, left_out: the samples counted, and those that were not.

    NaN where a window holds no layer in which the flow could be, and for the control where no sample has
    as many other image tokens as evidence.
    """

    flows: tuple[str, ...]
    layers: tuple[int, ...]
    logprob: Float[Tensor, "flow layer"]
    prob: Float[Tensor, "flow layer"]
    percent: Float[Tensor, "flow layer"]
    intervals: Mapping[str, Interval]
    window: int
    n_layers: int
    base: float
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    def of(self, flow: str, measure: str = "logprob") -> Float[Tensor, " layer"]:
        """One flow's curve."""
        if flow not in self.flows or measure not in MEASURES:
            raise KeyError(
                f"no {flow!r} by {measure!r}; flows {', '.join(self.flows)}, by {', '.join(MEASURES)}"
            )
        return getattr(self, measure)[self.flows.index(flow)]

    def to_frame(self) -> pd.DataFrame:
        """One row a flow and layer, each measure with its low and high."""
        index = pd.MultiIndex.from_product([self.flows, self.layers], names=["flow", "layer"])
        columns = {}
        for name in MEASURES:
            low, high = self.intervals[name]
            for column, value in ((name, getattr(self, name)), (f"{name}_low", low), (f"{name}_high", high)):
                columns[column] = value.flatten().numpy()
        return pd.DataFrame(columns, index=index).reset_index()

    def figure(self, measure: str = "logprob", *, dark: bool = False) -> go.Figure:
        """A curve a flow over the centres of the windows."""
        if measure not in MEASURES:
            raise KeyError(f"no measure {measure!r}; there are {', '.join(MEASURES)}")
        curves = [getattr(self, measure), *self.intervals[measure]]
        whole = np.full((3, len(self.flows), self.n_layers), np.nan)
        whole[:, :, list(self.layers)] = torch.stack(curves).numpy()
        return knockout_curves(
            *whole, flows=self.flows, window=self.window, units=MEASURES[measure], n=self.n, dark=dark
        )


def knockout(
    vlm: VLM,
    samples: Iterable[EvidenceSample] | EvidenceSample | Prompt,
    *,
    flows: Sequence[str] | Mapping[str, tuple[Any, Any]] = FLOWS,
    window: int = 9,
    layers: Any = "all",
    answers: Answered = "given",
    seed: int = 0,
    template: Template | None = None,
    batch_size: int = 16,
    progress: Progress = None,
) -> Knockouts:
    """Attention knockout over windows of layers, flow by flow.

    Args:
        flows: "keys->queries" by names of positions; or {label: (keys, queries)} with selectors of positions
            that the prompt knows: spans, positions, boxes.
            "last" are the rows that say the answer; "last->last" cuts each of them from itself alone;
            "random" is the control for "evidence".
        window: layers that are cut at a time, centred; at the ends as many of them as there are.
        layers: the centres.
        answers: whose answer is measured: the sample's ("given") or the model's own ("own").
        seed: of the control's tokens, which are drawn anew for every sample.
        batch_size: samples in a pass; a flow takes one pass a centre.

    Under an edit of pictures, positions and the control are those of the picture that the run shows.

    Raises ValueError when no sample could be counted, or for a flow that is none.
    """
    cuts = _cuts(vlm, flows, seed)
    centres = layers_of(layers, vlm.cfg.n_layers)
    windows = [Around(layer, window).of(vlm.cfg.n_layers) for layer in centres]
    needed = [one for cut in cuts.values() for one in cut.selectors]
    ledger, base = Ledger(), RunningMean()
    means, draws = ({name: kind() for name in MEASURES} for kind in (RunningMean, Bootstrap))
    for ids, prompt in _prompts(vlm, samples, needed, ledger, template, batch_size, progress, answers):
        plain = vlm.score(prompt).logprob.double().cpu()
        # (batch, flow, layer)
        found = torch.stack([_swept(vlm, prompt, ids, cut, windows) for cut in cuts.values()], 1)
        start = plain[:, None, None]
        changes = {
            "logprob": found - start,
            "prob": found.exp() - start.exp(),
            "percent": percent_change(found, start),
        }
        for name, change in changes.items():
            means[name].add(change)
            draws[name].add(change)
        base.add(plain.exp()[:, None])
        ledger.ids.extend(ids)
    ledger.need("the positions that these flows are between")
    return Knockouts(
        flows=tuple(cuts),
        layers=centres,
        **{name: one.mean for name, one in means.items()},
        intervals={name: one.interval() for name, one in draws.items()},
        window=window,
        n_layers=vlm.cfg.n_layers,
        base=float(base.mean),
        ids=tuple(ledger.ids),
        left_out=tuple(ledger.left_out),
    )


def _swept(
    vlm: VLM, prompt: Prompt, ids: Sequence[str], cut: _Cut, windows: Sequence[tuple[int, ...]]
) -> Float[Tensor, "batch layer"]:
    """The answer's log-probability with one flow cut in each window."""
    kept = [tuple(layer for layer in window if layer in cut.possible) for window in windows]
    # Where few layers have attention, or few keys of this kind, several windows cut the same.
    found = {layers: cut.logprob(vlm, prompt, ids, layers) for layers in dict.fromkeys(kept)}
    return torch.stack([found[layers] for layers in kept], 1)


# ---- flows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """Edges to cut. ``possible`` are the layers in which keys of this kind are looked at."""

    keys: Selector
    queries: Selector
    possible: frozenset[int]

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """What a sample must have for the flow to be there."""
        return self.keys, self.queries

    def edits(self, prompt: Prompt, ids: Sequence[str], layers: tuple[int, ...]) -> Edits:
        return Edits((Knockout(queries=self.queries, keys=self.keys, layers=layers),))

    def counted(self, prompt: Prompt, ids: Sequence[str]) -> Bool[Tensor, " batch"]:
        """The rows in which the flow is what it is called."""
        return torch.ones(len(prompt), dtype=torch.bool)

    def logprob(
        self, vlm: VLM, prompt: Prompt, ids: Sequence[str], layers: tuple[int, ...]
    ) -> Float[Tensor, " batch"]:
        if not layers:
            return torch.full((len(prompt),), torch.nan, dtype=torch.float64)
        cut = vlm.with_edits(self.edits(prompt, ids, layers)).score(prompt).logprob.double().cpu()
        return cut.masked_fill(~self.counted(prompt, ids), torch.nan)


@dataclass(frozen=True)
class _Itself(_Cut):
    """Each row that says the answer from itself alone, not from the answer's tokens before it."""

    def edits(self, prompt: Prompt, ids: Sequence[str], layers: tuple[int, ...]) -> Edits:
        place = torch.arange(prompt.length)
        rows = prompt.spans.mask("predicts")
        own = [maybe(Positions.of_mask(rows & (place == column))) for column in rows.any(0).nonzero()[:, 0]]
        return Edits(tuple(Knockout(queries=one, keys=one, layers=layers) for one in own))


@dataclass(frozen=True)
class _Random(_Cut):
    """As many image tokens as the evidence has, drawn from those that are none."""

    seed: int = 0

    @property
    def selectors(self) -> tuple[Selector, ...]:
        return Span("evidence"), self.queries

    def edits(self, prompt: Prompt, ids: Sequence[str], layers: tuple[int, ...]) -> Edits:
        drawn = maybe(Positions.of_mask(self.drawn(prompt.keys, ids)))
        return Edits((Knockout(queries=self.queries, keys=drawn, layers=layers),))

    def counted(self, prompt: Prompt, ids: Sequence[str]) -> Bool[Tensor, " batch"]:
        return self.drawn(prompt.keys, ids).any(1)

    def drawn(self, keys: Prompt, ids: Sequence[str]) -> Bool[Tensor, "batch key"]:
        """The keys drawn, the same whatever the batch; none in rows with too few to draw from."""
        evidence = keys.evidence()
        others = keys.spans.mask("image") & ~evidence
        drawn = torch.zeros_like(others)
        for row, name in enumerate(ids):
            free, count = others[row].nonzero()[:, 0], int(evidence[row].sum())
            if count <= len(free):
                number = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:8])
                chosen = np.random.default_rng(number).choice(len(free), count, replace=False)
                drawn[row, free[torch.from_numpy(chosen)]] = True
        return drawn


def _cuts(vlm: VLM, flows: Any, seed: int) -> dict[str, _Cut]:
    """The flows by their labels. Raises ValueError for what is none."""
    kernels = vlm.sites.kernels["text"]
    across = frozenset(layer for layer, kernel in kernels.items() if kernel.cross)
    within = frozenset(kernels) - across
    flows = (flows,) if isinstance(flows, str) else flows
    ends = flows if isinstance(flows, Mapping) else {flow: _ends(flow) for flow in flows}
    if not ends:
        raise ValueError(f"no flows are named; those of the published analyses are {', '.join(FLOWS)}")
    found: dict[str, _Cut] = {}
    for label, (keys, queries) in ends.items():
        if keys == queries == "last":
            found[label] = _Itself(named("last"), named("last"), within)
        elif isinstance(keys, str) and keys == RANDOM:
            found[label] = _Random(named("non-evidence"), named(queries), across or within, seed)
        else:
            keys = named(keys)
            possible = across if across and of_picture(keys) else within
            found[label] = _Cut(keys, named(queries), possible)
    return found


def _ends(flow: Any) -> tuple[str, str]:
    ends = tuple(flow.replace("→", "->").split("->")) if isinstance(flow, str) else ()
    if len(ends) != 2 or not all(ends):
        raise ValueError(
            f"a flow is 'keys->queries', what is hidden from whom, such as 'image->last'; got {flow!r:.100}"
        )
    return tuple(end.strip() for end in ends)


# ---- samples -----------------------------------------------------------------------------------------------


def _prompts(
    vlm, samples, needed, ledger, template, batch_size, progress, answers
) -> Iterator[tuple[list[str], Prompt]]:
    """(ids, prompt with its answer) of each batch, without the rows that lack what is needed.

    Prompts are those that a run shows, so that what is drawn and cut is in the picture that is seen.
    """
    if isinstance(samples, Prompt):
        prompt = vlm.shown(with_answer(vlm, samples))
        for row, reason in enumerate(_reasons(prompt, needed)):
            if reason:
                raise ValueError(f"row {row}: {reason}")
        yield [f"row {row}" for row in range(len(prompt))], prompt
        return
    if answers not in ("given", "own"):
        raise ValueError(f"the answer that is measured is 'given' or 'own', got {answers!r}")
    settings = dict(template=template, answers=answers)
    boxes = needs_boxes(needed)
    for batch in batches(
        vlm,
        samples,
        ledger,
        boxes=boxes,
        batch_size=batch_size,
        progress=progress,
        what="samples cut",
        **settings,
    ):
        prompt = vlm.shown(batch.prompt)
        reasons = _reasons(prompt, needed)
        for sample, reason in zip(batch.samples, reasons):
            if reason:
                ledger.leave_out(sample, reason)
        kept = [sample for sample, reason in zip(batch.samples, reasons) if not reason]
        if len(kept) < len(batch.samples) and kept:
            again = next(batches(vlm, kept, Ledger(), batch_size=len(kept), progress=False, **settings))
            prompt = vlm.shown(again.prompt)
        if kept:
            yield [sample.id for sample in kept], prompt


def _reasons(prompt: Prompt, needed: Sequence[Selector]) -> list[str | None]:
    """Row by row, what a flow lacks. Image tokens are looked for where they are keys."""
    pictured = [one for one in needed if of_picture(one)]
    said = [one for one in needed if not of_picture(one)]
    both = zip(lacking(prompt.keys, pictured), lacking(prompt, said))
    return [of_keys or of_rows for of_keys, of_rows in both]


__all__ = ["FLOWS", "Knockouts", "knockout"]
