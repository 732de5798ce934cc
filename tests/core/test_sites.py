"""Every name, read and written, against torch's own hooks on an untouched model of the same weights."""

import pytest
import torch

import seeing
from seeing.names import LAYER_SITES as ALL_SITES
from seeing.names import Name, UnknownName

#: Llama has no per-layer inputs, Gemma 4 alone has.
LAYER_SITES = tuple(site for site in ALL_SITES if site != "ple_out")
MASKED = -1e30

#: Models whose sites lie in different places, or reach the logits by different ways.
VARIANTS = [
    dict(kernel="sdpa"),
    dict(kernel="eager", kv_heads=4),
    dict(kernel="sdpa", kv_heads=1, feature_layer=-2, strategy="full"),
    dict(kernel="sdpa", tower="siglip", strategy="full"),
    dict(kernel="eager", tower="siglip", strategy="full", feature_layer=-2, side=42, patch=6),
]

WRITTEN = [
    "vision.embed",
    *(f"vision.{layer}.{site}" for layer in (0, 2) for site in LAYER_SITES),
    "projector.in",
    "projector.out",
    "text.embed",
    *(f"text.{layer}.{site}" for layer in (0, 3) for site in LAYER_SITES),
    "text.norm",
    "logits",
]


def changed(value):
    """A change that leaves no number as it was; what the mask hides stays hidden."""
    return torch.where(value < MASKED, value, 0.7 * value.flip(-1).clamp(min=-9) + 0.05)


