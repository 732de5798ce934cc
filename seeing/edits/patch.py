"""Activation patching: put in what another prompt has, at any named site.

Meng et al. 2022 (causal tracing, arXiv 2202.05262) and, for the names, Heimersheim & Nanda 2024 (arXiv
2404.15255): run one prompt with some activations of another, and see what of the other's answer comes along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.edit import Edit, PatternEdit, SiteEdit
from seeing.edits.layers import check_head, heads_said, is_table, own, when_said
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.residual import sites_of
from seeing.edits.select import ALL, Span, selector
from seeing.edits.source import Source
from seeing.names import Name, expand
from seeing.vlm import VLM


@dataclass(frozen=True, eq=False, repr=False)
class Patch(Edit):
    """Put in activations of another prompt: ``Patch("text.12.resid_post", cache)``.

    ``site`` is a name or a glob of names, all of which ``source``, what ``vlm.cache`` gave, must hold; a
    tensor stands for the one site named. ``positions`` are aligned by span between the two prompts
    (`Source`): by default all of them. ``heads`` are those patched of sites that have heads. Sites of the
    tower and the projector go in whole. Of ``attn.pattern`` the source's rows are put in: all, or the last,
    between prompts with the same spans in the same places. Acts in the prompt pass: decoded tokens have no
    counterpart. Tokens of a given answer have one where both prompts go on with as long an answer, and are
    then patched where ``positions`` hold them.
    """

    site: Any
    source: Any
    positions: Any = "all"
    heads: Any = field(default=None, kw_only=True)
    when: Any = "prompt"

    def __post_init__(self):
        self._say(positions=selector(self.positions), heads=heads_said(self.heads), when=when_said(self.when))
        if is_table(self.heads):
            raise BadEdit("heads of a patch are the same in every site it names; add one Patch a layer")
        if self.decodes:
            raise BadEdit(f"a patch has the positions of a prompt: when is 'prompt', got {self.when!r}")
        if isinstance(self.source, Tensor):
            self._say(source=Source((self.site,), (own(self.source),)))
        elif isinstance(self.source, Mapping):
            names = expand(self.site, list(self.source))
            self._say(source=Source.of(self.source, names, self.positions))
        elif not isinstance(self.source, Source):
            raise BadEdit(f"a source is what vlm.cache gave, or a tensor; got {type(self.source).__name__}")

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        for head in self.heads or ():
            check_head(head, vlm)
        parts: list[Edit] = []
        for site in sites_of("Patch", self.site, vlm):
            if site not in self.source.names:
                raise BadEdit(f"the source of the patch has no {site}; it has {', '.join(self.source.names)}")
            name = Name.parse(site)
            if name.site == "attn.scores":
                raise BadEdit(f"{site} can't be patched, {site.replace('scores', 'pattern')} can")
            if self.heads is not None and not name.site.startswith("attn."):
                raise BadEdit(f"{site} has no heads; leave heads= out")
            if name.in_tower and self.positions != ALL:
                raise BadEdit(f"{site} has no positions of the sequence; patch it with positions='all'")
            if name.has_rows:
                parts.append(self._rows(name, vlm))
            else:
                parts.append(_PatchSite(site, self.source, self.positions, self.heads, self.when))
        return tuple(parts)

    def _rows(self, name: Name, vlm: VLM) -> Edit:
        if name.stack != "text":
            raise BadEdit(f"{name} can't be patched: rows are edited in the text stack")
        queries = self.positions
        if self.source.value(str(name)).shape[2] == 1:
            if queries not in (ALL, Span("last")):
                raise BadEdit(
                    f"the source has one row of {name}, the last; to patch those of {queries!r} read them "
                    f"with queries='all'"
                )
            queries = "last"
        edit = _PatchPattern(
            self.source,
            str(name),
            keys="all",
            queries=queries,
            layers=(name.layer,),
            heads=self.heads,
            when=self.when,
        )
        return edit.fit(vlm)[0]


@dataclass(frozen=True, eq=False, repr=False)
class _PatchSite(SiteEdit):
    aligned = True

    site: str
    source: Source
    positions: Any
    heads: tuple[int, ...] | None
    when: Any

    def value(self, value: Float[Tensor, "..."], at: Moment) -> Tensor:
        if Name.parse(self.site).in_tower:
            given = self.source.value(self.site)
            if given.shape != value.shape:
                raise BadEdit(f"{self.site} is {tuple(value.shape)} here, {tuple(given.shape)} in the source")
            return given.to(value)
        if self.heads is None:
            return self.source.onto(value, self.site, self.positions, at)
        index = torch.tensor(self.heads, device=value.device)
        some = value.index_select(2, index)
        return value.index_copy(2, index, self.source.onto(some, self.site, self.positions, at, self.heads))


@dataclass(frozen=True, eq=False, repr=False)
class _PatchPattern(PatternEdit):
    source: Source
    name: str

    def pattern(self, pattern: Float[Tensor, "batch head rows key"], at: Moment, seen: Tensor) -> Tensor:
        value = at.each(self.source.value(self.name).to(pattern))
        # Rows are those of the queries' prompt, also where the keys are the picture's alone.
        prompt = (at.asking or at).prompt
        fits = prompt is not None and self.source.fits(prompt)
        if value.shape[-1] != pattern.shape[-1] or len(value) not in (1, len(pattern)) or not fits:
            raise BadEdit(
                f"{self.name} of the source has {value.shape[-1]} keys in {len(value)} row(s), here there "
                f"are {pattern.shape[-1]} in {len(pattern)}: rows are patched between prompts with the same "
                f"spans in the same places"
            )
        value = at.pick_rows(value, repr(self)).expand_as(pattern)
        return torch.where(seen, value, 0.0)


__all__ = ["Patch"]
