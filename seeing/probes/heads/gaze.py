"""Gaze heads: those whose attention goes to the region that is asked about.

Gandikota and Bau, *Gaze Heads: How VLMs Look at What They Describe* (arXiv 2606.14703). They ask about each
panel of a comic strip in turn; the gaze score of a head is the weight, behind the softmax, that the last
prompt token gives to the tokens of the panel asked about, mean over panels and strips. It is left as it is,
not divided by the weight on the picture: a head that hardly looks at the picture would else score high by the
little that it does there.

Here the region that is asked about is the sample's evidence, so any annotated data set will do: its
questions should ask about different places, or a head that always looks at one place passes for one that
follows the question (``parts["lift"]`` does not tell the two apart either).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from seeing.data.samples import EvidenceSample
from seeing.probes.heads.looks import looks
from seeing.probes.heads.scores import HeadScores
from seeing.probes.progress import Progress
from seeing.probes.running import RunningMean
from seeing.probes.samples import Answered, Ledger
from seeing.prompt import Prompt, Template
from seeing.vlm import VLM


def gaze_heads(
    vlm: VLM,
    samples: Prompt | Iterable[EvidenceSample] | EvidenceSample,
    *,
    relative: bool = False,
    answers: Answered = None,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
) -> HeadScores:
    """The gaze score of each head: g = mean over samples of Σ_{i ∈ target} A[last, i].

    The target is the image tokens on the sample's boxes (rule "any", in all tiles). ``methods.gaze_heads``
    steers the heads that ``top(k)`` names; the paper takes 100 of a model with 1,152.

    Args:
        relative: score Σ_target A / Σ_image A instead, the mean of each sample's share.
        answers: read the rows that predict the sample's first answer ("given") or the model's ("own")
            instead of the last prompt token's, mean over its tokens.

    ``parts``: "target" (g), "image" (weight on the whole picture), "share" (target ÷ image) and "lift" (share
    ÷ the target's share of the image's tokens: 1 for a head that looks at all of the picture alike).

    Raises ValueError when no sample could be counted.
    """
    ledger = Ledger()
    parts = {name: RunningMean() for name in ("target", "image", "share", "lift")}
    settings = dict(template=template, batch_size=batch_size, progress=progress, what="gaze")
    for look in looks(vlm, samples, ledger, answers=answers, boxes=True, **settings):
        target = look.grid.labels(look.boxes)
        if not target.any():
            ledger.leave_out(look.id, "no image token sees the evidence")
            continue
        ledger.ids.append(look.id)
        on, image = look.weights[..., target].sum(-1), look.weights.sum(-1)
        # A head that gives the picture nothing has no share of it.
        share = torch.where(image > 0, on / image, torch.nan)
        found = {"target": on, "image": image, "share": share, "lift": share / target.double().mean()}
        for name, mean in parts.items():
            mean.add(found[name][None])
    ledger.need("evidence that the model could see")
    means = {name: mean.mean for name, mean in parts.items()}
    return HeadScores(
        "gaze share" if relative else "gaze score",
        means["share" if relative else "target"],
        len(ledger.ids),
        tuple(ledger.left_out),
        "share of the attention on the picture" if relative else "attention on the region asked about, 0–1",
        means,
    )


__all__ = ["gaze_heads"]
