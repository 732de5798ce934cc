"""Edits are values: they say where, when and what, they add up, and one program runs them all.

``a + b`` is an `Edits`, whose program visits the sites of the model in execution order, once each,
inside one nnsight intervention. At an attention kernel the edits of that layer are merged into one
visit, in this order, and in the order written within each:

1. `Seen` selectors read the last row;
2. edits of pre-softmax rows (`Bias`, `ScaleAttention`, `Knockout`), then the softmax;
3. edits of z, head by head (`AblateHeads`, `ScaleHeads`).

Only the rows that some edit selects are computed, and only those are written over the fused kernel's
output, in the items and heads selected; what an edited run reads of scores and pattern are the edited
rows. Edits of other named sites (`Steer`) are visited in the order of the forward pass. Pictures are
edited before the processor runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from nnsight.intervention.interleaver import Mediator
from PIL import Image
from torch import Tensor

from seeing.attention import HIDDEN, AttentionCall, EditedRows, softmax
from seeing.edits.seen import read_last
from seeing.edits.select import BadEdit, Moment, Selector
from seeing.kernels import Kernel
from seeing.names import Name
from seeing.prompt import Prompt
from seeing.sites import Site
from seeing.vlm import VLM

#: When an edit acts: in the prompt pass, at every decoded token, or both.
WHENS = ("both", "prompt", "decode")


class Edit(ABC):
    """One edit. Subclasses are frozen dataclasses; ``+`` composes them."""

    when: str = "both"

    def __add__(self, other: Edit | Edits) -> Edits:
        return Edits((self,)) + other

    def __radd__(self, other: int) -> Edits:
        # sum() starts from 0.
        return Edits((self,)) if other == 0 else NotImplemented

    @abstractmethod
    def fit(self, vlm: VLM) -> Edit:
        """The edit with its layers and names resolved for ``vlm``. Raises `BadEdit` when it doesn't fit."""

    def compile(self, vlm: VLM) -> Program:
        return Edits((self,)).compile(vlm)

    def now(self, step: int) -> bool:
        """Whether the edit acts in this step (0 is the prompt pass)."""
        return self.when == "both" or (self.when == "prompt") == (step == 0)

    def _check_when(self) -> None:
        if self.when not in WHENS:
            raise BadEdit(f"when is one of {', '.join(map(repr, WHENS))}; got {self.when!r}")


class RowEdit(Edit):
    """An edit of pre-softmax rows: some queries, some heads, some layers."""

    queries: Selector
    layers: Any
    heads: tuple[int, ...] | None

    @abstractmethod
    def scores(self, scores: Float[Tensor, "batch head rows key"], at: Moment) -> Tensor:
        """The edited rows, as if every row and head were selected."""


class HeadEdit(Edit):
    """An edit of z before the output projection: some heads of some layers."""

    heads: tuple[tuple[int, tuple[int, ...]], ...]

    @abstractmethod
    def z(self, z: Float[Tensor, "batch pos some d_head"]) -> Tensor:
        """The edited output of the heads chosen."""


class SiteEdit(Edit):
    """An edit of a named activation."""

    site: str

    @abstractmethod
    def value(self, value: Float[Tensor, "..."], at: Moment) -> Tensor:
        """The edited activation."""


class ImageEdit(Edit):
    """An edit of each row's first picture, before the processor."""

    def check(self, n_rows: int) -> None:
        """Raise `BadEdit` when the edit does not fit a batch of so many rows."""

    @abstractmethod
    def image(self, row: int, picture: Image.Image) -> Image.Image:
        """The edited picture."""

    def fit(self, vlm: VLM) -> Edit:
        return self


@dataclass(frozen=True)
class Edits:
    """Several edits, in the order written."""

    edits: tuple[Edit, ...] = ()

    def __add__(self, other: Edit | Edits) -> Edits:
        if isinstance(other, Edit):
            return replace(self, edits=(*self.edits, other))
        if isinstance(other, Edits):
            return replace(self, edits=self.edits + other.edits)
        return NotImplemented

    def __len__(self) -> int:
        return len(self.edits)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.edits)) or "Edits()"

    def compile(self, vlm: VLM) -> Program:
        """One program of all edits, checked against ``vlm``. Raises `BadEdit` for what doesn't fit."""
        if not self.edits:
            raise BadEdit("no edits were given; vlm itself is the unedited model")
        return Program(vlm, [edit.fit(vlm) for edit in self.edits])


