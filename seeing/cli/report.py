"""`seeing report`: a study as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seeing.cli.terminal import UserError


def report(
    studies: Annotated[list[Path], typer.Argument(help="The folder of a study, or several to join.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page.  [default: STUDY/report.html]"),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The method to compare with; base where there is one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the permutation tests.")] = 0,
    pictures: Annotated[bool, typer.Option(help="Show pictures, where the data are still there.")] = True,
) -> None:
    """One self-contained page: what was run, what methods change, what failed, samples to look at."""
    if seed < 0:
        raise UserError(f"--seed is 0 or more, got {seed}")
    out = out or studies[0] / "report.html"
    if out.is_dir():
        raise UserError(f"can't write {out}: there is a folder of that name")

    from seeing.show.study_report import write_study_report
    from seeing.study.settings import StudyError
    from seeing.study.study import Study

    try:
        study = Study.open(*studies)
        path = write_study_report(study, out, base=base, seed=seed, pictures=pictures)
    except StudyError as error:
        raise UserError(error) from error
    except OSError as error:
        raise UserError(f"can't write {out}: {error.strerror or error}") from error
    typer.echo(path)
