"""Tables say what the numbers say, in every layout and setting, and hostile names stay names."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from invented import failure, row, rows, write_study
from rich.console import Console
from scipy import stats as reference

from seeing.study.comparing import METRICS
from seeing.study.layouts import LAYOUTS
from seeing.study.layouts.words import marks, model_columns, short
from seeing.study.settings import StudyError
from seeing.study.study import Study
from seeing.study.tables import Block, Cell, Column, Table

MODELS = ("own/gemma-3-4b-it", "own/gemma-3-27b-it", "plates-tiny")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = rows(models=MODELS, data=("crowded", "easy"), n=30)
    gone = made.pop(3)
    lost = [failure(gone["model"], gone["data"], gone["sample"], gone["method"])]
    return Study.open(write_study(tmp_path_factory.mktemp("study"), made, lost))


def cells(table):
    """block title -> first cell of a line -> texts by (group, heading)."""
    keys = [(column.group, column.heading) for column in table.columns]
    return {
        block.title: {line[0].text: dict(zip(keys, (cell.text for cell in line))) for line in block.lines}
        for block in table.blocks
    }


# ---- layouts -----------------------------------------------------------------------------------------------


def test_methods_against_the_base(study):
    table = study.table("em")
    assert [block.title for block in table.blocks][:2] == [
        "own/gemma-3-4b-it · crowded · EM, %",
        "own/gemma-3-4b-it · easy · EM, %",
    ]
    part = study.rows[(study.rows["model"] == "plates-tiny") & (study.rows["data"] == "easy")]
    right = part.pivot(index="sample", columns="method", values="em")
    line = cells(table)["plates-tiny · easy · EM, %"]["vea"]
    assert line["", "mean"] == f"{100 * right['vea'].mean():.1f}"
    change = 100 * (right["vea"] - right["base"]).mean()
    assert line["", "Δ to base"] == f"{change:+.1f}"
    fixed, broken = (right["vea"] > right["base"]).sum(), (right["vea"] < right["base"]).sum()
    assert (line["", "fixed"], line["", "broken"]) == (str(fixed), str(broken))
    assert line["", "p"] == f"{reference.binomtest(fixed, fixed + broken).pvalue:.3f}"
    assert cells(table)["plates-tiny · easy · EM, %"]["base"]["", "Δ to base"] == ""


def test_what_was_left_out_and_tested_is_said(study):
    notes = " ".join(study.table("em,f1").notes)
    assert "a difference leaves out up to 1 sample" in notes
    assert "1 of own/gemma-3-4b-it on crowded" in notes
    assert "McNemar's exact test where scores are 0 or 1, elsewhere a permutation test" in notes
    assert "These are 36 comparisons" in notes  # 3 models × 2 data sets × 2 metrics × 3 methods


def test_columns_without_anything_to_say_are_not_there(tmp_path):
    made = rows(methods=("base", "vea"), n=8)
    table = Study.open(write_study(tmp_path, made)).table("f1")
    headings = [column.heading for column in table.columns]
    assert headings == ["method", "n", "mean", "95 %", "Δ to base", "95 %", "p"]
    alone = Study.open(write_study(tmp_path / "b", rows(methods=("vea",), n=8))).table("em")
    assert [column.heading for column in alone.columns] == ["method", "n", "mean", "95 %"]
    assert alone.title == "Methods"


def test_the_paper_s_table_has_a_column_a_size_and_means_over_data_sets(study):
    table = study.table(layout="paper")
    assert [(c.group, c.heading) for c in table.columns] == [
        ("", "method"),
        ("gemma-3-it", "4b"),
        ("gemma-3-it", "27b"),
        ("", "plates-tiny"),
    ]
    assert table.title == "EM, %, mean of crowded, easy"
    for method, line in cells(table)[""].items():
        own = study.rows[(study.rows["method"] == method) & (study.rows["model"] == "plates-tiny")]
        assert line["", "plates-tiny"] == f"{100 * own.groupby('data')['em'].mean().mean():.1f}"
    assert "without up to 1 sample" in " ".join(table.notes)


def test_the_best_of_a_column_is_marked_and_the_second(study):
    for line in zip(*study.table(layout="paper").blocks[0].lines):
        found = {cell.mark: float(cell.text) for cell in line if cell.mark}
        if found:
            values = sorted((float(cell.text) for cell in line), reverse=True)
            assert [found["best"], found["second"]] == values[:2]


def test_ablations_have_em_and_f1_beside_each_other(study):
    table = study.table(layout="ablation")
    assert [(c.group, c.heading) for c in table.columns[1:]] == [
        (model, heading) for model in short(MODELS) for heading in ("EM, %", "F1, %")
    ]
    own = study.rows[(study.rows["method"] == "vea") & (study.rows["model"] == "plates-tiny")]
    line = cells(table)[""]["vea"]
    for heading, metric in (("EM, %", "em"), ("F1, %", "f1")):
        assert line["plates-tiny", heading] == f"{100 * own.groupby('data')[metric].mean().mean():.1f}"


def test_ranks_are_those_of_the_means(study):
    table = study.only(models=["plates-tiny"]).table(layout="ranks")
    part = study.rows[study.rows["model"] == "plates-tiny"]
    means = part.pivot_table(index="data", columns="method", values="em")
    ranks = means.rank(axis=1, ascending=False)
    found = cells(table)[""]
    assert list(found) == list(ranks.mean().sort_values(kind="stable").index)
    for method, line in found.items():
        assert float(line["", "average rank"]) == pytest.approx(ranks[method].mean())
        assert float(line["plates-tiny", "easy"]) == ranks.loc["easy", method]
    assert "Friedman" in table.notes[0]


def test_fewer_seconds_rank_first(tmp_path):
    made = [
        row("m", data, "1", method, "x", ["x"], seconds=seconds)
        for data in "ab"
        for method, seconds in (("base", 2.0), ("vea", 1.0))
    ]
    table = Study.open(write_study(tmp_path, made)).table("seconds", "ranks")
    assert [line[0].text for line in table.blocks[0].lines] == ["vea", "base"]
    shown = Study.open(tmp_path).table("seconds").blocks[0].lines
    assert [cell.text for cell in shown[1][:3]] == ["vea", "1", "1"]
    assert (shown[1][4].text, shown[1][2].mark) == ("−1", "best")


def test_a_method_without_a_data_set_has_no_mean_there_and_no_rank(tmp_path):
    made = [r for r in rows(data=("crowded", "easy"), n=6) if (r["data"], r["method"]) != ("easy", "inst")]
    study = Study.open(write_study(tmp_path, made))
    paper = study.table(layout="paper")
    assert cells(paper)[""]["inst"]["", "plates-tiny"] == "–"
    assert any(note.startswith("–:") for note in paper.notes)
    ranks = study.table(layout="ranks")
    assert "Left out: 1 data set" in ranks.notes[0]
    assert "too few" in ranks.notes[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_and_single_groups_crash_nothing(tmp_path, layout):
    """One sample, one method, a data set that failed whole, a metric without a number."""
    single = rows(n=1, methods=("base",))
    lost = [failure("plates-tiny", "gone", "gone/0")]
    bare = [{**one, "anls": None} for one in rows(n=2)]
    for folder in (
        write_study(tmp_path / "1", single),
        write_study(tmp_path / "2", rows(n=2), lost),
        write_study(tmp_path / "3", bare),
        write_study(tmp_path / "4", [], lost, methods=["base", "vea"]),
    ):
        table = Study.open(folder).table("em,anls", layout)
        for text in (table.to_markdown(), table.to_latex(), table.to_html(), table.to_csv()):
            assert not re.search(r"\b(nan|None|NA|inf)\b", text), text
        json.loads(table.to_json(), parse_constant=pytest.fail)  # NaN is none of JSON's numbers


def test_wrong_words_are_said(study, tmp_path):
    with pytest.raises(StudyError, match=r"layout 'wide'.*methods, paper"):
        study.table(layout="wide")
    with pytest.raises(StudyError, match="metric 'bleu'"):
        study.table("em,bleu")
    with pytest.raises(StudyError, match="no method 'pai'"):
        study.table(base="pai")
    with pytest.raises(StudyError, match="nothing has been answered yet"):
        Study.open(write_study(tmp_path, [], methods=["base"])).table()


# ---- names and marks ---------------------------------------------------------------------------------------


def test_sizes_of_one_kind_share_a_heading():
    assert model_columns(["llava-v1.6-vicuna-7b-hf", "llava-v1.6-vicuna-13b-hf"]) == [
        ("llava-v1.6-vicuna-hf", "7b"),
        ("llava-v1.6-vicuna-hf", "13b"),
    ]
    assert model_columns(["Qwen/Qwen3-VL-30B-A3B-Instruct"]) == [("", "Qwen3-VL-30B-A3B-Instruct")]
    apart = ["Qwen2.5-VL-7B", "plates-tiny", "Qwen2.5-VL-32B"]
    assert model_columns(apart) == [("", name) for name in apart]
    assert short(["a/x", "b/x"]) == ["a/x", "b/x"]  # else they would be one
    assert short(["runs/x/", "b/y"]) == ["x", "y"]


@pytest.mark.parametrize(
    ("values", "higher", "expected"),
    [
        ([1.0, 3.0, 2.0], True, ["", "best", "second"]),
        ([1.0, 3.0, 2.0], False, ["best", "", "second"]),
        ([3.0, 3.0, 2.0, 1.0], True, ["best", "best", "second", ""]),
        ([2.0, 2.0], True, ["", ""]),
        ([2.0, 1.0], True, ["best", ""]),
        ([np.nan, 1.0, 0.5, 0.1], True, ["", "best", "second", ""]),
        ([np.nan, np.nan], True, ["", ""]),
        ([0.1 + 0.2, 0.3, 0.2, 0.1], True, ["best", "best", "second", ""]),
    ],
)
def test_marks(values, higher, expected):
    assert marks(np.array(values), higher) == expected


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_metric_spells_values_and_changes(metric):
    assert metric.value(float("nan")) == metric.change(float("nan")) == "–"
    assert metric.interval(float("nan"), 1.0) == metric.change_interval(0.1, float("nan")) == ""
    assert metric.value(0.5) == ("50.0" if metric.share else "0.5")
    assert metric.change(-0.5) == ("−50.0" if metric.share else "−0.5")
    assert metric.change_interval(-0.5, 0.5).startswith("−")
    if not metric.share:
        assert metric.interval(-3.0, -2.0) == "−3 to −2"


# ---- settings ----------------------------------------------------------------------------------------------

NASTY = r"a|b & 50% <script>alert(1)</script> $x_1$ #{~^} \cmd *b* [l](u) `c`"


@pytest.fixture(scope="module")
def nasty():
    line = (Cell(NASTY), Cell("1.0", "best"), Cell("−2 × 10⁻¹⁰", "second"), Cell("–"))
    columns = (Column("method", words=True), Column("EM", NASTY), Column("F1", NASTY), Column("n"))
    numbers = pd.DataFrame(
        {"method": [NASTY, "=1+1"], "mean": [1.0, np.nan], "n": pd.array([3, None], "Int64")}
    )
    return Table(NASTY, columns, (Block(NASTY, (line, line)), Block("", (line,))), (NASTY,), numbers)


def test_markdown_keeps_its_columns(nasty):
    lines = nasty.to_markdown().splitlines()
    piped = [line for line in lines if line.startswith("|")]
    assert len(piped) == 2 + 1 + 3
    for line in piped:
        assert len(re.findall(r"(?<!\\)\|", line)) == 5
    assert "<script" not in re.sub(r"\\.", "", nasty.to_markdown())
    assert "**1.0**" in piped[-1]
    assert lines[-1].startswith("- a\\|b")


def test_markdown_leaves_names_readable():
    table = Table("t", (Column("vea_in_pass", words=True),), (), (), pd.DataFrame())
    assert "| vea_in_pass |" in table.to_markdown()


def test_latex_sets_every_letter(nasty):
    page = nasty.to_latex()
    row = next(line for line in page.splitlines() if r"\textbf{1.0}" in line)
    name = row.split(r" & \textbf")[0]
    assert name == (
        r"a\textbar{}b \& 50\% \textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} "
        r"\$x\_1\$ \#\{\textasciitilde{}\textasciicircum{}\} \textbackslash{}cmd *b* [l](u) `c`"
    )
    assert r"\underline{$-$2 $\times$ 10$^{-10}$}" in row
    assert row.endswith(r"& -- \\")
    assert r"\cmidrule(lr){2-3}" in page
    assert page.count(r"\midrule") == 2
    braces = re.sub(r"\\[{}]", "", page)
    assert braces.count("{") == braces.count("}")
    assert len(re.findall(r"(?<!\\)&", row)) == 3


def test_latex_of_a_real_table_has_only_known_commands(study):
    for layout in LAYOUTS:
        page = study.table(layout=layout).to_latex()
        assert set(re.findall(r"\\([A-Za-z]+)", page)) <= {
            "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "cmidrule",
            "multicolumn", "emph", "textbf", "underline", "Delta", "cdot", "pm", "times",
        }  # fmt: skip
        assert page.isascii()
        body = page.split(r"\toprule")[1].split(r"\bottomrule")[0]
        columns = len(re.search(r"\\begin{tabular}{([lr]+)}", page)[1])
        for line in body.splitlines():
            if line.endswith(r"\\"):
                spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn{(\d+)}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + spanned == columns - 1


def test_html_is_escaped_and_whole(nasty):
    class Page(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.texts = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.texts.append(data)

    page = Page()
    page.feed(nasty.to_html())
    assert "script" not in page.tags
    assert page.texts.count(NASTY) >= 5
    assert page.tags.count("tr") == 2 + 1 + 3
    assert "<strong>1.0</strong>" in nasty.to_html()
    assert nasty._repr_html_() == nasty.to_html()


def test_a_terminal_shows_names_letter_by_letter(nasty):
    console = Console(width=400, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(nasty)
    shown = console.file.getvalue()
    assert NASTY in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b[1m1.0" in shown.replace(" ", "")


def test_csv_holds_the_numbers_and_no_formula(nasty):
    lines = list(csv.reader(io.StringIO(nasty.to_csv())))
    assert lines == [["method", "mean", "n"], [NASTY, "1.0", "3"], ["'=1+1", "", ""]]


def test_json_holds_the_numbers(study):
    document = json.loads(study.table("em").to_json())
    frame = study.table("em").to_frame()
    assert len(document["numbers"]) == len(frame)
    assert document["numbers"][1]["mean"] == pytest.approx(frame["mean"][1])
    assert document["numbers"][0]["p"] is None
    assert document["notes"][-1].startswith("These are")


def test_a_line_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="found 1 cells for 2 columns"):
        Table("t", (Column("a"), Column("b")), (Block("", ((Cell("1"),),)),), (), pd.DataFrame())
