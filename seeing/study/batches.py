"""Which samples run together: batches by token count, halves where memory or a sample fails.

A batch holds at most so many rows and so many tokens. How samples are dealt out depends on the samples
alone, never on what was done before, so that a study that goes on asks the same batches as one that was never
stopped, and gets the same numbers to the last bit.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from seeing.data.samples import EvidenceSample
from seeing.probes.samples import check_context
from seeing.prompt import Prompt
from seeing.vlm import VLM

#: What an allocator says that is out of memory and has no class of its own for it.
_SAYS = ("out of memory", "can't allocate memory", "not enough memory")

One = TypeVar("One")


class Failure(NamedTuple):
    """What went wrong with one sample: in a line, and where."""

    place: int
    reason: str
    trace: str


class Group(NamedTuple):
    """Samples that make one prompt, by their places in the unit."""

    places: tuple[int, ...]
    samples: tuple[EvidenceSample, ...]


def groups(samples: Sequence[tuple[int, EvidenceSample]], rows: int) -> list[Group]:
    """Samples of about the same size together, ``rows`` at most."""
    # The picture's size and the question's length tell how many tokens there will be, without a processor.
    ordered = sorted(
        samples, key=lambda one: (one[1].image.width * one[1].image.height, len(one[1].question), one[0])
    )
    cut = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
    return [Group(tuple(place for place, _ in some), tuple(one for _, one in some)) for some in cut]


def prompts(
    vlm: VLM, group: Group, template: str | None, tokens: int
) -> tuple[list[tuple[Group, Prompt]], list[Failure]]:
    """The prompts of a group, none over ``tokens`` but for a single row; and the samples that make none."""
    try:
        prompt = vlm.prompts(group.samples, template)
        if len(group.samples) == 1:
            check_context(vlm, prompt)
    except Exception as error:  # noqa: BLE001 (one sample of a group fails, whatever it raised: find it)
        if len(group.samples) == 1:
            return [], [failure(group.places[0], error)]
        return _of_halves(vlm, group, template, tokens)
    n_ctx = vlm.cfg.n_ctx
    too_long = n_ctx is not None and prompt.length > n_ctx
    if len(group.samples) > 1 and (too_long or prompt.length * len(prompt) > tokens):
        # By their true lengths now: those that are much longer than the others go together.
        lengths = prompt.inputs["attention_mask"].sum(1).tolist()
        order = sorted(range(len(group.samples)), key=lambda one: (lengths[one], one))
        group = Group(tuple(group.places[one] for one in order), tuple(group.samples[one] for one in order))
        return _of_halves(vlm, group, template, tokens)
    return [(group, prompt)], []


def _of_halves(
    vlm: VLM, group: Group, template: str | None, tokens: int
) -> tuple[list[tuple[Group, Prompt]], list[Failure]]:
    found, failed = [], []
    for half in halves(group):
        more, wrong = prompts(vlm, half, template, tokens)
        found += more
        failed += wrong
    return found, failed


def halves(group: Group) -> tuple[Group, Group]:
    cut = (len(group.places) + 1) // 2
    return Group(group.places[:cut], group.samples[:cut]), Group(group.places[cut:], group.samples[cut:])


def by_halves(
    run: Callable[[list[int]], list[One]], rows: list[int], limit: int | None = None
) -> tuple[dict[int, One], dict[int, BaseException], int | None]:
    """Run rows together, in halves where that fails, down to single ones.

    Args:
        run: takes some of the rows and gives one value each.
        rows: all of them.
        limit: how many fit into memory together, as far as is known.

    Returns what each row gave, what each single row that failed raised, and how many fit.
    """
    if limit is not None and len(rows) > limit:
        done, failed = {}, {}
        for start in range(0, len(rows), limit):
            more, wrong, limit_now = by_halves(run, rows[start : start + limit], limit)
            done |= more
            failed |= wrong
            limit = min(limit, limit_now or limit)
        return done, failed, limit
    try:
        return dict(zip(rows, run(rows))), {}, limit
    except Exception as error:  # noqa: BLE001 (whatever a sample raises is recorded, and the study goes on)
        short = out_of_memory(error)
        if len(rows) == 1:
            return {}, {rows[0]: error}, limit
    # Outside of the except, so that what failed is let go of before its halves run.
    if short:
        release()
        limit = (len(rows) + 1) // 2
    done, failed = {}, {}
    cut = (len(rows) + 1) // 2
    for half in (rows[:cut], rows[cut:]):
        more, wrong, limit = by_halves(run, half, limit)
        done |= more
        failed |= wrong
    return done, failed, limit


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error).lower() for one in _SAYS)


def release() -> None:
    """Give back what is held for nothing."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def failure(place: int, error: BaseException) -> Failure:
    return Failure(place, reason_of(error), "".join(traceback.format_exception(error)))


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}".rstrip(": ")


__all__ = ["Any", "Failure", "Group", "by_halves", "failure", "groups", "halves", "out_of_memory", "prompts"]
