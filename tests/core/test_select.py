"""Selectors: which positions an edit is about, in a prompt, in a padded batch and while tokens are decoded.

The truth is the token ids themselves (where the picture's placeholders stand, where the question's words
do) and arithmetic on pixels done by hand.
"""

import numpy as np
import pytest
import torch

import seeing
from seeing import edits as E
from seeing.edits.layers import layers_of
from seeing.edits.select import Moment, selector
from seeing.prompt import BadPrompt
from seeing.zoo.build import TOKEN

QUESTION = "what digit is on the red square ?"
LONGER = "what digit is on the red square on the blue circle ?"


def moment(prompt, step=0):
    return Moment(prompt, step, prompt.length, len(prompt), torch.device("cpu"))


def chosen(spec, prompt, step=0):
    """Row by row the positions that ``spec`` selects."""
    mask = moment(prompt, step).mask(selector(spec))
    assert mask.dtype == torch.bool
    assert mask.shape == (len(prompt), prompt.length + step)
    return [row.nonzero()[:, 0].tolist() for row in mask]


def words(prompt, question):
    """Row by row where the question's words stand, in the ids."""
    ids, found = prompt.inputs["input_ids"], []
    for row, text in zip(ids.tolist(), question):
        want = [TOKEN[word] for word in text.split()]
        starts = [i for i in range(len(row)) if row[i : i + len(want)] == want]
        assert len(starts) == 1
        found.append(list(range(starts[0], starts[0] + len(want))))
    return found


def placeholders(prompt):
    return [row.nonzero()[:, 0].tolist() for row in prompt.inputs["input_ids"] == TOKEN["<image>"]]


@pytest.fixture(scope="module")
def pair(vlm, picture):
    """Square pictures of 56 × 56 in a model of 4 × 4 patches of 14: a token is a square of 14 pixels."""
    return vlm.prompts(
        [
            seeing.EvidenceSample("a", picture(56, 56), QUESTION, ("1",), ((0, 0, 14, 14),)),
            seeing.EvidenceSample(
                "b", picture(56, 56, 1), LONGER, ("2",), ((20, 30, 40, 41), (0, 55, 1, 56))
            ),
        ]
    )


# -- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 3])
def test_names_mean_positions_of_every_row(pair, step):
    """The first row is padded: 29 positions, four of padding in front."""
    assert pair.length == 29
    assert pair.inputs["attention_mask"].sum(1).tolist() == [25, 29]
    image, question = placeholders(pair), words(pair, [QUESTION, LONGER])
    real = [list(range(4, 29)), list(range(29))]
    assert [len(row) for row in image] == [16, 16]
    assert chosen("image", pair, step) == image == chosen("image:0", pair, step)
    assert chosen("question", pair, step) == question
    assert chosen("text", pair, step) == [sorted({*a} - {*b}) for a, b in zip(real, image)]
    assert chosen("template", pair, step) == [
        sorted({*a} - {*b} - {*c}) for a, b, c in zip(real, image, question)
    ]


@pytest.mark.parametrize("step", [0, 1, 3])
def test_last_all_and_answer_move_with_what_is_decoded(pair, step):
    assert chosen("last", pair, step) == [[28 + step]] * 2
    assert chosen("all", pair, step) == [list(range(29 + step))] * 2
    assert chosen("answer", pair, step) == [list(range(29, 29 + step))] * 2


@pytest.mark.parametrize("step", [0, 2])
def test_evidence_is_the_tokens_on_each_rows_boxes(pair, step):
    """Token (r, c) of the 4 × 4 sees pixels 14c to 14c + 14, 14r to 14r + 14."""
    first, second = placeholders(pair)
    # x 20–40 is columns 1 and 2, y 30–41 row 2; the last pixel row at x < 1 is row 3, column 0.
    assert chosen("evidence", pair, step) == [[first[0]], sorted([second[9], second[10], second[12]])]


