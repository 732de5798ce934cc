"""Scores of heads, whoever found them: a ranking, the best as edits take them, and others to compare with.

A head finder gives each head a number. What is done with the numbers next is always the same: take the best
``k``, ablate or boost them, and do the same to as many random heads of the same layers, because a layer
matters whichever of its heads are named.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit
from seeing.edits.layers import as_dict, head_table, whole
from seeing.figures import layer_head_map
from seeing.metrics import Locality
from seeing.probes.attention.evidence import Evidence, evidence
from seeing.probes.samples import LeftOut
from seeing.vlm import VLM

#: Layer -> heads, as edits take them.
HeadTable = dict[int, list[int]]


@dataclass(frozen=True, eq=False)
class HeadScores:
    """A number for each head; the higher, the more it is what was looked for.

    Attributes:
        metric: what the number is, in words.
        scores: (layer, head); NaN in layers that have no such attention.
        n: samples counted.
        left_out: the samples that were not, with the reason.
        units: of the scores.
        parts: by name, other numbers of each head that the score is made of, (layer, head).
        ties: (layer, head), what ranks heads of equal score, the higher first; else the earlier head comes
            first.
    """

    metric: str
    scores: Float[Tensor, "layer head"]
    n: int
    left_out: tuple[LeftOut, ...] = ()
    units: str = "0–1"
    parts: Mapping[str, Float[Tensor, "layer head"]] = field(default_factory=dict)
    ties: Float[Tensor, "layer head"] | None = None

    def ranking(self, below: int | None = None) -> list[tuple[int, int, float]]:
        """(layer, head, score) from the best head down, of heads with a score; only layers < ``below``."""
        scores = self.scores[:below].double().numpy()
        ties = np.zeros_like(scores) if self.ties is None else self.ties[:below].double().numpy()
        order = np.lexsort((-np.nan_to_num(ties.ravel(), nan=-np.inf), -scores.ravel()))
        places = [divmod(int(one), scores.shape[1]) for one in order]
        ranked = [(layer, head, float(scores[layer, head])) for layer, head in places]
        return [place for place in ranked if not math.isnan(place[2])]

    def top(self, k: int, below: int | None = None) -> HeadTable:
        """The ``k`` best heads as {layer: [heads]}, which edits take; only layers < ``below``.

        Raises `BadEdit` when there are not ``k`` heads with a score.
        """
        ranked = self.ranking(below)
        if whole(k) is None or not 1 <= k <= len(ranked):
            raise BadEdit(f"k is a whole number from 1 to {len(ranked)}, the heads with a score; got {k!r}")
        return as_dict(head_table([place[:2] for place in ranked[:k]]))

    def random(
        self, k: int, seed: int = 0, *, below: int | None = None, same_layers: bool = True
    ) -> HeadTable:
        """Control heads: as many random ones as ``top(k)`` has in each of its layers, and none of its own.

        ``same_layers=False`` draws ``k`` others out of all layers (< ``below``) that have scores.
        Raises `BadEdit` where there are not so many others.
        """
        top = self.top(k, below)
        if same_layers:
            draws = [([layer], len(heads)) for layer, heads in top.items()]
        else:
            draws = [(sorted({layer for layer, _, _ in self.ranking(below)}), k)]
        taken = {(layer, head) for layer, heads in top.items() for head in heads}
        return draw_heads(draws, self.scores.shape[1], taken, seed)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and head: its score and the parts that it is made of."""
        layers, heads = self.scores.shape
        index = pd.MultiIndex.from_product([range(layers), range(heads)], names=["layer", "head"])
        columns = {"score": self.scores} | dict(self.parts)
        values = {name: value.flatten().numpy() for name, value in columns.items()}
        return pd.DataFrame(values, index=index).reset_index()

    def figure(self, k: int | None = None, *, dark: bool = False) -> go.Figure:
        """The scores by layer and head, the ``k`` best outlined."""
        chosen = {} if k is None else self.top(k)
        return layer_head_map(
            self.scores.double().numpy(),
            metric=self.metric,
            n=self.n,
            units=self.units,
            chosen_heads=[(layer, head) for layer, heads in chosen.items() for head in heads],
            dark=dark,
        )

    def __repr__(self) -> str:
        best = ", ".join(f"{layer}.{head} ({score:.3f})" for layer, head, score in self.ranking()[:4])
        return f"HeadScores({self.metric}, n={self.n}; best {best})"


def draw_heads(
    draws: Iterable[tuple[Sequence[int], int]],
    n_heads: int,
    taken: Collection[tuple[int, int]],
    seed: int,
) -> HeadTable:
    """Random heads as a table: for each (layers, n) of ``draws`` n heads of these layers, none ``taken``.

    Raises `BadEdit` where there are not so many.
    """
    rng, drawn = np.random.default_rng(seed), []
    for some, n in draws:
        free = [(layer, head) for layer in some for head in range(n_heads)]
        free = [pair for pair in free if pair not in taken]
        if not 1 <= n <= len(free):
            raise BadEdit(f"{n} heads are to be drawn from layers {list(some)}, where {len(free)} are left")
        drawn += [free[one] for one in rng.choice(len(free), n, replace=False)]
    return as_dict(head_table(drawn))


def evidence_heads(
    vlm: VLM, samples: Iterable[EvidenceSample] | EvidenceSample, metric: str = "auroc", **settings
) -> HeadScores:
    """Heads by how well their attention finds the annotated evidence (`evidence`, which takes the settings).

    ``metric`` is one of the evidence probe's: "auroc" by default, for which 0.5 is chance.
    """
    if metric not in Locality._fields:
        raise ValueError(f"a metric is one of {', '.join(Locality._fields)}; got {metric!r}")
    return ranked(evidence(vlm, samples, **settings), metric)


def ranked(found: Evidence, metric: str = "auroc") -> HeadScores:
    """The heads of an evidence probe by one of its metrics, the others beside it."""
    values = found.heads._asdict()
    units = "ratio" if metric == "density_ratio" else "0–1"
    parts = {name: value for name, value in values.items() if name != metric}
    left_out = tuple(LeftOut(*one) for one in found.left_out)
    return HeadScores(f"evidence {metric}", values[metric], found.n, left_out, units, parts)


__all__ = ["HeadScores", "HeadTable", "draw_heads", "evidence_heads", "ranked"]
