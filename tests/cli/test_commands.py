"""The command does its job end to end: answers a picture from disk, and leaves a report and its rows."""

import re
import shlex

import pandas as pd
import pytest
from PIL import Image

import seeing
from seeing.data.plates import plates
from seeing.families import FAMILIES
from seeing.study import demo as study

METHODS = 11


@pytest.fixture(scope="module")
def demo(process, tmp_path_factory):
    """(what it said, its folder) of a demo in a process of its own, in a folder that is not there yet."""
    out = tmp_path_factory.mktemp("runs") / "deep" / "my demo"
    return process("demo", "--limit", 16, "--out", out), out


def test_demo_leaves_a_report_and_its_rows(demo):
    said, out = demo
    assert said.code == 0, said.err
    assert {path.name for path in out.iterdir()} == {"report.html", "results.parquet"}
    frame = pd.read_parquet(out / "results.parquet")
    assert {"sample", "method", "answer", "correct"} <= set(frame.columns)
    assert len(frame) == 16 * METHODS
    assert frame["correct"].dtype == bool
    assert set(frame["sample"]) == {sample.id for sample in plates("crowded", 16)}
    truth = {sample.id: sample.answers[0] for sample in plates("crowded", 16)}
    assert (frame["correct"] == (frame["answer"] == frame["sample"].map(truth))).all()


def test_demo_reports_what_the_rows_say(demo):
    said, out = demo
    frame = pd.read_parquet(out / "results.parquet")
    page = (out / "report.html").read_text()
    for method, share in frame.groupby("method")["correct"].mean().items():
        line = next(line for line in said.out.splitlines() if re.search(rf"[│|] {method} ", line))
        assert f" {share:.1%} " in line
        assert method in page
    assert "evidence AUROC by layer" in said.out


def test_demo_says_where_it_wrote_and_how_to_do_it_again(demo):
    said, out = demo
    assert str(out / "report.html") in said.out.replace("\n", "")
    assert "Traceback" not in said.err
    command = shlex.join(
        ["seeing", "demo", "--model", "plates-tiny", "--split", "crowded", "--limit", "16", "--seed", "0"]
    )
    page = (out / "report.html").read_text()
    assert command in page
    assert f"{command} --out &#39;{out}&#39;" in page or f"{command} --out '{out}'" in page


def test_demo_replaces_an_earlier_run(seeing_command, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "CALIBRATION", 8)
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "results.parquet").write_text("old")
    said = seeing_command("demo", "--limit", 1, "--seed", 7, "--split", "easy", "--out", tmp_path)
    assert said.code == 0, said.err
    frame = pd.read_parquet(tmp_path / "results.parquet")
    assert set(frame["sample"]) == {"plates/easy/7/0"}
    assert "easy" in (tmp_path / "report.html").read_text()


def test_ask_answers_a_picture_from_disk(process, photo):
    path, sample = photo
    said = process("ask", path, sample.question)
    assert said.code == 0, said.err
    assert said.out == f"{sample.answers[0]}\n"
    assert "Traceback" not in said.err


def test_ask_answers_as_the_model_does(seeing_command, loaded, trained, tmp_path):
    for number, sample in enumerate(plates("crowded", 4, seed=1)):
        path = tmp_path / f"{number}.png"
        sample.image.save(path)
        said = seeing_command("ask", path, sample.question)
        assert said.out == f"{trained.answer(trained.prompt(sample))}\n"
        assert said.code == 0


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_ask_takes_pictures_of_any_kind(seeing_command, loaded, photo, tmp_path, mode):
    path = tmp_path / ("odd.jpg" if mode == "CMYK" else "odd.png")
    Image.open(photo[0]).convert(mode).resize((300, 180)).save(path)
    said = seeing_command("ask", path, photo[1].question)
    assert said.code == 0, said.err
    assert said.out.strip().isdigit()


def test_ask_shows_the_first_tokens_on_the_side(seeing_command, loaded, photo):
    said = seeing_command("ask", photo[0], photo[1].question)
    found = re.findall(r"'(\d)' (\d+)%", said.err)
    assert found[0][0] == said.out.strip()
    assert sum(int(share) for _, share in found) <= 101
    assert [int(share) for _, share in found] == sorted((int(share) for _, share in found), reverse=True)


def test_ask_takes_a_folder_of_a_saved_model(seeing_command, photo, tmp_path):
    model, processor = seeing.zoo.open_zoo("plates-null")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    said = seeing_command("ask", photo[0], photo[1].question, "--model", tmp_path)
    assert said.code == 0, said.err
    assert said.out.strip().isdigit()


def test_help_names_the_commands(seeing_command):
    for words in (["--help"], []):
        said = seeing_command(*words)
        assert said.code == 0
        assert "demo" in said.out
        assert "ask" in said.out
    said = seeing_command("demo", "--help")
    assert said.code == 0
    for option in ("--limit", "--split", "--out", "--seed", "--model"):
        assert option in said.out


def test_models_lists_every_family_with_what_it_needs(seeing_command):
    """The table is made from the code: every model_type, and one family in its own words."""
    shown = seeing_command("models").out
    for family in FAMILIES:
        assert family.name in shown
        for word in (*family.model_types, *family.required):
            assert word in shown
    one = seeing_command("models", "gemma3").out
    assert "Traps." in one
    assert "token_type_ids" in one
    assert "Pixtral tower" in seeing_command("models", "llava").out
    wrong = seeing_command("models", "nope")
    assert wrong.code == 2
    assert "no family 'nope'" in wrong.err
