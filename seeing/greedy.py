"""Greedy decoding: what `generate` is told, and what it gives made into answers.

An answer knows the probability of each of its tokens, so every step's logits are kept until its token is
looked up in them, whatever the checkpoint itself prefers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from seeing.answer import Answer

#: One greedy sequence whose probabilities are kept.
GREEDY = dict(do_sample=False, num_beams=1, return_dict_in_generate=True, output_logits=True)

#: What is decoded at most, where neither the caller nor the checkpoint says so: the paper's.
LONGEST = 50


def greedy_settings(
    model: PreTrainedModel, max_new_tokens: int | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The keyword arguments of a greedy `generate`. Raises ValueError for settings that are not greedy."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"an answer has at least one token, got max_new_tokens={max_new_tokens}")
    given = dict(given)
    for setting, greedy in (("num_beams", 1), ("num_return_sequences", 1), ("do_sample", False)):
        if given.pop(setting, greedy) != greedy:
            raise ValueError(f"answer decodes greedily, {setting} is {greedy}; vlm.generate takes others")
    own = getattr(model.generation_config, "max_new_tokens", None)
    return dict(max_new_tokens=max_new_tokens or own or LONGEST, **GREEDY) | given


def answers_of(generated: Any, n_rows: int, model: PreTrainedModel, tokenizer: Any) -> list[Answer]:
    """The answers of the first ``n_rows`` rows; behind them there may be those of a second run."""
    new = generated.sequences[:n_rows, -len(generated.logits) :]
    chosen = [_logprobs(step[:n_rows], ids) for step, ids in zip(generated.logits, new.T)]
    stops = model.generation_config.eos_token_id
    stops = torch.tensor([stops] if isinstance(stops, int) else list(stops or ()), dtype=torch.long)
    return [_answer(*row, stops, tokenizer) for row in zip(new.cpu(), torch.stack(chosen, dim=1).cpu())]


def _logprobs(logits: Float[Tensor, "batch d_vocab"], ids: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    return logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _answer(
    ids: Int[Tensor, " step"], logprobs: Float[Tensor, " step"], stops: Int[Tensor, " stop"], tokenizer: Any
) -> Answer:
    ended = torch.isin(ids, stops).nonzero()[:, 0]
    length = int(ended[0]) + 1 if len(ended) else len(ids)
    text = tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
    return Answer.of(text, ids[:length], logprobs[:length])