class KernelVisit:
    """All edits of one layer's attention, in one visit of its kernel call. ``z`` is the site of its z."""

    def __init__(self, kernel: Kernel, z: Site):
        self.kernel, self.z = kernel, z
        self.rows: list[RowEdit] = []
        self.heads: list[tuple[HeadEdit, tuple[int, ...]]] = []
        self.read = False

    def due(self, step: int, looks: bool) -> bool:
        acts = (*self.rows, *(edit for edit, _ in self.heads))
        return (self.read and step == 0) or any(edit.now(step) for edit in acts)

    def run(self, at: Moment) -> None:
        call = self.kernel.call()
        at = at.on(call.q.device)
        if self.read:
            read_last(at, self.kernel.layer, call)
        rows = [edit for edit in self.rows if edit.now(at.step)]
        heads = [(edit, some) for edit, some in self.heads if edit.now(at.step)]
        edited = self._edited_rows(call, rows, at)
        if edited is not None:
            # From here to the kernel's output whoever reads this attention is shown the edited rows.
            self.kernel.edited[:] = [edited]
            try:
                served = Mediator.value(self.kernel.target)
            finally:
                self.kernel.edited.clear()
            z = edited.onto(call, self.kernel.take(served))
            Mediator.swap(self.kernel.target, self.kernel.put(served, z))
        if heads:
            z = self.z.read()
            for edit, some in heads:
                index = torch.tensor(some, device=z.device)
                z = z.index_copy(2, index, edit.z(z.index_select(2, index)).to(z.dtype))
            self.z.write(z)

    def _edited_rows(self, call: AttentionCall, edits: list[RowEdit], at: Moment) -> EditedRows | None:
        """Every row that some edit selects, or None when none does here."""
        if not edits:
            return None
        if not self.kernel.cross and not self._holds(call, at):
            raise BadEdit(
                f"step {at.step} attends to {call.n_keys} keys, the prompt and the decoded tokens are "
                f"{at.n_seen}; a static KV cache, or a prompt that is not the one that runs, can't be "
                f"edited by position"
            )
        first = at.n_seen - call.n_queries
        keys = at.across(self.kernel.layer) if self.kernel.cross else at.newest(call.n_keys)
        queries = [
            at.some(edit.queries, "queries", decodes=edit.when != "prompt")[:, first:] for edit in edits
        ]
        if not (union := torch.stack(queries).any(0)).any():
            return None
        rows = union.any(0).nonzero()[:, 0]
        scores = call.scores(rows)
        hidden = scores <= HIDDEN
        # A mask of large negative numbers lets masked keys in where a cut leaves no others: they are taken
        # away for good. Rows that see nothing to begin with (padding) stay as the kernel has them.
        scores = scores.masked_fill(hidden & ~hidden.all(-1, keepdim=True), float("-inf"))
        changed = torch.zeros(scores.shape[:3], dtype=torch.bool, device=scores.device)
        for edit, mask in zip(edits, queries):
            chosen = mask[:, None, rows].expand_as(changed)
            if edit.heads is not None:
                some = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
                some[list(edit.heads)] = True
                chosen = chosen & some[:, None]
            scores = torch.where(chosen[..., None], edit.scores(scores, keys), scores)
            changed = changed | chosen
        return EditedRows(rows, changed, scores, softmax(scores))

    def _holds(self, call: AttentionCall, at: Moment) -> bool:
        """Whether the keys are the prompt and the decoded tokens, or a window's newest of them."""
        return call.n_keys == at.n_seen or (self.kernel.windowed and call.n_keys < at.n_seen)


