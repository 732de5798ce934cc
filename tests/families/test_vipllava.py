"""What is ViP-LLaVA's own: streams of several layers side by side, and no tower but CLIP's."""

import pytest
import torch
from tiny.vip import vipllava

import seeing
from seeing.families import UnknownFamily, find_for

QUESTION = "what digit is on the red square ?"


@pytest.fixture(scope="module")
def vlm():
    return seeing.load(vipllava())


def test_the_projector_takes_the_listed_streams_side_by_side_without_their_first_token(vlm, picture):
    layers = vlm._module.config.vision_feature_layer
    embed = ["vision.embed"] + [f"vision.{layer}.resid_post" for layer in range(vlm.cfg.vision.n_layers)]
    names = [embed[layer] for layer in layers]
    found = vlm.cache(vlm.prompt(picture(), QUESTION), [*names, "projector.in"])
    expected = torch.cat([found[name][:, 1:] for name in names], dim=-1)
    assert torch.equal(found["projector.in"], expected)


def test_a_tower_without_a_cls_token_is_not_read(vlm):
    config = vlm._module.config.to_dict()
    config["vision_config"] = dict(model_type="siglip_vision_model", hidden_size=24, num_attention_heads=3)
    with pytest.raises(UnknownFamily, match="'vipllava'"):
        find_for(type(vlm._module.config)(**config))
