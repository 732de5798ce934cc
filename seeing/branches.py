"""What a branch adds to the residual stream, whole (`attn_out`, `mlp_out`) and head by head (`attn.result`).

Between a part's output and the stream there may be a norm or a gate. `attn_out` is what arrives. Heads go
through the same steps: a gate multiplies each head's share, and a norm with its statistic frozen (the
root mean square of the whole) does too, so that the shares still add up to what arrives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seeing.operations import Branch, Link
from seeing.order import Order
from seeing.parameters import AtHand, parameter
from seeing.sites import Derived, Spot, own_rows, put_first, take_first


@dataclass(frozen=True)
class Gated(Derived):
    """A branch that is multiplied by a gate inside the sum: source times gate.

    A write is carried into the sum, for what stands before a closed gate could not say it.
    """

    layer: nn.Module = field(repr=False)
    gates: tuple[Link, ...] = ()

    def derive(self, served: Any) -> Tensor:
        value = take_first(served)
        for gate in self.gates:
            value = value * gate.value(self.layer)
        return value

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        total = visit(self.target)
        return put_first(total, take_first(total) + value - self.derive(served))


def branch_site(name: str, branch: Branch, sum_path: str, layer: nn.Module) -> Spot | Gated:
    """The site of what a branch adds to the stream."""
    if branch.inline:
        return Gated(name, f"{branch.path}.output", sum_path, layer, branch.inline)
    return Spot(name, f"{branch.path}.output", take_first, put_first)


class NotLinear(ValueError):
    """Steps behind a part through which its heads can't be followed."""


class HeadMap:
    """From z to what each head adds to the stream: the output projection, and what stands behind it."""

    def __init__(self, out: nn.Module, layer: nn.Module, links: Sequence[Link]):
        self.out, self.layer = getattr(out, "linear", out), layer
        self.links = [link for link in links if not _is_identity(link.module)]
        self.weight, self.biased = _readable(self.out), self.out.bias is not None
        for link in self.links:
            if not link.known:
                raise NotLinear("a step behind the attention depends on the input")
            if link.module is not None and not _is_rms(link.module):
                raise NotLinear(f"{type(link.module).__name__} behind the attention is no RMS norm")

    def heads(self, z: Tensor) -> Tensor:
        """(batch, pos, head, d_head) -> (batch, pos, head, d_model)."""
        shares = self._projected(z)
        return shares if not self.links else shares * self._scale(shares)[:, :, None]

    def _projected(self, z: Tensor) -> Tensor:
        """Each head's share of what the output projection gives, its bias left out."""
        weight = self.weight().to(z.dtype).unflatten(1, (z.shape[2], -1))
        return torch.einsum("bphd,mhd->bphm", z, weight)

    def total(self, shares: Tensor, z: Tensor) -> Tensor:
        """What the shares of all heads add up to at the stream, the projection's bias with them."""
        total = shares.sum(2)
        return total + self.bias(z) if self.biased else total

    def bias(self, z: Tensor) -> Tensor:
        """What the projection's bias adds: (d_model,), or (batch, pos, d_model) behind a norm."""
        bias = parameter(self.out, "bias").to(z.dtype)
        if not self.links:
            return bias
        return bias * self._scale(self._projected(z))

    def _scale(self, shares: Tensor) -> Tensor:
        """By what each coordinate of the projection's output is multiplied on its way to the stream."""
        value = shares.sum(2)
        value = value + parameter(self.out, "bias").to(value.dtype) if self.biased else value
        scale = torch.ones_like(value)
        for link in self.links:
            if link.module is None:
                step = link.value(self.layer).to(value.dtype)
            else:
                step = _frozen(link.module, value)
            value, scale = value * step, scale * step
        return scale


