"""The second look equals a whole second pass in every family, on the kept KV cache or by being one.

The region is found by hand in the twin's own rows, the boost of the first step is made by hand in the twin,
and the whole pass is a plain edit, which runs from the start.
"""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny.denoised import denoised

import seeing
from seeing import edits as E
from seeing.methods import SecondLook

#: Every family, and what its plan says. The others go on from the kept cache.
WHOLE = {"paligemma": "sees the last", "qwen3_5": "LinearAttention", "qwen3_5_moe": "LinearAttention"}
KEPT = (
    *("aya_vision", "cohere2_vision", "gemma3", "gemma4", "glm4v", "glm4v_moe", "idefics3", "internvl"),
    *("internvl-qwen3", "llava", "llava_next", "llava_next-llama", "llava_onevision", "mistral3", "mllama"),
    *("pixtral", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "vipllava"),
)
#: Kept only because the windows record what falls out of them.
WINDOWED = ("aya_vision", "cohere2_vision", "gemma3", "gemma4", "pixtral")
GAIN = 6.0
EVIDENCE = ((20, 12, 50, 40),)
QUESTION = "what digit is on the red square ?"


def only(*names):
    """A test of some families alone, one of each kind that it is about."""
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


@pytest.fixture(autouse=True)
def three_tokens(case, monkeypatch):
    """Every answer is three tokens."""
    monkeypatch.setattr(case.model.generation_config, "max_new_tokens", 3)
    monkeypatch.setattr(case.model.generation_config, "eos_token_id", None)


@pytest.fixture(scope="module")
def batch(case, picture):
    """Two rows, one padded, pictures of different shapes."""
    prompt = case.vlm.prompts(
        [
            (picture(76, 52), QUESTION, EVIDENCE),
            (picture(50, 90, 1), "what is on the blue circle ?", ((5, 40, 40, 80),)),
        ]
    )
    assert not prompt.inputs["attention_mask"].all()
    return prompt


@pytest.fixture
def steps(case, monkeypatch):
    """``steps(answer)``: what it gives, and the logits of its last generation, (step, row, token)."""
    inner = case.model.generate

    def run(answer):
        kept = []
        with monkeypatch.context() as patch:
            patch.setattr(case.model, "generate", lambda *a, **k: kept.append(inner(*a, **k)) or kept[-1])
            answers = answer()
        return answers, torch.stack(kept[-1].logits)

    return run


@contextmanager
def passes(model):
    """How many tokens each pass takes into the first text layer."""
    tokens = []
    hook = (
        model.get_decoder()
        .layers[0]
        .register_forward_pre_hook(
            lambda _, args, kwargs: tokens.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
            with_kwargs=True,
        )
    )
    try:
        yield tokens
    finally:
        hook.remove()


def layers_of(case):
    """The layers whose keys are the picture's."""
    kernels = case.vlm.sites.kernels["text"]
    return [layer for layer, kernel in kernels.items() if kernel.cross] or list(kernels)


def heads_of(case):
    """Heads of the first and of the last of them: nothing that acts in one pass is behind."""
    first, *_, last = layers_of(case)
    return {first: [0, 1], last: [1]}


def same(found, expected):
    """Logits of all steps, ids and log-probabilities."""
    (answers, logits), (others, whole) = found, expected
    close(logits, whole)
    for one, other in zip(answers, others, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert len(one.ids) == 3
        close(one.token_logprobs, other.token_logprobs)


def close(found, expected, tolerance=1e-5):
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * size)


def region_by_hand(case, prompt, heads):
    """Per row, the keys of the 2 × 2 window that the twin's last rows point at."""
    case.twin.run(prompt.inputs)
    rows = [
        case.twin.calls[case.attention(layer)][0]["pattern"][:, head, -1]
        for layer, some in heads.items()
        for head in some
    ]
    mean, regions = torch.stack(rows).double().mean(0).numpy(), []
    for row, scores in enumerate(mean):
        grid = prompt.keys.grids[prompt.keys.grid_rows.index(row)]
        tokens = grid.level(grid.overview).tokens
        scores = denoised(scores[grid.positions.numpy()[tokens]])
        height, width = (min(2, side) for side in tokens.shape)
        starts = np.ndindex(tokens.shape[0] - height + 1, tokens.shape[1] - width + 1)
        r, c = max(starts, key=lambda at: scores[at[0] : at[0] + height, at[1] : at[1] + width].sum())
        regions.append(grid.positions.numpy()[tokens[r : r + height, c : c + width]].ravel().tolist())
    return regions


