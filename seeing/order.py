"""Reading order: a tower that works in an order of its own, seen row by row from the top left.

Some towers (Qwen-VL, GLM-V) take the patches of all pictures in one row without a batch axis, in groups
that will become one token, or window by window. What is read of them is put in reading order, with a batch
axis of one, and what is written goes back into theirs. The order depends on the pictures, so it is set
at the start of every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seeing.sites import Derived


class UnknownOrder(ValueError):
    """A packed tower ran on inputs whose order is not known."""


@dataclass
class Order:
    """The order of the run in progress; None where the tower's own is reading order already."""

    patches: Int[Tensor, " patch"] | None = None
    features: Int[Tensor, " token"] | None = None
    known: bool = True

    def follow(self, patches: Int[Tensor, " patch"] | None, features: Int[Tensor, " token"] | None) -> None:
        """From here on the tower runs in this order."""
        self.patches, self.features, self.known = patches, features, True

    def forget(self) -> None:
        """From here on the tower runs in an order that is not known."""
        self.patches, self.features, self.known = None, None, False

    def __reduce__(self) -> tuple:
        # It is set at the start of every run: what the last one left behind does not travel.
        return Order, ()

    def read(self, value: Tensor, axis: int) -> Tensor:
        """``value`` of the tower with its patches in reading order; a tensor of its own."""
        slots = self._patches(value.shape[axis])
        return value.clone() if slots is None else value.index_select(axis, slots.to(value.device))

    def write(self, value: Tensor, axis: int) -> Tensor:
        """The reverse of `read`."""
        slots = self._patches(value.shape[axis])
        return value if slots is None else value.index_select(axis, slots.argsort().to(value.device))

    def _patches(self, n: int) -> Tensor | None:
        if not self.known:
            raise UnknownOrder(
                "this tower packs the patches of all pictures in one row, and their order is not known from "
                "these inputs: run a Prompt, vlm.prompt(image, question), or all that the processor gives"
            )
        if self.patches is not None and len(self.patches) != n:
            raise UnknownOrder(f"the prompt's pictures have {len(self.patches)} patches, the tower runs {n}")
        return self.patches

    def rows(self, n: int) -> Tensor | None:
        """The slots of the projector's ``n`` rows in the order of the image tokens, rows of one together."""
        if not self.known or self.features is None:
            return None
        group = n // len(self.features)
        return (self.features[:, None] * group + torch.arange(group)).flatten()


@dataclass(frozen=True)
class Ordered(Derived):
    """A value of a packed tower at one location, in reading order and with a batch axis."""

    order: Order
    take: Callable[[Any], Tensor]
    put: Callable[[Any, Tensor], Any]

    def derive(self, served: Any) -> Tensor:
        return self.order.read(self.take(served), 0)[None]

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        return self.put(served, self.order.write(value[0], 0))


@dataclass(frozen=True)
class TokenOrdered(Derived):
    """What enters or leaves the projector, in the order of the image tokens."""

    order: Order
    take: Callable[[Any], Tensor]
    put: Callable[[Any, Tensor], Any]

    def derive(self, served: Any) -> Tensor:
        value = self.take(served)
        rows = self.order.rows(len(value))
        return value.clone() if rows is None else value.index_select(0, rows.to(value.device))

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        rows = self.order.rows(len(value))
        return self.put(
            served, value if rows is None else value.index_select(0, rows.argsort().to(value.device))
        )
