"""Every layout that is read gives the samples that stand in it: question, answers, boxes and pixels."""

import csv
import hashlib
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.conftest import picture, same, visual_cot

from seeing.data.opening import BadData, BadSample, open_data
from seeing.data.plates import plates


def png(number: int) -> bytes:
    held = io.BytesIO()
    picture(number).save(held, "PNG")
    return held.getvalue()


def parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


# -- lines ------------------------------------------------------------------------------------------


def test_visual_cot_lines_are_read_as_they_stand(lines):
    data = open_data(lines(visual_cot(0), visual_cot(1), visual_cot(2)))
    assert (data.name, len(data), data.has_boxes) == ("docvqa", 3, True)
    assert [data.id(i) for i in range(3)] == ["0", "1", "2"]
    sample = data.sample(1)
    assert sample.id == "1"
    assert sample.question == "what is number 1?"
    assert sample.answers == ("answer 1",)
    assert sample.boxes == ((11.5, 5.0, 30.0, 20.0),)
    assert sample.meta == {"dataset": "docvqa", "split": "train"}
    assert same(sample.image, 1)


def test_samples_are_opened_one_by_one(lines, pictures):
    data = open_data(lines(visual_cot(0), visual_cot(1)))
    (pictures / "1.png").unlink()
    before = data.fingerprint()
    assert same(data.sample(0).image, 0)
    with pytest.raises(BadSample, match=r"no picture '1.png'") as bad:
        data.sample(1)
    assert (bad.value.id, bad.value.kind) == ("1", "missing picture")
    picture(1).save(pictures / "1.png")
    assert same(data.sample(1).image, 1)
    assert data.fingerprint() == before


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"answer": "a"}, ("a",)),
        ({"answer": "a", "possible_answers": ["b", "c"]}, ("b", "c")),
        ({"answer": "a", "possible_answers": ["b"], "answers": ["c", "d", "c"]}, ("c", "d", "c")),
        ({"answer": "a", "answers": []}, ("a",)),
        ({"answer": 7}, ("7",)),
        ({"answer": 0}, ("0",)),
        ({"answers": ["yes", "", None, " "]}, ("yes",)),
        ({"answers": [{"answer": "no", "answer_id": 1}, {"answer": "yes", "answer_id": 2}]}, ("no", "yes")),
        ({"answers": "[1]"}, ("[1]",)),
    ],
)
def test_answers_in_all_their_spellings(lines, given, read):
    data = open_data(lines(visual_cot(0, answer=...) | given))
    assert data.sample(0).answers == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([[1, 2, 3, 4]], ((1, 2, 3, 4),)),
        ([1, 2, 3, 4], ((1, 2, 3, 4),)),
        ([[[1, 2, 3, 4]], [[5, 6, 7, 8]]], ((1, 2, 3, 4), (5, 6, 7, 8))),
        ([[[1, 2, 3, 4], [5, 6, 7, 8]]], ((1, 2, 3, 4), (5, 6, 7, 8))),
        ([[-3, -1, 10, 50]], ((-3, -1, 10, 50),)),
        ([], ()),
        (None, ()),
        (..., ()),
    ],
)
def test_boxes_in_all_their_spellings(lines, written, read):
    data = open_data(lines(visual_cot(0, bboxs=written)))
    assert data.sample(0).boxes == read
    assert data.has_boxes == bool(read)


def test_boxes_as_corner_and_size_and_as_fractions(lines):
    path = lines(visual_cot(0, bboxs=[[10, 20, 30, 5]]))
    assert open_data(path, box_format="xywh").sample(0).boxes == ((10, 20, 40, 25),)
    path = lines(visual_cot(0, bboxs=[[0.25, 0.5, 0.5, 1]]))
    assert open_data(path, box_format="fraction").sample(0).boxes == ((15, 20, 30, 40),)
    with pytest.raises(BadSample, match="box_format=fraction"):
        open_data(path).sample(0)
    with pytest.raises(BadSample, match="not fractions"):
        open_data(lines(visual_cot(0)), box_format="fraction").sample(0)


