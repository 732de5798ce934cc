"""The prose says what the numbers say, in each of the ways that a run can come out."""

import math
from dataclasses import replace

import pytest

from seeing import spell
from seeing.show.reading import quadrants, reading, rule_verdict
from seeing.study.result import Rule


def with_rows(result, **numbers):
    """The run with some rows' fixed, broken and p replaced, and all that follows from them."""
    table = [result.base]
    for row in result.table[1:]:
        fixed, broken, p = numbers.get(row.method.replace("-", "_"), (1, 1, 0.9))
        delta = (fixed - broken) / row.n
        accuracy = result.base.accuracy + delta
        table.append(
            replace(
                row,
                accuracy=accuracy,
                low=accuracy - 0.05,
                high=accuracy + 0.05,
                delta=delta,
                delta_low=delta - 0.03,
                delta_high=delta + 0.03,
                fixed=fixed,
                broken=broken,
                p=p,
            )
        )
    return replace(result, table=tuple(table))


@pytest.fixture(scope="module")
def result(run):
    return run(gallery=0)


def test_it_is_two_sentences(result):
    for sentence in reading(result):
        assert sentence.endswith(".")
        assert ". " not in sentence


def test_it_says_how_often_wrong_answers_saw(result):
    saw, _ = reading(result)
    assert "69.9\u202f% of 256 samples of the split “crowded”" in saw
    assert "in 83.1\u202f% of its 77 wrong answers" in saw


def test_it_says_so_where_nothing_was_wrong(run):
    saw, _ = reading(run(wrong=0, gallery=0))
    assert "it gives no wrong answer" in saw
    assert "nan" not in saw


def test_gains_are_counted_and_the_largest_is_set_beside_its_control(result):
    changed = with_rows(
        result, second_look=(40, 2, 1e-8), window_highlight=(30, 3, 1e-6), vea=(2, 30, 1e-6),
        random_window_attention=(3, 5, 0.7), random_window_highlight=(30, 1, 1e-6),
    )  # fmt: skip
    _, said = reading(changed)
    assert (
        "Of the 5 methods that emphasise the region the model looked at, 2 raise accuracy and 1 lowers it"
        in said
    )
    assert "the largest gain is second-look with +14.8 points" in said
    assert "40 fixed, 2 broken" in said
    assert "a random region through the same channel gives −0.8" in said
    assert "no less than" not in said


def test_a_control_that_gains_as_much_is_named(result):
    changed = with_rows(result, second_look=(40, 2, 1e-8), random_window_attention=(41, 2, 1e-8))
    _, said = reading(changed)
    assert said.endswith("no less than the model's own.")


def test_nothing_is_claimed_where_nothing_differs(result):
    _, said = reading(with_rows(result, second_look=(9, 3, 0.02)))
    assert said.startswith(
        "None of the 5 methods that emphasise the region the model looked at measurably changes"
    )
    assert "p ≥ 0.05 after Holm's correction" in said
    assert "the largest difference is second-look" in said


def test_losses_are_losses(result):
    _, said = reading(with_rows(result, vea=(1, 40, 1e-9), vea_authors=(2, 20, 1e-4)))
    assert "none raises accuracy and 2 lower it" in said
    assert "the largest loss is vea with −15.2 points" in said


@pytest.mark.parametrize(
    ("numbers", "verb"),
    [
        ((40, 1, 1e-9), "raises accuracy"),
        ((1, 40, 1e-9), "lowers accuracy"),
        ((2, 1, 0.9), "doesn't measurably change"),
    ],
)
def test_one_method_alone(result, numbers, verb):
    table = tuple(row for row in result.table if row.acts_on != "own" or row.method == "second-look")
    _, said = reading(with_rows(replace(result, table=table), second_look=numbers))
    assert said.startswith(f"The one method that emphasises the region the model looked at {verb}")


def test_no_method_on_the_own_region(result):
    table = tuple(row for row in result.table if row.acts_on != "own" or row.method == "second-look")
    oracle = replace(result.row("second-look"), acts_on="evidence")
    table = tuple(oracle if row.method == "second-look" else row for row in table)
    _, said = reading(replace(result, table=table))
    assert said.startswith("No method of this run acts on the region the model looked at")


def test_the_rule_is_set_beside_what_happened(result):
    row = result.row("second-look")
    said = rule_verdict(Rule("second-look", 0.25, 0.5, 0.05, 0.2), row)
    assert said.startswith("12.5 points is more than 1.0 points, so the rule expects a gain")
    assert spell.points(row.delta) in said
    assert "not more than" in rule_verdict(Rule("second-look", 0.1, 0.1, 0.4, 0.5), row)
    empty = Rule("second-look", 0.0, math.nan, 0.0, math.nan)
    assert "says nothing" in rule_verdict(empty, row)


def test_the_quadrants_sum_to_one(result):
    shares = quadrants(result)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["seen wrong"] == result.rule.seen_wrong
    assert shares["seen wrong"] + shares["unseen wrong"] == pytest.approx(1 - result.base.accuracy)


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (1.0, "1.00"),
        (0.64, "0.64"),
        (0.0312, "0.031"),
        (0.001, "0.001"),
        (4.2e-10, "4\u202f×\u202f10⁻¹⁰"),
        (0.0, "<\u202f10⁻³⁰⁰"),
    ],
)
def test_p_values(p, said):
    assert spell.p_value(p) == said


def test_numbers_are_spelled_with_true_signs():
    assert spell.points(0.083) == "+8.3"
    assert spell.points(-0.0271) == "−2.7"
    assert spell.points(-0.0001) == "0.0"
    assert spell.percent(math.nan) == "–"
    assert spell.interval(0.64, 0.752) == "64.0–75.2\u202f%"
    assert spell.value_interval(0.9421, 0.93, 0.95) == "0.942 (0.930–0.950)"
    assert spell.value_interval(0.9421, math.nan, math.nan) == "0.942"
    assert spell.value(math.nan) == "–"
    assert spell.duration(48.2) == "48\u202fs"
    assert spell.duration(200) == "3\u202fmin 20\u202fs"
