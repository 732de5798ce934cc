"""Logit lens: what each layer would answer, if the model ended there.

The stream behind a layer is put through the model's own last step: its final norm, its unembedding, and the
scale or soft cap behind it where there is one (nostalgebraist 2020, "interpreting GPT: the logit lens").
At the last layer that is the model's answer, to rounding; before it the curve shows where the answer is made,
and where it is still something else. Early streams were not trained to be read so (Belrose et al. 2023,
arXiv 2303.08112): what the lens shows is there, what it does not show may be there in other words. The
divergence from the end, KL(final ‖ layer), says how far a layer is from speaking the last one's language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit, EmptySelection
from seeing.edits.layers import whole
from seeing.figures.lens import Cells, lens_by_depth, lens_grid
from seeing.probes.lens.decoding import (
    Decoded,
    decode,
    lens_layers,
    padding_of,
    place_selector,
    places_of,
    words_of,
)
from seeing.probes.progress import Progress
from seeing.probes.samples import Ledger, LeftOut, batches
from seeing.prompt import BadPrompt, Prompt, Template
from seeing.stats import bootstrap_mean
from seeing.vlm import VLM

#: Tokens to follow: ids or texts (of a text its first token), one or several; None: see `logit_lens`.
Tokens = int | str | Sequence[int | str] | None


@dataclass(frozen=True, eq=False)
class LogitLens(Decoded):
    """What each layer would say at each place, a place being a position of a prompt.

    Attributes:
        layers: the layers read, in the order of the layer axis.
        site: what of them.
        ids: the samples; "row 0" … for the rows of a prompt.
        item: (place,) which of ``ids``.
        position: (place,) where in it: as in the prompt given; for samples as in ``vlm.prompt(sample)``.
        standing: (place,) the id of the token that stands there.
        words: id -> how it is shown, of every id that occurs.
        left_out: samples that are in no number, and why.

    Beside those of `Decoded`: ``top``, ``probs`` (place, layer, k); ``targets`` (place, target); ``ranks``,
    ``logprobs`` (place, layer, target); ``entropy``, ``kl`` (place, layer).
    """

    layers: tuple[int, ...]
    site: str
    ids: tuple[str, ...]
    item: Int[Tensor, " place"]
    position: Int[Tensor, " place"]
    standing: Int[Tensor, " place"]
    words: Mapping[int, str]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    def said(self, place: int = 0) -> list[list[str]]:
        """The top words of a place: one list a layer, the likeliest first."""
        return [[self.words[one] for one in layer] for layer in self.top[place].tolist()]

    def to_frame(self) -> pd.DataFrame:
        """One row a place, layer and target token: its rank and log-probability, and what is on top."""
        places, n_layers, n_targets = self.ranks.shape
        place, layer, target = (axis.ravel() for axis in np.indices((places, n_layers, n_targets)))
        columns = {
            "layer": np.array(self.layers)[layer],
            "target": self._worded(self.targets[place, target]),
            "rank": self.ranks.flatten().numpy(),
            "logprob": self.logprobs.flatten().numpy(),
            "entropy": self.entropy[place, layer].numpy(),
            "kl": self.kl[place, layer].numpy(),
            "top": self._worded(self.top[place, layer, 0]),
            "prob": self.probs[place, layer, 0].numpy(),
        }
        return pd.DataFrame(self._placed(place) | columns)

    def top_frame(self) -> pd.DataFrame:
        """One row a place, layer and rank k: the word there and its probability."""
        place, layer, k = (axis.ravel() for axis in np.indices(self.top.shape))
        columns = {
            "layer": np.array(self.layers)[layer],
            "k": k,
            "word": self._worded(self.top.flatten()),
            "prob": self.probs.flatten().numpy(),
        }
        return pd.DataFrame(self._placed(place) | columns)

    def figure(self, sample: int | None = None, *, dark: bool = False) -> go.Figure:
        """One sample: layers × positions, in each cell the likeliest word, coloured by its probability.

        Several samples, and none chosen: by depth, how often the target is on top and its probability.
        """
        if sample is None and self.n > 1:
            return self._curves(dark)
        chosen = 0 if sample is None else sample
        if not -self.n <= chosen < self.n:
            raise ValueError(f"there are {self.n} samples, none is number {sample}")
        mine = (self.item == chosen % self.n).nonzero()[:, 0]
        name = self.ids[chosen]
        columns = [f"{int(self.position[one])} {self.words[int(self.standing[one])]}" for one in mine]
        return lens_grid(
            self.cells(mine), layers=self.layers, columns=columns, site=self.site, what=name, dark=dark
        )

    def cells(self, places: Int[Tensor, " place"]) -> Cells:
        """Words and probabilities of some places, as figures take them: layer, place, k."""
        top = self.top[places].transpose(0, 1)
        words = np.array(self._worded(top.flatten()), dtype=object).reshape(top.shape)
        return Cells(words, self.probs[places].transpose(0, 1).numpy())

    def _curves(self, dark: bool) -> go.Figure:
        """Means over samples of the mean over a sample's places, of the first target."""
        depth = self.layers[-1] + 1
        curves = []
        for values in ((self.ranks[..., 0] == 0).double(), self.logprobs[..., 0].double().exp()):
            by_sample = torch.full((depth, self.n), torch.nan, dtype=torch.float64)
            for number in range(self.n):
                by_sample[list(self.layers), number] = values[self.item == number].mean(0)
            found = bootstrap_mean(by_sample.numpy(), seed=0)
            curves.append((found.mean, found.interval.low, found.interval.high))
        mean, low, high = (np.stack(part) for part in zip(*curves))
        return lens_by_depth(mean, low, high, n=self.n, dark=dark)

    def _placed(self, place: np.ndarray) -> dict[str, Any]:
        return {
            "sample": np.array(self.ids, dtype=object)[self.item[place].numpy()],
            "position": self.position[place].numpy(),
            "token": self._worded(self.standing[place]),
        }

    def _worded(self, ids: Int[Tensor, " n"]) -> list[str]:
        return [self.words[one] for one in ids.tolist()]


