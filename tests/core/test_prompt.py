"""Every token of a prompt is labelled, once and rightly, whatever the chat template, the batch, the pictures.

The labels are held against what needs no labels: decoding the tokens, the image token's id, and the logits
of the bare model.
"""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors

import seeing
from seeing.data.images import BadImage
from seeing.data.samples import EvidenceSample
from seeing.families import FamilyContractError
from seeing.prompt import PAPER_TEMPLATES, BadPrompt, Turn, build
from seeing.zoo.build import TOKEN

QUESTION = "what digit is on the red square ?"
LONGER = "what digit is on the red square on the blue circle ?"

#: As the published checkpoints have it: no bos in the text, for the tokenizer adds one.
LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: "
    "{% for item in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'text') %}{{ item['text'] }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def letters(tiny):
    """A model that knows every letter: a token a byte, and no templates of its own."""
    return tiny(words=False).vlm


@pytest.fixture(scope="module")
def ask(letters):
    """``ask(picture, question, …, chat=…)``: a prompt in a chat template; None for a processor without one.

    The tokenizer adds a bos, as Llama's does.
    """

    def ask(image, question, boxes=None, template=None, chat=LLAVA_TEMPLATE):
        processor = copy.deepcopy(letters.processor)
        processor.chat_template = chat
        bos = processor.tokenizer.bos_token
        processor.tokenizer.backend_tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos} $A", special_tokens=[(bos, processor.tokenizer.bos_token_id)]
                ),
            ]
        )
        turn = Turn.of(image, question, boxes, template)
        return build(letters.family, letters._module, processor, [turn])

    return ask


def said(prompt, tokenizer, span, row=0):
    """The text of a span."""
    return tokenizer.decode(prompt.inputs["input_ids"][row][prompt.spans.mask(span)[row]])


def around(prompt, tokenizer):
    """All the text of a prompt, its question in brackets."""
    question = prompt.spans["question"][0]
    ids = prompt.inputs["input_ids"][0]
    text = [
        tokenizer.decode(part[part != TOKEN["<image>"]])
        for part in (ids[: question[0]], ids[question[0] : question[-1] + 1], ids[question[-1] + 1 :])
    ]
    return "{}[{}]{}".format(*text)


# -- spans -------------------------------------------------------------------------------------------


def test_spans_share_out_the_real_tokens(batch):
    """Image, question and template: each real token in one of them, padding in none."""
    real = batch.inputs["attention_mask"].bool()
    masks = [batch.spans.mask(name).int() for name in ("image", "question", "template")]
    assert torch.equal(sum(masks), real.int())
    assert torch.equal(batch.spans.mask("text"), real & ~batch.spans.mask("image"))
    assert not real.all()


def test_image_positions_are_those_of_the_image_token(batch):
    assert torch.equal(batch.spans.mask("image"), batch.inputs["input_ids"] == TOKEN["<image>"])


@pytest.mark.parametrize("row", [0, 1])
def test_the_question_span_decodes_to_the_question(vlm, batch, row):
    assert said(batch, vlm.processor.tokenizer, "question", row) == (QUESTION, LONGER)[row]


@pytest.mark.parametrize(
    "question", ["Is it “red”, or blue?", "é ü 漢字 🙂 ?", "two\nlines?", "a", "A", "USER: ASSISTANT:", "7 "]
)
def test_any_question_is_found_byte_by_byte(letters, picture, question):
    """Even one whose words stand in the chat template as well, before it or behind."""
    prompt = letters.prompt(picture(), question)
    tokenizer = letters.processor.tokenizer
    assert said(prompt, tokenizer, "question") == question.strip()
    assert around(prompt, tokenizer) == f"<bos>USER: \n[{question.strip()}] ASSISTANT:"


