"""Knockouts by windows of layers, against an additive mask on the bare eager model."""

import dataclasses

import numpy as np
import pytest
import torch

from seeing import edits as E
from seeing.edits import BadEdit
from seeing.figures import theme
from seeing.probes.causal.knockout import FLOWS, knockout

WINDOW = 3


def longer(sample):
    return dataclasses.replace(sample, question=f"what is on the square ? {sample.question}")


WINDOW_SHOWN = (20, 20, 112, 112)


def cropped(sample):
    """The sample cut to `WINDOW_SHOWN` by hand."""
    x, y = WINDOW_SHOWN[:2]
    boxes = [(max(a - x, 0), max(b - y, 0), c - x, d - y) for a, b, c, d in sample.boxes]
    return dataclasses.replace(sample, image=sample.image.crop(WINDOW_SHOWN), boxes=tuple(boxes))


@pytest.fixture(scope="module")
def samples(crowded):
    """Two samples, the first of them padded."""
    return [crowded[0], longer(crowded[1])]


@pytest.fixture(scope="module")
def cut(random, samples):
    return knockout(random, samples, window=WINDOW, layers=[0, 4])


def logprob_by_hand(bare, inputs, ids, edges=None, layers=()):
    """log p of answers (rows of token ids) behind the prompts, with ``edges`` (batch, query, key) cut."""

    def mask(module, args, kwargs):
        given = kwargs["attention_mask"].clone()
        given = given.expand(len(edges), -1, -1, -1).masked_fill(edges[:, None], torch.finfo(given.dtype).min)
        return args, {**kwargs, "attention_mask": given}

    stack = bare.model.model.language_model.layers
    undo = [
        stack[layer].self_attn.register_forward_pre_hook(mask, with_kwargs=True)
        for layer in layers
        if edges is not None
    ]
    try:
        with torch.no_grad():
            logits = bare.model(**inputs).logits.log_softmax(-1)
    finally:
        for handle in undo:
            handle.remove()
    size = ids.shape[1]
    rows = logits[:, -size - 1 : -1]
    return rows.gather(-1, ids[..., None])[..., 0].sum(1)


def forced(bare, samples, ids):
    """The bare model's inputs with answers of one length behind them."""
    inputs = dict(bare.inputs(*((one.image, one.question) for one in samples)))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(ids)], 1)
    return inputs


def test_each_flow_is_a_mask_on_the_bare_model(random, bare, samples, cut):
    tokens = bare.processor.tokenizer
    ids = torch.tensor([[tokens.convert_tokens_to_ids(one.answers[0])] for one in samples])
    inputs, prompt = forced(bare, samples, ids), random.prompts(samples)
    assert not inputs["attention_mask"].all()
    plain = logprob_by_hand(bare, inputs, ids)
    assert cut.base == pytest.approx(float(plain.exp().mean()), rel=1e-3)
    length, place = prompt.length, torch.arange(prompt.length + 1)
    image, question = (
        torch.nn.functional.pad(prompt.spans.mask(one), (0, 1)) for one in ("image", "question")
    )
    evidence = torch.nn.functional.pad(prompt.evidence(), (0, 1))
    last = (place == length - 1).expand(2, -1)
    hidden = {
        "image->question": (question, image),
        "image->last": (last, image),
        "evidence->last": (last, evidence),
        "non-evidence->last": (last, image & ~evidence),
        "question->last": (last, question),
        "last->last": (last, last),
    }
    for flow, (queries, keys) in hidden.items():
        for column, layers in ((0, (0, 1)), (1, (3, 4, 5))):
            edges = queries[:, :, None] & keys[:, None, :]
            found = logprob_by_hand(bare, inputs, ids, edges, layers)
            expected = (found - plain).double()
            size = max(1.0, float(expected.abs().max()))
            assert float(cut.of(flow, "logprob")[column]) == pytest.approx(
                float(expected.mean()), abs=3e-4 * size
            )
            percent = 100 * (found.exp() - plain.exp()) / plain.exp()
            assert float(cut.of(flow, "percent")[column]) == pytest.approx(
                float(percent.mean()), rel=2e-3, abs=1e-2
            )
            prob = float((found.exp() - plain.exp()).mean())
            assert float(cut.of(flow, "prob")[column]) == pytest.approx(prob, abs=1e-5)
    assert cut.logprob.abs().max() > 0.1


