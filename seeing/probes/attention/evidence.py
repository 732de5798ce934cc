"""Evidence locality: does a layer, does a head, look where the answer is?

For each sample the attention of a row (the last prompt token's, or those that predict the answer's tokens)
over the image tokens is compared with the labels that the annotated boxes give them. A layer's score is that
of its heads' mean row, as in the paper (Liu et al. 2026, arXiv 2510.17771); a head's is its own. 0.5 is
chance for AUROC. What some call AUPRC is `average_precision` here, as in scikit-learn: a sum over thresholds
that does not interpolate. `mass` is the share of the attention *to the picture* that falls on evidence.

The same is asked of the vision tower (``stack="vision"``), whose own attention looks before any question is
read: there the row is that of its CLS token, or where it has none the mean over all its queries, and the keys
are patches (see `vision`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from seeing import figures
from seeing.data.samples import EvidenceSample
from seeing.metrics import Locality
from seeing.probes.attention.locality import Group, Look, Sums, text_looks
from seeing.probes.attention.rounds import Answers, rounds
from seeing.probes.attention.vision import tower_looks
from seeing.probes.progress import Progress
from seeing.probes.reading import read_rows
from seeing.probes.samples import Ledger, LeftOut
from seeing.prompt import Prompt, Template
from seeing.vlm import VLM, Queries

#: What a sample must have to be counted.
NEEDED = "evidence that the model could see"


class Bounds(NamedTuple):
    """The ends of a 95 % interval, per metric."""

    low: Locality
    high: Locality


class Intervals(NamedTuple):
    """Intervals of the means: of each head, (layer, head), and of each layer's mean row, (layer,)."""

    heads: Bounds
    layers: Bounds


