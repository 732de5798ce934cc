"""`seeing ask`: one question to one picture, with and without a method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from seeing.cli.knowing import Known, known, profile_file
from seeing.cli.options import (
    AsJson,
    Attn,
    Calibration,
    Check,
    DeviceMap,
    Dtype,
    Model,
    ProfileFile,
    Prompted,
    Revision,
)
from seeing.cli.terminal import UserError, console, load, mistakes, positive, show_json, writable_file

if TYPE_CHECKING:
    from PIL import Image

    from seeing.prompt import Prompt
    from seeing.show.look import PictureLook
    from seeing.vlm import VLM, Answer

#: What --out may be.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".html")


def ask(
    image: Annotated[Path, typer.Argument(help="A picture on disk.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Model = "plates-tiny",
    method: Annotated[
        list[str] | None,
        typer.Option(help="Ask under a method too, or several; see [bold]seeing methods[/bold]."),
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(metavar="X0,Y0,X1,Y1", help="The evidence, in pixels; or several.")
    ] = None,
    profile: ProfileFile = None,
    calibration: Calibration = None,
    template: Prompted = "qa",
    out: Annotated[
        Path | None, typer.Option(help="Write what the model looked at: .png, .jpg, .webp or .html.")
    ] = None,
    top: Annotated[int, typer.Option(help="First tokens to show.")] = 3,
    seed: Annotated[int, typer.Option(help="Of methods that draw.")] = 0,
    as_json: AsJson = False,
    revision: Revision = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    attn: Attn = None,
    check: Check = True,
) -> None:
    """Put a question to a picture from disk, with and without a method.

    The answer is printed; with --method, answers side by side with their log-probabilities. --out writes the
    picture under the attention of the layers that look best (those of the profile), and what a method that
    highlights showed.
    """
    positive("--top", top)
    if out is not None:
        writable_file(out, *PICTURES)
    profile_file(profile)
    boxes = [_box(one) for one in box or ()]

    from seeing.data.images import load_image
    from seeing.data.opening import open_data
    from seeing.methods import parse_methods

    with mistakes():
        picture = load_image(image)
        named = parse_methods(",".join(method)) if method else ()
        data = None if calibration is None else open_data(calibration)
    vlm = load(model, revision, dtype, device_map, attn, check)
    asked_in = None if template == "plain" else template
    with mistakes():
        prompt = vlm.prompt(picture, question, boxes or None, asked_in)
    needs = frozenset().union(*(one.needs for one in named))
    what = known(vlm, model, profile, data, asked_in, needs=needs)
    with mistakes():
        given = [Given("base", vlm.answer(prompt)), *(_under(vlm, one, what, prompt, seed) for one in named)]
    first = _first(vlm, prompt, top)
    looked = _look(vlm, prompt, what) if as_json or out is not None or boxes else None
    if out is not None:
        _draw(out, question, given, looked, picture, boxes, what)
    if as_json:
        show_json(_told(vlm, model, image, question, template, given, first, looked, what, out))
        return
    _say(vlm, given, first, looked, boxes, what)
    if out is not None:
        typer.echo(f"{out} written", err=True)


class Given(NamedTuple):
    """An answer, and the picture that it was given to, where a method changed it."""

    method: str
    answer: Answer
    shown: Image.Image | None = None


def _box(text: str) -> tuple[float, ...]:
    try:
        edges = tuple(float(one) for one in text.split(","))
    except ValueError:
        edges = ()
    if len(edges) != 4:
        raise UserError(f"--box is X0,Y0,X1,Y1 in pixels of the picture, got {text!r}")
    return edges


def _under(vlm: VLM, named: Any, what: Known, prompt: Prompt, seed: int) -> Given:
    """The answer under a method, whose prompt is the plain one unless it asks in another."""
    if "boxes" in named.needs and not prompt.turns[0].boxes:
        raise UserError(f"method {named.text!r} looks at the evidence: give it, --box X0,Y0,X1,Y1")
    made = named.build(vlm, what.profile, seed, what.samples)
    own = prompt if made.template == "qa" else prompt.with_template(made.template)
    answer = made.method.answer(vlm, own)
    shown = None
    if hasattr(made.method, "shown"):
        edited, asked = made.method.shown(vlm, own)
        found = edited.shown(asked).turns[0].images[0]
        shown = None if found is own.turns[0].images[0] else found
    return Given(named.text, answer, shown)


def _first(vlm: VLM, prompt: Prompt, top: int) -> list[tuple[str, float]]:
    """The most likely first tokens of the plain model."""
    probabilities = vlm.cache(prompt, "logits")["logits"][0, -1].float().softmax(-1)
    best = probabilities.topk(min(top, len(probabilities)))
    words = [vlm.processor.tokenizer.decode([token]) for token in best.indices.tolist()]
    return list(zip(words, best.values.tolist()))


def _look(vlm: VLM, prompt: Prompt, what: Known) -> PictureLook:
    """Where the plain model looks: in the profile's layers, or in the second half of all."""
    from seeing.edits.layers import attention_layers
    from seeing.show.look import look

    with mistakes(ValueError):
        heads = what.profile.heads() if hasattr(what.profile, "heads") else None
        return look(vlm, prompt, what.layers or attention_layers("deep", vlm), heads)


