"""What stands in a stream, said in tokens: streams at some places, decoded by the model's own last step.

Both lenses, over words and over image tokens, read here. The streams of the chosen places are kept, and
nothing of the size of the vocabulary: places go through the unembedding a few at a time, and of each the top
tokens and some numbers stay. In the same pass the last step is held against what the model did, always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing.edits import BadEdit
from seeing.edits.layers import Around, Slice, layers_of, layers_said
from seeing.edits.moment import Moment
from seeing.edits.select import Selector, selector
from seeing.families import FamilyContractError
from seeing.names import UnknownName, expand
from seeing.prompt import BadPrompt, Prompt
from seeing.proof import TOLERANCE
from seeing.unembedding import Unembedding, plain
from seeing.vlm import VLM

#: Numbers over the vocabulary that are held at a time: 32 MB of each kind.
_HELD = 2**23


@dataclass(frozen=True)
class Decoded:
    """Places, decoded in some layers.

    Attributes:
        top: (place, layer, k) token ids, the likeliest first.
        probs: (place, layer, k) their probabilities.
        targets: (place, target) the tokens asked about.
        ranks: (place, layer, target) how many tokens are likelier: 0 is the top.
        logprobs: (place, layer, target).
        entropy: (place, layer), nats.
        kl: (place, layer) KL(final ‖ layer), nats: how far a layer is from what the model says in the end.
    """

    top: Int[Tensor, "place layer k"]
    probs: Float[Tensor, "place layer k"]
    targets: Int[Tensor, "place target"]
    ranks: Int[Tensor, "place layer target"]
    logprobs: Float[Tensor, "place layer target"]
    entropy: Float[Tensor, "place layer"]
    kl: Float[Tensor, "place layer"]

    @classmethod
    def blank(cls, places: int, layers: int, k: int, targets: int) -> Decoded:
        """Places to be filled in."""
        whole, per_target = (places, layers, k), (places, layers, targets)
        return cls(
            torch.zeros(whole, dtype=torch.long),
            torch.zeros(whole),
            torch.zeros(places, targets, dtype=torch.long),
            torch.zeros(per_target, dtype=torch.long),
            torch.zeros(per_target),
            torch.zeros(places, layers),
            torch.zeros(places, layers),
        )

    @property
    def by_layer(self) -> tuple[Tensor, ...]:
        """All that has a layer axis."""
        return self.top, self.probs, self.ranks, self.logprobs, self.entropy, self.kl

    @classmethod
    def joined(cls, parts: Sequence[Decoded]) -> Decoded:
        """The places of all parts, in order."""
        return cls(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)))


def place_selector(positions: Any) -> Selector | str:
    """What stands for places: "last" and "answer" as they are, a selector for all else. Raises `BadEdit`."""
    if isinstance(positions, str) and positions in ("last", "answer"):
        return positions
    chosen = selector(positions)
    if chosen.reads or chosen.watches(None):
        raise BadEdit(
            f"{positions!r} is known while the model runs; a lens is laid over positions that the prompt "
            f"knows: a span, positions, boxes"
        )
    return chosen


def places_of(prompt: Prompt, positions: Any, *, unpadded: bool = False) -> Bool[Tensor, "batch pos"]:
    """The positions that ``positions`` means, as a mask; every row of the prompt has some.

    "last" is the prompt's own last token, also where an answer is put behind it, and "answer" are then the
    positions that predict the answer's tokens. ``unpadded``: positions by number count from a row's own first
    token, or from its last one before an answer. Raises `BadEdit`, `BadPrompt`, `EmptySelection`.
    """
    real, chosen = prompt.inputs["attention_mask"].bool().cpu(), place_selector(positions)
    if isinstance(chosen, str):
        return _predicting(prompt, real, chosen)
    return Moment.before(prompt, unpadded).some(chosen, "positions", decodes=False) & real


def _predicting(prompt: Prompt, real: Bool[Tensor, "batch pos"], what: str) -> Bool[Tensor, "batch pos"]:
    if prompt.answers:
        predicts = prompt.spans.mask("predicts")
        return predicts if what == "answer" else predicts & (predicts.cumsum(1) == 1)
    if what == "answer":
        raise BadPrompt(
            "the prompt carries no answer whose tokens some position predicts; give it one: "
            "prompt.with_answer(text)"
        )
    return torch.arange(prompt.length).expand_as(real) == prompt.length - 1


def padding_of(prompt: Prompt) -> Int[Tensor, " batch"]:
    """How many tokens of padding stand before each row."""
    return prompt.inputs["attention_mask"].cpu().argmax(1)


def lens_layers(vlm: VLM, layers: Any, site: str) -> tuple[int, ...]:
    """The layers to decode ``site`` of. "all", "deep" and slices pass over layers that lack the site.

    Raises `BadEdit` for a layer that the model lacks, `UnknownName` for a site that it lacks there, and for
    one that is no part of the stream.
    """
    names = {layer: f"text.{layer}.{site}" for layer in layers_of(layers, vlm.cfg.n_layers)}
    if isinstance(layers_said(layers), (str, Slice, Around)):
        there = {layer: name for layer, name in names.items() if name in vlm.sites}
        names = there or names
    expand(list(names.values()), list(vlm.sites), vlm.sites.absent)
    if not (site.startswith("resid_") or site in ("attn_out", "mlp_out", "ple_out")):
        raise UnknownName(
            f"{site!r} is not in the residual stream, so it can't be unembedded; a lens takes resid_pre, "
            f"resid_mid, resid_post, attn_out or mlp_out"
        )
    return tuple(names)


def decode(
    vlm: VLM,
    prompt: Prompt,
    places: Bool[Tensor, "batch pos"],
    layers: Sequence[int],
    site: str,
    k: int,
    targets: Int[Tensor, "place target"] | None = None,
) -> Decoded:
    """Decode ``site`` of ``layers`` at ``places``, in one pass.

    ``targets`` are the tokens to follow; None is what the model itself puts first in the end.
    Raises `FamilyContractError` where the last layer, decoded so, is not what the model says.
    """
    if not 1 <= k <= vlm.cfg.d_vocab:
        raise ValueError(f"k is a number of tokens, from 1 to {vlm.cfg.d_vocab}, got {k!r}")
    last_step = Unembedding.of(vlm.family, vlm._module)
    names = [f"text.{layer}.{site}" for layer in layers]
    streams = _Streams(names, places, _speaking(prompt, places.shape[1]), last_step)
    streams.read(vlm, prompt)
    with torch.no_grad():
        return streams.decoded(k, targets)


def _speaking(prompt: Prompt, length: int) -> Bool[Tensor, "batch pos"]:
    """Where the model says the next token, among the last of ``length`` positions: at each row's end, and
    where it predicts a given answer's tokens."""
    n = prompt.n_given + 1
    ends = prompt.spans.mask("predicts")[:, -n:] if prompt.answers else torch.ones(len(prompt), 1).bool()
    return torch.nn.functional.pad(ends, (length - n, 0))


