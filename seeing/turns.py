"""What is asked: pictures, a question in its template, and what was said before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import nn

from seeing.data.images import ImageLike, load_image
from seeing.data.samples import EvidenceSample
from seeing.grid import Box, Boxes

_UNANSWERABLE = (
    "If the image does not contain any relevant evidence, output “I cannot answer based on the given image.”"
)
_DIRECT = "Directly answer the question based on the image, no explanation is needed. " + _UNANSWERABLE

#: The prompts of Liu et al. 2026. A model whose config carries ``seeing_templates`` names its own.
PAPER_TEMPLATES: Mapping[str, str] = {
    "qa": _DIRECT + " Question: {question}",
    "vea": _DIRECT
    + " Only use words from the picture, especially those in the highlighted region, to answer "
    "the question. Question: {question}",
}

#: How a question becomes the user's turn: a name ("qa", "vea"), a string with ``{question}``, or a function.
Template = str | Callable[[str], str]


class BadPrompt(ValueError):
    """A picture, question or template that can't be made into a prompt for this model."""


@dataclass(frozen=True, eq=False)
class Turn:
    """One row of a prompt before the processor: pictures, a question, and the boxes of its evidence.

    ``boxes`` are xyxy pixels of the first picture; empty means that no evidence is annotated. ``history`` is
    what was asked and answered before; the pictures stand in its first question.
    """

    images: tuple[Image.Image, ...]
    question: str
    boxes: tuple[Box, ...] = ()
    template: Template | None = None
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        image: EvidenceSample | ImageLike | Sequence[ImageLike],
        question: str | None = None,
        boxes: Boxes | None = None,
        template: Template | None = None,
        *,
        system: str | None = None,
        history: Sequence[tuple[str, str]] = (),
    ) -> Turn:
        """From a sample, or from a picture (or several) and a question. Raises `BadPrompt`, `BadImage`."""
        if isinstance(image, EvidenceSample):
            question = image.question if question is None else question
            boxes = image.boxes if boxes is None else boxes
            image = image.image
        if not isinstance(question, str) or not question.strip():
            raise BadPrompt(f"a prompt needs a question, a non-empty string; got {question!r}")
        images = image if isinstance(image, (list, tuple)) else [image]
        if not images:
            raise BadPrompt("a prompt needs at least one image")
        loaded = tuple(load_image(one) for one in images)
        if system is not None and not (isinstance(system, str) and system.strip()):
            raise BadPrompt(f"a system message is a non-empty string, got {system!r}")
        return cls(
            loaded,
            question.strip(),
            _boxes(boxes, loaded[0].size),
            template,
            system and system.strip(),
            _history(history),
        )

    def instruction(self, templates: Mapping[str, str]) -> tuple[str, int]:
        """The user's turn: the question in its template, and where in it the question starts."""
        template = self.template
        if template is None:
            return self.question, 0
        if callable(template):
            text = template(self.question)
            if not isinstance(text, str):
                raise BadPrompt(f"the template made {text!r} of the question; expected a text")
        elif not isinstance(template, str):
            raise BadPrompt(f"a template is a name, a text with {{question}} or a function, got {template!r}")
        else:
            pattern = templates.get(template, template)
            if "{question}" not in pattern:
                raise BadPrompt(
                    f"template {template!r} is neither one of {', '.join(map(repr, templates))} nor a string "
                    f"with {{question}} in it"
                )
            before, _, after = pattern.rpartition("{question}")
            before = before.replace("{question}", self.question)
            return before + self.question + after, len(before)
        if self.question not in text:
            raise BadPrompt(f"the template dropped the question: {text!r} does not hold {self.question!r}")
        return text, text.rindex(self.question)


def _history(turns: Any) -> tuple[tuple[str, str], ...]:
    """Earlier turns as pairs of non-empty strings."""
    found = tuple(turns) if isinstance(turns, (list, tuple)) else (turns,)
    for pair in found:
        good = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not good or not all(isinstance(text, str) and text.strip() for text in pair):
            raise BadPrompt(
                f"earlier turns are pairs (question, answer) of non-empty strings, got {pair!r:.200}"
            )
    return tuple((question.strip(), answer.strip()) for question, answer in found)


def _boxes(boxes: Any, size: tuple[int, int]) -> tuple[Box, ...]:
    """Evidence boxes as numbers, each of four, not empty, and in part inside the picture of ``size``."""
    if boxes is None:
        return ()
    try:
        found = tuple(tuple(float(edge) for edge in box) for box in boxes)
    except (TypeError, ValueError) as error:
        raise BadPrompt(f"boxes are a list of (x0, y0, x1, y1) in pixels, got {boxes!r:.200}") from error
    for box in found:
        good = len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]
        if not good or box[0] >= size[0] or box[1] >= size[1] or box[2] <= 0 or box[3] <= 0:
            raise BadPrompt(
                f"box {box} is no evidence in a picture of {size[0]}×{size[1]}; expected (x0, y0, x1, y1) in "
                f"its pixels, x0 < x1, y0 < y1"
            )
    return found


def templates_of(model: nn.Module) -> Mapping[str, str]:
    """The templates that the model's own card names, or the paper's."""
    return getattr(model.config, "seeing_templates", None) or PAPER_TEMPLATES
