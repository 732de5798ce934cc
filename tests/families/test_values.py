"""What the vocabulary reads in every family, against the twin that is read by hand."""

import pytest
import torch

MASKED = -1e30


def close(found, expected, what=""):
    masked = expected < MASKED
    found, expected = found.masked_fill(masked, 0).float(), expected.masked_fill(masked, 0).float()
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * size, msg=lambda m: f"{what}: {m}")


@pytest.fixture(scope="module")
def prompt(case):
    return case.prompt()


@pytest.fixture(scope="module")
def values(case, prompt):
    return case.vlm.cache(prompt, case.vlm.names(), queries="all")


@pytest.fixture(scope="module")
def by_hand(case, prompt):
    """The twin's attention calls, and what goes in and out of its text layers."""
    kept = {}

    def keep(key):
        def fn(value):
            kept[key] = value.clone()
            return value

        return fn

    hooks = []
    for number, layer in enumerate(case.layers):
        hooks += [(layer, "in", keep((number, "in"))), (layer, "out", keep((number, "out")))]
    logits = case.twin.run(prompt.inputs, hooks=hooks)
    return kept, case.twin.calls, logits


def test_tracing_leaves_the_logits_as_they_are(case, prompt, values):
    with torch.no_grad():
        assert torch.equal(values["logits"], case.model(**prompt.inputs).logits)


def test_text_attention_is_the_textbook_formula(case, values, by_hand):
    """q, k, v, scores, pattern; and z where nothing stands between the kernel and the projection."""
    _, calls, logits = by_hand
    close(values["logits"], logits, "logits")
    assert case.vlm.sites.kernels["text"]
    for layer in case.vlm.sites.kernels["text"]:
        (call,) = calls[case.attention(layer)]
        for part in "qkv":
            close(values[f"text.{layer}.attn.{part}"], call[part].transpose(1, 2), f"{layer}.{part}")
        for part in ("scores", "pattern"):
            close(values[f"text.{layer}.attn.{part}"], call[part], f"{layer}.{part}")
        hidden = call["scores"] < MASKED
        seen_none = hidden.all(-1, keepdim=True)
        assert (values[f"text.{layer}.attn.pattern"][hidden & ~seen_none] == 0).all()
        if not case.name.startswith("qwen3_5"):
            close(values[f"text.{layer}.attn.z"], call["z"], f"{layer}.z")


def test_the_residual_stream_is_what_goes_in_and_out_of_the_layers(case, values, by_hand):
    kept, _, _ = by_hand
    for layer in range(len(case.layers)):
        close(values[f"text.{layer}.resid_pre"], kept[layer, "in"], f"{layer} in")
        close(values[f"text.{layer}.resid_post"], kept[layer, "out"], f"{layer} out")
        part = {
            site: values.get(f"text.{layer}.{site}")
            for site in ("attn_out", "resid_mid", "mlp_out", "ple_out")
        }
        total = kept[layer, "in"] + part["attn_out"]
        if part["resid_mid"] is not None:
            close(part["resid_mid"], total, f"{layer} mid")
        total = total + part["mlp_out"] + (0 if part["ple_out"] is None else part["ple_out"])
        close(total * getattr(case.layers[layer], "layer_scalar", 1.0), kept[layer, "out"], f"{layer} sum")


def test_heads_add_up_to_what_the_attention_adds(case, values):
    for layer in case.vlm.sites.kernels["text"]:
        out = case.attention(layer).o_proj
        bias = 0 if out.bias is None else out.bias
        close(values[f"text.{layer}.attn.result"].sum(2) + bias, values[f"text.{layer}.attn_out"], str(layer))


def test_tower_attention_is_the_textbook_formula(case, prompt, values, by_hand):
    """One pattern a layer, in reading order; towers that go window by window have zeros outside a window."""
    _, calls, _ = by_hand
    order = case.vlm.family.patch_order(case.model, prompt.inputs)
    stack = case.vlm.family.vision(case.twin.model)
    for layer in range(len(stack)):
        found = values[f"vision.{layer}.attn.pattern"]
        made = calls[stack.attention(layer)]
        if not stack.packed:
            close(found, made[0]["pattern"], f"vision {layer}")
            continue
        whole = torch.block_diag(*[torch.eye(call["pattern"].shape[-1]) for call in made])
        expected = torch.zeros(found.shape[1], *whole.shape)
        place = 0
        for call in made:
            n = call["pattern"].shape[-1]
            expected[:, place : place + n, place : place + n] = call["pattern"][0]
            place += n
        order = torch.arange(place) if order is None else order
        close(found[0], expected[:, order][:, :, order], f"vision {layer}")


def test_image_tokens_are_the_grids(case, prompt):
    """Positions are those of the image token id, boxes lie in the picture, and some token sees each part."""
    ids = prompt.inputs["input_ids"][0]
    found = (ids == case.vlm.family.image_token_id(case.model)).nonzero()[:, 0]
    grid = prompt.grids[0]
    assert torch.equal(grid.positions, found)
    assert grid.covers([(30, 20, 46, 32)]) > 0.99


def test_the_question_is_found_in_the_tokens(case, prompt):
    ids = prompt.inputs["input_ids"][0][prompt.spans["question"][0]]
    assert case.processor.tokenizer.decode(ids).strip().lower() == "what digit is on the red square ?"


def test_names_that_are_missing_say_why(case):
    for name, why in case.vlm.sites.absent.items():
        assert name not in case.vlm.names()
        with pytest.raises(KeyError, match=why[:20].replace("(", r"\(")):
            case.vlm.cache(case.prompt(), name)
