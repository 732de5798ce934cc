"""Profiles: which layers and heads of a model look at the evidence.

The paper (Liu et al., ICLR 2026, arXiv 2510.17771) profiles a model once, on about 100 annotated samples, and
keeps the ⌈10 %⌉ of layers with the highest mean AUROC, L_VG. Heads are ranked in the same way here, beyond
the paper, H_VG: the best few point more sharply than the mean of a layer. The samples of a profile should not
be among those that a method is later judged on.

A profile costs a pass over the samples, so it is kept (`Profile.save`), with what it was made of. The paper's
own are in `published`; `stability` says how many samples a choice needs.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits.layers import OfStack
from seeing.figures import layer_head_map
from seeing.probes.attention.evidence import Evidence, evidence
from seeing.probes.heads.scores import HeadScores, HeadTable
from seeing.probes.profiles.origin import Origin
from seeing.probes.progress import Progress
from seeing.prompt import Template
from seeing.vlm import VLM

#: What `Profile.save` writes and `Profile.load` reads.
VERSION = 1


@dataclass(frozen=True, eq=False)
class Profile:
    """A model's grounding layers and heads. It stands wherever layers are said.

    Attributes:
        layers: L_VG, ascending.
        auroc_layers: (layer,) mean AUROC of each layer's mean row; NaN where a layer sees no picture.
        auroc_heads: (layer, head) mean AUROC of each head.
        n: samples counted.
        top: the share of layers, and of heads, that is kept.
        left_out: how many samples were not counted, by reason.
        origin: what it was made of; None where that is not known.
        evidence: the probe that it comes from; None when it was loaded.
    """

    layers: tuple[int, ...]
    auroc_layers: Float[Tensor, " layer"]
    auroc_heads: Float[Tensor, "layer head"]
    n: int
    top: float = 0.1
    left_out: Mapping[str, int] = field(default_factory=dict)
    origin: Origin | None = None
    evidence: Evidence | None = field(default=None, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "layers", OfStack.of(self.layers, len(self.auroc_layers)))

    def __repr__(self) -> str:
        whose = "" if self.origin is None or not self.origin.model else f"{self.origin.model}, "
        at = float(self.auroc_layers[list(self.layers)].mean())
        over_all = float(self.auroc_layers.nanmean())
        heads = ", ".join(f"{layer}.{head}" for layer, head, _ in self.scores.ranking()[:4])
        return (
            f"Profile({whose}n={self.n}; layers {list(self.layers)} with AUROC {at:.3f}, {over_all:.3f} over "
            f"all; best heads {heads})"
        )

    @property
    def best_heads(self) -> HeadTable:
        """H_VG, the ⌈``top``⌉ share of heads, as {layer: [heads]}."""
        return self.scores.top(kept(self.auroc_heads, self.top))

    def heads(self, k: int = 4, below: int | None = None) -> HeadTable:
        """The ``k`` best heads as {layer: [heads]}; only layers < ``below``, where it is given."""
        return self.scores.top(k, below)

    @property
    def scores(self) -> HeadScores:
        """The heads by AUROC: rankings, and random heads to compare with."""
        return HeadScores("evidence AUROC", self.auroc_heads, self.n, units="0–1, chance 0.5")

    def check(self, vlm: VLM) -> None:
        """Raise ValueError for another model: other numbers of layers or heads, or another family."""
        layers, heads = self.auroc_heads.shape
        found = f"{vlm.cfg.n_layers} layers of {vlm.cfg.n_heads} heads"
        same = (layers, heads) == (vlm.cfg.n_layers, vlm.cfg.n_heads)
        family = vlm.cfg.family if self.origin is None else self.origin.family
        if not same or family != vlm.cfg.family:
            whose = "another model" if self.origin is None else f"{self.origin.model} ({self.origin.family})"
            raise ValueError(
                f"this is a profile of {whose}, {layers} layers of {heads} heads; this model "
                f"({vlm.cfg.family}) has {found}: profile it with probes.profile(vlm, samples)"
            )

    def to_json(self) -> str:
        """The profile as text: the choice, all AUROCs, what it was made of; no values of samples."""
        document = {
            "seeing profile": VERSION,
            "layers": list(self.layers),
            "n": self.n,
            "top": self.top,
            "left_out": dict(self.left_out),
            "origin": None if self.origin is None else self.origin.as_dict(),
            "auroc": {"layers": _listed(self.auroc_layers), "heads": _listed(self.auroc_heads)},
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the text") -> Profile:
        """What `to_json` wrote. Raises ValueError, which names ``source``, for anything else."""
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("seeing profile") != VERSION:
                raise ValueError(f"it says no 'seeing profile': {VERSION}")
            return cls._read(document)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{source} is no saved profile: {error}; expected what Profile.save wrote"
            ) from error

    def save(self, path: str | PathLike) -> None:
        """Write the profile as JSON, `to_json`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike, vlm: VLM | None = None) -> Profile:
        """A saved profile; with ``vlm``, checked to be one of that model.

        Raises ValueError for what is no profile, or is one of another model.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is no saved profile: {error}") from error
        found = cls.from_json(text, repr(str(path)))
        if vlm is not None:
            found.check(vlm)
        return found

    @classmethod
    def _read(cls, document: Mapping) -> Profile:
        by_layer, by_head = (_tensor(document["auroc"][name]) for name in ("layers", "heads"))
        layers = tuple(document["layers"])
        if by_layer.ndim != 1 or by_head.ndim != 2 or len(by_layer) != len(by_head):
            raise ValueError(f"AUROCs of shapes {tuple(by_layer.shape)} and {tuple(by_head.shape)}")
        if not layers or not all(type(one) is int and 0 <= one < len(by_layer) for one in layers):
            raise ValueError(f"layers {list(layers)} of {len(by_layer)}")
        origin = document["origin"]
        return cls(
            layers,
            by_layer,
            by_head,
            int(document["n"]),
            float(document["top"]),
            {str(reason): int(count) for reason, count in document["left_out"].items()},
            None if origin is None else Origin(**origin),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and head, head −1 for the layer's mean row; ``chosen`` is what is kept."""
        table = self.best_heads
        layers, heads = self.auroc_heads.shape
        places = [(layer, head) for layer in range(layers) for head in range(-1, heads)]
        return pd.DataFrame(
            {
                "layer": [layer for layer, _ in places],
                "head": [head for _, head in places],
                "auroc": [
                    float(self.auroc_layers[layer] if head < 0 else self.auroc_heads[layer, head])
                    for layer, head in places
                ],
                "chosen": [
                    layer in self.layers if head < 0 else head in table.get(layer, ())
                    for layer, head in places
                ],
            }
        )

    def figure(self, k: int | None = None, *, dark: bool = False) -> go.Figure:
        """AUROC by layer and head; L_VG shaded, H_VG (or the ``k`` best heads) outlined."""
        table = self.best_heads if k is None else self.heads(k)
        return layer_head_map(
            self.auroc_heads.double().numpy(),
            metric="evidence AUROC",
            n=self.n,
            units="0–1, chance 0.5",
            marginal=self.auroc_layers.double().numpy(),
            chosen_layers=self.layers,
            chosen_heads=[(layer, head) for layer, heads in table.items() for head in heads],
            dark=dark,
        )


