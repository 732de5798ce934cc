"""What a run hands back: activations, an answer that knows its probabilities, a pass to go on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
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
