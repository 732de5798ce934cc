"""`seeing demo`: the main job on an embedded model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from seeing.cli.terminal import UserError, load, positive, progress, writable


def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html and results.parquet.")] = Path("demo"),
    limit: Annotated[int, typer.Option(help="Samples to answer.")] = 256,
    split: Annotated[str, typer.Option(help="Split of the embedded task.")] = "crowded",
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    model: Annotated[str, typer.Option(help="An embedded model.")] = "plates-tiny",
) -> None:
    """Run the main job on an embedded model: does it see, does it believe, can it be made to?

    Profiles layers and heads on a calibration split, then answers crowded scenes with the plain model,
    the paper's intervention, its kin and the controls, and writes a report.
    """
    positive("--limit", limit)
    if seed < 0:
        raise UserError(f"--seed is 0 or more, got {seed}")

    from seeing.data.plates import SPLITS
    from seeing.zoo import ZOO

    if split not in SPLITS:
        raise UserError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    if model not in ZOO:
        raise UserError(f"no embedded model {model!r}; the embedded models are {', '.join(ZOO)}")
    writable(out, "report.html", "results.parquet")
    vlm = load(model)

    from seeing.show.report import write_report
    from seeing.study.demo import run_demo

    given = {"model": model, "split": split, "limit": limit, "seed": seed, "out": out}
    command = shlex.join(
        ["seeing", "demo", *(word for key in given for word in (f"--{key}", str(given[key])))]
    )
    with progress() as tell:
        result, outcomes = run_demo(
            vlm, model, split=split, n=limit, seed=seed, command=command, progress=tell
        )
    outcomes.to_frame().to_parquet(out / "results.parquet", index=False)
    report = write_report(result, out / "report.html")
    show(result)
    typer.echo(f"\n{report} and {out / 'results.parquet'} written, {result.seconds:.0f} s")


def show(result) -> None:
    """The table, to the terminal."""
    table = Table(title=f"{result.model} on {result.n} {result.split} samples (seed {result.seed})")
    for name in ("method", "accuracy", "95 % interval", "against base", "fixed", "broken", "McNemar p"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in result.table:
        against = ["", "", "", ""]
        if not row.is_base:
            against = [f"{row.delta:+.1%}", str(row.fixed), str(row.broken), f"{row.p:.2g}"]
        table.add_row(row.method, f"{row.accuracy:.1%}", f"{row.low:.1%} – {row.high:.1%}", *against)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    everything = next(c for c in result.curves if c.metric == "auroc" and c.group == "all")
    auroc = " ".join(f"{one:.2f}" for one in everything.mean)
    console.print(f"evidence AUROC by layer: {auroc}; grounding layers {list(result.layers)}")
    if result.wrong_seen.n:
        share = result.wrong_seen
        console.print(
            f"of {share.n} wrong answers, {share.value:.0%} ({share.low:.0%} – {share.high:.0%}) "
            f"had looked at the evidence"
        )
    for note in result.notes:
        console.print(f"[dim]{note}[/dim]")