def test_two_pictures_in_a_row_are_told_apart(vlm, picture):
    prompt = vlm.prompt([picture(), picture(50, 90, 1)], QUESTION)
    (image,) = placeholders(prompt)
    assert len(image) == 32
    assert chosen("image", prompt) == [image]
    assert chosen("image:0", prompt) == [image[:16]]
    assert chosen("image:1", prompt) == [image[16:]]


# -- positions and boxes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        [5, 9, -1],
        (9, 5, -1, 5),
        torch.tensor([5, 9, -1]),
        np.array([5, 9, -1]),
        [np.int64(5), 9, 28],
        torch.arange(29).unsqueeze(0).eq(torch.tensor([[5], [9], [28]])).any(0),
    ],
    ids=["list", "tuple", "tensor", "array", "numpy ints", "mask"],
)
def test_numbers_are_positions_of_the_padded_row(pair, spec):
    """Negative ones count from the end of the prompt, also when tokens were decoded behind it."""
    for step in (0, 2):
        assert chosen(spec, pair, step) == [[5, 9, 28]] * 2


def test_one_number_is_one_position(pair):
    assert chosen(7, pair) == chosen(-22, pair) == chosen(np.int32(7), pair) == [[7]] * 2


def test_each_row_may_have_positions_of_its_own(pair):
    assert chosen(E.Positions(((4, -1), (0, 3, 9))), pair) == [[4, 28], [0, 3, 9]]
    mask = torch.zeros(2, 29, dtype=torch.bool)
    mask[0, 10] = mask[1, [2, 20]] = True
    assert chosen(E.Positions.of_mask(mask), pair) == chosen(mask, pair) == [[10], [2, 20]]


def test_boxes_are_pixels_of_each_rows_picture(vlm, picture):
    """The same pixels are other tokens in a picture of another size, which the processor crops."""
    batch = vlm.prompts([(picture(56, 56), QUESTION), (picture(112, 112, 1), QUESTION)])
    first, second = placeholders(batch)
    box = (0, 0, 28, 14)
    assert chosen([box], batch) == [[first[0], first[1]], [second[0]]]
    far = [box, (50, 50, 56, 56)]
    assert chosen(far, batch) == [[first[0], first[1], first[15]], [second[0], second[5]]]
    assert chosen(np.array(far), batch) == chosen(far, batch)
    assert chosen([list(one) for one in far], batch) == chosen(far, batch)


# -- composition -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2])
def test_sets_are_composed(pair, step):
    image, question = placeholders(pair), words(pair, [QUESTION, LONGER])
    last = [28 + step]
    S = E.Span
    n = 29 + step
    assert chosen(S("image") | "question", pair, step) == [sorted(a + b) for a, b in zip(image, question)]
    assert chosen("question" | S("image"), pair, step) == chosen(S("image") | "question", pair, step)
    assert chosen(S("image") & [10, 11, 20, 28], pair, step) == [
        [i for i in row if i in (10, 11, 20, 28)] for row in image
    ]
    assert chosen("image" & S("image"), pair, step) == image
    assert chosen(~S("image"), pair, step) == [[i for i in range(n) if i not in row] for row in image]
    assert chosen(~S("image") & S("last"), pair, step) == [last, last]
    assert chosen(S("last") | S("image") & S("question"), pair, step) == [last, last]
    assert chosen(~(S("image") | "all"), pair, step) == [[], []]
    assert chosen(~~S("image"), pair, step) == image


def test_evidence_and_its_rest_are_the_image(pair):
    evidence, rest = chosen("evidence", pair), chosen(E.Span("image") & ~E.Span("evidence"), pair)
    assert [sorted(a + b) for a, b in zip(evidence, rest)] == placeholders(pair)
    assert [len(row) for row in rest] == [15, 13]


