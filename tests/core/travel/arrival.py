"""The side that has a saved model and no library: runs what was sent, with nnsight alone.

Run as a program: ``arrival.py FOLDER``. For each case it leaves what was saved, or the error (``case.out``).
"""

import sys

HIDDEN = (
    "seeing",
    "scipy",
    "jaxtyping",
    "beartype",
    "einops",
    "pandas",
    "pyarrow",
    "plotly",
    "typer",
    "rich",
)
sys.modules.update(dict.fromkeys(HIDDEN))  # None: importing it fails

from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from nnsight import TransformersModel  # noqa: E402
from nnsight.schema.request import RequestModel  # noqa: E402
from nnsight.tracing.globals import BLOCKS, SOURCES  # noqa: E402
from nnsight.tracing.tracer import dec, inc  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoTokenizer  # noqa: E402


def open_model(folder):
    if folder.parent.name != "packed":
        return TransformersModel(str(folder), task="image-text-to-text", dispatch=True)
    # Its processor has a part for videos, which needs torchvision; what runs has no use for it.
    model, tokens = AutoModelForImageTextToText.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return TransformersModel(model, task="image-text-to-text", processor=tokens)


def run(model, blob):
    inc()  # as a server does, so that save() marks what comes back
    for kept in (BLOCKS, SOURCES):
        kept.clear()  # a request before this one was of the same file, and holds another part of it
    try:
        tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects())
        with torch.no_grad():
            tracer.execute(tracer.info.code)
        found = tracer.info.frame.f_locals
        return {
            name: torch.stack(value) if isinstance(value, list) else value for name, value in found.items()
        }
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        dec()


def tensors(found):
    return (
        found if isinstance(found, str) else {k: v for k, v in found.items() if isinstance(v, torch.Tensor)}
    )


if __name__ == "__main__":
    for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        model = open_model(folder / "model")
        sys.modules["PIL"] = None  # the model's processor wanted it, a trace does not
        for case in sorted(folder.glob("*.blob")):
            torch.save(tensors(run(model, case.read_bytes())), case.with_suffix(".out"))
        del sys.modules["PIL"]
