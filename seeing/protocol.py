"""Edits, as the model knows them: by what they can do, not by what they are.

`VLM` stands below the room of edits and imports nothing from it. It takes any value that keeps to `Edits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from seeing.prompt import Prompt
from seeing.traced import TracedModel


@runtime_checkable
class Program(Protocol):
    """Edits made ready for one model. It travels with a trace that runs elsewhere, but for ``images``."""

    #: The edits of pictures among them.
    images: Sequence[Any]
    #: The second run that a contrast mixes in: its own program, ``other``, and what mixes, or None.
    mixing: Any

    def edit_images(self, prompt: Prompt) -> Prompt:
        """The prompt with its pictures edited, or as it is."""

    def run(self, vlm: TracedModel, steps: Iterable[int]) -> None:
        """Visit the sites in execution order, in every step of a run. Called inside a trace."""


@runtime_checkable
class Edits(Protocol):
    """A value that says where, when and what to change."""

    def __add__(self, other: Edits) -> Edits: ...

    def compile(self, vlm: TracedModel) -> Program:
        """Check the edits against the model. Raises when they don't fit."""
