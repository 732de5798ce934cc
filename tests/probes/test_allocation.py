"""Attention by segment: masses add up, and equal what is summed by hand over eager rows."""

import numpy as np
import pytest
import torch

from seeing import edits as E
from seeing import probes
from seeing.data.samples import EvidenceSample
from seeing.probes.attention.allocation import segments_of
from seeing.prompt import BadPrompt
from seeing.stats import bootstrap_mean

LONGER = "what digit is on the red square on the blue circle ?"


@pytest.fixture(scope="module")
def shares(random, crowded):
    return probes.allocation(random, random.prompt(crowded[0]))


def by_hand(attention, labels, query=-1):
    """(mass, RAPT) of each segment, from (layer, head, query, key): <bos>, 64 of the image, the question."""
    place = np.arange(attention.shape[-1])[: query + 1 or None]  # what a causal row can see
    row = attention[:, :, query, place]
    labels = np.pad(labels, (1, attention.shape[-1] - 65))[place]
    image = (place >= 1) & (place < 65)
    masks = {
        "image": image,
        "question": place >= 65,
        "template": place == 0,
        "evidence": labels,
        "non-evidence": image & ~labels,
    }
    with np.errstate(invalid="ignore"):  # a segment of which the row sees no token
        return {
            name: (row[..., mask].sum(-1), row[..., mask].sum(-1) / mask.sum() / row.mean(-1))
            for name, mask in masks.items()
        }


@pytest.mark.parametrize("query", [-1, 70, 10])
def test_mass_and_rapt_are_those_of_eager_rows(random, bare, mixed, labels_of, query):
    for sample in mixed[:3]:
        shares = probes.allocation(random, random.prompt(sample), query=query)
        truth = by_hand(bare.attention(sample.image, sample.question), labels_of(sample), query)
        assert set(shares.segments) == set(truth)
        for place, segment in enumerate(shares.segments):
            np.testing.assert_allclose(shares.mass[0, place], truth[segment][0], atol=1e-5)
            np.testing.assert_allclose(shares.rapt[0, place], truth[segment][1], rtol=1e-5, atol=1e-4)


