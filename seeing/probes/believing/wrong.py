"""When attention is wrong: what becomes of the samples whose evidence the model does not look at?

The paper (Liu et al., ICLR 2026, arXiv 2510.17771) finds an evidence AUROC below 0.5 in 1.4–7.3 % of samples:
there the model looks anywhere but at the evidence, and a method that trusts its attention is led astray.
Asked here, for those samples and for the others: how often is the answer right, what does a method fix and
what does it break, and does it help to apply the method again to what it showed (`trials`)? And with
several pictures, or behind earlier turns (`companions`): does it still look at the picture that counts?

A sample's AUROC is that of the score which the paper's method makes its map of: the last prompt token's
attention, the mean over heads and over the profiled layers, over the tokens of the (first) picture. Whether a
sample's attention is wrong is decided once, on the model as it is, so that every method is judged on the same
samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing.correctness import exact_match
from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit
from seeing.edits.layers import attention_layers, number
from seeing.figures.groups import accuracy_by_group
from seeing.metrics import auroc
from seeing.probes.attention.locality import Look, text_looks
from seeing.probes.believing.companions import in_company, pictures_of, turns_of
from seeing.probes.believing.trials import BASE, Method, Trial, how_often, named, trials
from seeing.probes.profiles.published import published
from seeing.probes.progress import Progress
from seeing.probes.reading import read_rows
from seeing.probes.samples import Batch, Ledger, LeftOut, batches
from seeing.prompt import Prompt, Template
from seeing.stats import mcnemar, paired_difference, wilson
from seeing.vlm import VLM

#: What parts the samples: where the model looked, how many pictures it saw, how many turns came before.
BY = ("attention", "pictures", "turns")


@dataclass(frozen=True, eq=False)
class Arm:
    """What one method gave, applied ``times`` times.

    Attributes:
        method: its name; "base" is the model as it is.
        times: how often it was applied.
        answers: one a sample.
        correct: (sample,) exact match.
        auroc: (sample,) the evidence AUROC of what it showed in the end; NaN where a method only answers, and
            where it no longer shows the evidence beside other things.
    """

    method: str
    times: int
    answers: tuple[str, ...]
    correct: Bool[Tensor, " sample"]
    auroc: Float[Tensor, " sample"]

    @property
    def name(self) -> str:
        return self.method if self.times == 1 else f"{self.method} ×{self.times}"


@dataclass(frozen=True, eq=False)
class WrongAttention:
    """Samples by whether the model's attention finds their evidence, and what methods make of them.

    Attributes:
        layers: whose mean row was scored.
        threshold: below this AUROC attention is wrong.
        ids: the samples counted.
        auroc: (sample,) of the model as it is.
        first_share: (sample,) of the attention to all pictures the first one's share; 1 where it is alone.
        pictures: (sample,) how many pictures were shown.
        turns: (sample,) how many turns came before.
        arms: what each method gave, "base" first.
        left_out: samples that are in no number, and why.
    """

    layers: tuple[int, ...]
    threshold: float
    ids: tuple[str, ...]
    auroc: Float[Tensor, " sample"]
    first_share: Float[Tensor, " sample"]
    pictures: Int[Tensor, " sample"]
    turns: Int[Tensor, " sample"]
    arms: tuple[Arm, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    @property
    def wrong(self) -> Bool[Tensor, " sample"]:
        """Whose attention misses the evidence."""
        return self.auroc < self.threshold

    def arm(self, method: str, times: int = 1) -> Arm:
        """What a method gave."""
        for one in self.arms:
            if (one.method, one.times) == (method, times):
                return one
        raise KeyError(
            f"no method {method!r} × {times}; there are {', '.join(arm.name for arm in self.arms)}"
        )

    def groups(self, by: str = "attention") -> dict[str, Bool[Tensor, " sample"]]:
        """The samples in parts, each with its name."""
        if by == "attention":
            limit = f"{self.threshold:g}"
            return {f"AUROC < {limit}": self.wrong, f"AUROC ≥ {limit}": ~self.wrong}
        if by not in BY:
            raise ValueError(f"samples are parted by {', '.join(BY)}; got {by!r}")
        numbers, words = getattr(self, by), {"pictures": "picture", "turns": "earlier turn"}[by]
        return {f"{n} {words}{'' if n == 1 else 's'}": numbers == n for n in numbers.unique().tolist()}

    def to_frame(self, by: str = "attention") -> pd.DataFrame:
        """One row a group and method: accuracy (Wilson, 95 %), and against base on the same samples what it
        fixed and broke (McNemar's exact p) and the difference (Newcombe, 95 %).

        ``auroc`` is the mean of what the method showed, ``missed`` the share of samples below the threshold
        there.
        """
        rows = [
            {"group": name, **self._row(arm, group)}
            for name, group in self.groups(by).items()
            for arm in self.arms
        ]
        return pd.DataFrame(rows)

    def samples_frame(self) -> pd.DataFrame:
        """One row a sample and method: its answer, whether it is right, and where the model looked."""
        frames = [
            pd.DataFrame(
                {
                    "sample": self.ids,
                    "method": arm.method,
                    "times": arm.times,
                    "answer": arm.answers,
                    "correct": arm.correct.numpy(),
                    "wrong_attention": self.wrong.numpy(),
                    "auroc": arm.auroc.numpy(),
                    "base_auroc": self.auroc.numpy(),
                    "first_share": self.first_share.numpy(),
                    "pictures": self.pictures.numpy(),
                    "turns": self.turns.numpy(),
                }
            )
            for arm in self.arms
        ]
        return pd.concat(frames, ignore_index=True)

    def figure(self, by: str = "attention", *, dark: bool = False) -> go.Figure:
        """Accuracy of each method in each part of the samples, with 95 % intervals."""
        frame, groups = self.to_frame(by), self.groups(by)
        table = {
            name: frame[name].to_numpy(dtype=float).reshape(len(groups), -1)
            for name in ("accuracy", "low", "high", "fixed", "broken")
        }
        labels = [
            [
                "" if not group.any() or arm.method == "base" else f"+{fixed:.0f} −{broken:.0f}"
                for arm, fixed, broken in zip(self.arms, *changes)
            ]
            for group, *changes in zip(groups.values(), table["fixed"], table["broken"])
        ]
        drawn = dict(
            groups=list(groups),
            n=[int(group.sum()) for group in groups.values()],
            names=[arm.name for arm in self.arms],
            labels=labels,
            title=f"Accuracy by {by}",
            dark=dark,
        )
        if by == "attention":
            drawn |= dict(meanings=("look", "evidence"), title="When attention is wrong")
        return accuracy_by_group(table["accuracy"], table["low"], table["high"], **drawn)

    def _row(self, arm: Arm, group: Bool[Tensor, " sample"]) -> dict[str, Any]:
        n, right, base = int(group.sum()), arm.correct[group], self.arms[0].correct[group]
        row = {"method": arm.method, "times": arm.times, "n": n}
        if not n:
            return row | dict.fromkeys(_STATISTICS, np.nan)
        low, high = wilson(int(right.sum()), n)
        test, moved = mcnemar(base, right), paired_difference(base, right)
        shown = arm.auroc[group]
        shown = shown[~shown.isnan()]
        values = (
            float(right.double().mean()),
            low,
            high,
            test.fixed,
            test.broken,
            test.p,
            moved.mean,
            *moved.interval,
            float(shown.mean()),
            float((shown < self.threshold).double().mean()),
        )
        return row | dict(zip(_STATISTICS, values, strict=True))


#: Columns of the table behind group, method, times and n.
_STATISTICS = (
    "accuracy",
    "low",
    "high",
    "fixed",
    "broken",
    "p",
    "difference",
    "difference_low",
    "difference_high",
    "auroc",
    "missed",
)


def wrong_attention(
    vlm: VLM,
    samples: EvidenceSample | Iterable[EvidenceSample],
    methods: Any = None,
    layers: Any = None,
    *,
    times: int | Sequence[int] = 1,
    threshold: float = 0.5,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
) -> WrongAttention:
    """Accuracy where attention misses the evidence and where it finds it, and what methods do to both.

    Args:
        samples: with boxes. ``meta["images"]`` are more pictures behind a sample's own, ``meta["turns"]``
            earlier (question, answer) pairs; the evidence is looked for in the first picture only.
        methods: one, or several as {name: method}: edits; a method of `seeing.methods`; anything with
            ``shown(vlm, prompt)`` or ``answer(vlm, prompt)``; a function of both that answers.
        layers: a profile, or layers as in edits; by default those that the paper published for the model.
        times: how often a method is applied: 2, or several, (1, 2, 3). Applied again it works on what it
            showed, see `seeing.probes.believing.trials`.
        threshold: the AUROC below which attention is wrong.
        template, batch_size, progress: as in every probe.

    Raises ValueError where nothing could be counted, for a threshold that is no number, for a model without a
    published profile when no layers are given, and for a method that only answers when it is to be applied
    more than once.
    """
    if number(threshold) is None:
        raise ValueError(f"a threshold is an AUROC, a number such as 0.5; got {threshold!r}")
    often = how_often(times)
    tried = named(methods, often)
    chosen = published(vlm) if layers is None else layers
    if hasattr(chosen, "check"):
        chosen.check(vlm)
    told = _Told(vlm, attention_layers(chosen, vlm), tried, often)
    for batch in batches(
        vlm,
        samples,
        told.ledger,
        boxes=True,
        template=template,
        batch_size=batch_size,
        progress=progress,
        what="wrong attention",
    ):
        for one in in_company(vlm, batch, told.ledger):
            told.add(one)
    return told.result(threshold)


class _Told:
    """What was said of the samples so far."""

    def __init__(
        self, vlm: VLM, layers: tuple[int, ...], methods: Mapping[str, Method], times: tuple[int, ...]
    ):
        self.vlm, self.layers, self.methods, self.times = vlm, layers, methods, times
        self.ledger = Ledger()
        self.said: dict[tuple[str, int], list[tuple[str, bool, float]]] = {(BASE, 1): []}
        for name in methods:
            self.said |= {(name, often): [] for often in times}
        self.company: list[tuple[float, int, int]] = []

    def add(self, batch: Batch) -> None:
        """Count the samples of a batch, by what the model and each method say of them."""
        seen = self._seen(self.vlm, batch.prompt)
        kept = [row for row, one in enumerate(seen) if one.reason is None]
        for row, one in enumerate(seen):
            if one.reason is not None:
                self.ledger.leave_out(batch.samples[row], one.reason)
        if not kept:
            return
        if len(kept) < len(seen):
            # A method may act on the evidence, which has to be seen in every row.
            batch = Batch([batch.samples[row] for row in kept], batch.prompt.only(kept))
            seen, kept = [seen[row] for row in kept], list(range(len(kept)))
        for row in kept:
            sample = batch.samples[row]
            self.ledger.count(sample)
            company = 1 + len(pictures_of(sample)), len(turns_of(sample))
            self.company.append((seen[row].first_share, *company))
        answers = self.vlm.answer(batch.prompt)
        self._note(BASE, Trial(1, tuple(map(str, answers)), None, None), batch, kept, seen)
        for name, method in self.methods.items():
            for trial in trials(name, method, self.vlm, batch.prompt, self.times):
                shown = None if trial.vlm is None else self._seen(trial.vlm, trial.prompt)
                self._note(name, trial, batch, kept, shown)

    def _note(
        self, name: str, trial: Trial, batch: Batch, kept: list[int], seen: Sequence[_Seen] | None
    ) -> None:
        for row in kept:
            right = exact_match(trial.answers[row], batch.samples[row].answers) > 0
            auroc = float("nan") if seen is None else seen[row].auroc
            self.said[name, trial.times].append((trial.answers[row], right, auroc))

    def _seen(self, vlm: VLM, prompt: Prompt) -> list[_Seen]:
        """Where each row looks, by the mean row of the layers."""
        reading = read_rows(vlm, prompt, layers=self.layers)
        rows = reading.over_images[:, :, :, 0].nanmean((1, 2))
        if rows.isnan().any():
            raise BadEdit(f"layers {list(self.layers)} see no picture token by token; name others that do")
        return [
            _Seen.of(reading.prompt.keys, row, look, rows[row])
            for row, look in enumerate(text_looks(reading))
        ]

    def result(self, threshold: float) -> WrongAttention:
        self.ledger.need("evidence that the model could see")
        share, pictures, turns = map(torch.tensor, zip(*self.company))
        arms = []
        for (name, often), told in self.said.items():
            answers, right, auroc = zip(*told)
            arms.append(
                Arm(name, often, answers, torch.tensor(right), torch.tensor(auroc, dtype=torch.float64))
            )
        return WrongAttention(
            self.layers,
            threshold,
            tuple(self.ledger.ids),
            arms[0].auroc,
            share.double(),
            pictures,
            turns,
            tuple(arms),
            tuple(self.ledger.left_out),
        )


@dataclass(frozen=True)
class _Seen:
    """Where one row looks: its AUROC over the first picture's tokens, and that picture's share of all."""

    auroc: float
    first_share: float
    reason: str | None

    @classmethod
    def of(cls, keys: Prompt, row: int, look: Look, scores: Float[Tensor, " key"]) -> _Seen:
        masses = [
            float(scores[grid.positions].sum())
            for grid, owner in zip(keys.grids, keys.grid_rows)
            if owner == row
        ]
        share = masses[0] / sum(masses) if sum(masses) else float("nan")
        if look.reason is not None:
            return cls(float("nan"), share, look.reason)
        # One part: the tokens of a text model share a softmax.
        (part,) = look.parts
        rows, labels = part.rows, part.labels
        return cls(float(auroc(rows[:, :, 0].nanmean((0, 1)), labels)), share, None)
