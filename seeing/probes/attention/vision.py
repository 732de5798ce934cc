"""The vision tower's own look: where its attention goes, before any question is read.

The tower's rows are those of its CLS token where it has one, and the mean over all its queries where it has
none; the keys are patches. A picture cut into tiles is seen in softmaxes of their own, one a tile: each is
scored by itself, and the picture counts with the mean of those that hold both evidence and other patches. A
tower that attends window by window (Qwen2.5-VL, in all but a few layers) gives every patch the mean over the
queries of its own window: there evidence stands out within its window, never against the rest of the picture.

Where patches lie is said by the families (`Family.patches`) and held against the number of tokens that
the tower runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seeing.families import FamilyContractError
from seeing.families.patches import Patches
from seeing.probes.attention.locality import Look, look_at
from seeing.prompt import Prompt
from seeing.vlm import VLM

#: How many numbers of a pattern are computed at a time.
CHUNK = 2**24


@dataclass(frozen=True)
class Placed:
    """Patches of the prompt's picture number ``picture``, in row ``item`` of the tower's batch."""

    picture: int
    item: int
    patches: Patches

    @property
    def asking(self) -> Int[Tensor, " query"]:
        """The queries whose mean is the tower's row: class tokens, or all patches."""
        return torch.tensor(self.patches.cls) if self.patches.cls else self.patches.grid.positions


@dataclass(frozen=True)
class TowerReading:
    """The tower's rows over one prompt.

    Attributes:
        prompt: the prompt as it ran.
        rows: (layer, item, head, key), per row of the tower's batch the mean over the queries that are asked.
        placed: which of these keys are patches of which picture.
    """

    prompt: Prompt
    rows: Float[Tensor, "layer item head key"]
    placed: tuple[Placed, ...]

    def of(self, picture: int) -> Iterator[tuple[Patches, Float[Tensor, "layer head patch"]]]:
        """The patches of one of the prompt's pictures, and the attention to them, one softmax at a time."""
        for one in self.placed:
            if one.picture == picture:
                yield one.patches, self.rows[:, one.item][..., one.patches.grid.positions]


def read_tower(vlm: VLM, prompt: Prompt) -> TowerReading:
    """The rows of every layer of the vision tower, one forward pass of the tower, any kernel.

    Raises `FamilyContractError` where the tower runs other tokens than the family's geometry says.
    """
    shown = vlm.shown(prompt)
    looking = _Looking(vlm, shown)
    with torch.no_grad(), vlm.trace(prompt) as tracer:
        looking.run()
        tracer.stop()
    return TowerReading(shown, torch.stack(looking.rows), looking.placed)


def tower_looks(vlm: VLM, prompt: Prompt, rule: str = "any") -> list[Look]:
    """Each row's look at the patches of its (first) picture."""
    reading, looks = read_tower(vlm, prompt), []
    keys = reading.prompt.keys
    for row, turn in enumerate(reading.prompt.turns):
        picture = keys.grid_rows.index(row)
        parts = [(patches.grid, rows[:, :, None]) for patches, rows in reading.of(picture)]
        looks.append(look_at(turn, keys.grids[picture], rule, parts))
    return looks


class _Looking:
    """The mean rows of one pass; no more than a chunk of a layer's pattern is held."""

    def __init__(self, vlm: VLM, prompt: Prompt):
        self.vlm, self.prompt = vlm, prompt
        self.rows: list[Tensor] = []
        self.placed: tuple[Placed, ...] = ()
        self.weights: Tensor | None = None

    def run(self) -> None:
        """Called in a trace."""
        for layer in self.vlm.sites.kernels["vision"]:
            site = self.vlm.sites[f"vision.{layer}.attn.pattern"]
            served = site.served()
            call = site.kernel.read(served)
            items, heads, length = call.q.shape[:3]
            if not self.rows:
                self.placed = place(self.vlm, self.prompt, items, length)
                self.weights = weights(self.placed, items, length)
            asked = self.weights.any(0).nonzero()[:, 0]
            total = torch.zeros(items, heads, length)
            for some in asked.split(max(1, CHUNK // (items * heads * length))):
                pattern = site.rows(some.to(call.q.device), served).cpu()
                total += torch.einsum("ihqk,iq->ihk", pattern, self.weights[:, some])
            self.rows.append(total)


def weights(placed: tuple[Placed, ...], items: int, length: int) -> Float[Tensor, "item query"]:
    """How much each query counts in the row that stands for its picture."""
    found = torch.zeros(items, length)
    for one in placed:
        found[one.item, one.asking] = 1 / len(one.asking)
    return found


def place(vlm: VLM, prompt: Prompt, items: int, length: int) -> tuple[Placed, ...]:
    """Where a prompt's patches stand in a tower's batch of ``items`` rows of ``length`` tokens.

    Raises `FamilyContractError` where the family's geometry gives other numbers.
    """
    keys, found, start = prompt.keys, [], 0
    in_one_row = items == 1 and len(keys.grids) > 1
    shares = _shares(vlm, keys, length) if in_one_row else [length] * len(keys.grids)
    for picture, (grid, row, share) in enumerate(zip(keys.grids, keys.grid_rows, shares)):
        family = vlm.family.among(keys.grid_rows.count(row))
        own = family.patches(vlm._module, vlm.processor, grid, share)
        if in_one_row:
            found += [Placed(picture, 0, one.shifted(start)) for one in own]
        else:
            found += [Placed(picture, start + tile, one) for tile, one in enumerate(own)]
        start += share if in_one_row else len(own)
    if not in_one_row and start != items:
        raise FamilyContractError(
            f"{vlm.family.name}: the tower runs {items} rows, the pictures have {start} by the family's "
            f"geometry"
        )
    return tuple(found)


def _shares(vlm: VLM, keys: Prompt, length: int) -> list[int]:
    """How many of the ``length`` tokens of one row are each picture's; all have as many patches a token."""
    tokens = [sum(level.rows * level.cols for level in grid.levels) for grid in keys.grids]
    per_token, left = divmod(length, sum(tokens) or 1)
    if left or not per_token or not all(tokens):
        raise FamilyContractError(
            f"{vlm.family.name}: the tower runs {length} patches for pictures of {tokens} placed image "
            f"tokens, which is no whole number of patches a token"
        )
    return [per_token * count for count in tokens]
