"""Attributions held against the patches that they stand for: how good is the first order here?

A gradient knows nothing of saturation: where a softmax or a norm bends between the two runs the attribution
is wrong, often in the early layers and for whole streams more than for heads (Syed et al. 2023, arXiv
2310.10348). So a part of the places is patched in earnest, over the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from seeing.edits import Edit, Patch, SetPattern
from seeing.figures.attribution import attribution_scatter
from seeing.probes.causal.attribution import KINDS, Attributed, Attribution, Settings, paired, place_of
from seeing.probes.causal.effects import METRICS
from seeing.probes.progress import Progress
from seeing.probes.running import RunningMean
from seeing.probes.samples import Ledger, LeftOut
from seeing.vlm import VLM


class Spot(NamedTuple):
    """One place of an attribution."""

    layer: int
    head: int
    span: str


@dataclass(frozen=True)
class Comparison:
    """Attributions and exact patches of the same places, means over the same samples.

    Attributes:
        places: (layer, head, span), labels of the place axis.
        approximate: (place,) gradient × difference.
        exact: (place,) what the patch does to the metric.
        kind: heads, edges, keys or values.
        metric: one of `effects.METRICS`.
        ids, left_out: the samples counted, and those that were not.
    """

    places: tuple[Spot, ...]
    approximate: Float[Tensor, " place"]
    exact: Float[Tensor, " place"]
    kind: str
    metric: str
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    @property
    def correlation(self) -> float:
        """Pearson's, over the places; NaN where one of the two does not vary."""
        both = torch.stack([self.approximate, self.exact])
        if len(self.places) < 2 or not (both.std(1) > 0).all():
            return float("nan")
        return float(torch.corrcoef(both)[0, 1])

    def to_frame(self) -> pd.DataFrame:
        """One row a place: layer, head, span, approximate and exact."""
        frame = pd.DataFrame(self.places, columns=Spot._fields)
        return frame.assign(approximate=self.approximate.numpy(), exact=self.exact.numpy())

    def figure(self, *, dark: bool = False) -> go.Figure:
        """One point a place, and the line where both agree."""
        return attribution_scatter(
            self.approximate.numpy(),
            self.exact.numpy(),
            labels=[f"layer {one.layer}, head {one.head}, {one.span}" for one in self.places],
            correlation=self.correlation,
            metric=METRICS[self.metric],
            n=self.n,
            dark=dark,
        )


def compare(
    vlm: VLM,
    clean: Any,
    attribution: Attribution,
    k: int,
    kind: str,
    settings: Settings,
    batch_size: int,
    progress: Progress,
) -> Comparison:
    """See `Attribution.compare`."""
    places = _some(attribution.of(kind), k, [*_patched_layers(vlm, kind)])
    spots = [Spot(layer, head, attribution.spans[span]) for layer, head, span in places]
    ledger, approximate, exact = Ledger(), RunningMean(), RunningMean()
    for pair in paired(vlm, clean, settings, ledger, batch_size, progress):
        found = Attributed.of(vlm, pair, settings)
        by_span = found.by_span(kind)
        approximate.add(torch.stack([by_span[:, *place] for place in places], 1))
        exact.add(torch.stack(list(_exact(found, kind, spots)), 1))
        ledger.ids.extend(pair.ids)
    ledger.need("a clean and a corrupted side with the same tokens in the same places")
    return Comparison(
        places=tuple(spots),
        approximate=approximate.mean,
        exact=exact.mean,
        kind=kind,
        metric=settings.metric,
        ids=tuple(ledger.ids),
        left_out=tuple(ledger.left_out),
    )


def _patched_layers(vlm: VLM, kind: str) -> Iterator[int]:
    """The layers in which a place of this kind can be patched: keys of pictures have no place in a prompt."""
    for layer, kernel in vlm.sites.kernels["text"].items():
        if kind == "heads" or not kernel.cross:
            yield layer


def _some(values: Float[Tensor, "layer head span"], k: int, layers: Sequence[int]) -> list[tuple[int, ...]]:
    """The ``k`` places largest in size, and ``k`` spread evenly over the ranks of the rest."""
    if k < 1:
        raise ValueError(f"some places are patched, k is at least 1; got {k!r}")
    size = torch.full_like(values, torch.nan)
    size[layers] = values[layers].abs()
    order = size.flatten().nan_to_num(-1.0).argsort(descending=True, stable=True)
    order = order[: int((~size.isnan()).sum())].tolist()
    rest = order[k:]
    spread = np.unique(np.linspace(0, len(rest) - 1, min(k, len(rest))).round().astype(int)) if rest else ()
    return [place_of(one, values.shape) for one in (*order[:k], *(rest[one] for one in spread))]


def _exact(found: Attributed, kind: str, spots: Sequence[Spot]) -> Iterator[Float[Tensor, " batch"]]:
    """What each patch does to the metric, one pass a place."""
    runs = found.runs
    for spot in spots:
        edited = found.vlm.with_edits(_patch(found, kind, spot))
        yield runs.measure(edited.score(runs.base).logits.float().cpu()) - runs.start


def _patch(found: Attributed, kind: str, spot: Spot) -> Edit:
    name, where = f"text.{spot.layer}.{KINDS[kind]}", found.spans[spot.span]
    if kind != "edges":
        return Patch(name, found.goal, where, heads=(spot.head,))
    rows = found.goal[name][:, spot.head]
    # A row a token of the prompt, of which those that say the answer are read.
    pattern = rows.new_zeros(len(rows), 1, found.runs.base.length, rows.shape[-1])
    pattern[:, 0, list(found.columns)] = rows
    return SetPattern(
        pattern, keys=where, queries="last", layers=(spot.layer,), heads=(spot.head,), when="prompt"
    )
