"""An answer and what the prompt pass showed, from one run: what `answer` and `cache` say in two."""

import pytest
import torch

from seeing import edits as E
from seeing.names import Name


def close(found, expected):
    hidden = expected < -1e30
    found, expected = found.masked_fill(hidden, 0), expected.masked_fill(hidden, 0)
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * size)


def at_real_tokens(name, value, row, real):
    """One row's values where the batch is not padded; what has no token axis as it is."""
    if name.startswith(("vision.", "projector.")):
        return value if len(value) == 1 else value[row]
    if not Name.parse(name).has_rows:
        return value[row][real[row]] if value.shape[1] == real.shape[1] else value[row]
    return value[row][..., real[row]] if value.shape[-1] == real.shape[1] else value[row]


def same(vlm, prompt, names, queries="last", **settings):
    """`answer_with_cache`, held against `answer` and `cache`."""
    answers, found = vlm.answer_with_cache(prompt, names, queries, 3, **settings)
    expected, values = vlm.answer(prompt, 3), vlm.cache(prompt, names, queries)
    assert isinstance(answers, list) == isinstance(expected, list)
    for answer, other in zip(answers, expected) if prompt.batched else [(answers, expected)]:
        assert answer == other
        assert answer.ids.tolist() == other.ids.tolist()
        torch.testing.assert_close(answer.token_logprobs, other.token_logprobs, rtol=0, atol=2e-4)
    real = vlm.shown(prompt).inputs["attention_mask"].bool()
    assert list(found) == list(values)
    for name, value in values.items():
        assert found[name].shape == value.shape, name
        for row in range(len(prompt)):
            close(at_real_tokens(name, found[name], row, real), at_real_tokens(name, value, row, real))
    return answers, found


@pytest.fixture(scope="module")
def batch(case, picture):
    found = case.vlm.prompts(
        [
            (picture(76, 52), "what digit is on the red square ?", [(5, 5, 40, 30)]),
            (
                picture(50, 90, seed=1),
                "what digit is on the blue circle on the red square ?",
                [(9, 9, 40, 60)],
            ),
        ]
    )
    assert not found.inputs["attention_mask"].all()
    return found


def test_every_name_is_read_beside_the_answer(case, batch):
    _, found = same(case.vlm, batch, case.vlm.names())
    assert found["logits"].shape[:2] == batch.inputs["input_ids"].shape
    assert found.prompt is batch
    assert found.queries == "last"


def test_without_the_logits_no_more_of_them_are_made_than_the_answer_needs(case):
    made = []
    head = case.vlm.family.head(case.model)
    undo = head.register_forward_hook(lambda module, args, out: made.append(out.shape[1]))
    try:
        same(case.vlm, case.prompt(), "text.*.attn.pattern")
        case.vlm.answer_with_cache(case.prompt(), "text.*.attn.pattern", "last", 1)
    finally:
        undo.remove()
    assert made[-1] == (1 if case.model._supports_logits_to_keep() else case.prompt().length)


def test_edits_are_in_both(case, batch):
    layer = max(case.vlm.sites.kernels["text"])
    boost = E.ScaleAttention(keys="image", gain=3.0, layers=layer)
    direction = torch.linspace(-1, 1, case.vlm.cfg.d_model)
    edited = case.vlm.with_edits(boost + E.Steer("text.0.resid_post", direction, 2.0) + E.Occlude("evidence"))
    name = f"text.{layer}.attn.pattern"
    _, found = same(edited, batch, [name, "text.0.resid_post", "logits"], [-2, -1])
    _, plain = case.vlm.answer_with_cache(batch, "logits")
    assert not torch.equal(found["logits"][:, -1], plain["logits"][:, -1])


def test_a_contrast_shows_its_own_run_and_answers_with_the_mix(case, batch):
    edited = case.vlm.with_edits(E.Contrast(E.Occlude("evidence"), weight=1.0))
    layer = max(case.vlm.sites.kernels["text"])
    same(edited, batch, [f"text.{layer}.attn.pattern", f"text.{layer}.resid_post"])
