"""A bare Hugging Face model whose attention is the textbook formula, to write published methods into by hand.

`Eager` knows transformers' modules and nothing of the library. One pass over a prompt and the tokens that
were decoded behind it gives the logits that each token must have been chosen from.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

import seeing
from seeing.prompt import Prompt
from seeing.zoo import open_zoo
from tiny.merged import BUILDERS as MERGED
from tiny.packed import BUILDERS as PACKED
from tiny.parts import sharpen
from tiny.tiled import BUILDERS as TILED

#: Tokens of an answer: one from the prompt pass, one from the KV cache.
STEPS = 2

LONG = "what digit is on the blue circle on the red square ?"

#: (layer, rows (batch, head, query, key), visible) -> rows.
Change = Callable[[int, Tensor, Tensor], Tensor]


class Eager:
    """``logits(inputs, ids)`` is one pass over a prompt and the tokens that were decoded behind it."""

    def __init__(self, model: torch.nn.Module):
        self.model = copy.deepcopy(model).eval()
        self.layers = list(self.model.get_decoder().layers)
        self.number = {id(getattr(one, "self_attn", None)): number for number, one in enumerate(self.layers)}
        self.scores: Change | None = None
        self.pattern: Change | None = None
        AttentionMaskInterface.register("by_formula", eager_mask)
        AttentionInterface.register("by_formula", self._attend)
        self.model.set_attn_implementation("by_formula")

    def _attend(self, module, q, k, v, attention_mask=None, scaling=None, **kwargs):
        layer, group = self.number.get(id(module)), q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        visible = torch.ones_like(scores, dtype=torch.bool)
        if attention_mask is not None:
            visible = (attention_mask[..., : k.shape[2]] > -1e30).expand_as(scores)
        if layer is not None and self.scores is not None:
            scores = self.scores(layer, scores, visible)
        pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
        if layer is not None and self.pattern is not None:
            pattern = self.pattern(layer, pattern, visible)
        return (pattern @ v).transpose(1, 2), pattern

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """(batch, step, d_vocab): what each of the tokens ``ids`` (batch, step) was chosen from."""
        AttentionInterface.register("by_formula", self._attend)
        given, decoded = dict(inputs), ids[:, :-1]
        more = {"input_ids": decoded, "attention_mask": torch.ones_like(decoded)}
        for name in ("token_type_ids", "mm_token_type_ids"):
            more[name] = torch.zeros_like(decoded)
        if "position_ids" in given:
            more["position_ids"] = given["position_ids"][..., -1:] + 1 + torch.arange(decoded.shape[1])
        for name in more.keys() & given.keys():
            given[name] = torch.cat([given[name], more[name]], -1)
        return self.model(**given).logits[:, -ids.shape[1] :]


class Case:
    """A model under `seeing`, whose answers are `STEPS` tokens, and the same weights by the formula."""

    def __init__(self, model: torch.nn.Module, processor: Any):
        model.generation_config.max_new_tokens = STEPS
        model.generation_config.eos_token_id = None
        self.eager = Eager(model)
        self.vlm = seeing.load((model, processor), check=False)

    @functools.cached_property
    def batch(self) -> Prompt:
        """Two rows, the first padded, pictures of different shapes, with evidence."""
        prompt = self.vlm.prompts(
            [
                (painted(76, 52), "what digit is on the red square ?", ((20, 12, 50, 40),)),
                (painted(50, 90, 1), LONG, ((5, 20, 40, 60),)),
            ]
        )
        assert not prompt.inputs["attention_mask"].all()
        return prompt

    @functools.cached_property
    def single(self) -> Prompt:
        return self.vlm.prompt(painted(), LONG, [(20, 12, 50, 40)])

    def rows(self, prompt: Prompt, name: str) -> Tensor:
        """(batch, key): which positions of the prompt, and of what is decoded behind, a span holds."""
        return torch.nn.functional.pad(prompt.spans.mask(name), (0, STEPS - 1))

    def logprobs(self, prompt: Prompt, answers: Any) -> Tensor:
        """(batch, step, d_vocab) by the formula, behind the tokens of ``answers``."""
        return self.eager.logits(prompt.inputs, ids_of(answers)).log_softmax(-1)

    def by_hand(
        self, prompt: Prompt, answers: Any, scores: Change | None = None, pattern: Change | None = None
    ) -> Tensor:
        """`logprobs` with rows changed by hand, which must show in every row of the batch."""
        plain = self.logprobs(prompt, answers)
        self.eager.scores, self.eager.pattern = scores, pattern
        try:
            changed = self.logprobs(prompt, answers)
        finally:
            self.eager.scores = self.eager.pattern = None
        assert ((changed - plain).abs().amax((1, 2)) > 1e-3).all(), "what is done by hand changes nothing"
        return changed


def llava() -> tuple[torch.nn.Module, Any]:
    """The embedded model's shape, random weights."""
    model, processor = open_zoo("plates-null")
    sharpen(model)
    return model, processor


@functools.cache
def case_of(name: str) -> Case:
    return Case(*{**MERGED, **PACKED, **TILED, "llava": llava}[name]())


def painted(width: int = 76, height: int = 52, seed: int = 0) -> Image.Image:
    """A picture of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def ids_of(answers: Any) -> Tensor:
    """(batch, step): the tokens of answers."""
    return torch.stack([one.ids for one in (answers if isinstance(answers, list) else [answers])])


def agree(answers: Any, logprobs: Tensor, tolerance: float = 1e-4) -> None:
    """The answers are the best tokens of ``logprobs`` (batch, step, d_vocab), at every step."""
    given = answers if isinstance(answers, list) else [answers]
    assert ids_of(answers).shape[1] == STEPS
    best = logprobs.max(-1)
    found = torch.stack([one.token_logprobs for one in given])
    torch.testing.assert_close(found, best.values, atol=tolerance, rtol=0)
    assert torch.equal(ids_of(answers), best.indices)
