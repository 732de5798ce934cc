"""The report is one file that loads nothing, escapes everything and holds every number of the run."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import plotly.offline
import pytest
from pages import Page
from PIL import Image

from seeing.show import gallery, pages, pictures, report, write_report


@pytest.fixture(scope="module")
def result(run):
    return run(gallery=12)


@pytest.fixture(scope="module")
def html(result):
    return report.render(result)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def nasty_html(run, nasty):
    """A run in which every text that a model, a data set or a user gives is hostile."""
    result = run(gallery=3)
    method = f"second-look{nasty}"
    items = tuple(
        replace(
            item,
            sample=nasty,
            question=nasty,
            truth=(nasty, "0"),
            answers={"base": nasty, method: nasty},
            correct={"base": False, method: True},
            maps={nasty: item.heat},
        )
        for item in result.gallery
    )
    table = tuple(
        replace(row, method=method if row.method == "second-look" else row.method, about=nasty)
        for row in result.table
    )
    hostile = replace(
        result, model=nasty, split=nasty, table=table, rule=replace(result.rule, method=method),
        gallery=items, command=nasty, versions={nasty: nasty}, notes=(nasty,),
    )  # fmt: skip
    return report.render(hostile)


def test_it_holds_plotly_once_and_only_known_scripts(html, page):
    assert html.count(plotly.offline.get_plotlyjs()[:2000]) == 1
    run_by_the_browser = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    assert len(run_by_the_browser) == 2


def test_it_loads_nothing(html, page):
    loading = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}
    for tag, attrs in page.elements:
        for name in loading & attrs.keys():
            assert attrs[name].startswith(("data:image/webp;base64,", "#")), (tag, name)
    assert not page.all("link")
    assert not page.all("iframe")
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style


def test_its_policy_allows_its_own_scripts_and_no_other(page):
    (policy,) = [
        meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    scripts = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    assert pages.content_policy(scripts) == policy


def test_it_says_what_was_run(page, result):
    for said in (
        "plates-tiny",
        "crowded",
        result.command,
        "nnsight 0.8.1",
        "48\u202fs",
        "912 MB",
        "not evidence about real",
    ):
        assert said in page.text


def test_the_table_holds_every_row_of_the_run(page, result):
    rows = page.text.split("McNemar’s p are against base")[1]
    for row in result.table:
        assert row.method in rows
        assert f"{100 * row.accuracy:.1f}\u202f%" in rows
    assert "33 7" in rows


def test_it_shows_the_share_and_the_rule(page, result):
    assert f"{100 * result.wrong_seen.value:.1f}\u202f% of 77 wrong answers" in page.text
    assert f"{100 * result.rule.gain:.1f}\u202f%" in page.text
    assert "seen, not believed" in page.text


def test_figures_hold_the_arrays(page, result):
    data = {
        attrs["id"]: json.loads(text)
        for attrs, text in page.scripts
        if attrs.get("type") == "application/json"
    }
    assert data.keys() == {"templates", "data-methods", "data-heads", "data-auroc", "data-rapt"}
    assert data["templates"].keys() == {"light", "dark"}
    assert all("template" not in figure["layout"] for name, figure in data.items() if name != "templates")
    curves = [trace for trace in data["data-auroc"]["data"] if trace.get("mode") == "lines+markers"]
    for trace, curve in zip(curves, result.depth("auroc", ("evidence",)), strict=True):
        packed = trace["y"]
        drawn = np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"])
        np.testing.assert_array_equal(drawn, curve.mean)


def test_each_figure_has_its_numbers_as_a_table(page, result):
    first = result.depth("rapt", ("evidence",))[0]
    assert f"{first.mean[0]:.3f} ({first.low[0]:.3f}–{first.high[0]:.3f})" in page.text
    assert f"{result.auroc_heads[0, 0]:.3f}" in page.text


def test_cards_can_be_filtered_by_outcome_and_by_seen(page, result):
    cards = [attrs for attrs in page.all("li") if attrs.get("class") == "card"]
    assert len(cards) == 12
    wanted = {
        (gallery.outcome(i, "base", "second-look"), "seen" if i.seen else "not seen") for i in result.gallery
    }
    assert {(card["data-outcome"], card["data-seen"]) for card in cards} == wanted
    marks = [attrs for attrs in page.all("div") if "data-method" in attrs]
    assert len(marks) == 12 * 4
    assert {mark["data-correct"] for mark in marks} == {"yes", "no"}
    shown = {mark["data-method"] for mark in marks if "hidden" not in mark}
    assert shown == {"base", "second-look"}
    radios = {(attrs["name"], attrs["value"]) for attrs in page.all("input") if attrs.get("type") == "radio"}
    assert {("outcome", name) for name in gallery.OUTCOMES} <= radios
    assert {("seen", "seen"), ("seen", "not seen"), ("map", "reflect"), ("map", "nearest")} <= radios


def test_boxes_are_drawn_at_their_pixels(page, result):
    item = gallery.chosen(result)[0]
    (x0, y0, x1, y1) = item.boxes[0]
    rect = next(attrs for attrs in page.all("rect") if attrs["class"] == "evidence")
    assert [float(rect[name]) for name in ("x", "y", "width", "height")] == [x0, y0, x1 - x0, y1 - y0]


def test_everything_that_is_operated_has_a_name(page):
    for image in page.all("img"):
        assert "alt" in image
    for control in page.all("svg"):
        assert control["aria-label"]
    assert ("html", {"lang": "en"}) in page.elements
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_hostile_text_is_text(nasty_html, nasty):
    page = Page(nasty_html)
    assert page.text.count(nasty) > 20
    scripts = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    assert len(scripts) == 2
    assert not page.all("b") or all(attrs == {} for attrs in page.all("b"))
    for attrs, text in page.scripts:
        if attrs.get("type") == "application/json":
            assert "<" not in text
            assert "alert(1)" not in text.replace("\\u0026lt;script\\u0026gt;alert(1)", "")
            json.loads(text)
    assert "<script>alert" not in nasty_html


def test_the_gallery_is_capped_and_takes_from_each_outcome_in_turn(run):
    result = run(gallery=70)
    chosen = gallery.chosen(result)
    assert len(chosen) == gallery.MOST_ITEMS
    first = {(gallery.outcome(item, "base", "second-look"), item.seen) for item in chosen[:8]}
    assert len(first) == 8


def test_a_full_gallery_of_the_largest_pictures_fits_the_cap():
    plotly_characters = len(plotly.offline.get_plotlyjs())
    assert gallery.MOST_CHARACTERS + plotly_characters < pages.MOST_BYTES - 400_000
    assert gallery.MOST_ITEMS * pictures.PICTURE_BYTES * 4 / 3 < gallery.MOST_CHARACTERS


def test_large_photos_are_shrunk_and_those_without_room_left_out(run, tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (900, 1200, 3), dtype=np.uint8))
    monkeypatch.setattr(gallery, "MOST_CHARACTERS", 120_000)
    result = run(gallery=8)
    result = replace(result, gallery=tuple(replace(item, image=noise) for item in result.gallery))
    path = write_report(result, tmp_path / "report.html")
    assert path.stat().st_size < pages.MOST_BYTES
    shown = len([attrs for attrs in Page(path.read_text("utf-8")).all("li") if attrs.get("class") == "card"])
    assert 3 <= shown < 8


def test_a_page_above_the_cap_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="expected at most 1,000"):
        write_report(run(gallery=0), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_writing_makes_the_folder_and_replaces_the_file(run, tmp_path):
    path = tmp_path / "new" / "report.html"
    path.parent.mkdir()
    path.write_text("old")
    assert write_report(run(gallery=1), str(path)) == path
    assert path.read_text("utf-8").startswith("<!doctype html>")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_folder_that_is_a_file_is_an_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_report(run(gallery=0), tmp_path / "file" / "report.html")


def test_a_run_without_curves_gallery_or_wrong_answers_is_reported(run):
    page = Page(report.render(replace(run(wrong=0, gallery=0), curves=(), heads=(), layers=(), notes=())))
    assert "kept no samples" in page.text
    assert not re.search(r"\bnan\b", page.text)
    assert not [attrs for attrs in page.all("figure") if attrs["id"] in ("plot-auroc", "plot-rapt")]


def test_long_and_broken_text_is_cut_and_mended():
    assert gallery.clean("a" * 1000) == "a" * 400 + " … (600 more characters)"
    assert gallery.clean("a\ud800b") == "a?b"


def test_pictures_shrink_until_they_fit():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8))
    uri = pictures.picture_uri(noise)
    data = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    assert len(data) <= pictures.PICTURE_BYTES
    wide, high = Image.open(io.BytesIO(data)).size
    assert wide / high == pytest.approx(900 / 700, rel=0.02)


def test_a_small_map_keeps_every_cell():
    heat = np.array([[0.0, 0.5], [1.0, 0.25]])
    data = base64.b64decode(pictures.map_uri(heat).removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(data)).size == (2, 2)
    large = base64.b64decode(pictures.map_uri(np.ones((300, 600))).removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(large)).size == (64, 32)


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
    assert shown.stdout.count('class="main-svg"') >= 4
    assert "of 3 samples" in shown.stdout
    assert "CONSOLE" not in shown.stderr, shown.stderr
