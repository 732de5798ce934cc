"""The attention kernel of a layer: where q, k, v, rows of attention and z are read and written.

The call of the kernel holds all there is to know about the attention of a layer (see `attention`). A
`Kernel` knows where that call lies, how to read it, and where what it gave is found again. Two kinds:
the call itself, and for packed towers, which call the kernel once a picture or window, the one operation
that deals q, k and v out to the calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from nnsight.intervention.interleaver import Mediator
from torch import Tensor, nn

from seeing.attention import AttentionCall, Rows, softmax
from seeing.edited import EditedRows
from seeing.order import Order
from seeing.sites import Copied, Derived, Spot, own_rows


@dataclass(frozen=True)
class Kernel:
    """The call of the attention kernel in one layer.

    ``path`` is the operation's location, ``attn`` the attention module, ``cross`` whether its keys are the
    image's alone. While edits wait to put rows over the kernel's output, ``edited`` holds them, so that
    whoever reads scores or pattern sees what the model will use.
    """

    layer: int
    stack: str
    path: str
    attn: nn.Module = field(repr=False)
    cross: bool = False
    edited: list[EditedRows] = field(default_factory=list, compare=False, repr=False)

    @property
    def source(self) -> str:
        return f"{self.path}.input"

    @property
    def target(self) -> str:
        return f"{self.path}.output"

    @property
    def windowed(self) -> bool:
        """Whether the layer may keep fewer keys than there are tokens."""
        config = getattr(self.attn, "config", None)
        return bool(getattr(self.attn, "sliding_window", getattr(config, "sliding_window", None)))

    def call(self) -> AttentionCall:
        """The kernel's arguments, waiting for the run to reach the call."""
        return self.read(Mediator.value(self.source))

    def read(self, served: Any) -> AttentionCall:
        """The kernel's arguments from what is served at ``source``."""
        return AttentionCall.from_kernel(*served)

    def take(self, served: Any) -> Tensor:
        """(batch, pos, head, d_head) from what is served at ``target``: what the kernel gave."""
        return served[0]

    def put(self, served: Any, z: Tensor) -> Any:
        """What is served at ``target``, with another output of the kernel."""
        return (z, *served[1:])

    @property
    def skipped(self) -> str | None:
        """Where the call can be left out for what it would give; None where it gives weights besides."""
        eager = getattr(getattr(self.attn, "config", None), "_attn_implementation", "eager") == "eager"
        return None if eager else f"{self.path}.skip"

    def given(self, z: Tensor) -> Any:
        """What the call gives, from its output."""
        return z, None

    def part(self, name: str, place: int) -> Copied:
        """q, k or v as the kernel gets them, with the axes of the vocabulary: batch pos head d_head.

        A copy: keys and values lie in the KV cache too, and are shared between layers in Gemma 4.
        """
        take, put = functools.partial(_take_part, place), functools.partial(_put_part, place)
        return Copied(name, self.source, self.source, take, put)


@dataclass(frozen=True)
class PackedKernel(Kernel):
    """The kernel calls of one layer of a packed tower, seen as one call with blocks, in reading order.

    ``path`` is the operation that deals the blocks of q, k and v out; ``out_path`` the output projection,
    whose input is what all calls gave.
    """

    order: Order = field(default_factory=Order, repr=False)
    out_path: str = ""
    n_heads: int = 1

    @property
    def target(self) -> str:
        return f"{self.out_path}.input"

    def read(self, served: Any) -> AttentionCall:
        (q, k, v), _ = served
        sizes = torch.tensor([block.shape[2] for block in q])
        blocks = torch.arange(len(sizes)).repeat_interleave(sizes).to(q[0].device)
        q, k, v = (self.order.read(torch.cat(part, 2), 2) for part in (q, k, v))
        blocks = self.order.read(blocks, 0)
        return AttentionCall(q, k, v, None, float(self.attn.scaling), causal=False, blocks=blocks)

    def take(self, served: Any) -> Tensor:
        args, _ = served
        return self.order.read(args[0], 0).unflatten(-1, (self.n_heads, -1))[None]

    def put(self, served: Any, z: Tensor) -> Any:
        args, kwargs = served
        return (self.order.write(z[0].flatten(1), 0), *args[1:]), kwargs

    def part(self, name: str, place: int) -> PackedPart:
        return PackedPart(name, self.source, self.source, self.order, place - 1)


