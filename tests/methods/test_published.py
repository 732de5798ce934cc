"""Published methods on three families: each equals its formula, written out by hand under eager attention.

The hand works in one pass over the prompt and the tokens that the method decoded, so that what is compared is
every step of the answer: the first token, and those behind it that are decoded from the KV cache.
"""

import math

import numpy as np
import pytest
import torch
from tiny.eager import STEPS, agree, case_of, ids_of

from seeing import methods, probes
from seeing.edits import BadEdit
from seeing.methods import Method

FAMILIES = ("llava", "llava_next-llama", "qwen2_5_vl")
HEADS = {0: [1], 1: [0, 2]}


@pytest.fixture(params=FAMILIES, scope="module")
def case(request):
    return case_of(request.param)


def saliency(vlm, prompt):
    """A ramp from left to right over each picture."""
    sizes = [turn.images[0].size for turn in prompt.turns]
    return [np.linspace(0, 1, width)[None].repeat(height, 0) for width, height in sizes]


def drift(vlm, strength=0.1, weight=0.3):
    vectors = torch.randn(vlm.cfg.n_layers, vlm.cfg.d_model, generator=torch.Generator().manual_seed(0))
    return methods.vista(vectors, strength, window=slice(0, 2), weight=weight)


def by_name(vlm, neutral=False):
    """Each method by name: as published, stronger where small models need it, or at its neutral setting."""
    m, n = methods, neutral
    made = {
        "vea_in_pass": m.vea_in_pass({0: [1]}, [1, 2], 1.0 if n else 16.0),
        "second_look": m.second_look(HEADS, 1.0 if n else 4.0),
        "pai": m.pai(0, 1) if n else m.pai(layers="all"),
        "var": m.var((0, 3), 1.2, 1.0, 1 if n else 0.6, least=0.05, layers="all"),
        "scaling_vis": m.scaling_vis(1 if n else 1.5),
        "adaptvis": m.adaptvis(1, 1) if n else m.adaptvis(),
        "gaze_heads": m.gaze_heads(HEADS, "evidence", 0 if n else 1e4, when="both"),
        "vcd": m.vcd(0 if n else 0.5),
        "m3id": m.m3id(0 if n else 0.2),
        "crg": m.crg(alpha=0 if n else 1.0),
        "agla": m.agla(saliency, 0 if n else 1.0),
        "vista": drift(vlm, 0, 0) if n else drift(vlm),
        "random_region": m.random_region(1 if n else 4.0),
        "oracle": m.oracle(1 if n else 4.0),
    }
    if n:
        return made
    return made | {
        "vicrop": m.vicrop(1, generic="what is on the red square ?", size=20),
        "attention_knockout": m.attention_knockout("question", "image", 1, window=2),
        "ablate_heads": m.ablate_heads(m.random_heads(vlm, 2)),
    }


NAMES = (
    *("vea_in_pass", "second_look", "pai", "var", "scaling_vis", "adaptvis", "gaze_heads", "vcd", "m3id"),
    *("crg", "agla", "vista", "random_region", "oracle", "vicrop", "attention_knockout", "ablate_heads"),
)


# ---- every method ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_method_moves_the_answer_of_a_prompt_and_of_every_row_of_a_batch(case, name):
    method = by_name(case.vlm)[name]
    assert isinstance(method, Method)
    assert "\n" not in method.about
    for prompt in (case.single, case.batch):
        answers = method.answer(case.vlm, prompt)
        assert isinstance(answers, list) == prompt.batched
        given = answers if prompt.batched else [answers]
        assert [len(one.ids) for one in given] == [STEPS] * len(prompt)
        plain = case.logprobs(prompt, answers).gather(-1, ids_of(answers)[..., None])[..., 0]
        found = torch.stack([one.token_logprobs for one in given])
        moved = (found - plain).abs().amax(1)
        assert (moved > 1e-4).all(), moved


