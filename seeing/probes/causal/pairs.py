"""Two runs to compare: a question about its picture, and the same question where the picture was changed.

Causal tracing lives on such pairs: what differs between the runs is what the model has of the picture, and
patching one run with activations of the other says where it has it. The change is made sample by sample:

* an edit of pictures, ``E.Noise(sigma=0.5)`` or ``E.Occlude("evidence")``;
* ``"another"``: the picture of the next sample (of the first, for the last), scaled to this one's size, so
  that image tokens correspond one to one;
* a function of the sample, or samples in the same order, one a clean sample;
* a `Prompt`, where the clean one is a Prompt too.

Both prompts carry the same answer, teacher-forced, so both are asked about the same tokens. Where the model's
own edits change pictures, they are the prompts that its runs show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seeing.data.samples import EvidenceSample
from seeing.edits.edit import Edit, Edits, ImageEdit
from seeing.edits.moment import BadEdit
from seeing.edits.select import Selector
from seeing.probes.causal.positions import misaligned
from seeing.probes.progress import Progress
from seeing.probes.samples import Answered, Batch, Ledger, batches
from seeing.prompt import Prompt, Template
from seeing.turns import BadPrompt, Turn
from seeing.vlm import VLM

#: How a clean sample becomes a corrupted one: any of these.
Corruption = Any

#: The picture of the next sample.
ANOTHER = "another"


@dataclass(frozen=True)
class Pair:
    """A batch of clean prompts and the corrupted ones, row by row, each with the same answer behind it."""

    ids: tuple[str, ...]
    clean: Prompt
    corrupted: Prompt

    def __len__(self) -> int:
        return len(self.clean)


def pairs(
    vlm: VLM,
    clean: Iterable[EvidenceSample] | EvidenceSample | Prompt,
    corrupted: Corruption,
    ledger: Ledger,
    *,
    aligned: Sequence[Selector] = (),
    boxes: bool = False,
    template: Template | None = None,
    batch_size: int = 8,
    progress: Progress = None,
    answers: Answered = "given",
    what: str = "pairs",
) -> Iterator[Pair]:
    """Batches of pairs, lazily; samples without a corrupted side go into the ledger with the reason.

    Args:
        aligned: positions that must correspond one to one between the two prompts, as patches need it; a
            sample where they don't is left out.
        boxes: leave out samples without evidence boxes.
        answers: the answer that both are told: the sample's ("given") or the model's own to the clean
            prompt ("own"). A Prompt has the answer that it carries, or else the model's own.

    Raises BadEdit or TypeError for a corruption that can't be one. Whoever takes the pairs counts them.
    """
    if isinstance(clean, Prompt):
        yield _of_prompts(vlm, clean, corrupted, aligned)
        return
    if answers not in ("given", "own"):
        raise ValueError(f"both sides are told an answer: 'given' or 'own', got {answers!r}")
    change = _change(corrupted)
    settings = dict(template=template, boxes=boxes)
    for batch in batches(
        vlm,
        change.watched(clean),
        ledger,
        batch_size=batch_size,
        progress=progress,
        answers=answers,
        what=what,
        **settings,
    ):
        kept, others = [], []
        for sample, other in zip(batch.samples, change.all(batch.samples)):
            if isinstance(other, EvidenceSample):
                kept.append(sample)
                others.append(other)
            else:
                ledger.leave_out(sample, other)
        pair = _paired(vlm, batch, kept, others, aligned, ledger, answers, template)
        if pair is not None:
            yield pair


def answer_ids(prompt: Prompt) -> Int[Tensor, "batch token"]:
    """The answer that a prompt carries, −1 behind shorter ones."""
    return pad_sequence(list(prompt.answers), batch_first=True, padding_value=-1)


# ---- pairs of samples --------------------------------------------------------------------------------------


class _Change:
    """How the samples of a batch become corrupted ones: each a sample, or the reason why there is none."""

    def __init__(self, change: Callable[[int, EvidenceSample], EvidenceSample]):
        self.change, self.done = change, 0

    def watched(self, clean: Any) -> Any:
        """The clean samples, seen on their way into batches."""
        return clean

    def all(self, samples: Sequence[EvidenceSample]) -> list[EvidenceSample | str]:
        """The corrupted side of each. Samples are numbered over all batches, so noise is the same in any."""
        self.done += len(samples)
        return [self._one(self.done - len(samples) + row, sample) for row, sample in enumerate(samples)]

    def _one(self, number: int, sample: EvidenceSample) -> EvidenceSample | str:
        try:
            return self.change(number, sample)
        except (ValueError, OSError) as error:
            return f"no corrupted side: {error}"


class _Beside(_Change):
    """Each sample's corrupted side is found on the way into batches, beside the sample."""

    def __init__(self):
        # Samples of one data set may share an id, and one may come twice.
        self.waiting: dict[int, list[Any]] = {}

    def _wait(self, sample: Any, other: Any) -> Any:
        self.waiting.setdefault(id(sample), []).append(other)
        return sample

    def all(self, samples: Sequence[EvidenceSample]) -> list[EvidenceSample | str]:
        found = [self._of(sample, self.waiting[id(sample)].pop(0)) for sample in samples]
        # Those of samples that were left out are not asked for any more.
        self.waiting.clear()
        return found

    def _of(self, sample: EvidenceSample, other: Any) -> EvidenceSample | str:
        return other


