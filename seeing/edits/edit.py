"""Edits are values: they say where, when and what, they add up, compare, print and travel.

An `Edit` is one change; ``a + b`` is an `Edits`, a sequence in the order written. `program` compiles them for
a model into one visit of its sites. There are four kinds, by what they change:

* `ScoreEdit` and `PatternEdit`: rows of attention, before and behind the softmax;
* `SiteEdit`: any other named activation;
* `ImageEdit`: a picture, before the processor.

`contrast.Contrast`, which mixes the logits of two runs, is a kind of its own. Edits that mean several of
these (a patch of many sites, an ablation of heads in many layers) come apart when they are fitted to a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from seeing.edits.layers import (
    Steps,
    acts,
    as_dict,
    attention_layers,
    check_head,
    check_heads,
    heads_said,
    is_table,
    layers_said,
    stop_of,
    when_said,
)
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.select import Selector, selector
from seeing.turns import Turn
from seeing.vlm import VLM

if TYPE_CHECKING:
    from seeing.edits.program import Program


class Edit(ABC):
    """One edit: a frozen dataclass, compared by content; ``+`` composes."""

    when: str | Steps = "both"
    #: Whether it finds its own counterpart of each position: then it acts at given answers too.
    aligned = False

    @abstractmethod
    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        """The edit with its layers and names resolved for ``vlm``, in as many parts as it has places.

        Raises `BadEdit` when it doesn't fit.
        """

    def compile(self, vlm: VLM) -> Program:
        return Edits((self,)).compile(vlm)

    def apply(self, vlm: VLM, steps: int | Iterable[int] = 0) -> None:
        """Make the edit in a trace of one's own; see `Edits.apply`."""
        Edits((self,)).apply(vlm, steps)

    def to_json(self, path: str | Path | None = None) -> str:
        """The edit as JSON; see `Edits.to_json`."""
        return _to_json(self, path)

    def now(self, step: int) -> bool:
        """Whether the edit acts in this step (0 is the prompt pass)."""
        return acts(self.when, step)

    @property
    def stop(self) -> float:
        """The step from which on the edit does not act any more."""
        return stop_of(self.when)

    @property
    def decodes(self) -> bool:
        """Whether the edit acts at some decoded token."""
        return self.stop > 1

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """The selectors that the edit resolves when it runs."""
        found = (getattr(self, one.name) for one in fields(self))
        return tuple(one for one in found if isinstance(one, Selector))

    def watches(self, layer: int | None) -> frozenset[str]:
        """Names whose values of this pass the edit needs where it acts in ``layer``."""
        return frozenset().union(*(one.watches(layer) for one in self.selectors))

    def __add__(self, other: Edit | Edits) -> Edits:
        return Edits((self,)) + other

    def __radd__(self, other: int) -> Edits:
        # sum() starts from 0.
        return Edits((self,)) if other == 0 else NotImplemented

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._content() == self._content()

    def __hash__(self) -> int:
        return hash((type(self), self._content()))

    def _content(self) -> tuple:
        return tuple(comparable(getattr(self, one.name)) for one in fields(self))

    def __repr__(self) -> str:
        # What a caller writes by place comes first, also where a base class adds keywords.
        said = sorted((one for one in fields(self) if one.repr), key=lambda one: not _by_place(one))
        return f"{type(self).__name__}({', '.join(_shown(self, one) for one in said)})"

    def _say(self, **values: Any) -> None:
        """Set fields while the edit is made: the plain form of what the caller wrote."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowEdit(Edit):
    """An edit of rows of attention: some queries, some keys, some heads, some layers.

    ``queries`` are by default the newest position: the last prompt token, then each decoded one. ``heads``
    are the same in every layer, or a table ``{layer: [heads]}``, which says the layers too.
    """

    keys: Any
    queries: Any = "last"
    layers: Any = "all"
    heads: Any = None
    when: Any = "both"

    def __post_init__(self):
        self._say(
            keys=selector(self.keys),
            queries=selector(self.queries),
            layers=layers_said(self.layers),
            heads=heads_said(self.heads),
            when=when_said(self.when),
        )

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        layers = attention_layers(self.layers, vlm)
        if is_table(self.heads):
            check_heads(self.heads, vlm)
            layers = tuple(layer for layer, _ in self.heads if layer in layers)
            if not layers:
                raise BadEdit(f"{self!r}: none of the layers is one of those that heads are named in")
        for head in () if is_table(self.heads) else self.heads or ():
            check_head(head, vlm)
        return (replace(self, layers=layers),)

    def heads_at(self, layer: int) -> tuple[int, ...] | None:
        """The heads edited in a layer, None for all."""
        return dict(self.heads)[layer] if is_table(self.heads) else self.heads

    def key_mask(self, at: Moment) -> Bool[Tensor, "batch 1 #rows key"]:
        """True at the keys chosen. Raises `EmptySelection` for a row that has none."""
        return at.key_mask(self.keys, self.decodes)


class ScoreEdit(RowEdit):
    """An edit of pre-softmax rows."""

    @abstractmethod
    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        """The edited rows, as if every row and head were selected. Keys that are masked stay masked."""


class PatternEdit(RowEdit):
    """An edit of post-softmax rows."""

    @abstractmethod
    def pattern(self, pattern: Float[Tensor, "batch head rows key"], at: Moment, seen: Tensor) -> Tensor:
        """The edited rows, as if every row and head were selected; ``seen`` says which keys a row may see."""


class SiteEdit(Edit):
    """An edit of a named activation."""

    site: str

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        return (self,)

    @abstractmethod
    def value(self, value: Float[Tensor, "..."], at: Moment) -> Tensor:
        """The edited activation."""


class ImageEdit(Edit):
    """An edit of pictures, before the processor: by default of each row's first one."""

    def check(self, n_rows: int) -> None:
        """Raise `BadEdit` when the edit does not fit a batch of so many rows."""

    def turn(self, row: int, turn: Turn) -> Turn:
        """What is asked in ``row``, with its pictures edited."""
        return replace(turn, images=(self.image(row, turn.images[0]), *turn.images[1:]))

    def image(self, row: int, picture: Image.Image) -> Image.Image:
        """The edited picture, where that is all that changes."""
        raise NotImplementedError(f"{type(self).__name__} says neither turn nor image")

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        return (self,)

    def _before_the_pass(self) -> None:
        if self.when != "both":
            raise BadEdit("a picture is edited before the pass, for all of it; leave when='both'")


