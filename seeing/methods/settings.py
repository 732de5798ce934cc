"""Settings of a method as text: ``gain=2``, ``layers=14-19+22``, ``heads=12.3+14.5``.

A recipe's keyword parameters are its settings, and their annotations say which texts they take, so that what
the command line reads, refuses and lists comes from one signature.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from seeing.edits.layers import as_dict, head_table


class BadMethod(ValueError):
    """A method that is not there, or that can't be made as it was written."""


@dataclass(frozen=True)
class From:
    """A setting that is found where nothing is said: ``source`` is what it is found in.

    That is the "layers" or "heads" of a profile, calibration "samples", the study's "seed", or the "model".
    What is not ``needed`` may be absent: ``otherwise`` stands in its place.
    """

    source: str
    what: str
    otherwise: Any = None
    needed: bool = True

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Kind:
    """What a setting may be: ``says`` it to the reader, ``read`` turns a text into the value or raises."""

    says: str
    read: Callable[[str], Any]


def _number(text: str) -> float:
    found = int(text) if re.fullmatch(r"[+-]?\d{1,15}", text) else float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return found


def _whole(text: str) -> int:
    return int(float(text)) if re.fullmatch(r"-?\d+\.0*", text) else int(text)


def _flag(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]


def _layers(text: str) -> Any:
    """Layers as "all", "deep", "8-" (from 8 on), or numbers and ranges joined by +: "14-19+22"."""
    if text in ("all", "deep"):
        return text
    if re.fullmatch(r"\d+-", text):
        return slice(int(text[:-1]), None)
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(\+\d{1,4}(-\d{1,4})?)*", text):
        raise ValueError(text)
    ranges = [[int(end) for end in part.split("-")] for part in text.split("+")]
    if any(ends != sorted(ends) for ends in ranges):
        raise ValueError(text)
    return tuple(sorted({layer for ends in ranges for layer in range(ends[0], ends[-1] + 1)}))


def _numbered(text: str) -> Any:
    """Layers by number, or all of them."""
    if text == "deep" or text.endswith("-"):
        raise ValueError(text)
    return _layers(text)


def _wholes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("+")))


def _heads(text: str) -> dict[int, list[int]]:
    """Heads as "12.3+14.5": head 3 of layer 12, head 5 of layer 14."""
    if not re.fullmatch(r"\d+\.\d+(\+\d+\.\d+)*", text):
        raise ValueError(text)
    return as_dict(head_table([tuple(map(int, one.split("."))) for one in text.split("+")]))


def _window(text: str) -> tuple[int, int]:
    rows, _, cols = text.partition("x")
    return int(rows), int(cols or rows)


def _none_or(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() in ("none", "null") else read(text)


def word(*choices: str) -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(choices)}", {one: one for one in choices}.__getitem__)


_SOME_LAYERS = "numbers and ranges, such as 4-5 or 2+3"

Number = Annotated[Any, Kind("a number", _number)]
Whole = Annotated[Any, Kind("a whole number", _whole)]
NumberOrNone = Annotated[Any, Kind("a number or none", _none_or(_number))]
WholeOrNone = Annotated[Any, Kind("a whole number or none", _none_or(_whole))]
Flag = Annotated[Any, Kind("true or false", _flag)]
Text = Annotated[Any, Kind("a text", str)]
Wholes = Annotated[Any, Kind("whole numbers, such as 0+3", _wholes)]
Layers = Annotated[Any, Kind(f"layers: {_SOME_LAYERS}, 8- (from 8 on), deep or all", _layers)]
LayerNumbers = Annotated[Any, Kind(f"layers: {_SOME_LAYERS}, or all", _numbered)]
Heads = Annotated[Any, Kind("heads as LAYER.HEAD, such as 12.3+14.5", _heads)]
Window = Annotated[Any, Kind("a window of tokens, ROWSxCOLUMNS, such as 2x2", _window)]


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe: its name, what it may be, and what it is when nothing is said."""

    name: str
    kind: Kind
    default: Any

    @property
    def spelled(self) -> str:
        """The default as it would be written."""
        if isinstance(self.default, (bool, type(None))):
            return str(self.default).lower()
        if isinstance(self.default, tuple):
            return "x".join(map(str, self.default))
        return f"{self.default:g}" if isinstance(self.default, (int, float)) else str(said(self.default))

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "takes": self.kind.says, "default": said(self.default)}


def settings_of(recipe: Callable[..., Any]) -> dict[str, Setting]:
    """The settings of a recipe: its keyword-only parameters, whose annotations are kinds."""
    hints = get_type_hints(inspect.unwrap(recipe), include_extras=True)
    return {
        name: Setting(name, hints[name].__metadata__[0], parameter.default)
        for name, parameter in inspect.signature(recipe).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def read_settings(known: Mapping[str, Setting], words: Iterable[str]) -> dict[str, Any]:
    """Settings written ``key=value``, read as their kinds. Raises `BadMethod` that lists what is known."""
    found: dict[str, Any] = {}
    for written in words:
        key, equals, text = (part.strip() for part in written.partition("="))
        if not equals or not key:
            raise BadMethod(f"a setting is written key=value, got {written!r:.100}{_listed(known)}")
        if key not in known:
            raise BadMethod(f"no setting {key!r:.100}{meant(key, known)}{_listed(known)}")
        if key in found:
            raise BadMethod(f"{key} is set twice")
        kind = known[key].kind
        try:
            found[key] = kind.read(text)
        except (ValueError, KeyError, OverflowError) as error:
            raise BadMethod(f"{key} is {kind.says}; got {text!r:.100}") from error
    return found


def or_else(value: Any) -> Any:
    """A setting's value, or what stands in its place."""
    return value.otherwise if isinstance(value, From) else value


def said(value: Any) -> Any:
    """A value of a setting as plain data, layers and heads as they are written."""
    if isinstance(value, From):
        return str(value)
    if isinstance(value, slice):
        return f"{value.start or 0}-" if value.stop is None else f"{value.start or 0} up to {value.stop}"
    if isinstance(value, dict):
        return "+".join(f"{layer}.{head}" for layer, heads in value.items() for head in heads)
    return list(value) if isinstance(value, tuple) else value


def meant(word: str, known: Iterable[str]) -> str:
    """ " (did you mean …?)", where a known word is close."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(known: Mapping[str, Setting]) -> str:
    if not known:
        return "; it has no settings"
    return "; its settings are " + ", ".join(f"{one.name}={one.spelled}" for one in known.values())
