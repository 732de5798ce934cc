"""`seeing study`: models × data × methods, into a folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from seeing.cli.options import (
    AsJson,
    Attn,
    BoxFormat,
    Check,
    Columns,
    DeviceMap,
    Dtype,
    Images,
    ProfileFile,
    Prompted,
    Revision,
    Split,
)
from seeing.cli.terminal import UserError, mistakes


def study(
    out: Annotated[Path, typer.Option(help="Folder for the results; one that is there is gone on with.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Embedded model, folder or hub id; several times for several.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="A .jsonl, .json, .csv, .tsv or .parquet file, a folder, hub:owner/name[:split], or "
            "plates:N; several times for several.",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Names with settings, edits.json, methods.py; see [bold]seeing methods[/bold]."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Samples of each data set.")] = None,
    template: Prompted = "qa",
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer, at most.  [default: the model's own, up to 50]")
    ] = None,
    rows: Annotated[int, typer.Option(help="Samples that run together, at most.")] = 32,
    tokens: Annotated[
        int, typer.Option(help="Tokens that run together, at most, padding included.")
    ] = 32_768,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    profile: ProfileFile = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="Data to profile the model on, none of it asked.")
    ] = None,
    hold_out: Annotated[
        int, typer.Option(help="As many samples of the first data set to profile on, and not to ask.")
    ] = 0,
    engine: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Ray: models that run at once.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray: of a cluster that is there.")] = None,
    gpus: Annotated[float | None, typer.Option(help="Ray: GPUs of a worker.")] = None,
    cpus: Annotated[float | None, typer.Option(help="Ray: CPUs of a worker.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a study that is in the folder.")] = True,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done.")] = False,
    json: AsJson = False,
    columns: Columns = None,
    images: Images = None,
    split: Split = None,
    box_format: BoxFormat = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    attn: Attn = None,
    check: Check = True,
) -> None:
    """Ask models about samples under several methods, and keep every answer.

    The same words again go on where an earlier run was ended. With --out alone, those of the folder count.
    """
    given = dict(
        limit=limit,
        prompt=template,
        max_new_tokens=max_new_tokens,
        rows=rows,
        tokens=tokens,
        seed=seed,
        profile=profile,
        calibration=calibration,
        hold_out=hold_out,
        load=_load(revision, dtype, device_map, attn, check),
    )
    reading = dict(columns=columns, images=images, split=split, box_format=box_format)
    _quiet()

    from seeing.study.settings import StudyError

    with mistakes(StudyError):
        made = _plan(out, model, data, methods, reading, given)
        if dry_run:
            _foretell(made, out, json)
            return
        found = _carry_out(made, out, _engine(engine, workers, address, gpus, cpus), resume)
    _tell(found, out, json)
    if len(found.failures):
        raise typer.Exit(1)


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _load(
    revision: str | None, dtype: str | None, device_map: str | None, attn: str | None, check: bool
) -> dict[str, Any]:
    """What `seeing.load` is told."""
    given = {"revision": revision, "dtype": dtype, "device_map": device_map, "attn_implementation": attn}
    return {name: value for name, value in given.items() if value is not None} | (
        {} if check else {"check": False}
    )


def _plan(
    out: Path,
    models: list[str] | None,
    data: list[str] | None,
    methods: list[str] | None,
    reading: dict[str, Any],
    given: dict[str, Any],
) -> Any:
    """The plan of what is asked for, or of what the folder says."""
    from seeing.data.opening import open_data
    from seeing.data.spec import parse_columns
    from seeing.study.folder import read_document
    from seeing.study.planning import plan, replan

    if not (models or data or methods):
        if not (out / "study.json").exists():
            raise UserError("a study needs --model, --data and --methods; --out alone goes on with one")
        return replan(read_document(out)["settings"], out)
    for name, value in (("--model", models), ("--data", data), ("--methods", methods)):
        if not value:
            raise UserError(f"{name} is missing; a study needs --model, --data and --methods")
    if any(value is not None for value in reading.values()):
        columns = None if reading["columns"] is None else parse_columns(reading["columns"])
        data = [open_data(one, **reading | {"columns": columns}) for one in data]
    return plan(models, data, ",".join(methods), **given)


def _engine(
    name: str, workers: int | None, address: str | None, gpus: float | None, cpus: float | None
) -> Any:
    given = {"workers": workers, "address": address, "num_gpus": gpus, "num_cpus": cpus}
    given = {key: value for key, value in given.items() if value is not None}
    if name == "ray":
        from seeing.study.on_ray import OnRay

        return OnRay(**given)
    if given:
        raise UserError(f"--{next(iter(given)).removeprefix('num_')} is for --engine ray")
    return name


def _foretell(made: Any, out: Path, as_json: bool) -> None:
    """What a study would do, without a model."""
    from rich.console import Console
    from rich.table import Table

    from seeing.study.folder import read_document

    left = [one for one in made.units if not (out / "rows" / f"{one.name}.parquet").exists()]
    if (out / "study.json").exists():
        _same(made, read_document(out)["settings"], out)
    told = {
        "models": [one["name"] for one in made.settings.models],
        "data": {one["name"]: one["n"] for one in made.settings.data},
        "methods": [one["text"] for one in made.settings.methods],
        "profile": made.settings.profile,
        "held out": made.settings.hold_out,
        "samples": made.n_samples,
        "rows": made.n_rows,
        "units": len(made.units),
        "units left": len(left),
        "out": str(out),
    }
    if as_json:
        _print_json(told)
        return
    table = Table(show_header=False, title="What would be done")
    for name, value in told.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{key} ({one})" if name == "data" else f"{key} {one}" for key, one in value.items()
            )
        table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _same(made: Any, there: dict, out: Path) -> None:
    from seeing.study.settings import StudyError, differences

    if found := list(differences(there, made.settings.as_dict())):
        raise StudyError(f"{out} holds a study with other settings ({'; '.join(found)})")


def _carry_out(made: Any, out: Path, engine: Any, resume: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from seeing.study.running import carry_out

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("answers, left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("answering", total=made.n_rows, failed="")
    lost = 0

    def told(done: int, total: int, failed: int) -> None:
        nonlocal lost
        lost += failed
        bar.start()  # only now: a mistake that is found before is said without a bar
        bar.update(task, completed=done, total=total, failed=f"{lost} failed" if lost else "")

    command = shlex.join(["seeing", *sys.argv[1:]])
    try:
        return carry_out(made, out, engine=engine, progress=told, resume=resume, command=command)
    finally:
        if bar.live.is_started:
            bar.stop()


def _tell(found: Any, out: Path, as_json: bool) -> None:
    """The table, to the terminal; failures to stderr."""
    from json import loads

    from rich.console import Console

    if as_json:
        told = {"out": str(out), "rows": len(found.rows), "failures": len(found.failures)}
        _print_json(told | {"table": loads(found.table().to_json())})
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(found.table().to_terminal())
        typer.echo(f"{len(found.rows)} answers in {out}; seeing table {out}, seeing report {out}")
    if len(found.failures):
        reasons = found.failures["reason"].value_counts()
        typer.echo(f"{len(found.failures)} failed:", err=True)
        for reason, count in reasons.head(5).items():
            typer.echo(f"  {count} × {reason:.200}", err=True)


def _print_json(told: Any) -> None:
    from json import dumps

    typer.echo(dumps(told, ensure_ascii=False, default=str))
