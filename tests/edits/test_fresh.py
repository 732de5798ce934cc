"""Edits tried by someone who had not written them: what went wrong in silence."""

import numpy as np
import pytest
import torch

import seeing
from seeing import edits as E
from seeing.data.plates import plates
from seeing.zoo import open_zoo


@pytest.fixture(scope="module")
def vlm():
    return seeing.load("plates-null")


@pytest.mark.parametrize("when", ["decode", range(2, 6)], ids=str)
def test_the_other_run_of_a_contrast_follows_the_tokens_where_nothing_is_mixed(vlm, when):
    prompt, n = vlm.prompt(plates("crowded", 3)[2]), 6
    vector = 6 * torch.randn(vlm.cfg.d_model, generator=torch.Generator().manual_seed(0))
    other = E.Steer("text.1.resid_post", vector, positions="image", when="prompt")
    image, stop = vlm._module.config.image_token_id, vlm._module.generation_config.eos_token_id
    edited = vlm.with_edits(E.Contrast(other, 2.0, when=when))
    found = edited.answer(prompt, n, min_new_tokens=n, suppress_tokens=[image])

    # By hand: both runs over the whole sequence again, token by token.
    bare, _ = open_zoo("plates-null")
    first, ids, logprobs = 1 if when == "decode" else 2, [], []
    for step in range(n):
        own, cut = (_last(bare, prompt, ids, by) for by in (0 * vector, vector))
        mix = (3 * own - 2 * cut if step >= first else own).log_softmax(-1)
        ids.append(int(mix.index_fill(0, torch.tensor([stop, image]), -torch.inf).argmax()))
        logprobs.append(mix[ids[-1]])
    assert found.ids.tolist() == ids
    torch.testing.assert_close(found.token_logprobs, torch.stack(logprobs), rtol=0, atol=1e-4)


@torch.no_grad()
def _last(bare, prompt, ids, vector):
    """The bare model's last log-probabilities, ``vector`` added to the picture behind layer 1."""
    image = prompt.spans.mask("image")[0].nonzero()[:, 0]

    def add(_, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.index_add(1, image, vector.expand(1, len(image), -1))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    new = torch.tensor([ids], dtype=torch.long)
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], new], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(new)], 1)
    handle = bare.eval().get_decoder().layers[1].register_forward_hook(add)
    try:
        return bare(**inputs).logits[0, -1].log_softmax(-1)
    finally:
        handle.remove()


@pytest.mark.parametrize("make", [torch.tensor, np.array], ids=["torch", "numpy"])
@pytest.mark.parametrize("place", ["layers", "heads"])
def test_a_mask_is_not_taken_for_numbers(make, place):
    with pytest.raises(E.BadEdit, match=place):
        E.Knockout(keys="image", **{place: make([True, False, True, True])})


@pytest.mark.parametrize("ends", [slice(3.0, None), slice("a", 3)], ids=str)
def test_a_slice_of_layers_has_whole_ends(ends):
    with pytest.raises(E.BadEdit, match="slice"):
        E.Knockout(keys="image", layers=ends)
