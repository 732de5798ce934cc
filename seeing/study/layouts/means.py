"""Methods in lines, models in columns, means over data sets: the paper's tables and its ablations.

What is compared down a column is compared on the same samples, those that every method answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from seeing.study.comparing import METRICS, Metric
from seeing.study.layouts.common import common_means, over_data
from seeing.study.layouts.words import counted, failures, marks, model_columns, short, titled
from seeing.study.study import Study
from seeing.study.tables import Block, Cell, Column, Table


def paper(study: Study, metrics: Sequence[Metric], base: str | None, seed: int) -> Table:
    """A column a model, sizes of one kind together; a block a metric."""
    numbers = pd.concat([over_data(common_means(study, metric)) for metric in metrics], ignore_index=True)
    models = [Column(size, stem) for stem, size in model_columns(study.models)]
    blocks = []
    for metric in metrics:
        wide = _wide(study, numbers, metric)
        title = "" if len(metrics) == 1 else titled(metric)
        blocks.append(Block(title, _lines(study, wide, [metric] * len(models))))
    title = f"{titled(metrics[0])}, {_mean_of(study)}" if len(metrics) == 1 else f"Methods, {_mean_of(study)}"
    return Table(
        title, (Column("method", words=True), *models), tuple(blocks), tuple(_shared(study, numbers)), numbers
    )


def ablation(study: Study, metrics: Sequence[Metric], base: str | None, seed: int) -> Table:
    """A model's metrics beside each other."""
    numbers = pd.concat([over_data(common_means(study, metric)) for metric in metrics], ignore_index=True)
    wide = [_wide(study, numbers, metric) for metric in metrics]
    columns = [Column(titled(metric), model) for model in short(study.models) for metric in metrics]
    values = np.stack(wide, -1).reshape(len(study.methods), -1)
    lines = _lines(study, values, list(metrics) * len(study.models))
    return Table(
        f"Methods, {_mean_of(study)}",
        (Column("method", words=True), *columns),
        (Block("", lines),),
        tuple(_shared(study, numbers)),
        numbers,
    )


def _wide(study: Study, numbers: pd.DataFrame, metric: Metric) -> Float[np.ndarray, "method model"]:
    wide = numbers[numbers["metric"] == metric.column].pivot(index="method", columns="model", values="mean")
    return wide.reindex(index=list(study.methods), columns=list(study.models)).to_numpy(np.float64)


def _lines(
    study: Study, values: Float[np.ndarray, "method column"], metrics: Sequence[Metric]
) -> tuple[tuple[Cell, ...], ...]:
    """A line a method, a column a value, the best two of each column marked."""
    best = [marks(values[:, place], metric.higher) for place, metric in enumerate(metrics)]
    return tuple(
        (
            Cell(method),
            *(Cell(one.value(values[row, place]), best[place][row]) for place, one in enumerate(metrics)),
        )
        for row, method in enumerate(study.methods)
    )


def _mean_of(study: Study) -> str:
    return f"mean of {', '.join(study.data)}" if len(study.data) > 1 else study.data[0]


def _shared(study: Study, numbers: pd.DataFrame) -> Iterator[str]:
    left_out = int(numbers.groupby(["model", "metric"])["left_out"].max().max())
    if left_out:
        yield f"Over the samples that every method answered, without up to {counted(left_out, 'sample')}."
    shares = numbers[[METRICS[name].share for name in numbers["metric"]]]
    half = (shares["high"] - shares["low"]).max() / 2
    if not np.isnan(half):
        yield f"95 % intervals of these means are at most ± {100 * half:.1f} points."
    if numbers["mean"].isna().any():
        yield "–: no answers of this method to some of the data sets."
    yield from failures(study)
