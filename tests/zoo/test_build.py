"""The architecture and the processor before training: the same classes and prompts as a published LLaVA."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from seeing.data.painting import SHAPES
from seeing.data.plates import COLOUR_NAMES, SPLITS, plates, question, training_batch
from seeing.zoo.build import IMAGE_TOKENS, TEMPLATES, TOKEN, WORDS, build_model, build_processor
from seeing.zoo.evaluate import chat
from seeing.zoo.packing import SEGMENT, answer_logits, block_mask, pack


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model().eval()
    # Fresh weights give nearly uniform attention, under which a wrong mask would hardly show.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


def read(processor, *conversations):
    return processor.apply_chat_template(
        list(conversations), tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_a_prompt_is_bos_the_image_and_the_question(processor):
    sample = plates("easy", 1)[0]
    ids = read(processor, chat(sample))["input_ids"][0].tolist()
    words = ["<bos>"] + IMAGE_TOKENS * ["<image>"] + sample.question.split()
    assert ids == [TOKEN[word] for word in words]


def test_an_answered_turn_ends_the_sentence(processor):
    turns = [*chat(plates("easy", 1)[0]), {"role": "assistant", "content": "7"}]
    ids = read(processor, turns)["input_ids"][0].tolist()
    assert ids[-3:] == [TOKEN["?"], TOKEN["7"], TOKEN["<eos>"]]


def test_spelling_is_forgiven_and_unknown_words_are_marked(processor):
    encode = processor.tokenizer.encode
    assert encode("What digit is on the RED square?") == encode("what digit is on the red square ?")
    assert (
        encode("what digit is on the mauve square ?")[5] == TOKEN["<unk>"] == processor.tokenizer.unk_token_id
    )
    assert len(set(WORDS)) == len(WORDS)


def test_an_image_of_another_size_is_resized_and_cropped(processor):
    content = [{"type": "image", "image": Image.new("RGB", (300, 200))}, {"type": "text", "text": "what ?"}]
    inputs = read(processor, [{"role": "user", "content": content}])
    assert inputs["pixel_values"].shape == (1, 3, 112, 112)
    assert (inputs["input_ids"] == TOKEN["<image>"]).sum() == IMAGE_TOKENS


def test_model_and_processor_survive_save_pretrained(tmp_path, model, processor):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    reader = LlavaProcessor.from_pretrained(tmp_path)
    sample = plates("easy", 1)[0]
    before, after = read(processor, chat(sample)), read(reader, chat(sample))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name])
    assert torch.equal(model(**before).logits, again(**after).logits)
    assert again.config.seeing_templates == TEMPLATES
    assert again.generation_config.eos_token_id == TOKEN["<eos>"]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_packed_questions_have_the_logits_of_single_prompts(model, processor, kernel):
    batch = training_batch(SPLITS["easy"], 3, 4, seed=0, stage=0, rank=0, step=0)
    packed = pack(batch)
    model.set_attn_implementation(kernel)
    with torch.inference_mode():
        together = model(
            input_ids=packed.ids,
            pixel_values=packed.pixels,
            attention_mask=packed.mask,
            position_ids=packed.positions,
        ).logits
        digit, stop = answer_logits(together)
        for i, image in enumerate(batch.images):
            for q in range(4):
                words = question(COLOUR_NAMES[batch.colour[i, q]], SHAPES[batch.shape[i, q]])
                content = [
                    {"type": "image", "image": Image.fromarray(image)},
                    {"type": "text", "text": words},
                ]
                answered = [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": str(batch.digit[i, q])},
                ]
                inputs = read(processor, answered)
                torch.testing.assert_close(inputs["pixel_values"][0], packed.pixels[i], atol=1e-6, rtol=0)
                alone = model(**inputs).logits[0]
                torch.testing.assert_close(alone[-3], digit[i, q], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(alone[-2], stop[i, q], atol=1e-5, rtol=1e-5)


def test_the_block_mask_opens_the_image_and_the_own_question_only():
    open_ = (block_mask(3)[0, 0] == 0).numpy()
    prefix = 1 + IMAGE_TOKENS
    assert not np.triu(open_, 1).any()
    assert open_[prefix:, :prefix].all()
    second, third = slice(prefix + SEGMENT, prefix + 2 * SEGMENT), slice(prefix + 2 * SEGMENT, None)
    assert not open_[third, second].any()
    assert (open_[second, second] == np.tri(SEGMENT, dtype=bool)).all()
