"""Edits as JSON: data that travels, and is read back as the same values.

A value of a known kind is a table with its kind's name and its fields; a tensor stands beside the text, in
a safetensors file, or in the text as base64. Nothing is ever executed on reading: kinds are looked up
among those of this package, and made by their own constructors, which check what they are given.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from seeing.edits import (
    contrast,
    heads,
    image,
    layers,
    lens,
    patch,
    pattern,
    residual,
    scores,
    seen,
    select,
    sinks,
)
from seeing.edits.edit import Edit, Edits
from seeing.edits.moment import BadEdit
from seeing.edits.source import Source

#: What this code writes and reads.
VERSION = 1

#: How the file of the tensors ends.
TENSORS = ".safetensors"

#: Every kind of value that an edit may hold.
KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(
            scores.Bias,
            scores.ScaleAttention,
            scores.Knockout,
            scores.Temperature,
            scores.Amplify,
            scores.MapScores,
        ),
        *(
            pattern.ScalePattern,
            pattern.SetPattern,
            pattern.MapPattern,
            pattern.Redistribute,
            pattern.Attending,
        ),
        *(heads.AblateHeads, heads.ScaleHeads, heads.SetHeads),
        *(residual.Steer, residual.Rotate, residual.ProjectOut, residual.SetResidual),
        *(patch.Patch, Source, lens.MixLayers, contrast.Contrast, Edits),
        *(image.Highlight, image.Crop, image.Occlude, image.Noise),
        *(select.Span, select.Positions, select.Boxes, select.Both, select.Either, select.Not, select.Maybe),
        *(seen.Seen, sinks.Sinks, layers.Slice, layers.Around, layers.Steps),
    )
}


def to_json(edits: Edit | Edits, path: str | Path | None = None) -> str:
    """The edits as JSON text. See `Edits.to_json`."""
    tensors: dict[str, Tensor] = {}
    document: dict[str, Any] = {"version": VERSION, "edits": _written(edits, tensors)}
    if path is None:
        if tensors:
            document["tensors"] = base64.b64encode(save(tensors)).decode("ascii")
        return json.dumps(document, indent=1)
    beside = Path(path).with_suffix(TENSORS)
    if Path(path).suffix == TENSORS:
        raise BadEdit(f"{path} is the place of the edits' tensors; write the edits to {beside.stem}.json")
    if tensors:
        document["tensors_in"] = beside.name
        beside.write_bytes(save(tensors))
    text = json.dumps(document, indent=1)
    Path(path).write_text(text, encoding="utf-8")
    return text


def from_json(source: str | Path) -> Edit | Edits:
    """The edits that `to_json` wrote: from its text, or from the file that it wrote.

    Raises `BadEdit` for what is neither, for another version, and for what no edit is made of.
    """
    is_text = isinstance(source, str) and source.lstrip().startswith(("{", "[", '"'))
    text, folder = (source, None) if is_text else _text_of(source)
    try:
        return _edits_in(json.loads(text), folder)
    except json.JSONDecodeError as error:
        raise BadEdit(f"these are no edits in JSON: {error}") from error
    except RecursionError as error:
        raise BadEdit("these are no edits in JSON: values are nested too deeply") from error


def _text_of(source: Any) -> tuple[str, Path]:
    """The text of a file, and the folder that it lies in."""
    try:
        return Path(source).read_text(encoding="utf-8"), Path(source).parent
    except (OSError, TypeError, ValueError) as error:
        raise BadEdit(
            f"edits are read from the text that to_json gave, or from the path of its file; "
            f"{str(source)!r:.200} is neither: {error!s:.200}"
        ) from error


def _edits_in(document: Any, folder: Path | None) -> Edit | Edits:
    if not isinstance(document, dict) or "edits" not in document or "version" not in document:
        raise BadEdit("edits in JSON are an object with 'version' and 'edits'; this is none")
    if layers.whole(document["version"]) != VERSION:
        raise BadEdit(
            f"the edits are written in version {document['version']!r:.200}, this code reads {VERSION}"
        )
    found = _read(document["edits"], _tensors(document, folder))
    if not isinstance(found, (Edit, Edits)):
        raise BadEdit(f"what is read here is no edit but {found!r:.200}")
    return found


def _tensors(document: dict[str, Any], folder: Path | None) -> dict[str, Tensor]:
    if "tensors_in" in document:
        name = document["tensors_in"]
        if folder is None or not isinstance(name, str) or Path(name).name != name:
            raise BadEdit(f"the tensors of these edits are in {name!r}, beside the file: read it by its path")
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise BadEdit(f"the tensors of these edits are in {name!r}, beside the file: {error}") from error
    elif "tensors" in document:
        try:
            data = base64.b64decode(document["tensors"], validate=True)
        except (ValueError, TypeError) as error:
            raise BadEdit(f"the tensors of these edits are broken: {error}") from error
    else:
        return {}
    try:
        return load(data)
    except SafetensorError as error:
        raise BadEdit(f"the tensors of these edits are broken: {error}") from error


def _written(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_written(one, tensors) for one in value]
    if isinstance(value, (Tensor, np.ndarray)):
        name = f"t{len(tensors)}"
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        tensors[name] = (
            torch.as_tensor(np.array(value) if kind == "array" else value).detach().cpu().contiguous().clone()
        )
        return {"kind": kind, "name": name}
    if isinstance(value, np.generic):
        return value.item()
    kind = type(value).__name__
    if KINDS.get(kind) is type(value) and is_dataclass(value):
        held = {one.name: _written(getattr(value, one.name), tensors) for one in fields(value) if one.init}
        return {"kind": kind, **held}
    if isinstance(value, Callable):
        name = getattr(value, "__name__", kind)
        raise BadEdit(f"an edit with a function ({name}) can't be saved: functions are no data")
    raise BadEdit(f"a {kind} can't be saved: it is none of the kinds that edits are made of")


def _read(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_read(one, tensors) for one in value)
    if not isinstance(value, dict):
        return value
    held = dict(value)
    kind = held.pop("kind", None)
    if not isinstance(kind, str):
        raise BadEdit(f"a value in JSON has the name of its kind, this one {kind!r:.200}")
    if kind in ("tensor", "array"):
        if not isinstance(held.get("name"), str) or held["name"] not in tensors:
            raise BadEdit(f"the edits hold a tensor {held.get('name')!r} that is not among theirs")
        found = tensors[held["name"]]
        return found.numpy() if kind == "array" else found
    if kind not in KINDS:
        raise BadEdit(f"no edit is made of a {kind!r}; known are {', '.join(KINDS)}")
    given = {name: _read(one, tensors) for name, one in held.items()}
    return _made(KINDS[kind], given)


def _made(kind: type, given: dict[str, Any]) -> Any:
    """A value of a kind, by its constructor. Raises `BadEdit` for what the kind is not made of."""
    try:
        found = kind(**given)
    except BadEdit:
        raise
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise BadEdit(f"{kind.__name__} is not made of {', '.join(given)}: {error!s:.200}") from error
    if isinstance(found, Source):
        _check_source(found)
    return found


def _several(values: Any) -> tuple:
    return values if isinstance(values, tuple) else (None,)


def _check_source(source: Source) -> None:
    """Raise `BadEdit` for a source whose parts do not go together."""
    names, values = _several(source.names), _several(source.values)
    good = all(isinstance(name, str) for name in names) and all(isinstance(one, Tensor) for one in values)
    known = [source.spans, source.labels, source.chosen]
    if any(one is not None for one in known):
        spans, labels, chosen = known
        good = good and all(isinstance(name, str) for name in _several(spans))
        good = good and isinstance(labels, Tensor) and isinstance(chosen, Tensor)
        good = good and labels.ndim == 2 and labels.shape == chosen.shape and chosen.dtype == torch.bool
        good = good and not labels.is_floating_point()
    if not good or len(names) != len(values):
        raise BadEdit(
            "a Source has names, a tensor for each, and of its prompt all or none of spans, labels (batch, "
            f"pos) and chosen (batch, pos); got {source.names!r:.100}"
        )


__all__ = ["KINDS", "VERSION", "from_json", "to_json"]
