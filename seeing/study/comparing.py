"""The numbers of a study: every method's means, and what it changes against the base, with their uncertainty.

Means are over the samples that a method answered. A difference is over the samples that both answered, and
says how many it had to leave out. Scores that are all 0 or 1 in a model and data set (exact match, as a rule)
get Wilson's interval, Newcombe's for differences and McNemar's test; others a bootstrap over samples and a
permutation test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from seeing import spell
from seeing.stats import bootstrap_mean, holm, mcnemar, paired_difference, permutation_p, wilson
from seeing.study.settings import StudyError
from seeing.study.study import Study


@dataclass(frozen=True)
class Metric:
    """A column of numbers that can be compared.

    Attributes:
        column: of the rows.
        heading: over a table's column.
        share: whether it lies in 0..1 and is told in percent.
        higher: whether more is better.
    """

    column: str
    heading: str
    share: bool = True
    higher: bool = True

    def value(self, number: float) -> str:
        if np.isnan(number):
            return "–"
        return f"{100 * number:.1f}" if self.share else _plain(number)

    def change(self, number: float) -> str:
        if np.isnan(number):
            return "–"
        return spell.points(number) if self.share else _plain(number, "+")

    def interval(self, low: float, high: float) -> str:
        if np.isnan(low) or np.isnan(high):
            return ""
        return (
            f"{self.value(low)}–{self.value(high)}"
            if low >= 0
            else f"{self.value(low)} to {self.value(high)}"
        )

    def change_interval(self, low: float, high: float) -> str:
        return "" if np.isnan(low) or np.isnan(high) else f"{self.change(low)} to {self.change(high)}"


def _plain(number: float, sign: str = "") -> str:
    return f"{number:{sign}.3g}".replace("-", "−")


METRICS: dict[str, Metric] = {
    one.column: one
    for one in (
        Metric("em", "EM"),
        Metric("f1", "F1"),
        Metric("anls", "ANLS"),
        Metric("vqa", "VQA"),
        Metric("logprob", "log-prob", share=False),
        Metric("n_tokens", "tokens", share=False, higher=False),
        Metric("seconds", "seconds", share=False, higher=False),
    )
}


def metric_named(name: str) -> Metric:
    """A metric by the name of its column. Raises `StudyError` for another name."""
    if name not in METRICS:
        raise StudyError(f"found the metric {name!r}, expected one of {', '.join(METRICS)}")
    return METRICS[name]


def base_of(study: Study, base: str | None) -> str | None:
    """The method that others are held against: the one that is named, or else "base" if there is one."""
    if base is None:
        return "base" if "base" in study.methods else None
    if base not in study.methods:
        raise StudyError(
            f"found no method {base!r} to compare with; the study has {', '.join(study.methods)}"
        )
    return base


class Group:
    """One model and data set: the scores of every method, sample by sample."""

    def __init__(
        self, model: str, data: str, rows: pd.DataFrame, failures: pd.DataFrame, methods: Sequence[str]
    ):
        self.model, self.data, self._rows = model, data, rows
        self._answered = dict(list(rows.groupby("method")["sample"]))
        self._failures = failures
        there = {*self._answered, *failures["method"].dropna()}
        #: Those that were begun; what failed before any method was tried failed under each of them.
        self.methods = tuple(name for name in methods if name in there or not there)

    def scores(self, metric: Metric) -> Float[np.ndarray, "method sample"]:
        """The scores, each sample in one place; NaN where a method has none."""
        wide = self._rows.pivot(index="sample", columns="method", values=metric.column)
        values = wide.reindex(columns=list(self.methods)).to_numpy(np.float64).T
        return np.where(np.isfinite(values), values, np.nan)

    def failed(self, method: str) -> int:
        """Samples that have a failure and no row under a method."""
        own = self._failures["method"]
        lost = set(self._failures.loc[own.isna() | (own == method), "sample"])
        return len(lost - set(self._answered.get(method, ()))) if lost else 0


def groups(study: Study) -> Iterator[Group]:
    """Every model and data set of a study that was begun."""
    rows, failures = (dict(list(frame.groupby(["model", "data"]))) for frame in (study.rows, study.failures))
    for key in product(study.models, study.data):
        if key in rows or key in failures:
            own = rows.get(key, study.rows.iloc[:0]), failures.get(key, study.failures.iloc[:0])
            yield Group(*key, *own, study.methods)


def compare(
    study: Study, metrics: Sequence[str], base: str | None = None, *, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """One line a model, data set, metric and method.

    Args:
        base: the method that others are compared with; "base" where the study has it.
        seed: of the bootstrap and the permutation tests.

    Returns: columns ``model, data, metric, method``; ``n`` samples scored, ``failed``; ``mean, low, high``;
    against ``base``: ``pairs``, ``left_out``, ``difference, difference_low, difference_high``, ``fixed`` and
    ``broken`` (of outcomes), ``p``, and ``p_holm`` for all comparisons of the table together. NaN where there
    is nothing to compute.
    """
    base = base_of(study, base)
    lines = [
        line
        for group in groups(study)
        for name in metrics
        for line in _lines(group, metric_named(name), base, level, seed)
    ]
    frame = pd.DataFrame(lines, columns=list(_COLUMNS))
    frame["p_holm"] = holm(frame["p"].to_numpy(np.float64))
    return frame.astype(dict.fromkeys(("n", "failed", "pairs", "left_out", "fixed", "broken"), "Int64"))


_COLUMNS = (
    "model", "data", "metric", "method", "n", "failed", "mean", "low", "high", "base", "pairs", "left_out",
    "difference", "difference_low", "difference_high", "fixed", "broken", "p",
)  # fmt: skip


def _lines(
    group: Group, metric: Metric, base: str | None, level: float, seed: int
) -> Iterator[dict[str, Any]]:
    scores = group.scores(metric)
    outcomes = bool(np.isin(scores[~np.isnan(scores)], (0.0, 1.0)).all())
    means = (_of_outcomes if outcomes else _of_graded)(scores, level, seed)
    against: list[dict[str, Any]] = [{} for _ in means]
    if base in group.methods:
        own = scores[group.methods.index(base)]
        compared = _outcomes_against if outcomes else _graded_against
        against = [
            {"base": base, **_pairs(own, row), **one}
            for row, one in zip(scores, compared(own, scores, level, seed))
        ]
    for method, mean, change in zip(group.methods, means, against):
        yield {
            "model": group.model,
            "data": group.data,
            "metric": metric.column,
            "method": method,
            "failed": group.failed(method),
            **mean,
            **(change if method != base else {}),
        }


Scores = Float[np.ndarray, "method sample"]
OfBase = Float[np.ndarray, " sample"]


def _of_outcomes(scores: Scores, level: float, seed: int) -> list[dict[str, Any]]:
    """Shares of what is right, and Wilson's intervals."""
    found = []
    for row in scores:
        right, n = int(np.nansum(row)), int((~np.isnan(row)).sum())
        low, high = wilson(right, n, level) if n else (np.nan, np.nan)
        found.append({"n": n, "mean": right / n if n else np.nan, "low": low, "high": high})
    return found


