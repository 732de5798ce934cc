"""The features of a picture, computed once for all that looks at it.

Methods differ in what they do to the words' stack, and most leave the picture as it is: base, a boost, a
second look each run the tower and the projector on the same pixels. Within `shared_features` a model
remembers what it made of them. It is asked at the place where the family's model makes its image features
(``get_image_features``, which a forward and a generation both call), by all that this call depends on: the
content of every tensor that it gets, and the weights and hooks of what is outside the words' stack. So what
comes back is what would be computed, bit for bit.

A run computes its own features as ever where somebody could tell the difference: where an edit, a trace or
a cache of nnsight waits for anything before the words' stack, and where gradients are kept. So does every
run of a model that does not make its features there: Llama 3.2 Vision (mllama), whose pictures are keys of
cross-attention layers, and families that were resolved by kind (``family="generic"``).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from nnsight.intervention.interleaver import Mediator
from nnsight.intervention.source import STATE
from torch import Tensor, nn
from transformers.utils import ModelOutput

from seeing.families import GENERIC
from seeing.names import Name
from seeing.vlm import VLM

#: Where a model of transformers makes its image features, and what of them its forward reads.
MAKES, READ = "get_image_features", ("pooler_output", "deepstack_features")


@dataclass
class Shared:
    """What is remembered. ``made`` counts the calls that computed their features, ``found`` the others."""

    keep: int
    made: int = 0
    found: int = 0
    _kept: OrderedDict[str, tuple[ModelOutput, tuple]] = field(default_factory=OrderedDict, repr=False)

    def get(self, key: str | None, make: Callable[[], Any]) -> Any:
        """What is kept under ``key``, or is made now. None is the key of what can't be shared."""
        if key is not None and (found := self._recall(key)) is not None:
            self.found += 1
            return found
        self.made += 1
        output = make()
        if key is not None and isinstance(output, ModelOutput) and output.get(READ[0]) is not None:
            # A copy without the tower's hidden states, which would be most of its size.
            kept = _copy(output, {name: output[name] for name in READ if output.get(name) is not None})
            if (versions := _versions(kept)) is not None:
                self._kept[key] = kept, versions
                while len(self._kept) > self.keep:
                    self._kept.popitem(last=False)
        return output

    def _recall(self, key: str) -> ModelOutput | None:
        kept, versions = self._kept.get(key, (None, None))
        # Whoever wrote on what was handed out wrote on what is kept.
        if kept is None or _versions(kept) != versions:
            return None
        self._kept.move_to_end(key)
        return _copy(kept, dict(kept))


@contextmanager
def shared_features(vlm: VLM, keep: int = 4) -> Iterator[Shared]:
    """While this lasts, features of a batch of pictures that was seen before are not computed again.

    It holds for ``vlm`` and all its edited copies. At most ``keep`` batches are remembered, the last used
    ones; nothing is, once the context ends. A weight that is written to makes features anew (not so one that
    is written behind torch's back, through ``.data``). A torch hook that only watches the tower sees no run
    whose features are shared.

    Example:
        ``with shared_features(vlm): answers = [method.answer(vlm, prompt) for method in methods]``
    """
    if keep < 1:
        raise ValueError(f"at least one batch is remembered, got keep={keep}")
    shared = Shared(keep)
    maker = next((one for one in vlm._module.modules() if _makes(one)), None)
    if maker is None or vlm.family is GENERIC:
        yield shared
        return
    if MAKES in vars(maker):  # an outer context shares them already
        yield getattr(maker, MAKES).shared
        return
    make, outside = getattr(maker, MAKES), _Outside.of(vlm, maker)
    signature = inspect.signature(make)

    @functools.wraps(make)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = (
            None
            if outside.awaited() or _unlike() or outside.draws()
            else _key(signature.bind(*args, **kwargs).arguments, outside)
        )
        return shared.get(key, lambda: make(*args, **kwargs))

    remembered.shared = shared
    setattr(maker, MAKES, remembered)
    try:
        yield shared
    finally:
        delattr(maker, MAKES)


