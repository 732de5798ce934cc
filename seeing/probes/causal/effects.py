"""How an answer fares under a run: the numbers that causal probes compare two runs by.

The model is told the answer (teacher forcing), so that every run is asked about the same tokens, and the rows
of logits that predict them give

* ``logprob``: log p(answer | picture, question), the sum over the answer's tokens;
* ``logit_diff``: logit(answer) − logit(foil) of the first token, the foil being what else might be said;
* ``kl``: KL(clean ‖ run), summed over the rows; in it the answer plays no part but to say which rows.

The log-probability saturates where the model is sure, the logit difference does not, and the divergence
sees what moves beside the answer: Zhang & Nanda 2024 (arXiv 2309.16042) compare them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: What an effect is measured by, and its unit as a figure says it.
METRICS = {
    "logprob": "log p(answer), nats",
    "logit_diff": "answer − foil, logits",
    "kl": "KL from the clean run, nats",
}

#: Two runs that differ by less than this part of the metric's size differ by rounding.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Measure:
    """One metric of an answer, of any run over the same rows.

    Attributes:
        metric: one of `METRICS`.
        ids: (batch, token) the answer's tokens, −1 behind shorter answers.
        foil: (batch,) the token that the answer's first one is compared with; for "logit_diff".
        clean: (batch, token, d_vocab) log-probabilities of the clean run; for "kl".
    """

    metric: str
    ids: Int[Tensor, "batch token"]
    foil: Int[Tensor, " batch"] | None = None
    clean: Float[Tensor, "batch token d_vocab"] | None = None

    def __post_init__(self):
        check_metric(self.metric)
        if self.metric == "logit_diff" and self.foil is None:
            raise ValueError("a logit difference compares the answer with a foil, and none was given")
        if self.metric == "kl" and self.clean is None:
            raise ValueError("a divergence is measured from the clean run's log-probabilities; give clean=")

    def __call__(self, logits: Float[Tensor, "batch token d_vocab"]) -> Float[Tensor, " batch"]:
        """The metric of each row of a run. Gradients flow through it."""
        logits = logits.float()
        if self.metric == "logit_diff":
            return logit_difference(logits, self.ids.to(logits.device), self.foil.to(logits.device))
        if self.metric == "kl":
            return divergence(self.clean.to(logits.device), logits, self.ids.to(logits.device))
        return answer_logprob(logits, self.ids.to(logits.device))


def check_metric(metric: str) -> None:
    """Raise ValueError for a metric that there is not."""
    if metric not in METRICS:
        raise ValueError(f"no metric {metric!r}; effects are measured by {', '.join(METRICS)}")


def answer_logprob(
    logits: Float[Tensor, "batch token d_vocab"], ids: Int[Tensor, "batch token"]
) -> Float[Tensor, " batch"]:
    """log p(answer): the sum of its tokens' log-probabilities."""
    chosen = logits.log_softmax(-1).gather(-1, ids.clamp_min(0)[..., None])[..., 0]
    return chosen.masked_fill(ids < 0, 0.0).sum(1)


def logit_difference(
    logits: Float[Tensor, "batch token d_vocab"], ids: Int[Tensor, "batch token"], foil: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The answer's first token against the foil, in logits."""
    both = torch.stack([ids[:, 0], foil], 1)
    answer, other = logits[:, 0].gather(1, both).unbind(1)
    return answer - other


def divergence(
    clean: Float[Tensor, "batch token d_vocab"],
    logits: Float[Tensor, "batch token d_vocab"],
    ids: Int[Tensor, "batch token"],
) -> Float[Tensor, " batch"]:
    """KL(clean ‖ run), summed over the rows that predict the answer. ``clean`` are log-probabilities."""
    terms = clean.exp() * (clean - logits.log_softmax(-1))
    # A token that the clean run rules out altogether adds nothing, whatever the run says of it.
    each = terms.masked_fill(clean == -torch.inf, 0.0).sum(-1)
    return each.masked_fill(ids < 0, 0.0).sum(1)


def rival(logits: Float[Tensor, "batch d_vocab"], answer: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """What a run would rather say than anything else but the answer: the foil of an answer."""
    return logits.scatter(1, answer[:, None].to(logits.device), -torch.inf).argmax(1)


def differs(clean: Float[Tensor, " batch"], corrupted: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Whether the two runs differ by more than rounding (`ROUNDING`), row by row."""
    size = torch.maximum(clean.abs(), corrupted.abs()).clamp_min(1.0)
    return (clean - corrupted).abs() > ROUNDING * size


def share_moved(
    run: Float[Tensor, "*places batch"],
    base: Float[Tensor, " batch"],
    goal: Float[Tensor, " batch"],
) -> Float[Tensor, "*places batch"]:
    """How far a patched run has come from ``base`` to ``goal``: (run − base) / (goal − base).

    1 is all of the way, 0 none. With the corrupted run as base and the clean one as goal this is the
    normalised effect of denoising, (patched − corrupted) / (clean − corrupted). NaN where base and goal
    differ by rounding: there is no way to go.
    """
    share = (run - base) / (goal - base)
    return share.masked_fill(~differs(goal, base), torch.nan)


def percent_change(
    logprob: Float[Tensor, "batch ..."], base: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch ..."]:
    """100 · (p′ − p) / p of the answer's probability: the change that knockouts are published in.

    −100 takes the answer away altogether; without bound above.
    """
    return 100 * torch.expm1(logprob - base)
