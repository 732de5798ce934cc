"""Shared features end with their context, and with whatever they were made of."""

import pytest
import torch

from seeing import edits as E
from seeing.features import shared_features


def logits(vlm, prompt):
    return vlm.cache(prompt, "logits")["logits"]


@pytest.fixture
def layer(random):
    return random.family.vision(random._module).layers[0]


def test_a_weight_that_is_written_to_makes_features_anew(random, crowded, layer):
    prompt = random.prompts(crowded[:2])
    weight = layer.mlp.fc1.weight
    with shared_features(random) as shared, torch.no_grad():
        before = logits(random, prompt)
        weight.mul_(2.0)
        try:
            changed = logits(random, prompt)
        finally:
            weight.div_(2.0)
        assert not torch.equal(before, changed)
        assert torch.equal(logits(random, prompt), before)
        assert shared.found == 0


def test_a_hook_that_changes_the_tower_is_seen(random, crowded, layer):
    prompt = random.prompts(crowded[:2])
    with shared_features(random):
        before = logits(random, prompt)
        undo = layer.register_forward_hook(lambda module, args, out: out * 1.5)
        try:
            assert not torch.equal(logits(random, prompt), before)
        finally:
            undo.remove()
        assert torch.equal(logits(random, prompt), before)


def test_a_written_feature_is_not_handed_out_again(random, crowded):
    prompt = random.prompts(crowded[:2])
    with shared_features(random) as shared, torch.no_grad():
        before = logits(random, prompt)
        features = random._module.model.get_image_features(prompt.inputs["pixel_values"], return_dict=True)
        assert shared.found == 1
        features.pooler_output[0].zero_()
        assert torch.equal(logits(random, prompt), before)
        assert shared.found == 1


def test_an_edited_picture_has_features_of_its_own(random, crowded):
    prompt = random.prompts(crowded[:2])
    edited = random.with_edits(E.Occlude("evidence"))
    expected = edited.answer(prompt, 2)
    with shared_features(random) as shared:
        random.answer(prompt, 2)
        found = edited.answer(prompt, 2)
    assert shared.found == 0
    for one, other in zip(found, expected, strict=True):
        assert one == other
        assert torch.equal(one.token_logprobs, other.token_logprobs)


def test_a_trace_that_caches_modules_or_waits_for_the_tower_runs_it(random, crowded):
    prompt = random.prompt(crowded[0])
    with shared_features(random) as shared, torch.no_grad():
        logits(random, prompt)
        with random.trace(prompt) as tracer:
            cache = tracer.cache()
        assert cache["model.model.vision_tower.encoder.layers.0"].output.ndim == 3
        with random.trace(prompt):
            first = random.vision[0].resid_pre.save()
            last = random.text[3].resid_post.save()
        with random.trace(prompt) as tracer:
            result = tracer.result.save()
    assert shared.found == 1
    assert first.ndim == last.ndim == 3
    assert torch.equal(result.logits, logits(random, prompt))


def test_contexts_nest_and_leave_the_model_as_it_was(random, crowded):
    model, prompt = random._module.model, random.prompt(crowded[0])
    with shared_features(random, keep=2) as shared:
        with shared_features(random) as inner:
            assert inner is shared
            logits(random, prompt)
        logits(random, prompt)
        assert (shared.made, shared.found) == (1, 1)
    assert "get_image_features" not in vars(model)
    logits(random, prompt)
    assert (shared.made, shared.found) == (1, 1)
    with pytest.raises(ValueError, match="keep=0"), shared_features(random, keep=0):
        pass
