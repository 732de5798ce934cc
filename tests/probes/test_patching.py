"""Metrics of an answer by hand, pairs of runs, and patches of heads against hooks on the bare model."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from seeing import edits as E
from seeing.edits import BadEdit
from seeing.probes.causal.effects import Measure, percent_change, rival, share_moved
from seeing.probes.causal.patching import patching
from seeing.prompt import BadPrompt

IDS = torch.tensor([[3, 1], [2, -1]])


def repainted(sample):
    """The same sample with its picture's colours exchanged."""
    pixels = np.asarray(sample.image.convert("RGB"))
    return dataclasses.replace(sample, image=Image.fromarray(pixels[..., ::-1].copy()))


def reworded(sample, question):
    return dataclasses.replace(sample, question=question)


# ---- metrics -----------------------------------------------------------------------------------------------


@pytest.fixture
def logits():
    return torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0)) * 3


def softmaxed(row):
    top = [math.exp(float(one)) for one in row]
    return [one / sum(top) for one in top]


def test_logprob_is_summed_over_the_answers_own_tokens(logits):
    found = Measure("logprob", IDS)(logits)
    first = math.log(softmaxed(logits[0, 0])[3]) + math.log(softmaxed(logits[0, 1])[1])
    assert found.tolist() == pytest.approx([first, math.log(softmaxed(logits[1, 0])[2])], abs=1e-5)


def test_logit_difference_is_of_the_first_token_and_the_foil(logits):
    found = Measure("logit_diff", IDS, foil=torch.tensor([0, 4]))(logits)
    assert found.tolist() == pytest.approx(
        [float(logits[0, 0, 3] - logits[0, 0, 0]), float(logits[1, 0, 2] - logits[1, 0, 4])]
    )


def test_divergence_is_from_the_clean_run_and_leaves_padding_out(logits):
    clean = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(1))
    clean[0, 0, 4] = -torch.inf
    found = Measure("kl", IDS, clean=clean.log_softmax(-1))(logits)

    def kl(row):
        p, q = softmaxed(clean[row]), softmaxed(logits[row])
        return sum(a * math.log(a / b) for a, b in zip(p, q) if a)

    assert found.tolist() == pytest.approx([kl((0, 0)) + kl((0, 1)), kl((1, 0))], abs=1e-5)


def test_a_rival_is_the_best_token_that_is_not_the_answer(logits):
    for row, answer in ((0, int(logits[0, 0].argmax())), (1, int(logits[1, 0].argmin()))):
        found = int(rival(logits[row : row + 1, 0], torch.tensor([answer])))
        best = sorted(range(5), key=lambda one: -float(logits[row, 0, one]))
        assert found == next(one for one in best if one != answer)


def test_the_way_moved_is_nan_where_there_is_none_to_go():
    base, goal = torch.tensor([-2.0, -2.0, -300.0]), torch.tensor([-1.0, -2.0 + 1e-6, -300.01])
    found = share_moved(torch.tensor([-1.75, -1.0, -300.0]), base, goal)
    assert found[0] == pytest.approx(0.25)
    assert found[1:].isnan().all()


def test_percent_change_is_of_the_probability():
    found = percent_change(
        torch.tensor([[math.log(0.1)], [math.log(0.6)]]), torch.full((2, 1), math.log(0.4))
    )
    assert found[:, 0].tolist() == pytest.approx([-75, 50], abs=1e-3)


@pytest.mark.parametrize(
    ("metric", "said"), [("odds", "no metric 'odds'"), ("logit_diff", "foil"), ("kl", "clean run")]
)
def test_a_metric_says_what_it_lacks(metric, said):
    with pytest.raises(ValueError, match=said):
        Measure(metric, IDS)


# ---- heads, by hooks on the bare model ---------------------------------------------------------------------


def logprob_by_hand(model, inputs, ids, hooks=()):
    """log p of one-token answers behind the prompt."""
    undo = [module.register_forward_pre_hook(hook) for module, hook in hooks]
    try:
        with torch.no_grad():
            logits = model(**inputs).logits[:, -1]
    finally:
        for handle in undo:
            handle.remove()
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


