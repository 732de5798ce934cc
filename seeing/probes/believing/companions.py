"""Samples in company: a picture among other pictures, a question behind earlier turns.

A sample says so in its ``meta``: "images" are more pictures, which stand behind its own (one stands for
itself), and "turns" are pairs (question, answer) of what was said before. The sample's boxes are of its own
picture, the first: the evidence is looked for there, and the others have none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

from seeing.data.images import ImageLike, load_image
from seeing.data.samples import EvidenceSample
from seeing.probes.samples import Batch, Ledger, check_context
from seeing.prompt import BadPrompt, Prompt, Turn
from seeing.vlm import VLM


def among(samples: Iterable[EvidenceSample], pictures: int = 2) -> Iterator[EvidenceSample]:
    """Each sample among ``pictures`` pictures: its own first, then those of the samples that follow.

    Raises ValueError for fewer samples than that.
    """
    if pictures < 1:
        raise ValueError(f"a sample stands among one picture at least, its own; got {pictures}")
    coming = iter(samples)
    first = list(islice(coming, pictures))
    if len(first) < pictures:
        raise ValueError(f"{pictures} pictures come from as many samples, found {len(first)}")
    window = deque(first)
    for after in chain(coming, first):
        sample = window.popleft()
        others = tuple(one.image for one in window)
        yield replace(sample, meta={**sample.meta, "images": others})
        window.append(after)


def pictures_of(sample: EvidenceSample) -> tuple[ImageLike, ...]:
    """The pictures that stand behind a sample's own. Raises `BadPrompt` for what can't be some."""
    given = sample.meta.get("images")
    if isinstance(given, ImageLike):
        return (given,)
    if given is not None and not isinstance(given, Collection):
        raise BadPrompt(f"meta['images'] are pictures, one or several; got {type(given).__name__}")
    return tuple(given or ())


def turns_of(sample: EvidenceSample) -> tuple[tuple[str, str], ...]:
    """What was said before a sample's question. Raises `BadPrompt` for what is no (question, answer)."""
    given = sample.meta.get("turns")
    some = () if given is None else given
    if isinstance(some, str) or not isinstance(some, Collection):
        raise BadPrompt(f"meta['turns'] are pairs (question, answer); got {given!r:.100}")
    for one in some:
        if isinstance(one, str) or not isinstance(one, Sequence) or len(one) != 2:
            raise BadPrompt(f"a turn in meta['turns'] is a pair (question, answer); got {one!r:.100}")
    return tuple((str(asked), str(said)) for asked, said in some)


def in_company(vlm: VLM, batch: Batch, ledger: Ledger) -> Iterator[Batch]:
    """The batch with what its samples' ``meta`` says of other pictures and earlier turns.

    What is no picture or no turn, and what the model does not take (no chat template, a context too short) is
    left out with its reason. Rows that it does not take in one batch come one by one.
    """
    told = [_told(sample, ledger) for sample in batch.samples]
    if kept := [row for row, good in enumerate(told) if good]:
        if len(kept) < len(told):
            batch = Batch([batch.samples[row] for row in kept], batch.prompt.only(kept))
        yield from _taken(vlm, batch, ledger)


def _told(sample: EvidenceSample, ledger: Ledger) -> bool:
    """Whether a sample's company can be read; the reason is in the ledger where not."""
    try:
        pictures_of(sample), turns_of(sample)
    except BadPrompt as error:
        ledger.leave_out(sample, str(error))
        return False
    return True


def _taken(vlm: VLM, batch: Batch, ledger: Ledger) -> Iterator[Batch]:
    if not any(pictures_of(sample) or turns_of(sample) for sample in batch.samples):
        yield batch
        return
    try:
        yield Batch(batch.samples, _accompanied(vlm, batch.prompt, batch.samples))
        return
    except (ValueError, OSError) as error:
        if len(batch.samples) == 1:
            ledger.leave_out(batch.samples[0], str(error))
            return
    for sample in batch.samples:
        template = batch.prompt.turns[0].template
        yield from _taken(vlm, Batch([sample], vlm.prompts([sample], template=template)), ledger)


def _accompanied(vlm: VLM, prompt: Prompt, samples: Sequence[EvidenceSample]) -> Prompt:
    def told(row: int, turn: Turn) -> Turn:
        others = tuple(load_image(one) for one in pictures_of(samples[row]))
        return replace(turn, images=(*turn.images, *others), history=turns_of(samples[row]))

    accompanied = prompt.with_turns(told)
    check_context(vlm, accompanied)
    return accompanied
