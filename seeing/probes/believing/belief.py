"""Belief: did the model see the evidence, and does its answer hang on it?

*Seeing but Not Believing* (Liu et al., ICLR 2026, arXiv 2510.17771) finds that models attend to the right
evidence also where they answer wrongly. Attention says what a model looked at; whether the answer comes of it
is a causal question. This probe asks both of every sample:

* **seen**: the AUROC of the model's own attention to the evidence, at the profiled layers or heads, from the
  last prompt token (`evidence`); and whether its top token is evidence (pointing);
* **believed**: by how much the answer's log-probability drops when no text token can attend to the evidence,
  beyond what hiding as many other image tokens does:

    believed = [log p(answer) − log p(answer | evidence hidden)]
               − mean over draws [log p(answer) − log p(answer | elsewhere hidden)]        (nats)

  log p(answer) cancels: it is log p(answer | elsewhere hidden) − log p(answer | evidence hidden). The control
  (`elsewhere`) takes out what losing that many image tokens costs whatever they show.

The answer is the model's own unless told otherwise, so a wrong answer can be believed in: it hangs on the
evidence and misreads it. What the probe can't tell: information of the evidence that other tokens hold, in
the vision tower or by attention among image tokens, is not hidden (``through_image=True`` hides the evidence
from other image tokens of the text stack too; the tower's mixing stays); a model that would find the answer
in two places loses little by losing one; a control region may hold a decoy, whose loss helps; and a model may
look from other tokens than the last (``queries``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.correctness import exact_match
from seeing.data.samples import EvidenceSample
from seeing.edits import Knockout, Positions, Span
from seeing.edits.layers import attention_layers, check_heads, head_table, layers_said, whole
from seeing.edits.seen import mean_rows
from seeing.figures.belief import belief_scatter
from seeing.metrics import auroc, pointing
from seeing.probes.believing.elsewhere import NoRoom, elsewhere, generator
from seeing.probes.profiles.published import PROFILES, published
from seeing.probes.progress import Progress
from seeing.probes.reading import read_rows
from seeing.probes.samples import Answered, Batch, Ledger, LeftOut, batches
from seeing.prompt import BadPrompt, Prompt, Template
from seeing.stats import wilson
from seeing.vlm import VLM, Queries

#: What the two yes-or-no answers are called together, in the order of `Belief.table`.
QUADRANTS = ("seen and believed", "seen, not believed", "believed without looking", "neither")
#: AUROC above which evidence counts as seen: chance, the paper's line.
SEEN = 0.5
#: Nats above which an answer counts as believed: without the evidence it is less than half as likely as
#: without as many other tokens.
BELIEVED = math.log(2)


@dataclass(frozen=True)
class Belief:
    """What each sample's evidence was to the model. Every axis is the sample, in the order of ``ids``.

    Attributes:
        auroc: of the mean row of the layers or heads read, at the last prompt token.
        pointing: whether that row's top token is evidence (a share, where several tie).
        evidence_drop: nats that the answer loses when the evidence is hidden from the text.
        control_drop: (sample, draw) nats that it loses when as many other image tokens are.
        moved: share of a sample's draws that are the evidence boxes in another place; the others are single
            tokens.
        logprob: of the answer, in the plain run.
        answers: what was scored.
        correct: whether the model's answer is right; of given answers, whether the model would say them.
        ids, left_out: the samples counted, and those that were not.
        seen_above, believed_above: the lines between yes and no.
        where: which layers or heads were read.
    """

    auroc: Float[Tensor, " sample"]
    pointing: Float[Tensor, " sample"]
    evidence_drop: Float[Tensor, " sample"]
    control_drop: Float[Tensor, "sample draw"]
    moved: Float[Tensor, " sample"]
    logprob: Float[Tensor, " sample"]
    answers: tuple[str, ...]
    correct: Bool[Tensor, " sample"]
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    seen_above: float = SEEN
    believed_above: float = BELIEVED
    where: str = ""

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    @property
    def contrast(self) -> Float[Tensor, " sample"]:
        """How much the answer hangs on the evidence, in nats: its drop beyond the mean control's."""
        return self.evidence_drop - self.control_drop.mean(1)

    @property
    def seen(self) -> Bool[Tensor, " sample"]:
        return self.auroc > self.seen_above

    @property
    def believed(self) -> Bool[Tensor, " sample"]:
        return self.contrast > self.believed_above

    @property
    def quadrant(self) -> tuple[str, ...]:
        """Which of `QUADRANTS` each sample is in."""
        return tuple(QUADRANTS[2 * (not s) + (not b)] for s, b in zip(self.seen, self.believed))

    def table(self) -> pd.DataFrame:
        """One row a quadrant: samples, their share, and the accuracy in it with Wilson's 95 % interval."""
        rows = []
        for name in QUADRANTS:
            inside = torch.tensor([one == name for one in self.quadrant], dtype=torch.bool)
            n, right = int(inside.sum()), int((inside & self.correct).sum())
            low, high = wilson(right, n) if n else (math.nan, math.nan)
            rows.append(
                {"quadrant": name, "n": n, "share": n / self.n}
                | {"accuracy": right / n if n else math.nan, "low": low, "high": high}
            )
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row a sample."""
        return pd.DataFrame(
            {
                "sample": self.ids,
                "answer": self.answers,
                "correct": self.correct.numpy(),
                "auroc": self.auroc.numpy(),
                "pointing": self.pointing.numpy(),
                "evidence_drop": self.evidence_drop.numpy(),
                "control_drop": self.control_drop.mean(1).numpy(),
                "believed": self.contrast.numpy(),
                "logprob": self.logprob.numpy(),
                "quadrant": self.quadrant,
            }
        )

    def figure(self, *, dark: bool = False) -> go.Figure:
        """The scatter: how well the evidence is seen, and how much the answer hangs on it."""
        return belief_scatter(
            self.auroc.numpy(),
            self.contrast.numpy(),
            self.correct.numpy(),
            labels=[f"{name}: {answer}" for name, answer in zip(self.ids, self.answers)],
            quadrants=QUADRANTS,
            lines=(self.seen_above, self.believed_above),
            where=self.where,
            dark=dark,
        )


def belief(
    vlm: VLM,
    samples: Iterable[EvidenceSample] | EvidenceSample,
    *,
    layers: Any = None,
    heads: Any = None,
    queries: Queries = "last",
    answers: Answered = "own",
    draws: int = 5,
    through_image: bool = False,
    seen_above: float = SEEN,
    believed_above: float = BELIEVED,
    seed: int = 0,
    template: Template | None = None,
    batch_size: int = 16,
    progress: Progress = None,
) -> Belief:
    """Was the evidence seen, and does the answer hang on it, sample by sample?

    Args:
        layers: whose mean row says what was seen: a profile or layers. By default the published profile of
            the model, where there is one (`published`), or else all layers that attend to the picture.
        heads: {layer: [heads]} instead of layers.
        queries: whose rows say what was seen, by name; their mean where they are several. "last", the
            prompt's last token; "answer", the rows that predict the answer's tokens; a span, such as
            "question", where a model may look before it answers.
        answers: "own", what the model says; or "given", the sample's first answer.
        draws: control regions a sample.
        through_image: hide the evidence from other image tokens too, not from the text alone.
        seen_above, believed_above: the lines between yes and no; `dataclasses.replace` moves them later.
        seed: of the control regions, which depend on it and on the sample's id alone.

    A batch takes ``draws`` + 3 passes and, for the model's own answers, a generation.

    Raises ValueError when no sample could be counted, for draws below 1, for layers and heads both; `BadEdit`
    for a layer or head that does not exist.
    """
    if whole(draws) is None or draws < 1:
        raise ValueError(f"a control takes a whole number of draws, one at least; got draws={draws!r}")
    if not isinstance(queries, str):
        raise ValueError(f"rows of many samples are said by a name, 'last' or a span's; got {queries!r:.100}")
    if answers not in ("own", "given"):
        raise ValueError(f"an answer is the model's, 'own', or the sample's, 'given'; got {answers!r}")
    read, where = _read(vlm, layers, heads)
    ledger, rows, said = Ledger(), [], []
    for batch in batches(
        vlm,
        samples,
        ledger,
        boxes=True,
        template=template,
        batch_size=batch_size,
        progress=progress,
        answers=answers,
        what="samples asked",
    ):
        asked = _Asked.of(vlm, batch, draws, seed, ledger)
        if asked is not None:
            found, texts = asked.numbers(vlm, read, queries, through_image), asked.said(vlm, answers)
            for sample, numbers, text in zip(asked.samples, found, texts):
                if numbers.isnan().any():
                    ledger.leave_out(sample, "the model gives NaN: what is seen or the answer has no number")
                    continue
                rows.append(numbers)
                said.append(text)
                ledger.count(sample)
    ledger.need("evidence that the model could see, and as many other image tokens")
    numbers = torch.stack(rows)
    texts, right = zip(*said)
    return Belief(
        *numbers[:, :3].unbind(1),
        control_drop=numbers[:, 5:],
        moved=numbers[:, 3],
        logprob=numbers[:, 4],
        answers=texts,
        correct=torch.tensor(right),
        ids=tuple(ledger.ids),
        left_out=tuple(ledger.left_out),
        seen_above=seen_above,
        believed_above=believed_above,
        where=where,
    )


@dataclass(frozen=True)
class _Asked:
    """Samples of a batch that can be asked: their prompt with its answer, and which keys to hide in turn."""

    samples: list[EvidenceSample]
    prompt: Prompt
    evidence: Bool[Tensor, "batch key"]
    others: Bool[Tensor, "draw batch key"]
    moved: Float[Tensor, " batch"]

    @classmethod
    def of(cls, vlm: VLM, batch: Batch, draws: int, seed: int, ledger: Ledger) -> _Asked | None:
        """What can be asked of a batch; the other samples go into the ledger. None where there is none."""
        # An edit of the picture may move the evidence in it.
        shown = vlm.shown(batch.prompt)
        keys = shown.keys
        evidence = torch.zeros(keys.spans.shape, dtype=torch.bool)
        others = evidence.expand(draws, -1, -1).clone()
        moved, good = torch.zeros(len(batch.samples), dtype=torch.float64), []
        for row, sample in enumerate(batch.samples):
            grid = keys.grids[keys.grid_rows.index(row)]
            boxes, random = shown.turns[row].boxes, generator(seed, sample.id)
            try:
                labels = grid.labels(boxes) & grid.placed if boxes else torch.zeros_like(grid.placed)
                if not labels.any():
                    raise BadPrompt("no image token sees the evidence")
                found = [elsewhere(grid, boxes, labels, random) for _ in range(draws)]
            except (NoRoom, BadPrompt) as error:
                ledger.leave_out(sample, str(error))
                continue
            good.append(row)
            evidence[row, grid.positions[labels]] = True
            for draw, (tokens, _) in enumerate(found):
                others[draw, row, grid.positions[tokens]] = True
            moved[row] = np.mean([one for _, one in found])
        if not good:
            return None
        if len(good) < len(batch.samples):
            kept = Batch([batch.samples[row] for row in good], batch.prompt.only(good))
            return cls.of(vlm, kept, draws, seed, ledger)
        return cls(list(batch.samples), batch.prompt, evidence, others, moved)

    def numbers(
        self, vlm: VLM, read: Any, queries: Queries, through_image: bool
    ) -> Float[Tensor, "batch number"]:
        """AUROC, pointing, the evidence's drop, the share of moved controls, log p, the controls' drops."""
        seen = self._seen(vlm, read, queries)
        plain = vlm.score(self.prompt).logprob.double().cpu()
        drops = [
            plain - self._hidden(vlm, keys, through_image) for keys in (self.evidence, *self.others.unbind())
        ]
        return torch.stack([*seen, drops[0], self.moved, plain, *drops[1:]], 1)

    def _seen(self, vlm: VLM, read: Any, queries: Queries) -> tuple[Tensor, Tensor]:
        """AUROC and pointing of the mean row over the picture's tokens."""
        layers = [layer for layer, _ in read]
        reading = read_rows(vlm, self.prompt, queries, layers)
        one = reading.asked.mean(reading.over_images.movedim(-2, -1))
        rows = {layer: one[:, place] for place, layer in enumerate(layers)}
        mean, keys, found = mean_rows(rows, read), reading.prompt.keys, []
        for row in range(len(self.samples)):
            grid = keys.grids[keys.grid_rows.index(row)]
            places = grid.positions[grid.placed]
            scores, labels = mean[row, places], self.evidence[row, places]
            found.append((auroc(scores, labels), pointing(scores, labels)))
        return tuple(torch.stack(one).double() for one in zip(*found))

    def _hidden(self, vlm: VLM, keys: Bool[Tensor, "batch key"], through_image: bool) -> Tensor:
        """The answer's log-probability when the text can't attend to ``keys``."""
        kernels = vlm.sites.kernels["text"]
        crosses = any(kernel.cross for kernel in kernels.values())
        layers = tuple(layer for layer, kernel in kernels.items() if kernel.cross == crosses)
        hidden = Positions.of_mask(keys)
        queries = ~hidden if through_image and not crosses else Span("text") | Span("answer")
        cut = Knockout(queries=queries, keys=hidden, layers=layers)
        return vlm.with_edits(cut).score(self.prompt).logprob.double().cpu()

    def said(self, vlm: VLM, answers: str) -> list[tuple[str, bool]]:
        """Each answer, and whether the model answers right."""
        tokenizer = vlm.processor.tokenizer
        texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in self.prompt.answers]
        own = texts
        if answers == "given":
            bare = vlm.prompts(self.samples, template=self.prompt.turns[0].template)
            own = vlm.answer(bare)
        return [
            (text, bool(exact_match(one, sample.answers)))
            for text, one, sample in zip(texts, own, self.samples)
        ]


