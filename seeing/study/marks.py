"""What is said of an answer, beside the truth: the columns of a row that need no model."""

from __future__ import annotations

import json
from typing import Any

from seeing.correctness import anls, exact_match, token_f1, vqa_accuracy
from seeing.data.samples import EvidenceSample
from seeing.vlm import Answer


def marks(sample: EvidenceSample, answer: Answer) -> dict[str, Any]:
    """Question, truth, answer and scores of a row."""
    said = str(answer)
    em = exact_match(said, sample.answers)
    return {
        "question": sample.question,
        "truth": list(sample.answers),
        "answer": said,
        "correct": em > 0,
        "em": em,
        "f1": token_f1(said, sample.answers),
        "anls": anls(said, sample.answers),
        "vqa": vqa_accuracy(said, sample.answers),
        "logprob": answer.logprob,
        "n_tokens": len(answer.ids),
        "meta": json.dumps(dict(sample.meta), default=str, ensure_ascii=False),
    }