@dataclass(frozen=True)
class Evidence:
    """Evidence locality of a data set.

    Attributes:
        heads: per metric (layer, head), the mean over samples.
        layers: per metric (layer,), of the heads' mean row, the mean over samples.
        samples: per metric (sample, layer), of the heads' mean row; no sample for ``per_sample=False``.
        ids: the samples counted, in the order of ``samples``.
        left_out: (id, reason) of each sample that has no locality: no boxes, or no token sees them.
        counts: per metric (layer, head), the samples behind the mean; the others were NaN there.
        intervals: of the means, 95 %, by Poisson bootstrap. NaN where the mean is infinite.
        tokens: per metric (sample, layer, row) of the heads' mean row, where several rows a sample were asked
            for; NaN behind shorter answers.
        partly_seen: (id, share) of each sample of whose evidence the model saw only this share of the area.
        stack: "text" or "vision", whose attention it is.
        correct: the same over the samples answered rightly, where that was asked (``by_answer``).
        wrong: the same over the others.
    """

    heads: Locality
    layers: Locality
    samples: Locality
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...] | tuple[tuple[str, str], ...]
    counts: Locality | None = field(default=None, repr=False)
    intervals: Intervals | None = field(default=None, repr=False)
    tokens: Locality | None = field(default=None, repr=False)
    partly_seen: tuple[tuple[str, float], ...] = ()
    stack: str = "text"
    correct: Evidence | None = field(default=None, repr=False)
    wrong: Evidence | None = field(default=None, repr=False)

    @property
    def auroc(self) -> Float[Tensor, "layer head"]:
        """AUROC of each head."""
        return self.heads.auroc

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    @property
    def groups(self) -> dict[str, Evidence]:
        """ "all", and "correct" and "wrong" where the samples were parted by the answer."""
        parts = {} if self.correct is None else {"correct": self.correct, "wrong": self.wrong}
        return {"all": self, **parts}

    def ranking(self, below: int | None = None) -> list[tuple[int, int, float]]:
        """(layer, head, AUROC) from the best head down; only layers < ``below``, where it is given."""
        auroc = self.auroc[:below]
        order = auroc.flatten().nan_to_num(-1).argsort(descending=True, stable=True)
        places = [divmod(int(index), auroc.shape[1]) for index in order]
        return [(layer, head, float(auroc[layer, head])) for layer, head in places]

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and head, one column a metric; head −1 is the heads' mean row.

        Where the samples were parted by the answer a column ``group`` says which of them.
        """
        frames = {group: found._frame() for group, found in self.groups.items()}
        if len(frames) == 1:
            return frames["all"]
        return pd.concat(frames, names=["group"]).reset_index("group").reset_index(drop=True)

    def figure(
        self, metric: str = "auroc", *, chosen: Iterable[int] = (), heads: bool = False, dark: bool = False
    ) -> go.Figure:
        """A metric by depth with 95 % intervals; correct answers solid, wrong dashed, where they are parted.

        Args:
            metric: one of `Locality`'s fields.
            chosen: layers to mark.
            heads: the map of layers × heads of all samples instead.
        """
        if metric not in _SHOWN:
            raise KeyError(f"no metric {metric!r}; there are {', '.join(_SHOWN)}")
        name, units, chance = _SHOWN[metric]
        if heads:
            return figures.layer_head_map(
                getattr(self.heads, metric).numpy(),
                metric=f"Evidence {name}",
                n=self.n,
                units=units,
                marginal=getattr(self.layers, metric).numpy(),
                chosen_layers=tuple(chosen),
                dark=dark,
            )
        groups = {one: part for one, part in self.groups.items() if one != "all" and part.n} or self.groups
        mean, low, high = (
            torch.stack([getattr(part, metric) for part in parts]).numpy()
            for parts in (
                [one.layers for one in groups.values()],
                [one._interval("low") for one in groups.values()],
                [one._interval("high") for one in groups.values()],
            )
        )
        return figures.auroc_by_depth(
            mean,
            low,
            high,
            groups=list(groups),
            n=[one.n for one in groups.values()],
            chosen=tuple(chosen),
            title=f"Evidence {name} by depth" + (" of the vision tower" if self.stack == "vision" else ""),
            metric=name,
            units=units,
            chance=chance,
            dark=dark,
        )

    def _interval(self, end: str) -> Locality:
        if self.intervals is None:
            return Locality(*(torch.full_like(metric, torch.nan) for metric in self.layers))
        return getattr(self.intervals.layers, end)

    def _frame(self) -> pd.DataFrame:
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


#: How a figure calls a metric, its units, and what chance gives.
_SHOWN = {
    "auroc": ("AUROC", "area under the ROC curve, 0–1", 0.5),
    "average_precision": ("average precision", "area under precision–recall, 0–1", None),
    "ndcg": ("NDCG", "of all tokens, 0–1", None),
    "mass": ("mass", "share of the attention to the picture, 0–1", None),
    "density_ratio": ("density ratio", "an evidence token ÷ another image token", 1.0),
    "pointing": ("pointing", "the top token is evidence, 0–1", None),
}


def evidence(
    vlm: VLM,
    samples: Prompt | Iterable[EvidenceSample] | EvidenceSample,
    *,
    queries: Queries = "last",
    stack: str = "text",
    rule: str = "any",
    answers: Answers = "own",
    by_answer: bool = False,
    per_sample: bool = True,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
) -> Evidence:
    """Evidence locality per layer and head, over samples with evidence boxes (or the rows of a prompt).

    Args:
        queries: which rows look: "last", the prompt's last token; "answer", the rows that predict the tokens
            of an answer; a span's name, or positions. Each row is scored by itself, and a sample counts with
            the mean of its rows.
        stack: "text", or "vision" for the tower's own attention to its patches.
        rule: which tokens are evidence: "any", "half" or "all" of the token's box on the boxes
            (`VisualGrid.labels`). The paper's is "any".
        answers: for "answer" over samples: the model's "own" greedy answer, or the first "given".
        by_answer: let the model answer, and part the samples into those it gets right (exact match) and
            wrong: ``.correct`` and ``.wrong``.
        per_sample: keep a number a sample and layer; False for memory that does not grow with the data.
        template: how the question is asked (see `VLM.prompt`).
        batch_size: samples in one forward pass, whose rows are held: fewer for long answers.
        progress: None shows a bar, False nothing; a function is called with the number of samples done.

    Warns once where evidence lies outside what the model saw, and names the samples in ``partly_seen``.
    Raises ValueError when no sample could be counted; the reasons are in the message.

    Example:
        ``probes.evidence(vlm, samples, by_answer=True).figure()``
    """
    if stack not in ("text", "vision"):
        raise ValueError(f"a stack is 'text' or 'vision', got {stack!r}")
    if rule not in ("any", "half", "all"):
        raise ValueError(f"a rule is 'any', 'half' or 'all', got {rule!r}")
    if stack == "vision" and not (isinstance(queries, str) and queries == "last"):
        raise ValueError(
            f"the tower is asked by its CLS token or the mean of all its queries; queries={queries!r} names "
            f"rows of the text"
        )
    ledger, sums, partly_seen = Ledger(), Sums(by_answer, per_sample), []
    asked = dict(answers=answers, by_answer=by_answer, template=template)
    for ids, looks, right in _looked(
        vlm, samples, ledger, queries, stack, rule, batch_size=batch_size, progress=progress, **asked
    ):
        partly_seen += [(one, look.seen) for one, look in zip(ids, looks) if not look.saw_all]
        for one, look in zip(ids, looks):
            if look.reason is None:
                ledger.ids.append(one)
            else:
                ledger.leave_out(one, look.reason)
        sums.add(ids, looks, right)
    _tell(partly_seen, len(ledger.ids) + len(ledger.left_out))
    ledger.need(NEEDED)
    parts = {name: _evidence(group, stack) for name, group in sums.groups.items()}
    whole = vars(parts.pop("all")) | dict(left_out=tuple(ledger.left_out), partly_seen=tuple(partly_seen))
    return Evidence(**whole | parts)


def _looked(
    vlm: VLM,
    samples: Prompt | Iterable[EvidenceSample] | EvidenceSample,
    ledger: Ledger,
    queries: Queries,
    stack: str,
    rule: str,
    **settings,
) -> Iterator[tuple[list[str], list[Look], list[bool] | None]]:
    """Batch by batch: ids, what each sample's rows see, and whether it was answered rightly."""

    def looks(prompt: Prompt) -> list[Look]:
        if stack == "vision":
            return tower_looks(vlm, prompt, rule)
        return text_looks(read_rows(vlm, prompt, queries), rule)

    if isinstance(samples, Prompt):
        if settings["by_answer"] or settings["template"] is not None:
            raise ValueError("a prompt stands as it is and knows no answer; give samples for these")
        yield [str(row) for row in range(len(samples))], looks(samples), None
        return
    for one in rounds(vlm, samples, ledger, queries, boxes=True, what="evidence", **settings):
        yield [sample.id for sample in one.samples], looks(one.prompt), one.right


def _evidence(group: Group, stack: str) -> Evidence:
    """The result of one group of samples."""
    (heads, layers), (counts, _) = group.mean, group.counts
    low, high = group.interval
    return Evidence(
        heads,
        layers,
        group.samples,
        tuple(group.ids),
        (),
        counts,
        Intervals(Bounds(low[0], high[0]), Bounds(low[1], high[1])),
        group.tokens,
        stack=stack,
    )


def _tell(partly_seen: list[tuple[str, float]], n: int) -> None:
    if partly_seen:
        some = ", ".join(f"{one} ({share:.0%})" for one, share in partly_seen[:3])
        more = ", …" if len(partly_seen) > 3 else ""
        warnings.warn(
            f"the model did not see all of the evidence of {len(partly_seen)} of {n} samples: {some}{more}. "
            f"What a crop cut off is in no number; .partly_seen lists them",
            stacklevel=3,
        )