def test_spans_read_as_positions_filled_with_minus_one(batch):
    assert list(batch.spans) == ["image", "question", "image:0", "template", "text"]
    assert len(batch.spans) == 5
    question = batch.spans["question"]
    assert [int((row >= 0).sum()) for row in question] == [8, 12]
    assert torch.equal(question[0, 8:], torch.full((4,), -1))
    for row in range(2):
        positions = question[row][question[row] >= 0]
        assert torch.equal(positions, batch.spans.mask("question")[row].nonzero()[:, 0])


def test_an_unknown_span_names_those_there_are(prompt):
    with pytest.raises(KeyError, match=r"no span 'answer'.*image, question, image:0, template, text"):
        prompt.spans["answer"]


def test_two_pictures_have_spans_and_grids_of_their_own(vlm, picture):
    prompt = vlm.prompt([picture(80, 60), picture(50, 90, seed=1)], QUESTION)
    first, second = prompt.spans["image:0"][0], prompt.spans["image:1"][0]
    assert torch.equal(torch.cat([first, second]), prompt.spans["image"][0])
    assert torch.equal(prompt.grids[0].positions, first)
    assert torch.equal(prompt.grids[1].positions, second)
    assert [grid.image_size for grid in prompt.grids] == [(80, 60), (50, 90)]
    assert prompt.grid_rows == (0, 0)
    assert said(prompt, vlm.processor.tokenizer, "question") == QUESTION


def test_rows_with_different_numbers_of_pictures(vlm, picture):
    turns = [Turn.of([picture(), picture(seed=1)], QUESTION), Turn.of(picture(seed=2), QUESTION)]
    both = build(vlm.family, vlm._module, vlm.processor, turns, batched=True)
    assert both.grid_rows == (0, 0, 1)
    assert both.spans.mask("image:1").sum(1).tolist() == [16, 0]
    assert both.spans.mask("image").sum(1).tolist() == [32, 16]
    assert torch.equal(both.spans["image:1"][1], torch.full((16,), -1))
    found = vlm.cache(both, "logits")["logits"][1, -1]
    expected = vlm.cache(vlm.prompt(picture(seed=2), QUESTION), "logits")["logits"][0, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_repr_says_what_it_is(prompt, batch):
    assert repr(prompt) == f"Prompt({QUESTION!r}, {prompt.length} tokens, 16 of them image)"
    assert repr(batch) == f"Prompt(2 rows, {batch.length} tokens, 32 of them image)"


# -- templates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (None, QUESTION),
        ("qa", f"what is {QUESTION}"),
        ("vea", f"is the {QUESTION}"),
        ("on {question} blue", f"on {QUESTION} blue"),
        (lambda question: f"{question} red ?", f"{QUESTION} red ?"),
    ],
    ids=["none", "qa", "vea", "string", "function"],
)
def test_templates_of_a_model_that_brings_its_own(vlm, picture, template, text):
    prompt = vlm.prompt(picture(), QUESTION, template=template)
    tokenizer = vlm.processor.tokenizer
    assert said(prompt, tokenizer, "question") == QUESTION
    assert said(prompt, tokenizer, "text") == f"<bos> {text}"


@pytest.mark.parametrize("name", ["qa", "vea"])
def test_templates_of_the_paper(letters, picture, name):
    prompt = letters.prompt(picture(), "What is it?", template=name)
    expected = PAPER_TEMPLATES[name].replace("{question}", "[What is it?]")
    assert around(prompt, letters.processor.tokenizer) == f"<bos>USER: \n{expected} ASSISTANT:"


def test_the_papers_words():
    refusal = (
        "If the image does not contain any relevant evidence, output “I cannot answer based on the given "
        "image.”"
    )
    direct = f"Directly answer the question based on the image, no explanation is needed. {refusal}"
    only = (
        "Only use words from the picture, especially those in the highlighted region, to answer the question."
    )
    assert dict(PAPER_TEMPLATES) == {
        "qa": f"{direct} Question: {{question}}",
        "vea": f"{direct} {only} Question: {{question}}",
    }


