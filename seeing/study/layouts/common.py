"""Means that may be compared: over the samples that every method answered, and over data sets."""

from __future__ import annotations

import numpy as np
import pandas as pd

from seeing.study.comparing import Metric, groups
from seeing.study.study import Study


def common_means(study: Study, metric: Metric) -> pd.DataFrame:
    """Mean of each method on the samples that all methods of a model and data set answered.

    Returns: columns ``model, data, metric, method, n, left_out, mean, variance`` (of the mean).
    """
    lines = []
    for group in groups(study):
        scores = group.scores(metric)
        answered = ~np.isnan(scores)
        taking_part = answered.any(1)  # a method that answered nothing takes no sample from the others
        common = answered[taking_part].all(0) if taking_part.any() else np.zeros(scores.shape[1], bool)
        n, left_out = int(common.sum()), int(answered.any(0).sum() - common.sum())
        for method, row, takes_part in zip(group.methods, scores, taking_part):
            own = row[common] if takes_part else row[:0]
            lines.append(
                {
                    "model": group.model,
                    "data": group.data,
                    "metric": metric.column,
                    "method": method,
                    "n": len(own),
                    "left_out": left_out,
                    "mean": own.mean() if len(own) else np.nan,
                    "variance": own.var(ddof=1) / n if len(own) > 1 else np.nan,
                }
            )
    return pd.DataFrame(lines)


def over_data(means: pd.DataFrame) -> pd.DataFrame:
    """Means over data sets, each counting as much as another, of the methods that have all of a model's.

    Returns: columns ``model, metric, method, data_sets, n, left_out, mean, low, high``; the interval is
    ± 1.96 standard errors. A method without some of the data sets has NaN.
    """
    lines = []
    for (model, metric), part in means.groupby(["model", "metric"], sort=False):
        data_sets = part["data"].nunique()
        for method, own in part.groupby("method", sort=False):
            whole = len(own) == data_sets and own["mean"].notna().all()
            mean = own["mean"].mean() if whole else np.nan
            half = 1.96 * own["variance"].sum(skipna=False) ** 0.5 / data_sets if whole else np.nan
            lines.append(
                {
                    "model": model,
                    "metric": metric,
                    "method": method,
                    "data_sets": len(own),
                    "n": own["n"].sum(),
                    "left_out": own["left_out"].sum(),
                    "mean": mean,
                    "low": mean - half,
                    "high": mean + half,
                }
            )
    return pd.DataFrame(lines)
