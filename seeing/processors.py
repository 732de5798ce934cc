"""The processor of a checkpoint, for pictures only, also where torchvision is not installed.

Many processors of transformers hold a video part, which can't be built without torchvision, and some an
audio part. This toolkit shows models pictures, so both parts may be left out: `images_only` makes of a
processor class one that neither asks for them nor saves them, and is otherwise the same. It keeps the name
of its class, so what it saves is an ordinary checkpoint.

Traps. ``PixtralProcessor`` needs one function of a module that imports torchvision; the module's PIL twin
has the same function. ``SmolVLMProcessor`` refuses to be made without ``num2words``, which only its videos
use. ``from_pretrained`` reads the parameters of ``__init__`` from its code and hands the parts over by
place: the signature must stay, and the parts left out stand there as None.
"""

from __future__ import annotations

import functools
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.utils import cached_file, is_torchvision_available

_PARTS = ("tokenizer", "image_processor")
#: Files of before transformers 5 that hold settings of every part.
_LEGACY = ("preprocessor_config.json", "video_preprocessor_config.json")


class ImagesOnly(ProcessorMixin):
    """What stands between a processor class and ``ProcessorMixin``, and takes a tokenizer and pictures only."""

    def __init__(self, *args: Any, **kwargs: Any):
        given = dict(zip(super().get_attributes(), args)) | kwargs
        left_out = set(super().get_attributes()) - set(self.get_attributes())
        super().__init__(**{name: part for name, part in given.items() if name not in left_out})

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts it holds."""
        return [name for name in super().get_attributes() if name in _PARTS]

    @classmethod
    def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
        parts = dict(zip(cls.get_attributes(), super()._get_arguments_from_pretrained(*args, **kwargs)))
        return [parts.get(name) for name in super().get_attributes()]


@functools.cache
def images_only(base: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """``base`` without its video and audio parts: the same class name, the same files."""
    if issubclass(base, ImagesOnly):
        return base

    @functools.wraps(base.__init__)
    def init(self, *args: Any, **kwargs: Any):
        parts = dict.fromkeys(name for name in ProcessorMixin.get_attributes.__func__(base) if name not in _PARTS)
        base.__init__(self, *args, **kwargs)

    made = type(base.__name__, (base, ImagesOnly), {"__module__": base.__module__, "__doc__": base.__doc__})
    return made