def test_the_question_is_where_the_template_puts_it_not_where_its_words_stand(vlm, picture):
    prompt = vlm.prompt(picture(), "is", template="what is {question} on the red square is")
    tokenizer = vlm.processor.tokenizer
    ids = prompt.inputs["input_ids"][0]
    (place,) = prompt.spans["question"][0].tolist()
    assert tokenizer.decode(ids[place - 2 : place + 2]) == "what is is on"


def test_braces_beside_the_question_are_text(letters, picture):
    prompt = letters.prompt(picture(), "why {this}?", template="{json} {question} {}")
    assert "{json} [why {this}?] {}" in around(prompt, letters.processor.tokenizer)


@pytest.mark.parametrize("template", ["answer:", "questions", "", "{ question }"])
def test_a_template_without_a_place_for_the_question_is_refused(vlm, picture, template):
    with pytest.raises(BadPrompt, match=r"'qa', 'vea'.*\{question\}") as error:
        vlm.prompt(picture(), QUESTION, template=template)
    assert repr(template) in str(error.value)


def test_a_function_that_drops_the_question_is_refused(vlm, picture):
    with pytest.raises(BadPrompt, match="dropped the question"):
        vlm.prompt(picture(), QUESTION, template=str.upper)


def test_a_chat_template_that_changes_the_question_is_refused(ask, picture):
    loud = "{% for m in messages %}<image>{{ m['content'][-1]['text'] | upper }}{% endfor %}"
    with pytest.raises(BadPrompt, match="changed the question 'why\\?'"):
        ask(picture(), "why?", chat=loud)


def test_a_chat_template_that_drops_the_picture_is_refused(ask, picture):
    blind = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises((BadPrompt, FamilyContractError, ValueError), match="image"):
        ask(picture(), "why?", chat=blind)


# -- bos, and no chat template -----------------------------------------------------------------------


@pytest.mark.parametrize("chat", [LLAVA_TEMPLATE, "{{ bos_token }}" + LLAVA_TEMPLATE, None])
def test_there_is_one_bos_whoever_adds_it(ask, letters, picture, chat):
    prompt = ask(picture(), "What is it?", chat=chat)
    ids = prompt.inputs["input_ids"][0]
    assert (ids == TOKEN["<bos>"]).nonzero().tolist() == [[0]]
    assert said(prompt, letters.processor.tokenizer, "question") == "What is it?"
    assert prompt.grids[0].positions.tolist() == (ids == TOKEN["<image>"]).nonzero()[:, 0].tolist()


def test_the_template_of_published_checkpoints(ask, letters, picture):
    prompt = ask(picture(), "What is it?", template="qa")
    expected = PAPER_TEMPLATES["qa"].replace("{question}", "[What is it?]")
    assert around(prompt, letters.processor.tokenizer) == f"<bos>USER: \n{expected} ASSISTANT:"


def test_without_a_chat_template_pictures_come_first(ask, letters, picture):
    prompt = ask([picture(), picture(seed=1)], "What is it?", chat=None)
    assert around(prompt, letters.processor.tokenizer) == "<bos>\n[What is it?]"
    assert prompt.spans["image"][0].tolist() == list(range(1, 33))


# -- what can't be asked -----------------------------------------------------------------------------


def test_an_unknown_word_is_named_with_those_that_are_known(vlm, picture):
    with pytest.raises(BadPrompt, match=r"does not know 'elephant'.*knows: .*circle") as error:
        vlm.prompt(picture(), "what digit is on the elephant ?")
    assert "'digit'" not in str(error.value)


@pytest.mark.parametrize("question", [None, "", " \n", 7])
def test_a_prompt_needs_a_question(picture, question, unchecked):
    with pytest.raises(BadPrompt, match="needs a question") as error:
        Turn.of(picture(), question)
    assert repr(question) in str(error.value)


def test_a_prompt_needs_a_picture(vlm, unchecked):
    with pytest.raises(BadPrompt, match="at least one image"):
        vlm.prompt([], QUESTION)
    with pytest.raises(BadImage, match="NoneType"):
        vlm.prompt(None, QUESTION)
    with pytest.raises(BadPrompt, match="at least one prompt"):
        vlm.prompts([])


