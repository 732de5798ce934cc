"""The embedded task: what a split promises, image by image."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seeing.data.painting import CELL, COLOURS, SHAPES
from seeing.data.plates import (
    COLOUR_NAMES,
    IGNORE,
    PRIOR,
    SPLITS,
    PlatesSplit,
    plates,
    split_stream,
    training_batch,
    training_stream,
)


@pytest.fixture(scope="module")
def crowded():
    return plates("crowded", 150)


def pixels(sample):
    return np.asarray(sample.image)


def batch(spec=None, images=64, asked=4, seed=0, stage=0, rank=0, step=0):
    return training_batch(spec or SPLITS["easy"], images, asked, seed=seed, stage=stage, rank=rank, step=step)


def test_a_split_is_the_same_every_time(crowded):
    for first, again in zip(crowded, plates("crowded", 150), strict=True):
        assert (pixels(first) == pixels(again)).all()
        assert (first.id, first.question, first.answers, first.boxes) == (
            again.id,
            again.question,
            again.answers,
            again.boxes,
        )


def test_a_sample_does_not_depend_on_how_many_are_asked_for(crowded):
    for few in (1, 63, 65):
        last = plates("crowded", few)[-1]
        assert last.id == crowded[few - 1].id == f"plates/crowded/0/{few - 1}"
        assert (pixels(last) == pixels(crowded[few - 1])).all()


def test_splits_and_seeds_differ():
    drawn = [pixels(plates(split, 1, seed)[0]).tobytes() for split in SPLITS for seed in range(3)]
    assert len(set(drawn)) == len(drawn)


def test_no_stream_is_both_trained_and_tested_on():
    def first_numbers(stream):
        return tuple(stream.integers(0, 2**63, 2))

    small = range(4)
    training = {
        first_numbers(training_stream(seed, stage, rank, step))
        for seed in small
        for stage in small
        for rank in range(2)
        for step in range(50)
    }
    testing = {
        first_numbers(split_stream(s, seed, chunk)) for s in SPLITS for seed in small for chunk in range(50)
    }
    assert len(training) == 4 * 4 * 2 * 50
    assert len(testing) == len(SPLITS) * 4 * 50
    assert not training & testing


def test_no_image_is_both_trained_and_tested_on(crowded):
    trained = {image.tobytes() for step in range(3) for image in batch(SPLITS["crowded"], step=step).images}
    assert len(trained) == 3 * 64
    assert not trained & {pixels(s).tobytes() for s in crowded}


def test_an_unknown_split_is_refused_with_the_splits():
    with pytest.raises(ValueError, match="crowded") as error:
        plates("crowdy", 3)
    assert all(split in str(error.value) for split in SPLITS)


@pytest.mark.parametrize("n", [0, -1])
def test_no_samples_are_refused(n):
    with pytest.raises(ValueError, match="1 or more"):
        plates("easy", n)


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_keeps_its_number_of_objects(split):
    low, high = SPLITS[split].objects
    counts = {s.meta["objects"] for s in plates(split, 64)}
    assert low == min(counts)
    assert high == max(counts)


def test_the_question_names_one_object_of_the_scene(crowded):
    for s in crowded:
        colour, shape = s.meta["colour"], s.meta["shape"]
        assert s.question == f"what digit is on the {colour} {shape} ?"
        assert s.answers == (str(s.meta["digit"]),)
        assert s.meta["scene"][0] == (colour, shape, s.meta["digit"])
        pairs = [pair for *pair, _ in s.meta["scene"]]
        assert len({tuple(pair) for pair in pairs}) == len(pairs) == s.meta["objects"]


def test_the_box_lies_in_one_cell_and_shows_the_colour(crowded):
    for s in plates("easy", 64):
        (x1, y1, x2, y2) = (int(edge) for edge in s.boxes[0])
        assert x1 // CELL == (x2 - 1) // CELL
        assert y1 // CELL == (y2 - 1) // CELL
        # The lower left of every shape's middle row is body, never plate.
        body = pixels(s)[y1 + 11 : y1 + 15, x1 + 8 : x1 + 12].reshape(-1, 3).mean(axis=0) / 255 - 0.5
        target = np.array(COLOURS[s.meta["colour"]]) - 0.5
        distance = {c: 1 - np.dot(body, np.array(v) - 0.5) / np.linalg.norm(body) for c, v in COLOURS.items()}
        assert np.dot(body, target) > 0
        assert distance[s.meta["colour"]] < 1


def test_hard_images_surround_the_target_with_its_like():
    samples = plates("easy", 256)
    alike = {True: [], False: []}
    for s in samples:
        others = s.meta["scene"][1:]
        alike[s.meta["hard"]] += [c == s.meta["colour"] or shape == s.meta["shape"] for c, shape, _ in others]
    assert all(alike[True])
    assert 0.25 < np.mean(alike[False]) < 0.45  # 8 of the 23 other pairs share a colour or a shape
    assert 0.4 < np.mean([s.meta["hard"] for s in samples]) < 0.6


def test_meta_says_whether_the_truth_agrees_with_the_table(crowded):
    for s in crowded:
        assert s.meta["prior"] == PRIOR[s.meta["colour"], s.meta["shape"]]
        assert s.meta["agrees"] == (s.meta["digit"] == s.meta["prior"])
    assert 0.02 < np.mean([s.meta["agrees"] for s in crowded]) < 0.22


def test_a_conflict_never_agrees_and_takes_every_other_digit():
    samples = plates("prior-conflict", 128)
    assert not any(s.meta["agrees"] for s in samples)
    assert len({(s.meta["digit"] - s.meta["prior"]) % 10 for s in samples}) == 9


def test_the_table_names_every_pair_and_favours_no_digit():
    assert set(PRIOR) == {(c, s) for c in COLOURS for s in SHAPES}
    assert set(Counter(PRIOR.values()).values()) == {2, 3}
    assert len(Counter(PRIOR.values())) == 10


@settings(max_examples=6, deadline=None)
@given(share=st.sampled_from([0.0, 0.3, 0.6, 1.0]), step=st.integers(0, 1000))
def test_digits_follow_the_table_as_often_as_asked(share, step):
    spec = PlatesSplit(objects=(6, 6), clutter=(0, 0), prior=share)
    b = batch(spec, images=96, step=step)
    table = np.array([[PRIOR[c, s] for s in SHAPES] for c in COLOUR_NAMES])
    agree = (b.digit == table[b.colour, b.shape]).mean()
    expected = share + (1 - share) / 10
    assert abs(agree - expected) <= 5 * np.sqrt(expected * (1 - expected) / b.digit.size) + 1e-12


def test_training_questions_and_patch_labels_tell_of_the_same_objects():
    b = batch(SPLITS["moderate"])
    for i in range(len(b.images)):
        shown = Counter(zip(b.patch_colour[i], b.patch_shape[i], b.patch_digit[i], strict=True))
        background = shown.pop((len(COLOURS), len(SHAPES), IGNORE))
        assert set(shown.values()) == {4}
        assert background + 4 * len(shown) == 64
        assert set(zip(b.colour[i], b.shape[i], b.digit[i], strict=True)) <= set(shown)


def test_four_questions_ask_four_objects_where_there_are_as_many():
    b = batch(SPLITS["moderate"])
    for i in range(len(b.images)):
        assert len(set(zip(b.colour[i], b.shape[i], strict=True))) == 4


def test_patch_labels_lie_where_the_object_is_painted():
    """Brightest white lies on plates, and every plate lies on a patch that is labelled with a digit."""
    b = batch(PlatesSplit(objects=(3, 5), noise=(0, 0), contrast=(1, 1), clutter=(0, 0)))
    white = (b.images >= 224).all(axis=-1).reshape(-1, 8, 14, 8, 14).sum(axis=(2, 4)).reshape(-1, 64)
    plates_found = white > 20
    assert plates_found.sum(axis=1).tolist() == [
        len(set(zip(c, s, strict=True)) - {(6, 4)})
        for c, s in zip(b.patch_colour, b.patch_shape, strict=True)
    ]
    assert (b.patch_digit[plates_found] != IGNORE).all()
