"""The report of a data set against numbers that were counted by hand."""

import json
import weakref

import pytest
from data.conftest import picture, visual_cot

from seeing.data.check import EXAMPLES, check
from seeing.data.opening import open_data


@pytest.fixture
def mixed(lines, pictures):
    """Ten samples: five good, of which one has no boxes, and five that fail in three ways."""
    picture(9, 200, 100).save(pictures / "wide.png")
    return lines(
        visual_cot(0, bboxs=[[0, 0, 30, 20]]),
        visual_cot(1, bboxs=[[0, 0, 30, 20], [15, 0, 45, 20]]),
        visual_cot(2, bboxs=[], answers=["a", "b", "c"]),
        visual_cot(3, bboxs=[[-30, -20, 600, 400]]),
        visual_cot(0, image="wide.png", width=200, height=100, bboxs=[[0, 0, 20, 10]]),
        visual_cot(0, image="gone.png"),
        visual_cot(0, image="gone.png"),
        visual_cot(0, image="lost.png"),
        visual_cot(0, answer=...),
        "{broken",
    )


def test_a_report_counts_what_is_there(mixed):
    report = check(open_data(mixed))
    assert (report.samples, report.good, report.with_boxes) == (10, 5, 4)
    assert (report.width.least, report.width.median, report.width.most) == (60, 60, 200)
    assert report.width.mean == pytest.approx((4 * 60 + 200) / 5)
    assert (report.height.least, report.height.most) == (40, 100)
    assert (report.boxes.least, report.boxes.mean, report.boxes.most) == (0, 1, 2)
    assert report.answers.most == 3
    # A quarter; two boxes that overlap; all of it, cut at the edges; a hundredth.
    shares = [0.25, 45 * 20 / (60 * 40), 1.0, 0.01]
    assert report.share.mean == pytest.approx(sum(shares) / 4)
    assert (report.share.least, report.share.most) == pytest.approx((0.01, 1.0))


def test_failures_are_counted_by_kind_with_examples(mixed):
    report = check(open_data(mixed))
    assert {kind: found.count for kind, found in report.failed.items()} == {
        "missing picture": 3,
        "malformed line": 1,
        "no answer": 1,
    }
    assert next(iter(report.failed)) == "missing picture"
    assert [id for id, _ in report.failed["missing picture"].examples] == ["5", "6", "7"]
    assert "'lost.png'" in report.failed["missing picture"].examples[2][1]
    assert json.loads(json.dumps(report.as_dict()))["failed"]["no answer"]["count"] == 1


def test_few_examples_are_kept_of_many_failures(lines):
    report = check(open_data(lines(*(visual_cot(0, image="gone.png") for _ in range(40)))))
    assert report.failed["missing picture"].count == 40
    assert len(report.failed["missing picture"].examples) == EXAMPLES
    assert (report.good, report.width, report.share) == (0, None, None)


def test_ids_that_are_given_twice_are_told(lines):
    report = check(open_data(lines(*(visual_cot(0, id=id) for id in "abab"))))
    assert report.repeated == ("a", "b")


def test_progress_is_told_to_the_last_sample(mixed):
    told = []
    check(open_data(mixed), lambda what, done, total: told.append((done, total)))
    assert told == [(i, 10) for i in range(1, 11)]


def test_one_picture_is_held_at_a_time(lines, monkeypatch):
    data = open_data(lines(*(visual_cot(i % 4) for i in range(30))))
    pictures, counts, read = [], [], data.sample

    def watched(i):
        sample = read(i)
        pictures.append(weakref.ref(sample.image))
        counts.append(sum(one() is not None for one in pictures))
        return sample

    monkeypatch.setattr(data, "sample", watched)
    assert check(data).good == 30
    assert max(counts) <= 2
