"""Aya Vision and Command A Vision (cohere2_vision): InternVL's tiles before a SigLIP tower and a Cohere 2 text model.

Geometry. The picture is squashed to a grid of tiles, row by row, and the whole picture squashed into one tile
comes last; a picture of one tile is that tile alone. Aya Vision takes the grid nearest in aspect, Command A
Vision the one that scales the picture up least. ``downsample_factor`` patches a side are one token.

Traps. The text has ``<image>`` and the tokens are ``<|IMG_PATCH|>``; between Aya Vision's tiles are words
(``TILE_1``), between Command A Vision's a line break. Aya Vision's projector gives its output as a raster of
four axes. The layers of the text model have one norm and two parallel branches. Aya Vision applies no
``logit_scale``.
"""

from __future__ import annotations

from torch import nn

from seeing.families.family import Stack
from seeing.families.internvl import InternVL
from seeing.families.stacks import raster_tower
from seeing.families.tiles import least_scaled


class AyaVision(InternVL):
    """`AyaVisionForConditionalGeneration`."""

    name = "aya_vision"
    model_types = frozenset({"aya_vision"})

    def vision(self, model: nn.Module) -> Stack:
        return raster_tower(model.get_encoder(modality="image"))

    def _tokens(self, model: nn.Module) -> int:
        return self._side(model) // self._patch(model) // model.config.downsample_factor


class Cohere2Vision(AyaVision):
    """`Cohere2VisionForConditionalGeneration`."""

    name = "cohere2_vision"
    model_types = frozenset({"cohere2_vision"})

    def _canvas(self, image_size: tuple[int, int], side: int, least: int, most: int) -> tuple[int, int]:
        return least_scaled(image_size, side, most)
