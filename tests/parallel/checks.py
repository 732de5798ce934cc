"""What is asked of a model, wherever its weights lie: the same functions run in one process and on any rank.

Each check takes a model and gives tensors by name, to be held against what the same weights give when they
are loaded in another way.
"""

import functools

import torch
from tiny.merged import gemma4
from tiny.packed import qwen3_5
from tiny.tiled import mllama
from torch import Tensor

from seeing import edits as E
from seeing.data.plates import plates
from seeing.methods import BoostInPass, SecondLook, Vea
from seeing.probes import attribution, direct_effects
from seeing.unembedding import Unembedding

#: Heads of a model with four, two on either of two ranks: of the first, of the second, of both.
NAMED = {1: [0], 2: [3], 3: [1, 2]}

#: Models beside the embedded one. One has queries that come with a gate, and keys that two heads share; one
#: a tower whose heads can be split too; one layers with gates of their own.
MODELS = {
    "gated": qwen3_5,
    "tower": functools.partial(gemma4, vision=dict(num_attention_heads=2, num_key_value_heads=2)),
    "gates": mllama,
}


def batch(vlm):
    """Two prompts of different length, padded on the left; pictures that are not square."""
    one, other = plates("easy", 2, seed=5)
    wide = other.image.resize((90, 60))
    return vlm.prompts([(one.image, one.question, one.boxes), (wide, "what digit is on the square ?")])


def edits(vlm):
    """Edits of every place that ranks hold pieces of, by what they are about."""
    other = vlm.prompts([(one.image, one.question) for one in plates("easy", 2, seed=9)])
    source = vlm.cache(other, ["text.*.attn.z", "text.2.attn.result", "text.2.mlp.post"])
    stream, head = (torch.linspace(-1, 1, size) for size in (vlm.cfg.d_model, vlm.cfg.d_head))
    looks = E.seen({0: [0, 3], 1: [1, 2]})
    return {
        "ablated": E.AblateHeads(NAMED),
        "ablated to their mean": E.AblateHeads(NAMED, to="mean"),
        "ablated to another prompt's": E.AblateHeads(NAMED, to="mean", source=source),
        "scaled": E.ScaleHeads(NAMED, factor=-1.5),
        "set": E.SetHeads({2: [1, 3]}, torch.stack([head, -head])),
        "cut for some heads": E.Knockout(keys="image", heads=NAMED),
        "cut for all": E.Knockout(keys="image", layers=[2, 3]),
        "more where it looks": E.ScaleAttention(keys=looks, gain=6.0, layers=[2, 3], heads=[1, 2]),
        "patterns set": E.SetPattern("uniform", keys="image", heads={1: [3], 2: [0, 1]}),
        "queries steered": E.Steer("text.1.attn.q", head, 2.0),
        "keys steered": E.Steer("text.1.attn.k", head, 2.0, positions="image"),
        "hidden units set": E.SetResidual("text.2.mlp.post", 0.3),
        "steered": E.Steer("text.2.resid_post", stream, 3.0),
        "results patched": E.Patch("text.2.attn.result", source, positions="image", heads=[2, 3]),
        "early layers mixed in": E.MixLayers([1, 2], weight=0.3),
    }


def names(vlm) -> dict[str, Tensor]:
    return dict(vlm.cache(batch(vlm), vlm.names(), queries="all"))


def rows(vlm) -> dict[str, Tensor]:
    """The rows that some heads use under an edit."""
    edited = vlm.with_edits(E.ScaleAttention(keys="image", gain=4.0, heads=NAMED))
    return dict(edited.cache(batch(vlm), ["text.1-3.attn.pattern", "text.2.attn.scores"]))


def block(vlm) -> dict[str, Tensor]:
    """Values read, edited in place and assigned in a trace."""
    kept = {}
    with torch.no_grad(), vlm.trace(batch(vlm)):
        vlm.text[0].attn.q[:, :, 3] = 0
        vlm.text[1].attn.pattern[:, 2] = vlm.text[1].attn.pattern[:, 1]
        vlm.text[1].attn.z[:, :, 1] *= 2
        vlm.text[2].mlp.post[..., ::3] = 0
        vlm.text[3].attn.result = vlm.text[3].attn.result.flip(2) * 1.5
        kept["z"] = vlm.text[4].attn.z.clone()
        kept["logits"] = vlm.logits.clone()
    return kept


