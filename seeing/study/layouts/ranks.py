"""How methods rank over data sets, and whether that tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from seeing import spell
from seeing.ranks import Ranks, rank_methods
from seeing.study.comparing import Metric
from seeing.study.layouts.common import common_means
from seeing.study.layouts.words import counted, marks, short, titled
from seeing.study.study import Study
from seeing.study.tables import Block, Cell, Column, Table


def ranks(study: Study, metrics: Sequence[Metric], base: str | None, seed: int) -> Table:
    """Methods by their average rank over data sets, or over the data sets of several models."""
    pairs = [(model, data) for model in study.models for data in study.data]
    found = {metric: rank_methods(_scores(study, metric, pairs), seed=seed) for metric in metrics}
    ranked = np.any([~np.isnan(one.by_block).all(1) for one in found.values()], axis=0)
    used = np.flatnonzero(ranked).tolist()
    several, models = len(metrics) > 1, len(study.models) > 1
    notes = [note for metric, one in found.items() for note in _notes(metric, one, several, models)]
    names = dict(zip(study.models, short(study.models)))
    columns = [Column("method", words=True), Column("average rank")]
    columns += [Column(pairs[row][1], names[pairs[row][0]]) for row in used]
    blocks = [
        Block(titled(metric) if several else "", _lines(study, one, used)) for metric, one in found.items()
    ]
    return Table(
        "Ranks" if several else f"Ranks by {metrics[0].heading}",
        tuple(columns),
        tuple(blocks),
        tuple(notes),
        pd.concat([_numbers(study, metric, one, pairs) for metric, one in found.items()], ignore_index=True),
    )


def _scores(
    study: Study, metric: Metric, pairs: Sequence[tuple[str, str]]
) -> Float[np.ndarray, "block method"]:
    """Means on common samples, the better the higher."""
    means = common_means(study, metric)
    wide = means.pivot(index=["model", "data"], columns="method", values="mean")
    wide = wide.reindex(index=pd.MultiIndex.from_tuples(pairs), columns=list(study.methods))
    return wide.to_numpy(np.float64) * (1 if metric.higher else -1)


def _lines(study: Study, found: Ranks, used: Sequence[int]) -> tuple[tuple[Cell, ...], ...]:
    """The best first; methods without a rank last."""
    best = marks(found.mean, higher=False)
    return tuple(
        (
            Cell(study.methods[place]),
            Cell(_rank(found.mean[place]), best[place]),
            *(Cell(_rank(found.by_block[row, place])) for row in used),
        )
        for place in np.argsort(found.mean, kind="stable")
    )


def _rank(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}".rstrip("0").rstrip(".")


def _numbers(study: Study, metric: Metric, found: Ranks, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "metric": metric.column,
            "method": study.methods,
            "average_rank": found.mean,
            "blocks": found.n,
            "left_out": found.left_out,
            "friedman_p": found.p,
            "critical_difference": found.critical_difference,
            **{f"{model} · {data}": found.by_block[row] for row, (model, data) in enumerate(pairs)},
        }
    )


def _notes(metric: Metric, found: Ranks, several: bool, models: bool) -> Iterator[str]:
    of = f"{metric.heading}: " if several else ""
    if found.left_out:
        yield f"{of}Left out: {counted(found.left_out, 'data set')} without a score of every method."
    blocks = counted(found.n, "data set") + (", each model's own counted" if models else "")
    if np.isnan(found.p):
        yield f"{of}Ranks over {blocks}: too few to test whether methods differ."
        return
    yield (
        f"{of}Ranks over {blocks}. Friedman's test that all methods rank alike: {spell.p_equals(found.p)}; "
        f"average ranks differ where they are {found.critical_difference:.2f} apart (Nemenyi, 5 %, all pairs "
        "together)."
    )
    if models:
        yield f"{of}The same data set asked of several models counts as several, which makes p too small."
