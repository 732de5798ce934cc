"""Qwen-VL (2, 2.5, 3, 3.5 and their mixtures of experts): pictures at their own resolution.

Geometry. Sides are rounded to multiples of patch × merge within the pixel limits; the picture is squashed
to that, and merge × merge patches become one token, in reading order (see `packed`).

Traps. Qwen2.5 reorders the merge groups window by window from before its first block to behind the
merger, whose output is in window order. The tower's ``attn`` gives no weights. Without
``mm_token_type_ids`` positions are wrong: an error in most, silence in Qwen2.5. Qwen3 adds features of
earlier tower layers between the first text layers (DeepStack): ``resid_post`` of one is not ``resid_pre`` of
the next. Qwen3.5 has attention in some layers only, the others are linear and have no rows; its
queries come with a gate, behind which z is read. Mixtures of experts have no single ``mlp.post``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from seeing.families.packed import Packed, smart_resize


class QwenVL(Packed):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, dense or with experts."""

    name = "qwen_vl"
    model_types = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"})

    def resized(self, settings: Any, height: int, width: int) -> tuple[int, int]:
        return smart_resize(
            settings,
            height=height,
            width=width,
            factor=settings.patch_size * settings.merge_size,
            min_pixels=settings.size["shortest_edge"],
            max_pixels=settings.size["longest_edge"],
        )

    def patch_order(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Int[Tensor, " patch"]:
        slots = super().patch_order(model, inputs)
        if (groups := _windows(model, inputs)) is None:
            return slots
        unit = model.config.vision_config.spatial_merge_size**2
        return groups.argsort()[slots // unit] * unit + slots % unit

    def feature_order(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Int[Tensor, " token"] | None:
        groups = _windows(model, inputs)
        return None if groups is None else groups.argsort()


def _windows(model: nn.Module, inputs: Mapping[str, Tensor]) -> Int[Tensor, " token"] | None:
    """The merge groups in the order in which a windowed tower holds them."""
    config = model.config.vision_config
    if not hasattr(config, "window_size"):
        return None
    index, _ = get_vision_window_index(
        inputs["image_grid_thw"].cpu(),
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    return index
