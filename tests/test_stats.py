"""Intervals and tests against published examples, exact enumeration, scipy and simulation."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy import stats as reference

from seeing.stats import (
    EXACT_UP_TO,
    Interval,
    bootstrap_mean,
    holm,
    mcnemar,
    paired_difference,
    permutation_p,
    wilson,
)


def outcomes(both, only_base, only_other, neither):
    """The 0/1 outcomes of two methods with these counts, in that order."""
    base = [1] * both + [1] * only_base + [0] * only_other + [0] * neither
    other = [1] * both + [0] * only_base + [1] * only_other + [0] * neither
    return base, other


# ---- wilson ------------------------------------------------------------------------------------------------


def test_wilson_is_where_the_score_test_turns():
    """Wilson's limits are the p for which |successes/n − p| is exactly z standard errors."""
    for successes, n, level in [(81, 263, 0.95), (1, 29, 0.95), (50, 100, 0.9)]:
        z = reference.norm.ppf((1 + level) / 2)
        for limit in wilson(successes, n, level):
            assert abs(successes / n - limit) == pytest.approx(z * (limit * (1 - limit) / n) ** 0.5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, Stat Med 17:857


def test_wilson_at_the_ends():
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)
    assert isinstance(wilson(3, 4), Interval)
    for successes, n in [(0, 0), (5, 4), (-1, 4)]:
        with pytest.raises(ValueError, match=f"found {successes} of {n}"):
            wilson(successes, n)
    with pytest.raises(ValueError, match="confidence level"):
        wilson(1, 2, 95)


# ---- mcnemar -----------------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    result = mcnemar(*outcomes(both=30, only_base=2, only_other=8, neither=5))
    assert (result.fixed, result.broken, result.n) == (8, 2, 45)
    assert result.p == pytest.approx(2 * (1 + 10 + 45) / 2**10)  # two tails of ten fair coins
    assert result.difference == pytest.approx(6 / 45)
    assert mcnemar(*outcomes(0, 8, 2, 0)).p == result.p
    assert mcnemar(*outcomes(0, 8, 2, 0)).difference == -0.6
    assert mcnemar([1, 0], [1, 0]).p == 1.0
    assert mcnemar([True, False], np.array([False, True])).p == 1.0


def test_mcnemar_p_is_the_share_of_coin_throws_as_uneven():
    fixed, broken = 6, 1
    as_uneven = [abs(2 * sum(coins) - 7) >= fixed - broken for coins in product([0, 1], repeat=7)]
    assert mcnemar(*outcomes(3, broken, fixed, 1)).p == pytest.approx(np.mean(as_uneven))


@pytest.mark.parametrize("ask", [mcnemar, paired_difference])
@pytest.mark.parametrize(
    ("base", "other", "message"),
    [
        ([], [], r"\(0,\)"),
        ([1, 0], [1], r"\(2,\) and \(1,\)"),
        ([[1, 0]], [[1, 0]], r"\(1, 2\)"),
        ([1, float("nan")], [1, 0], "drop the pair"),
    ],
)
def test_pairs_that_are_none(ask, base, other, message):
    with pytest.raises(ValueError, match=message):
        ask(base, other)


def test_mcnemar_needs_outcomes():
    with pytest.raises(ValueError, match="paired_difference"):
        mcnemar([0.5, 1.0], [1.0, 1.0])


# ---- paired difference -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("both", "only_other", "only_base", "neither", "low", "high"),
    [
        (36, 12, 2, 0, 0.0569, 0.3404),
        (18, 12, 2, 18, 0.0562, 0.3290),
        (53, 0, 0, 1, -0.0729, 0.0729),
    ],
)
def test_newcombe_s_own_examples(both, only_other, only_base, neither, low, high):
    """Newcombe 1998, Statistics in Medicine 17:2635, the examples of method 10."""
    base, other = outcomes(both, only_base, only_other, neither)
    result = paired_difference(base, other)
    assert result.interval == pytest.approx((low, high), abs=1e-4)
    assert result.mean == pytest.approx((only_other - only_base) / len(base))
    assert result.n == len(base)
    assert "method 10" in result.method
    swapped = paired_difference(other, base)
    assert swapped.interval == pytest.approx((-high, -low), abs=1e-4)


def test_a_newcombe_interval_holds_its_level():
    """Exact coverage, by enumeration of every table of n = 12 pairs, for three ways to differ."""
    n = 12
    for p in ([0.5, 0.05, 0.25, 0.2], [0.8, 0.05, 0.1, 0.05], [0.25, 0.25, 0.25, 0.25]):
        covered = 0.0
        for counts in product(range(n + 1), repeat=3):
            if sum(counts) <= n:
                counts = (*counts, n - sum(counts))
                low, high = paired_difference(*outcomes(*counts)).interval
                inside = low <= p[2] - p[1] <= high
                covered += inside * reference.multinomial.pmf(counts, n, p)
        assert 0.93 < covered < 0.995


def test_graded_scores_get_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    other = np.clip(base + rng.normal(0.05, 0.1, 200), 0, 1)
    result = paired_difference(base, other, seed=3)
    assert result.mean == pytest.approx((other - base).mean())
    assert result.interval == bootstrap_mean(other - base, seed=3).interval
    assert "bootstrap" in result.method
    unpaired = (other.var() / 200 + base.var() / 200) ** 0.5 * 1.96
    assert result.interval.high - result.mean < unpaired / 2  # pairing is what makes it short


# ---- bootstrap ---------------------------------------------------------------------------------------------


