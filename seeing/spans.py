"""Which position holds what: every token of a batch labelled, from the text that was tokenized.

A processor expands each picture's placeholder into many tokens, some families with markers of their own
between them, and forgets which token was what. Image tokens are known by their id. The words that are
asked about stand behind the last picture, where nothing is expanded, so they are found from the end of
the row: the text before expansion is tokenized with its character offsets, and its last tokens are those
of the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from seeing.families import Family, FamilyContractError
from seeing.grid import VisualGrid
from seeing.turns import BadPrompt, Turn


class Spans(Mapping[str, Tensor]):
    """Which positions hold what: ``image``, ``image:0`` …, ``question``, ``template``, ``text``.

    ``spans[name]`` is (batch, n) positions in order, one row an item, filled with −1 where rows hold
    different numbers; ``spans.mask(name)`` is the same as (batch, pos) booleans. ``answer`` are earlier
    answers, where there are some; ``text`` is all but images and padding.
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

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos)"""
        return tuple(self._masks["image"].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        counts = {name: mask.sum(1).tolist() for name, mask in self._masks.items()}
        sizes = (f"{name} {n[0] if len(n) == 1 else n}" for name, n in counts.items())
        return f"Spans({', '.join(sizes)}; numbers are tokens)"


@dataclass(frozen=True)
class Rendered:
    """The text of one row before expansion, and where in it (characters) question and answers stand."""

    text: str
    question: tuple[int, int]
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Labels:
    """The spans and grids of a batch; ``rows`` says which row each grid belongs to."""

    spans: Spans
    grids: tuple[VisualGrid, ...]
    rows: tuple[int, ...]


def label(
    family: Family,
    model: nn.Module,
    processor: Any,
    turns: Sequence[Turn],
    texts: Sequence[Rendered],
    inputs: Mapping[str, Tensor],
    special: bool,
) -> Labels:
    """Label every token of a batch.

    Raises `FamilyContractError` when the image tokens are not those of the family's geometry, `BadPrompt`
    when the text can't be found again in the tokens.
    """
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    image_id = family.image_token_id(model)
    masks = {name: torch.zeros_like(real) for name in ("image", "question")}
    grids, rows, made = [], [], {}
    for row, (turn, text) in enumerate(zip(turns, texts)):
        row_ids = ids[row][real[row]]
        shift = ids.shape[1] - len(row_ids)
        for name, found in _words(family, processor, text, row_ids, special):
            masks.setdefault(name, torch.zeros_like(real))[row, found + shift] = True
        for number, positions in enumerate(_images(family, model, processor, turn, row_ids, image_id)):
            grid = _grid(family, model, processor, turn, number, positions, made)
            grid = grid.shifted(shift + int(positions[0] - grid.positions[0]))
            grids.append(grid)
            rows.append(row)
            masks.setdefault(f"image:{number}", torch.zeros_like(real))[row, grid.positions] = True
            masks["image"][row, grid.positions] = True
    said = masks["image"] | masks["question"] | masks.get("answer", torch.zeros_like(real))
    masks["template"] = real & ~said
    masks["text"] = real & ~masks["image"]
    return Labels(Spans(masks), tuple(grids), tuple(rows))


def label_keys(family: Family, model: nn.Module, processor: Any, turns: Sequence[Turn]) -> Labels | None:
    """The keys of cross-attention layers, labelled as tokens are; None for a family without such layers."""
    grids, rows, masks = [], [], {}
    for row, turn in enumerate(turns):
        for number, image in enumerate(turn.images):
            grid = family.cross_grid(model, processor, image.size, number)
            if grid is None:
                return None
            grids.append(grid)
            rows.append(row)
    if len(counts := {len(turn.images) for turn in turns}) > 1:
        raise BadPrompt(
            f"the rows of this batch have {sorted(counts)} pictures, and this model's words before a picture "
            f"attend to the keys of all of them, padding too: batch rows with as many pictures each"
        )
    n_keys = max(int(grid.positions[-1]) + 1 for grid in grids)
    for name in ("image", *(f"image:{number}" for number in range(max(len(turn.images) for turn in turns)))):
        masks[name] = torch.zeros(len(turns), n_keys, dtype=torch.bool)
    seen: dict[int, int] = {}
    for grid, row in zip(grids, rows):
        for name in ("image", f"image:{seen.get(row, 0)}"):
            masks[name][row, grid.positions] = True
        seen[row] = seen.get(row, 0) + 1
    return Labels(Spans(masks), tuple(grids), tuple(rows))


def _images(family, model, processor, turn, row_ids, image_id) -> list[Int[Tensor, " token"]]:
    """The positions of each picture's tokens in an unpadded row."""
    positions = (row_ids == image_id).nonzero()[:, 0]
    reader = family.among(len(turn.images))
    counts = [reader.n_tokens(model, processor, image.size) for image in turn.images]
    if sum(counts) != len(positions):
        sizes = ", ".join(f"{width}×{height}" for width, height in (image.size for image in turn.images))
        raise FamilyContractError(
            f"{family.name}: {len(turn.images)} image(s) of {sizes} gave {len(positions)} image tokens in "
            f"input_ids, the family's geometry gives {sum(counts)}. The processor and the vision config "
            f"disagree (patch size, image size, vision_feature_select_strategy), or the family's n_tokens or "
            f"image_token_id is wrong"
        )
    return list(positions.split(counts))


def _grid(family, model, processor, turn, number, positions, made) -> VisualGrid:
    """One picture's grid, somewhere in the sequence: pictures of a size whose tokens lie alike share it."""
    size = turn.images[number].size
    alike = len(turn.images), size, (positions - positions[0]).numpy().tobytes()
    if alike not in made:
        made[alike] = family.among(len(turn.images)).grid(model, processor, size, positions)
    return made[alike]


def _words(
    family: Family, processor: Any, text: Rendered, row_ids: Int[Tensor, " token"], special: bool
) -> Iterator[tuple[str, Int[Tensor, " token"]]]:
    """("question" or "answer", its positions in an unpadded row), counted from the row's end."""
    whole = family.tokenized(processor, text.text)
    moved = whole.rindex(text.text[text.question[0] :]) - text.question[0]
    short = processor.tokenizer(whole, return_offsets_mapping=True, add_special_tokens=special)
    _known_words(processor.tokenizer, whole, short)
    ids, offsets = short["input_ids"], short["offset_mapping"]
    for name, start, end in (("question", *text.question), *(("answer", *span) for span in text.answers)):
        start, end = start + moved, end + moved
        tokens = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and a < b]
        tail = len(ids) - tokens[0]
        if tail > len(row_ids) or ids[tokens[0] :] != row_ids[-tail:].tolist():
            raise BadPrompt(
                f"the processor changed the text behind {whole[start:end]!r:.80}; can't tell which "
                f"token is what"
            )
        yield name, torch.tensor([i - len(ids) + len(row_ids) for i in tokens], dtype=torch.long)


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
