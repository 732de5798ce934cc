"""Edits hold values of their own, and take no others than they say."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from seeing import edits as E

SITE = "text.2.resid_post"


# ---- what a caller writes on later -------------------------------------------------------------------------


def vectors(d):
    return [
        (lambda t: E.Steer(SITE, t), torch.ones(d)),
        (lambda t: E.Rotate(SITE, t), torch.arange(d).float()),
        (lambda t: E.SetResidual(SITE, t), torch.ones(d)),
        (lambda t: E.ProjectOut(SITE, t), torch.eye(d)[:2].clone()),
    ]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_what_a_caller_does_to_a_vector_later_is_not_done_to_the_edit(random, crowded, number, library):
    prompt = random.prompt(crowded[0])
    edit_of, vector = vectors(random.cfg.d_model)[number]
    given = vector.numpy().copy() if library == "numpy" else vector.clone()
    edit = edit_of(given)
    edited, said = random.with_edits(edit), hash(edit)
    given *= 50
    given[..., 0] = 7
    assert hash(edit) == said
    assert edit == edit_of(vector)
    expected = random.with_edits(edit_of(vector)).cache(prompt, "logits")["logits"]
    assert torch.equal(edited.cache(prompt, "logits")["logits"], expected)


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_weights_and_maps_are_the_edits_own(library):
    weights, evidence = np.full(5, 0.1, dtype=np.float32), np.zeros((4, 6), dtype=np.float32)
    if library == "torch":
        weights, evidence = torch.from_numpy(weights), torch.from_numpy(evidence)
    pattern, picture = E.SetPattern(weights), E.Highlight(evidence)
    said = hash(pattern), hash(picture)
    weights *= 3
    evidence += 1
    assert (hash(pattern), hash(picture)) == said
    with pytest.raises(ValueError, match="read-only"):
        picture.maps[0][0, 0] = 1


def test_a_vector_that_is_learnt_stays_the_callers(random):
    vector = torch.ones(random.cfg.d_model, requires_grad=True)
    for edit in (E.Steer(SITE, vector), E.Rotate(SITE, vector), E.SetResidual(SITE, vector)):
        assert edit.vector is vector


# ---- masks -------------------------------------------------------------------------------------------------


def test_a_mask_of_another_length_than_the_prompt_is_refused(random, crowded):
    prompt = random.prompt(crowded[0])
    for mask in (torch.tensor([False, False, True, False]), np.eye(1, prompt.length + 1, 4, dtype=bool)[0]):
        edited = random.with_edits(E.ScaleAttention(keys=mask, gain=2.0))
        with pytest.raises(E.BadEdit, match=f"a mask of {len(mask)} positions.*has {prompt.length}"):
            edited.cache(prompt, "logits")


def test_a_mask_of_the_prompts_length_is_its_positions(random, crowded):
    prompt = random.prompt(crowded[0])
    chosen = [4, prompt.length - 2]
    mask = torch.zeros(prompt.length, dtype=torch.bool)
    mask[chosen] = True
    of_mask, by_number = (
        random.with_edits(E.ScaleAttention(keys=keys, gain=9.0)).answer(prompt, max_new_tokens=3)
        for keys in (mask, chosen)
    )
    np.testing.assert_array_equal(of_mask.token_logprobs, by_number.token_logprobs)


# ---- large biases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [1e2, 1e4, 1e6, 1e9, 1e30])
@pytest.mark.parametrize("chosen", ["image", "question"])
def test_a_large_bias_puts_all_weight_on_its_keys_in_proportion(random, crowded, by, chosen):
    prompt = random.prompt(crowded[0])
    keys = prompt.spans.mask(chosen)[0]
    plain = random.cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"][0, :, -1].double()
    expected = torch.where(keys, plain, 0) / plain[:, keys].sum(-1, keepdim=True)
    for edit in (E.Bias(keys=chosen, value=by), E.Bias(keys=~E.Span(chosen), value=-by)):
        edited = random.with_edits(type(edit)(keys=edit.keys, value=edit.value, layers=2))
        found = edited.cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"][0, :, -1].double()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("by", [-1e9, -1e3, 1e3, 1e9])
def test_a_large_bias_on_all_keys_that_a_row_sees_changes_nothing(random, crowded, by):
    """The first queries see no picture yet, and a row that sees nothing else than the keys is as before."""
    prompt = random.prompt(crowded[0])
    plain = random.cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"]
    edited = random.with_edits(E.Bias(keys="all", value=by, queries="all", layers=2))
    torch.testing.assert_close(edited.cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"], plain)


def test_large_biases_add_up(random, crowded):
    """Two sets of keys pushed alike share the weight in proportion; up and down again is where it began."""
    prompt = random.prompt(crowded[0])

    def row(*biases):
        edits = sum(E.Bias(keys=keys, value=value, layers=2) for keys, value in biases)
        found = random.with_edits(edits).cache(prompt, "text.2.attn.pattern")
        return found["text.2.attn.pattern"][0, :, -1]

    together = row(("image", 1e6), ("question", 1e6))
    both = row((E.Span("image") | E.Span("question"), 1e6))
    torch.testing.assert_close(together, both, atol=5e-3, rtol=0)
    plain = random.cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"][0, :, -1]
    torch.testing.assert_close(row(("image", 1e6), ("image", -1e6)), plain, atol=5e-3, rtol=0)


def test_what_a_large_bias_leaves_without_weight_is_still_a_key_that_is_seen(random, crowded):
    prompt = random.prompt(crowded[0])
    pushed = E.Bias(keys="image", value=-1e9, layers=2) + E.Bias(keys="image", value=-1e9, layers=2)
    edited = random.with_edits(pushed + E.SetPattern(0.01, keys="image", layers=2))
    row = edited.cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"][0, :, -1]
    assert (row[:, prompt.spans.mask("image")[0]] == 0.01).all()


def test_what_is_cut_stays_cut_under_a_large_bias(random, crowded):
    prompt = random.prompt(crowded[0])
    edits = E.Knockout(keys="image", layers=2) + E.Bias(keys="image", value=1e9, layers=2)
    row = random.with_edits(edits).cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"][0, :, -1]
    assert (row[:, prompt.spans.mask("image")[0]] == 0).all()
    cut = random.with_edits(edits.edits[0]).cache(prompt, "text.2.attn.pattern")
    torch.testing.assert_close(row, cut["text.2.attn.pattern"][0, :, -1])


# ---- numbers -----------------------------------------------------------------------------------------------

NUMBERS = [
    (lambda x: E.Bias(keys="image", value=x), "value"),
    (lambda x: E.ScaleAttention(keys="image", gain=x), "gain"),
    (lambda x: E.Temperature(value=x), "value"),
    (lambda x: E.Amplify(keys="image", share=x), "share"),
    (lambda x: E.ScalePattern(keys="image", factor=x), "factor"),
    (lambda x: E.SetPattern(x), "value"),
    (lambda x: E.Redistribute("image", "question", x), "share"),
    (lambda x: E.Steer(SITE, [1.0], x), "strength"),
    (lambda x: E.Rotate(SITE, [1.0], x), "strength"),
    (lambda x: E.SetResidual(SITE, x), "vector"),
    (lambda x: E.MixLayers([1], x), "weight"),
    (lambda x: E.Highlight(np.ones((2, 3)), x), "alpha"),
    (lambda x: E.Crop("evidence", pad=x), "pad"),
    (lambda x: E.Noise(x), "sigma"),
    (lambda x: E.Noise(0, keep=x), "keep"),
]


@pytest.mark.parametrize(("edit_of", "name"), NUMBERS)
@pytest.mark.parametrize("number", [np.float32(0.1), np.float64(0.5), np.int64(1), Fraction(1, 4)])
def test_numbers_of_any_library_are_kept_as_pythons(unchecked, edit_of, name, number):
    edit = edit_of(number)
    assert type(getattr(edit, name)) in (int, float)
    assert getattr(edit, name) == float(number)
    assert "np." not in repr(edit)
    assert "Fraction" not in repr(edit)
    again = E.from_json(edit.to_json())
    assert again == edit
    assert repr(again) == repr(edit)


@pytest.mark.parametrize(("edit_of", "name"), NUMBERS)
@pytest.mark.parametrize(
    "number", [True, np.bool_(True), "x", None, float("nan"), 10**400], ids=lambda one: repr(one)[:9]
)
def test_what_is_no_number_is_refused(unchecked, edit_of, name, number):
    with pytest.raises(E.BadEdit):
        edit_of(number)


# ---- other values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit_of", "message"),
    [
        (lambda: E.Redistribute("image", "question", 0.5, lambda *_: True), "where is None or E.Attending"),
        (lambda: E.Highlight(np.full((2, 3), np.nan)), "none of them NaN"),
        (lambda: E.Highlight(np.full((2, 3), 1.5)), r"values in \[0, 1\].*in \[1.5, 1.5\]"),
        (lambda: E.Highlight(np.full((2, 3), -0.1)), r"values in \[0, 1\]"),
        (lambda: E.Highlight([np.zeros((2, 3, 3))]), r"\(height, width\)"),
        (lambda: E.Highlight(np.zeros((2, 3, 3))), r"\(height, width\)"),
        (lambda: E.Highlight([]), "one a row"),
        (lambda: E.Highlight(np.array([["a", "b"]])), "array of numbers"),
        (lambda: E.Highlight(5), "one a row"),
        (lambda: E.Bias(keys=[(0, 0, float("nan"), 9)], value=1.0), "is no box"),
        (lambda: E.Bias(keys=[(0, 0, True, 9)], value=1.0), "is no box"),
        (lambda: E.Bias(keys=[(5, 0, 5, 9)], value=1.0), "is no box"),
        (lambda: E.Boxes(((0, 0, 9, 9),), image=-1), "counted from 0"),
        (lambda: E.Temperature(value=2.0, layers={1: 2}), "layers are 'all'"),
        (lambda: E.Temperature(value=2.0, layers=slice(0, 3, 0)), "a step that is not 0"),
        (lambda: E.Temperature(value=2.0, layers=slice(0, 1.5)), "a slice of layers"),
    ],
)
def test_a_value_that_an_edit_can_not_have_is_refused_when_it_is_written(unchecked, edit_of, message):
    with pytest.raises(E.BadEdit, match=message):
        edit_of()


def test_a_map_of_another_size_than_the_picture_is_refused(random, crowded):
    edited = random.with_edits(E.Highlight(np.zeros((4, 6))))
    with pytest.raises(E.BadEdit, match=r"row 0: expected a map .* of \(112, 112\).*found \(4, 6\)"):
        edited.cache(random.prompt(crowded[0]), "logits")
