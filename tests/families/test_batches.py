"""Batches, several pictures, decoding with a KV cache, and low precision, in every family."""

import copy

import pytest
import torch

import seeing
from seeing.names import Name


def close(found, expected, tolerance=2e-5):
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * size)


@pytest.fixture(scope="module")
def rows(picture):
    return [
        (picture(76, 52), "what digit is on the red square ?"),
        (picture(50, 90, seed=1), "what digit is on the blue circle on the red square ?"),
    ]


def test_a_padded_batch_is_its_prompts_one_by_one(case, rows):
    """Every text name at every real token, and the last row of attention."""
    batch = case.vlm.prompts(rows)
    real = batch.inputs["attention_mask"].bool()
    assert not real.all()
    names = [name for name in case.vlm.names() if name.startswith("text.") or name == "logits"]
    found = case.vlm.cache(batch, names)
    for row, (image, question) in enumerate(rows):
        one = case.vlm.prompt(image, question)
        assert torch.equal(one.inputs["input_ids"][0], batch.inputs["input_ids"][row][real[row]])
        expected = case.vlm.cache(one, names)
        for name, value in expected.items():
            parsed = Name.parse(name)
            mine = found[name][row]
            if not parsed.has_rows and mine.shape[0] == batch.length:
                mine = mine[real[row]]
            elif parsed.has_rows and mine.shape[-1] == batch.length:
                mine = mine[..., real[row]]
            hidden = value[0] < -1e30
            close(mine.masked_fill(hidden, 0), value[0].masked_fill(hidden, 0))


def test_answers_of_a_batch_are_those_of_its_prompts(case, rows):
    answers = case.vlm.answer(case.vlm.prompts(rows), max_new_tokens=3)
    for (image, question), answer in zip(rows, answers):
        alone = case.vlm.answer(case.vlm.prompt(image, question), max_new_tokens=3)
        assert answer.ids.tolist() == alone.ids.tolist()


def test_two_pictures_in_one_prompt_each_have_their_grid(case, picture):
    prompt = case.vlm.prompt([picture(76, 52), picture(50, 90, seed=1)], "what digit is on the red square ?")
    assert [grid.image_size for grid in prompt.grids] == [(76, 52), (50, 90)]
    ids = prompt.inputs["input_ids"][0]
    found = (ids == case.vlm.family.image_token_id(case.model)).nonzero()[:, 0]
    assert torch.equal(torch.cat([grid.positions for grid in prompt.grids]), found)
    assert not (prompt.spans.mask("image:0") & prompt.spans.mask("image:1")).any()
    with torch.no_grad():
        expected = case.model(**prompt.inputs).logits
    assert torch.equal(case.vlm.cache(prompt, "logits")["logits"], expected)


def test_rows_of_decoded_tokens_are_those_of_the_twin(case):
    """Three steps with a KV cache, keys of the cache included, against the twin's own generation by hand."""
    prompt = case.prompt()
    layer = list(case.vlm.sites.kernels["text"])[-1]
    settings = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
    kept = []
    with torch.no_grad(), case.vlm.generate(prompt, **settings) as tracer:
        for _ in tracer.iter[:3]:
            kept.append(case.vlm.text[layer].attn.pattern[:, :, -1].clone())
        result = tracer.result.save()
    expected = case.twin.generate(prompt.inputs, **settings)
    assert torch.equal(expected, result)
    calls = case.twin.calls[case.attention(layer)]
    assert len(kept) == len(calls) == 3
    for row, call in zip(kept, calls):
        close(row, call["pattern"][:, :, -1])


def test_the_proof_holds_in_bfloat16(case):
    model = copy.deepcopy(case.twin.model).to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    vlm = seeing.load((model, case.processor))
    assert vlm._module.dtype == torch.bfloat16


def test_a_generation_counts_positions_as_a_forward_pass_does(case, picture):
    """Keys, which know their position, of a padded batch."""
    pair = case.vlm.prompts(
        [(picture(seed=1), "what digit is on the red square ?"), (picture(seed=2), "what digit ?")]
    )
    name = f"text.{max(case.vlm.sites.kernels['text'])}.attn.k"
    expected = case.vlm.cache(pair, name)[name]
    with torch.no_grad(), case.vlm.generate(pair, max_new_tokens=1):
        found = case.vlm.sites[name].read().save()
    close(found, expected)