def logit_lens(
    vlm: VLM,
    samples: Prompt | EvidenceSample | Iterable[EvidenceSample],
    positions: Any = "last",
    layers: Any = "all",
    site: str = "resid_post",
    k: int = 5,
    *,
    tokens: Tokens = None,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
) -> LogitLens:
    """What each layer would say next, at chosen positions.

    Args:
        samples: samples, one or several, or a prompt (a batch of them).
        positions: a span ("question", "image" …), positions, boxes, or a selector of `seeing.edits`. "last"
            is the prompt's own last token, which the first answer token comes from; "answer" are the
            positions that predict the answer, a sample's first one or that of ``prompt.with_answer(…)``.
        layers: as in edits: "all", "deep", ints, a slice, a profile.
        site: what of a layer: resid_post, resid_mid, resid_pre, or a branch alone, attn_out or mlp_out.
        k: how many of the likeliest tokens are kept.
        tokens: whose rank and log-probability to follow: ids, or texts, of which the first token counts.
            By default the answer's: the token that a position predicts, elsewhere its first. For a prompt
            without an answer, what the model itself says in the end.
        template, batch_size, progress: as in every probe.

    A place keeps some numbers a layer, so over a data set ask for a few positions a sample; the picture's
    tokens of one prompt are laid over the picture by `image_lens`.
    Raises `BadEdit` and `EmptySelection` for positions that a prompt has not, `UnknownName` for a site that
    the model lacks, `FamilyContractError` where the lens is not what the model says at the last layer.
    """
    gathered = _Gathered(vlm, positions, lens_layers(vlm, layers, site), site, k, tokens)
    if isinstance(samples, Prompt):
        gathered.add(samples)
        return gathered.result()
    for batch in batches(
        vlm,
        samples,
        gathered.ledger,
        template=template,
        batch_size=batch_size,
        progress=progress,
        answers="given" if tokens is None else None,
        what="logit lens",
    ):
        gathered.add(batch.prompt, batch.samples)
    return gathered.result()


