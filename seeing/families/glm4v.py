"""GLM-4V (4.1V, 4.5V and its mixture of experts): pictures at their own resolution.

Geometry. As Qwen-VL (see `packed`), but the pixel limits count the two frames that a still picture is
doubled to.

Traps. Text layers have norms on the output of both branches, so what the output projection gives is not what
the stream gets. A convolution behind the blocks merges the patches, and the merger follows it. Videos use the
same image token. Of the mixture of experts the first layers are dense.
"""

from __future__ import annotations

from typing import Any

from seeing.families.packed import Packed, smart_resize


class Glm4V(Packed):
    """GLM-4V, dense or with experts."""

    name = "glm4v"
    model_types = frozenset({"glm4v", "glm4v_moe"})

    def resized(self, settings: Any, height: int, width: int) -> tuple[int, int]:
        return smart_resize(
            settings,
            num_frames=settings.temporal_patch_size,
            height=height,
            width=width,
            temporal_factor=settings.temporal_patch_size,
            factor=settings.patch_size * settings.merge_size,
            min_pixels=settings.size["shortest_edge"],
            max_pixels=settings.size["longest_edge"],
        )
