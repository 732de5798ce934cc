"""InternVL: a grid of square tiles whose aspect is nearest the picture's, then the whole picture.

Geometry. The picture is squashed to rows × cols tiles, of the grids with ``min_patches`` to ``max_patches``
tiles the one nearest in aspect. Tiles come row by row, and the whole picture squashed into one tile comes
last; a picture of one tile is that tile alone. Pixel shuffle merges 1/``downsample_ratio`` patches a side
into a token, in reading order.

Traps. The processor's class turns ``crop_to_patches`` on, whatever its image processor says. The number of
tiles jumps with the aspect, and of grids of the same aspect the size of the picture decides. The tower
starts with a CLS token, which the strategy "default" drops ahead of the pixel shuffle; its layers are
``encoder.layer``, and each scales its branches by ``lambda_1`` and ``lambda_2``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from seeing.families.family import Family, FamilyContractError, Stack
from seeing.families.stacks import raster_tower
from seeing.families.tiles import (
    check_side,
    closest_aspect,
    n_tiles,
    setting,
    square,
    text_stack,
    tiled_grid,
)
from seeing.grid import VisualGrid


class InternVL(Family):
    """`InternVLForConditionalGeneration`."""

    name = "internvl"
    model_types = frozenset({"internvl"})

    def text(self, model: nn.Module) -> Stack:
        return text_stack(model)

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        if tower.config.model_type != "internvl_vision":
            raise FamilyContractError(
                f"{self.name}: the vision tower is {tower.config.model_type!r}, this family reads 'internvl_vision'"
            )
        layers = tuple(tower.encoder.layer)
        return raster_tower(tower, layers=layers, attn="attention", out="projection_layer")

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.multi_modal_projector

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        n = self._tokens(model)
        return n_tiles(self._tiles(model, processor, image_size)) * n * n

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        tiles, side = self._tiles(model, processor, image_size), self._side(model)
        covered = side // self._patch(model) * self._patch(model)
        return tiled_grid(image_size, tiles, side, covered, self._tokens(model), positions)

    def _tiles(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, cols) of tiles."""
        side = self._side(model)
        check_side(self.name, processor.image_processor.size["height"], side)
        most = setting(processor, "max_patches")
        if not setting(processor, "crop_to_patches") or most <= 1:
            return 1, 1
        return self._canvas(image_size, side, setting(processor, "min_patches"), most)

    def _canvas(self, image_size: tuple[int, int], side: int, least: int, most: int) -> tuple[int, int]:
        return closest_aspect(image_size, side, least, most)

    def _side(self, model: nn.Module) -> int:
        return square(model.config.vision_config.image_size, "image_size")

    def _patch(self, model: nn.Module) -> int:
        return square(model.config.vision_config.patch_size, "patch_size")

    def _tokens(self, model: nn.Module) -> int:
        """Tokens a side of a tile."""
        return int(self._side(model) // self._patch(model) * model.config.downsample_ratio)
