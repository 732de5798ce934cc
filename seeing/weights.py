"""The weights of heads, with TransformerLens' names and axes: ``vlm.W_Q[l]`` is (head, d_model, d_head)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from seeing.families import Stack
from seeing.parameters import parameter


class NoWeight(LookupError):
    """A layer without the weight asked for."""


@dataclass(frozen=True)
class Weights(Sequence):
    """One weight of every layer, cut into heads when a layer is asked for.

    A view, nothing is copied: unless the model is split between processes or lies partly on disk.
    """

    stack: Stack
    part: str

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, layer: int) -> Tensor:
        if not -len(self) <= layer < len(self):
            raise IndexError(f"no layer {layer}: the text stack has layers 0-{len(self) - 1}")
        attn = self.stack.attention(layer % len(self))
        module = getattr(attn, self.part, None)
        if module is None:
            what = "no attention" if attn is None else f"no {self.part!r} in {type(attn).__name__}"
            raise NoWeight(f"layer {layer} has {what}")
        return self._heads(attn, module)

    def _heads(self, attn: nn.Module, module: nn.Module) -> Tensor:
        weight = parameter(module)
        if not weight.is_floating_point() or weight.ndim != 2:
            raise NoWeight(
                f"{type(module).__name__} holds a quantized weight ({weight.dtype}); load it unquantized"
            )
        if self.part == "o_proj":
            return rearrange(weight, "d_model (head d) -> head d d_model", head=self.stack.n_heads)
        d_head = attn.head_dim
        heads = self.stack.n_heads if self.part == "q_proj" else weight.shape[0] // d_head
        # A projection that makes the gate too holds it behind the queries, head by head.
        return rearrange(weight, "(head d) d_model -> head d_model d", head=heads)[..., :d_head]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[layer] for layer in range(len(self)))


def weights(stack: Stack, part: str) -> Weights:
    """The weight ``part`` ("q_proj", "k_proj", "v_proj", "o_proj") of all layers of a stack."""
    return Weights(stack, part)