def close(found, expected):
    """Equal to 1e-5 of the largest number. Where both are masked, a kernel may write −inf or the minimum."""
    expected = expected.detach()
    masked = expected < MASKED
    assert torch.equal(found < MASKED, masked)
    found, expected = found.masked_fill(masked, 0), expected.masked_fill(masked, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def holder(vlm, name):
    """``text.3.attn.pattern`` -> the view ``vlm.text[3].attn`` and the attribute ``pattern``."""
    *path, last = name.split(".")
    view = vlm
    for part in path:
        view = view[int(part)] if part.isdigit() else getattr(view, part)
    return view, "in_" if last == "in" else last


def logits_with(vlm, prompt, name, fn):
    """The logits when ``name`` is assigned ``fn`` of itself."""
    with torch.no_grad(), vlm.trace(prompt):
        view, part = holder(vlm, name)
        setattr(view, part, fn(getattr(view, part)))
        logits = vlm.logits.save()
    return logits


# -- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_name_reads_what_the_bare_model_computes(tiny, picture, settings):
    one = tiny(**settings)
    prompt = one.vlm.prompt(picture(), "what digit is on the red square ?")
    found = one.vlm.cache(prompt, one.vlm.names(), queries="all")
    expected = one.reference(prompt)
    assert list(found) == one.vlm.names()
    assert set(found) == set(expected)
    for name, value in found.items():
        close(value, expected[name])


def test_every_name_reads_what_the_bare_model_computes_in_a_padded_batch(tiny, vlm, batch):
    """At real tokens: what stands at padding differs between kernels and is nobody's reading."""
    found = vlm.cache(batch, vlm.names(), queries="all")
    expected = tiny().reference(batch)
    real = batch.inputs["attention_mask"].bool()
    assert not real.all()
    for name, value in found.items():
        if name.startswith(("vision", "projector")):
            close(value, expected[name])
            continue
        axis = 2 if Name.parse(name).has_rows else 1
        close(value.movedim(axis, 1)[real], expected[name].movedim(axis, 1)[real])


def test_shapes_are_those_of_the_table_of_names(vlm, prompt):
    found = vlm.cache(prompt, vlm.names(), queries="all")
    t, p = prompt.length, 17
    layer = {
        "resid_pre": (1, t, 32),
        "attn.q": (1, t, 4, 8),
        "attn.k": (1, t, 2, 8),
        "attn.v": (1, t, 2, 8),
        "attn.scores": (1, 4, t, t),
        "attn.pattern": (1, 4, t, t),
        "attn.z": (1, t, 4, 8),
        "attn.result": (1, t, 4, 32),
        "attn_out": (1, t, 32),
        "resid_mid": (1, t, 32),
        "mlp.post": (1, t, 48),
        "mlp_out": (1, t, 32),
        "resid_post": (1, t, 32),
    }
    tower = {
        "resid_pre": (1, p, 24),
        "attn.k": (1, p, 3, 8),
        "attn.pattern": (1, 3, p, p),
        "attn.result": (1, p, 3, 24),
        "mlp.post": (1, p, 40),
    }
    assert set(layer) == set(LAYER_SITES)
    for site, shape in layer.items():
        assert {tuple(found[f"text.{number}.{site}"].shape) for number in range(4)} == {shape}
    for site, shape in tower.items():
        assert {tuple(found[f"vision.{number}.{site}"].shape) for number in range(3)} == {shape}
    outside = {
        "vision.embed": (1, p, 24),
        "projector.in": (1, 16, 24),
        "projector.out": (1, 16, 32),
        "text.embed": (1, t, 32),
        "text.norm": (1, t, 32),
        "logits": (1, t, 31),
    }
    for name, shape in outside.items():
        assert tuple(found[name].shape) == shape


def test_the_names_are_complete_and_in_the_order_of_the_pass(vlm):
    assert len(vlm.names()) == 6 + 13 * (4 + 3)
    assert vlm.names() == sorted(vlm.names(), key=Name.parse)


def test_attributes_read_what_the_cache_reads(vlm, prompt, clean):
    """All of them, in one trace, in the order of the pass."""
    expected = vlm.cache(prompt, vlm.names(), queries="all")
    found = {}
    with torch.no_grad(), vlm.trace(prompt):
        for name in vlm.names():
            view, part = holder(vlm, name)
            found[name] = getattr(view, part).clone()
        logits = vlm.logits.save()
    assert list(found) == vlm.names()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    assert torch.equal(logits, expected["logits"])


def test_parts_add_up(vlm, prompt):
    """The residual stream, and the heads with the output projection's bias."""
    found = vlm.cache(prompt, ["text.*", "vision.*"])
    for stack, layers in (("text", vlm._module.model.language_model.layers),
                          ("vision", vlm._module.model.vision_tower.encoder.layers)):  # fmt: skip
        for number, layer in enumerate(layers):
            part = {site: found[f"{stack}.{number}.{site}"] for site in LAYER_SITES}
            bias = (layer.self_attn.o_proj if stack == "text" else layer.self_attn.out_proj).bias
            assert bias.abs().min() > 0, "a test of nothing if the bias were zero"
            close(part["attn.result"].sum(2) + bias, part["attn_out"])
            close(part["resid_pre"] + part["attn_out"], part["resid_mid"])
            close(part["resid_mid"] + part["mlp_out"], part["resid_post"])


# -- writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_a_write_is_what_a_hook_on_the_bare_model_does(tiny, vlm, prompt, name):
    before = vlm.cache(prompt, "logits")["logits"]
    logits = logits_with(vlm, prompt, name, changed)
    expected = tiny().reference(prompt, {name: changed})["logits"]
    close(logits, expected)
    last_layer_of_tower = name.startswith("vision.2") or name == "vision.embed"
    assert (logits - before).abs().max() > (1e-4 if last_layer_of_tower else 1e-2)


@pytest.mark.parametrize(
    "name", ["text.2.resid_mid", "text.1.attn.z", "text.2.attn.pattern", "vision.1.mlp.post"]
)
@pytest.mark.parametrize("settings", VARIANTS[1:], ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_write_is_what_a_hook_does_in_other_models(tiny, picture, settings, name):
    one = tiny(**settings)
    prompt = one.vlm.prompt(picture(), "what digit is on the red square ?")
    close(logits_with(one.vlm, prompt, name, changed), one.reference(prompt, {name: changed})["logits"])


@pytest.mark.parametrize("feature_layer", [-1, -2])
def test_the_tower_reaches_the_projector_up_to_the_feature_layer(tiny, picture, feature_layer):
    """With −1 the last layer's output is the image features; with −2 it runs and does nothing."""
    one = tiny(feature_layer=feature_layer, strategy="default" if feature_layer == -1 else "full")
    prompt = one.vlm.prompt(picture(), "what ?")
    before = one.vlm.cache(prompt, "projector.in")["projector.in"]
    for layer in range(3):
        with torch.no_grad(), one.vlm.trace(prompt):
            one.vlm.vision[layer].resid_post = one.vlm.vision[layer].resid_post * 2
            after = one.vlm.projector.in_.save()
        reaches = layer <= 3 + feature_layer
        assert torch.equal(after, before) != reaches
        if layer == 3 + feature_layer:
            torch.testing.assert_close(after, before * 2)


def test_a_model_that_ran_before_it_was_loaded_is_written_just_the_same(tiny, prompt, vlm):
    """Hugging Face hangs hooks of its own on the tower in the first run; they must see the edited value."""
    model, processor = tiny().pair()
    with torch.no_grad():
        model(**prompt.inputs)
    late = seeing.load((model, processor), check=False)
    for name in ("vision.2.resid_post", "vision.1.attn.pattern"):
        assert torch.equal(logits_with(late, prompt, name, changed), logits_with(vlm, prompt, name, changed))


# -- items, and edits in place ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in WRITTEN if name.split(".")[1:2] != ["3"]])
def test_an_edit_in_place_is_the_assignment_of_the_same(vlm, prompt, name):
    """Of what the model holds, and of what is only computed on reading."""
    with torch.no_grad(), vlm.trace(prompt):
        view, part = holder(vlm, name)
        value = getattr(view, part)
        value[..., 1:3] = 0.3
        logits = vlm.logits.save()

    def fn(value):
        value = value.clone()
        value[..., 1:3] = 0.3
        return value

    expected = logits_with(vlm, prompt, name, fn)
    assert not torch.equal(expected, vlm.cache(prompt, "logits")["logits"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_an_item_of_the_pattern_is_assigned_in_nnsights_manner(tiny, vlm, prompt, clean):
    with torch.no_grad(), vlm.trace(prompt):
        vlm.text[3].attn.pattern[:, 1, -1] = 0
        logits = vlm.logits.save()

    def fn(pattern):
        pattern = pattern.clone()
        pattern[:, 1, -1] = 0
        return pattern

    close(logits, tiny().reference(prompt, {"text.3.attn.pattern": fn})["logits"])


def test_an_item_is_multiplied_in_place(tiny, vlm, prompt, clean):
    with torch.no_grad(), vlm.trace(prompt):
        vlm.text[1].attn.pattern[:, 2] *= 0.5
        vlm.text[2].attn.scores *= 0.5
        logits = vlm.logits.save()

    def half(pattern):
        pattern = pattern.clone()
        pattern[:, 2] *= 0.5
        return pattern

    def softer(scores):
        return torch.where(scores < MASKED, scores, scores * 0.5)

    close(
        logits,
        tiny().reference(prompt, {"text.1.attn.pattern": half, "text.2.attn.scores": softer})["logits"],
    )


def test_a_function_of_itself_is_assigned(tiny, vlm, prompt, clean):
    with torch.no_grad(), vlm.trace(prompt):
        vlm.text[3].attn.pattern = vlm.text[3].attn.pattern.roll(1, dims=1)
        logits = vlm.logits.save()
    roll = {"text.3.attn.pattern": lambda pattern: pattern.roll(1, dims=1)}
    close(logits, tiny().reference(prompt, roll)["logits"])


def test_a_value_read_twice_is_one_value(tiny, vlm, prompt):
    """``a[i] += f(a)`` reads twice and must edit once."""
    with torch.no_grad(), vlm.trace(prompt):
        vlm.text[2].attn.result[:, :, 1] += vlm.text[2].attn.result[:, :, 0]
        logits = vlm.logits.save()

    def fn(result):
        result = result.clone()
        result[:, :, 1] += result[:, :, 0]
        return result

    close(logits, tiny().reference(prompt, {"text.2.attn.result": fn})["logits"])


def test_two_computed_values_in_one_trace(tiny, vlm, prompt, clean):
    """One edited, one only read, in one layer and in the next."""
    with torch.no_grad(), vlm.trace(prompt):
        read = vlm.text[1].attn.scores.clone().save()
        vlm.text[1].attn.pattern[:, 0] = 0
        vlm.text[1].attn.result[:, -1, 3] = 0
        later = vlm.text[2].attn.pattern.clone().save()
        logits = vlm.logits.save()

    def first(pattern):
        pattern = pattern.clone()
        pattern[:, 0] = 0
        return pattern

    def second(result):
        result = result.clone()
        result[:, -1, 3] = 0
        return result

    expected = tiny().reference(prompt, {"text.1.attn.pattern": first, "text.1.attn.result": second})
    close(read, expected["text.1.attn.scores"])
    close(later, expected["text.2.attn.pattern"])
    close(logits, expected["logits"])


def test_the_last_statement_of_a_block_still_counts(vlm, prompt):
    with torch.no_grad(), vlm.trace() as tracer:
        with tracer.invoke(prompt):
            vlm.text[3].attn.pattern[:] = 0
        with tracer.invoke():
            logits = vlm.logits.save()
    assert not torch.equal(logits, vlm.cache(prompt, "logits")["logits"])


def test_reading_changes_nothing(vlm, prompt, clean):
    """Not by a rounding error: computed values are put back as what was served."""
    with torch.no_grad(), vlm.trace(prompt):
        for layer in vlm.text:
            layer.attn.scores.sum()
            layer.attn.pattern.max()
            layer.attn.result.sum()
        logits = vlm.logits.save()
    assert torch.equal(logits, vlm.cache(prompt, "logits")["logits"])


def test_what_was_read_is_no_window_on_what_was_written(vlm, prompt):
    """A value that the cache handed out stays as it is when the run goes on."""
    with torch.no_grad(), vlm.trace(prompt):
        kept = vlm.text[0].resid_post.clone().save()
        vlm.text[0].resid_post[:] = 0
        after = vlm.text[1].resid_pre.save()
    assert kept.abs().max() > 0
    assert after.abs().max() == 0


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [("text.1.resid_post", (1, 32)), ("text.1.attn.pattern", (1, 4, 1, 25)), ("text.1.attn.z", (1, 25, 32)),
     ("text.1.attn.result", (1, 25, 32)), ("vision.1.attn.q", (1, 17, 24)), ("logits", (1, 1, 31))],
)  # fmt: skip
def test_a_value_of_another_shape_is_refused(vlm, prompt, name, shape, clean):
    with pytest.raises(ValueError, match=r"\(1, .* the value written is") as error:
        logits_with(vlm, prompt, name, lambda value: torch.zeros(shape))
    assert name in str(error.value)
    assert str(shape) in str(error.value)


def test_only_tensors_are_written(vlm, prompt, unchecked, clean):
    with pytest.raises(TypeError, match="tensor"):
        logits_with(vlm, prompt, "text.1.resid_post", lambda value: 0)


def test_a_value_of_another_dtype_is_brought_to_the_models(vlm, prompt):
    expected = logits_with(vlm, prompt, "text.1.attn.pattern", changed)
    found = logits_with(vlm, prompt, "text.1.attn.pattern", lambda value: changed(value).double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_a_name_that_is_not_there_says_what_is(vlm, prompt, clean):
    known = r"'text\.1\.attn\.patern'; 'text\.1\.attn' has k, pattern, q, result, scores, v, z"
    with pytest.raises(AttributeError, match=known), vlm.trace(prompt):
        vlm.text[1].attn.patern.sum()
    with pytest.raises(AttributeError, match=r"'text\.1\.resid_end'.*resid_post"), vlm.trace(prompt):
        vlm.text[1].resid_end = torch.zeros(1)


def test_a_layer_that_is_not_there_says_which_are(vlm, unchecked):
    with pytest.raises(UnknownName, match="no layer 4: text has layers 0-3"):
        vlm.text[4]
    with pytest.raises(UnknownName, match="vision has layers 0-2"):
        vlm.vision[-4]
    with pytest.raises(TypeError, match="layer number"):
        vlm.text["3"]


def test_layers_count_from_the_end_too(vlm, prompt):
    with torch.no_grad(), vlm.trace(prompt):
        last = vlm.text[-1].resid_post.save()
    assert torch.equal(last, vlm.cache(prompt, "text.3.resid_post")["text.3.resid_post"])
    assert (len(vlm.text), len(list(vlm.vision))) == (4, 3)


def test_views_show_what_they_hold(vlm):
    assert set(dir(vlm.text[0].attn)) == {"q", "k", "v", "scores", "pattern", "z", "result"}
    assert "resid_mid" in repr(vlm.text[0])
    assert repr(vlm.projector) == "<projector: in_, out>"


def test_outside_a_trace_there_is_nothing_to_read(vlm):
    for read in (lambda: vlm.text[1].attn.pattern, lambda: vlm.text[1].resid_post, lambda: vlm.logits):
        with pytest.raises(ValueError, match="in a trace"):
            read()
