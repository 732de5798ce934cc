"""Selectors: which positions an edit is about, said once and resolved against each prompt.

``"evidence" & ~"last"`` means other positions in every prompt, so a selector is a value that is
resolved when the prompt runs. It gives a mask over all positions seen so far, the prompt and what
was decoded, one row an item of the batch. Plain values stand for selectors wherever one is expected:
a span's name, a list of positions, or a list of boxes in pixels of the original image.

`Seen` is the one that looks: the evidence that the model's own attention points at, read from
earlier layers of the same pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.attention import AttentionCall
from seeing.grid import VisualGrid
from seeing.maps import Window, best_window, denoise_tokens, window_tokens
from seeing.prompt import Prompt


class EmptySelection(ValueError):
    """A selector that selects nothing in the prompt at hand."""


class BadEdit(ValueError):
    """An edit that does not fit the model or the prompt."""


@dataclass
class Moment:
    """One step of a run, as the edits see it.

    ``step`` 0 is the prompt pass, later ones decode one token each. ``readings`` lasts through the
    run: what `Seen` has read of each layer.
    """

    prompt: Prompt | None
    step: int
    n_prompt: int
    batch: int
    device: torch.device
    readings: dict[Any, Tensor] = field(default_factory=dict)
    resolved: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def n_seen(self) -> int:
        """Positions so far: the prompt's, and one a decoded token."""
        return self.n_prompt + self.step

    def mask(self, selector: Selector) -> Bool[Tensor, "batch pos"]:
        """The selector's positions; resolved once a step."""
        if selector not in self.resolved:
            self.resolved[selector] = selector.mask(self).to(self.device)
        return self.resolved[selector]

    def need_prompt(self, what: str) -> Prompt:
        if self.prompt is None:
            raise BadEdit(f"{what} needs to know the prompt: run the edited model on a Prompt, vlm.prompt(…)")
        return self.prompt

    def widened(self, mask: Bool[Tensor, "batch prompt"]) -> Bool[Tensor, "batch pos"]:
        """A mask over the prompt, with the decoded tokens left out."""
        return torch.nn.functional.pad(mask, (0, self.n_seen - mask.shape[1]))


class Selector(ABC):
    """A set of positions, composed with ``&``, ``|`` and ``~``."""

    #: Layers of the text stack that must have been read before the selector can be resolved.
    reads: frozenset[int] = frozenset()

    @abstractmethod
    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        """The positions selected, over all positions seen so far."""

    def __and__(self, other: Any) -> Selector:
        return Both(self, selector(other))

    __rand__ = __and__

    def __or__(self, other: Any) -> Selector:
        return Either(self, selector(other))

    __ror__ = __or__

    def __invert__(self) -> Selector:
        return Not(self)


@dataclass(frozen=True)
class Span(Selector):
    """Positions by name: a span of the prompt, or ``last``, ``all``, ``answer``, ``evidence``.

    ``last`` is the newest position: the prompt's last token, then each decoded one. ``answer`` are
    the decoded tokens. ``evidence`` are the image tokens on the sample's boxes (rule "any").
    """

    name: str

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        place = torch.arange(at.n_seen, device=at.device).expand(at.batch, -1)
        if self.name == "last":
            return place == at.n_seen - 1
        if self.name == "all":
            return torch.ones_like(place, dtype=torch.bool)
        if self.name == "answer":
            return place >= at.n_prompt
        prompt = at.need_prompt(f"the selector {self.name!r}")
        if self.name == "evidence":
            return at.widened(prompt.evidence())
        if self.name not in prompt.spans:
            known = ", ".join((*prompt.spans, "last", "all", "answer", "evidence"))
            raise BadEdit(f"no positions are called {self.name!r}; this prompt has {known}")
        return at.widened(prompt.spans.mask(self.name))

    def __repr__(self) -> str:
        return repr(self.name)