def test_selectors_are_values():
    S = E.Span
    assert S("image") & ~S("last") == S("image") & ~S("last")
    assert hash(S("image") | [1, 2]) == hash(S("image") | (1, 2))
    assert S("image") & "last" != S("image") | "last"
    assert selector([1, 2]) == E.Positions(((1, 2),))
    assert selector([(0, 0, 1, 1)]) == E.Boxes(((0.0, 0.0, 1.0, 1.0),))
    assert repr(S("image") & ~S("evidence") | [3]) == (
        "((Span('image') & ~Span('evidence')) | Positions(((3,),)))"
    )
    assert repr(selector([(0, 0, 1, 2)])) == "[(0.0, 0.0, 1.0, 2.0)]"


# -- in a run ----------------------------------------------------------------------------------------


def test_an_edit_acts_at_the_keys_selected_and_only_there(vlm, pair):
    """Scores of the chosen keys grow by the gain's logarithm, in each row those of its own keys."""
    keys = (E.Span("evidence") | E.Positions(((7,), (2, 3)))) & ~E.Span("last")
    before = vlm.cache(pair, "text.0.attn.scores")["text.0.attn.scores"][:, :, 0]
    edited = vlm.with_edits(E.ScaleAttention(keys=keys, gain=4.0, layers=0))
    after = edited.cache(pair, "text.0.attn.scores")["text.0.attn.scores"][:, :, 0]
    mask = torch.zeros(2, 29)
    for row, positions in enumerate(chosen(keys, pair)):
        mask[row, positions] = 1
    assert mask.sum(1).tolist() == [2, 5]
    seen = pair.inputs["attention_mask"].bool()
    difference = (after - before).mean(1)
    torch.testing.assert_close(difference[seen], (mask * np.log(4.0))[seen], atol=1e-5, rtol=0)


def test_seen_stays_where_it_was_seen_while_tokens_are_decoded(vlm, prompt):
    """Also where the edit acts on decoded tokens only: the prompt pass is where it looks."""
    keys = E.seen({0: [0, 2]}, denoise=False)
    row = vlm.cache(prompt, "text.0.attn.pattern")["text.0.attn.pattern"][0, [0, 2], 0].mean(0)
    (image,) = placeholders(prompt)
    grid = row[image].reshape(4, 4)
    sums = grid.unfold(0, 2, 1).unfold(1, 2, 1).sum((2, 3))
    r, c = divmod(int(sums.argmax()), 3)
    window = [image[4 * (r + i) + c + j] for i in range(2) for j in range(2)]
    found = []
    for when_keys in (keys, window):
        edited = vlm.with_edits(E.ScaleAttention(keys=when_keys, gain=50.0, layers=(1, 2), when="decode"))
        out = edited.generate(
            prompt,
            max_new_tokens=3,
            suppress_tokens=[TOKEN["<eos>"], TOKEN["<image>"]],
            return_dict_in_generate=True,
            output_logits=True,
        )
        found.append(torch.stack(out.logits))
    plain = vlm.generate(prompt, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0][0], plain.logits[0])
    other = vlm.with_edits(E.ScaleAttention(keys=image[:4], gain=50.0, layers=(1, 2), when="decode"))
    assert sorted(window) != image[:4]
    out = other.generate(prompt, max_new_tokens=2, return_dict_in_generate=True, output_logits=True)
    assert not torch.equal(out.logits[1], found[0][1])


def test_the_window_of_seen_may_have_another_size(vlm, prompt):
    """A window of all tokens is the image; one that doesn't fit the grid is refused when it runs."""

    def logits(keys):
        edited = vlm.with_edits(E.ScaleAttention(keys=keys, gain=5.0, layers=2))
        return edited.cache(prompt, "logits")["logits"]

    assert torch.equal(logits(E.seen([0], window=(4, 4))), logits("image"))
    assert not torch.equal(logits(E.seen([0], window=(1, 4))), logits("image"))
    with pytest.raises(ValueError, match="5×5"):
        logits(E.seen([0], window=(5, 5)))


# -- errors ------------------------------------------------------------------------------------------


def run(vlm, prompt, **settings):
    return vlm.with_edits(E.ScaleAttention(gain=2.0, **settings)).cache(prompt, "logits")