class _Another(_Beside):
    """The picture of the sample that comes next, the last one's of the first."""

    def watched(self, clean: Any) -> Any:
        coming = iter([clean] if isinstance(clean, EvidenceSample) else clean)
        first = before = next(coming, None)
        if first is None:
            return
        for one in coming:
            yield self._wait(before, one)
            before = one
        yield self._wait(before, first)

    def _of(self, sample: EvidenceSample, other: Any) -> EvidenceSample | str:
        if other is sample or not isinstance(other, EvidenceSample):
            return "no corrupted side: no other sample's picture comes next"
        return replace(sample, image=other.image.convert("RGB").resize(sample.image.size))


class _Given(_Beside):
    """Corrupted samples in the order of the clean ones."""

    def __init__(self, corrupted: Iterable[EvidenceSample]):
        super().__init__()
        self.corrupted = iter(corrupted)

    def watched(self, clean: Any) -> Any:
        for one in [clean] if isinstance(clean, EvidenceSample) else clean:
            other = next(self.corrupted, None)
            if not isinstance(one, EvidenceSample) or not isinstance(other, EvidenceSample):
                raise TypeError(
                    f"corrupted samples go with clean ones one by one, both EvidenceSamples; found "
                    f"{type(one).__name__} and {type(other).__name__}"
                )
            yield self._wait(one, other)


def _change(corrupted: Any) -> _Change:
    """Raises BadEdit or TypeError for what can't corrupt a sample."""
    if isinstance(corrupted, (Edit, Edits)):
        edits = _pictures_only(corrupted)
        return _Change(lambda row, sample: _edited(edits, row, sample))
    if isinstance(corrupted, str):
        if corrupted != ANOTHER:
            raise ValueError(f"a corruption by name is {ANOTHER!r}, the next sample's picture; {corrupted!r}")
        return _Another()
    if isinstance(corrupted, EvidenceSample):
        return _Given([corrupted])
    if callable(corrupted):
        return _Change(lambda _, sample: _sample(corrupted(sample)))
    if isinstance(corrupted, Iterable) and not isinstance(corrupted, Prompt):
        return _Given(corrupted)
    raise TypeError(
        f"samples are corrupted by an edit of pictures, {ANOTHER!r}, a function of the sample or other "
        f"samples; got {type(corrupted).__name__}"
    )


def _pictures_only(edits: Edit | Edits) -> tuple[ImageEdit, ...]:
    found = (edits,) if isinstance(edits, Edit) else tuple(edits)
    if strange := [one for one in found if not isinstance(one, ImageEdit)]:
        raise BadEdit(
            f"a corrupted sample has another picture; {strange[0]!r:.100} edits the run, not the picture"
        )
    return found


