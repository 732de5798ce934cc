"""One step of a run, as the edits see it: which prompt runs, how far it has come, what was read.

Selectors are resolved against a `Moment`, and only once in a step, however many edits share them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing.prompt import Prompt

if TYPE_CHECKING:
    from seeing.edits.edit import Edit
    from seeing.edits.select import Selector


class EmptySelection(ValueError):
    """A selector that selects nothing in the prompt at hand."""


class BadEdit(ValueError):
    """An edit that does not fit the model or the prompt."""


@dataclass
class Moment:
    """One step of a run.

    ``step`` 0 is the prompt pass, later ones decode one token each. ``readings`` lasts through the run:
    what was read for selectors and edits that look. ``layer`` is the text layer that is edited, where one
    is. ``crosses`` is the cross-attention layer whose keys the prompt describes, if it does. ``shift`` is by
    how much the rows were padded on the left beyond the prompt that was asked for. ``rows`` are the queries
    of this pass that are being computed. ``copies`` is how often each row of the prompt runs; ``asking`` is
    the moment that they belong to, where keys are others. ``newest_is`` "all" or "none" lets "last" be every
    position, or none. ``padding`` is how far each row's own first token, from which positions by number then
    count, stands from the start.
    """

    prompt: Prompt | None
    step: int
    n_prompt: int
    batch: int
    device: torch.device
    readings: dict[Any, Any] = field(default_factory=dict)
    resolved: dict[Any, Tensor] = field(default_factory=dict)
    n_keys: int | None = None
    layer: int | None = None
    crosses: int | None = None
    shift: int = 0
    rows: Int[Tensor, " rows"] | None = None
    asking: Moment | None = None
    copies: int = 1
    newest_is: str | None = None
    padding: Int[Tensor, " batch"] | None = None

    @classmethod
    def before(cls, prompt: Prompt, unpadded: bool = False) -> Moment:
        """The prompt pass of ``prompt``, for selectors that look at nothing but the prompt.

        ``unpadded``: positions by number count from a row's own first token, in whatever batch it stands.
        """
        at = cls(prompt, 0, prompt.length, len(prompt), torch.device("cpu"))
        return replace(at, padding=prompt.inputs["attention_mask"].cpu().argmax(1)) if unpadded else at

    @property
    def steps(self) -> range:
        """The steps that this pass stands for: its own and, in a prompt that goes on with a given answer,
        those in which generation would take its tokens in."""
        given = self.prompt is not None and self.step == 0 and self.crosses is None
        return range(self.step, self.step + 1 + (self.prompt.n_given if given else 0))

    @property
    def asked(self) -> Bool[Tensor, " pos"]:
        """Which positions are the prompt's own: neither decoded, nor of a given answer."""
        n_asked = self.n_prompt if self.prompt is None else self.prompt.n_asked
        return torch.arange(self.n_seen, device=self.device) < n_asked

    def acts(self, edit: Edit) -> bool:
        """Whether ``edit`` acts at some token of this pass."""
        return any(edit.now(step) for step in self.steps)

    def within(self, edit: Edit, n_tokens: int) -> Bool[Tensor, " tokens"] | None:
        """The tokens of this pass at which ``edit`` acts by its steps; None for all of them."""
        if all(edit.now(step) for step in self.steps):
            return None
        n_asked = self.n_seen + 1 - len(self.steps)
        own = [edit.now(self.step)] * n_asked + [edit.now(step) for step in self.steps[1:]]
        return torch.tensor(own[self.n_seen - n_tokens :], dtype=torch.bool, device=self.device)

    @property
    def n_seen(self) -> int:
        """Positions so far: the prompt's, and one a decoded token."""
        return self.n_prompt + self.step

    def mask(self, selector: Selector) -> Bool[Tensor, "batch pos"]:
        """The selector's positions; resolved once a step, or once a layer where it depends on the layer."""
        key = (selector, self.layer) if selector.local else selector
        if key not in self.resolved:
            self.resolved[key] = selector.mask(self).to(self.device)
        return self.resolved[key]

    def some(self, selector: Selector, what: str, decodes: bool = True) -> Bool[Tensor, "batch pos"]:
        """The selector's positions, where every row must have some, now or (``decodes``) when it decodes.

        Raises `EmptySelection` otherwise: an edit that acts on nothing would pass for one without effect.
        """
        mask = self.mask(selector)
        if selector.may_be_empty:
            return mask
        checked = ("some", selector, self.layer if selector.local else None, decodes)
        if checked not in self.resolved:
            empty = ~mask.any(1)
            if decodes and empty.any():
                empty = ~replace(self, step=self.step + 1, resolved={}).mask(selector).any(1)
            if empty.any():
                row = int(empty.nonzero()[0])
                raise EmptySelection(
                    f"{what}={selector!r} selects no position in row {row} of the prompt; where that is "
                    f"meant, wrap it: E.maybe({selector!r})"
                )
            self.resolved[checked] = mask
        return mask

    def acting(
        self, selector: Selector, what: str, edit: Edit, n_tokens: int
    ) -> Bool[Tensor, "batch tokens"]:
        """The selector's positions among the tokens of this pass, which ``edit`` changes. Raises as `some`.

        An edit of decoded tokens alone has to select those.
        """
        within = self.within(edit, n_tokens)
        if edit.now(0):
            mask = self.tokens(self.some(selector, what, edit.decodes), n_tokens)
            return mask if within is None else mask & within
        mask = self.tokens(self.mask(selector), n_tokens)
        mask = mask if within is None else mask & within
        # Of given answers a shorter one may have ended before the edit begins.
        if not (selector.may_be_empty or len(self.steps) > 1 or mask.any(1).all()):
            raise EmptySelection(
                f"{what}={selector!r} selects no token that is decoded, and with when={edit.when!r} the edit "
                f"acts on no others; leave it to the prompt pass, or say {what}='last'"
            )
        return mask

    def spread(self, batch: int) -> Moment:
        """The same moment where every row runs several times, as beams and sampled sequences do."""
        if batch == self.batch:
            return self
        copies, left = divmod(batch, self.batch)
        if left or self.prompt is None:
            raise BadEdit(f"the run has {batch} rows, the prompt {self.batch}: which is which is not known")
        rows = [row for row in range(self.batch) for _ in range(copies)]
        return replace(self, prompt=self.prompt.take(rows), batch=batch, copies=copies, resolved={})

    def each(self, value: Float[Tensor, "*axes"]) -> Float[Tensor, "*more"]:
        """A value (batch, …) of the prompt's rows, for every time that they run; others as they are."""
        by_row = value.ndim == 4 and 1 < len(value) == self.batch // self.copies
        return value.repeat_interleave(self.copies, 0) if by_row and self.copies > 1 else value

    def on(self, device: torch.device) -> Moment:
        """The same moment for values on ``device``: the layers of a model may lie on several."""
        return self if device == self.device else replace(self, device=device, resolved={})

    def at(self, layer: int | None) -> Moment:
        """The same moment in a layer; what is resolved is shared."""
        return self if layer == self.layer else replace(self, layer=layer)

    def newest(self, n_keys: int) -> Moment:
        """The same moment for keys of a layer that keeps the newest ``n_keys`` only."""
        return self if n_keys == self.n_seen else replace(self, n_keys=n_keys)

    def across(self, layer: int) -> Moment:
        """The same moment over the keys of a cross-attention layer: selectors mean the image's keys there."""
        cross = self.need_prompt(f"an edit of cross-attention layer {layer}").cross
        return replace(
            self,
            prompt=cross,
            step=0,
            n_prompt=cross.length,
            resolved={},
            crosses=layer,
            shift=0,
            asking=self,
        )

    def keys(self, selector: Selector, decodes: bool = True) -> Bool[Tensor, "batch key"]:
        """The keys selected, among those that the layer at hand holds. Raises as `some`."""
        mask = self.some(selector, "keys", decodes and self.crosses is None)
        return mask if self.n_keys is None else mask[:, -self.n_keys :]

    def key_mask(self, selector: Selector, decodes: bool = True) -> Bool[Tensor, "batch 1 #rows key"]:
        """The keys selected, for the rows being computed. Raises as `some`.

        In the rows of a given answer "last" is each row's own token.
        """
        keys = self.keys(selector, decodes)
        if len(self.steps) < 3 or self.rows is None:
            return keys[:, None, None, :]
        own, others = (
            replace(self, newest_is=one, resolved={}).mask(selector)[:, None, None, -keys.shape[1] :]
            for one in ("all", "none")
        )
        newest = self.rows.to(self.device).clamp(min=self.prompt.n_asked - 1)
        place = torch.arange(self.n_seen, device=self.device)[-keys.shape[1] :]
        return torch.where(newest[:, None] == place, own, others)

    def tokens(self, mask: Bool[Tensor, "batch pos"], n_tokens: int) -> Bool[Tensor, "batch tokens"]:
        """The part of a mask over all positions that belongs to the tokens of this pass."""
        return mask[:, mask.shape[1] - n_tokens :]

    def pick_rows(self, value: Float[Tensor, "*batch key"], whose: str) -> Float[Tensor, "*picked key"]:
        """The rows being computed, of a value with one row for all or one for each query of the prompt."""
        if value.ndim < 2 or value.shape[-2] == 1:
            return value
        asking = self.asking or self
        length = asking.n_prompt - asking.shift
        if value.shape[-2] != length or asking.step:
            raise BadEdit(
                f"{whose} has {value.shape[-2]} rows; expected one, or {length}, one for each token "
                f"of the prompt (and then when='prompt')"
            )
        return value.index_select(-2, (self.rows - asking.shift).clamp(min=0).to(value.device))

    def need_prompt(self, what: str) -> Prompt:
        if self.prompt is None:
            raise BadEdit(f"{what} needs to know the prompt: run the edited model on a Prompt, vlm.prompt(…)")
        return self.prompt

    def widened(self, mask: Bool[Tensor, "batch prompt"]) -> Bool[Tensor, "batch pos"]:
        """A mask over the prompt, with the decoded tokens left out."""
        return torch.nn.functional.pad(mask, (0, self.n_seen - mask.shape[1]))

    def real(self) -> Bool[Tensor, "batch pos"]:
        """Which positions so far are no padding."""
        prompt = self.need_prompt("leaving padding out")
        if self.crosses is not None:
            return torch.ones(self.batch, self.n_seen, dtype=torch.bool, device=self.device)
        kept = prompt.inputs["attention_mask"].bool().cpu()
        return torch.nn.functional.pad(kept, (0, self.n_seen - kept.shape[1]), value=True).to(self.device)
