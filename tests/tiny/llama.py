"""A Llama written out, a loop over its layers, with drawn edits made by their formulas where they belong."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from tiny.drawn import HEADS, Drawn, Run


class Reference:
    """A LLaVA's Llama, layer by layer, from the embeddings of a prompt."""

    def __init__(self, bare):
        self.llama, self.head = bare.model.model.language_model, bare.model.lm_head

    def __call__(self, x: torch.Tensor, real: torch.Tensor, run: Run, drawn: list[Drawn]) -> torch.Tensor:
        self.run, self.drawn = run, drawn
        for number, layer in enumerate(self.llama.layers):
            x = self.edited("resid_pre", number, x)
            x = x + self.edited("attn_out", number, self.attention(number, layer, x, real))
            x = self.edited("resid_mid", number, x)
            normed = self.norm(layer.post_attention_layernorm, x)
            gate = torch.nn.functional.silu(normed @ layer.mlp.gate_proj.weight.T)
            mlp = (gate * (normed @ layer.mlp.up_proj.weight.T)) @ layer.mlp.down_proj.weight.T
            x = self.edited("resid_post", number, x + self.edited("mlp_out", number, mlp))
        return self.norm(self.llama.norm, x) @ self.head.weight.T

    @staticmethod
    def norm(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return module.weight * x / (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt()

    def attention(self, number: int, layer: torch.nn.Module, x: torch.Tensor, real: torch.Tensor):
        attn, place = layer.self_attn, torch.arange(x.shape[1])
        x = self.norm(layer.input_layernorm, x)
        q, k, v = (
            (x @ one.weight.T).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for one in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        angles = place[:, None] / 10000 ** (torch.arange(0, 32, 2) / 32)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_complex(torch.stack(one.chunk(2, -1), -1).contiguous()) * turn for one in (q, k)
        )
        scores = (q @ k.transpose(-1, -2).conj()).real / math.sqrt(32)
        seen = ((place <= place[:, None]) & real[:, None, None, :]).expand_as(scores)
        scores = self.rows("scores", number, scores.masked_fill(~seen, -torch.inf), seen)
        # What cuts left over; a row without a key writes nothing.
        seen = scores > -torch.inf
        pattern = self.rows("pattern", number, scores.softmax(-1).nan_to_num(0), seen)
        z = self.heads(number, (pattern @ v).transpose(1, 2))
        return z.flatten(2) @ attn.o_proj.weight.T

    def each(self, part: str, number: int) -> Iterator[tuple[Drawn, int, torch.Tensor]]:
        for one in self.drawn:
            if one.part == part and number in one.layers:
                for step in one.steps:
                    yield one, step, one.chosen(self.run, step)

    def rows(self, part: str, number: int, value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        for one, step, chosen in self.each(part, number):
            keys = self.run.mask(one.keys, step)[:, None, None, :]
            new = one.fn(value, keys, seen)
            if part == "scores":
                new = new.masked_fill(value == -torch.inf, -torch.inf)
            heads = torch.zeros(HEADS, dtype=torch.bool)
            heads[list(range(HEADS)) if one.heads is None else one.heads[number]] = True
            value = torch.where(chosen[:, None, :, None] & heads[None, :, None, None], new, value)
        return value

    def heads(self, number: int, z: torch.Tensor) -> torch.Tensor:
        for one, _, chosen in self.each("z", number):
            for head in one.heads[number]:
                z = z.clone()
                z[:, :, head] = torch.where(chosen[..., None], one.fn(z[:, :, head]), z[:, :, head])
        return z

    def edited(self, site: str, number: int, x: torch.Tensor) -> torch.Tensor:
        for one, _, chosen in self.each(site, number):
            x = torch.where(chosen[..., None], one.fn(x), x)
        return x