def test_a_question_that_holds_the_picture_s_token_is_refused(vlm, picture):
    with pytest.raises(BadPrompt, match="'<image>', which stands for a picture"):
        vlm.prompt(picture(), "what is <image> ?")


def test_a_missing_file_is_refused_by_name(vlm, tmp_path):
    with pytest.raises(BadImage, match=r"gone\.png"):
        vlm.prompt(tmp_path / "gone.png", QUESTION)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (3, 50), (200, 1)])
def test_pictures_a_few_pixels_wide_are_read_the_right_way_round(vlm, size):
    """An axis of one or three pixels looks like one of channels."""
    colours = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    pixels = vlm.prompt(picture, QUESTION).inputs["pixel_values"][0].permute(1, 2, 0)
    scale = 56 / min(size)
    width, height = (int(edge * scale) for edge in size)
    left, top = (width - 56) // 2, (height - 56) // 2
    expected = picture.resize((width, height), Image.Resampling.BICUBIC)
    expected = np.asarray(expected.crop((left, top, left + 56, top + 56)))
    np.testing.assert_allclose(pixels * 0.25 + 0.5, expected / 255, atol=1e-5)


# -- samples, batches, rows --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(picture):
    return [
        EvidenceSample("a", picture(80, 60), QUESTION, ("7",), ((20.0, 10.0, 45.0, 40.0),)),
        EvidenceSample("b", picture(50, 90, seed=1), LONGER, ("3",), ((5.0, 30.0, 20.0, 50.0),)),
    ]


def same(one, other):
    """The same tensors, labels and places."""
    assert one.inputs.keys() == other.inputs.keys()
    assert all(torch.equal(one.inputs[key], other.inputs[key]) for key in one.inputs)
    assert list(one.spans) == list(other.spans)
    assert all(torch.equal(one.spans.mask(name), other.spans.mask(name)) for name in one.spans)
    assert one.grid_rows == other.grid_rows
    for found, expected in zip(one.grids, other.grids, strict=True):
        assert torch.equal(found.positions, expected.positions)
        assert torch.equal(found.boxes, expected.boxes)
        assert found.image_size == expected.image_size


def test_a_sample_brings_its_question_and_boxes(vlm, samples):
    one = samples[0]
    prompt = vlm.prompt(one)
    same(prompt, vlm.prompt(one.image, QUESTION))
    assert prompt.turns[0].boxes == one.boxes
    assert not prompt.batched


def test_what_is_said_beside_a_sample_goes_before_it(vlm, samples):
    prompt = vlm.prompt(samples[0], "what digit ?", boxes=[(0, 0, 5, 5)], template="on {question}")
    assert prompt.turns[0].question == "what digit ?"
    assert prompt.turns[0].boxes == ((0.0, 0.0, 5.0, 5.0),)
    assert said(prompt, vlm.processor.tokenizer, "text") == "<bos> on what digit ?"


def test_a_batch_is_padded_on_the_left_and_its_labels_move_along(vlm, samples):
    batch = vlm.prompts(samples)
    single = vlm.prompt(samples[0])
    shift = batch.length - single.length
    assert shift == 4
    assert batch.batched
    assert len(batch) == 2
    assert batch.inputs["attention_mask"][0].tolist() == [0] * shift + [1] * single.length
    for name in single.spans:
        assert torch.equal(batch.spans.mask(name)[0, shift:], single.spans.mask(name)[0])
        assert not batch.spans.mask(name)[0, :shift].any()
    assert torch.equal(batch.grids[0].positions, single.grids[0].positions + shift)
    assert torch.equal(batch.grids[0].boxes, single.grids[0].boxes)
    assert (batch.inputs["input_ids"][0][batch.grids[0].positions] == TOKEN["<image>"]).all()
    assert batch.grid_rows == (0, 1)


