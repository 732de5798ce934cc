"""Positions that causal probes name: spans of the prompt, evidence and what is not, the rows that answer.

A probe sums or patches over the tokens of a span. Which tokens these are differs from sample to sample, and a
sample may have none: then it is left out, with the reason, before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from seeing.edits.moment import BadEdit, Moment
from seeing.edits.select import Positions, Selector, Span, selector
from seeing.edits.source import PADDING, span_labels
from seeing.prompt import Prompt

#: Spans that are looked at where none are named.
SPANS = ("evidence", "non-evidence", "question", "last")

#: Names of positions beside the selectors' own.
NAMED: Mapping[str, Selector] = {"non-evidence": Span("image") & ~Span("evidence")}


def positions_of(spans: str | Selector | Sequence[str | Selector]) -> dict[str, Selector]:
    """Spans by their labels: what a caller names, as selectors. Raises ValueError for none."""
    spans = (spans,) if isinstance(spans, (str, Selector)) else spans
    found = {span if isinstance(span, str) else repr(span): named(span) for span in spans}
    if not found:
        raise ValueError("no spans are named: 'evidence', 'image', 'question', 'last', or any selector")
    return found


def named(span: str | Selector) -> Selector:
    """The selector that a name, or a selector itself, stands for.

    Raises BadEdit for one that looks at the model: two runs would look at different tokens.
    """
    found = NAMED[span] if isinstance(span, str) and span in NAMED else selector(span)
    if found.reads or found.watches(0):
        raise BadEdit(
            f"{found!r} is known while the model runs, and may mean other tokens in each run that is "
            f"compared; name positions that the prompt knows: a span, positions, boxes"
        )
    return found


def needs_boxes(selectors: Sequence[Selector]) -> bool:
    """Whether some of the positions are said by evidence boxes."""
    return any(_holds(one, ("evidence",)) for one in selectors)


def of_picture(one: Selector) -> bool:
    """Whether positions are those of image tokens."""
    return _holds(one, ("image", "evidence"))


def _from_the_start(one: Selector) -> bool:
    """Whether positions by number are among those chosen, counted from the start."""
    if isinstance(one, Positions):
        return one.length is None and any(number >= 0 for row in one.rows for number in row)
    return any(_from_the_start(part) for part in one.parts)


def _holds(one: Selector, names: Sequence[str]) -> bool:
    if isinstance(one, Span):
        return one.name.partition(":")[0] in names
    return any(_holds(part, names) for part in one.parts)


def mask_of(prompt: Prompt, one: Selector) -> Bool[Tensor, "batch pos"]:
    """The positions as a mask, padding left out."""
    _, labels = span_labels(prompt)
    return Moment.before(prompt).mask(one) & (labels != PADDING)


def lacking(prompt: Prompt, selectors: Sequence[Selector]) -> list[str | None]:
    """Row by row, why one of the positions can't be had; None where all are there.

    Raises BadEdit for numbers that count from the start of a row where rows are padded: in another batch they
    would be other tokens.
    """
    mask = prompt.inputs.get("attention_mask")
    if mask is not None and not mask[:, : prompt.n_asked].all():
        for one in selectors:
            if _from_the_start(one):
                raise BadEdit(
                    f"{one!r} counts from the start of padded rows; name a span, count from the end (-1, -2) "
                    f"or give samples one at a time, batch_size=1"
                )
    return [_lacks(prompt.take([row]), selectors) for row in range(len(prompt))]


def _lacks(prompt: Prompt, selectors: Sequence[Selector]) -> str | None:
    for one in selectors:
        try:
            if not mask_of(prompt, one).any():
                return f"{one!r} selects no position"
        except ValueError as error:
            return str(error)
    return None


def misaligned(clean: Prompt, corrupted: Prompt, selectors: Sequence[Selector]) -> list[str | None]:
    """Row by row, why positions do not correspond one to one between two prompts; None where they do."""
    reasons = lacking(clean, selectors)
    for row, reason in enumerate(reasons):
        if reason is None:
            reasons[row] = _misfit(clean.take([row]), corrupted.take([row]), selectors)
    return reasons


def _misfit(clean: Prompt, corrupted: Prompt, selectors: Sequence[Selector]) -> str | None:
    for one in selectors:
        try:
            here, there = counts(clean, one), counts(corrupted, one)
        except ValueError as error:
            return str(error)
        if here != there:
            return f"{one!r} has {there} tokens in the corrupted prompt, {here} in the clean one"
    return None


def counts(prompt: Prompt, one: Selector) -> dict[str, int]:
    """How many of the chosen positions each span of a prompt of one row holds."""
    names, labels = span_labels(prompt)
    chosen = torch.bincount(labels[mask_of(prompt, one)], minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, chosen) if count}
