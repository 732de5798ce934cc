"""ViP-LLaVA: LLaVA 1.5 whose projector reads several layers of the tower at once.

Geometry. That of LLaVA 1.5: the shorter side is scaled to S, the centre is cropped to S×S, one patch is
one token, in reading order.

Traps. The projector takes the streams of the layers that ``vision_feature_layer`` lists, side by side, so
``projector.in`` is as many times wider than the tower's ``resid_post``; layers above the highest of them
run and do nothing. The first token of the tower is always dropped, whatever it is: with SigLIP, which has
no CLS token, it would be a patch, and so a model with a tower other than CLIP is not read.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from seeing.families.llava import Llava


class VipLlava(Llava):
    """`VipLlavaForConditionalGeneration`."""

    name = "vipllava"
    model_types = frozenset({"vipllava"})

    def speaks_for(self, config: Any) -> bool:
        return super().speaks_for(config) and config.vision_config.model_type == "clip_vision_model"

    def _kept_cls(self, model: nn.Module) -> int:
        return 0
