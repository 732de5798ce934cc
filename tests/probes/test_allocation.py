"""Attention by segment: masses add up, and equal what is summed by hand over eager rows."""

import numpy as np
import pytest
import torch

from seeing import probes
from seeing.probes.allocation import segments_of
from seeing.prompt import BadPrompt

LONGER = "what digit is on the red square on the blue circle ?"


@pytest.fixture(scope="module")
def shares(random, crowded):
    return probes.allocation(random, random.prompt(crowded[0]))


def by_hand(attention, labels, query=-1):
    """(mass, RAPT) of each segment, from (layer, head, query, key): <bos>, 64 of the image, the question."""
    place = np.arange(attention.shape[-1])[: query + 1 or None]  # what a causal row can see
    row = attention[:, :, query, place]
    labels = np.pad(labels, (1, attention.shape[-1] - 65))[place]
    image = (place >= 1) & (place < 65)
    masks = {
        "image": image,
        "question": place >= 65,
        "template": place == 0,
        "evidence": labels,
        "non-evidence": image & ~labels,
    }
    return {
        name: (row[..., mask].sum(-1), row[..., mask].sum(-1) / mask.sum() / row.mean(-1))
        for name, mask in masks.items()
    }


@pytest.mark.parametrize("query", [-1, 70, 10])
def test_mass_and_rapt_are_those_of_eager_rows(random, bare, mixed, labels_of, query):
    for sample in mixed[:3]:
        shares = probes.allocation(random, random.prompt(sample), query=query)
        truth = by_hand(bare.attention(sample.image, sample.question), labels_of(sample), query)
        assert set(shares.segments) == set(truth)
        for place, segment in enumerate(shares.segments):
            np.testing.assert_allclose(shares.mass[0, place], truth[segment][0], atol=1e-5)
            np.testing.assert_allclose(shares.rapt[0, place], truth[segment][1], rtol=1e-5, atol=1e-4)


def test_the_segments_that_part_a_row_sum_to_one(shares):
    total = shares.of("image") + shares.of("question") + shares.of("template")
    torch.testing.assert_close(total, torch.ones(1, 6, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        shares.of("evidence") + shares.of("non-evidence"), shares.of("image"), atol=1e-5, rtol=0
    )
    assert (shares.mass > 0).all()


def test_uniform_attention_gives_every_segment_its_share(uniform, crowded):
    shares = probes.allocation(uniform, uniform.prompt(crowded[0]))
    torch.testing.assert_close(shares.rapt, torch.ones_like(shares.rapt), atol=1e-5, rtol=0)
    assert torch.allclose(shares.of("image"), torch.tensor(64 / 73))


def test_without_boxes_there_is_no_evidence_segment(random, crowded):
    shares = probes.allocation(random, random.prompt(crowded[0].image, crowded[0].question))
    assert shares.segments == ("image", "question", "template")
    with pytest.raises(KeyError, match="image, question, template"):
        shares.of("evidence")


def test_evidence_that_the_crop_cut_off_is_an_error(random, crowded, paste):
    with pytest.raises(BadPrompt, match="no image token sees"):
        probes.allocation(random, random.prompt(paste(crowded[1], (336, 112), (0, 0))))


def test_two_pictures_are_two_segments(random, bare, crowded):
    one, two = crowded[0].image, crowded[1].image
    shares = probes.allocation(random, random.prompt([one, two], LONGER))
    assert {"image", "image:0", "image:1"} <= set(shares.segments)
    inputs = bare.processor(
        text=[f"<bos> <image> <image> {LONGER}"],
        images=[one, two],
        add_special_tokens=False,
        return_tensors="pt",
    )
    with torch.no_grad():
        row = torch.cat(bare.model(**inputs, output_attentions=True).attentions)[:, :, -1]
    torch.testing.assert_close(shares.of("image:0")[0], row[..., 1:65].sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(shares.of("image:1")[0], row[..., 65:129].sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        shares.of("image:0") + shares.of("image:1"), shares.of("image"), atol=1e-5, rtol=0
    )


def test_padding_is_in_no_segment_and_does_not_count(random, crowded):
    asked = [(crowded[0].image, crowded[0].question), (crowded[1].image, LONGER)]
    batch = random.prompts(asked)
    padding = batch.inputs["attention_mask"] == 0
    assert padding.sum(1).tolist() == [4, 0]
    for mask in segments_of(batch).values():
        assert not (mask & padding).any()
    together = probes.allocation(random, batch)
    for row, pair in enumerate(asked):
        alone = probes.allocation(random, random.prompt(*pair))
        torch.testing.assert_close(together.mass[row], alone.mass[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.rapt[row], alone.rapt[0], atol=1e-4, rtol=0)


def test_rapt_by_layer_is_that_of_the_mean_row(shares):
    torch.testing.assert_close(shares.rapt_by_layer(), shares.rapt.mean(-1))
    assert shares.rapt_by_layer().shape == (1, 5, 6)


def test_to_frame_has_a_row_for_every_number(shares):
    frame = shares.to_frame()
    assert list(frame.columns) == ["item", "segment", "layer", "head", "mass", "rapt"]
    assert len(frame) == shares.mass.numel()
    at = frame.set_index(["item", "segment", "layer", "head"])
    place = shares.segments.index("question")
    assert at.loc[(0, "question", 4, 2), "mass"] == shares.mass[0, place, 4, 2]
    assert at.loc[(0, "question", 4, 2), "rapt"] == shares.rapt[0, place, 4, 2]