@dataclass(frozen=True)
class _Outside:
    """What of a model lies outside the words' stack, and whether a run has to see it at work."""

    maker: nn.Module
    modules: tuple[nn.Module, ...]
    #: Behind the features: the words' stack, the head, and where else the names of these lie.
    behind: tuple[nn.Module, ...]
    places: frozenset[str]

    @classmethod
    def of(cls, vlm: VLM, maker: nn.Module) -> _Outside:
        behind = (vlm._module.get_decoder(), vlm.family.head(vlm._module))
        theirs = {id(module) for one in behind for module in one.modules()}
        outside = tuple(one for one in maker.modules() if id(one) not in theirs)
        own = [site for name, site in vlm.sites.items() if not Name.parse(name).in_tower]
        return cls(maker, outside, behind, frozenset(place for site in own for place in site.locations))

    def awaited(self) -> bool:
        """Whether something of this run waits for what lies before, or in, the features."""
        interleaver, _, _ = vars(self.maker)[STATE].active()
        if interleaver is None:
            return False
        paths = [vars(one)[STATE].active()[1] for one in self.behind]
        behind = tuple(f"{path}." for path in paths)
        return not all(_done(one) or self._waits(one, behind) for one in interleaver.mediators)

    def _waits(self, mediator: Mediator, behind: tuple[str, ...]) -> bool:
        """Whether a block waits for something behind the features, and has nothing else to do before it."""
        wanted = None if mediator.pending is None else mediator.pending.provider
        if wanted is None or mediator.caches:
            return False
        return wanted == "result" or wanted in self.places or wanted.startswith(behind)

    def draws(self) -> bool:
        """Whether a module is in training, where dropout makes each run another."""
        return any(module.training for module in self.modules)

    def state(self) -> str:
        """Weights, by torch's own count of writes to them, and hooks."""
        said = []
        for module in self.modules:
            held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            said.append(
                (
                    [(one.data_ptr(), one.dtype, one._version) for one in held],
                    (*module._forward_hooks, *module._forward_pre_hooks),
                )
            )
        return repr(said)


def _makes(module: nn.Module) -> bool:
    """Whether a model makes its features itself, and does not hand that on to one inside it."""
    inner = (one for child in module.children() for one in child.modules())
    return hasattr(module, MAKES) and not any(hasattr(one, MAKES) for one in inner)


def _unlike() -> bool:
    """Whether torch is in a mode in which a run is another thing than its values."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled()


def _done(mediator: Mediator) -> bool:
    return not mediator.alive and not mediator.caches


def _key(given: Mapping[str, Any], outside: _Outside) -> str | None:
    """One text for all that features depend on; None where that can't be told."""
    content = hashlib.blake2b(digest_size=32)
    content.update(outside.state().encode())
    for name, value in sorted(_flat(given), key=lambda one: one[0]):
        if isinstance(value, Tensor):
            if type(value) is not Tensor:
                return None
            content.update(f"{name} {value.shape} {value.dtype} {value.device}".encode())
            content.update(value.detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, (bool, int, float, str)):
            content.update(f"{name} {value!r}".encode())
        elif value is not None:
            return None
    return content.hexdigest()


def _flat(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments with what is in dicts and lists apart, and the length of these."""
    for name, value in given.items():
        if isinstance(value, (list, tuple)):
            yield f"{name}.n", len(value)
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat({f"{name}.{key}": one for key, one in value.items()})
        else:
            yield name, value


def _copy(output: ModelOutput, values: dict[str, Any]) -> ModelOutput:
    """Another output of that kind, with these fields; lists are lists of its own."""
    return type(output)(
        **{name: list(value) if isinstance(value, list) else value for name, value in values.items()}
    )


def _versions(output: ModelOutput) -> tuple[int, ...] | None:
    """How often each tensor was written on; None for tensors of which torch does not count it."""
    tensors = list(_tensors(output.to_tuple()))
    return None if any(one.is_inference() for one in tensors) else tuple(one._version for one in tensors)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
