"""Mistakes in what `ask`, `profile` and `probe` are told: one line, exit code 2, and nothing is written."""

import pytest

QUESTION = "what digit is on the red square ?"
DATA = ("--model", "plates-tiny", "--data", "plates:4")


def check(said, *words):
    """One line, which names the mistake."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("seeing: ")
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--method", "veaa"), ["no method 'veaa'", "did you mean 'vea'?"]),
        (("--method", "vea:alhpa=1"), ["no setting 'alhpa'", "alpha=0.5"]),
        (("--method", "pai:alpha=much"), ["alpha is a number", "'much'"]),
        (("--method", "pai,pai"), ["pai stands there twice"]),
        (("--method", "nowhere.json"), ["nowhere.json"]),
        (("--method", "nowhere.py"), ["nowhere.py", "No such file"]),
        (("--method", "vea:layers=99"), ["method 'vea:layers=99'", "no layer 99"]),
        (("--method", "oracle"), ["method 'oracle'", "--box"]),
        (("--box", "1,2,3"), ["--box", "'1,2,3'"]),
        (("--box", "a,b,c,d"), ["--box"]),
        (("--box", "900,900,950,950"), ["picture of 112×112"]),
        (("--profile", "nowhere.json"), ["no profile nowhere.json"]),
        (("--profile", "README.md"), ["README.md", "no saved profile"]),
        (("--calibration", "nowhere.jsonl"), ["nowhere.jsonl"]),
        (("--template", "nonsense"), ["'nonsense'", "{question}"]),
        (("--top", "0"), ["--top"]),
        (("--out", "looked.gif"), ["looked.gif", ".png"]),
    ],
)
def test_ask(seeing_command, loaded, photo, monkeypatch, tmp_path, words, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no profile")
    check(seeing_command("ask", photo[0], QUESTION, *words), *named)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--model", "plates-tiny"), ["--data"]),
        (("--data", "plates:4"), ["--model"]),
        (("--model", "plates-huge", "--data", "plates:4"), ["plates-huge"]),
        (("--model", "plates-tiny", "--data", "nowhere.jsonl"), ["nowhere.jsonl"]),
        (("--model", "plates-tiny", "--data", "plates:nowhere:4"), ["nowhere"]),
        ((*DATA, "--top", "0"), ["--top"]),
        ((*DATA, "--top", "1.5"), ["--top"]),
        ((*DATA, "--limit", "0"), ["--limit"]),
        ((*DATA, "--rows", "0"), ["--rows"]),
        ((*DATA, "-o", "profile.txt"), ["profile.txt", ".json"]),
        ((*DATA, "--figure", "profile.png"), ["profile.png", ".html"]),
        ((*DATA, "--columns", "nonsense"), ["nonsense"]),
    ],
)
def test_profile(seeing_command, monkeypatch, tmp_path, words, named):
    monkeypatch.chdir(tmp_path)
    check(seeing_command("profile", *words), *named)
    assert not list(tmp_path.iterdir())


def test_a_profile_needs_boxes(seeing_command, loaded, photo, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text(f'{{"id": "a", "image": "{photo[0]}", "question": "{QUESTION}", "answer": "3"}}\n')
    words = ("--model", "plates-tiny", "--data", lines, "--images", photo[0].parent)
    check(seeing_command("profile", *words), "no sample has")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("evidnece", *DATA), ["no probe 'evidnece'", "did you mean 'evidence'?", "knockout"]),
        (("evidence", "--model", "plates-tiny"), ["--data"]),
        (("knockout", *DATA, "--set", "windw=3"), ["probe knockout", "'windw'", "window=9"]),
        (("knockout", *DATA, "--set", "window"), ["key=value"]),
        (("knockout", *DATA, "--set", "window=wide"), ["window is a whole number"]),
        (("knockout", *DATA, "--set", "flows=nowhere->last"), ["nowhere"]),
        (("evidence", *DATA, "--set", "rule=most"), ["most"]),
        (("sinks", *DATA), ["no dimension"]),
        (("evidence", *DATA, "--methods", "vea"), ["--methods", "wrong_attention"]),
        (("evidence", *DATA, "-o", "found.xlsx"), ["found.xlsx", ".parquet"]),
        (("evidence", *DATA, "--profile", "nowhere.json"), ["nowhere.json"]),
    ],
)
def test_probe(seeing_command, loaded, monkeypatch, tmp_path, words, named):
    monkeypatch.chdir(tmp_path)
    check(seeing_command("probe", *words), *named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("--dtype", "nonsense"),
        ("--attn", "nonsense"),
        ("--device-map", "nowhere"),
        ("--device-map", "cuda:99"),
    ],
)
def test_options_of_loading(seeing_command, photo, words):
    check(seeing_command("ask", photo[0], QUESTION, *words), words[1].split(":")[0])


def test_listings(seeing_command):
    check(seeing_command("methods", "veaa"), "no method 'veaa'", "did you mean 'vea'?")
    check(seeing_command("models", "nope"), "no family 'nope'")


def test_a_method_that_fails_on_its_own_line_is_named(seeing_command, loaded, photo, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("METHODS = {'a': lambda vlm: vlm.nothing}\n")
    check(seeing_command("ask", photo[0], QUESTION, "--method", path), "mine.py, line 1", "AttributeError")
