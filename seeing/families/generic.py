"""A family for models that no other speaks for: modules found by their kind, places unknown.

``load(…, family="generic")`` tries it, and the proof at load decides whether the view holds. It resolves
the stacks through transformers' own accessors and the usual names of parts. How pixels map to tokens
can't be guessed, so its tokens have no place: names, edits by span and allocation work, evidence and heat
maps don't. Write a family for those (docs/add-a-family.md); this one is a good start for its first half.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.grid import View, VisualGrid

_ATTENTION = ("self_attn", "attn", "attention")
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
        if any(hasattr(module, "cross_attn") for module in decoder.modules()):
            raise FamilyContractError(
                f"generic: {type(decoder).__name__} reads pictures by cross-attention, from keys that only a "
                f"family of its own can count (cross_grid); see docs/add-a-family.md"
            )
        return _stack("text", decoder, norm=getattr(decoder, "norm", None))

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        stack = _stack("vision", tower)
        attn = stack.layers[0].get_submodule(stack.attn)
        if "cu_seqlens" in inspect.signature(type(attn).forward).parameters:
            raise FamilyContractError(
                f"generic: {type(attn).__name__} takes the patches of all pictures packed in one row, in an "
                f"order that only a family of its own can say (packed=True, patch_order); "
                f"see docs/add-a-family.md"
            )
        return stack

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


def _stack(name: str, root: nn.Module, norm: nn.Module | None = None) -> Stack:
    """The first list of layers under ``root`` that hold attention; some of them may do without."""
    config = root.config
    for layers in root.modules():
        if not isinstance(layers, nn.ModuleList):
            continue
        layer = next((one for one in layers if _first(one, _ATTENTION)), None)
        if layer is None:
            continue
        attn, mlp = _first(layer, _ATTENTION), _need(layer, _MLP)
        kernel = getattr(layer, attn)
        n_heads = getattr(config, "num_attention_heads", None) or config.num_heads
        width = getattr(config, "hidden_size", None) or config.embed_dim
        return Stack(
            name=name,
            layers=tuple(layers),
            n_heads=n_heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
            # the module's own comes first: a configuration may have several
            d_head=getattr(kernel, "head_dim", None) or width // n_heads,
            d_model=width,
            attn=attn,
            out=_need(kernel, _OUT),
            mlp=mlp,
            down=_first(getattr(layer, mlp), _DOWN),
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
