"""The grammar of names: one vocabulary for every family.

A name is data. ``text.12.attn.pattern`` says which stack, which layer, which site, and says it the
same way for every model, so that it can be cached, patched, plotted, stored in JSON and compared
across models. This module knows the grammar only: what a well-formed name is, how globs and layer
ranges expand over the names that a model has, in which order a forward pass reaches them, and how
TransformerLens' spellings translate. It knows nothing of models.

A name is ``{stack}.{layer}.{site}`` (``text.3.resid_post``) or one of the names outside the layers
(``text.embed``, ``projector.out``, ``text.norm``, ``logits``). Layers count from 0.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering

#: Sites of one layer, in the order in which a forward pass reaches them.
LAYER_SITES = (
    "resid_pre",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.scores",
    "attn.pattern",
    "attn.z",
    "attn.result",
    "attn_out",
    "resid_mid",
    "mlp.post",
    "mlp_out",
    "ple_out",
    "resid_post",
)

#: Sites whose third axis is the query, which ``queries=`` cuts.
ROW_SITES = ("attn.scores", "attn.pattern")

#: Names outside the layers, with their place in the order of a forward pass.
_BEFORE_VISION, _VISION, _PROJECTOR, _EMBED, _TEXT, _AFTER = range(6)
_OUTSIDE = {
    "vision.embed": (_BEFORE_VISION, 0),
    "projector.in": (_PROJECTOR, 0),
    "projector.out": (_PROJECTOR, 1),
    "text.embed": (_EMBED, 0),
    "text.norm": (_AFTER, 0),
    "logits": (_AFTER, 1),
}
_STACKS = {"vision": _VISION, "text": _TEXT}
_NAME = re.compile(r"(?P<stack>vision|text)\.(?P<layer>\d+)\.(?P<site>.+)")

#: TransformerLens' spellings, with ``{l}`` for the layer.
_TRANSFORMER_LENS = {
    "blocks.{l}.hook_resid_pre": "text.{l}.resid_pre",
    "blocks.{l}.hook_resid_mid": "text.{l}.resid_mid",
    "blocks.{l}.hook_resid_post": "text.{l}.resid_post",
    "blocks.{l}.hook_attn_out": "text.{l}.attn_out",
    "blocks.{l}.hook_mlp_out": "text.{l}.mlp_out",
    "blocks.{l}.mlp.hook_post": "text.{l}.mlp.post",
    "blocks.{l}.attn.hook_q": "text.{l}.attn.q",
    "blocks.{l}.attn.hook_rot_q": "text.{l}.attn.q",
    "blocks.{l}.attn.hook_k": "text.{l}.attn.k",
    "blocks.{l}.attn.hook_rot_k": "text.{l}.attn.k",
    "blocks.{l}.attn.hook_v": "text.{l}.attn.v",
    "blocks.{l}.attn.hook_z": "text.{l}.attn.z",
    "blocks.{l}.attn.hook_result": "text.{l}.attn.result",
    "blocks.{l}.attn.hook_pattern": "text.{l}.attn.pattern",
    "blocks.{l}.attn.hook_attn_scores": "text.{l}.attn.scores",
    "hook_embed": "text.embed",
    "ln_final.hook_normalized": "text.norm",
    "unembed.hook_logits": "logits",
}


class UnknownName(KeyError):
    """A name that the grammar, or the model at hand, does not have."""

    def __str__(self) -> str:
        return str(self.args[0])


@total_ordering
@dataclass(frozen=True)
class Name:
    """One name, parsed. Sorts in the order in which a forward pass reaches the sites.

    ``stack`` and ``layer`` are None for a name outside the layers (``logits``).
    """

    site: str
    stack: str | None = None
    layer: int | None = None

    @classmethod
    def parse(cls, text: str) -> Name:
        """Read ``text``, in our spelling or in TransformerLens'. Raises `UnknownName`."""
        text = from_transformer_lens(text)
        if text in _OUTSIDE:
            return cls(text)
        found = _NAME.fullmatch(text)
        if found and found["site"] in LAYER_SITES:
            return cls(found["site"], found["stack"], int(found["layer"]))
        raise UnknownName(_unknown(text))

    @property
    def order(self) -> tuple[int, int, int]:
        """Where a forward pass reaches this site: (part of the model, layer, site)."""
        if self.stack is None:
            part, site = _OUTSIDE[self.site]
            return part, 0, site
        return _STACKS[self.stack], self.layer, LAYER_SITES.index(self.site)

    @property
    def has_rows(self) -> bool:
        """Whether the name has a query axis, which ``queries=`` cuts."""
        return self.site in ROW_SITES

    @property
    def in_tower(self) -> bool:
        """Whether the name holds pictures, in the tower or the projector: no positions of the sequence."""
        return self.stack == "vision" or self.site.startswith(("vision.", "projector."))

    def __lt__(self, other: Name) -> bool:
        return self.order < other.order

    def __str__(self) -> str:
        return self.site if self.stack is None else f"{self.stack}.{self.layer}.{self.site}"


