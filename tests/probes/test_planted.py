"""Each probe names what was planted: the head, the layer, the path, and whether it is believed."""

from dataclasses import replace

import pytest
import torch
from tiny.planted import ANSWERS, KINDS, recoded
from tiny.soil import FAMILIES

from seeing import edits as E
from seeing.probes.attention.allocation import allocation
from seeing.probes.attention.evidence import evidence
from seeing.probes.believing.belief import QUADRANTS, belief
from seeing.probes.believing.wrong import wrong_attention
from seeing.probes.causal.attribution import attribution
from seeing.probes.causal.knockout import knockout
from seeing.probes.causal.patching import patching
from seeing.probes.causal.paths import direct_effects, path_patching
from seeing.probes.heads.gaze import gaze_heads
from seeing.probes.heads.localization import localization_heads
from seeing.probes.heads.scores import evidence_heads
from seeing.probes.lens.logit_lens import logit_lens
from seeing.probes.profiles.profile import profile

# ---- the plants themselves, by Hugging Face alone ----------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_model_answers_as_its_kind_does(kind, family, plant, planted_samples):
    model = plant(kind, family=family)
    given = planted_samples(24, unusual=True)
    said = list(model.vlm.answer(model.vlm.prompts(given)))
    assert said == [model.says(one) for one in given]
    right = [one in sample.answers for one, sample in zip(said, given)]
    assert all(right) if model.by_picture else not any(right)
    assert len(set(said)) == len(ANSWERS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_head_of_a_planted_model_looks_and_no_other(kind, family, plant, planted_samples):
    model = plant(kind, family=family)
    for sample in planted_samples(3, seed=1, tile=14, old=False):
        prompt = model.vlm.prompt(sample)
        row = -1 if model.looker == ":" else -2
        rows = model.attention(sample)[:, :, row]
        mass = rows[..., prompt.evidence()[0]].sum(-1)
        even = 2 / (prompt.length + 1 + row)
        assert prompt.evidence().sum() == 2
        for layer, head in torch.cartesian_prod(torch.arange(4), torch.arange(4)).tolist():
            if (layer, head) == model.looks:
                assert mass[layer, head] > 0.99
            elif (layer, head) != model.usual:
                assert mass[layer, head] <= even * (1 + 1e-4)


@pytest.mark.parametrize(("family", "cols", "left"), [("llava", 8, 2), ("qwen2_vl", 12, 0)])
def test_a_planted_picture_has_its_box_on_two_tiles_at_any_size(family, cols, left, plant, planted_samples):
    model = plant("believes", family=family)
    for sample in planted_samples(6, seed=2) + planted_samples(6, seed=2, tile=30):
        row, col = sample.meta["at"]
        grid = model.vlm.prompt(sample).grids[0]
        assert sample.image.size[0] * 2 == sample.image.size[1] * 3
        expected = [cols * row + col - left, cols * row + col - left + 1]
        assert grid.labels(sample.boxes).nonzero()[:, 0].tolist() == expected


def test_an_answer_goes_with_the_marked_tiles_and_not_with_others(plant, planted_samples):
    model = plant("believes")
    answers = [
        str(model.vlm.answer(model.vlm.prompt(planted_samples(1, seed=3, code=code, at=(4, 5))[0])))
        for code in range(len(ANSWERS))
    ]
    assert answers == list(ANSWERS)


def test_a_late_model_looks_from_the_first_word_of_its_answer(plant, planted_samples):
    model = plant("believes", late=True)
    given = planted_samples(8, seed=4, unusual=True, late=True)
    said = list(model.vlm.answer(model.vlm.prompts(given)))
    assert said == [one.answers[0] for one in given] == [model.says(one) for one in given]
    prompt = model.vlm.prompt(given[0])
    assert model.attention(given[0])[1, 2, -1, prompt.evidence()[0]].sum() < 0.03


def test_an_unknown_kind_is_refused_by_name():
    from tiny.planted import planted

    with pytest.raises(ValueError, match="no kind 'sleeps'"):
        planted("sleeps")


# ---- where attention goes ----------------------------------------------------------------------------------

LOOKING = [("believes", 1, 2), ("unbelieving", 2, 1)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "layer", "head"), LOOKING)
def test_evidence_and_profile_name_the_head_that_looks(kind, layer, head, family, plant, planted_samples):
    model = plant(kind, layer=layer, head=head, family=family)
    chosen = profile(model.vlm, planted_samples(6, seed=5), top=0.1)
    found = chosen.evidence
    expected = torch.full((4, 4), 0.5, dtype=found.auroc.dtype)
    expected[layer, head] = 1
    torch.testing.assert_close(found.auroc, expected, rtol=0, atol=1e-6)
    assert found.ranking()[0][:2] == model.looks
    assert chosen.layers == (layer,)
    assert chosen.heads(1) == {layer: [head]}


