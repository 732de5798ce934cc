"""The proof at load: honest models pass, in five small forwards, and a planted lie is named by its site."""

import copy
import dataclasses

import pytest
import torch

import seeing
from seeing import sitemap
from seeing.attention import AttentionCall
from seeing.edited import EditedRows
from seeing.families import FamilyContractError
from seeing.families.llava import Llava
from seeing.sitemap import SiteMap
from seeing.sites import Spot
from seeing.vlm import VLM

HONEST = {
    "sdpa": dict(),
    "eager": dict(kernel="eager"),
    "one head a key": dict(kv_heads=4),
    "feature layer -2": dict(feature_layer=-2),
    "cls kept": dict(strategy="full"),
    "siglip": dict(tower="siglip", strategy="full"),
    "letters": dict(words=False),
    "bf16": dict(dtype=torch.bfloat16),
    "bf16 eager": dict(kernel="eager", dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "fp16 eager": dict(kernel="eager", dtype=torch.float16),
}


@pytest.fixture
def pair(tiny):
    """``pair(**settings)``: a fresh model, with the kernel of the settings, and its processor."""

    def pair(kernel="sdpa", **kwargs):
        model, processor = tiny(kernel, **kwargs).pair()
        model.set_attn_implementation(kernel)
        return model, processor

    return pair


def refusal(model_and_processor) -> str:
    """What the proof says against a model."""
    with pytest.raises(FamilyContractError) as error:
        seeing.load(model_and_processor)
    return str(error.value)


# -- honest models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", HONEST.values(), ids=HONEST)
def test_honest_models_pass(pair, settings):
    assert isinstance(seeing.load(pair(**settings)), VLM)


def test_it_costs_five_forwards_and_leaves_nothing_behind(pair):
    model, processor = pair()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    calls = []
    model.model.language_model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    vlm = seeing.load((model, processor))
    assert len(calls) == 5
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())
    assert vlm.edits is None
    assert vlm.last_unseen is True
    assert vlm.running is None or len(vlm.running) == 1
    assert not model.training


def test_check_false_runs_nothing(pair, monkeypatch):
    model, processor = pair()
    calls = []
    model.model.language_model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(Llava, "n_tokens", lambda *_: 3)
    seeing.load((model, processor), check=False)
    assert calls == []


# -- planted lies ------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch):
    """``call(change)``: every kernel call is read as ``change`` makes it."""
    honest = AttentionCall.from_kernel.__func__

    def plant(change):
        def lie(cls, args, kwargs):
            return change(honest(cls, args, kwargs))

        monkeypatch.setattr(AttentionCall, "from_kernel", classmethod(lie))

    return plant


@pytest.fixture
def site(monkeypatch):
    """``site(name, change)``: the site of that name is ``change`` of it, given all of them."""
    honest = sitemap.build

    def plant(name, change):
        def lie(family, model, envoy_of):
            found = honest(family, model, envoy_of)
            return SiteMap({**found, name: change(found)}, found.kernels)

        monkeypatch.setattr(sitemap, "build", lie)

    return plant


KERNELS = [("sdpa", torch.float32), ("eager", torch.float16), ("sdpa", torch.bfloat16)]


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_a_wrong_scaling_is_found(pair, call, kernel, dtype):
    call(lambda found: dataclasses.replace(found, scaling=found.scaling * 1.5))
    assert "attn.pattern' found an error" in refusal(pair(kernel, dtype=dtype))


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_a_dropped_mask_is_found(pair, call, kernel, dtype):
    call(lambda found: dataclasses.replace(found, mask=None, causal=False))
    assert "'text.0.attn.pattern' found an error" in refusal(pair(kernel, dtype=dtype))


def test_a_mask_on_the_wrong_side_is_found(pair, call):
    """Keys after the query are seen, those before it are not."""

    def flipped(found):
        if found.mask is None:
            return found
        return dataclasses.replace(found, mask=found.mask.flip(-1).flip(-2))

    call(flipped)
    assert "'text.0.attn.pattern' found" in refusal(pair("eager"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_values_do_not_hide_a_lie(pair, call, dtype):
    """An error is measured against the values compared, however small they are."""
    model, processor = pair(dtype=dtype)
    with torch.no_grad():
        for stack in (model.model.language_model.layers, model.model.vision_tower.encoder.layers):
            for layer in stack:
                layer.self_attn.v_proj.weight.mul_(1e-3)
                layer.self_attn.v_proj.bias.mul_(1e-3)
    assert isinstance(seeing.load((copy.deepcopy(model), processor)), VLM)
    call(lambda found: dataclasses.replace(found, scaling=found.scaling * 1.5))
    assert "attn.pattern' found an error" in refusal((model, processor))


def test_heads_in_another_order_are_found(pair, call):
    call(lambda found: dataclasses.replace(found, q=found.q.flip(1)))
    assert "attn.pattern' found an error" in refusal(pair())


def test_a_kernel_of_another_layer_is_found(pair, site):
    """The pattern of layer 1 read off the kernel call of layer 0."""
    site(
        "text.0.attn.pattern",
        lambda found: dataclasses.replace(found["text.1.attn.pattern"], name="text.0.attn.pattern"),
    )
    assert "'text.0.attn." in refusal(pair())


@pytest.mark.parametrize("stack", ["text", "vision"])
def test_layers_in_reverse_are_found(pair, monkeypatch, stack):
    honest = getattr(Llava, stack)
    monkeypatch.setattr(
        Llava,
        stack,
        lambda self, model: dataclasses.replace(
            honest(self, model), layers=tuple(reversed(honest(self, model).layers))
        ),
    )
    assert f"'{stack}." in refusal(pair())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_residual_stream_read_behind_the_norm_is_found(pair, site, dtype):
    def behind(found):
        stream = found["text.2.resid_mid"]
        norm = stream.location.split(".source")[0] + ".post_attention_layernorm.output"
        return dataclasses.replace(stream, location=norm)

    site("text.2.resid_mid", behind)
    assert "'text.2.resid_mid' found an error" in refusal(pair(dtype=dtype))


def test_a_branch_that_is_not_what_is_added_is_found(pair, site):
    """mlp.post in the place of mlp_out has another width, z in the place of attn_out another shape."""
    site("text.1.mlp_out", lambda found: dataclasses.replace(found["text.1.mlp.post"], name="text.1.mlp_out"))
    assert "'text.1.mlp_out' found shape" in refusal(pair())


def test_heads_that_do_not_add_up_are_found(pair, site):
    """The output projection of another layer, where the head results are computed."""
    site(
        "text.1.attn.result",
        lambda found: dataclasses.replace(found["text.1.attn.result"], map=found["text.2.attn.result"].map),
    )
    assert "'text.1.attn.result' found an error" in refusal(pair())


def test_a_wrong_number_of_tokens_is_found(pair, monkeypatch):
    honest = Llava.n_tokens
    monkeypatch.setattr(Llava, "n_tokens", lambda *args: honest(*args) + 1)
    assert "gave 16 image tokens in input_ids, the family's geometry gives 17" in refusal(pair())


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("language_model.norm", "found that the model ran past"),
        ("vision_tower.encoder.layers.0", "found that the model ran past"),
        ("vision_tower.encoder.layers.2", "at 'projector.in' found that the model ran past"),
        ("multi_modal_projector.linear_1", "'projector.out' found an error"),
    ],
)
def test_another_module_for_the_projector_is_found(pair, monkeypatch, path, says):
    monkeypatch.setattr(Llava, "projector", lambda self, model: model.model.get_submodule(path))
    assert says in refusal(pair())


