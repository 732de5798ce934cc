"""A study as one HTML file: what was run, what methods change and how surely, what failed, samples to see."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from seeing import figures, spell
from seeing.show import study_gallery
from seeing.show.gallery import OUTCOMES, clean
from seeing.show.pages import Plot, plot, render_page, write_page
from seeing.study.comparing import base_of, compare
from seeing.study.layouts import table
from seeing.study.study import Study

#: Reasons of failures that are listed; the most frequent come first.
MOST_REASONS = 40


@dataclass(frozen=True)
class Reason:
    """Why samples failed: how many, where, and some of them."""

    stage: str
    words: str
    count: int
    where: str
    examples: str


def write_study_report(
    study: Study,
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    seed: int = 0,
    pictures: bool = True,
) -> Path:
    """Write the report of a study.

    Args:
        study: one results folder, or several joined.
        path: the file; an earlier one is replaced in one step.
        base: the method that others are compared with; "base" where the study has it.
        seed: of the bootstrap and the permutation tests.
        pictures: whether to show pictures, where the data sets can still be opened.

    Raises:
        StudyError: there is nothing to report, or no such base.
        OSError: the file can't be written.
    """
    return write_page(render(study, base=base, seed=seed, pictures=pictures), path)


def render(study: Study, *, base: str | None = None, seed: int = 0, pictures: bool = True) -> str:
    """The page as text."""
    base = base_of(study, base)
    tables = [
        table(study, ("em", "f1", "anls", "vqa"), "ablation", base=base, seed=seed),
        table(study, ("em", "f1"), base=base, seed=seed),
    ]
    if len(study.data) > 1:
        tables.append(table(study, layout="ranks", base=base, seed=seed))
    others = [name for name in study.methods if name != base]
    compared = others[0] if base is not None and others else None
    cards = study_gallery.cards(study, base, compared, pictures=pictures)
    return render_page(
        "study.html.jinja",
        _figures(study, base, seed),
        title=_title(study),
        study=study,
        base=base,
        compared=compared,
        others=others,
        tables=[Markup(one.to_html()) for one in tables],
        n_samples=len(study.rows.drop_duplicates(["model", "data", "sample"])),
        reasons=reasons(study.failures),
        cards=cards,
        groups=list(dict.fromkeys(card.group for card in cards)),
        outcomes=(*OUTCOMES, "not compared"),
        runs=[_run(folder, document) for folder, document in zip(study.folders, study.documents)],
    )


def _title(study: Study) -> str:
    return f"{_listed(study.models, 'models')} on {_listed(study.data, 'data sets')}"


def _listed(names: Sequence[str], what: str) -> str:
    return clean(", ".join(names)) if len(names) <= 3 else f"{len(names)} {what}"


def _figures(study: Study, base: str | None, seed: int) -> list[Plot]:
    """Exact match of every method, a figure a model and data set."""
    made = []
    numbers = compare(study, ["em"], base, seed=seed)
    for place, ((model, data), lines) in enumerate(numbers.groupby(["model", "data"], sort=False)):
        lines = lines[lines["mean"].notna()]
        if lines.empty:
            continue
        names = lines["method"].tolist()
        fig = figures.method_comparison(
            *(lines[name].to_numpy(np.float64) for name in ("mean", "low", "high")),
            names=[clean(name) for name in names],
            n=int(lines["n"].max()),
            labels=["" if pd.isna(one) else spell.points(one) for one in lines["difference"]],
            base=names.index(base) if base in names else 0,
            title=f"{clean(model)} on {clean(data)}",
        )
        words = f"Exact match of {len(names)} methods with 95 % intervals, {model} on {data}."
        made.append(plot(f"methods-{place}", fig, clean(words)))
    return made


def reasons(failures: pd.DataFrame) -> list[Reason]:
    """Failures by stage and reason, the most frequent first."""
    found = []
    for (stage, words), part in failures.groupby(["stage", "reason"], sort=False):
        places = part.drop_duplicates(["model", "data"])
        where = ", ".join(f"{model} on {data}" for model, data in zip(places["model"], places["data"]))
        examples = ", ".join(map(str, part["sample"].unique()[:3]))
        found.append(Reason(str(stage), clean(str(words)), len(part), clean(where), clean(examples)))
    return sorted(found, key=lambda one: -one.count)[:MOST_REASONS]


def _run(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder says of how it came to be."""
    return {
        "folder": clean(folder.name),
        "runs": document.get("runs", ()),
        "settings": clean(json.dumps(document["settings"], indent=1, ensure_ascii=False), longest=20_000),
    }
