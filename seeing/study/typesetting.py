"""Tables set for a terminal, Markdown, LaTeX and HTML.

Names of models, data sets and methods come from outside, so each setting escapes what its language would take
for its own: pipes, braces, brackets, tags.
"""

from __future__ import annotations

import re
from html import escape
from itertools import groupby
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from seeing.study.tables import Cell, Column, Table

# ---- terminal ----------------------------------------------------------------------------------------------

#: A heading over several columns is folded to this width, where the columns are no wider.
_NARROW = 14
_STYLES = {"": "", "best": "bold", "second": "underline"}


def terminal(table: Table) -> Group:
    """For `rich`: a table a block, all of the same widths; the notes are dim lines under them."""
    shown = [Text(table.title, style="bold")]
    for block in table.blocks:
        own = RichTable(box=SIMPLE_HEAD, title=Text(block.title) if block.title else None)
        own.title_justify, own.title_style = "left", "italic"
        for place, column in enumerate(table.columns):
            texts = [line[place].text for each in table.blocks for line in each.lines]
            width = max(cell_len(text) for text in [column.heading, *texts])
            heading = "\n".join([*wrap(column.group, max(width, _NARROW)), column.heading])
            own.add_column(Text(heading), justify="left" if column.words else "right", min_width=width)
        for line in block.lines:
            own.add_row(*(Text(cell.text, style=_STYLES[cell.mark]) for cell in line))
        shown.append(own)
    return Group(*shown, *(Text(note, style="dim") for note in table.notes))


# ---- Markdown ----------------------------------------------------------------------------------------------

_MARKDOWN = {"": "{}", "best": "**{}**", "second": "<ins>{}</ins>"}


def markdown(table: Table) -> str:
    """GitHub's tables have one row of headings: groups stand before the headings that they share."""
    headings = [f"{column.group} {column.heading}".strip() for column in table.columns]
    lines = [
        f"**{markdown_text(table.title)}**",
        "",
        _piped(markdown_text(heading) for heading in headings),
        _piped(":--" if column.words else "--:" for column in table.columns),
    ]
    for block in table.blocks:
        if block.title:
            lines.append(_piped([f"*{markdown_text(block.title)}*", *[""] * (len(headings) - 1)]))
        lines += [
            _piped(_MARKDOWN[cell.mark].format(markdown_text(cell.text)) for cell in line)
            for line in block.lines
        ]
    if table.notes:
        lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _piped(cells) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_text(text: str) -> str:
    """Text that Markdown shows letter by letter; an underscore within a word is none of its marks."""
    text = re.sub(r"([\\|`*<>\[\]~$&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


# ---- LaTeX -------------------------------------------------------------------------------------------------

_LATEX = {"": "{}", "best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}


def latex(table: Table) -> str:
    """Needs ``\\usepackage{booktabs}``."""
    width = len(table.columns)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_text(' '.join([_sentence(table.title), *table.notes]))}}}",
        rf"\begin{{tabular}}{{{''.join('l' if column.words else 'r' for column in table.columns)}}}",
        r"\toprule",
        *_latex_head(table.columns),
    ]
    for block in table.blocks:
        lines.append(r"\midrule")
        if block.title:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{latex_text(block.title)}}}}} \\")
        lines += [
            _ampersands(_LATEX[c.mark].format(latex_text(c.text)) for c in line) for line in block.lines
        ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_head(columns: tuple[Column, ...]) -> list[str]:
    lines = []
    if any(column.group for column in columns):
        cells, rules, start = [], [], 1
        for group, members in groupby(columns, key=lambda column: column.group):
            span = len(list(members))
            if group:
                cells.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_text(group)}}}")
                rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
            else:
                cells += [""] * span
            start += span
        lines = [_ampersands(cells), "".join(rules)]
    return [*lines, _ampersands(latex_text(column.heading) for column in columns)]


def _ampersands(cells) -> str:
    return rf"{' & '.join(cells)} \\"


def _sentence(title: str) -> str:
    return title if title.endswith(".") else f"{title}."


_LATEX_LETTERS = {
    **{letter: f"\\{letter}" for letter in "{}&%$#_"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "−": "$-$",
    "–": "--",
    "\u202f": r"\,",
    **{letter: rf"${name}$" for letter, name in (("×", r"\times"), ("≥", r"\geq"), ("Δ", r"\Delta"))},
    **{letter: rf"${name}$" for letter, name in (("·", r"\cdot"), ("±", r"\pm"), ("≤", r"\leq"))},
    "’": "'",
}


def latex_text(text: str) -> str:
    """Text that LaTeX sets letter by letter."""
    text = "".join(_LATEX_LETTERS.get(letter, letter) for letter in re.sub(r"[\n\r\t]+", " ", text))
    return re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", _latex_power, text)


def _latex_power(match: re.Match[str]) -> str:
    return f"$^{{{match[0].translate(str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789'))}}}$"


# ---- HTML --------------------------------------------------------------------------------------------------

_HTML = {"": "{}", "best": "<strong>{}</strong>", "second": "<u>{}</u>"}


def html(table: Table) -> str:
    """A table without style of its own; every text is escaped."""
    lines = [
        "<table>",
        f"<caption>{escape(table.title)}</caption>",
        "<thead>",
        *_html_head(table.columns),
        "</thead>",
    ]
    for block in table.blocks:
        lines.append("<tbody>")
        if block.title:
            lines.append(
                f'<tr><th scope="rowgroup" colspan="{len(table.columns)}">{escape(block.title)}</th></tr>'
            )
        lines += [f"<tr>{''.join(map(_html_cell, table.columns, line))}</tr>" for line in block.lines]
        lines.append("</tbody>")
    lines.append("</table>")
    if table.notes:
        lines.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in table.notes) + "</ul>")
    return "\n".join(lines)


def _html_head(columns: tuple[Column, ...]) -> list[str]:
    lines = []
    if any(column.group for column in columns):
        cells = []
        for group, members in groupby(columns, key=lambda column: column.group):
            span = len(list(members))
            cells.append(
                f'<th scope="colgroup" colspan="{span}">{escape(group)}</th>' if group else "<td></td>" * span
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = (
        f'<th scope="col"{"" if column.words else " class=num"}>{escape(column.heading)}</th>'
        for column in columns
    )
    return [*lines, f"<tr>{''.join(heads)}</tr>"]


def _html_cell(column: Column, cell: Cell) -> str:
    text = _HTML[cell.mark].format(escape(cell.text))
    return f'<th scope="row">{text}</th>' if column.words else f'<td class="num">{text}</td>'
