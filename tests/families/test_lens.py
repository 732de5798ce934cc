"""The lens is each family's own last step: what the bare model says if a layer's stream is its last."""

import copy
import math

import pytest
import torch

import seeing
from seeing import edits as E
from seeing import probes

LONG = "what digit is on the blue circle on the red square ?"


def ended_at(twin, layers, layer, inputs):
    """The twin's logits where its last layer gives what ``layer`` gave, everything behind it untouched."""
    kept = []

    def keep(value):
        kept.append(value.clone())
        return value

    return twin.run(inputs, hooks=[(layers[layer], "out", keep), (layers[-1], "out", lambda value: kept[0])])


def check(picture, vlm, twin, layers):
    prompt = vlm.prompts(
        [(picture(76, 52, 0), LONG), (picture(76, 52, 1), "what digit is on the red square ?")]
    )
    real = prompt.inputs["attention_mask"].bool()
    found = probes.logit_lens(vlm, prompt, E.Span("text") | E.Span("image"), k=4, tokens=[5, 11])
    assert found.layers == tuple(range(len(layers)))
    final = twin.run(prompt.inputs)[real].float().log_softmax(-1)
    for number in found.layers:
        logp = ended_at(twin, layers, number, prompt.inputs)[real].float().log_softmax(-1)
        size = 2e-5 * max(1.0, float(logp.abs().max()))
        close = {"rtol": 0, "atol": size}
        torch.testing.assert_close(found.logprobs[:, number], logp[:, [5, 11]], **close)
        torch.testing.assert_close(found.probs[:, number], logp.exp().topk(4).values, **close)
        torch.testing.assert_close(found.entropy[:, number], -(logp.exp() * logp).sum(-1), **close)
        kl = (final.exp() * (final - logp)).sum(-1)
        torch.testing.assert_close(found.kl[:, number], kl, rtol=1e-4, atol=10 * size)
        ranks = torch.stack([(logp > logp[:, one, None] + size).sum(-1) for one in (5, 11)], -1)
        at_most = torch.stack([(logp > logp[:, one, None] - size).sum(-1) for one in (5, 11)], -1)
        assert ((ranks <= found.ranks[:, number]) & (found.ranks[:, number] < at_most)).all()
    return found


def test_a_layers_lens_is_what_the_bare_model_says_if_it_ends_there(case, picture):
    found = check(picture, case.vlm, case.twin, case.layers)
    assert (found.kl[:, 0] > 1e-3).any()
    assert (found.kl[:, -1] < 1e-4).all()


@pytest.mark.parametrize(("case", "caps"), [("paligemma", True), ("gemma3", False)], indirect=["case"])
def test_a_soft_cap_is_in_the_lens_where_the_model_applies_it(case, caps, picture):
    """Both configurations can name one; Gemma 3's forward over pictures leaves it out."""
    model = copy.deepcopy(case.twin.model)
    model.set_attn_implementation("sdpa")
    model.config.get_text_config().final_logit_softcapping = 3.0
    twin = type(case.twin)(model)
    vlm = seeing.load((model, case.processor))
    found = check(picture, vlm, twin, list(twin.model.get_decoder().layers))
    # Logits within ±3 give no probability below e⁻⁶ of a uniform one.
    assert bool((found.logprobs > -6 - math.log(vlm.cfg.d_vocab)).all()) == caps
