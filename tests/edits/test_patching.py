"""Patches that can not be: what was read is not what would be put in."""

import pytest
import torch

from seeing import edits as E


@pytest.fixture
def prompt(random, crowded):
    return random.prompt(crowded[0])


def test_rows_of_another_query_are_not_put_in_the_last_ones_place(random, prompt):
    name = "text.2.attn.pattern"
    for queries in ([70], "question"):
        with pytest.raises(E.BadEdit, match="'last' or 'all'"):
            E.Patch(name, random.cache(prompt, name, queries=queries))
    for queries in ("last", "all"):
        patched = random.with_edits(E.Patch(name, random.cache(prompt, name, queries=queries)))
        logits = [vlm.cache(prompt, "logits")["logits"] for vlm in (patched, random)]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("site", "more", "message"),
    [
        ("text.2.attn.scores", {}, "text.2.attn.pattern can"),
        ("vision.1.resid_post", {"positions": "last"}, "no positions of the sequence"),
        ("text.2.resid_post", {"heads": [0]}, "has no heads"),
        ("text.2.attn.z", {"heads": [9]}, "no head 9"),
        ("text.2.attn.z", {"heads": {2: [0]}}, "one Patch a layer"),
        ("text.2.resid_post", {"when": "both"}, "when is 'prompt'"),
        ("text.2.resid_post", {"positions": E.seen(layers=[0])}, "looks at a run"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(random, prompt, site, more, message):
    cache = random.cache(prompt, site)
    with pytest.raises(E.BadEdit, match=message):
        random.with_edits(E.Patch(site, cache, **more))


def test_a_source_that_lacks_the_site_is_refused(random, prompt):
    cache = random.cache(prompt, "text.1.resid_post")
    with pytest.raises(E.BadEdit, match=r"no text\.2\.attn\.z"):
        E.AblateHeads({2: [0]}, "mean", cache)
    with pytest.raises(E.BadEdit, match=r"has no text\.0\.resid_post"):
        random.with_edits(E.Patch("text.0-1.resid_post", cache))


def test_a_source_without_its_prompt_goes_in_as_a_whole(random, prompt, crowded):
    """Only where nothing has to be aligned."""
    cache = dict(random.cache(random.prompt(crowded[1]), "text.2.resid_post"))
    whole = random.with_edits(E.Patch("text.2.resid_post", cache))
    found = whole.cache(prompt, "text.2.resid_post")["text.2.resid_post"]
    assert torch.equal(found, cache["text.2.resid_post"])
    some = random.with_edits(E.Patch("text.2.resid_post", cache, "question"))
    with pytest.raises(E.BadEdit, match="does not know its prompt"):
        some.cache(prompt, "logits")
    shorter = E.Patch("text.2.resid_post", {"text.2.resid_post": cache["text.2.resid_post"][:, 1:]})
    with pytest.raises(E.BadEdit, match="does not know its prompt"):
        random.with_edits(shorter).cache(prompt, "logits")
