"""Reading attention rows: which rows are asked about, and what a pass gives of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing.edits import BadEdit
from seeing.edits.moment import Moment
from seeing.edits.select import Selector, selector
from seeing.probes.progress import Progress
from seeing.prompt import BadPrompt, Prompt
from seeing.queries import positions
from seeing.vlm import VLM, Activations, Queries

__all__ = ["Asked", "Progress", "Reading", "batched", "read_rows", "reading_of"]


@dataclass(frozen=True)
class Asked:
    """The query rows that a question is about, row by row of a batch.

    Attributes:
        positions: (batch, query) in the padded sequence; shorter rows repeat their last one.
        valid: (batch, query), False for what is repeated.
    """

    positions: Int[Tensor, "batch query"]
    valid: Bool[Tensor, "batch query"]

    @classmethod
    def of(cls, prompt: Prompt, queries: Queries = "last") -> Asked:
        """The rows that ``queries`` says.

        "last" is the prompt's own last token; "answer" are the rows that predict the tokens of the answer
        that the prompt carries (`Prompt.with_answer`), one a token; a span's name, positions or a mask are as
        in ``vlm.cache``, but that rows of a batch may have spans of different lengths.
        """
        if isinstance(queries, str) and queries != "all":
            return cls.of_table(_named(prompt, queries))
        found = positions(queries, prompt.length, torch.device("cpu"))
        found = torch.arange(prompt.length) if found is None else found
        table = found.expand(len(prompt), -1) if found.ndim == 1 else found
        if len(table) != len(prompt):
            raise BadPrompt(f"queries are given for {len(table)} rows, the batch has {len(prompt)}")
        return cls(table, torch.ones_like(table, dtype=torch.bool))

    @classmethod
    def of_table(cls, table: Int[Tensor, "batch query"]) -> Asked:
        """Rows of positions, filled with −1 behind the shorter ones."""
        valid = table >= 0
        last = table.gather(1, (valid.sum(1, keepdim=True) - 1).clamp(min=0))
        return cls(torch.where(valid, table, last), valid)

    def mean(self, values: Float[Tensor, "batch *axes query"]) -> Float[Tensor, " batch *axes"]:
        """The mean over each row's queries; NaN entries are left out."""
        shape = (len(values), *[1] * (values.ndim - 2), -1)
        return values.masked_fill(~self.valid.view(shape), torch.nan).nanmean(-1)


def _named(prompt: Prompt, name: str) -> Int[Tensor, "batch query"]:
    forced = "predicts" in prompt.spans
    if name == "answer" and not forced:
        raise BadPrompt(
            "the prompt carries no answer whose rows could be read; give it one: prompt.with_answer(…)"
        )
    if name == "last" and not forced:
        return torch.full((len(prompt), 1), prompt.length - 1)
    if name in ("answer", "last"):
        predicts = prompt.spans["predicts"]
        return predicts if name == "answer" else predicts[:, :1]
    if name not in prompt.spans:
        known = ", ".join((*prompt.spans, "last", "all"))
        raise BadPrompt(f"no rows are called {name!r}; this prompt has {known}, and positions")
    table = prompt.spans[name]
    if (empty := (table < 0).all(1)).any():
        raise BadPrompt(f"row {int(empty.nonzero()[0])} of the prompt has no token in its span {name!r}")
    return table


@dataclass(frozen=True)
class Reading:
    """Rows of one batch, with the prompt that says what the keys are.

    Attributes:
        rows: (batch, layer, head, query, key) over the tokens of the sequence. NaN in layers that have
            no attention over them (linear layers, cross-attention layers).
        asked: which rows these are.
        cross: the same over the image's keys of cross-attention layers, NaN in all others; None for a
            model without such layers.
        windowed: (layer,) whether a row may see the newest keys only; those that it does not see have no
            weight in any head.
        sinks: (batch, layer, key), the tokens that a selector found to be sinks; None where none was given.
    """

    prompt: Prompt
    rows: Float[Tensor, "batch layer head query key"]
    asked: Asked
    windowed: Bool[Tensor, " layer"]
    cross: Float[Tensor, "batch layer head query image_key"] | None = None
    sinks: Bool[Tensor, "batch layer key"] | None = None

    @property
    def over_images(self) -> Float[Tensor, "batch layer head query image_key"]:
        """The rows whose keys ``prompt.keys`` describes: those that see the image's tokens one by one."""
        return self.rows if self.cross is None else self.cross


