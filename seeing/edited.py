"""Rows of attention that edits change, between the kernel's call and what it gave.

While edits wait to put their rows over the kernel's output, whoever reads the attention of that layer must be
shown the rows that the model will use, and only those of its own prompts: in a batch of several invokes, or
of a run and a second one beside it, the edits of one are nothing to the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seeing.attention import CHUNK, AttentionCall, Rows, pick

#: Rows of a batch, (first, count); None for all of it.
Items = tuple[int, int] | None


@dataclass(frozen=True)
class EditedRows:
    """Rows of one kernel call that edits change, computed when they are asked for, in chunks.

    ``scores_of(rows)`` gives (chosen, scores) of some of ``rows``: the edited scores, and in which items and
    heads they are edited; what is not chosen stays the kernel's own, bit for bit. ``finish(scores, rows)``
    is the pattern that they end as: a softmax, and where edits ``reshape`` the pattern, what they make of it.
    ``items`` are those of the batch that the call holds; ``all`` says that every row is edited, in all heads.
    """

    call: AttentionCall
    rows: Int[Tensor, " rows"]
    scores_of: Callable[[Tensor], tuple[Tensor, Tensor]]
    finish: Callable[[Tensor, Tensor], Tensor]
    reshapes: bool = False
    items: Items = None
    all: bool = False

    def shares(self, items: Items) -> bool:
        """Whether some of ``items`` are edited here."""
        return self._shared(items, len(self.call.q) if items is None else items[1]) is not None

    def over(
        self, values: Float[Tensor, "batch head some key"], rows: Rows | None, softmaxed: bool, items: Items
    ) -> Float[Tensor, "batch head some key"]:
        """``values``, scores or pattern of ``rows`` in ``items``, with the edited ones in their places."""
        shared = self._shared(items, len(values))
        if shared is None:
            return values
        mine, theirs = shared
        place = torch.full((self.call.n_queries,), -1, device=values.device)
        place[self.rows] = torch.arange(len(self.rows), device=values.device)
        asked = place if rows is None else place[rows.to(values.device)]
        asked = asked[theirs] if asked.ndim == 2 else asked
        part = values[theirs]
        for some in self._chunks(asked[asked >= 0].unique()):
            chosen, edited = (one[mine] for one in self._computed(self.rows[some], softmaxed))
            spot = torch.full_like(place, -1)[: len(self.rows)]
            spot[some] = torch.arange(len(some), device=values.device)
            spot = spot[asked.clamp(min=0)].masked_fill(asked < 0, -1)
            hit = (spot >= 0)[:, None, :, None] if spot.ndim == 2 else (spot >= 0)[:, None]
            chosen, edited = (pick(one, spot.clamp(min=0)) for one in (chosen[..., None], edited))
            part = torch.where(chosen & hit, edited, part)
        return torch.cat([values[: theirs.start], part, values[theirs.stop :]])

    def onto(
        self, output: Float[Tensor, "batch query head d_value"]
    ) -> Float[Tensor, "batch query head d_value"]:
        """The kernel's ``output`` with what the edited rows write out; a new tensor."""
        parts = []
        for some in self._chunks(torch.arange(len(self.rows), device=self.rows.device)):
            rows = self.rows[some]
            chosen, pattern = self._computed(rows, softmaxed=True)
            z = self.call.z(pattern).to(output.dtype)
            kept = output.index_select(1, rows)
            parts.append(torch.where(chosen.transpose(1, 2)[..., None], z, kept))
        return output.index_copy(1, self.rows, torch.cat(parts, 1))

    def alone(self) -> Float[Tensor, "batch query head d_value"]:
        """What the kernel would give of rows that are ``all`` edited."""
        return self.call.z(self._computed(self.rows, softmaxed=True)[1]).to(self.call.v.dtype)

    def finished(
        self,
        scores: Float[Tensor, "batch head some key"],
        pattern: Float[Tensor, "batch head some key"],
        rows: Rows | None,
        items: Items,
    ) -> Float[Tensor, "batch head some key"]:
        """``pattern``, the softmax of the edited ``scores`` of ``rows``, with the edits of the pattern on it.

        Raises ValueError where rows are given item by item, or for a part of the edited items only.
        """
        shared = self._shared(items, len(scores))
        if not self.reshapes or shared is None:
            return pattern
        if (rows is not None and rows.ndim == 2) or len(scores) != len(self.call.q):
            raise ValueError(
                "gradients through edits of the pattern are taken for rows that all items share, of the "
                "whole batch: read the prompts one at a time"
            )
        asked = torch.arange(self.call.n_queries) if rows is None else rows
        asked = asked.to(scores.device)
        index = torch.isin(asked, self.rows).nonzero()[:, 0]
        if not len(index):
            return pattern
        chosen, _ = self.scores_of(asked[index])
        shaped = self.finish(scores.index_select(2, index), asked[index])
        return pattern.index_copy(
            2, index, torch.where(chosen[..., None], shaped, pattern.index_select(2, index))
        )

    def _shared(self, items: Items, count: int) -> tuple[slice, slice] | None:
        """The items that are edited here and among ``items``: places here and there, or None for none."""
        first, size = (0, len(self.call.q)) if self.items is None else self.items
        start, count = (0, count) if items is None else items
        low, high = max(first, start), min(first + size, start + count)
        return (slice(low - first, high - first), slice(low - start, high - start)) if low < high else None

    def _computed(self, rows: Tensor, softmaxed: bool) -> tuple[Tensor, Tensor]:
        chosen, scores = self.scores_of(rows)
        return chosen, self.finish(scores, rows) if softmaxed else scores

    def _chunks(self, indices: Tensor) -> tuple[Tensor, ...]:
        per_row = self.call.q.shape[0] * self.call.q.shape[1] * self.call.n_keys
        return indices.split(max(1, CHUNK // per_row)) if len(indices) else ()
