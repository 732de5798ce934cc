"""InternVL: the picture in square tiles, and after them the picture as a whole.

Geometry. Of all canvases of ``min_patches`` to ``max_patches`` tiles the one whose aspect is nearest to
the picture's is taken, and the picture squashed to it. Tiles follow row by row; where there are several,
the picture squashed to one tile comes last. The tower cuts a tile into patches, 1 / ``downsample_ratio``
squared of them are one token (pixel shuffle), in reading order.

Traps. The canvas depends on the aspect first, and on the size only between canvases of the same aspect,
so that a small change of size may change the number of tokens by a multiple. The tower has a CLS token,
which is dropped before the projector: patterns of the tower have one row and one column more than
patches, at the front. Branches of the tower's layers are scaled (``lambda_1``, ``lambda_2``). The
processor asks for tiles even where the image processor's own setting says not to.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from seeing.families.family import Family, Stack
from seeing.families.stacks import decoder_stack
from seeing.families.tiles import Tile, n_tiles, one_number, side_of, tiled_grid
from seeing.grid import VisualGrid


class InternVL(Family):
    """`InternVLForConditionalGeneration` with InternVL's own tower, and any decoder spelled as Llama's."""

    name = "internvl"
    model_types = frozenset({"internvl"})

    def text(self, model: nn.Module) -> Stack:
        return decoder_stack(model.get_decoder())

    def vision(self, model: nn.Module) -> Stack:
        tower = model.get_encoder(modality="image")
        n_heads, width = tower.config.num_attention_heads, tower.config.hidden_size
        return Stack(
            name="vision",
            layers=tuple(tower.encoder.layer),
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_head=width // n_heads,
            d_model=width,
            attn="attention",
            out="projection_layer",
            down="fc2",
        )

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.multi_modal_projector

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        tile = self._tile(model, processor)
        return n_tiles(nearest_canvas(self.name, processor, image_size)) * tile.tokens

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        canvas = nearest_canvas(self.name, processor, image_size)
        return tiled_grid(image_size, self._tile(model, processor), canvas, positions)

    def _tile(self, model: nn.Module, processor: Any) -> Tile:
        side = side_of(self.name, processor.image_processor.size)
        patch = one_number(model.config.vision_config.patch_size)
        tile = Tile(side, patch, int(1 / model.config.downsample_ratio))
        return tile.check(self.name, processor.image_seq_length)


def nearest_canvas(name: str, processor: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """(columns, rows) of tiles of the canvas whose aspect is nearest to the picture's.

    Of canvases alike the largest is taken of which the picture, unscaled, fills more than half.
    """
    settings = processor.image_processor
    asked = getattr(processor, "images_kwargs", {})
    if not asked.get("crop_to_patches", settings.crop_to_patches):
        return 1, 1
    fewest, most = settings.min_patches, settings.max_patches
    counts = range(1, most + 1)
    canvases = [(cols, rows) for cols in counts for rows in counts if fewest <= cols * rows <= most]
    (width, height), side = image_size, side_of(name, settings.size)
    best, difference = (1, 1), float("inf")
    for cols, rows in sorted(canvases, key=lambda canvas: canvas[0] * canvas[1]):
        found = abs(width / height - cols / rows)
        fills = width * height > 0.5 * side * side * cols * rows
        if found < difference or (found == difference and fills):
            best, difference = (cols, rows), found
    return best
