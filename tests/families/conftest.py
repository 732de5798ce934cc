"""Every family as a tiny random model, beside an untouched twin that is read by hand.

The twin is a bare Hugging Face model that nnsight never wrapped, with torch's own hooks and an attention
function that writes the textbook formula out. It knows transformers' modules and nothing of the library.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.merged import BUILDERS as MERGED
from tiny.packed import BUILDERS as PACKED
from tiny.tiled import BUILDERS as TILED
from tiny.tiles_last import BUILDERS as TILES_LAST
from tiny.vip import BUILDERS as VIP
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

import seeing
from seeing.zoo import open_zoo

BUILDERS: dict[str, Callable] = {
    "llava": functools.partial(open_zoo, "plates-null"),
    **TILED,
    **TILES_LAST,
    **PACKED,
    **MERGED,
    **VIP,
}
QUESTION = "what digit is on the red square ?"


class Twin:
    """The bare model: ``run`` is one pass in which every attention is computed, kept and edited by hand."""

    def __init__(self, model: torch.nn.Module):
        self.model = copy.deepcopy(model).eval()

    def attend(self, module, q, k, v, attention_mask=None, scaling=None, **kwargs):
        """softmax(q·kᵀ·scaling + mask)·v, with what ``edits`` makes of each part."""
        edit = self.edits.get(module, lambda part, value: value)
        q, k, v = (edit(part, value.transpose(1, 2)).transpose(1, 2) for part, value in zip("qkv", (q, k, v)))
        self.calls.setdefault(module, []).append(call := {"q": q, "k": k, "v": v})
        group = q.shape[1] // k.shape[1]
        keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        scores = q @ keys.transpose(-1, -2) * scaling
        if (cap := kwargs.get("softcap")) is not None:
            scores = torch.tanh(scores / cap) * cap
        if attention_mask is not None:
            scores = scores + attention_mask[..., : keys.shape[2]]
        call["scores"] = scores = edit("scores", scores)
        call["pattern"] = pattern = edit("pattern", scores.softmax(-1))
        if pattern.requires_grad:
            pattern.retain_grad()
        call["z"] = z = edit("z", (pattern @ values).transpose(1, 2))
        return z, pattern

    def run(self, inputs: dict[str, torch.Tensor], edits=None, hooks=(), grad: bool = False) -> Any:
        """``hooks``: (module, "in" or "out", function of the tensor)."""
        self._by_hand(edits or {})
        undo = [self._hook(*hook) for hook in hooks]
        try:
            with torch.set_grad_enabled(grad):
                return self.model(**inputs).logits
        finally:
            for handle in undo:
                handle.remove()

    @torch.no_grad()
    def generate(self, inputs: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
        """The ids of a generation, every step's attention by hand."""
        self._by_hand({})
        return self.model.generate(**inputs, **settings)

    def _by_hand(self, edits: dict) -> None:
        self.edits, self.calls = edits, {}
        AttentionInterface.register("by_hand", self.attend)
        AttentionMaskInterface.register("by_hand", eager_mask)
        self.model.set_attn_implementation("by_hand")

    @staticmethod
    def _hook(module, side, fn):
        if side == "in":

            def pre(_, args, kwargs):
                if args:
                    return (fn(args[0]), *args[1:]), kwargs
                first = next(iter(kwargs))
                return args, {**kwargs, first: fn(kwargs[first])}

            return module.register_forward_pre_hook(pre, with_kwargs=True)

        def post(_, args, output):
            return (fn(output[0]), *output[1:]) if isinstance(output, tuple) else fn(output)

        return module.register_forward_hook(post)


class Case:
    """One family: its `vlm`, proved at load, and the `twin` of the same weights."""

    def __init__(self, name: str):
        self.name = name
        model, self.processor = BUILDERS[name]()
        self.twin = Twin(model)
        self.model = model
        self.vlm = seeing.load((model, self.processor))

    @property
    def layers(self) -> list[torch.nn.Module]:
        return list(self.twin.model.get_decoder().layers)

    def attention(self, layer: int) -> torch.nn.Module:
        module = self.layers[layer]
        return getattr(module, "self_attn", None) or module.cross_attn

    def prompt(self, width: int = 76, height: int = 52, question: str = QUESTION, seed: int = 0, **kwargs):
        return self.vlm.prompt(paint(width, height, seed), question, **kwargs)


@functools.cache
def case_of(name: str) -> Case:
    return Case(name)


def paint(width: int = 76, height: int = 52, seed: int = 0) -> Image.Image:
    """A picture of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def picture():
    return paint


@pytest.fixture(params=sorted(BUILDERS), scope="module")
def case(request) -> Case:
    return case_of(request.param)
