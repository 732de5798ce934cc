"""Teacher forcing: a given answer behind its prompt, as if the model had just said it.

How likely is this answer, and what does it hang on? One pass over the prompt and the answer's tokens tells,
for each of them, what generation would have told in the step that chose it, since no token sees a later one.
The tokens stand on the right of the prompt, shorter answers of a batch padded behind them, so the prompt's
own positions stay what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from seeing.families import Family, FamilyContractError
from seeing.spans import Spans
from seeing.turns import BadPrompt

#: Tensors of one number a token, and what an answer's tokens have there.
_PER_TOKEN = {"attention_mask": 1, "mm_token_type_ids": 0}


def answer_ids(tokenizer: Any, text: str, answer: str, special: bool) -> Int[Tensor, " token"]:
    """The tokens of ``answer`` as they would be generated behind ``text``.

    A space stands between a word and the answer, none behind white space or a mark of the chat template.
    Where the first token of the answer would melt into the text, the answer is tokenized by itself: what is
    generated starts with a token of its own. Raises `BadPrompt` for an answer without tokens, or with words
    that the tokenizer does not know.
    """
    if not isinstance(answer, str) or not answer.strip():
        raise BadPrompt(f"an answer is a non-empty text, or its token ids; got {answer!r:.200}")
    before = tokenizer(text, add_special_tokens=special)["input_ids"]
    marked = bool(before) and before[-1] in tokenizer.added_tokens_decoder
    said = answer if marked or not text or text[-1].isspace() else " " + answer
    whole = tokenizer(text + said, add_special_tokens=special)["input_ids"]
    alone = whole[: len(before)] != before
    ids = tokenizer(said, add_special_tokens=False)["input_ids"] if alone else whole[len(before) :]
    unknown = tokenizer.unk_token_id
    if not ids or (unknown is not None and unknown in ids and tokenizer.unk_token not in answer):
        raise BadPrompt(f"the tokenizer does not know the answer {answer!r:.200}; it made {ids}")
    return torch.tensor(ids, dtype=torch.long)


def checked_ids(ids: Any, n_vocab: int) -> Int[Tensor, " token"]:
    """Token ids of one answer. Raises `BadPrompt` for anything else."""
    try:
        found = torch.as_tensor(ids).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadPrompt(f"an answer is a text, an Answer or token ids; got {ids!r:.200}") from error
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.ndim != 1 or not len(found) or not whole or found.min() < 0 or found.max() >= n_vocab:
        raise BadPrompt(
            f"an answer's token ids are one row of whole numbers from 0 to {n_vocab - 1}; got {ids!r:.200}"
        )
    return found.long()


def forced_inputs(
    family: Family, inputs: Mapping[str, Tensor], answers: Sequence[Int[Tensor, " _"]], filler: int
) -> dict[str, Tensor]:
    """The model's inputs with each row's answer behind it. Raises `FamilyContractError` for a tensor of the
    tokens that it is not known how to go on with."""
    rows, length = inputs["input_ids"].shape
    longest = max(map(len, answers))
    out = dict(inputs)
    out["input_ids"] = pad(inputs["input_ids"], (0, longest), value=filler)
    for row, ids in enumerate(answers):
        out["input_ids"][row, length : length + len(ids)] = ids
    real = torch.stack([torch.arange(longest) < len(ids) for ids in answers])
    for name, value in {**_PER_TOKEN, "token_type_ids": family.answer_type}.items():
        if name in inputs:
            new = torch.where(real, value, 0 if name == "attention_mask" else value).to(inputs[name])
            out[name] = torch.cat([inputs[name], new], 1)
    if "cross_attention_mask" in inputs:
        mask = inputs["cross_attention_mask"]
        out["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, longest, -1, -1)], 1)
    out.pop("position_ids", None)
    if not out["attention_mask"].all():
        positions = family.positions(out["attention_mask"])
        out |= {} if positions is None else {"position_ids": positions}
    for name, value in out.items():
        if value.shape[:2] == (rows, length) and name not in family.pixels:
            raise FamilyContractError(
                f"{family.name}: {name!r} has one value a token of the prompt, and it is not known what an "
                f"answer's tokens have there; the model's inputs are {', '.join(inputs)}"
            )
    return out


def forced_spans(spans: Spans, answers: Sequence[Int[Tensor, " _"]]) -> Spans:
    """The spans with those of the answers: ``answer`` holds their tokens too, ``predicts`` the positions
    whose next token is one of them. As of decoded tokens, no other span holds any."""
    longest, length = max(map(len, answers)), spans.shape[1]
    masks = {name: pad(spans.mask(name), (0, longest)) for name in spans}
    place = torch.arange(length + longest)
    ends = torch.tensor([[length + len(ids)] for ids in answers])
    said = (place >= length) & (place < ends)
    masks["answer"] = said | masks.get("answer", torch.zeros_like(said))
    masks["predicts"] = (place >= length - 1) & (place < ends - 1)
    return Spans(masks)
