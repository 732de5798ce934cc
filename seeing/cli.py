"""The command ``seeing``.

A user's mistake (a missing file, an unknown model, a word that the model does not know) is one clear
line on stderr and exit code 2. Anything else that goes wrong is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Did the model see the evidence, and did its answer use what it saw?",
)


#: What typer raises for a wrong command line: the class above the one that it names in public.
USAGE_ERROR = typer.BadParameter.__mro__[1]
#: The exit code after Ctrl-C, which typer hands back as if the command had returned it.
STOPPED = 130


class UserError(Exception):
    """A mistake in what the user gave: shown as one line, exit code 2."""


@app.command(epilog="Example: [bold]seeing demo --limit 64 --out demo[/bold]")
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
    _positive("--limit", limit)
    if seed < 0:
        raise UserError(f"--seed is 0 or more, got {seed}")

    from seeing.data.plates import SPLITS
    from seeing.zoo import ZOO

    if split not in SPLITS:
        raise UserError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    if model not in ZOO:
        raise UserError(f"no embedded model {model!r}; the embedded models are {', '.join(ZOO)}")
    _writable(out, "report.html", "results.parquet")
    vlm = _load(model)

    from seeing.show.report import write_report
    from seeing.study.demo import run_demo

    given = {"model": model, "split": split, "limit": limit, "seed": seed, "out": out}
    command = shlex.join(
        ["seeing", "demo", *(word for key in given for word in (f"--{key}", str(given[key])))]
    )
    with _progress() as tell:
        result, outcomes = run_demo(
            vlm, model, split=split, n=limit, seed=seed, command=command, progress=tell
        )
    outcomes.to_frame().to_parquet(out / "results.parquet", index=False)
    report = write_report(result, out / "report.html")
    _show(result)
    typer.echo(f"\n{report} and {out / 'results.parquet'} written, {result.seconds:.0f} s")


@app.command(epilog='Example: [bold]seeing ask photo.jpg "what digit is on the blue circle ?"[/bold]')
def ask(
    image: Annotated[Path, typer.Argument(help="A picture on disk.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id.")] = "plates-tiny",
) -> None:
    """Put a question to a picture from disk."""
    from seeing.data.images import BadImage, load_image
    from seeing.prompt import BadPrompt

    try:
        picture = load_image(image)
    except BadImage as error:
        raise UserError(error) from error
    vlm = _load(model)
    try:
        prompt = vlm.prompt(picture, question)
    except BadPrompt as error:
        raise UserError(error) from error
    answer = vlm.answer(prompt)
    probabilities = vlm.cache(prompt, "logits")["logits"][0, -1].float().softmax(-1)
    best = probabilities.topk(3)
    words = [vlm.processor.tokenizer.decode([token]) for token in best.indices.tolist()]
    typer.echo(str(answer))
    first = ", ".join(f"{word!r} {p:.0%}" for word, p in zip(words, best.values.tolist()))
    typer.echo(f"first token: {first}", err=True)


@app.command(epilog="Example: [bold]seeing models gemma3[/bold]")
def models(
    family: Annotated[str | None, typer.Argument(help="One family: its geometry and its traps.")] = None,
) -> None:
    """List the families of models that are read, or describe one."""
    from seeing.families.table import rows

    found = rows()
    if family is not None:
        named = [row for row in found if family in (row.name, *row.model_types)]
        if not named:
            raise UserError(f"no family {family!r}; there are {', '.join(row.name for row in found)}")
        typer.echo("\n\n".join(row.about for row in named))
        return
    table = Table()
    for column in ("family", "model_type", "what", "image tokens are", "tower", "inputs that must be there"):
        table.add_column(column, overflow="fold")
    for row in found:
        needs = ", ".join(row.needs) or "–"
        table.add_row(row.name, "\n".join(row.model_types), row.what, row.places, row.tower, needs)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> None:
    """The entry point: runs the command, and turns a user's mistake into one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        if app(standalone_mode=False) == STOPPED:
            raise KeyboardInterrupt
    except UserError as error:
        _fail(str(error))
    except USAGE_ERROR as error:
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("stopped", err=True)
        sys.exit(STOPPED)


def _fail(message: str) -> None:
    typer.echo(f"seeing: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _positive(option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{option} is 1 or more, got {value}")


def _writable(folder: Path, *names: str) -> None:
    """Make the folder now, so that a run does not end with nowhere to write its files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".seeing-writes-here"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror or error}") from error
    for name in names:
        if (folder / name).is_dir():
            raise UserError(f"can't write {folder / name}: there is a folder of that name")


def _load(model: str):
    """The model, quietly."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    from seeing.families import FamilyContractError, UnknownFamily
    from seeing.loading import CannotLoad, load
    from seeing.zoo import ZOO

    if model in ZOO:
        # The tensors of an embedded model are so small that a second thread mostly waits for the first.
        torch.set_num_threads(1)
    try:
        return load(model)
    except (CannotLoad, UnknownFamily, FamilyContractError) as error:
        raise UserError(error) from error


class _progress:
    """A progress bar on stderr, one line a stage; used as a context that gives the function to tell."""

    def __enter__(self):
        self.bar = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.tasks: dict[str, int] = {}
        self.bar.start()
        return self.tell

    def tell(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
        self.bar.update(self.tasks[what], completed=done)

    def __exit__(self, *exc) -> None:
        self.bar.stop()


def _show(result) -> None:
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


if __name__ == "__main__":
    main()