@pytest.mark.parametrize("where", ["keys", "queries"])
@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("picture", E.BadEdit, "'picture'; this prompt has image, question"),
        ("image:1", E.BadEdit, "image:1"),
        ([29], E.BadEdit, "position 29 is outside the prompt of 29 tokens"),
        ([-30], E.BadEdit, "position -30"),
        ([3], E.BadEdit, "position 3 is padding in row 0"),
        (E.Positions(((4,), (4,), (4,))), E.BadEdit, "3 rows, the batch has 2"),
        (E.Positions(((4,), ())), E.EmptySelection, "no position in row 1"),
        (E.Span("image") & "question", E.EmptySelection, "no position in row 0"),
    ],
)
def test_what_selects_nothing_or_reaches_outside_is_refused(vlm, pair, where, spec, error, message):
    other = {"keys": "queries", "queries": "keys"}[where]
    with pytest.raises(error, match=message):
        run(vlm, pair, **{where: spec, other: "last"})


def test_boxes_that_no_token_sees_are_refused(vlm, picture, prompt):
    """The processor cuts the sides of a broad picture off; and a box beside the picture is a mistake."""
    cropped = vlm.prompt(picture(112, 56), QUESTION)
    with pytest.raises(E.EmptySelection, match="no position in row 0"):
        run(vlm, cropped, keys=[(0, 0, 10, 10)])
    assert run(vlm, cropped, keys=[(50, 0, 60, 10)])["logits"].isfinite().all()
    with pytest.raises(ValueError, match="80×60"):
        run(vlm, prompt, keys=[(500, 500, 600, 600)])


def test_evidence_without_boxes_is_refused(vlm, prompt, batch, picture):
    with pytest.raises(BadPrompt, match=r"row 0.*no evidence boxes.*boxes="):
        run(vlm, batch, keys="evidence")
    cropped = vlm.prompt(picture(112, 56), QUESTION, boxes=[(0, 0, 10, 10)])
    with pytest.raises(BadPrompt, match="no image token sees the evidence"):
        run(vlm, cropped, keys="evidence")
    assert run(vlm, prompt, keys="evidence")["logits"].isfinite().all()


@pytest.mark.parametrize(
    "spec", [1.5, None, True, [], [1.5], [True], {"image"}, [(0, 0, 1)], ["image", 3], torch.tensor([0.5])]
)
def test_what_is_no_selector_is_refused_when_it_is_written(spec):
    with pytest.raises(E.BadEdit, match="selects no positions"):
        E.Knockout(keys=spec)


@pytest.mark.parametrize(
    ("heads", "message"),
    [({4: [0]}, "no layer 4"), ({0: [4]}, "no head 4"), ({-1: [0]}, "layers from 0"), ([0, 7], "no layer 7")],
)
def test_seen_reads_what_the_model_has(vlm, heads, message):
    with pytest.raises(E.BadEdit, match=message):
        vlm.with_edits(E.ScaleAttention(keys=E.seen(heads), gain=2.0, layers=3))
    with pytest.raises(E.BadEdit, match="at least one"):
        E.seen({})


# -- layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("all", (0, 1, 2, 3, 4)),
        ("deep", (2, 3, 4)),
        (3, (3,)),
        (-1, (4,)),
        (slice(1, 3), (1, 2)),
        (slice(None, None, 2), (0, 2, 4)),
        (slice(-2, None), (3, 4)),
        ([4, 0, 4, -1], (0, 4)),
        ((2,), (2,)),
        (range(1, 4), (1, 2, 3)),
        (np.int64(2), (2,)),
        (np.array([2, 1]), (1, 2)),
        (torch.tensor([2, 1]), (1, 2)),
    ],
)
def test_layers_are_said_in_many_ways(spec, layers):
    assert layers_of(spec, 5) == layers


@pytest.mark.parametrize(
    "spec", [5, -6, [0, 5], "shallow", "1", [], slice(5, 9), 1.0, [1.5], None, True, [True], ["all"]]
)
def test_layers_that_are_not_there_are_refused(spec):
    with pytest.raises(E.BadEdit):
        layers_of(spec, 5)
