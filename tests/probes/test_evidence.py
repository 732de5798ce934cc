"""The evidence probe gives scikit-learn's numbers on the rows of Hugging Face's eager kernel."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

import seeing
from seeing import edits as E
from seeing import probes
from seeing.data.samples import EvidenceSample
from seeing.metrics import Locality
from seeing.probes.attention.locality import Look, Part, scores_of
from seeing.prompt import BadPrompt
from seeing.stats import bootstrap_mean

#: Some of these pictures are oblong, and the model sees their centre.
CROPPED = "ignore:the model did not see all of the evidence"


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
    with pytest.warns(UserWarning, match="did not see all of the evidence of 1 of 6 samples"):
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


@pytest.mark.filterwarnings(CROPPED)
def test_a_sample_alone_gives_what_it_gives_among_others(random, mixed, found):
    alone = probes.evidence(random, mixed[2])
    assert alone.n == 1
    assert alone.ids == (mixed[2].id,)
    torch.testing.assert_close(alone.layers.auroc, found.samples.auroc[2], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings(CROPPED)
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


@pytest.mark.filterwarnings(CROPPED)
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


# ---- other rows, other labels -----------------------------------------------------------------------------


def aurocs(labels, rows):
    """scikit-learn's AUROC of each row of (layer, head, token)."""
    return np.array([[roc_auc_score(labels, head) for head in layer] for layer in rows])


def overlaps(sample, least):
    """Which of the 64 tokens of a 112 × 112 picture have at least this share of their area on the box."""
    (a, b, c, d), found = sample.boxes[0], []
    for x0, y0 in ((14 * col, 14 * row) for row in range(8) for col in range(8)):
        x1, y1 = x0 + 14, y0 + 14
        wide, high = min(x1, c) - max(x0, a), min(y1, d) - max(y0, b)
        found.append(max(wide, 0) * max(high, 0) / ((x1 - x0) * (y1 - y0)) >= least - 1e-9)
    return np.array(found)


@pytest.mark.parametrize(("rule", "least"), [("half", 0.5), ("all", 1.0)])
def test_the_rule_says_which_tokens_are_evidence(random, bare, crowded, rule, least):
    # 40 × 40 pixels from (10, 5) on: of the tokens of 14 pixels some are on it wholly, some by half
    sample = replace(crowded[0], boxes=((10, 5, 50, 45),))
    labels = overlaps(sample, least)
    assert len({labels.sum(), overlaps(sample, 1e-6).sum(), overlaps(sample, 0.5).sum()}) > 1
    rows = bare.image_rows(sample.image, sample.question)
    given = probes.evidence(random, sample, rule=rule)
    np.testing.assert_allclose(given.auroc, aurocs(labels, rows), atol=1e-6)


def test_a_box_that_covers_no_token_by_the_rule_is_left_out(random, crowded):
    small = replace(crowded[0], boxes=((30, 30, 40, 40),))
    with pytest.raises(ValueError, match="rule 'all'"):
        probes.evidence(random, small, rule="all")
    assert probes.evidence(random, small).n == 1


