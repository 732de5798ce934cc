"""The page of a study holds what was run, what the rows say and what failed; nothing hostile in it runs."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from invented import failure, row, rows, write_study
from pages import Page

from seeing.data.opening import open_data
from seeing.data.plates import plates
from seeing.show import pages, study_gallery
from seeing.show.gallery import OUTCOMES
from seeing.show.study_report import reasons, render, write_study_report
from seeing.study.settings import StudyError
from seeing.study.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = rows(models=("a", "b"), data=("crowded", "easy"), n=20)
    gone = made.pop(2)
    lost = [
        failure(gone["model"], gone["data"], gone["sample"], gone["method"], "out of memory"),
        *(failure("a", "easy", f"easy/{n}", None, "no picture") for n in range(40, 45)),
    ]
    return Study.open(write_study(tmp_path_factory.mktemp("study"), made, lost))


@pytest.fixture(scope="module")
def html(study):
    return render(study)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_it_says_what_was_run(page, study):
    for said in (
        "a, b on crowded, easy",
        "seeing study --model plates-tiny",
        "torch 2.13.0",
        "commit 0123abc",
    ):
        assert said in page.text
    assert f"Answers {len(study.rows)}" in page.text
    assert "Failures 6" in page.text
    assert '"max_new_tokens": null' in page.text


def test_it_holds_the_tables(page, study):
    for block in study.table("em,f1").blocks:
        assert block.title in page.text
        for line in block.lines:
            assert " ".join(cell.text for cell in line if cell.text) in page.text


def test_a_figure_shows_each_model_and_data_set(page, study):
    numbers = study.table("em").to_frame()
    data = {
        attrs["id"]: json.loads(text)
        for attrs, text in page.scripts
        if attrs.get("id", "").startswith("data-methods")
    }
    assert len(data) == 4
    first = next(trace for trace in data["data-methods-0"]["data"] if trace["mode"] == "markers")
    own = numbers[(numbers["model"] == "a") & (numbers["data"] == "crowded")]["mean"]
    np.testing.assert_allclose(_array(first["x"]), own)


def _array(value):
    """An array as plotly writes it: a list, or base64 with a type."""
    if isinstance(value, list):
        return value
    return np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))


def test_failures_stand_by_reason_the_most_frequent_first(page, study):
    found = reasons(study.failures)
    assert [(one.words, one.stage, one.count) for one in found] == [
        ("no picture", "sample", 5),
        ("out of memory", "answer", 1),
    ]
    assert found[0].where == "a on easy"
    assert found[0].examples == "easy/40, easy/41, easy/42"
    assert "no picture sample 5 a on easy easy/40, easy/41, easy/42" in page.text


def test_every_sample_shows_what_each_method_said(page, study):
    cards = [attrs for attrs in page.all("li") if attrs.get("class") == "card"]
    assert len(cards) == 80
    marks = [attrs for attrs in page.all("div") if "data-method" in attrs]
    assert len(marks) == len(study.rows)
    right = sum(attrs["data-correct"] == "yes" for attrs in marks)
    assert right == study.rows["correct"].sum()


def test_outcomes_are_those_of_the_rows(page, study):
    """Against the first method, inst, as a count over the rows."""
    wide = study.rows.pivot(index=["model", "data", "sample"], columns="method", values="correct")
    both = wide[["base", "inst"]].dropna().astype(bool)
    cards = [attrs["data-outcome"] for attrs in page.all("li") if attrs.get("class") == "card"]
    assert cards.count("fixed") == (~both["base"] & both["inst"]).sum()
    assert cards.count("broken") == (both["base"] & ~both["inst"]).sum()
    assert cards.count("both right") == both.all(axis=1).sum()
    assert cards.count("not compared") == len(wide) - len(both)
    radios = {attrs["value"] for attrs in page.all("input") if attrs.get("name") == "outcome"}
    assert radios == {"", *OUTCOMES, "not compared"}


def test_outcome_by_hand():
    said = study_gallery.outcome
    assert said({"base": False, "vea": True}, "base", "vea") == "fixed"
    assert said({"base": True, "vea": False}, "base", "vea") == "broken"
    assert said({"base": True, "vea": True}, "base", "vea") == "both right"
    assert said({"base": False, "vea": False}, "base", "vea") == "both wrong"
    assert said({"base": True}, "base", "vea") == "not compared"
    assert said({"base": True}, None, None) == "not compared"


def test_a_large_study_shows_some_of_every_outcome(tmp_path):
    made = rows(methods={"base": 0.97, "vea": 0.98}, n=600, seed=3)
    study = Study.open(write_study(tmp_path, made))
    found = [outcome for _, _, outcome in study_gallery.chosen(study, "base", "vea")]
    assert len(found) == study_gallery.MOST_CARDS
    wide = study.rows.pivot(index="sample", columns="method", values="correct")
    assert found.count("fixed") == (~wide["base"] & wide["vea"]).sum()


def test_everything_that_is_operated_has_a_name(page):
    for control in page.all("select"):
        assert control.get("id") or control.get("name")
    assert ("html", {"lang": "en"}) in page.elements
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


# ---- pictures ----------------------------------------------------------------------------------------------


@pytest.fixture
def pictured(tmp_path):
    """A study of plates, whose data set can be opened again."""
    data = open_data("plates:crowded:3")
    made = [
        row("m", data.name, data.id(n), method, "1", ["2"]) for n in range(3) for method in ("base", "vea")
    ]

    def study(**changes):
        entry = {"name": data.name, "spec": "plates:crowded:3", "fingerprint": data.fingerprint()} | changes
        return Study.open(write_study(tmp_path, made, settings={"data": [entry]}))

    return study


def test_pictures_and_boxes_come_from_the_data_set(pictured):
    page = Page(render(pictured()))
    assert len(page.all("img")) == 3
    sample = plates("crowded", 3)[0]
    x0, y0, x1, y1 = sample.boxes[0]
    boxes = [attrs for attrs in page.all("rect") if attrs["class"] == "evidence"]
    places = [[float(box[name]) for name in ("x", "y", "width", "height")] for box in boxes]
    assert [x0, y0, x1 - x0, y1 - y0] in places


@pytest.mark.parametrize(
    "changes",
    [{"fingerprint": "00"}, {"spec": "gone.jsonl"}, {"spec": "hub:no/such"}, {"spec": "plates:crowded:2"}],
    ids=["others", "gone", "far", "fewer"],
)
def test_a_data_set_that_is_not_there_as_it_was_shows_no_picture(pictured, changes):
    page = Page(render(pictured(**changes)))
    assert not page.all("img")
    assert len([attrs for attrs in page.all("li") if attrs.get("class") == "card"]) == 3


def test_pictures_can_be_left_out_and_stay_within_their_room(pictured, monkeypatch):
    assert not Page(render(pictured(), pictures=False)).all("img")
    monkeypatch.setattr(study_gallery, "MOST_CHARACTERS", 1)
    assert len(Page(render(pictured())).all("img")) == 1


def test_pictures_leave_room_for_the_rest_of_the_page():
    assert study_gallery.MOST_CHARACTERS < pages.MOST_BYTES / 2


# ---- hostile, empty, strange -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nasty_html(nasty, tmp_path_factory):
    """A study in which every text of a model, a data set or a user is hostile."""
    made = [
        {**row(f"m{nasty}", f"d{nasty}", f"{n}{nasty}", method, nasty, [nasty, "0"]), "question": nasty}
        for n in range(3)
        for method in ("base", f"vea{nasty}")
    ]
    lost = [failure(f"m{nasty}", f"d{nasty}", nasty, None, nasty)]
    folder = write_study(tmp_path_factory.mktemp("nasty"), made, lost, settings={"prompt": nasty})
    document = json.loads((folder / "study.json").read_text())
    document["runs"] = [{"started": nasty, "versions": {nasty: nasty}, "commit": nasty, "command": nasty}]
    (folder / "study.json").write_text(json.dumps(document))
    return render(Study.open(folder))


def test_hostile_text_is_text(nasty_html, nasty):
    page = Page(nasty_html)
    assert page.text.count(nasty) > 20
    scripts = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    assert len(scripts) == 2
    assert not page.all("b")
    for attrs, text in page.scripts:
        if attrs.get("type") == "application/json":
            assert "<" not in text
            json.loads(text)
    assert "<script>alert" not in nasty_html
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == pages.content_policy(scripts)


@pytest.mark.parametrize(
    ("base", "make"),
    [
        ("base", lambda: []),
        (None, lambda: rows(methods=("vea",), n=3)),
        ("vea", lambda: rows(methods=("base", "vea"), n=1)),
        (None, lambda: [{**one, "em": None, "f1": None} for one in rows(methods=("base", "vea"), n=3)]),
    ],
    ids=["failed whole", "one method", "one sample", "missing numbers"],
)
def test_empty_and_single_groups_are_reported(tmp_path, base, make):
    made = make()
    lost = [failure("m", "gone", f"gone/{n}") for n in range(2)]
    methods = None if made else ["base", "vea"]
    page = Page(render(Study.open(write_study(tmp_path, made, lost, methods=methods)), base=base))
    assert not re.search(r"\b(nan|None)\b", page.text)
    assert "gone/0, gone/1" in page.text


def test_writing_replaces_the_file_and_says_what_is_wrong(study, tmp_path):
    path = write_study_report(study, tmp_path / "new" / "report.html")
    assert path.read_text().startswith("<!doctype html>")
    with pytest.raises(StudyError, match="no method 'pai'"):
        write_study_report(study, path, base="pai")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page isn't opened in a browser"
)
def test_a_browser_draws_the_page_and_runs_nothing_hostile(nasty_html, tmp_path):
    (tmp_path / "report.html").write_text(nasty_html, "utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000 "
        "--dump-dom"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    page = (tmp_path / "report.html").as_uri()
    shown = subprocess.run(
        [CHROMIUM, *flags.split(), profile, page], capture_output=True, text=True, timeout=90
    )
    assert shown.stdout.count('class="main-svg"') >= 1
    assert "3 of 3 samples" in shown.stdout
    assert "CONSOLE" not in shown.stderr, shown.stderr
