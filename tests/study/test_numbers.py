"""The numbers of the demo, from outcomes that were made up so that each can be counted by hand."""

import math

import numpy as np
import pytest

from seeing.data.plates import plates
from seeing.maps import Window
from seeing.methods import Base, RandomAttention, SecondLook
from seeing.study.demo import CHIEF, Entry, curves, rule, table, wrong_seen
from seeing.study.outcomes import Looked, Outcomes

# One column a sample: right (1) or wrong (0) by method, and whether the region lies on the evidence.
BASE = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
AFTER = [1, 1, 0, 1, 1, 1, 1, 1, 0, 1]
RANDOM = [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
SEEN = [1, 0, 0, 0, 1, 1, 0, 1, 0, 1]

ENTRIES = {
    "base": Entry(Base(), "nothing", "nothing"),
    CHIEF: Entry(SecondLook({0: [1]}), "own", "attention"),
    "random": Entry(RandomAttention(), "random", "attention"),
}


def outcomes_of(base=BASE, after=AFTER, other=RANDOM, seen=SEEN):
    samples = plates("crowded", len(base))

    def say(right):
        truth = [sample.answers[0] for sample in samples]
        return [one if hit else str((int(one) + 1) % 10) for one, hit in zip(truth, right)]

    def looked(place, on):
        auroc = np.array([0.5, 0.6 + place / 100, float(place % 2)])
        rapt = {
            segment: np.array([place, 2.0 * place, factor])
            for factor, segment in enumerate(("image", "question", "evidence", "non-evidence"))
        }
        return Looked(auroc, rapt, np.zeros(64), Window(0, 0, 2, 2), bool(on))

    answers = {"base": say(base), CHIEF: say(after), "random": say(other)}
    places = [looked(place, on) for place, on in enumerate(seen)]
    return Outcomes(samples, places, answers, {name: [0.0] * len(base) for name in answers})


def test_the_table_counts_fixed_and_broken():
    base, after, other = table(outcomes_of(), ENTRIES)
    assert (base.method, base.n, base.accuracy, base.delta) == ("base", 10, 0.4, None)
    assert (after.accuracy, after.fixed, after.broken) == (0.8, 5, 1)
    assert after.delta == pytest.approx(0.4)
    # They differ on 6 samples; at most 1 of them broken, or at most 1 fixed: 2 · (1 + 6) / 2⁶
    assert after.p == pytest.approx(14 / 64)
    assert (other.accuracy, other.fixed, other.broken, other.p) == (0.3, 0, 1, 1.0)
    assert (after.acts_on, after.through) == ("own", "attention")
    assert after.about == SecondLook.about


def test_the_table_has_wilson_intervals():
    base, after, _ = table(outcomes_of(), ENTRIES)
    z = 1.959964
    for row, share in ((base, 0.4), (after, 0.8)):
        centre = (share + z * z / 20) / (1 + z * z / 10)
        half = z * math.sqrt(share * (1 - share) / 10 + z * z / 400) / (1 + z * z / 10)
        assert (row.low, row.high) == pytest.approx((centre - half, centre + half), abs=1e-5)
    assert after.delta_low < after.delta < after.delta_high


def test_of_the_wrong_answers_the_share_that_saw():
    found = wrong_seen(outcomes_of(), np.array(BASE, bool))
    assert found.n == 6
    assert found.value == pytest.approx(4 / 6)
    assert found.low < 4 / 6 < found.high
    nothing = wrong_seen(outcomes_of(base=[1] * 10), np.ones(10, bool))
    assert nothing.n == 0
    assert math.isnan(nothing.value)


def test_the_rule_in_numbers():
    found = rule(outcomes_of(), np.array(BASE, bool))
    assert found.method == CHIEF
    assert found.seen_wrong == 0.4  # samples 4, 5, 7, 9
    assert found.fix_rate == 1.0
    assert found.unseen_right == 0.3  # samples 1, 2, 3
    assert found.break_rate == pytest.approx(1 / 3)
    assert found.gain == pytest.approx(0.4)
    assert found.loss == pytest.approx(0.1)
    assert found.predicts_gain


def test_a_cell_without_a_sample_has_no_rate():
    everywhere = rule(outcomes_of(seen=[1] * 10), np.array(BASE, bool))
    assert everywhere.unseen_right == 0
    assert math.isnan(everywhere.break_rate)
    nowhere = rule(outcomes_of(seen=[0] * 10), np.array(BASE, bool))
    assert nowhere.seen_wrong == 0
    assert math.isnan(nowhere.fix_rate)
    assert not nowhere.predicts_gain


def test_curves_are_means_over_the_right_and_the_wrong():
    made = curves(outcomes_of(), np.array(BASE, bool), seed=0)
    found = {(curve.metric, curve.segment, curve.group): curve for curve in made}
    assert len(found) == len(made) == 5 * 3
    auroc = {group: found["auroc", "evidence", group] for group in ("all", "correct", "wrong")}
    assert {group: curve.n for group, curve in auroc.items()} == {"all": 10, "correct": 4, "wrong": 6}
    np.testing.assert_allclose(auroc["all"].mean, [0.5, 0.645, 0.5])
    np.testing.assert_allclose(auroc["correct"].mean, [0.5, 0.615, 0.5])
    np.testing.assert_allclose(auroc["wrong"].mean, [0.5, 0.665, 0.5])
    np.testing.assert_allclose(found["rapt", "image", "correct"].mean, [1.5, 3, 0])
    np.testing.assert_allclose(found["rapt", "non-evidence", "wrong"].mean, [6.5, 13, 3])
    for curve in made:
        assert (curve.low <= curve.mean + 1e-12).all()
        assert (curve.mean <= curve.high + 1e-12).all()


def test_a_group_without_a_sample_has_an_empty_curve():
    made = curves(outcomes_of(base=[1] * 10), np.ones(10, bool), seed=0)
    found = {curve.group: curve for curve in made if curve.metric == "auroc"}
    assert found["wrong"].n == 0
    assert np.isnan(found["wrong"].mean).all()
    assert found["correct"].n == 10