def _readable(out: nn.Module) -> Callable[[], Tensor]:
    """How the output projection's weight is had in floating point; bitsandbytes' is dequantized on reading.

    Raises `NotLinear` for a weight that can't be had.
    """
    weight = getattr(out, "weight", None)
    if isinstance(weight, Tensor):
        if weight.is_floating_point() and weight.ndim == 2 and not hasattr(weight, "quant_state"):
            return functools.partial(parameter, out)
        if getattr(weight, "quant_state", None) is not None:
            return functools.partial(_from_4_bit, out)
        if getattr(weight, "SCB", None) is not None:
            return functools.partial(_from_8_bit, out)
    found = f"{weight.dtype}, {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no weight"
    raise NotLinear(
        f"heads are followed through the output projection's weight in floating point, {type(out).__name__} "
        f"has {found}; load without quantization for attn.result"
    )


def _from_4_bit(out: nn.Module) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(out.weight.data, out.weight.quant_state)


def _from_8_bit(out: nn.Module) -> Tensor:
    return out.weight.data.float() * out.weight.SCB[:, None] / 127


def _is_identity(module: nn.Module | None) -> bool:
    return isinstance(module, (nn.Dropout, nn.Identity))


def _is_rms(module: nn.Module) -> bool:
    return "RMSNorm" in type(module).__name__ and _epsilon(module) is not None


def _epsilon(norm: nn.Module) -> float | None:
    found = getattr(norm, "variance_epsilon", None)
    return getattr(norm, "eps", None) if found is None else found


def _frozen(norm: nn.Module, value: Tensor) -> Tensor:
    """What an RMS norm multiplies by at ``value``: its gain over the root mean square.

    The gain is read from the norm itself, at ones, for families store it as w or as 1 + w. Called by its
    class, so that nnsight doesn't take it for a pass of the layer.
    """
    epsilon = _epsilon(norm)
    ones = torch.ones(value.shape[-1], dtype=torch.float32, device=value.device)
    with AtHand(norm):
        gain = type(norm).forward(norm, ones).float() * (1 + epsilon) ** 0.5
    rms = (value.float().pow(2).mean(-1, keepdim=True) + epsilon).rsqrt()
    return (gain * rms).to(value.dtype)


@dataclass(frozen=True)
class Shown:
    """While it is open, ``place`` holds ``value`` and whose it is. A class: a decorated function could not
    travel.
    """

    place: list[tuple[tuple[int, int] | None, Tensor]]
    value: Tensor

    def __enter__(self) -> None:
        self.place.append((own_rows(), self.value))

    def __exit__(self, *error: object) -> None:
        self.place[:] = [one for one in self.place if one[1] is not self.value]


@dataclass(frozen=True)
class Result(Derived):
    """``attn.result``: what each head adds to the residual stream, z · W_O and what stands behind it.

    The sum over heads, plus the output projection's bias, is ``attn_out``; a write puts that sum there.
    ``taken`` gets z out of what is served at ``source``, ``branch`` is the site of ``attn_out``; ``order`` is
    that of a packed tower.
    """

    taken: Callable[[Any], Tensor] = field(repr=False)
    map: HeadMap = field(repr=False)
    branch: Spot | Gated = field(repr=False)
    edited: list[tuple[tuple[int, int] | None, Tensor]] = field(
        default_factory=list, compare=False, repr=False
    )
    order: Order | None = field(default=None, repr=False)

    def shown(self, value: Tensor) -> Shown:
        return Shown(self.edited, value)

    def derive(self, served: Any) -> Tensor:
        mine = own_rows()
        for rows, value in self.edited:
            if rows == mine:
                return value
            if rows is None:
                return value.narrow(0, *mine)
        return self.map.heads(self.taken(served))

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        z = self.taken(served)
        total, current = self.map.total(value, z), visit(self.target)
        if isinstance(self.branch, Gated):
            before = self.map.total(self.map.heads(z), z)
            return put_first(current, take_first(current) + total - before)
        if self.order is not None:
            total = self.order.write(total[0], 0)
        return put_first(current, total.to(take_first(current).dtype))
