"""What the layouts share: marks of the best, headings, names of models, words about failures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from seeing.study.comparing import Metric
from seeing.study.study import Study
from seeing.study.tables import Mark


def titled(metric: Metric) -> str:
    return metric.heading + (", %" if metric.share else "")


def counted(number: int, what: str) -> str:
    """ "1 sample", "2 samples"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def marks(values: Float[np.ndarray, " line"], higher: bool = True) -> list[Mark]:
    """The best and the second best of a column; all that are equal to them too. None of fewer than two."""
    shown = np.round(np.asarray(values, float) * (1 if higher else -1), 12)
    distinct = np.unique(shown[~np.isnan(shown)])[::-1]
    if len(distinct) < 2:
        return [""] * len(shown)
    second = distinct[1] if len(distinct) > 2 else np.nan
    return ["best" if one == distinct[0] else "second" if one == second else "" for one in shown]


def failures(study: Study) -> Iterator[str]:
    """How many samples failed, if any."""
    lost = study.failures.drop_duplicates(["model", "data", "sample"])
    if len(lost):
        counts = ", ".join(
            f"{len(part):,} of {model} on {data}"
            for (model, data), part in lost.groupby(["model", "data"], sort=False)
        )
        yield f"Samples that failed under some method: {counts}."


# ---- names of models ---------------------------------------------------------------------------------------

_SIZE = re.compile(r"(?<![A-Za-z0-9.])\d+(?:\.\d+)?[BbMm](?![A-Za-z0-9])")


def short(models: Sequence[str]) -> list[str]:
    """Models without the folder or owner before their names, where that leaves them distinct."""
    names = [name.rstrip("/").rsplit("/", 1)[-1] for name in models]
    return names if len(set(names)) == len(names) else list(models)


def model_columns(models: Sequence[str]) -> list[tuple[str, str]]:
    """(group, heading) of each model: sizes of one kind share the kind as a heading over them."""
    names = short(models)
    kinds = [_kind(name) for name in names]
    found = []
    for place, (kind, size) in enumerate(kinds):
        beside = [kinds[near][0] for near in (place - 1, place + 1) if 0 <= near < len(kinds)]
        found.append((kind, size) if size and kind in beside else ("", names[place]))
    return found


def _kind(name: str) -> tuple[str, str]:
    """A model's name without its size, and the size: ("gemma-3-it", "4b")."""
    size = _SIZE.search(name)
    if size is None:
        return name, ""
    rest = name[: size.start()] + name[size.end() :]
    return re.sub(r"[-_ ]{2,}", "-", rest).strip("-_ "), size[0]