@dataclass(frozen=True)
class Positions(Selector):
    """Positions by number, the same for every row or one tuple a row.

    Negative ones count from the end of the prompt.
    """

    rows: tuple[tuple[int, ...], ...]

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        if len(self.rows) not in (1, at.batch):
            raise BadEdit(f"positions are given for {len(self.rows)} rows, the batch has {at.batch}")
        mask = torch.zeros(at.batch, at.n_seen, dtype=torch.bool)
        for row in range(at.batch):
            for position in self.rows[row % len(self.rows)]:
                if not -at.n_prompt <= position < at.n_prompt:
                    raise BadEdit(f"position {position} is outside the prompt of {at.n_prompt} tokens")
                mask[row, position % at.n_prompt] = True
        return mask

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "batch pos"]) -> Positions:
        """The positions where a (batch, pos) mask is true."""
        return cls(tuple(tuple(row.nonzero()[:, 0].tolist()) for row in mask))

    def __repr__(self) -> str:
        return repr(list(self.rows[0])) if len(self.rows) == 1 else f"Positions({self.rows!r})"


@dataclass(frozen=True)
class Boxes(Selector):
    """The tokens of every row's first picture that overlap boxes, xyxy pixels of the original image."""

    boxes: tuple[tuple[float, ...], ...]

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        prompt = at.need_prompt("a selector of boxes")
        mask = torch.zeros(len(prompt), prompt.length, dtype=torch.bool)
        for row, grid in _first_grids(prompt):
            mask[row, grid.positions[grid.labels(self.boxes)]] = True
        return at.widened(mask)

    def __repr__(self) -> str:
        return repr(list(self.boxes))


@dataclass(frozen=True)
class Both(Selector):
    left: Selector
    right: Selector

    @property
    def reads(self) -> frozenset[int]:
        return self.left.reads | self.right.reads

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return at.mask(self.left) & at.mask(self.right)

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


@dataclass(frozen=True)
class Either(Selector):
    left: Selector
    right: Selector

    @property
    def reads(self) -> frozenset[int]:
        return self.left.reads | self.right.reads

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return at.mask(self.left) | at.mask(self.right)

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


@dataclass(frozen=True)
class Not(Selector):
    inner: Selector

    @property
    def reads(self) -> frozenset[int]:
        return self.inner.reads

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        return ~at.mask(self.inner)

    def __repr__(self) -> str:
        return f"~{self.inner!r}"


@dataclass(frozen=True)
class Seen(Selector):
    """The evidence that the model itself attends to: a window of image tokens, from the last token's rows.

    In the prompt pass, the rows of the last prompt token over the image are averaged over ``heads``
    (layer -> heads; all heads of ``layers`` otherwise), cleaned of single spikes as the paper does
    (``denoise``), and the window of ``window`` tokens (rows, columns) with the largest sum is chosen.
    It stays chosen while tokens are decoded. An edit that selects by it reads and acts in ONE pass, so
    it must act on layers behind those it reads.
    """

    heads: tuple[tuple[int, tuple[int, ...]], ...]
    window: tuple[int, int] = (2, 2)
    denoise: bool = True

    @property
    def reads(self) -> frozenset[int]:
        return frozenset(layer for layer, _ in self.heads)

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        if self not in at.readings:
            missing = sorted(self.reads - set(at.readings))
            if missing:
                raise BadEdit(f"{self!r} is used before layers {missing} were read")
            prompt = at.need_prompt("seen(…)")
            rows = mean_rows(at.readings, self.heads)
            at.readings[self] = seen_mask(prompt, rows, self.window, self.denoise)
        return at.widened(at.readings[self])

    def __repr__(self) -> str:
        heads = {layer: list(heads) if heads else "all" for layer, heads in self.heads}
        return f"seen({heads}, window={self.window}, denoise={self.denoise})"


def seen(
    heads: Mapping[int, Sequence[int]] | Iterable[int], window: tuple[int, int] = (2, 2), denoise: bool = True
) -> Seen:
    """`Seen` from ``{layer: [heads]}``, or from layers of which all heads are read."""
    table = dict(heads) if isinstance(heads, Mapping) else dict.fromkeys(heads, ())
    if not table:
        raise BadEdit("seen(…) needs at least one layer to read")
    return Seen(tuple((layer, tuple(table[layer])) for layer in sorted(table)), tuple(window), denoise)


