"""`seeing study`: rows for scripts, a table for people, exit codes for both."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from seeing.data.plates import plates


@pytest.fixture(scope="module")
def out(process, tmp_path_factory):
    """(what it said, its folder) of a study in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "my study"
    words = ("study", "--model", "plates-tiny", "--data", "plates:12", "--methods", "base,vea")
    return process(*words, "--out", folder), folder


def rows_of(folder):
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.rglob("*.parquet"))])


def test_a_study_leaves_parquet_that_anybody_can_read(out):
    said, folder = out
    assert said.code == 0, said.err
    frame = rows_of(folder)
    assert {"sample", "method", "answer", "correct"} <= set(frame.columns)
    assert len(frame) == 24
    assert set(frame["method"]) == {"base", "vea"}
    truth = {one.id: one.answers[0] for one in plates("crowded", 12)}
    assert (frame["correct"] == (frame["answer"] == frame["sample"].map(truth))).all()
    assert "Traceback" not in said.err


def test_the_table_is_on_stdout(out):
    said, folder = out
    right = rows_of(folder).groupby("method")["correct"].mean()
    for method in ("base", "vea"):
        line = next(line for line in said.out.splitlines() if line.split()[:1] == [method])
        assert f"{100 * right[method]:.1f}" in line


def test_the_same_words_do_nothing_more(out, seeing_command, loaded):
    _, folder = out
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    said = seeing_command(
        *("study", "--model", "plates-tiny", "--data", "plates:12", "--methods", "base,vea"), "--out", folder
    )
    assert said.code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before


def test_the_folder_alone_goes_on(out, seeing_command, loaded):
    _, folder = out
    for path in folder.rglob("*.parquet"):
        kept = path.read_bytes()
        path.unlink()
    said = seeing_command("study", "--out", folder, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["rows"] == 24
    assert len(kept)
    assert len(rows_of(folder)) == 24


def test_other_words_are_refused_with_the_difference(out, seeing_command, loaded):
    _, folder = out
    words = (
        "study",
        "--model",
        "plates-tiny",
        "--data",
        "plates:12",
        "--methods",
        "base,pai",
        "--out",
        folder,
    )
    for more in ((), ("--dry-run",)):
        said = seeing_command(*words, *more)
        assert said.code == 2
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert "'vea' there, 'pai' now" in said.err
    said = seeing_command("study", "--out", folder, "--no-resume")
    assert (said.code, "holds a study already" in said.err) == (2, True)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(seeing_command, tmp_path):
    words = ("study", "--model", "plates-tiny", "--data", "plates:100", "--methods", "base,vea:alpha=0.3")
    said = seeing_command(*words, "--out", tmp_path / "out", "--dry-run", "--json")
    assert said.code == 0
    told = json.loads(said.out)
    assert (told["samples"], told["rows"], told["units"], told["units left"]) == (100, 200, 2, 2)
    assert told["methods"] == ["base", "vea:alpha=0.3"]
    assert not (tmp_path / "out").exists()
    said = seeing_command(*words, "--out", tmp_path / "out", "--dry-run")
    assert "plates-tiny" in said.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--model, --data and --methods"),
        (("--model", "plates-tiny", "--data", "plates:4"), "--methods is missing"),
        (("--model", "plates-tiny", "--data", "plates:4", "--methods", "vae"), "vae"),
        (("--model", "plates-tiny", "--data", "plates:4", "--methods", "vea:alpha=2"), "alpha"),
        (("--model", "plates-tiny", "--data", "nowhere.jsonl", "--methods", "base"), "nowhere.jsonl"),
        (("--model", "no-such-model", "--data", "plates:4", "--methods", "base"), "no-such-model"),
        (("--model", "plates-tiny", "--data", "plates:4", "--methods", "base", "--engine", "spark"), "spark"),
        (
            ("--model", "plates-tiny", "--data", "plates:4", "--methods", "base", "--workers", "2"),
            "--workers",
        ),
        (
            ("--model", "plates-tiny", "--data", "plates:4", "--methods", "base", "--profile", "no.json"),
            "no.json",
        ),
        (
            ("--model", "plates-tiny", "--data", "plates:4", "--methods", "base", "--columns", "x"),
            "maps no column",
        ),
    ],
)
def test_a_mistake_is_one_line(seeing_command, tmp_path, words, named):
    said = seeing_command("study", *words, "--out", tmp_path / "out")
    assert said.code == 2, said
    assert said.out == ""
    assert named in said.err.replace("\n", "")
    lines = [line for line in said.err.splitlines() if line.startswith("seeing: ")]
    assert len(lines) == 1
    assert "Traceback" not in said.err
    assert not list(tmp_path.rglob("*.parquet"))


def test_failures_are_told_and_end_with_1(seeing_command, loaded, tmp_path):
    good = plates("easy", 2)
    lines = []
    for number, sample in enumerate(good):
        sample.image.save(tmp_path / f"{number}.png")
        named = {"question": sample.question, "answer": sample.answers[0], "image": f"{number}.png"}
        lines.append({**named, "width": 112, "height": 112, "bboxs": [list(sample.boxes[0])]})
    lines.append({**lines[0], "image": "gone.png"})
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--model", "plates-tiny", "--data", tmp_path / "lines.jsonl", "--methods", "base")
    said = seeing_command("study", *words, "--out", tmp_path / "out", "--json")
    assert said.code == 1
    told = json.loads(said.out)
    assert (told["rows"], told["failures"]) == (2, 1)
    assert "gone.png" in said.err


def test_ctrl_c_ends_cleanly_and_the_study_goes_on(tmp_path):
    words = ("study", "--model", "plates-tiny", "--data", "plates:640", "--methods", "base", "--rows", "4")
    command = [sys.executable, "-m", "seeing.cli", *words, "--out", str(tmp_path / "out"), "--no-check"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # What runs the tests in the background may have told its children to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 200
    while not any((tmp_path / "out").rglob("*.jsonl")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=100)
    assert running.returncode == 130, err
    assert out == ""
    assert "stopped" in err
    assert "Traceback" not in err
    from seeing import study

    there = study.open(tmp_path / "out").rows
    assert 0 < len(there) < 640
    assert not there.duplicated("sample").any()
