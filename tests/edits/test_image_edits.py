"""Edits of the picture against the bare model, which is given the picture that numpy or PIL made by hand.

The families differ in what becomes of a picture: a centre crop, tiles, one raster of its own size, packed
patches. `BARE` are copies that nnsight never wrapped.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.merged import BUILDERS as MERGED
from tiny.packed import BUILDERS as PACKED
from tiny.pictures import noise, painted
from tiny.tiled import BUILDERS as TILED

import seeing
from seeing import edits as E
from seeing.prompt import BadPrompt
from seeing.turns import Turn
from seeing.zoo import open_zoo

BUILDERS: dict[str, Callable] = {
    "llava": functools.partial(open_zoo, "plates-null"),
    "llava_next": TILED["llava_next"],
    "mistral3": MERGED["mistral3"],
    "qwen2_5_vl": PACKED["qwen2_5_vl"],
}
QUESTION, LONGER = "what digit is on the red square ?", "what digit is on the red square on the blue circle ?"
SIZE, EVIDENCE, WINDOW = (98, 84), (30.5, 14, 56, 41.25), (14, 7, 84, 49)
#: What an evidence box, or a window, is in whole pixels.
COVERED = (30, 14, 56, 42)


class Case:
    """One family: its `vlm`, and `bare`, the same weights without it."""

    def __init__(self, name: str):
        model, processor = BUILDERS[name]()
        self.bare_model = copy.deepcopy(model).eval()
        self.vlm = seeing.load((model, processor), check=False)

    @torch.no_grad()
    def bare(self, prompt: seeing.Prompt) -> torch.Tensor:
        return self.bare_model(**prompt.inputs).logits

    def logits(self, prompt: seeing.Prompt, *edits: E.Edit) -> torch.Tensor:
        vlm = self.vlm.with_edits(functools.reduce(operator.add, edits)) if edits else self.vlm
        with torch.no_grad(), vlm.trace(prompt):
            found = vlm.logits.save()
        return found


@functools.cache
def case_of(name: str) -> Case:
    return Case(name)


@pytest.fixture(params=BUILDERS)
def case(request) -> Case:
    return case_of(request.param)


@pytest.fixture
def picture() -> Image.Image:
    return noise(SIZE)


def cut(picture: Image.Image, box: Sequence[int]) -> Image.Image:
    x0, y0, x1, y1 = box
    return Image.fromarray(np.asarray(picture)[y0:y1, x0:x1].copy())


def covered(picture: Image.Image, boxes: Sequence[Sequence[float]], colour: Sequence[float]) -> Image.Image:
    """Pixel by pixel: those that share some area with a box."""
    pixels = np.array(picture)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            if any(x < x1 and x + 1 > x0 and y < y1 and y + 1 > y0 for x0, y0, x1, y1 in boxes):
                pixels[y, x] = colour
    return Image.fromarray(pixels)


def mean_of(picture: Image.Image) -> list[int]:
    return [round(np.asarray(picture)[..., channel].astype(float).mean()) for channel in range(3)]


def dimmed(picture: Image.Image, evidence: np.ndarray, alpha: float) -> Image.Image:
    gain = alpha + (1 - alpha) * evidence[..., None]
    return Image.fromarray(np.rint(gain * np.asarray(picture)).astype(np.uint8))


# -- the model sees the picture that was edited by hand ------------------------------------------------

BY_HAND = {
    "window": (E.Crop(WINDOW), lambda picture: cut(picture, WINDOW)),
    "window of parts of pixels": (E.Crop([EVIDENCE]), lambda picture: cut(picture, COVERED)),
    "evidence": (E.Crop("evidence"), lambda picture: cut(picture, COVERED)),
    # 25.5 and 27.25 wide: half of it on each side is 12.75 and 13.625, cut off above.
    "padded": (E.Crop("evidence", pad=0.5), lambda picture: cut(picture, (17, 0, 69, 55))),
    "mean": (E.Occlude("evidence"), lambda picture: covered(picture, [EVIDENCE], mean_of(picture))),
    "colour": (
        E.Occlude([(5.9, 3, 9.1, 60), (60, 50, 300, 90)], fill=(250, 3, 120)),
        lambda picture: covered(picture, [(5.9, 3, 9.1, 60), (60, 50, 300, 90)], (250, 3, 120)),
    ),
    "low contrast": (
        E.Noise(0.0, keep=0.25),
        lambda picture: Image.fromarray(
            np.rint(127.5 + 0.25 * (np.asarray(picture) - 127.5)).astype(np.uint8)
        ),
    ),
}


@pytest.mark.parametrize("what", BY_HAND)
def test_an_edited_picture_is_what_the_bare_model_makes_of_it_by_hand(case, picture, what):
    edit, by_hand = BY_HAND[what]
    prompt = case.vlm.prompt(picture, QUESTION, boxes=[EVIDENCE])
    before = case.logits(prompt)
    found = case.logits(prompt, edit)
    assert torch.equal(found, case.bare(case.vlm.prompt(by_hand(picture), QUESTION)))
    assert (found[0, -1] - before[0, -1]).abs().max() > 1e-3
    assert torch.equal(case.logits(prompt), before)
    assert torch.equal(before, case.bare(prompt))


@pytest.mark.parametrize(
    "edit",
    [E.Crop((0, 0, *SIZE)), E.Crop("evidence", pad=10), E.Noise(0.0, keep=1.0, seed=3)],
    ids=["all of it", "padded to all of it", "no noise"],
)
def test_neutral_edits_leave_the_logits_bit_for_bit(case, picture, edit):
    prompt = case.vlm.prompt(picture, QUESTION, boxes=[EVIDENCE])
    assert torch.equal(case.logits(prompt, edit), case.bare(prompt))


@pytest.mark.parametrize("fill", ["mean", "blur", (40, 80, 120)])
def test_covering_part_of_a_plain_picture_with_itself_changes_nothing(case, fill):
    prompt = case.vlm.prompt(Image.new("RGB", SIZE, (40, 80, 120)), QUESTION)
    assert torch.equal(case.logits(prompt, E.Occlude([WINDOW], fill)), case.bare(prompt))


def test_noise_reaches_the_model(case, picture):
    prompt = case.vlm.prompt(picture, QUESTION)
    edit = E.Noise(0.3, seed=1)
    noisy = edit.turn(0, Turn.of(picture, QUESTION)).images[0]
    found = case.logits(prompt, edit)
    assert torch.equal(found, case.bare(case.vlm.prompt(noisy, QUESTION)))
    assert (found[0, -1] - case.bare(prompt)[0, -1]).abs().max() > 1e-3


def test_an_appended_crop_is_one_more_picture_behind_the_others(case, picture):
    """As in ViCrop; what is evidence is still the first picture's."""
    vlm, other = case.vlm, noise((60, 70), seed=1)
    prompt = vlm.prompt([picture, other], QUESTION, boxes=[EVIDENCE])
    by_hand = vlm.prompt([picture, other, cut(picture, WINDOW)], QUESTION, boxes=[EVIDENCE])
    edit = E.Crop(WINDOW, append=True)
    assert torch.equal(case.logits(prompt, edit), case.bare(by_hand))
    # Only the first picture is edited, whatever others there are.
    assert torch.equal(
        case.logits(prompt, edit, E.Occlude([WINDOW], (0, 0, 0))),
        case.bare(vlm.prompt([covered(picture, [WINDOW], (0, 0, 0)), other, cut(picture, WINDOW)], QUESTION)),
    )
    keys = E.Knockout(keys="evidence")
    assert torch.equal(case.logits(prompt, edit, keys), case.logits(by_hand, keys))