def read_last(at: Moment, layer: int, call: AttentionCall) -> None:
    """Keep the last row of ``layer`` for the selectors that need it (prompt pass only)."""
    if at.step == 0:
        last = torch.tensor([call.n_queries - 1], device=call.q.device)
        at.readings[layer] = call.pattern(last)[:, :, 0]


def mean_rows(
    rows: Mapping[int, Float[Tensor, "batch head key"]], heads: Iterable[tuple[int, Sequence[int]]]
) -> Float[Tensor, "batch key"]:
    """Mean of the rows of some heads; an empty list of heads stands for all heads of the layer."""
    chosen = [rows[layer][:, list(some)] if some else rows[layer] for layer, some in heads]
    return torch.cat([part.cpu() for part in chosen], dim=1).mean(1)


def seen_mask(
    prompt: Prompt, rows: Float[Tensor, "batch key"], window: tuple[int, int], clean: bool
) -> Bool[Tensor, "batch pos"]:
    """The best window of each row's first picture, as a mask over the prompt."""
    mask = torch.zeros(len(prompt), prompt.length, dtype=torch.bool)
    for row, grid in _first_grids(prompt):
        found = seen_window(grid, rows[row, grid.positions], window, clean)
        mask[row, grid.positions[window_tokens(grid, found)]] = True
    return mask


def seen_window(
    grid: VisualGrid, scores: Float[Tensor, "token"], size: tuple[int, int], clean: bool = True
) -> Window:
    """The window of tokens with the largest sum of scores, cleaned of spikes; never on padding."""
    values = scores.double().cpu().numpy()
    values = denoise_tokens(values, grid) if clean else values
    return best_window(grid.as_grid(values, unplaced=float("-inf")), size)


def _first_grids(prompt: Prompt) -> Iterable[tuple[int, VisualGrid]]:
    """Each row with the grid of its first picture."""
    return ((row, prompt.grids[prompt.grid_rows.index(row)]) for row in range(len(prompt)))


def selector(spec: Any) -> Selector:
    """A selector from what stands for one. Raises `BadEdit` for anything else."""
    if isinstance(spec, Selector):
        return spec
    if isinstance(spec, str):
        return Span(spec)
    if isinstance(spec, int) and not isinstance(spec, bool):
        return Positions(((spec,),))
    if isinstance(spec, Tensor) and spec.ndim == 1 and not spec.is_floating_point():
        spec = spec.tolist() if spec.dtype != torch.bool else spec.nonzero()[:, 0].tolist()
    if isinstance(spec, Sequence) and len(spec):
        if all(isinstance(one, int) and not isinstance(one, bool) for one in spec):
            return Positions((tuple(spec),))
        if all(isinstance(one, Sequence) and not isinstance(one, str) and len(one) == 4 for one in spec):
            return Boxes(tuple(tuple(float(edge) for edge in box) for box in spec))
    raise BadEdit(
        f"{spec!r} selects no positions; give a name ('image', 'question', 'evidence', 'last', …), "
        f"positions, boxes (x0, y0, x1, y1), or a selector"
    )


def layers_of(spec: Any, n_layers: int) -> tuple[int, ...]:
    """Layers from "all", "deep" (the second half), an int, a slice, or several ints.

    Raises `BadEdit` for a layer that the model lacks, or for none.
    """
    if isinstance(spec, str):
        if spec not in ("all", "deep"):
            raise BadEdit(f"layers are 'all', 'deep' (the second half), ints or a slice; got {spec!r}")
        return tuple(range(n_layers // 2 if spec == "deep" else 0, n_layers))
    if isinstance(spec, slice):
        layers = tuple(range(n_layers)[spec])
    else:
        layers = (spec,) if isinstance(spec, int) else tuple(spec)
        for layer in layers:
            if not isinstance(layer, int) or not -n_layers <= layer < n_layers:
                raise BadEdit(f"no layer {layer!r}: the text stack has layers 0-{n_layers - 1}")
        layers = tuple(sorted({layer % n_layers for layer in layers}))
    if not layers:
        raise BadEdit(f"{spec!r} selects none of the {n_layers} layers")
    return layers