def answer_rows(bare, sample, answer):
    """(layer, head, row, token): attention to the image of the rows that predict the answer's tokens."""
    inputs = dict(bare.inputs((sample.image, sample.question)))
    ids = torch.tensor([bare.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        rows = torch.cat(bare.model(**inputs, output_attentions=True).attentions).double().numpy()
    return rows[:, :, 72 : 72 + ids.shape[1], 1:65]


def test_each_answer_token_is_scored_by_itself(random, bare, crowded, labels_of):
    """Answers of one and three tokens in one batch; a sample counts with the mean of its rows."""
    samples = [replace(crowded[0], answers=("7",)), replace(crowded[1], answers=("red blue 7",))]
    given = probes.evidence(random, samples, queries="answer", answers="given")
    heads, layers = [], []
    for row, sample in enumerate(samples):
        rows, labels = answer_rows(bare, sample, sample.answers[0]), labels_of(sample)
        heads.append(np.mean([aurocs(labels, rows[:, :, token]) for token in range(rows.shape[2])], 0))
        each = [[roc_auc_score(labels, one) for one in layer] for layer in rows.mean(1)]
        np.testing.assert_allclose(given.tokens.auroc[row, :, : len(each[0])], each, atol=1e-6)
        assert given.tokens.auroc[row, :, len(each[0]) :].isnan().all()
        layers.append(np.mean(each, 1))
    np.testing.assert_allclose(given.auroc, np.mean(heads, 0), atol=1e-6)
    np.testing.assert_allclose(given.samples.auroc, layers, atol=1e-6)
    assert given.tokens.auroc.shape == (2, 6, 3)


def test_rows_may_be_positions_or_a_span(random, bare, crowded, labels_of):
    sample = crowded[0]
    rows, labels = bare.attention(sample.image, sample.question)[..., 1:65], labels_of(sample)
    given = probes.evidence(random, sample, queries=[68])
    np.testing.assert_allclose(given.auroc, aurocs(labels, rows[:, :, 68]), atol=1e-6)
    asked = probes.evidence(random, sample, queries="question")
    truth = np.mean([aurocs(labels, rows[:, :, token]) for token in range(65, 73)], 0)
    np.testing.assert_allclose(asked.auroc, truth, atol=1e-6)


def test_a_prompts_rows_are_samples_without_a_name(random, crowded):
    prompt = random.prompts(crowded[:3])
    given = probes.evidence(random, prompt)
    assert given.ids == ("0", "1", "2")
    assert torch.equal(given.auroc, probes.evidence(random, crowded[:3]).auroc)
    with pytest.raises(ValueError, match="give samples"):
        probes.evidence(random, prompt, by_answer=True)
    with pytest.raises(BadPrompt, match="carries no answer"):
        probes.evidence(random, prompt, queries="answer")


# ---- over a data set --------------------------------------------------------------------------------------


def test_samples_are_parted_by_what_the_model_answers(trained, bare_trained, crowded):
    given = probes.evidence(trained, crowded, by_answer=True, batch_size=5)
    right = [bare_trained.answers((one.image, one.question))[0][1] == one.answers[0] for one in crowded]
    assert 0 < sum(right) < len(crowded), "all alike: nothing is parted"
    for group, wanted in ((given.correct, True), (given.wrong, False)):
        some = [one for one, good in zip(crowded, right) if good == wanted]
        alone = probes.evidence(trained, some)
        assert group.ids == alone.ids
        for metric in Locality._fields:
            torch.testing.assert_close(
                getattr(group.heads, metric), getattr(alone.heads, metric), atol=1e-6, rtol=1e-5
            )
        torch.testing.assert_close(group.samples.auroc, alone.samples.auroc, atol=1e-6, rtol=0)
    frame = given.to_frame()
    assert list(frame.columns) == ["group", "layer", "head", *Locality._fields]
    assert frame.groupby("group").size().to_dict() == {"all": 30, "correct": 30, "wrong": 30}


def test_a_group_without_a_sample_has_no_numbers(random, crowded):
    never = [replace(one, answers=("nothing that is ever said",)) for one in crowded[:3]]
    given = probes.evidence(random, never, by_answer=True)
    assert (given.correct.n, given.wrong.n) == (0, 3)
    assert given.correct.auroc.isnan().all()
    assert given.correct.samples.auroc.shape == (0, 6)
    assert torch.equal(given.wrong.auroc, given.auroc)
    drawn = [trace for trace in given.figure().data if trace.mode == "lines+markers"]
    assert [trace.name for trace in drawn] == ["wrong (n = 3)"]


def test_intervals_are_those_of_a_bootstrap_over_samples(random, crowded):
    given = probes.evidence(random, crowded)
    booted = bootstrap_mean(given.samples.auroc.T, seed=0)
    width = booted.interval.high - booted.interval.low
    low, high = given.intervals.layers.low.auroc.numpy(), given.intervals.layers.high.auroc.numpy()
    assert (abs(low - booted.interval.low) < 0.35 * width).all()
    assert (abs(high - booted.interval.high) < 0.35 * width).all()
    assert given.intervals.heads.low.auroc.shape == (6, 4)
    assert (given.intervals.heads.low.auroc < given.auroc).all()
    assert (given.auroc < given.intervals.heads.high.auroc).all()


def test_memory_need_not_grow_with_the_data(random, crowded):
    given = probes.evidence(random, (one for one in crowded), per_sample=False)
    kept = probes.evidence(random, crowded)
    assert given.samples.auroc.shape == (0, 6)
    assert given.n == 12
    assert torch.equal(given.auroc, kept.auroc)
    assert torch.equal(given.intervals.layers.low.auroc, kept.intervals.layers.low.auroc)


def test_a_ratio_without_bound_has_no_interval(random, crowded):
    """Where no attention falls off the evidence its ratio is infinite, and so is the mean."""
    tokens = [place for place, there in enumerate(overlaps(crowded[0], 1e-6)) if not there]
    blind = random.with_edits(E.Knockout(keys=[1 + place for place in tokens], layers=[2]))
    given = probes.evidence(blind, [crowded[0]])
    assert given.heads.density_ratio[2].isinf().all()
    assert given.heads.mass[2].eq(1).all()
    assert given.intervals.heads.low.density_ratio[2].isnan().all()
    assert given.intervals.heads.low.density_ratio[1].isfinite().all()
    assert (given.counts.density_ratio == 1).all()


def test_a_row_without_attention_to_the_picture_is_left_out_of_what_it_can_not_have(random, crowded):
    blind = random.with_edits(E.Knockout(keys="image", layers=[3]))
    given = probes.evidence(blind, crowded[:2])
    assert (given.heads.auroc[3] == 0.5).all()  # all tokens are tied
    assert given.heads.mass[3].isnan().all()
    assert given.counts.mass[3].eq(0).all()
    assert given.counts.auroc[3].eq(2).all()
    assert given.counts.mass[2].eq(2).all()


# ---- what a crop cut off ----------------------------------------------------------------------------------


def test_evidence_that_was_cut_off_is_told_once(random, crowded, paste):
    # 224 × 112, of which the crop sees 56 to 168: the box is seen whole, by half, or not at all
    wide = paste(crowded[1], (224, 112), (0, 0))
    boxes = {"whole": (60, 10, 80, 40), "half": (46, 10, 66, 40), "lost": (0, 10, 30, 40)}
    samples = [replace(wide, id=name, boxes=(box,)) for name, box in boxes.items()]
    with pytest.warns(UserWarning, match="did not see all") as told:
        given = probes.evidence(random, samples, batch_size=1)
    assert len(told) == 1
    assert "2 of 3 samples: half (50%), lost (0%)" in str(told[0].message)
    assert given.partly_seen == (("half", pytest.approx(0.5)), ("lost", 0.0))
    assert given.ids == ("whole", "half")
    assert dict(given.left_out)["lost"] == "no image token sees the evidence"


def test_nothing_is_told_where_all_is_seen(random, crowded):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert probes.evidence(random, crowded[:2]).partly_seen == ()


# ---- figures ----------------------------------------------------------------------------------------------


def test_the_figure_draws_layers_with_their_intervals(trained, crowded):
    given = probes.evidence(trained, crowded, by_answer=True)
    fig = given.figure(dark=True, chosen=[2])
    drawn = [trace for trace in fig.data if trace.mode == "lines+markers"]
    for trace, group in zip(drawn, (given.correct, given.wrong), strict=True):
        np.testing.assert_array_equal(trace.y, group.layers.auroc)
        np.testing.assert_array_equal(trace.customdata[:, 0], group.intervals.layers.low.auroc)
    assert "AUROC" in fig.layout.title.text
    ndcg = given.figure(metric="ndcg")
    assert "NDCG" in ndcg.layout.title.text
    assert not any(trace.name and "chance" in trace.name for trace in ndcg.data)


def test_the_map_draws_every_head(trained, crowded):
    given = probes.evidence(trained, crowded[:4])
    fig = given.figure(heads=True, metric="mass")
    (cells,) = [trace for trace in fig.data if trace.type == "heatmap"]
    np.testing.assert_array_equal(cells.z, given.heads.mass.T)
    assert "n = 4" in fig.layout.title.text


def test_looks_that_are_alike_are_scored_together_as_each_alone():
    """Labels of unequal counts, an unread layer, another length, a window and a reason among them."""
    draw = torch.Generator().manual_seed(0)

    def look(tokens, evidence, hidden=False):
        rows = torch.rand(3, 2, 1, tokens, generator=draw).softmax(-1)
        rows[1] = torch.nan
        hidable = torch.zeros(3, 1, tokens, dtype=torch.bool)
        if hidden:
            rows[0, :, 0, -2:], hidable[0, 0, -2:] = 0.0, True
        return Look((Part(rows, torch.arange(tokens) < evidence, hidable),))

    unscored = Look(reason="no evidence boxes")
    looks = [look(9, 2), look(9, 5), unscored, look(12, 1), look(9, 2, hidden=True), look(9, 1)]
    found = scores_of(looks)
    assert set(found) == {0, 1, 3, 4, 5}
    for number, scored in found.items():
        expected = looks[number].scores()
        torch.testing.assert_close(scored, expected, rtol=0, atol=1e-6, equal_nan=True)
        assert scored[:, 1].isnan().all()
        assert scored[:, [0, 2]].isfinite().all()
