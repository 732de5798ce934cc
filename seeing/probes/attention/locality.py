"""Rows and labels to numbers: the metrics of each sample, and what is kept of them over a data set.

A `Look` is what the rows of one sample give to the tokens (or patches) that have a place, beside the labels
of the evidence. It holds several parts where tokens are seen in softmaxes of their own: each tile of a tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from seeing.grid import VisualGrid
from seeing.metrics import Locality, locality
from seeing.probes.reading import Reading
from seeing.probes.running import Bootstrap, RunningMean
from seeing.turns import Turn

#: Evidence counts as seen when at least this share of its area is: patches leave a few pixels of a tile out.
SEEN = 0.99

#: A metric of each head and, behind the heads, of their mean row.
Scored = Float[Tensor, "metric layer heads_and_mean query"]


class Part(NamedTuple):
    """What the rows give to the tokens of one softmax, and which of these are evidence.

    ``hidable`` are tokens that a row may not be shown, before its window or behind it: one without weight
    in any head is not.
    """

    rows: Float[Tensor, "layer head query token"]
    labels: Bool[Tensor, " token"]
    hidable: Bool[Tensor, "layer query token"] | None = None

    def scores(self) -> Scored:
        """Every metric. Of a row that is not shown all tokens, those of the tokens that it sees."""
        whole = _score(self.rows, self.labels)
        if self.hidable is None or not self.hidable.any():
            return whole
        seen = (self.rows > 0).any(1) | ~self.hidable | self.rows.isnan().any(1)
        for layer, query in (~seen.all(-1)).nonzero().tolist():
            there = seen[layer, query]
            rows, labels = self.rows[layer, None, :, query, None, there], self.labels[there]
            mixed = bool(labels.any()) and not labels.all()
            whole[:, layer, :, query] = _score(rows, labels)[:, 0, :, 0] if mixed else torch.nan
        return whole


@dataclass(frozen=True)
class Look:
    """What one sample's rows see, or the reason why that can't be scored.

    Attributes:
        parts: one a softmax; each holds evidence and other tokens.
        seen: the share of the evidence's area that the model saw.
    """

    parts: tuple[Part, ...] = ()
    seen: float = 1.0
    reason: str | None = None

    @property
    def saw_all(self) -> bool:
        return self.seen >= SEEN

    def scores(self) -> Scored:
        """Every metric of each head and of the heads' mean row; the mean over parts. NaN in unread layers."""
        return torch.stack([part.scores() for part in self.parts]).nanmean(0)


def _score(
    rows: Float[Tensor, "*sample layer head query token"], labels: Bool[Tensor, "*labelled token"]
) -> Float[Tensor, "metric *sample layer heads_and_mean query"]:
    read = ~rows.isnan().any(-1).any(-1).any(-1)
    rows = torch.cat([rows, rows.mean(-3, keepdim=True)], -3)
    whole = rows.new_full((len(Locality._fields), *rows.shape[:-1]), torch.nan, dtype=torch.float64)
    # Labels of one sample stand for all its rows.
    mine = labels if labels.ndim == 1 else labels.expand(rows.shape)[read]
    whole[:, read] = torch.stack(tuple(locality(rows[read], mine)))
    return whole


def scores_of(looks: Sequence[Look]) -> dict[int, Scored]:
    """`Look.scores` of those that can be scored, by their number; those that are alike in one go."""
    alike: dict[tuple, list[int]] = {}
    for number, look in enumerate(looks):
        if look.reason is None:
            whole = len(look.parts) == 1 and (
                look.parts[0].hidable is None or not look.parts[0].hidable.any()
            )
            alike.setdefault(look.parts[0].rows.shape if whole else (number,), []).append(number)
    found: dict[int, Scored] = {}
    for numbers in alike.values():
        if len(numbers) == 1:
            found[numbers[0]] = looks[numbers[0]].scores()
            continue
        parts = [looks[number].parts[0] for number in numbers]
        labels = torch.stack([part.labels for part in parts])[:, None, None, None]
        found |= zip(numbers, _score(torch.stack([part.rows for part in parts]), labels).unbind(1))
    return found


def text_looks(reading: Reading, rule: str = "any") -> list[Look]:
    """Each row's look at the tokens of its (first) picture."""
    prompt, rows, looks = reading.prompt.keys, reading.over_images, []
    for row, turn in enumerate(reading.prompt.turns):
        grid = prompt.grids[prompt.grid_rows.index(row)]
        own = rows[row][:, :, reading.asked.valid[row]]
        asked = reading.asked.positions[row, reading.asked.valid[row]]
        later = grid.positions > asked[:, None]
        hidable = None if reading.cross is not None else reading.windowed[:, None, None] | later
        looks.append(look_at(turn, grid, rule, [(grid, own[..., grid.positions])], hidable))
    return looks


