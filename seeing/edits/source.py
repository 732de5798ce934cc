"""What a patch puts in: activations of another prompt, position by position.

Two prompts seldom have the same tokens in the same places: another question is longer, a batch is padded. So
positions are aligned by span: the n-th token of the source's question goes to the n-th token of this one's,
the n-th token of its picture to the n-th of the picture here. Where a span has another number of tokens there
is no alignment, and the error says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing.edits.edit import comparable, shown
from seeing.edits.layers import own
from seeing.edits.moment import BadEdit, Moment
from seeing.edits.select import ALL, Selector, selector
from seeing.names import Name, from_transformer_lens
from seeing.prompt import Prompt

#: The label of padding.
PADDING = -1


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """Activations by name, and what each of their positions is.

    ``labels`` numbers the span of each position, as `span_labels` does, and ``spans`` are the names of these
    numbers; ``chosen`` are the positions to take. All three are None where nothing is known about the prompt:
    then a value goes in only as a whole.
    """

    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    spans: tuple[str, ...] | None = None
    labels: Int[Tensor, "batch pos"] | None = None
    chosen: Bool[Tensor, "batch pos"] | None = None

    @classmethod
    def of(cls, cache: Mapping[str, Tensor], wanted: Iterable[str], positions: Any) -> Source:
        """The ``wanted`` names of what ``vlm.cache`` gave. Raises `BadEdit` for one that it lacks."""
        given = {from_transformer_lens(name): value for name, value in cache.items()}
        wanted = tuple(wanted)
        if lacking := [name for name in wanted if name not in given]:
            raise BadEdit(
                f"the source has no {', '.join(lacking)}; it has {', '.join(given) or 'nothing'}: read them "
                f"with vlm.cache(other_prompt, names)"
            )
        values = tuple(own(given[name]) for name in wanted)
        queries = getattr(cache, "queries", None)
        if any(Name.parse(name).has_rows for name in wanted) and not (
            queries is None or (isinstance(queries, str) and queries in ("last", "all"))
        ):
            raise BadEdit(
                f"the source has the rows of {queries!r:.100}; rows are patched where they were read with "
                f"queries='last' or 'all'"
            )
        prompt = getattr(cache, "prompt", None)
        if prompt is None:
            return cls(wanted, values)
        where = selector(positions)
        if where.reads or where.local:
            raise BadEdit(f"positions of a source are said by its prompt, {where!r} looks at a run")
        spans, labels = span_labels(prompt)
        chosen = Moment.before(prompt).some(where, "positions", decodes=False) & (labels != PADDING)
        return cls(wanted, values, spans, labels, chosen)

    def value(self, name: str) -> Tensor:
        return self.values[self.names.index(name)]

    def onto(
        self,
        value: Float[Tensor, "batch pos *rest"],
        name: str,
        positions: Selector,
        at: Moment,
        heads: tuple[int, ...] | None = None,
    ) -> Float[Tensor, "batch pos *rest"]:
        """``value`` with the source's values at the positions. Raises `BadEdit` where they can't be aligned.

        ``heads`` are those of the source that ``value`` holds.
        """
        source = self.value(name).to(value)
        source = source if heads is None else source[:, :, list(heads)]
        if self.labels is None:
            if source.shape != value.shape or positions != ALL:
                raise BadEdit(
                    f"the source of {name!r} does not know its prompt, so it goes in whole, with "
                    f"positions='all': it is {tuple(source.shape)}, the value here {tuple(value.shape)}; "
                    f"vlm.cache(prompt, …) keeps the prompt"
                )
            return source
        if at.step:
            raise BadEdit(
                "a source has the positions of its prompt, none of decoded tokens: say when='prompt'"
            )
        prompts = at.batch // at.copies
        if len(source) not in (1, prompts):
            raise BadEdit(
                f"the source has {len(source)} rows, this batch {prompts}: give one row, or as many"
            )
        rows = [row // at.copies if len(source) > 1 else 0 for row in range(at.batch)]
        spans, labels = span_labels(at.need_prompt("a patch"))
        wanted = at.some(positions, "positions", decodes=False).cpu() & (labels != PADDING)
        chosen = self.chosen
        # Tokens of a given answer have a counterpart where both prompts go on with one.
        if "given answer" in spans and "given answer" not in self.spans:
            wanted = wanted & (labels != spans.index("given answer"))
        if "given answer" in self.spans and "given answer" not in spans:
            chosen = chosen & (self.labels != self.spans.index("given answer"))
        # The logits of a generation's prompt pass are those of the last token alone.
        short = at.n_prompt - value.shape[1]
        out = value.clone()
        for row, taken in enumerate(rows):
            to, from_ = _aligned(
                (spans, labels[row], wanted[row]), (self.spans, self.labels[taken], chosen[taken]), row
            )
            kept = to >= short
            missed = self.labels.shape[1] - source.shape[1]
            out[row, to[kept] - short] = source[taken, from_[kept] - missed]
        return out

    def fits(self, prompt: Prompt) -> bool:
        """Whether ``prompt`` has the same spans in the same places, as far as the source knows."""
        if self.labels is None:
            return True
        spans, labels = span_labels(prompt)
        alike = spans == self.spans and labels.shape[1] == self.labels.shape[1]
        # The prompt's rows may each run several times.
        times, left = divmod(len(labels), len(self.labels))
        return alike and not left and bool((labels == self.labels.repeat_interleave(times, 0)).all())

    def mean(self, name: str, like: Tensor) -> Float[Tensor, "1 1 *rest"]:
        """The mean over all rows and chosen positions."""
        value = self.value(name).to(like)
        if self.chosen is not None:
            return value[self.chosen.to(value.device)].mean(0)[None, None]
        return value.flatten(0, 1).mean(0)[None, None]

    @staticmethod
    def next_row(
        value: Float[Tensor, "batch pos *rest"], at: Moment, positions: Selector
    ) -> Float[Tensor, "batch pos *rest"]:
        """Each row with the values of the next one, the last with those of the first."""
        spans, labels = span_labels(at.need_prompt("resampling"))
        chosen = at.some(positions, "positions", decodes=False).cpu() & (labels != PADDING)
        out = value.clone()
        for row in range(at.batch):
            taken = (row + at.copies) % at.batch
            ends = [(spans, labels[one], chosen[one]) for one in (row, taken)]
            to, from_ = _aligned(*ends, row)
            out[row, to] = value[taken, from_]
        return out

    def _content(self) -> tuple:
        return self.names, self.spans, *map(comparable, (self.values, self.labels, self.chosen))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and other._content() == self._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def __repr__(self) -> str:
        return (
            f"<source: {', '.join(f'{name} {shown(value)}' for name, value in zip(self.names, self.values))}>"
        )


def span_labels(prompt: Prompt) -> tuple[tuple[str, ...], Int[Tensor, "batch pos"]]:
    """The names of a prompt's spans, and the number of the span that each position is in; −1 is padding.

    ``image``, ``text`` and ``predicts`` are made of others and have no number. The tokens of a given answer
    have one of their own, ``given answer``.
    """
    names = tuple(name for name in prompt.spans if name not in ("image", "text", "predicts"))
    labels = torch.full(prompt.spans.shape, PADDING)
    if prompt.answers:
        names = ("given answer", *names)
        said = torch.arange(prompt.length) >= prompt.n_asked
        labels[prompt.spans.mask("answer") & said] = 0
    for number, name in enumerate(names):
        if name != "given answer":
            labels[prompt.spans.mask(name) & (labels == PADDING)] = number
    return names, labels


#: One end of a patch: names of spans, the span of each position, which are chosen. The ends differ in length.
End = tuple[tuple[str, ...], Int[Tensor, " _"], Bool[Tensor, " _"]]


def _aligned(target: End, source: End, row: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Positions of the target and, in the same order, those of the source that go there."""
    to, from_ = [], []
    for name in dict.fromkeys((*target[0], *source[0])):
        here, there = (_of_span(name, end) for end in (target, source))
        if len(here) != len(there):
            raise BadEdit(
                f"row {row}: {len(here)} tokens of {name!r} are to be patched and the source has "
                f"{len(there)} of them: positions are aligned by span, token by token; choose positions= "
                "that both have alike"
            )
        to.append(here)
        from_.append(there)
    return torch.cat(to), torch.cat(from_)


def _of_span(name: str, end: End) -> Int[Tensor, " n"]:
    names, labels, chosen = end
    if name not in names:
        return torch.zeros(0, dtype=torch.long)
    return (chosen & (labels == names.index(name))).nonzero()[:, 0]