def read_rows(
    vlm: VLM,
    prompt: Prompt,
    queries: Queries = "last",
    layers: Iterable[int] | None = None,
    *,
    sinks: Any = None,
) -> Reading:
    """The rows of ``queries`` in all text layers (or in ``layers``), one forward pass, any kernel.

    ``sinks`` is a selector (`seeing.edits.sinks`) that is resolved in the same pass, layer by layer.
    """
    # Rows are counted in the prompt that runs, which an edit of its pictures may make longer or shorter.
    shown = vlm.shown(prompt)
    asked = Asked.of(shown, queries)
    layers = list(range(vlm.cfg.n_layers) if layers is None else layers)
    kernels = vlm.sites.kernels["text"]
    names = {layer: f"text.{layer}.attn.pattern" for layer in layers if layer in kernels}
    if sinks is None:
        marks = {}
        cache = vlm.cache(prompt, list(names.values()), asked.positions)
        found = {layer: cache[name].cpu() for layer, name in names.items()}
    else:
        looking = _Looking(vlm, shown, asked, _sinks(vlm, sinks))
        with torch.no_grad(), vlm.trace(prompt) as tracer:
            looking.run(list(names))
            tracer.stop()
        found, marks = looking.rows, looking.marks

    return _of_layers(vlm, shown, asked, found, layers, marks if sinks is not None else None)


def reading_of(vlm: VLM, values: Activations, layers: Iterable[int]) -> Reading:
    """The rows of ``layers`` out of activations that hold their patterns at "last"."""
    layers, kernels = list(layers), vlm.sites.kernels["text"]
    found = {layer: values[f"text.{layer}.attn.pattern"].cpu() for layer in layers if layer in kernels}
    return _of_layers(vlm, values.prompt, Asked.of(values.prompt), found, layers, None)


def _of_layers(
    vlm: VLM,
    shown: Prompt,
    asked: Asked,
    found: dict[int, Tensor],
    layers: list[int],
    marks: dict[int, Tensor] | None,
) -> Reading:
    """The patterns of each layer side by side."""
    kernels = vlm.sites.kernels["text"]

    def stacked(cross: bool) -> Tensor | None:
        own = {layer: rows for layer, rows in found.items() if kernels[layer].cross == cross}
        if not own:
            return None
        absent = torch.full_like(next(iter(own.values())), torch.nan)
        return torch.stack([own.get(layer, absent) for layer in layers], dim=1)

    cross, rows = stacked(True), stacked(False)
    if rows is None:
        shape = (*cross.shape[:-1], shown.length)
        rows = cross.new_full(shape, torch.nan)
    nowhere = torch.zeros(len(shown), shown.length, dtype=torch.bool)
    sunk = None if marks is None else torch.stack([marks.get(layer, nowhere) for layer in layers], 1)
    windowed = [layer in kernels and kernels[layer].windowed and not kernels[layer].cross for layer in layers]
    return Reading(shown, rows, asked, torch.tensor(windowed, dtype=torch.bool), cross, sunk)


class _Looking:
    """Rows and sinks of one pass; what a selector watches is dropped when its layer is behind."""

    def __init__(self, vlm: VLM, prompt: Prompt, asked: Asked, sinks: Selector):
        self.vlm, self.sinks = vlm, sinks
        self.positions = asked.positions.to(vlm.device)
        self.at = Moment.before(prompt)
        self.rows: dict[int, Tensor] = {}
        self.marks: dict[int, Tensor] = {}

    def run(self, layers: list[int]) -> None:
        """Called in a trace."""
        for layer in layers:
            watched = sorted(self.sinks.watches(layer))
            for name in watched:
                self.at.readings[name] = self.vlm.sites[name].read()
            if not self.vlm.sites.kernels["text"][layer].cross:
                self.marks[layer] = replace(self.at, layer=layer).mask(self.sinks).cpu()
            for name in watched:
                del self.at.readings[name]
            self.rows[layer] = self.vlm.sites[f"text.{layer}.attn.pattern"].rows(self.positions).cpu()


def _sinks(vlm: VLM, spec: Any) -> Selector:
    found = selector(spec)
    if found.reads:
        raise BadEdit(f"sinks are found in what enters a layer, or given as positions; {found!r} reads rows")
    found.fit(vlm)
    return found


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` consecutive items; the last one may be shorter."""
    if size < 1:
        raise ValueError(f"a batch holds at least one sample, got batch_size={size}")
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
