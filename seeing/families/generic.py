"""A family for models that no other speaks for: modules found by their kind, places unknown.

``load(…, family="generic")`` tries it, and the proof at load decides whether the view holds. It resolves
the stacks through transformers' own accessors and the usual names of parts. How pixels map to tokens
can't be guessed, so its tokens have no place: names, edits by span and allocation work, evidence and heat
maps don't. Write a family for those (docs/add-a-family.md); this one is a good start for its first half.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.grid import View, VisualGrid

_ATTENTION = ("self_attn", "attn", "attention", "cross_attn")
_OUT = ("o_proj", "out_proj", "proj", "projection_layer", "dense")
_MLP = ("mlp", "feed_forward", "ffn")
_DOWN = ("down_proj", "fc2", "linear_fc2", "w2", "dense_4h_to_h")
_PROJECTOR = ("multi_modal_projector", "connector", "embed_vision", "merger", "projector", "mm_projector")


class Generic(Family):
    """Any image-text-to-text model whose parts have the usual names."""

    name = "generic"
    model_types: frozenset[str] = frozenset()

    def text(self, model: nn.Module) -> Stack:
        decoder = model.get_decoder()
        return _stack("text", decoder, decoder.config, norm=getattr(decoder, "norm", None))

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        return _stack("vision", tower, tower.config)

    def projector(self, model: nn.Module) -> nn.Module:
        found = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in _PROJECTOR]
        if not found:
            raise FamilyContractError(f"generic: no module is called one of {', '.join(_PROJECTOR)}")
        return found[0]

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        blank = Image.new("RGB", image_size)
        ids = processor(text=[self.placeholder(processor)], images=[[blank]], return_tensors="pt")[
            "input_ids"
        ]
        return int((ids == self.image_token_id(model)).sum())

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        nowhere = torch.full((len(positions), 4), torch.nan, dtype=torch.float64)
        width, height = image_size
        return VisualGrid(image_size, positions, nowhere, View((0.0, 0.0, width, height), image_size), ())


def _stack(name: str, root: nn.Module, config: Any, norm: nn.Module | None = None) -> Stack:
    """The first list of layers under ``root`` that hold attention."""
    for module in root.modules():
        if not (isinstance(module, nn.ModuleList) and len(module)):
            continue
        attn = _first(module[0], _ATTENTION)
        if attn is None:
            continue
        mlp = _need(module[0], _MLP)
        n_heads = getattr(config, "num_attention_heads", None) or config.num_heads
        width = getattr(config, "hidden_size", None) or config.embed_dim
        return Stack(
            name=name,
            layers=tuple(module),
            n_heads=n_heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
            d_head=getattr(config, "head_dim", None) or width // n_heads,
            d_model=width,
            attn=attn,
            out=_need(getattr(module[0], attn), _OUT),
            mlp=mlp,
            down=_first(getattr(module[0], mlp), _DOWN),
            norm=norm,
        )
    raise FamilyContractError(
        f"generic: no list of layers with {' or '.join(_ATTENTION)} in {type(root).__name__}"
    )


def _first(module: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if getattr(module, name, None) is not None), None)


def _need(module: nn.Module, names: tuple[str, ...]) -> str:
    if (found := _first(module, names)) is None:
        children = ", ".join(name for name, _ in module.named_children())
        raise FamilyContractError(
            f"generic: {type(module).__name__} has none of {', '.join(names)}; it holds: {children}"
        )
    return found
