"""The folder of a study: torn files, other settings, others at work. No model is needed for any of it."""

import json
import os

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seeing.study.columns import SCHEMA
from seeing.study.durable import append_line, cut, read_lines, write_whole
from seeing.study.folder import gathered, read_document, read_failures, read_rows
from seeing.study.locks import Locks
from seeing.study.settings import StudyError, differences
from seeing.study.store import Store
from seeing.study.units import Entry, Unit, units_of

SETTINGS = {"models": [{"name": "m"}], "methods": [{"text": "base"}, {"text": "vea"}], "seed": 0}
UNIT = Unit(3, 0, 0, 128, 192)


def row(place, method="base", **more):
    own = dict.fromkeys(SCHEMA.names)
    named = {
        "model": "m",
        "data": "d",
        "sample": f"s{place}",
        "method": method,
        "answer": "7",
        "correct": True,
    }
    return {"place": [place, 0 if method == "base" else 1], **own, **named, **more}


def failed(sample, method=None, reason="broken"):
    named = {"model": "m", "data": "d", "sample": sample, "method": method}
    return {**named, "stage": "sample", "reason": reason, "traceback": ""}


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "study", SETTINGS, {"started": "now"}) as opened:
        yield opened


def test_a_sealed_unit_is_a_parquet_file_of_the_schema_in_the_order_of_samples(store):
    store.take(UNIT)
    store.write(UNIT, Entry(3, "0.0/1", [row(129, "vea"), row(128, "vea")]))
    store.write(UNIT, Entry(3, "0.0/0", [row(129), row(128)]))
    store.seal(UNIT)
    table = pq.read_table(next((store.folder / "rows").glob("*.parquet")))
    assert table.schema == SCHEMA
    found = table.select(["sample", "method"]).to_pylist()
    assert [tuple(one.values()) for one in found] == [
        ("s128", "base"),
        ("s128", "vea"),
        ("s129", "base"),
        ("s129", "vea"),
    ]
    assert not list((store.folder / "journal").iterdir())


def test_rows_of_a_unit_in_progress_are_read_too(store):
    store.take(UNIT)
    store.write(UNIT, Entry(3, "0.0/0", [row(128)], [failed("s130", "base")]))
    assert read_rows(store.folder)["sample"].to_pylist() == ["s128"]
    assert [one["sample"] for one in read_failures(store.folder)] == ["s130"]
    store.seal(UNIT)
    assert read_rows(store.folder)["sample"].to_pylist() == ["s128"]
    assert [one["sample"] for one in read_failures(store.folder)] == ["s130"]


def test_a_unit_in_which_all_failed_is_done(store):
    store.take(UNIT)
    store.write(UNIT, Entry(3, "samples", failures=[failed("s128"), failed("s129")]))
    store.seal(UNIT)
    assert store.sealed(UNIT)
    assert store.take(UNIT) is None
    assert read_rows(store.folder).num_rows == 0
    assert len(read_failures(store.folder)) == 2


def test_an_entry_that_was_written_twice_counts_once():
    entry = Entry(3, "0.0/0", [row(128)], [failed("x")]).as_dict()
    rows, failures = gathered([entry, entry])
    assert len(rows) == len(failures) == 1


def test_a_journal_that_was_cut_at_any_byte_keeps_the_entries_before_it(store):
    store.take(UNIT)
    for place in range(3):
        store.write(UNIT, Entry(3, f"{place}", [row(128 + place, answer="7\n„ü“\u2028")]))
    path = next((store.folder / "journal").iterdir())
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 3
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        values, good = read_lines(path)
        assert len(values) == sum(end <= size for end in ends)
        assert good == max((end for end in ends if end <= size), default=0)


def test_a_journal_goes_on_behind_its_last_whole_line(store):
    store.take(UNIT)
    store.write(UNIT, Entry(3, "0", [row(128)]))
    store.give(UNIT)
    path = next((store.folder / "journal").iterdir())
    with open(path, "ab") as file:
        file.write(b'0000dead {"unit": 3, "key')
    assert store.take(UNIT) == {"0": 1}
    store.write(UNIT, Entry(3, "1", [row(129)]))
    assert [one["key"] for one in read_lines(path)[0]] == ["0", "1"]


@given(st.binary(max_size=200))
def test_rubbish_is_no_entry(tmp_path_factory, rubbish):
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    append_line(path, {"a": 1})
    size = path.stat().st_size
    with open(path, "ab") as file:
        file.write(rubbish)
    values, good = read_lines(path)
    assert (values, good) == ([{"a": 1}], size)
    cut(path, good)
    assert path.stat().st_size == size


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"two")
    assert path.read_bytes() == b"one"


