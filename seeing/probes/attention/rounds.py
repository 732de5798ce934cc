"""Batches as the probes of attention go through them: with an answer where one is asked for, and marked.

One generation serves both: whether the model answers rightly, and the rows that predict the answer it gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from seeing.correctness import exact_match
from seeing.data.samples import EvidenceSample
from seeing.probes.progress import Progress
from seeing.probes.samples import Batch, Ledger, batches
from seeing.prompt import Prompt, Template
from seeing.vlm import VLM, Queries

#: Whose answer the rows of "answer" predict: the model's own, or the sample's first.
Answers = Literal["own", "given"]


@dataclass(frozen=True)
class Round:
    """A batch, and which of its samples the model answers rightly (None where it was not asked)."""

    samples: list[EvidenceSample]
    prompt: Prompt
    right: list[bool] | None


def rounds(
    vlm: VLM,
    samples: Iterable[EvidenceSample] | EvidenceSample,
    ledger: Ledger,
    queries: Queries,
    *,
    answers: Answers = "own",
    by_answer: bool = False,
    boxes: bool = False,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
    what: str = "samples",
) -> Iterator[Round]:
    """Batches whose prompts carry an answer where ``queries`` is "answer", marked where ``by_answer``."""
    if answers not in ("own", "given"):
        raise ValueError(f"answers are 'own' or 'given', got {answers!r}")
    forced = answers if isinstance(queries, str) and queries == "answer" else None
    for batch in batches(
        vlm,
        samples,
        ledger,
        boxes=boxes,
        template=template,
        batch_size=batch_size,
        progress=progress,
        answers=forced,
        what=what,
    ):
        if not (batch.prompt.inputs["attention_mask"].all() or _same_in_all(queries)):
            raise ValueError(
                f"rows of padded prompts are said by a name ('last', 'answer', a span's) or counted from the "
                f"end, got {queries!r:.100}; or give samples one at a time, batch_size=1"
            )
        right = None
        if by_answer:
            said = _said(vlm, batch, forced, template)
            right = [exact_match(text, one.answers) > 0 for text, one in zip(said, batch.samples)]
        yield Round(list(batch.samples), batch.prompt, right)


def _same_in_all(queries: Queries) -> bool:
    """Whether rows mean the same behind any padding: a name, or numbers that count from the end."""
    if isinstance(queries, str):
        return True
    found = torch.as_tensor([0] if isinstance(queries, slice) or queries is None else queries)
    whole = not found.is_floating_point() and found.dtype != torch.bool
    return found.ndim < 2 and bool(found.numel()) and whole and bool((found < 0).all())


def _said(vlm: VLM, batch: Batch, forced: Answers | None, template: Template | None) -> list[str]:
    """What the model answers greedily; its own answer is not asked for twice."""
    if forced == "own":
        ids, mask = batch.prompt.inputs["input_ids"].cpu(), batch.prompt.spans.mask("answer")
        decode = vlm.processor.tokenizer.decode
        return [decode(row[own], skip_special_tokens=True).strip() for row, own in zip(ids, mask)]
    prompt = batch.prompt if forced is None else vlm.prompts(batch.samples, template=template)
    return [str(answer) for answer in vlm.answer(prompt)]
