"""The embedded models: weights and processors that come with the package, so that everything runs with no
download.

They are test beds. Their task and their training were chosen so that seeing and believing come apart in a
model that trains in half an hour; what happens in them is no evidence about large models. Each folder's
README.md is its card.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

ZOO: Mapping[str, str] = MappingProxyType(
    {
        "plates-tiny": "reads the digit on a coloured shape; digits often followed a table in training",
        "plates-null": "the same without the table: the null case",
    }
)


def zoo_folder(name: str) -> Path:
    """Where an embedded model lies. Raises ValueError for a name that is not in ZOO."""
    if name not in ZOO:
        raise ValueError(f"no embedded model {name!r}; expected one of {', '.join(ZOO)}; pick one of these.")
    return Path(__file__).parent / name


def open_zoo(name: str, **kwargs: Any) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model, in eval mode, and its processor.

    Weights are stored in float16 and opened in float32, unless `dtype` says otherwise; `kwargs` go to the
    model's `from_pretrained`. Raises ValueError for a name that is not in ZOO.
    """
    folder = zoo_folder(name)
    options = {"dtype": torch.float32} | kwargs
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, **options
    )
    processor = LlavaProcessor.from_pretrained(folder, local_files_only=True)
    return model.eval(), processor