def test_other_settings_are_refused_with_the_difference(store):
    store.take(UNIT)
    store.write(UNIT, Entry(3, "0", [row(128)]))
    store.close()
    other = {**SETTINGS, "seed": 1, "methods": [{"text": "base"}, {"text": "pai"}], "limit": 5}
    with pytest.raises(StudyError) as refused:
        Store(store.folder, other, {})
    said = str(refused.value)
    assert "seed: 0 there, 1 now" in said
    assert "methods.1.text: 'vea' there, 'pai' now" in said
    assert "limit: nothing there, 5 now" in said
    assert len(read_document(store.folder)["runs"]) == 1


def test_a_folder_without_an_answer_is_bound_to_nothing(store):
    store.keep_profile("m0", "one")
    other = {**SETTINGS, "seed": 1}
    # While somebody is at work there, it is theirs.
    assert in_child(lambda: refused(store.folder, other))
    store.close()
    with Store(store.folder, other, {"started": "anew"}) as anew:
        assert anew.profile("m0") is None
    document = read_document(store.folder)
    assert document["settings"] == other
    assert [one["started"] for one in document["runs"]] == ["anew"]


def refused(folder, settings):
    """Whether a process of its own is told that the folder is another study's."""
    from seeing.study import locks

    locks._OPEN.clear()
    try:
        Store(folder, settings, {})
    except StudyError as error:
        return "other settings" in str(error)
    return False


def test_the_same_settings_go_on_and_are_noted(store):
    store.close()
    with Store(store.folder, json.loads(json.dumps(SETTINGS)), {"started": "later"}):
        pass
    assert [one["started"] for one in read_document(store.folder)["runs"]] == ["now", "later"]


def test_a_model_that_changed_is_refused(store):
    store.know("m", {"weights": "abc"})
    store.know("m", {"weights": "abc"})
    with pytest.raises(StudyError, match="weights: 'abc' there, 'abd' now"):
        store.know("m", {"weights": "abd"})


def test_the_first_profile_counts(store):
    assert store.profile("m0") is None
    assert store.keep_profile("m0", "one") == "one"
    assert store.keep_profile("m0", "two") == "one"
    assert store.profile("m0") == "one"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "rows").mkdir()
    with pytest.raises(StudyError, match=r"holds rows and no study\.json"):
        Store(tmp_path, SETTINGS, {})
    with pytest.raises(StudyError, match="holds no study"):
        read_document(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StudyError, match="can't write"):
        Store(file, SETTINGS, {})


def test_a_broken_part_is_named(store):
    (store.folder / "rows" / f"{UNIT.name}.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StudyError, match=rf"{UNIT.name}\.parquet can't be read"):
        read_rows(store.folder)


# ---- who is at work ----------------------------------------------------------------------------


def in_child(act):
    """What ``act()`` gives in a process of its own that then ends; True or False."""
    child = os.fork()
    if child == 0:
        os._exit(0 if act() else 1)
    return os.waitpid(child, 0)[1] == 0


def reopened(path):
    """The locks, as a process of its own opens them."""
    from seeing.study import locks

    locks._OPEN.clear()
    return Locks(path)


def test_a_lock_that_another_process_holds_can_t_be_taken(tmp_path):
    path = tmp_path / "lock"
    locks = Locks(path)
    assert locks.take(7)
    assert in_child(lambda: not (theirs := reopened(path)).take(7) and theirs.take(8))
    locks.give(7)
    assert in_child(lambda: reopened(path).take(7))
    # The child ended without giving it back.
    assert locks.take(7)
    locks.close()


def test_a_process_does_not_work_twice_in_one_folder(tmp_path):
    locks = Locks(tmp_path / "lock")
    with pytest.raises(RuntimeError, match="at work on"):
        Locks(tmp_path / "lock")
    locks.close()
    Locks(tmp_path / "lock").close()


# ---- units -------------------------------------------------------------------------------------


@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.integers(1, 100),
    st.integers(0, 80),
)
def test_every_sample_is_in_one_unit_of_each_model(n_models, sizes, size, skip):
    units = units_of(n_models, sizes, size, skip)
    asked = [(one.model, one.data, place) for one in units for place in range(one.start, one.stop)]
    assert len(set(asked)) == len(asked)
    assert set(asked) == {
        (model, data, place)
        for model in range(n_models)
        for data, count in enumerate(sizes)
        for place in range(skip if data == 0 else 0, count)
    }
    assert [one.number for one in units] == list(range(len(units)))
    assert len({one.name for one in units}) == len(units)
    assert all(0 < len(one) <= size for one in units)


def test_differences_are_said_where_they_are():
    there = {"a": {"b": [1, 2]}, "c": True, "d": [1]}
    now = {"a": {"b": [1, 3]}, "c": 1, "d": [1, 2]}
    assert list(differences(there, there)) == []
    assert list(differences(there, now)) == [
        "a.b.1: 2 there, 3 now",
        "c: True there, 1 now",
        "d: [1] there, [1, 2] now",
    ]