@dataclass(frozen=True)
class PackedPart(Derived):
    """q, k or v of a packed tower: batch pos head d_head, all blocks, in reading order."""

    order: Order
    place: int

    def derive(self, served: Any) -> Tensor:
        return self.order.read(torch.cat(served[0][self.place], 2), 2).transpose(1, 2)

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        args, kwargs = served
        sizes = [block.shape[2] for block in args[self.place]]
        blocks = self.order.write(value.transpose(1, 2), 2).split(sizes, 2)
        return (*args[: self.place], blocks, *args[self.place + 1 :]), kwargs


@dataclass(frozen=True)
class KernelZ(Derived):
    """``attn.z`` where what the kernels gave has to be gathered: heads of the output projection's input."""

    kernel: Kernel

    def derive(self, served: Any) -> Tensor:
        return self.kernel.take(served)

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        return self.kernel.put(served, value)


def _take_part(place: int, served: Any) -> Tensor:
    return served[0][place].transpose(1, 2)


def _put_part(place: int, served: Any, value: Tensor) -> Any:
    args, kwargs = served
    return (*args[:place], value.transpose(1, 2), *args[place + 1 :]), kwargs


def gated_z(name: str, out_path: str, n_heads: int) -> Spot:
    """``attn.z`` behind a gate: the output projection's input, head by head."""
    return Spot(name, f"{out_path}.input", functools.partial(_take_heads, n_heads), _put_heads)


def _take_heads(n_heads: int, served: Any) -> Tensor:
    return served[0][0].unflatten(-1, (n_heads, -1))


def _put_heads(served: Any, z: Tensor) -> Any:
    args, kwargs = served
    return (z.flatten(2), *args[1:]), kwargs


@dataclass(frozen=True)
class AttentionRows(Derived):
    """``attn.scores`` or ``attn.pattern``: rows of the kernel call, all of them or those asked for."""

    kernel: Kernel
    softmaxed: bool

    def derive(self, served: Any) -> Tensor:
        return self.rows(None, served)

    def rows(self, rows: Rows | Callable[[int], Rows | None] | None, served: Any = None) -> Tensor:
        """The rows asked for, as positions or as a function of how many there are; no others are computed."""
        call = self.kernel.read(self.served() if served is None else served)
        rows = rows(call.n_queries) if callable(rows) else rows
        values = call.pattern(rows) if self.softmaxed else call.scores(rows)
        for edited in self.kernel.edited:
            values = edited.over(values, rows, self.softmaxed, own_rows())
        return values

    def threaded(self, rows: Rows | Callable[[int], Rows | None] | None) -> tuple[Tensor, Tensor]:
        """(scores, pattern) of the rows, with the run going on from them, so that they carry gradients.

        The kernel's output at these rows becomes pattern · v, the same number but for rounding: then
        ``d loss / d pattern`` is what autograd says it is, (d loss / d z) · vᵀ, under any kernel.
        """
        call = self.kernel.call()
        rows = rows(call.n_queries) if callable(rows) else rows
        scores = call.scores(rows)
        for edited in self.kernel.edited:
            scores = edited.over(scores, rows, False, own_rows())
        scores = scores if scores.requires_grad else scores.detach().requires_grad_()
        pattern = softmax(scores)
        for edited in self.kernel.edited:
            pattern = edited.finished(scores, pattern, rows, own_rows())
        served = Mediator.value(self.kernel.target)
        z = call.write(self.kernel.take(served), rows, pattern)
        Mediator.swap(self.kernel.target, self.kernel.put(served, z))
        return scores, pattern

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        call = self.kernel.read(served)
        pattern = value if self.softmaxed else softmax(value.float())
        given = visit(self.target)
        return self.kernel.put(given, call.write(self.kernel.take(given), None, pattern))
