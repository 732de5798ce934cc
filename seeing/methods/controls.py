"""Controls: what a method's gain has to be measured against.

The annotated evidence is the ceiling (`oracle_attention`, `OracleHighlight`). A random window is the
floor: the same boost or the same dimming, somewhere. Dimming is not neutral (a dimmed picture is
another picture), so a highlight is compared with the base first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from seeing.edits import Highlight, Positions, ScaleAttention
from seeing.maps import Window, random_window, window_tokens
from seeing.methods.method import Answers, Edited, Method, grids_of, highlight_windows, positions_mask
from seeing.prompt import Prompt
from seeing.vlm import VLM


def oracle_attention(gain: float = 4.0) -> Edited:
    """Boost the annotated evidence in the last token's attention, all layers."""
    return Edited(ScaleAttention(keys="evidence", gain=gain), "boost the annotated evidence")


def all_image_attention(gain: float = 4.0) -> Edited:
    """Boost all image tokens alike, all layers: more looking, no aim."""
    return Edited(ScaleAttention(keys="image", gain=gain), "boost all image tokens alike")


@dataclass(frozen=True)
class OracleHighlight(Method):
    """Dim everything but the annotated evidence."""

    alpha: float = 0.5
    about = "dim all but the annotated evidence"

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        prompt.evidence()  # refuses a row whose evidence is unknown or out of sight: all of it would be dim
        maps = [box_map(turn.images[0].size, turn.boxes) for turn in prompt.turns]
        return vlm.with_edits(Highlight(maps, self.alpha)).answer(prompt)


@dataclass(frozen=True)
class RandomAttention(Method):
    """Boost a random window in the last token's attention, all layers."""

    gain: float = 4.0
    window: tuple[int, int] = (2, 2)
    seed: int = 0
    about = "boost a random window"

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        windows = random_windows(prompt, self.window, self.seed)
        tokens = [window_tokens(grid, window) for grid, window in zip(grids_of(prompt), windows)]
        keys = Positions.of_mask(positions_mask(prompt, tokens))
        return vlm.with_edits(ScaleAttention(keys=keys, gain=self.gain)).answer(prompt)


@dataclass(frozen=True)
class RandomHighlight(Method):
    """Dim everything but a random window."""

    alpha: float = 0.5
    window: tuple[int, int] = (2, 2)
    seed: int = 0
    about = "dim all but a random window"

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        windows = random_windows(prompt, self.window, self.seed)
        return vlm.with_edits(highlight_windows(prompt, windows, self.alpha)).answer(prompt)


def random_windows(prompt: Prompt, size: tuple[int, int], seed: int) -> list[Window]:
    """One window a row, drawn from the picture and the seed, so that it does not depend on the batch."""
    return [
        random_window(_rng(seed, turn), grid.level(grid.overview).tokens.shape, size)
        for grid, turn in zip(grids_of(prompt), prompt.turns)
    ]


def _rng(seed: int, turn) -> np.random.Generator:
    digest = hashlib.sha256(turn.images[0].tobytes() + turn.question.encode()).digest()
    return np.random.default_rng([seed, *digest[:8]])


def box_map(size: tuple[int, int], boxes) -> np.ndarray:
    """1 inside the boxes (xyxy pixels), 0 outside; (height, width)."""
    width, height = size
    painted = np.zeros((height, width))
    for x0, y0, x1, y1 in boxes:
        left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        painted[top : int(np.ceil(y1)), left : int(np.ceil(x1))] = 1.0
    return painted
