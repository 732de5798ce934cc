"""Stability: how many annotated samples does a choice of layers or heads need?

The paper profiles a model on about 100 samples. Would 20 have named the same layers? Samples are drawn with
replacement, ``size`` of them, as a study of that size would have drawn them from the same population
(bootstrap; Efron 1979), the best ⌈share⌉ are chosen anew, and the choices are compared with that of all
samples and with one another. The choice of all samples is itself one draw of a larger population: agreement
among the draws of one size ("pairs") does not lean on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.figures import choice_by_size
from seeing.metrics import auroc
from seeing.probes.attention.evidence import Evidence
from seeing.probes.heads.looks import looks
from seeing.probes.profiles.profile import Profile, kept
from seeing.probes.progress import Progress
from seeing.probes.samples import Ledger, LeftOut
from seeing.prompt import Prompt, Template
from seeing.stats import Interval
from seeing.vlm import VLM

Place = int | tuple[int, ...]

#: Numbers in memory at a time, while draws are averaged.
_BLOCK = 2**24


@dataclass(frozen=True, eq=False)
class Choice:
    """How one kind of choice changes with the number of samples.

    Attributes:
        places: what all samples choose: layers, or (layer, head).
        chosen: (size, *place) share of the draws in which each layer or head is chosen.
        jaccard: (size,) |A ∩ B| / |A ∪ B| of a draw's choice and that of all samples, mean over draws.
        interval: where 95 % of the draws' Jaccard indices lie.
        same: (size,) share of the draws that choose the same.
        pairs: (size,) Jaccard index of two draws, mean.
    """

    places: tuple[Place, ...]
    chosen: Float[Tensor, " size *place"]
    jaccard: Float[Tensor, " size"]
    interval: Interval
    same: Float[Tensor, " size"]
    pairs: Float[Tensor, " size"]


@dataclass(frozen=True, eq=False)
class Stability:
    """How choices change with the number of samples.

    Attributes:
        sizes: numbers of samples, ascending.
        layers: the choice of layers.
        heads: the choice of heads; None where no values of heads by sample were kept.
        n: samples that are drawn from.
        draws: of each size.
    """

    sizes: tuple[int, ...]
    layers: Choice
    heads: Choice | None
    n: int
    draws: int

    def enough(self, jaccard: float = 0.9, what: str = "layers") -> int | None:
        """The least of the sizes from which on draws agree this well with all samples; None if none does."""
        good = (self.of(what).jaccard >= jaccard).tolist()
        steady = [size for place, size in enumerate(self.sizes) if all(good[place:])]
        return steady[0] if steady else None

    def of(self, what: str) -> Choice:
        """The choice of "layers" or of "heads". Raises ValueError where it is not there."""
        found = {"layers": self.layers, "heads": self.heads}.get(what)
        if found is None:
            raise ValueError(
                f"no choice of {what!r}: there is one of 'layers'"
                + ("" if self.heads is None else " and of 'heads'")
                + "; heads need their values by sample, (sample, layer, head): stability(…, heads=values)"
            )
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row a size and kind of choice: the agreement."""
        columns = ("jaccard", "low", "high", "same", "pairs")
        rows = [
            {"what": what, "samples": size} | {name: float(values[name][place]) for name in columns}
            for what, choice in (("layers", self.layers), ("heads", self.heads))
            if choice is not None
            for values in [vars(choice) | choice.interval._asdict()]
            for place, size in enumerate(self.sizes)
        ]
        return pd.DataFrame(rows, columns=["what", "samples", *columns])

    def chosen_frame(self, what: str = "layers") -> pd.DataFrame:
        """One row a size and layer (and head): the share of draws in which it is chosen."""
        chosen = self.of(what).chosen
        names = ["samples", "layer", "head"][: chosen.ndim]
        index = pd.MultiIndex.from_product([self.sizes, *map(range, chosen.shape[1:])], names=names)
        return pd.DataFrame({"share": chosen.flatten().numpy()}, index=index).reset_index()

    def figure(self, what: str = "layers", *, dark: bool = False) -> go.Figure:
        """Agreement by the number of samples, and how often each is chosen; of heads the 20 most chosen."""
        choice = self.of(what)
        chosen = choice.chosen.flatten(1)
        names = [_spelled(place) for place in np.ndindex(*choice.chosen.shape[1:])]
        if what == "heads":
            often = chosen.mean(0).argsort(descending=True, stable=True)[:20].sort().values
            chosen, names = chosen[:, often], [names[int(one)] for one in often]
        return choice_by_size(
            np.array(self.sizes),
            choice.jaccard.numpy(),
            *(end.numpy() for end in choice.interval),
            chosen.numpy(),
            names=names,
            kept=[name for name in map(_spelled, choice.places) if name in names],
            what=what,
            n=self.n,
            draws=self.draws,
            dark=dark,
        )


