"""Probes, and the KV cache under edits, in every family."""

import pytest
import torch

from seeing import edits as E
from seeing import probes
from seeing.data.samples import EvidenceSample


@pytest.fixture(scope="module")
def samples(picture):
    return [
        EvidenceSample(
            "a", picture(76, 52), "what digit is on the red square ?", ("1",), ((20, 12, 50, 40),)
        ),
        EvidenceSample(
            "b", picture(50, 90, 1), "what digit is on the red square ?", ("2",), ((5, 40, 40, 80),)
        ),
    ]


@pytest.mark.filterwarnings("ignore:the model did not see all of the evidence")
def test_evidence_keeps_every_layer_with_nan_where_nothing_can_be_read(case, samples):
    found = probes.evidence(case.vlm, samples)
    assert found.n == 2
    assert found.auroc.shape == (case.vlm.cfg.n_layers, case.vlm.cfg.n_heads)
    kernels = case.vlm.sites.kernels["text"]
    for layer in range(case.vlm.cfg.n_layers):
        reads = layer in kernels and (kernels[layer].cross or not any(k.cross for k in kernels.values()))
        if reads and kernels[layer].windowed:
            continue  # a window may end before the picture: `test_what_a_window_hides…`
        assert found.auroc[layer].isnan().all() != reads
    shown = found.auroc[~found.auroc.isnan()]
    assert ((shown >= 0) & (shown <= 1)).all()
    assert set(probes.profile(case.vlm, samples, top=0.3).layers) <= set(kernels)


@pytest.mark.filterwarnings("ignore:the model did not see all of the evidence")
def test_what_a_window_hides_has_no_say(case, samples):
    """Rows that are even over what they see: RAPT is 1, AUROC is chance or, where too little is seen, NaN."""
    kernels = case.vlm.sites.kernels["text"]
    prompt = case.vlm.prompt(samples[0])
    if prompt.cross is not None:
        pytest.skip("the picture has keys of its own, which no window hides")
    even = case.vlm.with_edits(E.SetPattern("uniform", queries="last", layers=tuple(kernels)))
    rapt = probes.allocation(even, prompt).rapt
    assert not rapt.isnan().all()
    torch.testing.assert_close(
        rapt[~rapt.isnan()], torch.ones_like(rapt[~rapt.isnan()]), rtol=1e-4, atol=1e-4
    )
    found = probes.evidence(even, samples[0])
    grid = prompt.grids[0]
    labels = grid.labels(samples[0].boxes)[grid.placed]
    case.twin.run(prompt.inputs)
    for layer in kernels:
        scores = case.twin.calls[case.attention(layer)][-1]["scores"][0, 0, -1]
        seen = labels[scores[grid.positions[grid.placed]] > -1e30]
        mixed = bool(seen.any()) and not bool(seen.all())
        assert found.counts.auroc[layer].tolist() == [int(mixed)] * case.vlm.cfg.n_heads
        if mixed:
            assert found.auroc[layer].tolist() == pytest.approx([0.5] * case.vlm.cfg.n_heads, abs=1e-6)


def test_allocation_shares_add_up_to_one(case, picture):
    prompt = case.vlm.prompt(picture(), "what digit is on the red square ?", boxes=[(20, 12, 50, 40)])
    found = probes.allocation(case.vlm, prompt)
    total = sum(found.of(name) for name in ("image", "question", "template"))
    for layer in range(case.vlm.cfg.n_layers):
        if layer in case.vlm.sites.kernels["text"]:
            torch.testing.assert_close(total[:, layer], torch.ones_like(total[:, layer]))
        else:
            assert total[:, layer].isnan().all()
    parts = found.of("evidence") + found.of("non-evidence")
    if case.vlm.family.cross_grid(case.model, case.processor, (76, 52), 0) is None:
        image = found.of("image")
        torch.testing.assert_close(parts[~parts.isnan()], image[~image.isnan()], rtol=1e-4, atol=1e-5)


