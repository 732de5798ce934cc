"""The selector that looks: the evidence that the model's own attention points at.

`Seen` is resolved from rows that the same pass has read in earlier layers, so that an edit can read
where the model looks and act on it behind, in one forward. The reading itself, rows to a region of
image tokens, is here too: methods that read in a pass of their own use the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.attention import AttentionCall
from seeing.edits.layers import OfStack, attention_layers, head_table, layers_said, whole
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.select import Selector, grids_of
from seeing.grid import VisualGrid
from seeing.maps import Window, best_window, denoise_tokens, window_tokens
from seeing.prompt import Prompt
from seeing.vlm import VLM


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

    def __post_init__(self):
        pairs = self.heads if isinstance(self.heads, tuple) else ()
        if not pairs or not all(
            isinstance(one, tuple) and len(one) == 2 and _whole(one[:1]) for one in pairs
        ):
            raise BadEdit(f"seen reads ((layer, (head, …)), …), heads () for all; got {self.heads!r:.200}")
        if not all(isinstance(some, tuple) and (not some or _whole(some)) for _, some in pairs):
            raise BadEdit(f"heads that seen reads are whole numbers, got {self.heads!r:.200}")
        if not (isinstance(self.window, tuple) and len(self.window) == 2 and _whole(self.window, 1)):
            raise BadEdit(
                f"a window is (rows, columns) of image tokens, both at least 1; got {self.window!r:.200}"
            )

    @property
    def reads(self) -> frozenset[int]:
        return frozenset(layer for layer, _ in self.heads)

    def fit(self, vlm: VLM) -> None:
        n_layers, n_heads = vlm.cfg.n_layers, vlm.cfg.n_heads
        if isinstance(self.heads, OfStack):
            self.heads.check(n_layers)
        for layer, heads in self.heads:
            for kind, number, count in (("layer", layer, n_layers), *(("head", h, n_heads) for h in heads)):
                if not 0 <= number < count:
                    raise BadEdit(f"{self!r} reads no {kind} {number}: the text stack has 0-{count - 1}")
        attention_layers([layer for layer, _ in self.heads], vlm)

    def mask(self, at: Moment) -> Bool[Tensor, "batch pos"]:
        if self not in at.readings:
            missing = sorted(self.reads - set(at.readings))
            if missing:
                raise BadEdit(f"{self!r} is used before layers {missing} were read")
            prompt = at.need_prompt("seen(…)")
            rows = mean_rows(at.readings, self.heads)
            if rows.shape[1] != prompt.length:
                raise BadEdit(
                    f"{self!r} reads layers over {rows.shape[1]} keys and is used where there are "
                    f"{prompt.length}: cross-attention layers and the others have keys of their own"
                )
            at.readings[self] = seen_mask(prompt, rows, self.window, self.denoise)
        return at.widened(at.readings[self])

    def __repr__(self) -> str:
        some = {layer: list(heads) for layer, heads in self.heads}
        read = some if any(some.values()) else f"layers={list(some)}"
        return f"seen({read}, window={self.window}, denoise={self.denoise})"


def seen(
    heads: Any = None, window: Sequence[int] = (2, 2), denoise: bool = True, *, layers: Any = None
) -> Seen:
    """`Seen` from ``{layer: [heads]}``, or from ``layers`` (ints, or a profile) of which all heads are read.

    ``seen(profile)`` and ``seen([2, 3])`` mean layers too.
    """
    if (heads is None) == (layers is None):
        raise BadEdit("seen(…) reads heads, {layer: [heads]}, or layers=[...]: give one of them")
    if isinstance(heads, Mapping):
        # A layer without heads stands for all of them.
        named = {layer: some for layer, some in heads.items() if len(some)}
        read = head_table(named) if named else ()
        read = tuple(sorted((*read, *((whole(layer), ()) for layer in heads if layer not in named))))
        if not read or any(layer is None for layer, _ in read):
            raise BadEdit(f"seen(…) reads {{layer: [heads]}}, whole numbers, at least one; got {heads!r}")
    else:
        said = layers_said(heads if layers is None else layers)
        said = (said,) if isinstance(said, int) else said
        if not isinstance(said, tuple) or not said or min(said) < 0:
            raise BadEdit(f"seen(…) reads layers by number, counted from 0, at least one; got {said!r}")
        read = tuple((layer, ()) for layer in sorted(set(said)))
        read = OfStack.of(read, said.n_layers) if isinstance(said, OfStack) else read
    size = isinstance(window, Sequence) and not isinstance(window, str) and tuple(map(whole, window))
    return Seen(read, size or window, denoise)


def _whole(values: tuple, least: int = 0) -> bool:
    return all(whole(one) is not None and one >= least for one in values)


def read_last(at: Moment, layer: int, call: AttentionCall) -> None:
    """Keep the last row of ``layer`` for the selectors that need it (prompt pass only)."""
    if at.step == 0:
        # A given answer stands behind the token that looks.
        last = torch.tensor([call.n_queries - len(at.steps)], device=call.q.device)
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
    for row, grid in grids_of(prompt):
        found = seen_window(grid, rows[row, grid.positions], window, clean)
        mask[row, grid.positions[window_tokens(grid, found)]] = True
    return mask


def seen_window(
    grid: VisualGrid, scores: Float[Tensor, " token"], size: tuple[int, int], clean: bool = True
) -> Window:
    """The window of tokens with the largest sum of scores, cleaned of spikes; never on padding."""
    values = scores.detach().double().cpu().numpy()
    values = denoise_tokens(values, grid) if clean else values
    return best_window(grid.as_grid(values, grid.overview, unplaced=float("-inf")), size)
