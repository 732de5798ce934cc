"""LLaVA 1.5: a CLIP or SigLIP tower, a two-layer projector, a Llama-like text model.

Geometry. The image processor scales the shorter side to S and crops the centre to S×S, so the ends
of the longer side are never seen (``do_pad=True`` of the LLaVA image processor pads to a square
instead, and everything is seen). The tower cuts the crop into patches; one patch is one token.

Traps. CLIP's tower starts with a CLS token: the strategy "default" drops it, "full" keeps it as the
first image token, which has no place. The features come from the hidden states that
``vision_feature_layer`` names, so that layers of the tower above it run and do nothing: -2 in the
released checkpoints. ``model_type`` llava with a Pixtral tower is another family.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.families.stacks import decoder_stack, raster_tower
from seeing.grid import Level, View, VisualGrid, cells

#: Towers whose patches are a raster over one square picture.
RASTER_TOWERS = ("clip_vision_model", "siglip_vision_model")


class Llava(Family):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower."""

    name = "llava"
    model_types = frozenset({"llava"})

    def speaks_for(self, config: Any) -> bool:
        return super().speaks_for(config) and config.vision_config.model_type in RASTER_TOWERS

    def text(self, model: nn.Module) -> Stack:
        decoder = model.get_decoder()
        return decoder_stack(decoder)

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        if tower.config.model_type not in RASTER_TOWERS:
            raise FamilyContractError(
                f"llava: the vision tower is {tower.config.model_type!r}, this family reads "
                f"{', '.join(RASTER_TOWERS)}"
            )
        return raster_tower(tower)

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.multi_modal_projector

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        _, rows, cols = seen_view(processor.image_processor, self._patch(model), image_size)
        return self._kept_cls(model) + rows * cols

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        view, rows, cols = seen_view(processor.image_processor, self._patch(model), image_size)
        cls = self._kept_cls(model)
        nowhere = torch.full((cls, 4), torch.nan, dtype=torch.float64)
        return VisualGrid(
            image_size=image_size,
            positions=positions,
            boxes=torch.cat([nowhere, cells(image_size, view, rows, cols)]),
            view=view,
            levels=(Level("patch", rows, cols, start=cls),),
        )

    def _patch(self, model: nn.Module) -> int:
        return model.config.vision_config.patch_size

    def _kept_cls(self, model: nn.Module) -> int:
        """1 where the tower's CLS token stays as the first image token, else 0."""
        has_cls = model.config.vision_config.model_type == "clip_vision_model"
        return int(has_cls and model.config.vision_feature_select_strategy == "full")


def seen_view(settings: Any, patch: int, image_size: tuple[int, int]) -> tuple[View, int, int]:
    """The part of the image that the patches cover, and how many (rows, columns) of patches there are.

    Follows the image processor: pad to a square (``do_pad``), resize, centre crop. The view's box is
    in pixels of the original and reaches outside it where the processor padded.
    """
    width, height = image_size
    x0 = y0 = 0
    if getattr(settings, "do_pad", False):
        side = max(width, height)
        x0, y0 = -((side - width) // 2), -((side - height) // 2)
        width = height = side
    new_width, new_height = resized(settings, width, height)
    left = top = 0
    out_width, out_height = new_width, new_height
    if settings.do_center_crop:
        out_width, out_height = settings.crop_size["width"], settings.crop_size["height"]
        left, top = (new_width - out_width) // 2, (new_height - out_height) // 2
    rows, cols = out_height // patch, out_width // patch
    per_x, per_y = width / new_width, height / new_height
    box = (
        x0 + left * per_x,
        y0 + top * per_y,
        x0 + (left + cols * patch) * per_x,
        y0 + (top + rows * patch) * per_y,
    )
    return View(tuple(map(float, box)), (cols * patch, rows * patch)), rows, cols


def resized(settings: Any, width: int, height: int) -> tuple[int, int]:
    """(width, height) after the processor's resize."""
    if not settings.do_resize:
        return width, height
    size = {key: value for key, value in dict(settings.size).items() if value}
    if set(size) == {"height", "width"}:
        return size["width"], size["height"]
    if set(size) != {"shortest_edge"}:
        raise FamilyContractError(
            f"llava: the image processor resizes to {size}; this family reads "
            f"{{'shortest_edge'}} or {{'height', 'width'}}"
        )
    short, long = min(width, height), max(width, height)
    shorter, longer = size["shortest_edge"], int(size["shortest_edge"] * long / short)
    return (shorter, longer) if width <= height else (longer, shorter)
