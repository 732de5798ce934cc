"""`seeing data`: exit codes, one line for a mistake, and what a machine reads."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def written(tmp_path):
    """``written(*changes)``: a file with a sample each, on one picture of 60 x 40."""
    (tmp_path / "pics").mkdir()
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "pics" / "p.png")

    def write(*changes, name="x.jsonl"):
        record = {"question": "what?", "answer": "7", "image": "p.png", "bboxs": [[6, 4, 36, 24]]}
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(record | one) for one in changes))
        return path

    return write


def test_a_sound_data_set_ends_with_zero(seeing_command, written, tmp_path):
    said = seeing_command("data", "check", written({}, {}), "--images", tmp_path / "pics")
    assert said.code == 0
    assert "2 of 2 samples" in said.out
    assert "25.00%" in said.out


def test_samples_that_fail_end_with_one_and_are_told(seeing_command, written, tmp_path):
    path = written({}, {"image": "gone.png"}, {"answer": ""})
    said = seeing_command("data", "check", path, "--images", tmp_path / "pics")
    assert said.code == 1
    for words in ("1 of 3 samples", "1 fail: missing picture", "gone.png", "1 fail: no answer"):
        assert words in said.out


def test_a_report_for_a_machine(seeing_command, written, tmp_path):
    path = written({}, {"image": "gone.png"})
    said = seeing_command("data", "check", path, "--images", tmp_path / "pics", "--json")
    assert said.code == 1
    report = json.loads(said.out)
    assert (report["samples"], report["good"]) == (2, 1)
    assert report["failed"]["missing picture"]["examples"][0][0] == "1"
    assert report["share"]["mean"] == pytest.approx(0.25)
    limited = seeing_command("data", "check", path, "--images", tmp_path / "pics", "--json", "--limit", 1)
    assert (limited.code, json.loads(limited.out)["samples"]) == (0, 1)


def test_columns_and_box_formats_are_mapped(seeing_command, written, tmp_path):
    path = written({"q": "which?", "where": [30, 20, 30, 20]})
    words = ["data", "check", path, "--images", tmp_path / "pics", "--json"]
    said = seeing_command(*words, "--columns", "question=q, boxes=where", "--box-format", "xywh")
    assert said.code == 0
    assert json.loads(said.out)["share"]["mean"] == pytest.approx(0.25)
    assert "question=q" in json.loads(said.out)["spec"]


def test_samples_are_shown_with_their_boxes_drawn(seeing_command, written, tmp_path):
    path = written({}, {"answer": None}, {})
    said = seeing_command(
        "data", "show", path, "--images", tmp_path / "pics", "--n", 2, "--out", tmp_path / "out"
    )
    assert said.code == 0
    for words in ("what?", "60 x 40 px; (6.0, 4.0, 36.0, 24.0)", "no answer"):
        assert words in said.out
    (drawn,) = (tmp_path / "out").iterdir()
    pixels = np.asarray(Image.open(drawn))
    red = (pixels == (255, 0, 0)).all(-1)
    ys, xs = np.nonzero(red)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (6, 4, 35, 23)
    assert (pixels[~red] == 200).all()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["check", "nowhere.jsonl"], "nowhere.jsonl"),
        (["check", "plates:0"], "plates"),
        (["check", "plates:mauve:3"], "crowded"),
        (["check", "plates:3", "--limit", "0"], "--limit"),
        (["check", "FILE", "--columns", "colour=c"], "colour"),
        (["check", "FILE", "--columns", "question"], "FIELD=COLUMN"),
        (["check", "FILE", "--columns", "question=q"], "no column 'q'"),
        (["check", "FILE", "--images", "nowhere"], "nowhere"),
        (["check", "FILE", "--box-format", "yx"], "xywh"),
        (["check"], "DATA"),
        (["show", "plates:3", "--n", "0"], "--n"),
        (["look"], "look"),
        ([], "command"),
    ],
)
def test_a_mistake_is_one_line_and_ends_with_two(seeing_command, written, words, named):
    said = seeing_command("data", *(written({}) if word == "FILE" else word for word in words))
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert named in said.err


def test_help_needs_neither_torch_nor_pandas():
    script = (
        "import sys; sys.argv = ['seeing', 'data', 'check', '--help']\n"
        "import seeing.cli.data\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
