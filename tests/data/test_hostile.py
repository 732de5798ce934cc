"""Whatever stands in a file that somebody else wrote: a sample fails with its reason, the others stand."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from data.conftest import picture, same, visual_cot
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seeing.data.opening import BadData, BadSample, open_data


def fails(data, i: int, kind: str, *words: str) -> None:
    """Sample `i` fails in that way, in one line that has these words."""
    with pytest.raises(BadSample) as bad:
        data.sample(i)
    assert bad.value.kind == kind, bad.value
    assert bad.value.id == data.id(i)
    assert "\n" not in bad.value.reason
    assert len(bad.value.reason) < 1000
    for word in words:
        assert word in bad.value.reason


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"question": ...}, "no question", ["'question'"]),
        ({"question": "  "}, "no question", []),
        ({"question": 7}, "no question", ["7"]),
        ({"question": ["a"]}, "no question", []),
        ({"question": "half \ud800"}, "broken text", ["question"]),
        ({"answer": ...}, "no answer", ["'answers' or 'possible_answers' or 'answer'"]),
        ({"answer": ""}, "no answer", []),
        ({"answer": "", "answers": ["", None]}, "no answer", []),
        ({"answer": float("nan")}, "no answer", []),
        ({"answer": {"text": "a"}}, "no answer", []),
        ({"answer": "\udfff"}, "broken text", ["answer"]),
        ({"image": ...}, "no picture", []),
        ({"image": ""}, "no picture", []),
        ({"image": 7}, "no picture", ["int"]),
        ({"image": []}, "no picture", []),
        ({"image": ["0.png", "1.png"]}, "no picture", ["2 pictures"]),
        ({"image": {"url": "x"}}, "no picture", []),
        ({"image": "nowhere.png"}, "missing picture", ["'nowhere.png'", "images"]),
        ({"image": "http://example.org/0.png"}, "missing picture", ["address"]),
        ({"image": "a\x00b.png"}, "missing picture", []),
        ({"image": "x" * 5000}, "missing picture", []),
        ({"image": "\ud800.png"}, "missing picture", []),
        ({"image": "."}, "missing picture", []),
        ({"width": 61}, "other size", ["60 x 40", "61 x 40"]),
        ({"width": "wide"}, "other size", ["wide"]),
        ({"height": [40]}, "other size", []),
        ({"height": float("nan")}, "other size", []),
        ({"bboxs": [[60, 5, 70, 20]]}, "bad box", ["outside", "60 x 40"]),
        ({"bboxs": [[-9, 5, 0, 20]]}, "bad box", ["outside"]),
        ({"bboxs": [[10, 5, 10, 20]]}, "bad box", ["no area"]),
        ({"bboxs": [[30, 5, 10, 20]]}, "bad box", ["no area"]),
        ({"bboxs": [[1, 2, float("nan"), 4]]}, "bad box", ["finite"]),
        ({"bboxs": [[1, 2, float("inf"), 4]]}, "bad box", ["finite"]),
        ({"bboxs": [[1, 2, 10**400, 4]]}, "bad box", ["too large"]),
        ({"bboxs": [["1", "2", "3", "4"]]}, "bad box", ["four numbers"]),
        ({"bboxs": [[True, 2, 3, 4]]}, "bad box", ["four numbers"]),
        ({"bboxs": [[1, 2, 3]]}, "bad box", ["four numbers"]),
        ({"bboxs": [[1, 2, 3, 4], None]}, "bad box", ["four numbers"]),
        ({"bboxs": [[[[1, 2, 3, 4]]]]}, "bad box", ["four numbers"]),
        ({"bboxs": [[1, 2, 3, 4]] * 1001}, "bad box", ["1001 boxes"]),
        ({"bboxs": "1 2 3 4"}, "bad box", ["lists"]),
        ({"bboxs": {"x": 1}}, "bad box", ["lists"]),
        ({"bboxs": [[0.1, 0.2, 0.5, 0.9]]}, "bad box", ["box_format=fraction"]),
    ],
)
def test_a_wrong_record_fails_alone_with_its_reason(lines, changes, kind, words):
    data = open_data(lines(visual_cot(0), visual_cot(0, **changes), visual_cot(2)))
    assert len(data) == 3
    fails(data, 1, kind, *words)
    assert same(data.sample(0).image, 0)
    assert same(data.sample(2).image, 2)
    assert len(data.fingerprint()) == 64


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", ["line 2 is no JSON"]),
        ("[1, 2]", ["line 2 holds a list"]),
        ("null", ["line 2 holds a NoneType"]),
        ('{"question": "cut', ["line 2"]),
        ("[" * 100_000, ["line 2 is nested too deeply"]),
        ('{"a": ' + "9" * 5000 + "}", ["line 2"]),
        ("{} {}", ["line 2"]),
    ],
)
def test_a_malformed_line_fails_alone(lines, line, words):
    data = open_data(lines(visual_cot(0), line, visual_cot(2)))
    assert [data.id(i) for i in range(3)] == ["0", "1", "2"]
    fails(data, 1, "malformed line", *words)
    assert same(data.sample(2).image, 2)


def test_bytes_that_are_no_text_fail_alone(tmp_path, pictures):
    path = tmp_path / "x.jsonl"
    good = json.dumps(visual_cot(1)).encode()
    path.write_bytes(b'{"question": "\xff\xfe"}\n' + good + b"\n")
    data = open_data(path)
    fails(data, 0, "malformed line", "line 1")
    assert same(data.sample(1).image, 1)


def test_byte_order_marks_blank_lines_and_carriage_returns(tmp_path, pictures):
    path = tmp_path / "x.jsonl"
    written = [json.dumps(visual_cot(i), ensure_ascii=False).encode() for i in range(3)]
    path.write_bytes(b"\xef\xbb\xbf" + written[0] + b"\r\n\r\n  \r\n" + written[1] + b"\r\n" + written[2])
    data = open_data(path)
    assert [data.sample(i).question for i in range(len(data))] == [f"what is number {i}?" for i in range(3)]
    path.write_bytes(b"\xef\xbb\xbf\n{broken\n" + written[0])
    fails(open_data(path), 0, "malformed line", "line 2")
    (tmp_path / "y.json").write_bytes(b"\xef\xbb\xbf[" + written[1] + b"]")
    assert same(open_data(tmp_path / "y.json").sample(0).image, 1)


def test_words_of_every_script(lines, pictures):
    picture(1).save(pictures / "Größe 猫 🐈.png")
    record = visual_cot(1, image="Größe 猫 🐈.png", question="¿qué? 何 🐈‍⬛", answer="ß", id="猫/1")
    sample = open_data(lines(record)).sample(0)
    assert (sample.id, sample.question, sample.answers) == ("猫/1", "¿qué? 何 🐈‍⬛", ("ß",))
    assert same(sample.image, 1)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "a/../../secret.png", "images/../../secret.png", "{outside}/secret.png", "..", "/"],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    inside = tmp_path / "set"
    (inside / "images" / "a").mkdir(parents=True)
    picture(5).save(tmp_path / "secret.png")
    picture(5).save(inside / "secret.png")
    path = inside / "x.jsonl"
    path.write_text(json.dumps(visual_cot(0, image=name.format(outside=tmp_path))))
    fails(open_data(path), 0, "picture outside", "leads out")
    fails(open_data(path, images=inside / "images"), 0, "picture outside", "leads out")


@pytest.mark.parametrize("dataset", ["..", "../..", "/", ".", "a/b", 7, None, "\x00", "x" * 999])
def test_the_name_of_a_source_does_not_lead_out_either(tmp_path, dataset):
    inside = tmp_path / "set"
    inside.mkdir()
    picture(5).save(tmp_path / "0.png")
    path = inside / "x.jsonl"
    path.write_text(json.dumps(visual_cot(0, dataset=dataset)))
    fails(open_data(path), 0, "missing picture")


def test_a_whole_path_into_the_folder_is_taken(lines, pictures):
    data = open_data(lines(visual_cot(1, image=str(pictures / "1.png"))))
    assert same(data.sample(0).image, 1)


def test_a_link_inside_the_folder_is_followed(tmp_path, lines, pictures):
    (tmp_path / "store").mkdir()
    picture(7).save(tmp_path / "store" / "far.png")
    (pictures / "near.png").symlink_to(tmp_path / "store" / "far.png")
    assert same(open_data(lines(visual_cot(0, image="near.png"))).sample(0).image, 7)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it is `side` x `side`."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "broken picture"),
        (b"dear reader", "broken picture"),
        (b"\x89PNG\r\n\x1a\n", "broken picture"),
        (bomb(11_000), "picture too large"),
        (bomb(60_000), "picture too large"),
        (bomb(2_000), "broken picture"),
    ],
)
def test_a_broken_or_gigantic_picture_fails_alone(lines, pictures, content, kind):
    (pictures / "bad.png").write_bytes(content)
    data = open_data(lines(visual_cot(0, image="bad.png"), visual_cot(1)))
    fails(data, 0, kind)
    assert same(data.sample(1).image, 1)


def test_a_picture_cut_short_fails_alone(lines, pictures):
    whole = (pictures / "0.png").read_bytes()
    (pictures / "0.png").write_bytes(whole[: len(whole) // 2])
    fails(open_data(lines(visual_cot(0), visual_cot(1))), 0, "broken picture")


def test_what_is_no_file_is_no_picture(lines, pictures):
    os.mkfifo(pictures / "pipe.png")
    (pictures / "folder.png").mkdir()
    data = open_data(lines(visual_cot(0, image="pipe.png"), visual_cot(0, image="folder.png")))
    fails(data, 0, "missing picture")
    fails(data, 1, "missing picture")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b"", "empty"),
        ("x.jsonl", b"\n \n", "empty"),
        ("x.json", b"", "empty"),
        ("x.csv", b"", "empty"),
        ("x.csv", b"question,answer\n", "no rows"),
        ("x.csv", b"a,a\n1,2\n", "two columns"),
        ("x.jsonl", b"\x1f\x8b\x08\x00", "gzip"),
        ("x.json", b"PK\x03\x04", "zip"),
        ("x.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("x.jsonl", b"[\n{}\n]", "json"),
        ("x.json", b"[{", "no JSON"),
        ("x.json", b"[]", "no samples"),
        ("x.json", b"{}", "'annotations'"),
        ("x.json", b'{"questions": []}', "questions"),
        ("x.json", b'"text"', "text"),
        ("x.json", b"[" * 100_000, "nested"),
        ("x.json", b'{"images": 5, "annotations": []}', "COCO"),
        ("x.json", b'{"images": [], "annotations": [7]}', "COCO"),
        ("x.json", b'["\xff"]', "UTF-8"),
        ("x.parquet", b"PAR1 nothing PAR1", "x.parquet"),
        ("x.parquet", b"", "x.parquet"),
        ("x.pkl", b"cos\nsystem\n(S'false'\ntR.", "pickled"),
        ("x.jsonl.gz", b"", "unpack"),
        ("x.txt", b"", ".jsonl"),
        ("x", b"", ".jsonl"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadData, match=words) as error:
        open_data(tmp_path / name)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "where",
    ["", "  ", "nowhere.jsonl", "x" * 5000, "a\x00b", "x.jsonl?", "x.jsonl?limit", "x.jsonl?colour=red"],
)
def test_what_is_not_there_is_refused(where):
    with pytest.raises(BadData):
        open_data(where)


@pytest.mark.parametrize(
    "options",
    ["limit=0", "limit=x", "limit=1&limit=2", "box_format=yxyx", "images=/nowhere/at/all", "limit=²"],
)
def test_options_that_are_none(lines, options):
    with pytest.raises(BadData):
        open_data(f"{lines(visual_cot(0))}?{options}")


@pytest.mark.parametrize("data", [7, None, b"x.jsonl", [1, 2], [], {"a": 1}])
def test_what_is_no_data_at_all(data):
    with pytest.raises((BadData, TypeError)):
        open_data(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from(list(visual_cot(0))), value=json_values)
def test_no_value_of_any_field_raises_anything_else(tmp_path_factory, field, value):
    folder = tmp_path_factory.mktemp("any")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "0.png")
    (folder / "x.jsonl").write_text(json.dumps(visual_cot(0) | {field: value, "id": value}))
    data = open_data(folder / "x.jsonl")
    data.fingerprint()
    data.id(0).encode()
    assert data.has_boxes in (True, False)
    try:
        sample = data.sample(0)
    except BadSample:
        return
    assert sample.question.strip()
    assert all(answer.strip() for answer in sample.answers)
    for x0, y0, x1, y1 in sample.boxes:
        assert min(x1, 60) > max(x0, 0)
        assert min(y1, 40) > max(y0, 0)
