"""Edits of named activations at chosen positions: steering, projecting out, setting.

They take any site of the vocabulary that has positions, most of all the residual stream; sites of the tower
and the projector have no positions of the sequence and are edited with ``positions="all"``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits.edit import Edit, SiteEdit
from seeing.edits.layers import number, own, when_said
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.scores import is_number
from seeing.edits.select import ALL, selector
from seeing.names import ROW_SITES, Name, UnknownName, expand
from seeing.vlm import VLM


class PlacedEdit(SiteEdit):
    """An edit of every vector of a named activation at some positions."""

    positions: Any

    def __post_init__(self):
        self._say(positions=selector(self.positions), when=when_said(self.when))

    def fit(self, vlm: VLM) -> tuple[Edit, ...]:
        return tuple(
            self._at(Name.parse(site), vlm) for site in sites_of(type(self).__name__, self.site, vlm)
        )

    def _at(self, name: Name, vlm: VLM) -> Edit:
        if name.site in ROW_SITES:
            raise BadEdit(f"{name} holds rows of attention; the edits of scores and patterns change those")
        if name.in_tower and self.positions != ALL:
            raise BadEdit(f"{str(name)!r} has no positions of the sequence; edit it with positions='all'")
        width = width_of(name, vlm)
        if width is not None and self.width not in (None, width):
            raise BadEdit(f"{str(name)!r} is {width} wide, {self.what} has {self.width} numbers")
        return replace(self, site=str(name))

    #: What has to be as wide as the site, for its error message.
    what = "the vector"

    @property
    def width(self) -> int | None:
        """How wide the site has to be, where the edit knows."""
        return None

    def value(self, value: Float[Tensor, "..."], at: Moment) -> Tensor:
        if self.width not in (None, value.shape[-1]):
            raise BadEdit(f"{self.site!r} is {value.shape[-1]} wide, {self.what} has {self.width} numbers")
        edited = self.edited(value)
        if self.positions == ALL:
            return edited
        mask = at.acting(self.positions, "positions", self, value.shape[1])
        return torch.where(mask.reshape(*mask.shape, *(1,) * (value.ndim - 2)), edited, value)

    @abstractmethod
    def edited(self, value: Float[Tensor, "*batch d"]) -> Tensor:
        """The activation as if every position were chosen."""


class VectorEdit(PlacedEdit):
    """An edit of an activation by one vector, with a strength."""

    vector: Any
    strength: float

    def __post_init__(self):
        super().__post_init__()
        self._say(vector=vector_said(self.vector, self.what))
        if not is_number(self.strength):
            raise BadEdit(f"a strength is a finite number, got {self.strength!r}")
        self._say(strength=number(self.strength))

    @property
    def width(self) -> int:
        return len(self.vector)


@dataclass(frozen=True, eq=False, repr=False)
class Steer(VectorEdit):
    """Add ``strength · vector`` to a named activation: ``Steer("text.14.resid_post", direction, 4.0)``.

    Acts at ``positions``, by default the newest one: the last prompt token, then each decoded token.
    The vector has the width of the site's last axis; gradients flow back to it. ``norm_preserving`` scales
    what comes out to the length that went in: x ← ‖x‖ · (x + s·v) / ‖x + s·v‖.
    """

    site: str
    vector: Any
    strength: float = 1.0
    positions: Any = "last"
    when: Any = "both"
    norm_preserving: bool = field(default=False, kw_only=True)

    what = "the steering vector"

    def edited(self, value: Float[Tensor, "*batch d"]) -> Tensor:
        steered = value + self.strength * self.vector.to(value)
        return _as_long_as(value, steered) if self.norm_preserving else steered


@dataclass(frozen=True, eq=False, repr=False)
class Rotate(VectorEdit):
    """Turn an activation towards ``vector`` and keep its length: VISTA's steering (arXiv 2502.03628).

    With n(·) the unit vector, x ← ‖x‖ · n(n(x) + λ·n(v)); λ = ``strength``, made larger where x points away
    from the vector, λ·(1 + max(0, cos(x, −v))), if ``adaptive``. λ = 0 is neutral.
    """

    site: str
    vector: Any
    strength: float = 0.1
    positions: Any = "last"
    when: Any = "both"
    adaptive: bool = field(default=True, kw_only=True)

    what = "the vector to turn to"

    def __post_init__(self):
        super().__post_init__()
        if not self.vector.any():
            raise BadEdit("the vector to turn to is zero: it has no direction")

    def edited(self, value: Float[Tensor, "*batch d"]) -> Tensor:
        x, v = value.float(), torch.nn.functional.normalize(self.vector.to(value.device).float(), dim=-1)
        unit = torch.nn.functional.normalize(x, dim=-1)
        size = self.strength * (1 + (-(unit @ v)).clamp_min(0)) if self.adaptive else self.strength
        size = size[..., None] if isinstance(size, Tensor) else size
        return _as_long_as(x, unit + size * v).to(value.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class ProjectOut(PlacedEdit):
    """Take directions out of a named activation: x ← x − U Uᵀ x, U an orthonormal basis of ``directions``.

    ``directions`` is one vector or several (n, d). Acts at all positions by default, in the prompt pass and
    at every decoded token, as directional ablation does (arXiv 2406.11717).
    """

    site: str
    directions: Any
    positions: Any = "all"
    when: Any = "both"

    def __post_init__(self):
        super().__post_init__()
        given = _tensor(self.directions, "directions")
        given = given[None] if given.ndim == 1 else given
        if given.ndim != 2 or not torch.isfinite(given).all() or not given.any(1).all():
            raise BadEdit(
                f"directions are finite vectors (n, d), none of them zero; got {tuple(given.shape)}"
            )
        self._say(directions=given)

    what = "a direction"

    @property
    def width(self) -> int:
        return self.directions.shape[1]

    def edited(self, value: Float[Tensor, "*batch d"]) -> Tensor:
        # Vectors that depend on others add no direction: a pivoted basis by singular values leaves them out.
        _, sizes, basis = torch.linalg.svd(self.directions.to(value.device).double(), full_matrices=False)
        basis = basis[sizes > sizes.max() * 1e-9].to(torch.promote_types(value.dtype, torch.float32))
        x = value.to(basis)
        return (x - (x @ basis.T) @ basis).to(value.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class SetResidual(PlacedEdit):
    """Set a named activation at ``positions`` to ``value``: a vector of the site's width, or a number.

    Any site of vectors, not only of the residual stream: ``SetResidual("text.embed", mean, "image")`` is
    the token ablation of arXiv 2410.07149.
    """

    site: str
    vector: Any
    positions: Any = "last"
    when: Any = "both"

    def __post_init__(self):
        super().__post_init__()
        if is_number(self.vector):
            self._say(vector=number(self.vector))
            return
        self._say(vector=vector_said(self.vector, "what a site is set to"))

    what = "what it is set to"

    @property
    def width(self) -> int | None:
        return None if is_number(self.vector) else len(self.vector)

    def edited(self, value: Float[Tensor, "*batch d"]) -> Tensor:
        if is_number(self.vector):
            return torch.full_like(value, self.vector)
        return self.vector.to(value).expand_as(value)


def sites_of(what: str, site: Any, vlm: VLM) -> list[str]:
    """The names that ``site``, a name or a glob, means in the model. Raises `BadEdit` for none."""
    try:
        return expand(site, vlm.names(), vlm.sites.absent)
    except (UnknownName, TypeError) as error:
        raise BadEdit(f"{what} takes a site that the model has; {site!r:.200}: {error}") from error


def vector_said(vector: Any, what: str) -> Float[Tensor, " d"]:
    """A vector from a tensor, an array or numbers. Raises `BadEdit`."""
    found = _tensor(vector, what)
    if found.ndim != 1 or not torch.isfinite(found).all():
        raise BadEdit(f"{what} is one axis of finite numbers, got {tuple(found.shape)}")
    return found


def _tensor(given: Any, what: str) -> Tensor:
    try:
        found = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadEdit(f"{what} is a tensor, an array or a list of numbers: {error}") from error
    return own(found if found.is_floating_point() else found.float())


def _as_long_as(value: Tensor, other: Tensor) -> Tensor:
    """``other`` with the length of ``value``."""
    size = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
    return torch.nn.functional.normalize(other, dim=-1) * size


def width_of(name: Name, vlm: VLM) -> int | None:
    """The size of a site's last axis, where it is known before a run."""
    if name.site in ("mlp.post", "projector.in", "projector.out", "ple_out"):
        return None
    if name.site == "logits":
        return vlm.cfg.d_vocab
    in_tower = name.stack == "vision" or name.site == "vision.embed"
    sizes = vlm.cfg.vision if in_tower else vlm.cfg
    if name.site in ("attn.q", "attn.k", "attn.v", "attn.z"):
        return getattr(vlm.sites.kernels[name.stack][name.layer].attn, "head_dim", sizes.d_head)
    return sizes.d_model
