"""Layers, heads and steps: the other half of where and when an edit acts, said once.

What a caller writes (a slice, a mask, numpy integers, a profile) becomes a plain frozen value here, so that
edits compare, hash, print and travel; resolving it against a model says what is wrong with it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.moment import BadEdit
from seeing.vlm import VLM

#: When an edit acts: in the prompt pass, at every decoded token, or both.
WHENS = ("both", "prompt", "decode")

HeadTable = tuple[tuple[int, tuple[int, ...]], ...]


def whole(value: Any) -> int | None:
    """``value`` as an int where it is a whole number of any library's kind, else None."""
    if isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) == torch.bool:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(value: Any) -> int | float | None:
    """``value`` as a number of Python's where it is a finite real one of any library's kind, else None."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        return None
    try:
        found = float(value) if whole(value) is None else whole(value)
        return found if math.isfinite(found) else None
    except OverflowError:
        return None


def own(value: Tensor) -> Tensor:
    """A copy of a tensor that a caller may write on later; one that is learnt stays the caller's."""
    return value if value.requires_grad else value.detach().clone()


# ---- layers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """A slice that compares and hashes, which Python's own does only from 3.12 on."""

    start: Any
    stop: Any
    step: Any

    def __post_init__(self):
        ends = (self.start, self.stop, self.step)
        if any(end is not None and whole(end) is None for end in ends) or self.step == 0:
            raise BadEdit(f"a slice of layers has whole numbers and a step that is not 0; got slice{ends!r}")
        for name in ("start", "stop", "step"):
            end = getattr(self, name)
            object.__setattr__(self, name, None if end is None else whole(end))

    def of(self, n_layers: int) -> tuple[int, ...]:
        return tuple(range(n_layers)[self.start : self.stop : self.step])

    def __repr__(self) -> str:
        return f"slice({self.start}, {self.stop}, {self.step})"


@dataclass(frozen=True)
class Around:
    """The ``window`` layers around ``layer``, as many of them as a model has; ``layer`` it must have."""

    layer: int
    window: int

    def __post_init__(self):
        if whole(self.layer) is None or self.layer < 0 or whole(self.window) is None or self.window < 1:
            raise BadEdit(
                f"a window is some layers (at least 1) around a layer counted from 0; got "
                f"layer={self.layer!r}, window={self.window!r}"
            )
        for name in ("layer", "window"):
            object.__setattr__(self, name, whole(getattr(self, name)))

    def of(self, n_layers: int) -> tuple[int, ...]:
        _known(self.layer, n_layers)
        first = self.layer - self.window // 2
        return tuple(range(max(0, first), min(first + self.window, n_layers)))


class OfStack(tuple):
    """Layers of a profile: their numbers mean something in a stack of ``n_layers`` only."""

    n_layers: int

    @classmethod
    def of(cls, layers: Iterable, n_layers: int) -> OfStack:
        found = cls(layers)
        found.n_layers = n_layers
        return found

    def check(self, n_layers: int) -> None:
        """Raise `BadEdit` for another stack."""
        if n_layers != self.n_layers:
            raise BadEdit(
                f"these layers are a profile's, of a stack of {self.n_layers}; this model has {n_layers}: "
                f"profile it with probes.profile(vlm, samples), or name its layers by number"
            )


def layers_said(spec: Any) -> str | int | Slice | Around | tuple[int, ...]:
    """What stands for layers, as a frozen value: "all", "deep", an int, a slice, ints, or a profile's layers.

    Raises `BadEdit` for anything else.
    """
    spec = getattr(spec, "layers", spec)
    if isinstance(spec, (Slice, Around, OfStack)) or (isinstance(spec, str) and spec in ("all", "deep")):
        return spec
    if isinstance(spec, slice):
        return Slice(spec.start, spec.stop, spec.step)
    if (layer := whole(spec)) is not None:
        return layer
    if not isinstance(spec, (str, Mapping)) and isinstance(spec, Iterable):
        layers = tuple(map(whole, spec))
        if None not in layers:
            return layers
    raise BadEdit(
        f"layers are 'all', 'deep' (the second half), ints, a slice or a profile; got {spec!r:.200}"
    )