def _of_graded(scores: Scores, level: float, seed: int) -> list[dict[str, Any]]:
    """Means, and their bootstrap."""
    booted = bootstrap_mean(scores, seed, level)
    ends = zip(booted.n, booted.mean, booted.interval.low, booted.interval.high)
    return [dict(zip(("n", "mean", "low", "high"), one)) for one in ends]


def _pairs(base: OfBase, other: OfBase) -> dict[str, Any]:
    answered, as_well = ~np.isnan(base), ~np.isnan(other)
    return {"pairs": int((answered & as_well).sum()), "left_out": int((answered ^ as_well).sum())}


def _outcomes_against(base: OfBase, scores: Scores, level: float, seed: int) -> Iterator[dict[str, Any]]:
    for row in scores:
        both = ~np.isnan(base) & ~np.isnan(row)
        if not both.any():
            yield {}
            continue
        found, test = paired_difference(base[both], row[both], level), mcnemar(base[both], row[both])
        yield {
            **_difference(found.mean, *found.interval),
            "fixed": test.fixed,
            "broken": test.broken,
            "p": test.p,
        }


def _graded_against(base: OfBase, scores: Scores, level: float, seed: int) -> Iterator[dict[str, Any]]:
    # all at once: methods that answered the same samples are resampled alike, and in one go
    booted = bootstrap_mean(scores - base, seed, level)
    for row, mean, low, high in zip(scores, booted.mean, booted.interval.low, booted.interval.high):
        both = ~np.isnan(base) & ~np.isnan(row)
        yield (
            {**_difference(mean, low, high), "p": permutation_p(base[both], row[both], seed)}
            if both.any()
            else {}
        )


def _difference(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"difference": mean, "difference_low": low, "difference_high": high}
