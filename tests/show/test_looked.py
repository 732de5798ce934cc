"""What a model looked at: the map against the bare model's own attention, and the file that shows it."""

import re

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from seeing.data.samples import EvidenceSample
from seeing.figures import theme
from seeing.show.look import look
from seeing.show.looked import LEAST, MOST, Panel, side_by_side, write_looked


def test_the_map_is_the_mean_attention_of_the_layers_painted_on_the_picture(trained, bare_trained, crowded):
    sample = crowded[1]
    found = look(trained, trained.prompt(sample), [2, 4])
    rows = bare_trained.image_rows(sample.image, sample.question)[[2, 4]].mean((0, 1))
    np.testing.assert_allclose(found.heat, np.kron(rows.reshape(8, 8), np.ones((14, 14))), atol=1e-6)
    assert found.region is None


def test_the_auroc_is_the_mean_over_the_layers(trained, bare_trained, crowded, labels_of):
    sample = crowded[1]
    found = look(trained, trained.prompt(sample), [1, 4])
    rows = bare_trained.image_rows(sample.image, sample.question).mean(1)
    scores = [roc_auc_score(labels_of(sample), rows[layer]) for layer in (1, 4)]
    assert found.evidence_auroc == pytest.approx(np.mean(scores), abs=1e-6)
    bare = trained.prompt(sample.image, sample.question)
    assert look(trained, bare, [1, 4]).evidence_auroc is None


def test_the_map_of_a_cropped_picture_is_empty_where_no_token_looks(trained, mixed):
    sample = mixed[3]  # 150 × 112, the middle 112 columns are seen
    heat = look(trained, trained.prompt(sample), [3]).heat
    assert heat.shape == (112, 150)
    assert np.isnan(heat[:, :19]).all()
    assert np.isnan(heat[:, 131:]).all()
    assert np.isfinite(heat[:, 19:131]).all()


def test_the_region_is_where_the_heads_point(planted, squares):
    for sample in squares(4):
        found = look(planted, planted.prompt(sample), [0, 5], {2: [1]})
        assert found.region == sample.boxes[0]


# ---- the file ------------------------------------------------------------------------------------


@pytest.fixture
def grey():
    return Image.new("RGB", (400, 200), (128, 128, 128))


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def places(sheet, colour):
    """(left, top, right, bottom) of the pixels of a colour; None where there are none."""
    rows, cols = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return (cols.min(), rows.min(), cols.max(), rows.max()) if len(rows) else None


def test_a_panel_is_the_picture_with_its_boxes(grey):
    sheet = side_by_side([Panel("as it is", grey, boxes=[(100, 50, 300, 150)])], "a question")
    left, top, right, bottom = places(sheet, rgb(theme.colour_of("evidence")))
    assert (right - left + 1, bottom - top + 1) == (200, 100)
    picture = places(sheet, (128, 128, 128))
    assert (picture[2] - picture[0] + 1, picture[3] - picture[1] + 1) == (400, 200)
    assert (left - picture[0], top - picture[1]) == (100, 50)
    assert places(sheet, rgb(theme.colour_of("look"))) is None


def test_attention_is_bright_where_it_is_and_leaves_alone_what_no_token_sees(grey):
    heat = np.zeros((200, 400))
    heat[:, 100:200], heat[:, 300:] = 5.0, np.nan
    sheet = np.asarray(side_by_side([Panel("", grey, heat)], "")).astype(int)
    left, top, right, _ = places(sheet, (128, 128, 128))
    assert right - left + 1 == 100  # the part under NaN
    line = sheet[top + 100, left - 300 : left + 100]
    assert line[:100].mean() < 90 < 128 < line[100:200].mean()
    assert (line[:100] == line[0]).all()


def test_panels_stand_side_by_side_in_sizes_that_can_be_read(grey):
    small, wide = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (4000, 10), "blue")
    sheet = side_by_side([Panel("small", small), Panel("wide", wide), Panel("grey", grey)], "three")
    red, blue = places(sheet, (255, 0, 0)), places(sheet, (0, 0, 255))
    assert (red[2] - red[0] + 1, red[3] - red[1] + 1) == (LEAST, LEAST * 6 // 8)
    assert (blue[2] - blue[0] + 1, blue[3] - blue[1] + 1) == (MOST, 2)
    assert red[2] < blue[0] < places(sheet, (128, 128, 128))[0]


def test_a_page_needs_no_other_file_and_shows_text_as_text(grey, tmp_path):
    heat = np.full((20, 40), np.nan)
    heat[5:10, 5:10] = 1
    looked = Panel("<b>looked</b>", grey, heat, [(1, 2, 3, 4)])
    panels = [looked, Panel("shown", grey), Panel("two", grey, heat)]
    path = write_looked(panels, tmp_path / "page.html", "who & why?")
    text = path.read_text()
    assert "<title>who &amp; why?</title>" in text
    assert "&lt;b&gt;looked&lt;/b&gt;" in text
    assert "<b>looked" not in text
    assert text.count("plotly.js v") == 1
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="(?!data:)', text)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_picture_file_opens_again(grey, tmp_path, kind):
    path = write_looked([Panel("one", grey)], tmp_path / f"looked.{kind}", "title")
    with Image.open(path) as found:
        assert found.size[0] > 400


def test_evidence_everywhere_has_no_auroc(trained, crowded):
    """All tokens are evidence: there is nothing to compare with."""
    whole = EvidenceSample("all", crowded[0].image, crowded[0].question, ("1",), ((0, 0, 112, 112),))
    assert look(trained, trained.prompt(whole), [3]).evidence_auroc is None
