"""Which query rows to read: a name, positions or a mask, made into positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from seeing.prompt import BadPrompt

#: Which query rows to read: "last", "all", a span's name, or positions or a mask, the same for all
#: items of a batch or one row an item.
Queries = str | int | slice | Sequence | Int[Tensor, "*batch rows"] | Bool[Tensor, "*batch pos"]


def positions(
    queries: Queries, length: int, device: torch.device
) -> Int[Tensor, " rows"] | Int[Tensor, "batch rows"] | None:
    """Positions among ``length`` tokens: None for all, one set for the batch, or one an item."""
    if isinstance(queries, str):
        queries = slice(None) if queries == "all" else -1
    if isinstance(queries, slice):
        found = torch.arange(length)[queries]
    else:
        if queries is None or isinstance(queries, bool):
            raise TypeError(f"queries are a name, positions, a slice or a mask; got {queries!r}")
        found = torch.as_tensor(queries)
        if found.dtype == torch.bool:
            found = _true(found, length)
        elif found.numel() and (found.is_floating_point() or found.is_complex()):
            raise TypeError(f"queries are whole numbers or a mask, got {found.dtype}")
        if found.ndim == 2 and found.numel() and found.dtype != torch.bool and found.min() < 0:
            raise BadPrompt(
                "rows of positions, one an item, count from 0: −1 fills the shorter rows of a span's table; "
                "read the prompts one at a time"
            )
        if found.numel() and not (-length <= found.min() and found.max() < length):
            raise IndexError(f"queries {found.tolist()} reach outside the {length} tokens that are there")
        found = (found.reshape(-1) if found.ndim < 2 else found).long() % length
    if found.numel() == 0:
        raise ValueError(f"queries {queries!r} selects none of {length} tokens")
    return None if isinstance(queries, slice) and len(found) == length else found.to(device)


def _true(mask: Tensor, length: int) -> Tensor:
    """A mask (pos) or (batch, pos) as positions."""
    if mask.shape[-1] != length:
        raise IndexError(f"a mask over {mask.shape[-1]} tokens does not fit the {length} that are there")
    counts = mask.sum(-1)
    if (counts != counts.reshape(-1)[0]).any():
        raise BadPrompt(
            f"the rows of this batch select {counts.tolist()} tokens; read them one prompt at a time, "
            f"or give positions, as many in each"
        )
    return mask.nonzero()[:, -1].reshape(*mask.shape[:-1], -1)
