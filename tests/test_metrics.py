"""Metrics against scikit-learn and hand-computed numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from seeing import metrics

RANKING = {
    "auroc": roc_auc_score,
    "average_precision": average_precision_score,
    "ndcg": lambda labels, scores: ndcg_score(labels[None], scores[None]),
}
ALL = ("auroc", "average_precision", "ndcg", "mass", "density_ratio", "pointing")


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


# ---- ranking, against scikit-learn -------------------------------------------------------------------------


@settings(deadline=None, max_examples=120)
@given(st.data(), st.integers(2, 30), st.integers(1, 6))
def test_ranking_equals_scikit_learn_with_ties(data, n, levels):
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    labels[:2] = [True, False]
    scores = np.array(data.draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))) / 3  # ties
    for name, truth in RANKING.items():
        found = getattr(metrics, name)(torch.from_numpy(scores), torch.from_numpy(labels))
        assert found.item() == pytest.approx(truth(labels, scores), abs=1e-12), name


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ranking_is_one_call_for_all_layers_and_heads(name, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 4, 200, generator=generator, dtype=torch.float64).to(dtype)  # bf16 ties
    labels = torch.rand(200, generator=generator) < 0.1
    found = getattr(metrics, name)(scores, labels)
    assert found.shape == (3, 4)
    assert found.dtype == torch.float64
    for layer in range(3):
        for head in range(4):
            truth = RANKING[name](labels.numpy(), scores[layer, head].double().numpy())
            assert found[layer, head].item() == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_every_row_may_have_labels_of_its_own(name):
    """Rows with unequal counts of evidence, one without any: each must get what it would get alone."""
    generator = torch.Generator().manual_seed(1)
    scores = (torch.rand(5, 3, 40, generator=generator) * 8).round()
    shares = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.3])[:, None, None]
    labels = torch.rand(5, 3, 40, generator=generator) < shares
    metric = getattr(metrics, name)
    found, by_sample = metric(scores, labels), metric(scores, labels[:, :1])
    assert found[0].isnan().all()
    assert not found[1:].isnan().any()
    for sample in range(5):
        for head in range(3):
            alone = metric(scores[sample, head], labels[sample, head])
            torch.testing.assert_close(found[sample, head], alone, equal_nan=True, rtol=1e-12, atol=0)
            alone = metric(scores[sample, head], labels[sample, 0])
            torch.testing.assert_close(by_sample[sample, head], alone, equal_nan=True, rtol=1e-12, atol=0)


# ---- by hand -----------------------------------------------------------------------------------------------


def test_all_metrics_by_hand():
    # ranks: evidence at 1 and 3 of four tokens
    scores, labels = torch.tensor([0.4, 0.1, 0.2, 0.3]), bools(1, 0, 1, 0)
    found = metrics.locality(scores, labels)
    assert found.auroc.item() == 0.75  # of four pairs only (0.2, 0.3) is the wrong way round
    assert found.average_precision.item() == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.ndcg.item() == pytest.approx((1 + 0.5) / (1 + 1 / np.log2(3)))
    assert found.mass.item() == pytest.approx(0.6)
    assert found.density_ratio.item() == pytest.approx(1.5)
    assert found.pointing.item() == 1.0


def test_uniform_attention_finds_nothing():
    labels = bools(1, 0, 0, 0, 0, 1, 0, 0)
    found = metrics.locality(torch.full((8,), 0.125), labels)
    assert found.auroc.item() == 0.5
    assert found.average_precision.item() == 0.25
    assert found.mass.item() == 0.25
    assert found.density_ratio.item() == 1.0
    assert found.pointing.item() == 0.25


def test_pointing_shares_a_tie():
    labels = bools(1, 0, 1, 0)
    rows = torch.tensor([[3.0, 1, 2, 0], [1, 3, 2, 0], [3, 3, 0, 0], [3, 3, 3, 0], [0, 0, 0, 0]])
    assert metrics.pointing(rows, labels).tolist() == pytest.approx([1, 0, 1 / 2, 2 / 3, 1 / 2])


def test_attention_off_and_on_the_evidence():
    labels = bools(1, 0, 0)
    rows = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.2, 0.4], [0.0, 0.0, 0.0]])
    assert metrics.mass(rows, labels).tolist() == pytest.approx([1.0, 0.0, float("nan")], nan_ok=True)
    ratio = metrics.density_ratio(rows, labels).tolist()
    assert ratio == pytest.approx([float("inf"), 0.0, float("nan")], nan_ok=True)
    # evidence takes nearly all: what is left must not drown in the rounding of the sum
    faint = metrics.density_ratio(torch.tensor([1.0, 1e-30, 1e-30]), labels)
    assert faint.item() == pytest.approx(1e30, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_locality_is_every_metric_at_once(name):
    scores = torch.rand(4, 2, 30, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(30) % 4 == 0
    torch.testing.assert_close(
        getattr(metrics.locality(scores, labels), name),
        getattr(metrics, name)(scores, labels),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("name", ALL)
def test_degenerate_samples_are_nan(name):
    scores = torch.rand(3, 6)
    assert getattr(metrics, name)(scores, torch.zeros(6, dtype=torch.bool)).isnan().all()
    assert getattr(metrics, name)(scores, torch.ones(6, dtype=torch.bool)).isnan().all()
    assert getattr(metrics, name)(scores, torch.zeros(6, dtype=torch.bool)).shape == (3,)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_scores_are_refused(name, wrong):
    scores = torch.rand(2, 6)
    scores[1, 3] = wrong
    with pytest.raises(ValueError, match="found 1 that are NaN or infinite"):
        getattr(metrics, name)(scores, torch.arange(6) < 2)


def test_negative_scores_rank_but_are_no_attention():
    scores, labels = torch.tensor([-1.0, -2.0, -3.0]), bools(1, 0, 0)
    assert metrics.auroc(scores, labels).item() == 1.0
    assert metrics.pointing(scores, labels).item() == 1.0
    for name in ("mass", "density_ratio", "locality"):
        with pytest.raises(ValueError, match="found -3"):
            getattr(metrics, name)(scores, labels)
