"""How sure are we? Intervals and tests for the few statistics that this toolkit reports.

Accuracies get a Wilson interval, two methods on the same samples get McNemar's exact test (graded scores: a
permutation test) and a paired interval of their difference, and means over samples get a bootstrap. Many
comparisons get Holm's correction. Nothing here knows what was measured.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest

Numbers = Collection  # a list, tuple, array, tensor or pandas column
PerRow = float | Float[np.ndarray, "*batch"]


class Interval(NamedTuple):
    """A confidence interval; both ends are arrays when the estimate is one."""

    low: PerRow
    high: PerRow


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (scipy's `proportion_ci`). ValueError for wrong counts."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 ≤ successes ≤ n and n ≥ 1, found {successes} of {n}")
    _check_level(level)
    low, high = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class McNemar:
    """Two methods on the same samples: what the second one fixed and what it broke.

    `p` is exact and two-sided: under the null hypothesis each sample on which they differ is a fair coin.
    """

    fixed: int
    broken: int
    n: int
    p: float

    @property
    def difference(self) -> float:
        """Accuracy of the second method − accuracy of the first."""
        return (self.fixed - self.broken) / self.n


def mcnemar(base: Numbers, other: Numbers) -> McNemar:
    """McNemar's exact test of `other` against `base`, both one 0/1 or bool a sample, in the same order.

    Without a sample on which they differ p is 1. Raises ValueError for no samples, unequal lengths, and
    values that are not 0 or 1.
    """
    base, other = _pair(base, other)
    if not (_is_binary(base) and _is_binary(other)):
        raise ValueError(
            "expected right/wrong as bools or 0/1, found other values: McNemar's test compares"
            " outcomes, for graded scores use paired_difference"
        )
    fixed, broken = int(((base == 0) & (other == 1)).sum()), int(((base == 1) & (other == 0)).sum())
    p = float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0
    return McNemar(fixed, broken, len(base), p)


@dataclass(frozen=True)
class Difference:
    """The mean of other − base over paired samples, its interval, and the method that gave the interval."""

    mean: float
    interval: Interval
    n: int
    method: str


def paired_difference(base: Numbers, other: Numbers, level: float = 0.95, seed: int = 0) -> Difference:
    """Mean difference of two methods on the same samples, with a confidence interval.

    0/1 outcomes: Newcombe's hybrid score interval for paired proportions with his correction of the
    correlation (Newcombe 1998, Statistics in Medicine 17:2635–2650, method 10); it holds its level at small n
    and at accuracies near 0 or 1, where a Wald or bootstrap interval is too short. Graded scores, such as F1:
    the paired bootstrap of `bootstrap_mean` on the differences (which is where `seed` counts).

    Raises ValueError for no samples, unequal lengths, and values that are not finite.
    """
    _check_level(level)
    base, other = _pair(base, other)
    mean = float(other.mean() - base.mean())
    if _is_binary(base) and _is_binary(other):
        return Difference(mean, _newcombe(base, other, level), len(base), "Newcombe 1998, method 10")
    booted = bootstrap_mean(other - base, seed, level)
    return Difference(mean, booted.interval, len(base), "paired percentile bootstrap")


def _newcombe(base: np.ndarray, other: np.ndarray, level: float) -> Interval:
    n = len(base)
    both, only_other = int((base * other).sum()), int((other * (1 - base)).sum())
    only_base, neither = int((base * (1 - other)).sum()), int(((1 - base) * (1 - other)).sum())
    p1, p2 = (both + only_other) / n, (both + only_base) / n
    low1, high1 = wilson(both + only_other, n, level)
    low2, high2 = wilson(both + only_base, n, level)
    margins = (both + only_other) * (only_base + neither) * (both + only_base) * (only_other + neither)
    excess = both * neither - only_other * only_base
    # a positive correlation shortens the interval: it is shrunk first by the continuity correction n / 2
    excess = max(excess - n / 2, 0.0) if excess > 0 else excess
    phi = excess / margins**0.5 if margins else 0.0
    down = ((p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2) ** 0.5
    up = ((high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2) ** 0.5
    return Interval(p1 - p2 - down, p1 - p2 + up)


@dataclass(frozen=True)
class BootstrapMean:
    """Means over samples with percentile intervals; per row `n` samples counted and `dropped` were NaN."""

    mean: PerRow
    interval: Interval
    n: int | Int[np.ndarray, "*batch"]
    dropped: int | Int[np.ndarray, "*batch"]


def bootstrap_mean(values: Numbers, seed: int, level: float = 0.95, resamples: int = 2000) -> BootstrapMean:
    """Mean over the last axis with a percentile bootstrap interval (Efron 1979).

    Args:
        values: (*batch, n); a batch is, say, layers and heads. NaN, a degenerate sample, is left out and
            counted.
        seed: of the resampling. Rows that miss the same samples are resampled alike, so their
            intervals can be compared, and each row gets what it would get alone.

    Returns: fields of shape (*batch), plain numbers for one row. A row without a sample is NaN with n = 0.
    Raises ValueError for no samples at all and for infinite values.
    """
    _check_level(level)
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"expected samples along the last axis, found the shape {values.shape}")
    if np.isinf(values).any():
        raise ValueError(f"expected finite values or NaN, found {int(np.isinf(values).sum())} infinite ones")
    rows = values.reshape(-1, values.shape[-1])
    used = ~np.isnan(rows)
    mean, low, high = np.full((3, len(rows)), np.nan)
    patterns, which = np.unique(used, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        same = which.ravel() == number
        if pattern.any():
            kept = rows[same][:, pattern]
            mean[same] = kept.mean(1)
            low[same], high[same] = _percentiles(kept, seed, level, resamples)
    fields = (field.reshape(values.shape[:-1]) for field in (mean, low, high, used.sum(1), (~used).sum(1)))
    mean, low, high, n, dropped = (field if field.ndim else field.item() for field in fields)
    return BootstrapMean(mean, Interval(low, high), n, dropped)


def _percentiles(rows: np.ndarray, seed: int, level: float, resamples: int) -> np.ndarray:
    rng, n = np.random.default_rng(seed), rows.shape[1]
    means = np.empty((resamples, len(rows)))
    block = max(1, 2**22 // n)  # so many resamples at a time that their counts stay near 32 MB
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        draws = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        # how often each sample was drawn: one matrix product then gives the means of all rows
        counts = np.bincount(draws.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = counts.astype(np.float64) @ rows.T / n
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)


# All signs are tried up to so many differences (2¹⁴ of them); drawn beyond.
EXACT_UP_TO = 14


def permutation_p(base: Numbers, other: Numbers, seed: int = 0, draws: int = 10_000) -> float:
    """Two-sided p of the mean difference of graded scores on the same samples, by permutation (Fisher 1935).

    Under the null hypothesis each sample's two scores could as well have been swapped: p is the share of
    swaps with a mean difference at least as large. Every swap is tried where few samples differ, else
    `draws` of them; p is then at least 1 / (draws + 1). For 0/1 outcomes it is McNemar's exact test.
    """
    base, other = _pair(base, other)
    differences = (other - base).round(12)
    differences = differences[differences != 0]
    least = abs(differences.sum()) * (1 - 1e-9)  # as large but for rounding is as large
    if len(differences) <= EXACT_UP_TO:
        swaps = np.indices((2,) * len(differences)).reshape(len(differences), 2 ** len(differences)).T
        return float((np.abs(differences.sum() - 2 * swaps @ differences) >= least).mean())
    rng, as_large = np.random.default_rng(seed), 0
    block = max(1, 2**22 // len(differences))  # so many draws at a time take 32 MB
    for start in range(0, draws, block):
        size = min(block, draws - start)
        bits = rng.integers(256, size=(size, -(-len(differences) // 8)), dtype=np.uint8)
        swaps = np.unpackbits(bits, axis=1, count=len(differences)).astype(np.float64)
        as_large += int((np.abs(differences.sum() - 2 * swaps @ differences) >= least).sum())
    return (1 + as_large) / (1 + draws)


def holm(p: Numbers) -> Float[np.ndarray, " test"]:
    """p values of several tests, adjusted by Holm's step-down correction (Holm 1979).

    Those below a level are then false with a probability of at most that level for any of them. NaN, a test
    that could not be made, stays NaN and does not count.
    """
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    stepped = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def _pair(base: Numbers, other: Numbers) -> tuple[np.ndarray, np.ndarray]:
    base, other = np.asarray(base, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if base.ndim != 1 or base.shape != other.shape or not len(base):
        raise ValueError(
            f"expected n ≥ 1 values each for the same samples, found the shapes {base.shape} and"
            f" {other.shape}: give both methods every sample, in the same order"
        )
    if not (np.isfinite(base).all() and np.isfinite(other).all()):
        raise ValueError("expected finite values, found NaN or infinity: drop the pair from both lists")
    return base, other


def _is_binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"expected a confidence level between 0 and 1, such as 0.95, found {level}")
