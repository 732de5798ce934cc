"""The numbers of a study, against counts of its rows by hand and scipy's tests."""

import numpy as np
import pandas as pd
import pytest
from invented import failure, row, rows, write_study
from scipy import stats as reference

from seeing.study.comparing import METRICS, base_of, compare, groups, metric_named
from seeing.study.layouts.common import common_means, over_data
from seeing.study.settings import StudyError
from seeing.study.study import Study


@pytest.fixture(scope="module")
def made():
    """Two models, two data sets, four methods; some answers are missing."""
    made = rows(models=("a", "b"), data=("crowded", "easy"), n=30)
    gone = {("a", "crowded", "crowded/3", "vea"), ("a", "crowded", "crowded/4", "base")}
    return [r for r in made if (r["model"], r["data"], r["sample"], r["method"]) not in gone]


@pytest.fixture(scope="module")
def study(made, tmp_path_factory):
    lost = [
        failure("a", "crowded", "crowded/3", "vea"),
        failure("a", "crowded", "crowded/99"),
        failure("a", "crowded", "crowded/5", "vea", "was out of memory, and was answered later"),
    ]
    return Study.open(write_study(tmp_path_factory.mktemp("study"), made, lost))


@pytest.fixture(scope="module")
def numbers(study):
    return compare(study, ["em", "f1"]).set_index(["model", "data", "metric", "method"])


def scores(made, model, data, method, metric):
    """sample -> score, counted from the rows."""
    return {
        r["sample"]: r[metric] for r in made if (r["model"], r["data"], r["method"]) == (model, data, method)
    }


def test_means_are_over_what_a_method_answered(made, numbers):
    for (model, data, metric, method), line in numbers.iterrows():
        own = scores(made, model, data, method, metric)
        assert line["n"] == len(own)
        assert line["mean"] == pytest.approx(np.mean(list(own.values())))
        assert line["low"] < line["mean"] < line["high"]
    assert numbers.loc[("a", "crowded", "em", "vea"), "n"] == 29
    assert numbers.loc[("a", "crowded", "em", "inst"), "n"] == 30


def test_differences_are_over_what_both_answered(made, numbers):
    compared = numbers[numbers["pairs"].notna()]
    assert len(compared) == 2 * 2 * 2 * 3
    for (model, data, metric, method), line in compared.iterrows():
        base, own = (scores(made, model, data, name, metric) for name in ("base", method))
        both = sorted(base.keys() & own.keys())
        assert line["pairs"] == len(both)
        assert line["left_out"] == len(base.keys() ^ own.keys())
        assert line["difference"] == pytest.approx(np.mean([own[one] - base[one] for one in both]))
        assert line["difference_low"] <= line["difference"] <= line["difference_high"]
    assert numbers.loc[("a", "crowded", "em", "vea"), "pairs"] == 28
    assert numbers.loc[("a", "crowded", "em", "vea"), "left_out"] == 2
    assert numbers.loc[("b", "easy", "em", "vea"), "left_out"] == 0


def test_outcomes_get_wilson_and_mcnemar(made, numbers):
    base, own = (scores(made, "b", "easy", name, "em") for name in ("base", "vea"))
    line = numbers.loc[("b", "easy", "em", "vea")]
    fixed = sum(own[one] > base[one] for one in base)
    broken = sum(own[one] < base[one] for one in base)
    assert (line["fixed"], line["broken"]) == (fixed, broken)
    assert line["p"] == pytest.approx(reference.binomtest(fixed, fixed + broken).pvalue)
    right = int(sum(own.values()))
    wilson = reference.binomtest(right, 30).proportion_ci(method="wilson")
    assert (line["low"], line["high"]) == pytest.approx((wilson.low, wilson.high))