def boosted_by_hand(case, prompt, regions, layers):
    """The twin's logits at the last token, with the boost added to its last rows."""

    def boost(part, value):
        if part != "scores":
            return value
        value = value.clone()
        for row, keys in enumerate(regions):
            value[row, :, -1, keys] += math.log(GAIN)
        return value

    return case.twin.run(prompt.inputs, {case.attention(layer): boost for layer in layers})[:, -1]


def boost_of(case, region):
    return E.ScaleAttention(keys=region, gain=GAIN, layers=layers_of(case))


# ---- the plan ------------------------------------------------------------------------------------


def test_the_plan_of_every_family(case):
    plan = SecondLook.plan(case.vlm)
    assert plan.kept == (case.name not in WHOLE), plan
    assert (case.name in KEPT) == plan.kept
    assert WHOLE.get(case.name, "as proved at load") in plan.why
    assert str(plan).startswith("kept cache" if plan.kept else "whole pass")
    assert case.vlm.last_unseen == (case.name != "paligemma")


# ---- the result ----------------------------------------------------------------------------------


def test_a_second_look_is_a_whole_second_pass(case, batch, steps):
    """And runs the last token alone, where the cache is kept."""
    heads = heads_of(case)
    regions = region_by_hand(case, batch, heads)
    whole = case.vlm.with_edits(boost_of(case, E.Positions(tuple(map(tuple, regions)))))
    expected = steps(lambda: whole.answer(batch))
    with passes(case.model) as tokens:
        found = steps(lambda: SecondLook(heads, GAIN).answer(case.vlm, batch))
    same(found, expected)
    assert tokens == [batch.length, 1 if case.name in KEPT else batch.length, 1, 1]
    plain, by_hand = (boosted_by_hand(case, batch, regions, layers) for layers in ([], layers_of(case)))
    close(found[1][0], by_hand, 1e-4)
    assert (plain - by_hand).abs().amax(-1).min() > 1e-3, "the boost moves every row"


