"""The processor of a checkpoint, for pictures only, also where torchvision is not installed.

Many processors of transformers hold a video part, which can't be built without torchvision, and some an
audio part. This toolkit shows models pictures, so both may be left out: `images_only` makes of a processor
class one that neither asks for them nor saves them, and is otherwise the same. It keeps the class's name,
so that what it saves is an ordinary checkpoint.

Traps. ``from_pretrained`` reads the parameters off the code of ``__init__`` and hands the parts over by
place, so the signature has to stay, with None for a part that is left out. ``PixtralProcessor`` needs one
function of a module that imports torchvision; the module's PIL twin has the same function.
``SmolVLMProcessor`` refuses to be made without ``num2words``, which only its videos need, and asks its video
part whenever a chat template is applied.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType
from typing import Any

from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.utils import cached_file, is_torchvision_available

_PARTS = ("tokenizer", "image_processor")
#: Where a processor's class may be named, in the order of `AutoProcessor`.
_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def open_processor(where: str, config: PreTrainedConfig, **shared: Any) -> Any:
    """The processor saved at ``where``, a folder or hub id: all of it, or what pictures need of it.

    Its video and audio parts are left out without torchvision, and where the checkpoint has none (it was
    saved by a processor without them).

    Args:
        config: the model's, for a checkpoint that does not name its processor's class.
        shared: what ``from_pretrained`` takes to find files (revision, cache_dir, token, …).
    """
    files = {name: _read(where, name, shared) for name in (*_NAMED_IN, "video_preprocessor_config.json")}
    if not is_torchvision_available() or _has_pictures_only(files):
        base = _processor_class(files, config, shared)
        if base is not None:
            return images_only(base).from_pretrained(where, **shared)
    return AutoProcessor.from_pretrained(where, **shared)


class ImagesOnly(ProcessorMixin):
    """Stands between a processor class and ``ProcessorMixin``, and lets a tokenizer and pictures through."""

    def __init__(self, *args: Any, **kwargs: Any):
        given = dict(zip(super().get_attributes(), args)) | kwargs
        left_out = set(super().get_attributes()) - set(self.get_attributes())
        super().__init__(**{name: part for name, part in given.items() if name not in left_out})
        for word in ("boa_token", "eoa_token"):
            if getattr(self, word, "") is None:
                setattr(self, word, "")  # Gemma 4 asks for the words around a sound also where there is none

    def __reduce__(self):
        # Its class is made at run time, so a pickle keeps the one it was made from.
        return _blank, (type(self).__bases__[0],), self.__dict__

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
    """``base`` without its video and audio parts, for which its ``__init__`` takes None."""
    if set(base.get_attributes()) <= set(_PARTS):
        return base
    body = {"__module__": base.__module__, "__doc__": base.__doc__}
    init = base.__init__
    if init.__globals__.get("num2words", True) is None:
        # The same code in a room where the package is there: videos would need it, and there are none.
        body["__init__"] = FunctionType(
            init.__code__,
            init.__globals__ | {"num2words": True},
            init.__name__,
            init.__defaults__,
            init.__closure__,
        )
    if "video_processor" in inspect.unwrap(base.apply_chat_template).__code__.co_names:
        # SmolVLM's asks the video part how many frames, also of a conversation without a video.
        body["apply_chat_template"] = ProcessorMixin.apply_chat_template
    return type(base.__name__, (base, ImagesOnly), body)


def _blank(base: type[ProcessorMixin]) -> ProcessorMixin:
    made = images_only(base)
    return made.__new__(made)


def _read(where: str, name: str, shared: dict[str, Any]) -> dict[str, Any]:
    places = {key: value for key, value in shared.items() if key != "trust_remote_code"}
    path = cached_file(where, name, _raise_exceptions_for_missing_entries=False, **places)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except ValueError as error:
            raise ValueError(f"{name} is not a valid JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds a {type(found).__name__}, a JSON object is expected")
    return found


def _has_pictures_only(files: dict[str, dict[str, Any]]) -> bool:
    """Whether a processor without video and audio parts saved these files (the way of transformers 5)."""
    written = files["processor_config.json"]
    return (
        "image_processor" in written
        and not {"video_processor", "feature_extractor", "audio_processor"} & written.keys()
        and not files["preprocessor_config.json"]
        and not files["video_preprocessor_config.json"]
    )


def _processor_class(
    files: dict[str, dict[str, Any]], config: PreTrainedConfig, shared: dict[str, Any]
) -> type[ProcessorMixin] | None:
    """The class of transformers for this checkpoint; None for code of its own, or where there is none."""
    for name in _NAMED_IN:
        if shared.get("trust_remote_code") and "AutoProcessor" in files[name].get("auto_map", {}):
            return None
    named = [files[name]["processor_class"] for name in _NAMED_IN if files[name].get("processor_class")]
    name = named[0] if named else PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if name is None:
        return None
    found = processor_class_from_name(name)
    return _behind(name) if getattr(found, "is_dummy", False) else found


def _behind(name: str) -> type[ProcessorMixin]:
    """The class for which transformers shows a dummy that asks for torchvision."""
    kinds = [kind for kind, processor in PROCESSOR_MAPPING_NAMES.items() if processor == name]
    for kind in dict.fromkeys(map(model_type_to_module_name, kinds)):
        package = f"transformers.models.{kind}"
        pictures, twin = f"{package}.image_processing_{kind}", f"{package}.image_processing_pil_{kind}"
        if find_spec(f"{package}.processing_{kind}") is None or find_spec(twin) is None:
            continue
        # The twin stands in for as long as the import takes: nobody else gets it for the other.
        sys.modules[pictures] = import_module(twin)
        try:
            return getattr(import_module(f"{package}.processing_{kind}"), name)
        finally:
            del sys.modules[pictures]
    raise ImportError(f"{name} can't be had without torchvision: install it (pip install torchvision)")
