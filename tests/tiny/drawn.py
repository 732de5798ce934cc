"""Random edits as hypothesis draws them, each beside its formula, for a stack of six layers of four heads.

A selection is a tree of tuples, which `as_selector` makes a selector of, and `Run.mask` a mask without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from seeing import edits as E

LAYERS, HEADS, WIDTH, STEPS = 6, 4, 128, 3
BOXES = ((20.0, 12.0, 60.0, 80.0),)

# ---- selections --------------------------------------------------------------------------------------------

LEAVES = ("image", "question", "template", "text", "last", "all", "answer", "box", (-1, -4), (-2,))


def selections() -> st.SearchStrategy:
    """Trees of names, positions and a box."""
    return st.recursive(
        st.sampled_from(LEAVES),
        lambda part: st.one_of(st.tuples(st.sampled_from("&|"), part, part), st.tuples(st.just("~"), part)),
        max_leaves=3,
    )


def as_selector(tree: Any) -> Any:
    if tree == "box":
        return E.Boxes(BOXES)
    if isinstance(tree, str):
        return E.Span(tree)
    if tree[0] == "~":
        return ~as_selector(tree[1])
    if tree[0] in ("&", "|"):
        left, right = map(as_selector, tree[1:])
        return left & right if tree[0] == "&" else left | right
    return E.Positions((tree,))


@dataclass
class Run:
    """A prompt and what was decoded behind it, as masks of all positions."""

    spans: dict[str, torch.Tensor]
    length: int

    @property
    def total(self) -> int:
        return self.length + STEPS - 1

    def mask(self, tree: Any, step: int) -> torch.Tensor:
        """(batch, position) in a step; those that come later are hidden by the mask anyway."""
        place = torch.arange(self.total).expand(len(self.spans["image"]), -1)
        if tree in self.spans:
            return torch.nn.functional.pad(self.spans[tree], (0, STEPS - 1))
        if isinstance(tree, str):
            newest = self.length - 1 + step
            return {"last": place == newest, "all": place >= 0, "answer": place >= self.length}[tree]
        if tree[0] == "~":
            return ~self.mask(tree[1], step)
        if tree[0] in ("&", "|"):
            left, right = (self.mask(part, step) for part in tree[1:])
            return left & right if tree[0] == "&" else left | right
        return torch.stack([place == self.length + back for back in tree]).any(0)

    def of_step(self, step: int) -> torch.Tensor:
        """Rows of a step: the prompt's in step 0, then one each."""
        place = torch.arange(self.total)
        return (place < self.length) if step == 0 else (place == self.length - 1 + step)


# ---- edits -------------------------------------------------------------------------------------------------


@dataclass
class Drawn:
    """An edit, and its formula: ``fn`` of values; of rows, also of keys and of what is seen."""

    edit: E.Edit
    part: str
    layers: tuple[int, ...]
    rows: Any
    steps: tuple[int, ...]
    fn: Callable
    keys: Any = None
    heads: dict[int, list[int]] | None = None

    def chosen(self, run: Run, step: int) -> torch.Tensor:
        return run.mask(self.rows, step) & run.of_step(step)


WHENS = {"both": (0, 1, 2), "prompt": (0,), "decode": (1, 2), range(1, 2): (1,), 2: (2,), range(0, 2): (0, 1)}
WHERE = [
    ("all", tuple(range(LAYERS))),
    ("deep", (3, 4, 5)),
    (1, (1,)),
    ((0, 4), (0, 4)),
    (slice(3), (0, 1, 2)),
    (-1, (5,)),
]


def uniform(p, k, seen):
    mine = k & seen
    share = (p * mine).sum(-1, keepdim=True) / mine.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(mine, share, p)


def scaled(factor, renormalize):
    def fn(p, k, seen):
        new = torch.where(k, factor * p, p)
        left = new.sum(-1, keepdim=True)
        whole = torch.where(left > 0, new * p.sum(-1, keepdim=True) / left, new)
        return whole if renormalize else new

    return fn


def moved_away(share):
    def fn(p, k, seen):
        rest = (p * ~k).sum(-1, keepdim=True)
        gone = share * (p * k).sum(-1, keepdim=True)
        return torch.where(rest > 0, torch.where(k, (1 - share) * p, p * (1 + gone / rest)), p)

    return fn


def flattened(scores):
    return 0.5 * scores


def squared(weights):
    return weights**2


