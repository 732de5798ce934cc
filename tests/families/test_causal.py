"""Causal probes in families with traps of their own, against the twin: hooks, leaves and masks by hand.

Branch norms (gemma3, glm4v), factors behind layers and a soft cap (gemma4), a parallel block and a layer norm
(aya_vision), cross-attention with gates (mllama), linear layers and a gated z (qwen3_5), shared key heads.
"""

import pytest
import torch

from seeing.edits import BadEdit
from seeing.probes.causal.attribution import attribution
from seeing.probes.causal.effects import answer_logprob
from seeing.probes.causal.knockout import knockout
from seeing.probes.causal.patching import patching
from seeing.probes.causal.paths import Decomposition, path_patching

FAMILIES = ("aya_vision", "gemma3", "gemma4", "glm4v", "llava", "mllama", "qwen2_vl", "qwen3_5")
SHORT, LONG = "what digit ?", "what digit is on the red square ?"

every = pytest.mark.parametrize("case", FAMILIES, indirect=True, scope="module")


def some(*names):
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def said(case):
    """Two answers, the second a token shorter; none holds the token of a picture."""
    image = case.vlm.family.image_token_id(case.model)
    first, second, third = (one for one in (5, 7, 9, 11) if one != image) if image in (5, 7, 9) else (5, 7, 9)
    return torch.tensor([[first, second], [third, -1]])


@pytest.fixture(scope="module")
def clean(case, picture, said):
    """Two rows, the first padded, pictures of one size, each with its answer."""
    prompt = case.vlm.prompts([(picture(76, 52), SHORT), (picture(76, 52, 1), LONG)])
    assert not prompt.inputs["attention_mask"].all()
    return prompt.with_answer([row[row >= 0] for row in said])


@pytest.fixture(scope="module")
def corrupted(case, picture):
    """The same questions of other pictures of that size."""
    return case.vlm.prompts([(picture(76, 52, 2), SHORT), (picture(76, 52, 3), LONG)])


@pytest.fixture(scope="module")
def both(clean, corrupted):
    """The inputs of both runs, the answers behind them."""
    return clean.inputs, corrupted.with_answer(clean.answers).inputs


def columns(prompt):
    return prompt.spans["predicts"].clamp_min(0)


def answering(prompt, logits):
    """The rows of logits that predict the answer."""
    return logits[torch.arange(2)[:, None], columns(prompt)]


def keep(kept, key):
    def fn(value):
        kept[key] = value.clone()
        return value

    return fn


def close(found, expected, tolerance=2e-4):
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * size)


# ---- what parts write themselves ---------------------------------------------------------------------------


def unembedded(case, inputs, prompt):
    """(batch, d_vocab) the twin's unembedding at the row that predicts the answer: no soft cap, no scale."""
    kept = {}
    case.twin.run(inputs, hooks=[(case.twin.model.get_output_embeddings(), "out", keep(kept, "head"))])
    return kept["head"][torch.arange(2), columns(prompt)[:, 0]]


@every
def test_the_parts_add_up_to_answer_minus_foil(case, clean, said):
    found = Decomposition.of(case.vlm, clean).effects()
    logits, answer = unembedded(case, clean.inputs, clean), said[:, :1]
    foil = logits.scatter(1, answer, -torch.inf).amax(1)
    expected = logits.gather(1, answer)[:, 0] - foil
    close(found["total"][:, 0], expected)
    close(sum(found[name].sum(1) for name in ("embed", "attn", "mlp", "other", "constant")), expected)


@every
def test_heads_add_up_to_their_branch_and_nothing_else_is_added(case, clean):
    found = Decomposition.of(case.vlm, clean).effects()
    for layer in range(case.vlm.cfg.n_layers):
        if f"text.{layer}.attn.result" not in case.vlm.sites:
            assert found["heads"][:, layer].isnan().all()
        elif case.attention(layer).o_proj.bias is None:
            close(found["heads"][:, layer].sum(1), found["attn"][:, layer])
    if case.name != "gemma4":
        assert (found["other"].abs() < 1e-5 * found["mlp"].abs().max()).all()


@some("gemma4")
def test_what_gemma4_adds_beside_its_branches_goes_through_the_factors_behind_it(case, clean):
    parts = Decomposition.of(case.vlm, clean)
    cache = case.vlm.cache(clean, "text.*.ple_out")
    factors = torch.stack([layer.layer_scalar for layer in case.layers])[:, 0]
    assert (factors != 1).all()
    for layer in range(case.vlm.cfg.n_layers):
        added = cache[f"text.{layer}.ple_out"][torch.arange(2), columns(clean)[:, 0]]
        expected = (added * parts.direction).sum(-1) * factors[layer:].prod()
        close(parts.effects()["other"][:, layer], expected)
    assert parts.effects()["other"].abs().max() > 1e-2


