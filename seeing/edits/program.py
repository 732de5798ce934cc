"""Edits made ready for one model: what to visit, in execution order, in one nnsight intervention.

A program visits each place once in a step, whatever the number of edits there (`visits`). Edits of z, those
of heads and any others of that name, come behind the kernel of their layer, and edits of other sites where a
forward pass reaches them. Pictures are edited before the processor runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from seeing.edits.contrast import Contrast, Mixing
from seeing.edits.edit import Edit, ImageEdit, RowEdit, SiteEdit
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.visits import KernelVisit, SiteVisit
from seeing.names import Name
from seeing.prompt import Prompt
from seeing.sites import own_rows
from seeing.traced import RunEnded
from seeing.vlm import VLM


@dataclass
class Program:
    """Edits compiled for one model. ``mixing`` has the second run that a `Contrast` asks for."""

    images: list[ImageEdit]
    visits: list[KernelVisit | SiteVisit]
    mixing: Mixing | None = None

    @classmethod
    def of(cls, vlm: VLM, edits: Iterable[Edit]) -> Program:
        """Raises `BadEdit` for an edit that does not fit the model."""
        parts = [part for edit in edits for part in edit.fit(vlm)]
        visits: dict[str, KernelVisit | SiteVisit] = {}

        def at_kernel(layer: int) -> KernelVisit:
            name = f"text.{layer}.attn.scores"
            return visits.setdefault(name, KernelVisit(vlm.sites.kernels["text"][layer]))

        def at_site(name: str) -> SiteVisit:
            kernel = vlm.sites.kernels["text"].get(Name.parse(name).layer)
            return visits.setdefault(name, SiteVisit(vlm.sites[name], kernel is not None and kernel.cross))

        for edit in parts:
            for one in edit.selectors:
                one.fit(vlm)
            if isinstance(edit, RowEdit):
                for layer in edit.layers:
                    at_kernel(layer).edits.append(edit)
            elif isinstance(edit, SiteEdit):
                at_site(edit.site).edits.append(edit)
            for read in _reads(edit):
                at_kernel(read).read = True
            for place in _places(edit):
                for name in edit.watches(place.layer):
                    _check_behind(edit, place, Name.parse(name))
                    visit = at_site(name)
                    visit.watched = max(visit.watched, edit.stop)
        ordered = sorted(visits.items(), key=lambda item: Name.parse(item[0]))
        return cls(
            [edit for edit in parts if isinstance(edit, ImageEdit)],
            [visit for _, visit in ordered],
            _mixing(vlm, parts),
        )

    def __getstate__(self) -> dict:
        # Pictures are edited before a trace leaves to run elsewhere.
        return {**vars(self), "images": []}

    def edit_images(self, prompt: Prompt) -> Prompt:
        """The prompt with its pictures edited, one edit behind the other, and processed once."""
        for edit in self.images:
            edit.check(len(prompt))

        def edited(row, turn):
            for edit in self.images:
                turn = edit.turn(row, turn)
            return turn

        return prompt.with_turns(edited) if self.images else prompt

    def run(self, vlm: VLM, steps: Iterable[int]) -> None:
        """Visit what is due in each step. Raises `BadEdit` when the run ends in the midst of one."""
        readings: dict[Any, Any] = {}
        stop = max((visit.stop for visit in self.visits), default=0)
        for step in steps:
            if step >= stop:
                break
            given = 0 if step or vlm.running is None else vlm.running.n_given
            due = [visit for visit in self.visits if visit.due(range(step, step + given + 1), vlm.looks)]
            moment = _moment(vlm, step, readings) if due else None
            for number, visit in enumerate(due):
                try:
                    visit.run(moment)
                except RunEnded:
                    if number == 0:
                        return
                    raise BadEdit(
                        f"the run ended in step {step} before it reached {visit.name}, which edits wait for: "
                        f"they did nothing there; leave that layer out"
                    ) from None


def _moment(vlm: VLM, step: int, readings: dict) -> Moment:
    prompt = vlm.running
    if prompt is None:
        raise BadEdit(
            "edits are resolved against a Prompt: run the edited model on vlm.prompt(image, question)"
        )
    if (rows := own_rows()) is not None:
        prompt = prompt.some_rows(*rows)
    return Moment(prompt, step, prompt.length, len(prompt), vlm.device, readings, shift=prompt.shift)


def _mixing(vlm: VLM, parts: Sequence[Edit]) -> Mixing | None:
    found = [edit for edit in parts if isinstance(edit, Contrast)]
    if len(found) > 1:
        raise BadEdit(f"a run contrasts with one other, these edits ask for {len(found)}: {found}")
    if not found:
        return None
    other = Program.of(vlm, found[0].others)
    if other.mixing is not None:
        raise BadEdit(f"{found[0]!r}: the run that is contrasted with can't be contrasted itself")
    return Mixing(found[0], other)


def _places(edit: Edit) -> list[Name]:
    """The sites that an edit changes."""
    if isinstance(edit, RowEdit):
        return [Name("attn.scores", "text", layer) for layer in edit.layers]
    return [Name.parse(edit.site)] if isinstance(edit, SiteEdit) else []


def _reads(edit: Edit) -> frozenset[int]:
    """The layers whose last row the selectors of an edit look at; all of them before the edit acts."""
    reads = frozenset().union(*(one.reads for one in edit.selectors))
    for place in _places(edit) if reads else ():
        _check_behind(edit, place, Name("attn.pattern", "text", max(reads)))
    return reads


def _check_behind(edit: Edit, place: Name, read: Name) -> None:
    """Raise `BadEdit` for an edit of a site that a pass reaches before what the edit reads."""
    same_kernel = place.has_rows and read.has_rows and place.layer == read.layer
    if place < read or same_kernel:
        raise BadEdit(
            f"{edit!r} acts on {place} and reads {read} of the same pass; an edit acts behind all that it "
            "reads"
        )
