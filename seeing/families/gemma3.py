"""Gemma 3: a SigLIP tower on a square picture, whose patches are pooled to a fixed number of tokens.

Geometry. The picture is squashed to S×S; k×k patches are averaged into one token, n×n tokens in all.

Traps. Norms sit on the output of both branches of a text layer. Image tokens see each other both ways, in
every layer; without ``token_type_ids`` the model runs causally and says nothing. Embeddings of words are
scaled by √d_model, image features are not. The projection is a bare parameter that starts at zero. What
stands for a picture in the prompt is ``<start_of_image>``, and its tokens are another id. Pan and scan
(extra crops of long pictures) is off in the released processors and not read.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from seeing.families.family import FamilyContractError
from seeing.families.squashed import whole_grid
from seeing.families.stacks import DecoderAndTower
from seeing.grid import VisualGrid


class Gemma3(DecoderAndTower):
    """`Gemma3ForConditionalGeneration`."""

    name = "gemma3"
    model_types = frozenset({"gemma3"})
    required = ("token_type_ids",)

    def placeholder(self, processor: Any) -> str:
        return processor.boi_token

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        if getattr(processor.image_processor, "do_pan_and_scan", None):
            raise FamilyContractError(
                "gemma3: pan and scan adds crops to the picture, which this family does not read; set "
                "processor.image_processor.do_pan_and_scan = False"
            )
        return model.config.mm_tokens_per_image

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        side = math.isqrt(model.config.mm_tokens_per_image)
        pixels = model.config.vision_config.image_size
        return whole_grid(image_size, (pixels, pixels), side, side, positions)
