"""Samples on their way into a probe: batches of prompts, and a list of what had to be left out.

A data set of thousands has a sample without boxes, a picture that can't be read, a question longer than the
model's context. Such a sample is left out and counted with its reason; it is never a wrong number and never
the end of a run. Memory holds one batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

from jaxtyping import Int
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits.layers import whole
from seeing.probes.progress import Progress, Shown, total_of
from seeing.prompt import BadPrompt, Prompt, Template
from seeing.vlm import VLM, Answer

#: What a sample says, under these names, whatever type it is.
FIELDS = ("image", "question", "answers", "boxes")

#: Whether prompts carry an answer, teacher-forced: none, the sample's first, or the model's own.
Answered = Literal["given", "own"] | None


class LeftOut(NamedTuple):
    """A sample that is in no number, and why."""

    id: str
    reason: str


@dataclass
class Ledger:
    """Which samples were counted, and which were left out."""

    ids: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def count(self, sample: EvidenceSample) -> None:
        self.ids.append(sample.id)

    def leave_out(self, sample: EvidenceSample | str, reason: str) -> None:
        self.left_out.append(LeftOut(sample if isinstance(sample, str) else sample.id, reason))

    def need(self, what: str) -> None:
        """Raise ValueError, with the reasons, when no sample was counted."""
        if not self.ids:
            reasons = "; ".join(f"{one.id}: {one.reason}" for one in self.left_out[:3])
            raise ValueError(f"no sample has {what} ({reasons or 'no samples were given'})")


@dataclass(frozen=True)
class Batch:
    """Samples and their prompt, row by row."""

    samples: Sequence[EvidenceSample]
    prompt: Prompt


def batches(
    vlm: VLM,
    samples: Iterable[Any] | EvidenceSample,
    ledger: Ledger,
    *,
    boxes: bool = False,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress = None,
    answers: Answered = None,
    what: str = "samples",
) -> Iterator[Batch]:
    """Batches of prompts, left-padded. What can't be one goes into the ledger with its reason.

    Args:
        samples: samples, or anything with ``image``, ``question``, ``answers`` and ``boxes`` (and ``id``,
            ``meta``); one, or an iterable that is gone through once.
        boxes: leave out samples without evidence boxes.
        answers: "given" puts each sample's first answer behind its prompt, "own" the model's own, both
            without the token that ends a sequence.

    Raises ValueError for a batch size below 1, TypeError for something that holds no samples.
    """
    if whole(batch_size) is None or batch_size < 1:
        raise ValueError(
            f"a batch holds a whole number of samples, one at least; got batch_size={batch_size}"
        )
    if answers not in (None, "given", "own"):
        raise ValueError(f"answers are None, 'given' or 'own', got {answers!r}")
    given = iterable(samples)
    numbered, done = enumerate(given), 0
    with Shown(progress, total_of(given), what) as told:
        while some := list(islice(numbered, batch_size)):
            good = [sample for number, one in some if (sample := _taken(one, number, boxes, ledger))]
            batch = _prompted(vlm, good, template, answers, ledger)
            if batch is not None:
                yield batch
            done += len(some)
            told(done)


def iterable(samples: Any) -> Iterable:
    """``samples`` as an iterable; one sample stands for a list of one. Raises TypeError otherwise."""
    if isinstance(samples, (EvidenceSample, Mapping)):
        return [samples]
    if isinstance(samples, (str, bytes, Prompt)) or not isinstance(samples, Iterable):
        raise TypeError(f"a probe takes EvidenceSamples, one or several; got {type(samples).__name__}")
    return samples


def _taken(one: Any, number: int, boxes: bool, ledger: Ledger) -> EvidenceSample | None:
    """One thing given as a sample, or None with the reason in the ledger."""
    name = f"#{number}"
    if not isinstance(one, EvidenceSample):
        read = one.get if isinstance(one, Mapping) else lambda key, default=None: getattr(one, key, default)
        found = {key: read(key, None) for key in FIELDS}
        if found["image"] is None and found["question"] is None:
            raise TypeError(
                f"a probe takes EvidenceSamples, or things with {', '.join(FIELDS)}; got {type(one).__name__}"
            )
        name = str(read("id", None) or name)
        try:
            answers, some = found["answers"], found["boxes"]
            answers = answers if isinstance(answers, str) else tuple(() if answers is None else answers)
            boxes = tuple(tuple(float(edge) for edge in box) for box in (() if some is None else some))
            one = EvidenceSample(
                name, found["image"], found["question"], answers, boxes, read("meta", None) or {}
            )
        except (ValueError, TypeError, AttributeError) as error:
            ledger.leave_out(name, str(error))
            return None
    if boxes and not one.boxes:
        ledger.leave_out(one, "no evidence boxes")
        return None
    return one


def _prompted(
    vlm: VLM, samples: list[EvidenceSample], template: Template | None, answers: Answered, ledger: Ledger
) -> Batch | None:
    """The batch of all samples that make a prompt; the others are left out with what was said of them."""
    if not samples:
        return None
    try:
        return Batch(samples, _prompt(vlm, samples, template, answers))
    except (ValueError, OSError) as error:
        if len(samples) == 1:
            ledger.leave_out(samples[0], str(error))
            return None
    kept = []
    for sample in samples:
        try:
            _prompt(vlm, [sample], template, answers)
            kept.append(sample)
        except (ValueError, OSError) as error:
            ledger.leave_out(sample, str(error))
    return Batch(kept, _prompt(vlm, kept, template, answers)) if kept else None


def _prompt(vlm: VLM, samples: list[EvidenceSample], template: Template | None, answers: Answered) -> Prompt:
    prompt = vlm.prompts(samples, template=template)
    check_context(vlm, prompt)
    if answers is None:
        return prompt
    if answers == "own":
        said = [_unended(vlm, answer) for answer in vlm.answer(prompt)]
    else:
        said = [sample.answers[0] for sample in samples]
    forced = prompt.with_answer(said)
    check_context(vlm, forced)
    return forced


def _unended(vlm: VLM, answer: Answer) -> Int[Tensor, " token"]:
    """The tokens of what was said, without the mark of its end: a given answer has none either."""
    stops = vlm._module.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    ids = answer.ids
    return ids[:-1] if len(ids) > 1 and int(ids[-1]) in stops else ids


def check_context(vlm: VLM, prompt: Prompt) -> None:
    """Raise `BadPrompt` for a row of more tokens than the model's context."""
    longest, limit = int(prompt.inputs["attention_mask"].sum(1).max()), vlm.cfg.n_ctx
    if limit is not None and longest > limit:
        raise BadPrompt(
            f"the prompt has {longest} tokens, the model's context is {limit}; shorten the question or "
            f"give a smaller picture"
        )
