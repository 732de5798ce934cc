"""The parameters of a module, whole and in memory, wherever a large model keeps them.

A model that is split between processes holds shares of them (transformers' tensor parallelism, `DTensor`);
one that does not fit on its devices keeps some layers on disk or in main memory, and accelerate's hook brings
a module's parameters in while its forward runs. What is computed beside a forward (what a head adds to the
stream, what early layers would answer) asks here instead of the module.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

#: Where a module keeps its shares, under a name of ours.
_SHARES = "_seeing_shares"


def remember_shares(module: nn.Module) -> None:
    """Note the shares that a module holds: while it runs, transformers has plain tensors in their place."""
    vars(module)[_SHARES] = {
        name: one for name, one in module._parameters.items() if isinstance(one, DTensor)
    }


class AtHand:
    """While this is open, ``module``'s own parameters are whole and in memory.

    All ranks have to open it together. A class: a decorated function could not travel.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __enter__(self) -> nn.Module:
        own, shares = self.module._parameters, vars(self.module).get(_SHARES, {})
        away = any(one is not None and one.is_meta for one in own.values())
        self.hook = vars(self.module).get("_hf_hook") if away else None
        if self.hook is not None:
            self.hook.pre_forward(self.module)
        self.before = {name: own[name] for name in shares}
        own.update({name: share.full_tensor() for name, share in shares.items()})
        return self.module

    def __exit__(self, *error: object) -> None:
        self.module._parameters.update(self.before)
        if self.hook is not None:
            self.hook.post_forward(self.module, None)


def parameter(module: nn.Module, name: str = "weight") -> Tensor | None:
    """A parameter of ``module``, whole and in memory; None where it has none of this name."""
    with AtHand(module):
        return getattr(module, name, None)