def test_a_patched_head_is_its_slice_of_the_projections_input(random, bare, crowded):
    samples = crowded[:3]
    found = patching(
        random, samples, repainted, heads=True, spans=("evidence", "last"), layers=[2], direction="noise"
    )
    base = bare.inputs(*((one.image, one.question) for one in samples))
    goal = bare.inputs(*((repainted(one).image, one.question) for one in samples))
    tokens = bare.processor.tokenizer
    ids = torch.tensor([tokens.convert_tokens_to_ids(one.answers[0]) for one in samples])
    evidence = random.prompts(samples).evidence()
    last = torch.zeros_like(evidence)
    last[:, -1] = True
    start, end = (logprob_by_hand(bare.model, inputs, ids) for inputs in (base, goal))
    assert found.gap == pytest.approx(float((end - start).mean()), abs=1e-4)
    for place, (layer, head, span) in enumerate([(2, 1, 0), (2, 3, 1)]):
        module = bare.model.model.language_model.layers[layer].self_attn.o_proj
        kept = {}
        logprob_by_hand(
            bare.model, goal, ids, [(module, lambda _, args, kept=kept: kept.update(z=args[0].clone()))]
        )
        chosen = (evidence, last)[place][..., None].expand_as(kept["z"]).clone()
        chosen[..., : 32 * head] = chosen[..., 32 * head + 32 :] = False

        def put(_, args, kept=kept, chosen=chosen):
            return (torch.where(chosen, kept["z"], args[0]),)

        change = logprob_by_hand(bare.model, base, ids, [(module, put)]) - start
        assert change.abs().max() > 1e-4
        row = found.axes["layer"].index(layer)
        assert float(found.change[row, head, span]) == pytest.approx(float(change.mean()), abs=2e-4)
        effect = float(change.mean() / (end - start).mean())
        assert float(found.effect[row, head, span]) == pytest.approx(effect, abs=1e-3)


def test_all_of_the_stream_put_in_is_the_other_run(random, crowded):
    everything = patching(random, crowded[:3], "another", spans=[E.Span("all")], layers=[0, 3])
    torch.testing.assert_close(everything.effect, torch.ones_like(everything.effect), atol=2e-3, rtol=0)
    torch.testing.assert_close(everything.share, torch.ones_like(everything.share), atol=2e-3, rtol=0)


# ---- pairs -------------------------------------------------------------------------------------------------

SETTINGS = dict(spans=("evidence", "last"), layers=3)


def test_batches_of_any_size_and_prompts_give_the_same_effects(random, crowded):
    samples = [reworded(crowded[0], "what digit ?"), *crowded[1:3]]
    whole = patching(random, samples, repainted, **SETTINGS)
    parts = patching(random, iter(samples), map(repainted, samples), batch_size=2, **SETTINGS)
    torch.testing.assert_close(parts.effect, whole.effect, atol=2e-4, rtol=1e-3)
    assert parts.ids == whole.ids == tuple(one.id for one in samples)
    clean = random.prompts(samples).with_answer([one.answers[0] for one in samples])
    prompts = patching(random, clean, random.prompts([repainted(one) for one in samples]), **SETTINGS)
    torch.testing.assert_close(prompts.effect, whole.effect, atol=2e-4, rtol=1e-3)


def test_an_edited_picture_is_the_same_as_the_edited_sample(random, crowded):
    def covered(sample):
        (x0, y0, x1, y1), pixels = (int(one) for one in sample.boxes[0]), np.array(sample.image)
        pixels[y0:y1, x0:x1] = (7, 8, 9)
        return dataclasses.replace(sample, image=Image.fromarray(pixels))

    edit = E.Occlude("evidence", fill=(7, 8, 9))
    by_edit = patching(random, crowded[:2], edit, **SETTINGS)
    by_hand = patching(random, crowded[:2], covered, **SETTINGS)
    torch.testing.assert_close(by_edit.change, by_hand.change)
    prompt = random.prompts(crowded[:2]).with_answer([one.answers[0] for one in crowded[:2]])
    torch.testing.assert_close(patching(random, prompt, edit, **SETTINGS).change, by_hand.change)


