"""How well do scores find the evidence?

Every ranking metric takes all layers and heads of a model in one call: scores of shape (*batch, token),
labels (token,) for all of them, or one row of labels for each batch entry (any shape that broadcasts). All of
them rest on two counts per evidence token, how many tokens score more and how many at least as much, so ties
are exact.

The ranking metrics need evidence and non-evidence; where a sample has only one of the two they are NaN, to be
left out and counted by the caller. They raise ValueError for scores that are NaN or infinite (a masked logit
is no score). The attention metrics (`mass`, `density_ratio`) need scores ≥ 0 besides. All results are
float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Scores = Float[Tensor, "*batch token"]
Labels = Bool[Tensor, "*#batch token"]
Metric = Float[Tensor, "*batch"]


class Locality(NamedTuple):
    """All metrics of `locality`, each of shape (*batch)."""

    auroc: Metric
    average_precision: Metric
    ndcg: Metric
    mass: Metric
    density_ratio: Metric
    pointing: Metric


def locality(scores: Scores, labels: Labels) -> Locality:
    """Every metric of scores at once, from one sort. Scores ≥ 0: attention over the image tokens, say."""
    ranks, sums = _rank(scores, labels), _sums(scores, labels)
    return Locality(
        _auroc(ranks),
        _average_precision(ranks),
        _ndcg(ranks),
        _mass(sums),
        _density_ratio(sums),
        _pointing(ranks),
    )


def auroc(scores: Scores, labels: Labels) -> Metric:
    """Area under the ROC curve: P(an evidence token scores above a non-evidence token), ties counting half.

    Equal to `sklearn.metrics.roc_auc_score`. 0.5 is chance. The evidence locality of Liu et al. 2026.
    """
    return _auroc(_rank(scores, labels))


def average_precision(scores: Scores, labels: Labels) -> Metric:
    """Area under the precision–recall curve, Σ (R_n − R_{n−1}) P_n over the distinct scores.

    Equal to `sklearn.metrics.average_precision_score`. Chance is the share of evidence tokens.
    """
    return _average_precision(_rank(scores, labels))


def ndcg(scores: Scores, labels: Labels) -> Metric:
    """Normalized discounted cumulative gain over all tokens, gain 1 for evidence, discount 1 / log2(rank +
    1).

    Tied tokens share their mean discount. Equal to `sklearn.metrics.ndcg_score`.
    """
    return _ndcg(_rank(scores, labels))


def pointing(scores: Scores, labels: Labels) -> Metric:
    """The pointing game: 1 where the top token is evidence, else 0; of tied top tokens the share that is."""
    return _pointing(_rank(scores, labels))


def mass(scores: Scores, labels: Labels) -> Metric:
    """Share of the attention over the given tokens that falls on evidence. NaN where there is none."""
    return _mass(_sums(scores, labels))


def density_ratio(scores: Scores, labels: Labels) -> Metric:
    """Mean attention of an evidence token ÷ mean attention of a non-evidence token. 1 is no preference.

    inf where only evidence is attended to, NaN where nothing is.
    """
    return _density_ratio(_sums(scores, labels))


class _Ranks(NamedTuple):
    """For every evidence token, from the lowest score up, (*batch, evidence): how many tokens, how many
    evidence tokens, beat it."""

    above: Tensor  # tokens that score more
    at_least: Tensor  # tokens that score as much or more, itself included
    evidence_above: Tensor
    evidence_at_least: Tensor
    valid: Tensor  # labels of unequal counts are padded, in front; False for the padding
    positives: Tensor  # (*batch)
    negatives: Tensor
    tokens: int


def _rank(scores: Tensor, labels: Tensor) -> _Ranks:
    scores = _check(scores)
    tokens = scores.shape[-1]
    counts = labels.sum(-1)
    # the evidence tokens first, as many as the row with the most has: only they need a rank
    valid, index = labels.to(torch.uint8).topk(int(counts.max()) if counts.numel() else 0, dim=-1)
    shape = (*scores.shape[:-1], valid.shape[-1])
    valid, index = valid.bool().expand(shape), index.expand(shape)
    # a padded place must beat nobody: below every score. In order they are looked up twice as fast
    evidence = _ascending(scores.gather(-1, index).masked_fill(~valid, -torch.inf))
    valid = evidence != -torch.inf
    above, at_least = _beaten_by(_ascending(scores), evidence)
    evidence_above, evidence_at_least = _beaten_by(evidence, evidence)
    positives = counts.expand(scores.shape[:-1]).double()
    negatives = tokens - positives
    return _Ranks(above, at_least, evidence_above, evidence_at_least, valid, positives, negatives, tokens)


def _beaten_by(ordered: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """For each value: how many of the scores, in ascending order, are greater, how many at least as great."""
    total = ordered.shape[-1]
    return (
        total - torch.searchsorted(ordered, values, right=True),
        total - torch.searchsorted(ordered, values, right=False),
    )


def _ascending(scores: Tensor) -> Tensor:
    # torch.sort always carries indices along; without them numpy is ten times as fast on a CPU
    return torch.from_numpy(np.sort(scores.numpy(), axis=-1)) if scores.is_cpu else scores.sort(-1).values


def _auroc(ranks: _Ranks) -> Tensor:
    above = ranks.above - ranks.evidence_above
    at_least = ranks.at_least - ranks.evidence_at_least
    beaten = ranks.negatives[..., None] - (above + at_least) / 2
    pairs = ranks.positives * ranks.negatives
    return _only_mixed(_total(beaten, ranks) / pairs, ranks.positives, ranks.negatives)


def _average_precision(ranks: _Ranks) -> Tensor:
    precision = ranks.evidence_at_least / ranks.at_least.double()
    return _only_mixed(_total(precision, ranks) / ranks.positives, ranks.positives, ranks.negatives)


def _ndcg(ranks: _Ranks) -> Tensor:
    discount = 1 / torch.arange(2, ranks.tokens + 2, dtype=torch.float64, device=ranks.above.device).log2()
    # gained[k]: the discounts of the first k ranks; tied tokens share theirs
    gained = torch.nn.functional.pad(discount.cumsum(0), (1, 0))
    shared = (gained[ranks.at_least] - gained[ranks.above]) / (ranks.at_least - ranks.above)
    ideal = gained[ranks.positives.long()]
    return _only_mixed(_total(shared, ranks) / ideal, ranks.positives, ranks.negatives)


def _pointing(ranks: _Ranks) -> Tensor:
    share = (ranks.above == 0) / ranks.at_least.double()
    return _only_mixed(_total(share, ranks), ranks.positives, ranks.negatives)


def _total(values: Tensor, ranks: _Ranks) -> Tensor:
    return values.masked_fill(~ranks.valid, 0.0).sum(-1)


def _only_mixed(metric: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    return metric.masked_fill((positives == 0) | (negatives == 0), torch.nan)


class _Sums(NamedTuple):
    """Attention on evidence and off it, and how many tokens are evidence and not, each of shape (*batch)."""

    on: Tensor
    off: Tensor
    positives: Tensor
    negatives: Tensor


def _sums(scores: Tensor, labels: Tensor) -> _Sums:
    scores = _check(scores)
    if scores.numel() and scores.min() < 0:
        raise ValueError(f"expected attention ≥ 0, found {scores.min():.4g}: give weights after the softmax")
    on = scores.masked_fill(~labels, 0).sum(-1, dtype=torch.float64)
    # summed by itself: the total minus `on` would leave rounding where there is no attention off the evidence
    off = scores.masked_fill(labels, 0).sum(-1, dtype=torch.float64)
    positives = labels.sum(-1).expand(on.shape).double()
    return _Sums(on, off, positives, scores.shape[-1] - positives)


def _mass(sums: _Sums) -> Tensor:
    return _only_mixed(sums.on / (sums.on + sums.off), sums.positives, sums.negatives)


def _density_ratio(sums: _Sums) -> Tensor:
    ratio = (sums.on / sums.positives) / (sums.off / sums.negatives)
    return _only_mixed(ratio, sums.positives, sums.negatives)


def _check(scores: Tensor) -> Tensor:
    # min and max carry NaN along, and cost less than a mask of what is finite
    if scores.numel() and not torch.stack(scores.aminmax()).isfinite().all():
        wrong = int((~scores.isfinite()).sum())
        raise ValueError(
            f"expected finite scores, found {wrong} that are NaN or infinite: index the visual"
            " tokens, and give weights instead of masked logits"
        )
    scores = scores.detach()
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