@pytest.mark.parametrize("name", NAMES[:14])
def test_a_method_at_its_neutral_setting_is_the_model_as_it_is(case, name):
    answers = by_name(case.vlm, neutral=True)[name].answer(case.vlm, case.batch)
    plain = case.vlm.answer(case.batch)
    for answer, expected in zip(answers, plain):
        assert answer.ids.tolist() == expected.ids.tolist()
        torch.testing.assert_close(answer.token_logprobs, expected.token_logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_moves_the_trained_model_and_leaves_it_as_it_was(trained, crowded, name):
    prompt = trained.prompts(crowded[:2])
    before, plain = trained.cache(prompt, "logits")["logits"], trained.answer(prompt)
    answers = by_name(trained)[name].answer(trained, prompt)
    assert len(answers) == 2
    assert all(len(one.ids) and one.token_logprobs.isfinite().all() for one in answers)
    assert max(abs(one.logprob - other.logprob) for one, other in zip(answers, plain)) > 1e-5
    assert torch.equal(trained.cache(prompt, "logits")["logits"], before)


# ---- by hand: scores ----------------------------------------------------------------------------


def newest(prompt, total):
    """(batch, 1, query, 1): the last prompt row and those of decoded tokens."""
    return (torch.arange(total) >= prompt.length - 1)[None, None, :, None]


def on(mask):
    """A (batch, key) mask over rows."""
    return mask[:, None, None, :]


def test_the_scores_of_pai_are_pushed_up_by_a_share_of_their_size(case):
    prompt, image = case.batch, case.rows(case.batch, "image")
    method = methods.pai(0.7, gamma=1, layers=slice(1, None))
    answers = method.answer(case.vlm, prompt)

    def push(layer, z, visible):
        chosen = newest(prompt, z.shape[2]) & on(image) & (layer >= 1)
        return torch.where(chosen, z + 0.7 * z.abs(), z)

    agree(answers, case.by_hand(prompt, answers, scores=push))


@pytest.mark.parametrize("weight", [0.4, 2.0])
def test_scaling_vis_multiplies_the_scores_on_the_picture_in_the_prompt_pass_alone(case, weight):
    prompt, image = case.batch, case.rows(case.batch, "image")
    answers = methods.scaling_vis(weight).answer(case.vlm, prompt)

    def scaled(layer, z, visible):
        last = (torch.arange(z.shape[2]) == prompt.length - 1)[None, None, :, None]
        return torch.where(last & on(image), z * weight, z)

    agree(answers, case.by_hand(prompt, answers, scores=scaled))


def test_adaptvis_scales_each_row_by_how_sure_it_is(case):
    prompt, image = case.batch, case.rows(case.batch, "image")
    first = case.logprobs(prompt, case.vlm.answer(prompt))[:, 0].exp().amax(-1)
    method = methods.adaptvis(0.3, 1.8, threshold=float(first.mean()))
    assert (first < method.threshold).tolist() in ([True, False], [False, True])
    torch.testing.assert_close(method.confidence(case.vlm, prompt), first, atol=1e-4, rtol=0)
    answers = method.answer(case.vlm, prompt)
    weight = torch.where(first < method.threshold, 0.3, 1.8)[:, None, None, None]

    def scaled(layer, z, visible):
        last = (torch.arange(z.shape[2]) == prompt.length - 1)[None, None, :, None]
        return torch.where(last & on(image), z * weight, z)

    agree(answers, case.by_hand(prompt, answers, scores=scaled))


@pytest.mark.parametrize(("threshold", "weight"), [(0.0, 1.8), (1.0, 0.3)])
def test_adaptvis_of_rows_that_are_all_sure_or_all_unsure_is_scaling_vis(case, threshold, weight):
    answers = methods.adaptvis(0.3, 1.8, threshold).answer(case.vlm, case.batch)
    expected = methods.scaling_vis(weight).answer(case.vlm, case.batch)
    for answer, one in zip(answers, expected):
        torch.testing.assert_close(answer.token_logprobs, one.token_logprobs)


@pytest.mark.parametrize("when", ["decode", "both"])
def test_gaze_heads_put_all_their_weight_on_the_picture_on_the_target(case, when):
    prompt, image = case.batch, case.rows(case.batch, "image")
    target = torch.nn.functional.pad(prompt.evidence(), (0, STEPS - 1))
    answers = methods.gaze_heads(HEADS, "evidence", when=when).answer(case.vlm, prompt)
    first = prompt.length - (when == "both")

    def steer(layer, z, visible):
        rows = (torch.arange(z.shape[2]) >= first)[None, None, :, None]
        heads = torch.zeros(z.shape[1], dtype=torch.bool)
        heads[HEADS.get(layer, [])] = True
        chosen = rows & heads[None, :, None, None]
        # At 1e4 nothing but the target counts: whatever else there is weighs e to the minus 1e4.
        return torch.where(chosen & ~on(target), -torch.inf, z)

    assert (image & ~target).any()
    # Scores about 1e4 are a thousandth apart in float32.
    agree(answers, case.by_hand(prompt, answers, scores=steer), 2e-3)


def test_a_soft_gaze_is_a_bias_up_on_the_target_and_down_on_the_rest_of_the_picture(case):
    prompt, image = case.batch, case.rows(case.batch, "image")
    target = torch.nn.functional.pad(prompt.evidence(), (0, STEPS - 1))
    answers = methods.gaze_heads({1: [3]}, "evidence", 1.5, when="both").answer(case.vlm, prompt)

    def steer(layer, z, visible):
        chosen = newest(prompt, z.shape[2]) & (torch.arange(z.shape[1]) == 3)[None, :, None, None]
        bias = 1.5 * on(target).float() - 1.5 * on(image & ~target).float()
        return z + bias * chosen * (layer == 1)

    agree(answers, case.by_hand(prompt, answers, scores=steer))


def test_attention_knockout_cuts_edges_in_a_window_of_layers_and_keeps_the_mask(case):
    prompt = case.batch
    queries, keys = case.rows(prompt, "question"), case.rows(prompt, "image")
    answers = methods.attention_knockout("question", "image", 1, window=2).answer(case.vlm, prompt)

    def cut(layer, z, visible):
        chosen = queries[:, None, :, None] & on(keys) & (layer in (0, 1))
        return torch.where(chosen, -torch.inf, z)

    agree(answers, case.by_hand(prompt, answers, scores=cut))


@pytest.mark.parametrize(
    ("layer", "window", "expected"), [(0, 9, [0, 1, 2, 3, 4]), (4, 1, [4]), (3, 4, [1, 2, 3, 4])]
)
def test_a_window_of_layers_lies_around_its_layer_and_ends_with_the_model(trained, layer, window, expected):
    method = methods.attention_knockout("last", "image", layer, window=window)
    assert method.edits.fit(trained)[0].layers == tuple(expected)


def test_vea_in_pass_reads_the_best_heads_of_a_profile_below_the_layers_that_act(trained, crowded):
    profile = probes.profile(trained, crowded)
    method = methods.vea_in_pass(profile, range(4, 6), 8.0)
    assert method.heads == profile.heads(below=4)
    assert (method.layers, method.gain) == ((4, 5), 8.0)
    assert max(method.heads) < 4
    assert methods.second_look(profile).heads == profile.heads()


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(BadEdit, match="positive number"):
        methods.scaling_vis(0)
    with pytest.raises(BadEdit, match="positive number"):
        methods.adaptvis(high=math.nan)
    with pytest.raises(BadEdit, match="probability"):
        methods.adaptvis(threshold=2)
    with pytest.raises(BadEdit, match="window"):
        methods.attention_knockout("last", "image", -1)
    with pytest.raises(BadEdit, match="window"):
        methods.attention_knockout("last", "image", 2, window=0)
    with pytest.raises(BadEdit, match=r"heads are a dict \{layer: \[heads\]\}"):
        methods.gaze_heads([0], "evidence")
    with pytest.raises(BadEdit, match="none are named"):
        methods.vea([])
    with pytest.raises(BadEdit, match="layers by number"):
        methods.vea("deep")


def test_layers_that_the_model_lacks_are_named(trained, crowded):
    prompt = trained.prompt(crowded[0])
    with pytest.raises(BadEdit, match="no layer 99: the text stack has layers 0-5"):
        methods.attention_knockout("last", "image", 99).answer(trained, prompt)
    with pytest.raises(BadEdit, match="no layer 99: the text stack has layers 0-5"):
        methods.vea([99]).answer(trained, prompt)


def test_methods_are_values():
    assert methods.pai() == methods.pai() != methods.pai(0.3)
    assert methods.adaptvis() == methods.adaptvis() != methods.adaptvis(0.6)
    assert methods.vcd() == methods.vcd(seed=0) != methods.vcd(seed=1)