def test_graded_scores_get_a_bootstrap_and_a_permutation_test(made, numbers):
    base, own = (scores(made, "b", "easy", name, "f1") for name in ("base", "vea"))
    line = numbers.loc[("b", "easy", "f1", "vea")]
    values = np.array(list(own.values()))
    booted = reference.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert line["low"] == pytest.approx(booted.confidence_interval.low, abs=0.02)
    assert line["high"] == pytest.approx(booted.confidence_interval.high, abs=0.02)
    differences = np.array([own[one] - base[one] for one in base])
    tested = reference.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert line["p"] == pytest.approx(tested.pvalue, abs=0.01)
    assert np.isnan(numbers.loc[("b", "easy", "f1"), "fixed"].astype(float)).all()


def test_all_comparisons_are_corrected_together(numbers):
    p = numbers["p"].dropna().sort_values()
    by_hand = np.minimum(np.maximum.accumulate(p.to_numpy() * np.arange(len(p), 0, -1)), 1)
    assert numbers.loc[p.index, "p_holm"].to_numpy() == pytest.approx(by_hand)
    assert numbers["p_holm"].isna().sum() == numbers["p"].isna().sum() == 8


def test_a_failure_that_has_an_answer_by_now_is_none(numbers):
    """crowded/99 failed under every method, crowded/3 under vea; crowded/5 was answered after all."""
    failed = numbers.loc[("a", "crowded", "em"), "failed"]
    assert failed.to_dict() == {"base": 1, "inst": 1, "vea": 2, "vea_in_pass:gain=2": 1}
    assert (numbers.loc["b", "failed"] == 0).all()


def test_the_base_is_named_or_guessed_or_missing(study):
    assert base_of(study, None) == "base"
    assert base_of(study, "vea") == "vea"
    assert base_of(study.only(methods=["vea", "inst"]), None) is None
    with pytest.raises(StudyError, match="no method 'pai'"):
        base_of(study, "pai")
    with pytest.raises(StudyError, match=r"metric 'bleu'.*em, f1"):
        metric_named("bleu")


def test_another_base_turns_differences_around(study, numbers):
    turned = compare(study, ["em"], "vea").set_index(["model", "data", "metric", "method"])
    one, other = numbers.loc[("b", "easy", "em", "vea")], turned.loc[("b", "easy", "em", "base")]
    assert other["difference"] == pytest.approx(-one["difference"])
    assert (other["fixed"], other["broken"]) == (one["broken"], one["fixed"])
    assert other["p"] == one["p"]


def test_the_same_seed_gives_the_same_numbers(study, numbers):
    again = compare(study, ["em", "f1"]).set_index(["model", "data", "metric", "method"])
    assert again.equals(numbers)


def test_scores_that_are_missing_or_infinite_are_left_out(tmp_path):
    made = [
        row("m", "d", "1", "base", "x", ["x"], logprob=-1.0),
        row("m", "d", "2", "base", "x", ["x"], logprob=None),
        row("m", "d", "3", "base", "x", ["x"], logprob=float("-inf")),
        row("m", "d", "1", "vea", "x", ["x"], logprob=-3.0),
        row("m", "d", "2", "vea", "x", ["x"], logprob=-5.0),
    ]
    numbers = compare(Study.open(write_study(tmp_path, made)), ["logprob"]).set_index("method")
    assert numbers["n"].to_dict() == {"base": 1, "vea": 2}
    assert numbers["mean"].to_dict() == {"base": -1.0, "vea": -4.0}
    assert (numbers.loc["vea", "pairs"], numbers.loc["vea", "left_out"]) == (1, 1)
    assert numbers.loc["vea", "difference"] == -2.0


def test_a_data_set_in_which_everything_failed_has_lines_without_numbers(tmp_path):
    made = rows(n=3, methods=("base", "vea"))
    lost = [failure("plates-tiny", "gone", f"gone/{n}") for n in range(2)]
    numbers = compare(Study.open(write_study(tmp_path, made, lost)), ["em", "f1"])
    gone = numbers[numbers["data"] == "gone"]
    assert gone["method"].tolist() == ["base", "vea"] * 2
    assert (gone["n"] == 0).all()
    assert (gone["failed"] == 2).all()
    assert gone[["mean", "low", "high", "p"]].isna().all(axis=None)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_compared(study, metric):
    found = compare(study, [metric])
    assert found["mean"].notna().all()
    assert metric in study.rows


