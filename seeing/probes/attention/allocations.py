"""Allocation over a data set: mean mass and RAPT, how sure they are, and by whether the answer is right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seeing import figures
from seeing.probes.running import Bootstrap, RunningMean
from seeing.probes.samples import LeftOut
from seeing.stats import Interval


@dataclass(frozen=True)
class MeanAllocation:
    """Means over samples of the attention by segment (see `Allocation`).

    Attributes:
        segments: names, in the order of the segment axis.
        mass: (segment, layer, head), the mean over samples.
        rapt: (segment, layer, head), likewise; NaN where no sample has the segment.
        counts: (segment, layer, head), the samples that have the segment.
        mass_interval: low and high, (segment, layer), of each layer's mean row: 95 %, Poisson bootstrap.
        rapt_interval: likewise.
        ids: the samples counted.
        left_out: samples that are in no number, and why.
        correct: the same over samples that the model answers rightly, where that was asked (``by_answer``).
        wrong: the same over the others.
    """

    segments: tuple[str, ...]
    mass: Float[Tensor, "segment layer head"]
    rapt: Float[Tensor, "segment layer head"]
    counts: Int[Tensor, "segment layer head"]
    mass_interval: Interval
    rapt_interval: Interval
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    correct: MeanAllocation | None = field(default=None, repr=False)
    wrong: MeanAllocation | None = field(default=None, repr=False)

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    @property
    def groups(self) -> dict[str, MeanAllocation]:
        """ "all", and "correct" and "wrong" where the samples were parted by the answer."""
        parts = {} if self.correct is None else {"correct": self.correct, "wrong": self.wrong}
        return {"all": self, **parts}

    def of(self, segment: str) -> Float[Tensor, "layer head"]:
        """The mean mass on one segment."""
        return self.mass[self._place(segment)]

    def rapt_by_layer(self) -> Float[Tensor, "segment layer"]:
        """RAPT of each layer's mean row, as the paper draws it by depth."""
        return self.rapt.mean(-1)

    def to_frame(self) -> pd.DataFrame:
        """One row a group of samples, segment, layer and head, with mass, rapt and count."""
        frames = []
        for group, found in self.groups.items():
            _, layers, heads = found.mass.shape
            index = pd.MultiIndex.from_product(
                [[group], self.segments, range(layers), range(heads)],
                names=["group", "segment", "layer", "head"],
            )
            parts = {"mass": found.mass, "rapt": found.rapt, "count": found.counts}
            columns = {name: part.flatten().numpy() for name, part in parts.items()}
            frames.append(pd.DataFrame(columns, index=index).reset_index())
        return pd.concat(frames, ignore_index=True)

    def figure(self, *, segments: Iterable[str] | None = None, dark: bool = False) -> go.Figure:
        """RAPT by depth with 95 % intervals; correct answers solid, wrong dashed, where they are parted."""
        named = ("image", "question", "answer", "evidence", "non-evidence") if segments is None else segments
        drawn = [name for name in named if segments is not None or name in self.segments]
        groups = {name: one for name, one in self.groups.items() if name != "all" and one.n} or self.groups
        curves = [(name, group, one) for name in drawn for group, one in groups.items()]
        mean, low, high = (
            torch.stack([part[one._place(name)] for (name, _, one), part in zip(curves, parts)]).numpy()
            for parts in (
                [one.rapt_by_layer() for *_, one in curves],
                [one.rapt_interval.low for *_, one in curves],
                [one.rapt_interval.high for *_, one in curves],
            )
        )
        return figures.rapt_by_depth(
            mean,
            low,
            high,
            segments=[name for name, *_ in curves],
            groups=[group for _, group, _ in curves],
            n=[one.n for *_, one in curves],
            dark=dark,
        )

    def _place(self, segment: str) -> int:
        if segment not in self.segments:
            raise KeyError(f"no segment {segment!r}; there are {', '.join(self.segments)}")
        return self.segments.index(segment)


class Sums:
    """What a run over a data set keeps: running sums, of all samples and of each outcome."""

    def __init__(self, by_answer: bool):
        self._groups = {name: _Group() for name in (("all", "correct", "wrong") if by_answer else ("all",))}

    def add(
        self,
        ids: Sequence[str],
        mass: Float[Tensor, "batch segment layer head"],
        rapt: Float[Tensor, "batch segment layer head"],
        right: Sequence[bool] | None = None,
    ) -> None:
        """Count the samples of a batch; ``right`` says which were answered rightly."""
        for name, group in self._groups.items():
            rows = [row for row in range(len(ids)) if name == "all" or right[row] == (name == "correct")]
            group.ids += [ids[row] for row in rows]
            group.mass.add(mass[rows])
            group.rapt.add(rapt[rows])
            # sample measure segment layer
            group.bootstrap.add(torch.stack([mass[rows].mean(-1), rapt[rows].mean(-1)], 1))

    def result(self, segments: tuple[str, ...], left_out: tuple[LeftOut, ...]) -> MeanAllocation:
        parts = {name: group.result(segments) for name, group in self._groups.items()}
        whole = parts.pop("all")
        return replace(whole, left_out=left_out, **parts)


class _Group:
    def __init__(self):
        self.ids: list[str] = []
        self.mass, self.rapt, self.bootstrap = RunningMean(), RunningMean(), Bootstrap()

    def result(self, segments: tuple[str, ...]) -> MeanAllocation:
        low, high = self.bootstrap.interval()
        intervals = Interval(low[0], high[0]), Interval(low[1], high[1])
        return MeanAllocation(
            segments, self.mass.mean, self.rapt.mean, self.rapt.count, *intervals, tuple(self.ids)
        )
