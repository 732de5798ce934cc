"""Sizes, weights of heads, and what a prompt keeps, in every family."""

import dataclasses

import pytest
import torch

from seeing import edits as E
from seeing.families import FamilyContractError
from seeing.prompt import BadPrompt


@pytest.fixture(scope="module")
def prompt(case):
    return case.prompt()


def test_sizes_are_those_of_the_activations(case, prompt):
    cfg = case.vlm.cfg
    layer = next(iter(case.vlm.sites.kernels["text"]))
    names = [f"text.{layer}.attn.{part}" for part in "qkz"]
    found = case.vlm.cache(
        prompt, [*names, "text.0.resid_pre", "logits", "vision.0.attn.q", "vision.0.resid_pre"]
    )
    q, k, z = (found[name] for name in names)
    assert q.shape[2:] == (cfg.n_heads, cfg.d_head)
    assert z.shape[2:] == (cfg.n_heads, cfg.d_head)
    assert k.shape[2:] == (cfg.n_kv_heads, cfg.d_head)
    assert found["text.0.resid_pre"].shape[-1] == cfg.d_model
    assert found["logits"].shape[-1] == cfg.d_vocab
    assert found["vision.0.attn.q"].shape[2:] == (cfg.vision.n_heads, cfg.vision.d_head)
    assert found["vision.0.resid_pre"].shape[-1] == cfg.vision.d_model
    assert cfg.n_layers == len(case.layers)


def test_weights_of_heads_make_the_heads(case, prompt):
    """W_O maps z back, head by head; W_V makes the values where nothing but the projection does."""
    vlm = case.vlm
    for layer in vlm.sites.kernels["text"]:
        attn = case.attention(layer)
        assert vlm.W_O[layer].shape[0] == vlm.cfg.n_heads
        flat = torch.cat(list(vlm.W_O[layer].transpose(1, 2)), dim=1)
        assert torch.equal(flat, attn.o_proj.weight)
        size = attn.head_dim
        assert vlm.W_Q[layer].shape == (vlm.cfg.n_heads, vlm.cfg.d_model, size)
        if getattr(attn, "k_proj", None) is not None:
            assert torch.equal(vlm.W_K[layer][1], attn.k_proj.weight[size : 2 * size].T)
    assert torch.equal(vlm.W_U, case.twin.model.get_output_embeddings().weight.T)
    assert torch.equal(vlm.W_E, case.twin.model.get_input_embeddings().weight)


def test_a_layer_without_a_weight_says_so(case):
    absent = set(range(case.vlm.cfg.n_layers)) - set(case.vlm.sites.kernels["text"])
    for layer in absent:
        with pytest.raises(LookupError, match="no attention"):
            case.vlm.W_Q[layer]
    with pytest.raises(IndexError, match="no layer 99"):
        case.vlm.W_Q[99]


def test_a_missing_side_input_is_an_error(case, picture, monkeypatch):
    """Without it some models run causally, or with wrong positions, and say nothing."""
    family = case.vlm.family
    if not family.required:
        pytest.skip("this family needs none")
    kind = type(family)
    honest = kind.cleaned
    monkeypatch.setattr(
        kind,
        "cleaned",
        lambda self, inputs: {k: v for k, v in honest(self, inputs).items() if k != family.required[0]},
    )
    with pytest.raises(FamilyContractError, match=family.required[0]):
        case.prompt()


def test_earlier_turns_and_a_system_message_are_in_the_tokens(case, picture):
    turns = [("what digit is on the red square ?", "it is 3"), ("sure ?", "yes")]
    if getattr(case.processor, "chat_template", None) is None:
        with pytest.raises(BadPrompt, match="no chat template"):
            case.vlm.prompt(picture(), "why ?", turns=turns)
        return
    if case.name == "llava":
        pytest.skip("the embedded tokenizer knows the words of its task only")
    prompt = case.vlm.prompt(picture(), "why ?", turns=turns, system="be brief")
    decode = case.processor.tokenizer.decode
    ids = prompt.inputs["input_ids"][0]
    assert "be brief" in decode(ids)
    assert decode(ids[prompt.spans["question"][0]]) == "why ?"
    assert decode(ids[prompt.spans["answer"][0]]) == "it is 3yes"
    layer = max(case.vlm.sites.kernels["text"])
    if not case.vlm.sites.kernels["text"][layer].cross:
        name = f"text.{layer}.attn.pattern"
        cut = case.vlm.with_edits(E.Knockout(keys="answer", layers=layer)).cache(prompt, name)[name]
        assert float(cut[0, :, 0, prompt.spans.mask("answer")[0]].max()) == 0
    covered = sum(prompt.spans.mask(name).int() for name in ("image", "question", "answer", "template"))
    assert (covered == prompt.inputs["attention_mask"]).all()


def test_a_pass_stops_at_a_layer(case, prompt):
    last = case.vlm.cfg.n_layers - 1
    ran = []
    undo = case.model.get_decoder().layers[last].register_forward_hook(lambda *_: ran.append(1))
    try:
        found = case.vlm.cache(prompt, "text.*.resid_post", stop_at_layer=-1)
    finally:
        undo.remove()
    assert list(found) == [f"text.{layer}.resid_post" for layer in range(last)]
    assert not ran
    with pytest.raises(KeyError):
        case.vlm.cache(prompt, f"text.{last}.resid_post", stop_at_layer=last)


def test_a_family_that_says_a_wrong_thing_is_found_out(case, monkeypatch):
    """The wrong last projection: the heads no longer add up to what the attention adds."""
    import seeing
    from seeing import sitemap

    honest = sitemap.build

    def lie(*args):
        found = honest(*args)
        names = [name for name in found if name.startswith("text.") and name.endswith("attn.result")]
        size = found[names[0]].map.weight().shape
        other = next(name for name in reversed(names) if found[name].map.weight().shape == size)
        wrong = dataclasses.replace(found[names[0]], map=found[other].map)
        return sitemap.SiteMap({**found, names[0]: wrong}, found.kernels, found.absent, found.order)

    monkeypatch.setattr(sitemap, "build", lie)
    with pytest.raises(FamilyContractError, match=r"attn.result.*found an error"):
        seeing.load((case.model, case.processor))


def test_bare_tensors_are_traced_as_a_prompt_is(case, prompt):
    """Without a Prompt the vocabulary still reads, packed towers in reading order too."""
    name = "vision.0.attn.pattern"
    with torch.no_grad(), case.vlm.trace(**prompt.inputs):
        found = case.vlm.vision[0].attn.pattern.clone().save()
        logits = case.vlm.logits.save()
    assert torch.equal(found, case.vlm.cache(prompt, name, queries="all")[name])
    assert torch.equal(logits, case.vlm.cache(prompt, "logits")["logits"])