def test_a_row_of_a_batch_is_the_single_prompt(vlm, samples):
    batch = vlm.prompts(samples, template="qa")
    for row, sample in enumerate(samples):
        one = batch.row(row)
        same(one, vlm.prompt(sample, template="qa"))
        assert not one.batched


def test_with_template_asks_the_same_otherwise(vlm, samples):
    same(vlm.prompts(samples).with_template("vea"), vlm.prompts(samples, template="vea"))
    same(vlm.prompts(samples, template="vea").with_template(None), vlm.prompts(samples))


def test_with_images_changes_first_pictures_only(vlm, picture, samples):
    batch = vlm.prompts(samples)
    seen = []

    def turn(row, image):
        seen.append((row, image.size))
        return image.transpose(Image.Transpose.ROTATE_180)

    turned = batch.with_images(turn)
    assert seen == [(0, (80, 60)), (1, (50, 90))]
    expected = [(sample.image.transpose(Image.Transpose.ROTATE_180), sample.question) for sample in samples]
    same(turned, vlm.prompts(expected))
    assert turned.turns[0].boxes == samples[0].boxes
    assert not torch.equal(turned.inputs["pixel_values"], batch.inputs["pixel_values"])

    two = vlm.prompt([picture(), picture(seed=1)], QUESTION)
    gray = two.with_images(lambda row, image: image.convert("L").convert("RGB"))
    assert not torch.equal(gray.inputs["pixel_values"][0], two.inputs["pixel_values"][0])
    assert torch.equal(gray.inputs["pixel_values"][1], two.inputs["pixel_values"][1])


# -- evidence ----------------------------------------------------------------------------------------


def test_evidence_is_the_tokens_whose_pixels_the_boxes_hold(vlm, picture):
    """Reckoned by hand: 80×60 is scaled to 74×56 and 9 of it are cut off on the left."""
    edges = [9.73, 24.86, 40.0, 55.14]
    boxes = [(35, 0, 50, 15), (10, 45, 24, 60)]
    prompt = vlm.prompt(picture(80, 60), QUESTION, boxes=boxes)
    found = prompt.evidence()[0].nonzero()[:, 0]
    assert (found - prompt.grids[0].positions[0]).tolist() == [1, 2, 12]
    np.testing.assert_allclose(prompt.grids[0].boxes[:4, 0], edges, atol=0.01)


def test_evidence_of_a_batch_stands_behind_the_padding(vlm, samples):
    batch = vlm.prompts(samples)
    single = vlm.prompt(samples[0]).evidence()[0]
    assert single.any()
    assert torch.equal(batch.evidence()[0, -len(single) :], single)
    assert torch.equal(batch.evidence("half")[1], vlm.prompt(samples[1]).evidence("half")[0])


def test_evidence_is_of_the_first_picture(vlm, picture):
    prompt = vlm.prompt([picture(), picture(seed=1)], QUESTION, boxes=[(0, 0, 80, 60)])
    assert torch.equal(prompt.evidence(), prompt.spans.mask("image:0"))


def test_evidence_that_was_not_given_or_not_seen_is_an_error(vlm, picture):
    with pytest.raises(BadPrompt, match=f"row 0.*{QUESTION.replace('?', '[?]')}.*no evidence boxes"):
        vlm.prompt(picture(), QUESTION).evidence()
    # the ends of a long picture are cut off
    with pytest.raises(BadPrompt, match="no image token sees the evidence"):
        vlm.prompt(picture(200, 50), QUESTION, boxes=[(0, 0, 40, 50)]).evidence()


# -- the bare model ----------------------------------------------------------------------------------


def test_inputs_run_on_the_bare_model(tiny, vlm, prompt, batch):
    with torch.no_grad():
        for one in (prompt, batch):
            expected = tiny().twin("sdpa")(**one.inputs).logits
            real = one.inputs["attention_mask"].bool()
            found = vlm.cache(one, "logits")["logits"]
            torch.testing.assert_close(found[real], expected[real], rtol=0, atol=0)


