"""Rows of attention from one kernel call: exact, with any kernel, for the rows asked for.

Asking a model for its attention weights (``output_attentions=True``) swaps the fused kernel for an
eager one and keeps a query × key matrix a head and layer, hundreds of times what a question needs.
But the arguments of the kernel call hold all there is to know: q and k after rotary embedding and
cache update, v, the mask and the scaling. `AttentionCall` holds them, computes the rows that a
question is about,

    pattern[rows] = softmax(q[rows] · kᵀ · scaling + mask[rows]),

and turns edited rows into the kernel's output rows, pattern[rows] · v. Nothing of size query × key
is made unless all rows are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Scores from here down are masked: kernels write −inf, or the minimum of a dtype, float16's at least.
HIDDEN = -3e4

#: How many numbers of a whole pattern are computed at a time.
CHUNK = 2**24

#: Rows: the same positions for every item of a batch, or one row of positions an item.
Rows = Int[Tensor, " rows"] | Int[Tensor, "batch rows"]


class UnreadableAttention(ValueError):
    """A kernel call whose rows can't be computed exactly from its arguments."""


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one call of an attention kernel.

    q is (batch, head, query, d_head); k and v are (batch, kv_head, key, d_head), not repeated: query
    head ``h`` reads key head ``h // (heads / kv_heads)``. ``mask`` is additive (float), or boolean
    with True where attention is allowed, broadcastable to (batch, head, query, key), or None; with
    no mask ``causal`` says whether query ``i`` sees keys up to ``i`` only, as the fused kernels read it.
    ``blocks`` numbers the block of every token, where tokens see those of their own block only.
    """

    q: Float[Tensor, "batch head query d_head"]
    k: Float[Tensor, "batch kv_head key d_head"]
    v: Float[Tensor, "batch kv_head key d_value"]
    mask: Tensor | None
    scaling: float
    causal: bool
    softcap: float | None = None
    blocks: Int[Tensor, " query"] | None = None

    @classmethod
    def from_kernel(cls, args: tuple, kwargs: Mapping[str, Any]) -> AttentionCall:
        """Read what transformers passes to ``attention_interface(module, q, k, v, attention_mask, ...)``.

        Raises `UnreadableAttention` for a call that holds something this class can't reproduce
        (attention sinks, a position bias, a paged cache, a mask of another shape).
        """
        module, q, k, v, *rest = args
        mask = rest[0] if rest else kwargs.get("attention_mask")
        for key in ("s_aux", "position_bias", "cache", "sinks"):
            if kwargs.get(key) is not None:
                raise UnreadableAttention(
                    f"{type(module).__name__} passes {key!r} to its attention kernel, which rows of "
                    f"attention do not carry; found {type(kwargs[key]).__name__}, expected None"
                )
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise UnreadableAttention(
                f"{type(module).__name__}'s attention mask is {shape}; expected None or a 4-D tensor "
                f"(batch, head, query, key). Load with attn_implementation='sdpa' or 'eager'"
            )
        scaling = kwargs.get("scaling")
        flag = kwargs.get("is_causal")
        flag = getattr(module, "is_causal", True) if flag is None else flag
        return cls(
            q=q,
            k=k,
            v=v,
            mask=mask,
            scaling=q.shape[-1] ** -0.5 if scaling is None else float(scaling),
            causal=bool(flag) and mask is None and q.shape[2] > 1,
            softcap=kwargs.get("softcap"),
        )

    def __post_init__(self):
        heads, kv_heads = self.q.shape[1], self.k.shape[1]
        if self.v.shape[:3] != self.k.shape[:3] or heads % kv_heads or self.q.shape[-1] != self.k.shape[-1]:
            raise UnreadableAttention(
                f"inconsistent attention call: q {tuple(self.q.shape)}, k {tuple(self.k.shape)}, "
                f"v {tuple(self.v.shape)}; expected (batch, head, query, d), (batch, kv_head, key, d), "
                f"(batch, kv_head, key, d_value) with head a multiple of kv_head"
            )

    @property
    def n_queries(self) -> int:
        return self.q.shape[2]

    @property
    def n_keys(self) -> int:
        return self.k.shape[2]

    @property
    def first_query(self) -> int:
        """The position of query 0 in the sequence: with a KV cache, the number of cached tokens."""
        return self.n_keys - self.n_queries

    def scores(self, rows: Rows | None = None) -> Float[Tensor, "batch head rows key"]:
        """Pre-softmax rows in float32, mask applied (−inf, or the dtype's minimum, where masked).

        ``rows`` index the query axis of this call; None is every query, computed in chunks so that no more
        than the result and one chunk is held.
        """
        return self._chunked(self._scores) if rows is None else self._scores(rows)

    def pattern(self, rows: Rows | None = None) -> Float[Tensor, "batch head rows key"]:
        """Post-softmax rows in float32. A row that may attend to nothing (padding) is zero."""
        if rows is None:
            return self._chunked(lambda some: softmax(self._scores(some)))
        return softmax(self._scores(rows))

    def _scores(self, rows: Rows) -> Float[Tensor, "batch head rows key"]:
        rows = rows.to(self.q.device)
        q = pick(self.q, rows)
        raw = self._grouped(q) @ self.k.float().transpose(-1, -2) * self.scaling
        raw = raw.unflatten(2, (-1, q.shape[2])).flatten(1, 2)
        if self.softcap is not None:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return self._masked(raw, rows)

    def _chunked(self, rows_of: Callable[[Rows], Tensor]) -> Float[Tensor, "batch head query key"]:
        """All rows, a chunk of them at a time."""
        per_row = self.q.shape[0] * self.q.shape[1] * self.n_keys
        size = max(1, CHUNK // per_row)
        chunks = torch.arange(self.n_queries, device=self.q.device).split(size)
        if len(chunks) == 1 or (torch.is_grad_enabled() and self.q.requires_grad):
            return torch.cat([rows_of(rows) for rows in chunks], dim=2)
        whole = self.q.new_empty((*self.q.shape[:2], self.n_queries, self.n_keys), dtype=torch.float32)
        for rows in chunks:
            whole[:, :, rows[0] : rows[-1] + 1] = rows_of(rows)
        return whole

    def z(self, pattern: Float[Tensor, "batch head rows key"]) -> Float[Tensor, "batch rows head d_value"]:
        """What each head writes out for these rows: pattern · v, in float32."""
        out = self._grouped(pattern) @ self.v.float()
        # batch kv_head group row d_value
        out = out.unflatten(2, (-1, pattern.shape[2]))
        return out.permute(0, 3, 1, 2, 4).flatten(2, 3)

    def _grouped(
        self, rows: Float[Tensor, "batch head rows n"]
    ) -> Float[Tensor, "batch kv_head group_rows n"]:
        """Rows in float32, those of the query heads that share a key head one behind the other."""
        return rows.float().unflatten(1, (self.k.shape[1], -1)).flatten(2, 3)

    def write(
        self,
        output: Float[Tensor, "batch query head d_value"],
        rows: Rows | None,
        pattern: Float[Tensor, "batch head rows key"],
    ) -> Float[Tensor, "batch query head d_value"]:
        """The kernel's ``output`` with these rows replaced by ``pattern`` · v; a new tensor.

        Raises ValueError when the pattern does not fit the rows.
        """
        n_rows = self.n_queries if rows is None else rows.shape[-1]
        expected = (self.q.shape[0], self.q.shape[1], n_rows, self.n_keys)
        if tuple(pattern.shape) != expected:
            raise ValueError(
                f"pattern is {tuple(pattern.shape)}, the rows to write are {expected}: "
                f"(batch, head, query, key)"
            )
        z = self.z(pattern).to(output.dtype)
        if rows is None:
            return z
        rows = rows.to(output.device)
        if rows.ndim == 1:
            return output.index_copy(1, rows, z)
        index = rows[:, :, None, None].expand(*rows.shape, *z.shape[2:])
        return output.scatter(1, index, z)

    def _masked(self, raw: Tensor, rows: Rows | None) -> Tensor:
        if self.mask is not None:
            mask = self.mask[..., : self.n_keys]
            if rows is not None and mask.shape[2] > 1:
                mask = pick(mask.expand(raw.shape[0], -1, -1, -1) if rows.ndim == 2 else mask, rows)
            if mask.dtype == torch.bool:
                return raw.masked_fill(~mask, float("-inf"))
            return raw + mask.float()
        if self.causal:
            query = torch.arange(self.n_queries, device=raw.device) if rows is None else rows
            key = torch.arange(self.n_keys, device=raw.device)
            seen = key <= query[..., None]
            return raw.masked_fill(~(seen if seen.ndim == 2 else seen[:, None]), float("-inf"))
        if self.blocks is not None:
            own = self.blocks if rows is None else self.blocks[rows]
            seen = own[..., None] == self.blocks
            return raw.masked_fill(~(seen if seen.ndim == 2 else seen[:, None]), float("-inf"))
        return raw


def softmax(scores: Float[Tensor, "*batch key"]) -> Float[Tensor, "*batch key"]:
    """Softmax over keys in which a row of −inf throughout becomes zeros, as in the fused kernels."""
    nothing = (scores == float("-inf")).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)


def pick(values: Tensor, rows: Rows) -> Tensor:
    """Rows along axis 2: the same for the whole batch, or one set an item."""
    if rows.ndim == 1:
        return values.index_select(2, rows)
    index = rows[:, None, :, None].expand(values.shape[0], values.shape[1], -1, values.shape[3])
    return values.gather(2, index)
