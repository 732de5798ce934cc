"""The text of a row: a turn in the model's own chat template, and where in it the words stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seeing.families import Family
from seeing.spans import Rendered
from seeing.turns import BadPrompt, Turn

#: Marks around the words of a turn: characters of Unicode's private use.
_OPEN, _CLOSE = "\ue000", "\ue001"


def render(family: Family, processor: Any, turn: Turn, instruction: str, start: int) -> Rendered:
    """The text of one row, with a placeholder for each picture, and where in it the words stand.

    The same words may stand in the template too, so their places are marked, not searched for.
    """
    placeholder = family.placeholder(processor)
    said = [instruction, turn.system or "", *(text for pair in turn.history for text in pair)]
    if held := next((text for text in said if placeholder in text), None):
        raise BadPrompt(
            f"the text {held!r} holds {placeholder!r}, which stands for a picture; leave it out, pictures "
            f"are put in front of the question"
        )
    end = start + len(turn.question)
    marked = instruction[:start] + _OPEN + turn.question + _CLOSE + instruction[end:]
    history = [(question, _OPEN + answer + _CLOSE) for question, answer in turn.history]
    text, places = _unmarked(_chat(family, processor, turn, history, marked))
    plain = _chat(family, processor, turn, turn.history, instruction)
    kept = len(places) == 1 + len(history) and text[slice(*places[-1])] == turn.question
    if text != plain or not kept:
        raise BadPrompt(f"the chat template changed the question {turn.question!r}; it made {plain!r}")
    return Rendered(text, places[-1], tuple(places[:-1]))


def _unmarked(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and what they stood around."""
    text, places = "", []
    for piece in marked.split(_OPEN):
        inner, close, behind = piece.partition(_CLOSE)
        if close:
            places.append((len(text), len(text) + len(inner)))
        text += inner + behind
    return text, places


def _chat(family: Family, processor: Any, turn: Turn, history: Sequence, instruction: str) -> str:
    if getattr(processor, "chat_template", None) is None:
        if turn.system or history:
            raise BadPrompt(
                f"{family.name} has no chat template: it takes no system message, no earlier turns"
            )
        return family.plain(processor, len(turn.images), instruction)
    messages = [] if turn.system is None else [_message("system", turn.system)]
    for question, answer in history:
        messages += [_message("user", question), _message("assistant", answer)]
    messages.append(_message("user", instruction))
    first = next(message for message in messages if message["role"] == "user")
    first["content"] = [{"type": "image"} for _ in turn.images] + first["content"]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
