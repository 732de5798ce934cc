"""A method, tried: once, and again on what it showed.

A probe that asks what a method does takes it as an argument, whatever it is: edits, an object that answers, a
function. Applied again, a method has to see what it showed the first time, so it must say what that is: an
edited model and a prompt. The second application reads the attention of the edited model and adds its edits
to those that are there: a highlight dims the dimmed picture by the map that the model makes of *it*, and an
edit that reads and boosts attention in one pass boosts the same place again, by the product of its gains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from seeing.edits.layers import whole
from seeing.prompt import Prompt
from seeing.vlm import VLM, Answer, Edits

#: What a model without a method is called.
BASE = "base"


@runtime_checkable
class Showing(Protocol):
    """A method that is an edited model and a prompt, and so can be applied to what it showed."""

    def shown(self, vlm: VLM, prompt: Prompt) -> tuple[VLM, Prompt]:
        """The model and the prompt that it asks in the end."""


@runtime_checkable
class Answering(Protocol):
    """A method that answers."""

    def answer(self, vlm: VLM, prompt: Prompt) -> Answer | list[Answer]:
        """The answer, or one a row of a batch."""


#: Edits, something with ``shown`` or ``answer``, or a function of a model and a prompt that answers.
Method = Edits | Showing | Answering | Callable[[VLM, Prompt], Any]


@dataclass(frozen=True)
class Trial:
    """What one prompt got from a method applied ``times`` times.

    ``answers`` is one text a row; ``vlm`` and ``prompt`` are what was asked in the end, None where the method
    does not say.
    """

    times: int
    answers: tuple[str, ...]
    vlm: VLM | None
    prompt: Prompt | None


def trials(name: str, method: Method, vlm: VLM, prompt: Prompt, times: Sequence[int]) -> Iterator[Trial]:
    """The method once, and again on what it showed, as often as asked for.

    Raises ValueError for a method that gives something else than a text a row.
    """
    if not _shows(method):
        answer = method.answer if isinstance(method, Answering) else method
        yield Trial(1, _texts(name, answer(vlm, prompt), prompt), None, None)
        return
    for applied in range(1, max(times) + 1):
        vlm, prompt = (
            (vlm.with_edits(method), prompt) if isinstance(method, Edits) else method.shown(vlm, prompt)
        )
        if applied in times:
            yield Trial(applied, _texts(name, vlm.answer(prompt), prompt), vlm, prompt)


def named(methods: Any, times: Sequence[int]) -> dict[str, Method]:
    """Methods by name; one alone has its own name.

    Raises TypeError for what is no method, ValueError for one that is called "base", and for one that only
    answers where it is to be applied more than once.
    """
    if methods is None:
        return {}
    given = methods if isinstance(methods, Mapping) else {_name(methods): methods}
    for name, method in given.items():
        if name == BASE:
            raise ValueError(f"{BASE!r} is the model as it is; give the method another name")
        if not (_shows(method) or isinstance(method, Answering) or callable(method)):
            raise TypeError(
                f"the method {name!r} is edits, has shown(vlm, prompt) or answer(vlm, prompt), or is a "
                f"function of both; got {type(method).__name__}"
            )
        if max(times) > 1 and not _shows(method):
            raise ValueError(
                f"the method {name!r} only answers, so nothing of it can be applied again; give it "
                f"shown(vlm, prompt), the model and the prompt that it asks in the end, or say times=1"
            )
    return dict(given)


def how_often(times: int | Sequence[int]) -> tuple[int, ...]:
    """Numbers of applications, ascending. Raises ValueError for none, and for one below 1."""
    several = isinstance(times, Iterable) and not isinstance(times, str)
    found = tuple(map(whole, times if several else [times]))
    if not found or not all(one is not None and one >= 1 for one in found):
        raise ValueError(f"a method is applied once or more: times=2, or (1, 2, 3); got {times!r}")
    return tuple(sorted(set(found)))


def _shows(method: Any) -> bool:
    return isinstance(method, (Edits, Showing))


def _texts(name: str, said: Any, prompt: Prompt) -> tuple[str, ...]:
    several = isinstance(said, Iterable) and not isinstance(said, str)
    found = tuple(said) if several else (said,)
    if len(found) != len(prompt) or not all(isinstance(one, str) for one in found):
        raise ValueError(
            f"the method {name!r} gave {said!r:.200} for {len(prompt)} prompt(s); expected a text for each"
        )
    return found


def _name(method: Any) -> str:
    own = getattr(method, "__name__", None)
    return own or ("edits" if isinstance(method, Edits) else type(method).__name__)
