"""`load`: what it opens and with what in it, and one clear error for whatever it can't or must not open."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BitsAndBytesConfig,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import is_bitsandbytes_available

import seeing
from seeing.data.plates import plates
from seeing.families import UnknownFamily
from seeing.loading import CannotLoad
from seeing.vlm import VLM
from seeing.zoo import ZOO

QUESTION = "what digit is on the red square ?"


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """``saved()``: a fresh folder with a model and its processor, to be loaded or spoilt."""

    def saved():
        model, processor = tiny().pair()
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return saved


@pytest.fixture(scope="module")
def text_model():
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))


@pytest.fixture(scope="module")
def other_family():
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return Idefics2ForConditionalGeneration(
        Idefics2Config(
            vision_config=dict(image_size=28, patch_size=14, **sizes),
            perceiver_config=dict(
                hidden_size=16,
                resampler_n_latents=4,
                resampler_depth=1,
                resampler_n_heads=2,
                resampler_head_dim=8,
                num_key_value_heads=2,
            ),
            text_config=dict(model_type="mistral", vocab_size=60, num_key_value_heads=2, **sizes),
            image_token_id=59,
        )
    )


def refusal(*args, **kwargs) -> str:
    with pytest.raises(CannotLoad) as error:
        seeing.load(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- what opens --------------------------------------------------------------------------------------


def test_a_pair(tiny, prompt):
    model, processor = tiny().pair()
    vlm = seeing.load((model.train(), processor))
    assert isinstance(vlm, VLM)
    assert not model.training
    assert vlm.processor is processor
    with torch.no_grad():
        assert torch.equal(vlm.cache(prompt, "logits")["logits"], tiny().twin("sdpa")(**prompt.inputs).logits)


@pytest.mark.parametrize("kind", [str, lambda folder: folder], ids=["text", "path"])
def test_a_folder_gives_the_logits_of_the_model_that_was_saved(tiny, saved, prompt, picture, kind):
    vlm = seeing.load(kind(saved()))
    again = vlm.prompt(picture(), QUESTION)
    assert all(torch.equal(again.inputs[key], prompt.inputs[key]) for key in prompt.inputs)
    with torch.no_grad():
        expected = tiny().twin("sdpa")(**prompt.inputs).logits
    assert torch.equal(vlm.cache(again, "logits")["logits"], expected)


def test_keywords_go_to_from_pretrained(saved):
    vlm = seeing.load(saved(), dtype=torch.bfloat16, attn_implementation="eager")
    assert {weight.dtype for weight in vlm._module.parameters()} == {torch.bfloat16}
    assert vlm._module.config._attn_implementation == "eager"
    assert (
        vlm.cache(vlm.prompt(plates("easy", 1)[0].image, QUESTION), "logits")["logits"].dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize("name", ZOO)
def test_the_embedded_models_answer_and_stop(name):
    vlm = seeing.load(name)
    assert {weight.dtype for weight in vlm._module.parameters()} == {torch.float32}
    answer = vlm.answer(vlm.prompt(plates("easy", 1)[0]), max_new_tokens=20)
    assert answer in set("0123456789")
    assert len(answer.ids) == 2


def test_an_embedded_model_in_another_dtype():
    vlm = seeing.load("plates-tiny", dtype=torch.bfloat16)
    assert {weight.dtype for weight in vlm._module.parameters()} == {torch.bfloat16}


# -- the family --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "generic"])
def test_a_family_can_be_asked_for_by_name(tiny, saved, prompt, name):
    for given in (saved(), tiny().pair(), "plates-tiny"):
        assert seeing.load(given, family=name, check=given == "plates-tiny").family.name == name


def test_the_family_asked_for_reads_a_model_that_no_family_reads(other_family, tiny):
    """Without the proof: the pair's processor is another model's."""
    assert (
        seeing.load((other_family, tiny().processor), check=False, family="generic").family.name == "generic"
    )


def test_a_family_that_is_not_there_is_refused_before_anything_is_opened(tmp_path):
    with pytest.raises(UnknownFamily, match=r"no family is called 'lava'.*llava"):
        seeing.load(tmp_path / "gone", family="lava")


# -- what is not there -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plates", "PLATES-TINY", "a/b/c", "./gone", "/gone/far", "x" * 5000])
def test_an_unknown_name_is_refused_with_those_that_are_known(name):
    text = refusal(name)
    assert all(known in text for known in ZOO)
    assert name[:50] in text
    assert len(text) < 500


def test_a_hub_id_that_can_not_be_had_is_refused_in_one_line():
    text = refusal("nobody/nothing", local_files_only=True)
    assert text.startswith("can't load 'nobody/nothing': ")


def test_a_folder_without_a_model(tmp_path):
    assert "holds no config.json" in refusal(tmp_path)
    (tmp_path / "file").write_text("text")
    assert "holds no config.json" in refusal(tmp_path / "file")


@pytest.mark.parametrize("thing", [None, 7, ["plates-tiny"]])
def test_what_is_no_name_is_refused_by_type(thing, unchecked):
    assert type(thing).__name__ in refusal(thing)


def test_a_model_without_its_processor_is_refused(tiny, unchecked):
    assert "got LlavaForConditionalGeneration" in refusal(tiny().pair()[0])


# -- wrong pairs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda model, processor: (processor, model), "got (LlavaProcessor, LlavaForConditionalGeneration)"),
        (lambda model, processor: (model,), "got (LlavaForConditionalGeneration)"),
        (lambda model, processor: (model, processor, 1), "LlavaProcessor, int)"),
        (lambda model, processor: (model, None), "got NoneType"),
        (lambda model, processor: (model, processor.tokenizer), "tokenizer and an image_processor"),
        (lambda model, processor: (model, processor.image_processor), "got CLIPImageProcessorPil"),
    ],
    ids=["swapped", "one", "three", "none", "tokenizer", "image processor"],
)
def test_a_wrong_pair_is_refused_by_what_it_holds(tiny, unchecked, wrong, says):
    assert says in refusal(wrong(*tiny().pair()))


def test_a_pair_takes_no_keywords(tiny):
    assert "takes no dtype, revision" in refusal(tiny().pair(), dtype=torch.float16, revision="main")


# -- other models ------------------------------------------------------------------------------------


def test_a_text_only_model_is_no_family_s(tiny, text_model, tmp_path):
    text_model.save_pretrained(tmp_path)
    for given in (tmp_path, (text_model, tiny().processor)):
        with pytest.raises(UnknownFamily, match=r"'llama'.*supported: .*llava"):
            seeing.load(given)


def test_a_family_that_is_not_read_is_refused_with_those_that_are(tiny, other_family, tmp_path):
    """From its config: there are no weights in the folder, so none were read."""
    other_family.config.save_pretrained(tmp_path)
    for given in (tmp_path, (other_family, tiny().processor)):
        with pytest.raises(UnknownFamily, match=r"'idefics2'.*\(Idefics2.*supported: .*llava"):
            seeing.load(given)


def test_a_kind_that_transformers_does_not_know(saved):
    folder = saved()
    (folder / "config.json").write_text('{"model_type": "nonsense"}')
    assert "nonsense" in refusal(folder)


# -- original releases -------------------------------------------------------------------------------

CODE = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}


@pytest.mark.parametrize(
    ("config", "instead"),
    [
        (dict(model_type="internvl_chat", auto_map=CODE), "OpenGVLab/InternVL3_5-8B-HF"),
        (dict(model_type="llava_llama", mm_vision_tower="clip"), "llava-hf/llava-1.5-7b-hf"),
        (dict(model_type="llava", mm_vision_tower="clip", hidden_size=64), "llava-hf/llava-1.5-7b-hf"),
        (dict(model_type="llava_mistral"), "llava-hf/llava-v1.6-mistral-7b-hf"),
        (dict(model_type="llava_qwen"), "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
        (dict(model_type="qwen", auto_map=CODE, visual={}), "Qwen/Qwen2-VL-7B-Instruct"),
        (dict(model_type="minicpmv", auto_map=CODE), "of one of the families"),
        (dict(auto_map=CODE), "of one of the families"),
    ],
    ids=lambda value: value.get("model_type", "none") if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("family", [None, "generic"])
def test_an_original_release_is_refused_with_a_checkpoint_to_take(tmp_path, config, instead, family):
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Whoever runs it notices.
    for name in ("configuration", "modeling"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('remote code was run')")
    text = refusal(tmp_path, family=family)
    assert "'-hf'" in text
    assert instead in text
    assert repr(config.get("model_type")) in text


def test_the_code_of_a_release_is_run_only_when_that_is_asked_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="mine", auto_map=CODE)))
    (tmp_path / "configuration.py").write_text("raise OSError('remote code was run')")
    assert "remote code was run" not in refusal(tmp_path)
    assert "remote code was run" not in refusal(tmp_path, trust_remote_code=False)
    assert "remote code was run" in refusal(tmp_path, trust_remote_code=True)


def test_a_folder_in_mistral_s_own_format(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    text = refusal(tmp_path)
    assert "holds no config.json" in text
    assert "mistral-community/pixtral-12b" in text


# -- options of from_pretrained ----------------------------------------------------------------------


@pytest.mark.skipif(is_bitsandbytes_available(), reason="bitsandbytes is installed")
def test_quantization_without_its_package_is_refused_with_the_package(saved):
    text = refusal(saved(), quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert "bitsandbytes" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(saved):
    assert "CUDA" in refusal(saved(), device_map="cuda")


def test_an_option_that_from_pretrained_does_not_know(saved):
    assert "'dtyp'" in refusal(saved(), dtyp="float16")


# -- broken folders ----------------------------------------------------------------------------------


def spoil_config(folder):
    (folder / "config.json").write_text("{")


def empty_config(folder):
    (folder / "config.json").write_text("{}")


def config_with_a_word_for_a_number(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def lacking_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "model.layers.1." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 20
    (folder / "config.json").write_text(json.dumps(config))


def no_processor(folder):
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def spoil_processor(folder):
    (folder / "processor_config.json").write_text("{")


def another_kind_of_processor(folder):
    (folder / "processor_config.json").write_text("[]")


def no_image_processor(folder):
    settings = json.loads((folder / "processor_config.json").read_text())
    del settings["image_processor"]
    (folder / "processor_config.json").write_text(json.dumps(settings))


def config_of_another_shape(folder):
    (folder / "config.json").write_text('["llava"]')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_config, "not a valid JSON"),
        (empty_config, "model_type"),
        (config_with_a_word_for_a_number, "hidden_size"),
        (cut_weights, "deserializing"),
        (no_weights, "model.safetensors"),
        (lacking_a_layer, "lacks 13 weights, first 'model.language_model.layers.1."),
        (of_another_size, "mismatch"),
        (no_processor, "processor"),
        (spoil_processor, "processor_config.json"),
        (another_kind_of_processor, "processor_config.json"),
        (no_image_processor, "image processor"),
        (config_of_another_shape, "config.json"),
    ],
)
def test_a_broken_folder_is_refused_with_the_reason(saved, spoil, says):
    folder = saved()
    spoil(folder)
    text = refusal(folder)
    assert says in text
    assert str(folder) in text


class Trap:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_weights_in_a_pickle_are_never_unpickled(saved, tmp_path, name):
    """Neither as what they are, nor under the other name."""
    folder = saved()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert str(folder) in refusal(folder)
    assert not (tmp_path / "sprung").exists()
    with open(folder / name, "rb") as file:
        pickle.load(file)
    assert (tmp_path / "sprung").exists(), "the trap is none"


# -- the name ----------------------------------------------------------------------------------------


def test_load_is_the_function_however_it_was_imported():
    """In an interpreter of its own: a submodule of the same name would take the function's place."""
    code = "import seeing.loading, seeing.proof; import seeing; print(type(seeing.load).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "function", done.stderr


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("OpenGVLab/InternVL3_5-8B", "OpenGVLab/InternVL3_5-8B-HF"),
        ("liuhaotian/llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_the_id_of_an_original_release_is_refused_without_asking_the_hub(name, like, monkeypatch):
    monkeypatch.setattr(seeing.loading, "AutoConfig", None)
    text = refusal(name)
    assert "original release" in text
    assert f"such as {like!r}" in text
