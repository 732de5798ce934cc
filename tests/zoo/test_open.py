"""What the package carries opens offline, in float32, answers, and stops."""

import numpy as np
import pytest
import torch

from seeing.data.plates import plates
from seeing.zoo import ZOO, open_zoo, zoo_folder
from seeing.zoo.build import TEMPLATES, TOKEN, build_processor
from seeing.zoo.evaluate import answers, chat, evaluate


@pytest.fixture(scope="module", params=list(ZOO))
def opened(request):
    return (*open_zoo(request.param), request.param)


@pytest.fixture(scope="module")
def samples():
    return plates("crowded", 128)


def read(processor, samples):
    conversations = [chat(sample) for sample in samples]
    return processor.apply_chat_template(conversations, tokenize=True, return_dict=True, return_tensors="pt")


def test_an_unknown_name_is_refused_with_the_names():
    with pytest.raises(ValueError, match="plates-big") as error:
        open_zoo("plates-big")
    assert all(name in str(error.value) for name in ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_a_model_is_small_and_holds_no_pickle(name):
    files = list(zoo_folder(name).iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        file.name for file in files
    }
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja", ".md"}


def test_weights_open_in_float32_and_in_what_is_asked_for(opened):
    model, _, name = opened
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training
    half, _ = open_zoo(name, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_the_config_carries_the_prompt_templates(opened):
    assert opened[0].config.seeing_templates == TEMPLATES


def test_the_stored_processor_is_the_one_that_the_code_builds(opened, samples):
    stored, built = read(opened[1], samples[:2]), read(build_processor(), samples[:2])
    assert stored.keys() == built.keys()
    assert all(torch.equal(stored[key], built[key]) for key in built)


def test_generate_stops_by_itself_after_one_digit(opened, samples):
    model, processor, _ = opened
    inputs = read(processor, samples[:16])
    for limit in (4, 20):
        tokens = model.generate(**inputs, max_new_tokens=limit)[:, inputs["input_ids"].shape[1] :]
        assert tokens.shape[1] == 2
        assert ((tokens[:, 0] >= TOKEN["0"]) & (tokens[:, 0] <= TOKEN["9"])).all()
        assert (tokens[:, 1] == TOKEN["<eos>"]).all()


def test_eager_and_sdpa_agree_on_trained_weights(opened, samples):
    model, processor, name = opened
    eager, _ = open_zoo(name, attn_implementation="eager")
    inputs = read(processor, samples[:4])
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, eager(**inputs).logits, atol=1e-4, rtol=1e-5)


def test_a_batch_answers_as_its_samples_alone(opened, samples):
    model, processor, _ = opened
    together = answers(model, processor, samples[:6])
    assert together == [answers(model, processor, [sample])[0] for sample in samples[:6]]


@pytest.fixture(scope="module")
def crowded(opened):
    return evaluate(opened[0], opened[1], "crowded", 128)


def test_the_models_see_and_the_crowd_is_hard(opened, crowded):
    """Bands around the card's numbers, three standard errors wide at this size."""
    model, processor, name = opened
    low, high = {"plates-tiny": (0.62, 0.86), "plates-null": (0.72, 0.94)}[name]
    assert low < crowded["right"] < high
    assert evaluate(model, processor, "easy", 128)["right"] > 0.85


def test_only_the_model_with_the_prior_errs_towards_the_table(opened, crowded):
    """A wrong answer hits the table's digit by chance once in nine times."""
    leaning = crowded["wrong_is_table"]
    assert leaning > 0.3 if opened[2] == "plates-tiny" else leaning < 0.25


def test_the_answer_needs_the_image(opened, samples):
    model, processor, _ = opened
    inputs = read(processor, samples)
    truth = np.array([int(sample.answers[0]) for sample in samples])

    def right(pixels):
        with torch.inference_mode():
            logits = model(**(inputs | {"pixel_values": pixels}), logits_to_keep=1).logits[:, -1]
        return (logits.argmax(-1).numpy() - TOKEN["0"] == truth).mean()

    assert right(inputs["pixel_values"]) > 0.5
    assert right(inputs["pixel_values"].roll(1, dims=0)) < 0.3