class _Streams:
    """The streams of one pass at some places: read, held against what the model made of them, decoded."""

    def __init__(
        self,
        names: Sequence[str],
        places: Bool[Tensor, "batch pos"],
        speaking: Bool[Tensor, "batch pos"],
        last_step: Unembedding,
    ):
        self.names, self.last_step = list(names), last_step
        self.places, self.speaking = places, speaking
        self.kept: dict[str, Tensor] = {}

    def read(self, vlm: VLM, prompt: Prompt) -> None:
        end = f"text.{vlm.cfg.n_layers - 1}.resid_post"
        wanted = [*self.names, end, *(["text.norm"] if "text.norm" in vlm.sites else [])]
        ordered = [name for name in vlm.sites if name in wanted]
        # Logits are held to the lens where there are some: at all places, or where the model speaks.
        held, settings = self.places | self.speaking, {}
        if vlm.edits is None and vlm._module._supports_logits_to_keep():
            # A tensor: told by a number, Gemma 4 would run no other rows in its last layers.
            settings["logits_to_keep"] = torch.arange(-prompt.n_given - 1, 0, device=vlm.device)
            held = self.speaking
        with torch.no_grad(), vlm.trace(prompt, **settings):
            self._keep(vlm, ordered, held)
        left = self.kept[end]
        self.normed = self.kept.get("text.norm")
        if self.normed is None:
            self.normed = self._normed(left)
        self._hold(vlm, left)

    def _keep(self, vlm: VLM, names: Sequence[str], held: Bool[Tensor, "batch pos"]) -> None:
        """Called in the trace."""
        rows, columns = held.nonzero(as_tuple=True)
        for name in names:
            value = vlm.sites[name].read()
            self.kept[name] = _at(value, *self.places.nonzero(as_tuple=True))
            last = _at(value, rows, columns)
        if "text.norm" not in vlm.sites:
            last = self._normed(last)
        logits = vlm.sites["logits"].read()
        self.d_vocab, size = logits.shape[-1], max(1, _HELD // logits.shape[-1])
        # Those kept are the last ones.
        off = [
            _off(self.last_step.of_normed(some), _at(logits, row, column))
            for some, row, column in zip(
                last.split(size), rows.split(size), (columns - held.shape[1]).split(size)
            )
        ]
        self.logits_off = torch.stack(off).amax(0)

    def _normed(self, stream: Float[Tensor, "place d_model"]) -> Float[Tensor, "place d_model"]:
        return stream if self.last_step.norm is None else plain(self.last_step.norm, stream)

    def _hold(self, vlm: VLM, left: Float[Tensor, "place d_model"]) -> None:
        """The last step is what the model does: its norm at every place, its logits where they are held."""
        tolerance = TOLERANCE.get(vlm._module.dtype, 3e-2)
        with torch.no_grad():
            norm_off = _off(self._normed(left), self.normed)
        for name, off in (("text.norm", norm_off), ("logits", self.logits_off)):
            error, size = off.tolist()
            if not error <= tolerance * max(size, 1e-12):
                edits = f", and the model runs under {vlm.edits!r:.200}" if vlm.edits is not None else ""
                raise FamilyContractError(
                    f"{vlm.family.name}: the last layer's stream, put through the model's final norm and "
                    f"unembedding, is off by {error:.3g} at {name} (largest value {size:.3g}){edits}. "
                    f"Something else stands between the stream and the logits, so what early layers would "
                    f"answer can't be told"
                )

    def decoded(self, k: int, targets: Int[Tensor, "place target"] | None) -> Decoded:
        """A few places at a time, on the CPU."""
        places = int(self.places.sum())
        # What is kept is laid out first: made layer by layer, it would lie between the large tables in memory
        # and keep them from being given back.
        n_targets = 1 if targets is None else targets.shape[1]
        found = Decoded.blank(places, len(self.names), k, n_targets)
        size = max(1, _HELD // self.d_vocab)
        for start in range(0, places, size):
            some = slice(start, start + size)
            final = self.last_step.of_normed(self.normed[some]).float().log_softmax(-1)
            wanted = final.argmax(-1, keepdim=True) if targets is None else targets[some].to(final.device)
            found.targets[some] = wanted.cpu()
            for layer, name in enumerate(self.names):
                logp = self.last_step(self.kept[name][some]).float().log_softmax(-1)
                for kept, part in zip(found.by_layer, _numbers(logp, final, wanted, k), strict=True):
                    kept[some, layer] = part.cpu()
        return found


def _at(
    value: Float[Tensor, "batch pos some"], rows: Int[Tensor, " place"], columns: Int[Tensor, " place"]
) -> Float[Tensor, "place some"]:
    return value[rows.to(value.device), columns.to(value.device)]


def _off(found: Float[Tensor, "place some"], expected: Float[Tensor, "place some"]) -> Float[Tensor, "2"]:
    """The largest difference, and the largest value expected."""
    expected = expected.float()
    return torch.stack([(found.to(expected) - expected).abs().max(), expected.abs().max()]).cpu()


def _numbers(
    logp: Float[Tensor, "place d_vocab"],
    final: Float[Tensor, "place d_vocab"],
    targets: Int[Tensor, "place target"],
    k: int,
) -> tuple[Tensor, ...]:
    """What is kept of one layer's distributions."""
    best = logp.topk(k, dim=-1)
    said = logp.gather(-1, targets)
    ranks = torch.stack([(logp > one[:, None]).count_nonzero(-1) for one in said.unbind(-1)], -1)
    entropy = torch.special.entr(logp.exp()).sum(-1)
    kl = torch.nn.functional.kl_div(logp, final, reduction="none", log_target=True).sum(-1)
    return best.indices, best.values.exp(), ranks, said, entropy, kl


def words_of(vlm: VLM, ids: Tensor) -> dict[int, str]:
    """Each id as the tokenizer decodes it, without the marks of word starts; line ends and blanks are shown.

    A token that is a part of a character only is shown as the tokenizer spells it.
    """
    tokenizer = vlm.processor.tokenizer
    found = {}
    for one in ids.unique().tolist():
        word = tokenizer.decode([one])
        if "\ufffd" in word:
            word = str(tokenizer.convert_ids_to_tokens(one))
        word = word.replace("▁", " ").strip(" ") or "␣"
        found[one] = word.replace("\n", "↵").replace("\t", "⇥")
    return found
