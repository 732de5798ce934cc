"""A user's mistake is ONE line on stderr and exit code 2: no traceback, nothing on stdout or on disk."""

import io

import numpy as np
import pytest
from PIL import Image

from seeing.study import demo

QUESTION = "what digit is on the red square ?"


def check(said, *words):
    """One line, which names the mistake."""
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("seeing: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err


@pytest.fixture
def broken(tmp_path, photo):
    """``broken(kind)``: the path of something that is no picture."""

    def make(kind):
        path = tmp_path / f"{kind}.png"
        whole = photo[0].read_bytes()
        if kind == "folder":
            path.mkdir()
        elif kind == "truncated jpeg":
            pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
            held = io.BytesIO()
            Image.fromarray(pixels).save(held, "JPEG")
            path.write_bytes(held.getvalue()[:5000])
        elif kind == "sixteen bits":
            Image.fromarray(np.full((50, 50), 40000, np.uint16)).save(path)
        elif kind != "missing":
            content = {
                "text": b"not a picture at all\n",
                "empty": b"",
                "truncated": whole[: len(whole) // 2],
                "header only": whole[:40],
                "corrupt": whole[:100] + bytes(len(whole) - 100),
            }
            path.write_bytes(content[kind])
        return path

    return make


KINDS = [
    "missing",
    "text",
    "empty",
    "truncated",
    "truncated jpeg",
    "header only",
    "corrupt",
    "folder",
    "sixteen bits",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_picture(seeing_command, broken, kind):
    check(seeing_command("ask", broken(kind), QUESTION))


def test_a_missing_file_is_named(seeing_command, tmp_path):
    check(seeing_command("ask", tmp_path / "nowhere.png", QUESTION), "nowhere.png", "no such")


def test_a_name_of_two_lines_is_still_one_line(seeing_command, tmp_path):
    check(seeing_command("ask", tmp_path / "no\nwhere.png", QUESTION), "no where.png")


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("what digit is on the mauve square ?", "'mauve'"),
        ("what digit\nis on the mauve square ?", "'mauve'"),
        ("", "question"),
        ("   ", "question"),
        ("wo ist das ?", "'wo'"),
        ("what digit is on the <image> ?", "<image>"),
    ],
)
def test_a_question_that_the_model_can_not_take(seeing_command, loaded, photo, question, word):
    check(seeing_command("ask", photo[0], question), word)


@pytest.mark.parametrize("command", ["demo", "ask"])
def test_an_unknown_model(seeing_command, photo, tmp_path, command):
    words = ["--out", tmp_path / "out"] if command == "demo" else [photo[0], QUESTION]
    check(seeing_command(command, *words, "--model", "plates-huge"), "plates-huge", "plates-tiny")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_no_model(seeing_command, photo, tmp_path):
    check(seeing_command("ask", photo[0], QUESTION, "--model", tmp_path), "config.json")
    (tmp_path / "config.json").write_text("{")
    check(seeing_command("ask", photo[0], QUESTION, "--model", tmp_path), str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    check(seeing_command("ask", photo[0], QUESTION, "--model", tmp_path), str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    check(seeing_command("ask", photo[0], QUESTION, "--model", tmp_path), str(tmp_path))


def test_an_unknown_split(seeing_command, tmp_path):
    said = seeing_command("demo", "--split", "crowd", "--out", tmp_path / "out")
    check(said, "'crowd'", "crowded", "calibration")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--limit", "0"], "--limit"),
        (["--limit", "-3"], "--limit"),
        (["--limit", "abc"], "--limit"),
        (["--limit", "1.5"], "--limit"),
        (["--limit"], "--limit"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "x"], "--seed"),
        (["--speed", "9"], "--speed"),
        (["surplus"], "surplus"),
    ],
)
def test_a_wrong_option(seeing_command, tmp_path, words, named):
    check(seeing_command("demo", "--out", tmp_path / "out", *words), named)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["nonsense"], ["ask"], ["ask", "photo.png"], ["--nonsense"]])
def test_a_wrong_command_line(seeing_command, words):
    check(seeing_command(*words))


def test_a_folder_that_can_not_be_written(seeing_command, loaded, tmp_path):
    (tmp_path / "file").write_text("mine")
    check(seeing_command("demo", "--limit", 1, "--out", tmp_path / "file" / "out"), "file")
    check(seeing_command("demo", "--limit", 1, "--out", tmp_path / "file"), "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["report.html", "results.parquet"])
def test_an_output_that_is_a_folder(seeing_command, loaded, tmp_path, name):
    """Before the run, not at its end."""
    (tmp_path / name).mkdir()
    check(seeing_command("demo", "--limit", 1, "--out", tmp_path), name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_ctrl_c_stops_without_a_traceback(seeing_command, loaded, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    said = seeing_command("demo", "--limit", 1, "--out", tmp_path / "out")
    assert said.code == 130
    assert said.out == ""
    assert "stopped" in said.err
    assert "Traceback" not in said.err


def test_a_bug_keeps_its_traceback(seeing_command, loaded, tmp_path, monkeypatch):
    """A ValueError of ours is no mistake of the user's."""

    def wrong(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr(demo, "run_demo", wrong)
    with pytest.raises(ValueError, match="a bug"):
        seeing_command("demo", "--limit", 1, "--out", tmp_path / "out")


@pytest.mark.parametrize("mistake", ["words", "limit"])
def test_in_a_process_of_its_own_too(process, photo, tmp_path, mistake):
    """With everything that libraries print on the way."""
    words = {
        "words": ["ask", photo[0], "what digit is on the mauve square ?"],
        "limit": ["demo", "--limit", 0, "--out", tmp_path / "out"],
    }
    check(process(*words[mistake]), {"words": "mauve", "limit": "--limit"}[mistake])
