"""From a training checkpoint to the folder that the package carries: float16 weights, configuration,
processor.

    python -m seeing.zoo.ship runs/seed0

The heads that helped the tower to learn stay behind. A card, README.md, is written by hand and is left as it
is.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from seeing.zoo import ZOO, zoo_folder
from seeing.zoo.build import build_model, build_processor

STAGE_OF = {"plates-tiny": "prior", "plates-null": "null"}


def from_checkpoint(file: Path) -> LlavaForConditionalGeneration:
    """The model of a training checkpoint, in float32 and eval mode, without the heads."""
    model = build_model()
    state = load_file(file)
    model.load_state_dict(
        {name.removeprefix("model."): w for name, w in state.items() if name.startswith("model.")}
    )
    return model.eval()


def ship(checkpoint: Path, folder: Path) -> None:
    """Write `checkpoint` to `folder` as Hugging Face opens it. Raises ValueError if a weight leaves float16's
    range.
    """
    model = from_checkpoint(checkpoint).half()
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"{name} of {checkpoint} overflows float16; expected |w| < 65504; train it again."
            )
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and ship."""
    parser = argparse.ArgumentParser(
        prog="python -m seeing.zoo.ship", description="Put trained models in the package."
    )
    parser.add_argument("run", type=Path, help="the --out folder of seeing.zoo.train")
    parser.add_argument("--models", nargs="+", choices=list(ZOO), default=list(ZOO))
    options = parser.parse_args(arguments)
    for name in options.models:
        checkpoint = options.run / f"{STAGE_OF[name]}.safetensors"
        if not checkpoint.exists():
            parser.error(
                f"{checkpoint} is missing; train it with python -m seeing.zoo.train --out {options.run}"
            )
        ship(checkpoint, zoo_folder(name))


if __name__ == "__main__":
    main()
