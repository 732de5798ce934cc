"""When attention is wrong: planted samples of known counts, methods once and again, pictures and turns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from tiny import planted as garden

from seeing import edits as E
from seeing import methods, probes
from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit
from seeing.maps import highlight

LOOKER = (1, 2)
TILE = garden.TILE


def elsewhere(sample):
    """The sample with its box on two tiles that are not marked."""
    row, col = sample.meta["at"]
    row, col = (row + 3) % 8, 2 + (col + 1) % 6
    box = (col * TILE, row * TILE, (col + 2) * TILE, (row + 1) * TILE)
    return replace(sample, id=f"{sample.id} elsewhere", boxes=(box,))


def usual(sample):
    """The sample with the place's usual answer as the right one, which the picture contradicts."""
    return replace(sample, id=f"{sample.id} usual", answers=(garden.ANSWERS[sample.meta["place"]],))


@pytest.fixture(scope="module")
def model(plant):
    return plant("believes", *LOOKER)


@pytest.fixture(scope="module")
def samples(planted_samples):
    """Looks and is right: 3; looks, and the usual answer would be right: 1; looks elsewhere: 2 and 2."""
    one, two, three, four, five, six, seven, eight = planted_samples(8, seed=3, unusual=True)
    looks = [one, two, three, usual(four)]
    misses = [elsewhere(five), elsewhere(six), usual(elsewhere(seven)), usual(elsewhere(eight))]
    return [sample for pair in zip(looks, misses) for sample in pair]


@pytest.fixture(scope="module")
def found(model, samples):
    without_head = E.AblateHeads({LOOKER[0]: [LOOKER[1]]})
    return probes.wrong_attention(model.vlm, samples, {"ablated": without_head}, LOOKER[0], batch_size=3)


def by_hand(model, sample, layer=LOOKER[0]):
    """AUROC of the mean row over the 8 × 8 tokens that LLaVA sees, from Hugging Face's eager kernel."""
    ids = model.vlm.prompt(sample).inputs["input_ids"][0]
    row = model.attention(sample)[layer, :, -1].double().mean(0)[ids == garden.TOKEN["<image>"]]
    labels = []
    for number in range(64):
        x, y = (2 + number % 8) * TILE, number // 8 * TILE
        labels.append(
            any(x < b[2] and x + TILE > b[0] and y < b[3] and y + TILE > b[1] for b in sample.boxes)
        )
    return roc_auc_score(labels, row)


def test_each_sample_has_the_auroc_of_the_mean_row(found, model, samples):
    assert found.ids == tuple(sample.id for sample in samples)
    expected = [by_hand(model, sample) for sample in samples]
    np.testing.assert_allclose(found.auroc, expected, atol=1e-6)
    assert found.wrong.tolist() == [False, True] * 4


def test_the_planted_counts_are_in_the_table(found):
    table = found.to_frame().set_index(["group", "method"])
    columns = ["n", "accuracy", "fixed", "broken"]
    assert table.loc[("AUROC < 0.5", "base"), columns].tolist() == [4, 0.5, 0, 0]
    assert table.loc[("AUROC < 0.5", "ablated"), columns].tolist() == [4, 0.5, 2, 2]
    assert table.loc[("AUROC ≥ 0.5", "base"), columns].tolist() == [4, 0.75, 0, 0]
    assert table.loc[("AUROC ≥ 0.5", "ablated"), columns].tolist() == [4, 0.25, 1, 3]
    assert table.loc[("AUROC ≥ 0.5", "ablated"), "p"] == pytest.approx(2 * (1 + 4) / 16)
    assert table.loc[("AUROC ≥ 0.5", "ablated"), "difference"] == -0.5
    low, high = wilson_by_hand(3, 4)
    assert table.loc[("AUROC ≥ 0.5", "base"), ["low", "high"]].tolist() == pytest.approx([low, high])
    assert (table.missed == [1, 1, 0, 0]).all(), "ablating a head's values moves no attention of its layer"


