"""Edits of heads and of the stream, and patches, in every family, against hooks and weights of the twin."""

import contextlib

import pytest
import torch
from tiny.hand import close, moved, rows_by_hand

from seeing import edits as E

RED, CYAN, LONGER = (
    "what digit is on the blue square ?",
    "what digit is on the cyan square ?",
    "what digit is on the red square on the blue circle ?",
)
#: Layers behind read what a patched stream does not hold: the picture, or keys of layers before.
LAST_ONLY = ("mllama", "gemma4", "qwen3_vl", "qwen3_vl_moe")


@pytest.fixture(scope="module")
def batch(case, picture):
    """Two rows, the first padded, pictures of one size."""
    prompt = case.vlm.prompts([(picture(76, 52), RED), (picture(76, 52, 1), LONGER)])
    assert not prompt.inputs["attention_mask"].all()
    return prompt


@pytest.fixture(scope="module")
def one(case, picture):
    return case.vlm.prompt(picture(76, 52), RED)


@pytest.fixture(scope="module")
def other(case, picture):
    """As many tokens of each kind as `one`: another picture of the same size, another colour."""
    return case.vlm.prompt(picture(76, 52, 1), CYAN)


@pytest.fixture(scope="module")
def plain(case, one, other, batch):
    """The bare model's logits."""
    with torch.no_grad():
        return {id(prompt): case.model(**prompt.inputs).logits for prompt in (one, other, batch)}


@pytest.fixture(scope="module")
def layers(case):
    """The first layer with attention, one over the picture's keys where there is one, and the last."""
    kernels = case.vlm.sites.kernels["text"]
    return sorted({min(kernels), max(kernels), *(layer for layer in kernels if kernels[layer].cross)})


@pytest.fixture
def heads(layers):
    return {layer: [0, 2] if place else [1] for place, layer in enumerate(layers)}


def logits_of(vlm, prompt):
    return vlm.cache(prompt, "logits")["logits"]


def real(prompt):
    return prompt.inputs["attention_mask"].bool()


def compare(case, prompt, plain, edit, expected):
    """The edited logits are as expected at every token that is no padding, and not the plain ones."""
    found = logits_of(case.vlm.with_edits(edit), prompt)[real(prompt)]
    close(found, expected[real(prompt)])
    assert moved(found, plain[id(prompt)][real(prompt)])


def keep(kept, key):
    def fn(value):
        kept[key] = value.clone()
        return value

    return fn


def width(case, layer):
    return case.attention(layer).o_proj.weight.shape[1] // case.vlm.cfg.n_heads


def columns(case, layer, heads):
    size = width(case, layer)
    return torch.cat([torch.arange(head * size, head * size + size) for head in heads])


@contextlib.contextmanager
def scaled_columns(case, heads, factor):
    """The twin with these heads' columns of its output projections multiplied."""
    kept = {layer: case.attention(layer).o_proj.weight.detach().clone() for layer in heads}
    try:
        with torch.no_grad():
            for layer, some in heads.items():
                case.attention(layer).o_proj.weight[:, columns(case, layer, some)] *= factor
        yield case.twin
    finally:
        with torch.no_grad():
            for layer, weight in kept.items():
                case.attention(layer).o_proj.weight.copy_(weight)


def written(case, heads, value_of, chosen=None):
    """Hooks that put ``value_of(layer, what is there)`` into heads of the output projections' input."""
    hooks = []
    for layer, some in heads.items():
        index = columns(case, layer, some)

        def put(value, layer=layer, index=index):
            value, old = value.clone(), value
            value[..., index] = value_of(layer, old)[..., index]
            return value if chosen is None else torch.where(chosen[..., None], value, old)

        hooks.append((case.attention(layer).o_proj, "in", put))
    return hooks


def z_of(case, prompt, layers):
    """What goes into the output projections of the twin."""
    kept = {}
    hooks = [(case.attention(layer).o_proj, "in", keep(kept, layer)) for layer in layers]
    case.twin.run(prompt.inputs, hooks=hooks)
    return kept


# ---- heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0, -1.5], ids=["ablated", "scaled"])
def test_heads_scaled_are_columns_of_the_projection_scaled(case, batch, plain, heads, factor):
    edit = E.ScaleHeads(heads, factor) if factor else E.AblateHeads(heads)
    with scaled_columns(case, heads, factor) as twin:
        expected = twin.run(batch.inputs)
    compare(case, batch, plain, edit, expected)


def test_heads_scaled_by_one_change_nothing(case, batch, plain, heads):
    assert torch.equal(logits_of(case.vlm.with_edits(E.ScaleHeads(heads, 1)), batch), plain[id(batch)])


def test_heads_set_at_the_question_are_the_projections_input_set(case, batch, plain, heads, layers):
    layer = layers[-1]
    some = {layer: heads[layer]}
    value = torch.randn(len(some[layer]), width(case, layer), generator=torch.Generator().manual_seed(0))
    question = batch.spans.mask("question")

    def put(_, old):
        new = old.clone()
        new[..., columns(case, layer, some[layer])] = value.flatten()
        return new

    expected = case.twin.run(batch.inputs, hooks=written(case, some, put, question))
    compare(case, batch, plain, E.SetHeads(some, value, positions="question"), expected)