class _Gathered:
    """The places of all prompts so far, decoded."""

    def __init__(self, vlm: VLM, positions: Any, layers: tuple[int, ...], site: str, k: int, tokens: Tokens):
        self.vlm, self.layers, self.site, self.k = vlm, layers, site, k
        self.positions = place_selector(positions)
        self.tokens = _checked(tokens, vlm.cfg.d_vocab)
        self.ledger = Ledger()
        self.decoded: list[Decoded] = []
        self.places: list[Int[Tensor, "3 place"]] = []
        self.words: dict[int, str] = {}

    def add(self, prompt: Prompt, samples: Sequence[EvidenceSample] | None = None) -> None:
        """Decode the places of a prompt; its rows are ``samples``, or are counted by number."""
        shown = self.vlm.shown(prompt)
        mask = places_of(shown, self.positions) if samples is None else self._of_each(shown, samples)
        rows, columns = mask.nonzero(as_tuple=True)
        if not len(rows):
            return
        targets = self._targets(shown, rows, columns)
        decoded = decode(self.vlm, prompt, mask, self.layers, self.site, self.k, targets)
        there, first = mask.any(1), len(self.ledger.ids)
        for row in there.nonzero()[:, 0].tolist():
            self.ledger.ids.append(f"row {row}" if samples is None else samples[row].id)
        item = first + (there.cumsum(0) - 1)[rows]
        standing = shown.inputs["input_ids"].cpu()[rows, columns]
        position = columns if samples is None else columns - padding_of(shown)[rows]
        self.decoded.append(decoded)
        self.places.append(torch.stack([item, position, standing]))
        ids = (decoded.top, decoded.targets, standing)
        self.words |= words_of(self.vlm, torch.cat([one.flatten() for one in ids]))

    def _of_each(self, prompt: Prompt, samples: Sequence[EvidenceSample]) -> Bool[Tensor, "batch pos"]:
        """The places of each sample; one that has none is left out."""
        masks = []
        for row, sample in enumerate(samples):
            try:
                masks.append(places_of(prompt.take([row]), self.positions, unpadded=True))
            except (EmptySelection, BadEdit, BadPrompt) as error:
                self.ledger.leave_out(sample, str(error))
                masks.append(torch.zeros(1, prompt.length, dtype=torch.bool))
        return torch.cat(masks)

    def _targets(
        self, prompt: Prompt, rows: Int[Tensor, " place"], columns: Int[Tensor, " place"]
    ) -> Int[Tensor, "place target"] | None:
        if self.tokens is not None:
            each = [_first_ids(prompt, one) for one in self.tokens]
            return torch.stack(each, 1)[rows]
        if not prompt.answers:
            return None
        # The token that a place predicts where it predicts one of the answer's, else the answer's first.
        said = prompt.spans.mask("predicts").cumsum(1) - 1
        place = torch.where(prompt.spans.mask("predicts"), said, 0)[rows, columns]
        return torch.stack([prompt.answers[row][one] for row, one in zip(rows.tolist(), place)])[:, None]

    def result(self) -> LogitLens:
        self.ledger.need("a position to decode")
        item, position, standing = torch.cat(self.places, 1)
        return LogitLens(
            **vars(Decoded.joined(self.decoded)),
            layers=self.layers,
            site=self.site,
            ids=tuple(self.ledger.ids),
            item=item,
            position=position,
            standing=standing,
            words=self.words,
            left_out=tuple(self.ledger.left_out),
        )


def _checked(tokens: Tokens, n_vocab: int) -> tuple[int | str, ...] | None:
    """The tokens asked about. Raises ValueError for none, and for what is neither an id nor a text."""
    if tokens is None:
        return None
    several = not isinstance(tokens, str) and isinstance(tokens, Iterable)
    found = tuple(one if isinstance(one, str) else whole(one) for one in (tokens if several else [tokens]))
    wrong = [one for one in found if one is None or (isinstance(one, int) and not 0 <= one < n_vocab)]
    if wrong or not found:
        raise ValueError(f"tokens are texts or ids from 0 to {n_vocab - 1}, one or several; got {tokens!r}")
    return found


def _first_ids(prompt: Prompt, token: int | str) -> Int[Tensor, " batch"]:
    """The id of a token behind each row; of a text, the first that it would be said with."""
    if isinstance(token, int):
        return torch.full((len(prompt),), token)
    said = prompt.with_answer(token if len(prompt) == 1 and not prompt.batched else [token] * len(prompt))
    return torch.stack([ids[0] for ids in said.answers])
