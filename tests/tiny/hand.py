"""Edits of attention made by hand in the twin of a family: whole rows, written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Scores from here down are hidden by the model's own mask.
MASKED = -1e30


def rows_by_hand(
    part: str, change: Callable, queries: Tensor, keys: Tensor, heads: Sequence[int] | None = None
) -> Callable[[str, Tensor], Tensor]:
    """For ``Twin.run(edits={module: …})``: the chosen rows become what ``change`` makes of them.

    ``part`` is "scores" or "pattern"; ``change(rows, keys, seen)`` gives whole rows back, with keys (batch,
    1, 1, key) the chosen ones and ``seen`` those that the model's mask leaves. ``queries`` is (batch, query),
    ``keys`` (batch, key). What the mask hides stays hidden; a row left with nothing to see writes zeros.
    """
    seen: list[Tensor] = []

    def edit(name: str, value: Tensor) -> Tensor:
        if name == "scores":
            seen[:] = [value > MASKED]
        if name == "pattern":
            value = value.nan_to_num(0)
        if name != part:
            return value
        visible = seen[0]
        chosen = (queries[:, None, :, None] & visible.any(-1, keepdim=True)).expand_as(value)
        if heads is not None:
            only = torch.zeros(value.shape[1], dtype=torch.bool)
            only[list(heads)] = True
            chosen = chosen & only[None, :, None, None]
        changed = change(value, keys[:, None, None, :], visible)
        if part == "scores":
            changed = changed.masked_fill(~visible, -torch.inf)
        return torch.where(chosen, changed, value)

    return edit


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal to ``tolerance`` of the largest of what is expected."""
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * size)


def moved(found: Tensor, plain: Tensor) -> bool:
    """Whether an edit shows, far above rounding."""
    return float((found - plain).abs().max()) > 3e-4 * max(1.0, float(plain.abs().max()))