def wilson_by_hand(k, n, z=1.959963984540054):
    p, centre = k / n, (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def test_answers_are_those_that_are_planted(found, model, samples):
    said = [model.says(sample) for sample in samples]
    assert found.arm("base").answers == tuple(said)
    assert found.arm("ablated").answers == tuple(garden.ANSWERS[s.meta["place"]] for s in samples)
    rows = found.samples_frame().set_index(["sample", "method"])
    assert len(rows) == 16
    assert rows.loc[(samples[7].id, "ablated"), "correct"]
    assert not rows.loc[(samples[7].id, "base"), "correct"]
    assert rows.loc[(samples[7].id, "base"), "wrong_attention"]
    with pytest.raises(KeyError, match="ablated"):
        found.arm("vea")


def test_a_threshold_parts_the_samples_elsewhere(model, samples):
    found = probes.wrong_attention(model.vlm, samples, layers=LOOKER[0], threshold=0.4)
    assert not found.wrong.any()
    table = found.to_frame().set_index("group")
    assert table.loc["AUROC < 0.4", "n"] == 0
    assert math.isnan(table.loc["AUROC < 0.4", "accuracy"])
    assert table.loc["AUROC ≥ 0.4", "accuracy"] == 0.625


# ---- applied again -----------------------------------------------------------------------------------------


def test_vea_again_dims_the_dimmed_picture_by_a_map_of_it(trained, crowded):
    """The same with pictures changed by hand, one after the other, and asked of the model as it is."""
    method = methods.vea([3, 4], alpha=0.3)
    samples = [replace(s, image=s.image.crop((0, 0, 112, 98))) for s in crowded[:4] if s.boxes[0][3] <= 98][
        :2
    ]
    found = probes.wrong_attention(trained, samples, method, [3, 4], times=(1, 2))
    assert [arm.name for arm in found.arms] == ["base", "Vea", "Vea ×2"]
    for number, sample in enumerate(samples):
        template = None
        for applied in (1, 2):
            asked = trained.prompt(sample, template=template)
            sample = replace(sample, image=highlight(sample.image, method.maps(trained, asked)[0], 0.3))
            template = "vea"
            shown = probes.wrong_attention(trained, sample, layers=[3, 4], template=template)
            arm = found.arm("Vea", applied)
            assert arm.answers[number] == shown.arm("base").answers[0]
            assert arm.auroc[number] == pytest.approx(float(shown.auroc[0]), abs=1e-6)
    once, twice = found.arm("Vea", 1).auroc, found.arm("Vea", 2).auroc
    assert (once - twice).abs().max() > 1e-3
    assert (once - found.auroc).abs().max() > 1e-3


def test_a_boost_in_the_pass_again_is_the_product_of_its_gains(trained, crowded):
    boost = methods.BoostInPass({2: [0], 3: [1]}, (4, 5), gain=3.0)
    twice = probes.wrong_attention(trained, crowded[:3], {"boost": boost}, [4, 5], times=2)
    square = methods.BoostInPass({2: [0], 3: [1]}, (4, 5), gain=9.0)
    once = probes.wrong_attention(trained, crowded[:3], {"boost": square}, [4, 5])
    np.testing.assert_allclose(twice.arm("boost", 2).auroc, once.arm("boost").auroc, atol=1e-6)
    assert twice.arm("boost", 2).answers == once.arm("boost").answers
    assert (twice.auroc - once.arm("boost").auroc).abs().max() > 1e-3


def test_edits_again_are_added_to_those_that_are_there(trained, crowded):
    noise = E.Noise(sigma=0.1, seed=1)
    found = probes.wrong_attention(trained, crowded[:4], {"noise": noise}, 4, times=(1, 2))
    both = trained.with_edits(noise + noise)
    assert found.arm("noise", 2).answers == tuple(map(str, both.answer(trained.prompts(crowded[:4]))))


def test_methods_of_every_kind_answer(model, samples):
    class Answers:
        def answer(self, vlm, prompt):
            return vlm.with_edits(E.AblateHeads({1: [2]})).answer(prompt)

    def blunt(vlm, prompt):
        return ["0"] * len(prompt)

    look = methods.SecondLook({1: [2]}, gain=2.0, layers=[2, 3], window=(1, 2))
    tried = {"object": Answers(), "blunt": blunt, "look": look, "base method": methods.Base()}
    found = probes.wrong_attention(model.vlm, samples, tried, [1])
    assert found.arm("object").answers == tuple(garden.ANSWERS[s.meta["place"]] for s in samples)
    assert found.arm("blunt").answers == ("0",) * 8
    assert found.arm("blunt").auroc.isnan().all()
    assert found.arm("look").answers == found.arm("base").answers == found.arm("base method").answers
    np.testing.assert_allclose(found.arm("look").auroc, found.auroc, atol=1e-6)
    alone = probes.wrong_attention(model.vlm, samples[:2], blunt, [1])
    assert [arm.method for arm in alone.arms] == ["base", "blunt"]


def test_a_method_that_crops_the_evidence_away_shows_it_no_more(model, samples):
    crop = E.Crop((2 * TILE, 0, 4 * TILE, 2 * TILE))
    found = probes.wrong_attention(model.vlm, samples[:4], {"crop": crop}, [1])
    gone = [sample.boxes[0][0] >= 4 * TILE or sample.boxes[0][1] >= 2 * TILE for sample in samples[:4]]
    assert any(gone)
    assert found.arm("crop").auroc[gone].isnan().all()


# ---- pictures and turns ------------------------------------------------------------------------------------


def unmarked(sample):
    pixels = np.array(sample.image)
    pixels[..., 2] = 0
    return Image.fromarray(pixels)


def test_among_other_pictures_the_first_is_the_one_that_is_asked_about(model, planted_samples):
    alone = planted_samples(4, seed=5, unusual=True)
    among = [replace(s, id=f"{s.id} +1", meta={**s.meta, "images": [unmarked(s)]}) for s in alone]
    marked = [
        replace(s, id=f"{s.id} +2", meta={**s.meta, "images": [unmarked(s), unmarked(s)]}) for s in alone[:2]
    ]
    found = probes.wrong_attention(model.vlm, [*alone, *among, *marked], layers=[1], batch_size=4)
    assert found.pictures.tolist() == [1] * 4 + [2] * 4 + [3] * 2
    assert found.arm("base").correct.all(), "the mark is in the first picture only"
    for number, sample in enumerate([*alone, *among, *marked]):
        prompt = model.vlm.prompt([sample.image, *sample.meta.get("images", ())], sample.question)
        with torch.no_grad():
            row = model.eager(**prompt.inputs, output_attentions=True).attentions[1][0, :, -1].mean(0)
        images = row[prompt.inputs["input_ids"][0] == garden.TOKEN["<image>"]]
        assert found.first_share[number] == pytest.approx(float(images[:64].sum() / images.sum()), abs=1e-6)
    assert (found.first_share[:4] == 1).all()
    assert (found.first_share[4:] < 0.9).all()
    table = found.to_frame("pictures")
    assert table.group.tolist() == ["1 picture", "2 pictures", "3 pictures"]
    assert table.n.tolist() == [4, 4, 2]


def test_behind_earlier_turns_the_last_question_is_answered(model, planted_samples):
    fresh = planted_samples(3, seed=6, unusual=True)
    turns = [("what is on the marked tile in the barn ?", "3"), ("what is on the tile ?", "1")]
    later = [replace(s, id=f"{s.id} later", meta={**s.meta, "turns": turns}) for s in fresh]
    found = probes.wrong_attention(model.vlm, [*fresh, *later], layers=[1])
    assert found.turns.tolist() == [0, 0, 0, 2, 2, 2]
    for number, sample in enumerate(later):
        prompt = model.vlm.prompt(sample, turns=turns)
        assert found.arm("base").answers[3 + number] == model.vlm.answer(prompt)
    assert found.to_frame("turns").group.tolist() == ["0 earlier turns", "2 earlier turns"]


def test_a_turn_that_the_model_does_not_take_is_left_out(model, samples):
    odd = replace(samples[0], id="odd", meta={**samples[0].meta, "turns": [("what violin ?", "3")]})
    found = probes.wrong_attention(model.vlm, [samples[1], odd, samples[2]], layers=[1])
    assert found.ids == (samples[1].id, samples[2].id)
    assert found.left_out[0].id == "odd"
    assert "violin" in found.left_out[0].reason


def test_one_picture_stands_for_itself_and_what_is_no_company_is_left_out(model, samples):
    one, two = samples[0], unmarked(samples[1])

    def among(name, **meta):
        return replace(one, id=name, meta={**one.meta, **meta})

    good = [among("picture", images=two), among("list", images=[two]), among("none", images=None, turns=None)]
    bad = [among("text", turns=["ab"]), among("string", turns="ab"), among("number", images=3)]
    bad.append(among("once", images=iter([two])))
    found = probes.wrong_attention(model.vlm, [*good, *bad, samples[2]], layers=[1])
    assert found.ids == ("picture", "list", "none", samples[2].id)
    assert found.pictures.tolist() == [2, 2, 1, 1]
    assert found.auroc[0] == pytest.approx(float(found.auroc[1]), abs=1e-6)
    reasons = dict(found.left_out)
    assert "got 'ab'" in reasons["text"]
    assert "pairs (question, answer)" in reasons["string"]
    assert "got int" in reasons["number"]
    assert "got list_iterator" in reasons["once"]


def test_among_puts_each_sample_before_those_that_follow(samples):
    found = list(probes.among(iter(samples), 3))
    assert [sample.id for sample in found] == [sample.id for sample in samples]
    for number, sample in enumerate(found):
        others = [samples[(number + step) % len(samples)].image for step in (1, 2)]
        assert list(sample.meta["images"]) == others
        assert sample.meta["code"] == samples[number].meta["code"]
    assert "images" not in samples[0].meta
    assert list(probes.among(samples, 1))[2].meta["images"] == ()
    with pytest.raises(ValueError, match="found 8"):
        list(probes.among(samples, 9))


# ---- what can't be counted ---------------------------------------------------------------------------------


def test_samples_without_a_look_are_left_out(model, samples):
    bald = EvidenceSample("bald", samples[0].image, samples[0].question, ("1",), ())
    cut = replace(samples[0], id="cut", boxes=((0, 0, TILE, TILE),))
    found = probes.wrong_attention(model.vlm, [bald, samples[0], cut], layers=[1])
    assert found.ids == (samples[0].id,)
    reasons = dict(found.left_out)
    assert "boxes" in reasons["bald"]
    assert "sees the evidence" in reasons["cut"]
    with pytest.raises(ValueError, match="could see"):
        probes.wrong_attention(model.vlm, [bald, cut], layers=[1])


def test_what_does_not_fit_is_refused_before_anything_runs(model, samples, trained, crowded):
    vlm = model.vlm
    with pytest.raises(ValueError, match="no published profile"):
        probes.wrong_attention(vlm, samples)
    with pytest.raises(ValueError, match="profile of"):
        probes.wrong_attention(vlm, samples, layers=probes.profile(trained, crowded[:2]))
    with pytest.raises(BadEdit, match="no layer 4"):
        probes.wrong_attention(vlm, samples, layers=[4])
    with pytest.raises(ValueError, match="only answers"):
        probes.wrong_attention(vlm, samples, {"f": lambda vlm, prompt: []}, [1], times=2)
    with pytest.raises(TypeError, match="got int"):
        probes.wrong_attention(vlm, samples, {"f": 3}, [1])
    with pytest.raises(ValueError, match="another name"):
        probes.wrong_attention(vlm, samples, {"base": methods.Base()}, [1])
    with pytest.raises(ValueError, match="once or more"):
        probes.wrong_attention(vlm, samples, layers=[1], times=0)
    with pytest.raises(ValueError, match="expected a text for each"):
        probes.wrong_attention(vlm, samples, {"f": lambda vlm, prompt: ["7"]}, [1])
    with pytest.raises(ValueError, match="parted by"):
        probes.wrong_attention(vlm, samples[:1], layers=[1]).groups("colour")


def test_numbers_that_are_none_and_methods_that_say_nothing_are_told(model, samples, unchecked):
    for times in (1.5, (1, 2.5), "2", True):
        with pytest.raises(ValueError, match="once or more"):
            probes.wrong_attention(model.vlm, samples, layers=[1], times=times)
    for threshold in (math.nan, "0.5", None):
        with pytest.raises(ValueError, match="a threshold is an AUROC"):
            probes.wrong_attention(model.vlm, samples, layers=[1], threshold=threshold)
    with pytest.raises(ValueError, match="'silent' gave None for 2 prompt"):
        probes.wrong_attention(model.vlm, samples[:2], {"silent": lambda vlm, prompt: None}, [1])
    once = probes.wrong_attention(model.vlm, samples[:1], methods.Base(), [1], times=np.int64(1))
    assert [arm.times for arm in once.arms] == [1, 1]


# ---- figure ------------------------------------------------------------------------------------------------


def test_the_figure_draws_each_part_of_the_samples(found):
    wrong, right = found.figure(dark=True).data
    np.testing.assert_allclose(wrong.x, [0.5, 0.5])
    np.testing.assert_allclose(right.x, [0.75, 0.25])
    low, high = wilson_by_hand(1, 4)
    np.testing.assert_allclose(right.error_x.array[1], high - 0.25)
    np.testing.assert_allclose(right.error_x.arrayminus[1], 0.25 - low)
    assert right.text[0] == ""
    assert right.text[1].strip() == "+1 −3"
    assert wrong.name == "AUROC &lt; 0.5 (n = 4)"
    assert "n = 4 + 4" in found.figure().layout.title.text
