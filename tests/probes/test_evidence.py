"""The evidence probe gives scikit-learn's numbers on the rows of Hugging Face's eager kernel."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

import seeing
from seeing import probes
from seeing.data.samples import EvidenceSample
from seeing.metrics import Locality


def by_hand(scores, labels):
    """The metrics of one row, in the order of `Locality`."""
    on, off = scores[labels], scores[~labels]
    top = scores == scores.max()
    return [
        roc_auc_score(labels, scores),
        average_precision_score(labels, scores),
        ndcg_score([labels], [scores]),
        on.sum() / scores.sum(),
        on.mean() / off.mean(),
        labels[top].mean(),
    ]


@pytest.fixture(scope="module")
def found(random, mixed):
    return probes.evidence(random, mixed)


@pytest.fixture(scope="module")
def truth(bare, mixed, labels_of):
    """(sample, layer, mean row and heads, metric) from the bare model."""
    table = []
    for sample in mixed:
        rows, labels = bare.image_rows(sample.image, sample.question), labels_of(sample)
        rows = np.concatenate([rows.mean(1, keepdims=True), rows], axis=1)
        gaps = np.abs(rows[..., labels, None] / rows[..., None, ~labels] - 1)
        assert gaps.min() > 1e-6, "two tokens are as good as tied: rounding decides their order"
        table.append([[by_hand(row, labels) for row in layer] for layer in rows])
    return np.array(table)


@pytest.mark.parametrize("metric", Locality._fields)
def test_every_metric_is_scikit_learns_on_eager_rows(found, truth, metric):
    which = Locality._fields.index(metric)
    np.testing.assert_allclose(getattr(found.heads, metric), truth[:, :, 1:, which].mean(0), rtol=1e-4)
    np.testing.assert_allclose(getattr(found.layers, metric), truth[:, :, 0, which].mean(0), rtol=1e-4)
    np.testing.assert_allclose(getattr(found.samples, metric), truth[:, :, 0, which], rtol=1e-4)


def test_the_rows_tell_the_samples_apart(truth):
    """Or the comparison would hold whatever the labels are."""
    assert truth[..., 0].std() > 0.1
    assert (np.ptp(truth[..., 0], axis=0) > 0.05).all()


def test_a_sample_alone_gives_what_it_gives_among_others(random, mixed, found):
    alone = probes.evidence(random, mixed[2])
    assert alone.n == 1
    assert alone.ids == (mixed[2].id,)
    torch.testing.assert_close(alone.layers.auroc, found.samples.auroc[2], atol=1e-6, rtol=0)


def test_batch_size_does_not_change_numbers(random, mixed, found):
    for size in (1, 4, 100):
        other = probes.evidence(random, iter(mixed), batch_size=size)
        assert other.ids == found.ids == tuple(sample.id for sample in mixed)
        for one, two in zip((*found.heads, *found.layers), (*other.heads, *other.layers)):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_questions_of_different_length_share_a_batch(random, crowded):
    """Padding shifts positions; the numbers are those of each sample by itself."""
    longer = "what digit is on the red square on the blue circle on the green diamond ?"
    samples = [crowded[0], EvidenceSample("long", crowded[1].image, longer, ("7",), crowded[1].boxes)]
    together = probes.evidence(random, samples, batch_size=2)
    apart = probes.evidence(random, samples, batch_size=1)
    torch.testing.assert_close(together.samples.auroc, apart.samples.auroc, atol=1e-6, rtol=0)


def test_all_tied_is_chance(uniform, crowded, labels_of):
    found = probes.evidence(uniform, crowded[:3])
    shares = np.mean([labels_of(sample).mean() for sample in crowded[:3]])
    assert torch.equal(found.auroc, torch.full((6, 4), 0.5, dtype=torch.float64))
    for metric in (found.heads.average_precision, found.heads.pointing, found.heads.mass):
        np.testing.assert_allclose(metric, shares, rtol=1e-6)
    np.testing.assert_allclose(found.layers.density_ratio, 1, rtol=1e-6)
    assert [place[:2] for place in found.ranking()] == list(np.ndindex(6, 4))


def test_what_has_no_locality_is_left_out_with_its_reason(random, crowded, paste, found):
    without = EvidenceSample("no boxes", crowded[0].image, crowded[0].question, ("7",), ())
    cut_off = paste(crowded[1], (336, 112), (0, 0))  # the centre crop sees 112 to 224
    everywhere = EvidenceSample("all", crowded[0].image, crowded[0].question, ("7",), ((0, 0, 112, 112),))
    samples = [crowded[0], without, cut_off, crowded[2], everywhere]
    given = probes.evidence(random, samples, batch_size=2)
    assert given.ids == (crowded[0].id, crowded[2].id)
    assert given.n == len(given.samples.auroc) == 2
    reasons = dict(given.left_out)
    assert list(reasons) == ["no boxes", cut_off.id, "all"]
    assert "boxes" in reasons["no boxes"]
    assert "sees" in reasons[cut_off.id]
    assert "every" in reasons["all"]
    expected = probes.evidence(random, [crowded[0], crowded[2]])
    torch.testing.assert_close(given.auroc, expected.auroc, atol=1e-6, rtol=0)


def test_nothing_countable_is_an_error_that_says_why(random, crowded):
    without = EvidenceSample("bald", crowded[0].image, crowded[0].question, ("7",), ())
    with pytest.raises(ValueError, match="bald: no evidence boxes"):
        probes.evidence(random, [without])
    with pytest.raises(ValueError, match="no samples"):
        probes.evidence(random, [])


def test_what_is_no_sample_is_refused(random, crowded):
    with pytest.raises(TypeError, match="EvidenceSample"):
        probes.evidence(random, "crowded")
    with pytest.raises(TypeError, match="EvidenceSample"):
        probes.evidence(random, [(crowded[0].image, crowded[0].question)])
    with pytest.raises(ValueError, match="batch_size"):
        probes.evidence(random, crowded, batch_size=0)


def test_progress_is_told_after_each_batch(random, crowded):
    told = []
    probes.evidence(random, crowded[:5], batch_size=2, progress=told.append)
    assert told == [2, 4, 5]


def test_the_template_is_how_the_question_is_asked(random, bare, crowded, labels_of):
    sample = crowded[0]
    given = probes.evidence(random, sample, template="the {question} is")
    rows = bare.image_rows(sample.image, f"the {sample.question} is").mean(1)
    truth = [roc_auc_score(labels_of(sample), row) for row in rows]
    np.testing.assert_allclose(given.layers.auroc, truth, atol=1e-6)
    plain = probes.evidence(random, sample)
    assert not np.allclose(given.layers.auroc, plain.layers.auroc)


def test_a_planted_head_is_named_first(planted, squares):
    found = probes.evidence(planted, squares(16))
    (layer, head, score), second, *_ = found.ranking()
    assert (layer, head) == (2, 1)
    assert score > 0.999
    assert second[2] < 0.98
    assert score == found.auroc[2, 1]
    assert found.ranking(below=2)[0] != (2, 1, score)
    assert {layer for layer, *_ in found.ranking(below=2)} == {0, 1}
    assert found.heads.mass[2, 1] > 0.99


def test_the_ranking_goes_down(found):
    ranking = found.ranking()
    assert len(ranking) == len({place[:2] for place in ranking}) == 24
    assert [score for *_, score in ranking] == sorted((score for *_, score in ranking), reverse=True)
    assert all(math.isclose(found.auroc[layer, head], score) for layer, head, score in ranking)


def test_to_frame_holds_heads_and_mean_rows(found):
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "head", *Locality._fields]
    assert len(frame) == 6 * 5
    at = frame.set_index(["layer", "head"])
    for metric in Locality._fields:
        assert at.loc[(3, 2), metric] == getattr(found.heads, metric)[3, 2]
        assert at.loc[(3, -1), metric] == getattr(found.layers, metric)[3]


def test_half_precision_models_are_read_too(crowded, pair):
    model, processor = pair
    half = seeing.load((copy.deepcopy(model).to(torch.bfloat16), processor), check=False)
    found = probes.evidence(half, crowded[:2])
    assert found.auroc.isfinite().all()
    shares = probes.allocation(half, half.prompt(crowded[0]))
    torch.testing.assert_close(shares.mass[:, :3].sum(1), torch.ones(1, 6, 4), atol=1e-3, rtol=0)