def test_a_word_of_the_answer_is_cut_from_itself_alone(random, bare, crowded):
    ids = torch.tensor([[9, 12, 7]])
    prompt = random.prompts(crowded[:1]).with_answer([ids[0]])
    found = knockout(random, prompt, flows="last->last", window=2, layers=3)
    inputs = forced(bare, crowded[:1], ids)
    place = torch.arange(prompt.length)
    itself = (place[:, None] == place) & (place >= prompt.length - 4) & (place < prompt.length - 1)
    expected = logprob_by_hand(bare, inputs, ids, itself[None], (2, 3)) - logprob_by_hand(bare, inputs, ids)
    assert expected.abs() > 1e-3
    assert float(found.of("last->last", "logprob")) == pytest.approx(float(expected), abs=2e-4)


def test_the_control_is_as_many_image_tokens_that_are_no_evidence(random, samples, monkeypatch):
    drawn = []
    plain = E.Knockout.__post_init__

    def watch(self):
        plain(self)
        drawn.append(self.keys)

    monkeypatch.setattr(E.Knockout, "__post_init__", watch)

    def control(some, seed, **settings):
        drawn.clear()
        found = knockout(random, some, flows="random->last", window=2, layers=2, seed=seed, **settings)
        return found, {one: keys.inner.rows for one, keys in enumerate(drawn)}[0]

    found, rows = control(samples, 0)
    prompt = random.prompts(samples)
    for row, places in enumerate(rows):
        chosen = torch.zeros(prompt.length, dtype=torch.bool)
        chosen[list(places)] = True
        assert chosen.sum() == prompt.evidence()[row].sum() > 0
        assert (chosen & prompt.evidence()[row]).sum() == 0
        assert (chosen & ~prompt.spans.mask("image")[row]).sum() == 0
    again, _ = control(samples, 0, batch_size=1)
    torch.testing.assert_close(again.logprob, found.logprob, atol=1e-4, rtol=1e-3)
    _, other = control(samples, 1)
    assert other != rows


def test_a_control_that_has_too_few_tokens_is_nan_and_counted_nowhere(random, crowded):
    wide = dataclasses.replace(crowded[0], boxes=((0, 0, 112, 90),))
    found = knockout(random, [wide], flows=("evidence->last", "random->last"), window=1, layers=2)
    assert found.of("random->last").isnan().all()
    assert not found.of("evidence->last").isnan().any()
    both = knockout(random, [wide, crowded[1]], flows="random->last", window=1, layers=2)
    alone = knockout(random, [crowded[1]], flows="random->last", window=1, layers=2)
    torch.testing.assert_close(both.logprob, alone.logprob, atol=1e-4, rtol=1e-3)


def test_flows_may_be_between_any_positions(random, samples):
    named = knockout(random, samples, flows="image->last", window=2, layers=2)
    said = knockout(random, samples, flows={"all of it": (E.Span("image"), "last")}, window=2, layers=2)
    assert said.flows == ("all of it",)
    torch.testing.assert_close(said.logprob, named.logprob)
    arrow = knockout(random, samples, flows=["image→last"], window=2, layers=2)
    torch.testing.assert_close(arrow.logprob, named.logprob)