def shares(case, inputs, layer, head, row):
    """What a head adds to the stream, from the twin's weights: W_O z, in gemma3 behind the branch's norm."""
    kept, attn = {}, case.attention(layer)
    case.twin.run(
        inputs, hooks=[(attn.o_proj, "in", keep(kept, "z")), (attn.o_proj, "out", keep(kept, "all"))]
    )
    z, whole = (kept[name][torch.arange(2), row] for name in ("z", "all"))
    width = z.shape[1] // case.vlm.cfg.n_heads
    mine = slice(head * width, (head + 1) * width)
    share = z[:, mine] @ attn.o_proj.weight[:, mine].T
    if case.name != "gemma3":
        return share
    norm = case.layers[layer].post_attention_layernorm
    rms = (whole.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    return share / rms * (1 + norm.weight)


@some("gemma3", "llava", "qwen2_vl")
def test_a_patched_path_is_the_last_stream_with_one_share_exchanged(case, clean, corrupted, both, said):
    found = path_patching(case.vlm, clean, corrupted, metric="logit_diff")
    n_layers, row = case.vlm.cfg.n_layers, columns(clean)[:, 0]
    other = unembedded(case, both[1], clean)
    foil, answer = other.scatter(1, said[:, :1], -torch.inf).argmax(1), said[:, 0]

    def difference(logits):
        return logits[torch.arange(2), answer] - logits[torch.arange(2), foil]

    start = difference(unembedded(case, both[0], clean))
    close(torch.tensor(found.gap), (difference(other) - start).mean())
    with torch.no_grad():
        # In layer 0 of gemma3 the last row is too far from the picture to see it.
        for layer, head in ((1, 1), (n_layers - 1, 2)):
            moved = shares(case, both[1], layer, head, row) - shares(case, both[0], layer, head, row)
            kept = {}

            def put(value, moved=moved):
                value = value.clone()
                value[torch.arange(2), row] += moved
                return value

            hooks = [(case.layers[-1], "out", put)]
            hooks += [(case.twin.model.get_output_embeddings(), "out", keep(kept, "head"))]
            case.twin.run(both[0], hooks=hooks)
            expected = difference(kept["head"][torch.arange(2), row]) - start
            assert expected.abs().max() > 1e-5
            close(found.change[layer, head], expected.mean(), 2e-5)


# ---- patches -----------------------------------------------------------------------------------------------


@some("gemma3", "llava", "qwen2_vl", "qwen3_5")
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_patch_is_the_stream_of_the_other_run_put_in_by_hand(case, clean, corrupted, both, said, direction):
    layer, spans = case.vlm.cfg.n_layers // 2, ("image", "last")
    found = patching(case.vlm, clean, corrupted, spans=spans, layers=layer, direction=direction)
    base, goal = both[::-1] if direction == "denoise" else both
    kept = {}
    end = case.twin.run(goal, hooks=[(case.layers[layer], "out", keep(kept, "goal"))])
    start = case.twin.run(base)

    def logprob(logits):
        return answer_logprob(answering(clean, logits), said)

    close(torch.tensor(found.gap), (logprob(end) - logprob(start)).mean())
    for span in spans:
        chosen = clean.spans.mask("predicts" if span == "last" else span)[..., None]

        def put(value, chosen=chosen):
            return torch.where(chosen, kept["goal"], value)

        patched = case.twin.run(base, hooks=[(case.layers[layer], "out", put)])
        change = logprob(patched) - logprob(start)
        assert change.abs().max() > 1e-4
        place = dict(zip(found.axes["span"], found.change[0, 0]))[span]
        close(place, change.mean(), 2e-5)
        share = change / (logprob(end) - logprob(start))
        close(found.share[0, 0, spans.index(span)], share.mean(), 2e-3)


@some("qwen3_5")
def test_places_that_a_layer_lacks_are_nan_and_a_model_without_any_refuses(case, clean, corrupted):
    layers = case.vlm.sites.kernels["text"]
    linear = next(one for one in range(case.vlm.cfg.n_layers) if one not in layers)
    found = patching(case.vlm, clean, corrupted, sites="attn.z", spans="last", layers=[linear, min(layers)])
    by_layer = dict(zip(found.axes["layer"], found.effect[0, :, 0]))
    assert by_layer[linear].isnan()
    assert not by_layer[min(layers)].isnan()
    with pytest.raises(BadEdit, match="none of these places"):
        patching(case.vlm, clean, corrupted, sites="attn.z", spans="last", layers=linear)


# ---- knockouts ---------------------------------------------------------------------------------------------


@some("gemma3", "mllama", "qwen2_vl", "qwen3_5")
def test_a_knockout_is_minus_infinity_on_the_twins_scores(case, clean, said):
    found = knockout(case.vlm, clean, flows=("image->last", "question->last"), window=2)
    kernels, n_layers = case.vlm.sites.kernels["text"], case.vlm.cfg.n_layers
    rows = clean.spans.mask("predicts")[:, None, :, None]
    across = {layer for layer in kernels if kernels[layer].cross}
    start = answer_logprob(answering(clean, case.twin.run(clean.inputs)), said)
    for flow, span in (("image->last", "image"), ("question->last", "question")):
        possible = across if across and span == "image" else set(kernels) - across
        prompt = clean.cross if across and span == "image" else clean
        keys = prompt.spans.mask(span)[:, None, None, :]

        def cut(name, value, keys=keys):
            if name == "pattern":
                # A row with no key left writes zeros.
                return value.nan_to_num(0.0)
            return value.masked_fill(rows & keys, -torch.inf) if name == "scores" else value

        curve = found.of(flow, "logprob")
        for layer in range(n_layers):
            window = {layer - 1, layer} & possible
            if not window:
                assert curve[layer].isnan()
                continue
            logits = case.twin.run(clean.inputs, edits={case.attention(one): cut for one in window})
            close(curve[layer], (answer_logprob(answering(clean, logits), said) - start).mean())
        assert curve.nan_to_num(0).abs().max() > 1e-4


# ---- attributions ------------------------------------------------------------------------------------------


@some("gemma3", "mllama", "qwen2_vl", "qwen3_5")
def test_attributions_are_the_twins_gradients_times_differences(case, clean, corrupted, both, said):
    spans = ("question", "last") if case.name == "mllama" else ("image", "question", "last")
    found = attribution(case.vlm, clean, corrupted, spans=spans, metric="logprob")
    kernels = case.vlm.sites.kernels["text"]
    leaves = {}

    def adding(layer):
        def edit(name, value):
            if name not in ("k", "v", "pattern"):
                return value
            leaves[name, layer] = torch.zeros_like(value, requires_grad=True)
            return value + leaves[name, layer]

        return edit

    def at_z(layer):
        def fn(value):
            leaves["z", layer] = torch.zeros_like(value, requires_grad=True)
            return value + leaves["z", layer]

        return fn

    def run(inputs, grad):
        """The twin's activations by (part, layer), and its logits; with ``grad``, on leaves."""
        kept = {}
        hooks = [
            (case.attention(layer).o_proj, "in", fn)
            for layer in kernels
            for fn in [at_z(layer)] * grad + [keep(kept, ("z", layer))]
        ]
        edits = {case.attention(layer): adding(layer) for layer in kernels} if grad else {}
        logits = case.twin.run(inputs, edits=edits, hooks=hooks, grad=grad)
        for layer in kernels:
            call = case.twin.calls[case.attention(layer)][0]
            kept |= {(part, layer): call[part].detach().transpose(1, 2) for part in ("k", "v")}
            kept["pattern", layer] = call["pattern"].detach()
        return kept, logits

    goal, _ = run(both[0], False)
    base, logits = run(both[1], True)
    answer_logprob(answering(clean, logits), said).sum().backward()
    rows = clean.spans.mask("predicts").any(0)
    n_heads = case.vlm.cfg.n_heads
    for kind, part in (("heads", "z"), ("keys", "k"), ("values", "v"), ("edges", "pattern")):
        whole = found.of(kind)
        assert whole.nan_to_num(0).abs().max() > 1e-6
        for layer in range(case.vlm.cfg.n_layers):
            if layer not in kernels:
                assert whole[layer].isnan().all()
                continue
            product = leaves[part, layer].grad * (goal[part, layer] - base[part, layer].detach())
            if part == "z":
                each = product.unflatten(-1, (n_heads, -1)).sum(-1)
            elif part == "pattern":
                each = product[:, :, rows].sum(2).transpose(1, 2)
            else:
                each = product.sum(-1)
            for number, span in enumerate(spans):
                if kernels[layer].cross and kind != "heads":
                    assert whole[layer, :, number].isnan().all()
                    continue
                chosen = clean.spans.mask("predicts" if span == "last" else span)[..., None]
                close(whole[layer, :, number], (each * chosen).sum(1).mean(0), 1e-5)