def test_another_picture_is_the_next_ones_at_this_ones_size(random, mixed, crowded):
    found = patching(random, mixed[:2], "another", spans="image", layers=0)
    by_hand = [
        dataclasses.replace(one, image=other.image.resize(one.image.size))
        for one, other in zip(mixed[:2], mixed[1::-1])
    ]
    expected = patching(random, mixed[:2], by_hand, spans="image", layers=0)
    torch.testing.assert_close(found.change, expected.change)
    alone = patching(random, crowded[:3], "another", spans="image", layers=0, batch_size=2)
    coming = [crowded[1], crowded[2], crowded[0]]
    by_hand = [dataclasses.replace(one, image=other.image) for one, other in zip(crowded[:3], coming)]
    expected = patching(random, crowded[:3], by_hand, spans="image", layers=0)
    torch.testing.assert_close(alone.change, expected.change, atol=1e-4, rtol=1e-3)


def test_the_corrupted_side_of_a_sample_is_the_same_in_any_batch(random, crowded):
    clean = [dataclasses.replace(one, id="same") for one in crowded[:4]]
    others = [dataclasses.replace(one, image=other.image) for one, other in zip(clean, crowded[4:8])]
    for corrupted in (others, "another", E.Noise(sigma=0.6)):
        one, many = (
            patching(random, clean, corrupted, spans="image", layers=0, batch_size=size) for size in (1, 4)
        )
        torch.testing.assert_close(one.change, many.change, atol=1e-4, rtol=1e-3)


def test_samples_are_taken_as_they_are_needed(random, crowded):
    taken = []

    def stream():
        for one in crowded[:6]:
            taken.append(one.id)
            yield one

    seen = []
    patching(
        random,
        stream(),
        repainted,
        spans="last",
        layers=0,
        batch_size=2,
        progress=lambda done: seen.append((done, len(taken))),
    )
    assert seen == [(2, 2), (4, 4), (6, 6)]


def test_samples_without_a_pair_are_left_out_with_the_reason(random, crowded):
    def change(sample):
        if sample is crowded[1]:
            raise ValueError("no such picture")
        return reworded(repainted(sample), "what digit ?") if sample is crowded[2] else repainted(sample)

    bare = dataclasses.replace(crowded[3], boxes=())
    found = patching(
        random, [*crowded[:3], bare, crowded[4]], change, spans=("evidence", "question"), layers=0
    )
    assert found.ids == (crowded[0].id, crowded[4].id)
    reasons = {one.id: one.reason for one in found.left_out}
    assert reasons.keys() == {crowded[1].id, crowded[2].id, bare.id}
    assert "no such picture" in reasons[crowded[1].id]
    assert "'question' has" in reasons[crowded[2].id]
    assert "no evidence boxes" in reasons[bare.id]
    two = patching(random, [crowded[0], crowded[4]], repainted, spans=("evidence", "question"), layers=0)
    torch.testing.assert_close(found.change, two.change, atol=1e-5, rtol=1e-4)


def test_evidence_that_the_crop_cuts_off_is_left_out(random, paste, crowded):
    away = paste(crowded[0], (400, 112), (0, 0))
    found = patching(random, [away, crowded[1]], repainted, spans="evidence", layers=0)
    assert found.ids == (crowded[1].id,)
    assert "no image token sees the evidence" in found.left_out[0].reason


def test_runs_that_are_the_same_have_no_effect_to_speak_of(random, crowded):
    found = patching(random, crowded[:2], lambda sample: sample, spans="last", layers=0)
    assert found.effect.isnan().all()
    assert found.share.isnan().all()
    assert found.count.tolist() == [[[0]]]
    assert found.change.abs().max() < 1e-5


def test_without_a_pair_there_is_no_result(random, crowded):
    bare = [dataclasses.replace(one, boxes=()) for one in crowded[:2]]
    with pytest.raises(ValueError, match=r"no sample has a clean and a corrupted side.*no evidence boxes"):
        patching(random, bare, repainted, spans="evidence", layers=0)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (dict(sites="resid_most"), BadEdit, "no site is called 'text.0.resid_most'"),
        (dict(layers=17), BadEdit, "no layer 17"),
        (dict(spans=()), ValueError, "no spans"),
        (dict(spans=(E.sinks([1], 2.0),)), BadEdit, "known while the model runs"),
        (dict(spans=("image", E.seen(layers=[0]))), BadEdit, "known while the model runs"),
        (dict(sites=()), ValueError, "no sites are named: resid_pre"),
        (dict(answers=None), ValueError, "'given' or 'own', got None"),
        (dict(metric="odds"), ValueError, "no metric"),
        (dict(direction="up"), ValueError, "'denoise' or 'noise'"),
        (dict(corrupted="other"), ValueError, "'another'"),
        (dict(corrupted=E.Knockout(queries="last", keys="image")), BadEdit, "edits the run, not the picture"),
        (dict(corrupted=E.AblateHeads({0: [1]}) + E.Noise(0.1)), BadEdit, "edits the run, not the picture"),
        (dict(corrupted=3), TypeError, "got int"),
        (dict(corrupted=lambda sample: sample.image), TypeError, "gives an EvidenceSample"),
    ],
)
def test_what_can_not_be_patched_says_so(random, crowded, settings, error, said):
    given = dict(corrupted=repainted, spans="last", layers=0) | settings
    with pytest.raises(error, match=said):
        patching(random, crowded[:2], **given)


