"""A model read as "generic": what works without places, and what is refused rather than read wrongly."""

import functools

import pytest
import torch
from tiny.merged import BUILDERS as MERGED
from tiny.packed import BUILDERS as PACKED
from tiny.tiled import BUILDERS as TILED
from tiny.tiles_last import BUILDERS as TILES_LAST
from tiny.vip import BUILDERS as VIP

import seeing
from seeing import edits as E
from seeing import probes
from seeing.data.samples import EvidenceSample
from seeing.families import FamilyContractError
from seeing.prompt import BadPrompt

QUESTION = "what digit is on the red square ?"

#: Another kind of text model, tower and bridge each; Gemma 4 has heads of several sizes.
READ = ("vipllava", "gemma3", "gemma4", "internvl", "pixtral")
REFUSED = {
    "llava_next": (FamilyContractError, r"'generic'.*at 'projector.out' found \d+ features, expected \d+"),
    "mllama": (FamilyContractError, r"MllamaTextModel reads pictures by cross-attention.*cross_grid"),
    "qwen2_vl": (FamilyContractError, r"VisionAttention takes the patches .* packed .*patch_order"),
    "qwen3_5": (FamilyContractError, r"Qwen3_5VisionAttention takes the patches .* packed .*patch_order"),
    "paligemma": (BadPrompt, "the processor changed the text behind"),
}


@functools.cache
def generic(name):
    return seeing.load((TILED | TILES_LAST | PACKED | MERGED | VIP)[name](), family="generic")


read = pytest.mark.parametrize("case", READ, indirect=True)


@read
def test_names_and_values_are_those_of_the_family(case, picture):
    """The proof ran at load; here they are held against the family that was written for the model."""
    vlm = generic(case.name)
    assert vlm.family.name == "generic"
    assert vlm.names() == case.vlm.names()
    found = vlm.cache(vlm.prompt(picture(), QUESTION), vlm.names())
    for site, value in case.vlm.cache(case.prompt(question=QUESTION), vlm.names()).items():
        assert torch.equal(found[site], value), site


@read
def test_allocation_and_edits_by_span_work(case, picture):
    vlm = generic(case.name)
    prompt = vlm.prompt(picture(), QUESTION)
    mine, its = (
        probes.allocation(one, two)
        for one, two in ((vlm, prompt), (case.vlm, case.prompt(question=QUESTION)))
    )
    for span in ("image", "question", "template"):
        assert torch.equal(mine.of(span), its.of(span))
    cut = vlm.with_edits(E.Knockout(keys="image"))
    kept, lost = (one.cache(prompt, "logits")["logits"][:, -1] for one in (vlm, cut))
    assert not torch.equal(kept, lost)


@read
def test_image_tokens_have_no_place_and_evidence_says_so(case, picture):
    vlm = generic(case.name)
    (grid,) = vlm.prompt(picture(), QUESTION).grids
    assert len(grid) > 1
    assert not grid.placed.any()
    assert not grid.levels
    sample = EvidenceSample("a", picture(), QUESTION, ("1",), ((20, 12, 50, 40),))
    with pytest.raises(ValueError, match="no image token sees the evidence"):
        probes.evidence(vlm, [sample])
    with pytest.raises(ValueError, match="no image token sees the evidence"):
        probes.allocation(vlm, vlm.prompt(picture(), QUESTION, boxes=[(20, 12, 50, 40)]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_can_not_read_is_refused_with_the_reason(name):
    kind, says = REFUSED[name]
    with pytest.raises(kind, match=says):
        generic(name)
