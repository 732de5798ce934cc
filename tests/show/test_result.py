"""A run that contradicts itself is refused, and the refusal says with which numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest

from seeing.study.result import DepthCurve, Head, MethodRow, Rule, Share

BASE = MethodRow("base", 10, 0.5, 0.2, 0.8)
ROW = MethodRow("vea", 10, 0.6, 0.3, 0.9, 0.1, -0.2, 0.4, 3, 2, 0.9)


def test_a_row_is_the_base_where_nothing_is_compared():
    assert BASE.is_base
    assert not ROW.is_base


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accuracy": 60.0, "low": 30.0, "high": 90.0}, "pass fractions, not percent"),
        ({"low": 0.7}, r"found 0\.7 ≤ 0\.6 ≤ 0\.9 for the accuracy of vea"),
        ({"fixed": 4}, r"found delta 0\.1 for vea, expected \(fixed 4 − broken 2\) / 10 = 0\.2"),
        ({"p": None}, "found 1 of the six numbers"),
        ({"p": 1.5}, r"found p = 1\.5"),
        ({"n": 0}, "found n = 0"),
    ],
)
def test_a_row_refuses_numbers_that_do_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(ROW, **changes)


def test_a_share_of_nothing_is_nan():
    assert math.isnan(Share(math.nan, math.nan, math.nan, 0).value)
    with pytest.raises(ValueError, match="of 0 things"):
        Share(0.0, 0.0, 0.0, 0)
    with pytest.raises(ValueError, match="for the share"):
        Share(0.5, 0.6, 0.7, 4)


def test_the_rule_multiplies_each_cell_by_its_rate():
    rule = Rule("vea", 0.25, 0.4, 0.05, 0.6)
    assert rule.gain == pytest.approx(0.1)
    assert rule.loss == pytest.approx(0.03)
    assert rule.predicts_gain
    assert Rule("vea", 0.0, math.nan, 0.1, 0.5).gain == 0
    assert not Rule("vea", 0.0, math.nan, 0.0, math.nan).predicts_gain
    with pytest.raises(ValueError, match="found fix_rate = nan"):
        Rule("vea", 0.25, math.nan, 0.1, 0.5)
    with pytest.raises(ValueError, match="found seen_wrong = 25"):
        Rule("vea", 25.0, 0.4, 0.1, 0.5)


def test_a_curve_needs_one_number_a_layer():
    three, two = np.zeros(3), np.zeros(2)
    with pytest.raises((ValueError, TypeError), match="high"):
        DepthCurve("auroc", "evidence", "all", three, three, two, 4)


def test_depth_prefers_correct_and_wrong_over_all(run):
    result = run()
    values = np.zeros(6)
    whole = DepthCurve("auroc", "evidence", "all", values, values, values, 256)
    both = replace(result, curves=(whole, *result.curves))
    assert [curve.group for curve in both.depth("auroc", ("evidence",))] == ["correct", "wrong"]
    lone = tuple(curve for curve in both.curves if curve.group != "wrong")
    assert [c.group for c in replace(result, curves=lone).depth("auroc", ("evidence",))] == ["all"]
    assert result.depth("auroc", ("image",)) == ()


def test_a_run_gives_its_rows_by_name(run):
    result = run()
    assert result.base.method == "base"
    assert result.row("vea").method == "vea"
    with pytest.raises(ValueError, match="found no row 'veal'"):
        result.row("veal")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda r: {"table": r.table[1:]}, r"found base rows at \[\]"),
        (lambda r: {"table": (*r.table, r.table[1])}, "expected each method once"),
        (lambda r: {"n": 255}, "expected 255 in each"),
        (lambda r: {"layers": (6,)}, r"found \[6\] chosen"),
        (lambda r: {"heads": (Head(0, 4, 0.9),)}, r"found \[\(0, 4\)\] chosen"),
        (lambda r: {"auroc_heads": np.zeros((5, 4))}, "found .* chosen|found curves"),
        (lambda r: {"wrong_seen": replace(r.wrong_seen, n=76)}, "found a share of 76 wrong answers"),
        (lambda r: {"rule": replace(r.rule, seen_wrong=0.1)}, "use one region for both"),
        (lambda r: {"rule": replace(r.rule, unseen_right=0.9)}, "count the base's right answers"),
        (lambda r: {"rule": replace(r.rule, method="base")}, "found a rule of 'base'"),
        (lambda r: {"rule": replace(r.rule, method="vigo")}, "found no row 'vigo'"),
    ],
)
def test_a_run_refuses_parts_that_contradict_each_other(run, changes, said):
    result = run(gallery=2)
    with pytest.raises(ValueError, match=said):
        replace(result, **changes(result))


def test_a_row_that_contradicts_the_base_is_refused(run):
    result = run(gallery=0)
    row = result.table[1]
    moved = replace(row, accuracy=row.accuracy + 0.01)
    with pytest.raises(ValueError, match=f"found delta .* for {row.method}, expected"):
        replace(result, table=(result.table[0], moved, *result.table[2:]))


def test_a_gallery_item_needs_a_mark_for_each_answer_and_a_map_of_0_to_1(run):
    item = run(gallery=1).gallery[0]
    with pytest.raises(ValueError, match="mark each answer"):
        replace(item, correct={"base": True})
    with pytest.raises(ValueError, match="found a map 'heat'"):
        replace(item, heat=np.array([[0.0, 2.0]]))
    with pytest.raises(ValueError, match="found a map 'reflect'"):
        replace(item, maps={"reflect": np.array([[np.nan]])})


def test_gallery_items_are_answered_by_the_same_methods(run):
    result = run(gallery=2)
    lone = replace(result.gallery[1], answers={"base": "1"}, correct={"base": True})
    with pytest.raises(ValueError, match="use one set of methods"):
        replace(result, gallery=(result.gallery[0], lone))
    with pytest.raises(ValueError, match="found no answer of 'base' or 'second-look'"):
        replace(result, gallery=(lone,))