def test_heads_ablated_to_their_mean_over_the_prompt(case, batch, plain, heads):
    """Padding is no part of the mean."""
    mask = real(batch)[..., None]

    def mean(_, old):
        return ((old * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).expand_as(old)

    expected = case.twin.run(batch.inputs, hooks=written(case, heads, mean))
    compare(case, batch, plain, E.AblateHeads(heads, to="mean"), expected)


def test_heads_ablated_to_their_mean_over_other_prompts(case, one, batch, plain, heads):
    kept = z_of(case, batch, heads)
    means = {layer: kept[layer][real(batch)].mean(0) for layer in heads}
    hooks = written(case, heads, lambda layer, old: means[layer].expand_as(old))
    source = case.vlm.cache(batch, "text.*.attn.z")
    edit = E.AblateHeads(heads, to="mean", source=source)
    compare(case, one, plain, edit, case.twin.run(one.inputs, hooks=hooks))


def test_heads_resampled_write_what_they_write_in_another_prompt(case, one, other, plain, heads):
    kept = z_of(case, other, heads)
    expected = case.twin.run(one.inputs, hooks=written(case, heads, lambda layer, old: kept[layer]))
    source = case.vlm.cache(other, "text.*.attn.z")
    compare(case, one, plain, E.AblateHeads(heads, to="resample", source=source), expected)


def test_heads_resampled_at_the_picture_write_the_next_rows(case, batch, plain, heads):
    """Between rows padded differently: the n-th token of the picture has the n-th of the other's."""
    image = batch.spans.mask("image")

    def swapped(_, old):
        new = old.clone()
        new[0, image[0]], new[1, image[1]] = old[1, image[1]], old[0, image[0]]
        return new

    expected = case.twin.run(batch.inputs, hooks=written(case, heads, swapped))
    compare(case, batch, plain, E.AblateHeads(heads, to="resample", positions="image"), expected)


# ---- the stream --------------------------------------------------------------------------------------------


def unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True)


def rotated(x, v, strength, adaptive):
    factor = strength * (1 + (-(unit(x) @ unit(v))).clamp(min=0))[..., None] if adaptive else strength
    return x.norm(dim=-1, keepdim=True) * unit(unit(x) + factor * unit(v))


def project_out(x, directions):
    """Least squares: what is left of x beside its best fit by the directions."""
    flat = x.flatten(0, 1).double().T
    fit = torch.linalg.lstsq(directions.double().T, flat).solution
    return (flat - directions.double().T @ fit).T.to(x.dtype).view_as(x)


#: Name -> (the edit of a site by a vector, at some positions; the same by hand).
STREAM = {
    "Steer": (lambda site, v, at: E.Steer(site, v, 3.0, at), lambda x, v: x + 3 * v),
    "Steer, norm preserving": (
        lambda site, v, at: E.Steer(site, v, 3.0, at, norm_preserving=True),
        lambda x, v: x.norm(dim=-1, keepdim=True) * unit(x + 3 * v),
    ),
    "Rotate": (lambda site, v, at: E.Rotate(site, v, 0.8, at), lambda x, v: rotated(x, v, 0.8, True)),
    "Rotate, not adaptive": (
        lambda site, v, at: E.Rotate(site, v, 0.8, at, adaptive=False),
        lambda x, v: rotated(x, v, 0.8, False),
    ),
    "ProjectOut": (
        lambda site, v, at: E.ProjectOut(site, torch.stack([v, v.roll(1)]), at),
        lambda x, v: project_out(x, torch.stack([v, v.roll(1)])),
    ),
    "SetResidual": (lambda site, v, at: E.SetResidual(site, v, at), lambda x, v: v.expand_as(x)),
    "SetResidual, number": (
        lambda site, v, at: E.SetResidual(site, 0.25, at),
        lambda x, v: torch.full_like(x, 0.25),
    ),
}


@pytest.mark.parametrize(("name", "positions"), list(zip(STREAM, ["last", "question", "image"] * 3)))
def test_the_stream_edited_is_a_hook_on_the_layer(case, batch, plain, name, positions):
    edit, by_hand = STREAM[name]
    layer = case.vlm.cfg.n_layers // 2
    vector = torch.randn(case.vlm.cfg.d_model, generator=torch.Generator().manual_seed(1))
    if positions == "last":
        chosen = torch.arange(batch.length).expand(2, -1) == batch.length - 1
    else:
        chosen = batch.spans.mask(positions)

    def hook(value):
        return torch.where(chosen[..., None], by_hand(value, vector), value)

    expected = case.twin.run(batch.inputs, hooks=[(case.layers[layer], "out", hook)])
    compare(case, batch, plain, edit(f"text.{layer}.resid_post", vector, positions), expected)


