"""A prompt: what the model takes, and what every token of it is.

The processor of a model turns a picture and a question into keyword tensors, and forgets on the way
which token was what. A `Prompt` keeps it: ``inputs`` are exactly the tensors that the bare Hugging
Face model takes, ``spans`` say which positions hold the image, the question and the template, and
``grids`` say where in the original picture each image token looks. Selectors of edits and segments
of probes are resolved against these, so that one edit serves a whole data set.

A batch is a prompt too: rows are padded on the left, spans and grids are shifted with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor, nn

from seeing.data.images import ImageLike, load_image
from seeing.data.samples import EvidenceSample
from seeing.families import Family, FamilyContractError
from seeing.grid import Box, Boxes, VisualGrid

_UNANSWERABLE = (
    "If the image does not contain any relevant evidence, output “I cannot answer based on the given image.”"
)
_DIRECT = "Directly answer the question based on the image, no explanation is needed. " + _UNANSWERABLE

#: The prompts of Liu et al. 2026. A model whose config carries ``seeing_templates`` names its own.
PAPER_TEMPLATES: Mapping[str, str] = {
    "qa": _DIRECT + " Question: {question}",
    "vea": _DIRECT
    + " Only use words from the picture, especially those in the highlighted region, to answer "
    "the question. Question: {question}",
}

#: Marks a place in a text: a character of Unicode's private use.
_MARK = "\ue000"

#: How a question becomes the user's turn: a name ("qa", "vea"), a string with ``{question}``, or a function.
Template = str | Callable[[str], str]


class BadPrompt(ValueError):
    """A picture, question or template that can't be made into a prompt for this model."""


@dataclass(frozen=True, eq=False)
class Turn:
    """One row of a prompt before the processor: pictures, a question, and the boxes of its evidence.

    ``boxes`` are xyxy pixels of the first picture; empty means that no evidence is annotated.
    """

    images: tuple[Image.Image, ...]
    question: str
    boxes: tuple[Box, ...] = ()
    template: Template | None = None

    @classmethod
    def of(
        cls,
        image: EvidenceSample | ImageLike | Sequence[ImageLike],
        question: str | None = None,
        boxes: Boxes | None = None,
        template: Template | None = None,
    ) -> Turn:
        """From a sample, or from a picture (or several) and a question. Raises `BadPrompt`, `BadImage`."""
        if isinstance(image, EvidenceSample):
            question = image.question if question is None else question
            boxes = image.boxes if boxes is None else boxes
            image = image.image
        if not isinstance(question, str) or not question.strip():
            raise BadPrompt(f"a prompt needs a question, a non-empty string; got {question!r}")
        images = image if isinstance(image, (list, tuple)) else [image]
        if not images:
            raise BadPrompt("a prompt needs at least one image")
        loaded = tuple(load_image(one) for one in images)
        return cls(loaded, question.strip(), _boxes(boxes, loaded[0].size), template)

    def instruction(self, templates: Mapping[str, str]) -> tuple[str, int]:
        """The user's turn: the question in its template, and where in it the question starts."""
        template = self.template
        if template is None:
            return self.question, 0
        if callable(template):
            text = template(self.question)
            if not isinstance(text, str):
                raise BadPrompt(f"the template made {text!r} of the question; expected a text")
        elif not isinstance(template, str):
            raise BadPrompt(f"a template is a name, a text with {{question}} or a function, got {template!r}")
        else:
            pattern = templates.get(template, template)
            if "{question}" not in pattern:
                raise BadPrompt(
                    f"template {template!r} is neither one of {', '.join(map(repr, templates))} nor a string "
                    f"with {{question}} in it"
                )
            before, _, after = pattern.rpartition("{question}")
            before = before.replace("{question}", self.question)
            return before + self.question + after, len(before)
        if self.question not in text:
            raise BadPrompt(f"the template dropped the question: {text!r} does not hold {self.question!r}")
        return text, text.rindex(self.question)


def _boxes(boxes: Any, size: tuple[int, int]) -> tuple[Box, ...]:
    """Evidence boxes as numbers, each of four, not empty, and in part inside the picture of ``size``."""
    if boxes is None:
        return ()
    try:
        found = tuple(tuple(float(edge) for edge in box) for box in boxes)
    except (TypeError, ValueError) as error:
        raise BadPrompt(f"boxes are a list of (x0, y0, x1, y1) in pixels, got {boxes!r:.200}") from error
    for box in found:
        good = len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]
        if not good or box[0] >= size[0] or box[1] >= size[1] or box[2] <= 0 or box[3] <= 0:
            raise BadPrompt(
                f"box {box} is no evidence in a picture of {size[0]}×{size[1]}; expected (x0, y0, x1, y1) in "
                f"its pixels, x0 < x1, y0 < y1"
            )
    return found


