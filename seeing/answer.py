"""What a run hands back: activations, an answer that knows its probabilities, a pass to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from seeing.prompt import Prompt
from seeing.queries import Queries


class Activations(dict[str, Tensor]):
    """Activations by their full names, and what they are of: the ``prompt`` as the run showed it, and which
    rows of attention, ``queries``, were read.
    """

    def __init__(
        self, *args: Any, prompt: Prompt | None = None, queries: Queries | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.prompt, self.queries = prompt, queries


class Answer(str):
    """What the model said: a string, with the ids and log-probabilities it was made of.

    Attributes:
        ids: (token,) the generated ids, up to and including end-of-sequence.
        token_logprobs: (token,) the log-probability of each in the step that chose it.
        logprob: their sum.
    """

    ids: Int[Tensor, " token"]
    token_logprobs: Float[Tensor, " token"]

    @classmethod
    def of(cls, text: str, ids: Tensor, token_logprobs: Tensor) -> Answer:
        answer = cls(text)
        answer.ids, answer.token_logprobs = ids, token_logprobs
        return answer

    @property
    def logprob(self) -> float:
        return float(self.token_logprobs.sum())


@dataclass(frozen=True)
class Score:
    """How likely given answers are, token by token.

    Attributes:
        logits: (batch, token, d_vocab) at the positions that predict an answer's tokens.
        token_logprobs: (batch, token) the log-probability of each, NaN behind a shorter answer.
        logprob: (batch,) their sums; NaN where a token's is.
    """

    logits: Float[Tensor, "batch token d_vocab"]
    token_logprobs: Float[Tensor, "batch token"]
    logprob: Float[Tensor, " batch"]

    @classmethod
    def of(cls, logits: Float[Tensor, "batch token d_vocab"], answers: Sequence[Tensor]) -> Score:
        ids = pad_sequence([one.to(logits.device) for one in answers], batch_first=True)
        real = pad_sequence([torch.ones_like(one) for one in answers], batch_first=True).to(ids.device) > 0
        found = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return cls(logits, found.masked_fill(~real, torch.nan), found.masked_fill(~real, 0.0).sum(1))


@dataclass(frozen=True)
class Prefill:
    """A prompt pass that keeps its keys and values.

    Attributes:
        activations: the names that were read.
        past_key_values: the KV cache behind the whole prompt.
        logits: (batch, d_vocab) of the last position.
    """

    activations: dict[str, Tensor]
    past_key_values: Cache
    logits: Float[Tensor, "batch d_vocab"]
