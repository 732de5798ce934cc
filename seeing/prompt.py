"""A prompt: what the model takes, and what every token of it is.

The processor of a model turns a picture and a question into keyword tensors, and forgets on the way
which token was what. A `Prompt` keeps it: ``inputs`` are exactly the tensors that the bare Hugging
Face model takes, ``spans`` say which positions hold the image, the question and the template, and
``grids`` say where in the original picture each image token looks. Selectors of edits and segments
of probes are resolved against these, so that one edit serves a whole data set.

A batch is a prompt too: rows are padded on the left, spans and grids are shifted with them.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor, nn

from seeing.chat import render
from seeing.families import Family, FamilyContractError
from seeing.forcing import answer_ids, checked_ids, forced_inputs, forced_spans
from seeing.grid import Box, VisualGrid
from seeing.spans import Spans, label, label_keys
from seeing.turns import PAPER_TEMPLATES, BadPrompt, Template, Turn, templates_of
from seeing.wire import travels_as


@dataclass(frozen=True)
class Told:
    """What a prompt that runs elsewhere keeps of a turn: no pictures, and nothing to ask anew with."""

    question: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Maker:
    """What made a prompt, and can make another one like it."""

    family: Family
    model: nn.Module
    processor: Any
    batched: bool

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        return build(self.family, self.model, self.processor, turns, batched=self.batched)

    def answer(self, turn: Turn, answer: Any) -> Int[Tensor, " token"]:
        """The token ids of an answer to ``turn``: of a text, of an `Answer`, or as they are given."""
        if isinstance(answer, str) and not hasattr(answer, "ids"):
            rendered = render(self.family, self.processor, turn, *turn.instruction(templates_of(self.model)))
            text = self.family.tokenized(self.processor, rendered.text)
            special = adds_special(self.processor.tokenizer, rendered.text)
            return self._sayable(answer_ids(self.processor.tokenizer, text, answer, special))
        n_vocab = self.model.get_input_embeddings().weight.shape[0]
        return self._sayable(checked_ids(getattr(answer, "ids", answer), n_vocab))

    def _sayable(self, ids: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
        if (ids == (image := self.family.image_token_id(self.model))).any():
            raise BadPrompt(f"the answer {ids.tolist()} holds token {image}, which stands for a picture")
        return ids

    def forced(self, prompt: Prompt, answers: tuple[Int[Tensor, " _"], ...]) -> Prompt:
        tokenizer = self.processor.tokenizer
        filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        inputs = forced_inputs(self.family, prompt.inputs, answers, filler or 0)
        spans, n_given = forced_spans(prompt.spans, answers), max(map(len, answers))
        return replace(prompt, inputs=inputs, spans=spans, answers=answers, n_given=n_given)


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt, or a left-padded batch of them. Made by ``vlm.prompt`` and ``vlm.prompts``.

    Attributes:
        inputs: the keyword tensors that the bare Hugging Face model takes.
        turns: what each row was made of.
        spans: which positions hold what.
        grids: one a picture, over all rows in order; ``positions`` index the padded sequence.
        grid_rows: the row that each grid belongs to.
        batched: whether it was asked for as a batch, so that answers come back as a list.
        cross: for models with cross-attention layers, the same over the keys of those layers: spans
            and grids whose positions count keys, with no inputs of its own. None for all others.
        patch_order: for a packed tower, its slot of each patch in reading order (`Family.patch_order`).
        feature_order: likewise the projector's slot of each image token (`Family.feature_order`).
        prepared: whether it is as a run takes it: edits of pictures made, a second run's rows put behind.
        beside: how many of the rows, the last ones, belong to a second run beside the first (`Contrast`).
        shift: by how many tokens rows were padded on the left to stand beside those of a second run.
        answers: for a prompt that goes on with given answers, the token ids of each row's (`with_answer`).
        n_given: the tokens in a row that are those of given answers, padding included.
        part: whether it says what some rows are, and has no pixels to run with (`take`).
    """

    inputs: dict[str, Tensor]
    turns: tuple[Turn | Told, ...]
    spans: Spans
    grids: tuple[VisualGrid, ...]
    grid_rows: tuple[int, ...]
    batched: bool = False
    cross: Prompt | None = None
    patch_order: Int[Tensor, " patch"] | None = None
    feature_order: Int[Tensor, " token"] | None = None
    prepared: bool = False
    beside: int = 0
    shift: int = 0
    answers: tuple[Int[Tensor, " _"], ...] = ()
    n_given: int = 0
    part: bool = False
    _maker: Maker | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.spans.shape[0]

    def __repr__(self) -> str:
        rows, length = self.spans.shape
        what = repr(self.turns[0].question) if rows == 1 else f"{rows} rows"
        n_image = int(self.spans.mask("image").sum())
        said = f", {self.n_given} of the answer" if self.answers else ""
        return f"Prompt({what}, {length} tokens, {n_image} of them image{said})"

    @property
    def length(self) -> int:
        """Tokens in a row, padding included."""
        return self.spans.shape[1]

    @property
    def n_asked(self) -> int:
        """Tokens in a row without those of given answers."""
        return self.length - self.n_given

    @property
    def keys(self) -> Prompt:
        """Where the image's tokens are keys: the prompt itself, or the keys of its cross-attention layers."""
        return self if self.cross is None else self.cross

    def with_turns(self, edit: Callable[[int, Turn], Turn]) -> Prompt:
        """The same prompt with each row made of ``edit(row, turn)``."""
        changed = self._making.prompt(tuple(edit(row, turn) for row, turn in enumerate(self.turns)))
        return changed.with_answer(self.answers) if self.answers else changed

    def with_answer(self, answers: Any) -> Prompt:
        """The same prompt going on with given answers: teacher forcing.

        Args:
            answers: a text, an `Answer`, or token ids; for a batch one a row. A text is tokenized as the
                model would go on; an `Answer` and ids are taken as they are.

        ``spans["answer"]`` holds the answers' tokens, and ``spans["predicts"]`` the positions whose next
        token is one of them. To edits, "last" means these: the rows that would be the newest, one after
        the other, if the model had said it. Answers that the prompt goes on with already are replaced.

        Raises `BadPrompt` for another number of answers than rows, an answer without tokens, or with words
        that the tokenizer does not know.
        """
        one = isinstance(answers, str) or (not self.batched and len(self) == 1 and not _several(answers))
        given = (answers,) if one else tuple(answers)
        if len(given) != len(self):
            raise BadPrompt(f"{len(self)} prompt(s) take as many answers, got {len(given)}")
        maker = self._making
        ids = tuple(maker.answer(turn, answer) for turn, answer in zip(self.turns, given))
        bare = replace(maker.prompt(self.turns), prepared=self.prepared) if self.answers else self
        return maker.forced(bare, ids)

    def with_images(self, edit: Callable[[int, Image.Image], Image.Image]) -> Prompt:
        """The same prompt with each row's first picture replaced by ``edit(row, picture)``."""
        return self.with_turns(
            lambda row, turn: replace(turn, images=(edit(row, turn.images[0]), *turn.images[1:]))
        )

    def with_template(self, template: Template | None) -> Prompt:
        """The same prompt asked in another template."""
        return self.with_turns(lambda _, turn: replace(turn, template=template))

    def some_rows(self, first: int, count: int) -> Prompt:
        """``count`` rows from ``first`` on, where they stand in the batch: padding and all."""
        return self.take(range(first, first + count))

    def take(self, rows: Sequence[int]) -> Prompt:
        """The rows of these numbers, where they stand in the batch: what is said of them, and no pixels.

        To run some rows by themselves take `row` or `only`.
        """
        rows = list(rows)
        grids = [
            (grid, place)
            for place, row in enumerate(rows)
            for grid, owner in zip(self.grids, self.grid_rows)
            if owner == row
        ]
        kept = [name for name in ("input_ids", "attention_mask") if name in self.inputs]
        return replace(
            self,
            inputs={name: self.inputs[name][rows] for name in kept},
            turns=tuple(self.turns[row] for row in rows),
            spans=Spans({name: self.spans.mask(name)[rows] for name in self.spans}),
            grids=tuple(grid for grid, _ in grids),
            grid_rows=tuple(place for _, place in grids),
            cross=None if self.cross is None else self.cross.take(rows),
            beside=0,
            part=True,
            answers=tuple(self.answers[row] for row in rows) if self.answers else (),
        )

    def row(self, index: int) -> Prompt:
        """Row ``index`` as a prompt of its own, without padding."""
        alone = replace(self._making, batched=False).prompt((self.turns[index],))
        alone = replace(alone, prepared=self.prepared)
        return alone.with_answer(self.answers[index]) if self.answers else alone

    def only(self, rows: Sequence[int]) -> Prompt:
        """The rows of these numbers as a batch of their own, padded anew."""
        some = self._making.prompt(tuple(self.turns[row] for row in rows))
        some = replace(some, prepared=self.prepared)
        return some.with_answer([self.answers[row] for row in rows]) if self.answers else some

    @property
    def _making(self) -> Maker:
        """How the processor makes a prompt of turns."""
        if self._maker is None:
            raise BadPrompt(
                "the processor and the pictures stayed where this prompt was made; change it there, before "
                "the trace"
            )
        return self._maker

    def evidence(self, rule: str = "any") -> Bool[Tensor, "batch pos"]:
        """Which positions hold image tokens on the annotated evidence.

        Raises `BadPrompt` for a row that was made without boxes, or whose evidence no token sees.
        """
        mask = torch.zeros(len(self), self.length, dtype=torch.bool)
        for row, turn in enumerate(self.turns):
            if not turn.boxes:
                raise BadPrompt(
                    f"row {row} of the prompt ({turn.question!r}) has no evidence boxes; "
                    f"make it with vlm.prompt(image, question, boxes=[(x0, y0, x1, y1)])"
                )
            grid = self.grids[self.grid_rows.index(row)]
            labels = grid.labels(turn.boxes, rule=rule)
            if not labels.any():
                raise BadPrompt(
                    f"row {row} of the prompt ({turn.question!r}): no image token sees the evidence "
                    f"{turn.boxes}; the model saw {grid.view.box} of a "
                    f"{grid.image_size[0]}×{grid.image_size[1]} image"
                )
            mask[row, grid.positions[labels]] = True
        return mask


