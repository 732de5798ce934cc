"""Ranks against scipy, Demšar's published tables and every permutation."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats as reference

from seeing.ranks import nemenyi, rank_methods


def test_ranks_by_hand():
    scores = np.array([[0.9, 0.5, 0.7], [0.8, 0.8, 0.1], [0.3, 0.3, 0.3]])
    found = rank_methods(scores)
    assert found.by_block.tolist() == [[1, 3, 2], [1.5, 1.5, 3], [2, 2, 2]]
    assert found.mean == pytest.approx([1.5, 6.5 / 3, 7 / 3])
    assert (found.n, found.left_out) == (3, 0)


def test_means_that_differ_by_rounding_are_ties():
    assert rank_methods(np.array([[0.1 + 0.2, 0.3]])).by_block.tolist() == [[1.5, 1.5]]


def test_a_block_without_every_score_is_left_out():
    found = rank_methods(np.array([[0.9, 0.1], [np.nan, 0.2], [0.4, 0.6]]))
    assert (found.n, found.left_out) == (2, 1)
    assert found.mean.tolist() == [1.5, 1.5]
    assert np.isnan(found.by_block[1]).all()


def test_of_one_block_or_none_nothing_is_tested():
    one = rank_methods(np.array([[0.9, 0.1]]))
    assert one.mean.tolist() == [1, 2]
    assert np.isnan(one.p)
    assert np.isnan(one.critical_difference)
    none = rank_methods(np.array([[np.nan, 0.1]]))
    assert np.isnan(none.mean).all()
    assert none.n == 0
    assert np.isnan(rank_methods(np.zeros((3, 0))).p)
    assert np.isnan(rank_methods(np.zeros((3, 1))).p)


def test_p_is_the_share_of_dealings_as_uneven():
    scores = np.array([[3.0, 2, 1], [3, 1, 2], [3, 2, 1]])
    ranks = [reference.rankdata(-row) for row in scores]

    def chi(dealt):
        return reference.friedmanchisquare(*np.array(dealt).T).statistic

    every = [chi(dealt) for dealt in product(*(permutations(row) for row in ranks))]
    exact = np.mean(np.array(every) >= chi(ranks) - 1e-9)
    assert rank_methods(scores).p == pytest.approx(exact, abs=0.015)


def test_p_of_many_blocks_is_friedman_s():
    scores = np.random.default_rng(5).normal(loc=[0, 0.1, 0.2, 0.4], size=(60, 4))
    chi_square = reference.friedmanchisquare(*scores.T).pvalue
    assert 0.005 < chi_square < 0.5
    assert rank_methods(scores).p == pytest.approx(chi_square, abs=0.02)


@pytest.mark.parametrize(
    ("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (7, 2.949), (10, 3.164)]
)
def test_nemenyi_is_that_of_demsar_s_table(methods, q):
    """Demšar 2006, table 5a: critical values at 0.05."""
    assert nemenyi(methods, 14) == pytest.approx(q * (methods * (methods + 1) / 84) ** 0.5, rel=3e-4)


def test_nemenyi_s_worked_example():
    """Demšar 2006, section 3.2.4: four classifiers, 14 data sets, critical difference 1.25."""
    assert nemenyi(4, 14) == pytest.approx(1.25, abs=0.005)


def test_all_tied_is_no_finding():
    assert rank_methods(np.ones((5, 3))).p == 1.0