def _edited(edits: Sequence[ImageEdit], row: int, sample: EvidenceSample) -> EvidenceSample:
    return replace(sample, image=_changed(edits, row, Turn.of(sample)).images[0])


def _changed(edits: Sequence[ImageEdit], row: int, turn: Turn) -> Turn:
    """A turn with its pictures edited, as many of them and as large as they were."""
    changed = turn
    for edit in edits:
        changed = edit.turn(row, changed)
    if [one.size for one in changed.images] != [one.size for one in turn.images]:
        raise BadEdit("corrupted pictures are as many and as large as the clean ones: say Occlude or Noise")
    return changed


def _sample(other: Any) -> EvidenceSample:
    if not isinstance(other, EvidenceSample):
        raise TypeError(
            f"a function that corrupts gives an EvidenceSample, this one gave {type(other).__name__}"
        )
    return other


def _paired(vlm, batch, kept, others, aligned, ledger, answers, template) -> Pair | None:
    """The prompts of both sides, without the rows that can't stand beside each other."""
    if not kept:
        return None
    own = Ledger()
    made = next(batches(vlm, others, own, template=template, batch_size=len(others), progress=False), None)
    for one in own.left_out:
        ledger.leave_out(one.id, f"no corrupted side: {one.reason}")
    if made is None:
        return None
    taken = {id(other) for other in made.samples}
    kept = [sample for sample, other in zip(kept, others) if id(other) in taken]
    if len(kept) < len(batch.samples):
        batch = _again(vlm, kept, template, answers)
    pair = _told(vlm, kept, batch.prompt, made.prompt)
    reasons = misaligned(pair.clean, pair.corrupted, aligned)
    if not any(reasons):
        return pair
    for sample, reason in zip(kept, reasons):
        if reason:
            ledger.leave_out(sample, reason)
    left = [row for row, reason in enumerate(reasons) if not reason]
    if not left:
        return None
    batch = _again(vlm, [kept[row] for row in left], template, answers)
    made = _again(vlm, [made.samples[row] for row in left], template, None)
    return _told(vlm, batch.samples, batch.prompt, made.prompt)


def _again(vlm: VLM, samples: list[EvidenceSample], template: Template | None, answers: Answered) -> Batch:
    """The batch of samples that made one before."""
    settings = dict(template=template, answers=answers, batch_size=len(samples), progress=False)
    return next(batches(vlm, samples, Ledger(), **settings))


def _told(vlm: VLM, samples: Sequence[EvidenceSample], clean: Prompt, corrupted: Prompt) -> Pair:
    sides = clean, corrupted.with_answer(clean.answers)
    return Pair(tuple(sample.id for sample in samples), *map(vlm.shown, sides))


# ---- pairs of prompts --------------------------------------------------------------------------------------


def _of_prompts(vlm: VLM, clean: Prompt, corrupted: Any, aligned: Sequence[Selector]) -> Pair:
    clean = with_answer(vlm, clean)
    if isinstance(corrupted, (Edit, Edits)):
        edits = _pictures_only(corrupted)
        corrupted = clean.with_turns(lambda row, turn: _changed(edits, row, turn))
    if not isinstance(corrupted, Prompt):
        raise TypeError(
            f"a Prompt is compared with another Prompt or its picture edited, got {type(corrupted).__name__}"
        )
    if len(corrupted) != len(clean):
        raise BadPrompt(f"the clean prompt has {len(clean)} rows, the corrupted one {len(corrupted)}")
    clean, corrupted = vlm.shown(clean), vlm.shown(corrupted.with_answer(clean.answers))
    pair = Pair(tuple(f"row {row}" for row in range(len(clean))), clean, corrupted)
    for row, reason in enumerate(misaligned(clean, corrupted, aligned)):
        if reason:
            raise BadPrompt(f"row {row}: {reason}")
    return pair


def with_answer(vlm: VLM, prompt: Prompt) -> Prompt:
    """A prompt that carries an answer: its own, or else the one that the model gives."""
    return prompt if prompt.answers else prompt.with_answer(vlm.answer(prompt))


__all__ = ["ANOTHER", "Corruption", "Pair", "answer_ids", "pairs", "with_answer"]
