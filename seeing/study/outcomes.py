"""What happened, sample by sample: answers of every method, and where the model looked.

The demo and its statistics stand on this table and on nothing else, so that a number in a report can
be traced to rows, and the rows are what `results.parquet` holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.correctness import exact_match
from seeing.data.samples import EvidenceSample
from seeing.edits.seen import mean_rows
from seeing.maps import Window, window_tokens
from seeing.methods.method import HeadTable, Method, grids_of, own_windows
from seeing.metrics import auroc
from seeing.probes.attention.allocation import allocate
from seeing.probes.reading import Progress, Reading, batched, read_rows
from seeing.prompt import Prompt
from seeing.vlm import VLM

#: A region lies on the evidence when at least this share of its tokens is evidence.
ON_EVIDENCE = 0.5


@dataclass(frozen=True, eq=False)
class Looked:
    """Where the model looked at one sample, in its plain pass.

    Attributes:
        auroc: (layer,) evidence AUROC of each layer's mean row.
        rapt: segment -> (layer,).
        heat: (token,) mean attention of the own heads to each image token.
        region: the own region, a window of tokens.
        seen: whether the region lies on the evidence.
    """

    auroc: Float[np.ndarray, " layer"]
    rapt: Mapping[str, Float[np.ndarray, " layer"]]
    heat: Float[np.ndarray, " token"]
    region: Window
    seen: bool


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Answers of each method to the same samples, in the same order."""

    samples: Sequence[EvidenceSample]
    looked: Sequence[Looked]
    answers: Mapping[str, Sequence[str]]
    logprobs: Mapping[str, Sequence[float]]

    def correct(self, method: str) -> Bool[np.ndarray, " sample"]:
        """Exact match (SQuAD normalisation) of each answer."""
        return np.array(
            [
                exact_match(answer, sample.answers) > 0
                for answer, sample in zip(self.answers[method], self.samples)
            ]
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a sample and method."""
        rows = []
        for method in self.answers:
            for place, (sample, looked, right) in enumerate(
                zip(self.samples, self.looked, self.correct(method))
            ):
                rows.append(
                    {
                        "sample": sample.id,
                        "method": method,
                        "answer": str(self.answers[method][place]),
                        "correct": bool(right),
                        "truth": sample.answers[0],
                        "question": sample.question,
                        "logprob": self.logprobs[method][place],
                        "seen": looked.seen,
                        "evidence_auroc": float(looked.auroc.max()),
                        **{f"meta_{key}": value for key, value in sample.meta.items() if _is_plain(value)},
                    }
                )
        return pd.DataFrame(rows)


def collect(
    vlm: VLM,
    samples: Iterable[EvidenceSample],
    methods: Mapping[str, Method],
    heads: HeadTable,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Outcomes:
    """Answer every sample by every method, and read where the model looked.

    Args:
        heads: {layer: [heads]} that the own region is read from.
        progress: called with the number of answers given so far.
    """
    kept: list[EvidenceSample] = []
    looked: list[Looked] = []
    answers: dict[str, list[str]] = {name: [] for name in methods}
    logprobs: dict[str, list[float]] = {name: [] for name in methods}
    done = 0
    for batch in batched(samples, batch_size):
        prompt = vlm.prompts(batch, template="qa")
        kept += batch
        looked += look(read_rows(vlm, prompt), heads)
        for name, method in methods.items():
            given = method.answer(vlm, prompt)
            answers[name] += map(str, given)
            logprobs[name] += [answer.logprob for answer in given]
            done += len(batch)
            if progress is not None:
                progress(done)
    return Outcomes(kept, looked, answers, logprobs)


def look(reading: Reading, heads: HeadTable, window: tuple[int, int] = (2, 2)) -> list[Looked]:
    """Where the model looked, for each row of a reading of all layers."""
    prompt = reading.prompt
    shares = allocate(reading)
    rapt = shares.rapt_by_layer().numpy()
    rows = mean_rows({layer: reading.over_images[:, layer, :, -1] for layer in heads}, heads.items())
    windows = own_windows(prompt, rows, window)
    evidence = prompt.keys.evidence()
    found = []
    for row, (grid, region) in enumerate(zip(grids_of(prompt), windows)):
        labels = evidence[row, grid.positions]
        scores = reading.over_images[row, :, :, -1].mean(1)[:, grid.positions]
        share = labels[window_tokens(grid, region)].float().mean()
        found.append(
            Looked(
                auroc=_by_layer(scores[:, grid.placed], labels[grid.placed]),
                rapt={segment: rapt[row, place] for place, segment in enumerate(shares.segments)},
                heat=rows[row, grid.positions].numpy(),
                region=region,
                seen=bool(share >= ON_EVIDENCE),
            )
        )
    return found


def _by_layer(
    scores: Float[Tensor, "layer token"], labels: Bool[Tensor, " token"]
) -> Float[np.ndarray, " layer"]:
    """AUROC of each layer over the tokens that have a place; NaN where a layer has no attention."""
    read = ~scores.isnan().any(1)
    found = np.full(len(scores), np.nan)
    found[read] = auroc(scores[read], labels).numpy()
    return found


def prompt_of(vlm: VLM, sample: EvidenceSample) -> Prompt:
    """A sample asked as `collect` asks it."""
    return vlm.prompt(sample, template="qa")


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool))
