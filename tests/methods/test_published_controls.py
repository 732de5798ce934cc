"""Heads drawn at random, to stand where a method names its own; and the other controls by their names."""

import numpy as np
import pytest
from tiny.eager import case_of

from seeing import edits as E
from seeing import methods
from seeing.edits import BadEdit
from seeing.maps import window_tokens
from seeing.methods.controls import random_windows

OWN = {1: [0, 3], 4: [2]}


def pairs(table):
    return {(layer, head) for layer, heads in table.items() for head in heads}


def test_random_heads_are_as_many_a_layer_as_asked_and_none_of_those_that_are_named(random):
    for seed in range(40):
        drawn = methods.random_heads(random, OWN, seed)
        assert {layer: len(heads) for layer, heads in drawn.items()} == {1: 2, 4: 1}
        assert not pairs(drawn) & pairs(OWN)
        assert drawn[1] == [1, 2], "of four heads two are left"
    assert {methods.random_heads(random, OWN, seed)[4][0] for seed in range(40)} == {0, 1, 3}


def test_excluded_heads_are_never_drawn(random):
    for seed in range(40):
        assert methods.random_heads(random, {4: [2]}, seed, exclude={4: [0], 1: [1]}) in ({4: [1]}, {4: [3]})
        drawn = methods.random_heads(random, 5, seed, exclude=OWN, layers=[1, 4])
        assert pairs(drawn) == {(1, 1), (1, 2), (4, 0), (4, 1), (4, 3)}


def test_a_number_of_heads_is_drawn_from_all_layers_alike(random):
    """3 of 24 heads, 400 times: chi-square with 23 degrees of freedom, 99.9 % lie below 49.7."""
    counts = np.zeros((6, 4))
    for seed in range(400):
        drawn = pairs(methods.random_heads(random, 3, seed))
        assert len(drawn) == 3
        for layer, head in drawn:
            counts[layer, head] += 1
    assert ((counts - 50) ** 2 / 50).sum() < 49.7


def test_a_draw_depends_on_the_seed_alone(random, trained):
    assert methods.random_heads(random, 4, 7) == methods.random_heads(trained, 4, 7)
    assert len({str(methods.random_heads(random, 4, seed)) for seed in range(20)}) > 15


def test_more_heads_than_there_are_is_an_error(random):
    with pytest.raises(BadEdit, match=r"3 heads .* 1 are left"):
        methods.random_heads(random, {2: [0, 1, 3]})
    with pytest.raises(BadEdit, match="0 heads"):
        methods.random_heads(random, 0)
    with pytest.raises(BadEdit, match="no layer 9"):
        methods.random_heads(random, {9: [0]})
    with pytest.raises(BadEdit, match="heads are a dict"):
        methods.random_heads(random, "some")


def test_heads_are_ablated_as_the_edit_does_it(random, crowded):
    prompt = random.prompts(crowded[:2])
    expected = random.with_edits(E.AblateHeads(OWN)).answer(prompt)
    method = methods.ablate_heads(OWN)
    assert method.about == "3 heads set to zero"
    found = method.answer(random, prompt)
    assert [one.logprob for one in found] == [one.logprob for one in expected]
    drawn = methods.ablate_heads(methods.random_heads(random, OWN)).answer(random, prompt)
    assert [one.logprob for one in drawn] != [one.logprob for one in expected]


def test_a_random_region_does_not_depend_on_the_batch(random, crowded):
    method = methods.random_region(8.0, seed=3)
    together = method.answer(random, random.prompts(crowded[:3]))
    backwards = method.answer(random, random.prompts(crowded[2::-1]))
    for answer, other in zip(together, backwards[::-1]):
        np.testing.assert_allclose(answer.token_logprobs, other.token_logprobs, atol=1e-4)
    assert method == methods.RandomAttention(8.0, (2, 2), 3)


def test_a_random_region_is_boosted_also_where_the_picture_has_keys_of_its_own():
    """In mllama: the weight of the window against the other keys is multiplied by the gain."""
    case = case_of("mllama")
    method = methods.random_region(5.0)
    edit = method.edit(case.vlm, case.batch)
    assert edit.layers == (1, 3)
    name = "text.1.attn.pattern"
    before = case.vlm.cache(case.batch, name)[name][:, :, 0].double()
    after = case.vlm.with_edits(edit).cache(case.batch, name)[name][:, :, 0].double()
    grids = case.batch.keys.grids
    for row, (grid, window) in enumerate(zip(grids, random_windows(case.batch, (2, 2), 0))):
        chosen = grid.positions[window_tokens(grid, window)]
        odds = [rows[row][:, chosen].sum(-1) for rows in (before, after)]
        grown = odds[1] / (1 - odds[1]) / (odds[0] / (1 - odds[0]))
        np.testing.assert_allclose(grown, 5.0, rtol=1e-4)
    assert len(method.answer(case.vlm, case.batch)) == 2


def test_the_oracle_is_a_boost_of_the_annotated_evidence(random, crowded):
    prompt = random.prompts(crowded[:2])
    expected = random.with_edits(E.ScaleAttention(keys="evidence", gain=3.0)).answer(prompt)
    found = methods.oracle(3.0).answer(random, prompt)
    assert [one.logprob for one in found] == [one.logprob for one in expected]
