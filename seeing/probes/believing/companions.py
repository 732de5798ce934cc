"""Samples in company: a picture among other pictures, a question behind earlier turns.

A sample says so in its ``meta``: "images" are more pictures, which stand behind its own, and "turns" are
pairs (question, answer) of what was said before. The sample's boxes are of its own picture, the first: the
evidence is looked for there, and the others have none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

from seeing.data.images import load_image
from seeing.data.samples import EvidenceSample
from seeing.probes.samples import Batch, Ledger, check_context
from seeing.prompt import Prompt, Turn
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


def n_pictures(sample: EvidenceSample) -> int:
    """How many pictures a sample's prompt shows."""
    return 1 + len(sample.meta.get("images", ()))


def n_turns(sample: EvidenceSample) -> int:
    """How many turns came before a sample's question."""
    return len(sample.meta.get("turns", ()))


def in_company(vlm: VLM, batch: Batch, ledger: Ledger) -> Iterator[Batch]:
    """The batch with what its samples' ``meta`` says of other pictures and earlier turns.

    What the model does not take (no chat template, a context too short) is left out with its reason. Rows
    that it does not take in one batch come one by one.
    """
    if not any(n_pictures(sample) > 1 or n_turns(sample) for sample in batch.samples):
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
        yield from in_company(vlm, Batch([sample], vlm.prompts([sample], template=template)), ledger)


def _accompanied(vlm: VLM, prompt: Prompt, samples: Sequence[EvidenceSample]) -> Prompt:
    def told(row: int, turn: Turn) -> Turn:
        meta = samples[row].meta
        others = tuple(load_image(one) for one in meta.get("images", ()))
        history = tuple((str(asked), str(said)) for asked, said in meta.get("turns", ()))
        return replace(turn, images=(*turn.images, *others), history=history)

    accompanied = prompt.with_turns(told)
    check_context(vlm, accompanied)
    return accompanied