@pytest.mark.parametrize("kind", ["blind believer", "neither"])
def test_evidence_is_at_chance_where_nothing_looks(kind, plant, planted_samples):
    found = evidence(plant(kind).vlm, planted_samples(6, seed=5))
    torch.testing.assert_close(found.auroc, torch.full_like(found.auroc, 0.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_finders_name_the_head_that_looks(family, plant, planted_samples):
    model, given = plant("unbelieving", family=family), planted_samples(6, seed=5)
    gaze = gaze_heads(model.vlm, given)
    assert gaze.top(1) == {1: [2]}
    assert gaze.scores[1, 2] > 0.99
    assert evidence_heads(model.vlm, given).top(1) == {1: [2]}
    local = localization_heads(model.vlm, given, best=1)
    above = sum(one.meta["at"][0] < 7 for one in given)
    assert local.scores[1, 2] == pytest.approx(above / len(given))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_has_one_head_that_looks(family, plant, planted_samples):
    model = plant("neither", family=family)
    found = evidence(model.vlm, planted_samples(6, seed=5), stack="vision")
    expected = torch.full((3, 2), 0.5, dtype=found.auroc.dtype)
    expected[model.tower] = 1
    torch.testing.assert_close(found.auroc, expected, rtol=0, atol=1e-6)
    assert found.heads.mass[model.tower] > 0.98


def test_allocation_of_the_looking_head_is_all_evidence(plant, planted_samples):
    model, given = plant("believes"), planted_samples(6, seed=6)
    found = allocation(model.vlm, model.vlm.prompts(given))
    assert (found.of("evidence")[:, 1, 2] > 0.99).all()
    rapt = found.rapt[:, found.segments.index("evidence")]
    lengths = model.vlm.prompts(given).inputs["attention_mask"].sum(1)
    torch.testing.assert_close(rapt[:, 1, 2], lengths / 2.0, rtol=1e-3, atol=0)
    torch.testing.assert_close(rapt[:, 2], torch.ones_like(rapt[:, 2]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "late", "query"), [("two hops", False, [-2]), ("believes", True, "answer")])
def test_the_row_that_looks_is_found_where_it_is(kind, late, query, plant, planted_samples):
    model, given = plant(kind, late=late), planted_samples(6, seed=6, late=late)
    last = allocation(model.vlm, given)
    there = allocation(model.vlm, given, query, answers="given")
    assert last.of("evidence")[1, 2] < 0.03
    # Of the two rows that a late answer's tokens come from, the second looks.
    assert there.of("evidence")[1, 2] == pytest.approx(1 if kind == "two hops" else 0.5, abs=0.02)


# ---- where the answer comes from ---------------------------------------------------------------------------


def test_the_lens_shows_the_layer_that_answers(plant, planted_samples):
    model, given = plant("believes", layer=2, head=1), planted_samples(8, seed=7, unusual=True)
    found = logit_lens(model.vlm, given)
    assert (found.ranks[:, 2:, 0] == 0).all()
    assert (found.logprobs[:, 2:, 0] > -0.1).all()
    usual = [one.meta["place"] for one in given]
    for layer in range(2):
        assert [said[layer][0] for said in map(found.said, range(8))] == [ANSWERS[one] for one in usual]


def test_patching_of_heads_names_the_head_that_carries_the_answer(plant, planted_samples):
    model, given = plant("believes"), planted_samples(2, seed=8, unusual=True)
    found = patching(model.vlm, given, recoded, heads=True, spans=("last",), metric="logit_diff")
    expected = torch.zeros(4, 4)
    expected[1, 2] = 1
    torch.testing.assert_close(found.at(span="last").float(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(("direction", "family"), [("denoise", "qwen2_vl"), ("noise", "llava")])
def test_patching_of_the_stream_shows_both_hops(direction, family, plant, planted_samples):
    model, given = plant("two hops", family=family), planted_samples(2, seed=9, unusual=True)
    spans = ("evidence", "non-evidence", "question", "last")
    found = patching(model.vlm, given, recoded, spans=spans, direction=direction, metric="logit_diff")
    # resid_post: evidence until layer 1 reads it, the question until layer 3 does, then the end
    expected = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(found.effect[0].float(), expected.float(), rtol=0, atol=0.02)


def test_patching_of_heads_shows_both_hops(plant, planted_samples):
    model, given = plant("two hops"), planted_samples(2, seed=9, unusual=True)
    settings = dict(heads=True, spans=("question", "last"), layers=[1, 3], metric="logit_diff")
    found = patching(model.vlm, given, recoded, **settings)
    assert {place[:3] for place in found.top(2)} == {(1, 2, "question"), (3, 3, "last")}
    assert all(place[3] == pytest.approx(1, abs=0.02) for place in found.top(2))
    assert found.top(3)[2][3] < 0.02


def test_direct_paths_lead_from_the_last_hop_only(plant, planted_samples):
    for kind, last in (("believes", (1, 2)), ("two hops", (3, 3)), ("unbelieving", (0, 3))):
        model, given = plant(kind), planted_samples(4, seed=10, unusual=True)
        direct = direct_effects(model.vlm, given, answers="own")
        assert direct.ranking()[0][:2] == last
        assert direct.heads[last] == pytest.approx(direct.total, rel=0.35)
        if model.by_picture:
            paths = path_patching(model.vlm, given, recoded)
            assert paths.top(1)[0][:2] == last
            assert paths.top(1)[0][2] == pytest.approx(1, abs=0.02)
            assert abs(paths.top(2)[1][2]) < 0.02


FLOWS = ("evidence->question", "evidence->last", "random->last", "question->last")


#: By kind, where cutting one edge in one layer takes the answer away.
HOPS = {
    "believes": {("evidence->last", 1)},
    "unbelieving": {("question->last", 0)},
    "blind believer": {("evidence->last", 1)},
    "neither": {("question->last", 0)},
    "two hops": {("evidence->question", 1), ("question->last", 3)},
    "each way": {("evidence->last", 2)},
}


@pytest.mark.parametrize(("kind", "family"), [*zip(KINDS, [*FAMILIES, *FAMILIES, "qwen2_vl", "llava"])])
def test_knockout_finds_each_flow_in_its_layer_and_no_other(kind, family, plant, planted_samples):
    model, given = plant(kind, family=family), planted_samples(3, seed=11, unusual=True)
    found = knockout(model.vlm, given, flows=FLOWS, window=1, answers="own")
    strong = (found.percent < -50).nonzero().tolist()
    assert {(found.flows[one], found.layers[place]) for one, place in strong} == HOPS[kind]
    assert found.percent[found.flows.index("random->last")].abs().max() < 10


def test_attribution_names_the_edge_and_the_value_that_carry_the_answer(plant, planted_samples):
    model, given = plant("believes"), planted_samples(4, seed=12, unusual=True)
    found = attribution(model.vlm, given, recoded)
    assert found.top(1)[0][:3] == (1, 2, "last")
    assert found.top(1)[0][3] == pytest.approx(found.gap, rel=0.02)
    # Query heads 2 and 3 share key head 1.
    assert found.top(1, "values")[0][:3] == (1, 1, "evidence")
    covered = attribution(model.vlm, given, E.Occlude("evidence"), direction="noise")
    assert covered.top(1, "edges")[0][:3] == (1, 2, "evidence")


# ---- and whether it is believed ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def each_way(planted_samples):
    """Samples of which old places are looked away from and dark ones not believed: 2, 3, 4, 5 of a kind."""
    numbers = {(False, False): 2, (False, True): 3, (True, False): 4, (True, True): 5}
    return [
        replace(one, id=f"{one.id}, old {old}, dark {dark}")
        for (old, dark), n in numbers.items()
        for one in planted_samples(n, seed=13, unusual=True, old=old, dark=dark)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_whose_attention_is_wrong_are_counted_apart(family, plant, each_way):
    model = plant("each way", family=family)
    blind = E.Knockout(keys="evidence", layers=[2])
    frame = wrong_attention(model.vlm, each_way, {"blind": blind}, layers=[1], batch_size=5).to_frame()
    found = {(row.group, row.method): row for row in frame.itertuples()}
    # old places are looked away from, dark ones answered by what is usual, which is wrong here
    for group, n, right in (("AUROC < 0.5", 9, 4), ("AUROC ≥ 0.5", 5, 2)):
        assert found[group, "base"].n == n
        assert found[group, "base"].accuracy == pytest.approx(right / n)
        assert (found[group, "blind"].fixed, found[group, "blind"].broken) == (0, right)


@pytest.mark.parametrize("family", FAMILIES)
def test_belief_puts_every_sample_into_its_quadrant(family, plant, each_way):
    model = plant("each way", family=family)
    table = belief(model.vlm, each_way, layers=[1], draws=2, batch_size=5).table()
    assert table["quadrant"].tolist() == list(QUADRANTS)
    assert table["n"].tolist() == [2, 3, 4, 5]
    # A dark place is answered by what is usual, which is wrong here.
    assert table["accuracy"].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("kind", "late", "quadrant"),
    [
        ("believes", False, 0),
        ("unbelieving", False, 1),
        ("blind believer", False, 2),
        ("neither", False, 3),
        # These look from elsewhere than the last token of the prompt, which is all that counts as seen.
        ("two hops", False, 2),
        ("believes", True, 2),
    ],
)
def test_belief_names_the_kind_of_each_model(kind, late, quadrant, plant, planted_samples):
    model, given = plant(kind, late=late), planted_samples(3, seed=14, unusual=True, late=late)
    found = belief(model.vlm, given, heads={1: [2]}, draws=2)
    assert found.quadrant == (QUADRANTS[quadrant],) * 3
    assert found.correct.tolist() == [model.by_picture] * 3
    drops = found.evidence_drop if model.by_picture else found.evidence_drop.abs()
    assert (drops > 2).all() if model.by_picture else (drops < 0.02).all()
    assert found.control_drop.abs().max() < 0.2
    # Where all 64 tokens tie for the top, two of them are evidence.
    assert found.pointing.tolist() == [1 if quadrant < 2 else 2 / 64] * 3
