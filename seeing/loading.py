"""`load`: from a name, a folder or a pair to a model under the vocabulary, proved."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from nnsight.modeling.tp import UnsupportedParallelStyle
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from seeing.families import FamilyContractError, UnknownFamily, find, find_for, named, supported
from seeing.processors import open_processor
from seeing.proof import prove
from seeing.shards import CannotSplit, split_as_said
from seeing.vlm import VLM
from seeing.zoo import ZOO, open_zoo, zoo_folder

#: Keyword arguments of ``from_pretrained`` that say where a checkpoint is, not how to open its weights.
_WHERE = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only")

#: Original releases, whose configuration or code is not transformers' own, and a checkpoint that is.
_ORIGINALS = {
    "internvl_chat": "OpenGVLab/InternVL3_5-8B-HF",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "llava_llama": "llava-hf/llava-1.5-7b-hf",
    "llava_mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava_qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "qwen": "Qwen/Qwen2-VL-7B-Instruct",
    "chatglm": "zai-org/GLM-4.1V-9B-Thinking",
}

#: Owners on the hub whose own releases are not in transformers' format, and a checkpoint that is.
_ORIGINAL_OWNERS = {
    "OpenGVLab": "OpenGVLab/InternVL3_5-8B-HF",
    "liuhaotian": "llava-hf/llava-1.5-7b-hf",
    "lmms-lab": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
}

#: What transformers raises on files that are absent, broken, or say something else than it expects.
_BROKEN = (
    OSError,
    ValueError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    AssertionError,  # torch, of a device that it was not built for
    AttributeError,
    KeyError,
    TypeError,
)


class CannotLoad(ValueError):
    """A model that is not there, or that is not a vision-language model."""


def load(
    x: str | PathLike | tuple[nn.Module, Any], check: bool = True, family: str | None = None, **kwargs: Any
) -> VLM:
    """A `VLM` from ``x``, whose view has been proved on the model at hand.

    Args:
        x: the name of an embedded model ("plates-tiny"), a folder that ``save_pretrained`` wrote, a
            Hugging Face hub id, or a (model, processor) pair.
        check: run the proof at load (five forwards of one small prompt). Turn it off for a model
            that a proof in this process already covered.
        family: the name of the family to read the model with, instead of the one that its model_type
            says; "generic" resolves the modules by their kind, and the proof decides.
        kwargs: for ``from_pretrained`` (dtype, device_map, tp_plan, revision, attn_implementation,
            quantization_config, …). Weights are read from safetensors only, and remote code is not run
            unless ``trust_remote_code=True``.

    Raises:
        CannotLoad: no such model, or one that transformers can't open as image-text-to-text.
        UnknownFamily: a model_type that no family reads, or no family of this name.
        FamilyContractError: the family's view does not hold on this model.
    """
    chosen = None if family is None else named(family)
    model, processor = _open(x, kwargs, known=chosen is not None)
    reader = chosen or find(model)
    try:
        _order_places(model)
        vlm = VLM(model.eval(), processor, reader)
        if check:
            prove(vlm)
    except UnsupportedParallelStyle as error:
        raise CannotLoad(
            f"this {type(model).__name__} is split so that names can't be read: {error}"
        ) from error
    except RuntimeError as error:
        if isinstance(error, FamilyContractError) or "DTensor" not in str(error):
            raise
        raise CannotLoad(
            f"transformers can't run this {type(model).__name__} as its plan splits it: {error}; a "
            f"dictionary keeps modules whole, tp_plan={{'model.language_model.embed_tokens': 'replicate'}}"
        ) from error
    except (AttributeError, KeyError, IndexError, StopIteration) as error:
        raise FamilyContractError(
            f"family {reader.name!r} does not fit this {type(model).__name__}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return vlm


def _open(x: Any, kwargs: dict[str, Any], known: bool) -> tuple[nn.Module, Any]:
    if isinstance(x, tuple):
        if len(x) != 2 or not isinstance(x[0], nn.Module):
            raise CannotLoad(
                f"a pair is (model, processor), got ({', '.join(type(one).__name__ for one in x)})"
            )
        if not _is_processor(x[1]):
            raise CannotLoad(
                f"the processor of a pair holds a tokenizer and an image_processor (a LlavaProcessor, say), "
                f"got {type(x[1]).__name__}"
            )
        if kwargs:
            raise CannotLoad(f"a model that is loaded already takes no {', '.join(kwargs)}")
        return x
    if not isinstance(x, (str, PathLike)):
        raise CannotLoad(f"load takes a name, a folder or a (model, processor) pair, got {type(x).__name__}")
    where = str(x)
    if x in ZOO:
        return _open_embedded(where, kwargs)
    _check_place(where, bool(kwargs.get("trust_remote_code")))
    # Said rather than left open: transformers would ask at the terminal.
    kwargs = {"trust_remote_code": False} | kwargs
    shared = {key: kwargs[key] for key in _WHERE if key in kwargs}
    try:
        _check_release(where, shared)
        # Before gigabytes of weights are read: is it a kind that a family speaks for?
        config = AutoConfig.from_pretrained(where, **shared)
        if not known:
            find_for(config)
        kwargs = _between_processes(where, config, kwargs)
        processor = open_processor(where, config, **shared)
        if not _is_processor(processor):
            raise CannotLoad(
                f"{where!r} gives no processor for text and pictures: it opened as "
                f"{type(processor).__name__}, expected a tokenizer and an image_processor in one; "
                f"open the two and load (model, processor)"
            )
        model, report = AutoModelForImageTextToText.from_pretrained(
            where, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except (UnknownFamily, CannotLoad):
        raise
    except _BROKEN as error:
        raise CannotLoad(
            f"can't load {where!r}: {_first_line(error)} (the embedded models are {', '.join(ZOO)}; "
            f"otherwise give a folder that save_pretrained wrote, or a hub id)"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CannotLoad(
            f"{where!r} lacks {len(missing)} weights, first {missing[0]!r}: they would be random numbers"
        )
    return model, processor


def _between_processes(where: str, config: PreTrainedConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs`` with what they say of sharing the model between processes put as transformers takes it."""
    try:
        return split_as_said(config, kwargs)
    except CannotSplit as error:
        raise CannotLoad(f"can't load {where!r}: {error}") from error


