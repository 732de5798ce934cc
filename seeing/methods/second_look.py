"""The second look: read everywhere, then run the last token again with what was seen boosted.

An edit in one pass acts behind the layers that it reads. A second look acts in all of them: the prompt
runs once, the last token's rows are read, and the last token alone is taken out of the KV cache and run
again under the boost, for the price of one decoded token. It equals a whole second pass only where

* no earlier token of a prompt sees the last one, which the proof at load finds out (`VLM.last_unseen`).
  In PaliGemma every token sees all others: a boost of the last row changes the keys of the rest;
* the cache can give its last token up. A window that is full must have kept what fell out of it, keys of
  a picture (cross-attention layers) hold no token, and a recurrent state (Qwen3.5) can't go back;
* no other edit of the run looks at more of its pass than the last token.

Elsewhere the prompt runs a second time from its start. `plan` says which, and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import Cache, DynamicCache

from seeing.edits import BadEdit, Contrast, Edit, Positions, ScaleAttention, Selector, Span, seen
from seeing.edits.layers import attention_layers
from seeing.edits.moment import Moment
from seeing.edits.select import selector
from seeing.methods.method import Answers, HeadTable, Method, Shown
from seeing.prompt import Prompt
from seeing.vlm import VLM

#: Layer -> the last token's row of each head, over the layer's keys.
Rows = dict[int, Float[Tensor, "batch head key"]]


@dataclass(frozen=True)
class Plan:
    """How a second look runs: on the KV cache of the first (``kept``), or as a whole second pass; and why."""

    kept: bool
    why: str

    def __str__(self) -> str:
        return f"{'kept cache' if self.kept else 'whole pass'}: {self.why}"


@dataclass(frozen=True)
class SecondLook(Method):
    """Run the prompt, read ``heads``, run the last token again with the own region boosted, decode on.

    The region is the window of ``window`` tokens that ``heads`` {layer: [heads]} point at, as
    `edits.seen` finds it. ``keys`` may say other positions in their place: any selector. What it reads
    comes from the first look, so that ``layers`` need not lie behind. Keys that are known without a look
    (``"evidence"``) are boosted in the one pass that there is.
    """

    heads: HeadTable | None = None
    gain: float = 4.0
    layers: Any = "all"
    window: tuple[int, int] = (2, 2)
    keys: Any = None
    about = "run the last token again, own region boosted, on the kept KV cache"

    def __post_init__(self):
        if (self.heads is None) == (self.keys is None):
            raise BadEdit(
                f"a second look takes heads to read, {{layer: [heads]}}, or keys to boost: one of them; got "
                f"heads={self.heads!r}, keys={self.keys!r}"
            )

    @property
    def region(self) -> Selector:
        """The positions that are boosted."""
        return seen(self.heads, self.window) if self.keys is None else selector(self.keys)

    @staticmethod
    def plan(vlm: VLM) -> Plan:
        """Whether a second look at this model goes on from the KV cache of the first."""
        return plan(vlm)

    def edit(self, vlm: VLM, prompt: Prompt) -> ScaleAttention:
        """The boost of the second look. Runs the first look, where the region has to be read."""
        names = self._names(vlm)
        found = vlm.cache(prompt, names.values(), "last") if names else {}
        return self._boost(vlm, prompt, _last(found, names))

    def shown(self, vlm: VLM, prompt: Prompt) -> Shown:
        return vlm.with_edits(self.edit(vlm, prompt)), prompt

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        names = self._names(vlm)
        if not names or not self.plan(vlm).kept:
            return vlm.with_edits(self.edit(vlm, prompt)).answer(prompt)
        watched = names if vlm.last_unseen else _names(vlm.sites.kernels["text"])
        first = vlm.prefill(prompt, watched.values(), [-2, -1], past_key_values=rewindable(vlm))
        boost = self._boost(vlm, prompt, _last(first.activations, names))
        boosted = vlm.with_edits(boost)
        seen_before = not vlm.last_unseen and sees_last(vlm, first.activations, watched)
        if seen_before or looks_back(boost, vlm):
            return boosted.answer(prompt)
        drop_last(vlm, first.past_key_values)
        return boosted.answer(prompt, past_key_values=first.past_key_values)

    def _names(self, vlm: VLM) -> dict[int, str]:
        """What the first look reads. Raises `BadEdit` for what the model has not."""
        self.region.fit(vlm)
        return _names(sorted(self.region.reads))

    def _boost(self, vlm: VLM, prompt: Prompt, rows: Rows) -> ScaleAttention:
        if not rows:
            return ScaleAttention(keys=self.region, gain=self.gain, layers=self.layers)
        at = replace(Moment.before(vlm.shown(prompt)), readings=dict(rows))
        layers = self.layers
        if prompt.cross is not None:
            layers = crossing(self.layers, sorted(rows), vlm)
            at = at.across(layers[0])
        return ScaleAttention(keys=settled(self.region, at), gain=self.gain, layers=layers)


def plan(vlm: VLM) -> Plan:
    """How a second look at this model runs."""
    if vlm.last_unseen is False:
        return Plan(False, "an earlier token of a prompt sees the last one, as found at load")
    own = getattr(vlm._module.generation_config, "cache_implementation", None)
    if own not in (None, "hybrid"):  # transformers itself drops "hybrid", which old checkpoints carry
        return Plan(False, f"the checkpoint's generation config asks for a {own!r} cache")
    stuck = {type(layer).__name__ for layer in rewindable(vlm).layers if not layer.is_croppable}
    if stuck:
        return Plan(False, f"a cache with {', '.join(sorted(stuck))} can't give its last token up")
    for edit in getattr(vlm.edits, "edits", () if vlm.edits is None else (vlm.edits,)):
        if looks_back(edit, vlm):
            return Plan(False, f"{edit!r} looks at more of its pass than the last token")
    if vlm.last_unseen is None:
        return Plan(True, "not proved at load; its prompt pass shows whether an earlier token sees the last")
    return Plan(True, "no earlier token of a prompt sees the last one, as proved at load")


def looks_back(edit: Edit, vlm: VLM) -> bool:
    """Whether an edit would be another where the last token runs alone.

    It would where it looks at the tokens before, where it runs a second prompt beside, where it brings what
    it read in the last row to earlier ones, and where a full window shows that row fewer keys.
    """
    reads = frozenset().union(*(one.reads for one in edit.selectors))
    return (
        isinstance(edit, Contrast)
        or any(edit.watches(layer) for layer in range(vlm.cfg.n_layers))
        or any(vlm.sites.kernels["text"][layer].windowed for layer in reads)
        or (bool(reads) and getattr(edit, "queries", getattr(edit, "positions", None)) != Span("last"))
    )


def settled(one: Selector, at: Moment) -> Selector:
    """The selector with all that has to be read put into positions."""
    if not one.reads:
        return one
    if not one.parts:
        return Positions.of_mask(at.mask(one))
    parts = {field.name: getattr(one, field.name) for field in fields(one)}
    return replace(
        one, **{name: settled(part, at) for name, part in parts.items() if isinstance(part, Selector)}
    )


def crossing(layers: Any, reads: list[int], vlm: VLM) -> tuple[int, ...]:
    """Those of ``layers`` whose keys are the picture's, in a model where only some layers see it.

    Raises `BadEdit` where a layer that is named, or one that is read, has other keys.
    """
    kernels = vlm.sites.kernels["text"]
    across = [layer for layer, kernel in kernels.items() if kernel.cross]
    asked = attention_layers(layers, vlm)
    found = tuple(layer for layer in asked if layer in across)
    named = found if found and isinstance(layers, (str, slice)) else asked
    if wrong := sorted({*reads, *named} - set(across)):
        raise BadEdit(
            f"layers {wrong} see the words only: there is no region of the picture to read or to boost; the "
            f"picture's keys are in layers {across}"
        )
    return found


def rewindable(vlm: VLM) -> DynamicCache:
    """An empty KV cache whose sliding windows keep what falls out of them, until it is shortened."""
    cache = DynamicCache(config=vlm._module.config.get_text_config(decoder=True))
    cache.activate_past_recording()
    return cache


def drop_last(vlm: VLM, cache: Cache) -> None:
    """Take the last token out of a KV cache. The keys of a picture hold no token."""
    kernels = vlm.sites.kernels["text"]
    for number, layer in enumerate(cache.layers):
        if number not in kernels or not kernels[number].cross:
            layer.crop(-1)


def sees_last(vlm: VLM, found: dict[str, Tensor], names: dict[int, str]) -> bool:
    """Whether the token before the last sees the last, in rows of these two."""
    own = [name for layer, name in names.items() if not vlm.sites.kernels["text"][layer].cross]
    return any(bool((found[name][:, :, 0, -1] != 0).any()) for name in own)


def _names(layers: Iterable[int]) -> dict[int, str]:
    return {layer: f"text.{layer}.attn.pattern" for layer in layers}


def _last(found: dict[str, Tensor], names: dict[int, str]) -> Rows:
    return {layer: found[name][:, :, -1] for layer, name in names.items()}