def _source(what: Known) -> str:
    return what.source or "the second half, no profile"


def _tokens(vlm: VLM, answer: Answer) -> list[tuple[str, float]]:
    words = [vlm.processor.tokenizer.decode([token]) for token in answer.ids.tolist()]
    return list(zip(words, answer.token_logprobs.tolist()))


def _say(vlm: VLM, given: list[Given], first, looked, boxes: list, what: Known) -> None:
    if len(given) == 1:
        typer.echo(str(given[0].answer))
    else:
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for column in ("method", "answer", "log p", "log p of each token"):
            table.add_column(column, justify="right" if column == "log p" else "left", overflow="fold")
        for one in given:
            each = "  ".join(f"{word!r} {value:.2f}" for word, value in _tokens(vlm, one.answer))
            cells = (one.method, str(one.answer), f"{one.answer.logprob:.2f}", each)
            table.add_row(*map(Text, cells))
        console().print(table)
    words = ", ".join(f"{word!r} {p:.0%}" for word, p in first)
    typer.echo(f"first token: {words}", err=True)
    if boxes and looked.evidence_auroc is not None:
        where = f"layers {', '.join(map(str, looked.layers))} ({_source(what)})"
        typer.echo(f"evidence AUROC {looked.evidence_auroc:.2f} in {where}", err=True)


def _told(vlm, model, image, question, template, given, first, looked, what, out) -> dict[str, Any]:
    return {
        "model": model,
        "image": str(image),
        "question": question,
        "template": template,
        "answers": [
            {
                "method": one.method,
                "answer": str(one.answer),
                "logprob": one.answer.logprob,
                "tokens": [{"token": word, "logprob": value} for word, value in _tokens(vlm, one.answer)],
            }
            for one in given
        ],
        "first": [{"token": word, "probability": p} for word, p in first],
        "look": {
            "layers": list(looked.layers),
            "from": _source(what),
            "evidence_auroc": looked.evidence_auroc,
            "region": looked.region,
        },
        "out": None if out is None else str(out),
    }


def _draw(out, question, given, looked, picture, boxes, what: Known) -> None:
    """The panels: what was looked at, then the pictures that methods showed instead."""
    from seeing.show.looked import Panel, write_looked

    layers = ", ".join(map(str, looked.layers))
    answers = "; ".join(f"{one.method}: {one.answer}" for one in given if one.shown is None)
    caption = f"Attention of layers {layers} ({_source(what)}). {answers}"
    panels = [Panel(caption, picture, looked.heat, boxes, looked.region)]
    panels += [
        Panel(f"As {one.method} showed it. {one.method}: {one.answer}", one.shown, boxes=boxes)
        for one in given
        if one.shown is not None
    ]
    with mistakes(OSError):
        write_looked(panels, out, question)
