"""The command ``seeing``: one file a command.

A user's mistake (a missing file, an unknown model, a word that the model does not know) is one clear
line on stderr and exit code 2. Anything else that goes wrong is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import sys

import typer

from seeing.cli.ask import ask
from seeing.cli.data import data
from seeing.cli.demo import demo
from seeing.cli.methods import methods
from seeing.cli.models import models
from seeing.cli.probe import HELP as PROBE_HELP
from seeing.cli.probe import probe
from seeing.cli.profile import profile
from seeing.cli.report import report
from seeing.cli.study import study
from seeing.cli.table import table
from seeing.cli.terminal import UserError, fail, prose

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Did the model see the evidence, and did its answer use what it saw?",
)
for command, example in {
    models: "seeing models gemma3",
    methods: "seeing methods pai",
    demo: "seeing demo --limit 64 --out demo",
    ask: 'seeing ask photo.jpg "what digit is on the blue circle ?" --method pai --out looked.png',
    profile: "seeing profile --model plates-tiny --data plates:calibration:100 -o profile.json",
    probe: "seeing probe evidence --model plates-tiny --data plates:64 -o evidence.csv -o evidence.html",
    study: "seeing study --model plates-tiny --data plates:64 --methods base,pai,oracle --out results",
    table: "seeing table results --layout paper -o table.tex",
    report: "seeing report results -o report.html",
}.items():
    about = PROBE_HELP if command is probe else prose(command.__doc__)
    app.command(help=about, epilog=f"Example: [bold]{example}[/bold]")(command)
app.add_typer(data, name="data")

#: What typer raises for a wrong command line: the class above the one that it names in public.
USAGE_ERROR = typer.BadParameter.__mro__[1]
#: The exit code after Ctrl-C, which typer hands back as if the command had returned it.
STOPPED = 130


def main() -> None:
    """The entry point: runs the command, and turns a user's mistake into one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
        if code == STOPPED:
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
    except UserError as error:
        fail(str(error))
    except USAGE_ERROR as error:
        fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("stopped", err=True)
        sys.exit(STOPPED)