class SiteVisit:
    """All edits of one named site, in one visit: a derived site is read only once in a pass."""

    def __init__(self, site: Site):
        self.site = site
        self.edits: list[SiteEdit] = []
        self.decodes = Name.parse(site.name).stack != "vision" and not site.name.startswith("projector")

    def due(self, step: int, looks: bool) -> bool:
        """Whether there is something to do in this step; the tower runs only in a first pass that looks."""
        runs = self.decodes or (step == 0 and looks)
        return runs and any(edit.now(step) for edit in self.edits)

    def run(self, at: Moment) -> None:
        value = self.site.read()
        at = at.on(value.device)
        for edit in self.edits:
            if edit.now(at.step):
                value = edit.value(value, at)
        with self.site.shown(value):
            self.site.write(value)


class Program:
    """Edits compiled for one model: what to visit, in execution order."""

    def __init__(self, vlm: VLM, edits: Iterable[Edit]):
        edits = list(edits)
        self.images = [edit for edit in edits if isinstance(edit, ImageEdit)]
        kernels: dict[int, KernelVisit] = {}

        def at_kernel(layer: int) -> KernelVisit:
            if layer not in kernels:
                visited = vlm.sites.kernels["text"][layer]
                kernels[layer] = KernelVisit(visited, vlm.sites[f"text.{layer}.attn.z"])
            return kernels[layer]

        sites: dict[str, SiteVisit] = {}
        for edit in edits:
            if isinstance(edit, RowEdit):
                for layer in edit.layers:
                    at_kernel(layer).rows.append(edit)
            elif isinstance(edit, HeadEdit):
                for layer, some in edit.heads:
                    at_kernel(layer).heads.append((edit, some))
            elif isinstance(edit, SiteEdit):
                sites.setdefault(edit.site, SiteVisit(vlm.sites[edit.site])).edits.append(edit)
            for one in _selectors(edit):
                one.fit(vlm)
            self._check_reads(edit)
            for layer in _reads(edit):
                at_kernel(layer).read = True
        ordered: list[tuple[tuple, KernelVisit | SiteVisit]] = [
            (Name("attn.scores", "text", layer).order, visit) for layer, visit in kernels.items()
        ]
        ordered += [(Name.parse(name).order, visit) for name, visit in sites.items()]
        self.visits = [visit for _, visit in sorted(ordered, key=lambda item: item[0])]

    @staticmethod
    def _check_reads(edit: Edit) -> None:
        reads = _reads(edit)
        if not reads:
            return
        first = min(edit.layers) if isinstance(edit, RowEdit) else Name.parse(edit.site).layer
        if first is None or first <= max(reads):
            raise BadEdit(
                f"{edit!r} acts on layer {first} and reads layer {max(reads)} of the same pass; "
                f"an edit acts behind all the layers it reads"
            )

    def edit_images(self, prompt: Prompt) -> Prompt:
        for edit in self.images:
            edit.check(len(prompt))
            prompt = prompt.with_images(edit.image)
        return prompt

    def run(self, vlm: VLM, steps: Iterable[int]) -> None:
        readings: dict[Any, Tensor] = {}
        for step in steps:
            due = [visit for visit in self.visits if visit.due(step, vlm.looks)]
            if not due:
                if step:
                    break
                continue
            moment = self._moment(vlm, step, readings)
            for visit in due:
                visit.run(moment)

    def _moment(self, vlm: VLM, step: int, readings: dict) -> Moment:
        prompt = vlm.running
        if prompt is None:
            raise BadEdit(
                "edits are resolved against a Prompt: run the edited model on vlm.prompt(image, question)"
            )
        return Moment(prompt, step, prompt.length, len(prompt), vlm.device, readings)


def _reads(edit: Edit) -> frozenset[int]:
    """The layers that the selectors of an edit read."""
    return frozenset().union(*(one.reads for one in _selectors(edit)))


def _selectors(edit: Edit) -> list[Selector]:
    found = (getattr(edit, field.name) for field in fields(edit))
    return [one for one in found if isinstance(one, Selector)]


def chosen_rows(mask: Bool[Tensor, "batch pos"], n_tokens: int) -> Bool[Tensor, "batch tokens"]:
    """The part of a mask over all positions that belongs to the tokens of this pass."""
    return mask[:, mask.shape[1] - n_tokens :]
