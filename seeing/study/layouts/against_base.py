"""Every method against the base: each number with its interval and its test. The table to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from seeing import spell
from seeing.study.comparing import METRICS, Metric, compare
from seeing.study.layouts.words import counted, failures, marks, titled
from seeing.study.study import Study
from seeing.study.tables import Block, Cell, Column, Table

#: What a column shows of a line of numbers.
Shown = Callable[[pd.Series, Metric], str]


def against_base(study: Study, metrics: Sequence[Metric], base: str | None, seed: int) -> Table:
    """A block a model, data set and metric; a line a method."""
    numbers = compare(study, [metric.column for metric in metrics], base, seed=seed)
    columns = _columns(numbers, base)
    blocks = []
    for (model, data, name), lines in numbers.groupby(["model", "data", "metric"], sort=False):
        metric = METRICS[name]
        best = marks(lines["mean"].to_numpy(np.float64), metric.higher)
        cells = [
            tuple(
                Cell(show(line, metric), mark if column.heading == "mean" else "") for column, show in columns
            )
            for mark, (_, line) in zip(best, lines.iterrows())
        ]
        blocks.append(Block(f"{model} · {data} · {titled(metric)}", tuple(cells)))
    return Table(
        f"Methods against {base}" if base else "Methods",
        tuple(column for column, _ in columns),
        tuple(blocks),
        (*_left_out(numbers), *failures(study), *_tests(numbers, base)),
        numbers,
    )


def _columns(numbers: pd.DataFrame, base: str | None) -> list[tuple[Column, Shown]]:
    """The columns that have something to say."""
    columns: list[tuple[Column, Shown]] = [
        (Column("method", words=True), lambda line, _: line["method"]),
        (Column("n"), _count("n")),
        (Column("mean"), lambda line, metric: metric.value(line["mean"])),
        (Column("95 %"), lambda line, metric: metric.interval(line["low"], line["high"])),
    ]
    if numbers["failed"].any():
        columns.insert(2, (Column("failed"), _count("failed")))
    if base is not None:
        columns += [(Column(f"Δ to {base}"), _change), (Column("95 %"), _change_interval)]
        if numbers["fixed"].notna().any():
            columns += [(Column("fixed"), _count("fixed")), (Column("broken"), _count("broken"))]
        columns.append((Column("p"), _p("p")))
        if numbers["p"].notna().sum() > 1:
            columns.append((Column("p Holm"), _p("p_holm")))
    return columns


def _count(name: str) -> Shown:
    return lambda line, _: "" if pd.isna(line[name]) else f"{line[name]:,}"


def _p(name: str) -> Shown:
    return lambda line, _: "" if pd.isna(line[name]) else spell.p_value(line[name])


def _change(line: pd.Series, metric: Metric) -> str:
    return "" if pd.isna(line["difference"]) else metric.change(line["difference"])


def _change_interval(line: pd.Series, metric: Metric) -> str:
    return metric.change_interval(line["difference_low"], line["difference_high"])


def _left_out(numbers: pd.DataFrame) -> Iterator[str]:
    most = numbers["left_out"].max()
    if not pd.isna(most) and most:
        yield (
            "Means are over the samples that a method answered, differences over those that both answered; "
            f"a difference leaves out up to {counted(int(most), 'sample')}."
        )


def _tests(numbers: pd.DataFrame, base: str | None) -> Iterator[str]:
    if base is None:
        return
    made = numbers[numbers["p"].notna()]
    if made.empty:
        yield f"No sample was answered by {base} and by another method, so nothing is compared."
        return
    outcomes = made["fixed"].notna()
    mixed = "McNemar's exact test where scores are 0 or 1, elsewhere a permutation test"
    alone = "McNemar's exact test" if outcomes.all() else "a permutation test"
    yield f"p is two-sided, against {base}: {mixed if outcomes.nunique() > 1 else alone}."
    if len(made) > 1:
        yield (
            f"These are {len(made)} comparisons. p is not corrected for that, p Holm is (Holm 1979, all of "
            "this table together)."
        )
