"""Scores of answers against worked examples of their papers, brute force, and each other."""

from functools import cache
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seeing.correctness import anls, exact_match, normalize_answer, normalize_vqa, token_f1, vqa_accuracy

short = st.text("ab É", max_size=7)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  The  Cat,\nsat. ", "cat sat"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),  # an article is a word of its own
        ("U.S.A.", "usa"),
        ("$1,000.50", "100050"),
        ("A", ""),
        ("Éa", "éa"),
        ("", ""),
    ],
)
def test_normalization_is_squad_s(text, normal):
    assert normalize_answer(text) == normal


def test_exact_match():
    assert exact_match("The red square.", ["blue", "Red Square"]) == 1.0
    assert exact_match("red square", "Red square!") == 1.0  # one answer may stand alone
    assert exact_match("red", ["red square"]) == 0.0
    assert exact_match("r", "red") == 0.0  # a text is one answer, not a list of letters
    assert exact_match("", ["3"]) == 0.0


def test_token_f1_by_hand():
    assert token_f1("the cat sat", ["a cat"]) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert token_f1("cat cat cat", ["cat cat dog"]) == pytest.approx(2 / 3)  # words count each time
    assert token_f1("cat", ["dog", "Cat!"]) == 1.0
    assert token_f1("cat", ["dog"]) == 0.0
    assert token_f1("the", ["a"]) == 1.0  # nothing is left of either
    assert token_f1("the", ["cat"]) == 0.0
    assert token_f1("one two three four", "one two") == pytest.approx(2 * (2 / 4) * 1 / (2 / 4 + 1))


# ---- ANLS --------------------------------------------------------------------------------------------------


def edits(one: str, other: str) -> int:
    """The edit distance as it is defined, letter by letter from the front."""

    @cache
    def rest(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return len(one) - i + len(other) - j
        if one[i] == other[j]:
            return rest(i + 1, j + 1)
        return 1 + min(rest(i + 1, j), rest(i, j + 1), rest(i + 1, j + 1))

    return rest(0, 0)


@given(short, st.lists(short, min_size=1, max_size=3))
def test_anls_is_the_paper_s_formula(prediction, answers):
    def one(answer: str) -> float:
        said, truth = " ".join(prediction.lower().split()), " ".join(answer.lower().split())
        distance = edits(said, truth) / max(len(said), len(truth), 1)
        return 1 - distance if distance < 0.5 else 0.0

    assert anls(prediction, answers) == pytest.approx(max(map(one, answers)))


def test_anls_by_hand():
    assert anls("Coca Cola", "coca cola") == 1.0
    assert anls("kitten", "sitten") == pytest.approx(5 / 6)
    assert anls("ab", "ac") == 0.0  # half of it is wrong: the threshold itself scores nothing
    assert anls("abc", "abd") == pytest.approx(2 / 3)
    assert anls("", "cat") == 0.0
    assert anls("cat", ["dog", "cart"]) == pytest.approx(3 / 4)  # the nearest answer counts
    assert anls("12.50", "12,50") == pytest.approx(4 / 5)  # punctuation counts as letters do


def test_anls_of_a_long_text_costs_nothing_where_lengths_tell():
    assert anls("yes", "no " * 200_000) == 0.0


# ---- VQA accuracy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_people(agree, accuracy):
    """The values that the leave-one-out mean is known by: k of ten people score 0.3 k, at most 1."""
    assert vqa_accuracy("yes", ["yes"] * agree + ["no"] * (10 - agree)) == pytest.approx(accuracy)


@pytest.mark.parametrize("people", range(4, 8))
@pytest.mark.parametrize("agree", range(4))
def test_vqa_accuracy_is_the_mean_over_those_left_out(people, agree):
    votes = ["yes"] * agree + ["no"] * (people - agree)
    orders = set(permutations(votes))
    by_hand = sum(min(order[1:].count("yes") / 3, 1) for order in orders) / len(orders)
    assert vqa_accuracy("yes", votes) == pytest.approx(by_hand)


def test_fewer_than_four_people_are_a_list_of_right_answers():
    assert vqa_accuracy("two", "2") == 1.0
    assert vqa_accuracy("2", ["three", "two"]) == 1.0
    assert vqa_accuracy("4", ["three", "two", "2"]) == 0.0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat", "cat"),
        ("none", "0"),
        ("ten dogs", "10 dogs"),
        ("1,000", "1000"),
        ("3.5", "3.5"),  # a number keeps its point
        ("U.S.", "us"),
        ("red/blue", "red blue"),  # a mark within a word parts it
        ("red, blue", "red blue"),
        ("yes!", "yes"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("somebody's", "somebody's"),
        ("line\none", "line 1"),
        ("", ""),
    ],
)
def test_normalization_is_that_of_the_vqa_evaluation(text, normal):
    assert normalize_vqa(text) == normal


# ---- all of them -------------------------------------------------------------------------------------------

SCORES = (exact_match, token_f1, anls, vqa_accuracy)


@pytest.mark.parametrize("score", SCORES)
def test_no_answers_is_an_error(score):
    with pytest.raises(ValueError, match="no answers"):
        score("cat", [])


@pytest.mark.parametrize("score", SCORES)
@given(prediction=short, answers=st.lists(short, min_size=1, max_size=5))
def test_a_score_is_a_share_and_the_order_of_answers_does_not_count(score, prediction, answers):
    found = score(prediction, answers)
    assert 0.0 <= found <= 1.0
    assert found == pytest.approx(score(prediction, answers[::-1]))
    if score is not vqa_accuracy:  # there an answer is a vote: one among five is not enough
        assert score(prediction, [*answers, prediction]) == 1.0
