"""What a study is: everything that its rows depend on, as data.

Two runs with the same settings give the same rows, so a folder goes on only under the settings that it was
made with. What does not change a row (the folder, the engine, how many workers) is no setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any


class StudyError(ValueError):
    """A study that can't be started, gone on with or read, and why."""


@dataclass(frozen=True)
class Settings:
    """The settings of a study, JSON-able throughout.

    Attributes:
        models: per model its ``name``, and what it was ``load``-ed with.
        data: per data set its ``name``, ``spec``, ``n`` samples and ``fingerprint``.
        methods: per method what `Named.as_dict` says.
        prompt: the template that questions are asked in.
        max_new_tokens: how long an answer may get; None for the model's own limit, at most 50.
        rows: samples that are run together at most.
        tokens: tokens that are run together at most, padding included.
        seed: of everything that is drawn.
        profile: where the grounding layers and heads come from.
        hold_out: samples at the start of the first data set that are not asked.
        unit: samples of a unit.
    """

    models: tuple[Mapping[str, Any], ...]
    data: tuple[Mapping[str, Any], ...]
    methods: tuple[Mapping[str, Any], ...]
    prompt: str = "qa"
    max_new_tokens: int | None = None
    rows: int = 32
    tokens: int = 32_768
    seed: int = 0
    profile: Mapping[str, Any] | None = None
    hold_out: int = 0
    unit: int = 64

    def as_dict(self) -> dict[str, Any]:
        return _plain(asdict(self))


def differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """Where two documents differ, a line each: ``methods.1.text: 'vea' there, 'pai' now``."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in sorted({*there, *now}, key=str):
            yield from differences(
                there.get(key, _ABSENT), now.get(key, _ABSENT), f"{name}.{key}" if name else str(key)
            )
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        for place, (one, other) in enumerate(zip(there, now)):
            yield from differences(one, other, f"{name}.{place}")
    elif there != now or type(there) is not type(now):
        yield f"{name}: {_said(there)} there, {_said(now)} now"


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _said(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        value = [next((one[key] for key in ("text", "name") if key in one), one) for one in value]
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:297]}…"


def _plain(value: Any) -> Any:
    """The same as JSON would give it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
