"""Elsewhere: as many image tokens as the evidence has, in a place that is no evidence.

Hiding tokens from a model hurts it, whatever they show. So what hiding the evidence does is held against what
hiding the same number of other tokens does, in the same shape where the picture has room for it: the evidence
boxes, moved together to a place where no token of theirs is evidence. Where they fit nowhere, single tokens
are drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from seeing.grid import Box, VisualGrid

#: Places tried for the moved boxes before single tokens are drawn.
TRIES = 40


class NoRoom(ValueError):
    """Fewer other image tokens than evidence."""


def elsewhere(
    grid: VisualGrid, boxes: Sequence[Box], evidence: Bool[Tensor, " token"], random: np.random.Generator
) -> tuple[Bool[Tensor, " token"], bool]:
    """Tokens of the picture that are no evidence, as many as are; and whether they are the boxes, moved.

    Moved boxes may cover a few tokens more or fewer, as boxes lie on tokens: single ones are taken away or
    drawn in addition. Raises `NoRoom` where evidence is more than half of the tokens that have a place.
    """
    count, free = int(evidence.sum()), grid.placed & ~evidence
    if count > int(free.sum()):
        raise NoRoom(
            f"{count} of {int(grid.placed.sum())} image tokens are evidence: there are no as many others to "
            f"compare with"
        )
    moved = _moved(grid, boxes, evidence, random)
    chosen = torch.zeros_like(evidence) if moved is None else moved & free
    _draw(chosen, chosen, int(chosen.sum()) - count, False, random)
    _draw(chosen, free & ~chosen, count - int(chosen.sum()), True, random)
    return chosen, moved is not None


def generator(seed: int, sample: str) -> np.random.Generator:
    """Random numbers of a sample: the same whatever the batch and the order of samples."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed} {sample}".encode()).digest()[:8]))


def _moved(
    grid: VisualGrid, boxes: Sequence[Box], evidence: Bool[Tensor, " token"], random: np.random.Generator
) -> Bool[Tensor, " token"] | None:
    """The tokens of all boxes, moved by one and the same step to a place free of evidence, inside the part
    of the picture that was seen."""
    corners = np.asarray(boxes, dtype=float)
    left, top, right, bottom = grid.view.box
    corners[:, [0, 2]] = corners[:, [0, 2]].clip(left, right)
    corners[:, [1, 3]] = corners[:, [1, 3]].clip(top, bottom)
    corners = corners[(corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])]
    if not len(corners):
        return None
    span = np.array([left, top]) - corners[:, :2].min(0), np.array([right, bottom]) - corners[:, 2:].max(0)
    best, missed = None, int(evidence.sum())
    for _ in range(TRIES):
        there = corners + np.tile(random.uniform(*span), 2)
        tokens = grid.labels([tuple(box) for box in there.tolist()])
        if tokens.any() and not (tokens & evidence).any():
            off = abs(int(tokens.sum()) - int(evidence.sum()))
            if off < missed or best is None:
                best, missed = tokens, off
            if not off:
                break
    return best


def _draw(
    chosen: Bool[Tensor, " token"],
    among: Bool[Tensor, " token"],
    count: int,
    value: bool,
    random: np.random.Generator,
) -> None:
    """Set ``count`` of the tokens ``among`` to ``value``, where it is positive."""
    if count > 0:
        places = among.nonzero()[:, 0]
        chosen[places[torch.from_numpy(random.choice(len(places), count, replace=False))]] = value


__all__ = ["NoRoom", "elsewhere", "generator"]
