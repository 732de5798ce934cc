"""What is ViP-LLaVA's own: streams of several layers side by side, and no tower but CLIP's."""

import numpy as np
import pytest
import torch
from PIL import Image
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


def test_a_painted_region_moves_the_tokens_on_it_and_no_others(picture):
    """The tower's attention adds nothing and nothing is resized: a token depends on its own patch alone."""
    model, processor = vipllava()
    with torch.no_grad():
        for layer in model.get_encoder(modality="image").encoder.layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.self_attn.out_proj.bias.zero_()
    vlm = seeing.load((model, processor), check=False)
    plain = picture(70, 42)  # the crop takes the middle 42 columns
    pixels = np.array(plain)
    box = (30, 10, 41, 16)
    pixels[box[1] : box[3], box[0] : box[2]] += 128
    first, second = (vlm.prompt(image, QUESTION) for image in (plain, Image.fromarray(pixels)))
    values = [vlm.cache(prompt, "text.embed")["text.embed"][0] for prompt in (first, second)]
    grid = first.grids[0]
    moved = (values[0] != values[1]).any(-1)[grid.positions]
    assert torch.equal(moved, grid.labels([box]))
    assert 0 < moved.sum() < len(moved)
