"""Direct paths to the logits, by hand from the weights of the bare model."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from seeing import edits as E
from seeing.families import FamilyContractError
from seeing.probes.causal.patching import patching
from seeing.probes.causal.paths import direct_effects, path_patching
from seeing.probes.causal.stream import FrozenNorm


def repainted(sample):
    pixels = np.asarray(sample.image.convert("RGB"))
    return dataclasses.replace(sample, image=Image.fromarray(pixels[..., ::-1].copy()))


def id_of(bare, text):
    return bare.processor.tokenizer.convert_tokens_to_ids(text)


def last_row(bare, samples):
    """What the bare model has at the last token: by layer all heads side by side, the last stream, logits."""
    kept, undo = {}, []
    stack = bare.model.model.language_model

    def keep(name):
        def hook(module, args):
            kept[name] = args[0][:, -1]

        return hook

    for number, layer in enumerate(stack.layers):
        undo.append(layer.self_attn.o_proj.register_forward_pre_hook(keep(number)))
    undo.append(stack.norm.register_forward_pre_hook(keep("stream")))
    inputs = bare.inputs(*((one.image, one.question) for one in samples))
    with torch.no_grad():
        kept["logits"] = bare.model(**inputs).logits[:, -1]
    for handle in undo:
        handle.remove()
    return kept


def share(bare, kept, layer, head):
    """(batch, d_model): what a head adds to the stream."""
    part = slice(32 * head, 32 * head + 32)
    weight = bare.model.model.language_model.layers[layer].self_attn.o_proj.weight
    return (kept[layer][:, part] @ weight[:, part].T).detach()


# ---- direct effects ----------------------------------------------------------------------------------------


def test_a_head_writes_its_share_through_the_frozen_norm(random, bare, crowded):
    samples = crowded[:3]
    found = direct_effects(random, samples, batch_size=2)
    kept = last_row(bare, samples)
    answers = torch.tensor([id_of(bare, one.answers[0]) for one in samples])
    logits = kept["logits"]
    foils = logits.scatter(1, answers[:, None], -torch.inf).argmax(1)
    weight, norm = bare.model.lm_head.weight.detach(), bare.model.model.language_model.norm
    rms = (kept["stream"].pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    towards = (weight[answers] - weight[foils]) * norm.weight.detach() / rms
    expected = torch.stack(
        [
            torch.stack([(share(bare, kept, layer, head) * towards).sum(1) for head in range(4)], -1)
            for layer in range(6)
        ],
        1,
    )
    torch.testing.assert_close(found.heads, expected.mean(0).double(), atol=2e-4, rtol=2e-4)
    rows = torch.arange(3)
    total = float((logits[rows, answers] - logits[rows, foils]).mean())
    assert found.total == pytest.approx(total, abs=1e-3)
    parts = found.embed + float(found.attn.sum() + found.mlp.sum() + found.other.sum()) + found.constant
    assert parts == pytest.approx(total, abs=1e-3)
    assert found.constant == 0
    low, high = found.interval
    assert ((low <= found.heads + 1e-6) & (found.heads <= high + 1e-6)).all()


def test_a_foil_may_be_said(random, bare, crowded):
    found = direct_effects(random, crowded[:2], foil="7")
    logits = last_row(bare, crowded[:2])["logits"]
    answers = [id_of(bare, one.answers[0]) for one in crowded[:2]]
    expected = [float(logits[row, one] - logits[row, id_of(bare, "7")]) for row, one in enumerate(answers)]
    assert found.total == pytest.approx(sum(expected) / 2, abs=1e-3)


def test_a_foil_that_is_the_answer_is_left_out(random, crowded):
    same, other = crowded[0], next(one for one in crowded if one.answers != crowded[0].answers)
    found = direct_effects(random, [same, other], foil=same.answers[0])
    assert found.ids == (other.id,)
    assert f"the token of the foil '{same.answers[0]}'" in found.left_out[0].reason
    alone = direct_effects(random, [other], foil=same.answers[0])
    torch.testing.assert_close(found.heads, alone.heads, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="the token of the foil"):
        direct_effects(random, same, foil=same.answers[0])
    with pytest.raises(ValueError, match="is 'given' or 'own', got None"):
        direct_effects(random, same, answers=None)


@pytest.mark.parametrize("edit", [E.Crop("evidence", append=True), E.Crop("evidence", pad=0.3)])
def test_under_an_edit_of_pictures_the_row_that_answers_is_that_of_the_run(random, crowded, edit):
    edited, samples = random.with_edits(edit), crowded[:2]
    found = direct_effects(edited, samples)
    score = edited.score(edited.prompts(samples).with_answer([one.answers[0] for one in samples]))
    logits, ids = score.logits[:, 0], torch.tensor([id_of(random, one.answers[0]) for one in samples])
    rows = torch.arange(2)
    best = logits.scatter(1, ids[:, None], -torch.inf).amax(1)
    assert found.total == pytest.approx(float((logits[rows, ids] - best).mean()), abs=1e-3)
    settings = dict(metric="logit_diff", direction="noise")
    paths = path_patching(edited, samples, repainted, **settings)
    whole = patching(edited, samples, repainted, spans="last", layers=5, **settings)
    assert paths.gap == pytest.approx(whole.gap, abs=1e-3)


@pytest.mark.parametrize(
    "edit",
    [
        E.Steer("text.norm", torch.arange(128.0) / 128, 0.5),
        E.Steer("logits", torch.arange(31.0) / 31, 2.0),
        E.MixLayers([0], 0.5),
    ],
    ids=["norm", "logits", "mixed"],
)
def test_an_edit_behind_the_last_stream_is_no_part_of_it(random, crowded, edit):
    edited = random.with_edits(edit)
    with pytest.raises(FamilyContractError, match="acts between the stream and the logits"):
        direct_effects(edited, crowded[0])
    with pytest.raises(FamilyContractError, match="off by"):
        path_patching(edited, crowded[0], repainted)


def test_a_prompt_is_asked_about_its_answer_or_the_models_own(random, crowded):
    prompts = random.prompts(crowded[:3])
    own = direct_effects(random, prompts)
    assert own.total > 0
    assert own.ids == ("row 0", "row 1", "row 2")
    by_sample = direct_effects(random, crowded[:3], answers="own")
    torch.testing.assert_close(own.heads, by_sample.heads)
    told = direct_effects(random, prompts.with_answer([one.answers[0] for one in crowded[:3]]))
    torch.testing.assert_close(told.heads, direct_effects(random, crowded[:3]).heads)


def test_an_answer_without_tokens_is_left_out(random, crowded):
    unknown = dataclasses.replace(crowded[0], answers=("forty",))
    found = direct_effects(random, [unknown, crowded[1]])
    assert found.ids == (crowded[1].id,)
    assert "does not know the answer 'forty'" in found.left_out[0].reason
    with pytest.raises(ValueError, match="forty"):
        direct_effects(random, [unknown])


def test_direct_effects_are_ranked_and_told_as_a_table_and_a_figure(random, crowded):
    found = direct_effects(random, crowded[:2])
    layer, head, value = found.ranking()[0]
    assert value == float(found.heads.max()) == float(found.heads[layer, head])
    frame = found.to_frame()
    assert len(frame) == 2 + 3 * 6 + 24
    row = frame[(frame.part == "head") & (frame.layer == layer) & (frame["head"] == head)].iloc[0]
    assert row.effect == value
    parts = frame[frame.part != "head"].effect.sum()
    assert parts == pytest.approx(found.total, abs=1e-3)
    figure = found.figure()
    drawn = next(trace for trace in figure.data if trace.type == "heatmap")
    np.testing.assert_array_equal(drawn.z, found.heads.T.numpy())
    assert f"of {found.total:.2f} in all" in figure.layout.title.text


# ---- the last norm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LlamaRMSNorm, nn.LayerNorm])
def test_a_frozen_norm_is_linear_and_right_where_it_was_frozen(kind):
    torch.manual_seed(0)
    norm, stream = kind(9), torch.randn(3, 9) * 4 + 1
    with torch.no_grad():
        for weight in norm.parameters():
            weight.copy_(torch.randn_like(weight))
        frozen = FrozenNorm.at(norm, stream, norm(stream))
        torch.testing.assert_close(frozen(stream), norm(stream), atol=1e-5, rtol=1e-5)
        other, direction = torch.randn(3, 9), torch.randn(3, 9)
        sums = frozen(stream + 3 * other) - frozen(stream)
        torch.testing.assert_close(sums, 3 * (frozen(other) - frozen.bias), atol=1e-4, rtol=1e-4)
    assert frozen.centred == (kind is nn.LayerNorm)
    read = (frozen.pulled(direction) * other).sum(-1)
    torch.testing.assert_close(
        read, (direction * (frozen(other) - frozen.bias)).sum(-1), atol=1e-4, rtol=1e-4
    )


def test_a_norm_of_another_kind_is_refused():
    class Bent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, value):
            return self.weight * value.tanh()

    norm, stream = Bent(), torch.randn(2, 4) * 3
    with pytest.raises(FamilyContractError, match="no RMS norm and no layer norm"), torch.no_grad():
        FrozenNorm.at(norm, stream, norm(stream))
    norm = LlamaRMSNorm(4)
    with pytest.raises(FamilyContractError, match="of the last layer's stream"), torch.no_grad():
        FrozenNorm.at(norm, stream, norm(stream + torch.tensor([2.0, 0, 0, 0])))


# ---- one path ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_a_patched_path_exchanges_a_heads_share_of_the_last_stream(random, bare, crowded, direction):
    samples = crowded[:3]
    found = path_patching(random, samples, repainted, direction=direction, metric="logprob", batch_size=2)
    answers = torch.tensor([id_of(bare, one.answers[0]) for one in samples])
    runs = [last_row(bare, samples), last_row(bare, [repainted(one) for one in samples])]
    base, goal = runs if direction == "noise" else runs[::-1]
    norm = bare.model.model.language_model.norm

    def logprob(stream):
        with torch.no_grad():
            logits = bare.model.lm_head(norm(stream))
        return logits.log_softmax(-1)[torch.arange(3), answers]

    start, end = logprob(base["stream"]), logprob(goal["stream"])
    assert found.axes == {"layer": tuple(range(6)), "head": tuple(range(4))}
    assert found.gap == pytest.approx(float((end - start).mean()), abs=1e-3)
    for layer, head in ((0, 3), (3, 1), (5, 2)):
        moved = share(bare, goal, layer, head) - share(bare, base, layer, head)
        expected = float((logprob(base["stream"] + moved) - start).mean())
        assert abs(expected) > 1e-4
        assert float(found.change[layer, head]) == pytest.approx(expected, abs=2e-4)
        assert float(found.effect[layer, head]) == pytest.approx(expected / found.gap, rel=5e-3)