def test_the_segments_that_part_a_row_sum_to_one(shares):
    total = shares.of("image") + shares.of("question") + shares.of("template")
    torch.testing.assert_close(total, torch.ones(1, 6, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        shares.of("evidence") + shares.of("non-evidence"), shares.of("image"), atol=1e-5, rtol=0
    )
    assert (shares.mass > 0).all()


def test_uniform_attention_gives_every_segment_its_share(uniform, crowded):
    shares = probes.allocation(uniform, uniform.prompt(crowded[0]))
    torch.testing.assert_close(shares.rapt, torch.ones_like(shares.rapt), atol=1e-5, rtol=0)
    assert torch.allclose(shares.of("image"), torch.tensor(64 / 73))


def test_without_boxes_there_is_no_evidence_segment(random, crowded):
    shares = probes.allocation(random, random.prompt(crowded[0].image, crowded[0].question))
    assert shares.segments == ("image", "question", "template")
    with pytest.raises(KeyError, match="image, question, template"):
        shares.of("evidence")


def test_evidence_that_the_crop_cut_off_is_an_error(random, crowded, paste):
    with pytest.raises(BadPrompt, match="no image token sees"):
        probes.allocation(random, random.prompt(paste(crowded[1], (336, 112), (0, 0))))


def test_two_pictures_are_two_segments(random, bare, crowded):
    one, two = crowded[0].image, crowded[1].image
    shares = probes.allocation(random, random.prompt([one, two], LONGER))
    assert {"image", "image:0", "image:1"} <= set(shares.segments)
    inputs = bare.processor(
        text=[f"<bos> <image> <image> {LONGER}"],
        images=[one, two],
        add_special_tokens=False,
        return_tensors="pt",
    )
    with torch.no_grad():
        row = torch.cat(bare.model(**inputs, output_attentions=True).attentions)[:, :, -1]
    torch.testing.assert_close(shares.of("image:0")[0], row[..., 1:65].sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(shares.of("image:1")[0], row[..., 65:129].sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        shares.of("image:0") + shares.of("image:1"), shares.of("image"), atol=1e-5, rtol=0
    )


def test_padding_is_in_no_segment_and_does_not_count(random, crowded):
    asked = [(crowded[0].image, crowded[0].question), (crowded[1].image, LONGER)]
    batch = random.prompts(asked)
    padding = batch.inputs["attention_mask"] == 0
    assert padding.sum(1).tolist() == [4, 0]
    for mask in segments_of(batch).values():
        assert not (mask & padding).any()
    together = probes.allocation(random, batch)
    for row, pair in enumerate(asked):
        alone = probes.allocation(random, random.prompt(*pair))
        torch.testing.assert_close(together.mass[row], alone.mass[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.rapt[row], alone.rapt[0], atol=1e-4, rtol=0)


def test_rapt_by_layer_is_that_of_the_mean_row(shares):
    torch.testing.assert_close(shares.rapt_by_layer(), shares.rapt.mean(-1))
    assert shares.rapt_by_layer().shape == (1, 5, 6)


def test_to_frame_has_a_row_for_every_number(shares):
    frame = shares.to_frame()
    assert list(frame.columns) == ["item", "segment", "layer", "head", "mass", "rapt"]
    assert len(frame) == shares.mass.numel()
    at = frame.set_index(["item", "segment", "layer", "head"])
    place = shares.segments.index("question")
    assert at.loc[(0, "question", 4, 2), "mass"] == shares.mass[0, place, 4, 2]
    assert at.loc[(0, "question", 4, 2), "rapt"] == shares.rapt[0, place, 4, 2]


# ---- other rows, other segments ---------------------------------------------------------------------------


def test_a_spans_rows_are_averaged(random, bare, crowded):
    sample = crowded[0]
    prompt = random.prompt(sample.image, sample.question)
    shares = probes.allocation(random, prompt, "question")
    rows = bare.attention(sample.image, sample.question)[:, :, 65:]
    np.testing.assert_allclose(shares.of("image")[0], rows[..., 1:65].sum(-1).mean(-1), atol=1e-5)
    # causal: the row at position p sees p + 1 tokens, of which 64 are of the image
    visible = np.arange(66, 74)
    rapt = (rows[..., 1:65].sum(-1) / 64 * visible).mean(-1)
    np.testing.assert_allclose(shares.rapt[0, shares.segments.index("image")], rapt, rtol=1e-5)


def test_rows_can_be_kept_apart(random, crowded):
    prompt = random.prompt(crowded[0])
    apart = probes.allocation(random, prompt, "question", each=True)
    assert apart.mass.shape == (1, 5, 6, 4, 8)
    torch.testing.assert_close(apart.mass.mean(-1), probes.allocation(random, prompt, "question").mass)
    last = probes.allocation(random, prompt)
    torch.testing.assert_close(apart.mass[..., -1], last.mass)
    frame = apart.to_frame()
    assert list(frame.columns) == ["item", "segment", "layer", "head", "token", "mass", "rapt"]


@pytest.mark.parametrize("query", ["last", "question", "answer", 20, [20, 72]])
def test_uniform_attention_gives_one_for_every_row(uniform, crowded, query):
    asked = [(one.image, one.question, one.boxes) for one in crowded[:2]]
    asked.append((crowded[2].image, LONGER, crowded[2].boxes))
    prompt = uniform.prompts(asked)
    if query == "answer":
        prompt = prompt.with_answer(["7", "red square", "the digit is 7"])
    shares = probes.allocation(uniform, prompt, query)
    shown = shares.rapt[~shares.rapt.isnan()]
    torch.testing.assert_close(shown, torch.ones_like(shown), atol=1e-5, rtol=0)
    assert not shares.rapt[:, shares.segments.index("image")].isnan().any()


def forced(bare, sample, answer):
    """(layer, head, query, key) of a prompt that goes on with ``answer``, and its tensors."""
    inputs = dict(bare.inputs((sample.image, sample.question)))
    ids = torch.tensor([bare.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        out = bare.model(**inputs, output_attentions=True)
    return torch.cat(out.attentions).double().numpy()


def test_answer_rows_are_those_that_predict_its_tokens(random, bare, crowded):
    """Answers of one, two and three tokens in one batch, each against eager rows by itself."""
    answers = ["7", "red square", "red blue 7"]
    prompt = random.prompts(crowded[:3]).with_answer(answers)
    shares = probes.allocation(random, prompt, "answer")
    apart = probes.allocation(random, prompt, "answer", each=True)
    for row, (sample, answer) in enumerate(zip(crowded, answers)):
        rows, n = forced(bare, sample, answer), len(answer.split())
        rows = rows[:, :, 72 : 72 + n]
        np.testing.assert_allclose(shares.of("image")[row], rows[..., 1:65].sum(-1).mean(-1), atol=1e-5)
        np.testing.assert_allclose(shares.of("answer")[row], rows[..., 73:].sum(-1).mean(-1), atol=1e-5)
        np.testing.assert_allclose(apart.of("image")[row, ..., :n], rows[..., 1:65].sum(-1), atol=1e-5)
        assert apart.of("image")[row, ..., n:].isnan().all()
    total = sum(shares.of(name) for name in ("image", "question", "template", "answer"))
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
    assert (apart.of("answer")[:, :, :, 0] == 0).all()


def test_the_last_row_of_a_forced_prompt_is_the_prompts_own(random, crowded):
    prompt = random.prompts(crowded[:2])
    plain = probes.allocation(random, prompt)
    goes_on = probes.allocation(random, prompt.with_answer(["7", "red blue"]))
    torch.testing.assert_close(goes_on.of("image"), plain.of("image"), atol=1e-5, rtol=0)
    place = goes_on.segments.index("question")
    torch.testing.assert_close(
        goes_on.rapt[:, place], plain.rapt[:, plain.segments.index("question")], atol=1e-4, rtol=0
    )


def test_rows_that_are_not_there_are_refused(random, crowded):
    prompt = random.prompt(crowded[0])
    with pytest.raises(BadPrompt, match="carries no answer"):
        probes.allocation(random, prompt, "answer")
    with pytest.raises(BadPrompt, match="no rows are called 'sky'"):
        probes.allocation(random, prompt, "sky")
    with pytest.raises(ValueError, match="give samples"):
        probes.allocation(random, prompt, by_answer=True)
    with pytest.raises(ValueError, match="averaged"):
        probes.allocation(random, crowded[:2], each=True)


def test_sinks_are_found_in_what_enters_each_layer(random, bare, crowded):
    """Against the streams and rows of the bare model; they lie across the other segments."""
    sample, dims, threshold = crowded[0], [3, 40], 1.4
    shares = probes.allocation(random, random.prompt(sample), sinks=E.sinks(dims, threshold))
    with torch.no_grad():
        out = bare.model(
            **bare.inputs((sample.image, sample.question)), output_attentions=True, output_hidden_states=True
        )
    place, some = shares.segments.index("sinks"), 0
    for layer in range(6):
        x = out.hidden_states[layer][0]
        sinks = x[:, dims].abs().amax(-1) > threshold * x.pow(2).mean(-1).sqrt()
        row = out.attentions[layer][0, :, -1]
        torch.testing.assert_close(shares.mass[0, place, layer], row[:, sinks].sum(-1), atol=1e-5, rtol=0)
        if sinks.any():
            rapt = row[:, sinks].mean(-1) / row.mean(-1)
            torch.testing.assert_close(shares.rapt[0, place, layer], rapt, atol=1e-4, rtol=1e-5)
        some += int(sinks.any() and not sinks.all())
    assert some >= 3, "no layer tells sinks from other tokens"
    total = shares.of("image") + shares.of("question") + shares.of("template")
    torch.testing.assert_close(total, torch.ones(1, 6, 4), atol=1e-5, rtol=0)


def test_sinks_are_positions_too_and_compose(random, crowded):
    prompt = random.prompt(crowded[0])
    first = probes.allocation(random, prompt, sinks=[0])
    torch.testing.assert_close(first.of("sinks"), first.of("template"))
    visual = probes.allocation(random, prompt, sinks=E.sinks([3, 40], 1.4) & "image")
    whole = probes.allocation(random, prompt, sinks=E.sinks([3, 40], 1.4))
    assert (visual.of("sinks") <= whole.of("sinks") + 1e-6).all()
    assert (visual.of("sinks") <= visual.of("image") + 1e-6).all()
    with pytest.raises(E.BadEdit, match="no dimension 9999"):
        probes.allocation(random, prompt, sinks=E.sinks([9999]))
    with pytest.raises(E.BadEdit, match="reads rows"):
        probes.allocation(random, prompt, sinks=E.seen(layers=[0]))


def test_edited_rows_are_those_that_are_shared_out(random, crowded):
    blind = random.with_edits(E.Knockout(keys="image"))
    shares = probes.allocation(blind, blind.prompt(crowded[0]))
    assert (shares.of("image") == 0).all()
    torch.testing.assert_close(
        shares.of("question") + shares.of("template"), torch.ones(1, 6, 4), atol=1e-5, rtol=0
    )


# ---- over a data set --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_by_one(random, crowded):
    """(sample, segment, layer, head) mass and RAPT, each sample by itself."""
    found = [probes.allocation(random, random.prompt(sample)) for sample in crowded]
    return found[0].segments, torch.cat([one.mass for one in found]), torch.cat([one.rapt for one in found])


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_over_samples_it_is_the_mean(random, crowded, one_by_one, batch_size):
    segments, mass, rapt = one_by_one
    found = probes.allocation(random, iter(crowded), batch_size=batch_size)
    assert (found.n, found.segments) == (12, segments)
    assert (found.counts == 12).all()
    torch.testing.assert_close(found.mass, mass.double().mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.rapt, rapt.double().mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.rapt_by_layer(), rapt.double().mean((0, -1)), atol=1e-5, rtol=1e-5)


def test_intervals_are_those_of_a_bootstrap_over_samples(random, crowded, one_by_one):
    _, mass, rapt = one_by_one
    found = probes.allocation(random, crowded)
    for values, interval in ((mass, found.mass_interval), (rapt, found.rapt_interval)):
        booted = bootstrap_mean(values.double().mean(-1).movedim(0, -1), seed=0)
        width = booted.interval.high - booted.interval.low
        # Two bootstraps of few draws differ by some of the width.
        assert (abs(interval.low.numpy() - booted.interval.low) < 0.35 * width + 1e-9).all()
        assert (abs(interval.high.numpy() - booted.interval.high) < 0.35 * width + 1e-9).all()


def test_samples_are_parted_by_what_the_model_answers(trained, bare_trained, crowded):
    found = probes.allocation(trained, crowded, by_answer=True, batch_size=5)
    right = [bare_trained.answers((one.image, one.question))[0][1] == one.answers[0] for one in crowded]
    assert 0 < sum(right) < 12, "all alike: nothing is parted"
    assert found.correct.ids == tuple(one.id for one, good in zip(crowded, right) if good)
    assert found.wrong.ids == tuple(one.id for one, good in zip(crowded, right) if not good)
    wrong = [one for one, good in zip(crowded, right) if not good]
    torch.testing.assert_close(found.wrong.rapt, probes.allocation(trained, wrong).rapt, atol=1e-5, rtol=1e-5)
    both = found.correct.mass * found.correct.n + found.wrong.mass * found.wrong.n
    torch.testing.assert_close(both / 12, found.mass)
    frame = found.to_frame()
    assert list(frame.columns) == ["group", "segment", "layer", "head", "mass", "rapt", "count"]
    assert set(frame.group) == {"all", "correct", "wrong"}


def test_a_sample_without_boxes_is_counted_where_it_can_be(random, crowded, paste):
    bald = EvidenceSample("bald", crowded[0].image, crowded[0].question, ("7",), ())
    cut_off = paste(crowded[1], (336, 112), (0, 0))
    found = probes.allocation(random, [crowded[2], bald, cut_off], batch_size=2)
    at = dict(zip(found.segments, found.counts[:, 0, 0].tolist()))
    assert at == {"image": 3, "question": 3, "template": 3, "evidence": 1, "non-evidence": 1}
    alone = probes.allocation(random, random.prompt(crowded[2]))
    torch.testing.assert_close(found.of("evidence"), alone.of("evidence")[0].double(), atol=1e-5, rtol=0)


def test_what_makes_no_prompt_is_left_out_and_counted(random, crowded):
    odd = EvidenceSample("odd", crowded[0].image, "what is zzyzx ?", ("7",), ())
    found = probes.allocation(random, [crowded[0], odd])
    assert found.ids == (crowded[0].id,)
    assert [one.id for one in found.left_out] == ["odd"]
    assert "zzyzx" in found.left_out[0].reason
    with pytest.raises(ValueError, match="zzyzx"):
        probes.allocation(random, [odd])


@pytest.mark.parametrize("answers", ["own", "given"])
def test_over_samples_answer_rows_are_those_of_own_or_given_answers(trained, crowded, answers):
    found = probes.allocation(trained, crowded[:4], "answer", answers=answers, by_answer=True)
    said = trained.answer(trained.prompts(crowded[:4])) if answers == "own" else None
    alone = []
    for row, sample in enumerate(crowded[:4]):
        # The model says its answer and the end of the sequence, which is no answer token.
        given = sample.answers[0] if said is None else said[row].ids[:1]
        assert said is None or len(said[row].ids) == 2
        prompt = trained.prompt(sample).with_answer(given)
        alone.append(probes.allocation(trained, prompt, "answer").of("image")[0])
    torch.testing.assert_close(found.of("image"), torch.stack(alone).double().mean(0), atol=1e-5, rtol=0)
    assert "answer" in found.segments
    assert found.correct.n + found.wrong.n == 4


# ---- figures ----------------------------------------------------------------------------------------------


def test_the_figure_draws_the_layers_means(trained, crowded):
    found = probes.allocation(trained, crowded, by_answer=True)
    fig = found.figure(dark=True)
    drawn = [trace for trace in fig.data if trace.mode == "lines+markers"]
    assert len(drawn) == 8
    by_group = {"solid": found.correct, "dash": found.wrong}
    first = {trace.line.dash: trace for trace in drawn[:2]}
    for dash, group in by_group.items():
        np.testing.assert_allclose(first[dash].y, group.rapt_by_layer()[0])
        np.testing.assert_allclose(first[dash].customdata[:, 1], group.rapt_interval.high[0])
    assert f"n = {found.correct.n} + {found.wrong.n}" in fig.layout.title.text


def test_the_figure_of_a_prompt_draws_the_segments_asked_for(random, crowded):
    shares = probes.allocation(random, random.prompt([crowded[0].image, crowded[1].image], LONGER), sinks=[0])
    fig = shares.figure(segments=["image:1", "sinks"])
    drawn = [trace for trace in fig.data if trace.mode == "lines+markers"]
    assert [trace.name for trace in drawn] == ["image:1", "sinks"]
    place = shares.segments.index("image:1")
    np.testing.assert_allclose(drawn[0].y, shares.rapt_by_layer()[0, place].double())
    with pytest.raises(KeyError, match="no segment 'sky'"):
        shares.figure(segments=["sky"])
