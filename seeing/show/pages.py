"""What every page has in common: one HTML file that needs nothing else, whatever stands in it.

The page loads nothing: plotly.js, style, script, figures and images are inside it, and its content security
policy forbids the rest, so that not even text that slipped through the escaping could run or call home.
"""

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.offline
from markupsafe import Markup

from seeing import spell
from seeing.figures import theme

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


def write_page(page: str, path: str | os.PathLike[str]) -> Path:
    """Write a page; its folder is made where it isn't there, and an earlier file is replaced in one step.

    Raises:
        OSError: the file or its folder can't be written.
        ValueError: the page is larger than MOST_BYTES.
    """
    path = Path(path)
    content = page.encode("utf-8", "xmlcharrefreplace")
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"found a page of {len(content):,} bytes, expected at most {MOST_BYTES:,}; "
            "pass fewer curves, methods or notes"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return path


def render_page(template: str, plots: list[Plot], **values: Any) -> str:
    """A page as text: a template with its figures, and what else it shows."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [plotly.offline.get_plotlyjs(), (HERE / "report.js").read_text("utf-8")]
    templates = {scheme: theme.template(scheme).to_plotly_json() for scheme in theme.PAPER}
    return environment.get_template(template).render(
        plots={plot.id: plot for plot in plots},
        templates=Markup(inline_json(json.dumps(templates))),
        colours=theme.COLOURS,
        spell=spell,
        style=Markup((HERE / "report.css").read_text("utf-8")),
        scripts=[Markup(script) for script in scripts],
        policy=content_policy(scripts),
        **values,
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


def plot(
    id: str, fig: go.Figure, words: str, columns: tuple[str, ...] = (), rows: tuple[tuple[str, ...], ...] = ()
) -> Plot:
    """A figure made fit for the page: escaped, and without its template, which the page holds once."""
    fig.layout.template = None
    fig.update_layout(dragmode=False)
    return Plot(id, words, Markup(inline_json(fig.to_json())), columns, rows)
