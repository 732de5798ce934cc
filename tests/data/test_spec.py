"""One line of text names a data set, and reads back as what it was written from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seeing.data.opening import BadData, open_data
from seeing.data.records import unique_ids
from seeing.data.spec import FIELDS, SETTINGS, Spec, parse_columns

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    where=words.filter(str.strip),
    options=st.dictionaries(st.sampled_from(FIELDS + SETTINGS), words, max_size=4),
)
def test_a_spec_is_read_back_as_it_was_written(where, options):
    spec = Spec(where, options)
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "where", "options"),
    [
        ("x.jsonl", "x.jsonl", {}),
        ("x.jsonl?", "x.jsonl", {}),
        ("x.jsonl?limit=3&question=my q", "x.jsonl", {"limit": "3", "question": "my q"}),
        ("x.jsonl?question=a%26b%3D%3F", "x.jsonl", {"question": "a&b=?"}),
        ("why?.jsonl?limit=3", "why?.jsonl", {"limit": "3"}),
        ("100%.jsonl?width=", "100%.jsonl", {"width": ""}),
        ("hub:a/b:test?config=c", "hub:a/b:test", {"config": "c"}),
    ],
)
def test_a_spec_is_read_as_a_user_writes_it(text, where, options):
    assert Spec.parse(text) == Spec(where, options)


def test_a_file_with_a_question_mark_in_its_name_is_a_file(tmp_path, lines, pictures):
    path = lines({"question": "?", "answer": "7", "image": "0.png"}, name="why?.jsonl")
    data = open_data(str(path))
    assert data.spec == f"{path}?"
    assert open_data(data.spec).sample(0).answers == ("7",)
    assert open_data(f"{path}?name=n").name == "n"


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("question=q", {"question": "q"}),
        (
            " question = q , boxes=objects.bbox,width=",
            {"question": "q", "boxes": "objects.bbox", "width": ""},
        ),
        ("question=a=b", {"question": "a=b"}),
    ],
)
def test_columns_of_the_command_line(text, columns):
    assert parse_columns(text) == columns


@pytest.mark.parametrize("text", ["", "question", "colour=red", "question=a,question=b", "images=x"])
def test_columns_that_are_none(text):
    with pytest.raises(BadData):
        parse_columns(text)


@given(st.lists(st.none() | st.sampled_from(["a", "a#2", "a#3", "0", "1", "2", "3#2"]), max_size=12))
def test_ids_are_made_unique_and_first_ones_are_kept(given):
    ids, repeated = unique_ids(given)
    assert len(set(ids)) == len(ids) == len(given)
    for i, one in enumerate(given):
        if one is not None and one not in given[:i]:
            assert ids[i] == one
    assert set(repeated) == {one for one in given if one is not None and given.count(one) > 1}


def test_a_home_of_nobody_is_a_path_that_is_not_there():
    assert Spec.parse("~nobody-of-this-name/lines.jsonl") == Spec("~nobody-of-this-name/lines.jsonl")
    with pytest.raises(BadData, match="nobody-of-this-name"):
        open_data("~nobody-of-this-name/lines.jsonl")
