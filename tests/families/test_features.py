"""Shared features: the tower runs once for a batch of pictures, and every number is what it was."""

import pytest
import torch

from seeing import edits as E
from seeing.features import shared_features

#: Their pictures are keys of cross-attention layers, made in the forward itself.
ALONE = {"mllama"}


@pytest.fixture(scope="module")
def batch(case, picture):
    return case.vlm.prompts(
        [
            (picture(76, 52), "what digit is on the red square ?"),
            (picture(50, 90, 1), "what digit is on the blue circle on the red square ?"),
        ]
    )


@pytest.fixture
def tower(case):
    """``tower()`` tells how often the tower's first layer ran since it was asked last."""
    ran = []
    undo = case.vlm.family.vision(case.model).layers[0].register_forward_hook(lambda *_: ran.append(1))

    def count() -> int:
        n = len(ran)
        ran.clear()
        return n

    yield count
    undo.remove()


def edits_of(vlm):
    layer = max(vlm.sites.kernels["text"])
    direction = torch.linspace(-1, 1, vlm.cfg.d_model)
    return E.ScaleAttention(keys="image", gain=3.0, layers=layer) + E.Steer(
        "text.0.resid_post", direction, 2.0
    )


def test_one_run_of_the_tower_serves_all_that_leaves_the_picture_as_it_is(case, batch, tower):
    vlm = case.vlm
    edited = vlm.with_edits(edits_of(vlm))
    layer = max(vlm.sites.kernels["text"])
    names = [f"text.{layer}.attn.pattern", "text.0.resid_pre", "logits"]

    def everything():
        cache = vlm.cache(batch, names)
        answers, read = edited.answer_with_cache(batch, names, max_new_tokens=2)
        with torch.no_grad():
            plain = case.model(**batch.inputs).logits
        logprobs = [one.token_logprobs for one in (*vlm.answer(batch, 2), *answers)]
        return [*cache.values(), *read.values(), plain, *logprobs]

    tower()
    alone = everything()
    once = tower() // 4
    with shared_features(vlm) as shared:
        together = everything()
    runs = tower() // once
    assert runs == shared.made if case.name not in ALONE else runs == 4
    # A forward hands some families more arguments than a generation does, and they are told apart by them.
    assert case.name in ALONE or shared.made + shared.found == 4
    assert case.name in ALONE or shared.found >= 2
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other)


def test_another_picture_has_features_of_its_own(case, batch, picture, tower):
    vlm = case.vlm
    prompts = [case.prompt(), case.prompt(seed=1), case.prompt(52, 76)]
    expected = [vlm.cache(prompt, "logits")["logits"] for prompt in prompts]
    assert not torch.equal(expected[0], expected[1])
    with shared_features(vlm, keep=1) as shared:
        for _ in range(2):
            for prompt, logits in zip(prompts, expected):
                assert torch.equal(vlm.cache(prompt, "logits")["logits"], logits)
    assert shared.found == 0


def test_what_looks_at_the_tower_sees_it_at_work(case, batch):
    """Read, edited, cached by nnsight, or differentiated: as without sharing, whatever was remembered."""
    vlm = case.vlm
    names = [name for name in vlm.names() if name.startswith(("vision.0.", "projector."))]
    width = vlm.cfg.vision.d_model
    steer = E.Steer("vision.0.resid_post", torch.linspace(-3, 3, width), 5.0, positions="all")
    edited = vlm.with_edits(steer + edits_of(vlm))
    values, logits = vlm.cache(batch, names), edited.cache(batch, "logits")["logits"]
    last = f"text.{max(vlm.sites.kernels['text'])}.resid_post"
    with shared_features(vlm) as shared:
        plain = vlm.cache(batch, "logits")["logits"]
        found = vlm.cache(batch, [*names, last])
        for name, value in values.items():
            assert torch.equal(found[name], value), name
        assert torch.equal(edited.cache(batch, "logits")["logits"], logits)
        assert not torch.equal(logits, plain)
        assert shared.found == 0
        assert torch.equal(vlm.cache(batch, "logits")["logits"], plain)
        assert shared.found == (case.name not in ALONE)
        grad = vlm.cache(batch, ["vision.0.resid_post", "logits"], grad=True)
        slope = torch.autograd.grad(grad["logits"].float().logsumexp(-1).sum(), grad["vision.0.resid_post"])[
            0
        ]
        assert slope.abs().max() > 0
