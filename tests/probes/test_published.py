"""The paper's profiles, by model id and by model."""

import copy
import dataclasses
import math

import pytest

import seeing
from seeing import edits as E
from seeing import methods, probes
from seeing.zoo import open_zoo

#: As printed in the paper: layers, their AUROC and that of all layers (both in percent), number of layers.
PRINTED = {
    "llava-hf/llava-1.5-7b-hf": ({14, 15, 17, 19}, 92.1, 84.0, 32),
    "llava-hf/llava-1.5-13b-hf": ({13, 14, 15, 16}, 92.2, 86.0, 40),
    "Qwen/Qwen2.5-VL-7B-Instruct": ({18, 22, 24}, 89.1, 80.1, 28),
    "Qwen/Qwen2.5-VL-32B-Instruct": ({49, 50, 51, 52, 53, 55, 56}, 88.2, 73.1, 64),
    "google/gemma-3-4b-it": ({17, 19, 21, 23}, 80.3, 65.4, 34),
    "google/gemma-3-27b-it": ({35, 37, 40, 41, 47, 53, 58}, 84.7, 69.0, 62),
}


@pytest.mark.parametrize("model", PRINTED)
def test_each_published_profile_is_the_printed_one(model):
    layers, at, over_all, n_layers = PRINTED[model]
    found = probes.published(model)
    assert set(found.layers) == layers
    assert found.layers == tuple(sorted(layers))
    assert (100 * found.auroc, 100 * found.auroc_all) == pytest.approx((at, over_all))
    assert found.n_layers == n_layers
    assert len(found.layers) == math.ceil(n_layers / 10)
    assert "2510.17771" in found.source


def test_a_model_without_one_is_told_which_models_have_one():
    with pytest.raises(ValueError, match=r"no published profile of 'llava-hf/llava-1.5-70b-hf'") as error:
        probes.published("llava-hf/llava-1.5-70b-hf")
    assert all(model in str(error.value) for model in PRINTED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        probes.published("google/gemma-3-4b-it").layers = (1,)


def named(name, n_layers):
    """The embedded model under another name, of so many layers."""
    model, processor = open_zoo("plates-null")
    model = copy.deepcopy(model)
    layers = model.model.language_model.layers
    while len(layers) < n_layers:
        layers.append(copy.deepcopy(layers[len(layers) % 6]))
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number
    model.config.get_text_config().num_hidden_layers = n_layers
    model.config.name_or_path = name
    return seeing.load((model, processor), check=False)


def test_a_model_is_known_by_the_id_that_it_was_loaded_from():
    vlm = named("Qwen/Qwen2.5-VL-7B-Instruct", 28)
    assert probes.published(vlm) == probes.published("Qwen/Qwen2.5-VL-7B-Instruct")


def test_a_model_of_another_depth_is_refused():
    with pytest.raises(ValueError, match="of 28, this model has 6"):
        probes.published(named("Qwen/Qwen2.5-VL-7B-Instruct", 6))


def test_it_stands_where_layers_are_said():
    found = probes.published("Qwen/Qwen2.5-VL-7B-Instruct")
    assert E.ScaleAttention(keys="image", gain=2.0, layers=found).layers == (18, 22, 24)
    assert [layer for layer, _ in E.seen(layers=found).heads] == [18, 22, 24]
    assert methods.vea(found).layers == (18, 22, 24)