# ---- means on common samples -------------------------------------------------------------------------------


def test_common_means_are_over_the_samples_that_all_answered(made, study):
    means = common_means(study, METRICS["f1"]).set_index(["model", "data", "method"])
    own = {name: scores(made, "a", "crowded", name, "f1") for name in study.methods}
    common = set.intersection(*(set(one) for one in own.values()))
    assert len(common) == 28
    for name, one in own.items():
        line = means.loc[("a", "crowded", name)]
        assert (line["n"], line["left_out"]) == (28, 2)
        assert line["mean"] == pytest.approx(np.mean([one[sample] for sample in common]))


def test_a_method_without_any_answer_takes_no_sample_from_the_others(tmp_path):
    made = rows(n=4, methods=("base", "vea"))
    lost = [failure("plates-tiny", "crowded", f"crowded/{n}", "pai") for n in range(4)]
    study = Study.open(write_study(tmp_path, made, lost, methods=["base", "vea", "pai"]))
    means = common_means(study, METRICS["em"]).set_index("method")
    assert means["n"].to_dict() == {"base": 4, "vea": 4, "pai": 0}
    assert np.isnan(means.loc["pai", "mean"])


def test_data_sets_count_alike_whatever_their_size(tmp_path):
    made = [row("m", "small", f"s/{n}", "base", "x" if n < 3 else "y", ["x"]) for n in range(4)]
    made += [row("m", "large", f"l/{n}", "base", "x" if n < 20 else "y", ["x"]) for n in range(80)]
    study = Study.open(write_study(tmp_path, made))
    line = over_data(common_means(study, METRICS["em"])).iloc[0]
    assert line["mean"] == pytest.approx((0.75 + 0.25) / 2)
    error = (0.75 * 0.25 / 3 + 0.25 * 0.75 / 79) ** 0.5 / 2  # variances of two means, with n − 1
    assert line["high"] - line["mean"] == pytest.approx(1.96 * error)
    assert (line["data_sets"], line["n"]) == (2, 84)


def test_the_interval_of_a_mean_over_data_sets_holds_its_level():
    """Over repeated draws from known rates the true mean lies inside about 95 times in 100."""
    rng, truth, times = np.random.default_rng(0), np.array([0.3, 0.6, 0.8]), 400
    drawn = rng.random((times, 3, 80)) < truth[:, None]
    means = pd.DataFrame(
        {
            "model": np.repeat(np.arange(times), 3),
            "data": list("abc") * times,
            "metric": "em",
            "method": "base",
            "n": 80,
            "left_out": 0,
            "mean": drawn.mean(-1).ravel(),
            "variance": drawn.var(-1, ddof=1).ravel() / 80,
        }
    )
    found = over_data(means)
    assert len(found) == times
    assert 0.92 < ((found["low"] <= truth.mean()) & (truth.mean() <= found["high"])).mean() < 0.975


def test_a_method_without_one_of_the_data_sets_has_no_mean(study):
    part = common_means(study, METRICS["em"])
    part = part[~((part["data"] == "easy") & (part["method"] == "inst") & (part["model"] == "a"))]
    found = over_data(part).set_index(["model", "method"])["mean"]
    assert np.isnan(found["a", "inst"])
    assert found.drop(("a", "inst")).notna().all()


def test_groups_are_those_that_were_begun(study):
    assert [(one.model, one.data) for one in groups(study)] == [
        ("a", "crowded"),
        ("a", "easy"),
        ("b", "crowded"),
        ("b", "easy"),
    ]
