"""Which method is best over many data sets? Average ranks, and how far apart they must lie to tell.

A mean over data sets takes a point on an easy one for a point on a hard one; ranks do not (Friedman 1937;
Demšar 2006, Statistical comparisons of classifiers over multiple data sets, JMLR 7:1–30).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata, studentized_range


@dataclass(frozen=True, eq=False)
class Ranks:
    """How methods rank over blocks: data sets, or data sets of several models.

    Attributes:
        by_block: (block, method), 1 is the best; tied methods share the mean of their ranks. NaN in blocks
            that were left out.
        mean: (method,) average rank; NaN where no block was used.
        n: blocks used.
        left_out: blocks in which a method has no score.
        p: Friedman's test that all methods rank alike, by permutation within blocks; NaN where n < 2.
        critical_difference: average ranks further apart than this differ (Nemenyi, at `level`, two-sided,
            all pairs at once); NaN where n < 2.
    """

    by_block: Float[np.ndarray, "block method"]
    mean: Float[np.ndarray, " method"]
    n: int
    left_out: int
    p: float
    critical_difference: float
    level: float


def rank_methods(
    scores: Float[np.ndarray, "block method"], *, level: float = 0.05, seed: int = 0, draws: int = 10_000
) -> Ranks:
    """Rank methods within each block by their scores, the highest first.

    A block with a NaN is left out and counted, so that all average ranks are over the same blocks.
    """
    blocks, methods = scores.shape
    used = ~np.isnan(scores).any(1)
    ranks = np.full(scores.shape, np.nan)
    n = int(used.sum()) if methods else 0
    if n:
        # means that are equal but for the order of their sums are ties
        ranks[used] = rankdata(-scores[used].round(12), axis=1)
    mean = ranks[used].mean(0) if n else np.full(methods, np.nan)
    enough = n >= 2 and methods >= 2
    return Ranks(
        by_block=ranks,
        mean=mean,
        n=n,
        left_out=blocks - n,
        p=_friedman(ranks[used], seed, draws) if enough else float("nan"),
        critical_difference=nemenyi(methods, n, level) if enough else float("nan"),
        level=level,
    )


def nemenyi(methods: int, blocks: int, level: float = 0.05) -> float:
    """The critical difference of average ranks (Nemenyi 1963), q √(k(k + 1) / 6N)."""
    q = float(studentized_range.ppf(1 - level, methods, np.inf)) / 2**0.5
    return q * (methods * (methods + 1) / (6 * blocks)) ** 0.5


def _friedman(ranks: Float[np.ndarray, "block method"], seed: int, draws: int) -> float:
    """P(rank sums as uneven as these) when each block's ranks are dealt out at random.

    Friedman's χ² grows with the squares of the rank sums; their distribution by permutation holds for few
    blocks and for ties too, where the χ² distribution does not.
    """
    uneven = float((ranks.sum(0) ** 2).sum())
    rng = np.random.default_rng(seed)
    dealt = rng.permuted(np.broadcast_to(ranks, (draws, *ranks.shape)), axis=-1)
    as_uneven = (dealt.sum(1) ** 2).sum(-1) >= uneven * (1 - 1e-9)
    return float((1 + as_uneven.sum()) / (1 + draws))