def stability(
    found: Evidence | Profile | Aurocs | Float[Tensor, "sample layer"],
    sizes: Sequence[int] = (10, 20, 50, 100),
    *,
    heads: Float[Tensor, "sample layer head"] | None = None,
    top: float | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Stability:
    """How the choice of layers (and heads) changes with the number of samples.

    Args:
        found: an evidence probe or a profile with its samples' AUROCs, `aurocs`, or values (sample, layer);
            NaN is left out.
        sizes: numbers of samples. Those above the number at hand are left out, and that number is put in.
        heads: values of heads by sample, for their choice; else those that ``found`` kept, if it did.
        top: the share that is chosen; by default the profile's, or 0.1.
        draws: of each size.

    ``values = aurocs(vlm, samples)`` and ``stability(values)`` ask about heads too.

    Raises ValueError for a profile without samples (a loaded one), for fewer than two samples, and for
    settings that are no numbers of samples or draws.
    """
    share = (getattr(found, "top", None) or 0.1) if top is None else top
    layers, kept_heads = _values(found)
    heads = kept_heads if heads is None else heads
    n = len(layers)
    if n < 2 or (heads is not None and len(heads) != n):
        raise ValueError(
            f"stability is asked of 2 samples or more, the same for layers and heads; got {n} of layers"
            + ("" if heads is None else f" and {len(heads)} of heads")
        )
    if draws < 2 or not sizes or min(sizes) < 1:
        raise ValueError(f"expected sizes of 1 or more and 2 draws or more, got {tuple(sizes)} and {draws}")
    counted = tuple(sorted({min(int(size), n) for size in sizes}))
    by_layer = _choice(layers, counted, share, draws, seed)
    by_head = None if heads is None else _choice(heads, counted, share, draws, seed)
    return Stability(counted, by_layer, by_head, n, draws)


class Aurocs(NamedTuple):
    """AUROC of each sample, of layers (their heads' mean row) and of heads."""

    layers: Float[Tensor, "sample layer"]
    heads: Float[Tensor, "sample layer head"]
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def aurocs(
    vlm: VLM,
    samples: Prompt | Iterable[EvidenceSample] | EvidenceSample,
    *,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
) -> Aurocs:
    """AUROC of every layer and head on every sample: what `evidence` takes the means of.

    One number a sample and head is kept. Raises ValueError when no sample could be counted.
    """
    ledger, layers, heads = Ledger(), [], []
    settings = dict(template=template, batch_size=batch_size, progress=progress, what="AUROC")
    for look in looks(vlm, samples, ledger, boxes=True, **settings):
        placed = look.grid.placed
        labels, weights = look.grid.labels(look.boxes)[placed], look.weights[..., placed]
        if labels.all() or not labels.any():
            reason = "every image token is evidence" if labels.all() else "no image token sees the evidence"
            ledger.leave_out(look.id, reason)
            continue
        ledger.ids.append(look.id)
        read = ~weights.isnan().any(-1).any(-1)
        by_head = weights.new_full(weights.shape[:2], torch.nan)
        by_head[read] = auroc(weights[read], labels)
        by_layer = weights.new_full(weights.shape[:1], torch.nan)
        by_layer[read] = auroc(weights[read].mean(1), labels)
        layers.append(by_layer)
        heads.append(by_head)
    ledger.need("evidence that the model could see")
    return Aurocs(torch.stack(layers), torch.stack(heads), tuple(ledger.ids), tuple(ledger.left_out))


def _values(found: Evidence | Profile | Aurocs | Tensor) -> tuple[Tensor, Tensor | None]:
    """AUROCs by sample: of layers, and of heads where they were kept."""
    if isinstance(found, Aurocs):
        return found.layers, found.heads
    if isinstance(found, Tensor):
        return found, None
    if isinstance(found, Profile):
        if found.evidence is None:
            raise ValueError(
                "this profile was loaded, and the AUROCs of its samples were not saved with it; ask right "
                "after probes.profile(vlm, samples), or of probes.evidence(vlm, samples)"
            )
        found = found.evidence
    if not len(found.samples.auroc):
        raise ValueError("the evidence probe kept no values by sample; run it with per_sample=True")
    return found.samples.auroc, None


def _choice(values: Tensor, sizes: tuple[int, ...], top: float, draws: int, seed: int) -> Choice:
    """The choice over all places (the axes behind the sample)."""
    places = values.shape[1:]
    flat = values.detach().double().cpu().flatten(1)
    everything = best(_means(torch.ones(1, len(flat), dtype=torch.float64), flat), top)[0]
    k = int(everything.sum())
    parts = {name: [] for name in ("chosen", "jaccard", "low", "high", "same", "pairs")}
    for size in sizes:
        # A generator of its own, so that no size depends on which others are asked for.
        random = np.random.default_rng([seed, size])
        chosen = torch.cat([best(_means(counts, flat), top) for counts in _draws(random, flat, size, draws)])
        shared = (chosen & everything).sum(1).double()
        jaccard = shared / (chosen | everything).sum(1)
        often = chosen.double().mean(0)
        ends = torch.quantile(jaccard, torch.tensor([0.025, 0.975], dtype=torch.float64))
        parts["chosen"].append(often.view(places))
        parts["jaccard"].append(jaccard.mean())
        parts["low"].append(ends[0])
        parts["high"].append(ends[1])
        parts["same"].append((shared == k).double().mean())
        # Draws are in no order: each beside the next is a pair of independent ones.
        after = chosen.roll(1, 0)
        parts["pairs"].append(((chosen & after).sum(1) / (chosen | after).sum(1)).double().mean())
    found = {name: torch.stack(some) for name, some in parts.items()}
    names = [np.unravel_index(int(one), tuple(places)) for one in everything.nonzero()[:, 0]]
    spelled = tuple(int(one[0]) if len(one) == 1 else tuple(map(int, one)) for one in names)
    return Choice(
        spelled,
        found["chosen"],
        found["jaccard"],
        Interval(found["low"], found["high"]),
        found["same"],
        found["pairs"],
    )


def _draws(
    random: np.random.Generator, values: Tensor, size: int, draws: int
) -> Iterator[Float[Tensor, "draw sample"]]:
    """How often each sample is in each draw, some draws at a time."""
    n, width = values.shape
    step = max(1, _BLOCK // (n + 2 * width))
    for first in range(0, draws, step):
        counts = random.multinomial(size, np.full(n, 1 / n), min(step, draws - first))
        yield torch.from_numpy(counts).double()


def _means(counts: Float[Tensor, "draw sample"], values: Tensor) -> Float[Tensor, "draw place"]:
    """The mean of each draw; NaN where it has no value."""
    there = ~values.isnan()
    return counts @ torch.where(there, values, 0.0) / (counts @ there.double())


def best(means: Float[Tensor, "draw place"], top: float) -> Bool[Tensor, "draw place"]:
    """The ⌈``top``⌉ share of places with the highest means; of equal ones the first."""
    order: Int[Tensor, "draw place"] = means.nan_to_num(-torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    k = kept(means[0], top)
    return torch.zeros_like(means, dtype=torch.bool).scatter_(1, order[:, :k], True)


def _spelled(place: Place) -> str:
    return ".".join(map(str, place if isinstance(place, tuple) else (place,)))


__all__ = ["Aurocs", "Choice", "Stability", "aurocs", "stability"]