def test_features_that_enter_elsewhere_are_found(pair, monkeypatch):
    """Not at the image's tokens, but one further on."""
    model, processor = pair()
    honest = model.model.get_placeholder_mask

    def elsewhere(*args, **kwargs):
        return honest(*args, **kwargs).roll(1, dims=1)

    monkeypatch.setattr(model.model, "get_placeholder_mask", elsewhere)
    assert "'projector.out' found" in refusal((model, processor))


def test_a_trace_that_moves_the_logits_is_found(pair, monkeypatch):
    honest = VLM._batch

    def noisy(self, invokes, fn):
        args, kwargs = honest(self, invokes, fn)
        return args, {**kwargs, "pixel_values": kwargs["pixel_values"] * 1.001}

    monkeypatch.setattr(VLM, "_batch", noisy)
    text = refusal(pair())
    assert "at 'logits' found an error" in text
    assert "the bare model's equal within 0.0" in text


def test_a_write_that_is_lost_is_found(pair, monkeypatch):
    monkeypatch.setattr(Spot, "write", lambda self, value: self.read())
    assert "'text.2.resid_mid' found unmoved logits" in refusal(pair())


def test_a_pattern_write_that_is_lost_is_found(pair, monkeypatch):
    monkeypatch.setattr(EditedRows, "onto", lambda self, output: output)
    assert "'text.2.attn.pattern' found unmoved logits" in refusal(pair())


def test_a_pattern_write_that_spills_is_found(pair, monkeypatch):
    """A write of the last row that reaches the first one too."""
    honest = EditedRows.onto

    def spills(self, output):
        output = honest(self, output)
        return torch.cat([output[:, :1] * 1.01, output[:, 1:]], dim=1)

    monkeypatch.setattr(EditedRows, "onto", spills)
    assert "found an error" in refusal(pair())


def test_an_identity_write_that_moves_the_logits_is_found(pair, monkeypatch):
    honest = AttentionCall.write

    monkeypatch.setattr(AttentionCall, "write", lambda *args: honest(*args) * 1.05)
    assert "'text.2.attn.pattern' found an error" in refusal(pair())


def test_a_refusal_names_family_model_site_found_and_expected(pair, call):
    call(lambda found: dataclasses.replace(found, scaling=found.scaling * 1.5))
    text = refusal(pair())
    assert text.startswith("family 'llava' does not fit this LlavaForConditionalGeneration: at '")
    assert "expected pattern · v is the kernel's output, equal within" in text


@pytest.mark.parametrize(("part", "holds"), [("out", "q_proj"), ("down", "gate_proj"), ("attn", "self_attn")])
def test_a_stack_that_names_a_part_that_is_not_there_is_refused(pair, monkeypatch, part, holds):
    """With what the module does hold."""
    honest = Llava.text
    monkeypatch.setattr(
        Llava, "text", lambda self, model: dataclasses.replace(honest(self, model), **{part: "wrong"})
    )
    with pytest.raises(FamilyContractError, match=f"says 'wrong', which no .* has; it holds: .*{holds}"):
        seeing.load(pair())


def test_a_layer_left_out_is_found(pair, monkeypatch):
    honest = Llava.text

    def shorter(self, model):
        stack = honest(self, model)
        return dataclasses.replace(stack, layers=stack.layers[:-1])

    monkeypatch.setattr(Llava, "text", shorter)
    assert "found 3 layers, expected 4" in refusal(pair())


def test_sizes_that_no_layer_has_are_found(pair, monkeypatch):
    honest = Llava.text
    monkeypatch.setattr(
        Llava, "text", lambda self, model: dataclasses.replace(honest(self, model), n_kv_heads=3)
    )
    assert "'text.*.attn.k' found (n_kv_heads, d_head) of [(2, 8)], expected cfg's (3, 8)" in refusal(pair())