@pytest.mark.parametrize("place", ["", "images", "docvqa", "images/docvqa"])
def test_pictures_are_found_beside_the_file(tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    picture(3).save(tmp_path / place / "p.png")
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(visual_cot(0, image="p.png")))
    assert same(open_data(path).sample(0).image, 3)


def test_pictures_in_a_folder_of_their_own_are_looked_for_there_alone(tmp_path, lines, pictures):
    elsewhere = tmp_path / "else where?"
    (elsewhere / "docvqa").mkdir(parents=True)
    picture(9).save(elsewhere / "docvqa" / "0.png")
    data = open_data(lines(visual_cot(0), visual_cot(1)), images=elsewhere)
    assert same(data.sample(0).image, 9)
    with pytest.raises(BadSample, match="no picture"):
        data.sample(1)
    assert same(open_data(data.spec).sample(0).image, 9)


def test_a_picture_stored_on_its_side_is_measured_upright(lines, pictures):
    exif = picture(0).getexif()
    exif[0x0112] = 6
    picture(0).save(pictures / "0.jpg", exif=exif)
    data = open_data(lines(visual_cot(0, image="0.jpg"), visual_cot(0, image="0.jpg", width=40, height=60)))
    with pytest.raises(BadSample, match="the picture is 40 x 60, the record says 60 x 40"):
        data.sample(0)
    assert data.sample(1).image.size == (40, 60)


def test_a_long_file_opens_without_being_parsed(tmp_path):
    path = tmp_path / "many.jsonl"
    record = json.dumps(visual_cot(0, image="0.png")).encode() + b"\n"
    path.write_bytes(record * 200_000 + b"{broken\n")
    data = open_data(path)
    assert len(data) == 200_001
    assert data.id(200_000) == "200000"
    with pytest.raises(BadSample, match="line 200001 is no JSON"):
        data.sample(200_000)


# -- JSON -------------------------------------------------------------------------------------------


def test_the_authors_layout_is_a_folder(tmp_path, pictures):
    (tmp_path / "metadata.json").write_text(json.dumps([visual_cot(2), visual_cot(3, answers=["x", "y"])]))
    data = open_data(tmp_path)
    assert (data.name, len(data)) == (tmp_path.name, 2)
    assert data.sample(1).answers == ("x", "y")
    assert same(data.sample(0).image, 2)
    assert open_data(tmp_path / "metadata.json").fingerprint() == data.fingerprint()


def test_a_list_under_data_and_lines_named_json_are_told_apart(tmp_path, lines, pictures):
    (tmp_path / "held.json").write_text(json.dumps({"dataset_name": "docvqa", "data": [visual_cot(1)]}))
    assert open_data(tmp_path / "held.json").sample(0).question == "what is number 1?"
    data = open_data(lines(visual_cot(0), visual_cot(1), name="lines.json"))
    assert [data.sample(i).answers for i in range(2)] == [("answer 0",), ("answer 1",)]


