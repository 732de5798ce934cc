"""`load`: from a name, a folder or a pair to a model under the vocabulary, proved."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from seeing.families import UnknownFamily, find, find_for
from seeing.proof import prove
from seeing.vlm import VLM
from seeing.zoo import ZOO, open_zoo

#: Keyword arguments of ``from_pretrained`` that say where a checkpoint is, not how to open its weights.
_WHERE = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only")


class CannotLoad(ValueError):
    """A model that is not there, or that is not a vision-language model."""


def load(x: str | PathLike | tuple[nn.Module, Any], check: bool = True, **kwargs: Any) -> VLM:
    """A `VLM` from ``x``, whose view has been proved on the model at hand.

    Args:
        x: the name of an embedded model ("plates-tiny"), a folder that ``save_pretrained`` wrote, a
            Hugging Face hub id, or a (model, processor) pair.
        check: run the proof at load (six forwards of one small prompt). Turn it off for a model
            that a proof in this process already covered.
        kwargs: for ``from_pretrained`` (dtype, device_map, revision, attn_implementation, …). Weights
            are read from safetensors only, and remote code is not run unless ``trust_remote_code=True``.

    Raises:
        CannotLoad: no such model, or one that transformers can't open as image-text-to-text.
        UnknownFamily: a model_type that no family reads.
        FamilyContractError: the family's view does not hold on this model.
    """
    model, processor = _open(x, kwargs)
    family = find(model)
    vlm = VLM(model.eval(), processor, family)
    if check:
        prove(vlm)
    return vlm


def _open(x: Any, kwargs: dict[str, Any]) -> tuple[nn.Module, Any]:
    if isinstance(x, tuple):
        if len(x) != 2 or not isinstance(x[0], nn.Module):
            raise CannotLoad(
                f"a pair is (model, processor), got ({', '.join(type(one).__name__ for one in x)})"
            )
        if not (hasattr(x[1], "tokenizer") and hasattr(x[1], "image_processor")):
            raise CannotLoad(
                f"the processor of a pair holds a tokenizer and an image_processor (a LlavaProcessor, say), "
                f"got {type(x[1]).__name__}"
            )
        if kwargs:
            raise CannotLoad(f"a model that is loaded already takes no {', '.join(kwargs)}")
        return x
    if not isinstance(x, (str, PathLike)):
        raise CannotLoad(f"load takes a name, a folder or a (model, processor) pair, got {type(x).__name__}")
    if x in ZOO:
        return open_zoo(x, **kwargs)
    where = str(x)
    if _exists(where) and not (Path(where) / "config.json").is_file():
        raise CannotLoad(f"{where!r} is no folder of a saved model: it holds no config.json")
    if not _exists(where) and (where.count("/") != 1 or where.startswith((".", "/", "~"))):
        raise CannotLoad(
            f"no model {where[:200]!r}: no such folder, and not an embedded model ({', '.join(ZOO)}); "
            f"a hub id looks like 'llava-hf/llava-1.5-7b-hf'"
        )
    shared = {key: kwargs[key] for key in _WHERE if key in kwargs}
    try:
        # Before gigabytes of weights are read: is it a kind that a family speaks for?
        config = AutoConfig.from_pretrained(where, **shared)
        find_for(config)
        processor = AutoProcessor.from_pretrained(where, **shared)
        model, report = AutoModelForImageTextToText.from_pretrained(
            where, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except UnknownFamily:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CannotLoad(
            f"can't load {where!r}: {reason} (the embedded models are {', '.join(ZOO)}; otherwise give a "
            f"folder that save_pretrained wrote, or a hub id)"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CannotLoad(
            f"{where!r} lacks {len(missing)} weights, first {missing[0]!r}: they would be random numbers"
        )
    return model, processor


def _exists(where: str) -> bool:
    try:
        return Path(where).exists()
    except OSError:  # longer than any file system takes
        return False