def layers_of(spec: Any, n_layers: int) -> tuple[int, ...]:
    """The layers that ``spec`` means in a stack of ``n_layers``, ascending.

    Raises `BadEdit` for a layer that the model lacks, for a profile of another model, or for none.
    """
    said = layers_said(spec)
    if isinstance(said, OfStack):
        said.check(n_layers)
    if isinstance(said, str):
        layers = tuple(range(n_layers // 2 if said == "deep" else 0, n_layers))
    elif isinstance(said, (Slice, Around)):
        layers = tuple(sorted(said.of(n_layers)))
    else:
        chosen = said if isinstance(said, tuple) else (said,)
        layers = tuple(sorted({_known(layer, n_layers) for layer in chosen}))
    if not layers:
        raise BadEdit(f"{spec!r} selects none of the {n_layers} layers")
    return layers


def _known(layer: int, n_layers: int) -> int:
    if not -n_layers <= layer < n_layers:
        raise BadEdit(f"no layer {layer!r}: the text stack has layers 0-{n_layers - 1}")
    return layer % n_layers


def attention_layers(spec: Any, vlm: VLM) -> tuple[int, ...]:
    """`layers_of` a model for an edit of attention: "all", "deep", slices and windows pass over the others.

    Raises `BadEdit` for a layer that is named and has none.
    """
    layers, with_rows = layers_of(spec, vlm.cfg.n_layers), vlm.sites.kernels["text"]
    named = not isinstance(layers_said(spec), (str, Slice, Around))
    for layer in layers:
        if layer not in with_rows and named:
            raise BadEdit(f"layer {layer} has no attention: {vlm.sites.absent[f'text.{layer}.attn.pattern']}")
    found = tuple(layer for layer in layers if layer in with_rows)
    if not found:
        raise BadEdit(f"{spec!r} selects no layer with attention; those are {', '.join(map(str, with_rows))}")
    return found


# ---- heads -------------------------------------------------------------------------------------------------


def heads_said(spec: Any) -> tuple[int, ...] | HeadTable | None:
    """What stands for heads of an edit of rows: None (all), the same heads in every layer, or a table."""
    if spec is None:
        return None
    if _is_table(spec):
        return head_table(spec)
    return heads_of(spec)


def is_table(heads: tuple[int, ...] | HeadTable | None) -> bool:
    """Whether `heads_said` gave a table, layer by layer."""
    return heads is not None and isinstance(heads[0], tuple)


def _is_table(spec: Any) -> bool:
    if isinstance(spec, Mapping) or (isinstance(spec, (Tensor, np.ndarray)) and spec.ndim == 2):
        return True
    return isinstance(spec, Sequence) and len(spec) > 0 and all(isinstance(one, Sequence) for one in spec)


def head_table(spec: Any) -> HeadTable:
    """``{layer: [heads]}``, pairs (layer, head), or a mask [layer, head], as a sorted table.

    Raises `BadEdit` for anything else, and for no head at all.
    """
    if isinstance(spec, (Tensor, np.ndarray)) and spec.ndim == 2:
        mask = torch.as_tensor(spec)
        if mask.dtype == torch.bool:
            pairs = mask.nonzero().tolist()
        elif mask.shape[1] == 2 and not mask.is_floating_point():
            pairs = mask.tolist()
        else:
            raise BadEdit(
                f"heads as an array are a boolean mask [layer, head] or whole numbers (n, 2), got "
                f"{mask.dtype} {tuple(mask.shape)}; E.top_heads(scores, k) takes the best of a ranking"
            )
    elif isinstance(spec, Mapping):
        pairs = spec.items()
    elif isinstance(spec, Sequence) and spec and all(isinstance(pair, Sequence) for pair in spec):
        pairs = spec
    else:
        raise BadEdit(
            f"heads are a dict {{layer: [heads]}}, pairs (layer, head) or a mask [layer, head], got "
            f"{spec!r:.200}"
        )
    table: dict[int, set[int]] = {}
    for pair in pairs:
        if len(pair) != 2 or whole(pair[0]) is None or whole(pair[0]) < 0:
            raise BadEdit(
                f"heads are a dict {{layer: [heads]}} or pairs (layer, head), layers from 0; got "
                f"{spec!r:.200}"
            )
        table.setdefault(whole(pair[0]), set()).update(heads_of(pair[1]))
    if not table:
        raise BadEdit(f"no heads are named in {spec!r:.200}")
    return tuple((layer, tuple(sorted(table[layer]))) for layer in sorted(table))


def heads_of(spec: Any) -> tuple[int, ...]:
    """One head or several, whole numbers of any library's kind. Raises `BadEdit` for anything else."""
    several = isinstance(spec, Iterable) and not isinstance(spec, (str, Mapping)) and whole(spec) is None
    found = tuple(whole(head) for head in (spec if several else [spec]))
    if not found or None in found:
        raise BadEdit(f"heads are a whole number or several, got {spec!r:.200}")
    return found


def as_dict(table: HeadTable) -> dict[int, list[int]]:
    """A table of heads as a caller writes it."""
    return {layer: list(heads) for layer, heads in table}


def check_heads(table: HeadTable, vlm: VLM) -> None:
    """Raise `BadEdit` for a layer without attention, or a head that the model lacks."""
    for layer, some in table:
        attention_layers(layer, vlm)
        for head in some:
            check_head(head, vlm, f" in layer {layer}")


def check_head(head: int, vlm: VLM, where: str = "") -> None:
    """Raise `BadEdit` for a head that the model lacks."""
    if not 0 <= head < vlm.cfg.n_heads:
        raise BadEdit(f"no head {head}{where}: the text stack has heads 0-{vlm.cfg.n_heads - 1}")


def top_heads(
    scores: Float[Tensor, "layer head"] | Float[np.ndarray, "layer head"], k: int, below: int | None = None
) -> dict[int, list[int]]:
    """The ``k`` heads with the highest scores as {layer: [heads]}; NaN is never among them.

    ``below`` leaves out layers from that one on. Ties go to the earlier head. Raises `BadEdit` when there are
    not ``k`` heads with a score.
    """
    values = torch.as_tensor(scores).detach().double().cpu()[:below]
    ranked = values.nan_to_num(-torch.inf).flatten().argsort(descending=True, stable=True)
    n_scored = int((~values.isnan()).sum())
    if whole(k) is None or not 1 <= k <= n_scored:
        raise BadEdit(f"k is a whole number from 1 to {n_scored}, the heads with a score; got {k!r}")
    pairs = [divmod(int(one), values.shape[1]) for one in ranked[:k]]
    return as_dict(head_table(pairs))


# ---- steps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """Some steps of a run: from ``first`` up to, not including, ``stop`` (None: to the end).

    Step 0 is the prompt pass, step t decodes the t-th token behind the first.
    """

    first: int
    stop: int | None = None

    def __post_init__(self):
        if whole(self.first) is None or self.first < 0:
            raise BadEdit(f"steps count from 0, the prompt pass; got {self.first!r}")
        if self.stop is not None and (whole(self.stop) is None or self.stop <= self.first):
            raise BadEdit(f"Steps({self.first}, {self.stop}) are no steps")

    def __contains__(self, step: int) -> bool:
        return self.first <= step and (self.stop is None or step < self.stop)

    def __repr__(self) -> str:
        return f"Steps({self.first}, {self.stop})"


def when_said(spec: Any) -> str | Steps:
    """What stands for steps: "both", "prompt", "decode", a step, a range, a slice. Raises `BadEdit`."""
    if isinstance(spec, Steps) or (isinstance(spec, str) and spec in WHENS):
        return spec
    if (step := whole(spec)) is not None:
        return Steps(step, step + 1)
    if isinstance(spec, (range, slice)) and spec.step in (None, 1):
        return Steps(spec.start or 0, spec.stop)
    raise BadEdit(
        f"when is one of {', '.join(map(repr, WHENS))}, a step, or a range of steps; got {spec!r:.200}"
    )


def acts(when: str | Steps, step: int) -> bool:
    """Whether an edit acts in this step (0 is the prompt pass)."""
    if isinstance(when, Steps):
        return step in when
    return when == "both" or (when == "prompt") == (step == 0)


def stop_of(when: str | Steps) -> float:
    """The step from which on an edit does not act any more."""
    if isinstance(when, Steps):
        return math.inf if when.stop is None else when.stop
    return 1 if when == "prompt" else math.inf
