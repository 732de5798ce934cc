"""A bare Hugging Face model whose attention is the textbook formula, with hands in it.

`Eager` knows transformers' modules and nothing of the library. What a published method does is written into it
in a line, and its logits are those that the library's edits have to give.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

#: (layer, rows (batch, head, query, key), visible) -> rows.
Change = Callable[[int, Tensor, Tensor], Tensor]


class Eager:
    """``step_logits(inputs, ids)`` is one pass over a prompt and the tokens that were decoded behind it."""

    def __init__(self, model: torch.nn.Module):
        self.model = copy.deepcopy(model).eval()
        self.layers = list(self.model.get_decoder().layers)
        self.number = {id(layer.self_attn): number for number, layer in enumerate(self.layers)}
        self.scores: Change | None = None
        self.pattern: Change | None = None
        AttentionInterface.register("by_formula", self._attend)
        AttentionMaskInterface.register("by_formula", eager_mask)
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

    @contextlib.contextmanager
    def changed(self, scores: Change | None = None, pattern: Change | None = None) -> Iterator[None]:
        """Passes in which the rows of every text layer are changed."""
        self.scores, self.pattern = scores, pattern
        AttentionInterface.register("by_formula", self._attend)
        try:
            yield
        finally:
            self.scores = self.pattern = None

    @torch.no_grad()
    def step_logits(self, inputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """(batch, step, d_vocab): the logits that each token of ``ids`` (batch, step) was chosen from."""
        AttentionInterface.register("by_formula", self._attend)
        given = {name: value for name, value in inputs.items() if name != "position_ids"}
        longer = {"input_ids": ids[:, :-1], "attention_mask": torch.ones_like(ids[:, :-1])}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in given:
                longer[name] = torch.zeros_like(ids[:, :-1])
        for name, more in longer.items():
            given[name] = torch.cat([given[name], more], 1)
        logits = self.model(**given).logits
        return logits[:, -ids.shape[1] :]
