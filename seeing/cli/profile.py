"""`seeing profile`: which layers and heads of a model look at the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seeing.cli.data import opened
from seeing.cli.options import (
    AsJson,
    Attn,
    BoxFormat,
    Check,
    Columns,
    Data,
    DeviceMap,
    Dtype,
    Images,
    Model,
    Prompted,
    Revision,
    Rows,
    Split,
)
from seeing.cli.terminal import (
    UserError,
    console,
    load,
    mistakes,
    positive,
    readable,
    show_json,
    writable_file,
)


def profile(
    model: Model,
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to save it, for --profile of other commands.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Samples to look at; the paper took about 100.")] = 100,
    top: Annotated[float, typer.Option(help="The share of layers, and of heads, to keep.")] = 0.1,
    figure: Annotated[Path | None, typer.Option(help="Draw AUROC by layer and head: .html.")] = None,
    template: Prompted = "qa",
    rows: Rows = 32,
    images: Images = None,
    columns: Columns = None,
    split: Split = None,
    box_format: BoxFormat = None,
    as_json: AsJson = False,
    revision: Revision = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    attn: Attn = None,
    check: Check = True,
) -> None:
    """Profile a model on samples with evidence boxes: the layers, and heads, whose attention finds them.

    The share --top of the layers with the highest mean AUROC is what VEA reads. Samples of a profile should
    not be among those that a method is later judged on.
    """
    positive("--rows", rows)
    if not 0 < top <= 1:
        raise UserError(f"--top is a share above 0, at most 1; got {top}")
    for path, kinds in ((out, (".json",)), (figure, (".html",))):
        if path is not None:
            writable_file(path, *kinds)
    found = opened(data, images, columns, split, box_format, limit)
    vlm = load(model, revision, dtype, device_map, attn, check)

    from seeing import probes

    with mistakes(ValueError):
        made = probes.profile(
            vlm,
            readable(found),
            top,
            data=found.name,
            template=None if template == "plain" else template,
            batch_size=rows,
        )
    if out is not None:
        made.save(out)
    if figure is not None:
        made.figure().write_html(figure)
    show_json(_told(made, out)) if as_json else _say(made)
    for path in (out, figure):
        if path is not None:
            typer.echo(f"{path} written", err=True)


def _told(made, out: Path | None) -> dict:
    return {
        "layers": list(made.layers),
        "auroc": made.auroc_layers[list(made.layers)].mean().item(),
        "auroc_all": made.auroc_layers.nanmean().item(),
        "auroc_layers": made.auroc_layers.tolist(),
        "heads": [[layer, head, score] for layer, head, score in _best(made)],
        "n": made.n,
        "left_out": dict(made.left_out),
        "out": None if out is None else str(out),
    }


def _best(made) -> list[tuple[int, int, float]]:
    """The heads that are kept, the best first."""
    kept = sum(map(len, made.best_heads.values()))
    return made.scores.ranking()[:kept]


def _say(made) -> None:
    told = _told(made, None)
    screen = console()
    layers = ", ".join(map(str, made.layers))
    screen.print(f"layers {layers}: AUROC {told['auroc']:.3f}, over all layers {told['auroc_all']:.3f}")
    screen.print("heads " + ", ".join(f"{layer}.{head} {score:.3f}" for layer, head, score in _best(made)))
    screen.print(f"{made.n} samples")
    for reason, count in made.left_out.items():
        screen.print(f"{count} left out: {reason}", markup=False)