#: Name -> (the edit of keys and a number, the part that it changes, the formula).
ROWS = {
    "Bias": (lambda k, x, w: E.Bias(keys=k, value=x, **w), "scores", lambda x: lambda s, k, _: s + x * k),
    "ScaleAttention": (
        lambda k, x, w: E.ScaleAttention(keys=k, gain=2**x, **w),
        "scores",
        lambda x: lambda s, k, _: s + x * math.log(2) * k,
    ),
    "Knockout": (
        lambda k, x, w: E.Knockout(keys=k, **w),
        "scores",
        lambda x: lambda s, k, _: s.masked_fill(k, -torch.inf),
    ),
    "Temperature": (
        lambda k, x, w: E.Temperature(keys=k, value=2**x, **w),
        "scores",
        lambda x: lambda s, k, _: torch.where(k, s / 2**x, s),
    ),
    "Amplify": (
        lambda k, x, w: E.Amplify(keys=k, share=x / 4, **w),
        "scores",
        lambda x: lambda s, k, _: torch.where(k, s * (1 + x / 4 * s.sign()), s),
    ),
    "MapScores": (
        lambda k, x, w: E.MapScores(flattened, keys=k, **w),
        "scores",
        lambda x: lambda s, k, _: torch.where(k, s / 2, s),
    ),
    "ScalePattern": (
        lambda k, x, w: E.ScalePattern(keys=k, factor=x**2, renormalize=x > 0, **w),
        "pattern",
        lambda x: scaled(x**2, x > 0),
    ),
    "SetPattern": (lambda k, x, w: E.SetPattern("uniform", keys=k, **w), "pattern", lambda x: uniform),
    "SetPattern, zero": (
        lambda k, x, w: E.SetPattern(0.0, keys=k, **w),
        "pattern",
        lambda x: lambda p, k, _: p * ~k,
    ),
    "Redistribute": (
        lambda k, x, w: E.Redistribute(k, E.maybe(~k), x / 4 + 0.5, **w),
        "pattern",
        lambda x: moved_away(x / 4 + 0.5),
    ),
    "MapPattern": (
        lambda k, x, w: E.MapPattern(squared, keys=k, **w),
        "pattern",
        lambda x: lambda p, k, _: torch.where(k, p**2, p),
    ),
}
FUNCTIONS = ("MapScores", "MapPattern")

VECTORS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))


def rotated(x, v, strength):
    unit, to = x / x.norm(dim=-1, keepdim=True), v / v.norm()
    turned = unit + strength * (1 + (-(unit @ to)).clamp(min=0))[..., None] * to
    return x.norm(dim=-1, keepdim=True) * turned / turned.norm(dim=-1, keepdim=True)


def along(x, v):
    return (x @ v)[..., None] / (v @ v) * v


#: Name -> (the edit of a site by a vector and a number at positions, the formula).
STREAM = {
    "Steer": (lambda s, v, x, p, w: E.Steer(s, v, x, p, when=w), lambda v, x: lambda a: a + x * v),
    "Steer, norm preserving": (
        lambda s, v, x, p, w: E.Steer(s, v, x, p, when=w, norm_preserving=True),
        lambda v, x: (
            lambda a: (a + x * v) * a.norm(dim=-1, keepdim=True) / (a + x * v).norm(dim=-1, keepdim=True)
        ),
    ),
    "Rotate": (
        lambda s, v, x, p, w: E.Rotate(s, v, x, p, when=w),
        lambda v, x: lambda a: rotated(a, v, x),
    ),
    "ProjectOut": (
        lambda s, v, x, p, w: E.ProjectOut(s, v, p, when=w),
        lambda v, x: lambda a: a - along(a, v),
    ),
    "SetResidual": (
        lambda s, v, x, p, w: E.SetResidual(s, v, p, when=w),
        lambda v, x: lambda a: v.expand_as(a),
    ),
}
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
NUMBERS = st.sampled_from([-1.5, -0.5, 0.0, 0.75, 2.0])


@st.composite
def row_edits(draw: Callable, kinds: tuple[str, ...] = tuple(ROWS), heads: Any = None) -> Drawn:
    kind, number, when = draw(st.sampled_from(kinds)), draw(NUMBERS), draw(st.sampled_from(list(WHENS)))
    make, part, formula = ROWS[kind]
    keys, rows = draw(selections()), draw(st.one_of(st.just("last"), selections()))
    if heads is None:
        heads = draw(st.sampled_from([None, {1: [0, 2], 4: [3]}, {0: [1], 5: [1, 2]}]))
    where, layers = draw(st.sampled_from(WHERE)) if heads is None else ("all", tuple(heads))
    place = dict(queries=E.maybe(as_selector(rows)), layers=where, heads=heads, when=when)
    edit = make(E.maybe(as_selector(keys)), number, place)
    return Drawn(edit, part, layers, rows, WHENS[when], formula(number), keys, heads)


@st.composite
def head_edits(draw: Callable) -> Drawn:
    heads = draw(st.sampled_from([{0: [0], 3: [1, 2]}, {5: [3]}, {2: [0, 1, 2, 3]}]))
    rows, when = draw(selections()), draw(st.sampled_from(list(WHENS)))
    place = dict(positions=E.maybe(as_selector(rows)), when=when)
    kind, number = draw(st.sampled_from(["ablate", "scale", "set"])), draw(NUMBERS)
    edit, fn = {
        "ablate": (E.AblateHeads(heads, **place), torch.zeros_like),
        "scale": (E.ScaleHeads(heads, number, **place), lambda z: number * z),
        "set": (E.SetHeads(heads, number, **place), lambda z: torch.full_like(z, number)),
    }[kind]
    return Drawn(edit, "z", tuple(heads), rows, WHENS[when], fn, heads=heads)


@st.composite
def site_edits(draw: Callable) -> Drawn:
    kind, number = draw(st.sampled_from(list(STREAM))), draw(NUMBERS)
    site, layer, rows = draw(st.sampled_from(SITES)), draw(st.integers(0, LAYERS - 1)), draw(selections())
    vector, when = VECTORS[draw(st.integers(0, 2))], draw(st.sampled_from(list(WHENS)))
    make, formula = STREAM[kind]
    edit = make(f"text.{layer}.{site}", vector, number, E.maybe(as_selector(rows)), when)
    return Drawn(edit, site, (layer,), rows, WHENS[when], formula(vector, number))


ANY = st.one_of(row_edits(), row_edits(), head_edits(), site_edits())
SAVED = st.one_of(
    row_edits(tuple(kind for kind in ROWS if kind not in FUNCTIONS)), head_edits(), site_edits()
)