def test_samples_without_the_positions_are_left_out(random, crowded, paste):
    away, bare = paste(crowded[0], (400, 112), (0, 0)), dataclasses.replace(crowded[1], boxes=())
    whole = dataclasses.replace(crowded[2], boxes=((0, 0, 112, 112),))
    given = [away, bare, whole, crowded[3]]
    found = knockout(random, given, flows=("evidence->last", "non-evidence->last"), window=1, layers=2)
    assert found.ids == (crowded[3].id,)
    reasons = {one.id: one.reason for one in found.left_out}
    assert "no image token sees" in reasons[away.id]
    assert "no evidence boxes" in reasons[bare.id]
    assert "selects no position" in reasons[whole.id]
    kept = knockout(random, crowded[3], flows=("evidence->last", "non-evidence->last"), window=1, layers=2)
    torch.testing.assert_close(found.logprob, kept.logprob, atol=1e-4, rtol=1e-3)
    unboxed = knockout(random, [bare], flows="image->last", window=1, layers=2)
    assert unboxed.n == 1


def test_under_a_crop_flows_and_control_are_those_of_the_picture_that_is_shown(random, crowded):
    some = [one for one in crowded if min(one.boxes[0][2:]) > 40][:2]
    flows, edited = ("random->last", "evidence->last"), random.with_edits(E.Crop(WINDOW_SHOWN))
    by_hand = knockout(random, [cropped(one) for one in some], flows=flows, window=2, layers=2)
    assert by_hand.logprob.abs().min() > 1e-4
    for given in (some, edited.prompts(some).with_answer([one.answers[0] for one in some])):
        found = knockout(edited, given, flows="evidence->last", window=2, layers=2)
        torch.testing.assert_close(found.logprob[0], by_hand.logprob[1], atol=1e-5, rtol=1e-4)
    found = knockout(edited, some, flows=flows, window=2, layers=2)
    torch.testing.assert_close(found.logprob, by_hand.logprob, atol=1e-5, rtol=1e-4)


def test_all_flows_run_where_an_edit_makes_the_prompt_longer_or_leaves_evidence_alone(random, samples):
    longer = random.with_edits(E.Crop("evidence", append=True))
    found = knockout(longer, samples[0], window=2, layers=2)
    assert found.n == 1
    assert not found.logprob.isnan().any()
    close = random.with_edits(E.Crop("evidence"))
    found = knockout(close, samples, flows="evidence->last", window=2, layers=2)
    assert found.n == 2
    with pytest.raises(ValueError, match="selects no position"):
        knockout(close, samples, flows="non-evidence->last", window=2, layers=2)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (dict(flows="image"), ValueError, "'keys->queries'"),
        (dict(flows=()), ValueError, "no flows"),
        (dict(flows="picture->last"), ValueError, "no positions are called 'picture'"),
        (dict(flows={"x": (E.sinks([1], 2.0), "last")}), BadEdit, "known while the model runs"),
        (
            dict(flows={"x": (E.Span("image") & ~E.seen(layers=[0]), "last")}),
            BadEdit,
            "known while the model",
        ),
        (dict(answers=None), ValueError, "is 'given' or 'own', got None"),
        (dict(layers=9), BadEdit, "no layer 9"),
        (dict(window=0), BadEdit, "a window is some layers"),
    ],
)
def test_what_is_no_flow_says_so(random, samples, settings, error, said):
    with pytest.raises(error, match=said):
        knockout(random, samples, **(dict(flows="image->last", layers=2) | settings))


def test_results_are_told_as_a_table_and_as_a_figure(cut, samples):
    assert cut.flows == FLOWS
    assert cut.layers == (0, 4)
    assert cut.ids == tuple(one.id for one in samples)
    frame = cut.to_frame()
    row = frame[(frame.flow == "image->last") & (frame.layer == 4)].iloc[0]
    assert row.percent == float(cut.percent[1, 1])
    assert row.logprob_low <= row.logprob <= row.logprob_high
    curves = {trace.name: trace for trace in cut.figure("logprob").data}
    drawn = curves["evidence → last"]
    np.testing.assert_array_equal(drawn.y[[0, 4]], cut.of("evidence->last", "logprob"))
    assert np.isnan(drawn.y[1])
    assert drawn.line.color == theme.colour_of("evidence")
    assert curves["random → last"].line.dash == "dot"
    with pytest.raises(KeyError, match="no 'image' by"):
        cut.of("image")