def edited(vlm) -> dict[str, Tensor]:
    prompt = batch(vlm)
    return {name: vlm.with_edits(one).cache(prompt, "logits")["logits"] for name, one in edits(vlm).items()}


def single_heads(vlm) -> dict[str, Tensor]:
    """The logits without one head of the last layer that has heads, by its number."""
    prompt, layer = batch(vlm), max(vlm.sites.kernels["text"])
    return {
        f"{head}": vlm.with_edits(E.AblateHeads({layer: [head]})).cache(prompt, "logits")["logits"]
        for head in range(vlm.cfg.n_heads)
    }


def answers(vlm) -> dict[str, Tensor]:
    """Tokens and their log-probabilities: plain, under edits that act at decoded tokens, and of methods."""
    prompt, three = batch(vlm), dict(max_new_tokens=3, min_new_tokens=3)
    edits = E.AblateHeads(NAMED) + E.ScaleAttention(keys=E.seen({0: [0, 3]}), gain=5.0, layers=[2])
    given = {
        "plain": vlm.answer(prompt, **three),
        "edited": vlm.with_edits(edits).answer(prompt, **three),
        "vea": Vea((2, 3)).answer(vlm, prompt),
        "boost in the pass": BoostInPass({1: [0, 3]}, layers=(2, 3)).answer(vlm, prompt),
        "second look": SecondLook({2: [1, 2]}).answer(vlm, prompt),
    }
    return {
        f"{name}, row {row}, {part}": getattr(answer, part)
        for name, answers in given.items()
        for row, answer in enumerate(answers)
        for part in ("ids", "token_logprobs")
    }


def scores(vlm) -> dict[str, Tensor]:
    given = batch(vlm).with_answer(["3", "7"])
    score = vlm.with_edits(E.Knockout(keys="image", heads=NAMED)).score(given)
    return {"logits": score.logits, "token_logprobs": score.token_logprobs}


def weights(vlm) -> dict[str, Tensor]:
    layer = min(vlm.sites.kernels["text"])
    heads = {name: getattr(vlm, name)[layer] for name in ("W_Q", "W_K", "W_V", "W_O")}
    return heads | {"W_U": vlm.W_U, "W_E": vlm.W_E}


def lens(vlm) -> dict[str, Tensor]:
    stream = vlm.cache(batch(vlm), "text.1.resid_post")["text.1.resid_post"]
    return {"logits": Unembedding.of(vlm.family, vlm._module)(stream)}


def gradients(vlm) -> dict[str, Tensor]:
    wanted = ["text.1.attn.pattern", "text.1.attn.z", "text.2.attn.q", "text.2.mlp.post", "text.0.resid_post"]
    found = vlm.cache(batch(vlm), [*wanted, "logits"], queries="all", grad=True)
    loss = found["logits"][:, -1].log_softmax(-1)[:, 7].sum()
    return dict(zip(wanted, torch.autograd.grad(loss, [found[name] for name in wanted])))


def probes(vlm) -> dict[str, Tensor]:
    """What heads do, by gradients and by taking the logits apart."""
    samples = plates("easy", 3, seed=5)
    return {
        "attribution": attribution(vlm, samples, E.Noise(0.2)).heads,
        "direct effects": direct_effects(vlm, samples).heads,
    }


#: A study that profiles, and looks where it looks.
STUDY, SAID = ("plates-tiny", "plates:12", "base,vea_in_pass:gain=8"), dict(hold_out=8, rows=3)

#: Of the embedded model, and of the others.
ALL = (names, rows, block, edited, single_heads, answers, scores, weights, lens, gradients, probes)
SOME = (names, single_heads, weights)


def found_by(checks, vlm) -> dict[str, dict[str, Tensor]]:
    return {check.__name__: {key: value.detach() for key, value in check(vlm).items()} for check in checks}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-5) -> None:
    """``within`` is relative to the largest value of each tensor, or to 1."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        finite = value[value.isfinite()].abs()
        size = max(1.0, float(finite.max())) if len(finite) else 1.0
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0,
            atol=within * size,
            equal_nan=True,
            msg=lambda said, name=name: f"{name}: {said}",
        )
