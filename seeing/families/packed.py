"""What Qwen-VL and GLM-V share: a tower that packs patches in merge groups, and pictures squashed to fit.

Both round the sides of a picture to multiples of patch × merge, squash it to that, cut patches, and make one
token of merge × merge patches, in reading order. Their towers take the patches of all pictures in one row,
merge group by merge group.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.families.stacks import decoder_stack
from seeing.grid import View, VisualGrid

#: What the last linear map of a block's MLP is called.
_DOWN = ("fc2", "down_proj", "linear_fc2")


class Packed(Family):
    """A family with a packed tower. Its subclasses say how a picture is resized."""

    required = ("mm_token_type_ids", "image_grid_thw")
    pixels = ("pixel_values", "image_grid_thw")

    def text(self, model: nn.Module) -> Stack:
        return decoder_stack(model.get_decoder())

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        config = tower.config
        width = tower.blocks[0].attn.proj.in_features
        return Stack(
            name="vision",
            layers=tuple(tower.blocks),
            n_heads=config.num_heads,
            n_kv_heads=config.num_heads,
            d_head=width // config.num_heads,
            d_model=width,
            attn="attn",
            out="proj",
            down=next(name for name in _DOWN if hasattr(tower.blocks[0].mlp, name)),
            packed=True,
        )

    def projector(self, model: nn.Module) -> nn.Module:
        return model.get_encoder(modality="image").merger

    def positions(self, attention_mask: Int[Tensor, "batch pos"]) -> None:
        """The model counts by itself, from the mask and the token types."""
        return None

    def resized(self, settings: Any, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the image processor's resize."""
        raise NotImplementedError

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        rows, cols = self._raster(processor, image_size)
        return rows * cols

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        rows, cols = self._raster(processor, image_size)
        side = _side(processor.image_processor)
        view = View((0.0, 0.0, *map(float, image_size)), (cols * side, rows * side))
        return VisualGrid.regular(image_size, view, rows, cols, positions)

    def _raster(self, processor: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        width, height = image_size
        settings = processor.image_processor
        height, width = self.resized(settings, height, width)
        return height // _side(settings), width // _side(settings)

    def patch_order(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Int[Tensor, " patch"]:
        merge = model.config.vision_config.spatial_merge_size
        slots, start = [], 0
        for frames, rows, cols in inputs["image_grid_thw"].tolist():
            grouped = torch.arange(frames * rows * cols).view(
                frames, rows // merge, cols // merge, merge, merge
            )
            slots.append(start + grouped.transpose(2, 3).flatten())
            start += frames * rows * cols
        return torch.cat(slots)


def smart_resize(settings: Any, **size: int) -> tuple[int, int]:
    """The image processor's own rule, from the module that defines it."""
    for kind in type(settings).__mro__:
        if rule := getattr(sys.modules[kind.__module__], "smart_resize", None):
            return rule(**size)
    raise FamilyContractError(
        f"{type(settings).__name__} is no image processor of Qwen-VL or GLM-V: its module has no smart_resize"
    )


def _side(settings: Any) -> int:
    """Pixels of a token's side after the resize."""
    return settings.patch_size * settings.merge_size