def test_answers_and_decoded_tokens_come_from_the_edited_picture(case, picture):
    """Also where the crop makes another number of tokens than the prompt that was asked."""
    edited = case.vlm.with_edits(E.Crop(WINDOW))
    prompt = case.vlm.prompt(picture, QUESTION)
    by_hand = case.vlm.prompt(cut(picture, WINDOW), QUESTION)
    length = by_hand.length
    with torch.no_grad():
        ids = case.bare_model.generate(**by_hand.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[
            0, length:
        ]
    answer = edited.answer(prompt, max_new_tokens=4, min_new_tokens=4)
    assert answer.ids.tolist() == ids.tolist()


@pytest.mark.parametrize("queries", ["last", "question"])
@pytest.mark.parametrize("append", [False, True])
def test_rows_are_read_where_they_are_in_the_prompt_that_runs(case, picture, queries, append):
    """A crop makes the prompt shorter, one more picture makes it longer."""
    name, crop = "text.1.attn.pattern", cut(picture, WINDOW)
    prompt = case.vlm.prompt(picture, QUESTION)
    by_hand = case.vlm.prompt([picture, crop] if append else crop, QUESTION)
    edited = case.vlm.with_edits(E.Crop(WINDOW, append=append))
    expected = case.vlm.cache(by_hand, name, queries)[name]
    assert torch.equal(edited.cache(prompt, name, queries)[name], expected)
    kept = edited.prefill(prompt, name, queries)
    torch.testing.assert_close(kept.activations[name], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kept.logits, case.bare(by_hand)[:, -1], rtol=1e-4, atol=1e-4)


# -- evidence moves along --------------------------------------------------------------------------------


def test_edits_of_evidence_behind_a_crop_act_on_the_moved_boxes(case, picture):
    """The first box moves, the second is cut off at the border, the third is gone."""
    boxes = [(30, 14, 56, 41), (70, 40, 95, 60), (0, 60, 12, 80)]
    prompt = case.vlm.prompt(picture, QUESTION, boxes=boxes)
    by_hand = case.vlm.prompt(cut(picture, WINDOW), QUESTION, boxes=[(16, 7, 42, 34), (56, 33, 70, 42)])
    edit = E.ScaleAttention(keys="evidence", gain=5.0)
    found = case.logits(prompt, E.Crop(WINDOW), edit)
    assert torch.equal(found, case.logits(by_hand, edit))
    assert not torch.equal(found, case.logits(prompt, E.Crop(WINDOW)))


@pytest.mark.parametrize("window", [(14, 0, 84, 42), (28, 28, 98, 84)])
@pytest.mark.parametrize("square", [(40, 20, 57, 43), (29, 29, 30, 30), (0, 0, 50, 50), (83, 41, 98, 84)])
def test_the_evidence_of_a_crop_is_the_tokens_that_a_painted_square_moves(window, square):
    """In a tower that does not mix, from a picture that is not resized: known to the pixel."""
    case = case_of("qwen2_5_vl")
    vlm = seeing.load((copy.deepcopy(case.bare_model), case.vlm.processor), check=False)
    stack = vlm.family.vision(vlm._module)
    with torch.no_grad():
        for layer in range(len(stack)):
            for weight in getattr(stack.attention(layer), stack.out).parameters():
                weight.zero_()
    edited = vlm.with_edits(E.Crop(window))
    pictures = noise(SIZE), painted(noise(SIZE), square)
    prompts = [vlm.prompt(one, QUESTION, boxes=[square]) for one in pictures]
    plain, other = (edited.cache(one, "text.embed")["text.embed"][0] for one in prompts)
    moved = (plain - other).abs().amax(1) > 1e-5
    assert moved.any()
    assert torch.equal(moved, prompts[0].with_turns(E.Crop(window).turn).evidence()[0])


def test_a_crop_that_leaves_all_evidence_out_says_so_where_evidence_is_asked_for(case, picture):
    prompt = case.vlm.prompt(picture, QUESTION, boxes=[EVIDENCE])
    away = E.Crop((60, 50, 98, 84))
    assert torch.equal(
        case.logits(prompt, away), case.bare(case.vlm.prompt(cut(picture, (60, 50, 98, 84)), QUESTION))
    )
    for then in (E.ScaleAttention(keys="evidence", gain=2.0), E.Occlude("evidence"), E.Crop("evidence")):
        with pytest.raises(BadPrompt, match=r"row 0 .* has no evidence boxes"):
            case.logits(prompt, away, then)


# -- batches ---------------------------------------------------------------------------------------------

ROWS = [(SIZE, QUESTION, [EVIDENCE]), ((56, 112), LONGER, [(0, 50, 20, 90), (30, 60, 50, 70)])]


def batch_of(case: Case) -> seeing.Prompt:
    return case.vlm.prompts([(noise(size, seed), *more) for seed, (size, *more) in enumerate(ROWS)])


BATCHES = {
    "evidence": (E.Crop("evidence"), lambda row, picture: cut(picture, [COVERED, (0, 50, 50, 90)][row])),
    "one window": (E.Crop((7, 14, 49, 70)), lambda row, picture: cut(picture, (7, 14, 49, 70))),
    "windows": (
        E.Crop([WINDOW, (0, 56, 42, 112)]),
        lambda row, picture: cut(picture, [WINDOW, (0, 56, 42, 112)][row]),
    ),
    "boxes": (
        E.Occlude([(7, 14, 49, 70), (0, 0, 5, 5)], (9, 9, 9)),
        lambda row, picture: covered(picture, [(7, 14, 49, 70), (0, 0, 5, 5)], (9, 9, 9)),
    ),
    "boxes of each row": (
        E.Occlude([[WINDOW], [(0, 56, 42, 112), (50, 0, 56, 9)]]),
        lambda row, picture: covered(
            picture, [[WINDOW], [(0, 56, 42, 112), (50, 0, 56, 9)]][row], mean_of(picture)
        ),
    ),
}


@pytest.mark.parametrize("what", BATCHES)
def test_a_batch_of_different_pictures_is_edited_row_by_row(case, what):
    edit, by_hand = BATCHES[what]
    batch = batch_of(case)
    edited = [(by_hand(row, turn.images[0]), turn.question) for row, turn in enumerate(batch.turns)]
    found = case.logits(batch, edit)
    assert torch.equal(found, case.bare(case.vlm.prompts(edited)))
    for row, one in enumerate(edited):
        alone = case.bare(case.vlm.prompt(*one))[0]
        torch.testing.assert_close(found[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)
        plain = case.bare(batch.row(row))[0, -1]
        assert (alone[-1] - plain).abs().max() > 1e-3


def test_a_row_gets_the_same_noise_alone_and_in_a_batch(case):
    batch, edit = batch_of(case), E.Noise(0.2, seed=5)
    together = case.logits(batch, edit)
    for row in range(len(batch)):
        alone = case.logits(batch.row(row), edit)[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)


# -- several edits -----------------------------------------------------------------------------------------


def test_edits_are_made_in_the_order_written_each_of_what_the_one_before_left(case, picture):
    prompt = case.vlm.prompt(picture, QUESTION, boxes=[EVIDENCE])
    crop, cover = E.Crop(WINDOW), E.Occlude([(0, 0, 28, 21)], (0, 0, 0))
    first = covered(cut(picture, WINDOW), [(0, 0, 28, 21)], (0, 0, 0))
    last = cut(covered(picture, [(0, 0, 28, 21)], (0, 0, 0)), WINDOW)
    assert torch.equal(case.logits(prompt, crop, cover), case.bare(case.vlm.prompt(first, QUESTION)))
    assert torch.equal(case.logits(prompt, cover, crop), case.bare(case.vlm.prompt(last, QUESTION)))
    twice = cut(cut(picture, WINDOW), (14, 7, 56, 42))
    assert torch.equal(
        case.logits(prompt, crop, E.Crop((14, 7, 56, 42))), case.bare(case.vlm.prompt(twice, QUESTION))
    )


def test_a_highlight_behind_a_crop_is_of_the_crop(case, picture):
    prompt = case.vlm.prompt(picture, QUESTION)
    evidence = np.random.default_rng(0).random((42, 70))
    by_hand = dimmed(cut(picture, WINDOW), evidence, 0.3)
    found = case.logits(prompt, E.Crop(WINDOW), E.Highlight(evidence, 0.3))
    assert torch.equal(found, case.bare(case.vlm.prompt(by_hand, QUESTION)))
    with pytest.raises(ValueError, match=r"\(84, 98\), found \(42, 70\)"):
        case.logits(prompt, E.Highlight(evidence, 0.3), E.Crop(WINDOW))


def test_an_edited_model_takes_further_edits_of_the_picture(case, picture):
    prompt = case.vlm.prompt(picture, QUESTION)
    twice = case.vlm.with_edits(E.Crop(WINDOW)).with_edits(E.Noise(0.1))
    with torch.no_grad(), twice.trace(prompt):
        found = twice.logits.save()
    assert torch.equal(found, case.logits(prompt, E.Crop(WINDOW), E.Noise(0.1)))


# -- the embedded model ------------------------------------------------------------------------------------


def test_the_trained_model_answers_the_hand_made_picture(trained, bare_trained, mixed):
    """Crops of several shapes, and evidence that is covered."""
    prompt = trained.prompts(mixed)
    for edit, by_hand in (
        (E.Crop("evidence", pad=1), lambda sample: cut(sample.image, _padded(sample))),
        (E.Occlude("evidence"), lambda sample: covered(sample.image, sample.boxes, mean_of(sample.image))),
    ):
        answers = trained.with_edits(edit).answer(prompt)
        expected = bare_trained.answers(*((by_hand(sample), sample.question) for sample in mixed))
        assert [(one.ids.tolist(), str(one)) for one in answers] == [(ids, text) for ids, text, _ in expected]


def _padded(sample) -> tuple[int, ...]:
    (x0, y0, x1, y1), (width, height) = sample.boxes[0], sample.image.size
    box = (2 * x0 - x1, 2 * y0 - y1, 2 * x1 - x0, 2 * y1 - y0)
    assert len(sample.boxes) == 1
    assert all(edge == int(edge) for edge in box)
    return max(int(box[0]), 0), max(int(box[1]), 0), min(int(box[2]), width), min(int(box[3]), height)


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_the_trained_model_does_not_read_what_is_covered(trained, crowded, fill):
    """Covering the evidence costs the answers."""
    prompt = trained.prompts(crowded)

    def right(vlm: seeing.VLM) -> int:
        return sum(answer in one.answers for answer, one in zip(vlm.answer(prompt), crowded))

    assert right(trained) >= 5
    assert right(trained.with_edits(E.Occlude("evidence", fill))) <= 1


# -- what does not fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (E.Crop((50, 0, 99, 84)), r"row 0: window \(50, 0, 99, 84\) reaches out of its picture of 98×84"),
        (E.Crop((-1, 0, 50, 50)), r"reaches out of its picture of 98×84"),
        (E.Crop((100, 0, 120, 20)), r"reaches out of its picture of 98×84"),
        (E.Crop((0.1, 0.1, 0.6, 0.5)), "98×84; expected pixels, multiply shares by the picture's size"),
        (E.Crop(WINDOW) + E.Crop((60, 0, 80, 42)), r"\(60, 0, 80, 42\) reaches out of its picture of 70×42"),
        (E.Occlude([(0, 0, 5, 5), (98, 0, 120, 20)]), r"\(98, 0, 120, 20\) covers nothing .* 98×84"),
        (E.Occlude([(0.1, 0.1, 0.6, 0.5)]), "multiply shares by the picture's size"),
        (E.Crop([WINDOW, WINDOW]), r"2 windows for 1 row\(s\); give one for all, or one a row"),
        (E.Occlude([[WINDOW], [WINDOW], [WINDOW]]), r"3 lists of boxes for 1 row\(s\)"),
    ],
)
def test_what_does_not_fit_the_picture_is_refused_before_the_model_runs(case, picture, edit, says):
    with pytest.raises(E.BadEdit, match=says):
        case.logits(case.vlm.prompt(picture, QUESTION), edit)
    prompt = case.vlm.prompt(picture, QUESTION)
    assert torch.equal(case.logits(prompt), case.bare(prompt))


@pytest.mark.parametrize("edit", [E.Crop("evidence"), E.Crop("evidence", append=True), E.Occlude("evidence")])
def test_evidence_of_a_row_without_boxes_is_refused(case, edit):
    batch = batch_of(case)
    bare = batch.with_turns(lambda row, turn: replace(turn, boxes=()) if row == 1 else turn)
    with pytest.raises(BadPrompt, match=rf"row 1 of the prompt \('{LONGER[:9]}.* has no evidence boxes"):
        case.logits(bare, edit)


def test_a_prompt_as_it_is_shown_is_not_edited_again(trained, mixed):
    edited = trained.with_edits(E.Noise(sigma=0.7))
    prompt = trained.prompts(mixed[:2]).with_answer(["7", "7"])
    expected, shown = edited.score(prompt).logprob, edited.shown(prompt)
    torch.testing.assert_close(edited.score(shown).logprob, expected)
    torch.testing.assert_close(edited.score(shown.with_answer(["7", "7"])).logprob, expected)
    torch.testing.assert_close(edited.score(shown.only([0, 1])).logprob, expected)
    torch.testing.assert_close(edited.score(shown.row(0)).logprob, expected[:1], rtol=0, atol=1e-4)