def _order_places(model: nn.Module) -> None:
    """Put what runs first in the device map: its first place is taken for the model's device."""
    places = getattr(model, "hf_device_map", None)
    if not places:
        return
    if set(places.values()) == {"disk"}:
        raise CannotLoad(
            "a device map puts all of the model on disk, and nothing runs there: name a device too"
        )
    model.hf_device_map = dict(sorted(places.items(), key=lambda item: item[1] == "disk"))


def _open_embedded(name: str, kwargs: dict[str, Any]) -> tuple[nn.Module, Any]:
    try:
        config = AutoConfig.from_pretrained(zoo_folder(name))
        return open_zoo(name, **_between_processes(name, config, kwargs))
    except CannotLoad:
        raise
    except _BROKEN as error:
        if not kwargs:  # then nothing of the caller's can be wrong
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise CannotLoad(f"can't load {name!r} with {given:.200}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _check_place(where: str, trusting: bool) -> None:
    """A folder of a model, or what may be a hub id."""
    if _exists(where):
        if not (Path(where) / "config.json").is_file():
            own = (Path(where) / "params.json").is_file()
            raise CannotLoad(
                f"{where!r} is no folder of a saved model: it holds no config.json"
                + (
                    " but Mistral's own params.json; take a checkpoint in transformers' format, such as "
                    "'mistral-community/pixtral-12b'"
                    if own
                    else "; give the folder that save_pretrained wrote"
                )
            )
    elif where.count("/") != 1 or where.startswith((".", "/", "~")):
        raise CannotLoad(
            f"no model {where[:200]!r}: no such folder, and not an embedded model ({', '.join(ZOO)}); "
            f"a hub id looks like 'llava-hf/llava-1.5-7b-hf'"
        )
    else:
        # Said from the id alone: to ask the hub first takes a while, and a connection.
        owner, _, name = where.partition("/")
        like = _ORIGINAL_OWNERS.get(owner)
        if like is not None and not name.lower().endswith("-hf") and not trusting:
            raise CannotLoad(
                f"{where!r} is an original release, for its authors' own code; expected a checkpoint for "
                f"transformers' own classes: take its '-hf' kind, such as {like!r}"
            )


def _check_release(where: str, shared: dict[str, Any]) -> None:
    """Refuses a release for its authors' own code, and names one that transformers' classes read."""
    config, _ = PreTrainedConfig.get_config_dict(where, **shared)
    if not isinstance(config, dict):
        raise ValueError(f"its config.json holds a {type(config).__name__}, expected an object of settings")
    kind = config.get("model_type")
    # The original LLaVA calls itself "llava" too, and would open with the default sizes of another model.
    original_llava = "mm_vision_tower" in config
    foreign = kind not in CONFIG_MAPPING and ("auto_map" in config or kind in _ORIGINALS)
    if not original_llava and (not foreign or shared.get("trust_remote_code")):
        return
    like = _ORIGINALS.get(kind)
    raise CannotLoad(
        f"{where!r} is an original release (model_type {kind!r}), for its authors' own code; expected a "
        f"checkpoint for transformers' own classes: take its '-hf' kind"
        + (f", such as {like!r}" if like else f", of one of the families {', '.join(supported())}")
    )


def _is_processor(processor: Any) -> bool:
    return hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")


def _exists(where: str) -> bool:
    try:
        return Path(where).exists()
    except OSError:  # longer than any file system takes
        return False