def test_inputs_are_what_the_processor_makes_of_the_chat(vlm, picture, prompt):
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": QUESTION}]
    expected = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert set(prompt.inputs) == set(expected)
    assert all(torch.equal(prompt.inputs[key], expected[key]) for key in expected)


def test_a_prompt_is_the_public_one(prompt):
    assert isinstance(prompt, seeing.Prompt)


# -- a batch is its prompts, one by one --------------------------------------------------------------


def test_rows_of_a_padded_batch_have_the_positions_of_the_prompt_alone(tiny, vlm, picture):
    """Queries and keys turn with their position, so padding must not count; generation goes on as before."""
    batch = vlm.prompts([(picture(), "what ?"), (picture(50, 90, 1), LONGER)])
    names = ["text.1.attn.q", "text.1.attn.k", "logits"]
    together = vlm.cache(batch, names)
    for row in range(2):
        single = batch.row(row)
        assert "position_ids" not in single.inputs
        for name, alone in vlm.cache(single, names).items():
            found = together[name][row, batch.length - single.length :]
            torch.testing.assert_close(found, alone[0], rtol=0, atol=2e-5)
    model, settings = tiny().twin("sdpa"), dict(max_new_tokens=4, min_new_tokens=4)
    plain = {key: value for key, value in batch.inputs.items() if key != "position_ids"}
    assert torch.equal(model.generate(**batch.inputs, **settings), model.generate(**plain, **settings))


def test_a_batch_without_padding_needs_no_positions(vlm, picture):
    batch = vlm.prompts([(picture(), QUESTION), (picture(50, 90, 1), QUESTION)])
    assert set(batch.inputs) == {"input_ids", "attention_mask", "pixel_values"}


def test_a_row_of_a_batch_may_bring_boxes(vlm, picture):
    batch = vlm.prompts([(picture(), QUESTION, [(20, 10, 45, 40)]), (picture(), QUESTION)])
    assert [turn.boxes for turn in batch.turns] == [((20.0, 10.0, 45.0, 40.0),), ()]


@pytest.mark.parametrize("row", [("image",), "image", ("image", QUESTION, None, None), None])
def test_a_row_that_is_no_question_about_a_picture_is_refused(vlm, row, unchecked):
    with pytest.raises(BadPrompt, match="samples and tuples"):
        vlm.prompts([row])


def test_prompts_are_not_prompted_again(vlm, prompt, unchecked):
    with pytest.raises(BadPrompt, match=r"samples and tuples .* got Prompt\("):
        vlm.prompts([prompt])


# -- what is no box, no template ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "boxes",
    [
        (0, 0, 10, 10),
        [(0, 0, 10)],
        [(0, 0, float("nan"), 10)],
        [(10, 0, 5, 10)],
        [(0, 7, 10, 7)],
        [(80, 0, 90, 10)],
        [(-9, -9, 0, 5)],
        "box",
    ],
)
def test_a_box_that_is_none_is_refused_when_the_prompt_is_made(vlm, picture, boxes, unchecked):
    with pytest.raises(BadPrompt, match=r"\(x0, y0, x1, y1\)"):
        vlm.prompt(picture(), QUESTION, boxes=boxes)


def test_boxes_come_from_arrays_too_and_may_reach_out_of_the_picture(vlm, picture):
    expected = vlm.prompt(picture(), QUESTION, boxes=[(-5, 10, 45, 99)])
    for boxes in (np.array([[-5, 10, 45, 99]]), torch.tensor([[-5, 10, 45, 99]])):
        assert Turn.of(picture(), QUESTION, boxes).boxes == expected.turns[0].boxes
    assert expected.evidence().any()


@pytest.mark.parametrize(
    ("template", "said"), [(3, "a function, got 3"), (lambda question: None, "made None")]
)
def test_a_template_that_is_none_is_refused(vlm, picture, template, said, unchecked):
    with pytest.raises(BadPrompt, match=said):
        vlm.prompt(picture(), QUESTION, template=template)