def profile(
    vlm: VLM,
    samples: Iterable[EvidenceSample] | EvidenceSample,
    top: float = 0.1,
    *,
    data: str | None = None,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
) -> Profile:
    """Profile ``vlm``: keep the ⌈``top``⌉ share of layers with the highest mean AUROC, and of heads.

    Layers that have no attention over the picture (linear layers, or those without cross-attention in a model
    that has some) are not among those that the share is of.

    ``data`` is a name of the data set, to be kept with the profile.

    Raises ValueError for ``top`` outside (0, 1] and when no sample could be counted.
    """
    check_share(top)
    found = evidence(vlm, samples, template=template, batch_size=batch_size, progress=progress)
    return profile_of(found, top, origin=Origin.of(vlm, found.ids, data, template))


def profile_of(found: Evidence, top: float = 0.1, *, origin: Origin | None = None) -> Profile:
    """The profile that an evidence probe gives."""
    auroc = found.layers.auroc
    count = kept(auroc, top)
    best = auroc.nan_to_num(-1).argsort(descending=True, stable=True)[:count]
    left_out = Counter(reason for _, reason in found.left_out)
    return Profile(
        tuple(sorted(best.tolist())), auroc, found.auroc, found.n, top, dict(left_out), origin, found
    )


def kept(scores: Float[Tensor, "*place"], top: float) -> int:
    """How many are kept: ⌈``top`` × those with a score⌉, at least one.

    Raises ValueError for ``top`` outside (0, 1].
    """
    check_share(top)
    # 0.07 · 100 is 7.000000000000001, which is no eighth layer
    return max(1, math.ceil(top * int((~scores.isnan()).sum()) - 1e-9))


def check_share(top: float) -> None:
    """Raise ValueError for what is no share."""
    if not 0 < top <= 1:
        raise ValueError(f"top is a share of layers and heads in (0, 1], got {top}")


def _listed(values: Tensor) -> list:
    """Nested lists of numbers, None for NaN, which JSON does not have."""
    if values.ndim > 1:
        return [_listed(one) for one in values]
    return [None if math.isnan(one) else one for one in values.tolist()]


def _tensor(values: list) -> Tensor:
    """What `_listed` wrote."""
    nested = isinstance(values[0], list) if values else False
    if nested:
        return torch.stack([_tensor(one) for one in values])
    return torch.tensor([math.nan if one is None else one for one in values], dtype=torch.float64)


__all__ = ["Profile", "kept", "profile", "profile_of"]
