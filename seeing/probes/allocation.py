"""Allocation: how the last prompt token shares its attention between image and text.

Mass of a segment is the sum of its weights; the segments of a row and its remainder sum to 1. RAPT
(relative attention per token, Liu et al. 2026) is the mean attention of a token in the segment over
the mean attention of a token in the whole prompt: 1.0 is a segment's proportional share, and uniform
attention gives 1.0 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.probes.reading import Reading, read_rows
from seeing.prompt import Prompt
from seeing.vlm import VLM


@dataclass(frozen=True)
class Allocation:
    """Attention of one query row a prompt, by segment.

    Attributes:
        segments: names, in the order of the segment axis: image, question, template, and where the
            prompt has boxes also evidence and non-evidence (both are parts of image).
        mass: (batch, segment, layer, head), in [0, 1].
        rapt: (batch, segment, layer, head); NaN for a segment without a token.
    """

    segments: tuple[str, ...]
    mass: Float[Tensor, "batch segment layer head"]
    rapt: Float[Tensor, "batch segment layer head"]

    def of(self, segment: str) -> Float[Tensor, "batch layer head"]:
        """The mass on one segment."""
        if segment not in self.segments:
            raise KeyError(f"no segment {segment!r}; there are {', '.join(self.segments)}")
        return self.mass[:, self.segments.index(segment)]

    def rapt_by_layer(self) -> Float[Tensor, "batch segment layer"]:
        """RAPT of each layer's mean row, as the paper draws it by depth."""
        return self.rapt.mean(-1)

    def to_frame(self) -> pd.DataFrame:
        """One row a batch item, segment, layer and head, with mass and rapt."""
        batch, _, layers, heads = self.mass.shape
        index = pd.MultiIndex.from_product(
            [range(batch), self.segments, range(layers), range(heads)],
            names=["item", "segment", "layer", "head"],
        )
        columns = {"mass": self.mass.flatten().numpy(), "rapt": self.rapt.flatten().numpy()}
        return pd.DataFrame(columns, index=index).reset_index()


def allocation(vlm: VLM, prompt: Prompt, query: int = -1) -> Allocation:
    """Attention by segment, per layer and head, of the prompt position ``query`` (the last by default)."""
    return allocate(read_rows(vlm, prompt, [query]))


def allocate(reading: Reading) -> Allocation:
    """Allocation of the last row of a reading."""
    masks = segments_of(reading.prompt)
    parts = {name: _shares(reading.rows, mask, _real(reading.prompt)) for name, mask in masks.items()}
    if reading.cross is not None:
        keys = segments_of(reading.prompt.cross)
        present = reading.prompt.cross.spans.mask("image")
        for name in masks:
            across = _shares(reading.cross, keys.get(name, torch.zeros_like(present)), present)
            is_cross = ~across[0].isnan()
            parts[name] = tuple(torch.where(is_cross, a, b) for a, b in zip(across, parts[name]))
    mass, rapt = (torch.stack(part, 1) for part in zip(*parts.values()))
    return Allocation(tuple(masks), mass, rapt)


def _shares(
    rows: Float[Tensor, "batch layer head query key"],
    mask: Bool[Tensor, "batch key"],
    present: Bool[Tensor, "batch key"],
) -> tuple[Float[Tensor, "batch layer head"], Float[Tensor, "batch layer head"]]:
    """Mass and RAPT of one segment in the last row."""
    mass = torch.einsum("blhk,bk->blh", rows[:, :, :, -1], mask.float())
    return mass, mass / mask.sum(1)[:, None, None] * present.sum(1)[:, None, None]


def segments_of(prompt: Prompt) -> dict[str, Bool[Tensor, "batch pos"]]:
    """The segments of a prompt as masks."""
    spans = prompt.spans
    masks = {
        name: spans.mask(name)
        for name in spans
        if name.startswith("image") or name in ("question", "template")
    }
    if masks.keys() >= {"image", "image:0"} and len(masks) == 4:
        del masks["image:0"]  # one picture: the same as "image"
    if all(turn.boxes for turn in prompt.turns):
        masks["evidence"] = prompt.evidence()
        masks["non-evidence"] = masks["image"] & ~masks["evidence"]
    return masks


def _real(prompt: Prompt) -> Bool[Tensor, "batch pos"]:
    return prompt.inputs["attention_mask"].bool().cpu()
