"""A model's last step is read from its forward: what follows the head comes along, and nothing else."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import seeing
from seeing.families import FamilyContractError
from seeing.unembedding import Unembedding
from seeing.zoo.build import build_model, build_processor


class Scaled(LlavaForConditionalGeneration):
    """As Cohere and Granite scale, and Gemma caps, with all that may stand between."""

    def forward(self, input_ids=None, labels=None, scale_more=2.0, **kwargs):
        outputs = self.model(input_ids=input_ids, **kwargs)
        hidden_states = outputs[0]
        logits = self.lm_head(hidden_states).float()
        spare = logits.argmax(-1)
        by = self.config.text_config.vocab_size / 100
        logits = logits * by
        if labels is not None:
            logits = logits + labels
        if (cap := getattr(self.config, "cap", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        logits *= scale_more
        outputs.logits, outputs.spare = logits, spare
        return outputs


class Hidden(LlavaForConditionalGeneration):
    def forward(self, **kwargs):
        outputs = self.model(**kwargs)
        outputs.logits = 2 * self.lm_head(outputs[0])
        return outputs


class Mixed(LlavaForConditionalGeneration):
    def forward(self, input_ids=None, **kwargs):
        outputs = self.model(input_ids=input_ids, **kwargs)
        logits = self.lm_head(outputs[0])
        logits = logits + outputs[0].mean()
        outputs.logits = logits
        return outputs


def made(kind):
    torch.manual_seed(0)
    model = build_model()
    model.__class__ = kind
    return model


@pytest.mark.parametrize("cap", [None, 0.2])
def test_what_follows_the_head_is_run_on_other_values(cap, crowded):
    model, processor = made(Scaled), build_processor()
    if cap:
        model.config.cap = cap
    bare = seeing.load((made(LlavaForConditionalGeneration), processor), check=False)
    inputs = bare.prompt(crowded[0]).inputs
    seen = []
    model.model.language_model.layers[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        expected = model(**inputs).logits
        last_step = Unembedding.of(bare.family, model)
        found = last_step(seen[0])
    assert torch.equal(found, expected)
    assert found.abs().max() <= (2 * cap if cap else torch.inf)
    assert not torch.equal(found, model.lm_head(model.model.language_model.norm(seen[0])))


@pytest.mark.parametrize(
    ("kind", "said"), [(Hidden, "gives no name"), (Mixed, "makes its logits from outputs too")]
)
def test_a_last_step_that_cant_be_told_is_refused(kind, said):
    family = seeing.load((build_model(), build_processor()), check=False).family
    with pytest.raises(FamilyContractError, match=said):
        Unembedding.of(family, made(kind))
