"""The grammar of names: parsing, order, globs and ranges, TransformerLens' spellings, and what errors say."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seeing.names import LAYER_SITES, Name, UnknownName, expand, from_transformer_lens

OUTSIDE = ["vision.embed", "projector.in", "projector.out", "text.embed", "text.norm", "logits"]


def every_name(vision: int = 2, text: int = 3) -> list[str]:
    """All names of a model, in the order of a forward pass, written out by hand."""
    return [
        "vision.embed",
        *(f"vision.{layer}.{site}" for layer in range(vision) for site in LAYER_SITES),
        "projector.in",
        "projector.out",
        "text.embed",
        *(f"text.{layer}.{site}" for layer in range(text) for site in LAYER_SITES),
        "text.norm",
        "logits",
    ]


@pytest.mark.parametrize("text", every_name())
def test_a_name_survives_parsing(text):
    assert str(Name.parse(text)) == text


def test_a_parsed_name_knows_its_parts():
    name = Name.parse("text.12.attn.pattern")
    assert (name.stack, name.layer, name.site) == ("text", 12, "attn.pattern")
    assert Name.parse("logits") == Name("logits")
    assert Name.parse("logits").stack is None


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 12), st.integers(1, 12))
def test_names_sort_in_the_order_of_a_forward_pass(rng: random.Random, vision, text):
    """Layers by number, not as text: 10 comes after 9."""
    names = every_name(vision, text)
    shuffled = rng.sample(names, len(names))
    assert sorted(shuffled, key=Name.parse) == names


def test_order_within_a_layer_is_that_of_the_computation():
    sites = [
        *("resid_pre", "attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.z", "attn.result"),
        *("attn_out", "resid_mid", "mlp.post", "mlp_out", "resid_post"),
    ]
    names = [Name.parse(f"text.0.{site}") for site in sites]
    assert [str(name) for name in sorted(set(names))] == [str(name) for name in names]


def test_only_scores_and_pattern_have_a_query_axis_to_cut():
    rows = [name for name in every_name(1, 1) if Name.parse(name).has_rows]
    assert rows == [
        "vision.0.attn.scores",
        "vision.0.attn.pattern",
        "text.0.attn.scores",
        "text.0.attn.pattern",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "text.3",
        "text.-1.resid_pre",
        "text.x.resid_pre",
        "txet.0.attn.z",
        "text.0.attn",
        "logits.0",
        "text.0.resid_post.x",
        "vision.norm ",
    ],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(UnknownName):
        Name.parse(text)


# -- globs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("text.1.resid_post", ["text.1.resid_post"]),
        ("text.*.attn.pattern", ["text.0.attn.pattern", "text.1.attn.pattern", "text.2.attn.pattern"]),
        ("text.1-2.resid_pre", ["text.1.resid_pre", "text.2.resid_pre"]),
        ("text.1-99.resid_pre", ["text.1.resid_pre", "text.2.resid_pre"]),
        ("text.[02].mlp_out", ["text.0.mlp_out", "text.2.mlp_out"]),
        ("text.?.attn.z", ["text.0.attn.z", "text.1.attn.z", "text.2.attn.z"]),
        ("*.0.attn_out", ["vision.0.attn_out", "text.0.attn_out"]),
        ("projector.*", ["projector.in", "projector.out"]),
        (["logits", "text.0.attn.q", "logits"], ["text.0.attn.q", "logits"]),
        ("text.0-1.attn.[qk]", ["text.0.attn.q", "text.0.attn.k", "text.1.attn.q", "text.1.attn.k"]),
        ("blocks.*.hook_resid_mid", ["text.0.resid_mid", "text.1.resid_mid", "text.2.resid_mid"]),
        ("blocks.1-2.attn.hook_z", ["text.1.attn.z", "text.2.attn.z"]),
    ],
)
def test_globs_and_ranges_take_what_exists_in_order(wanted, expected):
    assert expand(wanted, every_name()) == expected


def test_a_layer_range_is_numbers_not_digits():
    names = every_name(text=13)
    assert expand("text.9-11.resid_pre", names) == [f"text.{layer}.resid_pre" for layer in (9, 10, 11)]
    assert expand("text.1.resid_pre", names) == ["text.1.resid_pre"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(every_name()), min_size=1))
def test_written_names_come_back_once_each_in_order(wanted):
    assert expand(wanted, every_name()) == sorted(set(wanted), key=every_name().index)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("text.3.resid_post", "layers 0-2, counted from 0"),
        ("text.99.attn.pattern", "layers 0-2, counted from 0"),
        ("text.0.attn.patern", "text.0.attn.pattern"),
        ("text.0.resid-post", "text.0.resid_post"),
        ("logit", "close to it: logits"),
        ("text.*.attn.foo", "glob matches no name"),
        ("text.7-9.resid_pre", "no name"),
        ("text.2-1.resid_pre", "no name"),
        ("blocks.9.attn.hook_pattern", "layers 0-2"),
        (["logits", "nonsense"], "nonsense"),
        ([], "no name was asked for"),
    ],
)
def test_a_name_that_does_not_exist_is_an_error_that_helps(wanted, said):
    with pytest.raises(UnknownName) as error:
        expand(wanted, every_name())
    assert said in str(error.value)


def test_a_site_that_only_some_layers_have_says_which():
    names = [name for name in every_name(text=6) if not name.startswith("text.3.attn.")]
    with pytest.raises(UnknownName, match=r"'attn.z' in layers 0-2, 4-5"):
        expand("text.3.attn.z", names)
    without = [name for name in names if not name.endswith("resid_mid")]
    with pytest.raises(UnknownName, match="has no 'resid_mid' in its text stack"):
        expand("text.0.resid_mid", without)


def test_names_are_strings():
    with pytest.raises(TypeError):
        expand([3], every_name())


# -- TransformerLens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.3.attn.hook_pattern", "text.3.attn.pattern"),
        ("blocks.3.attn.hook_attn_scores", "text.3.attn.scores"),
        ("blocks.12.attn.hook_z", "text.12.attn.z"),
        ("blocks.0.attn.hook_result", "text.0.attn.result"),
        ("blocks.0.attn.hook_rot_q", "text.0.attn.q"),
        ("blocks.0.attn.hook_v", "text.0.attn.v"),
        ("blocks.0.hook_resid_pre", "text.0.resid_pre"),
        ("blocks.0.hook_resid_mid", "text.0.resid_mid"),
        ("blocks.0.hook_resid_post", "text.0.resid_post"),
        ("blocks.0.hook_attn_out", "text.0.attn_out"),
        ("blocks.0.hook_mlp_out", "text.0.mlp_out"),
        ("blocks.0.mlp.hook_post", "text.0.mlp.post"),
        ("ln_final.hook_normalized", "text.norm"),
        ("unembed.hook_logits", "logits"),
        ("hook_embed", "text.embed"),
        ("text.0.attn.z", "text.0.attn.z"),
        ("xblocks.0.attn.hook_z", "xblocks.0.attn.hook_z"),
    ],
)
def test_the_old_spelling_resolves(theirs, ours):
    assert from_transformer_lens(theirs) == ours


def test_an_old_spelling_parses_to_the_same_name():
    assert Name.parse("blocks.3.attn.hook_pattern") == Name.parse("text.3.attn.pattern")
