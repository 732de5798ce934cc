"""One visit of one place in the model: all edits there, in one go.

At the attention kernel of a layer, in this order:

1. the last row is read, where a selector looks at this layer;
2. `ScoreEdit`s change the pre-softmax rows, in the order written; then the softmax;
3. `PatternEdit`s change the post-softmax rows, in the order written;
4. the edited rows times v are put over those rows of the fused kernel's output.

Only the rows that some edit selects are computed, and only those are written, in the items and heads
selected; what an edited run reads of scores and pattern are the edited rows. At any other site the value is
read once, changed by its edits in the order written, and written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from seeing.attention import HIDDEN, AttentionCall, softmax
from seeing.edited import EditedRows
from seeing.edits.edit import PatternEdit, RowEdit, ScoreEdit, SiteEdit
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.seen import read_last
from seeing.kernels import Kernel
from seeing.names import Name
from seeing.sites import Site, own_rows


@dataclass
class KernelVisit:
    """All edits of one layer's rows, in one visit of its kernel call.

    ``read`` says that its last row is looked at.
    """

    kernel: Kernel
    edits: list[RowEdit] = field(default_factory=list)
    read: bool = False

    @property
    def name(self) -> str:
        return f"text.{self.kernel.layer}.attn.pattern"

    def due(self, steps: range, looks: bool) -> bool:
        return (self.read and steps[0] == 0) or any(edit.now(step) for edit in self.edits for step in steps)

    @property
    def stop(self) -> float:
        """The step from which on there is nothing to do."""
        return max((edit.stop for edit in self.edits), default=1)

    def run(self, at: Moment) -> None:
        call = self.kernel.call()
        at = at.on(call.q.device).spread(len(call.q)).at(self.kernel.layer)
        if self.read:
            read_last(at, self.kernel.layer, call)
        edited = self.edited(call, [edit for edit in self.edits if at.acts(edit)], at)
        if edited is None:
            return
        if any(one.shares(edited.items) for one in self.kernel.edited):
            raise BadEdit(
                f"rows of layer {self.kernel.layer} are edited twice in this run, by an edited copy and in "
                f"its trace: put both into one, edits + more"
            )
        # From here to the kernel's output whoever reads this attention is shown the edited rows.
        self.kernel.edited.append(edited)
        # A decoded token's only row, edited in all heads: what the kernel would make of it is not needed.
        alone = edited.all and self.kernel.skipped is not None
        try:
            if alone:
                Mediator.skip(self.kernel.skipped, self.kernel.given(edited.alone()))
            served = Mediator.value(self.kernel.target)
        finally:
            self.kernel.edited[:] = [one for one in self.kernel.edited if one is not edited]
        if not alone:
            Mediator.swap(self.kernel.target, self.kernel.put(served, edited.onto(self.kernel.take(served))))

    def edited(self, call: AttentionCall, edits: Sequence[RowEdit], at: Moment) -> EditedRows | None:
        """Every row that some edit selects, or None when none does here."""
        if not edits:
            return None
        if not self.kernel.cross and not self._holds(call, at):
            raise BadEdit(
                f"step {at.step} attends to {call.n_keys} keys, the prompt and the decoded tokens are "
                f"{at.n_seen}; a static KV cache, or a prompt that is not the one that runs, can't be "
                f"edited by position"
            )
        queries = [at.acting(edit.queries, "queries", edit, call.n_queries) for edit in edits]
        union = queries[0] if len(queries) == 1 else torch.stack(queries).any(0)
        rows = union.any(0).nonzero()[:, 0]
        if not len(rows):
            return None
        keys = at.across(self.kernel.layer) if self.kernel.cross else at.newest(call.n_keys)
        return _Rows(call, list(zip(edits, queries)), keys, self.kernel.layer).lazily(rows)

    def _holds(self, call: AttentionCall, at: Moment) -> bool:
        """Whether the keys are the prompt and the decoded tokens, or a window's newest of them."""
        return call.n_keys == at.n_seen or (self.kernel.windowed and call.n_keys < at.n_seen)