def test_prompts_that_do_not_go_together_say_so(random, crowded):
    one, two = random.prompt(crowded[0]), random.prompts(crowded[:2])
    with pytest.raises(BadPrompt, match="1 rows, the corrupted one 2"):
        patching(random, one, two, spans="last", layers=0)
    other = random.prompt(reworded(crowded[0], "what digit ?"))
    with pytest.raises(BadPrompt, match="row 0: 'question' has"):
        patching(random, one, other, spans="question", layers=0)
    with pytest.raises(TypeError, match="another Prompt"):
        patching(random, one, "another", spans="last", layers=0)


# ---- what comes back ---------------------------------------------------------------------------------------


def test_results_are_told_by_label_as_a_table_and_as_a_figure(random, crowded):
    settings = dict(spans=("evidence", "last"), layers=[0, 3], sites=("resid_post", "mlp_out"))
    found = patching(random, crowded[:3], repainted, **settings)
    assert found.effect.shape == (2, 2, 2)
    assert float(found.at(site="mlp_out", layer=3, span="last")) == float(found.effect[1, 1, 1])
    assert torch.equal(found.at(layer=3), found.effect[:, 1])
    with pytest.raises(KeyError, match="no layer 2"):
        found.at(layer=2)
    low, high = found.interval
    assert (low <= found.effect + 1e-9).all()
    assert (found.effect <= high + 1e-9).all()
    frame = found.to_frame()
    assert list(frame.columns[:3]) == ["site", "layer", "span"]
    row = frame[(frame.site == "resid_post") & (frame.layer == 3) & (frame.span == "evidence")].iloc[0]
    assert row.effect == float(found.effect[0, 1, 0])
    best = found.top(1)[0]
    assert best[-1] == float(found.effect.max())
    assert found.at(site=best[0], layer=best[1], span=best[2]) == best[-1]
    drawn = [trace for trace in found.figure(dark=True).data if trace.type == "heatmap"]
    np.testing.assert_array_equal(drawn[1].z, found.effect[1].T.numpy())
    assert list(drawn[0].x) == [0, 3]
    assert "n = 3" in found.figure().layout.title.text


def test_own_answers_are_those_that_the_model_gives(random, crowded):
    prompts = random.prompts(crowded[:3])
    told = prompts.with_answer(random.answer(prompts))
    expected = patching(random, told, random.prompts([repainted(one) for one in crowded[:3]]), **SETTINGS)
    own = patching(random, crowded[:3], repainted, answers="own", **SETTINGS)
    torch.testing.assert_close(own.change, expected.change, atol=1e-4, rtol=1e-3)
    given = patching(random, crowded[:3], repainted, **SETTINGS)
    assert (own.change - given.change).abs().max() > 1e-2


def test_numbers_from_the_start_of_padded_rows_are_refused(random, crowded):
    longer = dataclasses.replace(crowded[1], question=crowded[1].question + " " + crowded[1].question)
    asked = [crowded[0], longer]
    for spans in ([E.Positions(((40,),))], [E.Positions(((40,),)) | "last"]):
        with pytest.raises(BadEdit, match="batch_size=1"):
            patching(random, asked, E.Noise(sigma=0.5), spans=spans, layers=0, batch_size=2)
        assert patching(random, asked, E.Noise(sigma=0.5), spans=spans, layers=0, batch_size=1).n == 2
    assert patching(random, asked, E.Noise(sigma=0.5), spans=[E.Positions(((-1,),))], layers=0).n == 2
