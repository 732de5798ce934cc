"""What the library `datasets` writes and reads; no network, and no program of a data set is run."""

import io
import json
import pickle
import sys

import pytest
from data.conftest import picture, same

from seeing.data import hub
from seeing.data.opening import BadData, BadSample, open_data

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def rows(*numbers):
    held = datasets.Dataset.from_dict(
        {
            "image": [picture(i) for i in numbers],
            "query": [f"what is {i}?" for i in numbers],
            "answers": [[str(i), f"no. {i}"] for i in numbers],
            "objects": [{"bbox": [[float(i), 2.0, 20.0, 10.0]], "label": [1]} for i in numbers],
        }
    )
    return held.cast_column("image", datasets.Image())


COLUMNS = {"question": "query", "boxes": "objects.bbox"}


def test_a_folder_that_was_saved_is_read_without_decoding(tmp_path):
    rows(0, 1, 2).save_to_disk(tmp_path / "saved")
    data = open_data(tmp_path / "saved", columns=COLUMNS, box_format="xywh")
    assert (data.name, len(data), data.has_boxes) == ("saved", 3, True)
    sample = data.sample(1)
    assert (sample.question, sample.answers) == ("what is 1?", ("1", "no. 1"))
    assert sample.boxes == ((1, 2, 21, 12),)
    assert same(sample.image, 1)
    assert isinstance(data.record(1)["image"]["bytes"], bytes)
    assert "bytes" not in data.light(1)["image"]
    again = pickle.loads(pickle.dumps(data))
    assert again.fingerprint() == data.fingerprint()
    assert same(again.sample(2).image, 2)


def test_of_a_list_of_pictures_one_is_taken(tmp_path):
    held = datasets.Dataset.from_dict(
        {"images": [[picture(1)], [picture(2), picture(3)]], "question": ["a?", "b?"], "answer": ["a", "b"]},
        features=datasets.Features(
            images=datasets.List(datasets.Image()),
            question=datasets.Value("string"),
            answer=datasets.Value("string"),
        ),
    )
    held.save_to_disk(tmp_path / "saved")
    data = open_data(tmp_path / "saved", columns={"image": "images"})
    assert same(data.sample(0).image, 1)
    assert data.light(1)["images"] == [{"path": None}, {"path": None}]
    with pytest.raises(BadSample, match="2 pictures"):
        data.sample(1)


def test_rows_that_were_chosen_and_shuffled_keep_their_order(tmp_path):
    rows(0, 1, 2, 3).select([3, 1]).save_to_disk(tmp_path / "saved")
    data = open_data(tmp_path / "saved", columns=COLUMNS)
    assert [data.sample(i).question for i in range(2)] == ["what is 3?", "what is 1?"]
    assert same(data.sample(0).image, 3)


def test_of_several_splits_one_is_named(tmp_path):
    held = datasets.DatasetDict(train=rows(0, 1), test=rows(2))
    held.save_to_disk(tmp_path / "saved")
    with pytest.raises(BadData, match="one of train, test"):
        open_data(tmp_path / "saved")
    with pytest.raises(BadData, match="validation is not among"):
        open_data(tmp_path / "saved", split="validation")
    data = open_data(tmp_path / "saved", split="test", columns=COLUMNS)
    assert same(data.sample(0).image, 2)
    assert open_data(data.spec).fingerprint() == data.fingerprint()
    datasets.DatasetDict(train=rows(1)).save_to_disk(tmp_path / "one")
    assert len(open_data(tmp_path / "one", columns=COLUMNS)) == 1


def test_a_broken_picture_of_a_row_fails_alone(tmp_path):
    held = io.BytesIO()
    picture(0).save(held, "PNG")
    values = [{"bytes": b"\x89PNG\r\n\x1a\n nothing", "path": None}, {"bytes": held.getvalue(), "path": None}]
    broken = datasets.Dataset.from_dict(
        {"image": values, "question": ["a?", "b?"], "answer": ["a", "b"]},
        features=datasets.Features(
            image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string")
        ),
    )
    broken.save_to_disk(tmp_path / "saved")
    data = open_data(tmp_path / "saved")
    assert same(data.sample(1).image, 0)
    with pytest.raises(BadSample) as bad:
        data.sample(0)
    assert bad.value.kind == "broken picture"


def test_a_folder_of_data_files_is_read_as_the_hub_keeps_them(tmp_path):
    folder = tmp_path / "repo" / "data"
    folder.mkdir(parents=True)
    rows(0, 1).to_parquet(folder / "train-00000-of-00001.parquet")
    rows(2).to_parquet(folder / "test-00000-of-00001.parquet")
    data = open_data(tmp_path / "repo", split="test", columns=COLUMNS)
    assert (len(data), data.sample(0).question) == (1, "what is 2?")
    assert same(data.sample(0).image, 2)
    with pytest.raises(BadData, match="train, test"):
        open_data(tmp_path / "repo")


def test_a_folder_of_pictures_with_lines_beside_them(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(1).save(folder / "1.png")
    line = {"file_name": "1.png", "question": "what?", "answer": "a", "bbox": [1, 2, 3, 4]}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    data = open_data(folder)
    assert (data.name, data.sample(0).boxes) == ("pictures", ((1, 2, 3, 4),))
    assert same(data.sample(0).image, 1)


def test_a_program_that_comes_with_a_data_set_is_not_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('ran')")
    with pytest.raises(BadData, match="scripted"):
        open_data(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["hub:nobody/nothing", "hub:nobody/nothing:test", "hub:nothing"])
def test_a_name_that_can_not_be_reached_says_so_in_one_line(where):
    with pytest.raises(BadData, match="nothing") as error:
        open_data(where)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["hub:", "hub:a/b:c:d", "hub:a/b:test?split=train"])
def test_a_name_that_is_none(where):
    with pytest.raises(BadData, match="hub:owner/name"):
        open_data(where)


def test_without_the_library_the_way_to_get_it_is_named(tmp_path, monkeypatch):
    rows(0).save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    for where in (tmp_path / "saved", "hub:nobody/nothing"):
        with pytest.raises(BadData, match=r"pip install 'seeing\[hub\]'"):
            open_data(where)


def test_files_need_no_library(tmp_path, monkeypatch):
    rows(0).to_parquet(tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    data = open_data(tmp_path / "rows.parquet", columns=COLUMNS)
    assert same(data.sample(0).image, 0)
    assert data.sample(0).boxes == ((0, 2, 20, 10),)
