"""A sample that says something false about its image must not come into being."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from seeing.data.samples import EvidenceSample

IMAGE = Image.new("RGB", (40, 20))


def sample(**changes):
    fields = {"id": "s", "image": IMAGE, "question": "what ?", "answers": ("7",), "boxes": ((1, 2, 3, 4),)}
    return EvidenceSample(**(fields | changes))


def test_a_good_sample_keeps_what_it_is_given():
    s = sample(meta={"colour": "red"})
    assert (s.id, s.image, s.question, s.answers) == ("s", IMAGE, "what ?", ("7",))
    assert s.boxes == ((1.0, 2.0, 3.0, 4.0),)
    assert s.meta["colour"] == "red"


def test_a_sample_cannot_be_changed():
    s = sample(meta={"colour": "red"})
    with pytest.raises(AttributeError):
        s.question = "where ?"
    with pytest.raises(TypeError):
        s.meta["colour"] = "blue"


def test_no_boxes_are_allowed_for_data_without_evidence():
    assert sample(boxes=()).boxes == ()


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ((3, 2, 3, 4), "no area"),
        ((1, 5, 3, 4), "no area"),
        ((1, 2, float("nan"), 4), "finite"),
        ((1, 2, float("inf"), 4), "finite"),
        ((40, 2, 45, 4), "outside the image of 40 x 20"),
        ((-9, 2, 0, 4), "outside the image"),
        ((1, 20, 3, 24), "outside the image"),
    ],
)
def test_a_bad_box_is_refused_and_named(box, found):
    with pytest.raises(ValueError, match=found) as error:
        sample(boxes=((1, 2, 3, 4), box))
    assert "'s'" in str(error.value)
    assert str(box) in str(error.value)


@pytest.mark.parametrize("changes", [{"question": "  "}, {"answers": ()}, {"answers": ("7", " ")}])
def test_an_empty_field_is_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        sample(**changes)


def test_an_array_is_not_an_image():
    # Under the tests' type checker its own error comes first; users get the ValueError.
    with pytest.raises((ValueError, TypeError), match="PIL"):
        sample(image=np.zeros((20, 40, 3)))


edges = st.floats(-60, 60, allow_nan=False)


@given(box=st.tuples(edges, edges, edges, edges))
def test_a_box_is_kept_exactly_when_it_covers_part_of_the_image(box):
    x1, y1, x2, y2 = box
    covers = x1 < x2 and y1 < y2 and max(x1, 0) < min(x2, 40) and max(y1, 0) < min(y2, 20)
    if covers:
        assert sample(boxes=(box,)).boxes == (box,)
    else:
        with pytest.raises(ValueError):
            sample(boxes=(box,))