def from_transformer_lens(text: str) -> str:
    """``blocks.3.attn.hook_pattern`` -> ``text.3.attn.pattern``; any other text comes back as it is."""
    for theirs, ours in _TRANSFORMER_LENS.items():
        pattern = re.escape(theirs).replace(re.escape("{l}"), r"(?P<l>[\d*?\[\]-]+)")
        if found := re.fullmatch(pattern, text):
            return ours.format(**found.groupdict())
    return text


def expand(
    wanted: str | Iterable[str], existing: Sequence[str], absent: Mapping[str, str] | None = None
) -> list[str]:
    """The names among ``existing`` that ``wanted`` asks for, in the order of a forward pass.

    ``wanted`` is one name or several; ``*``, ``?`` and ``[...]`` are globs and ``12-18`` is a range
    of layers, both ends in it. A glob takes what exists; a name that is written out must exist. ``absent``
    says why names of the vocabulary are not there.

    Raises:
        UnknownName: a written name that does not exist, or a glob that matches nothing.
    """
    if not isinstance(wanted, str) and not isinstance(wanted, Iterable):
        raise UnknownName(f"names are strings such as 'text.*.attn.pattern', got {wanted!r}")
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted:
        raise UnknownName("no name was asked for; give at least one, such as 'text.*.attn.pattern'")
    chosen: set[str] = set()
    for text in wanted:
        if not isinstance(text, str):
            raise TypeError(f"a name is a string such as 'text.3.resid_post', got {type(text).__name__}")
        text = from_transformer_lens(text)
        matched = [name for one in _ranges(text) for name in existing if fnmatch.fnmatchcase(name, one)]
        if not matched:
            reason = (absent or {}).get(text)
            raise UnknownName(f"no name {text!r}: {reason}" if reason else _unknown(text, existing))
        chosen.update(matched)
    return sorted(chosen, key=Name.parse)


def _ranges(text: str) -> list[str]:
    found = re.search(r"(?<=\.)(\d+)-(\d+)(?=\.)", text)
    if not found:
        return [text]
    first, last = map(int, found.groups())
    return [f"{text[: found.start()]}{layer}{text[found.end() :]}" for layer in range(first, last + 1)]


def _unknown(text: str, existing: Sequence[str] | None = None) -> str:
    """Why ``text`` is not a name, and what may have been meant."""
    if existing is None:
        existing = [*_OUTSIDE, *(f"{stack}.0.{site}" for stack in _STACKS for site in LAYER_SITES)]
    found = _NAME.fullmatch(text)
    if found:
        same_site = [
            n for n in existing if n.startswith(f"{found['stack']}.") and n.endswith(f".{found['site']}")
        ]
        if same_site:
            layers = sorted(Name.parse(name).layer for name in same_site)
            return (
                f"no name {text!r}: {found['stack']} has {found['site']!r} in layers "
                f"{_spans(layers)}, counted from 0"
            )
        if found["site"] in LAYER_SITES:
            return f"no name {text!r}: this model has no {found['site']!r} in its {found['stack']} stack"
    near = difflib.get_close_matches(text, existing, n=3, cutoff=0.5)
    hint = f"; close to it: {', '.join(near)}" if near else "; for example 'text.3.attn.pattern' or 'logits'"
    matched = "glob matches no name" if any(c in text for c in "*?[") else "no name"
    return f"{matched} {text!r}{hint}"


def _spans(layers: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``0-2, 5``."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