@only("llava", "gemma4", "mllama", "qwen3_5")
def test_it_acts_in_the_layers_asked_for_that_see_the_picture(case, batch, steps):
    method, n_layers = SecondLook(heads_of(case), GAIN, "deep"), case.vlm.cfg.n_layers
    acts = [layer for layer in layers_of(case) if layer >= n_layers // 2]
    boost = E.ScaleAttention(keys=method.edit(case.vlm, batch).keys, gain=GAIN, layers=acts)
    whole = case.vlm.with_edits(boost)
    same(steps(lambda: method.answer(case.vlm, batch)), steps(lambda: whole.answer(batch)))


def test_gain_1_is_the_base(case, batch, steps):
    found = steps(lambda: SecondLook(heads_of(case), 1.0).answer(case.vlm, batch))
    same(found, steps(lambda: case.vlm.answer(batch)))


@only("llava", "gemma3", "mllama", "qwen2_5_vl")
def test_several_pictures_and_one_prompt(case, picture, steps):
    """The region is one of the first picture's; the answer is no list."""
    prompt = case.vlm.prompt([picture(76, 52), picture(50, 90, 1)], QUESTION)
    heads = heads_of(case)
    method = SecondLook(heads, GAIN)
    regions = region_by_hand(case, prompt, heads)
    whole = case.vlm.with_edits(boost_of(case, E.Positions(tuple(map(tuple, regions)))))
    [answer, logits], [other, expected] = (
        steps(lambda: method.answer(case.vlm, prompt)),
        steps(lambda: whole.answer(prompt)),
    )
    same(([answer], logits), ([other], expected))


@only("llava", "gemma3", "mllama")
def test_it_goes_with_other_edits(case, batch, steps):
    other = E.AblateHeads({layers_of(case)[0]: [1]}) + E.Knockout(queries="question", keys="template")
    if batch.cross is not None:
        other = E.AblateHeads({layers_of(case)[0]: [1], 0: [0]})
    edited = case.vlm.with_edits(other)
    assert SecondLook.plan(edited) == SecondLook.plan(case.vlm)
    method = SecondLook(heads_of(case), GAIN)
    whole = edited.with_edits(boost_of(case, method.edit(edited, batch).keys))
    found = steps(lambda: method.answer(edited, batch))
    same(found, steps(lambda: whole.answer(batch)))
    plain = steps(lambda: method.answer(case.vlm, batch))
    assert (found[1] - plain[1]).abs().max() > 1e-3


# ---- keys ----------------------------------------------------------------------------------------


@only("llava", "mllama")
def test_keys_that_need_no_look_are_boosted_in_one_pass(case, batch, steps):
    with passes(case.model) as tokens:
        found = steps(lambda: SecondLook(keys="evidence", gain=GAIN).answer(case.vlm, batch))
    assert tokens == [batch.length, 1, 1]
    whole = case.vlm.with_edits(E.ScaleAttention(keys="evidence", gain=GAIN))
    same(found, steps(lambda: whole.answer(batch)))


@only("llava", "mllama")
def test_keys_may_be_composed_of_what_is_seen(case, batch, steps):
    heads = heads_of(case)
    keys = E.seen(heads) | E.Span("evidence")
    own = torch.zeros_like(batch.keys.spans.mask("image"))
    for row, some in enumerate(region_by_hand(case, batch, heads)):
        own[row, some] = True
    whole = case.vlm.with_edits(boost_of(case, E.Positions.of_mask(own | batch.keys.evidence())))
    found = steps(lambda: SecondLook(keys=keys, gain=GAIN).answer(case.vlm, batch))
    same(found, steps(lambda: whole.answer(batch)))


# ---- why each plan is what it is -------------------------------------------------------------------


@only("gemma3", "mllama", "paligemma", "qwen3_5")
def test_elsewhere_a_kept_cache_would_be_wrong_or_impossible(case, batch, steps, monkeypatch):
    """PaliGemma's answer would be another; windows and states that recorded nothing give up no token."""
    method = SecondLook(heads_of(case), GAIN)
    kept = case.vlm.prefill(batch, "logits").past_key_values
    if case.name == "paligemma":
        expected = steps(lambda: method.answer(case.vlm, batch))
        monkeypatch.setattr(case.vlm, "last_unseen", True)
        found = steps(lambda: method.answer(case.vlm, batch))
        assert (found[1][0] - expected[1][0]).abs().max() > 1e-3
    elif case.name in WINDOWED or case.name in WHOLE:
        with pytest.raises(RuntimeError, match="does not track past states"):
            kept.crop(-1)
    elif case.name == "mllama":
        crossing = layers_of(case)[0]
        before = kept.layers[crossing].keys.shape[2]
        kept.crop(-1)
        assert kept.layers[crossing].keys.shape[2] == before - 1 == batch.cross.length - 1


@only("llava", "gemma4", "paligemma")
def test_an_unproved_model_is_proved_on_the_way(case, batch, steps):
    """What was loaded with check=False reads the two last rows in all layers."""
    vlm = seeing.load((case.model, case.processor), check=False)
    assert vlm.last_unseen is None
    plan = SecondLook.plan(vlm)
    assert ("not proved" in plan.why) == (case.name not in ("qwen3_5", "qwen3_5_moe"))
    method = SecondLook(heads_of(case), GAIN)
    with passes(case.model) as tokens:
        found = steps(lambda: method.answer(vlm, batch))
    assert tokens == [batch.length, 1 if case.name in KEPT else batch.length, 1, 1]
    same(found, steps(lambda: method.answer(case.vlm, batch)))


@only("llava", "gemma4", "mllama")
def test_a_prefill_reads_what_a_plain_pass_reads(case, batch):
    """Gemma 4's last layers take the last token alone where a generation asks for its logits by number."""
    names = ["text.*.attn.pattern", "text.*.resid_post"]
    found, expected = case.vlm.prefill(batch, names, [-2, -1]), case.vlm.cache(batch, names, [-2, -1])
    real = batch.inputs["attention_mask"].bool()
    for name, value in expected.items():
        mine = found.activations[name]
        assert mine.shape == value.shape
        rows = slice(None) if name.endswith("pattern") else real
        close(mine[rows], value[rows])
