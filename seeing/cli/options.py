"""Options that several commands have, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# ---- the model ---------------------------------------------------------------------------------

Model = Annotated[str, typer.Option(help="Embedded model, folder or hub id.")]
Revision = Annotated[str | None, typer.Option(help="Of the model, on the hub.")]
Dtype = Annotated[str | None, typer.Option(help="Of the weights: bfloat16, float32 …")]
DeviceMap = Annotated[str | None, typer.Option(help="Where the weights go: auto, cuda, cpu.")]
Attn = Annotated[str | None, typer.Option(help="Attention kernel: sdpa, flash_attention_2, eager.")]
Check = Annotated[bool, typer.Option(help="Prove the view of the model when it is loaded.")]

# ---- the data ----------------------------------------------------------------------------------

Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="A .jsonl, .json, .csv, .tsv or .parquet file, a folder, hub:owner/name[:split], or plates:N.",
    ),
]
Images = Annotated[Path | None, typer.Option(help="The folder of the pictures.")]
Columns = Annotated[
    str | None,
    typer.Option(help="Which column is what: question=query,answers=label. 'width=' leaves one out."),
]
Split = Annotated[str | None, typer.Option(help="Which split, of a data set with several.")]
BoxFormat = Annotated[str | None, typer.Option(help="xyxy, xywh, or fraction (of the picture's sides).")]

# ---- what is asked, and what is said -----------------------------------------------------------

Prompted = Annotated[
    str,
    typer.Option(
        "--template",
        help="How a question is asked: qa, vea (the paper's prompts), plain, or a text with {question}.",
    ),
]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", help="A profile, as [bold]seeing profile[/bold] saves it.")
]
Calibration = Annotated[
    str | None, typer.Option(metavar="DATA", help="Data to profile the model on, where there is no profile.")
]
Rows = Annotated[int, typer.Option(help="Samples that run together.")]
AsJson = Annotated[bool, typer.Option("--json", help="Say it as JSON.")]