@dataclass(frozen=True)
class Edits:
    """Several edits, in the order written."""

    edits: tuple[Edit, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "edits", tuple(self.edits))
        if strange := [one for one in self.edits if not isinstance(one, Edit)]:
            raise BadEdit(f"edits are made of edits, got {strange[0]!r:.200}; a + b puts several together")

    def __add__(self, other: Edit | Edits) -> Edits:
        if isinstance(other, Edit):
            return replace(self, edits=(*self.edits, other))
        if isinstance(other, Edits):
            return replace(self, edits=self.edits + other.edits)
        return NotImplemented

    def __radd__(self, other: int) -> Edits:
        # sum() starts from 0.
        return self if other == 0 else NotImplemented

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.edits)) or "Edits()"

    def compile(self, vlm: VLM) -> Program:
        """One program of all edits, checked against ``vlm``. Raises `BadEdit` for what doesn't fit."""
        # The program is made of edits, so its module stands on this one.
        from seeing.edits.program import Program

        if not self.edits:
            raise BadEdit("no edits were given; vlm itself is the unedited model")
        return Program.of(vlm, self.edits)

    def apply(self, vlm: VLM, steps: int | Iterable[int] = 0) -> None:
        """Make the edits in a trace of one's own, ``with vlm.trace(prompt): edits.apply(vlm)``.

        ``steps`` are those to make them in: 0, the prompt pass, or ``tracer.iter[:n]`` in a generation of n
        tokens. The call goes through the model up to the last site edited, so that what is read behind it
        must lie further on; `VLM.with_edits` has no such order. Raises `BadEdit` for edits of pictures and
        contrasts, which are made before the run.
        """
        program = self.compile(vlm)
        if program.images or program.mixing is not None:
            raise BadEdit(f"{self!r} acts before the run starts: vlm.with_edits(…) makes it, a trace can't")
        program.run(vlm, [steps] if isinstance(steps, int) else steps)

    def to_json(self, path: str | Path | None = None) -> str:
        """The edits as JSON, which `from_json` reads back.

        With ``path`` the text is written there, and tensors beside it in a ``.safetensors`` file of the same
        name; without, tensors stand in the text (base64). Raises `BadEdit` for an edit that holds a function.
        """
        return _to_json(self, path)


def _to_json(edits: Edit | Edits, path: str | Path | None) -> str:
    # Saving knows every edit there is, so its module stands on this one.
    from seeing.edits.saving import to_json

    return to_json(edits, path)


def comparable(value: Any) -> Any:
    """A value that compares and hashes by content."""
    if isinstance(value, Tensor):
        kept = value.detach().cpu().contiguous()
        # As bytes, so that bfloat16 compares too.
        data = kept.reshape(-1).view(torch.uint8).numpy().tobytes() if kept.numel() else b""
        return str(kept.dtype), tuple(kept.shape), data
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return tuple(map(comparable, value))
    return value


def _shown(edit: Edit, one: Field) -> str:
    """A field as the caller writes it: by place where it has no default, else by name."""
    value = getattr(edit, one.name)
    if is_table(value) if one.name == "heads" and value else False:
        text = repr(as_dict(value))
    else:
        text = shown(value)
    return text if _by_place(one) else f"{one.name}={text}"


def _by_place(one: Field) -> bool:
    return one.default is MISSING and one.default_factory is MISSING and not one.kw_only


def shown(value: Any) -> str:
    """A value for a reader: what is long is described."""
    if isinstance(value, Tensor):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} {value.shape}>"
    if isinstance(value, Callable) and hasattr(value, "__name__"):
        return f"<function {value.__name__}>"
    return repr(value)