def test_rows_of_answers_are_shared_out_as_by_hand(case, picture):
    """Two prompts and answers of different lengths: padding on both sides. Answers make no sinks."""
    asked = [
        (picture(), "what digit is on the red square ?"),
        (picture(50, 90, 1), "what digit is on the square ?"),
    ]
    prompt = case.vlm.prompts(asked).with_answer(["red", "blue square ?"])
    found = probes.allocation(case.vlm, prompt, "answer", sinks=E.sinks([1, 7], 1.2))
    streams: list[torch.Tensor] = []
    case.twin.run(
        prompt.inputs, hooks=[(layer, "in", lambda x: streams.append(x) or x) for layer in case.layers]
    )
    kernels, image = case.vlm.sites.kernels["text"], prompt.spans.mask("image")
    answer = prompt.spans.mask("answer")
    for layer, stream in enumerate(streams):
        if layer not in kernels or kernels[layer].cross:
            assert found.of("sinks")[:, layer].isnan().all()
            continue
        (call,) = case.twin.calls[case.attention(layer)]
        sinks = (stream[..., [1, 7]].abs().amax(-1) > 1.2 * stream.pow(2).mean(-1).sqrt()) & ~answer
        for row in range(2):
            asking = prompt.spans["predicts"][row]
            rows = call["pattern"][row, :, asking[asking >= 0]]
            for name, keys in (("image", image[row]), ("sinks", sinks[row])):
                by_hand = rows[..., keys].sum(-1).mean(1)
                torch.testing.assert_close(found.of(name)[row, layer], by_hand, atol=1e-4, rtol=1e-4)
    total = sum(found.of(name) for name in ("image", "question", "template", "answer"))
    torch.testing.assert_close(total[~total.isnan()], torch.ones_like(total[~total.isnan()]))


@pytest.mark.parametrize("edit", ["boost", "heads", "steer"])
def test_edits_hold_while_tokens_are_decoded(case, edit):
    """Greedy decoding with edits and a KV cache, against plain forwards over the growing text."""
    layer = list(case.vlm.sites.kernels["text"])[-1]
    value = {
        "boost": E.ScaleAttention(keys="evidence", gain=6.0, layers=[layer]),
        "heads": E.AblateHeads({layer: [0, 2]}),
        "steer": E.Steer(f"text.{layer}.resid_post", torch.linspace(-1, 1, case.vlm.cfg.d_model), 1.0, "all"),
    }[edit]
    prompt = case.prompt(boxes=[(20, 12, 50, 40)])
    edited = case.vlm.with_edits(value)
    settings = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
    settings |= dict(output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), edited.generate(prompt, **settings) as tracer:
        cached = tracer.result.save()
    with torch.no_grad(), case.vlm.generate(prompt, **settings) as tracer:
        plain = tracer.result.save()
    first = edited.cache(prompt, "logits")["logits"][:, -1]
    torch.testing.assert_close(cached.logits[0], first, rtol=0, atol=2e-5 * float(first.abs().max()))
    assert (cached.logits[0] - plain.logits[0]).abs().max() > 1e-4
    assert (cached.logits[2] - plain.logits[2]).abs().max() > 1e-4


def test_several_prompts_in_one_trace_are_one_padded_batch(case, picture):
    one = case.prompt()
    two = case.vlm.prompt(picture(50, 90, 1), "what digit is on the blue circle on the red square ?")
    layer = list(case.vlm.sites.kernels["text"])[-1]
    kept = []
    with torch.no_grad(), case.vlm.trace() as tracer:
        for prompt in (one, two):
            with tracer.invoke(prompt):
                kept.append(case.vlm.text[layer].resid_post[:, -1].clone())
    for prompt, found in zip((one, two), kept):
        name = f"text.{layer}.resid_post"
        expected = case.vlm.cache(prompt, name)[name][:, -1]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * max(1.0, float(expected.abs().max())))


def test_the_overview_is_the_level_that_sees_most(case, picture):
    """Where there is a thumbnail it sees all that a tile does, so that one window means one region."""
    grid = case.vlm.prompt(picture(120, 40), "what digit is on the red square ?").keys.grids[0]
    seen = []
    for level in grid.levels:
        boxes = grid.boxes[torch.from_numpy(level.tokens).flatten()]
        boxes = boxes[~boxes.isnan().any(1)]
        seen.append(float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()))
    assert seen[grid.overview] > 0.9 * max(seen)
    if "thumbnail" in grid.kind:
        assert grid.levels[grid.overview].name == "thumbnail"
