"""A study laid out for readers: methods against the base, the paper's tables, ablations, ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from seeing.study.comparing import Metric, base_of, groups, metric_named
from seeing.study.layouts.against_base import against_base
from seeing.study.layouts.means import ablation, paper
from seeing.study.layouts.ranks import ranks
from seeing.study.settings import StudyError
from seeing.study.study import Study
from seeing.study.tables import Table

Layout = Callable[[Study, Sequence[Metric], "str | None", int], Table]

#: How a study can be laid out, and the metrics that are shown unless others are asked for.
LAYOUTS: dict[str, tuple[Layout, tuple[str, ...]]] = {
    "methods": (against_base, ("em", "f1")),
    "paper": (paper, ("em",)),
    "ablation": (ablation, ("em", "f1")),
    "ranks": (ranks, ("em",)),
}


def table(
    study: Study,
    metric: str | Sequence[str] | None = None,
    layout: str = "methods",
    *,
    base: str | None = None,
    seed: int = 0,
) -> Table:
    """A table of a study.

    Args:
        metric: one or several of ``em, f1, anls, vqa, logprob, n_tokens, seconds``, as a list or with commas.
        layout: ``methods`` (each against the base), ``paper`` (means over data sets, a column a model),
            ``ablation`` (the same, with EM and F1 beside each other), ``ranks`` (over data sets).
        base: the method to compare with; "base" where the study has it.

    Raises `StudyError` for a metric, layout or base that is not there, and for a study without a row.
    """
    if layout not in LAYOUTS:
        raise StudyError(f"found the layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    make, usual = LAYOUTS[layout]
    names = usual if metric is None else metric.split(",") if isinstance(metric, str) else metric
    metrics = [metric_named(name.strip()) for name in names]
    if not next(groups(study), None):
        folders = ", ".join(map(str, study.folders))
        raise StudyError(f"{folders}: nothing has been answered yet, so there is nothing to lay out")
    return make(study, metrics, base_of(study, base), seed)