def test_neutral_edits_of_the_stream_move_by_rounding(case, batch, plain):
    site = f"text.{case.vlm.cfg.n_layers // 2}.resid_post"
    vector = torch.ones(case.vlm.cfg.d_model)
    edits = (
        E.Steer(site, vector, 0, "all")
        + E.Steer(site, vector, 0, "all", norm_preserving=True)
        + E.Rotate(site, vector, 0, "all")
    )
    found = logits_of(case.vlm.with_edits(edits), batch)
    close(found[real(batch)], plain[id(batch)][real(batch)], 1e-5)


# ---- patches -----------------------------------------------------------------------------------------------


def test_a_run_patched_with_its_own_cache_is_unchanged(case, batch, plain):
    names = ("text.*.resid_post", "text.*.attn.z", "text.embed")
    own = case.vlm.cache(batch, names)
    edits = sum(E.Patch(name, own) for name in names)
    assert torch.equal(logits_of(case.vlm.with_edits(edits), batch), plain[id(batch)])


def test_patterns_patched_with_their_own_rows_move_by_rounding(case, batch, plain):
    own = case.vlm.cache(batch, "text.*.attn.pattern", queries="all")
    edit = E.Patch("text.*.attn.pattern", own)
    found = logits_of(case.vlm.with_edits(edit), batch)
    close(found[real(batch)], plain[id(batch)][real(batch)], 1e-5)


def test_all_of_the_stream_patched_is_the_other_run(case, one, other, plain):
    layer = case.vlm.cfg.n_layers - (1 if case.name in LAST_ONLY else 2)
    site = f"text.{layer}.resid_post"
    edit = E.Patch(site, case.vlm.cache(other, site))
    found = logits_of(case.vlm.with_edits(edit), one)
    close(found, plain[id(other)], 1e-5)
    assert moved(found, plain[id(one)])


def test_one_head_patched_is_its_columns_of_the_projections_input(case, one, other, plain, layers):
    layer = layers[-1]
    kept = z_of(case, other, [layer])
    expected = case.twin.run(one.inputs, hooks=written(case, {layer: [2]}, lambda layer, old: kept[layer]))
    site = f"text.{layer}.attn.z"
    compare(case, one, plain, E.Patch(site, case.vlm.cache(other, site), heads=2), expected)


@pytest.mark.parametrize("queries", ["last", "all"])
def test_rows_patched_in_every_layer_are_the_twins(case, one, other, plain, queries):
    """Of some heads; with the picture's keys of cross-attention layers."""
    layers = list(case.vlm.sites.kernels["text"])
    case.twin.run(other.inputs)
    rows = {layer: case.twin.calls[case.attention(layer)][0]["pattern"] for layer in layers}
    chosen = torch.ones(1, one.length, dtype=torch.bool)
    if queries == "last":
        chosen[:, :-1] = False
    hand = {}
    for layer, own in rows.items():
        every = torch.ones(1, own.shape[-1], dtype=torch.bool)
        hand[case.attention(layer)] = rows_by_hand(
            "pattern", lambda p, k, s, own=own: own, chosen, every, [0, 1]
        )
    source = case.vlm.cache(other, "text.*.attn.pattern", queries=queries)
    edit = E.Patch("text.*.attn.pattern", source, heads=[0, 1])
    compare(case, one, plain, edit, case.twin.run(one.inputs, edits=hand))


@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])
def test_the_pictures_tokens_are_patched_by_span(case, other, batch, plain, site):
    """Into a batch whose questions are longer and whose rows are padded differently."""
    layer = case.vlm.cfg.n_layers - 2
    side = "out" if site == "resid_post" else "in"
    kept = {}
    case.twin.run(other.inputs, hooks=[(case.layers[layer], side, keep(kept, "stream"))])
    taken = kept["stream"][0, other.spans.mask("image")[0]]
    image = batch.spans.mask("image")

    def put(value):
        value = value.clone()
        for row in range(2):
            value[row, image[row]] = taken
        return value

    expected = case.twin.run(batch.inputs, hooks=[(case.layers[layer], side, put)])
    name = f"text.{layer}.{site}"
    compare(case, batch, plain, E.Patch(name, case.vlm.cache(other, name), "image"), expected)


def test_a_source_with_another_number_of_tokens_is_refused(case, other, batch):
    site = "text.0.resid_post"
    edited = case.vlm.with_edits(E.Patch(site, case.vlm.cache(other, site), "question"))
    with pytest.raises(
        E.BadEdit, match=r"row 1: .* tokens of 'question' are to be patched and the source has"
    ):
        logits_of(edited, batch)


def test_the_towers_stream_patched_is_a_hook_on_its_layer(case, one, other, plain):
    tower = case.vlm.family.vision(case.twin.model).layers[0]
    kept = {}
    case.twin.run(other.inputs, hooks=[(tower, "in", keep(kept, "in"))])
    expected = case.twin.run(one.inputs, hooks=[(tower, "in", lambda value: kept["in"])])
    name = "vision.0.resid_pre"
    compare(case, one, plain, E.Patch(name, case.vlm.cache(other, name)), expected)
