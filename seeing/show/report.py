"""One run as one HTML file that needs nothing else: to mail, to archive beside a paper, to open in ten years.

The page loads nothing: plotly.js, style, script, figures and images are inside it, and its content security
policy forbids the rest, so that not even text that slipped through the escaping could run or call home.
"""

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import plotly.graph_objects as go
import plotly.offline
from markupsafe import Markup

from seeing import figures, spell
from seeing.figures import theme
from seeing.show import gallery, reading
from seeing.study.result import DemoResult, DepthCurve

HERE = Path(__file__).parent
MOST_BYTES = 8_000_000


@dataclass(frozen=True)
class Plot:
    """A figure of the page: its id, what it shows in words, its JSON, and its numbers as a table."""

    id: str
    words: str
    json: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_report(result: DemoResult, path: str | os.PathLike[str]) -> Path:
    """Write the report of a run as one self-contained HTML file.

    Args:
        result: the run.
        path: the file; its folder is made where it isn't there, and an earlier file is replaced in one step.

    Returns:
        The path.

    Raises:
        OSError: the file or its folder can't be written.
        ValueError: the page came out larger than MOST_BYTES.
    """
    path = Path(path)
    page = render(result).encode("utf-8", "xmlcharrefreplace")
    if len(page) > MOST_BYTES:
        raise ValueError(
            f"found a page of {len(page):,} bytes, expected at most {MOST_BYTES:,}; "
            "pass fewer curves, methods or notes"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(page)
    partial.replace(path)
    return path


def render(result: DemoResult) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [plotly.offline.get_plotlyjs(), (HERE / "report.js").read_text("utf-8")]
    templates = {scheme: theme.template(scheme).to_plotly_json() for scheme in theme.PAPER}
    cards = gallery.cards(result)
    return environment.get_template("report.html.jinja").render(
        result=result,
        reading=reading.reading(result),
        verdict=reading.rule_verdict(result.rule, result.row(result.rule.method)),
        quadrants=reading.quadrants(result),
        plots={plot.id: plot for plot in plots(result)},
        templates=Markup(inline_json(json.dumps(templates))),
        cards=cards,
        answered=tuple(result.gallery[0].answers) if result.gallery else (),
        map_names=tuple(one.name for one in cards[0].maps) if cards else (),
        outcomes=gallery.OUTCOMES,
        colours=theme.COLOURS,
        regions=theme.REGIONS,
        region_words=theme.REGION_WORDS,
        spell=spell,
        style=Markup((HERE / "report.css").read_text("utf-8")),
        scripts=[Markup(script) for script in scripts],
        policy=content_policy(scripts),
    )


def content_policy(scripts: list[str]) -> str:
    """A content security policy under which these scripts run and nothing is fetched."""
    digests = (
        base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in scripts
    )
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def inline_json(text: str) -> str:
    """JSON that can stand inside a script element: no `<`, so no `</script>` and no comment."""
    for found, written in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(found, written)
    return text


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
    return _plot("methods", fig, words)


def _auroc(result: DemoResult, curves: tuple[DepthCurve, ...]) -> Plot:
    fig = figures.auroc_by_depth(
        *_stack(curves),
        groups=[curve.group for curve in curves],
        n=[curve.n for curve in curves],
        chosen=list(result.layers),
    )
    words = "Evidence AUROC of each layer, for correct and wrong answers."
    return _plot("auroc", fig, words, *_numbers([curve.group for curve in curves], curves))


def _rapt(curves: tuple[DepthCurve, ...]) -> Plot:
    fig = figures.rapt_by_depth(
        *_stack(curves),
        segments=[curve.segment for curve in curves],
        groups=[curve.group for curve in curves],
        n=[curve.n for curve in curves],
    )
    words = "Relative attention per token of each segment and layer, for correct and wrong answers."
    return _plot(
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
    return _plot("heads", fig, "Evidence AUROC of each attention head.", columns, rows)


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


def _plot(
    id: str, fig: go.Figure, words: str, columns: tuple[str, ...] = (), rows: tuple[tuple[str, ...], ...] = ()
) -> Plot:
    """A figure made fit for the page: escaped, and without its template, which the page holds once."""
    fig.layout.template = None
    fig.update_layout(dragmode=False)
    return Plot(id, words, Markup(inline_json(fig.to_json())), columns, rows)