def test_the_bootstrap_is_scipy_s():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    ours = bootstrap_mean(values, seed=1, level=0.9, resamples=20000)
    theirs = reference.bootstrap(
        (values,), np.mean, n_resamples=20000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.interval == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert (ours.n, ours.dropped) == (60, 0)
    assert isinstance(ours.interval.low, float)


def test_the_bootstrap_of_two_samples_is_enumerable():
    # the mean of two draws from {0, 1} is 0, ½, 1 with shares ¼, ½, ¼
    assert bootstrap_mean([0.0, 1.0], seed=0).interval == (0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], seed=0, level=0.4).interval == (0.5, 0.5)
    assert bootstrap_mean([3.0], seed=0).interval == (3.0, 3.0)


def test_each_row_gets_what_it_would_get_alone():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 3, 40))
    values[:, :, 7] = np.nan  # a sample that is degenerate everywhere
    values[1, 2, :5] = np.nan  # and some that are so in one row
    values[0, 1] = np.nan
    result = bootstrap_mean(values, seed=4)
    assert result.mean.shape == result.interval.low.shape == result.n.shape == (2, 3)
    assert result.dropped.tolist() == [[1, 40, 1], [1, 1, 6]]
    assert (result.n + result.dropped == 40).all()
    assert np.isnan(result.mean[0, 1])
    assert np.isnan(result.interval.high[0, 1])
    for row in [(0, 0), (1, 1), (1, 2)]:
        alone = bootstrap_mean(values[row][~np.isnan(values[row])], seed=4)
        assert result.mean[row] == pytest.approx(alone.mean)
        assert (result.interval.low[row], result.interval.high[row]) == pytest.approx(alone.interval)
    other_seed = bootstrap_mean(values[0, 0], seed=5)
    assert (result.interval.low[0, 0], result.interval.high[0, 0]) != other_seed.interval


def test_long_data_are_resampled_in_blocks():
    values = np.random.default_rng(0).normal(size=(2, 3000))
    result = bootstrap_mean(values, seed=0, resamples=3000)  # 9 million counts: three blocks
    half = 1.96 / 3000**0.5
    assert result.interval.low == pytest.approx(values.mean(1) - half, abs=0.004)
    assert result.interval.high == pytest.approx(values.mean(1) + half, abs=0.004)


def test_the_bootstrap_takes_tensors_and_refuses_nothing_to_resample():
    assert bootstrap_mean(torch.tensor([1.0, 2.0, 3.0]), seed=0).mean == 2.0
    assert bootstrap_mean([True, False], seed=0).mean == 0.5
    with pytest.raises(ValueError, match=r"found the shape \(3, 0\)"):
        bootstrap_mean(np.zeros((3, 0)), seed=0)
    with pytest.raises(ValueError, match="1 infinite"):
        bootstrap_mean([1.0, float("inf")], seed=0)
    with pytest.raises(ValueError, match="confidence level"):
        bootstrap_mean([1.0], seed=0, level=1.0)


# ---- permutation_p -----------------------------------------------------------------------------------------


def swapped(base, other):
    """p by swapping every subset of samples, as the null hypothesis has it."""
    differences = np.subtract(other, base)
    observed = abs(differences.sum())
    subsets = [set(s) for k in range(len(base) + 1) for s in combinations(range(len(base)), k)]
    sums = [abs(sum(-d if i in s else d for i, d in enumerate(differences))) for s in subsets]
    return np.mean([total >= observed - 1e-9 for total in sums])


@pytest.mark.parametrize("seed", range(4))
def test_permutation_p_is_the_share_of_swaps_as_large(seed):
    base, other = np.random.default_rng(seed).choice([0, 0.25, 0.4, 2 / 3, 1], size=(2, 10))
    assert permutation_p(base, other) == pytest.approx(swapped(base, other))


def test_permutation_p_of_outcomes_is_mcnemar_s():
    small = outcomes(both=30, only_base=2, only_other=8, neither=5)
    assert permutation_p(*small) == pytest.approx(mcnemar(*small).p)
    many = outcomes(both=100, only_base=60, only_other=85, neither=20)
    assert permutation_p(*many) == pytest.approx(mcnemar(*many).p, abs=0.007)


def test_permutation_p_drawn_is_near_the_one_that_was_counted():
    """Beyond the exact limit: one sample more, whose difference is too small to matter."""
    rng = np.random.default_rng(1)
    base, other = rng.random((2, EXACT_UP_TO))
    exact = permutation_p(base, other)
    drawn = permutation_p([*base, 0.0], [*other, 1e-10])
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.015)
    assert permutation_p([*base, 0.0], [*other, 1e-10]) == drawn
    assert permutation_p([*base, 0.0], [*other, 1e-10], seed=1) != drawn


def test_permutation_p_at_the_ends():
    assert permutation_p([0.3, 0.7], [0.3, 0.7]) == 1.0
    assert permutation_p([0.1] * 5, [0.2] * 5) == pytest.approx(2 / 2**5)
    assert permutation_p([0.1] * 60, [0.2] * 60) == pytest.approx(1 / 10_001)
    with pytest.raises(ValueError, match="drop the pair"):
        permutation_p([0.1, np.nan], [0.1, 0.2])


def test_permutation_p_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    found = [permutation_p(*rng.random((2, 12))) for _ in range(200)]
    assert reference.kstest(found, "uniform").pvalue > 0.01


# ---- holm --------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    """Worked by hand: 4 × 0.005, 3 × 0.01, 2 × 0.03, 1 × 0.04 (but no less than the one before)."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0


def test_holm_leaves_out_tests_that_were_not_made():
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)


def test_holm_lies_between_no_correction_and_bonferroni_s():
    p = np.random.default_rng(0).random(20) ** 3
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(20 * p, 1)).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
