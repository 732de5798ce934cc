"""`seeing table` shows what a study found, in every format, and says what is wrong with what it was given."""

import csv
import io
import json

import pytest
from invented import failure, rows, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    lost = [failure("plates-tiny", "crowded", "crowded/99")]
    return write_study(tmp_path_factory.mktemp("study"), rows(data=("crowded", "easy"), n=12), lost)


@pytest.mark.parametrize("layout", ["methods", "paper", "ablation", "ranks"])
def test_a_table_is_shown(seeing_command, folder, layout):
    said = seeing_command("table", folder, "--layout", layout)
    assert said.code == 0, said.err
    assert not said.err
    for method in ("base", "inst", "vea", "vea_in_pass:gain=2"):
        assert f" {method} " in said.out


def test_a_machine_reads_json(seeing_command, folder):
    said = seeing_command("table", folder, "--json", "--metric", "em,anls", "--methods", "vea,base")
    document = json.loads(said.out)
    assert [line["method"] for line in document["numbers"]] == ["vea", "base"] * 4
    assert {line["metric"] for line in document["numbers"]} == {"em", "anls"}


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("t.md", "**EM, %"),
        ("t.tex", "\\begin{table}"),
        ("t.csv", "model,metric"),
        ("t.json", "{"),
        ("t.html", "<table>"),
        ("t.txt", "EM, %, mean of crowded, easy\n"),
    ],
)
def test_a_file_is_set_as_its_name_ends(seeing_command, folder, tmp_path, name, start):
    said = seeing_command("table", folder, "--layout", "paper", "-o", tmp_path / name)
    assert said.code == 0, said.err
    assert not said.out
    assert (tmp_path / name).read_text().startswith(start)


def test_the_format_that_is_asked_for_counts(seeing_command, folder, tmp_path):
    seeing_command("table", folder, "--format", "csv", "-o", tmp_path / "t.md", "--data", "easy")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "t.md").read_text())))
    assert {line["data"] for line in lines} == {"easy"}


def test_studies_are_joined(seeing_command, folder, tmp_path):
    other = write_study(tmp_path / "other", rows(models=("b",), data=("crowded",), n=12))
    said = seeing_command("table", folder, other, "--layout", "paper", "--data", "crowded", "--format", "csv")
    assert {line["model"] for line in csv.DictReader(io.StringIO(said.out))} == {"plates-tiny", "b"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--layout", "wide"], "methods, paper, ablation, ranks"),
        (["--metric", "bleu"], "em, f1, anls, vqa"),
        (["--base", "pai"], "base, inst, vea"),
        (["--methods", "base,pai"], "no method 'pai'"),
        (["--models", "x"], "no model 'x'"),
        (["--data", "x"], "crowded, easy"),
        (["--format", "word"], "terminal, markdown, latex"),
        (["-o", "t.docx"], ".docx"),
        (["-o", "nowhere/t.md"], "can't write nowhere/t.md"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_a_mistake_is_one_line(seeing_command, folder, words, part):
    said = seeing_command("table", folder, *words)
    assert said.code == 2
    assert said.err.startswith("seeing: ")
    assert said.err.count("\n") == 1
    assert part in said.err
    assert not said.out


def test_a_folder_without_a_study_is_one_line(seeing_command, folder, tmp_path):
    for words in ([tmp_path], [folder, tmp_path / "gone"], []):
        said = seeing_command("table", *words)
        assert said.code == 2
        assert said.err.count("\n") == 1


def test_studies_that_contradict_each_other_are_one_line(seeing_command, folder, tmp_path):
    other = write_study(tmp_path / "other", rows(data=("crowded",), n=12, seed=1))
    said = seeing_command("table", folder, other)
    assert said.code == 2
    assert "contradict each other" in said.err
    assert said.err.count("\n") == 1


# ---- seeing report -----------------------------------------------------------------------------------------


def test_a_report_is_written_beside_the_study_or_where_it_is_told(seeing_command, folder, tmp_path):
    said = seeing_command("report", folder)
    assert said.code == 0, said.err
    assert said.out.strip() == str(folder / "report.html")
    assert "vea_in_pass:gain=2" in (folder / "report.html").read_text()
    told = tmp_path / "deep" / "r.html"
    said = seeing_command("report", folder, "-o", told, "--base", "vea", "--no-pictures")
    assert "Compare vea with" in told.read_text()
    assert seeing_command("table", folder).code == 0  # a report in the folder is no part of the study


@pytest.mark.parametrize(
    ("words", "part"),
    [(["--base", "pai"], "base, inst, vea"), (["--seed", "-1"], "--seed"), (["-o", "."], "can't write .")],
)
def test_a_mistake_about_a_report_is_one_line(seeing_command, folder, words, part):
    said = seeing_command("report", folder, *words)
    assert said.code == 2
    assert said.err.startswith("seeing: ")
    assert said.err.count("\n") == 1
    assert part in said.err
    assert not said.out


def test_nothing_to_report_is_one_line(seeing_command, tmp_path):
    said = seeing_command("report", write_study(tmp_path, [], methods=["base"]))
    assert said.code == 2
    assert "nothing has been answered yet" in said.err
