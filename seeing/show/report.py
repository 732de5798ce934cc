"""One run of the main job as one HTML file: to mail, to archive beside a paper, to open in ten years."""

import os
from pathlib import Path

import numpy as np

from seeing import figures, spell
from seeing.figures import theme
from seeing.show import gallery, reading
from seeing.show.pages import Plot, plot, render_page, write_page
from seeing.study.result import DemoResult, DepthCurve


def write_report(result: DemoResult, path: str | os.PathLike[str]) -> Path:
    """Write the report of a run as one self-contained HTML file.

    Args:
        result: the run.
        path: the file; its folder is made where it isn't there, and an earlier file is replaced in one step.

    Returns:
        The path.

    Raises:
        OSError: the file or its folder can't be written.
        ValueError: the page came out larger than `pages.MOST_BYTES`.
    """
    return write_page(render(result), path)


def render(result: DemoResult) -> str:
    """The page as text."""
    cards = gallery.cards(result)
    return render_page(
        "report.html.jinja",
        plots(result),
        result=result,
        reading=reading.reading(result),
        verdict=reading.rule_verdict(result.rule, result.row(result.rule.method)),
        quadrants=reading.quadrants(result),
        cards=cards,
        answered=tuple(result.gallery[0].answers) if result.gallery else (),
        map_names=tuple(one.name for one in cards[0].maps) if cards else (),
        outcomes=gallery.OUTCOMES,
        regions=theme.REGIONS,
        region_words=theme.REGION_WORDS,
    )


def plots(result: DemoResult) -> list[Plot]:
    """The figures of a run; those without data are left out."""
    made = [_methods(result), _heads(result)]
    auroc = result.depth("auroc", ("evidence",))
    if auroc:
        made.append(_auroc(result, auroc))
    rapt = result.depth("rapt", ("evidence", "non-evidence", "image", "question", "text"))
    if rapt:
        made.append(_rapt(rapt))
    return made


def _methods(result: DemoResult) -> Plot:
    table = result.table
    fig = figures.method_comparison(
        np.array([row.accuracy for row in table]),
        np.array([row.low for row in table]),
        np.array([row.high for row in table]),
        names=[row.method for row in table],
        n=result.n,
        acts_on=[row.acts_on for row in table],
        through=[row.through for row in table],
        labels=["" if row.is_base else spell.points(row.delta) for row in table],
    )
    words = f"Accuracy of {len(table)} methods with 95 % intervals; the numbers are in the table below."
    return plot("methods", fig, words)


def _auroc(result: DemoResult, curves: tuple[DepthCurve, ...]) -> Plot:
    fig = figures.auroc_by_depth(
        *_stack(curves),
        groups=[curve.group for curve in curves],
        n=[curve.n for curve in curves],
        chosen=list(result.layers),
    )
    words = "Evidence AUROC of each layer, for correct and wrong answers."
    return plot("auroc", fig, words, *_numbers([curve.group for curve in curves], curves))


def _rapt(curves: tuple[DepthCurve, ...]) -> Plot:
    fig = figures.rapt_by_depth(
        *_stack(curves),
        segments=[curve.segment for curve in curves],
        groups=[curve.group for curve in curves],
        n=[curve.n for curve in curves],
    )
    words = "Relative attention per token of each segment and layer, for correct and wrong answers."
    return plot(
        "rapt", fig, words, *_numbers([f"{curve.segment}, {curve.group}" for curve in curves], curves)
    )


def _heads(result: DemoResult) -> Plot:
    values = result.auroc_heads
    finite = values[np.isfinite(values)]
    lowest = min(0.5, float(np.floor(finite.min() * 10) / 10)) if len(finite) else 0.5
    fig = figures.layer_head_map(
        values,
        metric="Evidence AUROC",
        n=result.calibration_n,
        units="0–1, calibration split",
        chosen_layers=list(result.layers),
        chosen_heads=[(head.layer, head.head) for head in result.heads],
        bounds=(lowest, 1.0),
    )
    columns = ("head", *(f"layer {layer}" for layer in range(len(values))))
    rows = tuple(
        (str(head), *(spell.value(value) for value in values[:, head])) for head in range(values.shape[1])
    )
    return plot("heads", fig, "Evidence AUROC of each attention head.", columns, rows)


def _stack(curves: tuple[DepthCurve, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, lows and highs of some curves, each curve by layer."""
    return tuple(
        np.stack([np.asarray(getattr(curve, part), float) for curve in curves])
        for part in ("mean", "low", "high")
    )


def _numbers(
    names: list[str], curves: tuple[DepthCurve, ...]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The curves as a table: a row a layer, a column a curve."""
    rows = (
        (str(layer), *(spell.value_interval(c.mean[layer], c.low[layer], c.high[layer]) for c in curves))
        for layer in range(len(curves[0].mean))
    )
    return ("layer", *names), tuple(rows)
