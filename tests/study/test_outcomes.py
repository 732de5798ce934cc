"""What is collected, sample by sample, is what the bare model answers and where its eager rows look."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from seeing.maps import Window, window_tokens
from seeing.methods import Base, RandomAttention, SecondLook
from seeing.probes.reading import read_rows
from seeing.study.outcomes import Looked, Outcomes, collect, look

HEADS = {1: [0, 2], 3: [1]}


@pytest.fixture(scope="module")
def methods():
    return {"base": Base(), "second-look": SecondLook(HEADS), "random": RandomAttention()}


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def outcomes(random, mixed, methods, told):
    return collect(random, iter(mixed), methods, HEADS, batch_size=4, progress=told.append)


def test_samples_and_answers_keep_their_order(outcomes, mixed, methods):
    assert [sample.id for sample in outcomes.samples] == [sample.id for sample in mixed]
    assert list(outcomes.answers) == list(methods)
    assert {len(given) for given in outcomes.answers.values()} == {len(mixed)}
    assert len(outcomes.looked) == len(mixed)


def test_base_is_the_bare_model(outcomes, bare, mixed):
    truth = bare.answers(*[(sample.image, sample.question) for sample in mixed])
    assert outcomes.answers["base"] == [text for _, text, _ in truth]
    np.testing.assert_allclose(outcomes.logprobs["base"], [sum(one[2]) for one in truth], atol=1e-3)


def test_each_method_answers_for_itself(outcomes, random, mixed, methods):
    for name, method in methods.items():
        alone = [method.answer(random, random.prompt(sample)) for sample in mixed]
        assert outcomes.answers[name] == [str(answer) for answer in alone]
        np.testing.assert_allclose(outcomes.logprobs[name], [answer.logprob for answer in alone], atol=1e-3)
    assert outcomes.logprobs["second-look"] != outcomes.logprobs["base"]


def test_progress_counts_answers(outcomes, told):
    assert told == [4, 8, 12, 14, 16, 18]


def test_where_the_model_looked_is_where_its_eager_rows_are(outcomes, bare, mixed, labels_of):
    seen = []
    for looked, sample in zip(outcomes.looked, mixed):
        attention = bare.attention(sample.image, sample.question)[:, :, -1]
        rows, labels = attention[:, :, 1:65], labels_of(sample)
        truth = [roc_auc_score(labels, row) for row in rows.mean(1)]
        np.testing.assert_allclose(looked.auroc, truth, atol=1e-6)
        np.testing.assert_allclose(looked.heat, (rows[1, 0] + rows[1, 2] + rows[3, 1]) / 3, atol=1e-6)
        segments = {
            "image": rows,
            "question": attention[..., 65:],
            "evidence": rows[..., labels],
            "non-evidence": rows[..., ~labels],
        }
        for segment, some in segments.items():
            rapt = (some.mean(-1) / attention.mean(-1)).mean(1)
            np.testing.assert_allclose(looked.rapt[segment], rapt, rtol=1e-4)
        inside = looked.region.mask((8, 8)).ravel()
        assert inside.sum() == 4
        assert looked.seen == (labels[inside].mean() >= 0.5)
        seen.append(looked.seen)
    assert outcomes.to_frame().query("method == 'base'")["seen"].tolist() == seen


def test_the_region_is_the_one_that_a_second_look_boosts(trained, crowded):
    prompt = trained.prompts(crowded)
    boost = SecondLook(HEADS).edit(trained, prompt)
    for row, looked in enumerate(look(read_rows(trained, prompt), HEADS)):
        grid = prompt.grids[row]
        assert list(boost.keys.rows[row]) == grid.positions[window_tokens(grid, looked.region)].tolist()


def test_a_layer_without_heads_stands_for_all_of_them(random, crowded):
    reading = read_rows(random, random.prompts(crowded[:2]))
    for some, every in zip(look(reading, {2: []}), look(reading, {2: [0, 1, 2, 3]})):
        np.testing.assert_allclose(some.heat, every.heat, atol=1e-7)
        assert some.region == every.region


def test_seen_means_that_half_of_the_region_is_evidence(planted, squares):
    """The planted head looks at a white square of 2 × 2 tokens; the boxes say how much of it is evidence."""
    sample = next(one for one in squares(8) if min(one.boxes[0]) > 0 and max(one.boxes[0]) < 112)
    x0, y0, x1, y1 = sample.boxes[0]
    boxes = {
        (x0, y0, x1, y1): True,
        (x0, y0, x1, y0 + 14): True,
        (x0, y0, x0 + 14, y0 + 14): False,
        (x0 - 14, y0 - 14, x0, y0): False,
    }
    for box, seen in boxes.items():
        prompt = planted.prompt(replace(sample, boxes=(box,)))
        looked = look(read_rows(planted, prompt), {2: [1]})[0]
        assert looked.region == Window(int(y0) // 14, int(x0) // 14, 2, 2)
        assert looked.seen is seen


def test_the_frame_has_a_row_for_each_sample_and_method(outcomes, mixed):
    frame = outcomes.to_frame()
    first = [
        "sample",
        "method",
        "answer",
        "correct",
        "truth",
        "question",
        "logprob",
        "seen",
        "evidence_auroc",
    ]
    assert list(frame.columns)[:9] == first
    assert len(frame) == 3 * len(mixed)
    assert not frame.duplicated(["sample", "method"]).any()
    row = frame[(frame["sample"] == mixed[3].id) & (frame["method"] == "second-look")].iloc[0]
    assert row["answer"] == outcomes.answers["second-look"][3]
    assert row["logprob"] == outcomes.logprobs["second-look"][3]
    assert row["truth"] == mixed[3].answers[0]
    assert row["question"] == mixed[3].question
    assert row["evidence_auroc"] == outcomes.looked[3].auroc.max()
    assert row["meta_colour"] == mixed[3].meta["colour"]
    assert row["meta_prior"] == mixed[3].meta["prior"]
    assert "meta_scene" not in frame


def test_correct_is_exact_match_after_normalisation(mixed):
    samples = [replace(sample, answers=("7", "seven")) for sample in mixed]
    answers = ["7", "Seven.", "the 7", "77", "", "7 7"]
    nowhere = Looked(np.zeros(6), {}, np.zeros(64), Window(0, 0, 2, 2), False)
    given = Outcomes(samples, [nowhere] * 6, {"base": answers}, {"base": [0.0] * 6})
    assert given.correct("base").tolist() == [True, True, True, False, False, False]
    assert given.to_frame()["correct"].tolist() == [True, True, True, False, False, False]