def _read(vlm: VLM, layers: Any, heads: Any) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], str]:
    """The heads to read, ((layer, heads), …), () for all of a layer; and what to call them."""
    if layers is not None and heads is not None:
        raise ValueError("what was seen is read from layers or from heads: give one of them")
    if heads is not None:
        table = head_table(heads)
        check_heads(table, vlm)
        attention_layers([layer for layer, _ in table], vlm)
        return table, _counted(sum(len(some) for _, some in table), "head")
    kernels = vlm.sites.kernels["text"]
    crosses = any(kernel.cross for kernel in kernels.values())
    if layers is None:
        name = str(vlm._module.config.name_or_path)
        known = name.strip("/").lower() in {one.lower() for one in PROFILES}
        if not known:
            some = tuple(layer for layer, kernel in kernels.items() if kernel.cross == crosses)
            return tuple((layer, ()) for layer in some), f"all {len(some)} layers"
        layers = published(vlm)
    some = attention_layers(layers_said(layers), vlm)
    if wrong := [layer for layer in some if kernels[layer].cross != crosses]:
        raise ValueError(f"layers {wrong} do not attend to the picture's tokens one by one; leave them out")
    return tuple((layer, ()) for layer in some), f"layer{'s' * (len(some) > 1)} {', '.join(map(str, some))}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


__all__ = ["QUADRANTS", "Belief", "belief"]