def _travelling(prompt: Prompt) -> tuple:
    """A prompt as it travels: inputs, spans and grids."""
    told = tuple(Told(turn.question, turn.boxes) for turn in prompt.turns)
    return copyreg.__newobj__, (Prompt,), {**vars(prompt), "turns": told, "_maker": None}


travels_as(Prompt, _travelling)


def need_prompt(prompt: Any) -> None:
    """Raise `BadPrompt` for anything else."""
    if not isinstance(prompt, Prompt):
        raise BadPrompt(
            f"this takes a Prompt, got {type(prompt).__name__}; make one with vlm.prompt(image, question), "
            f"or vlm.prompts([...]) for a batch"
        )


def build(
    family: Family, model: nn.Module, processor: Any, turns: Sequence[Turn], *, batched: bool = False
) -> Prompt:
    """Run the processor over ``turns`` and label every token of what it makes.

    Raises:
        BadPrompt: no turns, words that the tokenizer does not know, a question that the chat template
            does not carry through.
        FamilyContractError: the tokens are not those that the family's geometry gives, or the processor
            left out a tensor without which the model would run wrongly.
    """
    turns = tuple(turns)
    if not turns:
        raise BadPrompt("a batch needs at least one prompt")
    templates = templates_of(model)
    texts = [render(family, processor, turn, *turn.instruction(templates)) for turn in turns]
    special = adds_special(processor.tokenizer, texts[0].text)
    try:
        encoding = processor(
            text=[one.text for one in texts],
            images=family.pictures([turn.images for turn in turns]),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=special,
        )
    except ValueError as error:
        sizes = ", ".join(f"{w}×{h}" for turn in turns for w, h in (image.size for image in turn.images))
        raise BadPrompt(f"the processor takes no such text or pictures ({sizes}): {error}") from error
    inputs = family.cleaned({key: value for key, value in encoding.items() if isinstance(value, Tensor)})
    if missing := [name for name in family.required if name not in inputs]:
        raise FamilyContractError(
            f"{family.name}: the processor gave no {', '.join(missing)}, without which the model runs with a "
            f"wrong mask or wrong positions; it gave {', '.join(inputs)}"
        )
    if not inputs["attention_mask"].all():
        positions = family.positions(inputs["attention_mask"])
        inputs |= {} if positions is None else {"position_ids": positions}
    labels = label(family, model, processor, turns, texts, inputs, special)
    keys = label_keys(family, model, processor, turns)
    return Prompt(
        inputs,
        turns,
        labels.spans,
        labels.grids,
        labels.rows,
        batched,
        None if keys is None else Prompt({}, turns, keys.spans, keys.grids, keys.rows),
        patch_order=family.patch_order(model, inputs),
        feature_order=family.feature_order(model, inputs),
        _maker=Maker(family, model, processor, batched),
    )


def adds_special(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer has to add the marks of a beginning: the text has none yet."""
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def _several(answers: Any) -> bool:
    """Whether ``answers`` are several, and not the token ids of one."""
    return isinstance(answers, (list, tuple)) and not all(isinstance(one, Integral) for one in answers)


__all__ = [
    "PAPER_TEMPLATES",
    "BadPrompt",
    "Prompt",
    "Spans",
    "Template",
    "Turn",
    "build",
    "need_prompt",
    "templates_of",
]
