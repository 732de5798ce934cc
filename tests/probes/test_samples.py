"""Samples on their way into a probe: what is left out is counted, and nothing is lost with it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import seeing
from seeing.data.plates import plates
from seeing.probes.progress import Shown, total_of
from seeing.probes.samples import Ledger, batches, check_context
from seeing.prompt import BadPrompt


@pytest.fixture(scope="module")
def vlm():
    return seeing.load("plates-null")


@pytest.fixture(scope="module")
def given():
    return plates("crowded", 5)


def gone_through(vlm, samples, **settings):
    ledger = Ledger()
    found = list(batches(vlm, samples, ledger, progress=False, **settings))
    return found, ledger


def test_batches_hold_the_samples_in_order_with_their_prompt(vlm, given):
    found, ledger = gone_through(vlm, iter(given), batch_size=2)
    assert [len(batch.samples) for batch in found] == [2, 2, 1]
    assert [sample.id for batch in found for sample in batch.samples] == [one.id for one in given]
    assert all(len(batch.prompt) == len(batch.samples) for batch in found)
    assert ledger.left_out == []
    assert ledger.ids == []


def test_one_sample_stands_for_a_list_of_one(vlm, given):
    found, _ = gone_through(vlm, given[0])
    assert [one.id for one in found[0].samples] == [given[0].id]


def test_memory_holds_one_batch_of_what_is_given(vlm, given):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield given[0]

    first = next(batches(vlm, endless(), Ledger(), batch_size=3, progress=False))
    assert len(first.samples) == len(taken) == 3


def test_anything_with_the_four_fields_is_a_sample(vlm, given):
    fields = {key: getattr(given[0], key) for key in ("image", "question", "answers", "boxes")}
    found, ledger = gone_through(
        vlm, [fields, SimpleNamespace(**fields), {**fields, "id": "mine", "answers": "7"}]
    )
    assert [one.id for one in found[0].samples] == ["#0", "#1", "mine"]
    assert found[0].samples[2].answers == ("7",)
    boxes = np.array(given[0].boxes)
    (whole, *_), _ = gone_through(vlm, [{**fields, "boxes": boxes, "meta": {"split": "test"}}], boxes=True)
    assert whole.samples[0].boxes == given[0].boxes
    assert whole.samples[0].meta["split"] == "test"
    assert ledger.left_out == []


def test_what_makes_no_prompt_is_left_out_with_its_reason(vlm, given):
    fields = {key: getattr(given[0], key) for key in ("image", "question", "answers", "boxes")}
    bad = {
        "empty box": {"boxes": [(5, 5, 5, 9)]},
        "box outside": {"boxes": [(10**6, 5, 10**6 + 2, 9)]},
        "box of words": {"boxes": ["left"]},
        "no answers": {"answers": ()},
        "no question": {"question": " "},
        "no image": {"image": None},
        "image of words": {"image": "a cat"},
        "question without words": {"question": None},
    }
    odd = [{**fields, "id": name, **change} for name, change in bad.items()]
    unknown = replace(given[1], id="unknown words", question="quelle couleur ?")
    no_boxes = replace(given[1], id="no boxes", boxes=())
    found, ledger = gone_through(vlm, [*odd, given[0], unknown, no_boxes, given[2]], boxes=True)
    assert [one.id for batch in found for one in batch.samples] == [given[0].id, given[2].id]
    assert {one.id for one in ledger.left_out} == {*bad, "unknown words", "no boxes"}
    assert all(len(one.reason) > 5 for one in ledger.left_out)
    with pytest.raises(ValueError, match="no sample has boxes"):
        ledger.need("boxes")


def test_a_question_longer_than_the_context_is_left_out(vlm, given):
    words = " ".join(["what digit is on the red square ?"] * 400)
    long = replace(given[0], id="long", question=words)
    found, ledger = gone_through(vlm, [given[0], long])
    assert [one.id for batch in found for one in batch.samples] == [given[0].id]
    assert ledger.left_out[0].id == "long"
    assert str(vlm.cfg.n_ctx) in ledger.left_out[0].reason
    with pytest.raises(BadPrompt, match="context"):
        check_context(vlm, vlm.prompt(long))


def test_prompts_carry_answers_where_they_are_asked_to(vlm, given):
    (first, *_), _ = gone_through(vlm, given, answers="given")
    ids = vlm.processor.tokenizer.convert_tokens_to_ids([one.answers[0] for one in given])
    assert [one.tolist() for one in first.prompt.answers] == [[one] for one in ids]
    (own, *_), _ = gone_through(vlm, given, answers="own")
    said = vlm.answer(vlm.prompts(given))
    stop = vlm._module.generation_config.eos_token_id
    assert any(one.ids[-1] == stop for one in said)
    unended = [one.ids[:-1] if one.ids[-1] == stop and len(one.ids) > 1 else one.ids for one in said]
    assert [one.tolist() for one in own.prompt.answers] == [one.tolist() for one in unended]
    wordy = replace(given[0], id="wordy", answers=("sieben",))
    found, ledger = gone_through(vlm, [wordy, given[1]], answers="given")
    assert [one.id for batch in found for one in batch.samples] == [given[1].id]
    assert "sieben" in ledger.left_out[0].reason


@pytest.mark.parametrize("wrong", ["words", 7, None])
def test_what_holds_no_samples_is_refused(vlm, unchecked, wrong):
    with pytest.raises(TypeError, match="EvidenceSamples"):
        gone_through(vlm, wrong)


def test_things_that_are_no_samples_are_a_mistake_of_the_caller(vlm, given, unchecked):
    with pytest.raises(TypeError, match="EvidenceSamples"):
        gone_through(vlm, [given[0], 3])
    with pytest.raises(ValueError, match="batch_size=0"):
        gone_through(vlm, given, batch_size=0)
    with pytest.raises(ValueError, match="answers"):
        gone_through(vlm, given, answers="mine")


def test_progress_is_told_after_each_batch(vlm, given):
    told = []
    list(batches(vlm, given, Ledger(), batch_size=2, progress=told.append))
    assert told == [2, 4, 5]


def test_a_bar_appears_on_a_terminal_once_work_is_long(monkeypatch, capsys):
    monkeypatch.setattr("seeing.probes.progress.PATIENCE", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Shown(None, 10, "samples read") as shown:
        shown(5)
        shown(10)
    assert "samples read" in capsys.readouterr().err
    with Shown(False, 10, "samples read") as shown:
        shown(5)
    assert capsys.readouterr().err == ""
    assert total_of([1, 2]) == 2
    assert total_of(iter([1])) is None
