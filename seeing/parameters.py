"""The parameters of a module, whole and in memory, wherever a large model keeps them.

A model that is split between processes holds shares of them (transformers' tensor parallelism, `DTensor`);
one that does not fit on its devices keeps some layers on disk or in main memory, and accelerate's hook brings
a module's parameters in while its forward runs. What is computed beside a forward (what a head adds to the
stream, what early layers would answer) asks here instead of the module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class AtHand:
    """While this is open, ``module``'s own parameters are whole and in memory.

    All ranks have to open it together. A class: a decorated function could not travel.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __enter__(self) -> nn.Module:
        own = self.module._parameters
        away = any(one is not None and one.is_meta for one in own.values())
        self.hook = vars(self.module).get("_hf_hook") if away else None
        if self.hook is not None:
            self.hook.pre_forward(self.module)
        self.shares = {name: one for name, one in own.items() if isinstance(one, DTensor)}
        own.update({name: share.full_tensor() for name, share in self.shares.items()})
        return self.module

    def __exit__(self, *error: object) -> None:
        self.module._parameters.update(self.shares)
        if self.hook is not None:
            self.hook.post_forward(self.module, None)


def parameter(module: nn.Module, name: str = "weight") -> Tensor | None:
    """A parameter of ``module``, whole and in memory; None where it has none of this name."""
    with AtHand(module):
        return getattr(module, name, None)


def kept(module: nn.Module, name: str = "weight") -> Callable[[], Tensor] | None:
    """How `parameter` is had later: also while the module runs, when transformers has shares in its place."""
    held = getattr(module, name, None)
    if isinstance(held, DTensor):
        return held.full_tensor
    return None if held is None else partial(parameter, module, name)