@dataclass
class _Rows:
    """Some edits of one call, each with its queries (batch, query): applied to the rows asked for."""

    call: AttentionCall
    edits: list[tuple[RowEdit, Bool[Tensor, "batch query"]]]
    keys: Moment
    layer: int

    def lazily(self, rows: Tensor) -> EditedRows:
        reshapes = any(isinstance(edit, PatternEdit) for edit, _ in self.edits)
        items = own_rows()
        everything = (
            items is None
            and self.keys.crosses is None
            and self.call.n_queries == 1
            and any(edit.heads_at(self.layer) is None and bool(mask.all()) for edit, mask in self.edits)
        )
        return EditedRows(self.call, rows, self.scores, self.pattern, reshapes, items, everything)

    def scores(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(chosen, scores) of the rows: (batch, head, rows) and (batch, head, rows, key)."""
        scores, at = self.call.scores(rows), replace(self.keys, rows=rows)
        hidden = scores <= HIDDEN
        # A mask of large negative numbers lets masked keys in where a cut leaves no others: they are taken
        # away for good. Rows that see nothing to begin with (padding) stay as the kernel has them.
        blind = hidden.all(-1)
        hidden = hidden & ~blind[..., None]
        scores = scores.masked_fill(hidden, float("-inf"))
        changed = torch.zeros(scores.shape[:3], dtype=torch.bool, device=scores.device)
        for edit, mask in self.edits:
            chosen = self.chosen(edit, mask, rows, scores) & ~blind
            changed = changed | chosen
            if isinstance(edit, ScoreEdit):
                edited = edit.scores(scores, at)
                # What the mask hides, and what an edit before has cut.
                cut = scores == float("-inf")
                _check(edit, edited, scores, cut | ~chosen[..., None])
                edited = edited.masked_fill(cut, float("-inf"))
                scores = torch.where(chosen[..., None], edited, scores)
        return changed, scores

    def pattern(self, scores: Tensor, rows: Tensor) -> Tensor:
        """What the rows end as: (batch, head, rows, key)."""
        # What the mask hides and what was cut is −∞ by now; a score that is very low is seen.
        pattern, seen, at = softmax(scores), scores > float("-inf"), replace(self.keys, rows=rows)
        for edit, mask in self.edits:
            if isinstance(edit, PatternEdit):
                chosen = self.chosen(edit, mask, rows, scores)
                edited = edit.pattern(pattern, at, seen)
                _check(edit, edited, pattern, ~chosen[..., None])
                pattern = torch.where(chosen[..., None], edited, pattern)
        return pattern

    def chosen(
        self, edit: RowEdit, mask: Tensor, rows: Tensor, like: Tensor
    ) -> Bool[Tensor, "batch head rows"]:
        chosen = mask[:, None, rows].expand(like.shape[:3])
        heads = edit.heads_at(self.layer)
        if heads is None:
            return chosen
        some = torch.zeros(like.shape[1], dtype=torch.bool, device=like.device)
        some[list(heads)] = True
        return chosen & some[:, None]


def _check(edit: RowEdit, edited: Any, given: Tensor, spared: Tensor) -> None:
    """Refuse rows that can't be attention; ``spared`` are those that the edit does not write."""
    if not isinstance(edited, Tensor) or edited.shape != given.shape:
        found = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise BadEdit(f"{edit!r} gave {found}; rows here are {tuple(given.shape)}: batch head rows key")
    bad = edited.isnan() | (edited == float("inf"))
    if isinstance(edit, PatternEdit):
        bad = bad | (edited < 0)
    if (bad & ~spared).any():
        raise BadEdit(
            f"{edit!r} gave {int((bad & ~spared).sum())} values that are no attention: NaN, infinite or, "
            f"behind the softmax, negative"
        )


@dataclass
class SiteVisit:
    """All edits of one named site, in one visit: a derived site is read only once in a pass.

    Before step ``watched`` the value, as the edits leave it, is kept for those that look at it further on.
    ``cross`` says that the layer's keys are the picture's alone.

    Keys and values lie behind the KV cache, which has them as the model made them: a token's are edited in
    the step that it is new, and put in again in every later one.
    """

    site: Site
    cross: bool = False
    edits: list[SiteEdit] = field(default_factory=list)
    watched: float = 0

    @property
    def name(self) -> str:
        return self.site.name

    def due(self, steps: range, looks: bool) -> bool:
        """Whether there is something to do in this pass; the tower runs only in a first one that looks."""
        runs = steps[0] < self.stop and (looks or not self._tower)
        acts = any(edit.now(step) for edit in self.edits for step in steps)
        return runs and (self._cached or steps[0] < self.watched or acts)

    @property
    def stop(self) -> float:
        """The step from which on there is nothing to do."""
        if self._cached and self.edits:
            return math.inf
        return 1 if self._tower else max((edit.stop for edit in self.edits), default=self.watched)

    @property
    def _cached(self) -> bool:
        name = Name.parse(self.site.name)
        return name.stack == "text" and name.site in ("attn.k", "attn.v")

    @property
    def _tower(self) -> bool:
        return Name.parse(self.site.name).in_tower

    def run(self, at: Moment) -> None:
        value = self.site.read()
        at = at.on(value.device).at(Name.parse(self.site.name).layer)
        at = at if self._tower else at.spread(len(value))
        edits = [edit for edit in self.edits if at.acts(edit)]
        edited = self._with_past(value, edits, at) if self._cached else _through(edits, value, at)
        if at.step < self.watched:
            at.readings[self.site.name] = edited
        if edited is not value:
            with self.site.shown(edited):
                self.site.write(edited)

    def _with_past(self, value: Tensor, edits: Sequence[SiteEdit], at: Moment) -> Tensor:
        """Keys or values (batch, key, …), those of earlier tokens as they were edited when they were new."""
        name = ("past", self.site.name)
        past = at.readings.get(name)
        if not edits and past is None:
            return value
        if past is not None and at.copies > 1:
            raise BadEdit(
                f"{self.site.name} was edited for beams or several sequences, which change places: edit "
                f"it in runs of one sequence a prompt"
            )
        # The picture's keys are all there from the start; of others a later step adds one.
        known = 0 if at.step == 0 else value.shape[1] - (0 if self.cross else 1)
        old = value[:, :known] if past is None else past[:, past.shape[1] - known :]
        new = _through(edits, value[:, known:], at.across(at.layer) if self.cross else at)
        at.readings[name] = torch.cat([old, new], 1)
        return at.readings[name]


def _through(edits: Sequence[SiteEdit], value: Tensor, at: Moment) -> Tensor:
    """``value`` as the edits leave it, one behind the other."""
    for edit in edits:
        edited, given = edit.value(value, at), value
        everywhere = edit.aligned or Name.parse(edit.site).in_tower
        within = None if everywhere else at.within(edit, given.shape[1])
        value = edited if within is None else torch.where(_beside(within, given), edited, given)
    return value


def _beside(tokens: Bool[Tensor, " token"], value: Float[Tensor, "batch token *rest"]) -> Tensor:
    """A mask of tokens as it broadcasts with a value that has them."""
    return tokens.to(value.device).reshape(1, -1, *(1,) * (value.ndim - 2))
