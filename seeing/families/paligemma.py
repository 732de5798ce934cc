"""PaliGemma: a SigLIP tower on a square picture, whose tokens come first and see the whole prompt.

Geometry. The picture is squashed to S×S; one patch is one token, in reading order.

Traps. The prompt is a prefix: all of it is seen from all of it, so an edit of the last row moves earlier
keys. Without ``token_type_ids`` the model runs causally and says nothing. There is no chat template: the
text is the placeholders, then the instruction; the processor adds <bos> behind the pictures and a line end
behind the text, and labels, which a forward pass should not get. Positions count from 1. Embeddings of
words are scaled by √d_model.
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from seeing.families.squashed import whole_grid
from seeing.families.stacks import DecoderAndTower
from seeing.grid import VisualGrid


class PaliGemma(DecoderAndTower):
    """`PaliGemmaForConditionalGeneration`."""

    name = "paligemma"
    model_types = frozenset({"paligemma"})
    required = ("token_type_ids",)
    answer_type = 1

    def plain(self, processor: Any, n_images: int, instruction: str) -> str:
        return self.placeholder(processor) * n_images + instruction

    def tokenized(self, processor: Any, text: str) -> str:
        end = text.rindex(self.placeholder(processor)) + len(self.placeholder(processor))
        return text[:end] + processor.tokenizer.bos_token + text[end:] + "\n"

    def cleaned(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in inputs.items() if name != "labels"}

    def positions(self, attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        return super().positions(attention_mask) + 1

    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        return processor.image_seq_length

    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        side = math.isqrt(processor.image_seq_length)
        pixels = side * model.config.vision_config.patch_size
        return whole_grid(image_size, (pixels, pixels), side, side, positions)
