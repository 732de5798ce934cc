"""`seeing ask`: one question to one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seeing.cli.terminal import UserError, load


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
    vlm = load(model)
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