class Spans(Mapping[str, Tensor]):
    """Which positions hold what: ``image``, ``image:0`` …, ``question``, ``template``, ``text``.

    ``spans[name]`` is (batch, n) positions in order, one row an item, filled with −1 where rows hold
    different numbers; ``spans.mask(name)`` is the same as (batch, pos) booleans. ``text`` is question
    and template together; padding is in none of them.
    """

    def __init__(self, masks: Mapping[str, Bool[Tensor, "batch pos"]]):
        self._masks = dict(masks)

    def mask(self, name: str) -> Bool[Tensor, "batch pos"]:
        if name not in self._masks:
            raise KeyError(f"no span {name!r}; this prompt has {', '.join(self._masks)}")
        return self._masks[name]

    def __getitem__(self, name: str) -> Int[Tensor, "batch n"]:
        mask = self.mask(name)
        counts = mask.sum(1)
        table = torch.full((len(mask), int(counts.max())), -1, dtype=torch.long)
        for row, count in enumerate(counts.tolist()):
            table[row, :count] = mask[row].nonzero()[:, 0]
        return table

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        counts = {name: mask.sum(1).tolist() for name, mask in self._masks.items()}
        sizes = (f"{name} {n[0] if len(n) == 1 else n}" for name, n in counts.items())
        return f"Spans({', '.join(sizes)}; numbers are tokens)"


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
    """

    inputs: dict[str, Tensor]
    turns: tuple[Turn, ...]
    spans: Spans
    grids: tuple[VisualGrid, ...]
    grid_rows: tuple[int, ...]
    batched: bool = False
    _rebuild: Callable[[tuple[Turn, ...]], Prompt] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.inputs["input_ids"].shape[0]

    def __repr__(self) -> str:
        rows, length = self.inputs["input_ids"].shape
        what = repr(self.turns[0].question) if rows == 1 else f"{rows} rows"
        n_image = int(self.spans.mask("image").sum())
        return f"Prompt({what}, {length} tokens, {n_image} of them image)"

    @property
    def length(self) -> int:
        """Tokens in a row, padding included."""
        return self.inputs["input_ids"].shape[1]

    def with_images(self, edit: Callable[[int, Image.Image], Image.Image]) -> Prompt:
        """The same prompt with each row's first picture replaced by ``edit(row, picture)``."""
        turns = tuple(
            replace(turn, images=(edit(row, turn.images[0]), *turn.images[1:]))
            for row, turn in enumerate(self.turns)
        )
        return self._rebuild(turns)

    def with_template(self, template: Template | None) -> Prompt:
        """The same prompt asked in another template."""
        return self._rebuild(tuple(replace(turn, template=template) for turn in self.turns))

    def row(self, index: int) -> Prompt:
        """Row ``index`` as a prompt of its own, without padding."""
        return replace(self._rebuild((self.turns[index],)), batched=False)

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


def templates_of(model: nn.Module) -> Mapping[str, str]:
    """The templates that the model's own card names, or the paper's."""
    return getattr(model.config, "seeing_templates", None) or PAPER_TEMPLATES


def build(
    family: Family, model: nn.Module, processor: Any, turns: Sequence[Turn], *, batched: bool = False
) -> Prompt:
    """Run the processor over ``turns`` and label every token of what it makes.

    Raises:
        BadPrompt: no turns, words that the tokenizer does not know, a question that the chat template
            does not carry through.
        FamilyContractError: the tokens are not those that the family's geometry gives.
    """
    turns = tuple(turns)
    if not turns:
        raise BadPrompt("a batch needs at least one prompt")
    templates = templates_of(model)
    texts, starts = zip(*(_render(processor, turn, *turn.instruction(templates)) for turn in turns))
    bos = processor.tokenizer.bos_token
    special = not (bos and texts[0].startswith(bos))
    encoding = processor(
        text=list(texts),
        images=[image for turn in turns for image in turn.images],
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=special,
    )
    inputs = {key: value for key, value in encoding.items() if isinstance(value, Tensor)}
    if not inputs["attention_mask"].all():
        positions = family.positions(inputs["attention_mask"])
        inputs |= {} if positions is None else {"position_ids": positions}
    image_id = family.image_token_id(model)
    spans, grids, grid_rows = _label(
        family, model, processor, turns, texts, starts, inputs, image_id, special
    )
    return Prompt(
        inputs,
        turns,
        spans,
        grids,
        grid_rows,
        batched,
        lambda changed: build(family, model, processor, changed, batched=batched),
    )