COCO = {
    "images": [
        {"id": 5, "file_name": "0.png", "width": 60, "height": 40},
        {"id": 6, "file_name": "1.png", "width": 60, "height": 40},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


@pytest.fixture
def coco(tmp_path, pictures):
    def write(*annotations, **changes):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps({**COCO, **changes, "annotations": list(annotations)}))
        return path

    return write


def test_coco_boxes_are_corner_and_size(coco):
    note = {"id": 70, "image_id": 6, "category_id": 2, "bbox": [10, 5, 20, 30]}
    data = open_data(coco({**note, "question": "what barks?"}))
    sample = data.sample(0)
    assert (data.id(0), sample.question, sample.answers) == ("70", "what barks?", ("dog",))
    assert sample.boxes == ((10, 5, 30, 35),)
    assert same(sample.image, 1)
    assert open_data(coco({**note, "question": "?", "answer": "a dog"})).sample(0).answers == ("a dog",)


def test_each_phrase_that_refers_to_a_box_is_a_sample(coco):
    note = {"id": 70, "image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}
    data = open_data(
        coco(
            {**note, "sentences": [{"raw": "the left one", "sent_id": 3}, {"sent": "grey cat."}]},
            {**note, "id": 71, "caption": "the one on the mat"},
            {**note, "id": 72},
        )
    )
    assert [data.id(i) for i in range(len(data))] == ["70/0", "70/1", "71"]
    assert [data.sample(i).question for i in range(3)] == [
        f"What kind of object is this: {words}?"
        for words in ("the left one", "grey cat", "the one on the mat")
    ]
    assert {data.sample(i).answers for i in range(3)} == {("cat",)}


def test_boxes_of_one_question_are_one_sample(coco):
    note = {"image_id": 5, "question": "how many?", "answer": "2", "category_id": 1}
    data = open_data(
        coco(
            {**note, "id": 1, "bbox": [1, 2, 3, 4]},
            {**note, "id": 2, "bbox": [5, 6, 7, 8]},
            {**note, "id": 3, "image_id": 6, "bbox": [9, 9, 9, 9]},
        )
    )
    assert [data.sample(i).boxes for i in range(len(data))] == [
        ((1, 2, 4, 6), (5, 6, 12, 14)),
        ((9, 9, 18, 18),),
    ]


def test_a_coco_annotation_of_no_picture_fails_alone(coco):
    note = {"question": "what?", "category_id": 1, "bbox": [1, 2, 3, 4]}
    data = open_data(coco({**note, "image_id": 99}, {**note, "image_id": 5}, {**note, "image_id": [1]}))
    assert data.sample(1).answers == ("cat",)
    for i in (0, 2):
        with pytest.raises(BadSample, match="not among the images"):
            data.sample(i)


def test_coco_tables_that_ask_nothing_are_refused(coco):
    with pytest.raises(BadData, match="'sentences'"):
        open_data(coco({"id": 1, "image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}))


def test_coco_columns_speak_of_annotations(coco):
    path = coco({"image_id": 5, "q": "what?", "a": ["x"], "box": [1, 2, 3, 4]})
    data = open_data(path, columns={"question": "q", "answers": "a", "boxes": "box"})
    assert (data.sample(0).question, data.sample(0).answers) == ("what?", ("x",))
    assert data.sample(0).boxes == ((1, 2, 4, 6),)
    assert open_data(data.spec).fingerprint() == data.fingerprint()


# -- tables -----------------------------------------------------------------------------------------


def test_csv_rows_with_breaks_commas_and_lists(tmp_path, pictures):
    path = tmp_path / "table.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answers", "bboxs", "width", "height"])
        writer.writerow(["0.png", "two\nlines, one question?", '["a", "b"]', "[[1, 2, 3, 4]]", "60", "40"])
        writer.writerow(["1.png", "größer?", "[sic] plain", "", "", ""])
    data = open_data(path)
    assert len(data) == 2
    assert data.sample(0).question == "two\nlines, one question?"
    assert data.sample(0).answers == ("a", "b")
    assert data.sample(0).boxes == ((1, 2, 3, 4),)
    assert (data.sample(1).question, data.sample(1).answers) == ("größer?", ("[sic] plain",))
    assert data.sample(1).boxes == ()


def test_tabs_part_the_cells_of_tsv(tmp_path, pictures):
    path = tmp_path / "table.tsv"
    path.write_text("image\tquestion\tanswer\r\n2.png\twhat, now?\t7\r\n\r\n")
    data = open_data(path)
    assert len(data) == 1
    assert (data.sample(0).question, data.sample(0).answers) == ("what, now?", ("7",))


def test_a_row_of_another_length_fails_alone(tmp_path, pictures):
    path = tmp_path / "table.csv"
    path.write_text("image,question,answer\n0.png,what?\n1.png,what?,7\n")
    data = open_data(path)
    assert data.sample(1).answers == ("7",)
    with pytest.raises(BadSample, match="line 2 has 2 cells, the header has 3"):
        data.sample(0)


def test_parquet_pictures_are_streamed(tmp_path):
    rows = [
        {
            "image": {"bytes": png(i), "path": f"{i}.png"},
            "question": f"what is {i}?",
            "answers": [str(i), f"no. {i}"],
            "bboxes": [[1.0 + i, 2.0, 30.0, 40.0]],
        }
        for i in range(23)
    ]
    data = open_data(parquet(tmp_path / "t.parquet", rows, row_group_size=10))
    order = [0, 1, 2, 9, 10, 11, 22, 3, 3, 21]
    for i in order:
        sample = data.sample(i)
        assert same(sample.image, i)
        assert (sample.question, sample.answers) == (f"what is {i}?", (str(i), f"no. {i}"))
        assert sample.boxes == ((1.0 + i, 2.0, 30.0, 40.0),)
    said = str(list(data.said(5)))
    assert "bytes" not in said
    assert "4.png" in said


def test_parquet_of_names_and_of_bare_bytes(tmp_path, pictures):
    rows = [{"image": "1.png", "question": "what?", "answer": "a", "id": "x"}]
    assert same(open_data(parquet(tmp_path / "n.parquet", rows)).sample(0).image, 1)
    rows = [{"image": png(2), "question": "what?", "answer": "a"}]
    assert same(open_data(parquet(tmp_path / "b.parquet", rows)).sample(0).image, 2)


# -- columns, ids, limits ---------------------------------------------------------------------------


def test_columns_are_mapped_and_travel_in_the_spec(lines):
    row = {"query": "what?", "label": "7", "file": "0.png", "where": {"box": [[1, 2, 3, 4]]}, "key": "k"}
    columns = {"question": "query", "answers": "label", "image": "file", "boxes": "where.box", "id": "key"}
    data = open_data(lines(row), columns=columns)
    sample = data.sample(0)
    assert (sample.id, sample.question, sample.answers) == ("k", "what?", ("7",))
    assert sample.boxes == ((1, 2, 3, 4),)
    again = open_data(data.spec)
    assert again.spec == data.spec
    assert again.fingerprint() == data.fingerprint()
    assert again.sample(0).boxes == sample.boxes


def test_a_column_left_out_is_not_read(lines):
    path = lines(visual_cot(0, width=600, height=400))
    with pytest.raises(BadSample, match="600 x 400"):
        open_data(path).sample(0)
    data = open_data(path, columns={"width": "", "height": "", "boxes": ""})
    assert data.sample(0).boxes == ()
    assert not data.has_boxes
    assert open_data(data.spec).sample(0).boxes == ()


def test_a_column_that_is_not_there_is_named_at_once(lines):
    with pytest.raises(BadData, match=r"no column 'q' for question; there are answer, bboxs"):
        open_data(lines(visual_cot(0)), columns={"question": "q"})
    with pytest.raises(BadData, match="expected the name of a column"):
        open_data(lines(visual_cot(0)), columns={"answr": "a"})


def test_ids_are_unique_whatever_the_limit(lines):
    records = [visual_cot(0, id=id) for id in ("a", "b", "a", "a#2", "a", None, "", 5, "5")]
    path = lines(*records, "{broken")
    data = open_data(path)
    ids = [data.id(i) for i in range(len(data))]
    assert ids == ["a", "b", "a#3", "a#2", "a#4", "5#2", "6", "5", "5#3", "9"]
    assert len(set(ids)) == len(ids)
    assert list(data.repeated_ids) == ["a", "5"]
    few = open_data(path, limit=3)
    assert [few.id(i) for i in range(3)] == ids[:3]
    assert few.sample(2).id == "a#3"


def test_a_limit_is_the_first_samples_and_travels(lines):
    data = open_data(lines(*(visual_cot(i) for i in range(4))), limit=2)
    assert len(data) == 2
    assert open_data(data.spec).fingerprint() == data.fingerprint()
    assert len(open_data(data.spec)) == 2
    assert len(data.first(9)) == 2
    assert len(data.first(1)) == 1
    with pytest.raises(IndexError):
        data.sample(2)
    with pytest.raises(BadData, match="limit"):
        data.first(0)


@pytest.mark.parametrize("field", ["question", "answer", "image", "bboxs", "width"])
def test_the_fingerprint_sees_every_field(lines, field):
    one = open_data(lines(visual_cot(0), visual_cot(1))).fingerprint()
    value = {"bboxs": [[1, 2, 3, 5]], "width": 61}.get(field, "other")
    other = open_data(lines(visual_cot(0), visual_cot(1, **{field: value}))).fingerprint()
    assert one != other
    assert open_data(lines(visual_cot(0), visual_cot(1))).fingerprint() == one
    assert open_data(lines(visual_cot(1), visual_cot(0))).fingerprint() != one


# -- processes --------------------------------------------------------------------------------------


def test_a_data_set_travels_to_another_process_by_its_spec(tmp_path, lines):
    data = open_data(lines(*(visual_cot(i) for i in range(4))), limit=3)
    (tmp_path / "held").write_bytes(pickle.dumps(data))
    script = (
        "import pickle, sys, hashlib; data = pickle.load(open(sys.argv[1], 'rb'));"
        "print(len(data), data.fingerprint(), hashlib.sha256(data.sample(2).image.tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "held")],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    n, fingerprint, pixels = done.stdout.split()
    assert (int(n), fingerprint) == (3, data.fingerprint())
    assert pixels == hashlib.sha256(picture(2).tobytes()).hexdigest()


def test_a_relative_path_is_found_from_another_folder(lines, monkeypatch, tmp_path):
    lines(visual_cot(0))
    monkeypatch.chdir(tmp_path)
    data = open_data("docvqa.jsonl", images="images")
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    assert same(open_data(data.spec).sample(0).image, 0)


# -- the embedded task, and samples given -----------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "split", "n", "seed"),
    [("plates:70", "crowded", 70, 0), ("plates:easy:3", "easy", 3, 0), ("plates:noisy:2:5", "noisy", 2, 5)],
)
def test_plates_are_those_of_the_embedded_task(spec, split, n, seed):
    data = open_data(spec)
    truth = plates(split, n, seed)
    assert len(data) == n
    assert [data.id(i) for i in range(n)] == [one.id for one in truth]
    for i in (0, n - 1):
        sample = data.sample(i)
        assert (sample.question, sample.answers, sample.boxes) == (
            truth[i].question,
            truth[i].answers,
            truth[i].boxes,
        )
        assert np.array_equal(np.asarray(sample.image), np.asarray(truth[i].image))
    assert pickle.loads(pickle.dumps(data)).fingerprint() == data.fingerprint()


def test_names_of_plates_tell_split_and_seed_apart():
    names = {open_data(one).name for one in ("plates:2", "plates:easy:2", "plates:easy:2:1")}
    assert names == {"plates-crowded", "plates-easy", "plates-easy-1"}
    assert open_data("plates:9?name=mine&limit=2").name == "mine"
    assert len(open_data("plates:9?name=mine&limit=2")) == 2
    assert len({open_data(one).fingerprint() for one in ("plates:2", "plates:3", "plates:crowded:2:1")}) == 3


@pytest.mark.parametrize(
    "spec",
    ["plates:", "plates:x", "plates:0", "plates:-1", "plates:mauve:3", "plates:easy:3:-1", "plates:1:2:3:4"],
)
def test_plates_that_are_none(spec):
    with pytest.raises(BadData):
        open_data(spec)


def test_samples_given_are_a_data_set_too():
    samples = plates("easy", 3)
    data = open_data(iter([samples[0], samples[1], samples[0]]))
    assert len({data.id(i) for i in range(3)}) == 3
    assert data.sample(1) is samples[1]
    assert data.sample(2).question == samples[0].question
    again = pickle.loads(pickle.dumps(data))
    assert again.fingerprint() == data.fingerprint()
    assert again.sample(0).meta == samples[0].meta
    assert open_data(data, limit=1).sample(0).id == samples[0].id
    assert open_data(plates("easy", 2)).fingerprint() != open_data(plates("noisy", 2)).fingerprint()


def test_readable_skips_what_can_not_be_had_and_tells_of_it(lines):
    data = open_data(lines(visual_cot(0), visual_cot(1, answer=...), visual_cot(2)))
    told = []
    assert [one.id for one in data.readable(told.append)] == ["0", "2"]
    assert [(one.id, one.kind) for one in told] == [("1", "no answer")]
    with pytest.raises(BadSample):
        list(data)


def test_a_bad_sample_travels():
    bad = pickle.loads(pickle.dumps(BadSample("7", "no\npicture", "missing picture")))
    assert (bad.id, bad.reason, bad.kind, str(bad)) == (
        "7",
        "no picture",
        "missing picture",
        "sample '7': no picture",
    )