def look_at(
    turn: Turn,
    seen: VisualGrid,
    rule: str,
    parts: Sequence[tuple[VisualGrid, Tensor]],
    hidable: Bool[Tensor, "layer query token"] | None = None,
) -> Look:
    """A look at one picture: the attention to the tokens of each part, labelled by the boxes of its grid.

    Parts are (places of the tokens, attention (layer, head, query, token)). Tokens without a place are left
    out, and so is a part that is all evidence or has none. ``seen`` is the picture as the model sees it,
    ``hidable`` says which tokens a row may not be shown.
    """
    if not turn.boxes:
        return Look(reason="no evidence boxes")
    share = seen.covers(turn.boxes)
    labelled = [(rows, grid.labels(turn.boxes, rule), grid.placed) for grid, rows in parts]
    kept = [
        Part(rows[..., there], labels[there], None if hidable is None else hidable[..., there])
        for rows, labels, there in labelled
    ]
    if not any(part.labels.any() for part in kept):
        by = "" if rule == "any" else f" (rule {rule!r})"
        return Look(seen=share, reason=f"no image token sees the evidence{by}")
    if all(part.labels.all() for part in kept):
        return Look(seen=share, reason="every image token is evidence")
    mixed = tuple(part for part in kept if part.labels.any() and not part.labels.all())
    if not mixed:
        return Look(seen=share, reason="no tile holds both evidence and other patches")
    return Look(mixed, share)


class Sums:
    """What a run over a data set keeps of all samples, and of those answered rightly and wrongly."""

    def __init__(self, by_answer: bool, per_sample: bool):
        names = ("all", "correct", "wrong") if by_answer else ("all",)
        self.groups = {name: Group(per_sample) for name in names}

    def add(self, ids: Sequence[str], looks: Sequence[Look], right: Sequence[bool] | None) -> None:
        """Count the samples of a batch that can be scored; ``right`` says which were answered rightly."""
        scored = scores_of(looks)
        if not scored:
            return
        for name, group in self.groups.items():
            rows = [row for row in scored if name == "all" or right[row] == (name == "correct")]
            group.add([ids[row] for row in rows], [scored[row] for row in rows], next(iter(scored.values())))


class Group:
    """Running numbers of some of the samples."""

    def __init__(self, per_sample: bool):
        self.per_sample = per_sample
        self.ids: list[str] = []
        self._mean, self._bootstrap = RunningMean(), Bootstrap()
        self._rows: list[Float[Tensor, "metric layer query"]] = []
        self._empty: Float[Tensor, "sample metric layer"] | None = None

    def add(self, ids: Sequence[str], scored: Sequence[Tensor], like: Scored) -> None:
        """Count some samples, each `Scored`, or none of those of a batch in which one is ``like`` this."""
        self.ids += ids
        # sample metric layer heads_and_mean
        values = like.new_empty(0, *like.shape[:-1])
        if scored:
            values = torch.stack([one.nanmean(-1) for one in scored])
        # One by one, so that the batch size does not change how sums are rounded.
        for some in values.split(1):
            self._mean.add(some)
        # An infinite ratio in a draw that does not take it would be 0 · inf.
        self._bootstrap.add(values.masked_fill(values.isinf(), torch.nan))
        self._empty = values[:0, :, :, -1]
        if self.per_sample:
            self._rows += [one[:, :, -1] for one in scored]

    @property
    def mean(self) -> tuple[Locality, Locality]:
        """Of each head, and of the heads' mean row."""
        return _split(self._mean.mean)

    @property
    def counts(self) -> tuple[Locality, Locality]:
        return _split(self._mean.count)

    @property
    def interval(self) -> tuple[tuple[Locality, Locality], tuple[Locality, Locality]]:
        """Low and high, each as `mean`."""
        unbounded = self._mean.mean.isinf()
        low, high = (end.masked_fill(unbounded, torch.nan) for end in self._bootstrap.interval())
        return _split(low), _split(high)

    @property
    def samples(self) -> Locality:
        """(sample, layer) of the heads' mean row."""
        rows = [row.nanmean(-1) for row in self._rows]
        return Locality(*(torch.stack(rows) if rows else self._empty).unbind(1))

    @property
    def tokens(self) -> Locality | None:
        """(sample, layer, query) of the heads' mean row, NaN behind samples of fewer queries."""
        longest = max((row.shape[-1] for row in self._rows), default=1)
        if longest == 1:
            return None
        fill = [row.new_full((*row.shape[:-1], longest - row.shape[-1]), torch.nan) for row in self._rows]
        long = [torch.cat(both, -1) for both in zip(self._rows, fill)]
        return Locality(*torch.stack(long).unbind(1))


def _split(values: Num[Tensor, "metric layer heads_and_mean"]) -> tuple[Locality, Locality]:
    return Locality(*values[..., :-1].unbind()), Locality(*values[..., -1].unbind())