def _render(processor: Any, turn: Turn, instruction: str, start: int) -> tuple[str, int]:
    """The text of one row, with a placeholder for each picture, and where in it the question starts.

    The same words may stand in the template too, so the place is marked, not searched for.
    """
    if processor.image_token in instruction:
        raise BadPrompt(
            f"the text {instruction!r} holds {processor.image_token!r}, which stands for a picture; leave it "
            f"out, the pictures are put in front of the question"
        )
    text = _chat(processor, turn, instruction)
    place = _chat(processor, turn, instruction[:start] + _MARK + instruction[start:]).find(_MARK)
    if place < 0 or not text.startswith(turn.question, place):
        raise BadPrompt(f"the chat template changed the question {turn.question!r}; it made {text!r}")
    return text, place


def _chat(processor: Any, turn: Turn, instruction: str) -> str:
    if getattr(processor, "chat_template", None) is None:
        return processor.image_token * len(turn.images) + "\n" + instruction
    content = [{"type": "image"} for _ in turn.images] + [{"type": "text", "text": instruction}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def _label(family, model, processor, turns, texts, starts, inputs, image_id, special):
    """Spans and grids of a batch."""
    ids = inputs["input_ids"]
    real = inputs["attention_mask"].bool()
    masks = {name: torch.zeros_like(real) for name in ("image", "question")}
    grids, grid_rows = [], []
    for row, (turn, text, start) in enumerate(zip(turns, texts, starts)):
        row_ids = ids[row][real[row]]
        shift = ids.shape[1] - len(row_ids)
        images = _images(family, model, processor, turn, row_ids, image_id)
        runs = [len(positions) for positions in images]
        question = (start, start + len(turn.question))
        found = _question(processor, text, question, row_ids, image_id, runs, special)
        masks["question"][row, found + shift] = True
        for number, positions in enumerate(images):
            grid = family.grid(model, processor, turn.images[number].size, positions).shifted(shift)
            grids.append(grid)
            grid_rows.append(row)
            masks.setdefault(f"image:{number}", torch.zeros_like(real))[row, grid.positions] = True
            masks["image"][row, grid.positions] = True
    masks["template"] = real & ~masks["image"] & ~masks["question"]
    masks["text"] = real & ~masks["image"]
    return Spans(masks), tuple(grids), tuple(grid_rows)


def _images(family, model, processor, turn, row_ids, image_id) -> list[Int[Tensor, " token"]]:
    """The positions of each picture's tokens in an unpadded row."""
    positions = (row_ids == image_id).nonzero()[:, 0]
    counts = [family.n_tokens(model, processor, image.size) for image in turn.images]
    if sum(counts) != len(positions):
        sizes = ", ".join(f"{width}×{height}" for width, height in (image.size for image in turn.images))
        raise FamilyContractError(
            f"{family.name}: {len(turn.images)} image(s) of {sizes} gave {len(positions)} image tokens in "
            f"input_ids, the family's geometry gives {sum(counts)}. The processor and the vision config "
            f"disagree (patch size, image size, vision_feature_select_strategy)"
        )
    return list(positions.split(counts))


def _question(processor, text, question, row_ids, image_id, runs, special) -> Int[Tensor, " token"]:
    """The positions of the question's tokens in an unpadded row.

    The text before expansion is tokenized with its character offsets; a placeholder there is a run
    of image tokens in ``row_ids``, every other token is the same in both.
    """
    start, end = question
    short = processor.tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    _known_words(processor.tokenizer, text, short)
    found, place, runs = [], 0, iter(runs)
    for token, (a, b) in zip(short["input_ids"], short["offset_mapping"]):
        if place >= len(row_ids) or token != int(row_ids[place]):
            raise BadPrompt(
                f"the processor changed the text around {text[a:b]!r}; can't tell which token is what"
            )
        if a < end and b > start and a < b:
            found.append(place)
        place += next(runs) if token == image_id else 1
    return torch.tensor(found, dtype=torch.long)


def _known_words(tokenizer: Any, text: str, short: Mapping[str, Any]) -> None:
    """Refuse words that became the unknown token: the model would answer another question."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return
    words = [
        text[a:b] for token, (a, b) in zip(short["input_ids"], short["offset_mapping"]) if token == unknown
    ]
    if words and tokenizer.unk_token not in words:
        size = len(tokenizer)
        known = f"; it knows: {', '.join(sorted(tokenizer.get_vocab()))}" if size < 100 else ""
        raise BadPrompt(f"the tokenizer does not know {', '.join(map(repr, words))}{known}")
